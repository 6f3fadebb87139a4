//! Owns `forebay bench replay`: how fast a backlog is opened and sent.

use super::Output;
use super::discard::{Discard, Refusing};
use super::findings::{Axis, Findings, Line, Machine, Plot, Row, Scale, Table};
use forebay::sink::embedded::EmbeddedBroker;
use forebay::{Builder, Pipeline, SendError};
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

/// How fast a backlog in the log is opened and sent
#[derive(clap::Args, Clone)]
pub struct Args {
    /// Records in the backlog
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    records: u64,
    /// Bytes of each value
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=900_000))]
    payload: u32,
    #[command(flatten)]
    pub(super) output: Output,
}

const TOPIC: &str = "bench";
const PARTITIONS: i32 = 3;
const TICK: Duration = Duration::from_millis(5);
/// Without a record becoming final for this long, it is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A backlog on its way out.
struct Drained {
    opened: Duration,
    took: Duration,
    points: Vec<(f64, f64)>,
    complete: bool,
}

/// Fills a log while the sink takes nothing.
fn fill(args: &Args, dir: &Path) -> Result<Duration, Box<dyn Error>> {
    let refusing = Refusing::default();
    refusing.set(true);
    let pipeline = Pipeline::builder()
        .sink(Discard::new(&refusing))
        .wal_dir(dir)
        .wal_max_bytes(args.records * (u64::from(args.payload) + 128) + (1 << 30))
        .open()?;
    let topic = pipeline.topic(TOPIC)?;
    let value = vec![b'v'; args.payload as usize];
    let begin = Instant::now();
    for _ in 0..args.records {
        match topic.send_timeout(&value, PATIENCE) {
            Ok(()) => {}
            Err(SendError::Full) => return Err("the log takes no more records".into()),
            Err(e) => return Err(e.into()),
        }
    }
    pipeline.close(Duration::ZERO)?;
    Ok(begin.elapsed())
}

fn drain(args: &Args, builder: Builder, dir: &Path) -> Result<Drained, Box<dyn Error>> {
    let begin = Instant::now();
    // What it can do, not how gently it begins.
    let pipeline = builder.wal_dir(dir).replay_ramp(Duration::ZERO).open()?;
    let opened = begin.elapsed();
    let mut points = Vec::new();
    let (mut left, mut moved) = (u64::MAX, Instant::now());
    while left > 0 {
        let books = pipeline.stats().books;
        let now = books.recovered - books.delivered.min(books.recovered);
        if now != left {
            moved = Instant::now();
        }
        left = now;
        points.push((begin.elapsed().as_secs_f64(), left as f64));
        if moved.elapsed() > PATIENCE {
            break;
        }
        std::thread::sleep(TICK);
    }
    let took = begin.elapsed();
    let closed = pipeline.close(PATIENCE)?;
    let books = closed.stats.books;
    let complete = books.balanced() && books.delivered == args.records && books.in_wal == 0;
    Ok(Drained { opened, took, points, complete })
}

/// Measures.
pub fn run(args: &Args) -> Result<Findings, Box<dyn Error>> {
    let home = tempfile::Builder::new().prefix("forebay-bench-").tempdir()?;
    let mut rows = Vec::new();
    let mut lines = Vec::new();
    let mut is_good = true;
    for name in ["to a sink that takes all", "to the mock cluster"] {
        let dir = home.path().join(name.replace(' ', "-"));
        let filled = fill(args, &dir)?;
        let broker;
        let builder = if rows.is_empty() {
            Pipeline::builder().sink(Discard::new(&Refusing::default()))
        } else {
            broker = EmbeddedBroker::new(3)?;
            broker.create_topic(TOPIC, PARTITIONS)?;
            Pipeline::builder().brokers(broker.brokers())
        };
        let drained = drain(args, builder, &dir)?;
        is_good &= drained.complete;
        let seconds = drained.took.as_secs_f64();
        let bytes = (args.records * u64::from(args.payload)) as f64;
        rows.push(Row {
            name: name.to_owned(),
            figures: vec![
                args.records as f64 / filled.as_secs_f64() / 1e3,
                drained.opened.as_secs_f64() * 1e3,
                seconds * 1e3,
                args.records as f64 / seconds / 1e3,
                bytes / seconds / 1e6,
            ],
        });
        lines.push(Line { name: name.to_owned(), points: drained.points });
    }
    Ok(Findings {
        name: "replay",
        what: format!(
            "A backlog of {} records of {} B, written by a run whose sink took nothing, is opened and sent.",
            args.records, args.payload
        ),
        machine: Machine::this(),
        tables: vec![Table {
            title: "thousands of records a second, ms, MB a second of values".to_owned(),
            columns: ["filled k/s", "open ms", "sent in ms", "sent k/s", "MB/s"]
                .map(str::to_owned)
                .to_vec(),
            rows,
        }],
        plots: vec![Plot {
            name: "backlog",
            title: "Records of the backlog still to be delivered".to_owned(),
            x: Axis { label: "seconds from open", scale: Scale::Linear },
            y: Axis { label: "records", scale: Scale::Linear },
            lines,
            shade: None,
        }],
        notes: vec!["The mock cluster runs in this process, on the same cores.".to_owned()],
        is_good,
    })
}
