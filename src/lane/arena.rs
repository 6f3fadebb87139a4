//! Owns the memory of all lanes, their bytes and their slots: one anonymous mapping, faulted in
//! before the first send.
//!
//! MADV_DONTFORK keeps it out of children: without it a fork makes every page copy-on-write,
//! and the parent's sends fault on each of them. [`Arena`] hands out plain slices; who may touch
//! which range is decided by the reservation word and the credits word (see the room's page).

use super::fork::ForkGuard;
use super::slots::Slot;
#[cfg(loom)]
use super::word::UNIT_BYTES;
use std::io;

pub(super) struct Arena {
    base: *mut u8,
    /// The lanes' bytes; behind them lie the slots.
    len: usize,
    #[cfg(not(any(loom, miri)))]
    slots: *const Slot,
    #[cfg(not(any(loom, miri)))]
    map: std::mem::ManuallyDrop<memmap2::MmapMut>,
    #[cfg(any(loom, miri))]
    slots: Box<[Slot]>,
    slot_count: usize,
    /// One cell a unit: loom checks that every access is ordered after the conflicting ones.
    #[cfg(loom)]
    touched: Vec<loom::cell::UnsafeCell<()>>,
    guard: ForkGuard,
}

// SAFETY: `base` and `slots` are owned memory, not tied to a thread. Access to its bytes goes
// through the two unsafe methods, whose callers promise that nothing conflicts, and slots are Sync.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// A zeroed arena whose pages are all present, and slots that nobody has used.
    #[cfg(not(any(loom, miri)))]
    pub(super) fn new(len: usize, slot_count: usize) -> io::Result<Self> {
        use super::fork::context;
        use memmap2::{Advice, MmapMut};
        let guard = ForkGuard::new()?;
        let slots_at = len.next_multiple_of(align_of::<Slot>());
        let mut map = MmapMut::map_anon(slots_at + slot_count * size_of::<Slot>())
            .map_err(|e| context("mmap of the lanes", e))?;
        map.advise(Advice::DontFork).map_err(|e| context("MADV_DONTFORK", e))?;
        if map.advise(Advice::PopulateWrite).is_err() {
            // A kernel or sandbox without the advice: a write to each page does the same.
            for page in map.chunks_mut(4096) {
                // SAFETY: a valid reference. Volatile, since the compiler may know that the
                // mapping holds zeroes already.
                unsafe { std::ptr::write_volatile(&mut page[0], 0) };
            }
        }
        let base = map.as_mut_ptr();
        let slots = base.wrapping_add(slots_at).cast_const().cast();
        let map = std::mem::ManuallyDrop::new(map);
        Ok(Arena { base, len, slots, map, slot_count, guard })
    }

    #[cfg(any(loom, miri))]
    pub(super) fn new(len: usize, slot_count: usize) -> io::Result<Self> {
        let base = Box::into_raw(vec![0u8; len].into_boxed_slice()).cast::<u8>();
        Ok(Arena {
            base,
            len,
            slots: (0..slot_count).map(|_| Slot::new()).collect(),
            slot_count,
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

    /// The slot of this number.
    ///
    /// # Safety
    /// The number is below the count of slots, and [`Arena::is_forked`] is false.
    #[inline]
    pub(super) unsafe fn slot(&self, number: usize) -> &Slot {
        debug_assert!(number < self.slot_count);
        #[cfg(any(loom, miri))]
        return &self.slots[number];
        #[cfg(not(any(loom, miri)))]
        // SAFETY: within the mapping, as the caller promises, and aligned; a zeroed slot is one
        // that nobody has used, and a slot is only changed through a shared reference.
        return unsafe { &*self.slots.add(number) };
    }

    /// The `len` bytes at `offset`, to write.
    ///
    /// # Safety
    /// The range lies within the arena, nobody else touches it during `'_`, every access before
    /// it happens before this one, and [`Arena::is_forked`] is false.
    #[inline]
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn bytes_mut(&self, offset: usize, len: usize) -> &mut [u8] {
        debug_assert!(offset + len <= self.len);
        #[cfg(loom)]
        for cell in &self.touched[offset / UNIT_BYTES..(offset + len).div_ceil(UNIT_BYTES)] {
            cell.with_mut(|_| ());
        }
        // SAFETY: the caller's promise; the memory is initialised from the start.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(offset), len) }
    }

    /// Asks for the cache lines of `len` bytes at `offset` and for that of the slot behind `slot`, to
    /// write: nothing is touched, and any place will do. At least four lines are asked for, and at
    /// most eight.
    #[inline]
    pub(super) fn prefetch(&self, offset: usize, len: usize, slot: &Slot) {
        #[cfg(all(target_arch = "x86_64", not(any(loom, miri))))]
        {
            let at = self.base.wrapping_add(offset);
            // SAFETY: hints, which change nothing that a program can see.
            unsafe {
                std::arch::asm!(
                    "prefetchw [{slot} + 64]",
                    "prefetchw [{at}]",
                    "prefetchw [{at} + 64]",
                    "prefetchw [{at} + 128]",
                    "prefetchw [{at} + 192]",
                    slot = in(reg) slot,
                    at = in(reg) at,
                    options(nostack, preserves_flags, readonly)
                );
            }
            if len > 256 {
                // SAFETY: as above.
                unsafe {
                    std::arch::asm!(
                        "prefetchw [{at} + 256]",
                        "prefetchw [{at} + 320]",
                        "prefetchw [{at} + 384]",
                        "prefetchw [{at} + 448]",
                        at = in(reg) at,
                        options(nostack, preserves_flags, readonly)
                    );
                }
            }
        }
        #[cfg(not(all(target_arch = "x86_64", not(any(loom, miri)))))]
        let _ = (offset, len, slot);
    }

    /// The `len` bytes at `offset`, to read.
    ///
    /// # Safety
    /// The range lies within the arena, nobody writes to it during `'_`, every write before it
    /// happens before this call, and [`Arena::is_forked`] is false.
    #[inline]
    pub(super) unsafe fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        debug_assert!(offset + len <= self.len);
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
