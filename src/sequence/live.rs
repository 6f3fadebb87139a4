//! Owns the `live` cursor: records that go to the sink beside a backlog, straight from memory.
//!
//! It walks memory only, in order. What was journaled before it came there is backlog, and is read
//! from the log by `produced`, as ever. So there is nothing to open or to close, however often the
//! sink goes away: each cursor goes on where it stands, and without a backlog `produced` follows.
//!
//! A record that went live may be journaled all the same, when it gets old on its way. If that
//! comes while there is a backlog its number is kept (`ahead`) until `acked` passes it, so that the
//! reader passes over it, and a crash brings it back. So these numbers count against the live
//! line's part of the span: what may come twice after a crash is bounded by the span, as without
//! them. When they use it up, live records wait for the backlog.

use super::cursors::Sequence;
use super::inflight::{InFlight, Line};
use super::words::{Backlog, Journal, Limits, Next};
use crate::record::Lsn;
use std::collections::VecDeque;

/// See the module.
#[derive(Clone, Hash, Debug)]
pub(super) struct Live {
    /// The next record of memory to hand over, unless it has been journaled meanwhile.
    pub(super) cursor: Lsn,
    /// Numbers at or above `acked` that went live and are in the log, ascending.
    ahead: VecDeque<Lsn>,
    /// Records lost since the last frame that was read; some of them may be in `ahead`.
    pub(super) damaged: u64,
    percent: u8,
}

impl Live {
    /// `None` where nothing can go beside the backlog.
    pub(super) fn of(limits: &Limits, next: Lsn) -> Option<Live> {
        let percent = limits.backlog_percent?;
        let can_be = limits.journal == Journal::Spill && limits.in_flight_max_records > 1;
        let ahead = VecDeque::new();
        can_be.then_some(Live { cursor: next, ahead, damaged: 0, percent })
    }

    /// What of the span the backlog may take: at least one record, and not all.
    fn share(&self, limits: &Limits) -> (usize, u64) {
        let part = |whole: u64| u128::from(whole) * u128::from(self.percent) / 100;
        let records = part(limits.in_flight_max_records as u64) as usize;
        let bytes = part(limits.in_flight_max_bytes) as u64;
        (records.clamp(1, limits.in_flight_max_records - 1), bytes.max(1))
    }

    /// Whether the backlog has to wait for room.
    pub(super) fn is_share_full(&self, limits: &Limits, in_flight: &InFlight) -> bool {
        let (records, bytes) = self.share(limits);
        in_flight.records_of(Line::Main) >= records
            || in_flight.bytes_of(Line::Main) >= bytes
            || self.ahead.len() + in_flight.span_records() >= limits.in_flight_max_records
    }

    /// Whether live records have to wait for room; `beside` a backlog they leave it its share.
    fn is_full(&self, limits: &Limits, in_flight: &InFlight, beside: bool) -> bool {
        let (records, bytes) = if beside { self.share(limits) } else { (0, 0) };
        let mine = in_flight.records_of(Line::Live) + self.ahead.len();
        mine + records >= limits.in_flight_max_records
            || in_flight.bytes_of(Line::Live) + bytes >= limits.in_flight_max_bytes
            || mine + in_flight.records_of(Line::Main) >= limits.in_flight_max_records
            || in_flight.span_bytes() >= limits.in_flight_max_bytes
    }

    /// Whether numbers are kept that the reader may meet.
    pub(super) fn has_ahead(&self) -> bool {
        !self.ahead.is_empty()
    }
}

impl<F: Copy> Sequence<F> {
    /// Whether live records go beside the backlog: then [`Sequence::next_live`] is asked too.
    #[must_use]
    pub fn has_live(&self) -> bool {
        self.live.is_some()
    }

    /// Whether anything is left to read from the log, or was read and not handed over.
    pub fn is_behind(&mut self) -> bool {
        self.backlog.is_some() || self.in_flight.next_waiting(Line::Main).is_some()
    }

    /// Something of the backlog isn't final.
    fn has_backlog(&self) -> bool {
        self.backlog.is_some() || self.in_flight.records_of(Line::Main) > 0
    }

    /// The next step of the `live` cursor, as [`Sequence::next_produce`] is of the other.
    pub fn next_live(&mut self) -> Next<F> {
        let beside = self.has_backlog();
        let Some(live) = &mut self.live else { return Next::Idle };
        if let Some(slot) = self.in_flight.next_waiting(Line::Live) {
            return self.to_produce(slot);
        }
        live.cursor = live.cursor.max(self.journaled);
        if self.is_live_full(beside) {
            return if self.live_cursor() >= self.next { Next::Idle } else { Next::SpanFull };
        }
        loop {
            let cursor = self.live_cursor();
            let at = (cursor.0 - self.journaled.0) as usize;
            let Some(held) = self.memory.get_mut(at) else { break };
            let slot = (!held.done).then(|| {
                let p = held.popped;
                held.slot = self.in_flight.admit(Line::Live, cursor, p.topic, p.bytes, p.receipt);
                held.slot
            });
            if let Some(live) = &mut self.live {
                live.cursor = cursor.next();
            }
            self.no_backlog();
            if let Some(slot) = slot {
                return self.to_produce(slot);
            }
        }
        Next::Idle
    }

    fn is_live_full(&self, beside: bool) -> bool {
        #[cfg(test)]
        if self.broken.span {
            return false;
        }
        self.live.as_ref().is_some_and(|l| l.is_full(&self.limits, &self.in_flight, beside))
    }

    fn live_cursor(&self) -> Lsn {
        self.live.as_ref().map_or(self.produced, |live| live.cursor)
    }

    /// Without a backlog `produced` has nothing to come to but what is live.
    pub(super) fn no_backlog(&mut self) {
        if self.backlog.is_none() {
            self.produced = self.produced.max(self.live_cursor());
        }
        self.forget_ahead();
    }

    /// Whether an older record of the live line has to be handed over before this one.
    pub(super) fn waits_for_live(&mut self, slot: u32) -> bool {
        #[cfg(test)]
        if self.broken.older_live_first {
            return false;
        }
        let Some(live) = self.in_flight.next_waiting(Line::Live) else { return false };
        let lsn = |slot| self.in_flight.get(slot).map(|e| e.lsn);
        lsn(live) < lsn(slot)
    }

    /// A record of the live line is in the log now.
    pub(super) fn went_ahead(&mut self, lsn: Lsn) {
        // Without a backlog the reader begins behind it, and nothing older is open.
        if self.has_backlog()
            && let Some(live) = &mut self.live
        {
            live.ahead.push_back(lsn);
        }
    }

    /// Whether the frame at the `produced` cursor went live. The cursor passes it then.
    pub(super) fn passes_over(&mut self, frame: &Backlog) -> bool {
        self.judge_damage(frame.lsn);
        #[cfg(test)]
        if self.broken.live_once {
            return false;
        }
        let Some(live) = &self.live else { return false };
        if live.ahead.binary_search(&frame.lsn).is_err() {
            return false;
        }
        self.backlog = Some(frame.position);
        self.produced = frame.lsn.next();
        self.forget_ahead();
        true
    }

    /// All between `produced` and `end` that the log could give back has been read: of what was lost
    /// there, what went live isn't the backlog's loss.
    pub(super) fn judge_damage(&mut self, end: Lsn) {
        let Some(live) = self.live.as_mut().filter(|live| live.damaged > 0) else { return };
        let before = |lsn: Lsn| live.ahead.partition_point(|l| *l < lsn);
        let not_lost = before(end).saturating_sub(before(self.produced)) as u64;
        self.books.damaged += live.damaged.saturating_sub(not_lost);
        live.damaged = 0;
    }

    /// What `acked` has passed comes back after no crash.
    pub(super) fn forget_ahead(&mut self) {
        if !self.live.as_ref().is_some_and(Live::has_ahead) {
            return;
        }
        let acked = self.acked();
        if let Some(live) = &mut self.live {
            while live.ahead.front().is_some_and(|lsn| *lsn < acked) {
                live.ahead.pop_front();
            }
        }
    }
}
