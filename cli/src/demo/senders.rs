//! Owns the threads that send: at a fixed rate, whatever becomes of what was sent before (an
//! open loop), each call timed.
//!
//! A thread that was late sends what is due at once. What is refused is counted, and the next
//! record takes its number: the numbers of what was accepted have no gaps.

use super::oracle::{KEYS, key_index, key_text, set_number, value};
use super::{Args, sleep_until};
use forebay::{Pipeline, Topic};
use hdrhistogram::Histogram;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a thread wakes to send what is due.
const TICK: Duration = Duration::from_millis(1);
/// How often it tells its newest latencies.
const TELL: Duration = Duration::from_millis(100);
/// Sources of the process after a crash begin here; `source` is generation times this plus thread.
pub const SOURCES_PER_GENERATION: u32 = 1 << 16;

/// What the brokers do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Phase {
    Healthy = 0,
    Outage = 1,
    CatchingUp = 2,
}

/// What every thread sees of the others. Each counter is its thread's alone to write.
pub struct Shared {
    /// When sending began.
    pub begin: Instant,
    phase: AtomicU8,
    threads: Vec<Told>,
}

/// On a cache line of its own, so that counting slows no other thread's sends.
#[repr(align(128))]
#[derive(Default)]
struct Told {
    accepted: AtomicU64,
    p50_ns: AtomicU64,
    p99_ns: AtomicU64,
}

impl Shared {
    /// Says what the brokers do from now on.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// What the brokers do.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Healthy,
            1 => Phase::Outage,
            _ => Phase::CatchingUp,
        }
    }

    /// Records accepted so far, by thread.
    pub fn accepted(&self) -> impl Iterator<Item = u64> {
        self.threads.iter().map(|t| t.accepted.load(Ordering::Relaxed))
    }

    /// The newest p50 and p99 of a send in ns: the worst thread's.
    pub fn latency_ns(&self) -> (u64, u64) {
        let worst = |of: fn(&Told) -> &AtomicU64| {
            self.threads.iter().map(|t| of(t).load(Ordering::Relaxed)).max().unwrap_or(0)
        };
        (worst(|t| &t.p50_ns), worst(|t| &t.p99_ns))
    }
}

/// Durations of sends in ns.
pub type Latencies = Histogram<u64>;

fn latencies() -> Latencies {
    // Infallible: 1 below 10 s, 3 digits. A longer send is counted as 10 s.
    Histogram::new_with_bounds(1, 10_000_000_000, 3).expect("bounds are in order")
}

/// What was sent, and how long each send took.
pub struct Sent {
    /// Accepted, by thread.
    pub accepted: Vec<u64>,
    /// Refused, all threads together.
    pub refused: u64,
    /// While the brokers were well.
    pub healthy: Latencies,
    /// While they were away.
    pub outage: Latencies,
    /// From their return until the backlog was gone.
    pub catching_up: Latencies,
}

impl Sent {
    /// Accepted, all threads together.
    pub fn accepted_total(&self) -> u64 {
        self.accepted.iter().sum()
    }
}

/// The running threads.
pub struct Senders {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Sent>>,
}

impl Senders {
    /// Starts them; they end by themselves.
    pub fn start(
        args: &Args,
        pipeline: &Pipeline,
        topic: &Topic,
        run: u64,
        generation: u32,
    ) -> io::Result<Senders> {
        // All begin together, also the one that is started last.
        let begin = Instant::now() + Duration::from_millis(20);
        let threads = (0..args.load.threads).map(|_| Told::default()).collect();
        let shared = Arc::new(Shared { begin, phase: AtomicU8::new(0), threads });
        let mut senders = Senders { shared: shared.clone(), threads: Vec::new() };
        for thread in 0..args.load.threads {
            let sender = Sender {
                topic: topic.clone(),
                thread: thread as usize,
                per_s: args.load.rate as f64 / f64::from(args.load.threads),
                seconds: args.seconds,
                value: value(
                    run,
                    generation * SOURCES_PER_GENERATION + thread,
                    args.load.payload as usize,
                ),
                shared: shared.clone(),
            };
            // The first send of a thread draws its number; here it has nobody's figures to spoil.
            pipeline.register_thread();
            let builder = std::thread::Builder::new().name(format!("send-{thread}"));
            senders.threads.push(builder.spawn(move || sender.send())?);
        }
        Ok(senders)
    }

    /// What the threads tell while they run.
    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Waits for their end.
    pub fn join(self) -> Sent {
        let mut all = Sent {
            accepted: Vec::new(),
            refused: 0,
            healthy: latencies(),
            outage: latencies(),
            catching_up: latencies(),
        };
        for thread in self.threads {
            let Ok(sent) = thread.join() else { continue };
            all.accepted.extend(sent.accepted);
            all.refused += sent.refused;
            let parts = [
                (&mut all.healthy, sent.healthy),
                (&mut all.outage, sent.outage),
                (&mut all.catching_up, sent.catching_up),
            ];
            for (sum, part) in parts {
                // Infallible: both were made with the same bounds.
                let _ = sum.add(part);
            }
        }
        all
    }
}

struct Sender {
    topic: Topic,
    thread: usize,
    per_s: f64,
    seconds: Duration,
    value: Vec<u8>,
    shared: Arc<Shared>,
}

impl Sender {
    fn send(mut self) -> Sent {
        let keys: Vec<_> = (0..KEYS).map(key_text).collect();
        let told = &self.shared.threads[self.thread];
        let mut by_phase = [latencies(), latencies(), latencies()];
        let mut recent = latencies();
        let (mut accepted, mut tried) = (0u64, 0u64);
        let mut next_tell = self.shared.begin + TELL;
        sleep_until(self.shared.begin);
        loop {
            let now = Instant::now();
            let elapsed = now.saturating_duration_since(self.shared.begin).min(self.seconds);
            let due = (elapsed.as_secs_f64() * self.per_s) as u64;
            while tried < due {
                tried += 1;
                set_number(&mut self.value, accepted);
                let record = self.topic.record(&self.value).key(&keys[key_index(accepted)]);
                let before = Instant::now();
                let taken = record.send();
                let took = before.elapsed().as_nanos() as u64;
                by_phase[self.shared.phase() as usize].saturating_record(took.max(1));
                recent.saturating_record(took.max(1));
                if taken.is_ok() {
                    accepted += 1;
                    told.accepted.store(accepted, Ordering::Relaxed);
                }
            }
            if elapsed >= self.seconds {
                break;
            }
            if now >= next_tell {
                told.p50_ns.store(recent.value_at_quantile(0.5), Ordering::Relaxed);
                told.p99_ns.store(recent.value_at_quantile(0.99), Ordering::Relaxed);
                recent.reset();
                next_tell = now + TELL;
            }
            std::thread::sleep(TICK);
        }
        let [healthy, outage, catching_up] = by_phase;
        let refused = tried - accepted;
        Sent { accepted: vec![accepted], refused, healthy, outage, catching_up }
    }
}
