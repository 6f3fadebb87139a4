//! Owns what is special about a partition that is held by itself: it is silent while others are
//! served, or Kafka doesn't have it, so that its records would stop everybody else's once its share
//! of the span is used up.
//!
//! What the sink already has of it is set aside too, or it would keep `acked` and the span. Such a
//! record keeps its ticket: a report that still comes makes it final where it lies, and only a
//! failure or the instance's end has it handed over again. So there is no second copy while the
//! process lives; a crash repeats at most what the sink had of the partition.
//!
//! For a flush, a close or a receipt a silent partition is no verdict: they wait for it. One that
//! Kafka doesn't have is a verdict, like a topic that it doesn't have.

use super::{Hold, Holds, Key, PROBE_NS, Phase, Queued};
use crate::flusher::Flusher;
use crate::record::{Lsn, NO_RECEIPT, TopicId};
use crate::report::{Opaque, Reason};
use crate::sequence::{End, Finished, Line};
use crate::sink::{PARTITION_STALLED, UNKNOWN_PARTITION};

/// How long a record of a silent partition may be the first of the span.
const FRONT_NS: u64 = 500_000_000;
/// Most that is held at a time: a caller that makes partitions up must not fill the memory.
const HOLDS_MAX: usize = 1_000;

impl Hold {
    /// Whether a partition is held that Kafka has.
    fn is_silent(&self, key: Key) -> bool {
        key.partition().is_some() && self.reason.name != UNKNOWN_PARTITION
    }

    /// Everything below this number is final.
    fn low(&self) -> Lsn {
        let queued = self.queue.keys().next().copied();
        let early = self.early.first().map(|(lsn, _)| *lsn);
        let beside = self.beside.first().map(|(lsn, _)| *lsn);
        let aside = (self.records > 0).then_some(self.low);
        [queued, early, beside, aside].into_iter().flatten().min().unwrap_or(Lsn(u64::MAX))
    }
}

impl Holds {
    /// Whether where a record of this topic goes decides if it is held.
    pub(in crate::flusher) fn has_partition_of(&self, topic: TopicId) -> bool {
        self.of_topic(topic).any(|(key, _)| key.partition().is_some())
    }

    /// Every record of a silent partition below this number is final.
    pub(in crate::flusher) fn partitions_low(&self) -> Lsn {
        let silent = self.all.iter().filter(|(key, hold)| hold.is_silent(**key));
        silent.map(|(_, hold)| hold.low()).min().unwrap_or(Lsn(u64::MAX))
    }

    /// Whether this is the opaque of a record that the sink had before it was set aside.
    pub(in crate::flusher) fn has_ticket(&self, opaque: Opaque) -> bool {
        !self.tickets.is_empty() && self.tickets.contains_key(&opaque.0)
    }
}

impl Flusher {
    /// The sink takes nothing of this record's partition. False when the record can't be held,
    /// because too much is already.
    #[cold]
    pub(in crate::flusher) fn stalled(
        &mut self,
        now_ns: u64,
        topic: TopicId,
        partition: i32,
        reason: Reason,
        opaque: Opaque,
    ) -> bool {
        let Some((lsn, _)) = self.seq.source_of(opaque) else { return true };
        self.hold_partition(now_ns, topic, partition, reason);
        match self.holds.all.get_mut(&Key::of(topic, Some(partition))) {
            Some(hold) => {
                hold.queue.insert(lsn, Queued { opaque, reason: hold.reason, in_flight: false });
                self.seq.park(opaque);
            }
            None if self.wal.is_some() => return false,
            None => self.give_up(now_ns, opaque, reason.name),
        }
        true
    }

    /// A partition from which nothing is heard, though nobody asks for it, holds up the span.
    pub(in crate::flusher) fn watch_front(&mut self, now_ns: u64) {
        for line in [Line::Main, Line::Live] {
            self.watch_front_of(line, now_ns);
        }
    }

    fn watch_front_of(&mut self, line: Line, now_ns: u64) {
        let Some((lsn, topic, partition)) = self.seq.first_handed(line) else { return };
        let front = &mut self.holds.fronts[line as usize];
        if front.0 != lsn {
            *front = (lsn, now_ns);
        } else if now_ns.saturating_sub(front.1) > FRONT_NS {
            front.1 = now_ns;
            let name = self.name(topic);
            if self.sink.is_stalled(&name, partition) {
                let reason = Reason { name: PARTITION_STALLED, code: 0 };
                self.hold_partition(now_ns, topic, partition, reason);
            }
        }
    }

    /// The partition is held from here on, and what the sink has of it set aside. Without a log
    /// that is given up.
    fn hold_partition(&mut self, now_ns: u64, topic: TopicId, partition: i32, reason: Reason) {
        if self.wal.is_none() {
            for (_, opaque) in self.seq.handed_to(topic, partition) {
                self.give_up(now_ns, opaque, reason.name);
            }
            return;
        }
        if self.holds.all.len() >= HOLDS_MAX
            && !self.holds.all.contains_key(&Key::of(topic, Some(partition)))
        {
            return;
        }
        let unix_ms = self.clock.unix_ms();
        let name = self.name(topic);
        let (holds, key) = (&mut self.holds, Key::of(topic, Some(partition)));
        let mark = holds.mark_of(key);
        let hold = holds.begin(key, || {
            tracing::warn!(topic = %name, partition, reason = reason.name, "the partition is held; its records are set aside until it can be had");
            let mut hold = Hold::new(reason, unix_ms, mark);
            hold.phase = Phase::Held { probe_at_ns: now_ns + PROBE_NS };
            hold
        });
        hold.fall_back(now_ns + PROBE_NS);
        hold.gathers = true;
        self.changed = true;
    }

    /// Queues what the sink has of a partition that is held from now on.
    pub(super) fn gather(&mut self, key: Key) {
        let Some(hold) = self.holds.all.get_mut(&key).filter(|h| h.gathers) else { return };
        hold.gathers = false;
        let Some(partition) = key.partition() else { return };
        for (lsn, opaque) in self.seq.handed_to(key.topic, partition) {
            let queued = Queued { opaque, reason: hold.reason, in_flight: true };
            hold.queue.entry(lsn).or_insert(queued);
        }
    }

    /// The next record of the queue that may be set aside now.
    pub(super) fn next_queued(&mut self, key: Key) -> Option<(Lsn, Queued)> {
        let is_partition = key.partition().is_some();
        loop {
            let hold = self.holds.all.get_mut(&key)?;
            let (lsn, queued) = hold.queue.first_key_value().map(|(lsn, q)| (*lsn, *q))?;
            // What waits to be handed over before it may be held, too.
            if self.seq.waits_before(lsn, queued.opaque) {
                return None;
            }
            // What Kafka owes a report for may fail, and come back.
            if !is_partition && self.seq.owes_before(key.topic, lsn, queued.opaque) {
                return None;
            }
            if !queued.in_flight {
                return Some((lsn, queued));
            }
            if self.seq.is_handed(queued.opaque) {
                // What is out of the span is bounded like what is in it.
                let has_room = self.holds.gathered < self.holds.window;
                return has_room.then_some((lsn, queued));
            }
            // Reported meanwhile, or owed by an instance that is gone.
            hold.queue.remove(&lsn);
        }
    }

    /// A record of what is held is set aside: of a silent partition that is no verdict.
    pub(in crate::flusher) fn finished_aside(&mut self, now_ns: u64, key: Key, finished: Finished) {
        let mut finished = finished;
        if let (End::SetAside(_), Some(at)) = (finished.end, self.holds.placed)
            && finished.receipt != NO_RECEIPT
            && let Some(hold) = self.holds.all.get_mut(&key)
            && hold.is_silent(key)
        {
            hold.receipts.insert(at, finished.receipt);
            finished.receipt = NO_RECEIPT;
        }
        self.finished(now_ns, finished);
    }

    /// Whether a record of a silent partition still waits.
    pub(in crate::flusher) fn partitions_wait(&self) -> bool {
        self.holds.partitions_low() < Lsn(u64::MAX)
    }
}
