//! Owns one machine of the simulation: a disk, and the process that runs on it now. The very
//! lanes, flusher, keeper and log, driven step by step on a clock that only the schedule moves.

use super::checker::Violation;
use super::sink::{Outside, SimSink, TOPICS};
use crate::clock::Clock;
use crate::error::SendError;
use crate::flusher::{Flusher, GuestOptions, Parts};
use crate::keeper::{Keeper, KeeperLink};
use crate::lane::{LaneOptions, OutRecord};
use crate::receipt::Receipts;
use crate::record::TopicId;
use crate::sequence::Broken;
use crate::sequence::policy::Timing;
use crate::shared::Shared;
use crate::stats::Stats;
use crate::sync::{AtomicU64, Ordering};
use crate::topics::TopicTable;
use crate::wake::Waker;
use crate::wal::{MemoryStorage, Recovery, Wal, WalOptions};
use parking_lot::Mutex;
use std::sync::Arc;

/// What happens elsewhere while somebody waits: given the time, returns the time after it.
pub(super) type Meanwhile = Box<dyn FnMut(u64) -> u64 + Send>;

/// Time as the schedule sets it. Where the code under test waits by itself, in closing, each look
/// at the clock lets the rest of the world go on.
#[derive(Default)]
pub(super) struct SimClock {
    ns: AtomicU64,
    meanwhile: Mutex<Option<Meanwhile>>,
}

impl SimClock {
    pub(super) fn set(&self, ns: u64) {
        self.ns.store(ns, Ordering::Relaxed);
    }

    pub(super) fn let_go_on(&self, meanwhile: Option<Meanwhile>) {
        *self.meanwhile.lock() = meanwhile;
    }
}

impl Clock for SimClock {
    fn now_ns(&self) -> u64 {
        let now_ns = self.ns.load(Ordering::Relaxed);
        match &mut *self.meanwhile.lock() {
            None => now_ns,
            Some(meanwhile) => {
                let later = meanwhile(now_ns);
                self.set(later);
                later
            }
        }
    }

    fn unix_ms(&self) -> i64 {
        1_700_000_000_000 + (self.ns.load(Ordering::Relaxed) / 1_000_000) as i64
    }
}

/// What a machine is set up with; drawn once a schedule.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) timing: Timing,
    pub(super) in_flight_max_records: usize,
    pub(super) with_log: bool,
    pub(super) segment_bytes: u64,
    pub(super) sync_interval_ns: u64,
    pub(super) lane_slots: usize,
    /// The pace of its replay.
    pub(super) guest: GuestOptions,
    /// Live records first: what the backlog may take of the span.
    pub(super) backlog_percent: Option<u8>,
    /// Rules that are switched off.
    pub(super) broken: Broken,
}

pub(super) const LANES: usize = 2;
const LANE_BYTES: usize = 4096;
const RECORD_BYTES_MAX: usize = 400;

/// One process on the disk.
pub(super) struct Process {
    /// Shared with whatever goes on while the keeper uses the disk.
    pub(super) flusher: Arc<Mutex<Flusher>>,
    pub(super) keeper: Option<Keeper>,
    pub(super) shared: Arc<Shared>,
    topics: [TopicId; 2],
}

impl Process {
    /// Opens what is on the disk. `None` when a crash interrupted it.
    pub(super) fn open(
        setup: &Setup,
        disk: &MemoryStorage,
        outside: &Arc<Mutex<Outside>>,
        clock: &Arc<SimClock>,
        salt: u64,
    ) -> Result<Option<(Process, Recovery)>, Violation> {
        let topics = Arc::new(TopicTable::default());
        // Interned in another order than in the last run, so that ids mean nothing on disk.
        let mut ids = [TopicId(0); 2];
        for i in if salt.is_multiple_of(2) { [0, 1] } else { [1, 0] } {
            ids[i] = topics.intern(TOPICS[i]);
        }
        let clock: Arc<dyn Clock> = clock.clone();
        let mut wal = None;
        let mut recovery = Recovery::default();
        let waker = Waker::new().map_err(|e| e.to_string())?;
        let link = Arc::new(KeeperLink::new().map_err(|e| e.to_string())?);
        let mut keeper = None;
        if setup.with_log {
            let options = WalOptions {
                segment_bytes: setup.segment_bytes,
                set_aside_segment_bytes: setup.segment_bytes,
                wal_bytes_max: None,
                record_bytes_max: RECORD_BYTES_MAX as u32,
                sync_interval_ns: setup.sync_interval_ns,
                read_buffer_bytes: 4096,
                ..WalOptions::default()
            };
            let mut salts = super::rng::Rng::new(salt);
            let salts = Box::new(move || salts.next());
            let opened =
                Wal::open(Arc::new(disk.clone()), topics.clone(), options, salts, clock.unix_ms());
            let (log, log_keeper, found) = match opened {
                Ok(opened) => opened,
                Err(_) if disk.crashed() => return Ok(None),
                Err(e) => return Err(format!("the directory can't be opened: {e}")),
            };
            if disk.crashed() {
                return Ok(None);
            }
            recovery = found;
            keeper = Some(Keeper::new(log_keeper, link.clone(), waker.clone(), clock.clone()));
            wal = Some((log, link));
        }
        let lanes = LaneOptions {
            lanes: LANES,
            lane_bytes: LANE_BYTES,
            lane_slots: setup.lane_slots,
            record_bytes_max: RECORD_BYTES_MAX,
        };
        let (lanes, drain) = crate::lane::Lanes::new(&lanes).map_err(|e| e.to_string())?;
        let receipts = Arc::new(Receipts::new(4));
        let shared = Arc::new(Shared::new(lanes, topics, receipts, waker));
        let mut flusher = Flusher::new(Parts {
            drain,
            sink: Box::new(SimSink { outside: outside.clone() }),
            wal,
            recovery: recovery.clone(),
            shared: shared.clone(),
            clock,
            timing: setup.timing,
            wal_full: crate::config::WalFull::Refuse,
            guest: setup.guest,
            backlog_percent: setup.backlog_percent,
            in_flight_max_records: setup.in_flight_max_records,
            in_flight_max_bytes: 1 << 20,
            lane_bytes: LANE_BYTES as u64,
            lane_slots: setup.lane_slots as u64,
            memory_bytes: 0,
        });
        flusher.break_rules(setup.broken);
        let flusher = Arc::new(Mutex::new(flusher));
        Ok(Some((Process { flusher, keeper, shared, topics: ids }, recovery)))
    }

    pub(super) fn send(
        &self,
        thread: usize,
        expected: &super::sink::Expected,
    ) -> Result<(), SendError> {
        let (key, value) = (expected.key(), expected.value());
        let headers = expected.headers();
        self.shared.lanes.send_as(
            thread % LANES,
            &OutRecord {
                topic: self.topics[expected.topic()],
                partition: expected.partition_asked(),
                timestamp_ms: expected.timestamp_ms(),
                key: key.as_ref().map(|k| &k[..]),
                value: value.as_deref(),
                headers: &headers[..expected.header_count()],
                receipt: crate::record::NO_RECEIPT,
            },
        )
    }

    pub(super) fn stats(&self) -> Stats {
        self.shared.published.lock().stats.clone()
    }
}
