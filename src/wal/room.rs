//! Owns room: what the log may take of its bound, who gets it, and how some is freed on a disk
//! that has none.

use super::format::{SET_ASIDE_DIR, SegmentKind, segment_name};
use super::keeper::WalKeeper;
use super::types::is_full;
use std::io;

impl WalKeeper {
    pub(super) fn segment_bytes(&self, kind: SegmentKind) -> u64 {
        match kind {
            SegmentKind::Main => self.common.options.segment_bytes,
            SegmentKind::SetAside => self.common.options.set_aside_segment_bytes,
        }
    }

    /// Whether one more segment keeps the log within its bound. Main segments leave room for
    /// set-aside ones, and these take no more than a quarter: neither can starve the other.
    pub(super) fn has_room(&self, kind: SegmentKind) -> bool {
        let (options, max) = (&self.common.options, self.common.wal_bytes_max);
        let reserve = options.set_aside_reserve_bytes();
        let state = self.common.state.lock();
        let after = state.used_bytes() + self.segment_bytes(kind);
        match kind {
            SegmentKind::Main => {
                let asides = &state.prepared[SegmentKind::SetAside as usize];
                let ready: u64 = asides.iter().map(|p| p.file.len()).sum();
                after + reserve.saturating_sub(ready) <= max
            }
            SegmentKind::SetAside => {
                let asides = state.live.values().filter(|(k, _)| *k == kind);
                let asides: u64 = asides.map(|(_, bytes)| bytes).sum();
                after + reserve / 2 <= max
                    && asides + self.segment_bytes(kind) <= (max / 4).max(reserve)
            }
        }
    }

    /// Set-aside segments that somebody moved away no longer take room. True when that made
    /// enough of it.
    pub(super) fn forget_vanished(&mut self) -> bool {
        let kind = SegmentKind::SetAside;
        let Ok(names) = self.common.storage.list(SET_ASIDE_DIR) else { return false };
        {
            let mut state = self.common.state.lock();
            let used: Vec<u64> = state.active.iter().flatten().map(|(number, _)| *number).collect();
            state.live.retain(|number, (k, _)| {
                let file = format!("{number:016x}.wal");
                *k != kind || used.contains(number) || names.contains(&file)
            });
        }
        self.has_room(kind)
    }

    /// A file that could not be made whole and not be removed either: no other is made before it
    /// is gone, or a disk that fails would fill up with them.
    pub(super) fn remove_unmade(&mut self) -> io::Result<()> {
        let Some((kind, number)) = self.unmade else { return Ok(()) };
        match self.common.storage.unlink(&segment_name(kind, number)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        self.unmade = None;
        self.common.state.lock().live.remove(&number);
        Ok(())
    }

    /// A manifest without what is about to be removed. To free room must not need room: on a
    /// full disk the old one is written over, and where even that fails the removal goes on.
    /// What a manifest names in vain is then below the watermark.
    pub(super) fn publish_before_removal(&mut self) -> io::Result<()> {
        match self.publish_manifest() {
            Err(e) if is_full(e.kind()) => {
                self.manifest_stale = true;
                match self.manifest().overwrite(&*self.common.storage) {
                    // What an earlier removal left undone stays before the next.
                    Err(e) if is_full(e.kind()) => self.common.storage.sync_dir(),
                    done => done,
                }
            }
            done => done,
        }
    }
}
