//! Owns what must hold: after each look, and at the end, when the world is well again.

use super::{DRAIN_LOOKS, MS, Schedule, answer};
use crate::sim::checker::{Id, Violation};
use crate::sim::sink::{Outside, PARTITIONS};
use crate::stats::Stats;

impl Schedule {
    pub(super) fn check(&mut self, stats: &Stats) -> Result<(), Violation> {
        self.outside_is_well()?;
        let books = &stats.books;
        let outside = self.outside.lock();
        if books.unaccounted() != 0 {
            return Err(format!("the books don't balance: {books:?}"));
        }
        let says = [
            ("accepted", books.accepted, self.accepted),
            ("delivered", books.delivered, outside.delivered),
        ];
        if let Some((name, books, truth)) = says.iter().find(|(_, books, truth)| books != truth) {
            return Err(format!("the books say {name} {books}, it is {truth}"));
        }
        let held = self.process.flusher.lock().held_moves() + books.recovered;
        if books.set_aside > outside.given_up + held {
            return Err(format!("{} set aside, {} refused", books.set_aside, outside.given_up));
        }
        // What is redriven has a window of its own, beside the span, and so has what silent
        // partitions had when they were held; each of these may be probed besides.
        let most = 3 * self.setup.in_flight_max_records + PARTITIONS;
        if outside.brokers.outstanding() > most {
            return Err(format!("{} in flight, {most} allowed", outside.brokers.outstanding()));
        }
        let done = self.process.shared.flush_done();
        for (_, sent) in self.flushes.extract_if(.., |(number, _)| *number <= done) {
            self.coverage.flushes_done += 1;
            let open = |id: &&Id| {
                !outside.checker.arrived_once(**id) && !outside.checker.was_refused(**id)
            };
            // What is set aside is final for a flush, but for that of a silent partition.
            if self.process.flusher.lock().is_holding_a_topic() {
                continue;
            }
            if let Some(id) = sent.iter().find(open) {
                return Err(format!("a flush returned and record {id} is not final"));
            }
        }
        Ok(())
    }

    pub(super) fn note_books(&mut self) {
        let stats = self.process.stats();
        let c = &mut self.coverage;
        c.spilled += stats.books.spilled;
        c.replayed += stats.books.replayed;
        c.recovered += stats.books.recovered;
        c.set_aside += stats.books.set_aside;
        c.dropped += stats.books.dropped;
        c.held += self.process.flusher.lock().held_moves();
        c.held_partition += self.process.flusher.lock().held_partition_moves();
        c.append_failures += stats.wal.as_ref().map_or(0, |w| w.append_failures);
    }

    /// The world is well again: everything that may not be lost arrives.
    pub(super) fn drain(&mut self) -> Result<(), Violation> {
        self.crashes_left = 0;
        for _ in 0..DRAIN_LOOKS {
            self.mend_disk();
            {
                let mut outside = self.outside.lock();
                outside.stalled = [false; PARTITIONS];
                outside.denied_topic = None;
                for p in 0..PARTITIONS {
                    while answer(&mut outside, p) {}
                }
            }
            self.end_rebuild();
            self.now_ns += 5 * MS;
            self.clock.set(self.now_ns);
            self.keep()?;
            self.look()?;
            self.outside_is_well()?;
            let books = self.process.stats().books;
            let outside = self.outside.lock();
            let is_quiet = outside.brokers.outstanding() == 0
                && !outside.rebuilding
                && !self.process.flusher.lock().is_holding();
            if self.looks > 2 && books.in_lanes + books.in_flight + books.in_wal == 0 && is_quiet {
                drop(outside);
                return self.finish();
            }
        }
        Err(format!("not everything becomes final: {:?}", self.process.stats()))
    }

    fn finish(&mut self) -> Result<(), Violation> {
        self.note_books();
        let mut outside = self.outside.lock();
        let Outside { brokers, checker, .. } = &mut *outside;
        loop {
            let Some(late) = brokers.late().next() else { break };
            brokers.append_late(late, checker)?;
        }
        self.coverage.lost += u64::from(checker.finish()?);
        let seen = checker.seen();
        self.coverage.late_survivors += u64::from(seen.late_survivors);
        self.coverage.reordered += u64::from(seen.reordered);
        self.coverage.duplicates += u64::from(seen.duplicates);
        self.coverage.overtaken += u64::from(seen.overtaken);
        Ok(())
    }
}
