//! Owns a send: reserve, fill, publish, or refuse. What every record pays for is counted in
//! `benches/instructions.txt`; so what is rare stands out of line.

use super::arena;
use super::lanes::{Lane, Lanes};
use super::orderings::{Point, acquire};
use super::slots::{Descriptor, NULL, PADDING, Slot, Stamp};
use super::word::{UNIT_BYTES, Word, units_of};
use crate::error::SendError;
use crate::record::{ANY_PARTITION, HEADERS_MAX, Header, TopicId};
use crate::sync::Ordering;

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

/// A range that this thread alone may write, until it is published.
#[derive(Clone, Copy)]
struct Reserved {
    at: u32,
    span: u32,
    /// The lane sequence as it stands in an open lane's word.
    twice_seq: u32,
}

impl Reserved {
    /// Asks for the cache lines of a next record whose body is as long as this one, and of its slot.
    /// They were last in the drain's cache; the next reservation waits until its stores are done.
    #[inline]
    fn prefetch_next(&self, body: &[u8], slot: &Slot) {
        let next = body.as_ptr().wrapping_add(self.span as usize * UNIT_BYTES);
        arena::prefetch(next, self.span, slot);
    }
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
}

impl Lanes {
    #[inline]
    pub(super) fn send_on(&self, lane: &Lane, r: &OutRecord<'_>) -> Result<(), SendError> {
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
            // Before the bytes: copying them is a call, and so less is kept over it.
            slot.write(describe(r, reserved, 0, value.len() as u32));
            let body = self.body_mut(lane, reserved, body_len);
            reserved.prefetch_next(body, slot);
            let (front, rest) = body.split_at_mut(key.len());
            // Not a copy of nothing: that is a call, too.
            if !key.is_empty() {
                front.copy_from_slice(key);
            }
            rest.copy_from_slice(value);
            slot.publish(Stamp::of(reserved.twice_seq));
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
            reserved.prefetch_next(body, slot);
            fill_front(body, r).copy_from_slice(value);
            slot.publish(Stamp::of(reserved.twice_seq));
        }
        Ok(())
    }

    pub(super) fn send_with_on(
        &self,
        lane: &Lane,
        meta: &OutRecord<'_>,
        len_max: usize,
        f: impl FnOnce(&mut [u8]) -> usize,
    ) -> Result<(), SendError> {
        let (headers_len, front_len) = self.check(lane, meta, len_max)?;
        let body_len = front_len + len_max;
        let reserved = self.reserve(lane, body_len)?;
        // SAFETY: range and slot were just reserved, and `check` has seen that this is no fork.
        // `open` publishes them only after `body` is gone.
        let (slot, body) = unsafe {
            let slot = self.slot(lane, reserved);
            let padding = Reserved { span: reserved.span | PADDING, ..reserved };
            slot.write(describe(meta, padding, headers_len as u32, NULL));
            (slot, self.body_mut(lane, reserved, body_len))
        };
        reserved.prefetch_next(body, slot);
        let open = Open { lanes: self, lane, slot, twice_seq: reserved.twice_seq };
        let value_len = f(fill_front(body, meta));
        if self.arena.is_forked() {
            return Err(lane.refuse(SendError::Forked));
        }
        if value_len > len_max {
            drop(open);
            return Err(lane.refuse(SendError::BadLength));
        }
        // SAFETY: as above, and it is published when `open` is dropped.
        unsafe { slot.set_lengths(reserved.span, value_len as u32) };
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
        let key_len = r.key.map_or(0, <[u8]>::len);
        // Saturating: `len_max` is the caller's number, not the length of anything.
        let is_short = key_len.saturating_add(value_len) < self.arena.body_end();
        if r.headers.is_empty() && r.partition >= ANY_PARTITION && is_short {
            return Ok((0, key_len));
        }
        self.check_rare(lane, r, key_len, value_len)
    }

    #[inline(never)]
    fn check_rare(
        &self,
        lane: &Lane,
        r: &OutRecord<'_>,
        key_len: usize,
        value_len: usize,
    ) -> Result<(usize, usize), SendError> {
        let body_end = self.arena.body_end();
        if body_end == 0 {
            return Err(lane.refuse(SendError::Forked));
        }
        if r.partition < ANY_PARTITION {
            return Err(lane.refuse(SendError::BadPartition));
        }
        let headers_len =
            headers_len(r.headers).ok_or_else(|| lane.refuse(SendError::BadHeader))?;
        let front_len = headers_len + key_len;
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
}

/// A reserved frame whose closure may panic: dropped, it is published, as padding unless the
/// closure came back with a length.
struct Open<'a> {
    lanes: &'a Lanes,
    lane: &'a Lane,
    slot: &'a Slot,
    twice_seq: u32,
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
        let stamp = if head == self.twice_seq.wrapping_add(2) {
            Stamp::of(self.twice_seq)
        } else {
            Stamp::behind(self.twice_seq, head)
        };
        // SAFETY: the frame is this one's alone, its slot was written, and it is published here only.
        unsafe { self.slot.publish(stamp) };
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
        // No overflow: a record is shorter than a lane by far.
        key_len_plus_one: r.key.map_or(0, |key| key.len() as u32 + 1),
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
    // Not a copy of nothing: that is a call, too.
    if let Some(key) = r.key.filter(|key| !key.is_empty()) {
        let (front, behind) = rest.split_at_mut(key.len());
        front.copy_from_slice(key);
        rest = behind;
    }
    rest
}

/// The bytes of the encoded headers, or `None` if one is bad or there are too many.
fn headers_len(headers: &[Header<'_>]) -> Option<usize> {
    if headers.len() > HEADERS_MAX || !headers.iter().all(Header::is_valid) {
        return None;
    }
    Some(headers.iter().map(Header::encoded_len).sum())
}
