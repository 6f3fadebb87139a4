//! Owns the contract as a checker: order of first arrivals, what may be lost, how many
//! duplicates. It sees only what the world sees (accepted, arrived at a partition, refused,
//! crashed), never the state of the code under test, and shares nothing with it.
//!
//! A *stream* is what one thread sends to one partition. The checks:
//! - **Order and holes.** When a record arrives for the first time, every earlier one of its
//!   stream has arrived, or has an excuse: it was refused for good; it failed in this instance
//!   while the later one was already handed over (`reordered`); or it is of an older run, whose
//!   crash may have lost it, or a power cut may have. In the last case it may arrive later only
//!   by a request of a run that was dead then (`late_survivors`).
//!   With live records first an opaque says which line a record went in, and what went live, or was
//!   redriven, may come before older ones that have not: those lie in the log, so no crash of the
//!   process may lose them, and none of them may be handed over live. What comes from the backlog
//!   comes before nothing older.
//! - **Loss.** At the end, what has not arrived was refused for good or was lost by the crash
//!   of its own run, within the window.
//! - **Duplicates.** Copies beyond the first never exceed what crashes and rebuilds allowed.

use crate::report::Opaque;
use std::hash::{Hash, Hasher};

/// A record's number in the order sent over all threads.
pub(crate) type Id = u16;

/// What was seen that the contract forbids.
pub(crate) type Violation = String;

#[derive(Clone, Debug, Default)]
struct Record {
    accepted: bool,
    stream: u8,
    run: u8,
    /// When it was accepted.
    at: u64,
    copies: u8,
    /// Refused for good: it can't arrive in this instance, and need not.
    refused: bool,
    /// The broker has failed it and the report is still under way.
    failing: bool,
    /// Later records of its stream that were handed over when its failure was reported.
    may_precede: Vec<Id>,
    /// The newest run whose request brought a later record of its stream before it.
    passed_by_run: Option<u8>,
    /// A crash came while it was younger than the window.
    may_be_lost: bool,
    /// A power cut came while it was younger than the window: later ones may have survived it.
    may_be_hole: bool,
    /// It was handed over live in this run.
    went_live: bool,
    /// A younger one of its stream arrived before it and is live: it lies in the log.
    overtaken: bool,
}

/// What happened, for the figures that a test prints.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) late_survivors: u32,
    pub(crate) reordered: u32,
    pub(crate) duplicates: u32,
    pub(crate) refused_late: u32,
    /// Records of a backlog that live ones came before.
    pub(crate) overtaken: u32,
}

/// The checker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Checker {
    records: Vec<Record>,
    /// Per stream, its records in the order sent.
    streams: Vec<Vec<Id>>,
    /// Per stream, everything before this index needs no more looking at.
    settled: Vec<usize>,
    run: u8,
    /// Nothing is handed over before it is journaled: no late survivors.
    log_first: bool,
    /// Live records go beside the backlog.
    live_first: bool,
    duplicates_allowed: u32,
    seen: Seen,
}

/// What decides later verdicts: of a record that has arrived, only that it has.
impl Hash for Checker {
    fn hash<H: Hasher>(&self, to: &mut H) {
        (self.run, self.duplicates_allowed - self.seen.duplicates).hash(to);
        for r in &self.records {
            if r.copies > 0 {
                (true, r.failing).hash(to);
            } else {
                (r.accepted, r.run, r.at, r.refused, r.failing).hash(to);
                (&r.may_precede, r.passed_by_run, r.may_be_lost, r.may_be_hole).hash(to);
                (r.went_live, r.overtaken).hash(to);
            }
        }
    }
}

impl Checker {
    pub(crate) fn new(log_first: bool, live_first: bool) -> Self {
        Checker { log_first, live_first, ..Checker::default() }
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen
    }

    /// What the running process has accepted.
    pub(crate) fn accepted_in_this_run(&self) -> Vec<Id> {
        let records = self.records.iter().enumerate();
        let of_run = records.filter(|(_, r)| r.accepted && r.run == self.run);
        of_run.map(|(id, _)| id as Id).collect()
    }

    pub(crate) fn arrived_once(&self, id: Id) -> bool {
        self.records.get(id as usize).is_some_and(|r| r.copies > 0)
    }

    pub(crate) fn was_refused(&self, id: Id) -> bool {
        self.records.get(id as usize).is_some_and(|r| r.refused)
    }

    /// A thread's send was accepted.
    pub(crate) fn accepted(&mut self, id: Id, stream: u8, now: u64) {
        let i = id as usize;
        if self.records.len() <= i {
            self.records.resize(i + 1, Record::default());
        }
        let s = stream as usize;
        if self.streams.len() <= s {
            self.streams.resize(s + 1, Vec::new());
            self.settled.resize(s + 1, 0);
        }
        self.records[i] =
            Record { accepted: true, stream, run: self.run, at: now, ..Record::default() };
        self.streams[s].push(id);
    }

    /// The sink was handed the record.
    pub(crate) fn handed(&mut self, id: Id, by: Opaque) -> Result<(), Violation> {
        let Some(record) = self.records.get_mut(id as usize).filter(|_| by.is_live()) else {
            return Ok(());
        };
        if !self.live_first {
            return Err(format!("record {id} went live though the backlog goes first"));
        }
        if record.overtaken && !record.went_live {
            return Err(format!("record {id} went live after a younger one of its stream"));
        }
        record.went_live = true;
        Ok(())
    }

    /// A partition appended a request of run `by_run`.
    pub(crate) fn arrived(&mut self, id: Id, by_run: u8, by: Opaque) -> Result<(), Violation> {
        let Some(record) = self.records.get_mut(id as usize).filter(|r| r.accepted) else {
            return Err(format!("record {id} arrived and was never sent"));
        };
        record.copies += 1;
        if record.copies > 1 {
            self.seen.duplicates += 1;
            if self.seen.duplicates > self.duplicates_allowed {
                let (n, most) = (self.seen.duplicates, self.duplicates_allowed);
                return Err(format!("record {id} is duplicate number {n}, at most {most} may be"));
            }
            return Ok(());
        }
        let (stream, run, refused) = (record.stream as usize, record.run, record.refused);
        if let Some(passed_by_run) = record.passed_by_run {
            if by_run >= passed_by_run {
                return Err(format!(
                    "record {id} of run {run} was produced by run {by_run} after a later record \
                     of its stream, by run {passed_by_run}"
                ));
            }
            if self.log_first && !record.may_be_hole {
                return Err(format!("record {id} survived late although the log came first"));
            }
            self.seen.late_survivors += 1;
        }
        if refused {
            self.seen.refused_late += 1;
        }
        let is_beside = self.live_first && (by.is_live() || by.0 & Opaque::REDRIVEN != 0);
        self.earlier_ones_have_arrived(id, stream, (run, by_run), is_beside)
    }

    fn earlier_ones_have_arrived(
        &mut self,
        id: Id,
        stream: usize,
        (run, by_run): (u8, u8),
        is_beside: bool,
    ) -> Result<(), Violation> {
        let mut at = self.settled[stream];
        let mut all_settled = true;
        while let Some(&earlier) = self.streams[stream].get(at) {
            let record = &mut self.records[earlier as usize];
            all_settled &= record.copies > 0;
            if all_settled {
                self.settled[stream] = at + 1;
            }
            if earlier == id {
                break;
            }
            at += 1;
            if record.copies > 0 || record.refused {
                continue;
            }
            if record.failing || record.may_precede.contains(&id) {
                self.seen.reordered += 1;
            } else if is_beside && !record.went_live {
                self.seen.overtaken += u32::from(!record.overtaken);
                record.overtaken = true;
                if record.run == run {
                    record.may_be_lost = record.may_be_hole;
                }
            } else if record.may_be_hole || (record.run < run && record.may_be_lost) {
                record.passed_by_run = record.passed_by_run.max(Some(by_run));
            } else {
                return Err(format!("record {id} arrived before {earlier} of its stream"));
            }
        }
        Ok(())
    }

    /// The broker failed the record; the report is under way.
    pub(crate) fn will_fail(&mut self, id: Id) {
        self.records[id as usize].failing = true;
    }

    /// The report of a failure came out while these later ones of its partition were handed
    /// over.
    pub(crate) fn failed(&mut self, id: Id, later: impl Iterator<Item = Id>) {
        let record = &mut self.records[id as usize];
        record.failing = false;
        if record.copies == 0 {
            // Those of an earlier instance may still be appended, late.
            record.may_precede.extend(later);
        }
    }

    /// The broker, or the sink, refused the record for good.
    pub(crate) fn refused(&mut self, id: Id) {
        self.records[id as usize].refused = true;
    }

    /// A rebuild or a crash may lead to so many more copies.
    pub(crate) fn allow_duplicates(&mut self, copies: u32) {
        self.duplicates_allowed += copies;
    }

    /// The process died. What came after `safe_until` and is not final may be lost: of this
    /// run a suffix of each stream; by a power cut, which keeps any part of what was not
    /// synced, any of it.
    pub(crate) fn crashed(&mut self, safe_until: u64, power_cut: bool) {
        let run = self.run;
        for record in self.records.iter_mut().filter(|r| r.accepted && r.copies == 0) {
            let young = record.at > safe_until;
            let in_log = record.overtaken;
            record.may_be_lost |= young && (power_cut || (record.run == run && !in_log));
            record.may_be_hole |= young && power_cut;
            (record.went_live, record.overtaken) = (false, false);
        }
        self.run += 1;
    }

    /// The crash just told of lost this record, if it has not arrived.
    pub(crate) fn may_be_lost(&mut self, id: Id) {
        self.records[id as usize].may_be_lost = true;
    }

    /// Everything is quiet: nothing is missing that may not be. Returns how many are lost.
    pub(crate) fn finish(&self) -> Result<u32, Violation> {
        let mut lost = 0;
        for (id, record) in self.records.iter().enumerate().filter(|(_, r)| r.accepted) {
            if record.copies > 0 || record.refused {
                continue;
            }
            if !record.may_be_lost {
                return Err(format!("record {id} is lost"));
            }
            lost += 1;
        }
        Ok(lost)
    }
}
