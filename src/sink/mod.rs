//! The seam to whatever takes the records: the trait [`Sink`] and the words of its answers.
//!
//! A sink is driven by the flusher alone, from one thread. It never waits inside any call
//! except [`Sink::close`].

pub use crate::record::{Header, Headers, RecordView, Shape, TopicId};

mod memory;
pub use memory::{MemoryHandle, MemoryRecord, MemorySink};

#[cfg(feature = "kafka")]
pub mod kafka;

#[cfg(any(feature = "embedded", all(test, feature = "kafka")))]
pub mod embedded;

/// What the flusher gives the sink with a record and gets back in its report: the slot of the
/// in-flight table (low 32 bits) and the slot's generation (high 32 bits).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Opaque(pub u64);

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

/// Why a sink did not take a record. The record was not handed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProduceError {
    /// Not now: no room, the partition is stalled, or the topic's partitions aren't known yet.
    /// Offer the same record again at a later look.
    Busy,
    /// This record will never be taken (scope record or topic).
    Rejected {
        /// [`Scope::Record`] or [`Scope::Topic`].
        scope: Scope,
        /// Why.
        reason: Reason,
    },
    /// The instance is unusable: call [`Sink::rebuild`].
    Fatal(Reason),
}

/// What a sink says of itself, for `stats()` and for the flusher's decisions.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SinkState {
    /// At least one broker is connected.
    pub connected: bool,
    /// Metadata of every topic used so far is known.
    pub topics_known: bool,
    /// The instance needs a rebuild: why.
    pub fatal: Option<String>,
    /// A rebuild is under way: no record is taken.
    pub rebuilding: bool,
    /// Partitions that are paused because they are silent.
    pub paused_partitions: u32,
    /// The last error that wasn't about one record (connection, authentication, TLS).
    pub last_error: Option<String>,
    /// Records handed over and not yet reported.
    pub outstanding_records: u64,
}

/// Takes records and reports each exactly once per instance.
///
/// Contract: after `produce` returned `Ok`, exactly one [`Report`] with that opaque comes out of
/// `serve`, unless the instance is rebuilt before: then none comes for it any more.
pub trait Sink: Send {
    /// Hands one record over. The sink has copied what it needs when this returns.
    ///
    /// # Errors
    /// See [`ProduceError`]; on an error nothing was handed over.
    fn produce(&mut self, topic: &str, record: &RecordView<'_>, opaque: Opaque)
    -> Result<(), ProduceError>;

    /// Appends the reports that have come since the last call, without waiting, and does the
    /// sink's own upkeep (pausing silent partitions, metadata). Called at every look.
    fn serve(&mut self, now_ns: u64, reports: &mut Vec<Report>);

    /// Called before the flusher sleeps when a report may be waited for: a sink that can wake it
    /// does so through the [`crate::wake::Waker`] it was built with. Returns the longest time,
    /// in nanoseconds, after which `serve` must be called again, if there is one.
    fn next_deadline_ns(&mut self, now_ns: u64) -> Option<u64> {
        let _ = now_ns;
        None
    }

    /// What the sink says of itself.
    fn state(&self) -> SinkState;

    /// Announces topics in use (also of the backlog), so that their metadata is asked for early.
    fn announce(&mut self, topic: &str) {
        let _ = topic;
    }

    /// Everything handed over should leave now: linger is over, whatever is paused goes on.
    /// Returns at once; reports tell the rest. Called again at each look while flushing.
    fn hurry(&mut self);

    /// Starts to replace the instance. From here on `produce` says `Busy`; reports of the old
    /// instance still come out of `serve` until [`SinkState::rebuilding`] is false again. The
    /// old one gets up to 5 s to empty itself; what it doesn't report by then is never reported.
    fn rebuild(&mut self, now_ns: u64);

    /// Ends the sink without waiting for Kafka: what is handed over and unreported is abandoned
    /// (the flusher has it in the log, or counts it). Never reports anything afterwards.
    fn close(&mut self);
}
