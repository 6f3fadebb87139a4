//! Owns the check of one segment: its header, a walk from end to end, and what its seal says
//! beside what the walk met.

use super::cursor::{Cursor, Found};
use super::findings::{Finding, Weight};
use super::format::{
    FrameKind, HEADER_AREA_BYTES, HeaderVerdict, SegmentHeader, SegmentKind, segment_name,
};
use super::keeper::quarantine_name;
use super::reader::{intern_all, read_seal};
use super::recover::is_zero;
use super::seal::{Locator, Seal};
use super::shared::BadRange;
use super::storage::StorageFile;
use super::survey::READ_TRIES;
use super::verdict::Met;
use super::verify::{BUFFER_BYTES, Link, Verifier, loss_name, numbers};
use crate::record::TopicId;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// A bad range, and the good records around it.
struct Bad {
    from: u64,
    to: u64,
    lost: u64,
    met: Met,
    lsn_before: Option<u64>,
    lsn_after: Option<u64>,
}

/// What a walk found in one segment.
#[derive(Default)]
struct Walked {
    records: u64,
    first_lsn: Option<u64>,
    last_lsn: Option<u64>,
    next_frame: u64,
    by_local: Vec<u64>,
    names: Vec<Option<TopicId>>,
    bad: Vec<Bad>,
    /// Bytes behind the last frame that are no frame.
    tail: Option<(u64, u64)>,
    ended_by_seal: bool,
}

impl Verifier<'_> {
    pub(super) fn segments(&mut self, kind: SegmentKind) -> io::Result<Vec<Link>> {
        let mut links = Vec::new();
        for number in numbers(self.storage, kind)? {
            let name = segment_name(kind, number);
            match self.segment(kind, number, &name) {
                Ok(link) => links.extend(link),
                // Trimmed meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => self.damage("unreadable", Some(&name), e.to_string()),
            }
        }
        Ok(links)
    }

    fn segment(&mut self, kind: SegmentKind, number: u64, name: &str) -> io::Result<Option<Link>> {
        let file = self.storage.open(name)?;
        let len = file.len()?;
        self.to.segments += 1;
        self.to.bytes += len;
        let before = self.done_bytes;
        let link = self.settled(Duration::ZERO, |v| v.look(kind, number, name, &file, len));
        self.done_bytes = before + len;
        (self.progress)(self.done_bytes);
        link
    }

    fn look(
        &mut self,
        kind: SegmentKind,
        number: u64,
        name: &str,
        file: &Arc<dyn StorageFile>,
        len: u64,
    ) -> io::Result<Option<Link>> {
        let mut area = [0; HEADER_AREA_BYTES as usize];
        let read = file.read_at(0, &mut area)?;
        let header = match SegmentHeader::judge(&area[..read]) {
            HeaderVerdict::Good(header) if header.number == number && header.kind == kind => header,
            HeaderVerdict::Good(header) => {
                let says = format!("its header names segment {:016x}", header.number);
                self.damage("foreign", Some(name), says);
                return Ok(None);
            }
            HeaderVerdict::Newer(version) => {
                let says =
                    format!("format version {version}, newer than this program; not checked");
                self.note("newer_version", Some(name), says);
                return Ok(None);
            }
            // Prepared and never used.
            HeaderVerdict::Unused if is_zero(&**file, 0, len)? => return Ok(None),
            HeaderVerdict::Unused => {
                let says =
                    "its header was never written: a beginning that a crash cut off".to_owned();
                self.note("unfinished", Some(name), says);
                return Ok(None);
            }
            HeaderVerdict::Bad if is_zero(&**file, HEADER_AREA_BYTES, len)? => {
                let says = "its header was cut off, and no frame follows".to_owned();
                self.note("unfinished", Some(name), says);
                return Ok(None);
            }
            HeaderVerdict::Bad => {
                let says = "its header is damaged: nothing in it can be read".to_owned();
                self.damage("header", Some(name), says);
                return Ok(None);
            }
        };
        if SegmentHeader::copies_good(&area[..read]) < 2 {
            let says = "one of the two copies of its header is bad; the other serves".to_owned();
            self.note("header_copy", Some(name), says);
        }
        let locator = Locator::find(&area[..read], header.salt);
        if locator.is_some() && Locator::copies_good(&area[..read], header.salt) < 2 {
            let says = "one of the two copies of its seal locator is bad; the other serves";
            self.note("locator_copy", Some(name), says.to_owned());
        }
        let seal = match locator {
            Some(l) => read_seal(&**file, &header, l.offset, l.length)?,
            None => None,
        };
        let mut walked = self.walk(&header, file, len, seal.as_ref())?;
        let damaged = !walked.bad.is_empty();
        self.ranges(&header, name, &walked);
        match (&seal, locator) {
            (Some(seal), Some(l)) => {
                self.seal_against_walk(name, &header, seal, &walked, damaged);
                walked.next_frame = walked.next_frame.max(l.next_frame);
                walked.last_lsn = walked.last_lsn.max((seal.records > 0).then_some(seal.last_lsn));
            }
            (None, Some(l)) => {
                self.cut(&header, name, &walked, l);
                walked.next_frame = walked.next_frame.max(l.next_frame);
                walked.last_lsn = walked.last_lsn.max(Some(l.last_lsn));
            }
            (_, None) => {
                if let Some((from, to)) = walked.tail {
                    let says = format!(
                        "{} bytes behind its last frame are no frame: an append that isn't finished, that a crash cut off, or an unsynced tail",
                        to - from
                    );
                    let mut finding = Finding::whole(Weight::Note, "tail", Some(name), says);
                    (finding.from, finding.to) = (Some(from), Some(to));
                    finding.lsn_before = walked.last_lsn;
                    self.to.findings.push(finding);
                }
            }
        }
        match kind {
            SegmentKind::Main => self.to.records += walked.records,
            SegmentKind::SetAside => self.to.set_aside_records += walked.records,
        }
        Ok(Some(Link {
            file: name.to_owned(),
            number,
            directory_id: header.directory_id,
            first_frame: header.first_frame,
            next_frame: walked.next_frame,
            first_lsn: walked.first_lsn,
            last_lsn: walked.last_lsn,
        }))
    }

    fn walk(
        &mut self,
        header: &SegmentHeader,
        file: &Arc<dyn StorageFile>,
        len: u64,
        seal: Option<&Seal>,
    ) -> io::Result<Walked> {
        let mut cursor = Cursor::new(file.clone(), *header, len, self.table.clone(), BUFFER_BYTES);
        if let Some(seal) = seal {
            // Nobody appends behind a seal.
            cursor.look_through_windows();
            // As a reader does: a damaged topic entry costs no record where the seal has it.
            cursor.topics = intern_all(seal, &self.table);
        }
        let mut w = Walked::default();
        let mut told = 0;
        let mut tries = 0;
        loop {
            let found = match cursor.next() {
                Ok(found) => found,
                Err(_) if tries < READ_TRIES => {
                    tries += 1;
                    continue;
                }
                // What can't be read is passed a page at a time, as a reader does.
                Err(_) if tries == READ_TRIES => {
                    tries += 1;
                    cursor.skip_unreadable(u32::MAX);
                    continue;
                }
                Err(e) => return Err(e),
            };
            match found {
                Found::Frame(_, frame) if frame.is_record() => {
                    for bad in w.bad.iter_mut().rev().take_while(|b| b.lsn_after.is_none()) {
                        bad.lsn_after = Some(frame.lsn);
                    }
                    w.records += 1;
                    w.first_lsn = Some(w.first_lsn.map_or(frame.lsn, |n| n.min(frame.lsn)));
                    w.last_lsn = Some(w.last_lsn.map_or(frame.lsn, |n| n.max(frame.lsn)));
                    let local = frame.topic as usize;
                    if w.by_local.len() <= local {
                        w.by_local.resize(local + 1, 0);
                    }
                    w.by_local[local] += 1;
                }
                Found::Frame(_, frame) => {
                    w.ended_by_seal |= frame.kind == FrameKind::Seal;
                }
                Found::Bad { from, to, lost, met } => w.bad.push(Bad {
                    from,
                    to,
                    lost: lost.unwrap_or(0),
                    met: if cursor.is_unreadable(from, to) { Met::Unreadable } else { met },
                    lsn_before: w.last_lsn,
                    lsn_after: None,
                }),
                Found::End { from, to, .. } => {
                    w.tail = (to > from).then_some((from, to));
                    break;
                }
            }
            if cursor.pos - told >= BUFFER_BYTES as u64 {
                told = cursor.pos;
                (self.progress)(self.done_bytes + told);
            }
        }
        w.next_frame = cursor.expect.unwrap_or(header.first_frame);
        w.names = cursor.topics;
        Ok(w)
    }

    /// Each bad range: damage, or known when its copy lies in quarantine.
    fn ranges(&mut self, header: &SegmentHeader, name: &str, walked: &Walked) {
        for bad in &walked.bad {
            let range = BadRange { number: header.number, from: bad.from, to: bad.to };
            let known = self.quarantined.contains(&quarantine_name(&range, "bad"));
            let records = if bad.lost == 1 { "record" } else { "records" };
            let mut says = format!(
                "{}; {} bytes are lost, and {} {records} with them",
                bad.met.words(),
                bad.to - bad.from,
                bad.lost
            );
            if known {
                says.push_str("; known: a copy or a note is in quarantine");
            }
            self.to.findings.push(Finding {
                weight: if known { Weight::Known } else { Weight::Damage },
                verdict: if bad.met == Met::Unreadable { "unreadable" } else { "bad" },
                file: Some(name.to_owned()),
                from: Some(bad.from),
                to: Some(bad.to),
                lsn_before: bad.lsn_before,
                lsn_after: bad.lsn_after,
                records_lost: bad.lost,
                is_final: bad.lsn_after.is_some_and(|n| n <= self.watermark),
                says,
            });
        }
    }

    fn seal_against_walk(
        &mut self,
        name: &str,
        header: &SegmentHeader,
        seal: &Seal,
        walked: &Walked,
        damaged: bool,
    ) {
        let mut says = Vec::new();
        let lost: u64 = walked.bad.iter().map(|b| b.lost).sum();
        let walked_records = walked.records + lost;
        if seal.records != walked_records || seal.next_frame != header.first_frame + seal.records {
            says.push(format!(
                "the seal counts {} records, the walk {walked_records}",
                seal.records
            ));
        }
        if !walked.ended_by_seal {
            says.push("the walk doesn't end at the seal".to_owned());
        }
        let lsns = (walked.first_lsn.unwrap_or(0), walked.last_lsn.unwrap_or(0));
        if !damaged && (seal.first_lsn, seal.last_lsn) != lsns {
            says.push(format!(
                "the seal says LSNs {} to {}, the walk {} to {}",
                seal.first_lsn, seal.last_lsn, lsns.0, lsns.1
            ));
        }
        let mut by_name: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for (topic, records) in &seal.topics {
            by_name.entry(topic).or_default().0 += records;
        }
        let names: Vec<_> =
            walked.names.iter().map(|id| id.and_then(|id| self.table.name(id))).collect();
        for (topic, records) in names.iter().zip(&walked.by_local) {
            by_name.entry(topic.as_deref().unwrap_or("")).or_default().1 += records;
        }
        for (topic, (sealed, met)) in by_name {
            if (!damaged && sealed != met) || met > sealed {
                says.push(format!(
                    "topic {topic}: the seal counts {sealed} records, the walk {met}"
                ));
            }
        }
        if !says.is_empty() {
            self.damage("seal", Some(name), says.join("; "));
        }
    }

    /// A sealed segment without its seal: what the locator knows beyond the walk is lost.
    fn cut(&mut self, header: &SegmentHeader, name: &str, walked: &Walked, locator: Locator) {
        let lost = locator.next_frame.saturating_sub(walked.next_frame);
        let known = self.quarantined.contains(&loss_name(
            header.number,
            walked.next_frame,
            locator.next_frame,
        ));
        let mut says =
            format!("its seal is damaged or cut off; {lost} records at its end are lost");
        if known {
            says.push_str("; known: noted in quarantine");
        }
        self.to.findings.push(Finding {
            weight: if known { Weight::Known } else { Weight::Damage },
            verdict: "cut",
            file: Some(name.to_owned()),
            from: walked.tail.map(|t| t.0),
            to: walked.tail.map(|t| t.1),
            lsn_before: walked.last_lsn,
            lsn_after: None,
            records_lost: lost,
            is_final: locator.last_lsn < self.watermark,
            says,
        });
        self.to.losses.extend((!known).then_some((
            header.number,
            walked.next_frame,
            locator.next_frame,
        )));
    }
}
