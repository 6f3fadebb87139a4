//! Owns what happens when the log has no room: `wal_full = drop_oldest`, and the set-aside log's
//! own state.
//!
//! A segment is let go only when an append found no room, and the next one only when the keeper
//! has found that the room which that made is not enough.

use super::produce::ReadOf;
use super::{Flusher, PRODUCE_PER_LOOK, RECORD_OVERHEAD_BYTES};
use crate::config::WalFull;
use crate::record::Lsn;
use crate::sequence::{Backlog, End};
use crate::wal::{AppendError, Oldest, ReadItem};

/// Why the records of a segment that was let go are dropped.
const WAL_FULL: &str = "wal_full";
/// Why a record is dropped that can't be delivered and found no room in the set-aside log.
pub(super) const SET_ASIDE_FULL: &str = "set_aside_full";

/// What came of reading one record that is to be dropped.
enum Unread {
    Dropped,
    /// The log can't be read now.
    Stop,
    /// There is none left.
    End,
}

impl Flusher {
    pub(super) fn drops(&self) -> bool {
        self.wal_full == WalFull::DropOldest
    }

    /// The log is full. True when room is being made: the append is tried again then.
    pub(super) fn begin_drop(&mut self) -> bool {
        if !self.drops() {
            return false;
        }
        let Some(wal) = self.wal.as_mut().filter(|_| self.dropping.is_none()) else { return true };
        match wal.oldest() {
            Oldest::Below(end) => {
                tracing::warn!("the write-ahead log is full; its oldest segment is dropped");
                self.dropping = Some(end);
                true
            }
            Oldest::Coming => true,
            Oldest::Nothing => false,
        }
    }

    /// Ends what is being dropped, a part of it a look. True when there is more to do at once.
    pub(super) fn drop_oldest(&mut self, now_ns: u64) -> bool {
        let Some(end) = self.dropping else { return false };
        for finished in self.seq.drop_admitted(end, WAL_FULL) {
            self.finished(now_ns, finished);
        }
        for _ in 0..PRODUCE_PER_LOOK {
            match self.drop_unread(now_ns, end) {
                Unread::Dropped => {}
                Unread::Stop => return false,
                Unread::End => {
                    self.dropping = None;
                    self.seq.dropped_below(end);
                    self.release();
                    if let Some(wal) = &mut self.wal {
                        wal.trim(self.seq.acked());
                    }
                    self.wake_keeper();
                    return false;
                }
            }
        }
        true
    }

    /// Reads one record of the backlog below `end`, for its topic and its receipt.
    fn drop_unread(&mut self, now_ns: u64, end: Lsn) -> Unread {
        let Some(from) = self.seq.backlog_from().filter(|_| self.seq.produced() < end) else {
            return Unread::End;
        };
        if now_ns < self.reads[ReadOf::Backlog as usize].retry_at_ns {
            return Unread::Stop;
        }
        let Some(wal) = &mut self.wal else { return Unread::End };
        let mut reader = self.reader.take().unwrap_or_else(|| wal.reader(from));
        match wal.read_next(&mut reader) {
            // The next segment's: a reader that is set up anew comes to it again.
            ReadItem::Record(read) if read.lsn >= end => return Unread::End,
            ReadItem::CaughtUp => return Unread::End,
            ReadItem::Record(read) => {
                let is_replayed = wal.is_replayed(read.record.topic, read.lsn);
                let frame = Backlog {
                    lsn: read.lsn,
                    position: read.position,
                    topic: read.record.topic,
                    bytes: (read.record.body.len() + RECORD_OVERHEAD_BYTES) as u32,
                    receipt: self.receipt_of(read.lsn),
                };
                let end = if is_replayed { End::Delivered } else { End::Dropped(WAL_FULL) };
                if let Some(finished) = self.seq.end_unread(frame, end) {
                    self.finished(now_ns, finished);
                }
                self.read_works(ReadOf::Backlog);
            }
            ReadItem::Damage { records_lost, bytes, why } => {
                self.damaged(records_lost, bytes, why);
            }
            ReadItem::Error(kind) => {
                if self.read_failed(ReadOf::Backlog, now_ns, kind) {
                    reader.skip_unreadable();
                }
                self.reader = Some(reader);
                return Unread::Stop;
            }
        }
        self.reader = Some(reader);
        Unread::Dropped
    }

    /// The set-aside log can't serve now: what can't be delivered waits, and keeps its place.
    pub(super) fn aside_failed(&mut self, error: AppendError) {
        self.wake_keeper();
        if error == AppendError::NotReady {
            return;
        }
        self.figures.append_failures += 1;
        self.changed = true;
        let why = error.to_string();
        if self.figures.aside_unavailable.as_ref() != Some(&why) {
            tracing::error!(reason = %why, "the set-aside log is unavailable; tried again at each look");
            self.figures.aside_unavailable = Some(why);
        }
    }

    /// The set-aside log just served.
    pub(super) fn aside_works(&mut self) {
        if self.figures.aside_unavailable.take().is_some() {
            tracing::info!("the set-aside log works again");
        }
    }
}
