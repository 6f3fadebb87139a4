//! Owns the guard that tells a forked child from the process that made the lanes.
//!
//! The guard is a word in a page of its own, marked MADV_WIPEONFORK: the kernel gives a child a
//! page of zeroes instead. Reading it is one load; `getpid` would be a system call. The word holds
//! a limit, so that one comparison tells a length that is too large and a child, where all are.

use std::io;

#[cfg(not(any(loom, miri)))]
mod imp {
    use crate::sync::{Ordering, StaticAtomicU64};
    use memmap2::MmapMut;
    use rustix::mm::{Advice, madvise};
    use std::io;

    pub(in super::super) struct ForkGuard {
        page: MmapMut,
    }

    impl ForkGuard {
        pub(in super::super) fn new(limit: usize) -> io::Result<Self> {
            let page = MmapMut::map_anon(size_of::<StaticAtomicU64>())?;
            // SAFETY: the range is the mapping just made, and the advice touches no contents now.
            unsafe { madvise(page.as_ptr() as *mut _, page.len(), Advice::LinuxWipeOnFork) }
                .map_err(|e| super::context("MADV_WIPEONFORK", e.into()))?;
            let guard = ForkGuard { page };
            guard.word().store((limit as u64).saturating_add(1), Ordering::Relaxed);
            Ok(guard)
        }

        #[inline]
        fn word(&self) -> &StaticAtomicU64 {
            // SAFETY: the mapping is at least eight bytes, aligned to a page, zeroed by the
            // kernel, lives as long as `self`, and is only ever read and written through here.
            unsafe { &*self.page.as_ptr().cast::<StaticAtomicU64>() }
        }

        /// The limit and one; 0 if this process is a fork of the one that made the guard.
        #[inline]
        pub(in super::super) fn end(&self) -> usize {
            // Relaxed: fork itself orders the wipe before anything that the child does.
            self.word().load(Ordering::Relaxed) as usize
        }
    }
}

// Neither loom nor Miri can fork.
#[cfg(any(loom, miri))]
mod imp {
    pub(in super::super) struct ForkGuard {
        end: usize,
    }

    impl ForkGuard {
        pub(in super::super) fn new(limit: usize) -> std::io::Result<Self> {
            Ok(ForkGuard { end: limit.saturating_add(1) })
        }

        pub(in super::super) fn end(&self) -> usize {
            self.end
        }
    }
}

pub(super) use imp::ForkGuard;

/// The error with the name of the call that failed.
#[cfg_attr(any(loom, miri), allow(dead_code))]
pub(super) fn context(what: &str, e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{what}: {e}"))
}
