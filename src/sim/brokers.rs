//! Owns the model of Kafka: partitions that append, and producer instances whose requests are
//! answered in order within a partition and in any order across partitions.
//!
//! An instance is alive or dead. A dead one's requests may still be appended, late, in their
//! order, or never; nobody hears of it.

use super::checker::{Checker, Id, Violation};
use crate::report::{Opaque, Outcome, Reason, Report, Scope};
use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

/// What the broker did with a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Fate {
    /// Nothing yet.
    Pending,
    /// Appended; the report will say so.
    Appended,
    /// Not appended; the report will say so, with this scope.
    Refused(Scope),
    /// Appended, and the report will say that it failed and may be persisted.
    AppendedUnknown(Scope),
}

impl Fate {
    fn is_refused(self) -> bool {
        matches!(self, Fate::Refused(_) | Fate::AppendedUnknown(_))
    }
}

/// How a broker answers badly.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Refusal {
    pub(crate) scope: Scope,
    /// It was appended all the same.
    pub(crate) appended: bool,
    /// Of scope topic: the topic is held, and the record comes again.
    pub(crate) held: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Request {
    id: Id,
    opaque: Opaque,
    fate: Fate,
}

/// Two requests for one record differ by fate and line alone: which slot the opaque names decides
/// nothing.
impl Hash for Request {
    fn hash<H: Hasher>(&self, to: &mut H) {
        (self.id, self.fate, self.opaque.is_live()).hash(to);
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Instance {
    run: u8,
    queues: Vec<VecDeque<Request>>,
    /// The broker refused a sequence number of this partition for good: nothing behind it can
    /// be appended by this instance.
    barred: Vec<bool>,
    fatal: bool,
}

impl Instance {
    fn new(run: u8, partitions: usize) -> Self {
        Instance {
            run,
            queues: vec![VecDeque::new(); partitions],
            barred: vec![false; partitions],
            fatal: false,
        }
    }
}

/// All partitions of all topics, and every instance whose requests may still be appended.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Brokers {
    live: Instance,
    dead: Vec<Instance>,
}

impl Brokers {
    pub(crate) fn new(partitions: usize) -> Self {
        Brokers { live: Instance::new(0, partitions), dead: Vec::new() }
    }

    pub(crate) fn partitions(&self) -> usize {
        self.live.queues.len()
    }

    // ---- the producer's side -------------------------------------------------------------

    /// The live instance can take no record.
    pub(crate) fn is_fatal(&self) -> bool {
        self.live.fatal
    }

    /// Requests of the live instance whose report has not come out.
    pub(crate) fn outstanding(&self) -> usize {
        self.live.queues.iter().map(VecDeque::len).sum()
    }

    /// The live instance takes nothing any more.
    pub(crate) fn break_instance(&mut self) {
        self.live.fatal = true;
    }

    pub(crate) fn queue_len(&self, partition: usize) -> usize {
        self.live.queues[partition].len()
    }

    pub(crate) fn hand(&mut self, partition: usize, id: Id, opaque: Opaque) {
        self.live.queues[partition].push_back(Request { id, opaque, fate: Fate::Pending });
    }

    /// Whether the oldest request of the partition has been answered.
    pub(crate) fn has_report(&self, partition: usize) -> bool {
        self.live.queues[partition].front().is_some_and(|r| r.fate != Fate::Pending)
    }

    /// The report of the partition's oldest request.
    pub(crate) fn report(&mut self, partition: usize, checker: &mut Checker) -> Option<Report> {
        if !self.has_report(partition) {
            return None;
        }
        let request = self.live.queues[partition].pop_front()?;
        let (scope, possibly_persisted) = match request.fate {
            Fate::Pending => return None,
            Fate::Appended => {
                return Some(Report { opaque: request.opaque, outcome: Outcome::Delivered });
            }
            Fate::Refused(scope) => (scope, false),
            Fate::AppendedUnknown(scope) => (scope, true),
        };
        // Behind a barred request nothing can be appended by this instance.
        let later = if self.live.barred[partition] { 0 } else { usize::MAX };
        checker.failed(request.id, self.live.queues[partition].iter().take(later).map(|r| r.id));
        let reason = Reason { name: "model", code: 1 };
        let outcome = Outcome::Failed { scope, reason, possibly_persisted };
        Some(Report { opaque: request.opaque, outcome })
    }

    /// The live instance is given up: another one takes over, of run `run`. Requests behind a
    /// refused one may still be appended, before the refused record is produced again.
    pub(crate) fn replace(&mut self, run: u8, checker: &mut Checker) {
        let fresh = Instance::new(run, self.partitions());
        let mut old = std::mem::replace(&mut self.live, fresh);
        for (queue, barred) in old.queues.iter_mut().zip(&old.barred) {
            for (i, request) in queue.iter().enumerate().filter(|(_, r)| r.fate.is_refused()) {
                let later = if *barred { 0 } else { usize::MAX };
                checker.failed(request.id, queue.iter().skip(i + 1).take(later).map(|r| r.id));
            }
            queue.retain(|r| r.fate == Fate::Pending && !barred);
        }
        old.barred.fill(false);
        old.fatal = false;
        if old.queues.iter().any(|q| !q.is_empty()) {
            self.dead.push(old);
        }
    }

    // ---- the brokers' side ---------------------------------------------------------------

    fn pending(&mut self, partition: usize) -> Option<&mut Request> {
        if self.live.barred[partition] {
            return None;
        }
        self.live.queues[partition].iter_mut().find(|r| r.fate == Fate::Pending)
    }

    /// The record that the partition would answer next.
    pub(crate) fn next_pending(&self, partition: usize) -> Option<Id> {
        if self.live.barred[partition] {
            return None;
        }
        self.live.queues[partition].iter().find(|r| r.fate == Fate::Pending).map(|r| r.id)
    }

    /// The partition appends its next request.
    pub(crate) fn append(
        &mut self,
        partition: usize,
        checker: &mut Checker,
    ) -> Result<(), Violation> {
        let run = self.live.run;
        let Some(request) = self.pending(partition) else { return Ok(()) };
        request.fate = Fate::Appended;
        checker.arrived(request.id, run, request.opaque)
    }

    /// The partition refuses its next request, or says so.
    pub(crate) fn refuse(
        &mut self,
        partition: usize,
        how: Refusal,
        checker: &mut Checker,
    ) -> Result<(), Violation> {
        let run = self.live.run;
        let Some(request) = self.pending(partition) else { return Ok(()) };
        let (id, opaque) = (request.id, request.opaque);
        if how.appended {
            request.fate = Fate::AppendedUnknown(how.scope);
        } else {
            request.fate = Fate::Refused(how.scope);
        }
        if how.scope == Scope::Instance {
            self.live.fatal = true;
            self.live.barred[partition] = true;
        }
        if how.appended {
            checker.arrived(id, run, opaque)?;
            checker.allow_duplicates(1);
        } else if how.scope == Scope::Record || (how.scope == Scope::Topic && !how.held) {
            checker.refused(id);
        } else {
            checker.will_fail(id);
        }
        Ok(())
    }

    /// Where a dead instance's request may still be appended: (instance, partition).
    pub(crate) fn late(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.dead.iter().enumerate().flat_map(|(i, instance)| {
            let queues = instance.queues.iter().enumerate();
            queues.filter(|(_, q)| !q.is_empty()).map(move |(p, _)| (i, p))
        })
    }

    /// A dead instance's next request is appended after all.
    pub(crate) fn append_late(
        &mut self,
        (instance, partition): (usize, usize),
        checker: &mut Checker,
    ) -> Result<(), Violation> {
        let dead = &mut self.dead[instance];
        let run = dead.run;
        let Some(request) = dead.queues[partition].pop_front() else { return Ok(()) };
        if dead.queues.iter().all(VecDeque::is_empty) {
            self.dead.remove(instance);
        }
        checker.arrived(request.id, run, request.opaque)
    }
}
