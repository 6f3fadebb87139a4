//! Owns the callers' side of all lanes but the send itself: which lane is whose, refusals, close.

use super::arena::{Arena, Share};
use super::options::LaneOptions;
use super::orderings::{Point, release};
use super::send::OutRecord;
use super::thread_id;
use super::word::{SEQ_MASK, UNIT_BYTES, Word};
use crate::error::SendError;
use crate::sync::{AtomicBool, AtomicU64, Ordering};
use std::io;
use std::sync::Arc;

/// How many reasons for a refusal there are; `refused()[i]` belongs to `SendError::ALL[i]`.
pub const SEND_ERRORS: usize = SendError::ALL.len();

/// On a pair of cache lines of its own: the hardware fetches lines in pairs.
#[repr(align(128))]
pub(super) struct Padded<T>(pub(super) T);

pub(super) struct Lane {
    /// What the next record gets. Written by senders and by close.
    pub(super) reservation: Padded<AtomicU64>,
    /// What the drain has given back. Written by the drain.
    pub(super) credits: Padded<AtomicU64>,
    refused: Padded<[AtomicU64; SEND_ERRORS]>,
    pub(super) share: Share,
    pub(super) units: u32,
    pub(super) slots: u32,
}

impl Lane {
    #[cold]
    #[inline(never)]
    pub(super) fn refuse(&self, reason: SendError) -> SendError {
        // The codes run from 1 without gaps, in the order of `ALL`; a test holds them to it.
        if let Some(count) = self.refused.0.get(reason as usize - 1) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        reason
    }
}

/// Where a lane begins to count.
#[derive(Clone, Copy, Default)]
pub(super) struct Start {
    pub(super) position: u32,
    pub(super) seq: u64,
}

/// The callers' side of all lanes; shared through an [`Arc`].
pub struct Lanes {
    pub(super) lanes: Box<[Lane]>,
    /// Their number, a power of two, less one.
    lane_mask: usize,
    pub(super) arena: Arena,
    pub(super) options: LaneOptions,
    pub(super) start: Start,
    /// Set before the lanes are closed when the flusher has panicked.
    pub(super) stopped: AtomicBool,
}

impl Lanes {
    /// The senders' side alone, with counters that begin anywhere. Options that `check` would
    /// refuse are safe, but some records may never fit.
    pub(super) fn senders(options: &LaneOptions, start: Start) -> io::Result<Arc<Lanes>> {
        let word = Word::new(start.position, start.seq as u32).0;
        let (bytes, slots) =
            (options.lanes * options.lane_bytes, options.lanes * options.lane_slots);
        let arena = Arena::new(bytes, slots, options.record_bytes_max)?;
        let lane = |number: usize| Lane {
            reservation: Padded(AtomicU64::new(word)),
            credits: Padded(AtomicU64::new(word)),
            refused: Padded(std::array::from_fn(|_| AtomicU64::new(0))),
            share: arena.share(
                number * options.lane_bytes,
                number * options.lane_slots,
                options.lane_slots,
            ),
            units: (options.lane_bytes / UNIT_BYTES) as u32,
            slots: options.lane_slots as u32,
        };
        Ok(Arc::new(Lanes {
            lanes: (0..options.lanes.max(1)).map(lane).collect(),
            lane_mask: options.lanes.max(1) - 1,
            arena,
            options: *options,
            start,
            stopped: AtomicBool::new(false),
        }))
    }

    /// Does now what the calling thread's first send would do: draws the thread's number.
    pub fn register_thread() {
        thread_id::current();
    }

    /// The calling thread's lane, by number.
    #[inline]
    pub fn lane_number(&self) -> usize {
        thread_id::current() as usize & self.lane_mask
    }

    /// The options that the lanes were made with.
    #[must_use]
    pub fn options(&self) -> &LaneOptions {
        &self.options
    }

    /// Takes a record, or refuses it and leaves the caller's data untouched. Never waits,
    /// allocates or locks, and makes no system call unless its lane is shared.
    ///
    /// # Errors
    /// Every reason of [`SendError`] but `NoReceipt` and `BadLength`; each is counted.
    #[inline]
    pub fn send(&self, r: &OutRecord<'_>) -> Result<(), SendError> {
        self.send_on(self.lane_of_thread(), r)
    }

    /// [`Lanes::send`] as a thread of this lane, for the simulator: it is all threads in one.
    #[cfg(test)]
    pub(crate) fn send_as(&self, lane: usize, r: &OutRecord<'_>) -> Result<(), SendError> {
        self.send_on(&self.lanes[lane], r)
    }

    /// [`Lanes::send_with`] as a thread of this lane.
    #[cfg(all(test, loom))]
    pub(super) fn send_with_as(
        &self,
        lane: usize,
        meta: &OutRecord<'_>,
        len_max: usize,
        f: impl FnOnce(&mut [u8]) -> usize,
    ) -> Result<(), SendError> {
        self.send_with_on(&self.lanes[lane], meta, len_max, f)
    }

    /// Takes a record whose value `f` writes in place: `f` gets `len_max` bytes with arbitrary
    /// old contents and returns how many from the front are the value. `meta.value` is ignored.
    /// When `f` panics, the panic goes on to the caller and no record was sent. Records that
    /// this thread sends inside `f` come before this one.
    ///
    /// # Errors
    /// As `send`, and `BadLength` when `f` returns more than `len_max`.
    pub fn send_with(
        &self,
        meta: &OutRecord<'_>,
        len_max: usize,
        f: impl FnOnce(&mut [u8]) -> usize,
    ) -> Result<(), SendError> {
        self.send_with_on(self.lane_of_thread(), meta, len_max, f)
    }

    #[inline]
    fn lane_of_thread(&self) -> &Lane {
        // SAFETY: `lane_mask` is the number of lanes, at least one, less one.
        unsafe { self.lanes.get_unchecked(self.lane_number()) }
    }

    /// Refuses every later send with `Closed`. What was accepted before stays accepted.
    pub fn close(&self) {
        for lane in &self.lanes {
            lane.reservation.0.fetch_or(Word::CLOSED, release(Point::Close));
        }
    }

    /// As [`Lanes::close`], but later sends say `Stopped`: the flusher has panicked.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.close();
    }

    /// Takes back a refusal that this thread just got: it tries the same record again.
    pub fn forgive_refusal(&self, reason: SendError) {
        let lane = self.lane_of_thread();
        lane.refused.0[reason as usize - 1].fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts a refusal that was decided outside the lanes (`NoReceipt`), and hands it back.
    pub fn count_refusal(&self, reason: SendError) -> SendError {
        self.lane_of_thread().refuse(reason)
    }

    /// Records reserved since the sum of all lane sequences, modulo 2^31, was that of `before`.
    pub fn reserved_since(&self, before: u32) -> u64 {
        let of = |lane: &Lane| Word(lane.reservation.0.load(Ordering::Relaxed)).seq();
        let now = self.lanes.iter().map(of).fold(0, u32::wrapping_add);
        u64::from(now.wrapping_sub(before) & SEQ_MASK)
    }

    /// Refusals by reason so far, in the order of [`SendError::ALL`].
    #[must_use]
    pub fn refused(&self) -> [u64; SEND_ERRORS] {
        let mut sums = [0; SEND_ERRORS];
        for lane in &self.lanes {
            for (sum, count) in sums.iter_mut().zip(&lane.refused.0) {
                *sum += count.load(Ordering::Relaxed);
            }
        }
        sums
    }
}

impl std::fmt::Debug for Lanes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lanes").field("options", &self.options).finish_non_exhaustive()
    }
}
