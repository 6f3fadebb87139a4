//! The seam to whatever takes the records: the trait [`Sink`] and the words of its answers.
//!
//! A sink is driven by the flusher alone, from one thread. It never waits inside any call
//! except [`Sink::close`].

pub use crate::record::{
    ANY_PARTITION, HEADER_NAME_BYTES_MAX, HEADERS_MAX, Header, Headers, RecordView, Shape, TopicId,
};
pub use crate::report::{Opaque, Outcome, Reason, Report, Scope};

use crate::error::ReloadError;
use std::sync::Arc;

mod memory;
pub use memory::{MemoryHandle, MemoryRecord, MemorySink};

#[cfg(all(feature = "kafka", feature = "internals"))]
pub mod kafka;
#[cfg(all(feature = "kafka", not(feature = "internals")))]
#[allow(dead_code, unused_imports)]
pub(crate) mod kafka;

#[cfg(any(feature = "embedded", all(test, feature = "kafka")))]
pub mod embedded;

/// Why the records of a silent partition are held.
pub const PARTITION_STALLED: &str = "partition_stalled";
/// Why the records of a partition are held that Kafka doesn't have.
pub const UNKNOWN_PARTITION: &str = "unknown_partition";

/// Why a sink did not take a record. The record was not handed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProduceError {
    /// Not now: no room, the partition is stalled, or the topic's partitions aren't known yet.
    /// Offer the same record again at a later look.
    Busy,
    /// Not this record, nor any other that must go to its partition: the partition has been silent
    /// for long while others are served, or Kafka doesn't have it. Go on with records of others.
    Stalled {
        /// The partition.
        partition: i32,
        /// Why: [`PARTITION_STALLED`], or [`UNKNOWN_PARTITION`].
        reason: Reason,
    },
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
    /// A broker refuses the login: which, and what it said.
    pub auth_failed: Option<String>,
    /// TLS with a broker fails: which, and why.
    pub tls_failed: Option<String>,
    /// The last reload that was taken over, by its number.
    pub reloads: u64,
    /// Records handed over and not yet reported.
    pub outstanding_records: u64,
    /// Records that a refused request held and that the sink sent again by itself, perhaps behind
    /// later ones of their partition.
    pub resent_records: u64,
}

/// The way to change a sink's properties while it runs, from any thread.
pub trait Reload: Send + Sync {
    /// Checks the changes, and has the sink go on with them. Doesn't wait for Kafka.
    ///
    /// # Errors
    /// See [`ReloadError`]; on an error nothing has changed.
    fn reload(&self, changes: &[(&str, &str)]) -> Result<(), ReloadError>;

    /// The number of the last one that succeeded; [`SinkState::reloads`] says when it is in use.
    fn asked(&self) -> u64;
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
    fn produce(
        &mut self,
        topic: &str,
        record: &RecordView<'_>,
        opaque: Opaque,
    ) -> Result<(), ProduceError>;

    /// The partition that the record went to that was taken last; [`ANY_PARTITION`] where a sink
    /// has none.
    fn last_partition(&self) -> i32 {
        ANY_PARTITION
    }

    /// The partition that this record must go to, by its own word or its key. `None` when the sink
    /// is free to choose, or doesn't know yet.
    fn partition_of(&self, topic: &str, record: &RecordView<'_>) -> Option<i32> {
        let _ = (topic, record);
        None
    }

    /// Whether a record of this partition is, or would be, answered with
    /// [`ProduceError::Stalled`].
    fn is_stalled(&self, topic: &str, partition: i32) -> bool {
        let _ = (topic, partition);
        false
    }

    /// Appends the reports that have come since the last call, without waiting, and does the
    /// sink's own upkeep (pausing silent partitions, metadata). Called at every look.
    fn serve(&mut self, now_ns: u64, reports: &mut Vec<Report>);

    /// Called before the flusher sleeps when a report may be waited for: a sink that can wake it
    /// does so through the waker it was built with. Returns the longest time,
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

    /// How to change its properties while it runs; `None` for a sink that has none.
    fn reloader(&self) -> Option<Arc<dyn Reload>> {
        None
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
