//! Owns when: the pure decisions about time and fill that move pops, flushes and the journal.

/// What a lane's fill means, in parts of its bytes or slots, whichever is fuller.
pub const FLUSH_MARK_PARTS: u64 = 4;
/// Above half of a lane, what can't be freed by a flush has to be journaled.
pub const HIGH_MARK_PARTS: u64 = 2;
/// Longest time between two looks, in nanoseconds.
pub const LOOK_MAX_NS: u64 = 10_000_000;
/// Shortest time between two looks, in nanoseconds.
pub const LOOK_MIN_NS: u64 = 500_000;

/// Settings that decide when.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Oldest a waiting record may get before a flush, in nanoseconds.
    pub flush_interval_ns: u64,
    /// Records that wait before a flush.
    pub flush_records: u64,
    /// Bytes that wait before a flush.
    pub flush_bytes: u64,
    /// Oldest a record may get that is neither final nor in the log; `None`: never by age.
    pub loss_window_ns: Option<u64>,
    /// How long the sink may leave what it has unanswered before a lane that fills up is emptied
    /// into the log; 0: a lane that fills up always is.
    pub answer_ns: u64,
}

/// What waits in the lanes at a look.
#[derive(Clone, Copy, Debug, Default)]
pub struct Waiting {
    /// Records not handed to the sink.
    pub records: u64,
    /// Their bytes in the lanes.
    pub bytes: u64,
    /// When the oldest of them came, by the flusher's clock.
    pub oldest_ns: Option<u64>,
    /// A lane is at a quarter of its bytes or slots.
    pub lane_at_mark: bool,
}

/// Whether the lanes are to be emptied now.
#[must_use]
pub fn flush_is_due(timing: &Timing, waiting: &Waiting, now_ns: u64) -> bool {
    waiting.records > 0
        && (waiting.lane_at_mark
            || waiting.records >= timing.flush_records
            || waiting.bytes >= timing.flush_bytes
            || waiting
                .oldest_ns
                .is_some_and(|t| now_ns.saturating_sub(t) >= timing.flush_interval_ns))
}

/// Records that came at or before this time have to be journaled now: the window, less twice
/// the worst recent look, so that one late look and its work still fit. `None`: none by age.
#[must_use]
pub fn journal_cutoff_ns(timing: &Timing, worst_look_ns: u64, now_ns: u64) -> Option<u64> {
    let window = timing.loss_window_ns?;
    let margin = (2 * worst_look_ns).min(window / 2 + window % 2);
    now_ns.checked_sub(window - margin)
}

/// How long the flusher may sleep: the least of the time to the flush deadline, a quarter of
/// the time until the fullest lane's high mark at its last rate, and 10 ms; at least 0.5 ms.
#[must_use]
pub fn sleep_ns(
    timing: &Timing,
    waiting: &Waiting,
    to_high_mark_ns: Option<u64>,
    now_ns: u64,
) -> u64 {
    let to_flush = waiting
        .oldest_ns
        .map_or(u64::MAX, |t| (t + timing.flush_interval_ns).saturating_sub(now_ns));
    let to_mark = to_high_mark_ns.map_or(u64::MAX, |t| t / 4);
    LOOK_MAX_NS.min(to_flush).min(to_mark).max(LOOK_MIN_NS)
}
