//! Owns the order in which the drain takes a lane's records: pure, no atomics, no memory.
//!
//! The rule: a thread's records leave in the order in which it published them. That is the order
//! of their lane sequences, but for a record whose `send_with` closure sent others: these come
//! first. And nobody waits for anybody else: a sender that stands between reserve and publish
//! leaves a *hole*, which is passed and looked at again.
//!
//! # How
//! [`Order::scan`] reads marks and decides what may leave; [`Order::next`] takes that, one by one.
//! 1. A scan reads the new sequences, and then the holes, new and old, from the highest down to the
//!    lowest. What a thread published before another record that was read as published lies below
//!    it; it was read later, and is seen as published as well. So what one scan finds misses nothing
//!    that should come before any of it.
//! 2. A hole that was passed and is now published leaves before what has not left yet.
//! 3. A record published [`Mark::Behind`] another sequence was open while its closure ran, and the
//!    sends of that closure lie between the two. They were published before it, but may have been
//!    read before they were: once such a mark is met, the holes are read again. The record leaves
//!    when everything below that sequence has been passed; of several with the same one, the
//!    highest is the innermost and leaves first.
//!
//! A scan costs one read for each new sequence and each hole; there are no more holes than senders
//! in the middle of a send.

use super::slots::Mark;
use std::cmp::Reverse;
use std::collections::VecDeque;

/// A sequence that `next` doesn't take in its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Its sender is not done yet.
    Open,
    /// It was found published, in the pass that goes on.
    Found,
    /// It is published, and leaves when all below this sequence was passed.
    Behind(u64),
    /// It stands in `late`.
    Moved,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    seq: u64,
    state: State,
}

/// A record that leaves out of its place: before `place`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Late {
    place: u64,
    seq: u64,
}

/// Which sequence of a lane is next.
#[derive(Debug)]
pub(super) struct Order {
    /// The next to leave in its place.
    next: u64,
    /// From `next` to here all leave in their place, and nothing else comes between.
    plain_until: u64,
    /// Everything below has been read.
    seen: u64,
    /// By sequence; those at and above `next` are to be skipped.
    entries: Vec<Entry>,
    /// By place; see [`insert`].
    late: VecDeque<Late>,
}

impl Order {
    pub(super) fn new(start: u64) -> Order {
        Order {
            next: start,
            plain_until: start,
            seen: start,
            entries: Vec::new(),
            late: VecDeque::new(),
        }
    }

    /// Reads what is new below `head`, and the holes.
    #[inline]
    pub(super) fn scan(&mut self, head: u64, mark: impl Fn(u64) -> Mark) {
        for seq in self.seen..head {
            match mark(seq) {
                Mark::Published => {}
                Mark::Open => self.entries.push(Entry { seq, state: State::Open }),
                Mark::Behind(place) => {
                    self.entries.push(Entry { seq, state: State::Behind(place) });
                }
            }
        }
        self.seen = head;
        if self.entries.is_empty() {
            self.plain_until = if self.late.is_empty() { head } else { self.next };
        } else {
            self.read_holes(mark);
        }
    }

    #[cold]
    fn read_holes(&mut self, mark: impl Fn(u64) -> Mark) {
        loop {
            let mut again = false;
            for entry in self.entries.iter_mut().rev().filter(|e| e.state == State::Open) {
                match mark(entry.seq) {
                    Mark::Open => {}
                    Mark::Published => entry.state = State::Found,
                    Mark::Behind(place) => {
                        entry.state = State::Behind(place);
                        again = true;
                    }
                }
            }
            if !again {
                break;
            }
        }
        let (next, seen, late) = (self.next, self.seen, &mut self.late);
        self.entries.retain_mut(|entry| {
            let seq = entry.seq;
            match entry.state {
                State::Found if seq < next => insert(late, Late { place: seq, seq }),
                State::Behind(place) if place <= seen => {
                    insert(late, Late { place, seq });
                    entry.state = State::Moved;
                    return seq >= next;
                }
                State::Found => {}
                _ => return true,
            }
            false
        });
        self.plain_until = self.next;
    }

    /// The next sequence to leave, of those found so far.
    #[inline]
    pub(super) fn next(&mut self) -> Option<u64> {
        if self.next < self.plain_until {
            self.next += 1;
            return Some(self.next - 1);
        }
        if self.next == self.seen && self.late.is_empty() {
            return None;
        }
        self.next_of_some()
    }

    #[cold]
    fn next_of_some(&mut self) -> Option<u64> {
        loop {
            if self.late.front().is_some_and(|late| late.place <= self.next) {
                return self.late.pop_front().map(|late| late.seq);
            }
            let at = self.first_skipped();
            let skipped = self.entries.get(at).copied();
            if let Some(entry) = skipped.filter(|entry| entry.seq == self.next) {
                self.next += 1;
                if entry.state == State::Moved {
                    self.entries.remove(at);
                }
                continue;
            }
            let end = skipped.map_or(self.seen, |entry| entry.seq);
            self.plain_until = self.late.front().map_or(end, |late| end.min(late.place));
            if self.next == self.plain_until {
                return None;
            }
            self.next += 1;
            return Some(self.next - 1);
        }
    }

    /// The first entry that `next` has not passed.
    fn first_skipped(&self) -> usize {
        self.entries.partition_point(|entry| entry.seq < self.next)
    }

    /// How many were found and have not left.
    #[inline]
    pub(super) fn len(&self) -> usize {
        let skipped = self.entries.len() - self.first_skipped();
        (self.seen - self.next) as usize - skipped + self.late.len()
    }

    /// The lowest that has not left; `seen` when all have.
    pub(super) fn oldest(&self) -> u64 {
        let lates = self.late.iter().map(|late| late.seq);
        let entries = self.entries.first().map(|entry| entry.seq);
        lates.chain(entries).fold(self.next, u64::min)
    }
}

/// By place. One that waited for its place leaves before the one whose place it is, and the inner
/// of two before the outer.
fn insert(late: &mut VecDeque<Late>, new: Late) {
    let key = |l: &Late| (l.place, l.place == l.seq, Reverse(l.seq));
    let at = late.partition_point(|old| key(old) < key(&new));
    late.insert(at, new);
}

#[cfg(all(test, not(loom)))]
#[path = "order_tests.rs"]
mod tests;
