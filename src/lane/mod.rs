//! The lanes: how a record gets from a caller's thread to the flusher without the caller waiting.
//!
//! Owns the hot path, the only code that runs on callers' threads. A lane is an `ArrayQueue` of
//! small descriptors and a share of a byte arena that was faulted in beforehand. Each thread has
//! one lane for life; several threads may share one. [`Lanes`] is the callers' side, [`Drain`]
//! the flusher's.
//!
//! A send takes three steps:
//! 1. *reserve*: one CAS on the reservation word takes a range of the arena, the next lane
//!    sequence and with it a slot of the queue, or refuses;
//! 2. *fill*: headers, key and value are copied into the range;
//! 3. *publish*: the descriptor is pushed onto the queue.
//!
//! The drain pops descriptors, reads the bytes in place and releases frames in any order. Bytes
//! and slots go back together, in lane-sequence order, by one store to the credits word.
//!
//! # Who may touch a range of the arena
//! From a successful reserve to the publish: the sender alone. From the pop to the release: the
//! drain alone. A range can be reserved again only after the credits word has passed it. The
//! unsafe code of this room rests on these three sentences.
//!
//! # Orderings
//! - *Publish*: `ArrayQueue::push` (release) to `ArrayQueue::pop` (acquire) carries the frame's
//!   bytes from sender to drain.
//! - *Credits*: the drain stores the credits word with Release after its last read of a frame;
//!   a sender loads it with Acquire before it reserves, so the drain's reads happen before the
//!   sender's writes.
//! - *Reservation*: the CAS is Relaxed. The word carries no data: whoever wins owns the range,
//!   and what was there before is ordered by the credits. The sender reads the reservation word
//!   first and the credits second; a credits word ahead of a stale reservation word shows as a
//!   huge difference and is retried.
//! - *Close*: `fetch_or` of the closed bit. All changes of one word have one order, so no
//!   reservation follows the bit: what the drain reads with the bit set is final. It is Release,
//!   and the refused sender reads the bit with Acquire, so that `stopped`, set before, is seen.
//! - *Push never fails*: a sender with a slot credit has at most `lane_slots - 1` records before
//!   it that are not released, and a record is popped before it is released. The pop happens
//!   before the credits were stored, so the ring's slot is seen as free. This also holds when
//!   senders push in another order than they reserved: the one that was overtaken reads the tail
//!   that the overtaker wrote, and so sees all that the overtaker saw.
//! - *Look*: the queue's length is read before the reservation word, so that reserved minus
//!   popped minus queued is never negative: the length's acquire shows every reservation that
//!   was made before a push that it counts.
//!
//! Each of these has a name in `orderings.rs`; loom weakens one after the other and sees a model
//! fail each time. Everything else is Relaxed: `stopped` stands behind the closed bit, counters of
//! refusals and the numbers of threads carry nothing.
//!
//! # Limits
//! A sender stopped between two instructions while a multiple of 2^32 units and 2^31 records
//! passes through its lane could take a stale reservation word for a fresh one; that is 64 GiB
//! and minutes. A sender stopped inside a push makes `pop` spin; one stopped before it leaves a
//! hole ([`LaneLook::oldest_unpopped`]).

mod arena;
mod drain;
mod fork;
mod lanes;
mod options;
mod order;
mod orderings;
mod slots;
mod thread_id;
mod word;

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;

pub use crate::record::NO_RECEIPT;
pub use drain::{Drain, Frame, LaneLook};
pub use lanes::{Lanes, OutRecord, SEND_ERRORS};
pub use options::LaneOptions;
