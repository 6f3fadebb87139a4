//! Owns the layout of a lane's two words, and how a lane sequence is widened.
//!
//! ```text
//!  63                             32 31                            1   0
//! +---------------------------------+-------------------------------+-----+
//! |  position, in units of 16 bytes |         lane sequence         |  C  |
//! +---------------------------------+-------------------------------+-----+
//! ```
//! Both numbers count up for ever and wrap. In the reservation word they are what the next
//! record gets, and C says closed. In the credits word they are what the drain has given back,
//! and C is 0. Differences are taken modulo the field's width; they are right because a lane
//! holds at most 2^28 units and 2^28 slots.

/// Bytes of one unit of the arena; a frame's bytes begin at a unit.
pub(super) const UNIT_BYTES: usize = 16;
/// Most units or slots in a lane.
pub(super) const LANE_UNITS_MAX: usize = 1 << 28;
/// A lane sequence has 31 bits in a word.
pub(super) const SEQ_MASK: u32 = u32::MAX >> 1;

/// Units that so many bytes take.
#[inline]
pub(super) fn units_of(bytes: usize) -> u32 {
    ((bytes + (UNIT_BYTES - 1)) >> UNIT_BYTES.trailing_zeros()) as u32
}

/// A reservation word or a credits word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Word(pub(super) u64);

impl Word {
    /// The bit that closes a lane.
    pub(super) const CLOSED: u64 = 1;

    #[inline]
    pub(super) fn new(position: u32, seq: u32) -> Word {
        Word(u64::from(position) << 32 | u64::from(seq & SEQ_MASK) << 1)
    }

    #[inline]
    pub(super) fn position(self) -> u32 {
        (self.0 >> 32) as u32
    }

    #[inline]
    pub(super) fn seq(self) -> u32 {
        (self.0 as u32) >> 1
    }

    #[inline]
    pub(super) fn is_closed(self) -> bool {
        self.0 & Word::CLOSED != 0
    }

    /// This word after a record of `span` units. It must not be closed.
    #[inline]
    pub(super) fn after(self, span: u32) -> Word {
        // The sequence wraps within its half: it must not carry into the position.
        let low = (self.0 as u32).wrapping_add(2);
        Word(u64::from(self.position().wrapping_add(span)) << 32 | u64::from(low))
    }

    /// Units from `from` to here.
    #[inline]
    pub(super) fn units_since(self, from: Word) -> u32 {
        self.position().wrapping_sub(from.position())
    }

    /// Records from `from`, a credits word, to here; more than a lane has slots when closed.
    #[inline]
    pub(super) fn records_since_if_open(self, from: Word) -> u32 {
        // The difference is twice the records, and C: it becomes the highest bit.
        (self.0 as u32).wrapping_sub(from.0 as u32).rotate_right(1)
    }

    /// Records from `from` to here.
    #[inline]
    pub(super) fn records_since(self, from: Word) -> u32 {
        // `from` is a credits word, whose lowest bit is 0; ours is shifted out.
        (self.0 as u32).wrapping_sub(from.0 as u32) >> 1
    }
}

/// The full number whose low 31 bits are `low`: the first at or above `base`.
#[inline]
pub(super) fn widen(base: u64, low: u32) -> u64 {
    base + u64::from(low.wrapping_sub(base as u32) & SEQ_MASK)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn fields_wrap_without_touching_each_other() {
        let last = Word::new(u32::MAX, SEQ_MASK);
        assert_eq!((last.position(), last.seq(), last.is_closed()), (u32::MAX, SEQ_MASK, false));
        let next = last.after(3);
        assert_eq!(next, Word::new(last.position().wrapping_add(3), last.seq() + 1));
        assert_eq!((next.position(), next.seq(), next.is_closed()), (2, 0, false));
        assert_eq!((next.units_since(last), next.records_since(last)), (3, 1));
        assert_eq!(next.records_since_if_open(last), 1);
        let closed = Word(next.0 | Word::CLOSED);
        assert!(closed.is_closed());
        assert_eq!(
            (closed.records_since(last), closed.records_since_if_open(last)),
            (1, 1 << 31 | 1)
        );
    }

    #[test]
    fn widening_finds_the_next_number_with_these_bits() {
        for base in [0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (7 << 31) - 2] {
            for step in [0u64, 1, 2, 65_535, 1 << 28] {
                let full = base + step;
                assert_eq!(widen(base, full as u32 & SEQ_MASK), full, "{base} + {step}");
            }
        }
    }
}
