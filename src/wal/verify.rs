//! Owns the check of a whole directory: read-only, every byte that counts, also beside the
//! process that holds it. Single segments are walked in `verify_segment`.
//!
//! Opening trusts seals; this doesn't: every segment is walked from end to end, and what its
//! seal says is compared with what the walk met. The verdict on each position is the cursor's,
//! that on whole files follows the table of `recover`. Beside a live pipeline a file may be
//! written, sealed or removed while it is looked at: its tail is no damage, and what looks
//! damaged counts only if the next look at the same file finds the same (`settled`).

use super::checkpoint::{Manifest, SLOTS, Slot, read_slots};
use super::cursor::{Cursor, Found};
use super::findings::{Finding, Verification, Weight};
use super::format::{
    HEADER_AREA_BYTES, HeaderVerdict, NEWER_DIR, QUARANTINE_DIR, SET_ASIDE_DIR, SegmentHeader,
    SegmentKind, number_of, segment_name,
};
use super::replayed::Replayed;
use super::seal::Locator;
use super::storage::Storage;
use crate::topics::TopicTable;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Bytes that the walk asks for at once.
pub(super) const BUFFER_BYTES: usize = 1 << 20;
/// Looks at a file that a live pipeline may be writing, at most.
const LOOKS: usize = 5;
/// Between two looks at a small file that is rewritten in place: a writer that lost its
/// processor in the middle has it back by then.
const REWRITE_PAUSE: Duration = Duration::from_millis(10);

/// A segment that could be walked, for what holds between segments.
pub(super) struct Link {
    pub file: String,
    pub number: u64,
    pub directory_id: u64,
    pub first_frame: u64,
    pub next_frame: u64,
    pub first_lsn: Option<u64>,
    pub last_lsn: Option<u64>,
}

pub(super) struct Verifier<'a> {
    pub storage: &'a dyn Storage,
    pub progress: &'a mut dyn FnMut(u64),
    pub table: Arc<TopicTable>,
    pub done_bytes: u64,
    /// Names in quarantine: what is there is known.
    pub quarantined: BTreeSet<String>,
    pub watermark: u64,
    pub to: Verification,
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
pub fn verify(storage: &dyn Storage, progress: &mut dyn FnMut(u64)) -> io::Result<Verification> {
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
    let slots = v.settled(REWRITE_PAUSE, Verifier::checkpoints);
    let manifest = v.settled(REWRITE_PAUSE, Verifier::manifest);
    let (mut links, asides) = (v.segments(SegmentKind::Main)?, v.segments(SegmentKind::SetAside)?);
    v.missing(manifest.as_ref(), &links, &asides)?;
    v.owners(&slots, manifest.as_ref(), &mut links, &asides);
    v.gaps(&links);
    v.other_files()?;
    Ok(v.to)
}

pub(super) fn numbers(storage: &dyn Storage, kind: SegmentKind) -> io::Result<Vec<u64>> {
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
    pub(super) fn note(&mut self, verdict: &'static str, file: Option<&str>, says: String) {
        self.to.findings.push(Finding::whole(Weight::Note, verdict, file, says));
    }

    pub(super) fn damage(&mut self, verdict: &'static str, file: Option<&str>, says: String) {
        self.to.findings.push(Finding::whole(Weight::Damage, verdict, file, says));
    }

    /// Looks until two looks in a row agree on what is damaged, and keeps only that: one look
    /// may meet what is half written, and the next one meets it whole, or something elsewhere.
    pub(super) fn settled<T>(
        &mut self,
        pause: Duration,
        mut look: impl FnMut(&mut Self) -> T,
    ) -> T {
        let (all, done_bytes) = (std::mem::take(&mut self.to), self.done_bytes);
        let mut out = look(self);
        let mut met = self.to.damaged_places();
        for _ in 1..LOOKS {
            if met.is_empty() {
                break;
            }
            std::thread::sleep(pause);
            (self.to, self.done_bytes) = (Verification::default(), done_bytes);
            out = look(self);
            let now = self.to.damaged_places();
            self.to.findings.retain(|f| f.weight != Weight::Damage || met.contains(&f.place()));
            let is_settled = now.iter().all(|place| met.contains(place));
            met = now;
            if is_settled {
                break;
            }
        }
        let new = std::mem::replace(&mut self.to, all);
        self.to.add(new);
        out
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
        let (slots, bad) = read_slots(self.storage);
        for (name, is_bad) in SLOTS.iter().zip(bad) {
            if is_bad && slots.iter().any(Option::is_some) {
                let says = "torn; the other slot holds".to_owned();
                self.note("checkpoint", Some(name), says);
            } else if is_bad {
                let says =
                    "bad, and no other slot holds: records that are final will be sent again";
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
            (None, false)
                if numbers(self.storage, SegmentKind::Main).is_ok_and(|n| n.len() > 1) =>
            {
                let says = "not there: a segment that is missing would not be noticed".to_owned();
                self.note("manifest", Some("manifest"), says);
            }
            _ => {}
        }
        manifest
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
        let gone: Vec<(u64, u64)> =
            manifest.segments.iter().filter(|(n, _)| !there.contains(n)).copied().collect();
        if gone.is_empty() {
            return Ok(());
        }
        // It may have been trimmed since: then a newer manifest doesn't name it.
        let newer = Manifest::read(self.storage);
        for (number, kind) in gone {
            let main = kind == SegmentKind::Main as u64;
            let kind = if main { SegmentKind::Main } else { SegmentKind::SetAside };
            if newer.as_ref().is_some_and(|m| m.segments.iter().any(|(n, _)| *n == number)) {
                let says = "named by the manifest, not in the directory".to_owned();
                self.damage("missing", Some(&segment_name(kind, number)), says);
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
        let ours = ["LOCK", "manifest", SLOTS[0], SLOTS[1], Replayed::FILE];
        let mut names = self.storage.list("")?;
        names.sort_unstable();
        for name in names {
            // A file takes another's place under this name.
            let stem = name.strip_suffix(".new").unwrap_or(&name);
            let is_segment =
                stem.len() == 20 && stem.ends_with(".wal") && number_of(stem).is_some();
            if is_segment && stem.len() < name.len() {
                let says = "its sync failed: the next run, or this one, writes it anew".to_owned();
                self.note("rewrite", Some(stem), says);
            } else if !is_segment && !ours.contains(&stem) {
                let says = "not a file of the log; left alone".to_owned();
                self.note("other_file", Some(&name), says);
            }
        }
        Ok(())
    }
}
