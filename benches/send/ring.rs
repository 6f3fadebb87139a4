//! Owns the floor of anything that copies: a byte ring for any number of senders, prefaulted,
//! drained by one thread. No descriptors, no credits, no fork guard, no counters.
//!
//! A frame is its own position plus one (the commit word, stored last), its span and its time, and
//! the bytes. It reads the coarse clock, because a record needs its CreateTime and `send` reads it.
//!
//! # Orderings
//! The commit word is stored with Release after the bytes, and loaded with Acquire by the drain.
//! `head` is stored with Release after the frames before it have been read, and loaded with Acquire
//! by a sender before it writes over them.

use forebay::clock::coarse_unix_ms;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

const BYTES: u64 = 8 << 20;
const HEAD_BYTES: u64 = 16;
const SPAN_BITS: u32 = 20;

#[repr(align(128))]
struct Word(AtomicU64);

pub struct Ring {
    words: Box<[AtomicU64]>,
    tail: Word,
    head: Word,
}

impl Ring {
    pub fn new() -> Self {
        Ring {
            // Not zero: zeroed memory would come untouched, and be faulted in by sends.
            words: (0..BYTES / 8).map(|_| AtomicU64::new(u64::MAX)).collect(),
            tail: Word(AtomicU64::new(0)),
            head: Word(AtomicU64::new(0)),
        }
    }

    fn commit(&self, position: u64, span: u64, time_ms: i64) {
        let at = ((position % BYTES) / 8) as usize;
        self.words[at + 1].store(((time_ms as u64) << SPAN_BITS) | span, Ordering::Relaxed);
        self.words[at].store(position + 1, Ordering::Release);
    }

    #[inline]
    pub fn send(&self, value: &[u8]) -> bool {
        let time_ms = coarse_unix_ms();
        let span = (HEAD_BYTES + value.len() as u64).next_multiple_of(16);
        let mut tail = self.tail.0.load(Ordering::Relaxed);
        let (start, end) = loop {
            let at = tail % BYTES;
            let pad = if at + span > BYTES { BYTES - at } else { 0 };
            let end = tail + pad + span;
            // A tail that is out of date may lie below the head: the exchange tells.
            if end.saturating_sub(self.head.0.load(Ordering::Acquire)) > BYTES {
                return false;
            }
            let relaxed = Ordering::Relaxed;
            match self.tail.0.compare_exchange_weak(tail, end, relaxed, relaxed) {
                Ok(_) => break (tail + pad, end),
                Err(now) => tail = now,
            }
        };
        if start > tail {
            self.commit(tail, start - tail, 0);
        }
        let at = ((start % BYTES + HEAD_BYTES) / 8) as usize;
        let to = self.words[at..].as_ptr().cast::<u8>().cast_mut();
        // SAFETY: `start..end` lies within the ring and is this call's alone: reserved by the
        // exchange above, free by the check against `head`, and unread until it is committed.
        unsafe { std::ptr::copy_nonoverlapping(value.as_ptr(), to, value.len()) };
        self.commit(start, end - start, time_ms);
        true
    }

    /// Reads every committed frame's head and gives its room back.
    pub fn drain(&self) {
        let mut head = self.head.0.load(Ordering::Relaxed);
        loop {
            let at = ((head % BYTES) / 8) as usize;
            if self.words[at].load(Ordering::Acquire) != head + 1 {
                break;
            }
            let about = self.words[at + 1].load(Ordering::Relaxed);
            black_box(about >> SPAN_BITS);
            head += about & ((1 << SPAN_BITS) - 1);
        }
        self.head.0.store(head, Ordering::Release);
    }
}
