//! Owns how a process dies and the next one opens what it left.

use super::{MS, ON_TIME_NS, Schedule};
use crate::sim::checker::Violation;
use crate::sim::machine::Process;
use crate::sim::sink::Outside;

impl Schedule {
    pub(super) fn crash(&mut self) -> Result<(), Violation> {
        self.crashes_left = self.crashes_left.saturating_sub(1);
        let power_cut = self.rng.one_in(3);
        let on_time = self.now_ns - self.looked_ns <= ON_TIME_NS;
        let window = self.setup.timing.loss_window_ns.filter(|w| *w > 0);
        let mut safe_until = self.journal_safe_ns;
        if let Some(window) = window.filter(|_| on_time) {
            safe_until = safe_until.max(self.now_ns - window);
        }
        self.tell(|s| {
            let what = if power_cut { "power cut" } else { "crash" };
            format!("{what}: safe until {} and {} ms", safe_until / MS, s.power_safe_ns / MS)
        });
        let safe_until = if power_cut { self.power_safe_ns } else { safe_until };
        self.die(safe_until, power_cut)
    }

    /// The process is gone; what was accepted until `safe_until` is not.
    pub(super) fn die(&mut self, safe_until: u64, power_cut: bool) -> Result<(), Violation> {
        let finals = self.finals();
        let stored = if power_cut { self.finals_synced } else { self.finals_stored };
        // A span of each of the two ways to the sink, and what of an earlier instance is late.
        let bound = 3 * self.setup.in_flight_max_records as u64 + finals - stored;
        {
            let mut outside = self.outside.lock();
            outside.checker.allow_duplicates(bound as u32);
            outside.checker.crashed(safe_until, power_cut);
        }
        self.journal_safe_ns = safe_until;
        self.disk = if power_cut {
            self.coverage.power_cuts += 1;
            self.disk.power_cut_image(self.rng.next())
        } else {
            self.coverage.process_crashes += 1;
            self.disk.process_crash_image()
        };
        self.finals_before = finals;
        self.reopen()
    }

    fn reopen(&mut self) -> Result<(), Violation> {
        self.note_books();
        self.run += 1;
        {
            let mut outside = self.outside.lock();
            let run = self.run;
            let Outside { brokers, checker, .. } = &mut *outside;
            brokers.replace(run, checker);
            outside.rebuilding = false;
            outside.delivered = 0;
            outside.given_up = 0;
        }
        self.faulty = false;
        self.synced_ns = None;
        self.accepted = 0;
        self.flushes.clear();
        self.disk.set_capacity(None);
        if self.rng.one_in(8) {
            self.disk.crash_in(self.rng.below(24), self.rng.below(9));
        }
        self.now_ns += (1 + self.rng.below(50)) * MS;
        self.clock.set(self.now_ns);
        self.looked_ns = 0;
        self.looks = 0;
        loop {
            let salt = self.rng.next();
            let opened = Process::open(&self.setup, &self.disk, &self.outside, &self.clock, salt)?;
            let Some((process, recovery)) = opened else {
                self.coverage.crashes_in_open += 1;
                self.disk = self.disk.process_crash_image();
                continue;
            };
            self.tell(|_| format!("opened: {recovery:?}"));
            self.check_left(recovery.records)?;
            self.damaged_at_open = recovery.damage.records_lost;
            let is_sound = recovery.damage.records_lost == 0;
            // What a power cut damaged is found again at every start.
            if !is_sound && self.coverage.power_cuts == 0 && !self.was_faulty {
                return Err(format!("a crash of the process damaged the log: {recovery:?}"));
            }
            self.coverage.damaged += u64::from(!is_sound);
            self.process = process;
            return Ok(());
        }
    }
}
