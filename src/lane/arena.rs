//! Owns the bytes of all lanes: one anonymous mapping, faulted in before the first send.
//!
//! MADV_DONTFORK keeps it out of children: without it a fork makes every page copy-on-write,
//! and the parent's sends fault on each of them. [`Arena`] hands out plain slices; who may touch
//! which range is decided by the reservation word and the credits word (see the room's page).

use super::fork::ForkGuard;
#[cfg(loom)]
use super::word::UNIT_BYTES;
use std::io;

/// Longer bodies are left to the processor's own prefetching.
#[cfg(all(target_arch = "x86_64", not(any(loom, miri))))]
const PREFETCH_LINES_MAX: usize = 8;

pub(super) struct Arena {
    base: *mut u8,
    #[cfg(not(any(loom, miri)))]
    map: std::mem::ManuallyDrop<memmap2::MmapMut>,
    #[cfg(any(loom, miri))]
    len: usize,
    /// One cell a unit: loom checks that every access is ordered after the conflicting ones.
    #[cfg(loom)]
    touched: Vec<loom::cell::UnsafeCell<()>>,
    guard: ForkGuard,
}

// SAFETY: `base` is owned memory, not tied to a thread. Access to its bytes goes through the
// two unsafe methods, whose callers promise that nothing conflicts.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// A zeroed arena whose pages are all present.
    #[cfg(not(any(loom, miri)))]
    pub(super) fn new(len: usize) -> io::Result<Self> {
        use super::fork::context;
        use memmap2::{Advice, MmapMut};
        let guard = ForkGuard::new()?;
        let mut map = MmapMut::map_anon(len).map_err(|e| context("mmap of the lanes", e))?;
        map.advise(Advice::DontFork).map_err(|e| context("MADV_DONTFORK", e))?;
        if map.advise(Advice::PopulateWrite).is_err() {
            // A kernel or sandbox without the advice: a write to each page does the same.
            for page in map.chunks_mut(4096) {
                // SAFETY: a valid reference. Volatile, since the compiler may know that the
                // mapping holds zeroes already.
                unsafe { std::ptr::write_volatile(&mut page[0], 0) };
            }
        }
        Ok(Arena { base: map.as_mut_ptr(), map: std::mem::ManuallyDrop::new(map), guard })
    }

    #[cfg(any(loom, miri))]
    pub(super) fn new(len: usize) -> io::Result<Self> {
        let base = Box::into_raw(vec![0u8; len].into_boxed_slice()).cast::<u8>();
        Ok(Arena {
            base,
            len,
            #[cfg(loom)]
            touched: (0..len.div_ceil(UNIT_BYTES))
                .map(|_| loom::cell::UnsafeCell::new(()))
                .collect(),
            guard: ForkGuard::new()?,
        })
    }

    /// Whether this process is a fork of the arena's: then no byte of it may be touched.
    #[inline]
    pub(super) fn is_forked(&self) -> bool {
        self.guard.is_forked()
    }

    #[inline]
    fn len(&self) -> usize {
        #[cfg(not(any(loom, miri)))]
        return self.map.len();
        #[cfg(any(loom, miri))]
        return self.len;
    }

    /// The `len` bytes at `offset`, to write.
    ///
    /// # Safety
    /// The range lies within the arena, nobody else touches it during `'_`, every access before
    /// it happens before this one, and [`Arena::is_forked`] is false.
    #[inline]
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn bytes_mut(&self, offset: usize, len: usize) -> &mut [u8] {
        debug_assert!(offset + len <= self.len());
        #[cfg(loom)]
        for cell in &self.touched[offset / UNIT_BYTES..(offset + len).div_ceil(UNIT_BYTES)] {
            cell.with_mut(|_| ());
        }
        // SAFETY: the caller's promise; the memory is initialised from the start.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(offset), len) }
    }

    /// Asks for the cache lines of `len` bytes at `offset`, to write: nothing is touched, and any
    /// place will do.
    #[inline]
    pub(super) fn prefetch(&self, offset: usize, len: usize) {
        #[cfg(all(target_arch = "x86_64", not(any(loom, miri))))]
        for line in 0..len.div_ceil(64).min(PREFETCH_LINES_MAX) {
            let at = self.base.wrapping_add(offset + line * 64);
            // SAFETY: a hint, which changes nothing that a program can see.
            unsafe {
                std::arch::asm!(
                    "prefetchw [{}]",
                    in(reg) at,
                    options(nostack, preserves_flags, readonly)
                );
            }
        }
        #[cfg(not(all(target_arch = "x86_64", not(any(loom, miri)))))]
        let _ = (offset, len);
    }

    /// The `len` bytes at `offset`, to read.
    ///
    /// # Safety
    /// The range lies within the arena, nobody writes to it during `'_`, every write before it
    /// happens before this call, and [`Arena::is_forked`] is false.
    #[inline]
    pub(super) unsafe fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        debug_assert!(offset + len <= self.len());
        #[cfg(loom)]
        for cell in &self.touched[offset / UNIT_BYTES..(offset + len).div_ceil(UNIT_BYTES)] {
            cell.with(|_| ());
        }
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.base.add(offset), len) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // In a forked child the range isn't ours: it was never mapped there, and something else
        // may lie at its address by now.
        #[cfg(not(any(loom, miri)))]
        if !self.guard.is_forked() {
            // SAFETY: dropped once, here, and not used afterwards.
            unsafe { std::mem::ManuallyDrop::drop(&mut self.map) };
        }
        #[cfg(any(loom, miri))]
        // SAFETY: `base` and `len` came from this box in `new`, and nothing borrows it now.
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(self.base, self.len)) });
    }
}
