//! Owns the world that the explorer walks: one sequence, an abstract log, a small arena, model
//! brokers, and what is true of each record by the world's own count.

use super::super::cursors::Broken;
use super::super::{
    Backlog, End, Finished, Journal, Limits, Next, Popped, Sequence, Source, Verdict,
};
use crate::record::{ANY_PARTITION, LogPosition, Lsn, TopicId};
use crate::report::{Opaque, Outcome, Reason, Scope};
use crate::sim::brokers::{Brokers, Refusal};
use crate::sim::checker::{Checker, Id, Violation};
use std::hash::{Hash, Hasher};

/// One record of a script.
#[derive(Clone, Copy, Debug)]
pub(super) struct Send {
    pub(super) thread: u8,
    pub(super) partition: u8,
    /// No broker ever takes it.
    pub(super) poison: bool,
}

/// What a world may do.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) sends: Vec<Send>,
    pub(super) limits: Limits,
    pub(super) broken: Broken,
    pub(super) crashes: u8,
    pub(super) rebuilds: u8,
    pub(super) transients: u8,
    /// Times that the log lets go of its oldest frames to make room.
    pub(super) drops: u8,
    /// The sink may be busy after the sequence was asked; the reader may be given up.
    pub(super) hiccups: bool,
}

/// One step of the world.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Pop(u8),
    Produce,
    /// The live cursor's.
    ProduceLive,
    /// The sink is busy: the sequence is asked and the record isn't taken.
    Busy,
    /// The sink refuses the record before it is handed over.
    Reject,
    Append,
    BrokerAppends(usize),
    BrokerRefuses(usize, Refusal),
    Report(usize),
    LateAppend(usize, usize),
    SetAside,
    /// The log is full: so many of its oldest frames go.
    Drop(usize),
    /// The reader of the backlog is given up; the next one starts where the sequence says.
    DropReader,
    Rebuild,
    /// The process dies; the watermark stored last is this.
    Crash(Lsn),
}

/// Where a record of the script stands in this run's books.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Where {
    Nowhere,
    Memory,
    Log,
    Delivered,
    SetAside,
    Dropped,
}

#[derive(Clone, Debug)]
pub(super) struct World {
    seq: Sequence<u8>,
    brokers: Brokers,
    checker: Checker,
    /// Frames of the arena and what lies in them.
    arena: Vec<Option<Id>>,
    log: Vec<(Lsn, Id)>,
    /// Frames before this one are gone.
    log_from: usize,
    reader: Option<usize>,
    watermark: Lsn,
    parked: Vec<(Opaque, Id)>,
    lsns: Vec<Lsn>,
    stands: Vec<Where>,
    sent: Vec<bool>,
    popped: u64,
    recovered: u64,
    run: u8,
    crashes: u8,
    rebuilds: u8,
    transients: u8,
    drops: u8,
}

/// What decides the future: records that are final and frames below the watermark don't.
impl Hash for World {
    fn hash<H: Hasher>(&self, to: &mut H) {
        self.seq.canonical(|frame| self.arena[frame as usize], to);
        self.brokers.hash(to);
        self.checker.hash(to);
        (self.crashes, self.rebuilds, self.transients, self.drops, self.run).hash(to);
        for (_, id) in &self.parked {
            id.hash(to);
        }
        for ((stand, lsn), sent) in self.stands.iter().zip(&self.lsns).zip(&self.sent) {
            (stand, sent).hash(to);
            if matches!(stand, Where::Memory | Where::Log) {
                lsn.hash(to);
            }
        }
        if self.crashes > 0 {
            // Only a crash reads the log from the watermark; what isn't final is hashed above.
            self.watermark.hash(to);
            let there = &self.log[self.log_from..];
            let kept = there.iter().filter(|(lsn, _)| *lsn >= self.watermark);
            kept.for_each(|frame| frame.hash(to));
        }
        if self.drops > 0 {
            self.log[self.log_from..].hash(to);
        }
        let read = self.reader.map(|at| self.log.get(at).map(|(lsn, _)| *lsn));
        read.hash(to);
    }
}

fn topic(send: &Send) -> TopicId {
    TopicId(u32::from(send.partition))
}

fn frame(plan: &Plan, at: usize, lsn: Lsn, id: Id) -> Backlog {
    Backlog {
        lsn,
        position: LogPosition { segment: 0, offset: at as u64 },
        topic: topic(&plan.sends[id as usize]),
        bytes: 1,
        receipt: u32::MAX,
    }
}

fn first_lsn(run: u8) -> Lsn {
    Lsn(u64::from(run) * 100 + 100)
}

impl World {
    pub(super) fn new(plan: &Plan) -> Self {
        let n = plan.sends.len();
        let mut seq = Sequence::new(plan.limits, first_lsn(0));
        seq.broken = plan.broken;
        World {
            seq,
            brokers: Brokers::new(2),
            checker: Checker::new(
                plan.limits.journal == Journal::First,
                plan.limits.backlog_percent.is_some(),
            ),
            arena: vec![None; n],
            log: Vec::new(),
            log_from: 0,
            reader: None,
            watermark: first_lsn(0),
            parked: Vec::new(),
            lsns: vec![Lsn(0); n],
            stands: vec![Where::Nowhere; n],
            sent: vec![false; n],
            popped: 0,
            recovered: 0,
            run: 0,
            crashes: plan.crashes,
            rebuilds: plan.rebuilds,
            transients: plan.transients,
            drops: plan.drops,
        }
    }

    fn next_send(&self, plan: &Plan, thread: u8) -> Option<usize> {
        let mut sends = plan.sends.iter().enumerate();
        sends.find(|(i, s)| s.thread == thread && !self.sent[*i]).map(|(i, _)| i)
    }

    /// Every step that the world can take; some may change nothing.
    pub(super) fn steps(&self, plan: &Plan) -> Vec<Step> {
        let mut steps = Vec::with_capacity(16);
        let threads = (0..2).filter(|t| self.next_send(plan, *t).is_some());
        steps.extend(threads.map(Step::Pop));
        match self.seq.clone().next_produce() {
            Next::Produce { lsn, .. } => {
                if plan.hiccups {
                    steps.push(Step::Busy);
                }
                if !self.brokers.is_fatal() {
                    steps.push(Step::Produce);
                }
                if self.send_of(plan, lsn).is_some_and(|s| s.poison) {
                    steps.push(Step::Reject);
                }
            }
            Next::Read => steps.push(Step::Produce),
            Next::SpanFull | Next::JournalFirst | Next::LiveFirst | Next::Idle => {}
        }
        if let Next::Produce { .. } = self.seq.clone().next_live()
            && !self.brokers.is_fatal()
        {
            steps.push(Step::ProduceLive);
        }
        if plan.hiccups && self.reader.is_some() {
            steps.push(Step::DropReader);
        }
        if plan.limits.journal != Journal::Off && self.seq.next_append(self.seq.next()).is_some() {
            steps.push(Step::Append);
        }
        for p in 0..2 {
            self.broker_steps(plan, p, &mut steps);
        }
        steps.extend(self.brokers.late().map(|(i, p)| Step::LateAppend(i, p)));
        if !self.parked.is_empty() {
            steps.push(Step::SetAside);
        }
        if self.drops > 0 {
            let there = self.log.len() - self.log_from;
            steps.extend((1..=there.min(2)).map(Step::Drop));
        }
        if self.rebuilds > 0 || self.brokers.is_fatal() {
            steps.push(Step::Rebuild);
        }
        if self.crashes > 0 && self.popped > 0 {
            // The stored watermark may be any that was true since the last one known.
            let acked = self.seq.acked();
            let between = self.log.iter().map(|(lsn, _)| *lsn);
            let between = between.filter(|l| *l > self.watermark && *l < acked);
            steps.extend([self.watermark, acked].into_iter().chain(between).map(Step::Crash));
        }
        steps
    }

    fn broker_steps(&self, plan: &Plan, p: usize, steps: &mut Vec<Step>) {
        if self.brokers.has_report(p) {
            steps.push(Step::Report(p));
        }
        let Some(id) = self.brokers.next_pending(p) else { return };
        let mut refuse = |scope, appended| {
            steps.push(Step::BrokerRefuses(p, Refusal { scope, appended, held: false }));
        };
        if plan.sends[id as usize].poison {
            refuse(Scope::Record, false);
            return;
        }
        if self.transients > 0 {
            refuse(Scope::Transient, false);
            refuse(Scope::Transient, true);
        }
        if self.rebuilds > 0 && !self.brokers.is_fatal() {
            refuse(Scope::Instance, false);
            refuse(Scope::Instance, true);
        }
        steps.push(Step::BrokerAppends(p));
    }

    fn send_of<'a>(&self, plan: &'a Plan, lsn: Lsn) -> Option<&'a Send> {
        self.lsns.iter().position(|l| *l == lsn).and_then(|i| plan.sends.get(i))
    }

    /// Takes one step and checks everything.
    pub(super) fn take(&mut self, plan: &Plan, step: Step) -> Result<(), Violation> {
        match step {
            Step::Pop(thread) => self.pop(plan, thread),
            Step::Produce => {
                let next = self.seq.next_produce();
                self.produce(plan, next)?;
            }
            Step::ProduceLive => {
                let next = self.seq.next_live();
                self.produce(plan, next)?;
            }
            Step::Busy => drop(self.seq.next_produce()),
            Step::Reject => self.reject()?,
            Step::Append => self.append(plan)?,
            Step::BrokerAppends(p) => self.brokers.append(p, &mut self.checker)?,
            Step::BrokerRefuses(p, how) => {
                self.transients -= u8::from(how.scope == Scope::Transient);
                self.rebuilds -= u8::from(how.scope == Scope::Instance);
                self.brokers.refuse(p, how, &mut self.checker)?;
            }
            Step::Report(p) => self.report(p)?,
            Step::LateAppend(i, p) => self.brokers.append_late((i, p), &mut self.checker)?,
            Step::SetAside => self.set_aside()?,
            Step::Drop(frames) => self.drop_oldest(plan, frames)?,
            Step::DropReader => self.reader = None,
            Step::Rebuild => self.rebuild(),
            Step::Crash(watermark) => {
                self.watermark = watermark;
                self.crash(plan);
            }
        }
        self.take_back_frames()?;
        self.check_books()
    }

    fn pop(&mut self, plan: &Plan, thread: u8) {
        let Some(i) = self.next_send(plan, thread) else { return };
        let send = plan.sends[i];
        self.sent[i] = true;
        self.checker.accepted(i as Id, thread * 2 + send.partition, 0);
        let Some(frame) = self.arena.iter().position(Option::is_none) else { return };
        self.arena[frame] = Some(i as Id);
        self.lsns[i] = self.seq.popped(Popped {
            frame: frame as u8,
            topic: topic(&send),
            bytes: 1,
            arrival_ns: 0,
            receipt: u32::MAX,
        });
        self.stands[i] = Where::Memory;
        self.popped += 1;
    }

    /// The record that lies there, if it is the one that `lsn` names.
    fn bytes(&self, lsn: Lsn, source: Source<u8>) -> Result<Id, Violation> {
        let found = match source {
            Source::Memory(frame) => self.arena[frame as usize],
            Source::Log(position) => {
                let at = Some(position.offset as usize).filter(|at| *at >= self.log_from);
                at.and_then(|at| self.log.get(at)).map(|(_, id)| *id)
            }
        };
        match found {
            Some(id) if self.lsns[id as usize] == lsn => Ok(id),
            found => Err(format!("{lsn}: {source:?} holds {found:?}, not that record")),
        }
    }

    fn produce(&mut self, plan: &Plan, next: Next<u8>) -> Result<(), Violation> {
        match next {
            Next::Produce { opaque, lsn, source, .. } => {
                let id = self.bytes(lsn, source)?;
                self.checker.handed(id, opaque)?;
                let partition = plan.sends[id as usize].partition as usize;
                self.brokers.hand(partition, id, opaque);
                self.seq.handed(opaque, ANY_PARTITION);
            }
            Next::Read => self.read(plan),
            Next::SpanFull | Next::JournalFirst | Next::LiveFirst | Next::Idle => {}
        }
        Ok(())
    }

    fn read(&mut self, plan: &Plan) {
        let from = self.seq.backlog_from().map_or(self.log.len(), |p| p.offset as usize);
        let at = self.reader.unwrap_or(from).max(self.log_from);
        let Some(&(lsn, id)) = self.log.get(at) else {
            self.reader = None;
            self.seq.caught_up();
            return;
        };
        self.reader = Some(at + 1);
        self.seq.admit(frame(plan, at, lsn, id));
    }

    /// As the flusher does it: what was admitted ends, the rest is read and ends.
    fn drop_oldest(&mut self, plan: &Plan, frames: usize) -> Result<(), Violation> {
        self.drops -= 1;
        let to = self.log_from + frames;
        let end = self.log[to - 1].0.next();
        for finished in self.seq.drop_admitted(end, "full") {
            self.dropped(finished)?;
        }
        while self.seq.produced() < end {
            let Some(from) = self.seq.backlog_from() else { break };
            let at = self.reader.unwrap_or(from.offset as usize).max(self.log_from);
            let Some(&(lsn, id)) = self.log.get(at).filter(|(lsn, _)| *lsn < end) else {
                self.reader = None;
                break;
            };
            self.reader = Some(at + 1);
            if let Some(finished) =
                self.seq.end_unread(frame(plan, at, lsn, id), End::Dropped("full"))
            {
                self.dropped(finished)?;
            }
        }
        self.seq.dropped_below(end);
        self.log_from = to;
        Ok(())
    }

    fn dropped(&mut self, finished: Finished) -> Result<(), Violation> {
        let id = self.id_of(finished.lsn)?;
        let stand = &mut self.stands[id as usize];
        if *stand != Where::Log || finished.end != End::Dropped("full") {
            return Err(format!(
                "record {id} stands at {stand:?} and is called {:?}",
                finished.end
            ));
        }
        *stand = Where::Dropped;
        self.parked.retain(|(_, parked)| *parked != id);
        self.checker.refused(id);
        Ok(())
    }

    fn reject(&mut self) -> Result<(), Violation> {
        let Next::Produce { opaque, lsn, source, .. } = self.seq.next_produce() else {
            return Ok(());
        };
        let id = self.bytes(lsn, source)?;
        self.checker.refused(id);
        let reason = Reason { name: "model", code: 0 };
        self.verdict(
            opaque,
            Outcome::Failed { scope: Scope::Record, reason, possibly_persisted: false },
        )
    }

    fn append(&mut self, plan: &Plan) -> Result<(), Violation> {
        let Some((lsn, frame)) = self.seq.next_append(self.seq.next()) else { return Ok(()) };
        let id = self.bytes(lsn, Source::Memory(frame))?;
        let position = LogPosition { segment: 0, offset: self.log.len() as u64 };
        self.log.push((lsn, id));
        self.stands[id as usize] = Where::Log;
        self.seq.appended(lsn, position);
        debug_assert!(plan.limits.journal != Journal::Off);
        Ok(())
    }

    fn report(&mut self, p: usize) -> Result<(), Violation> {
        match self.brokers.report(p, &mut self.checker) {
            Some(report) => self.verdict(report.opaque, report.outcome),
            None => Ok(()),
        }
    }

    fn verdict(&mut self, opaque: Opaque, outcome: Outcome) -> Result<(), Violation> {
        match self.seq.reported(opaque, outcome) {
            // What was dropped while the sink had it is reported to nobody.
            Verdict::Stale if self.count(Where::Dropped) > 0 => Ok(()),
            Verdict::Stale => Err("a report of the live instance was called stale".into()),
            Verdict::Finished(finished) => {
                let id = self.id_of(finished.lsn)?;
                if finished.end != End::Delivered || !self.checker.arrived_once(id) {
                    return Err(format!("record {id} is called {:?}", finished.end));
                }
                self.stands[id as usize] = Where::Delivered;
                Ok(())
            }
            Verdict::SetAside { lsn, source, .. } => {
                let id = self.bytes(lsn, source)?;
                self.parked.push((opaque, id));
                Ok(())
            }
            Verdict::Again | Verdict::Rebuild(_) => Ok(()),
        }
    }

    fn id_of(&self, lsn: Lsn) -> Result<Id, Violation> {
        let at = self.lsns.iter().position(|l| *l == lsn);
        at.map(|i| i as Id).ok_or_else(|| format!("{lsn} is nobody's number"))
    }

    fn set_aside(&mut self) -> Result<(), Violation> {
        let (opaque, id) = self.parked.remove(0);
        let finished = self.seq.finish(opaque, End::SetAside("model"));
        if finished.is_none_or(|f| self.lsns[id as usize] != f.lsn) {
            return Err(format!("record {id} could not be set aside: {finished:?}"));
        }
        self.stands[id as usize] = Where::SetAside;
        Ok(())
    }

    fn rebuild(&mut self) {
        if !self.brokers.is_fatal() {
            self.rebuilds -= 1;
        }
        self.checker.allow_duplicates(self.brokers.outstanding() as u32);
        self.brokers.replace(self.run, &mut self.checker);
        self.seq.rebuilt();
    }

    /// The process dies: memory is gone, the log and the checkpoint stay.
    fn crash(&mut self, plan: &Plan) {
        let not_final = |w: Where| matches!(w, Where::Memory | Where::Log);
        let stands = self.stands.iter().zip(&self.lsns);
        let acked = stands.filter(|(w, _)| not_final(**w)).map(|(_, lsn)| *lsn).min();
        let acked = acked.unwrap_or(self.seq.next());
        let since_stored = self.log.iter().filter(|(l, _)| *l >= self.watermark && *l < acked);
        let bound = plan.limits.in_flight_max_records + since_stored.count();
        self.checker.allow_duplicates(bound as u32);
        self.checker.crashed(0, false);
        for (id, stand) in self.stands.iter().enumerate() {
            if *stand == Where::Memory {
                self.checker.may_be_lost(id as Id);
            }
        }
        self.run += 1;
        self.crashes -= 1;
        self.brokers.replace(self.run, &mut self.checker);
        self.arena.fill(None);
        self.parked.clear();
        self.reader = None;
        self.popped = 0;
        self.reopen(plan);
    }

    fn reopen(&mut self, plan: &Plan) {
        self.seq = Sequence::new(plan.limits, first_lsn(self.run));
        self.seq.broken = plan.broken;
        self.stands.fill(Where::Nowhere);
        let from = self.log.iter().position(|(lsn, _)| *lsn >= self.watermark);
        let from = from.unwrap_or(self.log.len()).max(self.log_from);
        let found = &self.log[from..];
        self.recovered = found.len() as u64;
        for p in 0..2 {
            let of_topic = |id: Id| plan.sends[id as usize].partition == p;
            let records = found.iter().filter(|(_, id)| of_topic(*id)).count();
            self.seq.recovered(TopicId(u32::from(p)), records as u64);
        }
        for (_, id) in found {
            self.stands[*id as usize] = Where::Log;
        }
        if let Some(first) = found.iter().map(|(lsn, _)| *lsn).min() {
            let position = LogPosition { segment: 0, offset: from as u64 };
            self.seq.recovered_from(position, first);
        }
    }

    fn take_back_frames(&mut self) -> Result<(), Violation> {
        for frame in self.seq.released().drain(..) {
            if self.arena[frame as usize].take().is_none() {
                return Err(format!("frame {frame} was released twice"));
            }
        }
        Ok(())
    }

    fn count(&self, stand: Where) -> u64 {
        self.stands.iter().filter(|w| **w == stand).count() as u64
    }

    fn check_books(&self) -> Result<(), Violation> {
        let books = self.seq.books();
        let says = [
            ("popped", books.popped(), self.popped),
            ("recovered", books.recovered(), self.recovered),
            ("in_flight", books.in_flight(), self.count(Where::Memory)),
            ("in_wal", books.in_wal(), self.count(Where::Log)),
            ("delivered", books.delivered(), self.count(Where::Delivered)),
            ("set_aside", books.set_aside(), self.count(Where::SetAside)),
            ("dropped", books.dropped(), self.count(Where::Dropped)),
        ];
        if let Some((name, books, truth)) = says.iter().find(|(_, books, truth)| books != truth) {
            return Err(format!("the books say {name} {books}, it is {truth}"));
        }
        if books.unaccounted() != 0 {
            return Err(format!("unaccounted: {}", books.unaccounted()));
        }
        if self.seq.broken.journal_order {
            // The contract's own checks have to see that one.
            return Ok(());
        }
        let acked = self.seq.acked();
        let open = self.stands.iter().zip(&self.lsns);
        let mut open = open.filter(|(w, _)| matches!(w, Where::Memory | Where::Log));
        if let Some((_, lsn)) = open.find(|(_, lsn)| **lsn < acked) {
            return Err(format!("{lsn} is not final and acked is {acked}"));
        }
        Ok(())
    }

    /// Nothing is left to do but late appends, faults and bookkeeping.
    pub(super) fn is_quiet(steps: &[Step]) -> bool {
        steps.iter().all(|s| {
            matches!(
                s,
                Step::LateAppend(..)
                    | Step::Crash(_)
                    | Step::Rebuild
                    | Step::Drop(_)
                    | Step::DropReader
            )
        })
    }

    /// What must hold when everything is quiet.
    pub(super) fn check_quiet(&self) -> Result<(), Violation> {
        if self.brokers.is_fatal() {
            return Ok(());
        }
        if !self.seq.all_final() {
            return Err("nothing is left to do and not everything is final".into());
        }
        if self.arena.iter().any(Option::is_some) {
            return Err("everything is final and a frame was not released".into());
        }
        self.checker.finish().map(drop)
    }

    pub(super) fn checker(&self) -> &Checker {
        &self.checker
    }
}
