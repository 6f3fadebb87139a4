//! Owns `forebay demo`: its options, and which of its runs they ask for.
//!
//! Files: `scene` (brokers, directory, topic), `senders` (threads that send), `oracle` (what
//! arrived, judged by itself), `reader` (the consumer that feeds it), `conductor` (the outage,
//! and what is measured meanwhile), `view` (the live view), `report` (what is said at the end),
//! `crash` (the run that is killed), `drill` (an outage that the pipeline rehearses).

pub mod conductor;
mod crash;
mod drill;
mod oracle;
mod reader;
pub mod report;
mod scene;
pub mod senders;
mod view;

use crate::report::say;
use conductor::{Conductor, Glance, Plan};
use forebay::{Builder, DrillError, Pipeline};
use oracle::VALUE_BYTES_MIN;
use report::{Outcome, Verdict};
use scene::Scene;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const EXAMPLE: &str = "\
The broker is librdkafka's mock cluster inside this process: it keeps the last 5 MiB of each
partition in memory, and neither disk nor replication slows it. Figures of CPU are those of the
whole process, with broker and consumer. `trimmed_by_mock` counts what was delivered and then
dropped by the mock before the consumer could read it.

Example: the same against a real Kafka (no outage is made there)
  forebay demo --brokers localhost:9092 --topic demo

Exit status: 0 nothing was lost, the order held and the books balance; with --at-most-once also
nothing was refused or dropped. 1 otherwise, 2 wrong usage.";

/// Send from several threads, take the brokers away in the middle, and count what arrived.
///
/// Needs no Kafka. A consumer of its own checks each record: that it came, once, and in order.
#[derive(clap::Args, Debug, Clone)]
#[command(after_help = EXAMPLE)]
pub struct Args {
    /// How long to send, in seconds
    #[arg(long, value_name = "S", default_value = "8", value_parser = seconds)]
    seconds: Duration,
    #[command(flatten)]
    load: Load,
    /// When the brokers go, in seconds from the start
    #[arg(long, value_name = "S", default_value = "2", value_parser = seconds)]
    outage_after: Duration,
    /// How long they are gone, in seconds; 0 for no outage
    #[arg(long, alias = "for", value_name = "S", default_value = "3", value_parser = seconds)]
    outage_for: Duration,
    /// Leave the brokers alone: the pipeline rehearses the outage, also with --brokers
    #[arg(long, conflicts_with_all = ["at_most_once", "crash"])]
    drill: bool,
    /// Answers stop (freeze), or connections are refused (down)
    #[arg(long, value_enum, default_value_t = OutageKind::Freeze)]
    outage: OutageKind,
    /// Directory of the log [default: a fresh temporary one]
    #[arg(long, value_name = "DIR", conflicts_with = "at_most_once")]
    wal_dir: Option<PathBuf>,
    /// A real Kafka instead: host:port, several separated by commas; no outage is made
    #[arg(long, value_name = "HOST:PORT", requires = "topic")]
    brokers: Option<String>,
    /// The real Kafka's topic; it must exist
    #[arg(long, value_name = "NAME", requires = "brokers")]
    topic: Option<String>,
    /// No log: what the lanes can't hold is refused
    #[arg(long)]
    at_most_once: bool,
    /// Oldest a record may get outside Kafka and the log, in ms
    #[arg(long, value_name = "N")]
    loss_window_ms: Option<u64>,
    /// Kill the sending process with SIGKILL in the middle of the outage, start it again on its
    /// directory, and show what was lost and what came twice
    #[arg(long, conflicts_with_all = ["at_most_once", "brokers"])]
    crash: bool,
    /// Print one JSON object on standard output, and nothing else
    #[arg(long)]
    json: bool,
    /// Be the process that `--crash` kills: "run:generation"
    #[arg(long, hide = true, value_parser = child)]
    crash_child: Option<Child>,
}

/// What the senders do.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Load {
    /// Threads that send
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub threads: u32,
    /// Records a second, all threads together
    #[arg(long, value_name = "N", default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub rate: u64,
    /// Bytes of each value
    #[arg(long, value_name = "BYTES", default_value_t = 100, value_parser = clap::value_parser!(u32).range(VALUE_BYTES_MIN..=900_000))]
    pub payload: u32,
}

/// What the parent tells the process that it may kill.
#[derive(Clone, Copy, Debug)]
struct Child {
    /// The number that marks this demo's records.
    run: u64,
    /// 0 before the kill, 1 after it.
    generation: u32,
}

/// How the brokers go.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutageKind {
    Freeze,
    Down,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .strip_suffix('s')
        .unwrap_or(text)
        .parse()
        .map_err(|_| "must be a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if duration <= Duration::from_secs(86_400) => Ok(duration),
        _ => Err("must lie between 0 and 86400".into()),
    }
}

fn child(text: &str) -> Result<Child, String> {
    let parts = text.split_once(':').and_then(|(run, generation)| {
        Some(Child { run: run.parse().ok()?, generation: generation.parse().ok()? })
    });
    parts.ok_or_else(|| "must be run:generation".into())
}

impl Args {
    /// A run against the embedded cluster, which is frozen in the middle.
    pub fn frozen(seconds: Duration, outage: (Duration, Duration), load: Load) -> Args {
        Args {
            seconds,
            load,
            outage_after: outage.0,
            outage_for: outage.1,
            outage: OutageKind::Freeze,
            drill: false,
            wal_dir: None,
            brokers: None,
            topic: None,
            at_most_once: false,
            loss_window_ms: None,
            crash: false,
            json: false,
            crash_child: None,
        }
    }

    /// The outage that this run makes, if it makes one: from when, for how long.
    fn outage_plan(&self) -> Option<(Duration, Duration)> {
        let makes_one = self.brokers.is_none() && !self.outage_for.is_zero() && !self.drill;
        makes_one.then_some((self.outage_after, self.outage_for))
    }

    /// The pipeline's settings, but for where records wait.
    fn builder(&self, brokers: &str) -> Builder {
        let builder = Pipeline::builder().brokers(brokers);
        match self.loss_window_ms {
            Some(ms) => builder.loss_window(Duration::from_millis(ms)),
            None => builder,
        }
    }
}

/// Runs `forebay demo`.
pub fn run(mut args: Args) -> Result<ExitCode, Box<dyn Error>> {
    if args.drill {
        // Sends go on over the whole of it.
        args.seconds = args.seconds.max(args.outage_after + args.outage_for + drill::AFTERWARDS);
    }
    if let Some(child) = args.crash_child {
        return crash::child(&args, child);
    }
    match args.outage_plan() {
        Some((after, _)) if after >= args.seconds => {
            return Ok(wrong_usage("--outage-after must be less than --seconds"));
        }
        None if args.crash => return Ok(wrong_usage("--crash needs --outage-for above 0")),
        _ => {}
    }
    if args.crash {
        return crash::run(&args);
    }
    let view = view::View::new(&args);
    let outcome = play(&args, |glance| view.show(glance))?;
    view.clear();
    if args.json {
        outcome.print_json()?;
    } else {
        outcome.print(&args)?;
    }
    Ok(if outcome.verdict.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One run without a crash; `watch` sees how it goes, ten times a second.
pub fn play(args: &Args, mut watch: impl FnMut(&Glance<'_>)) -> Result<Outcome, Box<dyn Error>> {
    let scene = Scene::new(args)?;
    let mut builder = args.builder(scene.brokers());
    builder = match scene.wal_dir() {
        Some(dir) => builder.wal_dir(dir),
        None => builder.at_most_once(),
    };
    let pipeline = builder.open()?;
    let recovered = pipeline.stats().books.recovered;
    if recovered > 0 && !args.json {
        say(format_args!("{recovered} records of an earlier run are in the log; they go first"));
    }
    let topic = pipeline.topic(scene.topic())?;
    pipeline.ready(Duration::from_secs(30))?;
    let reader = scene.start_reader()?;
    let senders = senders::Senders::start(args, &pipeline, &topic, scene.run(), 0)?;
    let plan = Plan {
        seconds: args.seconds,
        outage: args.outage_plan(),
        kind: args.outage,
        payload: args.load.payload,
    };
    let mut conductor = Conductor::new(plan, &scene, &reader, &senders);
    let mut stats = || pipeline.stats();
    let drilled = std::thread::scope(|scope| {
        let shared = senders.shared();
        let (pipeline, plan) = (&pipeline, (args.outage_after, args.outage_for));
        let drill =
            args.drill.then(|| scope.spawn(move || drill::rehearse(pipeline, &shared, plan)));
        conductor.play(&mut stats, &mut watch);
        drill.map(|drill| drill.join().unwrap_or(Err(DrillError::Closed)))
    });
    let sent = senders.join();
    // What waits for a batch shouldn't wait any longer; how long all of it takes is the
    // conductor's to watch.
    let _ = pipeline.flush(Duration::ZERO);
    conductor.drain(&mut stats, &mut watch);
    let delivered_after = conductor.elapsed();
    let closed = pipeline.close(Duration::from_secs(5))?;
    let books = closed.stats.books;
    let expected = books.delivered.saturating_sub(books.recovered);
    let arrived = reader.finish(expected, Duration::from_secs(30));
    let mut verdict = Verdict::new(args, &books, &sent, &arrived);
    let mut timeline = conductor.into_timeline();
    if let Some(drilled) = &drilled {
        verdict.judge_drill(drilled);
        timeline.add_drill(drilled);
    }
    let outcome = Outcome {
        books,
        refused: closed.stats.refused.clone(),
        timeline,
        drilled,
        elapsed: delivered_after,
        verdict,
        arrived: arrived.tally(),
        sent,
    };
    scene.clean(outcome.verdict.is_good());
    Ok(outcome)
}

fn wrong_usage(what: &str) -> ExitCode {
    say(format_args!("{what}"));
    ExitCode::from(2)
}

/// Sleeps until `at`, if that is still to come.
fn sleep_until(at: Instant) {
    std::thread::sleep(at.saturating_duration_since(Instant::now()));
}
