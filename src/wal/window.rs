//! Owns a window on a file: a read-only mapping, for walks over many frames.
//!
//! A walk by system calls copies every byte once more than one through a window; nothing else is
//! different. Only segments that take no more frames are looked at in this way.
//!
//! Invariants, named by the SAFETY comments:
//! - **W1** the mapping is `len` bytes from `skip` on and lives as long as `self`.
//! - **W2** nobody stores into these bytes while the window lives: a segment is mapped for
//!   reading by whoever holds the directory and appends nothing to it, or after its seal.
//!
//! A page that the filesystem can't give raises SIGBUS at a load: the range is made present
//! first, and [`super::guard`] catches what comes in between, so that a window without a guard
//! is never made. What is read after that is zeroes: whoever reads asks
//! [`ReadWindow::is_torn`] before it believes what it found.

use super::guard::Guarded;
use super::storage::Window;
use memmap2::{Advice, MmapOptions, MmapRaw};
use std::fs::File;

const PAGE_BYTES: u64 = 4096;

pub(super) struct ReadWindow {
    /// Before `map`: nothing is watched that isn't mapped any more.
    guard: Guarded,
    map: MmapRaw,
    /// Where the wanted bytes begin in the mapping.
    skip: usize,
}

impl ReadWindow {
    /// The file's bytes from `offset` on, `len` of them; `None` where they can't be had like this.
    pub fn new(file: &File, offset: u64, len: usize) -> Option<ReadWindow> {
        let from = offset / PAGE_BYTES * PAGE_BYTES;
        let skip = (offset - from) as usize;
        if len == 0 || file.metadata().ok()?.len() < offset.checked_add(len as u64)? {
            return None;
        }
        let map = MmapOptions::new().offset(from).len(skip + len).map_raw_read_only(file).ok()?;
        map.advise(Advice::PopulateRead).ok()?;
        // SAFETY: `map` is whole pages (W1), nobody stores into it (W2), and it is dropped after
        // the guard (fields are dropped in their order).
        let guard = unsafe { Guarded::new(map.as_mut_ptr(), skip + len) }?;
        Some(ReadWindow { guard, map, skip })
    }
}

impl Window for ReadWindow {
    fn bytes(&self) -> &[u8] {
        // SAFETY: in the mapping and alive by W1, never changed while it is by W2.
        unsafe {
            std::slice::from_raw_parts(self.map.as_ptr().add(self.skip), self.map.len() - self.skip)
        }
    }

    fn is_torn(&self) -> bool {
        self.guard.was_hit()
    }
}
