//! Owns the keeper's turn: what it finds on the disk, what the flusher does meanwhile, and what is
//! safe afterwards.

use super::Schedule;
use crate::sim::checker::Violation;
use crate::sim::rng::Rng;
use crate::wal::Meanwhile;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

impl Schedule {
    pub(super) fn keep(&mut self) -> Result<(), Violation> {
        // What the flusher makes final while the keeper is at work may not be stored yet.
        let finals = self.finals();
        let looks = Arc::new(AtomicU64::new(0));
        let meanwhile = self.looks_meanwhile(looks.clone());
        let Some(keeper) = &mut self.process.keeper else { return Ok(()) };
        self.disk.set_meanwhile(meanwhile);
        keeper.step(self.now_ns);
        self.disk.set_meanwhile(None);
        self.coverage.looks_beside_keeper += looks.load(Ordering::Relaxed);
        // What a failing disk left may keep it from being stored for a while longer.
        let is_stored = keeper.is_stored();
        if self.disk.crashed() {
            self.coverage.crashes_in_a_write += 1;
            return self.crash();
        }
        if self.faulty {
            return Ok(());
        }
        let due = self.synced_ns.is_none_or(|t| self.now_ns - t >= self.setup.sync_interval_ns);
        if due {
            self.synced_ns = Some(self.now_ns);
            if !self.was_faulty {
                // The checkpoint of this turn is stored after the sync.
                self.finals_synced = self.finals_stored;
                self.tell(|s| format!("synced, {} final stored", s.finals_synced));
                self.power_safe_ns = self.journal_safe_ns;
            }
        }
        if is_stored {
            self.finals_stored = finals;
        }
        Ok(())
    }

    /// The flusher looks while the keeper is in the middle of its turn: before some of the calls
    /// that the keeper makes of the disk, as their threads do.
    fn looks_meanwhile(&mut self, looks: Arc<AtomicU64>) -> Option<Meanwhile> {
        if !self.beside.one_in(2) {
            return None;
        }
        let (flusher, disk) = (self.process.flusher.clone(), self.disk.clone());
        let (now_ns, mut rng) = (self.now_ns, Rng::new(self.beside.next()));
        Some(Box::new(move || {
            // After a crash there is no flusher any more.
            if rng.one_in(4) && !disk.crashed() {
                flusher.lock().look(now_ns);
                looks.fetch_add(1, Ordering::Relaxed);
            }
        }))
    }
}
