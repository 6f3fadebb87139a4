//! Owns the guard against SIGBUS over the log's own mappings.
//!
//! A store into a mapped page that the filesystem can't give (it was shut down, it is full and
//! copies on write, the file was cut) raises SIGBUS, and that kills the process. Appends make
//! their pages present first, which turns nearly all such signals into errors. What comes
//! between that and the store is caught here: the handler puts anonymous memory over the rest
//! of our mapping, notes the hit, and the store goes on into nowhere. Whoever stored asks
//! [`Guarded::was_hit`] before it tells anyone that the bytes are there.
//!
//! A signal that is not about our mappings goes to the handler that was there before, or ends
//! the process as it would have without us.
//!
//! Invariants, named by the SAFETY comments:
//! - **G1** a slot's range is a live mapping from [`Guarded::new`] to its drop: the owner keeps
//!   the mapping for longer than the [`Guarded`].
//! - **G2** the handler only loads and stores atomics, and makes system calls that are safe in a
//!   signal handler (`mmap`, `sigaction`, `raise`); it allocates nothing and takes no lock.
//! - **G3** `PREVIOUS` is written once, before the handler is installed.
//!
//! # Orderings
//! A slot is written by whoever took it (a CAS of `turn` from even to odd, Acquire) and ends
//! with a Release store of the next even `turn`. The handler reads `turn` (Acquire), the range,
//! an Acquire fence, and `turn` again: it acts on a range only if both are the same even number,
//! so never on halves of two ranges. A fault of our own thread in its own mapping can't meet a
//! change of that slot, since the thread that stores is the one that would drop it (the mapping
//! is `&mut` to it). `hit` is stored by the handler on the thread that then loads it; a compiler
//! fence keeps the load behind the stores.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
// Signal handlers and mappings are not what loom models: std's atomics, always.
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, compiler_fence, fence};

/// Mappings that can be guarded at a time; more are left to being made present first. A log has
/// up to six that are stored into, and those of segments that wait for their sync.
const SLOTS: usize = 512;

struct Slot {
    /// Odd while it is being written.
    turn: AtomicUsize,
    /// Where the mapping begins; 0 for a free slot.
    from: AtomicUsize,
    to: AtomicUsize,
    hit: AtomicBool,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        turn: AtomicUsize::new(0),
        from: AtomicUsize::new(0),
        to: AtomicUsize::new(0),
        hit: AtomicBool::new(false),
    }
}; SLOTS];

struct Previous(MaybeUninit<libc::sigaction>);

// SAFETY: plain numbers and a function's address; never changed after it is set (G3).
unsafe impl Send for Previous {}
// SAFETY: as above.
unsafe impl Sync for Previous {}

/// What handled SIGBUS before us; `None` inside when that could not be found out.
static PREVIOUS: OnceLock<Option<Previous>> = OnceLock::new();

/// A mapping that the guard watches over.
pub(super) struct Guarded {
    slot: &'static Slot,
}

impl Guarded {
    /// Watches over `len` bytes from `from` on until it is dropped. `None` when the handler
    /// can't be installed or too many mappings are watched already.
    ///
    /// # Safety
    /// The range must be a mapping of whole pages that only the caller stores into, and must
    /// stay one for as long as this lives.
    pub unsafe fn new(from: *mut u8, len: usize) -> Option<Guarded> {
        PREVIOUS.get_or_init(|| install().ok()).as_ref()?;
        let to = (from as usize).checked_add(len)?;
        for slot in &TABLE {
            if slot.from.load(Ordering::Relaxed) == 0
                && let Some(written) = slot.begin(true)
            {
                slot.hit.store(false, Ordering::Relaxed);
                slot.to.store(to, Ordering::Relaxed);
                slot.from.store(from as usize, Ordering::Relaxed);
                slot.turn.store(written, Ordering::Release);
                return Some(Guarded { slot });
            }
        }
        None
    }

    /// Whether a store into the mapping went nowhere. Asked after the store.
    pub fn was_hit(&self) -> bool {
        compiler_fence(Ordering::SeqCst);
        self.slot.hit.load(Ordering::Relaxed)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if let Some(written) = self.slot.begin(false) {
            self.slot.from.store(0, Ordering::Relaxed);
            self.slot.to.store(0, Ordering::Relaxed);
            self.slot.turn.store(written, Ordering::Release);
        }
    }
}

impl Slot {
    /// Takes the right to write the slot, if it is free as told; returns the turn to end with.
    fn begin(&self, free: bool) -> Option<usize> {
        let turn = self.turn.load(Ordering::Relaxed);
        if turn % 2 == 1 {
            return None;
        }
        let next = turn.wrapping_add(1);
        self.turn.compare_exchange(turn, next, Ordering::Acquire, Ordering::Relaxed).ok()?;
        if (self.from.load(Ordering::Relaxed) == 0) != free {
            self.turn.store(turn.wrapping_add(2), Ordering::Release);
            return None;
        }
        // Behind the odd turn in every thread's eyes.
        fence(Ordering::Release);
        Some(turn.wrapping_add(2))
    }

    /// Where the mapping ends, if `address` is in it.
    fn end_over(&self, address: usize) -> Option<usize> {
        let turn = self.turn.load(Ordering::Acquire);
        let from = self.from.load(Ordering::Relaxed);
        let to = self.to.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let whole = turn.is_multiple_of(2) && self.turn.load(Ordering::Relaxed) == turn;
        (whole && from != 0 && from <= address && address < to).then_some(to)
    }
}

fn install() -> io::Result<Previous> {
    let mut previous = Previous(MaybeUninit::uninit());
    // SAFETY: the first call only fills `previous`. The second passes a whole action, made of
    // zeroes (valid for it) and set fields, with a handler that keeps to G2. Between the two
    // nothing reads PREVIOUS: a signal that comes before it is set is met by `None`.
    unsafe {
        if libc::sigaction(libc::SIGBUS, ptr::null(), previous.0.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as extern "C" fn(_, _, _) as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        if libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(previous)
}

extern "C" fn on_sigbus(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `info` to a handler with SA_SIGINFO; `si_addr` is set
    // for signals that a fault raised, which have a positive code. The thread's errno is ours
    // to read and to put back.
    unsafe {
        let errno = *libc::__errno_location();
        let is_fault = (*info).si_code > 0;
        let done = is_fault && cover((*info).si_addr() as usize);
        *libc::__errno_location() = errno;
        if !done {
            pass_on(signal, info, context, is_fault);
        }
    }
}

/// Puts anonymous memory over our mapping from the page of `address` on. False when the address
/// isn't ours.
fn cover(address: usize) -> bool {
    const PAGE: usize = 4096;
    let page = address / PAGE * PAGE;
    for slot in &TABLE {
        if let Some(to) = slot.end_over(address) {
            // SAFETY: from this page to the mapping's end all is ours (G1) and no reference to
            // its bytes exists; the page that faulted holds nothing. `mmap` is a bare system
            // call (G2).
            let at = unsafe {
                libc::mmap(
                    page as *mut libc::c_void,
                    to - page,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                    -1,
                    0,
                )
            };
            slot.hit.store(true, Ordering::Relaxed);
            return at != libc::MAP_FAILED;
        }
    }
    false
}

/// Does what would have been done without us.
///
/// # Safety
/// Called by the handler with what it was given.
unsafe fn pass_on(
    signal: i32,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
    is_fault: bool,
) {
    let previous = PREVIOUS.get().and_then(Option::as_ref);
    // SAFETY: PREVIOUS was filled before it was set (G3). Its handler is called as it asked to
    // be: the flag says which of the two kinds of function it is.
    unsafe {
        let handler = match previous {
            Some(previous) => (*previous.0.as_ptr()).sa_sigaction,
            None => libc::SIG_DFL,
        };
        let is_default = handler == libc::SIG_DFL || (handler == libc::SIG_IGN && is_fault);
        if handler == libc::SIG_IGN && !is_fault {
            return;
        }
        if is_default {
            // A fault comes again when the handler returns, and then ends the process; a signal
            // that somebody sent has to be sent again.
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = libc::SIG_DFL;
            libc::sigaction(signal, &action, ptr::null_mut());
            if !is_fault {
                libc::raise(signal);
            }
        } else if previous.is_some_and(|p| (*p.0.as_ptr()).sa_flags & libc::SA_SIGINFO != 0) {
            let call: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                std::mem::transmute(handler);
            call(signal, info, context);
        } else {
            let call: extern "C" fn(i32) = std::mem::transmute(handler);
            call(signal);
        }
    }
}

#[cfg(test)]
pub(super) fn watched() -> usize {
    TABLE.iter().filter(|s| s.from.load(Ordering::Relaxed) != 0).count()
}
