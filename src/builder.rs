//! Owns how a pipeline is put together: the settings that users name, and `open`.

use crate::clock::{Clock, SystemClock};
use crate::config::{Config, Order, Overflow, Partitioner, WalFull};
use crate::error::OpenError;
use crate::flusher::{Flusher, GuestOptions, Parts};
use crate::keeper::{Keeper, KeeperLink};
use crate::lane::{LaneOptions, Lanes};
use crate::pipeline::{Pipeline, Threads};
use crate::receipt::Receipts;
use crate::sequence::policy::Timing;
use crate::shared::Shared;
use crate::sink::Sink;
use crate::topics::TopicTable;
use crate::wake::Waker;
use crate::wal::{FileStorage, Recovery, Storage, Wal, WalKeeper, WalOptions, random_salts};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// With [`Overflow::Refuse`]: how long Kafka may leave what it has unanswered.
const ANSWER_NS: u64 = 200_000_000;

/// Settings of a pipeline; made by [`Pipeline::builder`], ended by [`Builder::open`].
///
/// Every setting has a default but two: the brokers, and what happens when Kafka can't keep
/// up, [`Builder::wal_dir`] or [`Builder::at_most_once`].
#[must_use = "nothing is opened before open()"]
#[derive(Default)]
pub struct Builder {
    config: Config,
    sink: Option<Box<dyn Sink>>,
    storage: Option<Arc<dyn Storage>>,
}

impl Pipeline {
    /// Settings for a new pipeline.
    pub fn builder() -> Builder {
        Builder::default()
    }
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.config.fmt(f)
    }
}

impl Builder {
    /// The brokers to start from: `host:port`, several separated by commas.
    pub fn brokers(mut self, brokers: impl Into<String>) -> Self {
        self.config.brokers = brokers.into();
        self
    }

    /// Spill into a write-ahead log in this directory when Kafka can't keep up: at-least-once.
    /// The directory is made if it isn't there, for its owner only; one process at a time.
    ///
    /// A crash of the process loses at most what came within [`Builder::loss_window`].
    pub fn wal_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.config.wal_dir = Some(dir.into());
        self
    }

    /// No log: a full lane refuses, typed and counted. A crash loses everything that Kafka has
    /// not acknowledged, and an outage fills the lanes within their size.
    pub fn at_most_once(mut self) -> Self {
        self.config.at_most_once = true;
        self
    }

    /// Longest a record waits for a batch. Default 500 ms, or half the loss window if that is
    /// shorter. 1 ms to 60 s.
    pub fn flush_interval(mut self, interval: Duration) -> Self {
        self.config.flush_interval = Some(interval);
        self
    }

    /// Records that wait before they are sent without waiting longer. Default 20,000.
    pub fn flush_records(mut self, records: usize) -> Self {
        self.config.flush_records = records;
        self
    }

    /// Bytes that wait before they are sent without waiting longer. Default 2 MiB.
    pub fn flush_bytes(mut self, bytes: usize) -> Self {
        self.config.flush_bytes = bytes;
        self
    }

    /// Oldest a record may get that is neither final nor in the log: what a crash may lose.
    /// Default 1 s; 20 ms to 1 h. Zero journals every record before it is sent. Without effect
    /// without a log.
    pub fn loss_window(mut self, window: Duration) -> Self {
        self.config.loss_window = Some(window);
        self
    }

    /// Journal only under pressure, never by age: a crash may lose whatever is in flight.
    pub fn no_loss_window(mut self) -> Self {
        self.config.loss_window = None;
        self
    }

    /// Longest that the log's bytes stay unsynced: what a power cut may lose beyond the loss
    /// window. Default 500 ms.
    pub fn sync_interval(mut self, interval: Duration) -> Self {
        self.config.sync_interval = interval;
        self
    }

    /// Most records between the oldest unacknowledged and the newest handed over. Default
    /// 131,072. Also the bound on duplicates after a crash.
    pub fn in_flight_max_records(mut self, records: usize) -> Self {
        self.config.in_flight_max_records = records;
        self
    }

    /// Most bytes of them. Default 64 MiB.
    pub fn in_flight_max_bytes(mut self, bytes: usize) -> Self {
        self.config.in_flight_max_bytes = bytes;
        self
    }

    /// Largest record: key, value and headers together. Default 1,000,000 bytes; at most an
    /// eighth of [`Builder::lane_bytes`].
    pub fn record_bytes_max(mut self, bytes: usize) -> Self {
        self.config.record_bytes_max = bytes;
        self
    }

    /// Lanes; threads share them in turn. Default: the next power of two at or above twice the
    /// cores, at most 16. A power of two up to 64.
    pub fn lanes(mut self, lanes: usize) -> Self {
        self.config.lanes = lanes;
        self
    }

    /// Memory of each lane in bytes, taken at open. Default 8 MiB; a power of two.
    pub fn lane_bytes(mut self, bytes: usize) -> Self {
        self.config.lane_bytes = bytes;
        self
    }

    /// Records that each lane holds. Default 65,536; a power of two.
    pub fn lane_slots(mut self, slots: usize) -> Self {
        self.config.lane_slots = slots;
        self
    }

    /// Sizes the lanes for a peak that one thread may reach: half a lane then holds what comes
    /// in 40 ms (the longest look and 20 ms of lost CPU).
    pub fn expect_peak(mut self, records_per_s: u64, record_bytes: usize) -> Self {
        let bytes = (record_bytes as u64).div_ceil(16).saturating_mul(16);
        let in_40_ms = |per_s: u64| (per_s / 25).max(1) * 2;
        let size = |n: u64, least: usize, most: usize| {
            usize::try_from(n).unwrap_or(most).next_power_of_two().min(most).max(least)
        };
        self.config.lane_bytes =
            size(in_40_ms(records_per_s.saturating_mul(bytes)), self.config.lane_bytes, 1 << 30);
        self.config.lane_slots = size(in_40_ms(records_per_s), self.config.lane_slots, 1 << 24);
        self
    }

    /// Bytes of a segment of the log. Default 64 MiB, or less where four of them wouldn't fit
    /// into [`Builder::wal_max_bytes`].
    pub fn segment_bytes(mut self, bytes: usize) -> Self {
        self.config.segment_bytes = Some(bytes);
        self
    }

    /// Most bytes that the log takes on disk, set-aside segments included. Default: the lesser of
    /// 8 GiB and half of what is free at open. [`Builder::wal_full`] says what happens there.
    pub fn wal_max_bytes(mut self, bytes: u64) -> Self {
        self.config.wal_max_bytes = Some(bytes);
        self
    }

    /// Whether a handler for SIGBUS guards the log's own mappings. Default true. When the
    /// filesystem takes away a page that the log writes to (it was shut down, or is full and
    /// copies on write), the append fails and is counted, and the process lives. The handler is
    /// installed once for the process; signals about anything else go to the one before it.
    /// Switch it off if the process must install its own without chaining.
    pub fn sigbus_guard(mut self, on: bool) -> Self {
        self.config.sigbus_guard = on;
        self
    }

    /// What happens when the log has no room. Default [`WalFull::Refuse`].
    pub fn wal_full(mut self, policy: WalFull) -> Self {
        self.config.wal_full = policy;
        self
    }

    /// What happens when senders outrun a Kafka that takes records. Default [`Overflow::Spill`].
    /// Without a log a full lane always refuses.
    pub fn overflow(mut self, policy: Overflow) -> Self {
        self.config.overflow = policy;
        self
    }

    /// Most tracked records on their way at a time. Default 65,536.
    pub fn receipts_max(mut self, receipts: usize) -> Self {
        self.config.receipts_max = receipts;
        self
    }

    /// Without any report for this long while records are in flight, the producer instance is
    /// replaced. Nothing is discarded. Default 60 s.
    pub fn stall_timeout(mut self, timeout: Duration) -> Self {
        self.config.stall_timeout = timeout;
        self
    }

    /// Without a log: how long a topic may be unknown to Kafka before its records are dropped and
    /// counted. With one they are held at once, and wait. Default 10 s.
    pub fn topic_grace(mut self, grace: Duration) -> Self {
        self.config.topic_grace = grace;
        self
    }

    /// How keys choose partitions. Default [`Partitioner::Crc32`].
    pub fn partitioner(mut self, partitioner: Partitioner) -> Self {
        self.config.partitioner = partitioner;
        self
    }

    /// What `Drop` gives Kafka to finish before it journals the rest. Default zero: at once.
    pub fn drop_timeout(mut self, timeout: Duration) -> Self {
        self.config.drop_timeout = timeout;
        self
    }

    /// Most records a second of a backlog that are sent *beside what arrives now*: with a cap of
    /// C a backlog shrinks by C a second however much arrives, so that it always ends. Holds for
    /// all that comes from the log (recovered, spilled, of topics that were held), until the
    /// hand-over has caught up; without a backlog nothing is slowed. The backlog goes first,
    /// what arrives meanwhile behind it, or with [`Order::LiveFirst`] beside it.
    /// [`Pipeline::flush`] and [`Pipeline::close`] keep to it, and leave in the log what they
    /// don't get to. Default 0: no cap.
    pub fn replay_max_records_per_s(mut self, records: u64) -> Self {
        self.config.replay_max_records_per_s = records;
        self
    }

    /// The same in bytes: headers, keys and values, and 64 B a record. Default 0: no cap.
    pub fn replay_max_bytes_per_s(mut self, bytes: u64) -> Self {
        self.config.replay_max_bytes_per_s = bytes;
        self
    }

    /// What goes first where there is a backlog: it, or what is sent now. Default
    /// [`Order::BacklogFirst`]. Needs a log, and a loss window that isn't 0.
    pub fn order(mut self, order: Order) -> Self {
        self.config.order = order;
        self
    }

    /// With [`Order::LiveFirst`]: how much of [`Builder::in_flight_max_records`] and of
    /// [`Builder::in_flight_max_bytes`] the backlog may take, in parts of a hundred. Live records
    /// have the rest while there is a backlog, and all without one. Default 50; 1 to 99.
    pub fn replay_share_percent(mut self, percent: u8) -> Self {
        self.config.replay_share_percent = percent;
        self
    }

    /// How long the replay takes to speed up from a tenth of its caps to the whole, from the
    /// first delivery on after Kafka was away (or since `open`). The begin is put off by up to a
    /// fifth of it by chance, so that a fleet doesn't come back in step. Without a cap on records
    /// the ramp goes by the most that this run delivered within a second (at least 10,000
    /// records), and there is no bound after it. Default 2 s; 0 to 60 s.
    pub fn replay_ramp(mut self, ramp: Duration) -> Self {
        self.config.replay_ramp = ramp;
        self
    }

    /// Passes a property on to librdkafka: compression, security, socket settings. Those that
    /// the pipeline depends on are refused at `open`, with the reason. TLS and SASL need the
    /// feature `ssl` or `ssl-vendored`, SASL PLAIN without TLS needs none, and the codec zstd the
    /// feature `zstd`; see [`Pipeline::reload`] for passwords and certificates that change.
    pub fn extra(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.extra.push((name.into(), value.into()));
        self
    }

    /// Sends into this sink instead of Kafka: [`crate::MemorySink`] for tests.
    pub fn sink(mut self, sink: impl Sink + 'static) -> Self {
        self.sink = Some(Box::new(sink));
        self
    }

    /// Keeps the log in this storage instead of opening the files of [`Builder::wal_dir`], which
    /// must be set all the same: for programs that stop or fail the log at a chosen operation.
    #[cfg(feature = "internals")]
    #[doc(hidden)]
    pub fn storage(mut self, storage: Arc<dyn Storage>) -> Self {
        self.storage = Some(storage);
        self
    }

    /// Opens the pipeline and starts its threads. Doesn't wait for Kafka: brokers that can't be
    /// reached are a state, not an error. A backlog in the directory is sent before anything new,
    /// unless [`Builder::order`] says otherwise.
    ///
    /// # Errors
    /// See [`OpenError`]. Bad data in the log is never one.
    pub fn open(self) -> Result<Pipeline, OpenError> {
        let Builder { config, sink, storage } = self;
        config.validate(sink.is_none())?;
        let io = |what: &str| {
            let what = what.to_owned();
            move |source| OpenError::Io { what, source }
        };
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let topics = Arc::new(TopicTable::default());
        let waker = Waker::new().map_err(io("making an eventfd"))?;
        // The directory first: it is what most often can't be had, and holds nothing else up.
        let (wal, recovery) = match &config.wal_dir {
            Some(dir) => {
                let storage = match storage {
                    Some(storage) => storage,
                    None => {
                        Arc::new(FileStorage::open(dir)?.with_sigbus_guard(config.sigbus_guard))
                    }
                };
                let (wal, keeper, recovery) = open_wal(&config, dir, storage, &topics, &*clock)?;
                (Some((wal, keeper)), recovery)
            }
            None => (None, Recovery::default()),
        };
        let sink = match sink {
            Some(sink) => sink,
            None => kafka_sink(&config, &waker)?,
        };
        let reloader = sink.reloader();
        let (lanes, drain) = Lanes::new(&LaneOptions {
            lanes: config.lanes,
            lane_bytes: config.lane_bytes,
            lane_slots: config.lane_slots,
            record_bytes_max: config.record_bytes_max,
        })
        .map_err(io("reserving the lanes' memory"))?;
        let receipts = Arc::new(Receipts::new(config.receipts_max));
        let memory_bytes =
            config.lanes * (config.lane_bytes + config.lane_slots * 68) + receipts.memory_bytes();
        let shared = Arc::new(Shared::new(lanes, topics.clone(), receipts, waker.clone()));

        let link = Arc::new(KeeperLink::new().map_err(io("making an eventfd"))?);
        let (wal, keeper) = match wal {
            Some((wal, keeper)) => {
                let keeper = Keeper::new(keeper, link.clone(), waker.clone(), clock.clone());
                (Some((wal, link)), Some(keeper))
            }
            None => (None, None),
        };
        let ns = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        let mut flusher = Flusher::new(Parts {
            drain,
            sink,
            wal,
            recovery,
            shared: shared.clone(),
            clock: clock.clone(),
            timing: Timing {
                flush_interval_ns: ns(config.flush_interval()),
                flush_records: config.flush_records as u64,
                flush_bytes: config.flush_bytes as u64,
                loss_window_ns: config.loss_window.map(ns),
                answer_ns: match config.overflow {
                    Overflow::Spill => 0,
                    Overflow::Refuse => ANSWER_NS,
                },
            },
            wal_full: config.wal_full,
            guest: GuestOptions {
                records_per_s: Some(config.replay_max_records_per_s).filter(|cap| *cap > 0),
                bytes_per_s: Some(config.replay_max_bytes_per_s).filter(|cap| *cap > 0),
                ramp_ns: ns(config.replay_ramp),
                seed: random_salts()(),
            },
            backlog_percent: config.backlog_percent(),
            in_flight_max_records: config.in_flight_max_records,
            in_flight_max_bytes: config.in_flight_max_bytes as u64,
            lane_bytes: config.lane_bytes as u64,
            lane_slots: config.lane_slots as u64,
            memory_bytes: memory_bytes as u64,
        });
        // What was recovered can be seen from the start.
        flusher.publish(clock.now_ns());
        let threads = Threads::start(flusher, keeper, &shared)
            .map_err(io("starting the pipeline's threads"))?;
        let (drop_timeout, loss_window) = (config.drop_timeout, config.loss_window);
        Ok(Pipeline::new(shared, clock, threads, drop_timeout, loss_window, reloader))
    }
}

fn open_wal(
    config: &Config,
    dir: &std::path::Path,
    storage: Arc<dyn Storage>,
    topics: &Arc<TopicTable>,
    clock: &dyn Clock,
) -> Result<(Wal, WalKeeper, Recovery), OpenError> {
    let half_free = || storage.free_bytes().map_or(u64::MAX, |free| free / 2);
    let room_bytes = config.wal_max_bytes.unwrap_or_else(half_free);
    let segment_bytes = config.segment_bytes_within(room_bytes);
    let options = WalOptions {
        segment_bytes: segment_bytes as u64,
        wal_bytes_max: config.wal_max_bytes,
        record_bytes_max: config.record_bytes_max as u32,
        sync_interval_ns: u64::try_from(config.sync_interval.as_nanos()).unwrap_or(u64::MAX),
        set_aside_segment_bytes: config.set_aside_segment_bytes(segment_bytes) as u64,
        ..WalOptions::default()
    };
    Wal::open(storage, topics.clone(), options, random_salts(), clock.unix_ms()).map_err(
        |e| match e {
            OpenError::Io { what, source } => {
                OpenError::Io { what: format!("{}: {what}", dir.display()), source }
            }
            e => e,
        },
    )
}

#[cfg(feature = "kafka")]
fn kafka_sink(config: &Config, waker: &Waker) -> Result<Box<dyn Sink>, OpenError> {
    use crate::sink::kafka::{KafkaOptions, KafkaSink};
    let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let options = KafkaOptions {
        extra: config.extra.clone(),
        record_bytes_max: config.record_bytes_max,
        in_flight_max_records: config.in_flight_max_records,
        in_flight_max_bytes: config.in_flight_max_bytes,
        partitioner: config.partitioner,
        stall_timeout_ms: ms(config.stall_timeout),
        // With a log an unknown topic is held at once and loses nothing by it.
        topic_grace_ms: if config.wal_dir.is_some() { 0 } else { ms(config.topic_grace) },
        ..KafkaOptions::new(&config.brokers)
    };
    Ok(Box::new(KafkaSink::new(options, waker.clone())?))
}

#[cfg(not(feature = "kafka"))]
fn kafka_sink(_: &Config, _: &Waker) -> Result<Box<dyn Sink>, OpenError> {
    Err(OpenError::Kafka("built without the feature \"kafka\"; give a sink(..)".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn size() -> impl Strategy<Value = usize> {
        prop_oneof![any::<usize>(), 0..200_000_000_usize, (0..64_u32).prop_map(|n| 1 << n)]
    }

    fn time() -> impl Strategy<Value = Duration> {
        prop_oneof![
            Just(Duration::MAX),
            Just(Duration::ZERO),
            (0..200_000_u64).prop_map(Duration::from_millis)
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// Whatever the settings: checked without a panic, and an error names one of them and
        /// what is allowed.
        #[test]
        fn any_settings_are_taken_or_refused_by_name(
            sizes in prop::collection::vec(prop::option::weighted(0.3, size()), 13),
            times in prop::collection::vec(prop::option::weighted(0.3, time()), 6),
            order in prop::option::weighted(0.3, any::<u8>()),
            peak in prop::option::weighted(0.3, (any::<u64>(), size())),
        ) {
            let mut b = Pipeline::builder().brokers("b:1").wal_dir("/d");
            let set: [fn(Builder, usize) -> Builder; 13] = [
                Builder::flush_records,
                Builder::flush_bytes,
                Builder::in_flight_max_records,
                Builder::in_flight_max_bytes,
                Builder::record_bytes_max,
                Builder::lanes,
                Builder::lane_bytes,
                Builder::lane_slots,
                Builder::segment_bytes,
                |b, n| b.wal_max_bytes(n as u64),
                |b, n| b.replay_max_records_per_s(n as u64),
                |b, n| b.replay_max_bytes_per_s(n as u64),
                Builder::receipts_max,
            ];
            let set_time: [fn(Builder, Duration) -> Builder; 6] = [
                Builder::flush_interval,
                Builder::loss_window,
                Builder::sync_interval,
                Builder::stall_timeout,
                Builder::topic_grace,
                Builder::replay_ramp,
            ];
            for (set, value) in set.iter().zip(&sizes) {
                b = value.iter().fold(b, |b, value| set(b, *value));
            }
            for (set, value) in set_time.iter().zip(&times) {
                b = value.iter().fold(b, |b, value| set(b, *value));
            }
            if let Some((records_per_s, bytes)) = peak {
                b = b.expect_peak(records_per_s, bytes);
            }
            if let Some(percent) = order {
                b = b.order(Order::LiveFirst).replay_share_percent(percent);
            }
            let shown = format!("{b:?}");
            match b.config.validate(true) {
                // What is allowed can be worked with.
                Ok(()) => prop_assert!(b.config.segment_bytes_within(0) >= 1 << 20),
                Err(error) => {
                    prop_assert!(shown.contains(&format!("{}: ", error.name)), "{error:?}");
                    prop_assert!(error.problem.contains("allowed is") || error.problem.contains("must ")
                        || error.problem.contains("at most"), "{error}");
                }
            }
        }
    }
}
