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
    /// The lanes' bytes.
    len: usize,
    slots: *const Slot,
    slot_count: usize,
    /// Bytes and slots.
    #[cfg(not(any(loom, miri)))]
    map: std::mem::ManuallyDrop<memmap2::MmapMut>,
    /// One cell a unit: loom checks that every access is ordered after the conflicting ones.
    #[cfg(loom)]
    touched: Vec<loom::cell::UnsafeCell<()>>,
    guard: ForkGuard,
}

/// Where one lane's bytes and slots lie.
#[derive(Clone, Copy)]
pub(super) struct Share {
    bytes: *mut u8,
    slots: *const Slot,
    /// Their number, a power of two, less one, in bytes.
    slots_mask: usize,
}

// SAFETY: `base` and `slots` are owned memory, not tied to a thread. Access to it goes through
// unsafe methods, whose callers promise that nothing conflicts.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}
// SAFETY: two addresses; whoever uses them goes through the arena.
unsafe impl Send for Share {}
// SAFETY: as above.
unsafe impl Sync for Share {}

impl Arena {
    /// A zeroed arena whose pages are all present, and slots that nobody has used. No body is
    /// longer than `limit`.
    #[cfg(not(any(loom, miri)))]
    pub(super) fn new(len: usize, slot_count: usize, limit: usize) -> io::Result<Self> {
        use super::fork::context;
        use memmap2::{Advice, MmapMut};
        let guard = ForkGuard::new(limit)?;
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
        // A zeroed slot is one that nobody has used.
        let slots = base.wrapping_add(slots_at).cast_const().cast();
        let map = std::mem::ManuallyDrop::new(map);
        Ok(Arena { base, len, slots, slot_count, map, guard })
    }

    #[cfg(any(loom, miri))]
    pub(super) fn new(len: usize, slot_count: usize, limit: usize) -> io::Result<Self> {
        let base = Box::into_raw(vec![0u8; len].into_boxed_slice()).cast::<u8>();
        let slots: Box<[Slot]> = (0..slot_count).map(|_| Slot::new()).collect();
        Ok(Arena {
            base,
            len,
            slots: Box::into_raw(slots).cast(),
            slot_count,
            #[cfg(loom)]
            touched: (0..len.div_ceil(UNIT_BYTES))
                .map(|_| loom::cell::UnsafeCell::new(()))
                .collect(),
            guard: ForkGuard::new(limit)?,
        })
    }

    /// The share of a lane whose bytes and slots begin there; it has `slots`, a power of two.
    pub(super) fn share(&self, byte: usize, slot: usize, slots: usize) -> Share {
        debug_assert!(slots.is_power_of_two() && slot + slots <= self.slot_count);
        Share {
            bytes: self.base.wrapping_add(byte),
            slots: self.slots.wrapping_add(slot),
            slots_mask: (slots - 1) * size_of::<Slot>(),
        }
    }

    /// A body of so many bytes must be refused when this isn't above it: the limit and one, and 0
    /// in a fork.
    #[inline]
    pub(super) fn body_end(&self) -> usize {
        self.guard.end()
    }

    /// Whether this process is a fork of the arena's: then no byte of it may be touched.
    #[inline]
    pub(super) fn is_forked(&self) -> bool {
        self.guard.end() == 0
    }

    /// The slot of a sequence, which is given twice, as it stands in an open lane's word.
    ///
    /// # Safety
    /// The share is this arena's, and [`Arena::is_forked`] is false.
    #[inline]
    pub(super) unsafe fn slot(&self, share: &Share, twice_seq: u32) -> &Slot {
        const BYTES: usize = size_of::<Slot>();
        // In bytes, so that it takes a shift and an `and`; loom's slots have any size.
        #[cfg(not(loom))]
        let at = (twice_seq as usize * (BYTES / 2)) & share.slots_mask;
        #[cfg(loom)]
        let at = (twice_seq as usize / 2 & (share.slots_mask / BYTES)) * BYTES;
        // SAFETY: `share` was made here, and the mask keeps within its slots; a slot is only changed
        // through a shared reference.
        unsafe { &*share.slots.byte_add(at) }
    }

    /// Where, within the arena, a share's bytes from `offset` begin; a check of what is promised.
    #[inline]
    fn place(&self, share: &Share, offset: usize, len: usize) -> usize {
        let place = (share.bytes as usize - self.base as usize) + offset;
        debug_assert!(place + len <= self.len);
        place
    }

    /// `len` bytes of a share from `offset`, to write.
    ///
    /// # Safety
    /// The share is this arena's and the range lies within it, nobody else touches it during `'_`,
    /// every access before it happens before this one, and [`Arena::is_forked`] is false.
    #[inline]
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn bytes_mut(&self, share: &Share, offset: usize, len: usize) -> &mut [u8] {
        let _place = self.place(share, offset, len);
        #[cfg(loom)]
        for cell in &self.touched[_place / UNIT_BYTES..(_place + len).div_ceil(UNIT_BYTES)] {
            cell.with_mut(|_| ());
        }
        // SAFETY: the caller's promise; the memory is initialised from the start.
        unsafe { std::slice::from_raw_parts_mut(share.bytes.add(offset), len) }
    }

    /// `len` bytes of a share from `offset`, to read.
    ///
    /// # Safety
    /// The share is this arena's and the range lies within it, nobody writes to it during `'_`,
    /// every write before it happens before this call, and [`Arena::is_forked`] is false.
    #[inline]
    pub(super) unsafe fn bytes(&self, share: &Share, offset: usize, len: usize) -> &[u8] {
        let _place = self.place(share, offset, len);
        #[cfg(loom)]
        for cell in &self.touched[_place / UNIT_BYTES..(_place + len).div_ceil(UNIT_BYTES)] {
            cell.with(|_| ());
        }
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(share.bytes.add(offset), len) }
    }
}

/// Asks for the cache lines of the `units` at `body` and for that of the slot behind `slot`, to
/// write: nothing is touched, and any place will do. At least four lines of the body, and at most
/// eight.
#[inline]
pub(super) fn prefetch(body: *const u8, units: u32, slot: &Slot) {
    #[cfg(all(target_arch = "x86_64", not(any(loom, miri))))]
    {
        // SAFETY: hints, which change nothing that a program can see.
        unsafe {
            std::arch::asm!(
                "prefetchw [{slot} + 64]",
                "prefetchw [{body}]",
                "prefetchw [{body} + 64]",
                "prefetchw [{body} + 128]",
                "prefetchw [{body} + 192]",
                slot = in(reg) slot,
                body = in(reg) body,
                options(nostack, preserves_flags, readonly)
            );
        }
        if units > 16 {
            // SAFETY: as above.
            unsafe {
                std::arch::asm!(
                    "prefetchw [{body} + 256]",
                    "prefetchw [{body} + 320]",
                    "prefetchw [{body} + 384]",
                    "prefetchw [{body} + 448]",
                    body = in(reg) body,
                    options(nostack, preserves_flags, readonly)
                );
            }
        }
    }
    #[cfg(not(all(target_arch = "x86_64", not(any(loom, miri)))))]
    let _ = (body, units, slot);
}

impl Drop for Arena {
    fn drop(&mut self) {
        // In a forked child the range isn't ours: it was never mapped there, and something else
        // may lie at its address by now.
        #[cfg(not(any(loom, miri)))]
        if !self.is_forked() {
            // SAFETY: dropped once, here, and not used afterwards.
            unsafe { std::mem::ManuallyDrop::drop(&mut self.map) };
        }
        #[cfg(any(loom, miri))]
        // SAFETY: these are the two boxes of `new` and their lengths; nothing borrows them now.
        unsafe {
            drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(self.base, self.len)));
            let slots = self.slots.cast_mut();
            drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(slots, self.slot_count)));
        }
    }
}
