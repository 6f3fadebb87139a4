//! Owns the callers' side: reserve, fill, publish, refuse, close.

use super::arena::{self, Arena, Share};
use super::options::LaneOptions;
use super::orderings::{Point, acquire, release};
use super::slots::{Descriptor, NULL, PADDING, Slot, Stamp};
use super::thread_id;
use super::word::{SEQ_MASK, UNIT_BYTES, Word, units_of};
use crate::error::SendError;
use crate::record::{ANY_PARTITION, HEADERS_MAX, Header, TopicId};
use crate::sync::{AtomicBool, AtomicU64, Ordering};
use std::io;
use std::sync::Arc;

/// How many reasons for a refusal there are; `refused()[i]` belongs to `SendError::ALL[i]`.
pub const SEND_ERRORS: usize = SendError::ALL.len();

/// A record on its way in: borrowed until `send` returns.
#[derive(Clone, Copy, Debug)]
pub struct OutRecord<'a> {
    /// The topic.
    pub topic: TopicId,
    /// An explicit partition, or [`ANY_PARTITION`].
    pub partition: i32,
    /// CreateTime: milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
    /// The key; null differs from empty.
    pub key: Option<&'a [u8]>,
    /// The value; null is a tombstone.
    pub value: Option<&'a [u8]>,
    /// The headers, in order.
    pub headers: &'a [Header<'a>],
    /// The receipt that waits for this record, or [`crate::record::NO_RECEIPT`].
    pub receipt: u32,
}

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
    units: u32,
    slots: u32,
}

impl Lane {
    /// Where a body of `units` goes within the lane, and how many units it takes with those
    /// skipped before it; `None` when the lane has no room for it.
    #[inline]
    fn room(&self, units: u32, seen: Word, credits: Word) -> Option<(u32, u32)> {
        let offset = seen.position() & (self.units - 1);
        // A body lies in one piece: what doesn't fit before the end goes to the start.
        let skip = if units > self.units - offset { self.units - offset } else { 0 };
        let span = skip + units;
        // In 64 bits: a stale word makes the first term as large as a u32 can be.
        let used_units = u64::from(seen.units_since(credits)) + u64::from(span);
        let has_room =
            used_units <= u64::from(self.units) && seen.records_since(credits) < self.slots;
        has_room.then_some(((offset + skip) & (self.units - 1), span))
    }

    /// One try for what nearly every send meets: an open lane, with room before the arena's end.
    /// `None` leaves everything else to [`Lanes::reserve_again`].
    #[inline]
    fn reserve_plain(&self, units: u32) -> Option<Reserved> {
        let seen = Word(self.reservation.0.load(Ordering::Relaxed));
        let credits = Word(self.credits.0.load(acquire(Point::CreditsToReserve)));
        let at = seen.position() & (self.units - 1);
        // In 64 bits: see `room`.
        let used_units = u64::from(seen.units_since(credits)) + u64::from(units);
        let is_plain = used_units <= u64::from(self.units)
            && at + units <= self.units
            && seen.records_since_if_open(credits) < self.slots;
        if !is_plain {
            return None;
        }
        self.exchange(seen, Reserved { at, span: units, twice_seq: seen.0 as u32 })
    }

    #[inline]
    fn exchange(&self, seen: Word, reserved: Reserved) -> Option<Reserved> {
        let next = seen.after(reserved.span);
        self.reservation
            .0
            .compare_exchange(seen.0, next.0, Ordering::Relaxed, Ordering::Relaxed)
            .ok()
            .map(|_| reserved)
    }

    #[cold]
    #[inline(never)]
    fn refuse(&self, reason: SendError) -> SendError {
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
    stopped: AtomicBool,
}

/// A range that this thread alone may write, until it is published.
#[derive(Clone, Copy)]
struct Reserved {
    at: u32,
    span: u32,
    /// The lane sequence as it stands in an open lane's word.
    twice_seq: u32,
}

impl Reserved {
    /// Where a next record would begin whose body is as long as this one. Its cache lines, and its
    /// slot's, were last in the drain's cache: each send asks for those of the next, since a
    /// reservation waits until the stores before it are done.
    #[inline]
    fn behind(&self, body: &[u8]) -> *const u8 {
        body.as_ptr().wrapping_add(self.span as usize * UNIT_BYTES)
    }
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
        unsafe { self.lanes.get_unchecked(thread_id::current() as usize & self.lane_mask) }
    }

    #[inline]
    fn send_on(&self, lane: &Lane, r: &OutRecord<'_>) -> Result<(), SendError> {
        let Some(value) = r.value else {
            return self.send_any(lane, r);
        };
        if !r.headers.is_empty() {
            return self.send_any(lane, r);
        }
        match r.key {
            None => self.send_plain(lane, r, &[], value),
            Some(key) => self.send_keyed(lane, r, key, value),
        }
    }

    #[inline(never)]
    fn send_keyed(
        &self,
        lane: &Lane,
        r: &OutRecord<'_>,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), SendError> {
        self.send_plain(lane, r, key, value)
    }

    /// A record of `key`, which is `r.key` or empty, and `value`, which is `r.value`.
    #[inline(always)]
    fn send_plain(
        &self,
        lane: &Lane,
        r: &OutRecord<'_>,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), SendError> {
        let body_len = key.len() + value.len();
        // One comparison for what is too long and for a fork.
        if r.partition < ANY_PARTITION || body_len >= self.arena.body_end() {
            return self.send_any(lane, r);
        }
        let reserved = self.reserve(lane, body_len)?;
        // SAFETY: range and slot were just reserved, the length was below `body_end`, so that this
        // is no fork, and they are published here and nowhere else.
        unsafe {
            let slot = self.slot(lane, reserved);
            // Before the bytes: copying them is a call, and then less is kept over it.
            slot.write(describe(r, reserved, 0, value.len() as u32));
            let body = self.body_mut(lane, reserved, body_len);
            let next = reserved.behind(body);
            let (front, rest) = body.split_at_mut(key.len());
            // Not a copy of nothing: that is a call, too.
            if !key.is_empty() {
                front.copy_from_slice(key);
            }
            rest.copy_from_slice(value);
            slot.publish(Stamp::of(reserved.twice_seq));
            arena::prefetch(next, reserved.span, slot);
        }
        Ok(())
    }

    /// A record with headers or without a value, or one that is refused.
    #[inline(never)]
    fn send_any(&self, lane: &Lane, r: &OutRecord<'_>) -> Result<(), SendError> {
        let value = r.value.unwrap_or(&[]);
        let (headers_len, front_len) = self.check(lane, r, value.len())?;
        let body_len = front_len + value.len();
        let reserved = self.reserve(lane, body_len)?;
        let value_len = if r.value.is_some() { value.len() as u32 } else { NULL };
        // SAFETY: as in `send_plain`; `check` has seen that this is no fork.
        unsafe {
            let slot = self.slot(lane, reserved);
            slot.write(describe(r, reserved, headers_len as u32, value_len));
            let body = self.body_mut(lane, reserved, body_len);
            let next = reserved.behind(body);
            fill_front(body, r).copy_from_slice(value);
            slot.publish(Stamp::of(reserved.twice_seq));
            arena::prefetch(next, reserved.span, slot);
        }
        Ok(())
    }

    fn send_with_on(
        &self,
        lane: &Lane,
        meta: &OutRecord<'_>,
        len_max: usize,
        f: impl FnOnce(&mut [u8]) -> usize,
    ) -> Result<(), SendError> {
        let (headers_len, front_len) = self.check(lane, meta, len_max)?;
        let body_len = front_len + len_max;
        let reserved = self.reserve(lane, body_len)?;
        let mut open = Open {
            lanes: self,
            lane,
            reserved,
            next: std::ptr::null(),
            descriptor: describe(meta, reserved, 0, NULL),
        };
        open.descriptor.span |= PADDING;
        // SAFETY: the range was just reserved, and `check` has seen that this is no fork. `open`
        // publishes it only after `body` is gone.
        let body = unsafe { self.body_mut(lane, reserved, body_len) };
        open.next = reserved.behind(body);
        let value_len = f(fill_front(body, meta));
        if self.arena.is_forked() {
            return Err(lane.refuse(SendError::Forked));
        }
        if value_len > len_max {
            drop(open);
            return Err(lane.refuse(SendError::BadLength));
        }
        open.descriptor.span = reserved.span;
        open.descriptor.headers_len = headers_len as u32;
        open.descriptor.value_len = value_len as u32;
        drop(open);
        Ok(())
    }

    /// # Safety
    /// `reserved` is on `lane`, and this process is no fork.
    #[inline]
    unsafe fn slot(&self, lane: &Lane, reserved: Reserved) -> &Slot {
        // SAFETY: the share is the lane's; the rest is the caller's promise.
        unsafe { self.arena.slot(&lane.share, reserved.twice_seq) }
    }

    /// Checks everything but the room; returns the bytes of the encoded headers, and of all that
    /// stands before the value. After it, these and the value's are at most `record_bytes_max`
    /// together, and this process is no fork.
    #[inline]
    fn check(
        &self,
        lane: &Lane,
        r: &OutRecord<'_>,
        value_len: usize,
    ) -> Result<(usize, usize), SendError> {
        let body_end = self.arena.body_end();
        if body_end == 0 {
            return Err(lane.refuse(SendError::Forked));
        }
        if r.partition < ANY_PARTITION {
            return Err(lane.refuse(SendError::BadPartition));
        }
        let headers_len = if r.headers.is_empty() {
            0
        } else {
            headers_len(r.headers).ok_or_else(|| lane.refuse(SendError::BadHeader))?
        };
        let front_len = headers_len + r.key.map_or(0, <[u8]>::len);
        // Saturating: `len_max` is the caller's number, not the length of anything.
        if front_len.saturating_add(value_len) >= body_end {
            return Err(lane.refuse(SendError::TooLarge));
        }
        Ok((headers_len, front_len))
    }

    /// Takes a range for `body_len` bytes, a sequence number and a slot, or says why not.
    #[inline]
    fn reserve(&self, lane: &Lane, body_len: usize) -> Result<Reserved, SendError> {
        let units = units_of(body_len);
        // One try here, all others out of line: a loop would make every send keep more at hand.
        match lane.reserve_plain(units) {
            Some(reserved) => Ok(reserved),
            None => self.reserve_again(lane, units),
        }
    }

    /// Tries until it has a range, or the lane is closed or full: it is, when the reservation
    /// word didn't change over a look at the credits. Each retry means that someone else got on.
    #[cold]
    #[inline(never)]
    fn reserve_again(&self, lane: &Lane, units: u32) -> Result<Reserved, SendError> {
        loop {
            let seen = Word(lane.reservation.0.load(acquire(Point::ClosedSeen)));
            if seen.is_closed() {
                let stopped = self.stopped.load(Ordering::Relaxed);
                let reason = if stopped { SendError::Stopped } else { SendError::Closed };
                return Err(lane.refuse(reason));
            }
            let credits = Word(lane.credits.0.load(acquire(Point::CreditsToRetry)));
            match lane.room(units, seen, credits) {
                Some((at, span)) => {
                    let reserved = Reserved { at, span, twice_seq: seen.0 as u32 };
                    if let Some(reserved) = lane.exchange(seen, reserved) {
                        return Ok(reserved);
                    }
                }
                None if lane.reservation.0.load(Ordering::Relaxed) == seen.0 => {
                    return Err(lane.refuse(SendError::Full));
                }
                None => {}
            }
        }
    }

    /// # Safety
    /// `reserved` is this thread's, on `lane`, for at least `len` bytes, not yet published, and
    /// this process is no fork.
    #[inline]
    #[allow(clippy::mut_from_ref)]
    unsafe fn body_mut(&self, lane: &Lane, reserved: Reserved, len: usize) -> &mut [u8] {
        let offset = reserved.at as usize * UNIT_BYTES;
        // SAFETY: a reserved range belongs to its sender until it is published; the credits were
        // loaded with Acquire, so all earlier accesses happen before. It lies within the lane.
        unsafe { self.arena.bytes_mut(&lane.share, offset, len) }
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

/// A reserved frame whose closure may panic: dropped, it is published, as padding unless the
/// closure came back with a length.
struct Open<'a> {
    lanes: &'a Lanes,
    lane: &'a Lane,
    reserved: Reserved,
    /// See [`Reserved::behind`].
    next: *const u8,
    descriptor: Descriptor,
}

impl Drop for Open<'_> {
    #[inline]
    fn drop(&mut self) {
        // The closure may have forked: a child has no slots.
        if self.lanes.arena.is_forked() {
            return;
        }
        // Whatever this thread has sent meanwhile lies below this sequence.
        let head = self.lane.reservation.0.load(Ordering::Relaxed) as u32 & !(Word::CLOSED as u32);
        let twice_seq = self.reserved.twice_seq;
        let stamp = if head == twice_seq.wrapping_add(2) {
            Stamp::of(twice_seq)
        } else {
            Stamp::behind(twice_seq, head)
        };
        // SAFETY: `reserved` is this frame's alone and published here only; no fork.
        unsafe {
            let slot = self.lanes.slot(self.lane, self.reserved);
            slot.write(self.descriptor);
            slot.publish(stamp);
            arena::prefetch(self.next, self.reserved.span, slot);
        }
    }
}

#[inline]
fn describe(r: &OutRecord<'_>, reserved: Reserved, headers_len: u32, value_len: u32) -> Descriptor {
    Descriptor {
        timestamp_ms: r.timestamp_ms,
        topic: r.topic,
        partition: r.partition,
        at: reserved.at,
        span: reserved.span,
        headers_len,
        key_len: r.key.map_or(NULL, |key| key.len() as u32),
        value_len,
        receipt: r.receipt,
    }
}

/// Writes headers and key to the front of a body and returns the rest.
#[inline]
fn fill_front<'b>(body: &'b mut [u8], r: &OutRecord<'_>) -> &'b mut [u8] {
    let mut rest = body;
    for header in r.headers {
        let len = header.encode(rest);
        rest = &mut rest[len..];
    }
    let (front, rest) = rest.split_at_mut(r.key.map_or(0, <[u8]>::len));
    front.copy_from_slice(r.key.unwrap_or(&[]));
    rest
}

/// The bytes of the encoded headers, or `None` if one is bad or there are too many.
#[inline(never)]
fn headers_len(headers: &[Header<'_>]) -> Option<usize> {
    if headers.len() > HEADERS_MAX || !headers.iter().all(Header::is_valid) {
        return None;
    }
    Some(headers.iter().map(Header::encoded_len).sum())
}
