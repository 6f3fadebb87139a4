//! Words of a delivery report, which sink and sequence share.

/// What the flusher gives the sink with a record and gets back in its report: the slot of the
/// in-flight table (low 30 bits), which of its lines the record is in (bit 30) and the slot's
/// generation (high 32 bits). What is redriven has bit 31 and a ticket instead.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Opaque(pub u64);

impl Opaque {
    /// Marks a record that was handed over beside a backlog, from memory.
    pub(crate) const LIVE: u64 = 1 << 30;
    /// Marks what is redriven of a topic or partition that was held. The in-flight table never
    /// has so many slots.
    pub(crate) const REDRIVEN: u64 = 1 << 31;

    /// Whether the record was handed over beside a backlog, from memory.
    #[must_use]
    pub(crate) fn is_live(self) -> bool {
        self.0 & (Opaque::REDRIVEN | Opaque::LIVE) == Opaque::LIVE
    }
}

/// How far an error reaches.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Scope {
    /// This record can never be delivered: it is set aside.
    Record,
    /// Every record of one request failed; each may be good on its own.
    Batch,
    /// Every record of the topic fails alike (unknown, unauthorised).
    Topic,
    /// The producer instance is unusable: rebuild it.
    Instance,
    /// Goes away by itself: produce the record again.
    Transient,
}

/// The names of all reasons of [`Scope::Topic`]: no record of the topic would fare better.
pub(crate) const TOPIC_REASONS: [&str; 6] = [
    "topic_unavailable",
    "topic_unauthorised",
    "topic_invalid",
    "unknown_partition",
    "format_unsupported",
    "compression_unsupported",
];

/// Why a record was not delivered; a stable short name for counters, and the text of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Reason {
    /// Stable, snake_case: `message_too_large`, `topic_unavailable`, ...
    pub name: &'static str,
    /// The sink's own error number (librdkafka's `rd_kafka_resp_err_t`), 0 if it has none.
    pub code: i32,
}

/// How a record ended in the sink.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The delivery report says it is persisted.
    Delivered,
    /// It was not delivered, and whether the broker may hold it all the same.
    Failed {
        /// How far the error reaches.
        scope: Scope,
        /// Why.
        reason: Reason,
        /// The broker may have appended it (status POSSIBLY_PERSISTED or unknown).
        possibly_persisted: bool,
    },
}

/// One delivery report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    /// What came with the record.
    pub opaque: Opaque,
    /// How it ended.
    pub outcome: Outcome,
}
