//! `forebay pipe` killed with SIGKILL at random moments, and started again on the same
//! directory with new input.
//!
//! The judge can fail: with `--loss-window-ms 4000` and the same second of allowance, it found
//! 8,528 lines lost.
//!
//! `FOREBAY_KILL_ROUNDS` sets the rounds (5), `FOREBAY_SEED` the moments; both are printed.

mod pipe_common;

use forebay_testkit::audit::{Audit, Disorder, Id, Stream};
use forebay_testkit::lines::{Feeder, LogLines, SEPARATOR};
use forebay_testkit::process::Running;
use forebay_testkit::{Consumed, Kafka, KafkaOptions, Random, heavy, private_dir, say, seed};
use pipe_common as common;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Slow, and the loss window decides when a line is journaled; fast, and the lane's room does.
const LINES_PER_S: [u64; 2] = [4_000, 30_000];
/// The default of `--loss-window-ms`.
const LOSS_WINDOW: Duration = Duration::from_secs(1);
/// The default of `in_flight_max_records`: what a crash may repeat, beside what was
/// acknowledged since the checkpoint was stored (every 10 ms; a second of it is allowed here).
const IN_FLIGHT_MAX_RECORDS: u64 = 131_072;

/// More often than this no look of the flusher goes to sleep: it may wait for the disk, too.
const SWITCHES_PER_LOOK: u64 = 8;

/// Notes all the time how often the flusher of a process has gone to sleep. So it is known when a
/// look began that has ended, whatever the machine did to the process meanwhile: the loss window
/// holds while the flusher is let run.
struct Pulse {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<(Instant, u64)>>,
}

impl Pulse {
    fn start(process: u32) -> Pulse {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut noted = Vec::new();
            while !flag.load(Ordering::Relaxed) {
                // Before the look at it: it hadn't gone to sleep more often by then.
                let at = Instant::now();
                if let Some(switches) = flusher_switches(process) {
                    noted.push((at, switches));
                }
                sleep_ms(2);
            }
            noted
        });
        Pulse { stop, thread }
    }

    /// When at the latest a look began that has ended.
    fn stop(self) -> Option<Instant> {
        self.stop.store(true, Ordering::Relaxed);
        let noted = self.thread.join().expect("the notes");
        let (_, last) = *noted.last()?;
        let began = noted.iter().rfind(|(_, n)| n + SWITCHES_PER_LOOK <= last);
        began.map(|(at, _)| *at)
    }
}

/// How often the flusher of a process has gone to sleep.
fn flusher_switches(process: u32) -> Option<u64> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).ok()?.flatten();
    let status = tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok())
        .find(|status| status.starts_with("Name:\tforebay-flusher\n"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
    line.trim().parse().ok()
}

/// What one process took before it was killed.
#[derive(Debug)]
struct Round {
    /// The number of its first line.
    first: u64,
    /// Lines below this number were accepted more than the loss window before the last look that
    /// is known to have ended before the kill.
    safe: u64,
    /// Lines below this number were surely accepted when it was killed.
    accepted: u64,
    /// The number after its last line.
    end: u64,
}

#[test]
fn killed_while_kafka_is_healthy() {
    kill_rounds(false);
}

#[test]
fn killed_while_kafka_stands_still() {
    kill_rounds(true);
}

fn kill_rounds(pause: bool) {
    let _heavy = heavy();
    let Some(mut kafka) = Kafka::start(KafkaOptions::default()) else { return };
    let topic = kafka.topic("killed", 3);
    let dir = private_dir();
    let count: usize =
        std::env::var("FOREBAY_KILL_ROUNDS").map_or(5, |n| n.parse().expect("a number"));
    let seed = seed();
    say(&format!("killed (paused: {pause}): {count} rounds, FOREBAY_SEED={seed}"));
    let mut random = Random::new(seed);
    let mut rounds: Vec<Round> = Vec::new();
    let mut bytes = 0;
    let mut worst_late = Duration::ZERO;
    for round in 0..count {
        let first = rounds.last().map_or(0, |r| r.end);
        let mut running =
            Running::start(common::pipe(kafka.brokers(), &topic, dir.path())).unwrap();
        let pulse = Pulse::start(running.id());
        let feeder = Feeder::start(
            running.take_stdin(),
            LogLines::new(seed, 0, first),
            LINES_PER_S[round % 2],
        );
        if pause {
            // The broker may still stand from the round before, and goes on under this one.
            sleep_ms(random.within(0, 1000));
            kafka.resume();
            sleep_ms(random.within(500, 2500));
            kafka.pause();
        }
        sleep_ms(random.within(300, 4000));
        assert!(!running.has_ended(), "it ended by itself: {:?}", running.wait(LOSS_WINDOW));
        // Until it is killed: it may go on after the last note, which is all the better.
        let looked = pulse.stop();
        let killed = Instant::now();
        running.kill();
        let ended = running.wait(Duration::from_secs(60));
        assert_eq!(ended.code(), None, "{ended:?}");
        let fed = feeder.stop();
        bytes += fed.bytes();
        let late = looked.map_or(Duration::ZERO, |at| killed - at);
        worst_late = worst_late.max(late);
        let before = looked.and_then(|at| at.checked_sub(LOSS_WINDOW));
        rounds.push(Round {
            first,
            safe: first + before.map_or(0, |before| fed.accepted_at(before)),
            accepted: first + fed.accepted_at(killed),
            end: first + fed.lines(),
        });
    }
    kafka.resume();
    let last = common::closing(&common::drain(kafka.brokers(), &topic, dir.path()));
    assert_eq!(common::count(&last, "accepted"), 0, "{last}");
    assert_eq!(common::count(&last, "delivered"), common::count(&last, "recovered"), "{last}");

    let records = kafka.oracle().read(&topic).unwrap();
    let audit = Audit::new(&records, Stream::by_key);
    let keys = check_content(&records, seed, &rounds);
    let number = |number| Id { source: 0, number };
    let lost: Vec<u64> =
        rounds.iter().flat_map(|r| r.first..r.safe).filter(|n| !audit.has(number(*n))).collect();
    let in_window =
        rounds.iter().flat_map(|r| r.safe..r.accepted).filter(|n| !audit.has(number(*n))).count();
    let (late_survivors, disorder): (Vec<Disorder>, Vec<Disorder>) =
        audit.disorder.iter().partition(|d| is_late_survivor(d, &rounds));
    let holes = holes(&audit, &keys, &rounds);
    let bound = rounds.len() as u64 * (IN_FLIGHT_MAX_RECORDS + LINES_PER_S[1]);
    say(&format!(
        "killed (paused: {pause}): {} lines, {:.1} MB, {} rounds; {} accepted over a second before \
         the last look (at most {worst_late:.0?} before the kill), lost of these {}; lost in the last second {in_window}; in the topic {}, \
         duplicates {} (bound {bound}), disorder {}, late survivors {}, holes {holes}, split keys {}; \
         last run: {}",
        rounds.last().map_or(0, |r| r.end),
        bytes as f64 / 1e6,
        rounds.len(),
        rounds.iter().map(|r| r.safe - r.first).sum::<u64>(),
        lost.len(),
        audit.records,
        audit.duplicates,
        disorder.len(),
        late_survivors.len(),
        audit.split_keys,
        common::figures(&last)
    ));
    assert!(lost.is_empty(), "lost {:?}...: {rounds:?}", &lost[..lost.len().min(5)]);
    assert!(disorder.is_empty(), "{:?}...: {rounds:?}", &disorder[..disorder.len().min(5)]);
    assert_eq!((holes, audit.split_keys, audit.strangers), (0, 0, 0));
    assert!(audit.duplicates <= bound);
}

fn sleep_ms(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// Asserts that each record is the line that was written under its number, and gives the key of
/// every line.
fn check_content(records: &[Consumed], seed: u64, rounds: &[Round]) -> Vec<Option<Vec<u8>>> {
    let lines: Vec<Vec<u8>> = rounds
        .iter()
        .flat_map(|r| LogLines::new(seed, 0, r.first).take((r.end - r.first) as usize))
        .collect();
    for record in records {
        let id = Id::of(record).expect("an id");
        let mut line = record.key.clone().unwrap_or_default();
        if record.key.is_some() {
            line.push(SEPARATOR as u8);
        }
        line.extend_from_slice(record.value.as_deref().expect("a value"));
        line.push(b'\n');
        assert_eq!(line, lines[id.number as usize], "line {}", id.number);
    }
    let key = |line: &Vec<u8>| {
        line.iter().position(|b| *b == SEPARATOR as u8).map(|at| line[..at].to_vec())
    };
    lines.iter().map(key).collect()
}

/// The one disorder that the contract allows: a record that a dead process had handed over but
/// not yet journaled, appended by a broker that had stood still, after records of a later run.
fn is_late_survivor(disorder: &Disorder, rounds: &[Round]) -> bool {
    let round = |id: Id| rounds.iter().position(|r| id.number < r.end);
    let late = round(disorder.late).expect("a line of some round");
    disorder.late.number >= rounds[late].safe && round(disorder.after) > Some(late)
}

/// A crash costs a suffix of each key's lines, never a hole: counts the lines that are missing
/// though a later line of the same key and process arrived.
fn holes(audit: &Audit, keys: &[Option<Vec<u8>>], rounds: &[Round]) -> u64 {
    let mut holes = 0;
    for round in rounds {
        let mut missing: HashMap<&[u8], u64> = HashMap::new();
        for number in round.first..round.end {
            let Some(key) = keys[number as usize].as_deref() else { continue };
            if audit.has(Id { source: 0, number }) {
                holes += missing.remove(key).unwrap_or(0);
            } else {
                *missing.entry(key).or_default() += 1;
            }
        }
    }
    holes
}
