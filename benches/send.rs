//! What a send costs the caller, beside floors that run interleaved in the same process.
//!
//! Rows: `null` (the timer and the pacing alone), `byte ring` (one CAS and a copy, no
//! descriptor: the floor of anything that copies), `queue + copy` (an `ArrayQueue` of
//! descriptors and a copy into memory beside it: the least that a lane could be), `lane` (this
//! crate's lanes alone), and the whole pipeline with a log, `healthy` and in an `outage`, in
//! which the sink takes nothing and records go to the log. The first four have a drain that
//! looks every millisecond, the pipeline its own threads. Machines are shared: read the
//! differences between rows, not the figures.
//!
//! Two parts: criterion's mean of a send on one thread, flat out, drained outside the clock;
//! then the tails, open loop: a late send is not skipped, and its response time counts from when
//! it was due. `FOREBAY_BENCH_MS` is the length of each measurement (default 2,000; `--quick` is
//! 100), `FOREBAY_BENCH_PACE_NS` the time between two sends of a thread (4,000),
//! `FOREBAY_BENCH_DIR` where logs are made.

#![allow(missing_docs, clippy::print_stdout)]

mod common;

use common::{env, histogram, is_quick, log_dir};
use criterion::{BenchmarkId, Criterion};
use crossbeam_queue::ArrayQueue;
use forebay::lane::{Drain, LaneOptions, Lanes, NO_RECEIPT, OutRecord};
use forebay::record::{ANY_PARTITION, TopicId};
use forebay::sink::{Opaque, Outcome, ProduceError, RecordView, Report, Sink, SinkState};
use forebay::{Pipeline, Topic};
use hdrhistogram::Histogram;
use std::cell::UnsafeCell;
use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

const LANE_BYTES: usize = 8 << 20;
const LANE_SLOTS: usize = 1 << 16;
const ROUNDS: u32 = 3;

/// Something that takes records on callers' threads and gives them up on another.
trait Front: Send + Sync {
    fn send(&self, thread: usize, value: &[u8]) -> bool;
    /// Takes everything out. Called every millisecond while `paced`, unless it drains itself.
    fn drain(&self);
    fn drains_itself(&self) -> bool {
        false
    }
    /// Before a measurement: begins the outage, if it is to run in one.
    fn begin(&self) {}
    /// Whether the state to be measured has come.
    fn is_begun(&self) -> bool {
        true
    }
    /// After a measurement.
    fn end(&self) {}
    /// Records that went to a log.
    fn spilled(&self) -> u64 {
        0
    }
}

struct Null;

impl Front for Null {
    fn send(&self, _: usize, value: &[u8]) -> bool {
        black_box(value);
        true
    }

    fn drain(&self) {}
}

/// A ring of bytes for each thread, without descriptors: a length, the bytes, one store.
struct ByteRing {
    rings: Vec<Ring>,
}

#[repr(align(128))]
struct Word(AtomicU64);

struct Ring {
    bytes: Box<[UnsafeCell<u8>]>,
    head: Word,
    tail: Word,
}

// SAFETY: one sender a ring writes only between `tail` and `head + len`; the drain reads nothing.
unsafe impl Sync for Ring {}

impl Ring {
    fn new() -> Self {
        Ring {
            // Not zero: zeroed memory would come untouched, and be faulted in by sends.
            bytes: (0..LANE_BYTES).map(|_| UnsafeCell::new(1)).collect(),
            head: Word(AtomicU64::new(0)),
            tail: Word(AtomicU64::new(0)),
        }
    }
}

impl ByteRing {
    fn new(threads: usize) -> Self {
        ByteRing { rings: (0..threads).map(|_| Ring::new()).collect() }
    }
}

impl Front for ByteRing {
    #[inline]
    fn send(&self, thread: usize, value: &[u8]) -> bool {
        let ring = &self.rings[thread];
        let span = (value.len() + 8).next_multiple_of(16) as u64;
        let tail = ring.tail.0.load(Ordering::Relaxed);
        let at = (tail as usize) & (LANE_BYTES - 1);
        let skip = if at + span as usize > LANE_BYTES { LANE_BYTES - at } else { 0 };
        let end = tail + skip as u64 + span;
        if end - ring.head.0.load(Ordering::Acquire) > LANE_BYTES as u64 {
            return false;
        }
        if ring.tail.0.compare_exchange(tail, end, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        let at = (tail as usize + skip) & (LANE_BYTES - 1);
        let to = ring.bytes[at..at + span as usize].as_ptr().cast_mut().cast::<u8>();
        // SAFETY: the range is within the ring and free (checked against `head`), and this
        // thread is the ring's only sender.
        unsafe {
            to.cast::<u64>().write(value.len() as u64);
            std::ptr::copy_nonoverlapping(value.as_ptr(), to.add(8), value.len());
        }
        true
    }

    fn drain(&self) {
        for ring in &self.rings {
            ring.head.0.store(ring.tail.0.load(Ordering::Acquire), Ordering::Release);
        }
    }
}

/// An `ArrayQueue` of descriptors for each thread, and the bytes in a ring beside it. The ring is
/// as long as all slots' records together, so that a slot is credit enough.
struct QueueAndCopy {
    queues: Vec<(ArrayQueue<[u64; 4]>, Ring)>,
}

const QUEUE_SLOTS: usize = LANE_BYTES / 256;

impl QueueAndCopy {
    fn new(threads: usize) -> Self {
        let queues = (0..threads).map(|_| (ArrayQueue::new(QUEUE_SLOTS), Ring::new())).collect();
        QueueAndCopy { queues }
    }
}

impl Front for QueueAndCopy {
    #[inline]
    fn send(&self, thread: usize, value: &[u8]) -> bool {
        let (queue, ring) = &self.queues[thread];
        let tail = ring.tail.0.load(Ordering::Relaxed);
        if tail - ring.head.0.load(Ordering::Acquire) >= QUEUE_SLOTS as u64 {
            return false;
        }
        let at = (tail as usize % QUEUE_SLOTS) * 256;
        let to = ring.bytes[at..at + value.len()].as_ptr().cast_mut().cast::<u8>();
        // SAFETY: the place is one of `QUEUE_SLOTS`, of 256 bytes each, and free (checked against
        // `head`); this thread is the ring's only sender.
        unsafe { std::ptr::copy_nonoverlapping(value.as_ptr(), to, value.len()) };
        ring.tail.0.store(tail + 1, Ordering::Relaxed);
        queue.push([at as u64, value.len() as u64, 0, 0]).is_ok()
    }

    fn drain(&self) {
        for (queue, ring) in &self.queues {
            while let Some(item) = queue.pop() {
                black_box(&item);
                ring.head.0.fetch_add(1, Ordering::Release);
            }
        }
    }
}

struct Lane {
    lanes: Arc<Lanes>,
    drain: parking_lot::Mutex<Drain>,
}

impl Lane {
    fn new() -> Self {
        let options = LaneOptions {
            lanes: 4,
            lane_bytes: LANE_BYTES,
            lane_slots: LANE_SLOTS,
            record_bytes_max: 1_000_000,
        };
        let (lanes, drain) = Lanes::new(&options).expect("memory for the lanes");
        Lane { lanes, drain: parking_lot::Mutex::new(drain) }
    }
}

impl Front for Lane {
    #[inline]
    fn send(&self, _: usize, value: &[u8]) -> bool {
        let record = OutRecord {
            topic: TopicId(0),
            partition: ANY_PARTITION,
            timestamp_ms: 0,
            key: None,
            value: Some(value),
            headers: &[],
            receipt: NO_RECEIPT,
        };
        self.lanes.send(&record).is_ok()
    }

    fn drain(&self) {
        let mut drain = self.drain.lock();
        for lane in 0..drain.lane_count() {
            while let Some(frame) = drain.pop(lane) {
                black_box(drain.view(&frame));
                drain.release(&frame);
            }
            drain.look(lane);
        }
    }
}

/// Counts what it is given as delivered, and keeps nothing; takes nothing while it refuses.
struct Discard {
    refusing: Arc<AtomicBool>,
    waiting: Vec<Opaque>,
}

impl Sink for Discard {
    fn produce(
        &mut self,
        _: &str,
        record: &RecordView<'_>,
        opaque: Opaque,
    ) -> Result<(), ProduceError> {
        if self.refusing.load(Ordering::Relaxed) {
            return Err(ProduceError::Busy);
        }
        black_box(record.body);
        self.waiting.push(opaque);
        Ok(())
    }

    fn serve(&mut self, _: u64, reports: &mut Vec<Report>) {
        let delivered = |opaque| Report { opaque, outcome: Outcome::Delivered };
        reports.extend(self.waiting.drain(..).map(delivered));
    }

    fn state(&self) -> SinkState {
        SinkState { connected: true, topics_known: true, ..SinkState::default() }
    }

    fn hurry(&mut self) {}

    fn rebuild(&mut self, _: u64) {
        self.waiting.clear();
    }

    fn close(&mut self) {}
}

/// The whole pipeline, as users have it, before a sink that costs nothing.
struct Whole {
    pipeline: Pipeline,
    topic: Topic,
    refusing: Arc<AtomicBool>,
    outage: bool,
    spilled_before: AtomicU64,
    _home: tempfile::TempDir,
}

impl Whole {
    fn new(outage: bool) -> Self {
        let (home, dir) = log_dir();
        let refusing = Arc::new(AtomicBool::new(false));
        let sink = Discard { refusing: refusing.clone(), waiting: Vec::new() };
        let mut builder = Pipeline::builder().wal_dir(dir).lanes(4).sink(sink);
        if outage {
            // Short, so that the log is in use soon after an outage begins.
            builder = builder.loss_window(Duration::from_millis(100));
        }
        let pipeline = builder.open().expect("it opens");
        let topic = pipeline.topic("bench").expect("a good name");
        let spilled_before = AtomicU64::new(0);
        Whole { pipeline, topic, refusing, outage, spilled_before, _home: home }
    }
}

impl Front for Whole {
    #[inline]
    fn send(&self, _: usize, value: &[u8]) -> bool {
        self.topic.send(value).is_ok()
    }

    fn drain(&self) {
        self.pipeline.flush(Duration::from_secs(60)).expect("the sink takes everything");
    }

    fn drains_itself(&self) -> bool {
        true
    }

    fn begin(&self) {
        self.spilled_before.store(self.spilled(), Ordering::Relaxed);
        self.refusing.store(self.outage, Ordering::Relaxed);
    }

    fn is_begun(&self) -> bool {
        !self.outage || self.spilled() > self.spilled_before.load(Ordering::Relaxed)
    }

    fn end(&self) {
        self.refusing.store(false, Ordering::Relaxed);
        self.drain();
    }

    fn spilled(&self) -> u64 {
        self.pipeline.stats().books.spilled
    }
}

fn fronts(threads: usize) -> Vec<(&'static str, Arc<dyn Front>)> {
    vec![
        ("null", Arc::new(Null)),
        ("byte ring", Arc::new(ByteRing::new(threads))),
        ("queue + copy", Arc::new(QueueAndCopy::new(threads))),
        ("lane", Arc::new(Lane::new())),
        ("healthy", Arc::new(Whole::new(false))),
        ("outage", Arc::new(Whole::new(true))),
    ]
}

#[derive(Clone)]
struct Tails {
    service: Histogram<u64>,
    response: Histogram<u64>,
    refused: u64,
    spilled: u64,
}

impl Tails {
    fn new() -> Self {
        Tails { service: histogram(), response: histogram(), refused: 0, spilled: 0 }
    }

    fn add(&mut self, other: &Tails) {
        self.service += &other.service;
        self.response += &other.response;
        self.refused += other.refused;
        self.spilled += other.spilled;
    }
}

/// One sender, paced: each send is due `pace_ns` after the one before, late or not.
fn paced(front: &dyn Front, thread: usize, value: &[u8], pace_ns: u64, for_ns: u64) -> Tails {
    let mut tails = Tails::new();
    let start = Instant::now();
    let now = || start.elapsed().as_nanos() as u64;
    let mut due = pace_ns;
    while due < for_ns {
        while now() < due {
            spin_loop();
        }
        let before = now();
        let accepted = front.send(thread, black_box(value));
        let after = now();
        tails.service.saturating_record((after - before).max(1));
        tails.response.saturating_record((after - due).max(1));
        tails.refused += u64::from(!accepted);
        due += pace_ns;
    }
    tails
}

/// Sends what an outage needs to reach the log, at most 3 s.
fn warm_up(front: &dyn Front, thread: usize, value: &[u8], pace_ns: u64) {
    let start = Instant::now();
    while !front.is_begun() && start.elapsed() < Duration::from_secs(3) {
        paced(front, thread, value, pace_ns, 5_000_000);
    }
}

fn measure(front: &Arc<dyn Front>, threads: usize, bytes: usize, for_ns: u64) -> Tails {
    let pace_ns = env("FOREBAY_BENCH_PACE_NS").unwrap_or(4_000).max(1);
    let stop = Arc::new(AtomicBool::new(false));
    let drainer = (!front.drains_itself()).then(|| {
        let (front, stop) = (front.clone(), stop.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
                front.drain();
            }
        })
    });
    front.begin();
    let ready = Arc::new(Barrier::new(threads));
    let senders: Vec<_> = (0..threads)
        .map(|thread| {
            let (front, ready) = (front.clone(), ready.clone());
            std::thread::spawn(move || {
                Lanes::register_thread();
                let value = vec![7u8; bytes];
                warm_up(&*front, thread, &value, pace_ns);
                ready.wait();
                let spilled_before = front.spilled();
                ready.wait();
                let mut tails = paced(&*front, thread, &value, pace_ns, for_ns);
                tails.spilled = if thread == 0 { front.spilled() - spilled_before } else { 0 };
                tails
            })
        })
        .collect();
    let mut sum = Tails::new();
    for sender in senders {
        sum.add(&sender.join().expect("a sender"));
    }
    stop.store(true, Ordering::Relaxed);
    if let Some(drainer) = drainer {
        drainer.join().expect("the drain");
    }
    front.end();
    sum
}

fn print_tails(for_ns: u64) {
    println!("\nopen loop; ns; {ROUNDS} rounds interleaved; `journaled` is what went to the log");
    println!(
        "{:<12} {:>7} {:>5} | {:>6} {:>6} {:>7} | {:>6} {:>7} {:>8} | {:>9} {:>7} {:>9}",
        "front",
        "threads",
        "bytes",
        "p50",
        "p99",
        "p99.9",
        "resp50",
        "resp99",
        "resp99.9",
        "sends",
        "refused",
        "journaled"
    );
    for threads in [1, 2] {
        for bytes in [100, 256] {
            let fronts = fronts(threads);
            let mut sums = vec![Tails::new(); fronts.len()];
            for _ in 0..ROUNDS {
                for ((_, front), sum) in fronts.iter().zip(&mut sums) {
                    sum.add(&measure(front, threads, bytes, for_ns / u64::from(ROUNDS)));
                }
            }
            for ((name, _), t) in fronts.iter().zip(&sums) {
                let (s, r) = (&t.service, &t.response);
                println!(
                    "{name:<12} {threads:>7} {bytes:>5} | {:>6} {:>6} {:>7} | {:>6} {:>7} {:>8} | {:>9} {:>7} {:>9}",
                    s.value_at_quantile(0.5),
                    s.value_at_quantile(0.99),
                    s.value_at_quantile(0.999),
                    r.value_at_quantile(0.5),
                    r.value_at_quantile(0.99),
                    r.value_at_quantile(0.999),
                    s.len(),
                    t.refused,
                    t.spilled
                );
            }
        }
    }
}

/// Criterion's mean of one send: batches that fit, drained between them outside the clock. There
/// is no such mean in an outage: what is sent leaves a lane only as it ages.
fn means(for_ns: u64) {
    const BATCH: u64 = 10_000;
    let time = Duration::from_nanos(for_ns);
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
    let for_ms = env("FOREBAY_BENCH_MS").unwrap_or(if is_quick() { 100 } else { 2_000 });
    let for_ns = for_ms.max(10) * 1_000_000;
    means(for_ns);
    print_tails(for_ns);
}
