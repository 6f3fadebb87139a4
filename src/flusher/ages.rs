//! Owns how old a lane's records are, without a clock call in `send`.
//!
//! Each look notes (time, lane sequence). A record's arrival is taken as the look *before* the
//! one that first covers it: never later than the truth.

use std::collections::VecDeque;

/// Notes of the looks at one lane that still cover unpopped records.
#[derive(Debug, Default)]
pub(super) struct Ages {
    /// (the look before, head at the look): records below that head and above the earlier one
    /// came after that time.
    notes: VecDeque<(u64, u64)>,
    last_ns: u64,
    last_head: u64,
    last_used: u64,
    /// Bytes a nanosecond by which the lane filled between the last two looks.
    growth: f64,
}

impl Ages {
    pub(super) fn new(now_ns: u64, head: u64) -> Self {
        Ages { last_ns: now_ns, last_head: head, ..Ages::default() }
    }

    /// A look at `now_ns` found `head` records reserved and `used` bytes in use.
    pub(super) fn note(&mut self, now_ns: u64, head: u64, used: u64) {
        if head > self.last_head {
            self.notes.push_back((self.last_ns, head));
        }
        let dt = now_ns.saturating_sub(self.last_ns);
        if dt > 0 {
            self.growth = used.saturating_sub(self.last_used) as f64 / dt as f64;
        }
        (self.last_ns, self.last_head, self.last_used) = (now_ns, head, used);
    }

    /// Nothing that is in the lane at `now_ns` was published before; `head` is what is reserved.
    pub(super) fn begin(&mut self, now_ns: u64, head: u64) {
        self.notes.clear();
        self.notes.push_back((now_ns, head));
    }

    /// The bytes in use after the flusher has released what it could.
    pub(super) fn settled(&mut self, used: u64) {
        self.last_used = used;
    }

    /// When the record with lane sequence `seq` came. Sequences must not go back by more than
    /// the records of one look.
    pub(super) fn arrival(&mut self, seq: u64) -> u64 {
        while self.notes.len() > 1 && self.notes[0].1 <= seq {
            self.notes.pop_front();
        }
        match self.notes.front() {
            Some((before_ns, head)) if seq < *head => *before_ns,
            // Reserved after the last look: no earlier than that.
            _ => self.last_ns,
        }
    }

    /// When the oldest of the records from `popped` on came, if there are any.
    pub(super) fn oldest(&mut self, popped: u64) -> Option<u64> {
        (popped < self.last_head).then(|| self.arrival(popped))
    }

    /// Nanoseconds until the lane has `room` bytes more in use, at the last rate.
    pub(super) fn until_full_ns(&self, room: u64) -> Option<u64> {
        (self.growth > 0.0).then(|| (room as f64 / self.growth) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arrival_is_never_later_than_the_truth() {
        let mut a = Ages::new(100, 0);
        a.note(200, 0, 0); // nothing came
        a.note(300, 5, 500); // 0..5 came after 200
        a.note(400, 9, 900); // 5..9 came after 300
        assert_eq!(a.oldest(0), Some(200));
        assert_eq!(a.arrival(0), 200);
        assert_eq!(a.arrival(4), 200);
        assert_eq!(a.arrival(5), 300);
        assert_eq!(a.arrival(8), 300);
        assert_eq!(a.arrival(9), 400, "popped though reserved after the look");
        assert_eq!(a.oldest(9), None);
        assert_eq!(a.until_full_ns(800), Some(200));
    }
}
