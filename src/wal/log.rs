//! Owns the flusher's half of the log: append, set aside, trim. It never syncs, never makes
//! or removes a file, and takes the shared lock only when it changes segments.

use super::cursor::Cursor;
use super::format::{FRAME_HEADER_BYTES, SegmentHeader, SegmentKind, SetAsideNote};
use super::reader::SegmentInfo;
use super::replayed::Replayed;
use super::segment::{SegmentError, SegmentWriter};
use super::shared::{Common, Known, Retired};
use super::storage::Storage;
use super::types::{AppendError, Oldest, is_full};
use crate::record::{LogPosition, Lsn, RecordView, TopicId};
use crate::stats::Filesystem;
use crate::sync::Ordering;
use crate::topics::TopicTable;
use std::collections::VecDeque;
use std::sync::Arc;

/// The flusher's half of the log.
pub struct Wal {
    pub(super) common: Arc<Common>,
    pub(super) topics: Arc<TopicTable>,
    /// Segments that take no more, oldest first.
    pub(super) segments: VecDeque<SegmentInfo>,
    /// Where the backlog of earlier runs begins, and the frame number that is due there.
    pub(super) backlog: Option<(LogPosition, u64)>,
    /// The segments that take records, by kind.
    pub(super) active: [Option<SegmentWriter>; 2],
    /// The frame number that a new segment begins with, by kind.
    pub(super) next_frame: [u64; 2],
    /// Longest frame, as it stands in headers.
    pub(super) frame_bytes_max: u32,
    /// The cursor of `read_at`, and how many segments had been rewritten when it was made.
    pub(super) random: Option<Cursor>,
    pub(super) random_rewritten: u64,
    /// The last record found no room: the active segment goes, too, once all of it is final.
    pub(super) starved: bool,
    pub(super) unix_ms: i64,
    /// Topics of which an earlier replay delivered everything below an LSN.
    pub(super) replayed: Vec<(TopicId, u64)>,
}

/// Sizes and counts of the log, for gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalStats {
    /// Bytes of all segments on disk, prepared and set-aside ones included.
    pub bytes_on_disk: u64,
    /// Most that they may take.
    pub wal_bytes_max: u64,
    /// There is no room for another segment: the log is at its bound, or the disk is full.
    pub full: bool,
    /// Segments of the main log.
    pub segments: u64,
    /// Everything below is power-safe.
    pub synced_below: Lsn,
    /// Above every record in the log.
    pub appended_below: Lsn,
    /// Syncs that failed.
    pub sync_failures: u64,
    /// Segments whose sync failed and that aren't rewritten yet.
    pub segments_unsynced: u64,
    /// Segments rewritten after a failed sync.
    pub segments_rewritten: u64,
    /// Records that were no longer there when their segment was rewritten.
    pub records_lost_by_sync: u64,
    /// Times that an append needed a segment and none was ready.
    pub segment_waits: u64,
    /// Bad ranges copied to quarantine since open.
    pub ranges_quarantined: u64,
}

impl Wal {
    pub(super) fn active_main(&self) -> Option<&SegmentWriter> {
        self.active[SegmentKind::Main as usize].as_ref()
    }

    /// Says how many bytes of frames are about to come, so that a page that the filesystem
    /// can't give is an error here and not a signal. Lasts within the current segment.
    ///
    /// # Errors
    /// [`AppendError::Storage`]; the next append goes to another segment.
    pub fn prepare_batch(&mut self, bytes: u64) -> Result<(), AppendError> {
        let active = self.active[SegmentKind::Main as usize].as_mut();
        // One that was given up fails for good: the append goes on to the next segment.
        let Some(active) = active.filter(|a| !a.is_broken()) else { return Ok(()) };
        let populated = active.populate(bytes);
        if populated.is_err() {
            active.give_up();
        }
        populated.map_err(|e| self.store_failed(&e))
    }

    /// A store into a segment failed. Unless it is room that is missing, the disk may be gone.
    fn store_failed(&self, e: &std::io::Error) -> AppendError {
        if !is_full(e.kind()) {
            self.common.state.lock().suspect = true;
        }
        AppendError::Storage(e.kind())
    }

    /// Bytes that a record's frame takes, for [`Wal::prepare_batch`].
    #[must_use]
    pub fn frame_bytes(record: &RecordView<'_>) -> u64 {
        super::format::pad8((FRAME_HEADER_BYTES + record.body.len()) as u64)
    }

    /// Appends a record. `lsn` must be above that of every earlier append.
    ///
    /// # Errors
    /// See [`AppendError`]; nothing of the record is in the log then.
    #[inline]
    pub fn append(
        &mut self,
        lsn: Lsn,
        record: &RecordView<'_>,
    ) -> Result<LogPosition, AppendError> {
        let offset = self.put(SegmentKind::Main, lsn, record, None)?;
        self.common.appended_below.store(lsn.0.saturating_add(1), Ordering::Release);
        Ok(LogPosition { segment: self.active_number(SegmentKind::Main), offset })
    }

    fn active_number(&self, kind: SegmentKind) -> u64 {
        self.active[kind as usize].as_ref().map_or(0, |a| a.header.number)
    }

    /// Writes a record that is given up into the set-aside segments.
    ///
    /// # Errors
    /// See [`AppendError`]. The first call meets [`AppendError::NotReady`], since no set-aside
    /// segment is prepared before it is wanted: wake the keeper and try again.
    pub fn set_aside(
        &mut self,
        lsn: Lsn,
        record: &RecordView<'_>,
        reason: &str,
        code: i32,
        now_unix_ms: i64,
    ) -> Result<LogPosition, AppendError> {
        self.unix_ms = now_unix_ms;
        let note = SetAsideNote { reason, code, unix_ms: now_unix_ms };
        let offset = self.put(SegmentKind::SetAside, lsn, record, Some(&note))?;
        self.common.aside_appends.fetch_add(1, Ordering::Release);
        Ok(LogPosition { segment: self.active_number(SegmentKind::SetAside), offset })
    }

    /// Puts it into the active segment of its kind and returns the frame's offset there.
    fn put(
        &mut self,
        kind: SegmentKind,
        lsn: Lsn,
        record: &RecordView<'_>,
        note: Option<&SetAsideNote<'_>>,
    ) -> Result<u64, AppendError> {
        let failed = self.failed_segment(kind);
        loop {
            let Some(active) = &mut self.active[kind as usize] else {
                self.rotate(kind, lsn)?;
                continue;
            };
            if active.header.number == failed {
                active.give_up();
            }
            match active.append(lsn, record, note, &self.topics) {
                Ok(offset) => return Ok(offset),
                Err(SegmentError::Io(e)) => return Err(self.store_failed(&e)),
                Err(SegmentError::NoRoom) if active.is_fresh() => {
                    return Err(AppendError::TooLarge);
                }
                Err(SegmentError::NoRoom) => self.rotate(kind, lsn)?,
            }
        }
    }

    /// The segment of this kind whose sync failed last while it was in use.
    fn failed_segment(&self, kind: SegmentKind) -> u64 {
        self.common.failed_segment[kind as usize].load(Ordering::Relaxed)
    }

    /// Leaves the segments whose sync failed, so that the keeper can rewrite them. True when
    /// there was one: wake the keeper.
    pub fn leave_failed(&mut self) -> bool {
        let mut left = false;
        for kind in [SegmentKind::Main, SegmentKind::SetAside] {
            let failed = self.failed_segment(kind);
            if self.active[kind as usize].as_ref().is_some_and(|a| a.header.number == failed) {
                self.retire(kind);
                left = true;
            }
        }
        left
    }

    /// Seals the active segment and begins the prepared one; without one, nothing changes.
    fn rotate(&mut self, kind: SegmentKind, base: Lsn) -> Result<(), AppendError> {
        let k = kind as usize;
        let prepared = {
            let mut state = self.common.state.lock();
            if state.suspect && !state.prepared[k].is_empty() {
                return Err(AppendError::Storage(std::io::ErrorKind::Other));
            }
            let Some(prepared) = state.prepared[k].pop_front() else {
                state.aside_wanted |= kind == SegmentKind::SetAside;
                self.starved |= kind == SegmentKind::Main;
                let why = state.shortage[k].unwrap_or(AppendError::NotReady);
                if kind == SegmentKind::Main && why == AppendError::NotReady {
                    self.common.segment_waits.fetch_add(1, Ordering::Relaxed);
                }
                return Err(why);
            };
            state.taken_lately += usize::from(kind == SegmentKind::Main);
            prepared
        };
        self.retire(kind);
        let header = SegmentHeader {
            number: prepared.number,
            salt: prepared.salt,
            log_id: self.common.options.log_id,
            kind,
            frame_bytes_max: self.frame_bytes_max,
            directory_id: self.common.directory_id,
            base_lsn: if kind == SegmentKind::Main { base.0 } else { 0 },
            first_frame: self.next_frame[k],
            created_unix_ms: self.unix_ms,
            file_bytes: prepared.file.len(),
        };
        match SegmentWriter::begin(prepared.file, header) {
            Ok(writer) => {
                let file = writer.file.file();
                self.common.state.lock().active[k] = Some((header.number, file));
                self.active[k] = Some(writer);
                self.starved &= kind != SegmentKind::Main;
                Ok(())
            }
            Err(e) => {
                // Nothing is in it: the keeper removes it.
                self.common.state.lock().trimmed.push(header.number);
                Err(AppendError::Storage(e.kind()))
            }
        }
    }

    /// Seals the active segment and hands it to the keeper to be synced and unmapped.
    pub(super) fn retire(&mut self, kind: SegmentKind) {
        let k = kind as usize;
        let Some(mut writer) = self.active[k].take() else { return };
        self.next_frame[k] = writer.next_frame;
        // What is kept for `read_at` knows only the topics that were named when it was made.
        self.random = self.random.take().filter(|c| c.header().number != writer.header.number);
        let frames_end = writer.end;
        let sealed = writer.seal().is_ok();
        if kind == SegmentKind::Main {
            self.segments.push_back(SegmentInfo {
                header: writer.header,
                end: writer.end,
                next_frame: writer.next_frame,
                last_lsn: (writer.records > 0).then_some(writer.last_lsn),
                seal: sealed.then(|| (frames_end, writer.seal_bytes())),
                topics: (!sealed).then(|| writer.local_topics()),
            });
        }
        let (number, file) = (writer.header.number, writer.file.file());
        let (end, next_frame) = (writer.end, writer.next_frame);
        let known = Known { header: writer.header, end, next_frame };
        let mut state = self.common.state.lock();
        state.active[k] = None;
        let owner = Some(writer.file);
        state.retired.push(Retired { kind, number, file, known, owner });
    }

    /// Seals what is open, so that the next start needs no scan. Appends may follow.
    pub fn seal(&mut self) {
        for kind in [SegmentKind::Main, SegmentKind::SetAside] {
            self.retire(kind);
        }
    }

    /// Tells the log that everything below `acked` is final. Segments that hold nothing else
    /// go to the keeper to be removed.
    pub fn trim(&mut self, acked: Lsn) {
        if self.starved && self.active_main().is_some_and(|a| a.records > 0 && a.last_lsn < acked.0)
        {
            self.retire(SegmentKind::Main);
        }
        let is_done = |s: &SegmentInfo| s.last_lsn.is_none_or(|last| last < acked.0);
        while self.segments.front().is_some_and(is_done) {
            if let Some(done) = self.segments.pop_front() {
                self.common.state.lock().trimmed.push(done.header.number);
            }
        }
    }

    /// Whether the next append has a segment to go to, as far as is known.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.starved || !self.common.state.lock().prepared[SegmentKind::Main as usize].is_empty()
    }

    /// What could go to make room after an append met an error that says the log is full. Not
    /// before the keeper has found that what went last was not enough.
    pub fn oldest(&mut self) -> Oldest {
        {
            let state = self.common.state.lock();
            let k = SegmentKind::Main as usize;
            let is_full = state.shortage[k].is_some_and(AppendError::is_full);
            if !is_full || !state.prepared[k].is_empty() || !state.trimmed.is_empty() {
                return Oldest::Coming;
            }
        }
        if self.segments.is_empty() {
            // The only one is full, or the append would have gone into it.
            self.retire(SegmentKind::Main);
        }
        let last = self.segments.front().and_then(|oldest| oldest.last_lsn);
        last.map_or(Oldest::Nothing, |last| Oldest::Below(Lsn(last.saturating_add(1))))
    }

    /// Whether a replay of selected topics delivered this record before the log was opened.
    #[must_use]
    pub fn is_replayed(&self, topic: TopicId, lsn: Lsn) -> bool {
        self.replayed.iter().any(|(id, below)| *id == topic && lsn.0 < *below)
    }

    /// What an earlier replay left, to be gone on with.
    pub(super) fn replayed_before(&self, storage: &dyn Storage) -> Replayed {
        let directory_id = self.common.directory_id;
        let fresh = Replayed { directory_id, ..Replayed::default() };
        Replayed::read(storage).filter(|r| r.directory_id == directory_id).unwrap_or(fresh)
    }

    /// Hands a set-aside segment to the keeper to be removed: all in it is final.
    pub(super) fn discard(&mut self, number: u64) {
        self.common.state.lock().trimmed.push(number);
    }

    /// Wall-clock time for the headers of segments to come.
    pub fn set_unix_ms(&mut self, now_unix_ms: i64) {
        self.unix_ms = now_unix_ms;
    }

    /// Everything below is power-safe.
    #[must_use]
    pub fn synced_below(&self) -> Lsn {
        Lsn(self.common.synced_below())
    }

    /// Bytes of all segments on disk, prepared and set-aside ones included.
    #[must_use]
    pub fn bytes_on_disk(&self) -> u64 {
        self.common.bytes_on_disk()
    }

    /// What its directory is on, where that is known.
    #[must_use]
    pub fn filesystem(&self) -> Option<Filesystem> {
        self.common.storage.filesystem()
    }

    /// Sizes and counts, for gauges.
    #[must_use]
    pub fn stats(&self) -> WalStats {
        let (bytes_on_disk, segments_unsynced, full) = {
            let state = self.common.state.lock();
            let full = state.shortage[SegmentKind::Main as usize].is_some_and(AppendError::is_full);
            (state.used_bytes(), state.failed.len() as u64, full)
        };
        WalStats {
            bytes_on_disk,
            full,
            wal_bytes_max: self.common.wal_bytes_max,
            segments: self.segments.len() as u64 + u64::from(self.active_main().is_some()),
            synced_below: self.synced_below(),
            appended_below: Lsn(self.common.appended_below.load(Ordering::Acquire)),
            sync_failures: self.common.sync_failures.load(Ordering::Relaxed),
            segments_unsynced,
            segments_rewritten: self.common.segments_rewritten.load(Ordering::Relaxed),
            records_lost_by_sync: self.common.records_lost_by_sync.load(Ordering::Relaxed),
            segment_waits: self.common.segment_waits.load(Ordering::Relaxed),
            ranges_quarantined: self.common.ranges_quarantined.load(Ordering::Relaxed),
        }
    }
}
