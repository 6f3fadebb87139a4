//! Owns what application threads and our own threads share: requests one way, the published
//! snapshot the other, and the one place where a caller may wait.
//!
//! # Orderings
//! Flags and counters are single words that carry no other data: the flusher reads them once a
//! look, so `Acquire`/`Release` only orders them with what was sent before. Waiters register
//! with `SeqCst` before they check their condition under `gate`; the flusher changes state
//! first and reads `waiters` with `SeqCst` after, so one of the two always sees the other.

use crate::drill::{Desk, DrillError, DrillReport, Outage};
use crate::lane::Lanes;
use crate::receipt::{Receipts, Waiting};
use crate::sink::SinkState;
use crate::stats::{CloseReport, Stats};
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::topics::TopicTable;
use crate::wake::Waker;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between callers, flusher and keeper.
pub(crate) struct Shared {
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) topics: Arc<TopicTable>,
    pub(crate) receipts: Arc<Receipts>,
    /// Wakes the flusher.
    pub(crate) waker: Waker,
    /// A caller waits for something: flush at the next look.
    hurry: AtomicBool,
    /// Flushes asked for, and done, by number.
    flush_asked: AtomicU64,
    flush_done: AtomicU64,
    /// The deadline of `close` on the flusher's clock, 0 while nobody closes.
    close_deadline_ns: AtomicU64,
    /// Grows with each look and each batch of appends: a flusher whose count stands, stands.
    pub(crate) steps: AtomicU64,
    /// When the flusher last looked.
    pub(crate) heartbeat_ns: AtomicU64,
    waiters: AtomicU32,
    gate: Mutex<()>,
    moved: Condvar,
    pub(crate) published: Mutex<Published>,
    /// Topics that `Pipeline::topic` was asked for and the sink hasn't heard of.
    pub(crate) announce: Mutex<Vec<Arc<str>>>,
    /// The drill that somebody waits for, and that the flusher is to look at it.
    pub(crate) drill: Mutex<Desk>,
    drill_asked: AtomicBool,
    /// Some were named whose state isn't in the published snapshot yet.
    pub(crate) announced: AtomicBool,
}

/// What the flusher publishes at each look that changed something.
#[derive(Default)]
pub(crate) struct Published {
    pub(crate) stats: Stats,
    pub(crate) sink: SinkState,
    pub(crate) closed: Option<CloseReport>,
    pub(crate) stopped: Option<String>,
    /// The sum of the lanes' sequences when `stats` was filled, modulo 2^32.
    pub(crate) reserved: u32,
}

impl Shared {
    pub(crate) fn new(
        lanes: Arc<Lanes>,
        topics: Arc<TopicTable>,
        receipts: Arc<Receipts>,
        waker: Waker,
    ) -> Self {
        Shared {
            lanes,
            topics,
            receipts,
            waker,
            hurry: AtomicBool::new(false),
            flush_asked: AtomicU64::new(0),
            flush_done: AtomicU64::new(0),
            close_deadline_ns: AtomicU64::new(0),
            steps: AtomicU64::new(0),
            heartbeat_ns: AtomicU64::new(0),
            waiters: AtomicU32::new(0),
            gate: Mutex::new(()),
            moved: Condvar::new(),
            published: Mutex::new(Published::default()),
            announce: Mutex::new(Vec::new()),
            announced: AtomicBool::new(false),
            drill: Mutex::new(Desk::Free),
            drill_asked: AtomicBool::new(false),
        }
    }

    /// Asks for a flush of everything sent before this call; returns its number.
    pub(crate) fn ask_flush(&self) -> u64 {
        let number = self.flush_asked.fetch_add(1, Ordering::AcqRel) + 1;
        self.waker.wake();
        number
    }

    /// The flusher got on.
    pub(crate) fn step(&self) {
        self.steps.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn flush_asked(&self) -> u64 {
        self.flush_asked.load(Ordering::Acquire)
    }

    pub(crate) fn flush_done(&self) -> u64 {
        self.flush_done.load(Ordering::Acquire)
    }

    pub(crate) fn set_flush_done(&self, number: u64) {
        self.flush_done.store(number, Ordering::Release);
    }

    /// Takes the request to flush at once.
    pub(crate) fn take_hurry(&self) -> bool {
        self.hurry.swap(false, Ordering::AcqRel)
    }

    /// Ends the intake and asks the flusher to end by `deadline_ns`. The first call counts.
    pub(crate) fn ask_close(&self, deadline_ns: u64) {
        let deadline_ns = deadline_ns.max(1);
        let _ = self.close_deadline_ns.compare_exchange(
            0,
            deadline_ns,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        self.lanes.close();
        self.waker.wake();
    }

    pub(crate) fn close_deadline_ns(&self) -> Option<u64> {
        match self.close_deadline_ns.load(Ordering::Acquire) {
            0 => None,
            deadline => Some(deadline),
        }
    }

    /// A topic will be used: the sink is to ask for its metadata.
    pub(crate) fn announce(&self, topic: Arc<str>) {
        let mut topics = self.announce.lock();
        topics.push(topic);
        self.announced.store(true, Ordering::Release);
        drop(topics);
        self.waker.wake();
    }

    /// The snapshot knows of every topic taken so far.
    pub(crate) fn announcement_published(&self) {
        let topics = self.announce.lock();
        if topics.is_empty() {
            self.announced.store(false, Ordering::Release);
        }
    }

    /// Asks for a drill, unless there is one.
    pub(crate) fn ask_drill(&self, outage: Outage) -> Result<(), DrillError> {
        {
            let mut desk = self.drill.lock();
            if !matches!(*desk, Desk::Free) {
                return Err(DrillError::AlreadyRunning);
            }
            *desk = Desk::Asked(outage);
        }
        self.drill_asked.store(true, Ordering::Release);
        self.waker.wake();
        Ok(())
    }

    pub(crate) fn drill_is_asked(&self) -> bool {
        self.drill_asked.load(Ordering::Acquire)
    }

    /// The flusher takes the drill that was asked for. While one whose caller gave up
    /// `is_under_way`, the next is refused.
    pub(crate) fn take_drill(&self, is_under_way: bool) -> Option<Outage> {
        self.drill_asked.store(false, Ordering::Release);
        let mut desk = self.drill.lock();
        let Desk::Asked(outage) = *desk else { return None };
        if is_under_way {
            *desk = Desk::Ended(Box::new(Err(DrillError::AlreadyRunning)));
            return None;
        }
        *desk = Desk::Running;
        Some(outage)
    }

    /// The drill is over, or was refused. One that nobody waits for any more is forgotten.
    pub(crate) fn end_drill(&self, result: Result<DrillReport, DrillError>) {
        let mut desk = self.drill.lock();
        if matches!(*desk, Desk::Running) {
            *desk = Desk::Ended(Box::new(result));
        }
    }

    /// The flusher changed something that a waiter may wait for.
    pub(crate) fn notify(&self) {
        if self.waiters.load(Ordering::SeqCst) > 0 {
            drop(self.gate.lock());
            self.moved.notify_all();
        }
    }

    pub(crate) fn has_waiters(&self) -> bool {
        self.waiters.load(Ordering::SeqCst) > 0
    }

    /// A panic ended one of our threads: no send is taken any more, and everybody hears of it.
    pub(crate) fn stop(&self, why: String) {
        self.lanes.stop();
        {
            let mut published = self.published.lock();
            published.stats.states.stopped = Some(why.clone());
            published.stopped = Some(why);
        }
        self.receipts.close();
        self.notify();
    }
}

impl Waiting for Shared {
    fn hurry(&self) {
        self.hurry.store(true, Ordering::Release);
        self.waker.wake();
    }

    fn wait_until(&self, timeout: Duration, done: &mut dyn FnMut() -> bool) -> bool {
        let deadline = Instant::now().checked_add(timeout);
        self.waiters.fetch_add(1, Ordering::SeqCst);
        let mut guard = self.gate.lock();
        let ok = loop {
            if done() {
                break true;
            }
            // Without an end the wait still looks up once a minute; a bound costs nothing.
            let until = deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(60));
            if self.moved.wait_until(&mut guard, until).timed_out() && deadline.is_some() {
                break done();
            }
        };
        drop(guard);
        self.waiters.fetch_sub(1, Ordering::SeqCst);
        ok
    }
}
