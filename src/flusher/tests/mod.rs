//! Tests of flusher, keeper and log together over a disk in memory and a sink in memory, step by
//! step on a clock that only the test moves. The books are checked after every look.

#![allow(clippy::print_stdout)]

mod drill;
mod faults;
mod full;
mod held;
mod live;
mod overflow;
mod pace;
mod stalled;

use super::{Flusher, GuestOptions, Parts};
use crate::clock::Clock;
use crate::config::WalFull;
use crate::keeper::{Keeper, KeeperLink};
use crate::lane::{LaneOptions, Lanes, OutRecord};
use crate::receipt::Receipts;
use crate::record::{NO_RECEIPT, TopicId};
use crate::sequence::policy::Timing;
use crate::shared::Shared;
use crate::sink::{MemoryHandle, MemorySink, Sink};
use crate::stats::Stats;
use crate::sync::{AtomicU64, Ordering};
use crate::topics::TopicTable;
use crate::wake::Waker;
use crate::wal::{MemoryStorage, Recovery, Wal, WalOptions};
use std::sync::Arc;

const MS: u64 = 1_000_000;
const LANE_BYTES: usize = 1 << 17;
const VALUE_BYTES: usize = 100;

#[derive(Default)]
pub(super) struct TestClock(AtomicU64);

impl Clock for TestClock {
    fn now_ns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn unix_ms(&self) -> i64 {
        1_700_000_000_000 + (self.now_ns() / MS) as i64
    }
}

/// Every trouble that a snapshot named since this was last cleared.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
struct Seen {
    unavailable: Option<String>,
    aside_unavailable: Option<String>,
    keeper_trouble: Option<String>,
    unsynced: bool,
    full: bool,
    exposed: bool,
}

/// A process on a disk.
struct Machine {
    sink: MemoryHandle,
    flusher: Flusher,
    keeper: Keeper,
    shared: Arc<Shared>,
    clock: Arc<TestClock>,
    topics: [TopicId; 2],
    recovery: Recovery,
    sent: u64,
    seen: Seen,
}

fn options() -> WalOptions {
    WalOptions {
        segment_bytes: 4096,
        set_aside_segment_bytes: 4096,
        wal_bytes_max: Some(1 << 20),
        record_bytes_max: 256,
        sync_interval_ns: 30 * MS,
        read_buffer_bytes: 1024,
        ..WalOptions::default()
    }
}

impl Machine {
    fn open(disk: &MemoryStorage, options: WalOptions, wal_full: WalFull) -> Machine {
        Machine::open_on(disk, options, wal_full, |sink| Box::new(sink))
    }

    /// With a sink that stands before the one in memory.
    fn open_on(
        disk: &MemoryStorage,
        options: WalOptions,
        wal_full: WalFull,
        sink_of: impl FnOnce(MemorySink) -> Box<dyn Sink>,
    ) -> Machine {
        Machine::build(disk, options, wal_full, GuestOptions::default(), 60, None, sink_of)
    }

    fn open_paced(
        disk: &MemoryStorage,
        options: WalOptions,
        wal_full: WalFull,
        guest: GuestOptions,
        loss_window_ms: u64,
    ) -> Machine {
        let sink_of = |sink| -> Box<dyn Sink> { Box::new(sink) };
        Machine::build(disk, options, wal_full, guest, loss_window_ms, None, sink_of)
    }

    fn build(
        disk: &MemoryStorage,
        options: WalOptions,
        wal_full: WalFull,
        guest: GuestOptions,
        loss_window_ms: u64,
        backlog_percent: Option<u8>,
        sink_of: impl FnOnce(MemorySink) -> Box<dyn Sink>,
    ) -> Machine {
        let clock = Arc::new(TestClock::default());
        clock.0.store(1_000 * MS, Ordering::Relaxed);
        let topics = Arc::new(TopicTable::default());
        let ids = [topics.intern("a"), topics.intern("b")];
        let mut salt = 7u64;
        let salts = Box::new(move || {
            salt = salt.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            salt >> 7
        });
        let opened =
            Wal::open(Arc::new(disk.clone()), topics.clone(), options, salts, clock.unix_ms());
        let (wal, wal_keeper, recovery) = opened.expect("the log opens");
        let waker = Waker::new().expect("an eventfd");
        let link = Arc::new(KeeperLink::new().expect("an eventfd"));
        let keeper = Keeper::new(wal_keeper, link.clone(), waker.clone(), clock.clone());
        let lanes = LaneOptions {
            lanes: 1,
            lane_bytes: LANE_BYTES,
            lane_slots: 4096,
            record_bytes_max: 256,
        };
        let (lanes, drain) = Lanes::new(&lanes).expect("memory");
        let shared = Arc::new(Shared::new(lanes, topics, Arc::new(Receipts::new(4)), waker));
        let sink = MemorySink::new();
        let handle = sink.handle();
        let flusher = Flusher::new(Parts {
            drain,
            sink: sink_of(sink),
            wal: Some((wal, link)),
            recovery: recovery.clone(),
            shared: shared.clone(),
            clock: clock.clone(),
            timing: Timing {
                flush_interval_ns: 20 * MS,
                flush_records: 20,
                flush_bytes: 1 << 20,
                loss_window_ns: Some(loss_window_ms * MS),
                answer_ns: 0,
            },
            wal_full,
            guest,
            backlog_percent,
            in_flight_max_records: 64,
            in_flight_max_bytes: 1 << 20,
            lane_bytes: LANE_BYTES as u64,
            lane_slots: 4096,
            memory_bytes: 0,
        });
        Machine {
            sink: handle,
            flusher,
            keeper,
            shared,
            clock,
            topics: ids,
            recovery,
            sent: 0,
            seen: Seen::default(),
        }
    }

    /// Sends the next record: topics take turns, the value begins with its number.
    fn send(&mut self) {
        let mut value = [b'.'; VALUE_BYTES];
        value[..8].copy_from_slice(&self.sent.to_be_bytes());
        let record = OutRecord {
            topic: self.topics[(self.sent % 2) as usize],
            partition: -1,
            timestamp_ms: 1,
            key: None,
            value: Some(&value),
            headers: &[],
            receipt: NO_RECEIPT,
        };
        self.shared.lanes.send_as(0, &record).expect("the lane has room");
        self.sent += 1;
    }

    /// Time passes; the keeper takes a turn; the flusher looks; the snapshot must balance.
    fn step(&mut self, ms: u64) -> Stats {
        let now_ns = self.clock.now_ns() + ms * MS;
        self.clock.0.store(now_ns, Ordering::Relaxed);
        self.keeper.step(now_ns);
        self.flusher.look(now_ns);
        let stats = self.shared.published.lock().stats.clone();
        assert!(stats.books.balanced(), "{:?}", stats.books);
        let in_topics: u64 = stats.topics.iter().map(|t| t.in_wal + t.in_flight).sum();
        let damaged = stats.wal.as_ref().map_or(0, |w| w.damaged_records);
        let known: u64 = stats.topics.iter().map(|t| t.recovered).sum();
        let unknown = stats.books.recovered - known;
        let stand = in_topics + unknown - damaged;
        assert_eq!(stand, stats.books.in_wal + stats.books.in_flight);
        if let Some(wal) = &stats.wal {
            assert!(wal.bytes <= wal.bytes_max, "{} of {}", wal.bytes, wal.bytes_max);
            let seen = &mut self.seen;
            seen.unavailable = wal.unavailable.clone().or(seen.unavailable.take());
            let aside = wal.set_aside_unavailable.clone();
            seen.aside_unavailable = aside.or(seen.aside_unavailable.take());
            seen.keeper_trouble = wal.keeper_trouble.clone().or(seen.keeper_trouble.take());
            seen.unsynced |= wal.segments_unsynced > 0;
            seen.full |= wal.full;
            seen.exposed |= stats.states.exposed;
        }
        stats
    }

    fn run(&mut self, steps: u64, ms: u64) -> Stats {
        (0..steps).map(|_| self.step(ms)).last().expect("at least one step")
    }

    /// Sends `records`, two a step.
    fn send_in_steps(&mut self, records: u64) -> Stats {
        for n in 0..records {
            self.send();
            if n % 2 == 1 {
                self.step(5);
            }
        }
        self.step(5)
    }

    /// Numbers of the records delivered so far, in order.
    fn delivered(&self) -> Vec<u64> {
        let number = |v: &[u8]| u64::from_be_bytes(v[..8].try_into().expect("8 bytes"));
        let records = self.sink.records();
        records.iter().filter_map(|r| r.value.as_deref()).map(number).collect()
    }
}
