//! Owns asking for cache lines before they are needed: behind frames that are stored or summed.

/// How far behind the given place the lines lie that are asked for.
const AHEAD_BYTES: usize = 2048;
/// Longer frames are left to the processor's own prefetching.
const FRAME_BYTES_MAX: usize = 2048;

/// Asks for as many lines as a frame of `len` bytes has, some way behind where it ends.
#[inline(always)]
pub(super) fn prefetch(end: *const u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    if len <= FRAME_BYTES_MAX {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let from = end.wrapping_add(AHEAD_BYTES);
        for line in 0..len.div_ceil(64) {
            // SAFETY: a hint that touches no memory; any address will do.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(line * 64).cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (end, len);
}
