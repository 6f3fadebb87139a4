//! Owns looking at one segment at open: by its seal, or by a walk to its end; and what is done
//! there with what the walk met, as the table in `verdict` says.

use super::cursor::{Cursor, Found};
use super::format::{
    FrameKind, HEADER_AREA_BYTES, LocalTopics, SegmentHeader, SegmentKind, pad8, segment_name,
};
use super::keeper::quarantine_range;
use super::reader::{SegmentInfo, intern_all, read_seal};
use super::recover::Recoverer;
use super::reseal::Resealing;
use super::seal::{Locator, Seal};
use super::shared::BadRange;
use super::storage::StorageFile;
use super::verdict::{Cost, Met, Place, Verdict, verdict};
use crate::record::TopicId;
use std::io;
use std::sync::Arc;

/// Tries before what can't be read at open is passed over. There is no pause between them: the
/// caller waits for the open.
pub(super) const READ_TRIES: u32 = 3;

/// Repeats what the storage may refuse for a moment.
pub(super) fn persist<T>(mut what: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut tries = 1;
    loop {
        match what() {
            Err(e) if tries < READ_TRIES && e.kind() != io::ErrorKind::NotFound => tries += 1,
            done => return done,
        }
    }
}

/// What is known of a segment after it was looked at.
pub(super) struct Known {
    pub info: SegmentInfo,
    pub first_lsn: Option<u64>,
    pub counts: Vec<(TopicId, u64)>,
    /// The frame number behind its last good frame; `info.next_frame` may be higher.
    pub seen_next: u64,
    /// Where the watermark lies in it, if it was walked.
    pub begin: Option<Begin>,
    /// Records that bad ranges behind the watermark cost, if it was walked.
    pub lost_inside: u64,
}

/// Where reading begins in the segment that holds the watermark.
#[derive(Clone, Default)]
pub(super) struct Begin {
    /// Behind the last record below the watermark.
    pub offset: u64,
    /// The frame number that is due there.
    pub due: u64,
    /// The first LSN behind it.
    pub first_lsn: Option<u64>,
    /// Records behind it, by topic.
    pub counts: Vec<(TopicId, u64)>,
}

/// Where a segment stands among the others.
#[derive(Clone, Copy)]
pub(super) struct Neighbours {
    pub watermark: u64,
    /// The base LSN of the segment behind it, if there is one.
    pub next_base: Option<u64>,
}

struct Bad {
    from: u64,
    to: u64,
    lost: u64,
    met: Met,
}

/// What a walk from the first frame to the end found.
struct Survey {
    records: u64,
    first_lsn: Option<u64>,
    last_lsn: Option<u64>,
    next_frame: u64,
    counts: Vec<u64>,
    begin: Begin,
    bad: Vec<Bad>,
    /// Where the frames end, where what isn't zero behind them ends, and what stands there.
    end: (u64, u64, Met),
    /// Where a seal stands, and its length.
    seal: Option<(u64, u64)>,
}

/// Walks to the end. What can't be read is tried again, then passed over.
fn survey(cursor: &mut Cursor, watermark: u64) -> Survey {
    let header = *cursor.header();
    let due = header.first_frame;
    let mut s = Survey {
        records: 0,
        first_lsn: None,
        last_lsn: None,
        next_frame: due,
        counts: Vec::new(),
        begin: Begin { offset: HEADER_AREA_BYTES, due, ..Begin::default() },
        bad: Vec::new(),
        end: (cursor.pos, cursor.pos, Met::EndOfFile),
        seal: None,
    };
    let mut behind: Vec<u64> = Vec::new();
    let mut tries = 0;
    loop {
        match cursor.next() {
            Ok(Found::Frame(_, frame)) if frame.is_record() => {
                s.records += 1;
                s.first_lsn = Some(s.first_lsn.map_or(frame.lsn, |n| n.min(frame.lsn)));
                s.last_lsn = Some(s.last_lsn.map_or(frame.lsn, |n| n.max(frame.lsn)));
                let local = frame.topic as usize;
                if s.counts.len() <= local {
                    s.counts.resize(local + 1, 0);
                    behind.resize(local + 1, 0);
                }
                s.counts[local] += 1;
                if header.kind == SegmentKind::Main && frame.lsn < watermark {
                    s.begin.offset = cursor.pos;
                    s.begin.due = frame.frame_number + 1;
                } else {
                    s.begin.first_lsn = s.begin.first_lsn.or(Some(frame.lsn));
                    behind[local] += 1;
                }
            }
            Ok(Found::Frame(at, frame)) => {
                if frame.kind == FrameKind::Seal {
                    s.seal = Some((at, u64::from(frame.length)));
                }
            }
            Ok(Found::Bad { from, to, lost, met }) => {
                if met == Met::UnknownTopic && header.kind == SegmentKind::Main {
                    // All but its topic is known.
                    let above = cursor.lsn_min();
                    s.last_lsn = s.last_lsn.max(above.checked_sub(1));
                    if above <= watermark {
                        s.begin.offset = cursor.pos;
                        s.begin.due = cursor.expect.unwrap_or(s.begin.due);
                    }
                }
                s.bad.push(Bad { from, to, lost: lost.unwrap_or(0), met });
            }
            Ok(Found::End { from, to, met }) => {
                s.end = (from, to, met);
                break;
            }
            Err(_) if tries < READ_TRIES => tries += 1,
            Err(_) if tries == READ_TRIES => {
                tries += 1;
                cursor.skip_unreadable(u32::MAX);
            }
            Err(_) => break,
        }
    }
    s.next_frame = cursor.expect.unwrap_or(due);
    s.begin.counts = by_topic(&cursor.topics, &behind);
    s
}

fn by_topic(topics: &LocalTopics, counts: &[u64]) -> Vec<(TopicId, u64)> {
    topics.iter().zip(counts).filter_map(|(id, n)| id.map(|id| (id, *n))).collect()
}

impl Recoverer<'_> {
    /// Learns a segment's counts from its seal, or by a walk.
    pub(super) fn look(
        &mut self,
        header: SegmentHeader,
        neighbours: Neighbours,
    ) -> io::Result<Known> {
        let name = segment_name(header.kind, header.number);
        let file = persist(|| self.storage.open(&name))?;
        let mut area = [0; HEADER_AREA_BYTES as usize];
        let read = persist(|| file.read_at(0, &mut area))?;
        let locator = Locator::find(&area[..read], header.salt);
        if let Some(l) = locator
            // A seal that can't be read is no better than none: the walk finds the records.
            && let Some(seal) = persist(|| read_seal(&*file, &header, l.offset, l.length)).ok().flatten()
        {
            let ids = intern_all(&seal, self.topics);
            let next_frame = l.next_frame.max(header.first_frame);
            return Ok(Known {
                info: SegmentInfo {
                    header,
                    end: l.offset + pad8(l.length),
                    next_frame,
                    last_lsn: (seal.records > 0).then_some(seal.last_lsn),
                    seal: Some((l.offset, l.length)),
                    topics: None,
                },
                first_lsn: (seal.records > 0).then_some(seal.first_lsn),
                counts: ids.into_iter().flatten().zip(seal.topics.iter().map(|t| t.1)).collect(),
                seen_next: next_frame,
                begin: None,
                lost_inside: 0,
            });
        }
        self.walk(header, &file, locator, neighbours)
    }

    /// Walks a segment without a good seal to its end, and gives back the space behind it.
    fn walk(
        &mut self,
        header: SegmentHeader,
        file: &Arc<dyn StorageFile>,
        locator: Option<Locator>,
        neighbours: Neighbours,
    ) -> io::Result<Known> {
        let len = persist(|| file.len())?;
        let mut cursor = self.cursor(header, file, len);
        let mut s = survey(&mut cursor, neighbours.watermark);
        // A seal whose locator is lost still has the names that are lost in the frames. Without
        // them a later start, with the locator mended, would bring back what this one gave up.
        if let Some((offset, length)) = s.seal
            && s.bad.iter().any(|b| b.met == Met::UnknownTopic)
            && let Ok(Some(seal)) = persist(|| read_seal(&**file, &header, offset, length))
        {
            cursor = self.cursor(header, file, len);
            cursor.topics = intern_all(&seal, self.topics);
            s = survey(&mut cursor, neighbours.watermark);
        }
        let mut place = Place {
            more: true,
            sealed: locator.is_some(),
            last: neighbours.next_base.is_none(),
            is_final: match (locator, neighbours.next_base) {
                (Some(l), _) => l.last_lsn < neighbours.watermark,
                (None, Some(base)) => base <= neighbours.watermark,
                (None, None) => false,
            },
        };
        let lost_inside = self.judge_bad(header, &s, place);
        let (from, _, met) = s.end;
        place.more = false;
        let unreadable = cursor.is_unreadable(0, u64::MAX);
        if unreadable {
            self.keep(header.number);
        }
        let kept_whole = match verdict(met, place) {
            Verdict::Tail(cost) => !self.tail(header, s.end, cost, place.sealed),
            _ => false,
        };
        let cut = !kept_whole && !unreadable;
        let cut = cut && (from == len || file.truncate(from).is_ok());
        if cut {
            self.live.insert(header.number, (header.kind, from));
        }
        let next_frame = s.next_frame.max(locator.map_or(0, |l| l.next_frame));
        let last_lsn = match locator {
            Some(l) if next_frame > header.first_frame => s.last_lsn.max(Some(l.last_lsn)),
            _ => s.last_lsn,
        };
        if cut {
            self.reseal_later(header, from, &s, &cursor.topics, (next_frame, last_lsn));
        }
        Ok(Known {
            info: SegmentInfo {
                header,
                end: from,
                next_frame,
                last_lsn,
                seal: None,
                topics: Some(cursor.topics.clone()),
            },
            first_lsn: s.first_lsn,
            counts: by_topic(&cursor.topics, &s.counts),
            seen_next: s.next_frame,
            begin: Some(s.begin),
            lost_inside,
        })
    }

    /// Walks the sealed segment that holds the watermark: where to begin in it, and the records
    /// that are lost behind that.
    pub(super) fn begin_in(
        &mut self,
        info: &SegmentInfo,
        neighbours: Neighbours,
    ) -> io::Result<(Begin, u64)> {
        let header = info.header;
        let name = segment_name(SegmentKind::Main, header.number);
        let file = persist(|| self.storage.open(&name))?;
        let mut cursor = self.cursor(header, &file, info.end);
        if let Some((offset, length)) = info.seal
            && let Ok(Some(seal)) = persist(|| read_seal(&*file, &header, offset, length))
        {
            cursor.topics = intern_all(&seal, self.topics);
        }
        let s = survey(&mut cursor, neighbours.watermark);
        if cursor.is_unreadable(0, u64::MAX) {
            self.keep(header.number);
        }
        let last = neighbours.next_base.is_none();
        let place = Place { more: true, sealed: true, last, is_final: false };
        let mut lost = self.judge_bad(header, &s, place);
        // Its end went between the look at its seal and now.
        lost += info.next_frame.saturating_sub(s.next_frame);
        Ok((s.begin, lost))
    }

    /// Carries out the verdicts on the bad ranges of a walk; returns the records that they cost
    /// behind the watermark.
    fn judge_bad(&mut self, header: SegmentHeader, s: &Survey, place: Place) -> u64 {
        let mut lost = 0;
        for bad in &s.bad {
            // A record below the watermark stands behind it.
            let is_final = place.is_final || bad.from < s.begin.offset;
            let Verdict::Damage(cost) = verdict(bad.met, Place { is_final, ..place }) else {
                continue;
            };
            let costs = match cost {
                Cost::Free => "nothing: everything there was delivered before".to_string(),
                _ => format!("{} records", bad.lost),
            };
            if cost != Cost::Free {
                lost += bad.lost;
            }
            let what = format!(
                "{}: bytes {} to {} are damaged ({}); that costs {costs}",
                segment_name(header.kind, header.number),
                bad.from,
                bad.to,
                bad.met.words(),
            );
            let range = BadRange { number: header.number, from: bad.from, to: bad.to };
            self.quarantine(header.kind, &range, "bad", bad.met == Met::Unreadable, what);
        }
        if header.kind == SegmentKind::SetAside {
            self.damage.set_asides_lost += lost;
        }
        lost
    }

    /// Carries out the verdict on a tail that isn't zero. True when it may be cut off.
    fn tail(
        &mut self,
        header: SegmentHeader,
        (from, to, met): (u64, u64, Met),
        cost: Cost,
        sealed: bool,
    ) -> bool {
        let unreadable = met == Met::Unreadable;
        let costs = match cost {
            Cost::Unknown if unreadable => "nothing behind them says how many records they held",
            Cost::Unknown => "an append that a crash cut off, or a tail that no sync had covered",
            Cost::Free => "everything there was delivered before",
            Cost::Seal => "the segment's seal says how many records they held",
            Cost::NextSegment | Cost::Numbers => {
                "the next segment's number says how many records they held"
            }
        };
        if !sealed {
            self.damage.unfinished_tails += 1;
        }
        let what = format!(
            "{}: {} bytes behind its last good frame are no frame ({}): {costs}",
            segment_name(header.kind, header.number),
            to - from,
            met.words(),
        );
        let range = BadRange { number: header.number, from, to };
        let tag = if sealed { "bad" } else { "tail" };
        self.quarantine(header.kind, &range, tag, unreadable, what)
    }

    /// Copies a range to quarantine; where that can't be done the file is kept whole, and goes
    /// there when its records are final. False then.
    fn quarantine(
        &mut self,
        kind: SegmentKind,
        range: &BadRange,
        tag: &str,
        unreadable: bool,
        what: String,
    ) -> bool {
        if unreadable {
            self.damage.ranges_quarantined += 1;
            self.keep(range.number);
            self.say(format!(
                "{what}; the file goes to quarantine/ once its records are delivered"
            ));
            return false;
        }
        match quarantine_range(self.storage, kind, range, tag) {
            Ok(new) => {
                self.damage.ranges_quarantined += u64::from(new);
                self.damage.bytes_quarantined += if new { range.to - range.from } else { 0 };
                self.say(format!("{what}; a copy is in quarantine/"));
                true
            }
            Err(e) => {
                self.keep(range.number);
                self.say(format!(
                    "{what}; no copy could be made ({e}), so the file goes to quarantine/ once its records are delivered"
                ));
                false
            }
        }
    }

    fn cursor(&self, header: SegmentHeader, file: &Arc<dyn StorageFile>, end: u64) -> Cursor {
        let (table, buffer) = (self.topics.clone(), self.options.read_buffer_bytes);
        let mut cursor = Cursor::new(file.clone(), header, end, table, buffer);
        // The directory is held, and nothing is appended to what an earlier run left.
        cursor.look_through_windows();
        cursor
    }

    /// Has the keeper give a walked segment the seal that it lacks, so that it is walked once.
    fn reseal_later(
        &mut self,
        header: SegmentHeader,
        at: u64,
        s: &Survey,
        topics: &LocalTopics,
        (next_frame, last_lsn): (u64, Option<u64>),
    ) {
        if s.records != next_frame - header.first_frame {
            // A seal counts every record of its segment. What is damaged stays without one, and
            // is told at each start.
            return;
        }
        let counts = s.counts.iter().copied().chain(std::iter::repeat(0));
        let names: Option<Vec<_>> =
            topics.iter().zip(counts).map(|(id, n)| Some((self.topics.name((*id)?)?, n))).collect();
        let Some(topics) = names else { return };
        let Some(last_lsn) = last_lsn.filter(|_| s.records > 0) else { return };
        let first_lsn = s.first_lsn.unwrap_or(0);
        let seal = Seal { records: s.records, first_lsn, last_lsn, next_frame, topics };
        self.reseal.push(Resealing::new(&header, pad8(at), s.seal, &seal));
    }
}
