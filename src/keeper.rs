//! Owns the keeper: the thread that does everything slow on the disk, so that the flusher
//! never waits for it. It prepares, syncs and unlinks segments and stores the checkpoint.
//!
//! Metadata and the building and destroying of producers are the sink's own thread's: those
//! calls may block for seconds, and a sync must not wait behind them.

use crate::clock::Clock;
use crate::sync::{AtomicBool, Ordering};
use crate::wake::Waker;
use crate::wal::{CheckpointData, WalKeeper};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;

/// Between two turns while there is work.
const BUSY_NS: u64 = 10_000_000;
/// Between two turns while there is none.
const IDLE_NS: u64 = 200_000_000;
/// Turns without work before the keeper counts itself idle.
const IDLE_TURNS: u32 = 20;

/// What flusher and keeper share.
pub(crate) struct KeeperLink {
    waker: Waker,
    checkpoint: Mutex<Offered>,
    finish: AtomicBool,
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
        })
    }

    /// Has the keeper take a turn now.
    pub(crate) fn wake(&self) {
        self.waker.wake();
    }

    /// The newest checkpoint; the keeper stores it at its next turn.
    pub(crate) fn offer(&self, fill: impl FnOnce(&mut CheckpointData)) {
        let mut offered = self.checkpoint.lock();
        fill(&mut offered.data);
        offered.fresh = true;
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
}

impl Keeper {
    pub(crate) fn new(
        wal: WalKeeper,
        link: Arc<KeeperLink>,
        flusher: Waker,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Keeper { wal, link, flusher, clock, data: CheckpointData::default() }
    }

    /// One turn. True when something was done.
    pub(crate) fn step(&mut self, now_ns: u64) -> bool {
        let fresh = self.link.take(&mut self.data);
        let checkpoint = fresh.then_some(&self.data);
        let report = self.wal.step(now_ns, checkpoint);
        if report.prepared {
            self.flusher.wake();
        }
        fresh || report.prepared || report.synced || report.unlinked > 0
    }

    /// Turns until the flusher is done, then one last sync.
    pub(crate) fn run(mut self) {
        let mut idle = 0;
        while !self.link.finish.load(Ordering::Acquire) {
            idle = if self.step(self.clock.now_ns()) { 0 } else { (idle + 1).min(IDLE_TURNS) };
            self.link.waker.wait(if idle < IDLE_TURNS { BUSY_NS } else { IDLE_NS });
        }
        self.end();
    }

    /// The last turn: what was appended is synced, then the last checkpoint stored and synced.
    pub(crate) fn end(&mut self) {
        self.link.take(&mut self.data);
        let ended = self
            .wal
            .sync_now()
            .and_then(|()| self.wal.store_checkpoint(&self.data))
            .and_then(|()| self.wal.sync_now());
        if let Err(e) = ended {
            tracing::error!(error = %e, "the last sync of the log failed");
        }
        // Segments that became final with the last reports go too.
        self.wal.step(self.clock.now_ns(), None);
    }
}
