//! Owns opening: what the directory holds, what of it is to be delivered, what is damaged.
//!
//! Nothing that it meets is a reason to refuse. What is bad is copied or moved to
//! `quarantine/`, what a newer version wrote is moved to `newer-version/`, and both are
//! counted. No old segment is ever appended to.
//!
//! Sealed segments are known by their seal; only the one that holds the watermark and those
//! never sealed are walked. The table in `verdict` says what a walk makes of each position;
//! this is what becomes of whole segments:
//!
//! | met | verdict |
//! |---|---|
//! | good header, good locator and seal | known without a walk |
//! | good header, no seal | walked to its end; what stands behind the last frame is cut off; sealed by the keeper if it is whole |
//! | good header, locator without its seal (cut file) | walked; the locator says how many records are gone |
//! | every byte zero | prepared and never used: emptied, and removed by the keeper |
//! | header area zero, bytes behind it; or a bad header and no byte behind it | unfinished: moved to quarantine |
//! | newer version | moved to `newer-version/` |
//! | bad header, wrong name, other kind, other log, other directory | moved to quarantine |
//! | can't be opened, or its header can't be read | tried again, then moved to quarantine |
//! | a page behind the header can't be read | tried again, then passed; the rest is read; the file goes to quarantine instead of being removed |
//! | no descriptor or no memory left to open it | the open fails: that is no fault of the data |
//! | named by the manifest and not there | counted, unless all that it may have held was final |
//! | all records below the watermark, and so were those missing behind it | removed |
//!
//! The directory's id is that of most segments; the manifest and the checkpoint vote too, one
//! vote each, and a tie goes to the manifest. A manifest or checkpoint of another directory is
//! not used, and goes to quarantine.

use super::checkpoint::{CheckpointData, Manifest, SLOTS, read_slots};
use super::format::{
    HEADER_AREA_BYTES, HeaderVerdict, NEWER_DIR, QUARANTINE_DIR, SET_ASIDE_DIR, SegmentHeader,
    SegmentKind, number_of, segment_name, zeroes_in_front,
};
use super::hints::elect;
use super::reader::SegmentInfo;
use super::reseal::Resealing;
use super::storage::{Storage, StorageFile};
use super::survey::{Begin, Known, Neighbours, persist};
use super::types::{DamageReport, Recovery, WalOptions};
use crate::record::{LogPosition, Lsn, TopicId};
use crate::topics::TopicTable;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

/// Most findings that are told in words.
const FINDINGS_MAX: usize = 100;
/// Numbers at or above this are nobody's: they leave no room to go on from.
pub(super) const NUMBER_MAX: u64 = u64::MAX / 2;
/// A higher number is believed of a segment's own header only, not of a file's name or of the
/// manifest: so that no stray file makes the numbers run out.
pub(super) const NUMBER_BELIEVED_MAX: u64 = u64::MAX / 4;

/// What opening leaves for the two halves.
pub(super) struct Opened {
    pub segments: VecDeque<SegmentInfo>,
    pub recovery: Recovery,
    /// The frame number that is due where the backlog begins.
    pub backlog_frame: u64,
    pub directory_id: u64,
    pub next_number: u64,
    pub next_frame: [u64; 2],
    pub live: BTreeMap<u64, (SegmentKind, u64)>,
    pub trimmed: Vec<u64>,
    /// Segments with bytes that are nowhere else: moved to quarantine instead of removed.
    pub keep: Vec<u64>,
    pub reseal: Vec<Resealing>,
    pub generation: u64,
    pub newest_slot: Option<usize>,
}

pub(super) struct Recoverer<'a> {
    pub storage: &'a dyn Storage,
    pub topics: &'a Arc<TopicTable>,
    pub options: &'a WalOptions,
    pub damage: DamageReport,
    pub live: BTreeMap<u64, (SegmentKind, u64)>,
    pub reseal: Vec<Resealing>,
    keep: Vec<u64>,
    trimmed: Vec<u64>,
    /// Files that were moved away whole, now or earlier.
    pub apart: Vec<u64>,
    pub next_number: u64,
    /// Main segments without a byte that isn't zero.
    zeroed: Vec<u64>,
}

pub(super) fn recover(
    storage: &dyn Storage,
    topics: &Arc<TopicTable>,
    options: &WalOptions,
    new_directory_id: u64,
) -> io::Result<Opened> {
    let mut r = Recoverer {
        storage,
        topics,
        options,
        damage: DamageReport::default(),
        live: BTreeMap::new(),
        reseal: Vec::new(),
        keep: Vec::new(),
        trimmed: Vec::new(),
        apart: Vec::new(),
        next_number: 1,
        zeroed: Vec::new(),
    };
    let names = [r.numbers("")?, r.numbers(SET_ASIDE_DIR)?];
    for dir in [QUARANTINE_DIR, NEWER_DIR] {
        r.numbers(dir)?;
        // What is cut off of a file has a `-` behind the number.
        let whole = storage.list(dir)?.into_iter().filter(|n| n.as_bytes().get(16) == Some(&b'.'));
        r.apart.extend(whole.filter_map(|n| number_of(&n)));
    }
    let manifest = Manifest::read(storage);
    let (mut slots, slots_bad) = read_slots(storage);
    let slots_bad = slots_bad.iter().filter(|bad| **bad).count() as u64;
    r.damage.checkpoints_bad = slots_bad;
    if slots_bad > 0 {
        r.say(format!(
            "{slots_bad} of the two checkpoints is torn or damaged and isn't used: with none left, what the log holds is delivered once more"
        ));
    }
    let headers =
        [r.headers(SegmentKind::Main, &names[0])?, r.headers(SegmentKind::SetAside, &names[1])?];
    let ids = headers.iter().flatten().map(|h| h.directory_id);
    let directory_id = elect(ids, manifest.as_ref(), &slots).unwrap_or(new_directory_id);
    let manifest = r.ours(directory_id, manifest, &mut slots);
    r.judge_zeroed(headers[0].last().map_or(0, |h| h.number));
    let generation = slots.iter().flatten().map(|s| s.generation).max().unwrap_or(0);
    let newest_slot =
        slots.iter().position(|s| s.as_ref().is_some_and(|s| s.generation == generation));
    if let Some(newest) = newest_slot {
        // The other slot is written next, so this one must be durable. A hint, so a failure
        // costs duplicates at most.
        let _ = storage.open(SLOTS[newest]).and_then(|f| f.sync());
    }
    let checkpoint = newest_slot.and_then(|n| slots[n].take()).map(|s| s.data);

    let watermark = checkpoint.as_ref().map_or(0, |c| c.watermark.0);
    let mut next_lsn = checkpoint.as_ref().map_or(0, |c| c.next_lsn.0.max(c.watermark.0));
    let mut next_frame = [0; 2];
    let mut kept: VecDeque<Known> = VecDeque::new();
    for (k, headers) in headers.into_iter().enumerate() {
        let headers: Vec<_> = headers.into_iter().filter(|h| r.belongs(h, directory_id)).collect();
        for (i, header) in headers.iter().enumerate() {
            let next = headers.get(i + 1);
            let neighbours = Neighbours { watermark, next_base: next.map(|h| h.base_lsn) };
            let mut known = match r.look(*header, neighbours) {
                Ok(known) => known,
                Err(e) if is_shortage(&e) => return Err(e),
                Err(e) => {
                    r.set_apart(header.kind, header.number, "unreadable", &unreadable(&e));
                    continue;
                }
            };
            next_frame[k] = known.info.next_frame.max(next_frame[k]);
            next_lsn = next_lsn.max(header.base_lsn);
            next_lsn = next_lsn.max(known.info.last_lsn.map_or(0, |n| n.saturating_add(1)));
            if header.kind == SegmentKind::SetAside {
                continue;
            }
            let missing_behind = next
                .is_some_and(|n| n.base_lsn > watermark && n.first_frame > known.info.next_frame);
            if known.lost_inside > 0 || missing_behind {
                // It holds, or would hold, records that aren't final, though none that is left.
                let given = next.map_or(next_lsn, |n| n.base_lsn);
                let below = given.saturating_sub(1);
                known.info.last_lsn = known.info.last_lsn.max(Some(below.max(watermark)));
            }
            if known.info.last_lsn.is_none_or(|last| last < watermark) {
                r.trimmed.push(header.number);
            } else {
                kept.push_back(known);
            }
        }
    }
    if let Some(manifest) = manifest {
        let all_final = checkpoint.as_ref().is_some_and(|c| c.watermark >= c.next_lsn);
        r.missing(&manifest, &names, kept.front().map(|k| k.info.header), watermark, all_final);
    }
    while names.iter().any(|taken| taken.contains(&r.next_number)) {
        r.next_number += 1;
    }
    // What was lost behind the last good record is lost at its segment's end: new segments
    // begin behind it, and a reader counts it whether any comes or not.
    if let Some(last) = kept.back_mut() {
        last.info.next_frame = next_frame[SegmentKind::Main as usize];
    }
    let mut recovery = Recovery { next_lsn: Lsn(next_lsn), ..Recovery::default() };
    let backlog_frame = r.backlog(&mut kept, watermark, &mut recovery);
    recovery.checkpoint = checkpoint;
    recovery.damage = r.damage;
    Ok(Opened {
        segments: kept.into_iter().map(|k| k.info).collect(),
        recovery,
        backlog_frame,
        directory_id,
        next_number: r.next_number,
        next_frame,
        live: r.live,
        trimmed: r.trimmed,
        keep: r.keep,
        reseal: r.reseal,
        generation,
        newest_slot,
    })
}

/// Whether a file can't be opened for a reason that lies in this process or machine.
fn is_shortage(e: &io::Error) -> bool {
    use rustix::io::Errno;
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOMEM];
    Errno::from_io_error(e).is_some_and(|e| shortages.contains(&e))
}

fn unreadable(e: &io::Error) -> String {
    format!(
        "the disk refuses to read it ({e}), so its records can't be delivered now; if it can be read again, stop the pipeline, move the file back under its number with .wal at the end, and start"
    )
}

impl Recoverer<'_> {
    pub(super) fn say(&mut self, finding: String) {
        if self.damage.findings.len() < FINDINGS_MAX {
            self.damage.findings.push(finding);
        }
    }

    /// Its file has bytes that are nowhere else: it is never removed.
    pub(super) fn keep(&mut self, number: u64) {
        if !self.keep.contains(&number) {
            self.keep.push(number);
        }
    }

    /// Numbers of the segments in a directory, ascending. Other files are left alone.
    fn numbers(&mut self, dir: &str) -> io::Result<Vec<u64>> {
        let names = self.storage.list(dir)?;
        let used = names.iter().filter_map(|n| number_of(n)).filter(|n| *n < NUMBER_BELIEVED_MAX);
        self.next_number = used.map(|n| n + 1).fold(self.next_number, u64::max);
        let mut numbers: Vec<u64> = names
            .iter()
            .filter(|n| n.len() == 20 && n.ends_with(".wal"))
            .filter_map(|n| number_of(n))
            .filter(|n| *n < NUMBER_MAX)
            .collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The good headers of these segments; the rest is moved away or removed. One file is open
    /// at a time, however many there are.
    fn headers(&mut self, kind: SegmentKind, numbers: &[u64]) -> io::Result<Vec<SegmentHeader>> {
        let mut good = Vec::new();
        for &number in numbers {
            match persist(|| self.header(kind, number)) {
                Ok(found) => good.extend(found),
                // Between the listing and now somebody took it away; the manifest tells.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) if is_shortage(&e) => return Err(e),
                Err(e) => self.set_apart(kind, number, "unreadable", &unreadable(&e)),
            }
        }
        Ok(good)
    }

    fn header(&mut self, kind: SegmentKind, number: u64) -> io::Result<Option<SegmentHeader>> {
        let name = segment_name(kind, number);
        let file = self.storage.open(&name)?;
        let len = file.len()?;
        let mut area = [0; HEADER_AREA_BYTES as usize];
        let read = file.read_at(0, &mut area)?;
        match SegmentHeader::judge(&area[..read]) {
            HeaderVerdict::Good(header) if header.number == number && header.kind == kind => {
                // An empty file of the other kind may have its number, but not its segment's fate.
                if let Some(at) = self.trimmed.iter().position(|n| *n == number) {
                    self.trimmed.remove(at);
                    self.zeroed.retain(|n| *n != number);
                    let _ = self.storage.unlink(&segment_name(SegmentKind::Main, number));
                }
                self.live.insert(number, (kind, len));
                self.next_number = self.next_number.max(number + 1);
                return Ok(Some(header));
            }
            HeaderVerdict::Good(header) => {
                let itself = segment_name(header.kind, header.number);
                self.set_apart(
                    kind,
                    number,
                    "foreign",
                    &format!("its header says that it is {itself}: a copy, or renamed"),
                );
            }
            HeaderVerdict::Unused
                if self.live.contains_key(&number) && is_zero(&*file, 0, len)? =>
            {
                // The number is another segment's: nothing is done under it.
                let _ = self.storage.unlink(&name);
            }
            HeaderVerdict::Unused if is_zero(&*file, 0, len)? => {
                // Prepared and never used, or an empty file: there is nothing to keep. Its
                // name goes after a manifest without it.
                let _ = file.truncate(0);
                self.live.insert(number, (kind, 0));
                self.trimmed.push(number);
                if kind == SegmentKind::Main {
                    self.zeroed.push(number);
                }
            }
            HeaderVerdict::Unused => {
                self.damage.unfinished_tails += 1;
                self.set_apart(kind, number, "unfinished", "its header was never written");
            }
            HeaderVerdict::Newer(version) => {
                let to = self.free_name(NEWER_DIR, &format!("{number:016x}.wal"));
                self.damage.segments_newer += 1;
                self.apart.push(number);
                let moved = self.storage.rename(&name, &to);
                self.say(match moved {
                    Ok(()) => format!("{name}: format version {version}, newer than this program; moved to {to} untouched; start a newer version of the program to deliver it"),
                    Err(e) => format!("{name}: format version {version}, newer than this program; left where it is: {e}"),
                });
            }
            HeaderVerdict::Bad if is_zero(&*file, HEADER_AREA_BYTES, len)? => {
                self.damage.unfinished_tails += 1;
                self.set_apart(
                    kind,
                    number,
                    "unfinished",
                    "its header was cut off, and no frame follows",
                );
            }
            HeaderVerdict::Bad => {
                self.set_apart(
                    kind,
                    number,
                    "header",
                    "both copies of its header are damaged, so no frame in it can be checked",
                );
            }
        }
        Ok(None)
    }

    /// A name in `dir` that nothing has yet.
    pub(super) fn free_name(&self, dir: &str, name: &str) -> String {
        let taken = self.storage.list(dir).unwrap_or_default();
        let mut free = name.to_string();
        let mut n = 2;
        while taken.contains(&free) {
            free = format!("{name}-{n}");
            n += 1;
        }
        format!("{dir}/{free}")
    }

    /// Moves a whole segment to quarantine.
    fn set_apart(&mut self, kind: SegmentKind, number: u64, tag: &str, why: &str) {
        self.damage.segments_foreign += 1;
        self.apart.push(number);
        let name = segment_name(kind, number);
        let bytes = match self.live.get(&number) {
            Some((k, bytes)) if *k == kind => *bytes,
            _ => self.storage.open(&name).and_then(|f| f.len()).unwrap_or(0),
        };
        if self.live.get(&number).is_some_and(|(k, _)| *k == kind) {
            self.live.remove(&number);
        }
        let to = self.free_name(QUARANTINE_DIR, &format!("{number:016x}.{tag}"));
        match self.storage.rename(&name, &to) {
            Ok(()) => {
                self.damage.ranges_quarantined += 1;
                self.damage.bytes_quarantined += bytes;
                self.say(format!("{name}: {why}; moved to {to}"));
            }
            Err(e) => self.say(format!("{name}: {why}; left where it is: {e}")),
        }
    }

    /// Whether it is a segment of this directory and log; one that isn't is moved away.
    fn belongs(&mut self, header: &SegmentHeader, directory_id: u64) -> bool {
        if header.directory_id == directory_id && header.log_id == self.options.log_id {
            return true;
        }
        let why = "it belongs to another directory or log, and would deliver its records";
        self.set_apart(header.kind, header.number, "foreign", why);
        false
    }

    /// Tells a segment that was emptied from one that was never used: they are used in order. A
    /// power cut may do that to what wasn't synced; what is missing the next segment tells.
    fn judge_zeroed(&mut self, newest_used: u64) {
        for number in std::mem::take(&mut self.zeroed) {
            if number < newest_used {
                self.damage.unfinished_tails += 1;
                self.say(format!(
                    "segment {number:016x}: empty, or zeroes from end to end, and a later one was used: a power cut took what wasn't synced, or somebody emptied it"
                ));
            }
        }
    }

    /// Counts what a reader from the watermark will yield. Returns the frame number due there.
    fn backlog(&mut self, kept: &mut VecDeque<Known>, watermark: u64, to: &mut Recovery) -> u64 {
        let next_base = kept.get(1).map(|k| k.info.header.base_lsn);
        let Some(first) = kept.front_mut() else { return 0 };
        let header = first.info.header;
        let at_start = || Begin {
            offset: HEADER_AREA_BYTES,
            due: header.first_frame,
            first_lsn: first.first_lsn,
            counts: first.counts.clone(),
        };
        let begin = if header.base_lsn >= watermark {
            at_start()
        } else if let Some(begin) = first.begin.take() {
            begin
        } else {
            match self.begin_in(&first.info, Neighbours { watermark, next_base }) {
                Ok((begin, lost)) => {
                    first.lost_inside = lost;
                    begin
                }
                Err(e) => {
                    self.say(format!(
                        "segment {:016x}: {e}: all of it is delivered once more",
                        header.number
                    ));
                    at_start()
                }
            }
        };
        first.counts = begin.counts;
        let mut due = begin.due;
        let mut by_topic: BTreeMap<TopicId, u64> = BTreeMap::new();
        for known in kept.iter() {
            let info = &known.info;
            let name = segment_name(SegmentKind::Main, info.header.number);
            let before = info.header.first_frame.saturating_sub(due);
            if before > 0 {
                self.damage.records_lost += before;
                self.say(format!("{before} records before {name} are missing"));
                to.records += before;
            }
            let is_first = info.header.number == header.number;
            let here = if is_first { begin.due } else { info.header.first_frame };
            let at_end = info.next_frame.saturating_sub(known.seen_next.max(here));
            if at_end > 0 {
                self.say(format!("{at_end} records at the end of {name} are missing"));
            }
            self.damage.records_lost += known.lost_inside + at_end;
            to.records += info.next_frame.saturating_sub(here);
            due = info.next_frame;
            to.bytes += info.end;
            for (id, n) in &known.counts {
                *by_topic.entry(*id).or_default() += n;
            }
        }
        let named = by_topic.into_iter().filter(|(_, n)| *n > 0);
        to.records_by_topic =
            named.filter_map(|(id, n)| Some((self.topics.name(id)?.to_string(), n))).collect();
        if to.records > 0 {
            to.backlog = Some(LogPosition { segment: header.number, offset: begin.offset });
            let behind = || kept.iter().skip(1).find_map(|k| k.first_lsn);
            to.first_lsn = begin.first_lsn.or_else(behind).map(Lsn);
        }
        begin.due
    }
}

/// Whether a file's bytes from `at` on are all zero.
pub(super) fn is_zero(file: &dyn StorageFile, mut at: u64, len: u64) -> io::Result<bool> {
    let mut buf = vec![0; len.min(256 << 10) as usize];
    while at < len {
        let read = file.read_at(at, &mut buf)?;
        if read == 0 {
            break;
        }
        if zeroes_in_front(&buf[..read]) < read {
            return Ok(false);
        }
        at += read as u64;
    }
    Ok(true)
}

/// The newest checkpoint of a directory, without opening the log.
pub(super) fn newest_checkpoint(storage: &dyn Storage) -> Option<CheckpointData> {
    let (slots, _) = read_slots(storage);
    slots.into_iter().flatten().max_by_key(|s| s.generation).map(|s| s.data)
}
