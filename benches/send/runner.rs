//! Owns one measurement: threads that keep to a schedule and time each call, and rounds of it.

use super::fronts::{Front, Named};
use crate::common::{Runs, env, histogram, is_quick, tick};
use forebay::lane::Lanes;
use hdrhistogram::Histogram;
use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

/// Bytes a second and thread that no size exceeds.
const BYTES_PER_S: u64 = 200_000_000;
/// Sends between two calls of `serve`.
const SERVE_EVERY: u64 = 250;
/// Of all threads together no more than one send in so many nanoseconds: what one flusher takes.
const ALL_PACE_NS: u64 = 2_000;
const SAMPLE: Duration = Duration::from_millis(10);

/// What is sent.
#[derive(Clone)]
pub struct Plan {
    pub threads: usize,
    pub bytes: usize,
    pub pace_ns: u64,
    pub for_ns: u64,
    /// Sleep between two sends, whatever the number of threads.
    pub sleeps: bool,
}

impl Plan {
    pub fn new(threads: usize, bytes: usize) -> Plan {
        let for_ms = env("FOREBAY_BENCH_MS").unwrap_or(if is_quick() { 10 } else { 300 });
        let pace_ns = env("FOREBAY_BENCH_PACE_NS").unwrap_or(4_000).max(1);
        let pace_ns = pace_ns.max(bytes as u64 * 1_000_000_000 / BYTES_PER_S);
        let pace_ns = pace_ns.max(threads as u64 * ALL_PACE_NS);
        Plan { threads, bytes, pace_ns, for_ns: for_ms.max(1) * 1_000_000, sleeps: false }
    }

    pub fn rounds() -> u64 {
        env("FOREBAY_BENCH_ROUNDS").unwrap_or(if is_quick() { 1 } else { 5 }).max(1)
    }

    pub fn cores() -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    /// Whether the threads spin between two sends; more than there are cores sleep.
    pub fn spins(&self) -> bool {
        !self.sleeps && self.threads <= Plan::cores()
    }
}

/// One round.
pub struct Round {
    service: Histogram<u64>,
    response: Histogram<u64>,
    refused: u64,
    journaled: u64,
}

impl Round {
    fn new() -> Self {
        let (service, response) = (histogram(), histogram());
        Round { service, response, refused: 0, journaled: 0 }
    }

    fn add(&mut self, other: &Round) {
        self.service += &other.service;
        self.response += &other.response;
        self.refused += other.refused;
        self.journaled += other.journaled;
    }
}

/// All rounds of a front: percentiles of each, sums of the counts.
#[derive(Default)]
pub struct Row {
    pub p50: Runs,
    pub p99: Runs,
    pub p999: Runs,
    pub response999: Runs,
    pub refused: u64,
    pub journaled: u64,
    pub at_risk: Runs,
}

/// One sender: each send is due `pace_ns` after the one before, late or not.
fn follow(front: &dyn Front, thread: usize, value: &[u8], plan: &Plan, for_ns: u64) -> Round {
    let mut round = Round::new();
    let start = Instant::now();
    let now = || start.elapsed().as_nanos() as u64;
    let mut send = |number: u64, due: u64| {
        let before = now();
        let accepted = front.send(thread, black_box(value));
        let after = now();
        round.service.saturating_record((after - before).max(1));
        round.response.saturating_record(after.saturating_sub(due).max(1));
        round.refused += u64::from(!accepted);
        if number.is_multiple_of(SERVE_EVERY) {
            front.serve();
        }
    };
    let count = for_ns / plan.pace_ns;
    if plan.spins() {
        for number in 1..=count {
            let due = number * plan.pace_ns;
            while now() < due {
                spin_loop();
            }
            send(number, due);
        }
    } else {
        tick(start, 1_000_000_000 / plan.pace_ns, count, &mut send);
    }
    round
}

/// Sends what an outage needs to reach the log, at most 3 s.
fn warm_up(front: &dyn Front, thread: usize, value: &[u8], plan: &Plan) {
    let start = Instant::now();
    while !front.is_begun() && start.elapsed() < Duration::from_secs(3) {
        follow(front, thread, value, plan, 5_000_000);
    }
}

/// A round, and the most that a kill would have taken at one of its moments.
fn measure(front: &Arc<dyn Front>, plan: &Plan) -> (Round, Option<u64>) {
    let stop = Arc::new(AtomicBool::new(false));
    let drainer = (!front.drains_itself()).then(|| {
        let (front, stop) = (front.clone(), stop.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
                front.drain();
            }
            front.drain();
        })
    });
    front.begin();
    let ready = Arc::new(Barrier::new(plan.threads));
    let senders: Vec<_> = (0..plan.threads)
        .map(|thread| {
            let (front, ready, plan) = (front.clone(), ready.clone(), plan.clone());
            std::thread::spawn(move || {
                Lanes::register_thread();
                let value = vec![7u8; plan.bytes];
                warm_up(&*front, thread, &value, &plan);
                ready.wait();
                let journaled = front.journaled();
                ready.wait();
                let mut round = follow(&*front, thread, &value, &plan, plan.for_ns);
                round.journaled = if thread == 0 { front.journaled() - journaled } else { 0 };
                round
            })
        })
        .collect();
    let mut at_risk = front.at_risk();
    while at_risk.is_some() && !senders.iter().all(|sender| sender.is_finished()) {
        std::thread::sleep(SAMPLE);
        at_risk = at_risk.max(front.at_risk());
    }
    let mut sum = Round::new();
    for sender in senders {
        sum.add(&sender.join().expect("a sender"));
    }
    stop.store(true, Ordering::Relaxed);
    if let Some(drainer) = drainer {
        drainer.join().expect("the drain");
    }
    (sum, at_risk)
}

/// All fronts in turn, round after round; a first round warms caches up and isn't counted.
pub fn interleave(fronts: &[Named], plan: &Plan) -> Vec<Row> {
    let mut rows: Vec<Row> = fronts.iter().map(|_| Row::default()).collect();
    for counted in 0..=Plan::rounds() {
        for ((_, front), row) in fronts.iter().zip(&mut rows) {
            let (round, at_risk) = measure(front, plan);
            front.end();
            if counted == 0 {
                continue;
            }
            row.p50.add(round.service.value_at_quantile(0.5) as f64);
            row.p99.add(round.service.value_at_quantile(0.99) as f64);
            row.p999.add(round.service.value_at_quantile(0.999) as f64);
            row.response999.add(round.response.value_at_quantile(0.999) as f64);
            row.refused += round.refused;
            row.journaled += round.journaled;
            if let Some(records) = at_risk {
                row.at_risk.add(records as f64);
            }
        }
    }
    rows
}
