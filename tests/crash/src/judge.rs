//! Owns the verdict on a series of generations over one directory: the contract, checked against
//! what senders noted and brokers appended. The pipeline's own word is taken for one thing: how
//! old its oldest unsafe record was at its last look, when that was more than the window; and
//! that word is itself checked.
//!
//! - **Loss.** What was accepted a loss window before the last look that is known to have ended
//!   has arrived (poison: has been set aside). Of a run that closed: everything.
//! - **Order.** First arrivals of a stream keep the order sent, except late survivors.
//! - **Holes.** Of each stream and run, what is missing is a tail.
//! - **Duplicates.** A run brings no more than the ends before it allow: each the span, and what
//!   was acknowledged since the checkpoint was stored that the next run found.
//! - **Ghosts.** What arrives was sent, by that run or an earlier one, with those bytes.
//! - **Books.** Each snapshot balances; nothing is dropped or damaged; a run that closed says
//!   what senders and brokers say; what a run says it recovered is what is counted in the
//!   directory before it opens.

use crate::child::IN_FLIGHT_MAX_RECORDS;
use crate::evidence::{Event, Said};
use crate::records::{Id, Made, Stream, THREADS};
use forebay::wal::CheckpointData;
use std::collections::{HashMap, HashSet};

const MS: u64 = 1_000_000;
const SPAN: u64 = IN_FLIGHT_MAX_RECORDS as u64;
/// Each look is at least this long: the flusher's longest sleep.
const LOOK_MAX_MS: u64 = 10;

/// What is known of one generation.
#[derive(Debug, Default)]
pub struct Generation {
    pub window_ms: u64,
    /// The first number of each thread.
    pub first: Vec<u64>,
    /// When each record was known to be accepted, by thread.
    pub accepted: Vec<Vec<u64>>,
    pub events: Vec<Event>,
    /// When each look began.
    pub looks: Vec<u64>,
    pub said: Vec<Said>,
    /// Its last words, if it closed.
    pub closed: Option<Said>,
    /// Records counted in the directory before it opened, not below the watermark.
    pub counted: u64,
    pub checkpoint_before: Option<CheckpointData>,
    pub checkpoint_after: Option<CheckpointData>,
    /// What lay in the brokers' sockets when it died is appended, after the next generation.
    pub appends_late: bool,
}

/// The figures of a verdict.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub accepted: u64,
    /// Accepted so early that none may be missing.
    pub safe: u64,
    pub lost_in_window: u64,
    pub arrived: u64,
    pub duplicates: u64,
    pub duplicates_bound: u64,
    /// Most of one run.
    pub duplicates_worst: u64,
    pub late_survivors: u64,
    pub late_appends: u64,
    pub set_aside: u64,
    pub recovered: u64,
    pub replayed_runs: u64,
    pub closed: u64,
    /// Kills at which the pipeline called itself exposed.
    pub exposed: u64,
}

impl Counts {
    pub fn add(&mut self, more: &Counts) {
        self.accepted += more.accepted;
        self.safe += more.safe;
        self.lost_in_window += more.lost_in_window;
        self.arrived += more.arrived;
        self.duplicates += more.duplicates;
        self.duplicates_bound += more.duplicates_bound;
        self.duplicates_worst = self.duplicates_worst.max(more.duplicates_worst);
        self.late_survivors += more.late_survivors;
        self.late_appends += more.late_appends;
        self.set_aside += more.set_aside;
        self.recovered += more.recovered;
        self.replayed_runs += more.replayed_runs;
        self.closed += more.closed;
        self.exposed += more.exposed;
    }
}

impl Generation {
    /// What was accepted until then must not be missing.
    fn safe_until_ns(&self, no_allowance: bool) -> u64 {
        if self.closed.is_some() || no_allowance {
            return u64::MAX;
        }
        let Some(said) = self.said.iter().rfind(|s| s.looks > 0) else { return 0 };
        let Some(look) = self.looks.get(said.looks as usize - 1) else { return 0 };
        look.saturating_sub(self.window_ms.max(said.oldest_unsafe_ms + 1) * MS)
    }

    fn knows(&self, id: Id) -> bool {
        let range = self.first.get(id.thread).zip(self.accepted.get(id.thread));
        // The one behind the last may have been accepted and not noted.
        range.is_some_and(|(first, times)| {
            (*first..=first + times.len() as u64).contains(&id.number)
        })
    }

    /// What the brokers had in their sockets and had not appended.
    fn in_socket(&self) -> Vec<Event> {
        let done: HashSet<Id> = self.events.iter().filter(|e| e.appended).map(|e| e.id).collect();
        let left = self.events.iter().filter(|e| !e.appended && !done.contains(&e.id));
        left.map(|e| Event { appended: true, ..*e }).collect()
    }
}

/// Judges; the violations are in words.
pub struct Judge<'a> {
    seed: u64,
    generations: &'a [Generation],
    set_aside: &'a HashSet<Id>,
    no_allowance: bool,
    arrivals: HashMap<Id, u64>,
    newest: HashMap<Stream, u64>,
    /// Duplicates that may still come.
    allowance: u64,
    counts: Counts,
    violations: Vec<String>,
}

impl<'a> Judge<'a> {
    /// With `no_allowance`, a kill may cost nothing: the judge must then find losses.
    pub fn new(
        seed: u64,
        generations: &'a [Generation],
        set_aside: &'a HashSet<Id>,
        no_allowance: bool,
    ) -> Self {
        Judge {
            seed,
            generations,
            set_aside,
            no_allowance,
            arrivals: HashMap::new(),
            newest: HashMap::new(),
            allowance: 0,
            counts: Counts::default(),
            violations: Vec::new(),
        }
    }

    pub fn verdict(mut self) -> (Counts, Vec<String>) {
        for (g, generation) in self.generations.iter().enumerate() {
            self.books(g, generation);
            let before = self.counts.duplicates;
            for event in generation.events.iter().filter(|e| e.appended) {
                self.arrived(g, event, None);
            }
            if let Some(dead) = g.checked_sub(1).filter(|d| self.generations[*d].appends_late) {
                for event in self.generations[dead].in_socket() {
                    self.counts.late_appends += 1;
                    self.arrived(g, &event, Some(dead));
                }
            }
            self.duplicates(g, generation, self.counts.duplicates - before);
        }
        for (g, generation) in self.generations.iter().enumerate() {
            self.missing(g, generation);
        }
        self.counts.set_aside = self.set_aside.len() as u64;
        (self.counts, self.violations)
    }

    fn say(&mut self, generation: usize, what: String) {
        self.violations.push(format!("generation {generation}: {what}"));
    }

    fn arrived(&mut self, g: usize, event: &Event, late_of: Option<usize>) {
        let id = event.id;
        let Some(of) = self.generations[..=g].iter().position(|x| x.knows(id)) else {
            return self.say(g, format!("a ghost: {id:?} arrived and was never sent"));
        };
        let made = Made::new(self.seed, id);
        if made.checksum() != event.checksum {
            return self.say(g, format!("{id:?} arrived garbled"));
        }
        if made.is_poison {
            return self.say(g, format!("{id:?} arrived, and no broker takes it"));
        }
        let copies = self.arrivals.entry(id).or_default();
        *copies += 1;
        if *copies > 1 {
            self.counts.duplicates += 1;
            return;
        }
        self.counts.arrived += 1;
        let Some(stream) = made.stream() else { return };
        let newest = self.newest.entry(stream).or_insert(id.number);
        if *newest <= id.number {
            *newest = id.number;
            return;
        }
        let after = *newest;
        // Nothing is handed over before it is journaled when the window is 0.
        if late_of == Some(of) && self.generations[of].window_ms > 0 {
            self.counts.late_survivors += 1;
        } else {
            self.say(g, format!("disorder: {id:?} first arrived after {after} of its stream"));
        }
    }

    /// Its duplicates are within what the ends before it left, and it leaves an allowance itself:
    /// the span, and what was acknowledged since the checkpoint was stored that the next run
    /// finds. What it didn't come to of the allowance it found goes on, until it has delivered all
    /// that it recovered.
    fn duplicates(&mut self, g: usize, generation: &Generation, came: u64) {
        if came > self.allowance {
            self.say(g, format!("{came} duplicates, at most {} may be", self.allowance));
        }
        self.counts.duplicates_worst = self.counts.duplicates_worst.max(came);
        let delivered = |c: &Option<CheckpointData>| c.as_ref().map_or(0, |c| c.delivered);
        let stored = delivered(&generation.checkpoint_after)
            .saturating_sub(delivered(&generation.checkpoint_before));
        let appended = generation.events.iter().filter(|e| e.appended).count() as u64;
        // Behind so many, all that was recovered lies below the watermark.
        let left = if stored >= generation.counted + SPAN { 0 } else { self.allowance };
        let more = SPAN + appended.saturating_sub(stored);
        self.counts.duplicates_bound += more;
        self.allowance = left.saturating_sub(came) + more;
    }

    fn books(&mut self, g: usize, generation: &Generation) {
        let noted: u64 = generation.accepted.iter().map(|times| times.len() as u64).sum();
        self.counts.accepted += noted;
        let said = &generation.said;
        if let Some(bad) = said.iter().find(|s| s.unaccounted + s.dropped + s.damaged > 0) {
            self.say(g, format!("the books: {bad:?}"));
        }
        let worst_ms = generation.looks.windows(2).map(|w| (w[1] - w[0]) / MS).max().unwrap_or(0);
        let honest_ms = generation.window_ms.max(2 * worst_ms.max(LOOK_MAX_MS)) + 1;
        let hidden = |s: &&Said| s.oldest_unsafe_ms > honest_ms && s.exposed == 0;
        if let Some(bad) = said.iter().find(hidden) {
            self.say(
                g,
                format!("not exposed, and looks were {worst_ms} ms apart at most: {bad:?}"),
            );
        }
        if let Some(first) = said.first() {
            self.counts.recovered += first.recovered;
            self.counts.replayed_runs += u64::from(first.recovered > 0);
            if first.recovered != generation.counted {
                let (says, counted) = (first.recovered, generation.counted);
                self.say(g, format!("recovered {says}, counted in the directory: {counted}"));
            }
        }
        let Some(closed) = &generation.closed else {
            self.counts.exposed += said.last().map_or(0, |s| s.exposed);
            return;
        };
        self.counts.closed += 1;
        let appended = generation.events.iter().filter(|e| e.appended).count() as u64;
        let left = self.generations.get(g + 1).map_or(0, |next| next.counted);
        if closed.accepted != noted
            || closed.delivered != appended
            // What became final above the watermark is still there.
            || !(closed.in_wal..=closed.in_wal + SPAN).contains(&left)
            || closed.complete != 1
            || closed.unaccounted + closed.dropped + closed.damaged > 0
        {
            self.say(g, format!(
                "it closed: {noted} accepted, {appended} appended, {left} left in the log; it says {closed:?}"
            ));
        }
    }

    fn missing(&mut self, g: usize, generation: &Generation) {
        let safe_until_ns = generation.safe_until_ns(self.no_allowance);
        let mut missing: HashSet<Stream> = HashSet::new();
        let (mut lost, mut holes) = (Vec::new(), Vec::new());
        for thread in 0..THREADS.min(generation.first.len()) {
            let first = generation.first[thread];
            let times = &generation.accepted[thread];
            for (i, time) in times.iter().copied().chain([u64::MAX]).enumerate() {
                let id = Id { thread, number: first + i as u64 };
                let made = Made::new(self.seed, id);
                let is_safe = time <= safe_until_ns && time != u64::MAX;
                self.counts.safe += u64::from(is_safe);
                let is_there = if made.is_poison {
                    self.set_aside.contains(&id)
                } else {
                    self.arrivals.contains_key(&id)
                };
                if !is_there {
                    self.counts.lost_in_window += u64::from(!is_safe && time != u64::MAX);
                    if is_safe {
                        lost.push(id);
                    }
                }
                let Some(stream) = made.stream().filter(|_| !made.is_poison) else { continue };
                if !is_there {
                    missing.insert(stream);
                } else if missing.contains(&stream) {
                    holes.push(id);
                }
            }
        }
        if let Some(first) = lost.first() {
            self.say(g, format!("lost: {} that were safe, the first {first:?}", lost.len()));
        }
        if let Some(first) = holes.first() {
            self.say(g, format!("a hole: {first:?} and {} more arrived, an earlier one of their run and stream did not", holes.len() - 1));
        }
    }
}
