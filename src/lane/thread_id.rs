//! Owns the numbers of threads: drawn from one counter at a thread's first send, never reused.

use crate::sync::{Ordering, StaticAtomicU64};
use std::cell::Cell;

static NEXT_ID: StaticAtomicU64 = StaticAtomicU64::new(1);

thread_local! {
    // `const` and without a destructor: reading it is one load, and it can be read in other
    // thread-locals' destructors too.
    static ID: Cell<u64> = const { Cell::new(0) };
}

/// The calling thread's number, from 1.
#[inline]
pub(super) fn current() -> u64 {
    match ID.get() {
        0 => first_use(),
        id => id,
    }
}

#[cold]
#[inline(never)]
fn first_use() -> u64 {
    // Relaxed: the numbers only have to differ.
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    ID.set(id);
    id
}
