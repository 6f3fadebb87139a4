//! Owns the guard that tells a forked child from the process that made the lanes.
//!
//! The guard is a word in a page of its own, marked MADV_WIPEONFORK: the kernel gives a child a
//! page of zeroes instead. Reading it is one load; `getpid` would be a system call.

use std::io;

#[cfg(not(any(loom, miri)))]
mod imp {
    use crate::sync::{Ordering, RawAtomicU32};
    use memmap2::MmapMut;
    use rustix::mm::{Advice, madvise};
    use std::io;

    const ALIVE: u32 = 1;

    pub(in super::super) struct ForkGuard {
        page: MmapMut,
    }

    impl ForkGuard {
        pub(in super::super) fn new() -> io::Result<Self> {
            let page = MmapMut::map_anon(size_of::<RawAtomicU32>())?;
            // SAFETY: the range is the mapping just made, and the advice touches no contents now.
            unsafe { madvise(page.as_ptr() as *mut _, page.len(), Advice::LinuxWipeOnFork) }
                .map_err(|e| super::context("MADV_WIPEONFORK", e.into()))?;
            let guard = ForkGuard { page };
            guard.word().store(ALIVE, Ordering::Relaxed);
            Ok(guard)
        }

        #[inline]
        fn word(&self) -> &RawAtomicU32 {
            // SAFETY: the mapping is at least four bytes, aligned to a page, zeroed by the
            // kernel, lives as long as `self`, and is only ever read and written through here.
            unsafe { &*self.page.as_ptr().cast::<RawAtomicU32>() }
        }

        /// Whether this process is a fork of the one that made the guard.
        #[inline]
        pub(in super::super) fn is_forked(&self) -> bool {
            // Relaxed: fork itself orders the wipe before anything that the child does.
            self.word().load(Ordering::Relaxed) != ALIVE
        }
    }
}

// Neither loom nor Miri can fork.
#[cfg(any(loom, miri))]
mod imp {
    pub(in super::super) struct ForkGuard;

    impl ForkGuard {
        pub(in super::super) fn new() -> std::io::Result<Self> {
            Ok(ForkGuard)
        }

        pub(in super::super) fn is_forked(&self) -> bool {
            false
        }
    }
}

pub(super) use imp::ForkGuard;

/// The error with the name of the call that failed.
#[cfg_attr(any(loom, miri), allow(dead_code))]
pub(super) fn context(what: &str, e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{what}: {e}"))
}
