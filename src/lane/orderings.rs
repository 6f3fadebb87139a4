//! Owns the names of every acquire and release of this room, so that each can be weakened alone.
//!
//! All other accesses are `Relaxed`, and a test holds the room's source to that. Under loom
//! `loom_tests` weakens one point after the other and sees a model fail each time: what is here
//! is needed.

use crate::sync::Ordering;

/// Where this room orders anything. What each pairs with stands in the room's page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Point {
    /// A sender reads the credits in its first try: pairs with `Credits`.
    CreditsToReserve,
    /// A sender reads them again: pairs with `Credits`.
    CreditsToRetry,
    /// The drain stores the credits, after its last read of what it gives back.
    Credits,
    /// A sender that is refused reads the closed bit: pairs with `Close`.
    ClosedSeen,
    /// The closed bit is set, after `stopped`.
    Close,
    /// A sender stores its slot's stamp, after the record's bytes and descriptor.
    Publish,
    /// The drain reads a stamp: pairs with `Publish`.
    Published,
}

#[cfg(loom)]
impl Point {
    pub(super) const ALL: [Point; 7] = [
        Point::CreditsToReserve,
        Point::CreditsToRetry,
        Point::Credits,
        Point::ClosedSeen,
        Point::Close,
        Point::Publish,
        Point::Published,
    ];
}

// A model runs on the thread that calls it, its own threads included: one test weakens its own.
#[cfg(loom)]
thread_local! {
    pub(super) static WEAK: std::cell::Cell<Option<Point>> = const { std::cell::Cell::new(None) };
}

#[inline(always)]
fn unless_weak(_point: Point, order: Ordering) -> Ordering {
    #[cfg(loom)]
    if WEAK.get() == Some(_point) {
        return Ordering::Relaxed;
    }
    order
}

/// How a load at `point` is ordered.
#[inline(always)]
pub(super) fn acquire(point: Point) -> Ordering {
    unless_weak(point, Ordering::Acquire)
}

/// How a store or a read-modify-write at `point` is ordered.
#[inline(always)]
pub(super) fn release(point: Point) -> Ordering {
    unless_weak(point, Ordering::Release)
}

#[cfg(all(test, not(any(loom, miri))))]
mod tests {
    /// What loom can't weaken it can't prove: no file of the room orders anything by itself.
    #[test]
    fn every_ordering_of_the_room_has_a_name() {
        let sources = [
            ("arena", include_str!("arena.rs")),
            ("drain", include_str!("drain.rs")),
            ("fork", include_str!("fork.rs")),
            ("lanes", include_str!("lanes.rs")),
            ("order", include_str!("order.rs")),
            ("send", include_str!("send.rs")),
            ("slots", include_str!("slots.rs")),
            ("thread_id", include_str!("thread_id.rs")),
            ("word", include_str!("word.rs")),
        ];
        for (file, source) in sources {
            for strong in ["::Acquire", "::Release", "::AcqRel", "::SeqCst"] {
                assert!(!source.contains(strong), "{file}.rs names {strong}");
            }
        }
    }
}
