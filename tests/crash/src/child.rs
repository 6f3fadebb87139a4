//! Owns one generation: a process with a real pipeline over the directory, threads that send into
//! it, and the notes of what it took when. It ends by SIGKILL, or by closing.

use crate::broker::{Broker, Lie};
use crate::evidence::{Evidence, Said, now_ns};
use crate::points::Point;
use crate::records::{Id, Made, THREADS, TOPICS, VALUE_BYTES_MAX};
use crate::storage::KillStorage;
use forebay::wal::{FileStorage, Storage};
use forebay::{Pipeline, SendError, Topic};
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Most records between the oldest unacknowledged and the newest handed over: the bound on
/// duplicates.
pub const IN_FLIGHT_MAX_RECORDS: usize = 1_000;
/// Records that each thread tries to send in a turn, and the pause between turns.
const SENDS_PER_TURN: u64 = 6;
const TURN: Duration = Duration::from_millis(2);

/// What a child is told.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The log's directory.
    #[arg(long)]
    pub dir: PathBuf,
    /// Where the evidence goes.
    #[arg(long)]
    pub evidence: PathBuf,
    #[arg(long)]
    pub seed: u64,
    #[arg(long)]
    pub generation: u64,
    /// The first number of each thread; none: nothing is sent.
    #[arg(long, value_delimiter = ',')]
    pub first: Vec<u64>,
    #[arg(long)]
    pub window_ms: u64,
    #[arg(long)]
    pub wal_max_bytes: u64,
    /// Kills itself at this point...
    #[arg(long)]
    pub point: Option<Point>,
    /// ...when it comes there for this time.
    #[arg(long, default_value_t = 1)]
    pub nth: u64,
    /// Closes after so long...
    #[arg(long)]
    pub close_after_ms: Option<u64>,
    /// ...and gives the broker so long.
    #[arg(long, default_value_t = 0)]
    pub close_timeout_ms: u64,
    /// The broker stays healthy.
    #[arg(long)]
    pub calm: bool,
    /// A lie of the broker.
    #[arg(long)]
    pub lie: Option<Lie>,
}

/// Runs a generation.
pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let evidence = Evidence::at(&args.evidence)?;
    let files = FileStorage::open(&args.dir)?;
    let storage: Arc<dyn Storage> = match args.point {
        Some(point) => {
            Arc::new(KillStorage::new(files, &args.dir, evidence.clone(), point, args.nth))
        }
        None => Arc::new(files),
    };
    let broker = Broker::new(&evidence, args.seed, args.generation, args.calm, args.lie)?;
    let pipeline = Pipeline::builder()
        .wal_dir(&args.dir)
        .storage(storage)
        .sink(broker)
        .lanes(2)
        .lane_bytes(512 << 10)
        .lane_slots(1024)
        .record_bytes_max(2 * VALUE_BYTES_MAX as usize)
        .segment_bytes(1 << 20)
        .wal_max_bytes(args.wal_max_bytes)
        .in_flight_max_records(IN_FLIGHT_MAX_RECORDS)
        .in_flight_max_bytes(4 << 20)
        .loss_window(Duration::from_millis(args.window_ms))
        .sync_interval(Duration::from_millis(20))
        .receipts_max(0)
        .open()?;
    let mut said = evidence.said()?;
    said.say(&Said::new(&pipeline.stats()))?;
    let topics = TOPICS.map(|name| pipeline.topic(name));
    let topics: Vec<Topic> = topics.into_iter().collect::<Result<_, _>>()?;
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<(), Box<dyn Error>> {
        let senders: Vec<_> = (0..THREADS.min(args.first.len()))
            .map(|t| {
                let (evidence, topics, is_over) = (&evidence, &topics, &is_over);
                scope.spawn(move || send(args, evidence, t, topics, is_over))
            })
            .collect();
        let watched = watch(args, &pipeline, &mut said);
        is_over.store(true, Ordering::Relaxed);
        for sender in senders {
            sender.join().map_err(|_| "a sender panicked")??;
        }
        watched
    })?;
    let report = pipeline.close(Duration::from_millis(args.close_timeout_ms))?;
    let last = Said { complete: u64::from(report.complete), ..Said::new(&report.stats) };
    evidence.closed()?.say(&last)?;
    Ok(())
}

/// Notes what the pipeline says of itself, until it is time to close.
fn watch(
    args: &Args,
    pipeline: &Pipeline,
    said: &mut crate::evidence::Words,
) -> Result<(), Box<dyn Error>> {
    let close_at_ns = args.close_after_ms.map(|ms| now_ns() + ms * 1_000_000);
    let mut looks = 0;
    while close_at_ns.is_none_or(|at| now_ns() < at) {
        let stats = pipeline.stats();
        if let Some(why) = &stats.states.stopped {
            return Err(format!("the pipeline stopped: {why}").into());
        }
        if stats.looks != looks {
            looks = stats.looks;
            said.say(&Said::new(&stats))?;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn send(
    args: &Args,
    evidence: &Evidence,
    thread: usize,
    topics: &[Topic],
    is_over: &AtomicBool,
) -> Result<(), String> {
    let mut accepted = evidence.accepted(thread).map_err(|e| e.to_string())?;
    let mut number = args.first[thread];
    while !is_over.load(Ordering::Relaxed) {
        for _ in 0..SENDS_PER_TURN {
            match Made::new(args.seed, Id { thread, number }).send(topics) {
                Ok(()) => {
                    accepted.append(&[now_ns()]).map_err(|e| e.to_string())?;
                    number += 1;
                }
                // Tried again under the same number.
                Err(SendError::Full) => break,
                Err(e) => return Err(format!("record {number} of thread {thread}: {e}")),
            }
        }
        std::thread::sleep(TURN);
    }
    Ok(())
}
