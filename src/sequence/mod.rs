//! The one pure state machine: which record is produced, journaled, released, and when it is
//! final. No I/O, no clock, no unsafe. Flusher and simulator drive this very code.
//!
//! One sequence of numbers ([`crate::record::Lsn`]), three cursors:
//!
//! | cursor | the next record to |
//! |---|---|
//! | `produced` | hand to the sink |
//! | `journaled` | put into the log |
//! | `acked` | become final: everything below it is |
//!
//! Where live records go first there is a fourth, `live`, which walks memory only: `live.rs`.
//!
//! There are no modes. "Direct" is `produced` ahead of `journaled`, "spilling" the reverse,
//! "replay" is `produced` walking frames of the log, a rebuild sets `produced` back to `acked`.
//!
//! Rules (each has a switch under `cfg(test)` that turns it off, and a test that sees it
//! missed):
//! 1. **Journal order.** A record enters the log only after every earlier record that is not
//!    final has entered it.
//! 2. **Produced once.** Within one instance each number is produced once, unless its report
//!    says that it was not persisted. What may be persisted waits for a new instance.
//! 3. **Span.** At most `in_flight_max_records` numbers and `in_flight_max_bytes` bytes lie
//!    between `acked` and `produced`.
//! 4. **Release after journal.** An arena frame is released once its record is final or the
//!    log has it, never before.
//! 5. **Live beside the backlog.** What the `live` cursor took is never read back from the log;
//!    `acked` is below what is open of either line; no record of the backlog goes before an older
//!    live one.

mod books;
mod cursors;
mod inflight;
mod live;
pub mod policy;
mod words;

pub use books::{Books, Counts, TopicBooks};
#[cfg(test)]
pub(crate) use cursors::Broken;
pub use cursors::Sequence;
pub use inflight::Line;
pub use words::{Backlog, End, Finished, Journal, Limits, Next, Popped, Source, Verdict};

#[cfg(test)]
mod tests;
