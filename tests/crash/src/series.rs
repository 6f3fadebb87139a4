//! Owns one series: generations over one directory, each killed or closed, the last one drained;
//! and the count of the directory between two of them, which opens nothing.

use crate::broker::Lie;
use crate::evidence::Evidence;
use crate::judge::{Counts, Generation, Judge};
use crate::points::Point;
use crate::records::{Id, THREADS, VALUE_BYTES_MAX, id_of};
use forebay::inspect::{Directory, Item};
use forebay::wal::{CheckpointData, FileStorage, inspect_checkpoint};
use forebay_testkit::Random;
use std::collections::HashSet;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// A child that waits for a named point is killed after so long all the same.
const POINT_TIMEOUT: Duration = Duration::from_millis(1_500);
/// The last generation must have delivered everything and closed by then.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(180);

/// What is wrong on purpose, so that the judge can be seen to notice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sabotage {
    /// The broker lies.
    Broker(Lie),
    /// A byte in each page of the log is changed between kill and reopening.
    Damage,
    /// The judge allows no loss window.
    NoAllowance,
}

/// How a generation ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plan {
    /// SIGKILL after so many milliseconds.
    Kill(u64),
    /// It kills itself when it comes to a point for the n-th time.
    Point(Point, u64),
    /// It closes after so many milliseconds, with so many for the broker.
    Close(u64, u64),
}

/// How a generation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    Killed,
    AtPoint(Point),
    Closed,
}

/// A series under way.
pub struct Series {
    seed: u64,
    random: Random,
    home: PathBuf,
    next: Vec<u64>,
    generations: Vec<Generation>,
    sabotage: Option<Sabotage>,
}

/// What a series came to.
#[derive(Debug)]
pub struct Outcome {
    pub counts: Counts,
    pub violations: Vec<String>,
}

impl Series {
    pub fn new(seed: u64, home: &Path, sabotage: Option<Sabotage>) -> Series {
        Series {
            seed,
            random: Random::new(seed),
            home: home.to_path_buf(),
            next: vec![0; THREADS],
            generations: Vec::new(),
            sabotage,
        }
    }

    fn dir(&self) -> PathBuf {
        self.home.join("log")
    }

    /// Runs the next generation to its end.
    pub fn generation(&mut self, plan: Plan) -> Result<End, String> {
        let window_ms = [0, 30, 60, 100][self.random.within(0, 4) as usize];
        let is_close = matches!(plan, Plan::Close(..));
        // One kill in four comes while it closes, or just before, or it has closed by then.
        let dies_closing = !is_close && self.random.within(0, 4) == 0;
        // A log so small that it fills up can't promise what a close promises.
        let is_small = !is_close && !dies_closing && self.random.within(0, 6) == 0;
        let mut command = self.command(window_ms, if is_small { 12 << 20 } else { 1 << 30 })?;
        let first: Vec<String> = self.next.iter().map(u64::to_string).collect();
        command.args(["--first", &first.join(",")]);
        let timeout = match plan {
            Plan::Kill(after_ms) => Duration::from_millis(after_ms),
            Plan::Point(point, nth) => {
                command.args(["--point", &point.to_string(), "--nth", &nth.to_string()]);
                POINT_TIMEOUT
            }
            Plan::Close(after_ms, timeout_ms) => {
                command.args(["--close-after-ms", &after_ms.to_string()]);
                command.args(["--close-timeout-ms", &timeout_ms.to_string()]);
                DRAIN_TIMEOUT
            }
        };
        if dies_closing {
            let (before_ms, broker_ms) = (self.random.within(0, 30), self.random.within(0, 40));
            let after_ms = (timeout.as_millis() as u64).min(300).saturating_sub(before_ms);
            command.args(["--close-after-ms", &after_ms.to_string()]);
            command.args(["--close-timeout-ms", &broker_ms.to_string()]);
        }
        let appends_late = self.random.within(0, 3) == 0;
        let (status, generation) = self.run(command, window_ms, timeout)?;
        let end = match (status.signal(), status.success()) {
            (Some(9), _) if is_close => {
                return Err("it does not close".into());
            }
            (Some(9), _) => match self.evidence()?.read_point().map_err(told)? {
                Some(point) => End::AtPoint(point.parse()?),
                None => End::Killed,
            },
            (None, true) if generation.closed.is_some() => End::Closed,
            _ => return Err(format!("generation {}: {status:?}", self.generations.len())),
        };
        for (next, times) in self.next.iter_mut().zip(&generation.accepted) {
            // The one behind the last noted may have been taken: its number isn't used again.
            *next += times.len() as u64 + 1;
        }
        self.generations.push(Generation { appends_late, ..generation });
        if self.sabotage == Some(Sabotage::Damage) {
            damage(&self.dir()).map_err(told)?;
        }
        Ok(end)
    }

    /// Delivers what is left, and judges.
    pub fn finish(mut self) -> Result<Outcome, String> {
        let mut command = self.command(100, 1 << 30)?;
        command.args(["--calm", "--close-after-ms", "0", "--close-timeout-ms", "30000"]);
        let (status, generation) = self.run(command, 100, DRAIN_TIMEOUT)?;
        if !status.success() {
            return Err(format!("the last generation: {status:?}"));
        }
        let left = generation.closed.map_or(u64::MAX, |c| c.in_wal);
        self.generations.push(generation);
        let set_aside = set_aside(&self.dir()).map_err(told)?;
        let no_allowance = self.sabotage == Some(Sabotage::NoAllowance);
        let judge = Judge::new(self.seed, &self.generations, &set_aside, no_allowance);
        let (counts, mut violations) = judge.verdict();
        if left > 0 {
            violations.push(format!("{left} left in the log after everything was drained"));
        }
        Ok(Outcome { counts, violations })
    }

    fn evidence(&self) -> Result<Evidence, String> {
        Evidence::at(&self.home.join(format!("generation-{}", self.generations.len())))
            .map_err(told)
    }

    fn command(&self, window_ms: u64, wal_max_bytes: u64) -> Result<Command, String> {
        let mut command = Command::new(std::env::current_exe().map_err(told)?);
        command.arg("child").arg("--dir").arg(self.dir());
        command.arg("--evidence").arg(self.evidence()?.path());
        command.args(["--seed", &self.seed.to_string()]);
        command.args(["--generation", &self.generations.len().to_string()]);
        command.args(["--window-ms", &window_ms.to_string()]);
        command.args(["--wal-max-bytes", &wal_max_bytes.to_string()]);
        if let Some(Sabotage::Broker(lie)) = self.sabotage {
            command.args(["--lie", &lie.to_string()]);
        }
        Ok(command)
    }

    fn run(
        &self,
        mut command: Command,
        window_ms: u64,
        timeout: Duration,
    ) -> Result<(ExitStatus, Generation), String> {
        let dir = self.dir();
        let checkpoint_before = checkpoint(&dir);
        let counted = count(&dir).map_err(told)?;
        let mut child = command.spawn().map_err(told)?;
        let status = wait(&mut child, timeout).map_err(told)?;
        let evidence = self.evidence()?;
        let read = || -> io::Result<Generation> {
            Ok(Generation {
                window_ms,
                first: self.next.clone(),
                accepted: evidence.read_accepted()?,
                events: evidence.read_topic()?,
                looks: evidence.read_looks()?,
                said: evidence.read_said()?,
                closed: evidence.read_closed()?,
                counted,
                checkpoint_before,
                checkpoint_after: checkpoint(&dir),
                appends_late: false,
            })
        };
        Ok((status, read().map_err(told)?))
    }
}

fn told(e: io::Error) -> String {
    e.to_string()
}

/// Waits for the child, and kills it when the time is over.
fn wait(child: &mut Child, timeout: Duration) -> io::Result<ExitStatus> {
    let until = Instant::now() + timeout;
    while Instant::now() < until {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill()?;
    child.wait()
}

fn checkpoint(dir: &Path) -> Option<CheckpointData> {
    FileStorage::open_read_only(dir).ok().and_then(|files| inspect_checkpoint(&files))
}

/// Records of the log that no checkpoint calls final, counted one by one.
fn count(dir: &Path) -> io::Result<u64> {
    if !dir.exists() {
        return Ok(0);
    }
    let directory = Directory::open(dir)?;
    let mut count = 0;
    for segment in directory.segments()?.iter().filter(|s| !s.is_set_aside()) {
        directory.walk(segment, |item| {
            if let Item::Record(record) = item {
                count += u64::from(!directory.is_final(&record.topic, record.lsn));
            }
            true
        })?;
    }
    Ok(count)
}

fn set_aside(dir: &Path) -> io::Result<HashSet<Id>> {
    let directory = Directory::open(dir)?;
    let mut ids = HashSet::new();
    for segment in directory.segments()?.iter().filter(|s| s.is_set_aside()) {
        directory.walk(segment, |item| {
            if let Item::Record(record) = item {
                ids.extend(id_of(record.timestamp_ms, record.key));
            }
            true
        })?;
    }
    Ok(ids)
}

/// Changes a byte in each stretch of the log's segments.
fn damage(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "wal") {
            let file = std::fs::OpenOptions::new().read(true).write(true).open(&path)?;
            let mut byte = [0];
            for at in (4 * VALUE_BYTES_MAX..file.metadata()?.len()).step_by(16 * 1024) {
                file.read_exact_at(&mut byte, at)?;
                file.write_all_at(&[!byte[0]], at)?;
            }
        }
    }
    Ok(())
}
