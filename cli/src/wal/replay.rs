//! Owns `forebay wal replay`: a directory that nobody has open, into Kafka.

use super::bar;
use crate::properties::Properties;
use crate::report::say;
use forebay::redrive::{Options, Outcome, Redrive};
use forebay::{NotReady, Pipeline};
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a connected cluster may not know the topics.
const TOPIC_GRACE: Duration = Duration::from_secs(10);
/// After this long without a broker, it says so.
const SAY_SO: Duration = Duration::from_secs(5);
const LANE_BYTES: usize = 16 << 20;

pub const HELP: &str = "\
What holds: records go in the order of the log, with their keys, headers, times and partitions. A
record leaves the directory only when Kafka has confirmed it. SIGINT or SIGTERM stops, waits
--close-ms for what is on its way, and keeps the rest; a second one ends at once. After a crash or
a kill nothing is lost, and what was on its way (at most 16,384 records or 32 MiB) or was confirmed
in the last 200 ms may come twice. Topics that aren't selected stay; the next replay, or a
pipeline that opens the directory, sends them and passes over what is done. A record that Kafka
refuses for good is set aside with its reason; a refused topic ends the replay instead.

With --set-aside the dead letters are sent, and those that Kafka confirms are removed; a kill may
have those of one segment (4 MiB) sent twice.

Examples
  forebay wal replay ./old.wal --brokers localhost:9092
  forebay wal replay ./old.wal --brokers localhost:9092 --topic audit --rate 5000
  forebay wal replay ./app.wal --brokers localhost:9092 --set-aside --reason message_too_large

--json: total, read, delivered, delivered_before, set_aside, kept, left, lost, unaccounted,
complete, signalled, trouble, elapsed_ms, records_per_second.

Exit status: 0 all that was selected is delivered (or, after a signal, is kept), 1 something is
wrong and standard error says what, 2 wrong usage.";

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The log's directory; no process may have it open
    dir: PathBuf,
    /// Brokers to start from: host:port, several separated by commas
    #[arg(long, value_name = "HOST:PORT")]
    brokers: String,
    /// Only records of this topic; may be given more than once
    #[arg(long, value_name = "NAME")]
    topic: Vec<String>,
    /// Send to this topic instead of each record's own
    #[arg(long, value_name = "NAME")]
    to_topic: Option<String>,
    /// Most records a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Send the dead letters instead of the backlog
    #[arg(long)]
    set_aside: bool,
    /// Only dead letters with this reason; may be given more than once
    #[arg(long, value_name = "NAME", requires = "set_aside")]
    reason: Vec<String>,
    /// What Kafka gets after a signal, in ms
    #[arg(long, value_name = "N", default_value_t = 5000)]
    close_ms: u64,
    #[command(flatten)]
    properties: Properties,
    /// Print one JSON object on standard output at the end
    #[arg(long)]
    json: bool,
}

/// Runs `forebay wal replay`.
pub fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // In this order: the second signal finds the flag set.
        signal_hook::flag::register_conditional_shutdown(signal, 1, stop.clone())?;
        signal_hook::flag::register(signal, stop.clone())?;
    }
    let began = Instant::now();
    let mut redrive = Redrive::open(&args.dir)?;
    for finding in redrive.findings() {
        say(format_args!("log: {finding}"));
    }
    let pipeline = open_pipeline(args, redrive.record_bytes_max())?;
    let mut options = Options::default();
    options.topics.clone_from(&args.topic);
    options.reasons.clone_from(&args.reason);
    options.to_topic.clone_from(&args.to_topic);
    options.records_per_s = args.rate;
    options.close_timeout = Duration::from_millis(args.close_ms);
    let targets = targets(args, &redrive);
    let outcome = if wait_for_kafka(&pipeline, &targets, &stop)? {
        let bar = bar::of_records(0);
        let mut ask = |so_far: &Outcome| {
            bar.set_length(so_far.total);
            bar.set_position(so_far.read);
            bar.set_message(match &pipeline.stats().states.disconnected {
                Some(_) => "disconnected".to_owned(),
                None => format!("{} delivered", so_far.delivered),
            });
            !stop.load(Ordering::Acquire)
        };
        let outcome = if args.set_aside {
            redrive.run_set_aside(&pipeline, &options, &mut ask)
        } else {
            redrive.run(&pipeline, &options, &mut ask)
        };
        bar.finish_and_clear();
        outcome?
    } else {
        Outcome::default()
    };
    redrive.close()?;
    // What is on its way has ended or is kept; nothing is to be waited for.
    let _ = pipeline.close(Duration::ZERO);
    tell(args, &outcome, stop.load(Ordering::Acquire), began.elapsed())
}

fn open_pipeline(args: &Args, record_bytes_max: usize) -> Result<Pipeline, Box<dyn Error>> {
    let mut builder = Pipeline::builder()
        .brokers(&args.brokers)
        .at_most_once()
        .lanes(1)
        .lane_bytes(LANE_BYTES.max((record_bytes_max * 8).next_power_of_two()))
        .record_bytes_max(record_bytes_max)
        .flush_interval(Duration::from_millis(5));
    for (name, value) in args.properties.read()? {
        builder = builder.extra(name, value);
    }
    Ok(builder.open()?)
}

/// The topics that records will go to, as far as they are known beforehand.
fn targets(args: &Args, redrive: &Redrive) -> Vec<String> {
    if let Some(topic) = &args.to_topic {
        return vec![topic.clone()];
    }
    let waiting: Vec<&str> = redrive.backlog().iter().map(|(topic, _)| topic.as_str()).collect();
    if args.topic.is_empty() {
        return if args.set_aside {
            Vec::new()
        } else {
            waiting.iter().map(|t| (*t).to_owned()).collect()
        };
    }
    for topic in args.topic.iter().filter(|t| !args.set_aside && !waiting.contains(&t.as_str())) {
        say(format_args!("no record of topic {topic} waits there"));
    }
    args.topic.clone()
}

/// Waits until Kafka is there and knows the topics; false when a signal came first.
fn wait_for_kafka(
    pipeline: &Pipeline,
    topics: &[String],
    stop: &AtomicBool,
) -> Result<bool, Box<dyn Error>> {
    for topic in topics {
        pipeline.topic(topic)?;
    }
    let (began, mut connected, mut said) = (Instant::now(), None, false);
    while !stop.load(Ordering::Acquire) {
        let Err(NotReady { reason }) = pipeline.ready(Duration::from_millis(100)) else {
            return Ok(true);
        };
        if pipeline.stats().states.disconnected.is_some() {
            connected = None;
            if began.elapsed() > SAY_SO && !said {
                said = true;
                say(format_args!("{reason}; still trying"));
            }
        } else if connected.get_or_insert_with(Instant::now).elapsed() > TOPIC_GRACE {
            return Err(format!("{reason}; nothing was sent: {}", topics.join(", ")).into());
        }
    }
    Ok(false)
}

fn tell(
    args: &Args,
    outcome: &Outcome,
    signalled: bool,
    elapsed: Duration,
) -> Result<ExitCode, Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    if args.json {
        let seconds = elapsed.as_secs_f64();
        let rate = if seconds > 0.0 { outcome.delivered as f64 / seconds } else { 0.0 };
        let object = json!({
            "total": outcome.total,
            "read": outcome.read,
            "delivered": outcome.delivered,
            "delivered_before": outcome.delivered_before,
            "set_aside": outcome.set_aside,
            "kept": outcome.kept,
            "left": outcome.left,
            "lost": outcome.lost,
            "unaccounted": outcome.unaccounted(),
            "complete": outcome.complete,
            "signalled": signalled,
            "trouble": outcome.trouble,
            "elapsed_ms": u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            "records_per_second": rate.round(),
        });
        writeln!(out, "{object}")?;
    } else {
        writeln!(
            out,
            "{} records: {} read: {} delivered, {} delivered before, {} set aside, {} not selected, {} sent without an answer; {} lost to damage",
            outcome.total,
            outcome.read,
            outcome.delivered,
            outcome.delivered_before,
            outcome.set_aside,
            outcome.kept,
            outcome.left,
            outcome.lost,
        )?;
    }
    out.flush()?;
    let mut sound = true;
    let mut wrong = |what: std::fmt::Arguments<'_>| {
        sound = false;
        say(what);
    };
    if let Some(trouble) = &outcome.trouble {
        wrong(format_args!("{trouble}: Kafka refuses the topic; the rest is kept"));
    } else if !outcome.complete && !signalled {
        wrong(format_args!("it is not complete; the rest is kept"));
    }
    if outcome.lost > 0 {
        wrong(format_args!("{} records were damaged and are lost", outcome.lost));
    }
    if outcome.set_aside > 0 {
        wrong(format_args!(
            "{} records were refused by Kafka and are set aside",
            outcome.set_aside
        ));
    }
    if outcome.unaccounted() != 0 {
        let by = outcome.unaccounted();
        wrong(format_args!("the books don't balance by {by}: a bug in forebay"));
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
