//! Owns the way into the log: by age, by pressure, and at close everything.

use super::Flusher;
use crate::record::Lsn;
use crate::sequence::policy::HIGH_MARK_PARTS;
use crate::wal::AppendError;

/// Bytes that are populated ahead of the appends that fill them.
const PREPARE_BYTES: u64 = 64 << 10;

impl Flusher {
    /// Moves the `journaled` cursor up to `target`. False when the log took less.
    pub(super) fn journal_to(&mut self, target: Lsn) -> bool {
        self.journal_while(|flusher| flusher.seq.next_append(target).is_some())
    }

    /// A lane above its high mark that the hand-over could not free is freed by the log.
    pub(super) fn relieve_lanes(&mut self) {
        if self.wal.is_none() {
            return;
        }
        for i in 0..self.lanes.len() {
            let is_high = |f: &mut Flusher| {
                let look = f.drain.look(i);
                look.used_bytes * HIGH_MARK_PARTS > f.lane_bytes
                    || look.used_slots * HIGH_MARK_PARTS > f.lane_slots
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
        if self.wal.as_mut().is_some_and(crate::wal::Wal::leave_failed)
            && let Some(keeper) = &self.keeper
        {
            self.changed = true;
            keeper.wake();
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
                prepared = PREPARE_BYTES.max(record.body.len() as u64);
                wal.prepare_batch(prepared).and_then(|()| wal.append(lsn, &record))
            } else {
                wal.append(lsn, &record)
            };
            prepared = prepared.saturating_sub(record.body.len() as u64 + 64);
            match appended {
                Ok(position) => {
                    self.seq.appended(lsn, position);
                    self.release();
                    self.wal_works();
                }
                Err(e) => {
                    self.append_failed("append", e);
                    return false;
                }
            }
        }
        true
    }

    pub(super) fn append_failed(&mut self, what: &str, error: AppendError) {
        // Whatever it was, the keeper's next turn may mend it: it prepares segments and unlinks.
        if let Some(keeper) = &self.keeper {
            keeper.wake();
        }
        if error != AppendError::NotReady {
            self.wal_failed(&format!("{what}: {error}"));
        }
    }

    /// The log just served: whatever was wrong is over.
    pub(super) fn wal_works(&mut self) {
        self.changed = true;
        if let Some(was) = self.figures.wal_unavailable.take() {
            tracing::info!(reason = %was, "the write-ahead log works again");
        }
    }

    /// The log can't serve now: a state, a counter, one line in the log per change.
    pub(super) fn wal_failed(&mut self, why: &str) {
        self.figures.append_failures += 1;
        self.changed = true;
        if self.figures.wal_unavailable.as_deref() != Some(why) {
            tracing::error!(reason = %why, "the write-ahead log is unavailable; tried again at each look");
            self.figures.wal_unavailable = Some(why.to_owned());
        }
    }
}
