//! Owns the words of a drill: what is rehearsed, what came of it, and why it may be refused.

use crate::stats::BookTotals;
use std::fmt;
use std::time::Duration;

/// An outage to rehearse; see [`Pipeline::drill`](crate::Pipeline::drill).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outage {
    pub(crate) lasts: Duration,
    pub(crate) drain_within: Duration,
}

impl Outage {
    /// Longest that a drill may last: an hour.
    pub const LASTS_MAX: Duration = Duration::from_secs(3600);

    /// Kafka is treated as dead for so long, at least 1 ms, at most an hour.
    #[must_use]
    pub fn lasting(duration: Duration) -> Outage {
        let drain_within = duration.saturating_mul(10).saturating_add(Duration::from_secs(60));
        Outage { lasts: duration, drain_within }
    }

    /// How long the backlog may take afterwards before the report comes back without its end.
    /// Default: ten times the outage and a minute.
    #[must_use]
    pub fn drain_within(self, limit: Duration) -> Outage {
        Outage { drain_within: limit, ..self }
    }
}

/// What a drill found. The latency of sends isn't in it: a drill sends nothing and slows no send;
/// who wants it times its own.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct DrillReport {
    /// How long nothing was handed over.
    pub outage: Duration,
    /// Why that was ended before its time: the log ran short of room or failed, a lane refused,
    /// or records were exposed. Then the real thing would cost more than this shows.
    pub cut_short: Option<String>,
    /// From the outage's end until everything that had waited was final and the hand-over had
    /// caught up. `None` when that took longer than it was given; it goes on by itself.
    pub drained: Option<Duration>,
    /// Most records that waited to be handed over.
    pub backlog_records: u64,
    /// Most bytes that waited: headers, keys and values, and 64 B a record.
    pub backlog_bytes: u64,
    /// Age of the oldest record that a crash would have lost.
    pub oldest_unsafe_ms: u64,
    /// How full the fullest lane was, in percent of its bytes or slots. At 100 sends are refused.
    pub lane_fill_percent: u64,
    /// Longest time between two looks of the flusher.
    pub look_gap: Duration,
    /// The books when it began.
    pub before: BookTotals,
    /// The books when it ended.
    pub after: BookTotals,
}

impl DrillReport {
    /// Records accepted meanwhile.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.after.accepted - self.before.accepted
    }

    /// Records that went through the log.
    #[must_use]
    pub fn spilled(&self) -> u64 {
        self.after.spilled - self.before.spilled
    }

    /// Sends that were refused meanwhile, for whatever reason.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.after.refused - self.before.refused
    }

    /// Records that were dropped under a counted policy meanwhile.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.after.dropped - self.before.dropped
    }

    /// Records more that may be in Kafka twice.
    #[must_use]
    pub fn duplicates_possible(&self) -> u64 {
        self.after.duplicates_possible - self.before.duplicates_possible
    }

    /// Records that came and stand nowhere: 0, or Forebay is wrong.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.after.unaccounted().unsigned_abs()
    }

    /// It lasted as long as it should, drained in time, and cost no record and no refusal.
    #[must_use]
    pub fn is_good(&self) -> bool {
        let cost = self.lost() + self.refused() + self.dropped();
        self.cut_short.is_none() && self.drained.is_some() && cost == 0
    }
}

impl fmt::Display for DrillReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "nothing was handed over for {:.2} s", self.outage.as_secs_f64())?;
        if let Some(why) = &self.cut_short {
            writeln!(f, "CUT SHORT: {why}")?;
        }
        let mib = self.backlog_bytes as f64 / f64::from(1 << 20);
        writeln!(f, "at most {} records waited, {mib:.1} MiB", self.backlog_records)?;
        match self.drained {
            Some(took) => writeln!(f, "drained {:.2} s after its end", took.as_secs_f64())?,
            None => writeln!(f, "NOT DRAINED in the time it was given; it goes on")?,
        }
        writeln!(
            f,
            "a crash would have lost what was {} ms old; fullest lane {} %; longest look {:.1} ms",
            self.oldest_unsafe_ms,
            self.lane_fill_percent,
            self.look_gap.as_secs_f64() * 1e3
        )?;
        write!(
            f,
            "accepted {}, through the log {}, refused {}, dropped {}, lost {}, duplicates possible {}",
            self.accepted(),
            self.spilled(),
            self.refused(),
            self.dropped(),
            self.lost(),
            self.duplicates_possible()
        )
    }
}

/// Why a drill was refused, or ended without a report. Nothing was lost by it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DrillError {
    /// There is no log to spill into.
    #[error("without a log an outage is no drill: the lanes would refuse")]
    NoLog,
    /// It must last between 1 ms and an hour.
    #[error("a drill lasts between 1 ms and an hour")]
    BadLength,
    /// One is under way.
    #[error("another drill is under way")]
    AlreadyRunning,
    /// Something is wrong already: what.
    #[error("the pipeline isn't healthy: {0}")]
    Unhealthy(String),
    /// Records wait already.
    #[error("there is a backlog already: {records} records wait to be handed over")]
    Backlog {
        /// How many.
        records: u64,
    },
    /// The log has too little room for twice what would come at the rate of the last ten seconds.
    #[error("the log lacks room: {needed_bytes} bytes are needed, {free_bytes} are free")]
    NoRoom {
        /// Twice the highest rate within the last ten seconds, times the outage.
        needed_bytes: u64,
        /// What the log may still take.
        free_bytes: u64,
    },
    /// The pipeline was closed, before or meanwhile. Closing ends a drill at once, and delivers.
    #[error("the pipeline is closed")]
    Closed,
    /// The pipeline stopped after a panic: what it said.
    #[error("the pipeline has stopped: {0}")]
    Stopped(String),
}

/// Where a drill stands, between its caller and the flusher.
#[derive(Debug, Default)]
pub(crate) enum Desk {
    #[default]
    Free,
    Asked(Outage),
    Running,
    Ended(Box<Result<DrillReport, DrillError>>),
}
