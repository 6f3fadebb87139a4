//! Owns time: monotonic nanoseconds for every decision, wall-clock milliseconds for stamps.
//! A stepped wall clock changes no decision.

/// The one source of time of flusher and keeper; the simulator brings its own.
pub trait Clock: Send + Sync + 'static {
    /// Nanoseconds since an arbitrary start; never goes back.
    fn now_ns(&self) -> u64;
    /// Milliseconds since the Unix epoch; may step.
    fn unix_ms(&self) -> i64;
}

/// The system's clocks.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ns(&self) -> u64 {
        let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
    }

    fn unix_ms(&self) -> i64 {
        unix_ms_of(rustix::time::ClockId::Realtime)
    }
}

/// Milliseconds since the Unix epoch, good to a jiffy (1 to 10 ms), in about 7 ns: for a
/// record's CreateTime only.
#[inline]
#[must_use]
pub fn coarse_unix_ms() -> i64 {
    unix_ms_of(rustix::time::ClockId::RealtimeCoarse)
}

#[inline]
fn unix_ms_of(clock: rustix::time::ClockId) -> i64 {
    let t = rustix::time::clock_gettime(clock);
    t.tv_sec * 1000 + t.tv_nsec / 1_000_000
}
