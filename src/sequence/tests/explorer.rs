//! Owns the exhaustive walk: every interleaving of pops, produces, appends, reports, rebuilds
//! and a crash at small sizes, each state visited once. And the proof that the checker can
//! fail: each rule switched off, and seen to be missed.

use super::super::cursors::Broken;
use super::super::{Journal, Limits};
use super::world::{Plan, Send, Step, World};
use crate::sim::checker::Seen;
use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// 128 bits of a state stand for the state: with 10 million states the chance that any two
/// share them is below 1 in 10^24.
#[derive(Clone, Copy)]
struct Wide(u64, u64);

fn fold(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b);
    (wide as u64) ^ (wide >> 64) as u64
}

impl Hasher for Wide {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = fold(self.0 ^ word ^ 0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93);
        self.1 = fold(self.1.rotate_left(23) ^ word ^ 0xc2b2_ae3d_27d4_eb4f, 0xff51_afd7_ed55_8ccd);
    }

    fn write_u8(&mut self, v: u8) {
        self.write_u64(u64::from(v));
    }

    fn write_u16(&mut self, v: u16) {
        self.write_u64(u64::from(v));
    }

    fn write_u32(&mut self, v: u32) {
        self.write_u64(u64::from(v));
    }

    fn write_usize(&mut self, v: usize) {
        self.write_u64(v as u64);
    }

    fn finish(&self) -> u64 {
        self.0 ^ self.1
    }
}

/// The key is well mixed already.
#[derive(Default)]
struct Plain(u64);

impl Hasher for Plain {
    fn write(&mut self, _: &[u8]) {}

    fn write_u128(&mut self, v: u128) {
        self.0 = v as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// More than this is a mistake in the model: the walk must end within the test run.
const STATES_MAX: usize = 2_000_000;

#[derive(Default)]
struct Walk {
    visited: HashSet<u128, BuildHasherDefault<Plain>>,
    trail: Vec<Step>,
    steps: u64,
    quiet: u64,
    most: Seen,
}

impl Walk {
    fn from(&mut self, plan: &Plan, world: &World) -> Result<(), String> {
        let mut wide = Wide(1, 2);
        world.hash(&mut wide);
        if !self.visited.insert(u128::from(wide.0) << 64 | u128::from(wide.1)) {
            return Ok(());
        }
        if self.visited.len() > STATES_MAX {
            return Err(self.tell("too many states".into()));
        }
        let steps = world.steps(plan);
        if World::is_quiet(&steps) {
            self.quiet += 1;
            world.check_quiet().map_err(|v| self.tell(v))?;
        }
        for step in steps {
            self.steps += 1;
            self.trail.push(step);
            let mut next = world.clone();
            next.take(plan, step).map_err(|v| self.tell(v))?;
            self.note(next.checker().seen());
            self.from(plan, &next)?;
            self.trail.pop();
        }
        Ok(())
    }

    fn note(&mut self, seen: Seen) {
        self.most.late_survivors = self.most.late_survivors.max(seen.late_survivors);
        self.most.reordered = self.most.reordered.max(seen.reordered);
        self.most.duplicates = self.most.duplicates.max(seen.duplicates);
        self.most.overtaken = self.most.overtaken.max(seen.overtaken);
    }

    fn tell(&self, violation: String) -> String {
        format!("{violation}\nafter {:?}", self.trail)
    }
}

fn explore(name: &str, plan: &Plan) -> Result<Walk, String> {
    let mut walk = Walk::default();
    let started = std::time::Instant::now();
    let found = walk.from(plan, &World::new(plan));
    println!(
        "{name}: {} states, {} steps, {} quiet, most late survivors {}, reordered {}, \
         duplicates {}, overtaken {}, {:?}",
        walk.visited.len(),
        walk.steps,
        walk.quiet,
        walk.most.late_survivors,
        walk.most.reordered,
        walk.most.duplicates,
        walk.most.overtaken,
        started.elapsed(),
    );
    found.map(|()| walk)
}

/// "a0 b1 a0!" is a record of thread a to partition 0, one of thread b to partition 1, and one
/// of thread a that no broker takes.
fn sends(script: &str) -> Vec<Send> {
    let parse = |word: &str| {
        let b = word.as_bytes();
        Send { thread: b[0] - b'a', partition: b[1] - b'0', poison: b.get(2) == Some(&b'!') }
    };
    script.split(' ').map(parse).collect()
}

fn plan(script: &str, span: usize, journal: Journal) -> Plan {
    let limits = Limits {
        in_flight_max_records: span,
        in_flight_max_bytes: u64::MAX,
        journal,
        backlog_percent: None,
    };
    Plan {
        sends: sends(script),
        limits,
        broken: Broken::default(),
        crashes: 1,
        rebuilds: 0,
        transients: 0,
        drops: 0,
        hiccups: false,
    }
}

fn holds(name: &str, plan: &Plan) -> Walk {
    explore(name, plan).unwrap_or_else(|violation| panic!("{name}: {violation}"))
}

#[test]
fn one_crash_among_five_records() {
    let walk = holds("crash, 5 records", &plan("a0 a1 a0 b0 b1", 2, Journal::Spill));
    assert!(walk.most.late_survivors > 0 && walk.most.duplicates > 0);
}

#[test]
fn a_rebuild_and_a_crash() {
    let p = Plan { rebuilds: 1, ..plan("a0 a1 a0 b0", 2, Journal::Spill) };
    let walk = holds("rebuild and crash", &p);
    assert!(walk.most.late_survivors > 0 && walk.most.duplicates > 0);
}

#[test]
fn retried_records_and_a_crash() {
    let p = Plan { transients: 1, ..plan("a0 a0 a0 b1", 3, Journal::Spill) };
    let walk = holds("transient errors and crash", &p);
    assert!(walk.most.reordered > 0);
}

#[test]
fn a_busy_sink_and_a_reader_given_up() {
    holds("hiccups", &Plan { hiccups: true, ..plan("a0 a1 a0 b0", 2, Journal::Spill) });
}

#[test]
fn a_record_that_nobody_takes() {
    let p = Plan { rebuilds: 1, ..plan("a0 a0! a0", 2, Journal::Spill) };
    holds("poison, rebuild and crash", &p);
}

#[test]
fn a_log_that_lets_go_of_its_oldest() {
    holds("drops", &Plan { drops: 2, crashes: 0, ..plan("a0 a1 a0 b0", 2, Journal::Spill) });
    holds("drops and crash", &Plan { drops: 1, ..plan("a0 a1 a0", 2, Journal::Spill) });
    let p = Plan { drops: 1, rebuilds: 1, crashes: 0, ..plan("a0 a0! a0", 2, Journal::Spill) };
    holds("drops, poison and rebuild", &p);
    let p = Plan { drops: 1, hiccups: true, crashes: 0, ..plan("a0 a1 a0", 2, Journal::First) };
    holds("drops and hiccups, log first", &p);
}

#[test]
fn the_log_first() {
    let walk = holds("log first, 5 records", &plan("a0 a1 a0 b0 b1", 2, Journal::First));
    assert_eq!(walk.most.late_survivors, 0);
    let p = Plan { rebuilds: 1, ..plan("a0 a0 b1", 2, Journal::First) };
    let walk = holds("log first, rebuild", &p);
    assert_eq!(walk.most.late_survivors, 0);
}

#[test]
fn no_log() {
    let p = Plan { rebuilds: 1, transients: 1, ..plan("a0 a1 a0 b0", 2, Journal::Off) };
    holds("no log", &p);
}

fn live_first(plan: Plan) -> Plan {
    let limits = Limits { backlog_percent: Some(50), ..plan.limits };
    Plan { limits, ..plan }
}

#[test]
fn live_records_first() {
    let walk = holds("live, crash", &live_first(plan("a0 a1 a0 b0", 2, Journal::Spill)));
    assert!(walk.most.overtaken > 0 && walk.most.late_survivors > 0 && walk.most.duplicates > 0);
    let walk = holds("live, span of 3", &live_first(plan("a0 a0 a0 a0", 3, Journal::Spill)));
    assert!(walk.most.overtaken > 1);
    let p = Plan { rebuilds: 1, ..plan("a0 a0 b0", 2, Journal::Spill) };
    holds("live, rebuild and crash", &live_first(p));
    let p = Plan { transients: 1, ..plan("a0 a0 a0", 3, Journal::Spill) };
    holds("live, transient errors and crash", &live_first(p));
    let p = Plan { hiccups: true, ..plan("a0 a1 a0", 2, Journal::Spill) };
    holds("live, hiccups", &live_first(p));
    let p = Plan { rebuilds: 1, ..plan("a0 a0! a0", 2, Journal::Spill) };
    holds("live, poison, rebuild and crash", &live_first(p));
    let p = Plan { drops: 2, crashes: 0, ..plan("a0 a1 a0 b0", 3, Journal::Spill) };
    holds("live, drops", &live_first(p));
}

#[test]
fn without_a_rule_of_live_records_the_checker_sees_it() {
    let mut p = live_first(plan("a0 a0 a0", 3, Journal::Spill));
    p.broken.live_once = true;
    assert!(caught("live records read back", &p).contains("duplicate"));
    let mut p = live_first(plan("a0 a0 a0", 3, Journal::Spill));
    p.broken.acked_of_both = true;
    caught("acked by the live line", &p);
    let mut p = live_first(Plan { transients: 1, ..plan("a0 a0 a0", 3, Journal::Spill) });
    p.broken.older_live_first = true;
    assert!(caught("backlog before older live records", &p).contains("before"));
}

fn caught(name: &str, plan: &Plan) -> String {
    let violation = explore(name, plan).err().unwrap_or_else(|| panic!("{name} was not caught"));
    println!("{name}: {violation}");
    violation
}

#[test]
fn without_journal_order_the_checker_sees_it() {
    let mut p = plan("a0 a0 a0", 3, Journal::Spill);
    p.broken.journal_order = true;
    let violation = caught("no journal order", &p);
    assert!(violation.contains("before") || violation.contains("lost"));
}

#[test]
fn without_produced_once_the_checker_sees_it() {
    let mut p = plan("a0 a1", 3, Journal::Spill);
    p.broken.produced_once = true;
    assert!(caught("not produced once", &p).contains("duplicate"));
}

#[test]
fn without_a_span_the_checker_sees_it() {
    let mut p = plan("a0 a0 b1 b0", 2, Journal::Spill);
    p.broken.span = true;
    assert!(caught("no span", &p).contains("duplicate number"));
}

#[test]
fn without_release_after_journal_the_checker_sees_it() {
    let mut p = plan("a0 a0 a0", 2, Journal::Spill);
    p.broken.release_after_journal = true;
    assert!(caught("released early", &p).contains("not that record"));
}
