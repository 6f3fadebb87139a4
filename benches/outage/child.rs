//! Owns the process that sends: it follows the schedule, times each call, and says in its page
//! what was accepted. benches/peers/ has the same in Go: same words, same page, same lines.
//!
//! Words: CLIENT BROKERS TOPIC DIR PAGE RATE WINDOW_MS HEALTHY_S STOPPED_S AFTER_S; a window of 0 is
//! the default one. At its end it prints an object for each phase, and one for the whole run.

use crate::common::clients::{Client, PACER, Target};
use crate::common::librdkafka::Settings;
use crate::common::{cpu_time, histogram, memory_peak_mib, reset_memory_peak, tick};
use forebay_testkit::audit::{ID_BYTES, Id};
use hdrhistogram::Histogram;
use serde_json::json;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub const THREADS: u64 = 2;
pub const VALUE_BYTES: usize = 100;
pub const PHASES: [&str; 3] = ["healthy", "stopped", "after"];
pub const LIMIT: Duration = Duration::from_secs(120);
const POLL_NS: u64 = 1_000_000;

/// Words in a file's page: what a child has written there survives its SIGKILL. One for each
/// source, how many of its records were accepted; the last is 1 once the schedule has begun.
pub struct Page(memmap2::MmapRaw);

impl Page {
    const BYTES: u64 = 4096;
    const BEGUN: usize = 7;

    pub fn open(path: &Path) -> Page {
        let mut options = std::fs::File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path).expect("the page's file");
        file.set_len(Page::BYTES).expect("the page's length");
        Page(memmap2::MmapRaw::map_raw(&file).expect("the page is mapped"))
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at <= Page::BEGUN);
        // SAFETY: the mapping is a whole page, so it is aligned and holds 8 words a cache line
        // apart; it lives as long as `self`, and everybody uses these words as atomics.
        unsafe { AtomicU64::from_ptr(self.0.as_mut_ptr().cast::<u64>().add(at * 8)) }
    }

    pub fn has_begun(&self) -> bool {
        self.word(Page::BEGUN).load(Ordering::Acquire) == 1
    }

    pub fn accepted(&self) -> Vec<u64> {
        (0..THREADS as usize).map(|at| self.word(at).load(Ordering::Acquire)).collect()
    }
}

/// Writes the id's text over the front of a value, without allocating.
pub fn stamp(value: &mut [u8], id: Id) {
    let mut left = id.number;
    for at in (4..ID_BYTES - 1).rev() {
        value[at] = b'0' + (left % 10) as u8;
        left /= 10;
    }
}

pub fn new_value(source: u32) -> Vec<u8> {
    let mut value = Id { source, number: 0 }.text().into_bytes();
    value.resize(VALUE_BYTES, b'v');
    value
}

/// What one phase of the schedule was like for the callers.
#[derive(Clone)]
struct Phase {
    service: Histogram<u64>,
    worst_wait_ns: u64,
    refused: u64,
}

impl Phase {
    fn new() -> Self {
        Phase { service: histogram(), worst_wait_ns: 0, refused: 0 }
    }

    fn add(&mut self, other: &Phase) {
        self.service += &other.service;
        self.worst_wait_ns = self.worst_wait_ns.max(other.worst_wait_ns);
        self.refused += other.refused;
    }
}

/// The schedule.
#[derive(Clone, Copy)]
struct Schedule {
    start: Instant,
    per_s: u64,
    ends_ns: [u64; 3],
}

/// One thread's part of it; a refused record is gone, and its number used again.
fn follow(client: &dyn Client, source: u32, plan: Schedule, page: &Page) -> [Phase; 3] {
    let mut phases = [Phase::new(), Phase::new(), Phase::new()];
    let mut value = new_value(source);
    let mut accepted = 0;
    let count = plan.per_s * plan.ends_ns[2] / 1_000_000_000;
    let now_ns = || plan.start.elapsed().as_nanos() as u64;
    let mut polled_ns = 0;
    tick(plan.start, plan.per_s, count, |_, due_ns| {
        stamp(&mut value, Id { source, number: accepted });
        let before = now_ns();
        let is_accepted = client.send(&value);
        let after = now_ns();
        accepted += u64::from(is_accepted);
        page.word(source as usize).store(accepted, Ordering::Release);
        let at = plan.ends_ns.iter().position(|end| due_ns < *end).unwrap_or(2);
        let phase = &mut phases[at];
        phase.service.saturating_record((after - before).max(1));
        phase.worst_wait_ns = phase.worst_wait_ns.max(after.saturating_sub(due_ns));
        phase.refused += u64::from(!is_accepted);
        if after - polled_ns > POLL_NS {
            polled_ns = after;
            client.serve();
        }
    });
    phases
}

/// Sends until the schedule ends, or until it is killed.
pub fn run(words: &[String]) {
    let [name, brokers, topic, dir, page, rate, window_ms, seconds @ ..] = words else {
        panic!("{words:?}")
    };
    let number = |text: &String| -> u64 { text.parse().expect("a number") };
    let mut end = Duration::ZERO;
    let ends: Vec<Duration> = seconds
        .iter()
        .map(|s| {
            end += Duration::from_secs(number(s));
            end
        })
        .collect();
    let ends_ns: [u64; 3] = [0, 1, 2].map(|at: usize| ends[at].as_nanos() as u64);
    let window_ms = number(window_ms);
    let target = Target {
        dir: Some(Path::new(dir)),
        window: (window_ms > 0).then(|| Duration::from_millis(window_ms)),
        ..Target::new(brokers, topic, Settings::SLOW_BATCHES)
    };
    let client = target.open(name);
    let page = Page::open(Path::new(page));
    reset_memory_peak();
    let (start, begin_cpu) = (Instant::now(), cpu_time());
    let plan = Schedule { start, per_s: number(rate) / THREADS, ends_ns };
    let mut cpus = vec![begin_cpu];
    let mut phases = [Phase::new(), Phase::new(), Phase::new()];
    std::thread::scope(|scope| {
        let senders: Vec<_> = (0..THREADS as u32)
            .map(|source| {
                let (client, page) = (&*client, &page);
                scope.spawn(move || follow(client, source, plan, page))
            })
            .collect();
        page.word(Page::BEGUN).store(1, Ordering::Release);
        for end in &ends {
            while start.elapsed() < *end {
                let left = end.saturating_sub(start.elapsed());
                std::thread::sleep(Duration::from_millis(50).min(left));
                client.watch();
            }
            cpus.push(cpu_time());
        }
        for sender in senders {
            let theirs = sender.join().expect("a sender");
            phases.iter_mut().zip(&theirs).for_each(|(sum, one)| sum.add(one));
        }
    });
    let drain = Instant::now();
    client.flush(LIMIT);
    let drained = drain.elapsed();
    let mut before = Duration::ZERO;
    for (at, (name, phase)) in PHASES.iter().zip(&phases).enumerate() {
        let cores = (cpus[at + 1] - cpus[at]).as_secs_f64() / (ends[at] - before).as_secs_f64();
        before = ends[at];
        let s = &phase.service;
        println!(
            "{}",
            json!({
                "phase": name, "sends": s.len(), "refused": phase.refused,
                "p50": s.value_at_quantile(0.5), "p99": s.value_at_quantile(0.99),
                "p99.9": s.value_at_quantile(0.999), "max": s.max(),
                "worst_wait_ms": phase.worst_wait_ns as f64 / 1e6, "cores": cores,
            })
        );
    }
    println!(
        "{}",
        json!({
            "phase": "all", "accepted": page.accepted(),
            "refused": phases.iter().map(|p| p.refused).sum::<u64>(),
            "memory_mib": memory_peak_mib(),
            "cpu_s": (cpu_time() - begin_cpu).as_secs_f64(),
            "drained_ms": drained.as_secs_f64() * 1e3,
            "remarks": if name == PACER { String::new() } else { client.remarks() },
        })
    );
}
