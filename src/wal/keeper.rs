//! Owns the keeper's half: everything of the log that is slow. It prepares segments before
//! they are needed, syncs, stores the checkpoint, copies bad ranges to quarantine, and
//! removes segments after a manifest without them is durable.

use super::checkpoint::{CheckpointData, CheckpointWriter, Manifest};
use super::format::{QUARANTINE_DIR, SegmentKind, segment_name};
use super::reseal::Resealing;
use super::rewrite::remove_mark;
use super::shared::{BadRange, Common, Failed, Prepared, Retired};
use super::storage::{AppendFile, Storage, StorageFile};
use super::types::{AppendError, SaltSource};
use crate::sync::Ordering;
use std::io;
use std::sync::Arc;

/// Full segments that wait for their sync before the flusher has to wait for the disk: each holds
/// a mapping and a descriptor, and its pages can't be taken back.
const RETIRED_MAX: usize = 16;
/// Most bytes of one bad range that are copied at a time.
const COPY_BYTES: u64 = 1 << 20;
/// Names in a row that may be taken by something that isn't ours.
const NAMES_TRIED: u32 = 64;
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
    /// Segments were made whose names aren't durable.
    pub(super) names_pending: bool,
    /// The manifest names what isn't there any more, or not yet what is.
    pub(super) manifest_stale: bool,
    /// A file that could not be made whole, and not be removed either.
    pub(super) unmade: Option<(SegmentKind, u64)>,
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
    /// A sync failed: wake the flusher, which leaves the segment.
    pub sync_failed: bool,
    /// A segment whose sync had failed was rewritten.
    pub rewritten: bool,
    /// Something was appended that no sync has covered yet.
    pub unsynced: bool,
    /// The checkpoint was stored.
    pub checkpointed: bool,
    /// Segments removed.
    pub unlinked: u64,
    /// The first error of the step, with what failed. Every step tries again, except a sync:
    /// a segment whose sync failed is left by the flusher and rewritten.
    pub error: Option<(&'static str, io::ErrorKind)>,
}

impl StepReport {
    pub(super) fn note<T>(&mut self, what: &'static str, done: io::Result<T>) -> Option<T> {
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
    /// One turn: rewrites what a failed sync left in doubt, prepares, syncs when
    /// `sync_interval` has passed, stores `checkpoint` when it is given, removes what was
    /// trimmed.
    pub fn step(&mut self, now_ns: u64, checkpoint: Option<&CheckpointData>) -> StepReport {
        let mut report = StepReport::default();
        // First, since where room is short it matters more than a segment to come.
        self.rewrite_failed(now_ns, &mut report);
        for kind in [SegmentKind::Main, SegmentKind::SetAside] {
            let done = self.prepare_ahead(kind);
            report.prepared |= report.note("prepare", done) == Some(true);
        }
        self.probe(&mut report);
        report.prepared |= self.start_writeback();
        self.quarantine(&mut report);
        let due = self
            .synced_at_ns
            .is_none_or(|at| now_ns.saturating_sub(at) >= self.common.options.sync_interval_ns)
            || self.common.state.lock().retired.len() >= RETIRED_MAX;
        if due {
            self.synced_at_ns = Some(now_ns);
            let failures = self.common.sync_failures.load(Ordering::Relaxed);
            let done = self.sync_now();
            report.synced = report.note("sync", done).is_some();
            report.sync_failed = failures != self.common.sync_failures.load(Ordering::Relaxed);
            self.common.state.lock().taken_lately /= 2;
        }
        if let Some(data) = checkpoint {
            let done = self.store_checkpoint(data);
            report.checkpointed = report.note("checkpoint", done).is_some();
        }
        let done = self.unlink_trimmed();
        report.unlinked = report.note("unlink", done).unwrap_or(0);
        report.unsynced = self.common.appended_below.load(Ordering::Acquire)
            != self.common.synced_below()
            || self.common.aside_appends.load(Ordering::Acquire) != self.synced_asides
            || !self.common.state.lock().failed.is_empty();
        report
    }

    /// After a store that failed: whether the disk still takes what waits to be used. What it
    /// doesn't take is removed; while nothing waits, there is nothing to ask with.
    fn probe(&mut self, report: &mut StepReport) {
        let waiting = {
            let mut state = self.common.state.lock();
            if !state.suspect {
                return;
            }
            std::mem::take(&mut state.prepared)
        };
        let (mut sound, mut bad) = (false, false);
        for (k, prepared) in waiting.into_iter().enumerate() {
            for segment in prepared {
                let synced = segment.file.file().sync();
                let mut state = self.common.state.lock();
                match synced {
                    Ok(()) => {
                        sound = true;
                        state.prepared[k].push_back(segment);
                    }
                    Err(e) => {
                        bad = true;
                        state.trimmed.push(segment.number);
                        report.error.get_or_insert(("sync", e.kind()));
                    }
                }
            }
        }
        if sound && !bad {
            self.common.state.lock().suspect = false;
            report.prepared = true;
        }
    }

    /// Syncs everything that was appended before the call, and the checkpoint.
    ///
    /// # Errors
    /// The first sync that failed. Its segment is left by the flusher and rewritten in a later
    /// [`WalKeeper::step`]; `synced_below` stands still until then.
    pub fn sync_now(&mut self) -> io::Result<()> {
        let (mut files, retired, owners, below, asides) = {
            let mut state = self.common.state.lock();
            let mut files: Vec<Failed> = Vec::new();
            for kind in [SegmentKind::Main, SegmentKind::SetAside] {
                if let Some((number, file)) = state.active[kind as usize].clone() {
                    let file = Some(file);
                    files.push(Failed { file, active: true, ..Failed::new(kind, number) });
                }
            }
            let mut owners = state.adopt_left();
            let mut retired = std::mem::take(&mut state.retired);
            owners.extend(retired.iter_mut().filter_map(|r| r.owner.take()));
            let below = self.common.appended_below.load(Ordering::Acquire);
            let asides = self.common.aside_appends.load(Ordering::Acquire);
            (files, retired, owners, below, asides)
        };
        // Here, by the thread that may take long.
        drop(owners);
        let mut first_error = None;
        if retired.is_empty() && below == self.common.synced_below() && asides == self.synced_asides
        {
            files.clear();
        }
        for r in &retired {
            let (file, known) = (Some(r.file.clone()), Some(r.known));
            files.push(Failed { file, known, ..Failed::new(r.kind, r.number) });
        }
        let mut files = files.into_iter();
        while let Some(in_case) = files.next() {
            let (kind, number) = (in_case.kind, in_case.number);
            // A second sync of a segment whose first one failed would say nothing.
            if self.common.state.lock().is_failed(number) {
                continue;
            }
            let synced = in_case.file.as_ref().map_or(Ok(()), |f| f.sync());
            if let Err(e) = synced.and_then(|()| self.still_there(kind, number)) {
                self.sync_failed(in_case);
                first_error.get_or_insert(e);
            }
            if files.len() > 0 {
                self.prepare_meanwhile();
            }
            self.start_writeback();
        }
        for (kind, number) in std::mem::take(&mut self.recovered) {
            if self.common.state.lock().is_failed(number) {
                continue;
            }
            // One descriptor at a time, however many segments there are.
            let file = self.common.storage.open(&segment_name(kind, number));
            match file.and_then(|f| f.sync().map(|()| f)) {
                Ok(file) => self.reseal(kind, number, &*file),
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    self.sync_failed(Failed::new(kind, number));
                    first_error.get_or_insert(e);
                }
                Err(_) => {}
            }
        }
        // A segment is power-safe when its name is, too.
        let names = self.sync_names();
        self.start_writeback();
        if let Err(e) = names {
            first_error.get_or_insert(e);
        } else {
            let state = self.common.state.lock();
            if !state.failed.iter().any(|f| f.kind == SegmentKind::SetAside) {
                self.synced_asides = asides;
            }
            if state.failed.is_empty() {
                self.common.synced_below.store(below, Ordering::Release);
            }
        }
        // Without a manifest nothing is lost, only not missed.
        if self.manifest_stale
            && let Err(e) = self.publish_manifest()
        {
            first_error.get_or_insert(e);
        }
        self.start_writeback();
        let checkpoint = self.checkpoint.sync(&*self.common.storage);
        match first_error {
            Some(e) => Err(e),
            None => checkpoint,
        }
    }

    /// The last sync: what failed is rewritten at once, without a pause.
    ///
    /// # Errors
    /// What is still not power-safe after that.
    pub fn sync_at_end(&mut self) -> io::Result<()> {
        let first = self.sync_now();
        loop {
            let before = self.unsynced_segments();
            let mut report = StepReport::default();
            self.rewrite_failed(u64::MAX, &mut report);
            let left = self.unsynced_segments();
            if let Some((_, kind)) = report.error {
                return Err(kind.into());
            }
            if left == 0 {
                return if before == 0 { first } else { self.sync_now() };
            }
            if left == before {
                return first.and(Err(io::Error::other("a segment whose sync failed is in use")));
            }
        }
    }

    /// Segments whose sync failed, but those that are about to go.
    fn unsynced_segments(&self) -> usize {
        let state = self.common.state.lock();
        state.failed.iter().filter(|f| !state.trimmed.contains(&f.number)).count()
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

    /// What was set aside before the call is power-safe when this returns well.
    fn sync_asides(&mut self) -> io::Result<()> {
        let asides = self.common.aside_appends.load(Ordering::Acquire);
        if asides != self.synced_asides {
            self.sync_now()?;
        }
        if self.synced_asides < asides {
            return Err(io::Error::other("a set-aside segment waits to be rewritten"));
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

    /// Has the disk begin with what was filled, so that the sync finds little left to do. Between
    /// two things that wait for the disk, too: what is filled meanwhile would else wait for both.
    fn start_writeback(&mut self) -> bool {
        let mut prepared = false;
        let full: Vec<_> = {
            let mut state = self.common.state.lock();
            let take = |r: &mut Retired| r.owner.take().map(|owner| (owner, r.file.clone()));
            state.retired.iter_mut().filter_map(take).collect()
        };
        for (owner, file) in full {
            drop(owner);
            file.start_writeback();
            // That waits where the disk has enough to do, and the flusher fills segments meanwhile.
            prepared |= self.prepare_meanwhile();
        }
        prepared
    }

    /// Prepares a segment between two things that may take long. What fails here is tried again,
    /// and told, by the next turn.
    fn prepare_meanwhile(&mut self) -> bool {
        let retired = self.common.state.lock().retired.len();
        self.common.options.segments_ahead_max > 1
            && retired < RETIRED_MAX
            && self.prepare(SegmentKind::Main).unwrap_or(false)
    }

    /// Prepares a segment if fewer wait than are wanted; true when it did.
    pub(super) fn prepare(&mut self, kind: SegmentKind) -> io::Result<bool> {
        let waiting = {
            let state = self.common.state.lock();
            let wanted = match kind {
                SegmentKind::Main => {
                    (1 + state.taken_lately).min(self.common.options.segments_ahead_max.max(1))
                }
                SegmentKind::SetAside => usize::from(state.aside_wanted),
            };
            let waiting = state.prepared[kind as usize].len();
            if waiting >= wanted {
                return Ok(false);
            }
            waiting
        };
        self.remove_unmade()?;
        let has_room =
            self.has_room(kind) || (kind == SegmentKind::SetAside && self.forget_vanished());
        if !has_room {
            if waiting == 0 {
                self.common.state.lock().shortage[kind as usize] = Some(AppendError::Full);
            }
            return Ok(false);
        }
        match self.create(kind, self.segment_bytes(kind)) {
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
        let storage = self.common.storage.clone();
        let mut taken = 0;
        let (number, mut file) = loop {
            let number = self.next_number;
            // A number is used up even when its file can't be made whole.
            self.next_number += 1;
            match storage.create(&segment_name(kind, number), bytes) {
                // Something that is no file stands there.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && taken < NAMES_TRIED => {
                    taken += 1;
                }
                made => break (number, made?),
            }
        };
        self.common.state.lock().live.insert(number, (kind, bytes));
        if let Err(e) = populate_all(&mut *file) {
            self.unmade = Some((kind, number));
            drop(file);
            let _ = self.remove_unmade();
            return Err(e);
        }
        self.names_pending = true;
        self.manifest_stale = true;
        Ok(Prepared { number, file, salt: (self.salts)() as u32 })
    }

    /// Makes the names of new segments durable.
    fn sync_names(&mut self) -> io::Result<()> {
        if self.names_pending {
            self.common.storage.sync_dir()?;
            self.names_pending = false;
        }
        Ok(())
    }

    pub(super) fn manifest(&self) -> Manifest {
        let segments = {
            let state = self.common.state.lock();
            let kept = state.live.iter().filter(|(number, _)| !state.trimmed.contains(number));
            kept.map(|(number, (kind, _))| (*number, *kind as u64)).collect()
        };
        Manifest { directory_id: self.common.directory_id, next_number: self.next_number, segments }
    }

    /// Stores a manifest of what is there, after the names of new segments are durable: it must
    /// never name a file that a power cut can take back.
    pub(super) fn publish_manifest(&mut self) -> io::Result<()> {
        self.sync_names()?;
        self.manifest().publish(&*self.common.storage)?;
        self.manifest_stale = false;
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
        self.publish_before_removal()?;
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
            let was_failed = state.is_failed(number);
            state.live.remove(&number);
            state.trimmed.retain(|n| *n != number);
            state.failed.retain(|f| f.number != number);
            state.keep.retain(|n| *n != number);
            state.bad.retain(|b| b.number != number);
            state.retired.retain(|r| r.number != number);
            // There may be room now: the next turn finds out.
            state.shortage = [None, None];
            drop(state);
            if let Some(kind) = kind.filter(|_| was_failed) {
                remove_mark(&*self.common.storage, kind, number);
            }
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
            let to = format!("{QUARANTINE_DIR}/{number:016x}.kept");
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
