//! Owns one schedule: what happens, in which order, all drawn from one seed, and what must hold
//! after every step.

mod close;
mod crash;
mod keep;
mod stall;
mod verdict;

use super::brokers::{Brokers, Refusal};
use super::checker::{Checker, Id, Violation};
use super::coverage::Coverage;
use super::machine::{LANES, Process, Setup, SimClock};
use super::rng::Rng;
use super::sink::{Expected, Outside, PARTITIONS};
use crate::drill::{Desk, Outage};
use crate::flusher::GuestOptions;
use crate::report::Scope;
use crate::sequence::Broken;
use crate::sequence::policy::Timing;
use crate::stats::BookTotals;
use crate::wal::{MemoryStorage, StorageOp, inspect};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::time::Duration;

const MS: u64 = 1_000_000;
/// More than there are lanes: two of them share one.
const THREADS: usize = LANES + 1;
/// A look that comes no later than this is on time: the policy's margin covers it.
const ON_TIME_NS: u64 = 20 * MS;
const DRAIN_LOOKS: u32 = 2_000;
/// A storm ends after so many ticks, if no two segments have filled up before.
const STORM_TICKS_MAX: u32 = 80;

/// How a schedule is run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mode {
    /// Live records go beside the backlog.
    pub(super) live_first: bool,
    /// Rules that are switched off.
    pub(super) broken: Broken,
}

/// One schedule under way.
pub(super) struct Schedule {
    rng: Rng,
    /// For what was added later: the schedule of a seed stays what it was.
    beside: Rng,
    setup: Setup,
    /// A keeper so lazy that the log may be late.
    tight: bool,
    clock: Arc<SimClock>,
    now_ns: u64,
    disk: MemoryStorage,
    process: Process,
    outside: Arc<Mutex<Outside>>,
    run: u8,
    crashes_left: u32,
    closes_left: u32,
    /// A segment was filled and sealed.
    has_sealed: bool,
    /// What the run that closed said it left, at least and at most: the next one recovers that.
    left_in_log: Option<(u64, u64)>,
    /// Records that this run's recovery found lost.
    damaged_at_open: u64,
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
        mode: Mode,
    ) -> Result<(), Violation> {
        let mut schedule = Schedule::new(seed, mode)?;
        schedule.aloud = aloud;
        schedule.outside.lock().aloud = aloud;
        schedule.tell(|s| format!("{:?}", s.setup));
        let steps = 20 + schedule.rng.below(40);
        let storm_at = schedule.rng.below(steps);
        let stall_at = schedule.rng.below(4 * steps);
        for step in 0..steps {
            schedule.step()?;
            if step == storm_at && schedule.setup.with_log {
                schedule.storm()?;
            }
            if step == stall_at && schedule.setup.with_log {
                schedule.one_partition_stands_still()?;
            }
        }
        schedule.drain()?;
        schedule.note_log();
        coverage.add(&schedule.coverage);
        Ok(())
    }

    fn new(seed: u64, mode: Mode) -> Result<Self, Violation> {
        let mut rng = Rng::new(seed);
        let with_log = !rng.one_in(10);
        let tight = rng.one_in(6);
        let setup = Setup {
            timing: Timing {
                flush_interval_ns: rng.pick(&[2, 20, 60]) * MS,
                flush_records: rng.pick(&[1, 4, 100]),
                flush_bytes: 1 << 20,
                loss_window_ns: rng
                    .pick(&[Some(0), Some(60), Some(60), Some(200), None])
                    .map(|w| w * MS),
                // Not drawn: the schedule of a seed stays what it was.
                answer_ns: if seed.is_multiple_of(3) { 200 * MS } else { 0 },
            },
            in_flight_max_records: rng.pick(&[1, 2, 3, 5, 16]),
            with_log,
            segment_bytes: rng.pick(&[3584, 4096, 6144]),
            sync_interval_ns: 30 * MS,
            lane_slots: rng.pick(&[8, 16, 32]),
            guest: pace(seed),
            // Not drawn, for the same reason.
            backlog_percent: mode.live_first.then(|| [50, 50, 1, 99][seed as usize / 2 % 4]),
            broken: mode.broken,
        };
        let disk = MemoryStorage::new();
        let clock = Arc::new(SimClock::default());
        let log_first = with_log && setup.timing.loss_window_ns == Some(0);
        let outside = Arc::new(Mutex::new(Outside {
            rng: Rng::new(rng.next()),
            brokers: Brokers::new(PARTITIONS),
            checker: Checker::new(log_first, mode.live_first),
            expected: Vec::new(),
            stalled: [false; PARTITIONS],
            says_stalled: [false; PARTITIONS],
            last_partition: 0,
            holds: with_log,
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
        let closes_left = rng.below(2) as u32;
        Ok(Schedule {
            rng,
            beside: Rng::new(!seed),
            setup,
            tight,
            clock,
            now_ns,
            disk,
            process,
            outside,
            run: 0,
            crashes_left,
            closes_left,
            has_sealed: false,
            left_in_log: None,
            damaged_at_open: 0,
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
        let step = self.rng.below(33);
        match step {
            0..=6 => self.send(),
            7..=13 => self.tick()?,
            14..=19 => self.brokers_append(),
            20 => self.brokers_refuse(),
            21 => self.stall_or_resume(),
            22 => self.deny_or_allow(),
            23..=24 => self.append_late(),
            25 => {
                self.ask_flush();
                self.ask_drill();
            }
            26..=27 => self.end_rebuild(),
            28 => self.break_or_mend_disk(),
            29 => self.break_instance(),
            30 => self.crash_soon(),
            31 if self.closes_left > 0 => self.close()?,
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
        let run = self.run;
        // A keeper that isn't lazy has the next segment ready before the flusher's next look.
        let mut made = self.disk.counts().created;
        loop {
            self.look()?;
            if self.tight || self.faulty || self.run != run {
                break;
            }
            self.keep()?;
            if self.run != run || self.disk.counts().created == made {
                break;
            }
            made = self.disk.counts().created;
        }
        self.judge_window()
    }

    /// Kafka stands still and much is sent, until segments have filled up.
    fn storm(&mut self) -> Result<(), Violation> {
        let stalled = std::mem::replace(&mut self.outside.lock().stalled, [true; PARTITIONS]);
        if self.rng.one_in(2) {
            self.crash_soon();
        }
        for tick in 0..STORM_TICKS_MAX {
            self.send();
            self.send();
            self.tick()?;
            if tick == STORM_TICKS_MAX / 2 {
                self.mend_disk();
            }
            // Looking is dear, and fails on a disk that is about to be given up.
            if tick % 4 == 3
                && let Ok(found) = inspect(&self.disk)
                && found.iter().filter(|s| s.seal.is_some()).count() > 1
            {
                self.has_sealed = true;
                break;
            }
        }
        self.outside.lock().stalled = stalled;
        self.outside_is_well()
    }

    fn finals(&self) -> u64 {
        let outside = self.outside.lock();
        let moved = self.process.flusher.lock().held_moves();
        self.finals_before + outside.delivered + outside.given_up + moved
    }

    fn look(&mut self) -> Result<(), Violation> {
        self.process.flusher.lock().look(self.now_ns);
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
        self.check(&stats)
    }

    fn judge_window(&mut self) -> Result<(), Violation> {
        let stats = self.process.stats();
        if self.log_is_willing()
            && self.looks > 0
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
        let Outside { brokers, checker, violation, holds, .. } = &mut *outside;
        let held = *holds && scope == Scope::Topic;
        let p = self.rng.below(PARTITIONS as u64) as usize;
        let many = if scope == Scope::Transient { 1 + self.rng.below(3) } else { 1 };
        for _ in 0..many {
            if brokers.is_fatal() && scope == Scope::Instance {
                return;
            }
            if let Err(v) = brokers.refuse(p, Refusal { scope, appended, held }, checker) {
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
        outside.says_stalled[p] = !all && self.rng.one_in(2);
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

    /// A drill, or none: not if one is under way, or if the flusher refuses it.
    fn ask_drill(&mut self) {
        let shared = &self.process.shared;
        let mut desk = shared.drill.lock();
        if let Desk::Ended(result) = &*desk {
            self.coverage.drills += u64::from(result.is_ok());
            *desk = Desk::Free;
        }
        drop(desk);
        // Not from the schedule's own chance: its seeds keep their meaning.
        let lasts = Duration::from_millis(1 + self.now_ns / MS % 97);
        let _ = shared.ask_drill(Outage::lasting(lasts));
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

    fn mend_disk(&mut self) {
        self.faulty = false;
        self.disk.set_faults(None);
        self.disk.set_capacity(None);
    }

    fn break_or_mend_disk(&mut self) {
        if self.faulty || !self.rng.one_in(3) {
            self.mend_disk();
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
            self.disk.crash_in(self.disk.ops() + self.rng.below(60), self.rng.below(9));
        }
    }
}

/// The pace of the replay: half of all schedules have none. Drawn apart, so that it moves nothing
/// else of a seed's schedule.
fn pace(seed: u64) -> GuestOptions {
    let mut rng = Rng::new(!seed);
    let cap = |rng: &mut Rng, caps: &[u64]| Some(rng.pick(caps)).filter(|cap| *cap > 0);
    match rng.below(4) {
        0 => GuestOptions { ramp_ns: 200 * MS, seed, ..GuestOptions::default() },
        1 => GuestOptions {
            records_per_s: cap(&mut rng, &[0, 200, 2_000]),
            bytes_per_s: cap(&mut rng, &[0, 100_000]),
            ramp_ns: rng.pick(&[0, 50]) * MS,
            seed,
        },
        _ => GuestOptions::default(),
    }
}

/// The partition answers its next request; false when there is none or it is stalled.
fn answer(outside: &mut Outside, partition: usize) -> bool {
    if outside.stalled[partition] {
        return false;
    }
    let Some(id) = outside.brokers.next_pending(partition) else { return false };
    if outside.expected[usize::from(id)].poison {
        let refusal = Refusal { scope: Scope::Record, appended: false, held: false };
        let Outside { brokers, checker, .. } = outside;
        let result = brokers.refuse(partition, refusal, checker);
        outside.note(result);
    } else {
        outside.append(partition);
    }
    true
}
