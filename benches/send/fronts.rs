//! Owns what is measured: floors, parts of this crate, queues written by hand, the whole pipeline.

use super::ring::Ring;
use crate::common::hand::Hand;
use crossbeam_queue::ArrayQueue;
use forebay::clock::coarse_unix_ms;
use forebay::lane::{Drain, LaneOptions, Lanes, NO_RECEIPT, OutRecord};
use forebay::record::{ANY_PARTITION, TopicId};
use std::cell::UnsafeCell;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub const LIMIT: Duration = Duration::from_secs(60);
const LANE_BYTES: usize = 8 << 20;

/// Something that takes records on callers' threads and gives them up on another.
pub trait Front: Send + Sync {
    fn send(&self, thread: usize, value: &[u8]) -> bool;
    /// Takes everything out. Called every millisecond while it is measured, unless it drains itself.
    fn drain(&self) {}
    fn drains_itself(&self) -> bool {
        false
    }
    /// By the sending threads, now and then, outside the clock.
    fn serve(&self) {}
    /// Before a measurement: begins the outage, if it is to run in one.
    fn begin(&self) {}
    /// Whether the state to be measured has come.
    fn is_begun(&self) -> bool {
        true
    }
    /// After a measurement.
    fn end(&self) {}
    /// Records that went to a log.
    fn journaled(&self) -> u64 {
        0
    }
    /// Of those accepted so far, how many a SIGKILL now would take; `None` where nothing is kept
    /// anywhere, so that it means nothing.
    fn at_risk(&self) -> Option<u64> {
        None
    }
}

/// A front and its name.
pub type Named = (&'static str, Arc<dyn Front>);

pub struct Null;

impl Front for Null {
    fn send(&self, _: usize, value: &[u8]) -> bool {
        black_box(value);
        true
    }
}

/// Byte rings; a thread keeps to one, as threads keep to lanes.
pub struct Rings(Vec<Ring>);

impl Rings {
    pub fn new(rings: usize) -> Self {
        Rings((0..rings).map(|_| Ring::new()).collect())
    }
}

impl Front for Rings {
    #[inline]
    fn send(&self, thread: usize, value: &[u8]) -> bool {
        self.0[thread % self.0.len()].send(value)
    }

    fn drain(&self) {
        self.0.iter().for_each(Ring::drain);
    }
}

struct Bytes {
    bytes: Box<[UnsafeCell<u8>]>,
    sent: AtomicU64,
    taken: AtomicU64,
}

// SAFETY: one sender writes only to slots that `taken` says are free; the drain reads nothing.
unsafe impl Sync for Bytes {}

/// An `ArrayQueue` of descriptors for each thread, and the bytes beside it: the least that a lane
/// could be. There are as many places of bytes as slots, so that a slot is credit enough.
pub struct QueueAndCopy(Vec<(ArrayQueue<[u64; 4]>, Bytes)>);

const PLACE_BYTES: usize = 256;
const PLACES: usize = LANE_BYTES / PLACE_BYTES;

impl QueueAndCopy {
    pub fn new(threads: usize) -> Self {
        let one = || {
            // Not zero: zeroed memory would come untouched, and be faulted in by sends.
            let bytes = (0..LANE_BYTES).map(|_| UnsafeCell::new(1)).collect();
            let (sent, taken) = (AtomicU64::new(0), AtomicU64::new(0));
            (ArrayQueue::new(PLACES), Bytes { bytes, sent, taken })
        };
        QueueAndCopy((0..threads).map(|_| one()).collect())
    }
}

impl Front for QueueAndCopy {
    #[inline]
    fn send(&self, thread: usize, value: &[u8]) -> bool {
        let (queue, beside) = &self.0[thread];
        let sent = beside.sent.load(Ordering::Relaxed);
        if sent - beside.taken.load(Ordering::Acquire) >= PLACES as u64 {
            return false;
        }
        let at = (sent as usize % PLACES) * PLACE_BYTES;
        let to = beside.bytes[at..at + value.len()].as_ptr().cast_mut().cast::<u8>();
        // SAFETY: the place is one of `PLACES` and free (checked against `taken`); this thread is
        // its only sender, and the slice above checks that the value ends within the memory.
        unsafe { std::ptr::copy_nonoverlapping(value.as_ptr(), to, value.len()) };
        beside.sent.store(sent + 1, Ordering::Relaxed);
        queue.push([at as u64, value.len() as u64, coarse_unix_ms() as u64, 0]).is_ok()
    }

    fn drain(&self) {
        for (queue, beside) in &self.0 {
            while let Some(item) = queue.pop() {
                black_box(&item);
                beside.taken.fetch_add(1, Ordering::Release);
            }
        }
    }
}

/// This crate's lanes alone.
pub struct Lane {
    lanes: Arc<Lanes>,
    drain: parking_lot::Mutex<Drain>,
}

impl Lane {
    pub fn new() -> Self {
        let options = LaneOptions {
            lanes: 4,
            lane_bytes: LANE_BYTES,
            lane_slots: 1 << 16,
            record_bytes_max: 1_000_000,
        };
        let (lanes, drain) = Lanes::new(&options).expect("memory for the lanes");
        Lane { lanes, drain: parking_lot::Mutex::new(drain) }
    }
}

impl Front for Lane {
    #[inline]
    fn send(&self, _: usize, value: &[u8]) -> bool {
        let record = OutRecord {
            topic: TopicId(0),
            partition: ANY_PARTITION,
            timestamp_ms: coarse_unix_ms(),
            key: None,
            value: Some(value),
            headers: &[],
            receipt: NO_RECEIPT,
        };
        self.lanes.send(&record).is_ok()
    }

    fn drain(&self) {
        let mut drain = self.drain.lock();
        for lane in 0..drain.lane_count() {
            while let Some(frame) = drain.pop(lane) {
                black_box(drain.view(&frame));
                drain.release(&frame);
            }
            drain.look(lane);
        }
    }
}

/// A queue written by hand; the thread behind it frees what it gets.
pub struct ByHand(pub Hand);

impl ByHand {
    pub fn queue() -> Self {
        ByHand(Hand::queue(|value| {
            black_box(value);
        }))
    }

    pub fn channel() -> Self {
        ByHand(Hand::channel(|value| {
            black_box(value);
        }))
    }
}

impl Front for ByHand {
    #[inline]
    fn send(&self, _: usize, value: &[u8]) -> bool {
        self.0.send(value)
    }

    fn drain(&self) {
        self.0.drain(LIMIT);
    }

    fn drains_itself(&self) -> bool {
        true
    }

    fn end(&self) {
        self.drain();
    }
}
