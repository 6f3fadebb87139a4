//! Owns the mapping of a segment that is being appended to.
//!
//! Invariants, named by the SAFETY comments:
//! - **M1** the mapping is `len` bytes, page-aligned, and lives as long as `self`.
//! - **M2** only `&mut self` stores through it, nothing loads through it, and no reference to
//!   its bytes is ever made: whoever reads the file while it is appended to does so by system calls.
//! - **M3** every range is checked against `len` before it is used.
//!
//! A page that the filesystem can't give raises SIGBUS at the store; callers populate a range
//! before they store into it, and [`super::guard`] catches what comes in between.
//!
//! # Orderings
//! The commit word's Release store keeps it behind the frame's other stores in this process's
//! memory order: a process that dies between them leaves a zero commit word. Across a power
//! cut nothing is ordered; the CRC covers that. `lost` is stored (Release) by the thread that
//! appends before it says that an append failed, and loaded (Acquire) after each sync.

use super::guard::Guarded;
use super::prefetch::prefetch;
use memmap2::{Advice, MmapOptions, MmapRaw};
use std::fs::File;
use std::io;
use std::sync::Arc;
// A file's bytes are not memory that loom models: std's atomics, always.
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(super) struct Mapping {
    /// Before `map`: nothing is watched that isn't mapped any more.
    guard: Option<Guarded>,
    /// Shared with the file, whose syncs say nothing of bytes that never reached it.
    lost: Arc<AtomicBool>,
    map: MmapRaw,
}

impl Mapping {
    /// Maps the file's first `len` bytes, and has the guard watch over them if `guarded`.
    pub fn new(file: &File, len: usize, guarded: bool) -> io::Result<Self> {
        let map = MmapOptions::new().len(len).map_raw(file)?;
        // One fault for 2 MiB instead of one for 4 KiB, after each sync again: where the kernel
        // and the filesystem know how. Where they don't, nothing is different but the time.
        let _ = map.advise(Advice::HugePage);
        // SAFETY: `map` is whole pages (M1), stored into by its owner alone (M2), and dropped
        // after the guard (fields are dropped in their order).
        let guard = guarded.then(|| unsafe { Guarded::new(map.as_mut_ptr(), len) }).flatten();
        Ok(Mapping { guard, lost: Arc::default(), map })
    }

    /// Set once a store has gone nowhere: the file's bytes are not what was stored.
    pub fn lost(&self) -> Arc<AtomicBool> {
        self.lost.clone()
    }

    /// An error once a store has gone nowhere.
    fn check(&self) -> io::Result<()> {
        if self.guard.as_ref().is_some_and(Guarded::was_hit) {
            self.lost.store(true, Ordering::Release);
            return Err(io::Error::other("SIGBUS: the filesystem took a page away"));
        }
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.map.len()
    }

    fn range(&self, offset: u64, len: usize) -> io::Result<usize> {
        let end = offset.checked_add(len as u64).filter(|end| *end <= self.map.len() as u64);
        end.map(|_| offset as usize).ok_or_else(|| io::ErrorKind::WriteZero.into())
    }

    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let at = self.range(offset, bytes.len())?;
        // SAFETY: in range by M3, alive by M1; the only access by M2. `bytes` can't overlap,
        // since no reference into the mapping exists (M2).
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.map.as_mut_ptr().add(at),
                bytes.len(),
            );
        }
        self.check()
    }

    pub fn commit_at(&mut self, offset: u64, word: u64) -> io::Result<()> {
        let at = self.range(offset, 8)?;
        if at % 8 != 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: in range by M3, alive and aligned by M1 and the check above; the only access
        // by M2.
        unsafe {
            AtomicU64::from_ptr(self.map.as_mut_ptr().add(at).cast())
                .store(word.to_le(), Ordering::Release);
        }
        self.check()
    }

    /// Stores a frame and then, behind everything of it, its commit word.
    pub fn store_frame(
        &mut self,
        offset: u64,
        word: u64,
        head: &[u8],
        body: &[u8],
    ) -> io::Result<()> {
        let len = 8 + head.len() + body.len();
        let at = self.range(offset, len)?;
        if at % 8 != 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: all of the frame is in range by M3, alive and, for the word, aligned by M1 and
        // the check above; the only access by M2, so that neither part can overlap it.
        unsafe {
            let frame = self.map.as_mut_ptr().add(at);
            std::ptr::copy_nonoverlapping(head.as_ptr(), frame.add(8), head.len());
            if !body.is_empty() {
                let to = frame.add(8 + head.len());
                std::ptr::copy_nonoverlapping(body.as_ptr(), to, body.len());
            }
            AtomicU64::from_ptr(frame.cast()).store(word.to_le(), Ordering::Release);
        }
        // Stores to memory that isn't in cache fill the store buffer, and everything after them
        // waits.
        prefetch(self.map.as_ptr().wrapping_add(at + len), len);
        self.check()
    }

    /// Faults the range's pages in for writing, or says why that can't be. `Unsupported` when
    /// the kernel or the filesystem doesn't know how.
    pub fn populate(&mut self, offset: u64, len: u64) -> io::Result<()> {
        const PAGE: u64 = 4096;
        let from = offset / PAGE * PAGE;
        let len = (offset - from) + len;
        let from = self.range(from, len as usize)?;
        match self.map.advise_range(Advice::PopulateWrite, from, len as usize) {
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                Err(io::ErrorKind::Unsupported.into())
            }
            done => done,
        }
    }
}
