//! Owns the way into the log: by age, by pressure, and at close everything.

use super::Flusher;
use crate::record::{Lsn, NO_RECEIPT};
use crate::sequence::policy::HIGH_MARK_PARTS;
use crate::wal::{AppendError, Wal};

/// Bytes that are populated ahead of the appends that fill them.
const PREPARE_BYTES: u64 = 64 << 10;

/// The log counts as available again when nothing has failed for so long.
const FORGIVE_NS: u64 = 1_000_000_000;

impl Flusher {
    /// Moves the `journaled` cursor up to `target`. False when the log took less.
    pub(super) fn journal_to(&mut self, target: Lsn) -> bool {
        self.journal_while(|flusher| flusher.seq.next_append(target).is_some())
    }

    /// Whether lanes wait for the sink: it answers, and the user wants that.
    fn is_answered(&self) -> bool {
        self.last_look_ns.saturating_sub(self.answered_ns) < self.timing.answer_ns
    }

    /// A lane above its high mark that the hand-over could not free is freed by the log.
    pub(super) fn relieve_lanes(&mut self) {
        if self.wal.is_none() || self.is_answered() {
            return;
        }
        for i in 0..self.lanes.len() {
            // With nothing held, what fills the lane stands behind a record that its sender
            // hasn't finished: the log frees none of it.
            let is_high = |f: &mut Flusher| {
                let look = f.drain.look(i);
                let is_full = look.used_bytes * HIGH_MARK_PARTS > f.lane_bytes
                    || look.used_slots * HIGH_MARK_PARTS > f.lane_slots;
                is_full && look.held + look.queued as u64 > 0
            };
            if is_high(self) {
                // What is still in the lane can only be journaled once it has a number.
                self.look_again(i);
                self.pop_all();
                self.journal_while(is_high);
            }
            self.look_again(i);
        }
    }

    /// A segment whose sync failed is left even when nothing comes: the keeper rewrites it.
    pub(super) fn leave_failed_segments(&mut self) {
        if self.wal.as_mut().is_some_and(Wal::leave_failed) {
            self.changed = true;
            self.wake_keeper();
        }
    }

    fn journal_while(&mut self, mut wanted: impl FnMut(&mut Flusher) -> bool) -> bool {
        let mut prepared = 0u64;
        if let Some(wal) = &mut self.wal {
            wal.set_unix_ms(self.clock.unix_ms());
        }
        while wanted(self) {
            let Some((lsn, frame)) = self.seq.next_append(Lsn(u64::MAX)) else { return true };
            let Some(wal) = &mut self.wal else { return false };
            let Some(record) = self.drain.view(&frame) else { return false };
            let appended = if prepared < record.body.len() as u64 {
                self.shared.step();
                prepared = PREPARE_BYTES.max(record.body.len() as u64);
                wal.prepare_batch(prepared).and_then(|()| wal.append(lsn, &record))
            } else {
                wal.append(lsn, &record)
            };
            prepared = prepared.saturating_sub(record.body.len() as u64 + 64);
            match appended {
                Ok(position) => {
                    self.seq.appended(lsn, position);
                    if frame.receipt() != NO_RECEIPT {
                        self.receipts.push_back((lsn, frame.receipt()));
                    }
                    self.release();
                    self.wal_works();
                }
                Err(e) => {
                    self.append_failed(e);
                    return false;
                }
            }
        }
        true
    }

    fn append_failed(&mut self, error: AppendError) {
        self.wake_keeper();
        if error == AppendError::NotReady || (error.is_full() && self.begin_drop()) {
            return;
        }
        self.wal_failed(&format!("append: {error}"));
    }

    /// Whatever failed, the keeper's next turn may mend it: it prepares segments and unlinks.
    pub(super) fn wake_keeper(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.wake();
        }
    }

    /// The log just served: whatever was wrong is over.
    pub(super) fn wal_works(&mut self) {
        self.changed = true;
        if let Some(was) = self.figures.wal_unavailable.take() {
            tracing::info!(reason = %was, "the write-ahead log works again");
        }
    }

    /// Nothing has failed for a while, and the log has a segment to append to: nothing says that
    /// it is unavailable, though nothing needed it since.
    pub(super) fn forgive_wal(&mut self, now_ns: u64) {
        if self.figures.wal_unavailable.is_some()
            && now_ns.saturating_sub(self.figures.wal_failed_ns) > FORGIVE_NS
            && self.wal.as_ref().is_some_and(Wal::is_ready)
        {
            self.wal_works();
        }
    }

    /// The log can't serve now: a state, a counter, one line in the log per change.
    pub(super) fn wal_failed(&mut self, why: &str) {
        self.figures.append_failures += 1;
        self.figures.wal_failed_ns = self.last_look_ns;
        self.changed = true;
        if self.figures.wal_unavailable.as_deref() != Some(why) {
            tracing::error!(reason = %why, "the write-ahead log is unavailable; tried again at each look");
            self.figures.wal_unavailable = Some(why.to_owned());
        }
    }
}
