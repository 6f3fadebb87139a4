//! Replay from a disk that refuses to read: for a moment, and for ever.

#![allow(clippy::print_stdout)]

use super::tests::TestClock;
use super::{Flusher, Parts};
use crate::config::WalFull;
use crate::keeper::KeeperLink;
use crate::lane::{LaneOptions, Lanes};
use crate::receipt::Receipts;
use crate::record::{Lsn, RecordView, Shape};
use crate::sequence::policy::Timing;
use crate::shared::Shared;
use crate::sink::{MemoryHandle, MemorySink};
use crate::stats::Stats;
use crate::topics::TopicTable;
use crate::wake::Waker;
use crate::wal::{AppendError, MemoryStorage, StorageOp, Wal, WalKeeper, WalOptions, random_salts};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const MS: u64 = 1_000_000;
const RECORDS: u64 = 600;
const NAME: &str = "0000000000000002.wal";

fn options() -> WalOptions {
    WalOptions {
        segment_bytes: 32 << 10,
        set_aside_segment_bytes: 32 << 10,
        wal_bytes_max: Some(1 << 20),
        record_bytes_max: 1024,
        read_buffer_bytes: 4096,
        ..WalOptions::default()
    }
}

/// A backlog over several segments.
fn backlog() -> MemoryStorage {
    let storage = MemoryStorage::new();
    let topics = Arc::new(TopicTable::default());
    let topic = topics.intern("t");
    let opened = Wal::open(Arc::new(storage.clone()), topics, options(), random_salts(), 0);
    let (mut wal, mut keeper, _) = opened.expect("opens");
    for n in 1..=RECORDS {
        let body = [n as u8; 100];
        let shape = Shape { headers_len: 0, key_len: None, value_len: Some(100) };
        let record = RecordView { topic, partition: 0, timestamp_ms: 1, shape, body: &body };
        while let Err(e) = wal.append(Lsn(n), &record) {
            assert_eq!(e, AppendError::NotReady);
            keeper.step(0, None);
        }
    }
    wal.seal();
    keeper.sync_now().expect("synced");
    storage
}

/// A flusher over the backlog, looked at by hand.
struct Rig {
    flusher: Flusher,
    keeper: WalKeeper,
    shared: Arc<Shared>,
    sink: MemoryHandle,
    now_ns: u64,
}

impl Rig {
    fn open(storage: &MemoryStorage) -> Rig {
        let topics = Arc::new(TopicTable::default());
        let shared_storage = Arc::new(storage.clone());
        let (wal, keeper, recovery) =
            Wal::open(shared_storage, topics.clone(), options(), random_salts(), 0).expect("opens");
        assert_eq!(recovery.records, RECORDS);
        let lane =
            LaneOptions { lanes: 1, lane_bytes: 16 << 10, lane_slots: 16, record_bytes_max: 1024 };
        let (lanes, drain) = Lanes::new(&lane).expect("made");
        let waker = Waker::new().expect("made");
        let shared = Arc::new(Shared::new(lanes, topics, Arc::new(Receipts::new(4)), waker));
        let sink = MemorySink::new();
        let handle = sink.handle();
        let flusher = Flusher::new(Parts {
            drain,
            sink: Box::new(sink),
            wal: Some((wal, Arc::new(KeeperLink::new().expect("made")))),
            recovery,
            shared: shared.clone(),
            clock: Arc::new(TestClock::default()),
            timing: Timing {
                flush_interval_ns: 5 * MS,
                flush_records: 100,
                flush_bytes: 1 << 20,
                loss_window_ns: Some(1_000 * MS),
                answer_ns: 0,
            },
            backlog_percent: None,
            in_flight_max_records: 64,
            in_flight_max_bytes: 1 << 20,
            lane_bytes: 16 << 10,
            lane_slots: 16,
            memory_bytes: 0,
            guest: crate::flusher::GuestOptions::default(),
            wal_full: WalFull::Refuse,
        });
        Rig { flusher, keeper, shared, sink: handle, now_ns: 0 }
    }

    fn look(&mut self, times: u32) -> Stats {
        for _ in 0..times {
            self.now_ns += 5 * MS;
            self.flusher.look(self.now_ns);
        }
        let stats = self.shared.published.lock().stats.clone();
        assert!(stats.books.balanced(), "{:?}", stats.books);
        stats
    }
}

#[test]
fn a_read_that_fails_for_a_moment_costs_nothing() {
    let storage = backlog();
    let mut rig = Rig::open(&storage);
    let refused = Arc::new(AtomicU64::new(0));
    let count = refused.clone();
    storage.set_faults(Some(Box::new(move |_, op| {
        let refuse = op == StorageOp::Read;
        count.fetch_add(u64::from(refuse), Ordering::Relaxed);
        refuse.then_some(io::ErrorKind::Other)
    })));
    let stats = rig.look(30);
    assert!(refused.load(Ordering::Relaxed) > 0, "nothing was refused");
    let why = stats.wal.and_then(|w| w.unavailable).expect("a state");
    assert!(why.contains("read"), "{why}");
    storage.set_faults(None);
    let stats = rig.look(400);
    assert_eq!((stats.books.delivered, stats.books.dropped), (RECORDS, 0));
    assert_eq!(stats.wal.and_then(|w| w.unavailable), None, "the state is over");
}

#[test]
fn a_page_that_can_t_be_read_costs_its_records_and_the_rest_is_delivered() {
    for (from, to) in [(8192, 12288), (4096, 8192 * 3), (12288, 12289)] {
        let storage = backlog();
        let mut rig = Rig::open(&storage);
        storage.set_unreadable(NAME, from, to);
        let stats = rig.look(5_000);
        let books = &stats.books;
        let pages = (to - from).div_ceil(4096);
        assert_eq!(books.delivered + books.dropped, RECORDS, "{books:?}");
        assert!(books.dropped > 0 && books.dropped <= pages * 4096 / 160 + 2, "{books:?}");
        let wal = stats.wal.expect("there is one");
        assert_eq!(wal.damaged_records, books.dropped);
        assert_eq!(wal.unavailable, None, "the state is over");
        assert!(wal.findings.iter().any(|f| f.contains("refuses to read")), "{:?}", wal.findings);
        // In order, and nothing twice.
        let values: Vec<u8> =
            rig.sink.records().iter().map(|r| r.value.as_ref().expect("one")[0]).collect();
        let mut due = (1..=RECORDS).map(|n| n as u8);
        assert!(values.iter().all(|v| due.any(|d| d == *v)), "out of order");
        // What could not be read is not removed.
        rig.keeper.step(0, None);
        assert!(storage.contents(NAME).is_none());
        let kept = storage.names().into_iter().find(|n| n.ends_with(".kept"));
        assert_eq!(kept.as_deref(), Some("quarantine/0000000000000002.kept"));
        println!("bytes {from} to {to}: {} delivered, {} lost", books.delivered, books.dropped);
    }
}

#[test]
fn a_segment_that_can_t_be_opened_any_more_costs_itself() {
    let storage = backlog();
    let mut rig = Rig::open(&storage);
    storage.set_unreadable(NAME, 0, 32 << 10);
    let stats = rig.look(5_000);
    let books = &stats.books;
    assert_eq!(books.delivered + books.dropped, RECORDS, "{books:?}");
    assert!(books.dropped > 100 && books.delivered > 300, "{books:?}");
    assert_eq!(books.in_wal, 0);
}
