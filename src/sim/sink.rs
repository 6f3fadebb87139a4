//! Owns [`SimSink`]: the seam's sink over the model brokers, and what sink and schedule share.

use super::brokers::Brokers;
use super::checker::{Checker, Id, Violation};
use super::rng::Rng;
use crate::record::{ANY_PARTITION, Header, RecordView};
use crate::report::{Opaque, Outcome, Reason, Report, Scope};
use crate::sink::{PARTITION_STALLED, ProduceError, Sink, SinkState};
use parking_lot::Mutex;
use std::sync::Arc;

/// Partitions of both topics together.
pub(super) const PARTITIONS: usize = 4;
const PARTITIONS_PER_TOPIC: usize = 2;
/// The timestamp of record 0.
const FIRST_MS: i64 = 1_000_000;

/// What a record must look like wherever it turns up: all of it follows from its number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub(super) id: Id,
    /// Over both topics.
    pub(super) partition: usize,
    /// No broker ever takes it.
    pub(super) poison: bool,
}

impl Expected {
    pub(super) fn topic(&self) -> usize {
        self.partition / PARTITIONS_PER_TOPIC
    }

    pub(super) fn partition_in_topic(&self) -> i32 {
        (self.partition % PARTITIONS_PER_TOPIC) as i32
    }

    pub(super) fn timestamp_ms(&self) -> i64 {
        FIRST_MS + i64::from(self.id)
    }

    /// Its key chooses the partition; otherwise the sender names it.
    fn is_keyed(&self) -> bool {
        self.id.is_multiple_of(3)
    }

    pub(super) fn partition_asked(&self) -> i32 {
        if self.is_keyed() { ANY_PARTITION } else { self.partition_in_topic() }
    }

    /// Its first byte is the partition that it leads to.
    pub(super) fn key(&self) -> Option<[u8; 3]> {
        let [low, high] = self.id.to_le_bytes();
        let key = [self.partition_in_topic() as u8, low, high];
        (self.is_keyed() || self.id % 3 == 1).then_some(key)
    }

    /// Null in a tombstone.
    pub(super) fn value(&self) -> Option<Vec<u8>> {
        let len = (usize::from(self.id) * 137) % 340;
        let bytes = self.id.to_le_bytes().into_iter().cycle().take(len);
        (!self.id.is_multiple_of(11)).then(|| bytes.collect())
    }

    pub(super) fn header_count(&self) -> usize {
        usize::from(self.id % 4).saturating_sub(1)
    }

    /// The first [`Expected::header_count`] of these are sent.
    pub(super) fn headers(&self) -> [Header<'static>; 2] {
        [Header { name: "null", value: None }, Header { name: "h", value: Some(b"v") }]
    }

    fn is(&self, topic: &str, record: &RecordView<'_>) -> bool {
        topic == TOPICS[self.topic()]
            && record.partition == self.partition_asked()
            && record.timestamp_ms == self.timestamp_ms()
            && record.key() == self.key().as_ref().map(|k| &k[..])
            && record.value() == self.value().as_deref()
            && record.headers().eq(self.headers().into_iter().take(self.header_count()))
    }
}

pub(super) const TOPICS: [&str; 2] = ["even", "odd"];

/// Everything outside the process, and the chance that moves it.
pub(super) struct Outside {
    pub(super) rng: Rng,
    pub(super) brokers: Brokers,
    pub(super) checker: Checker,
    pub(super) expected: Vec<Expected>,
    /// Partitions that answer nothing now.
    pub(super) stalled: [bool; PARTITIONS],
    /// The sink says so, while it serves others.
    pub(super) says_stalled: [bool; PARTITIONS],
    /// Where the last record went, within its topic.
    pub(super) last_partition: i32,
    /// Topics that can't be had are held: there is a log.
    pub(super) holds: bool,
    /// A topic that nobody may write to now.
    pub(super) denied_topic: Option<usize>,
    pub(super) rebuilding: bool,
    /// Reports of this run's process, by what they said.
    pub(super) delivered: u64,
    pub(super) given_up: u64,
    pub(super) violation: Option<Violation>,
    /// Tells what is handed over and reported.
    pub(super) aloud: bool,
}

impl Outside {
    pub(super) fn note(&mut self, result: Result<(), Violation>) {
        if let Err(violation) = result {
            self.violation.get_or_insert(violation);
        }
    }

    /// The partition answers its oldest request by appending it, if it may.
    pub(super) fn append(&mut self, partition: usize) {
        let Outside { brokers, checker, .. } = self;
        let result = brokers.append(partition, checker);
        self.note(result);
    }

    /// Whether the sink takes nothing of a partition, and says it.
    fn is_stalled(&self, partition: usize) -> bool {
        self.holds
            && self.stalled[partition]
            && self.says_stalled[partition]
            && self.brokers.queue_len(partition) > 0
    }

    fn known(&self, topic: &str, record: &RecordView<'_>) -> Option<Expected> {
        let id = usize::try_from(record.timestamp_ms - FIRST_MS).ok()?;
        let expected = self.expected.get(id)?;
        expected.is(topic, record).then_some(*expected)
    }
}

/// The sink of one process.
pub(super) struct SimSink {
    pub(super) outside: Arc<Mutex<Outside>>,
}

fn rejected(scope: Scope) -> ProduceError {
    ProduceError::Rejected { scope, reason: Reason { name: "rejected", code: 2 } }
}

impl Sink for SimSink {
    fn produce(
        &mut self,
        topic: &str,
        record: &RecordView<'_>,
        opaque: Opaque,
    ) -> Result<(), ProduceError> {
        let mut outside = self.outside.lock();
        let o = &mut *outside;
        let Some(expected) = o.known(topic, record) else {
            o.note(Err(format!("{topic}: no record looks like {record:?}")));
            return Err(ProduceError::Busy);
        };
        if o.rebuilding || o.rng.one_in(16) {
            return Err(ProduceError::Busy);
        }
        if o.brokers.is_fatal() {
            return Err(ProduceError::Fatal(Reason { name: "fatal", code: 3 }));
        }
        if o.is_stalled(expected.partition) {
            let reason = Reason { name: PARTITION_STALLED, code: 0 };
            let partition = expected.partition_in_topic();
            return Err(ProduceError::Stalled { partition, reason });
        }
        if o.stalled[expected.partition] && o.brokers.queue_len(expected.partition) > 1 {
            return Err(ProduceError::Busy);
        }
        let is_denied = o.denied_topic == Some(expected.topic());
        if is_denied || (expected.poison && o.rng.one_in(2)) {
            if o.aloud {
                println!("               rejected {} of {opaque:?}", expected.id);
            }
            if !is_denied || !o.holds {
                o.checker.refused(expected.id);
                o.given_up += 1;
            }
            return Err(rejected(if is_denied { Scope::Topic } else { Scope::Record }));
        }
        if o.aloud {
            println!("               handed {} as {opaque:?}", expected.id);
        }
        let handed = o.checker.handed(expected.id, opaque);
        o.note(handed);
        o.brokers.hand(expected.partition, expected.id, opaque);
        o.last_partition = expected.partition_in_topic();
        Ok(())
    }

    fn last_partition(&self) -> i32 {
        self.outside.lock().last_partition
    }

    fn partition_of(&self, topic: &str, record: &RecordView<'_>) -> Option<i32> {
        self.outside.lock().known(topic, record).map(|e| e.partition_in_topic())
    }

    fn is_stalled(&self, topic: &str, partition: i32) -> bool {
        let of_topic = TOPICS.iter().position(|t| *t == topic).unwrap_or(0);
        let partition = of_topic * PARTITIONS_PER_TOPIC + partition as usize;
        self.outside.lock().is_stalled(partition)
    }

    fn serve(&mut self, _now_ns: u64, reports: &mut Vec<Report>) {
        let mut outside = self.outside.lock();
        let o = &mut *outside;
        let first = o.rng.below(PARTITIONS as u64) as usize;
        for p in (first..PARTITIONS).chain(0..first) {
            while o.brokers.has_report(p) && !o.rng.one_in(4) {
                let Some(report) = o.brokers.report(p, &mut o.checker) else { break };
                if o.aloud {
                    println!("               {report:?}");
                }
                match report.outcome {
                    Outcome::Delivered => o.delivered += 1,
                    Outcome::Failed { scope: Scope::Topic, .. } if o.holds => {}
                    Outcome::Failed {
                        scope: Scope::Record | Scope::Topic | Scope::Batch, ..
                    } => {
                        o.given_up += 1;
                    }
                    Outcome::Failed { .. } => {}
                }
                reports.push(report);
            }
        }
    }

    fn state(&self) -> SinkState {
        let o = self.outside.lock();
        SinkState {
            connected: true,
            topics_known: true,
            fatal: (o.brokers.is_fatal() && !o.rebuilding).then(|| "fatal".to_owned()),
            rebuilding: o.rebuilding,
            outstanding_records: o.brokers.outstanding() as u64,
            ..SinkState::default()
        }
    }

    fn hurry(&mut self) {}

    fn rebuild(&mut self, _now_ns: u64) {
        self.outside.lock().rebuilding = true;
    }

    fn close(&mut self) {}
}
