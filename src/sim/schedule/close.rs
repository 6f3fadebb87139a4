//! Owns how a process closes: with time enough or too little for Kafka, in good order or after a
//! panic of the flusher, and what the next one must find.

use super::{MS, Schedule, answer};
use crate::sim::checker::Violation;
use crate::sim::machine::Meanwhile;
use crate::sim::rng::Rng;
use crate::sim::sink::PARTITIONS;
use std::sync::Arc;

impl Schedule {
    /// Closes, and goes on with the next process.
    pub(super) fn close(&mut self) -> Result<(), Violation> {
        self.closes_left -= 1;
        let is_panic = self.rng.one_in(6);
        let deadline_ms = self.rng.pick(&[0, 5, 60, 2_000]);
        self.tell(|_| format!("closes within {deadline_ms} ms, after a panic: {is_panic}"));
        let keeper = self.meanwhile();
        if is_panic {
            self.process.flusher.lock().salvage();
        } else {
            self.process.shared.ask_close(self.now_ns + deadline_ms * MS);
            self.process.flusher.lock().end();
        }
        // It has ended: what happened meanwhile is done with, and the keeper is ours again.
        self.clock.let_go_on(None);
        self.now_ns = crate::clock::Clock::now_ns(&*self.clock);
        self.process.keeper = keeper.lock().take();
        if let Some(keeper) = &mut self.process.keeper {
            keeper.end();
        }
        self.outside_is_well()?;
        if self.disk.crashed() {
            self.coverage.crashes_in_close += 1;
            return self.crash();
        }
        self.coverage.closed += 1;
        self.judge_close(is_panic)
    }

    /// The rest of the world goes on at each look at the clock, the keeper too.
    fn meanwhile(&mut self) -> Arc<parking_lot::Mutex<Option<crate::keeper::Keeper>>> {
        let keeper = Arc::new(parking_lot::Mutex::new(self.process.keeper.take()));
        let (ours, outside) = (keeper.clone(), self.outside.clone());
        let waker = self.process.shared.waker.clone();
        let mut rng = Rng::new(self.rng.next());
        let meanwhile: Meanwhile = Box::new(move |now_ns| {
            let later = now_ns + (1 + rng.below(12)) * MS;
            for _ in 0..rng.below(4) {
                answer(&mut outside.lock(), rng.below(PARTITIONS as u64) as usize);
            }
            if let Some(keeper) = &mut *ours.lock()
                && !rng.one_in(3)
            {
                keeper.step(later);
            }
            // Whoever waits finds that something happened.
            waker.wake();
            later
        });
        self.clock.let_go_on(Some(meanwhile));
        keeper
    }

    fn judge_close(&mut self, is_panic: bool) -> Result<(), Violation> {
        let stats = self.process.stats();
        let books = &stats.books;
        if books.unaccounted() != 0 || books.accepted != self.accepted {
            return Err(format!("closed, of {} accepted, with {books:?}", self.accepted));
        }
        let is_complete = if is_panic {
            books.in_lanes + books.in_flight == 0
        } else {
            let published = self.process.shared.published.lock();
            let Some(report) = &published.closed else { return Err("no report of a close".into()) };
            report.complete
        };
        self.coverage.closed_incomplete += u64::from(!is_complete);
        let is_sound = self.setup.with_log && !self.was_faulty;
        if is_sound && !is_complete {
            return Err(format!("it closed and left something behind: {stats:?}"));
        }
        if !is_complete {
            // What the log didn't take is dropped and counted; without a log that is everything.
            let safe_until = if self.setup.with_log { self.journal_safe_ns } else { 0 };
            return self.die(safe_until, false);
        }
        if is_sound {
            // What a power cut damaged may be found, and counted, by each run or by the first.
            let least = books.in_wal.saturating_sub(self.damaged_at_open);
            self.left_in_log = Some((least, books.in_wal + books.dropped));
            self.finals_stored = self.finals();
            self.finals_synced = self.finals_stored;
        }
        // A close syncs all that it leaves.
        let power_cut = is_sound && self.rng.one_in(3);
        if is_sound {
            self.power_safe_ns = self.now_ns + 1;
        }
        self.die(self.now_ns + 1, power_cut)
    }

    /// What a run left in the log when it closed, the next one recovers; beside it only what
    /// became final above the watermark.
    pub(super) fn check_left(&mut self, recovered: u64) -> Result<(), Violation> {
        let Some((least, most)) = self.left_in_log.take() else { return Ok(()) };
        let most = most + self.setup.in_flight_max_records as u64;
        if (least..=most).contains(&recovered) {
            return Ok(());
        }
        Err(format!("{least} to {most} were left in the log at close, {recovered} are recovered"))
    }

    /// Whether this schedule's log did what logs do.
    pub(super) fn note_log(&mut self) {
        if !self.setup.with_log {
            return;
        }
        let counts = self.disk.counts();
        self.coverage.segments_made += counts.created;
        self.coverage.segments_removed += counts.unlinked;
        self.coverage.with_log += 1;
        self.coverage.nothing_removed += u64::from(counts.unlinked == 0);
        self.coverage.nothing_sealed += u64::from(!self.has_sealed);
    }
}
