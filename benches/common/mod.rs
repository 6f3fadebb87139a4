//! What the benches share: settings from the environment, histograms, spreads, CPU and memory
//! of this process, and a ticker that keeps to a schedule.
//!
//! Files: `table` (what is printed), `hand` (queues as people write them by hand), `clients`
//! (everything that takes records to Kafka, behind one trait), `librdkafka` (those of rust-rdkafka).

// Each bench uses its own part of this.
#![allow(dead_code)]

#[cfg(feature = "kafka")]
pub mod clients;
pub mod hand;
#[cfg(feature = "kafka")]
pub mod librdkafka;
pub mod table;

use hdrhistogram::Histogram;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A number from the environment.
pub fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Whether this is a run to see that it works: `--quick`, or a small `FOREBAY_BENCH_MS`.
pub fn is_quick() -> bool {
    std::env::args().any(|a| a == "--quick") || env("FOREBAY_BENCH_MS").is_some_and(|ms| ms < 500)
}

/// The words of the command line that aren't options (cargo adds `--bench`).
pub fn words() -> Vec<String> {
    std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect()
}

/// A directory for a log: in `FOREBAY_BENCH_DIR` if that is set, which must be on a disk for
/// the figures to mean one.
pub fn log_dir() -> (tempfile::TempDir, PathBuf) {
    let home = match std::env::var_os("FOREBAY_BENCH_DIR") {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    };
    let home = home.expect("a temporary directory");
    let dir = home.path().join("log");
    (home, dir)
}

/// Nanoseconds up to 100 s, to three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 100_000_000_000, 3).expect("constant bounds")
}

/// Several runs of the same thing.
#[derive(Clone, Debug, Default)]
pub struct Runs(Vec<f64>);

impl Runs {
    pub fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let half = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[half],
            _ => (sorted[half - 1] + sorted[half]) / 2.0,
        }
    }

    pub fn range(&self) -> RangeInclusive<f64> {
        let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        least..=most
    }

    /// `median (least-most)` with so many decimals.
    pub fn show(&self, decimals: usize) -> String {
        let show = |value: f64| table::thousands(&format!("{value:.decimals$}"));
        let range = self.range();
        format!("{} ({}-{})", show(self.median()), show(*range.start()), show(*range.end()))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// CPU time of this process, all its threads, user and system.
pub fn cpu_time() -> Duration {
    // SAFETY: an all-zero rusage is a valid one, made of integers only.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is live and is what the call fills; RUSAGE_SELF is always allowed.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    let of = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1_000);
    of(usage.ru_utime) + of(usage.ru_stime)
}

/// The most memory that this process has had resident (VmHWM), in MiB, since it began or since
/// [`reset_memory_peak`].
pub fn memory_peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib: Option<u64> = line.and_then(|l| l.split_whitespace().next()?.parse().ok());
    kib.unwrap_or(0) / 1024
}

/// Sets the peak back to what is resident now.
pub fn reset_memory_peak() {
    // Where the kernel doesn't let us, the peak is that of the whole run: too high, never too low.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Calls `send(number, due_ns)` for each of `count` sends that are due evenly at `per_s` from
/// `start` on: wakes every millisecond and makes all that are due, however late.
pub fn tick(start: Instant, per_s: u64, count: u64, mut send: impl FnMut(u64, u64)) {
    let due_ns = |n: u64| (u128::from(n) * 1_000_000_000 / u128::from(per_s)) as u64;
    let mut next = 0;
    while next < count {
        let now_ns = start.elapsed().as_nanos() as u64;
        while next < count && due_ns(next) <= now_ns {
            send(next, due_ns(next));
            next += 1;
        }
        if next < count {
            let wake_ns = (now_ns / 1_000_000 + 1) * 1_000_000;
            let now_ns = start.elapsed().as_nanos() as u64;
            std::thread::sleep(Duration::from_nanos(wake_ns.saturating_sub(now_ns)));
        }
    }
}
