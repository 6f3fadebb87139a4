//! Owns the keeper's half: everything of the log that is slow. It prepares segments before
//! they are needed, syncs, stores the checkpoint, copies bad ranges to quarantine, and
//! removes segments after a manifest without them is durable.

use super::checkpoint::{CheckpointData, CheckpointWriter, Manifest};
use super::format::{QUARANTINE_DIR, SegmentKind, segment_name};
use super::reseal::Resealing;
use super::shared::{BadRange, Common, Prepared};
use super::storage::{AppendFile, Storage, StorageFile};
use super::types::{AppendError, SaltSource};
use crate::sync::Ordering;
use std::io;
use std::sync::Arc;

/// Most bytes of one bad range that are copied at a time.
const COPY_BYTES: u64 = 1 << 20;
/// Pages are made present in steps of this many bytes: while one lasts (about 0.5 ms) nothing
/// else in the process can change its address space.
const POPULATE_STEP_BYTES: u64 = 2 << 20;
/// No segment has this number.
pub(super) const NO_SEGMENT: u64 = u64::MAX;

/// The keeper's half of the log.
pub struct WalKeeper {
    pub(super) common: Arc<Common>,
    pub(super) salts: SaltSource,
    pub(super) next_number: u64,
    pub(super) checkpoint: CheckpointWriter,
    pub(super) synced_at_ns: Option<u64>,
    pub(super) synced_asides: u64,
    /// Segments were made whose names aren't durable, nor in the manifest.
    pub(super) names_pending: bool,
    /// Segments of earlier runs: the process that wrote them may have died before its sync.
    pub(super) recovered: Vec<(SegmentKind, u64)>,
    /// Those of them that get the seal that their run didn't write.
    pub(super) reseal: Vec<Resealing>,
}

/// What one step of the keeper did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepReport {
    /// A segment was prepared: wake a flusher that met [`AppendError::NotReady`].
    pub prepared: bool,
    /// A sync returned.
    pub synced: bool,
    /// Something was appended that no sync has covered yet.
    pub unsynced: bool,
    /// The checkpoint was stored.
    pub checkpointed: bool,
    /// Segments removed.
    pub unlinked: u64,
    /// The first error of the step, with what failed. Every step tries again, except a sync:
    /// a segment whose sync failed is left by the flusher and never believed again.
    pub error: Option<(&'static str, io::ErrorKind)>,
}

impl StepReport {
    fn note<T>(&mut self, what: &'static str, done: io::Result<T>) -> Option<T> {
        match done {
            Ok(value) => Some(value),
            Err(e) => {
                self.error.get_or_insert((what, e.kind()));
                None
            }
        }
    }
}

impl WalKeeper {
    /// One turn: prepares, syncs when `sync_interval` has passed, stores `checkpoint` when it
    /// is given, removes what was trimmed.
    pub fn step(&mut self, now_ns: u64, checkpoint: Option<&CheckpointData>) -> StepReport {
        let mut report = StepReport::default();
        for kind in [SegmentKind::Main, SegmentKind::SetAside] {
            let done = self.prepare_ahead(kind);
            report.prepared |= report.note("prepare", done) == Some(true);
        }
        self.start_writeback();
        self.quarantine(&mut report);
        let due = self
            .synced_at_ns
            .is_none_or(|at| now_ns.saturating_sub(at) >= self.common.options.sync_interval_ns);
        if due {
            self.synced_at_ns = Some(now_ns);
            let done = self.sync_now();
            report.synced = report.note("sync", done).is_some();
            self.common.state.lock().taken_lately /= 2;
        }
        if let Some(data) = checkpoint {
            let done = self.store_checkpoint(data);
            report.checkpointed = report.note("checkpoint", done).is_some();
        }
        let done = self.unlink_trimmed();
        report.unlinked = report.note("unlink", done).unwrap_or(0);
        report.unsynced =
            self.common.appended_below.load(Ordering::Acquire) != self.common.synced_below();
        report
    }

    /// Syncs everything that was appended before the call, and the checkpoint.
    ///
    /// # Errors
    /// The first sync that failed; its segment is left by the flusher, and `synced_below`
    /// stands still until that segment is trimmed.
    pub fn sync_now(&mut self) -> io::Result<()> {
        let (mut files, retired, below, asides) = {
            let mut state = self.common.state.lock();
            let files: Vec<_> = state.active.iter().flatten().cloned().collect();
            let retired = std::mem::take(&mut state.retired);
            let below = self.common.appended_below.load(Ordering::Acquire);
            let asides = self.common.aside_appends.load(Ordering::Acquire);
            (files, retired, below, asides)
        };
        let mut first_error = None;
        if retired.is_empty() && below == self.common.synced_below() && asides == self.synced_asides
        {
            files.clear();
        }
        files.extend(retired.iter().map(|r| (r.number, r.file.clone())));
        let mut files = files.into_iter();
        while let Some((number, file)) = files.next() {
            if let Err(e) = file.sync() {
                self.common.state.lock().failed.push(number);
                self.common.failed_segment.store(number, Ordering::Release);
                self.common.sync_failures.fetch_add(1, Ordering::Relaxed);
                first_error.get_or_insert(e);
            }
            if files.len() > 0 && self.common.options.segments_ahead_max > 1 {
                // The flusher goes on filling segments meanwhile. What fails here is tried
                // again, and told, by the next turn.
                let _ = self.prepare_ahead(SegmentKind::Main);
            }
        }
        for (kind, number) in std::mem::take(&mut self.recovered) {
            // One descriptor at a time, however many segments there are.
            let file = self.common.storage.open(&segment_name(kind, number));
            match file.and_then(|f| f.sync().map(|()| f)) {
                Ok(file) => self.reseal(kind, number, &*file),
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    self.common.state.lock().failed.push(number);
                    self.common.sync_failures.fetch_add(1, Ordering::Relaxed);
                    first_error.get_or_insert(e);
                }
                Err(_) => {}
            }
        }
        // Unmapped here, by the thread that may take long.
        drop(retired.into_iter().map(|r| r.owner).collect::<Vec<_>>());
        // A segment is power-safe when its name is, too.
        let named = if self.names_pending { self.publish_manifest() } else { Ok(()) };
        if let Err(e) = named {
            first_error.get_or_insert(e);
        } else if self.common.state.lock().failed.is_empty() {
            self.common.synced_below.store(below, Ordering::Release);
            self.synced_asides = asides;
        }
        let checkpoint = self.checkpoint.sync();
        match first_error {
            Some(e) => Err(e),
            None => checkpoint,
        }
    }

    /// Writes the seal of an earlier run's segment whose frames are durable now. Without it the
    /// next start walks the segment once more, so a failure is no loss.
    fn reseal(&mut self, kind: SegmentKind, number: u64, file: &dyn StorageFile) {
        let is_it = |r: &Resealing| r.kind == kind && r.number == number;
        if let Some(at) = self.reseal.iter().position(is_it)
            && self.reseal.swap_remove(at).write(file).is_ok()
            && let Ok(bytes) = file.len()
            && let Some(live) = self.common.state.lock().live.get_mut(&number)
        {
            live.1 = bytes;
        }
    }

    /// Stores the checkpoint; a set-aside record that it may count as final is synced first.
    ///
    /// # Errors
    /// What the storage says; the older slot still holds.
    pub fn store_checkpoint(&mut self, data: &CheckpointData) -> io::Result<()> {
        self.sync_asides()?;
        self.checkpoint.store(&*self.common.storage, data)
    }

    fn sync_asides(&mut self) -> io::Result<()> {
        if self.common.aside_appends.load(Ordering::Acquire) != self.synced_asides {
            self.sync_now()?;
        }
        Ok(())
    }

    /// Prepares segments while fewer wait than are wanted; true when it did. No more than may
    /// wait: a flusher that takes them as fast as they come must not put off a sync.
    fn prepare_ahead(&mut self, kind: SegmentKind) -> io::Result<bool> {
        let mut any = false;
        for _ in 0..self.common.options.segments_ahead_max.max(1) {
            if !self.prepare(kind)? {
                break;
            }
            any = true;
        }
        Ok(any)
    }

    /// Has the disk begin with what was filled, so that the sync finds little left to do.
    fn start_writeback(&self) {
        let full: Vec<_> = {
            let mut state = self.common.state.lock();
            let fresh = state.retired.iter_mut().filter(|r| !r.writing);
            fresh.map(|r| { r.writing = true; r.file.clone() }).collect()
        };
        for file in full {
            file.start_writeback();
        }
    }

    /// Prepares a segment if fewer wait than are wanted; true when it did.
    pub(super) fn prepare(&mut self, kind: SegmentKind) -> io::Result<bool> {
        let bytes = match kind {
            SegmentKind::Main => self.common.options.segment_bytes,
            SegmentKind::SetAside => self.common.options.set_aside_segment_bytes,
        };
        {
            let mut state = self.common.state.lock();
            let wanted = match kind {
                SegmentKind::Main => {
                    (1 + state.taken_lately).min(self.common.options.segments_ahead_max.max(1))
                },
                SegmentKind::SetAside => usize::from(state.aside_wanted),
            };
            let waiting = state.prepared[kind as usize].len();
            if waiting >= wanted {
                return Ok(false);
            }
            let used: u64 = state.live.values().map(|(_, bytes)| bytes).sum();
            if used + bytes > self.common.wal_bytes_max {
                if waiting == 0 {
                    state.shortage[kind as usize] = Some(AppendError::Full);
                }
                return Ok(false);
            }
        }
        match self.create(kind, bytes) {
            Ok(prepared) => {
                let mut state = self.common.state.lock();
                state.prepared[kind as usize].push_back(prepared);
                state.shortage[kind as usize] = None;
                if kind == SegmentKind::SetAside {
                    state.aside_wanted = false;
                }
                Ok(true)
            }
            Err(e) => {
                let mut state = self.common.state.lock();
                if state.prepared[kind as usize].is_empty() {
                    state.shortage[kind as usize] = Some(AppendError::Storage(e.kind()));
                }
                Err(e)
            }
        }
    }

    /// Makes a segment: blocks allocated, mapped, pages present and writable. Nothing of it is
    /// synced, so that it never waits for the disk: allocated blocks read as zeroes, what is
    /// stored counts as power-safe after a sync only, and [`WalKeeper::sync_now`] makes the
    /// segment's name durable before it says so. (A sync would also protect the pages again,
    /// and each page's first store then take a fault.)
    fn create(&mut self, kind: SegmentKind, bytes: u64) -> io::Result<Prepared> {
        let number = self.next_number;
        let name = segment_name(kind, number);
        let storage = self.common.storage.clone();
        // A number is used up even when its file can't be made whole.
        self.next_number += 1;
        let mut file = storage.create(&name, bytes)?;
        self.common.state.lock().live.insert(number, (kind, bytes));
        if let Err(e) = populate_all(&mut *file) {
            let _ = storage.unlink(&name);
            self.common.state.lock().live.remove(&number);
            return Err(e);
        }
        self.names_pending = true;
        Ok(Prepared { number, file, salt: (self.salts)() as u32 })
    }

    /// Stores a manifest of what is there, after the names of new segments are durable: it must
    /// never name a file that a power cut can take back.
    pub(super) fn publish_manifest(&mut self) -> io::Result<()> {
        if self.names_pending {
            self.common.storage.sync_dir()?;
        }
        let segments = {
            let state = self.common.state.lock();
            let kept = state.live.iter().filter(|(number, _)| !state.trimmed.contains(number));
            kept.map(|(number, (kind, _))| (*number, *kind as u64)).collect()
        };
        let manifest = Manifest {
            directory_id: self.common.directory_id,
            next_number: self.next_number,
            segments,
        };
        manifest.publish(&*self.common.storage)?;
        self.names_pending = false;
        Ok(())
    }

    /// Removes trimmed segments, oldest first. Each removal is durable before the next, so
    /// that a power cut never leaves a gap that looks like a loss.
    fn unlink_trimmed(&mut self) -> io::Result<u64> {
        let mut trimmed = self.common.state.lock().trimmed.clone();
        if trimmed.is_empty() {
            return Ok(0);
        }
        self.sync_asides()?;
        self.publish_manifest()?;
        trimmed.sort_unstable();
        let mut unlinked = 0;
        for number in trimmed {
            let kind = self.common.state.lock().live.get(&number).map(|(kind, _)| *kind);
            if let Some(kind) = kind {
                match self.take_away(kind, number) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
                unlinked += 1;
            }
            let mut state = self.common.state.lock();
            state.live.remove(&number);
            state.trimmed.retain(|n| *n != number);
            state.failed.retain(|n| *n != number);
            state.keep.retain(|n| *n != number);
            state.retired.retain(|r| r.number != number);
            if state.shortage[0] == Some(AppendError::Full) {
                state.shortage[0] = None;
            }
            drop(state);
            self.common.storage.sync_dir()?;
        }
        Ok(unlinked)
    }

    /// Removes a segment's file; one with bytes that are nowhere else goes to quarantine.
    fn take_away(&self, kind: SegmentKind, number: u64) -> io::Result<()> {
        let name = segment_name(kind, number);
        let keep = {
            let state = self.common.state.lock();
            state.keep.contains(&number) || state.bad.iter().any(|b| b.number == number)
        };
        if keep {
            let to = format!("{QUARANTINE_DIR}/{number:016x}.unreadable");
            return self.common.storage.rename(&name, &to);
        }
        self.common.storage.unlink(&name)
    }

    fn quarantine(&mut self, report: &mut StepReport) {
        let ranges = std::mem::take(&mut self.common.state.lock().bad);
        for range in ranges {
            let done = quarantine_range(&*self.common.storage, SegmentKind::Main, &range, "bad");
            match done {
                Ok(true) => {
                    self.common.ranges_quarantined.fetch_add(1, Ordering::Relaxed);
                }
                Ok(false) => {}
                Err(e) => {
                    report.error.get_or_insert(("quarantine", e.kind()));
                    let mut state = self.common.state.lock();
                    // Once its segment is gone nothing can be copied any more.
                    if state.live.contains_key(&range.number) {
                        state.bad.push(range);
                    }
                }
            }
        }
    }
}

fn populate_all(file: &mut dyn AppendFile) -> io::Result<()> {
    let len = file.len();
    let mut at = 0;
    while at < len {
        let step = POPULATE_STEP_BYTES.min(len - at);
        file.populate(at, step)?;
        at += step;
    }
    Ok(())
}

/// The name of a range's copy in quarantine.
pub(super) fn quarantine_name(range: &BadRange, why: &str) -> String {
    format!("{:016x}-{:x}-{:x}.{why}", range.number, range.from, range.to)
}

/// Copies a range of a segment to a file of its own in quarantine; false when it is there
/// already from an earlier start.
pub(super) fn quarantine_range(
    storage: &dyn Storage,
    kind: SegmentKind,
    range: &BadRange,
    why: &str,
) -> io::Result<bool> {
    let name = quarantine_name(range, why);
    if storage.list(QUARANTINE_DIR)?.contains(&name) {
        return Ok(false);
    }
    let from = storage.open(&segment_name(kind, range.number))?;
    let part = format!("{QUARANTINE_DIR}/{name}.part");
    let to = storage.open_or_create(&part)?;
    let mut buf = vec![0; (range.to - range.from).min(COPY_BYTES) as usize];
    let mut at = range.from;
    while at < range.to {
        let n = ((range.to - at) as usize).min(buf.len());
        let read = from.read_at(at, &mut buf[..n])?;
        if read == 0 {
            break;
        }
        to.write_at(at - range.from, &buf[..read])?;
        at += read as u64;
    }
    to.sync()?;
    storage.rename(&part, &format!("{QUARANTINE_DIR}/{name}"))?;
    storage.sync_dir()?;
    Ok(true)
}
