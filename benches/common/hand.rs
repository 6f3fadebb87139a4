//! Owns queues as people write them by hand: a bounded queue of boxed values, a thread behind it.
//!
//! A send allocates a copy and refuses when the queue is full; the thread frees it again. What
//! waits in the queue lies in memory alone.

use crossbeam_queue::ArrayQueue;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What both hold.
const SLOTS: usize = 100_000;

enum Front {
    /// Its thread looks again after a millisecond when it found nothing.
    Queue(Arc<ArrayQueue<Box<[u8]>>>),
    /// Its thread sleeps in `recv`, and a send wakes it. `None` once it is to end.
    Channel(Option<SyncSender<Box<[u8]>>>),
}

/// A queue and its thread.
pub struct Hand {
    front: Front,
    stop: Arc<AtomicBool>,
    /// Empty values seen by the thread: everything sent before them has been taken.
    marks: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// Gives a value on, or counts a mark.
fn take(value: Box<[u8]>, marks: &AtomicU64, on: &mut impl FnMut(&[u8])) {
    if value.is_empty() {
        marks.fetch_add(1, Ordering::Release);
    } else {
        on(&value);
    }
}

impl Hand {
    /// crossbeam's `ArrayQueue`.
    pub fn queue(mut on: impl FnMut(&[u8]) + Send + 'static) -> Hand {
        let queue = Arc::new(ArrayQueue::<Box<[u8]>>::new(SLOTS));
        let (stop, marks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (from, stopped, seen) = (queue.clone(), stop.clone(), marks.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                while let Some(value) = from.pop() {
                    take(value, &seen, &mut on);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Hand { front: Front::Queue(queue), stop, marks, thread: Some(thread) }
    }

    /// std's bounded channel.
    pub fn channel(mut on: impl FnMut(&[u8]) + Send + 'static) -> Hand {
        let (to, from) = sync_channel::<Box<[u8]>>(SLOTS);
        let (stop, marks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let seen = marks.clone();
        let thread = std::thread::spawn(move || {
            from.into_iter().for_each(|value| take(value, &seen, &mut on));
        });
        Hand { front: Front::Channel(Some(to)), stop, marks, thread: Some(thread) }
    }

    /// Whether there was room.
    #[inline]
    pub fn send(&self, value: &[u8]) -> bool {
        match &self.front {
            Front::Queue(queue) => queue.push(value.into()).is_ok(),
            Front::Channel(Some(channel)) => channel.try_send(value.into()).is_ok(),
            Front::Channel(None) => false,
        }
    }

    /// Waits until everything sent before has been given on.
    pub fn drain(&self, limit: Duration) {
        let (start, before) = (Instant::now(), self.marks.load(Ordering::Acquire));
        while !self.send(&[]) {
            assert!(start.elapsed() < limit, "no room for a mark");
            std::thread::sleep(Duration::from_micros(200));
        }
        while self.marks.load(Ordering::Acquire) == before {
            assert!(start.elapsed() < limit, "not everything is given on in time");
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Front::Channel(channel) = &mut self.front {
            channel.take();
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
