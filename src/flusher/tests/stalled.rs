//! A partition that is silent while others are served: nobody waits behind it, nothing of it is lost
//! or comes twice, and it comes back in order.

use super::*;
use crate::record::RecordView;
use crate::report::{Opaque, Reason, Report};
use crate::sink::{PARTITION_STALLED, ProduceError, Sink, SinkState, UNKNOWN_PARTITION};
use crate::sync::AtomicBool;

/// The partition of topic `b` that may be silent.
const SILENT: i32 = 1;
/// Records of it that the sink takes ahead of its answers.
const AHEAD: usize = 3;

/// A sink in memory with a partition that can be silent.
struct Silent {
    inner: MemorySink,
    is_silent: Arc<AtomicBool>,
    /// Whether it finds another partition for what the silent one doesn't take.
    chooses: bool,
    kept: Vec<(Opaque, Vec<u8>)>,
    last_partition: i32,
    reason: Reason,
}

impl Silent {
    fn is_silent(&self) -> bool {
        self.is_silent.load(Ordering::Relaxed)
    }
}

impl Sink for Silent {
    fn produce(
        &mut self,
        topic: &str,
        record: &RecordView<'_>,
        opaque: Opaque,
    ) -> Result<(), ProduceError> {
        self.last_partition = if topic == "b" { SILENT } else { 0 };
        if topic == "b" && self.is_silent() {
            if self.kept.len() < AHEAD {
                self.kept.push((opaque, record.body.to_vec()));
                return Ok(());
            }
            if !self.chooses {
                return Err(ProduceError::Stalled { partition: SILENT, reason: self.reason });
            }
            self.last_partition = 2;
        }
        self.inner.produce(topic, record, opaque)
    }

    fn last_partition(&self) -> i32 {
        self.last_partition
    }

    fn is_stalled(&self, topic: &str, partition: i32) -> bool {
        topic == "b" && partition == SILENT && self.kept.len() == AHEAD
    }

    fn serve(&mut self, now_ns: u64, reports: &mut Vec<Report>) {
        if !self.is_silent() {
            let shape = crate::record::Shape {
                headers_len: 0,
                key_len: None,
                value_len: Some(VALUE_BYTES as u32),
            };
            for (opaque, body) in self.kept.drain(..) {
                let topic = TopicId(1);
                let view = RecordView { topic, partition: -1, timestamp_ms: 1, shape, body: &body };
                self.inner.produce("b", &view, opaque).expect("it takes all");
            }
        }
        self.inner.serve(now_ns, reports);
    }

    fn state(&self) -> SinkState {
        self.inner.state()
    }

    fn hurry(&mut self) {}

    fn rebuild(&mut self, now_ns: u64) {
        self.inner.rebuild(now_ns);
    }

    fn close(&mut self) {
        self.inner.close();
    }
}

/// Sends several spans while a partition is silent, then lets it answer.
fn head_of_line(chooses: bool) {
    let reason = Reason { name: PARTITION_STALLED, code: 0 };
    let is_silent = Arc::new(AtomicBool::new(false));
    let flag = is_silent.clone();
    let sink = |inner| -> Box<dyn Sink> {
        Box::new(Silent {
            inner,
            is_silent: flag,
            chooses,
            kept: Vec::new(),
            last_partition: 0,
            reason,
        })
    };
    let mut m = Machine::open_on(&MemoryStorage::new(), options(), WalFull::Refuse, sink);
    m.send_in_steps(40);
    let healthy = m.run(4, 20);
    assert!(healthy.held.is_empty() && healthy.books.delivered == 40, "{healthy:?}");
    is_silent.store(true, Ordering::Relaxed);
    m.send_in_steps(400);
    let stats = m.run(100, 20);
    let of_a = m.delivered().iter().filter(|n| *n % 2 == 0).count();
    assert_eq!(of_a, 220, "all of the other topic: {stats:?}");
    let held: Vec<_> =
        stats.held.iter().map(|h| (h.topic.as_str(), h.partition, h.records)).collect();
    let records = if chooses { AHEAD as u64 } else { 200 };
    assert_eq!(held, [("b", Some(SILENT), records)]);
    assert_eq!(stats.books.set_aside, records);
    is_silent.store(false, Ordering::Relaxed);
    let stats = m.run(40, 20);
    assert!(stats.held.is_empty(), "{stats:?}");
    let books = stats.books;
    assert_eq!((books.delivered, books.set_aside, books.duplicates_possible), (440, 0, 0));
    let mut all = m.delivered();
    let of_b: Vec<u64> = all.iter().copied().filter(|n| n % 2 == 1).collect();
    if !chooses {
        assert!(of_b.is_sorted(), "{of_b:?}");
    }
    all.sort_unstable();
    assert_eq!(all, (0..440).collect::<Vec<_>>());
    println!("chooses {chooses}: {of_a} of the other topic meanwhile, {records} held, 440 in all");
}

#[test]
fn a_silent_partition_stops_nobody_and_comes_back_in_order() {
    head_of_line(false);
}

#[test]
fn a_silent_partition_that_nobody_asks_for_does_not_keep_the_span() {
    head_of_line(true);
}

/// A sink in memory whose topic `b` doesn't have the partition that is asked for, until it grows.
struct Growing {
    inner: MemorySink,
    has_grown: Arc<AtomicBool>,
    /// Whether every record asks for another one.
    all_differ: bool,
}

impl Sink for Growing {
    fn produce(
        &mut self,
        topic: &str,
        record: &RecordView<'_>,
        opaque: Opaque,
    ) -> Result<(), ProduceError> {
        match self.partition_of(topic, record) {
            Some(partition) if !self.has_grown.load(Ordering::Relaxed) => {
                let reason = Reason { name: UNKNOWN_PARTITION, code: -190 };
                Err(ProduceError::Stalled { partition, reason })
            }
            _ => self.inner.produce(topic, record, opaque),
        }
    }

    fn partition_of(&self, topic: &str, record: &RecordView<'_>) -> Option<i32> {
        let of_record = || u64::from_be_bytes(record.body[..8].try_into().expect("8 bytes")) as i32;
        (topic == "b").then(|| if self.all_differ { of_record() } else { SILENT })
    }

    fn serve(&mut self, now_ns: u64, reports: &mut Vec<Report>) {
        self.inner.serve(now_ns, reports);
    }

    fn state(&self) -> SinkState {
        self.inner.state()
    }

    fn hurry(&mut self) {}

    fn rebuild(&mut self, now_ns: u64) {
        self.inner.rebuild(now_ns);
    }

    fn close(&mut self) {
        self.inner.close();
    }
}

fn growing(all_differ: bool) -> (Machine, Arc<AtomicBool>) {
    let has_grown = Arc::new(AtomicBool::new(false));
    let flag = has_grown.clone();
    let sink =
        |inner| -> Box<dyn Sink> { Box::new(Growing { inner, has_grown: flag, all_differ }) };
    let options = WalOptions { wal_bytes_max: Some(1 << 24), ..options() };
    (Machine::open_on(&MemoryStorage::new(), options, WalFull::Refuse, sink), has_grown)
}

#[test]
fn a_partition_that_kafka_does_not_have_is_held_until_it_has_it() {
    let (mut m, has_grown) = growing(false);
    m.send_in_steps(100);
    let stats = m.run(10, 20);
    let held: Vec<_> = stats.held.iter().map(|h| (h.partition, h.reason, h.records)).collect();
    assert_eq!(held, [(Some(SILENT), "unknown_partition", 50)]);
    assert_eq!((stats.books.delivered, stats.books.set_aside), (50, 50));
    assert!(!m.flusher.partitions_wait(), "nobody waits for what may never be");
    has_grown.store(true, Ordering::Relaxed);
    m.send_in_steps(20);
    let stats = m.run(40, 20);
    assert!(stats.held.is_empty(), "{stats:?}");
    assert_eq!((stats.books.delivered, stats.books.set_aside), (120, 0));
    let of_b: Vec<u64> = m.delivered().into_iter().filter(|n| n % 2 == 1).collect();
    assert!(of_b.len() == 60 && of_b.is_sorted(), "{of_b:?}");
    println!("60 of a partition that was made later, in order");
}

#[test]
fn partitions_that_are_made_up_do_not_fill_the_memory() {
    let (mut m, has_grown) = growing(true);
    m.send_in_steps(2_200);
    let stats = m.run(10, 20);
    assert_eq!((stats.held.len(), stats.books.set_aside), (1_000, 1_100));
    has_grown.store(true, Ordering::Relaxed);
    let stats = m.run(100, 20);
    assert!(stats.held.is_empty(), "{:?}", stats.held);
    assert_eq!((stats.books.delivered, stats.books.set_aside), (2_100, 100));
    println!("1,000 partitions held, 100 dead letters beyond them");
}
