//! Owns `forebay bench send`: what one call costs its caller, healthy and in an outage.
//!
//! Open loop: a send is due by a schedule that waits for nobody. A thread spins between two, so
//! that no wake-up is in the figures; each call is timed by itself, the timer's own cost stands
//! in a row of its own. The rows take turns, round after round.

use super::Output;
use super::discard::{Discard, Refusing};
use super::findings::{Axis, Findings, Line, Machine, Plot, Row, Scale, Table};
use forebay::{Pipeline, Topic};
use hdrhistogram::Histogram;
use std::error::Error;
use std::hint::{black_box, spin_loop};
use std::time::{Duration, Instant};

/// What a send costs the caller: nanoseconds of the call, by percentile
#[derive(clap::Args, Clone)]
pub struct Args {
    /// Threads that send
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: u32,
    /// Bytes of each value
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=900_000))]
    payload: u32,
    /// Records a second and thread
    #[arg(long, value_name = "N", default_value_t = 250_000, value_parser = clap::value_parser!(u64).range(1..=5_000_000))]
    rate: u64,
    /// Rounds; the spread is over them
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Length of a row in a round, in ms
    #[arg(long, value_name = "N", default_value_t = 600, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    round_ms: u64,
    #[command(flatten)]
    pub(super) output: Output,
}

const QUANTILES: [(f64, &str); 4] =
    [(0.5, "p50"), (0.99, "p99"), (0.999, "p99.9"), (0.9999, "p99.99")];
const ROWS: [&str; 3] = ["timer alone", "send, healthy", "send in an outage"];
const LIMIT: Duration = Duration::from_secs(60);

/// What one row has gathered.
struct Gathered {
    all: Histogram<u64>,
    /// Each round's 99.9th percentile.
    tails: Vec<u64>,
    refused: u64,
}

/// One thread's round.
struct Round {
    taken: Histogram<u64>,
    refused: u64,
}

fn histogram() -> Histogram<u64> {
    // Infallible: 1 below 10 s, 3 digits.
    Histogram::new_with_bounds(1, 10_000_000_000, 3).expect("bounds are in order")
}

/// Sends on schedule and times each call; without a topic, times nothing.
fn follow(args: &Args, topic: Option<&Topic>, start: Instant) -> Round {
    let value = vec![b'v'; args.payload as usize];
    let mut round = Round { taken: histogram(), refused: 0 };
    let pace = Duration::from_nanos(1_000_000_000 / args.rate);
    let sends = args.round_ms * args.rate / 1000;
    for n in 0..sends {
        let due = start + Duration::from_nanos((pace.as_nanos() as u64) * n);
        while Instant::now() < due {
            spin_loop();
        }
        let before = Instant::now();
        let accepted = match topic {
            Some(topic) => topic.send(black_box(&value)).is_ok(),
            None => {
                black_box(&value);
                true
            }
        };
        let took = before.elapsed().as_nanos() as u64;
        round.taken.saturating_record(took.max(1));
        round.refused += u64::from(!accepted);
    }
    round
}

fn all_threads(args: &Args, topic: Option<&Topic>) -> Round {
    let start = Instant::now() + Duration::from_millis(5);
    let mut sum = Round { taken: histogram(), refused: 0 };
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..args.threads).map(|_| scope.spawn(move || follow(args, topic, start))).collect();
        for thread in threads {
            let Ok(round) = thread.join() else { continue };
            // Infallible: all have the same bounds.
            let _ = sum.taken.add(round.taken);
            sum.refused += round.refused;
        }
    });
    sum
}

/// Measures.
pub fn run(args: &Args) -> Result<Findings, Box<dyn Error>> {
    let dir = tempfile::Builder::new().prefix("forebay-bench-").tempdir()?;
    let refusing = Refusing::default();
    let pipeline =
        Pipeline::builder().sink(Discard::new(&refusing)).wal_dir(dir.path().join("log")).open()?;
    let topic = pipeline.topic("bench")?;
    let mut rows = ROWS.map(|_| Gathered { all: histogram(), tails: Vec::new(), refused: 0 });
    // The first round warms caches up and isn't counted.
    for round in 0..=args.rounds {
        for (at, row) in rows.iter_mut().enumerate() {
            if at == 2 {
                let before = pipeline.stats().books.spilled;
                refusing.set(true);
                begin_spilling(&pipeline, &topic, before)?;
            }
            let took = all_threads(args, (at > 0).then_some(&topic));
            refusing.set(false);
            if at > 0 {
                pipeline.flush(LIMIT)?;
            }
            if round > 0 {
                row.tails.push(took.taken.value_at_quantile(0.999));
                // Infallible: all have the same bounds.
                let _ = row.all.add(took.taken);
                row.refused += took.refused;
            }
        }
    }
    let closed = pipeline.close(LIMIT)?;
    let books = closed.stats.books;
    Ok(findings(args, rows, books.balanced() && closed.complete, books.spilled))
}

/// Sends until records go to the log: only then it is an outage.
fn begin_spilling(pipeline: &Pipeline, topic: &Topic, before: u64) -> Result<(), Box<dyn Error>> {
    let begin = Instant::now();
    while pipeline.stats().books.spilled == before {
        if begin.elapsed() > LIMIT {
            return Err("no record went to the log within a minute".into());
        }
        // What is refused shows in the row's count of refusals only once it is measured.
        let _ = topic.send(b"an outage begins");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn findings(args: &Args, rows: [Gathered; 3], is_good: bool, spilled: u64) -> Findings {
    let mut table = Table {
        title: format!(
            "ns of a call: {} threads, {} records/s each, {} B, {} rounds",
            args.threads, args.rate, args.payload, args.rounds
        ),
        columns: QUANTILES.iter().map(|(_, name)| (*name).to_owned()).collect(),
        rows: Vec::new(),
    };
    table.columns.extend(["99.9 least", "99.9 most", "refused"].map(str::to_owned));
    let mut lines = Vec::new();
    for (name, row) in ROWS.iter().zip(&rows) {
        let mut figures: Vec<f64> =
            QUANTILES.iter().map(|(q, _)| row.all.value_at_quantile(*q) as f64).collect();
        figures.push(row.tails.iter().min().copied().unwrap_or(0) as f64);
        figures.push(row.tails.iter().max().copied().unwrap_or(0) as f64);
        figures.push(row.refused as f64);
        table.rows.push(Row { name: (*name).to_owned(), figures });
        lines.push(Line::of_percentiles(name, &row.all));
    }
    Findings {
        name: "send",
        what: format!(
            "What a send of {} B costs its caller, the timer's {} ns included; in the outage the sink takes nothing and records go to the log.",
            args.payload,
            rows[0].all.value_at_quantile(0.5)
        ),
        machine: Machine::this(),
        tables: vec![table],
        plots: vec![Plot {
            name: "percentiles",
            title: format!("A send of {} B: time of the call", args.payload),
            x: Axis { label: "percentile", scale: Scale::Nines },
            y: Axis { label: "ns", scale: Scale::Log },
            lines,
            shade: None,
        }],
        notes: vec![format!("{spilled} records went through the log.")],
        is_good,
    }
}
