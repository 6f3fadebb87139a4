//! Owns what recovery makes of the hints, manifest and checkpoint: whose directory it is, and
//! what of it is missing.

use super::checkpoint::{MANIFEST, Manifest, SLOTS, Slot};
use super::format::{QUARANTINE_DIR, SegmentHeader, SegmentKind};
use super::recover::{NUMBER_BELIEVED_MAX, Recoverer};

/// The directory's id: that of most segments, manifest and checkpoint with a vote each.
pub(super) fn elect(
    segments: impl Iterator<Item = u64>,
    manifest: Option<&Manifest>,
    slots: &[Option<Slot>; 2],
) -> Option<u64> {
    let newest = slots.iter().flatten().max_by_key(|s| s.generation);
    // In a tie the first one holds: the manifest's, then the oldest segment's.
    let mut votes: Vec<(u64, u64)> = manifest.iter().map(|m| (m.directory_id, 1)).collect();
    for id in segments.chain(newest.map(|s| s.directory_id)) {
        match votes.iter_mut().find(|(voted, _)| *voted == id) {
            Some((_, n)) => *n += 1,
            None => votes.push((id, 1)),
        }
    }
    let most = votes.iter().map(|(_, n)| *n).max()?;
    votes.iter().find(|(_, n)| *n == most).map(|(id, _)| *id)
}

impl Recoverer<'_> {
    /// The hints that belong to this directory; another's are moved away.
    pub(super) fn ours(
        &mut self,
        directory_id: u64,
        manifest: Option<Manifest>,
        slots: &mut [Option<Slot>; 2],
    ) -> Option<Manifest> {
        for (slot, name) in slots.iter_mut().zip(SLOTS) {
            if slot.as_ref().is_some_and(|s| s.directory_id != directory_id) {
                *slot = None;
                self.damage.checkpoints_bad += 1;
                self.set_hint_apart(name);
            }
        }
        let is_ours = manifest.as_ref().is_none_or(|m| m.directory_id == directory_id);
        if !is_ours {
            self.set_hint_apart(MANIFEST);
        }
        manifest.filter(|_| is_ours)
    }

    fn set_hint_apart(&mut self, name: &str) {
        let to = self.free_name(QUARANTINE_DIR, &format!("{name}.foreign"));
        let done = match self.storage.rename(name, &to) {
            Ok(()) => format!("moved to {to}"),
            Err(e) => format!("left where it is: {e}"),
        };
        self.say(format!("{name}: it belongs to another directory and isn't used; {done}"));
    }

    /// Counts what the manifest names and nobody has.
    pub(super) fn missing(
        &mut self,
        manifest: &Manifest,
        names: &[Vec<u64>; 2],
        oldest: Option<SegmentHeader>,
        watermark: u64,
        all_final: bool,
    ) {
        self.next_number = self.next_number.max(manifest.next_number.min(NUMBER_BELIEVED_MAX));
        for &(number, kind) in &manifest.segments {
            let is_there = names.iter().any(|n| n.binary_search(&number).is_ok());
            if is_there || self.apart.contains(&number) {
                continue;
            }
            // Removed on a disk too full for a manifest without it.
            let was_final = match oldest {
                Some(oldest) => number < oldest.number && oldest.base_lsn <= watermark,
                None => all_final,
            };
            if kind == SegmentKind::Main as u64 && was_final {
                continue;
            }
            self.damage.segments_missing += 1;
            self.say(format!(
                "segment {number:016x}: the manifest names it, and it isn't in the directory: somebody removed it, or the filesystem lost it"
            ));
        }
    }
}
