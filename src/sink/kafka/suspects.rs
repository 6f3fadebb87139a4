//! Owns what becomes of a topic whose request was refused as a whole: which of its records are
//! tried together, in ever smaller groups, until the culprit stands alone. Pure: no librdkafka,
//! no clock.
//!
//! Why: a request over the topic's `max.message.bytes` fails every record in it, though none may
//! be too large alone, and a permanent error stops the whole (idempotent) instance that it
//! happens on until everything in flight is answered. So the records of such a request, and the
//! topic's next ones, go through an instance of their own, one group a partition at a time.
//!
//! What the main instance refused comes first, then what came later, in order; a partition's
//! turn begins when the main instance has nothing of it in flight any more.

use crate::record::{RecordView, Shape, TopicId};
use std::collections::{BTreeMap, VecDeque};

/// Most records that wait here for one topic; then it is busy. What was refused comes on top: the
/// span bounds it.
const RECORDS_MAX: usize = 16_384;
/// Their bytes.
const BYTES_MAX: u64 = 8 << 20;
/// Most records in a group.
const GROUP_RECORDS: usize = 1_000;
/// Most bytes in a group that holds more than one record.
const GROUP_BYTES: u64 = 512 << 10;

/// A record of ours, copied: the report's own bytes go with the report.
pub(super) struct Suspect {
    pub opaque: u64,
    pub timestamp_ms: i64,
    pub shape: Shape,
    pub body: Box<[u8]>,
}

impl Suspect {
    pub fn new(opaque: u64, record: &RecordView<'_>) -> Suspect {
        let RecordView { timestamp_ms, shape, body, .. } = *record;
        Suspect { opaque, timestamp_ms, shape, body: body.into() }
    }

    pub fn view(&self, partition: i32) -> RecordView<'_> {
        RecordView {
            topic: TopicId(0),
            partition,
            timestamp_ms: self.timestamp_ms,
            shape: self.shape,
            body: &self.body,
        }
    }

    /// What it takes in a request, about.
    fn bytes(&self) -> u64 {
        self.body.len() as u64 + super::producer::RECORD_OVERHEAD_BYTES
    }
}

/// How one of a group ended on the side instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Not one of ours.
    Unknown,
    /// What the report says is final.
    Final,
    /// It failed alone.
    Guilty,
    /// It failed in company, and is tried again.
    Again,
}

#[derive(Default)]
struct Lane {
    /// To be tried first.
    failed: VecDeque<Suspect>,
    queue: VecDeque<Suspect>,
    /// Handed over and unreported, in order.
    flying: VecDeque<Suspect>,
    again: VecDeque<Suspect>,
    /// Of the group that is on its way.
    group_records: usize,
    group_bytes: u64,
    /// Most records in the next one.
    records_max: usize,
}

impl Lane {
    fn is_empty(&self) -> bool {
        self.failed.is_empty() && self.queue.is_empty() && !self.is_flying()
    }

    fn is_flying(&self) -> bool {
        !(self.flying.is_empty() && self.again.is_empty())
    }

    /// The group is answered: what failed in company goes back to the front.
    fn land(&mut self, bad_bytes: &mut u64) {
        if self.again.is_empty() {
            self.records_max = (self.records_max.max(1) * 2).min(GROUP_RECORDS);
            return;
        }
        // librdkafka may have made several requests of it; at least one of them was refused.
        if self.again.len() == self.group_records {
            *bad_bytes = (*bad_bytes).min(self.group_bytes);
        }
        self.records_max = (self.again.len() / 2).max(1);
        while let Some(suspect) = self.again.pop_back() {
            self.failed.push_front(suspect);
        }
    }
}

/// One topic's suspects.
pub(super) struct Suspects {
    lanes: BTreeMap<i32, Lane>,
    /// Records that wait or fly.
    records: usize,
    bytes: u64,
    /// The least that a group which failed as a whole had: below that it is likely to pass.
    bad_bytes: u64,
    /// When a request failed last.
    pub failed_ns: u64,
}

impl Suspects {
    pub fn new(now_ns: u64) -> Suspects {
        let lanes = BTreeMap::new();
        Suspects { lanes, records: 0, bytes: 0, bad_bytes: u64::MAX, failed_ns: now_ns }
    }

    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    pub fn has_room(&self) -> bool {
        self.records < RECORDS_MAX && self.bytes < BYTES_MAX
    }

    /// A record that the main instance reported as refused.
    pub fn refused(&mut self, partition: i32, suspect: Suspect) {
        self.lane(partition, &suspect).failed.push_back(suspect);
    }

    /// A new record of the topic.
    pub fn push(&mut self, partition: i32, suspect: Suspect) {
        self.lane(partition, &suspect).queue.push_back(suspect);
    }

    fn lane(&mut self, partition: i32, suspect: &Suspect) -> &mut Lane {
        self.records += 1;
        self.bytes += suspect.bytes();
        let fresh = || Lane { records_max: GROUP_RECORDS, ..Lane::default() };
        self.lanes.entry(partition).or_insert_with(fresh)
    }

    /// Partitions whose next group may go.
    pub fn idle(&self) -> impl Iterator<Item = i32> + '_ {
        let idle = |lane: &Lane| !lane.is_flying() && !lane.is_empty();
        self.lanes.iter().filter(move |(_, lane)| idle(lane)).map(|(partition, _)| *partition)
    }

    /// Hands the partition's next group over, one by one, in order. `hand` says false when the
    /// instance takes no more: the rest waits for the next time.
    pub fn hand_over(&mut self, partition: i32, mut hand: impl FnMut(&Suspect) -> bool) {
        let Some(lane) = self.lanes.get_mut(&partition) else { return };
        let (mut records, mut bytes) = (0, 0);
        let bytes_max = GROUP_BYTES.min(self.bad_bytes);
        loop {
            let from = if lane.failed.is_empty() { &mut lane.queue } else { &mut lane.failed };
            let Some(next) = from.front() else { break };
            let more = bytes + next.bytes();
            if records > 0 && (records >= lane.records_max || more >= bytes_max) {
                break;
            }
            if !hand(next) {
                break;
            }
            (records, bytes) = (records + 1, more);
            lane.flying.extend(from.pop_front());
        }
        lane.group_records = records;
        lane.group_bytes = bytes;
    }

    /// A report of the side instance came. `refused`: its request was.
    pub fn reported(&mut self, partition: i32, opaque: u64, refused: bool, now_ns: u64) -> Verdict {
        let Some(lane) = self.lanes.get_mut(&partition) else { return Verdict::Unknown };
        let Some(at) = lane.flying.iter().position(|s| s.opaque == opaque) else {
            return Verdict::Unknown;
        };
        let Some(suspect) = lane.flying.remove(at) else { return Verdict::Unknown };
        let bytes = suspect.bytes();
        if refused {
            self.failed_ns = now_ns;
        }
        let verdict = match refused {
            true if lane.group_records > 1 => {
                lane.again.push_back(suspect);
                Verdict::Again
            }
            true => {
                self.bad_bytes = self.bad_bytes.min(lane.group_bytes);
                Verdict::Guilty
            }
            false => Verdict::Final,
        };
        if verdict != Verdict::Again {
            self.records -= 1;
            self.bytes -= bytes;
        }
        if lane.flying.is_empty() {
            lane.land(&mut self.bad_bytes);
        }
        verdict
    }

    /// Takes out one that the instance refused at the call.
    pub fn take_front(&mut self, partition: i32) -> Option<Suspect> {
        let lane = self.lanes.get_mut(&partition)?;
        let suspect = lane.failed.pop_front().or_else(|| lane.queue.pop_front())?;
        self.records -= 1;
        self.bytes -= suspect.bytes();
        Some(suspect)
    }
}

#[cfg(test)]
#[allow(clippy::print_stdout)] // Tests print their counts.
mod tests {
    use super::*;

    fn suspect(opaque: u64, bytes: usize) -> Suspect {
        let shape = Shape { headers_len: 0, key_len: None, value_len: Some(bytes as u32) };
        Suspect { opaque, timestamp_ms: 1, shape, body: vec![0; bytes].into() }
    }

    /// A broker that refuses a request of `limit` bytes or more, and one that holds a bad record.
    fn drain(suspects: &mut Suspects, limit: u64, bad: &[u64]) -> (Vec<u64>, Vec<u64>, u32) {
        let (mut delivered, mut guilty, mut requests) = (Vec::new(), Vec::new(), 0);
        while !suspects.is_empty() {
            for partition in suspects.idle().collect::<Vec<_>>() {
                let mut group = Vec::new();
                suspects.hand_over(partition, |s| {
                    group.push((s.opaque, s.bytes()));
                    true
                });
                requests += 1;
                let total: u64 = group.iter().map(|g| g.1).sum();
                let refused = total >= limit || group.iter().any(|g| bad.contains(&g.0));
                for (opaque, _) in group {
                    match suspects.reported(partition, opaque, refused, 1) {
                        Verdict::Final => delivered.push(opaque),
                        Verdict::Guilty => guilty.push(opaque),
                        Verdict::Again => {}
                        Verdict::Unknown => panic!("{opaque}"),
                    }
                }
            }
        }
        (delivered, guilty, requests)
    }

    #[test]
    fn a_batch_that_is_too_large_as_a_whole_loses_nothing_and_keeps_its_order() {
        let mut suspects = Suspects::new(0);
        for opaque in 0..300 {
            suspects.refused(0, suspect(opaque, 1_000));
        }
        let (delivered, guilty, requests) = drain(&mut suspects, 20_000, &[]);
        assert_eq!(delivered, (0..300).collect::<Vec<_>>());
        assert!(guilty.is_empty());
        println!("300 records of 1 KB under a limit of 20,000: {requests} requests");
    }

    #[test]
    fn exactly_the_guilty_are_found() {
        let mut suspects = Suspects::new(0);
        for opaque in 0..1_000 {
            let bytes = if opaque % 100 == 37 { 50_000 } else { 100 };
            suspects.push(0, suspect(opaque, bytes));
        }
        let bad: Vec<u64> = (0..1_000).filter(|n| n % 250 == 3).collect();
        let (delivered, guilty, requests) = drain(&mut suspects, 20_000, &bad);
        let is_bad = |n: &u64| n % 100 == 37 || bad.contains(n);
        assert_eq!(guilty, (0..1_000).filter(is_bad).collect::<Vec<_>>());
        assert_eq!(delivered, (0..1_000).filter(|n| !is_bad(n)).collect::<Vec<_>>());
        println!("{} guilty of 1000: {requests} requests", guilty.len());
    }

    #[test]
    fn partitions_do_not_wait_for_each_other_and_an_unknown_report_is_none_of_ours() {
        let mut suspects = Suspects::new(0);
        suspects.refused(0, suspect(1, 10));
        suspects.push(1, suspect(2, 10));
        assert_eq!(suspects.idle().collect::<Vec<_>>(), [0, 1]);
        suspects.hand_over(0, |_| true);
        assert_eq!(suspects.idle().collect::<Vec<_>>(), [1]);
        assert_eq!(suspects.reported(0, 9, false, 1), Verdict::Unknown);
        assert_eq!(suspects.reported(0, 1, false, 1), Verdict::Final);
        suspects.hand_over(1, |_| false);
        assert_eq!(suspects.take_front(1).map(|s| s.opaque), Some(2));
        assert!(suspects.is_empty() && suspects.has_room());
    }
}
