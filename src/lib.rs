//! Forebay: records from request handlers to Kafka, without ever making the handler wait.

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
    clock;
    config;
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
#[cfg(test)]
mod sim;
pub mod sink;
mod sync;

pub use builder::Builder;
pub use config::Partitioner;
pub use error::{ConfigError, OpenError, SendError, TopicError};
pub use pipeline::{CloseError, FlushError, NotReady, Pipeline};
pub use receipt::{Level, Receipt, ReceiptError};
pub use sink::MemorySink;
pub use stats::{BookTotals, CloseReport, Percentiles, States, Stats, TopicStats, WalStats};
pub use topic::{Record, Topic};
