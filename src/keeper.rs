//! Owns the keeper: the thread that does everything slow on the disk, so that the flusher
//! never waits for it. It prepares, syncs and unlinks segments and stores the checkpoint.
//!
//! Metadata and the building and destroying of producers are the sink's own thread's: those
//! calls may block for seconds, and a sync must not wait behind them.
//!
//! # Orderings
//! `asleep` is set before the keeper looks once more for an offer, and read after one was made;
//! the offer is under a mutex, so one of the two sees the other. The rest are lone words.

use crate::clock::Clock;
use crate::sync::{AtomicBool, AtomicU64, Ordering};
use crate::wake::Waker;
use crate::wal::{CheckpointData, WalKeeper};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;

/// Between two turns while there is work.
const BUSY_NS: u64 = 10_000_000;
/// Between two turns while there is none.
const IDLE_NS: u64 = 1_000_000_000;
/// Turns without work before the keeper counts itself idle.
const IDLE_TURNS: u32 = 20;

/// What flusher and keeper share.
pub(crate) struct KeeperLink {
    waker: Waker,
    checkpoint: Mutex<Offered>,
    finish: AtomicBool,
    /// The keeper sleeps long: the next offer wakes it.
    asleep: AtomicBool,
    failures: AtomicU64,
    trouble: Mutex<Option<String>>,
    /// Something that the snapshot names differs from what the flusher last saw.
    changed: AtomicBool,
}

#[derive(Default)]
struct Offered {
    data: CheckpointData,
    fresh: bool,
}

impl KeeperLink {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(KeeperLink {
            waker: Waker::new()?,
            checkpoint: Mutex::new(Offered::default()),
            finish: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            failures: AtomicU64::new(0),
            trouble: Mutex::new(None),
            changed: AtomicBool::new(false),
        })
    }

    /// Has the keeper take a turn now.
    pub(crate) fn wake(&self) {
        self.waker.wake();
    }

    /// The newest checkpoint; the keeper stores it at its next turn.
    pub(crate) fn offer(&self, fill: impl FnOnce(&mut CheckpointData)) {
        {
            let mut offered = self.checkpoint.lock();
            fill(&mut offered.data);
            offered.fresh = true;
        }
        if self.asleep.swap(false, Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Turns in which something failed, and what it was in the last one that did anything.
    pub(crate) fn trouble(&self) -> (u64, Option<String>) {
        (self.failures.load(Ordering::Acquire), self.trouble.lock().clone())
    }

    fn note(&self, error: Option<(&'static str, io::ErrorKind)>) {
        let mut trouble = self.trouble.lock();
        match error {
            Some((what, kind)) => {
                self.failures.fetch_add(1, Ordering::AcqRel);
                let text = format!("{what}: {kind}");
                if trouble.as_ref() != Some(&text) {
                    tracing::error!(error = %text, "the log's keeper failed; it tries again");
                    *trouble = Some(text);
                }
            }
            None if trouble.is_none() => return,
            None => *trouble = None,
        }
        self.changed.store(true, Ordering::Release);
    }

    /// Whether something that the snapshot names has changed since this was last asked.
    pub(crate) fn take_changed(&self) -> bool {
        self.changed.swap(false, Ordering::AcqRel)
    }

    /// The flusher is done: sync, store the last checkpoint, end.
    pub(crate) fn finish(&self) {
        self.finish.store(true, Ordering::Release);
        self.wake();
    }

    fn take(&self, into: &mut CheckpointData) -> bool {
        let mut offered = self.checkpoint.lock();
        if !offered.fresh {
            return false;
        }
        offered.fresh = false;
        into.clone_from(&offered.data);
        true
    }
}

/// The keeper of one directory.
pub(crate) struct Keeper {
    wal: WalKeeper,
    link: Arc<KeeperLink>,
    /// Wakes the flusher when what it waited for is there.
    flusher: Waker,
    clock: Arc<dyn Clock>,
    data: CheckpointData,
    /// `data` isn't stored yet: a turn that fails leaves it to the next.
    unstored: bool,
}

impl Keeper {
    pub(crate) fn new(
        wal: WalKeeper,
        link: Arc<KeeperLink>,
        flusher: Waker,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Keeper { wal, link, flusher, clock, data: CheckpointData::default(), unstored: false }
    }

    /// One turn. True when something was done, or is to be done soon.
    pub(crate) fn step(&mut self, now_ns: u64) -> bool {
        self.unstored |= self.link.take(&mut self.data);
        let checkpoint = self.unstored.then_some(&self.data);
        let had_one = self.unstored;
        let report = self.wal.step(now_ns, checkpoint);
        self.unstored &= !report.checkpointed;
        if report.prepared || report.sync_failed {
            self.flusher.wake();
        }
        self.link.note(report.error);
        if report.sync_failed || report.rewritten || report.unlinked > 0 {
            self.link.changed.store(true, Ordering::Release);
        }
        had_one || report.prepared || report.unsynced || report.unlinked > 0
    }

    /// Whether the newest checkpoint that was offered is stored.
    #[cfg(test)]
    pub(crate) fn is_stored(&self) -> bool {
        !self.unstored
    }

    /// Turns until the flusher is done, then one last sync.
    pub(crate) fn run(mut self) {
        let mut idle = 0;
        while !self.link.finish.load(Ordering::Acquire) {
            idle = if self.step(self.clock.now_ns()) { 0 } else { (idle + 1).min(IDLE_TURNS) };
            let mut sleep_ns = BUSY_NS;
            if idle >= IDLE_TURNS {
                self.link.asleep.store(true, Ordering::SeqCst);
                if !self.link.checkpoint.lock().fresh {
                    sleep_ns = IDLE_NS;
                }
            }
            self.link.waker.wait(sleep_ns);
        }
        self.end();
    }

    /// The last turn: what was appended is synced, then the last checkpoint stored and synced.
    pub(crate) fn end(&mut self) {
        self.link.take(&mut self.data);
        let synced = self.wal.sync_at_end();
        // It counts on nothing that isn't synced, so it is worth storing in any case.
        let stored = self.wal.store_checkpoint(&self.data).and_then(|()| self.wal.sync_now());
        if let Err(e) = synced.and(stored) {
            tracing::error!(error = %e, "the last sync of the log failed");
        }
        // Segments that became final with the last reports go too.
        self.wal.step(self.clock.now_ns(), None);
    }
}
