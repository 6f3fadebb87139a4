//! Owns the check of a whole directory: read-only, every byte that counts, also beside the
//! process that holds it.
//!
//! Opening trusts seals; this doesn't: every segment is walked from end to end, and what its
//! seal says is compared with what the walk met. The verdict on each position is the cursor's,
//! that on whole files follows the table of `recover`. Beside a live pipeline a segment may be
//! written, sealed or removed while it is looked at: its tail is no damage, and a bad range in
//! a segment that isn't sealed counts only if a second look finds it too.

use super::checkpoint::{Manifest, SLOTS, Slot, read_slots, read_whole};
use super::cursor::{Cursor, Found};
use super::findings::{Finding, Verification, Weight};
use super::format::{
    HEADER_AREA_BYTES, HeaderVerdict, NEWER_DIR, QUARANTINE_DIR, SET_ASIDE_DIR, SegmentHeader,
    SegmentKind, number_of, segment_name,
};
use super::keeper::quarantine_name;
use super::reader::{intern_all, read_seal};
use super::recover::is_zero;
use super::replayed::Replayed;
use super::seal::{Locator, Seal};
use super::shared::BadRange;
use super::storage::{Storage, StorageFile};
use crate::record::TopicId;
use crate::topics::TopicTable;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

/// Bytes that the walk asks for at once.
const BUFFER_BYTES: usize = 1 << 20;
/// Looks at what a live pipeline may be rewriting, before it counts as bad.
const LOOKS: usize = 5;

/// A bad range, and the good records around it.
struct Bad {
    from: u64,
    to: u64,
    lost: u64,
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

/// A segment that could be walked, for what holds between segments.
struct Link {
    file: String,
    number: u64,
    directory_id: u64,
    first_frame: u64,
    next_frame: u64,
    first_lsn: Option<u64>,
    last_lsn: Option<u64>,
}

struct Verifier<'a> {
    storage: &'a dyn Storage,
    progress: &'a mut dyn FnMut(u64),
    table: Arc<TopicTable>,
    done_bytes: u64,
    /// Names in quarantine: what is there is known.
    quarantined: BTreeSet<String>,
    watermark: u64,
    to: Verification,
}

/// Bytes of all segments of a directory: what a verification will have walked at its end.
pub fn bytes_to_verify(storage: &dyn Storage) -> io::Result<u64> {
    let mut bytes = 0;
    for kind in [SegmentKind::Main, SegmentKind::SetAside] {
        for number in numbers(storage, kind)? {
            // One that goes meanwhile needs no walk.
            bytes += storage.open(&segment_name(kind, number)).and_then(|f| f.len()).unwrap_or(0);
        }
    }
    Ok(bytes)
}

/// Checks everything. `progress` is told the bytes walked so far.
pub fn verify(
    storage: &dyn Storage,
    progress: &mut dyn FnMut(u64),
) -> io::Result<Verification> {
    let mut v = Verifier {
        storage,
        progress,
        table: Arc::new(TopicTable::default()),
        done_bytes: 0,
        quarantined: storage.list(QUARANTINE_DIR)?.into_iter().collect(),
        watermark: 0,
        to: Verification::default(),
    };
    v.list_apart()?;
    let slots = v.checkpoints();
    let manifest = v.manifest();
    let (mut links, asides) = (v.segments(SegmentKind::Main)?, v.segments(SegmentKind::SetAside)?);
    v.missing(manifest.as_ref(), &links, &asides)?;
    v.owners(&slots, manifest.as_ref(), &mut links, &asides);
    v.gaps(&links);
    v.other_files()?;
    Ok(v.to)
}

fn numbers(storage: &dyn Storage, kind: SegmentKind) -> io::Result<Vec<u64>> {
    let dir = match kind {
        SegmentKind::Main => "",
        SegmentKind::SetAside => SET_ASIDE_DIR,
    };
    let names = storage.list(dir)?;
    let mut numbers: Vec<u64> = names
        .iter()
        .filter(|n| n.len() == 20 && n.ends_with(".wal"))
        .filter_map(|n| number_of(n))
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The name under which a loss without bytes is noted in quarantine.
pub(super) fn loss_name(number: u64, from_frame: u64, to_frame: u64) -> String {
    format!("{number:016x}-frames-{from_frame:x}-{to_frame:x}.lost")
}

impl Verifier<'_> {
    fn note(&mut self, verdict: &'static str, file: Option<&str>, says: String) {
        self.to.findings.push(Finding::whole(Weight::Note, verdict, file, says));
    }

    fn damage(&mut self, verdict: &'static str, file: Option<&str>, says: String) {
        self.to.findings.push(Finding::whole(Weight::Damage, verdict, file, says));
    }

    /// What lies in quarantine and in `newer-version/`.
    fn list_apart(&mut self) -> io::Result<()> {
        for dir in [QUARANTINE_DIR, NEWER_DIR] {
            let mut names = self.storage.list(dir)?;
            names.sort_unstable();
            for name in names {
                let name = format!("{dir}/{name}");
                let bytes = self.storage.open(&name).and_then(|f| f.len()).unwrap_or(0);
                self.to.set_apart.push((name, bytes));
            }
        }
        Ok(())
    }

    fn checkpoints(&mut self) -> [Option<Slot>; 2] {
        // A slot that is being written looks torn: the next look finds it whole.
        let (mut slots, mut bad) = read_slots(self.storage);
        for _ in 1..LOOKS {
            if bad == 0 {
                break;
            }
            (slots, bad) = read_slots(self.storage);
        }
        for (name, slot) in SLOTS.iter().zip(&slots) {
            let is_there = self.storage.open(name).and_then(|f| read_whole(&*f));
            let is_bad = match is_there {
                Ok(bytes) => slot.is_none() && bytes.iter().any(|b| *b != 0),
                Err(e) => e.kind() != io::ErrorKind::NotFound,
            };
            if is_bad && slots.iter().any(Option::is_some) {
                let says = "torn; the other slot holds".to_owned();
                self.note("checkpoint", Some(name), says);
            } else if is_bad {
                let says = "bad, and no other slot holds: records that are final will be sent again";
                self.damage("checkpoint", Some(name), says.to_owned());
            }
        }
        let newest = slots.iter().flatten().max_by_key(|s| s.generation);
        self.to.watermark = newest.map(|s| s.data.watermark.0);
        self.watermark = self.to.watermark.unwrap_or(0);
        if let Some(s) = newest
            && s.data.next_lsn < s.data.watermark
        {
            let says = format!(
                "its watermark {} is above its next LSN {}",
                s.data.watermark, s.data.next_lsn
            );
            self.damage("checkpoint", None, says);
        }
        if Replayed::is_bad(self.storage) {
            let says = "bad: what a replay had delivered may be sent again".to_owned();
            self.damage("replayed", Some(Replayed::FILE), says);
        }
        slots
    }

    fn manifest(&mut self) -> Option<Manifest> {
        let manifest = Manifest::read(self.storage);
        let is_there = self.storage.list("").is_ok_and(|n| n.iter().any(|n| n == "manifest"));
        match (&manifest, is_there) {
            (None, true) => {
                let says = "bad: a segment that is missing would not be noticed".to_owned();
                self.damage("manifest", Some("manifest"), says);
            }
            (None, false) if numbers(self.storage, SegmentKind::Main).is_ok_and(|n| n.len() > 1) => {
                let says = "not there: a segment that is missing would not be noticed".to_owned();
                self.note("manifest", Some("manifest"), says);
            }
            _ => {}
        }
        manifest
    }

    fn segments(&mut self, kind: SegmentKind) -> io::Result<Vec<Link>> {
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
        let link = self.look(kind, number, name, &file, len);
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
                let says = format!("format version {version}, newer than this program; not checked");
                self.note("newer_version", Some(name), says);
                return Ok(None);
            }
            // Prepared and never used.
            HeaderVerdict::Unused if is_zero(&**file, 0, len)? => return Ok(None),
            HeaderVerdict::Unused => {
                let says = "its header was never written: a beginning that a crash cut off".to_owned();
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
        for _ in 1..LOOKS {
            // It may be written right now: what is bad for a moment is whole at the next look.
            if locator.is_some() || walked.bad.is_empty() {
                break;
            }
            let ranges: Vec<(u64, u64)> = walked.bad.iter().map(|b| (b.from, b.to)).collect();
            walked = self.walk(&header, file, len, None)?;
            if walked.bad.iter().map(|b| (b.from, b.to)).eq(ranges) {
                break;
            }
        }
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
        let mut cursor =
            Cursor::new(file.clone(), *header, len, self.table.clone(), BUFFER_BYTES);
        if let Some(seal) = seal {
            // As a reader does: a damaged topic entry costs no record where the seal has it.
            cursor.topics = intern_all(seal, &self.table);
        }
        let mut w = Walked::default();
        let mut told = 0;
        loop {
            match cursor.next()? {
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
                    w.ended_by_seal |= frame.kind == super::format::FrameKind::Seal;
                }
                Found::Bad { from, to, lost, .. } => w.bad.push(Bad {
                    from,
                    to,
                    lost: lost.unwrap_or(0),
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
            let mut says = format!("{} bytes are no frame and cost {} {records}", bad.to - bad.from, bad.lost);
            if known {
                says.push_str("; known: a copy is in quarantine");
            }
            self.to.findings.push(Finding {
                weight: if known { Weight::Known } else { Weight::Damage },
                verdict: "bad",
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
            says.push(format!("the seal counts {} records, the walk {walked_records}", seal.records));
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
                says.push(format!("topic {topic}: the seal counts {sealed} records, the walk {met}"));
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
        let mut says = format!("its seal is damaged or cut off; {lost} records at its end are lost");
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

    /// Segments that the manifest names and that are neither there nor known to be gone.
    fn missing(
        &mut self,
        manifest: Option<&Manifest>,
        links: &[Link],
        asides: &[Link],
    ) -> io::Result<()> {
        let Some(manifest) = manifest else { return Ok(()) };
        let mut there: BTreeSet<u64> = links.iter().chain(asides).map(|l| l.number).collect();
        for kind in [SegmentKind::Main, SegmentKind::SetAside] {
            there.extend(numbers(self.storage, kind)?);
        }
        // What was set apart as a whole is accounted for there.
        let apart = self.to.set_apart.iter().filter_map(|(name, _)| {
            let name = name.rsplit('/').next().unwrap_or(name);
            (!name.contains('-')).then(|| number_of(name)).flatten()
        });
        there.extend(apart);
        let gone: Vec<u64> =
            manifest.segments.iter().map(|(n, _)| *n).filter(|n| !there.contains(n)).collect();
        if gone.is_empty() {
            return Ok(());
        }
        // It may have been trimmed since: then a newer manifest doesn't name it.
        let newer = Manifest::read(self.storage);
        for number in gone {
            if newer.as_ref().is_some_and(|m| m.segments.iter().any(|(n, _)| *n == number)) {
                let says = "named by the manifest, not in the directory".to_owned();
                self.damage("missing", Some(&format!("{number:016x}.wal")), says);
            }
        }
        Ok(())
    }

    /// Files of another directory: the id with most votes is this one's.
    fn owners(
        &mut self,
        slots: &[Option<Slot>; 2],
        manifest: Option<&Manifest>,
        links: &mut Vec<Link>,
        asides: &[Link],
    ) {
        let mut votes: Vec<(u64, usize)> = Vec::new();
        let ids = links.iter().chain(asides).map(|l| l.directory_id);
        let hints = manifest.iter().map(|m| m.directory_id);
        for id in ids.chain(hints).chain(slots.iter().flatten().map(|s| s.directory_id)) {
            match votes.iter_mut().find(|(voted, _)| *voted == id) {
                Some((_, n)) => *n += 1,
                None => votes.push((id, 1)),
            }
        }
        let most = votes.iter().map(|(_, n)| *n).max().unwrap_or(0);
        let Some((own, _)) = votes.into_iter().find(|(_, n)| *n == most) else { return };
        for (name, slot) in SLOTS.iter().zip(slots) {
            if slot.as_ref().is_some_and(|s| s.directory_id != own) {
                self.damage("checkpoint", Some(name), "of another directory".to_owned());
            }
        }
        for link in links.iter().chain(asides).filter(|l| l.directory_id != own) {
            let says = "of another directory".to_owned();
            let finding = Finding::whole(Weight::Damage, "foreign", Some(&link.file), says);
            self.to.findings.push(finding);
        }
        links.retain(|l| l.directory_id == own);
    }

    /// Frame numbers are dense over the log: a jump between two segments is a loss.
    fn gaps(&mut self, links: &[Link]) {
        for pair in links.windows(2) {
            let (before, after) = (&pair[0], &pair[1]);
            if before.next_frame >= after.first_frame
                || after.last_lsn.is_none_or(|n| n < self.watermark)
                || self.has_moved_on(before.number, after.first_frame)
            {
                continue;
            }
            let lost = after.first_frame - before.next_frame;
            let known = self.quarantined.contains(&loss_name(
                after.number,
                before.next_frame,
                after.first_frame,
            ));
            let mut says = format!("{lost} records before it are missing");
            if known {
                says.push_str("; known: noted in quarantine");
            } else {
                self.to.losses.push((after.number, before.next_frame, after.first_frame));
            }
            self.to.findings.push(Finding {
                weight: if known { Weight::Known } else { Weight::Damage },
                verdict: "gap",
                file: Some(after.file.clone()),
                from: None,
                to: None,
                lsn_before: before.last_lsn,
                lsn_after: after.first_lsn,
                records_lost: lost,
                is_final: false,
                says,
            });
        }
    }

    /// Whether a segment was written on, or removed, after it was walked: then there is no gap.
    fn has_moved_on(&self, number: u64, to_frame: u64) -> bool {
        let now = || -> io::Result<Option<u64>> {
            let file = self.storage.open(&segment_name(SegmentKind::Main, number))?;
            let mut area = [0; HEADER_AREA_BYTES as usize];
            let read = file.read_at(0, &mut area)?;
            let HeaderVerdict::Good(header) = SegmentHeader::judge(&area[..read]) else {
                return Ok(None);
            };
            if let Some(locator) = Locator::find(&area[..read], header.salt) {
                return Ok(Some(locator.next_frame));
            }
            let (len, table) = (file.len()?, self.table.clone());
            let mut cursor = Cursor::new(file, header, len, table, BUFFER_BYTES);
            while !matches!(cursor.next()?, Found::End { .. }) {}
            Ok(cursor.expect)
        };
        match now() {
            Ok(next) => next.is_some_and(|next| next >= to_frame),
            Err(e) => e.kind() == io::ErrorKind::NotFound,
        }
    }

    fn other_files(&mut self) -> io::Result<()> {
        let ours = ["LOCK", "manifest", "manifest.new", SLOTS[0], SLOTS[1], Replayed::FILE];
        let mut names = self.storage.list("")?;
        names.sort_unstable();
        for name in names {
            let is_segment = name.len() == 20 && name.ends_with(".wal") && number_of(&name).is_some();
            if !is_segment && !ours.contains(&name.as_str()) && name != Replayed::FILE_NEW {
                self.note("other_file", Some(&name), "not a file of the log; left alone".to_owned());
            }
        }
        Ok(())
    }
}
