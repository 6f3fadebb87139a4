//! Forebay: records from request handlers to Kafka, without ever making the handler wait.
//!
//! A send copies the record into a lane, memory that was faulted in beforehand, and returns. One
//! thread takes the records from there to Kafka. What Kafka can't take within a second goes into
//! a write-ahead log on disk, and from there to Kafka, in order, when it can. In a healthy run
//! the log is never written.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use forebay::{Level, MemorySink, Pipeline};
//! use std::time::Duration;
//!
//! # let home = tempfile::tempdir()?;
//! # let dir = home.path().join("wal");
//! let pipeline = Pipeline::builder()
//!     .wal_dir(&dir)                        // at-least-once; or .at_most_once()
//!     .sink(MemorySink::new())              // in a program: .brokers("localhost:9092")
//!     .open()?;                             // doesn't wait for Kafka
//! let clicks = pipeline.topic("clicks")?;   // once; cheap to clone, usable from any thread
//!
//! clicks.send(b"payload")?;                 // never waits: takes it, or refuses with a reason
//! clicks.record(b"payload").key(b"user-7").header("v", b"1").send()?;
//! clicks.tombstone(b"user-6")?;
//! let receipt = clicks.record(b"vote").send_tracked()?;
//! receipt.wait(Level::Delivered, Duration::from_secs(10))?;
//!
//! let report = pipeline.close(Duration::from_secs(5))?;
//! let books = report.stats.books;
//! assert_eq!((books.accepted, books.delivered), (4, 4));
//! assert!(books.balanced() && report.complete);
//! # Ok(())
//! # }
//! ```
//!
//! # What may be lost
//! - With [`Builder::wal_dir`]: nothing in an outage. A crash of the process costs at most what
//!   was sent within [`Builder::loss_window`] (1 s); a power cut also what the log took since
//!   its last sync ([`Builder::sync_interval`]). When the disk doesn't keep up, the window
//!   doesn't hold, and [`States::exposed`] says so.
//! - With [`Builder::at_most_once`]: what Kafka has not acknowledged, when the process dies or
//!   closes. In an outage the lanes fill, and [`SendError::Full`] is the answer.
//!
//! Records of one thread with one key, or with one partition given by the caller, arrive for
//! the first time in the order in which they were sent, also after an outage or a crash.
//! Delivery is at least once: duplicates may come after a crash or when the producer is
//! replaced. README.md has the limits in full, DESIGN.md how it is done and what proves it.
//!
//! # Whoever waits
//! [`Topic::send`] and its kin never do. [`Topic::send_timeout`] may, for room;
//! [`Receipt::wait`], [`Pipeline::ready`], [`Pipeline::flush`] and [`Pipeline::close`] do, each
//! no longer than it is told (`close` gives the log 2 s more). Dropping a pipeline doesn't wait
//! for Kafka.
//!
//! # Where records end
//! [`Pipeline::stats`] has the books: in each snapshot what was accepted and recovered equals
//! what was delivered, set aside and dropped and what is still on its way. Nothing is given up
//! without a counter and a reason.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use forebay::sink::Scope;
//! use forebay::{MemorySink, Pipeline};
//! use std::time::Duration;
//!
//! let sink = MemorySink::new();
//! let kafka = sink.handle(); // stays usable: it shows the records and injects trouble
//! let pipeline = Pipeline::builder().at_most_once().sink(sink).open()?;
//! let topic = pipeline.topic("t")?;
//! kafka.fail_next(1, Scope::Record, "record_invalid");
//! topic.send(b"bad")?;
//! topic.send(b"good")?;
//! pipeline.flush(Duration::from_secs(5))?;
//!
//! assert_eq!(kafka.records()[0].value.as_deref(), Some(&b"good"[..]));
//! let stats = pipeline.stats();
//! assert_eq!(stats.topics[0].dropped, [("record_invalid", 1)]); // set aside, had it a log
//! assert!(stats.books.balanced());
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//! - `kafka` (default): the real sink, librdkafka built from source. Without it a pipeline
//!   needs a [`Builder::sink`].
//! - `embedded`: librdkafka's mock cluster, for measurements and tests.
//! - `internals`: shows the rooms below this face to benches and fuzz targets. Nothing in them
//!   is stable.

// A library prints nothing; what it has to say goes to `tracing` and `stats()`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!(
    "forebay needs 64-bit Linux 5.14 or later: its arenas and its log rely on madvise calls that nothing else has"
);

/// Declares a room: private, or public under the feature `internals`.
macro_rules! rooms {
    ($($(#[$meta:meta])* $name:ident;)*) => {$(
        #[cfg(feature = "internals")]
        #[doc(hidden)]
        #[allow(missing_docs)]
        $(#[$meta])*
        pub mod $name;
        #[cfg(not(feature = "internals"))]
        #[allow(dead_code, unused_imports)]
        $(#[$meta])*
        mod $name;
    )*};
}

rooms! {
    builder;
    chance;
    clock;
    config;
    drill;
    error;
    flusher;
    keeper;
    lane;
    pipeline;
    receipt;
    record;
    report;
    sequence;
    topic;
    shared;
    stats;
    thread;
    topics;
    wake;
    wal;
}
pub mod inspect;
pub mod redrive;
#[cfg(test)]
mod sim;
pub mod sink;
mod sync;
pub mod verify;

pub use builder::Builder;
pub use config::{Order, Overflow, Partitioner, WalFull};
pub use drill::{DrillError, DrillReport, Outage};
pub use error::{ConfigError, OpenError, ReloadError, SendError, TopicError};
pub use pipeline::{CloseError, FlushError, NotReady, Pipeline};
pub use receipt::{Level, Receipt, ReceiptError};
pub use sink::MemorySink;
pub use stats::{
    BookTotals, CloseReport, Filesystem, FilesystemKind, Percentiles, States, Stats, TopicStats,
    WalStats,
};
pub use topic::{Record, Topic};
