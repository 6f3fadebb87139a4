//! Owns opening: what the directory holds, what of it is to be delivered, what is damaged.
//!
//! Nothing that it meets is a reason to refuse. What is bad is copied or moved to
//! `quarantine/`, what a newer version wrote is moved to `newer-version/`, and both are
//! counted. No old segment is ever appended to.
//!
//! Sealed segments are known by their seal; only the one that holds the watermark and those
//! never sealed are walked. The cursor's table says what a walk makes of each position; this
//! is what becomes of whole segments:
//!
//! | met | verdict |
//! |---|---|
//! | good header, good locator and seal | known without a walk |
//! | good header, no seal | walked to its end; zeroes behind the last frame are cut off |
//! | good header, locator without its seal (cut file) | walked; the locator says how many records are gone |
//! | every byte zero | prepared and never used: removed |
//! | header area zero, bytes behind it; or a bad header and no byte behind it | unfinished: moved to quarantine |
//! | newer version | moved to `newer-version/` |
//! | bad header, wrong name, other kind, other log, other directory, unreadable | moved to quarantine |
//! | named by the manifest and not there | counted |
//! | all records below the watermark | removed |

use super::checkpoint::{CheckpointData, Manifest, SLOTS, read_slots};
use super::cursor::{Cursor, Found};
use super::format::{HEADER_AREA_BYTES, HeaderVerdict, LocalTopics, NEWER_DIR, QUARANTINE_DIR, SET_ASIDE_DIR, SegmentHeader, SegmentKind, number_of, pad8, segment_name};
use super::seal::{Locator};
use super::keeper::quarantine_range;
use super::reader::{SegmentInfo, intern_all, read_seal};
use super::shared::BadRange;
use super::storage::{Storage, StorageFile};
use super::types::{DamageReport, Recovery, WalOptions};
use crate::record::{LogPosition, Lsn, TopicId};
use crate::topics::TopicTable;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

/// Most findings that are told in words.
const FINDINGS_MAX: usize = 100;

/// What opening leaves for the two halves.
pub(super) struct Opened {
    pub segments: VecDeque<SegmentInfo>,
    pub recovery: Recovery,
    pub directory_id: u64,
    pub next_number: u64,
    pub next_frame: [u64; 2],
    pub live: BTreeMap<u64, (SegmentKind, u64)>,
    pub trimmed: Vec<u64>,
    pub generation: u64,
    pub newest_slot: Option<usize>,
}

/// What is known of a segment after it was looked at.
struct Known {
    info: SegmentInfo,
    first_lsn: Option<u64>,
    counts: Vec<(TopicId, u64)>,
}

struct Recoverer<'a> {
    storage: &'a dyn Storage,
    topics: &'a Arc<TopicTable>,
    options: &'a WalOptions,
    damage: DamageReport,
    live: BTreeMap<u64, (SegmentKind, u64)>,
    next_number: u64,
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
        next_number: 1,
    };
    let main = r.numbers("")?;
    let aside = r.numbers(SET_ASIDE_DIR)?;
    for dir in [QUARANTINE_DIR, NEWER_DIR] {
        r.numbers(dir)?;
    }
    let manifest = Manifest::read(storage);
    let (mut slots, slots_bad) = read_slots(storage);
    r.damage.checkpoints_bad = slots_bad;
    if let Some(manifest) = &manifest {
        r.next_number = r.next_number.max(manifest.next_number.min(u64::MAX / 2));
        let gone = |n: &&(u64, u64)| !main.contains(&n.0) && !aside.contains(&n.0);
        let missing: Vec<u64> = manifest.segments.iter().filter(gone).map(|(n, _)| *n).collect();
        r.damage.segments_missing = missing.len() as u64;
        for number in missing {
            r.say(format!("segment {number:016x}: named by the manifest, not in the directory"));
        }
    }
    let main = r.headers(SegmentKind::Main, &main);
    let aside = r.headers(SegmentKind::SetAside, &aside);

    let mut votes: Vec<(u64, u64)> = Vec::new();
    let all = main.iter().chain(&aside).map(|(h, _)| h.directory_id);
    let hints = manifest.iter().map(|m| m.directory_id);
    for id in all.chain(hints).chain(slots.iter().flatten().map(|s| s.directory_id)) {
        match votes.iter_mut().find(|(voted, _)| *voted == id) {
            Some((_, n)) => *n += 1,
            None => votes.push((id, 1)),
        }
    }
    // The first of those with most votes: the oldest segment's, in a tie.
    let most = votes.iter().map(|(_, n)| *n).max().unwrap_or(0);
    let directory_id =
        votes.iter().find(|(_, n)| *n == most).map_or(new_directory_id, |(id, _)| *id);
    for slot in &mut slots {
        if slot.as_ref().is_some_and(|s| s.directory_id != directory_id) {
            *slot = None;
            r.damage.checkpoints_bad += 1;
            r.say("a checkpoint of another directory: not used".to_string());
        }
    }
    let generation = slots.iter().flatten().map(|s| s.generation).max().unwrap_or(0);
    let newest_slot = slots.iter().position(|s| s.as_ref().is_some_and(|s| s.generation == generation));
    if let Some(newest) = newest_slot {
        // The other slot is written next, so this one must be durable. A hint, so a failure
        // costs duplicates at most.
        let _ = storage.open(SLOTS[newest]).and_then(|f| f.sync());
    }
    let checkpoint = newest_slot.and_then(|n| slots[n].take()).map(|s| s.data);

    let watermark = checkpoint.as_ref().map_or(0, |c| c.watermark.0);
    let mut next_lsn = checkpoint.as_ref().map_or(0, |c| c.next_lsn.0.max(c.watermark.0));
    let mut next_frame = [0; 2];
    let mut trimmed = Vec::new();
    let mut kept: VecDeque<Known> = VecDeque::new();
    for (kind, segments) in [(SegmentKind::Main, main), (SegmentKind::SetAside, aside)] {
        for (header, file) in segments {
            if header.directory_id != directory_id || header.log_id != options.log_id {
                r.set_apart(kind, header.number, "foreign", "it belongs to another directory or log");
                continue;
            }
            let known = match r.look(header, file) {
                Ok(known) => known,
                Err(e) => {
                    r.set_apart(kind, header.number, "unreadable", &e.to_string());
                    continue;
                }
            };
            let k = kind as usize;
            next_frame[k] = known.info.next_frame.max(next_frame[k]);
            next_lsn = next_lsn.max(header.base_lsn);
            next_lsn = next_lsn.max(known.info.last_lsn.map_or(0, |n| n.saturating_add(1)));
            if kind == SegmentKind::SetAside {
                continue;
            }
            if known.info.last_lsn.is_none_or(|last| last < watermark) {
                trimmed.push(header.number);
            } else {
                kept.push_back(known);
            }
        }
    }
    // What was lost behind the last good record is lost at its segment's end: new segments
    // begin behind it, and a reader counts it whether any comes or not.
    if let Some(last) = kept.back_mut() {
        last.info.next_frame = next_frame[SegmentKind::Main as usize];
    }
    let mut recovery = Recovery { next_lsn: Lsn(next_lsn), ..Recovery::default() };
    r.backlog(&mut kept, watermark, &mut recovery);
    recovery.checkpoint = checkpoint;
    recovery.damage = r.damage;
    Ok(Opened {
        segments: kept.into_iter().map(|k| k.info).collect(),
        recovery,
        directory_id,
        next_number: r.next_number,
        next_frame,
        live: r.live,
        trimmed,
        generation,
        newest_slot,
    })
}

impl Recoverer<'_> {
    fn say(&mut self, finding: String) {
        if self.damage.findings.len() < FINDINGS_MAX {
            self.damage.findings.push(finding);
        }
    }

    /// Numbers of the segments in a directory, ascending. Other files are left alone.
    fn numbers(&mut self, dir: &str) -> io::Result<Vec<u64>> {
        let names = self.storage.list(dir)?;
        let used = names.iter().filter_map(|n| number_of(n)).filter(|n| *n < u64::MAX / 2);
        self.next_number = used.map(|n| n + 1).fold(self.next_number, u64::max);
        let mut numbers: Vec<u64> = names
            .iter()
            .filter(|n| n.len() == 20 && n.ends_with(".wal"))
            .filter_map(|n| number_of(n))
            .filter(|n| *n < u64::MAX / 2)
            .collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The good headers of these segments; the rest is moved away or removed.
    fn headers(
        &mut self,
        kind: SegmentKind,
        numbers: &[u64],
    ) -> Vec<(SegmentHeader, Arc<dyn StorageFile>)> {
        let mut good = Vec::new();
        for &number in numbers {
            match self.header(kind, number) {
                Ok(Some(found)) => good.push(found),
                Ok(None) => {}
                Err(e) => self.set_apart(kind, number, "unreadable", &e.to_string()),
            }
        }
        good
    }

    fn header(
        &mut self,
        kind: SegmentKind,
        number: u64,
    ) -> io::Result<Option<(SegmentHeader, Arc<dyn StorageFile>)>> {
        let name = segment_name(kind, number);
        let file = self.storage.open(&name)?;
        let len = file.len()?;
        let mut area = [0; HEADER_AREA_BYTES as usize];
        let read = file.read_at(0, &mut area)?;
        match SegmentHeader::judge(&area[..read]) {
            HeaderVerdict::Good(header) if header.number == number && header.kind == kind => {
                self.live.insert(number, (kind, len));
                return Ok(Some((header, file)));
            }
            HeaderVerdict::Good(_) => {
                self.set_apart(kind, number, "foreign", "its header names another segment");
            }
            HeaderVerdict::Unused if is_zero(&*file, 0, len)? => {
                // Prepared and never used, or an empty file: there is nothing to keep.
                let _ = self.storage.unlink(&name);
            }
            HeaderVerdict::Unused => {
                self.damage.unfinished_tails += 1;
                self.set_apart(kind, number, "unfinished", "its header was never written");
            }
            HeaderVerdict::Newer(version) => {
                let moved = self.storage.rename(&name, &format!("{NEWER_DIR}/{number:016x}.wal"));
                self.damage.segments_newer += 1;
                self.say(match moved {
                    Ok(()) => format!("segment {number:016x}: format version {version}, newer than this program; moved to {NEWER_DIR}/"),
                    Err(e) => format!("segment {number:016x}: format version {version}, newer than this program; left where it is: {e}"),
                });
            }
            HeaderVerdict::Bad if is_zero(&*file, HEADER_AREA_BYTES, len)? => {
                self.damage.unfinished_tails += 1;
                self.set_apart(kind, number, "unfinished", "its header was cut off, and no frame follows");
            }
            HeaderVerdict::Bad => {
                self.set_apart(kind, number, "header", "its header is damaged");
            }
        }
        Ok(None)
    }

    /// Moves a whole segment to quarantine.
    fn set_apart(&mut self, kind: SegmentKind, number: u64, tag: &str, why: &str) {
        self.damage.segments_foreign += 1;
        let bytes = self.live.remove(&number).map_or(0, |(_, bytes)| bytes);
        let to = format!("{QUARANTINE_DIR}/{number:016x}.{tag}");
        match self.storage.rename(&segment_name(kind, number), &to) {
            Ok(()) => {
                self.damage.ranges_quarantined += 1;
                self.damage.bytes_quarantined += bytes;
                self.say(format!("segment {number:016x}: {why}; moved to {to}"));
            }
            Err(e) => self.say(format!("segment {number:016x}: {why}; left where it is: {e}")),
        }
    }

    fn cursor(&self, header: SegmentHeader, file: &Arc<dyn StorageFile>, end: u64) -> Cursor {
        let (table, buffer) = (self.topics.clone(), self.options.read_buffer_bytes);
        Cursor::new(file.clone(), header, end, table, buffer)
    }

    /// Learns a segment's counts from its seal, or by a walk.
    fn look(&mut self, header: SegmentHeader, file: Arc<dyn StorageFile>) -> io::Result<Known> {
        let mut area = [0; HEADER_AREA_BYTES as usize];
        let read = file.read_at(0, &mut area)?;
        let locator = Locator::find(&area[..read], header.salt);
        if let Some(l) = locator
            && let Some(seal) = read_seal(&*file, &header, l.offset, l.length)?
        {
            let ids = intern_all(&seal, self.topics);
            return Ok(Known {
                info: SegmentInfo {
                    header,
                    end: l.offset + pad8(l.length),
                    next_frame: l.next_frame.max(header.first_frame),
                    last_lsn: (seal.records > 0).then_some(seal.last_lsn),
                    seal: Some((l.offset, l.length)),
                    topics: None,
                },
                first_lsn: (seal.records > 0).then_some(seal.first_lsn),
                counts: ids.into_iter().flatten().zip(seal.topics.iter().map(|t| t.1)).collect(),
            });
        }
        let mut known = self.walk(header, &file)?;
        if let Some(l) = locator {
            known.info.next_frame = known.info.next_frame.max(l.next_frame);
            if known.info.next_frame > header.first_frame {
                known.info.last_lsn = known.info.last_lsn.max(Some(l.last_lsn));
            }
        }
        Ok(known)
    }

    /// Walks a segment without a seal to its end, and gives back the space behind it.
    fn walk(&mut self, header: SegmentHeader, file: &Arc<dyn StorageFile>) -> io::Result<Known> {
        let len = file.len()?;
        let mut cursor = self.cursor(header, file, len);
        let (mut first_lsn, mut last_lsn) = (None::<u64>, None::<u64>);
        let mut by_local: Vec<u64> = Vec::new();
        let (from, to) = loop {
            match cursor.next()? {
                Found::Frame(_, frame) if frame.is_record() => {
                    first_lsn = Some(first_lsn.map_or(frame.lsn, |n| n.min(frame.lsn)));
                    last_lsn = Some(last_lsn.map_or(frame.lsn, |n| n.max(frame.lsn)));
                    let local = frame.topic as usize;
                    if by_local.len() <= local {
                        by_local.resize(local + 1, 0);
                    }
                    by_local[local] += 1;
                }
                Found::Frame(..) => {}
                Found::Bad { from, to, lost } => {
                    self.bad_range(header, from, to, lost.unwrap_or(0));
                }
                Found::End { from, to } => break (from, to),
            }
        };
        let mut keep_tail = false;
        if to > from {
            self.damage.unfinished_tails += 1;
            self.say(format!(
                "segment {:016x}: {} bytes behind its last frame are no frame: an append that a crash cut off, or an unsynced tail",
                header.number,
                to - from
            ));
            keep_tail = !self.copy_bad(header, from, to, "tail");
        }
        if !keep_tail && from < len && file.truncate(from).is_ok() {
            self.live.insert(header.number, (header.kind, from));
        }
        let ids = cursor.topics.iter().zip(by_local).filter_map(|(id, n)| id.map(|id| (id, n)));
        Ok(Known {
            info: SegmentInfo {
                header,
                end: from,
                next_frame: cursor.expect.unwrap_or(header.first_frame),
                last_lsn,
                seal: None,
                topics: Some(cursor.topics.clone()),
            },
            first_lsn,
            counts: ids.collect(),
        })
    }

    fn bad_range(&mut self, header: SegmentHeader, from: u64, to: u64, lost: u64) {
        self.damage.records_lost += lost;
        self.say(format!(
            "segment {:016x}: bytes {from} to {to} are damaged and cost {lost} records",
            header.number
        ));
        self.copy_bad(header, from, to, "bad");
    }

    /// False when the copy could not be made.
    fn copy_bad(&mut self, header: SegmentHeader, from: u64, to: u64, why: &str) -> bool {
        let range = BadRange { number: header.number, from, to };
        match quarantine_range(self.storage, header.kind, &range, why) {
            Ok(new) => {
                self.damage.ranges_quarantined += u64::from(new);
                self.damage.bytes_quarantined += if new { to - from } else { 0 };
                true
            }
            Err(e) => {
                self.say(format!("segment {:016x}: no copy in quarantine: {e}", header.number));
                false
            }
        }
    }

    /// Counts what a reader from the watermark will yield.
    fn backlog(&mut self, kept: &mut VecDeque<Known>, watermark: u64, to: &mut Recovery) {
        let Some(first) = kept.front() else { return };
        let header = first.info.header;
        let mut begin =
            (LogPosition { segment: header.number, offset: HEADER_AREA_BYTES }, header.first_frame);
        let mut first_lsn = first.first_lsn;
        if header.base_lsn < watermark {
            match self.begin_at(&first.info, watermark) {
                Ok((position, expect, lsn, counts)) => {
                    begin = (position, expect);
                    first_lsn = lsn;
                    if let Some(first) = kept.front_mut() {
                        first.counts = counts;
                    }
                }
                // Everything in it is delivered once more.
                Err(e) => self.say(format!("segment {:016x}: {e}", header.number)),
            }
        }
        let mut due = begin.1;
        let mut by_topic: BTreeMap<TopicId, u64> = BTreeMap::new();
        for known in kept.iter() {
            let info = &known.info;
            if due < info.header.first_frame {
                let lost = info.header.first_frame - due;
                self.damage.records_lost += lost;
                self.say(format!(
                    "before segment {:016x}: {lost} records are missing",
                    info.header.number
                ));
                to.records += lost;
            }
            let here = if info.header.number == begin.0.segment { begin.1 } else { info.header.first_frame };
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
            to.backlog = Some(begin.0);
            to.first_lsn = first_lsn.or_else(|| kept.iter().find_map(|k| k.first_lsn)).map(Lsn);
        }
    }

    /// Finds the end of the last record below the watermark, the frame number due there, the
    /// first LSN behind it, and the counts by topic from there on.
    #[allow(clippy::type_complexity)]
    fn begin_at(
        &mut self,
        info: &SegmentInfo,
        watermark: u64,
    ) -> io::Result<(LogPosition, u64, Option<u64>, Vec<(TopicId, u64)>)> {
        let file = self.storage.open(&segment_name(SegmentKind::Main, info.header.number))?;
        let mut cursor = self.cursor(info.header, &file, info.end);
        cursor.topics = match (&info.topics, info.seal) {
            (Some(topics), _) => topics.clone(),
            (None, Some((offset, length))) => read_seal(&*file, &info.header, offset, length)?
                .map_or_else(LocalTopics::new, |seal| intern_all(&seal, self.topics)),
            (None, None) => LocalTopics::new(),
        };
        let mut position = HEADER_AREA_BYTES;
        let mut due = info.header.first_frame;
        let mut first_lsn = None;
        let mut counts: BTreeMap<TopicId, u64> = BTreeMap::new();
        loop {
            match cursor.next()? {
                Found::Frame(_, frame) if frame.is_record() => {
                    if frame.lsn < watermark {
                        position = cursor.pos;
                        due = frame.frame_number + 1;
                    } else {
                        first_lsn = first_lsn.or(Some(frame.lsn));
                        if let Some(Some(id)) = cursor.topics.get(frame.topic as usize) {
                            *counts.entry(*id).or_default() += 1;
                        }
                    }
                }
                Found::Frame(..) => {}
                // Those of an unsealed segment were reported by its walk; a sealed one's are
                // reported by the reader.
                Found::Bad { .. } => {}
                Found::End { .. } => break,
            }
        }
        let position = LogPosition { segment: info.header.number, offset: position };
        Ok((position, due, first_lsn, counts.into_iter().collect()))
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
        if buf[..read].iter().any(|b| *b != 0) {
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
