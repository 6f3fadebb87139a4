//! What a send costs the caller, beside floors that run interleaved in the same process.
//!
//! Parts, by words on the command line; without any, all but `scale`:
//! - `means`: criterion's mean of a send on one thread, flat out, drained outside the clock.
//! - `tails`: floors, this crate's parts, queues written by hand, and the whole pipeline with a
//!   log, `healthy` and in an `outage` in which the sink takes nothing and records go to the log.
//! - `peak`: 1,000,000 a second in all, from threads that sleep, healthy and in such an outage.
//! - `forms`: with a key, headers, `send_with`, `send_tracked`, and the refusal of a full lane.
//! - `shared`: 2, 4 and 8 threads on one lane, beside as many on one byte ring.
//! - `sizes`: 16 B to 64 KiB.
//! - `peers` (feature `embedded`): rust-rdkafka's producers and queues with a producer behind,
//!   beside the pipeline, all into librdkafka's mock cluster in this process; and the most that a
//!   SIGKILL would have taken, looked at every 10 ms.
//! - `scale`: 1 to 16 threads on 1 to 16 lanes, and sizes by threads. `FOREBAY_BENCH_THREADS` (the
//!   number of cores) is the most threads; benches/scale.sh runs it on a larger machine.
//!
//! The tails are open loop: a late send is not skipped, and its response time counts from when it
//! was due. Up to as many threads as cores spin between two sends; more of them sleep, and send
//! every millisecond what is due. `null` is the timer and the pacing alone, `byte ring` the floor
//! of anything that copies; it, too, reads the coarse clock that a record's CreateTime needs.
//! Machines are shared: read the differences between rows, not the figures.
//!
//! `FOREBAY_BENCH_MS` is the length of a row in a round (300; `--quick` is 10),
//! `FOREBAY_BENCH_ROUNDS` the rounds (5), `FOREBAY_BENCH_PACE_NS` the time between two sends of a
//! thread (4,000, and 2,000 for each thread), `FOREBAY_BENCH_DIR` where logs are made. `--json` prints an object a row.

#![allow(missing_docs, clippy::print_stdout)]

#[path = "../common/mod.rs"]
mod common;
mod fronts;
#[cfg(feature = "embedded")]
mod peers;
mod ring;
mod runner;
mod whole;

use common::table::{Cell, Table, is_json, note, people};
use common::{env, is_quick, words};
use criterion::{BenchmarkId, Criterion};
use fronts::{ByHand, Lane, Named, Null, QueueAndCopy, Rings};
use runner::{Plan, Row, interleave};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};
use whole::{Form, Whole};

const RING: &str = "byte ring";

fn fronts(threads: usize) -> Vec<Named> {
    vec![
        ("null", Arc::new(Null)),
        (RING, Arc::new(Rings::new(threads))),
        ("queue + copy", Arc::new(QueueAndCopy::new(threads))),
        ("ArrayQueue<Box>", Arc::new(ByHand::queue())),
        ("mpsc<Box>", Arc::new(ByHand::channel())),
        ("lane", Arc::new(Lane::new())),
        ("healthy", Arc::new(Whole::healthy(4))),
        ("outage", Arc::new(Whole::outage(4))),
    ]
}

/// `p50/p99/p99.9` of a row by those of another.
fn ratios(row: &Row, floor: &Row) -> Cell {
    let by = |mine: &common::Runs, theirs: &common::Runs| mine.median() / theirs.median();
    Cell::Text(format!(
        "{:.2}/{:.2}/{:.2}",
        by(&row.p50, &floor.p50),
        by(&row.p99, &floor.p99),
        by(&row.p999, &floor.p999)
    ))
}

fn tails() {
    let columns = [
        "front",
        "threads",
        "bytes",
        "p50",
        "p99",
        "p99.9",
        "by the ring",
        "response p99.9",
        "refused",
        "journaled",
    ];
    let what = format!(
        "ns of a send; medians of {} rounds (least-most), interleaved; `by the ring`: \
         p50/p99/p99.9 divided by the byte ring's",
        Plan::rounds()
    );
    let table = Table::new("send", "tails", &what, &columns);
    for threads in [1, 2] {
        for bytes in [100, 256] {
            let names = fronts(threads);
            let rows = interleave(&names, &Plan::new(threads, bytes));
            for ((name, _), row) in names.iter().zip(&rows) {
                table.row([
                    (*name).into(),
                    (threads as u64).into(),
                    (bytes as u64).into(),
                    Cell::Spread(row.p50.clone(), 0),
                    Cell::Number(row.p99.median(), 0),
                    Cell::Spread(row.p999.clone(), 0),
                    ratios(row, &rows[1]),
                    Cell::Number(row.response999.median(), 0),
                    row.refused.into(),
                    row.journaled.into(),
                ]);
            }
        }
    }
    note(
        "What waits in a ring or a queue is lost with the process; what the pipeline loses of what \
         it took is bounded by its loss window. `peers` and the bench `outage` count both.",
    );
}

/// The stated peak, which all goes to the log in the outage.
const PEAK_PER_S: u64 = 1_000_000;

fn peak() {
    let columns = ["front", "threads", "p50", "p99", "p99.9", "by healthy", "refused", "journaled"];
    let what = format!(
        "ns of a send of 256 B, {} a second in all from threads that sleep, a burst each \
         millisecond; medians of {} rounds (least-most), interleaved; `by healthy`: p50/p99/p99.9 \
         divided by the healthy pipeline's",
        people(PEAK_PER_S),
        Plan::rounds()
    );
    let table = Table::new("send", "peak", &what, &columns);
    for threads in [1, 2, 4] {
        let names: Vec<Named> = vec![
            ("healthy", Arc::new(Whole::healthy(4))),
            ("outage", Arc::new(Whole::outage(4))),
            ("null", Arc::new(Null)),
            (RING, Arc::new(Rings::new(threads))),
        ];
        let plan = Plan::new(threads, 256);
        let pace_ns = threads as u64 * 1_000_000_000 / PEAK_PER_S;
        let rows = interleave(&names, &Plan { pace_ns, sleeps: true, ..plan });
        for ((name, _), row) in names.iter().zip(&rows) {
            table.row([
                (*name).into(),
                (threads as u64).into(),
                Cell::Spread(row.p50.clone(), 0),
                Cell::Number(row.p99.median(), 0),
                Cell::Spread(row.p999.clone(), 0),
                ratios(row, &rows[0]),
                row.refused.into(),
                row.journaled.into(),
            ]);
        }
    }
}

fn forms() {
    let columns = ["form", "p50", "p99", "p99.9", "by plain", "refused"];
    let what = format!(
        "ns of a send of 256 B from one thread; medians of {} rounds (least-most), interleaved; \
         `by plain`: p50/p99/p99.9 divided by the plain send's",
        Plan::rounds()
    );
    let table = Table::new("send", "forms", &what, &columns);
    let of = |form| -> Arc<dyn fronts::Front> { Arc::new(Whole::with_form(form)) };
    let names: Vec<Named> = vec![
        ("null", Arc::new(Null)),
        ("plain", of(Form::Plain)),
        ("key", of(Form::Keyed)),
        ("key, 2 headers", of(Form::Headers)),
        ("send_with", of(Form::With)),
        ("send_tracked", of(Form::Tracked)),
        ("refused: lane full", of(Form::Refused)),
    ];
    let rows = interleave(&names, &Plan::new(1, 256));
    for ((name, _), row) in names.iter().zip(&rows) {
        table.row([
            (*name).into(),
            Cell::Spread(row.p50.clone(), 0),
            Cell::Number(row.p99.median(), 0),
            Cell::Spread(row.p999.clone(), 0),
            ratios(row, &rows[1]),
            row.refused.into(),
        ]);
    }
}

/// A ring and a pipeline, beside each other.
fn pairs(table: &Table, plan: &Plan, lanes: usize, rings: usize) {
    let names: Vec<Named> =
        vec![(RING, Arc::new(Rings::new(rings))), ("pipeline", Arc::new(Whole::healthy(lanes)))];
    let rows = interleave(&names, plan);
    for ((name, _), row) in names.iter().zip(&rows) {
        table.row([
            (*name).into(),
            (plan.threads as u64).into(),
            (lanes as u64).into(),
            (plan.bytes as u64).into(),
            (if plan.spins() { "spins" } else { "sleeps" }).into(),
            Cell::Spread(row.p50.clone(), 0),
            Cell::Number(row.p99.median(), 0),
            Cell::Spread(row.p999.clone(), 0),
            ratios(row, &rows[0]),
            row.refused.into(),
        ]);
    }
}

fn pairs_table(name: &'static str, what: &str) -> Table {
    let columns = [
        "front",
        "threads",
        "lanes",
        "bytes",
        "pacing",
        "p50",
        "p99",
        "p99.9",
        "by the ring",
        "refused",
    ];
    Table::new("send", name, what, &columns)
}

fn shared() {
    let table = pairs_table("shared", "Several threads on one lane, or on one byte ring; ns");
    for threads in [2, 4, 8] {
        pairs(&table, &Plan::new(threads, 256), 1, 1);
    }
}

fn sizes() {
    let table = pairs_table("sizes", "One thread, sizes, at most 200 MB/s; ns");
    for bytes in [16, 64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10] {
        pairs(&table, &Plan::new(1, bytes), 1, 1);
    }
}

fn scale() {
    let most = env("FOREBAY_BENCH_THREADS").unwrap_or(Plan::cores() as u64) as usize;
    let counts = [1, 2, 4, 8, 16];
    let table = pairs_table("scale", "Threads by lanes, and sizes by threads; ns");
    for threads in counts.into_iter().filter(|threads| *threads <= most) {
        for lanes in counts {
            pairs(&table, &Plan::new(threads, 256), lanes, threads.min(lanes));
        }
        for bytes in [16, 4 << 10, 64 << 10] {
            pairs(&table, &Plan::new(threads, bytes), 16, threads);
        }
    }
}

/// Criterion's mean of one send: batches that fit, drained between them outside the clock. There
/// is no such mean in an outage: what is sent leaves a lane only as it ages.
fn means() {
    const BATCH: u64 = 10_000;
    let time = Duration::from_millis(if is_quick() { 50 } else { 1_000 });
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(time / 4)
        .measurement_time(time)
        .without_plots();
    let mut group = criterion.benchmark_group("send");
    for bytes in [100, 256] {
        let value = vec![7u8; bytes];
        for (name, front) in fronts(1).into_iter().filter(|(name, _)| *name != "outage") {
            let mut waiting = 0;
            group.bench_function(BenchmarkId::new(name, bytes), |b| {
                b.iter_custom(|sends| {
                    let mut spent = Duration::ZERO;
                    let mut left = sends;
                    while left > 0 {
                        if waiting == BATCH {
                            front.drain();
                            waiting = 0;
                        }
                        let batch = left.min(BATCH - waiting);
                        let start = Instant::now();
                        for _ in 0..batch {
                            black_box(front.send(0, black_box(&value)));
                        }
                        spent += start.elapsed();
                        waiting += batch;
                        left -= batch;
                    }
                    spent
                })
            });
        }
    }
    group.finish();
}

fn main() {
    let words = words();
    let wants = |word: &str| words.is_empty() || words.iter().any(|w| w == word);
    // Criterion prints what it likes.
    if wants("means") && !is_json() {
        means();
    }
    let parts: [(&str, fn()); 5] =
        [("tails", tails), ("peak", peak), ("forms", forms), ("shared", shared), ("sizes", sizes)];
    for (word, part) in parts {
        if wants(word) {
            part();
        }
    }
    #[cfg(feature = "embedded")]
    if wants("peers") {
        peers::peers();
    }
    if words.iter().any(|w| w == "scale") {
        scale();
    }
}
