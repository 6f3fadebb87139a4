//! Owns the ring of a lane: one slot for each lane sequence, which the reservation hands out.
//!
//! The sender of sequence `s` writes the descriptor into slot `s mod lane_slots` and then the
//! *stamp*, which names `s`. Whoever reads that stamp may read the descriptor. Nothing is taken
//! twice and nothing waits: there is no second counter that senders share.
//!
//! ```text
//!  63                            33   32  31                              1   0
//! +---------------------------------+---+-----------------------------------+---+
//! |  `behind`: a lane sequence      | B |  the record's lane sequence       | 1 |
//! +---------------------------------+---+-----------------------------------+---+
//! ```
//! A slot holds the stamp of this lap or of the one before, or zero, which is nobody's. `B` says
//! that the record's closure ran while others reserved: see [`super::order`].
//!
//! A slot has a cache line of its own: two senders of one lane write to two lines.

use super::orderings::{Point, acquire, release};
use super::word::widen;
use crate::record::{Shape, TopicId};
use crate::sync::AtomicU64;

/// What a slot tells of a record: where its bytes lie, and all about it but them.
#[derive(Clone, Copy)]
pub(super) struct Descriptor {
    pub(super) timestamp_ms: i64,
    pub(super) topic: TopicId,
    pub(super) partition: i32,
    /// The unit at which the body begins, within the lane's arena.
    pub(super) at: u32,
    /// Units reserved, those skipped at the arena's end included; [`PADDING`] may be set.
    pub(super) span: u32,
    pub(super) headers_len: u32,
    /// The key's length plus one, and 0 for none: without key and headers it is one store of zero.
    pub(super) key_len_plus_one: u32,
    /// [`NULL`] for none.
    pub(super) value_len: u32,
    pub(super) receipt: u32,
}

/// A value's length when it is null.
pub(super) const NULL: u32 = u32::MAX;
/// Set in a descriptor's `span` when the frame holds no record.
pub(super) const PADDING: u32 = 1 << 31;

impl Descriptor {
    pub(super) fn shape(&self) -> Shape {
        Shape {
            headers_len: self.headers_len,
            key_len: self.key_len_plus_one.checked_sub(1),
            value_len: (self.value_len != NULL).then_some(self.value_len),
        }
    }
}

/// What a slot says of a lane sequence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mark {
    /// Its sender is not done yet.
    Open,
    /// It is published.
    Published,
    /// It is published, and comes behind what its sender sent below this lane sequence.
    Behind(u64),
}

/// The stamp of a lane sequence.
#[derive(Clone, Copy)]
pub(super) struct Stamp(u64);

impl Stamp {
    /// Of twice a lane sequence, as the reservation word has it.
    #[inline]
    pub(super) fn of(twice_seq: u32) -> Stamp {
        Stamp(u64::from(twice_seq | 1))
    }

    /// As `of`, for a record that comes behind what its sender sent below another sequence.
    #[inline]
    pub(super) fn behind(twice_seq: u32, twice_behind: u32) -> Stamp {
        Stamp(u64::from(twice_behind | 1) << 32 | u64::from(twice_seq | 1))
    }
}

/// One slot.
#[repr(C, align(64))]
pub(super) struct Slot {
    stamp: AtomicU64,
    descriptor: Cell,
}

#[cfg(loom)]
type Cell = loom::cell::UnsafeCell<Option<Descriptor>>;
#[cfg(not(loom))]
type Cell = std::cell::UnsafeCell<std::mem::MaybeUninit<Descriptor>>;

// SAFETY: the descriptor is written by the one sender that reserved its sequence, and read by the
// drain after it has seen the stamp; the credits order the next lap's write after that read.
unsafe impl Sync for Slot {}

// Its address is a sequence, shifted and masked.
#[cfg(not(loom))]
const _: () = assert!(size_of::<Slot>() == 64);

impl Slot {
    /// A slot that nobody has used. In mapped memory, zeroes are one.
    #[cfg(any(loom, miri))]
    pub(super) fn new() -> Slot {
        #[cfg(loom)]
        let descriptor = Cell::new(None);
        #[cfg(not(loom))]
        let descriptor = Cell::new(std::mem::MaybeUninit::uninit());
        Slot { stamp: AtomicU64::new(0), descriptor }
    }

    /// Writes what a record's slot is to tell.
    ///
    /// # Safety
    /// The caller has reserved a sequence whose slot this is, and has not published it yet.
    #[inline]
    pub(super) unsafe fn write(&self, descriptor: Descriptor) {
        // SAFETY: until the stamp is stored nobody else reads or writes it: the sequence is the
        // caller's, and that of the lap before was given back by the credits that it has seen.
        #[cfg(loom)]
        self.descriptor.with_mut(|d| unsafe { *d = Some(descriptor) });
        #[cfg(not(loom))]
        // SAFETY: as above.
        unsafe {
            (*self.descriptor.get()).write(descriptor);
        }
    }

    /// Changes what was written as padding to a record of this value.
    ///
    /// # Safety
    /// As for `write`, which was called.
    #[inline]
    pub(super) unsafe fn set_lengths(&self, span: u32, value_len: u32) {
        let set = |d: &mut Descriptor| (d.span, d.value_len) = (span, value_len);
        // SAFETY: as in `write`.
        #[cfg(loom)]
        self.descriptor.with_mut(|d| unsafe { (*d).iter_mut().for_each(set) });
        #[cfg(not(loom))]
        // SAFETY: as in `write`; it is initialised since then.
        set(unsafe { (*self.descriptor.get()).assume_init_mut() });
    }

    /// Publishes the record that the slot tells of.
    ///
    /// # Safety
    /// As for `write`, which was called; `stamp` names the sequence.
    #[inline]
    pub(super) unsafe fn publish(&self, stamp: Stamp) {
        self.stamp.store(stamp.0, release(Point::Publish));
    }

    /// What the slot says of `seq`.
    #[inline]
    pub(super) fn mark(&self, seq: u64) -> Mark {
        let stamp = self.stamp.load(acquire(Point::Published));
        if stamp as u32 != (seq as u32) << 1 | 1 {
            return Mark::Open;
        }
        match (stamp >> 32) as u32 {
            0 => Mark::Published,
            behind => Mark::Behind(widen(seq, behind >> 1)),
        }
    }

    /// The descriptor.
    ///
    /// # Safety
    /// The drain has seen this lap's stamp, and has not given the slot back since.
    #[inline]
    pub(super) unsafe fn descriptor(&self) -> Descriptor {
        // SAFETY: the caller's promise: the sender wrote it before the stamp, and the next lap's
        // waits for the credits.
        #[cfg(loom)]
        return self.descriptor.with(|d| unsafe { *d }).expect("the stamp was seen");
        #[cfg(not(loom))]
        // SAFETY: as above.
        return unsafe { (*self.descriptor.get()).assume_init_read() };
    }
}
