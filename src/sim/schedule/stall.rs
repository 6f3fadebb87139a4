//! Owns the head of the line: one partition stands still, and everything else must get through.

use super::{Schedule, answer};
use crate::sim::checker::{Id, Violation};
use crate::sim::sink::{Outside, PARTITIONS};

/// Rounds of sending: several times any span.
const ROUNDS: u32 = 24;
/// Looks after which all others must be through.
const LOOKS_MAX: u32 = 600;

impl Schedule {
    /// One partition answers nothing, for more records than a span has room for; the others get all
    /// of theirs through meanwhile.
    pub(super) fn one_partition_stands_still(&mut self) -> Result<(), Violation> {
        let run = self.run;
        let still = self.rng.below(PARTITIONS as u64) as usize;
        self.tell(|_| format!("partition {still} stands still"));
        self.mend_disk();
        {
            let mut outside = self.outside.lock();
            outside.stalled = [false; PARTITIONS];
            outside.denied_topic = None;
        }
        // A topic that was held, or is about to be, comes back as a whole.
        for _ in 0..LOOKS_MAX {
            self.end_rebuild();
            self.tick()?;
            let mut outside = self.outside.lock();
            if outside.brokers.outstanding() == 0
                && !self.process.flusher.lock().is_holding_a_topic()
            {
                break;
            }
            for p in 0..PARTITIONS {
                while answer(&mut outside, p) {}
            }
        }
        {
            let mut outside = self.outside.lock();
            outside.stalled[still] = true;
            outside.says_stalled[still] = true;
        }
        let behind = |o: &Outside, id: &Id| {
            let is_through = o.checker.arrived_once(*id) || o.checker.was_refused(*id);
            o.expected[usize::from(*id)].partition != still && !is_through
        };
        let mut left = None;
        for look in 0..ROUNDS + LOOKS_MAX {
            if look < ROUNDS {
                self.send();
            }
            self.end_rebuild();
            self.tick()?;
            // A write in which the process dies may have been asked for before.
            if self.run != run {
                return Ok(());
            }
            let mut outside = self.outside.lock();
            for p in 0..PARTITIONS {
                while answer(&mut outside, p) {}
            }
            left =
                outside.checker.accepted_in_this_run().into_iter().find(|id| behind(&outside, id));
            if left.is_none() && look >= ROUNDS {
                self.coverage.stood_still += 1;
                return Ok(());
            }
        }
        let stats = self.process.stats();
        Err(format!("partition {still} stands still, and {left:?} of another waits: {stats:?}"))
    }
}
