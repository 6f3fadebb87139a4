//! What a send costs the caller, beside floors that run interleaved in the same process.
//!
//! Rows: `null` (the timer and the pacing alone), `byte ring` (one CAS and a copy, no
//! descriptor: the floor of anything that copies), `queue, copy` (an `ArrayQueue` whose slots
//! hold the descriptor and the bytes), and `lane` (this crate). Each runs with a drain that
//! looks every millisecond. Machines are shared: read the differences between rows, not the
//! figures.
//!
//! Two parts: criterion's mean of a send on one thread, flat out with an inline drain; then the
//! tails, open loop: sends are due every microsecond on each thread, a late one is not skipped,
//! and its response time counts from when it was due. `FOREBAY_BENCH_MS` is the length of each
//! measurement (default 2,000; CI sets a small one).

#![allow(missing_docs, clippy::print_stdout)]

use criterion::{BenchmarkId, Criterion};
use crossbeam_queue::ArrayQueue;
use forebay::lane::{Drain, LaneOptions, Lanes, NO_RECEIPT, OutRecord};
use forebay::record::{ANY_PARTITION, TopicId};
use hdrhistogram::Histogram;
use std::cell::UnsafeCell;
use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

const PACE_NS: u64 = 1_000;
const LANE_BYTES: usize = 8 << 20;
const LANE_SLOTS: usize = 1 << 16;
const INLINE_BYTES: usize = 256;
const ROUNDS: u32 = 3;

/// Something that takes records on callers' threads and gives them up on another.
trait Front: Send + Sync {
    fn send(&self, thread: usize, value: &[u8]) -> bool;
    fn drain(&self);
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

impl ByteRing {
    fn new(threads: usize) -> Self {
        let ring = |_| Ring {
            bytes: (0..LANE_BYTES).map(|_| UnsafeCell::new(0)).collect(),
            head: Word(AtomicU64::new(0)),
            tail: Word(AtomicU64::new(0)),
        };
        ByteRing { rings: (0..threads).map(ring).collect() }
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

/// An `ArrayQueue` for each thread whose slots hold descriptor and bytes.
struct CopyQueue {
    queues: Vec<ArrayQueue<Inline>>,
}

struct Inline {
    _meta: [u64; 4],
    bytes: [u8; INLINE_BYTES],
}

impl Front for CopyQueue {
    #[inline]
    fn send(&self, thread: usize, value: &[u8]) -> bool {
        let mut item = Inline { _meta: [value.len() as u64; 4], bytes: [0; INLINE_BYTES] };
        item.bytes[..value.len()].copy_from_slice(value);
        self.queues[thread].push(item).is_ok()
    }

    fn drain(&self) {
        for queue in &self.queues {
            while let Some(item) = queue.pop() {
                black_box(&item.bytes);
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

fn fronts(threads: usize) -> Vec<(&'static str, Arc<dyn Front>)> {
    let queues = (0..threads).map(|_| ArrayQueue::new(LANE_SLOTS / 4)).collect();
    vec![
        ("null", Arc::new(Null)),
        ("byte ring", Arc::new(ByteRing::new(threads))),
        ("queue, copy", Arc::new(CopyQueue { queues })),
        ("lane", Arc::new(Lane::new())),
    ]
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 10_000_000_000, 3).expect("constant bounds")
}

#[derive(Clone)]
struct Tails {
    service: Histogram<u64>,
    response: Histogram<u64>,
    refused: u64,
}

impl Tails {
    fn new() -> Self {
        Tails { service: histogram(), response: histogram(), refused: 0 }
    }
}

/// One sender, paced: each send is due a microsecond after the one before, late or not.
fn paced(front: &dyn Front, thread: usize, bytes: usize, for_ns: u64) -> Tails {
    let value = vec![7u8; bytes];
    let mut tails = Tails::new();
    let start = Instant::now();
    let now = || start.elapsed().as_nanos() as u64;
    let mut due = PACE_NS;
    while due < for_ns {
        while now() < due {
            spin_loop();
        }
        let before = now();
        let accepted = front.send(thread, black_box(&value));
        let after = now();
        tails.service.saturating_record((after - before).max(1));
        tails.response.saturating_record((after - due).max(1));
        tails.refused += u64::from(!accepted);
        due += PACE_NS;
    }
    tails
}

fn measure(front: &Arc<dyn Front>, threads: usize, bytes: usize, for_ns: u64) -> Tails {
    let stop = Arc::new(AtomicBool::new(false));
    let drainer = {
        let (front, stop) = (front.clone(), stop.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
                front.drain();
            }
        })
    };
    let ready = Arc::new(Barrier::new(threads));
    let senders: Vec<_> = (0..threads)
        .map(|thread| {
            let (front, ready) = (front.clone(), ready.clone());
            std::thread::spawn(move || {
                Lanes::register_thread();
                ready.wait();
                paced(&*front, thread, bytes, for_ns)
            })
        })
        .collect();
    let mut sum = Tails::new();
    for sender in senders {
        let tails = sender.join().expect("a sender");
        sum.service += &tails.service;
        sum.response += &tails.response;
        sum.refused += tails.refused;
    }
    stop.store(true, Ordering::Relaxed);
    drainer.join().expect("the drain");
    sum
}

fn print_tails(for_ns: u64) {
    println!(
        "\nopen loop, one send a µs and thread, a drain every ms; ns; {ROUNDS} rounds interleaved"
    );
    println!(
        "{:<12} {:>7} {:>5} | {:>6} {:>6} {:>7} | {:>6} {:>7} {:>8} | {:>9} {:>7}",
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
        "refused"
    );
    for threads in [1, 2] {
        for bytes in [100, 256] {
            let fronts = fronts(threads);
            let mut sums = vec![Tails::new(); fronts.len()];
            for _ in 0..ROUNDS {
                for ((_, front), sum) in fronts.iter().zip(&mut sums) {
                    let tails = measure(front, threads, bytes, for_ns / u64::from(ROUNDS));
                    sum.service += &tails.service;
                    sum.response += &tails.response;
                    sum.refused += tails.refused;
                }
            }
            for ((name, _), t) in fronts.iter().zip(&sums) {
                let (s, r) = (&t.service, &t.response);
                println!(
                    "{name:<12} {threads:>7} {bytes:>5} | {:>6} {:>6} {:>7} | {:>6} {:>7} {:>8} | {:>9} {:>7}",
                    s.value_at_quantile(0.5),
                    s.value_at_quantile(0.99),
                    s.value_at_quantile(0.999),
                    r.value_at_quantile(0.5),
                    r.value_at_quantile(0.99),
                    r.value_at_quantile(0.999),
                    s.len(),
                    t.refused
                );
            }
        }
    }
}

/// Criterion's mean of one send: batches that fit, drained between them outside the clock.
fn means(for_ns: u64) {
    const BATCH: u64 = 1_000;
    let time = Duration::from_nanos(for_ns);
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(time / 4)
        .measurement_time(time)
        .without_plots();
    let mut group = criterion.benchmark_group("send");
    for bytes in [100, 256] {
        let value = vec![7u8; bytes];
        for (name, front) in fronts(1) {
            group.bench_function(BenchmarkId::new(name, bytes), |b| {
                b.iter_custom(|sends| {
                    let mut spent = Duration::ZERO;
                    let mut left = sends;
                    while left > 0 {
                        let batch = left.min(BATCH);
                        let start = Instant::now();
                        for _ in 0..batch {
                            black_box(front.send(0, black_box(&value)));
                        }
                        spent += start.elapsed();
                        front.drain();
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
    let ms = std::env::var("FOREBAY_BENCH_MS").ok().and_then(|ms| ms.parse().ok());
    let for_ns = ms.unwrap_or(2_000u64).max(10) * 1_000_000;
    means(for_ns);
    print_tails(for_ns);
}
