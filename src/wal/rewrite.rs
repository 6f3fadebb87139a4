//! Owns what follows a failed sync: the segment is left, copied into a new file, and only that
//! one's sync is believed.
//!
//! A failed sync says nothing about what is on disk, and the system forgets the failure once it
//! was told: a second sync of the same file may return well though the pages never got there.
//! So it is never tried again. What the file holds is read back from the page cache into a new
//! file, each frame checked by its CRC; that file is synced, takes the old one's name, and the
//! directory is synced. Number, positions, frame numbers and salt stay, so that readers and
//! positions stay valid. A copy that fails, at whichever step, is written again from its first
//! byte after a growing pause, also when only the last step, the sync of the directory, failed.
//!
//! While a segment waits for that, a file `NNNN.wal.new` stands beside it: a run that finds one
//! knows that its predecessor didn't finish, removes it, and rewrites the segment itself.
//!
//! The copy counts in `wal_bytes_max`. Where there is no room for it, a segment that was
//! prepared and not used is given back; without one it waits until something is trimmed.

use super::cursor::{Cursor, Found};
use super::format::{
    HEADER_AREA_BYTES, HEADER_AT, HeaderVerdict, SET_ASIDE_DIR, SegmentHeader, SegmentKind,
    number_of, pad8, segment_name,
};
use super::keeper::{StepReport, WalKeeper, quarantine_range};
use super::seal::Locator;
use super::shared::{BadRange, Failed, Known, Prepared, State};
use super::storage::{AppendFile, Storage, StorageFile};
use crate::sync::Ordering;
use crate::topics::TopicTable;
use std::io;
use std::sync::Arc;

/// Bytes that are copied at a time.
const COPY_BYTES: u64 = 1 << 20;
/// Between two tries to rewrite a segment: at first, and at most.
const PAUSE_NS: u64 = 100_000_000;
const PAUSE_NS_MAX: u64 = 10_000_000_000;
/// Segments that may wait to be rewritten before the one in use is kept, failed or not.
const LEFT_MAX: usize = 4;
const NEW_SUFFIX: &str = ".new";

fn new_name(kind: SegmentKind, number: u64) -> String {
    format!("{}{NEW_SUFFIX}", segment_name(kind, number))
}

/// The segment is gone: nothing is to be rewritten any more.
pub(super) fn remove_mark(storage: &dyn Storage, kind: SegmentKind, number: u64) {
    // One that stays is removed at the next open.
    let _ = storage.unlink(&new_name(kind, number));
}

/// Segments that an earlier run had not finished to rewrite. Its files are removed.
pub(super) fn unfinished_rewrites(storage: &dyn Storage) -> Vec<(SegmentKind, u64)> {
    let mut found = Vec::new();
    for (kind, dir) in [(SegmentKind::Main, ""), (SegmentKind::SetAside, SET_ASIDE_DIR)] {
        for name in storage.list(dir).unwrap_or_default() {
            let stem = name.strip_suffix(NEW_SUFFIX);
            let Some(number) = stem.filter(|s| s.len() == 20).and_then(number_of) else { continue };
            let _ = storage.unlink(&new_name(kind, number));
            found.push((kind, number));
        }
    }
    found
}

impl State {
    /// Takes those failed segments over that the flusher has left; what it had mapped is to be
    /// dropped by the caller.
    pub(super) fn adopt_left(&mut self) -> Vec<Box<dyn AppendFile>> {
        let mut owners = Vec::new();
        for retired in std::mem::take(&mut self.retired) {
            match self.failed.iter_mut().find(|f| f.number == retired.number) {
                Some(failed) => {
                    failed.active = false;
                    failed.file = Some(retired.file);
                    failed.known = Some(retired.known);
                    owners.extend(retired.owner);
                }
                None => self.retired.push(retired),
            }
        }
        owners
    }
}

impl WalKeeper {
    /// A sync of this segment failed, or its name no longer leads to it.
    pub(super) fn sync_failed(&self, failed: Failed) {
        let common = &self.common;
        common.sync_failures.fetch_add(1, Ordering::Relaxed);
        // For the next run, should this one die before the segment is rewritten.
        let _ = common.storage.open_or_create(&new_name(failed.kind, failed.number));
        let mut state = common.state.lock();
        if !state.is_failed(failed.number) {
            state.failed.push(failed);
        }
        self.ask_to_leave(&state);
    }

    /// Has the flusher leave what it still appends to. Not while too many wait to be rewritten:
    /// a disk that fails every sync would use up a segment for each of them.
    fn ask_to_leave(&self, state: &State) {
        let left = state.failed.iter().filter(|f| !f.active).count();
        for failed in state.failed.iter().filter(|f| f.active && left < LEFT_MAX) {
            self.common.failed_segment[failed.kind as usize]
                .store(failed.number, Ordering::Relaxed);
        }
    }

    /// Rewrites one of the failed segments, when one is due.
    pub(super) fn rewrite_failed(&mut self, now_ns: u64, report: &mut StepReport) {
        let (owners, due) = {
            let mut state = self.common.state.lock();
            if state.failed.is_empty() {
                return;
            }
            let owners = state.adopt_left();
            self.ask_to_leave(&state);
            let is_due = |f: &&Failed| {
                !f.active && f.again_ns <= now_ns && !state.trimmed.contains(&f.number)
            };
            let due = state.failed.iter().find(is_due).map(|f| f.number);
            (owners, due)
        };
        drop(owners);
        let Some(number) = due else { return };
        let done = self.rewrite(number);
        let mut state = self.common.state.lock();
        state.rewriting_bytes = 0;
        if report.note("rewrite after a failed sync", done).is_some() {
            state.failed.retain(|f| f.number != number);
            report.rewritten = true;
            self.common.segments_rewritten.fetch_add(1, Ordering::Release);
            // The next sync may say again what is power-safe.
            self.synced_at_ns = None;
        } else if let Some(failed) = state.failed.iter_mut().find(|f| f.number == number) {
            failed.pause_ns = (failed.pause_ns * 2).clamp(PAUSE_NS, PAUSE_NS_MAX);
            failed.again_ns = now_ns.saturating_add(failed.pause_ns);
        }
    }

    fn rewrite(&mut self, number: u64) -> io::Result<()> {
        let found = {
            let state = self.common.state.lock();
            let failed = state.failed.iter().find(|f| f.number == number);
            failed.map(|f| (f.kind, f.file.clone(), f.known))
        };
        let Some((kind, file, known)) = found else { return Ok(()) };
        let storage = self.common.storage.clone();
        let name = segment_name(kind, number);
        let from = match file {
            Some(file) => file,
            None => match storage.open(&name) {
                // Of an earlier run, and gone: there is nothing to rewrite.
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                opened => opened?,
            },
        };
        let (header, end) = match known {
            Some(Known { header, end, .. }) => (Some(header), end),
            None => header_and_end(&*from)?,
        };
        self.make_room(end)?;
        let to = copy(&*storage, &*from, &new_name(kind, number), header, end)?;
        if let Some(header) = header {
            self.check_copy(kind, &to, header, end, known.map(|k| k.next_frame))?;
        }
        to.sync()?;
        storage.rename(&new_name(kind, number), &name)?;
        {
            let mut state = self.common.state.lock();
            if let Some(bytes) = state.live.get_mut(&number) {
                *bytes = (kind, end);
            }
            // The name leads to this file now, whatever becomes of the directory's sync.
            if let Some(failed) = state.failed.iter_mut().find(|f| f.number == number) {
                failed.file = Some(to);
            }
        }
        storage.sync_dir()
    }

    /// Room for a copy within the log's bound, from a prepared segment if need be.
    fn make_room(&mut self, bytes: u64) -> io::Result<()> {
        let spare = {
            let mut state = self.common.state.lock();
            if state.used_bytes() + bytes <= self.common.wal_bytes_max {
                state.rewriting_bytes = bytes;
                return Ok(());
            }
            let kinds = [SegmentKind::Main, SegmentKind::SetAside];
            kinds.into_iter().find_map(|k| state.prepared[k as usize].pop_back())
        };
        let Some(spare) = spare else { return Err(io::ErrorKind::QuotaExceeded.into()) };
        self.give_back(spare)?;
        let mut state = self.common.state.lock();
        if state.used_bytes() + bytes > self.common.wal_bytes_max {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        state.rewriting_bytes = bytes;
        Ok(())
    }

    /// Removes a segment that was prepared and never used.
    fn give_back(&mut self, spare: Prepared) -> io::Result<()> {
        let number = spare.number;
        let kind = self.common.state.lock().live.get(&number).map(|(kind, _)| *kind);
        drop(spare);
        let Some(kind) = kind else { return Ok(()) };
        if let Err(e) = self.common.storage.unlink(&segment_name(kind, number)) {
            // It goes like any other that is done with.
            self.common.state.lock().trimmed.push(number);
            return Err(e);
        }
        self.common.state.lock().live.remove(&number);
        self.manifest_stale = true;
        Ok(())
    }

    /// Walks the copy: what isn't sound in it was lost by the failed sync, or before.
    fn check_copy(
        &mut self,
        kind: SegmentKind,
        copy: &Arc<dyn StorageFile>,
        header: SegmentHeader,
        end: u64,
        next_frame: Option<u64>,
    ) -> io::Result<()> {
        let table = Arc::new(TopicTable::default());
        let buffer = self.common.options.read_buffer_bytes;
        let mut cursor = Cursor::new(copy.clone(), header, end, table, buffer);
        let (mut bad, mut lost) = (Vec::new(), 0);
        loop {
            match cursor.next()? {
                Found::Frame(..) => {}
                Found::Bad { from, to, lost: here, .. } => {
                    bad.push((from, to));
                    lost += here.unwrap_or(0);
                }
                Found::End { from, to, .. } => {
                    bad.extend((to > from).then_some((from, to)));
                    break;
                }
            }
        }
        if let Some((due, found)) = next_frame.zip(cursor.expect) {
            lost += due.saturating_sub(found);
        }
        if lost > 0 {
            let number = header.number;
            tracing::error!(number, lost, "a segment lost records with a failed sync");
            self.common.records_lost_by_sync.fetch_add(lost, Ordering::Relaxed);
        }
        for (from, to) in bad {
            let range = BadRange { number: header.number, from, to };
            // They stay in the copy as they are, so a failure here loses nothing.
            if let Ok(true) = quarantine_range(&*self.common.storage, kind, &range, "bad") {
                self.common.ranges_quarantined.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Whether the name of a segment still leads to a file as long as it was.
    pub(super) fn still_there(&self, kind: SegmentKind, number: u64) -> io::Result<()> {
        let expected = self.common.state.lock().live.get(&number).map(|(_, bytes)| *bytes);
        let found = self.common.storage.open(&segment_name(kind, number)).and_then(|f| f.len());
        match (expected, found) {
            (Some(bytes), Ok(len)) if len < bytes => Err(io::ErrorKind::UnexpectedEof.into()),
            (Some(_), Err(e)) if e.kind() == io::ErrorKind::NotFound => Err(e),
            // Whatever else keeps it from being opened says nothing about the name.
            _ => Ok(()),
        }
    }
}

/// What the file itself says of its header and of its end.
fn header_and_end(file: &dyn StorageFile) -> io::Result<(Option<SegmentHeader>, u64)> {
    let len = file.len()?;
    let mut area = [0; HEADER_AREA_BYTES as usize];
    let read = file.read_at(0, &mut area)?;
    let HeaderVerdict::Good(header) = SegmentHeader::judge(&area[..read]) else {
        return Ok((None, len));
    };
    let seal = Locator::find(&area[..read], header.salt);
    let end = seal.and_then(|l| l.offset.checked_add(pad8(l.length))).filter(|end| *end <= len);
    Ok((Some(header), end.unwrap_or(len)))
}

/// Copies what a segment holds into another file, the header from memory.
fn copy(
    storage: &dyn Storage,
    from: &dyn StorageFile,
    name: &str,
    header: Option<SegmentHeader>,
    end: u64,
) -> io::Result<Arc<dyn StorageFile>> {
    let to = storage.open_or_create(name)?;
    // What an earlier try left is written anew, all of it. The name stays, as a mark.
    to.truncate(0)?;
    let mut buf = vec![0; end.min(COPY_BYTES) as usize];
    let mut at = 0;
    while at < end {
        let n = buf.len().min((end - at) as usize);
        let read = from.read_at(at, &mut buf[..n])?;
        if read == 0 {
            break;
        }
        to.write_at(at, &buf[..read])?;
        at += read as u64;
    }
    if let Some(header) = header {
        let bytes = header.encode();
        for at in HEADER_AT {
            to.write_at(at, &bytes)?;
        }
    }
    Ok(to)
}
