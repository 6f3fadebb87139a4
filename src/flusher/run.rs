//! Owns the flusher's life on its thread: waiting, looking, and the orderly end.

use super::Flusher;
use crate::record::Lsn;
use crate::sequence::policy::LOOK_MIN_NS;
use crate::stats::CloseReport;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// Longest that the end waits for the log to take the rest (a segment being prepared, a full
/// disk) once the caller's deadline is over.
const LAST_JOURNAL_NS: u64 = 2_000_000_000;
/// What one try counts for at most: a machine that stands still hasn't tried.
const TRY_MAX_NS: u64 = 100_000_000;

/// How long nothing has come of trying, in time in which it was tried.
struct Tries {
    last_ns: u64,
    vain_ns: u64,
}

impl Tries {
    fn new(now_ns: u64) -> Tries {
        Tries { last_ns: now_ns, vain_ns: 0 }
    }

    /// A try ended at `now_ns`. False when it was tried in vain for long enough.
    fn again(&mut self, now_ns: u64, has_helped: bool) -> bool {
        let took_ns = now_ns.saturating_sub(self.last_ns).min(TRY_MAX_NS);
        self.vain_ns = if has_helped { 0 } else { self.vain_ns + took_ns };
        self.last_ns = now_ns;
        self.vain_ns < LAST_JOURNAL_NS
    }
}

impl Flusher {
    /// Looks until the pipeline is closed, then ends it.
    pub(crate) fn run(&mut self) {
        let waker = self.shared.waker.clone();
        let mut looked = self.look(self.clock.now_ns());
        while self.close.is_none() {
            if looked.sleep_ns > 0 {
                waker.wait(looked.sleep_ns);
            }
            looked = self.look(self.clock.now_ns());
        }
        self.end();
    }

    /// Drains, flushes until the deadline, journals the rest, syncs, tells.
    pub(crate) fn end(&mut self) {
        let began_ns = self.clock.now_ns();
        let deadline_ns = self.close.unwrap_or(began_ns);
        let waker = self.shared.waker.clone();
        loop {
            let now_ns = self.clock.now_ns();
            let looked = self.look(now_ns);
            let done = self.lanes_are_drained()
                && self.seq.all_final()
                && self.parked.is_empty()
                && !self.holds.are_on_the_way()
                && !self.partitions_wait();
            if done || self.clock.now_ns() >= deadline_ns {
                break;
            }
            if looked.sleep_ns > 0 {
                waker.wait(looked.sleep_ns.min(deadline_ns - now_ns));
            }
        }
        self.journal_the_rest();
        // Reports that came meanwhile spare the next run as many duplicates.
        let now_ns = self.clock.now_ns();
        self.serve(now_ns);
        self.set_aside_parked();
        if self.wal.is_none() || self.seq.books().in_flight() > 0 {
            for finished in self.seq.abandon("closed") {
                self.finished(now_ns, finished);
            }
        }
        self.release();
        if let Some(wal) = &mut self.wal {
            wal.seal();
        }
        self.changed = true;
        self.finish(now_ns);
        self.sink.close();
        self.wal = None;
        if let Some(keeper) = &self.keeper {
            keeper.finish();
        }
        self.shared.receipts.close();
        let took = Duration::from_nanos(self.clock.now_ns().saturating_sub(began_ns));
        {
            let mut published = self.shared.published.lock();
            let stats = published.stats.clone();
            let complete = stats.books.in_lanes + stats.books.in_flight == 0
                && stats.topics.iter().all(|t| t.dropped.iter().all(|(why, _)| *why != "closed"));
            published.closed = Some(CloseReport { stats, complete, took });
        }
        self.shared.notify();
    }

    /// After a panic in [`Flusher::run`]: saves into the log what can be saved. The sink is not
    /// touched again, nor is anything told but by the counters.
    pub(crate) fn salvage(&mut self) {
        let saved = catch_unwind(AssertUnwindSafe(|| {
            self.journal_the_rest();
            if let Some(wal) = &mut self.wal {
                wal.seal();
            }
            self.changed = true;
            self.publish(self.clock.now_ns());
        }));
        if saved.is_err() {
            tracing::error!("a second panic while saving what was in memory");
        }
        self.wal = None;
        if let Some(keeper) = &self.keeper {
            keeper.finish();
        }
    }

    fn lanes_are_drained(&mut self) -> bool {
        (0..self.lanes.len()).all(|i| self.drain.look(i).is_drained())
    }

    /// Everything that is not final goes into the log. Gives up when the log takes nothing for
    /// [`LAST_JOURNAL_NS`]; what is left then is dropped and counted as `closed`.
    fn journal_the_rest(&mut self) {
        if self.wal.is_none() {
            return;
        }
        let mut tries = Tries::new(self.clock.now_ns());
        loop {
            self.shared.step();
            for i in 0..self.lanes.len() {
                self.look_again(i);
            }
            self.pop_all();
            let before = self.seq.journaled();
            let all = self.journal_to(Lsn(u64::MAX));
            let now_ns = self.clock.now_ns();
            while self.drop_oldest(now_ns) {}
            let goes_on = tries.again(now_ns, self.seq.journaled() > before);
            // A sender that stopped in the middle of its record holds up nobody for long.
            if (all && self.lanes_are_drained()) || !goes_on {
                return;
            }
            self.shared.waker.wait(LOOK_MIN_NS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tries of `ms` each, in vain, until it is given up.
    fn tries_of(ms: u64) -> u64 {
        let (mut tries, mut now_ns) = (Tries::new(0), 0);
        let mut next = || {
            now_ns += ms * 1_000_000;
            tries.again(now_ns, false)
        };
        1 + (0..10_000).take_while(|_| next()).count() as u64
    }

    #[test]
    fn a_machine_that_stands_still_has_not_tried() {
        assert_eq!((tries_of(1), tries_of(100)), (2_000, 20));
        // However long each of them takes.
        assert_eq!((tries_of(3_000), tries_of(60_000)), (20, 20));
        let mut tries = Tries::new(0);
        (1..=19).for_each(|n| assert!(tries.again(n * 3_000_000_000, false)));
        assert!(tries.again(60_000_000_000, true), "something came of it");
        assert!(tries.again(63_000_000_000, false));
    }
}
