//! Owns one schedule: what happens, in which order, all drawn from one seed, and what must hold
//! after every step.

use super::brokers::{Brokers, Refusal};
use super::checker::{Checker, Id, Violation};
use super::machine::{LANES, Process, Setup, SimClock};
use super::rng::Rng;
use super::sink::{Expected, Outside, PARTITIONS};
use crate::report::Scope;
use crate::sequence::policy::Timing;
use crate::stats::{BookTotals, Stats};
use crate::wal::{MemoryStorage, StorageOp};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;

const MS: u64 = 1_000_000;
const THREADS: usize = 3;
/// A look that comes no later than this is on time: the policy's margin covers it.
const ON_TIME_NS: u64 = 20 * MS;
const DRAIN_LOOKS: u32 = 2_000;

/// How many schedules met what. A clean run that met nothing proves nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Coverage {
    pub(super) schedules: u64,
    pub(super) records: u64,
    pub(super) refused_full: u64,
    pub(super) looks: u64,
    pub(super) process_crashes: u64,
    pub(super) power_cuts: u64,
    pub(super) crashes_in_a_write: u64,
    pub(super) crashes_in_open: u64,
    pub(super) rebuilds: u64,
    pub(super) spilled: u64,
    pub(super) replayed: u64,
    pub(super) recovered: u64,
    pub(super) set_aside: u64,
    pub(super) dropped: u64,
    pub(super) damaged: u64,
    pub(super) late_appends: u64,
    pub(super) late_survivors: u64,
    pub(super) reordered: u64,
    pub(super) duplicates: u64,
    pub(super) lost: u64,
    pub(super) disk_faults: u64,
    pub(super) append_failures: u64,
    pub(super) exposed: u64,
    pub(super) flushes_done: u64,
}

impl Coverage {
    fn add(&mut self, more: &Coverage) {
        self.schedules += more.schedules;
        self.records += more.records;
        self.refused_full += more.refused_full;
        self.looks += more.looks;
        self.process_crashes += more.process_crashes;
        self.power_cuts += more.power_cuts;
        self.crashes_in_a_write += more.crashes_in_a_write;
        self.crashes_in_open += more.crashes_in_open;
        self.rebuilds += more.rebuilds;
        self.spilled += more.spilled;
        self.replayed += more.replayed;
        self.recovered += more.recovered;
        self.set_aside += more.set_aside;
        self.dropped += more.dropped;
        self.damaged += more.damaged;
        self.late_appends += more.late_appends;
        self.late_survivors += more.late_survivors;
        self.reordered += more.reordered;
        self.duplicates += more.duplicates;
        self.lost += more.lost;
        self.disk_faults += more.disk_faults;
        self.append_failures += more.append_failures;
        self.exposed += more.exposed;
        self.flushes_done += more.flushes_done;
    }

    pub(super) fn each(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("schedules", self.schedules),
            ("records", self.records),
            ("refused_full", self.refused_full),
            ("looks", self.looks),
            ("process_crashes", self.process_crashes),
            ("power_cuts", self.power_cuts),
            ("crashes_in_a_write", self.crashes_in_a_write),
            ("crashes_in_open", self.crashes_in_open),
            ("rebuilds", self.rebuilds),
            ("spilled", self.spilled),
            ("replayed", self.replayed),
            ("recovered", self.recovered),
            ("set_aside", self.set_aside),
            ("dropped", self.dropped),
            ("damaged", self.damaged),
            ("late_appends", self.late_appends),
            ("late_survivors", self.late_survivors),
            ("reordered", self.reordered),
            ("duplicates", self.duplicates),
            ("lost", self.lost),
            ("disk_faults", self.disk_faults),
            ("append_failures", self.append_failures),
            ("exposed", self.exposed),
            ("flushes_done", self.flushes_done),
        ]
    }
}

/// Which rooms a schedule may meet; the rest is drawn.
pub(super) struct Schedule {
    rng: Rng,
    setup: Setup,
    /// Segments so small, or a keeper so lazy, that the log may be late.
    tight: bool,
    clock: Arc<SimClock>,
    now_ns: u64,
    disk: MemoryStorage,
    process: Process,
    outside: Arc<Mutex<Outside>>,
    run: u8,
    crashes_left: u32,
    /// When the last look came that found the log willing.
    looked_ns: u64,
    /// Everything accepted until then is final or in the log, whatever crashes.
    journal_safe_ns: u64,
    /// Looks of this process.
    looks: u32,
    /// The same against a power cut.
    power_safe_ns: u64,
    synced_ns: Option<u64>,
    /// The disk fails some calls now, or has in this run.
    faulty: bool,
    was_faulty: bool,
    accepted: u64,
    /// Reports that made a record final, over all runs: now, and when the checkpoint that would
    /// survive a crash of the process, or a power cut, was stored.
    finals_stored: u64,
    finals_synced: u64,
    finals_before: u64,
    flushes: Vec<(u64, Vec<Id>)>,
    coverage: Coverage,
    aloud: bool,
    told: BookTotals,
}

impl Schedule {
    /// Runs the schedule of `seed` to its end.
    /// With `aloud`, tells every step.
    pub(super) fn run(
        seed: u64,
        coverage: &mut Coverage,
        aloud: bool,
    ) -> Result<(), Violation> {
        let mut schedule = Schedule::new(seed)?;
        schedule.aloud = aloud;
        schedule.outside.lock().aloud = aloud;
        schedule.tell(|s| format!("{:?}", s.setup));
        let steps = 20 + schedule.rng.below(60);
        for _ in 0..steps {
            schedule.step()?;
        }
        schedule.drain()?;
        coverage.add(&schedule.coverage);
        Ok(())
    }

    fn new(seed: u64) -> Result<Self, Violation> {
        let mut rng = Rng::new(seed);
        let with_log = !rng.one_in(10);
        let tight = rng.one_in(6);
        let setup = Setup {
            timing: Timing {
                flush_interval_ns: rng.pick(&[2, 20, 60]) * MS,
                flush_records: rng.pick(&[1, 4, 100]),
                flush_bytes: 1 << 20,
                loss_window_ns: rng.pick(&[Some(0), Some(60), Some(60), Some(200), None]).map(|w| w * MS),
            },
            in_flight_max_records: rng.pick(&[1, 2, 3, 5, 16]),
            with_log,
            segment_bytes: if tight { 4096 } else { 16384 },
            sync_interval_ns: 30 * MS,
            lane_slots: rng.pick(&[8, 16, 32]),
        };
        let disk = MemoryStorage::new();
        let clock = Arc::new(SimClock::default());
        let log_first = with_log && setup.timing.loss_window_ns == Some(0);
        let outside = Arc::new(Mutex::new(Outside {
            rng: Rng::new(rng.next()),
            brokers: Brokers::new(PARTITIONS),
            checker: Checker::new(log_first),
            expected: Vec::new(),
            stalled: [false; PARTITIONS],
            denied_topic: None,
            rebuilding: false,
            delivered: 0,
            given_up: 0,
            violation: None,
            aloud: false,
        }));
        let now_ns = 1_000 * MS;
        clock.set(now_ns);
        let opened = Process::open(&setup, &disk, &outside, &clock, rng.next())?;
        let Some((process, _)) = opened else { return Err("a crash that nobody asked for".into()) };
        let crashes_left = rng.below(4) as u32;
        Ok(Schedule {
            rng,
            setup,
            tight,
            clock,
            now_ns,
            disk,
            process,
            outside,
            run: 0,
            crashes_left,
            looked_ns: 0,
            journal_safe_ns: 0,
            looks: 0,
            power_safe_ns: 0,
            synced_ns: None,
            faulty: false,
            was_faulty: false,
            accepted: 0,
            finals_stored: 0,
            finals_synced: 0,
            finals_before: 0,
            flushes: Vec::new(),
            coverage: Coverage { schedules: 1, ..Coverage::default() },
            aloud: false,
            told: BookTotals::default(),
        })
    }

    fn tell(&self, what: impl FnOnce(&Self) -> String) {
        if self.aloud {
            println!("{:>5} ms, run {}: {}", self.now_ns / MS, self.run, what(self));
        }
    }

    fn step(&mut self) -> Result<(), Violation> {
        let step = self.rng.below(32);
        match step {
            0..=6 => self.send(),
            7..=13 => self.tick()?,
            14..=19 => self.brokers_append(),
            20 => self.brokers_refuse(),
            21 => self.stall_or_resume(),
            22 => self.deny_or_allow(),
            23..=24 => self.append_late(),
            25 => self.ask_flush(),
            26..=27 => self.end_rebuild(),
            28 => self.break_or_mend_disk(),
            29 => self.break_instance(),
            30 => self.crash_soon(),
            _ => {
                if self.crashes_left > 0 && self.rng.one_in(3) {
                    self.crash()?;
                }
            }
        }
        self.outside_is_well()
    }

    fn outside_is_well(&self) -> Result<(), Violation> {
        self.outside.lock().violation.clone().map_or(Ok(()), Err)
    }

    // ---- what happens --------------------------------------------------------------------

    fn send(&mut self) {
        let thread = self.rng.below(THREADS as u64) as usize;
        for _ in 0..1 + self.rng.below(5) {
            let mut outside = self.outside.lock();
            let id = outside.expected.len() as Id;
            let partition = self.rng.below(PARTITIONS as u64) as usize;
            let expected = Expected { id, partition, poison: self.rng.one_in(24) };
            match self.process.send(thread, &expected) {
                Ok(()) => {
                    outside.expected.push(expected);
                    let stream = (thread * PARTITIONS + partition) as u8;
                    // After the look of this instant.
                    outside.checker.accepted(id, stream, self.now_ns + 1);
                    self.accepted += 1;
                    self.coverage.records += 1;
                    self.tell(|_| format!("thread {thread} sends {expected:?}"));
                }
                Err(_) => self.coverage.refused_full += 1,
            }
        }
        debug_assert!(LANES < THREADS, "two threads share a lane");
    }

    /// Time passes; the keeper takes a turn; the flusher looks.
    fn tick(&mut self) -> Result<(), Violation> {
        let hiccup = self.rng.one_in(40);
        let ms = if hiccup { 20 + self.rng.below(300) } else { 1 + self.rng.below(10) };
        self.now_ns += ms * MS;
        self.clock.set(self.now_ns);
        if !(self.tight && self.rng.one_in(2)) {
            self.keep()?;
        }
        self.look()
    }

    fn keep(&mut self) -> Result<(), Violation> {
        let Some(keeper) = &mut self.process.keeper else { return Ok(()) };
        keeper.step(self.now_ns);
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
        self.finals_stored = self.finals();
        Ok(())
    }

    fn finals(&self) -> u64 {
        let outside = self.outside.lock();
        self.finals_before + outside.delivered + outside.given_up
    }

    fn look(&mut self) -> Result<(), Violation> {
        self.process.flusher.look(self.now_ns);
        self.coverage.looks += 1;
        self.looks += 1;
        if self.disk.crashed() {
            self.coverage.crashes_in_a_write += 1;
            return self.crash();
        }
        let stats = self.process.stats();
        if self.aloud && stats.books != self.told {
            self.told = stats.books;
            self.tell(|s| format!("looked: {:?}", s.told));
        }
        self.check(&stats)?;
        if self.log_is_willing()
            && let Some(window) = self.setup.timing.loss_window_ns
        {
            self.looked_ns = self.now_ns;
            let safe = if window == 0 { self.now_ns } else { self.now_ns.saturating_sub(window) };
            self.journal_safe_ns = self.journal_safe_ns.max(safe);
            if stats.states.exposed {
                return Err(format!("exposed for no reason: {} ms", stats.oldest_unsafe_ms));
            }
        }
        self.coverage.exposed += u64::from(stats.states.exposed);
        Ok(())
    }

    fn log_is_willing(&self) -> bool {
        self.setup.with_log && !self.faulty && !self.tight
    }

    fn brokers_append(&mut self) {
        let mut outside = self.outside.lock();
        for _ in 0..1 + self.rng.below(6) {
            let p = self.rng.below(PARTITIONS as u64) as usize;
            answer(&mut outside, p);
        }
    }

    fn brokers_refuse(&mut self) {
        let (scope, appended) = self.rng.pick(&[
            (Scope::Transient, false),
            (Scope::Transient, false),
            (Scope::Transient, true),
            (Scope::Topic, false),
            (Scope::Instance, false),
            (Scope::Instance, true),
        ]);
        let mut outside = self.outside.lock();
        let Outside { brokers, checker, violation, .. } = &mut *outside;
        let p = self.rng.below(PARTITIONS as u64) as usize;
        let many = if scope == Scope::Transient { 1 + self.rng.below(3) } else { 1 };
        for _ in 0..many {
            if brokers.is_fatal() && scope == Scope::Instance {
                return;
            }
            if let Err(v) = brokers.refuse(p, Refusal { scope, appended }, checker) {
                violation.get_or_insert(v);
            }
        }
    }

    fn stall_or_resume(&mut self) {
        let p = self.rng.below(PARTITIONS as u64) as usize;
        let all = self.rng.one_in(3);
        let mut outside = self.outside.lock();
        let to = !outside.stalled[p];
        for (i, stalled) in outside.stalled.iter_mut().enumerate() {
            if all || i == p {
                *stalled = to;
            }
        }
    }

    fn deny_or_allow(&mut self) {
        let mut outside = self.outside.lock();
        outside.denied_topic = match outside.denied_topic {
            None if self.rng.one_in(2) => Some(self.rng.below(2) as usize),
            _ => None,
        };
    }

    fn append_late(&mut self) {
        let mut outside = self.outside.lock();
        let Outside { brokers, checker, violation, .. } = &mut *outside;
        let late: Vec<_> = brokers.late().collect();
        if !late.is_empty() {
            self.coverage.late_appends += 1;
            if let Err(v) = brokers.append_late(self.rng.pick(&late), checker) {
                violation.get_or_insert(v);
            }
        }
    }

    fn ask_flush(&mut self) {
        let number = self.process.shared.ask_flush();
        let outside = self.outside.lock();
        let sent = outside.checker.accepted_in_this_run();
        self.flushes.push((number, sent));
    }

    /// Something outside our sight is wrong with the instance: it is replaced at the next look.
    fn break_instance(&mut self) {
        self.outside.lock().brokers.break_instance();
    }

    fn end_rebuild(&mut self) {
        let run = self.run;
        let mut outside = self.outside.lock();
        let Outside { brokers, checker, rebuilding, .. } = &mut *outside;
        if *rebuilding {
            *rebuilding = false;
            checker.allow_duplicates(brokers.outstanding() as u32);
            brokers.replace(run, checker);
            self.coverage.rebuilds += 1;
        }
    }

    fn break_or_mend_disk(&mut self) {
        if self.faulty || !self.rng.one_in(3) {
            self.faulty = false;
            self.disk.set_faults(None);
            self.disk.set_capacity(None);
            return;
        }
        self.tell(|_| "the disk fails".into());
        self.coverage.disk_faults += 1;
        self.faulty = true;
        self.was_faulty = true;
        if self.rng.one_in(3) {
            self.disk.set_capacity(Some(0));
            return;
        }
        let mut rng = Rng::new(self.rng.next());
        let often = self.rng.pick(&[1, 2, 8]);
        self.disk.set_faults(Some(Box::new(move |_, op| {
            (op != StorageOp::Read && rng.one_in(often)).then_some(io::ErrorKind::Other)
        })));
    }

    /// The process will die in the middle of one of its next writes.
    fn crash_soon(&mut self) {
        if self.crashes_left > 0 && self.setup.with_log {
            self.disk.crash_at(self.disk.ops() + self.rng.below(40));
        }
    }

    // ---- crashes -------------------------------------------------------------------------

    fn crash(&mut self) -> Result<(), Violation> {
        self.crashes_left = self.crashes_left.saturating_sub(1);
        let power_cut = self.rng.one_in(3);
        let finals = self.finals();
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
        let stored = if power_cut { self.finals_synced } else { self.finals_stored };
        let bound = 2 * self.setup.in_flight_max_records as u64 + finals - stored;
        {
            let mut outside = self.outside.lock();
            outside.checker.allow_duplicates(bound as u32);
            let safe_until = if power_cut { self.power_safe_ns } else { safe_until };
            outside.checker.crashed(safe_until, power_cut);
        }
        self.journal_safe_ns = if power_cut { self.power_safe_ns } else { safe_until };
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
            self.disk.crash_at(self.rng.below(12));
        }
        self.now_ns += (1 + self.rng.below(50)) * MS;
        self.clock.set(self.now_ns);
        self.looked_ns = 0;
        self.looks = 0;
        loop {
            let salt = self.rng.next();
            let opened =
                Process::open(&self.setup, &self.disk, &self.outside, &self.clock, salt)?;
            let Some((process, recovery)) = opened else {
                self.coverage.crashes_in_open += 1;
                self.disk = self.disk.process_crash_image();
                continue;
            };
            self.tell(|_| format!("opened: {recovery:?}"));
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

    // ---- what must hold ------------------------------------------------------------------

    fn check(&mut self, stats: &Stats) -> Result<(), Violation> {
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
        if books.set_aside > outside.given_up {
            return Err(format!("{} set aside, {} refused", books.set_aside, outside.given_up));
        }
        let most = self.setup.in_flight_max_records;
        if outside.brokers.outstanding() > most {
            return Err(format!("{} in flight, {most} allowed", outside.brokers.outstanding()));
        }
        let done = self.process.shared.flush_done();
        for (_, sent) in self.flushes.extract_if(.., |(number, _)| *number <= done) {
            self.coverage.flushes_done += 1;
            let open = |id: &&Id| {
                !outside.checker.arrived_once(**id) && !outside.checker.was_refused(**id)
            };
            if let Some(id) = sent.iter().find(open) {
                return Err(format!("a flush returned and record {id} is not final"));
            }
        }
        Ok(())
    }

    fn note_books(&mut self) {
        let stats = self.process.stats();
        let c = &mut self.coverage;
        c.spilled += stats.books.spilled;
        c.replayed += stats.books.replayed;
        c.recovered += stats.books.recovered;
        c.set_aside += stats.books.set_aside;
        c.dropped += stats.books.dropped;
        c.append_failures += stats.wal.as_ref().map_or(0, |w| w.append_failures);
    }

    /// The world is well again: everything that may not be lost arrives.
    fn drain(&mut self) -> Result<(), Violation> {
        self.crashes_left = 0;
        for _ in 0..DRAIN_LOOKS {
            self.faulty = false;
            self.disk.set_faults(None);
            self.disk.set_capacity(None);
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
            let is_quiet = outside.brokers.outstanding() == 0 && !outside.rebuilding;
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
        Ok(())
    }
}

/// The partition answers its next request; false when there is none or it is stalled.
fn answer(outside: &mut Outside, partition: usize) -> bool {
    if outside.stalled[partition] {
        return false;
    }
    let Some(id) = outside.brokers.next_pending(partition) else { return false };
    if outside.expected[usize::from(id)].poison {
        let refusal = Refusal { scope: Scope::Record, appended: false };
        let Outside { brokers, checker, .. } = outside;
        let result = brokers.refuse(partition, refusal, checker);
        outside.note(result);
    } else {
        outside.append(partition);
    }
    true
}
