//! Owns `forebay pipe`: each line of standard input is a record.
//!
//! The main thread reads and sends; a second one waits for SIGTERM and SIGINT. Whichever comes
//! first, the end of input or a signal, ends the run, and it is ended once.

use crate::input::{Line, read_line, split_key};
use crate::properties::Properties;
use crate::report::{Summary, say};
use clap::{ArgGroup, ValueEnum};
use forebay::{CloseReport, Pipeline, SendError, Stats, Topic};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::error::Error;
use std::io::{BufReader, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Largest record, key and value together; the library's default.
const RECORD_BYTES_MAX: usize = 1_000_000;
/// How often the progress line is drawn.
const TICK: Duration = Duration::from_millis(200);

const EXAMPLE: &str = "\
Example: follow a log into Kafka; what Kafka can't take now waits in the directory
  tail -F app.log | forebay pipe --brokers localhost:9092 --topic app --wal-dir ./app.wal

Exit status: 0 everything is delivered (or, after a signal, delivered or in the log),
1 something is wrong and standard error says what, 2 wrong usage.";

/// Send each line of standard input to Kafka as a record.
///
/// Takes input at once, also while a backlog of an earlier run is there; the backlog goes
/// first. Never drops a line: when there is no room, it stops reading. The end of input drains
/// without limit; SIGTERM or SIGINT closes within --close-ms and leaves the rest in the log. SIGHUP
/// reads --properties-file again: a rotated password or certificate.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLE)]
#[command(group = ArgGroup::new("log").required(true).args(["wal_dir", "at_most_once"]))]
pub struct Args {
    /// Brokers to start from: host:port, several separated by commas
    #[arg(long, value_name = "HOST:PORT")]
    brokers: String,
    /// Topic to send to
    #[arg(long)]
    topic: String,
    /// Spill into a write-ahead log in this directory: at-least-once
    #[arg(long, value_name = "DIR")]
    wal_dir: Option<PathBuf>,
    /// No log: a crash loses what Kafka hasn't acknowledged
    #[arg(long)]
    at_most_once: bool,
    /// What stands before the first one of these in a line is the key (\t for a tab)
    #[arg(long, value_name = "C", value_parser = separator)]
    key_separator: Option<Separator>,
    /// Oldest a record may get outside Kafka and the log, in ms; 0 journals every record first
    #[arg(long, value_name = "N")]
    loss_window_ms: Option<u64>,
    /// What happens while lines come faster than Kafka takes them
    #[arg(long, value_enum, default_value_t = Overflow::Spill)]
    overflow: Overflow,
    /// What goes first where lines wait in the log: they, or what is read now
    #[arg(long, value_enum, default_value_t = Order::Backlog)]
    order: Order,
    /// What Kafka gets after a signal, in ms, before the rest is left in the log
    #[arg(long, value_name = "N", default_value_t = 5000)]
    close_ms: u64,
    #[command(flatten)]
    properties: Properties,
    /// Print one JSON object on standard output at the end
    #[arg(long)]
    json: bool,
}

/// `forebay::Overflow`, in words for the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Overflow {
    /// Read on, and let the log take them
    Spill,
    /// Wait, as long as Kafka answers
    Wait,
}

/// `forebay::Order`, in words for the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Order {
    /// What waits, and new lines behind it: each key keeps its order
    Backlog,
    /// New lines, and what waits beside them: it may come behind newer lines of its key
    Live,
}

#[derive(Clone, Debug)]
struct Separator(Vec<u8>);

fn separator(text: &str) -> Result<Separator, String> {
    match text {
        "" => Err("the separator is empty".into()),
        "\\t" => Ok(Separator(b"\t".to_vec())),
        other => Ok(Separator(other.as_bytes().to_vec())),
    }
}

/// What both threads need to end the run.
struct Run {
    pipeline: Pipeline,
    args: Args,
    began: Instant,
    lines_refused: AtomicU64,
    /// Held, and never let go, by whoever ends the run.
    ending: Mutex<()>,
    /// A signal came: its thread ends the run.
    signalled: AtomicBool,
    /// A line was skipped.
    skipped: AtomicBool,
}

/// Runs `forebay pipe`.
pub fn run(args: Args) -> Result<ExitCode, Box<dyn Error>> {
    let mut builder = Pipeline::builder().brokers(&args.brokers).record_bytes_max(RECORD_BYTES_MAX);
    if let Some(dir) = &args.wal_dir {
        builder = builder.wal_dir(dir);
    }
    if args.at_most_once {
        builder = builder.at_most_once();
    }
    if let Some(ms) = args.loss_window_ms {
        builder = builder.loss_window(Duration::from_millis(ms));
    }
    builder = builder.overflow(match args.overflow {
        Overflow::Spill => forebay::Overflow::Spill,
        Overflow::Wait => forebay::Overflow::Refuse,
    });
    builder = builder.order(match args.order {
        Order::Backlog => forebay::Order::BacklogFirst,
        Order::Live => forebay::Order::LiveFirst,
    });
    for (name, value) in args.properties.read()? {
        builder = builder.extra(name, value);
    }
    // Before anything is opened: a signal must never find the run without its handler.
    let signals = Signals::new([SIGTERM, SIGINT])?;
    if args.properties.have_file() {
        signals.add_signal(SIGHUP)?;
    }
    let pipeline = builder.open()?;
    let topic = pipeline.topic(&args.topic)?;
    let run = Arc::new(Run {
        pipeline,
        args,
        began: Instant::now(),
        lines_refused: AtomicU64::new(0),
        ending: Mutex::new(()),
        signalled: AtomicBool::new(false),
        skipped: AtomicBool::new(false),
    });
    end_on_signal(signals, run.clone())?;
    tell_refusals(run.clone())?;
    let progress = show_progress(&run)?;
    pump(&run, &topic)?;
    // Without limit; a signal cuts it short by closing the pipeline.
    while run.pipeline.flush(Duration::from_secs(3600)).is_err() {
        if run.signalled.load(Ordering::Acquire) {
            park();
        }
    }
    // Not let go at the return below: a signal's thread that got it then would end the run again.
    std::mem::forget(run.ending.lock());
    finish(&run, false, progress.as_ref())
}

/// Sends line after line until the input is over.
fn pump(run: &Run, topic: &Topic) -> Result<(), Box<dyn Error>> {
    let mut input = BufReader::with_capacity(256 << 10, std::io::stdin().lock());
    let mut line = Vec::new();
    let mut number = 0u64;
    let separator = run.args.key_separator.as_ref().map(|s| s.0.as_slice());
    // One byte more than a value may have, for the separator that isn't sent.
    let limit = RECORD_BYTES_MAX + separator.map_or(0, <[u8]>::len);
    loop {
        number += 1;
        let read = read_line(&mut input, &mut line, limit)
            .map_err(|e| format!("standard input, line {number}: {e}"))?;
        let length = match read {
            Line::End => return Ok(()),
            Line::TooLong(length) => Some(length),
            Line::Good => match send(topic, &line, separator)? {
                Sent::Taken => None,
                Sent::TooLarge => Some(line.len() as u64),
                Sent::Closed => park(),
            },
        };
        if let Some(length) = length {
            if read != Line::Good {
                run.lines_refused.fetch_add(1, Ordering::Relaxed);
            }
            run.skipped.store(true, Ordering::Relaxed);
            say(format_args!(
                "line {number}: {length} bytes, more than the {RECORD_BYTES_MAX} that a record may have; skipped"
            ));
        }
    }
}

enum Sent {
    Taken,
    TooLarge,
    Closed,
}

/// Sends one line, waiting for room as long as it takes.
fn send(topic: &Topic, line: &[u8], separator: Option<&[u8]>) -> Result<Sent, SendError> {
    let (key, value) = split_key(line, separator);
    loop {
        let mut record = topic.record(value);
        if let Some(key) = key {
            record = record.key(key);
        }
        match record.send_timeout(Duration::from_secs(3600)) {
            Ok(()) => return Ok(Sent::Taken),
            Err(SendError::Full) => {}
            Err(SendError::TooLarge) => return Ok(Sent::TooLarge),
            Err(SendError::Closed) => return Ok(Sent::Closed),
            Err(e) => return Err(e),
        }
    }
}

/// The other thread ends the run, and with it the process.
fn park() -> ! {
    loop {
        std::thread::park();
    }
}

fn end_on_signal(mut signals: Signals, run: Arc<Run>) -> std::io::Result<()> {
    let wait = move || {
        for signal in signals.forever() {
            if signal == SIGHUP {
                reload(&run);
                continue;
            }
            // Kept to the end of the process: the other thread waits for it there.
            let _ending = run.ending.lock();
            run.signalled.store(true, Ordering::Release);
            let code = finish(&run, true, None).unwrap_or_else(|e| {
                say(format_args!("{e}"));
                ExitCode::FAILURE
            });
            let code = if code == ExitCode::SUCCESS { 0 } else { 1 };
            std::process::exit(code);
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait)?;
    Ok(())
}

/// Reads the properties again and goes on with them, or with those it has.
fn reload(run: &Run) {
    let properties = run.args.properties.read();
    let reloaded = properties.and_then(|all| {
        let changes: Vec<_> = all.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        Ok(run.pipeline.reload(&changes)?)
    });
    match reloaded {
        Ok(()) => say(format_args!("the properties are read again")),
        Err(e) => say(format_args!("{e}; the properties stay as they were")),
    }
}

/// One line when Kafka doesn't let us in, and when it does again: without it a run with a wrong
/// password would wait in silence.
fn tell_refusals(run: Arc<Run>) -> std::io::Result<()> {
    let watch = move || {
        let mut told = None;
        loop {
            let states = run.pipeline.stats().states;
            let auth = states.auth_failed.map(|reason| format!("auth_failed: {reason}"));
            let refusal = auth.or(states.tls_failed.map(|reason| format!("tls_failed: {reason}")));
            if refusal != told {
                match &refusal {
                    Some(refusal) => say(format_args!("{refusal}; records are kept")),
                    None => say(format_args!("Kafka lets us in again")),
                }
                told = refusal;
            }
            std::thread::sleep(TICK);
        }
    };
    std::thread::Builder::new().name("refusals".into()).spawn(watch).map(drop)
}

/// Closes, reports, and says how the process ends.
fn finish(
    run: &Run,
    by_signal: bool,
    progress: Option<&ProgressBar>,
) -> Result<ExitCode, Box<dyn Error>> {
    let closed = run.pipeline.close(Duration::from_millis(run.args.close_ms));
    if let Some(progress) = progress {
        progress.finish_and_clear();
    }
    let elapsed = run.began.elapsed();
    let report = closed?;
    let books = report.stats.books;
    let refused = run.lines_refused.load(Ordering::Relaxed);
    if run.args.json {
        Summary::new(&books, refused, elapsed).print()?;
    } else {
        say(format_args!(
            "{} accepted, {} recovered: {} delivered, {} in the log, {} set aside, {} dropped",
            books.accepted,
            books.recovered,
            books.delivered,
            books.in_wal,
            books.set_aside,
            books.dropped
        ));
    }
    let sound = tell_what_is_wrong(&report, by_signal);
    let sound = sound && !run.skipped.load(Ordering::Relaxed);
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One line for each thing that is wrong; true when nothing is.
fn tell_what_is_wrong(report: &CloseReport, by_signal: bool) -> bool {
    let Stats { books, topics, wal, .. } = &report.stats;
    let mut sound = true;
    let mut wrong = |line: std::fmt::Arguments<'_>| {
        say(line);
        sound = false;
    };
    for topic in topics {
        for (reason, n) in &topic.set_aside {
            wrong(format_args!("topic {}: {n} records set aside ({reason})", topic.name));
        }
        for (reason, n) in &topic.dropped {
            wrong(format_args!("topic {}: {n} records dropped ({reason})", topic.name));
        }
    }
    for finding in wal.iter().flat_map(|w| &w.findings) {
        // Known damage is reported, and what could be delivered was: no reason to fail alone.
        say(format_args!("log: {finding}"));
    }
    let damaged = wal.as_ref().map_or(0, |w| w.damaged_records);
    if damaged > 0 {
        wrong(format_args!("{damaged} records of the log were damaged and are lost"));
    }
    if !by_signal && books.in_wal > 0 {
        wrong(format_args!("{} records are still in the log", books.in_wal));
    }
    if books.in_lanes + books.in_flight > 0 {
        wrong(format_args!(
            "{} records could be neither delivered nor journaled",
            books.in_lanes + books.in_flight
        ));
    }
    if !books.balanced() {
        wrong(format_args!("the books don't balance by {}: a bug in forebay", books.unaccounted()));
    }
    sound
}

/// A line on the terminal while it runs; none where standard error isn't one.
fn show_progress(run: &Arc<Run>) -> Result<Option<ProgressBar>, Box<dyn Error>> {
    if !std::io::stderr().is_terminal() {
        return Ok(None);
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template("{spinner} {elapsed_precise} {msg}")?);
    let (shown, run) = (bar.clone(), run.clone());
    let draw = move || {
        while !shown.is_finished() {
            let stats = run.pipeline.stats();
            let b = stats.books;
            let refused = stats.states.auth_failed.is_some() || stats.states.tls_failed.is_some();
            let state = match (&stats.states.disconnected, stats.states.exposed) {
                _ if refused => "refused by Kafka",
                (Some(_), _) => "disconnected",
                (None, true) => "exposed",
                (None, false) => "ok",
            };
            shown.set_message(format!(
                "{} accepted, {} delivered, {} in the log, {} at risk, {state}",
                b.accepted + b.recovered,
                b.delivered,
                b.in_wal,
                stats.unsafe_records
            ));
            shown.tick();
            std::thread::sleep(TICK);
        }
    };
    std::thread::Builder::new().name("progress".into()).spawn(draw)?;
    Ok(Some(bar))
}
