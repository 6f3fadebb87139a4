//! The lanes: how a record gets from a caller's thread to the flusher without the caller waiting.
//!
//! Owns the hot path, the only code that runs on callers' threads. A lane is a share of an arena
//! that was faulted in beforehand: bytes, and a ring of small descriptors, a *slot* for each lane
//! sequence. Each thread has one lane for life; several threads may share one. [`Lanes`] is the
//! callers' side, [`Drain`] the flusher's.
//!
//! A send takes three steps:
//! 1. *reserve*: one CAS on the reservation word takes a range of the arena and the next lane
//!    sequence, and with it its slot, or refuses;
//! 2. *fill*: headers, key and value are copied into the range, the descriptor into the slot;
//! 3. *publish*: the slot's stamp is stored.
//!
//! The drain looks which slots have their stamp, reads the bytes in place and releases frames in any
//! order. Bytes and slots go back together, in lane-sequence order, by one store to the credits
//! word. In which order records leave stands in `order.rs`.
//!
//! # Who may touch a range of the arena, and a slot
//! From a successful reserve to the publish: the sender alone. From the publish to the release: the
//! drain alone. Either can be reserved again only after the credits word has passed it. The
//! unsafe code of this room rests on these three sentences.
//!
//! # Orderings
//! - *Publish*: the stamp is stored with Release, after the frame's bytes and its descriptor; the
//!   drain loads it with Acquire before it reads either. Because it is an acquire, too, whoever has
//!   seen one record of a thread sees those that the thread published before.
//! - *Credits*: the drain stores the credits word with Release after its last read of a frame;
//!   a sender loads it with Acquire before it reserves, so the drain's reads happen before the
//!   sender's writes.
//! - *Reservation*: the CAS is Relaxed. The word carries no data: whoever wins owns the range,
//!   and what was there before is ordered by the credits. The sender reads the reservation word
//!   first and the credits second; a credits word ahead of a stale reservation word shows as a
//!   huge difference and is retried. The drain reads it Relaxed: it only says how far to look.
//! - *Close*: `fetch_or` of the closed bit. All changes of one word have one order, so no
//!   reservation follows the bit: what the drain reads with the bit set is final. It is Release,
//!   and the refused sender reads the bit with Acquire, so that `stopped`, set before, is seen.
//! - *A publish never fails*: a sender with a slot credit has at most `lane_slots - 1` records before
//!   it that are not released, so the one that had its slot a lap before is.
//! - *Look*: what is queued is what a scan below the reservation word found published: reserved
//!   minus popped minus queued is never negative, and what was published before the look began is
//!   found, since the look reads words that were written before it began.
//!
//! Each of these has a name in `orderings.rs`; loom weakens one after the other and sees a model
//! fail each time. The ring is ours, so the models run over it with the rest.
//! Everything else is Relaxed: `stopped` stands behind the closed bit, counters of refusals and the
//! numbers of threads carry nothing.
//!
//! # Limits
//! A sender stopped between two instructions while a multiple of 2^32 units and 2^31 records
//! passes through its lane could take a stale reservation word for a fresh one; that is 64 GiB
//! and minutes. A sender stopped anywhere between reserve and publish leaves a hole
//! ([`LaneLook::oldest_unpopped`]) and holds up nobody.

mod arena;
mod drain;
mod fork;
mod lanes;
mod options;
mod order;
mod orderings;
mod send;
mod slots;
mod thread_id;
mod word;

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;

pub use crate::record::NO_RECEIPT;
pub use drain::{Drain, Frame, LaneLook};
pub use lanes::{Lanes, SEND_ERRORS};
pub use options::LaneOptions;
pub use send::OutRecord;
