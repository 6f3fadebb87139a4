//! Owns the campaign: which generations are killed where, until enough rounds are done; and the
//! report.

use crate::judge::Counts;
use crate::points::Point;
use crate::series::{End, Outcome, Plan, Sabotage, Series};
use forebay_testkit::Random;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Failures that are printed.
const FAILURES_TOLD: usize = 200;
/// Kills of one directory before it is drained and judged.
const KILLS_PER_SERIES: u64 = 8;
/// From so many rounds on, every named point must have been hit: each round aims at the one that
/// was hit least, and one in four is a kill at a random moment.
const ROUNDS_FOR_EVERY_POINT: u64 = 200;
/// A machine on which children are too slow for a point gets so many times the rounds for it.
const MORE_ROUNDS: u64 = 3;

/// Kill a pipeline ROUNDS times and judge what is left.
///
/// A child runs a real pipeline on real files: segments of 1 MiB, so that they are prepared,
/// sealed and removed all the time, three sending threads, and a broker that is healthy, slow or
/// frozen by turns. It is killed with SIGKILL, at a random moment or by itself at a named point:
/// before, after or in the middle of an operation on a file. The next child opens what it left.
/// After eight kills the directory is drained, and a judge that knows only what the senders noted,
/// what the brokers appended and what a walk of the directory counts checks order, loss, holes,
/// duplicates, ghosts and books.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Kills.
    #[arg(long, default_value_t = 100)]
    pub rounds: u64,
    /// Chooses the plans; the moments of the kills are the machine's. Default: from the clock.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Directories worked on at a time.
    #[arg(long, default_value_t = 2)]
    pub jobs: usize,
    /// Where the directories are made. Default: the system's directory for temporary files.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Makes something wrong on purpose; the campaign must then fail: damage, no-allowance, or a
    /// broker that loses, swaps, repeats, invents or garbles.
    #[arg(long)]
    pub sabotage: Option<Sabotage>,
}

/// What all series have come to so far.
#[derive(Default)]
struct Tally {
    rounds: u64,
    series: u64,
    random_kills: u64,
    missed: u64,
    points: BTreeMap<Point, u64>,
    counts: Counts,
    failures: Vec<String>,
}

impl Tally {
    /// Named points that were never hit.
    fn never(&self) -> Vec<Point> {
        Point::all().iter().filter(|p| !self.points.contains_key(p)).copied().collect()
    }

    /// Enough rounds are done, of which so many were asked for.
    fn is_enough(&self, rounds: u64) -> bool {
        let most = if rounds < ROUNDS_FOR_EVERY_POINT || self.never().is_empty() {
            rounds
        } else {
            MORE_ROUNDS * rounds
        };
        self.rounds >= most
    }

    /// The point that was hit least, the later ones of the list included by chance.
    fn rarest(&self, random: &mut Random) -> Point {
        let all = Point::all();
        let hits = |p: &Point| self.points.get(p).copied().unwrap_or(0);
        let least = all.iter().map(hits).min().unwrap_or(0);
        let rare: Vec<Point> = all.iter().filter(|p| hits(p) == least).copied().collect();
        rare[random.within(0, rare.len() as u64) as usize]
    }
}

/// Runs the campaign and prints its report.
pub fn run(args: &Args) -> Result<(), String> {
    let seed = args.seed.unwrap_or_else(crate::evidence::now_ns);
    println!("crash campaign: {} rounds, --seed {seed}, {} jobs", args.rounds, args.jobs);
    let started = Instant::now();
    let tally = Mutex::new(Tally::default());
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            scope.spawn(|| work(args, seed, &tally));
        }
    });
    let tally = tally.into_inner().map_err(|_| "a worker panicked")?;
    report(&tally, started.elapsed());
    if !tally.failures.is_empty() {
        return Err(format!("the contract did not hold, {} times", tally.failures.len()));
    }
    let never: Vec<String> = tally.never().iter().map(Point::to_string).collect();
    if args.rounds >= ROUNDS_FOR_EVERY_POINT && !never.is_empty() {
        return Err(format!("never hit: {}", never.join(" ")));
    }
    if tally.counts.safe == 0 || tally.counts.recovered == 0 || tally.points.is_empty() {
        return Err("this run proves too little".into());
    }
    Ok(())
}

/// Takes series after series until enough rounds are done or one failed.
fn work(args: &Args, seed: u64, tally: &Mutex<Tally>) {
    let lock = || tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    loop {
        let number = {
            let mut tally = lock();
            if tally.is_enough(args.rounds) || !tally.failures.is_empty() {
                return;
            }
            tally.series += 1;
            tally.series
        };
        let series_seed = seed.wrapping_add(number.wrapping_mul(0x9E37_79B9));
        let home = match &args.dir {
            Some(dir) => tempfile::tempdir_in(dir),
            None => tempfile::tempdir(),
        };
        let done = home.map_err(|e| e.to_string()).and_then(|home| {
            let done = one(args, series_seed, home.path(), tally);
            let is_bad = done.as_ref().map_or(true, |o| !o.violations.is_empty());
            // What failed on its own stays, to be looked at.
            if is_bad && args.sabotage.is_none() {
                println!("kept: {}", home.keep().display());
            }
            done
        });
        let mut tally = lock();
        match done {
            Ok(Outcome { counts, violations }) => {
                tally.counts.add(&counts);
                let told = violations.iter().map(|v| format!("series {series_seed}: {v}"));
                tally.failures.extend(told);
            }
            Err(why) => tally.failures.push(format!("series {series_seed}: {why}")),
        }
    }
}

fn one(
    args: &Args,
    seed: u64,
    home: &std::path::Path,
    tally: &Mutex<Tally>,
) -> Result<Outcome, String> {
    let lock = || tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut random = Random::new(!seed);
    let mut series = Series::new(seed, home, args.sabotage);
    let mut kills = 0;
    while kills < KILLS_PER_SERIES && !lock().is_enough(args.rounds) {
        let plan = match random.within(0, 10) {
            0 => Plan::Close(random.within(50, 400), random.within(0, 2) * random.within(1, 100)),
            1..=2 => Plan::Kill(random.within(5, 700)),
            _ => {
                let point = lock().rarest(&mut random);
                Plan::Point(point, 1 + random.within(0, point.op.often))
            }
        };
        let end = series.generation(plan)?;
        let mut tally = lock();
        match end {
            End::Closed => continue,
            End::AtPoint(point) => *tally.points.entry(point).or_default() += 1,
            End::Killed => {
                tally.random_kills += 1;
                tally.missed += u64::from(matches!(plan, Plan::Point(..)));
            }
        }
        tally.rounds += 1;
        kills += 1;
    }
    series.finish()
}

fn report(tally: &Tally, took: Duration) {
    let all = Point::all();
    let hit: u64 = tally.points.values().sum();
    let least = all.iter().map(|p| tally.points.get(p).copied().unwrap_or(0)).min().unwrap_or(0);
    println!(
        "{} kills in {:.0} s over {} directories: {hit} at named points, {} at random moments ({} of \
         them had waited for a point that did not come)",
        tally.rounds,
        took.as_secs_f64(),
        tally.series,
        tally.random_kills,
        tally.missed
    );
    println!(
        "{} of {} named points hit, each at least {least} times:",
        tally.points.len(),
        all.len()
    );
    for line in all.chunks(4) {
        let told = line.iter().map(|p| {
            let hits = tally.points.get(p).copied().unwrap_or(0);
            format!("{:<26}{hits:>4}", p.to_string())
        });
        println!("  {}", told.collect::<Vec<_>>().join("  "));
    }
    let c = &tally.counts;
    println!(
        "records: {} accepted, {} of them so early that none may be missing; {} arrived, {} set \
         aside, {} lost within the window",
        c.accepted, c.safe, c.arrived, c.set_aside, c.lost_in_window
    );
    println!(
        "recovered {} in {} runs, as counted; {} runs closed, their books as counted; exposed at {} kills",
        c.recovered, c.replayed_runs, c.closed, c.exposed
    );
    println!(
        "duplicates {}, most in one run {} (bounds of all runs together {}); late survivors {} of {} \
         late appends",
        c.duplicates, c.duplicates_worst, c.duplicates_bound, c.late_survivors, c.late_appends
    );
    for failure in tally.failures.iter().take(FAILURES_TOLD) {
        println!("FAILED {failure}");
    }
}
