//! Owns the words that go into and come out of a [`super::Sequence`].

use crate::record::{LogPosition, Lsn, TopicId};
use crate::report::{Opaque, Reason, Scope};

/// When a record must be in the log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Journal {
    /// There is no log.
    Off,
    /// When age or pressure say so.
    Spill,
    /// Before it is handed to the sink (`loss_window` 0).
    First,
}

/// Bounds of a sequence.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Limits {
    /// Most numbers between `acked` and `produced`.
    pub in_flight_max_records: usize,
    /// Most bytes of them; one record alone is always let through.
    pub in_flight_max_bytes: u64,
    /// When a record must be in the log.
    pub journal: Journal,
    /// Live records go beside the backlog, which may take this much of both bounds, in parts of a
    /// hundred. `None`: the backlog goes first. Nothing with [`Journal::First`] or
    /// [`Journal::Off`], or with a bound of one record: there is no beside then.
    pub backlog_percent: Option<u8>,
}

/// A record that the flusher took from a lane.
#[derive(Clone, Copy, Hash, Debug)]
pub struct Popped<F> {
    /// The arena's frame; the sequence only carries it.
    pub frame: F,
    /// Its topic.
    pub topic: TopicId,
    /// Bytes it counts against the span.
    pub bytes: u32,
    /// When it came, never later than the truth.
    pub arrival_ns: u64,
    /// Its receipt, or `u32::MAX`.
    pub receipt: u32,
}

/// Where a record's bytes lie.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Source<F> {
    /// In the arena.
    Memory(F),
    /// In the log.
    Log(LogPosition),
}

/// The next step of the `produced` cursor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Next<F> {
    /// Hand this one to the sink, then say [`super::Sequence::handed`].
    Produce {
        /// What the sink gets and reports back.
        opaque: Opaque,
        /// Its number.
        lsn: Lsn,
        /// Its topic.
        topic: TopicId,
        /// Its bytes.
        source: Source<F>,
    },
    /// The next record lies in the log: read it and say [`super::Sequence::admit`], or
    /// [`super::Sequence::caught_up`] where there is none.
    Read,
    /// The span is full: reports come first.
    SpanFull,
    /// The next record must be journaled before it may be produced.
    JournalFirst,
    /// An older record of the live line has to be handed over first.
    LiveFirst,
    /// Nothing to do.
    Idle,
}

/// A frame read from the backlog.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Backlog {
    /// Its number.
    pub lsn: Lsn,
    /// Where it lies.
    pub position: LogPosition,
    /// Its topic.
    pub topic: TopicId,
    /// Bytes it counts against the span.
    pub bytes: u32,
    /// Its receipt, or `u32::MAX`.
    pub receipt: u32,
}

/// How a record ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum End {
    /// Reported as persisted.
    Delivered,
    /// In the set-aside log, for this reason.
    SetAside(&'static str),
    /// Given up and counted, for this reason.
    Dropped(&'static str),
}

/// A record that became final.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Finished {
    /// Its number.
    pub lsn: Lsn,
    /// Its topic.
    pub topic: TopicId,
    /// Its receipt, or `u32::MAX`.
    pub receipt: u32,
    /// When it came; `None` for a record read from the log.
    pub arrival_ns: Option<u64>,
    /// How it ended.
    pub end: End,
}

/// What a report means.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Verdict<F> {
    /// Of an older instance or of a record that is final: nothing happens.
    Stale,
    /// The record is final now.
    Finished(Finished),
    /// It can't be delivered: set it aside and say [`super::Sequence::finish`]. Until then it is parked.
    SetAside {
        /// Its number.
        lsn: Lsn,
        /// Its topic.
        topic: TopicId,
        /// Its bytes.
        source: Source<F>,
        /// [`Scope::Record`], [`Scope::Batch`] or [`Scope::Topic`].
        scope: Scope,
        /// Why.
        reason: Reason,
    },
    /// It will be produced again by the same instance.
    Again,
    /// The instance is unusable: rebuild it, then say [`super::Sequence::rebuilt`].
    Rebuild(Reason),
}
