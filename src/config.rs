//! Owns the settings: their defaults, their bounds, and the builder that users fill in.

use crate::error::ConfigError;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// How a keyed record's partition is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Partitioner {
    /// CRC32 of the key, as librdkafka and the clients built on it choose.
    #[default]
    Crc32,
    /// murmur2 of the key, as the JVM client chooses.
    Murmur2,
}

/// What happens when the log has no room: it is at `wal_max_bytes`, or the disk is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum WalFull {
    /// Nothing more is journaled until there is room: the lanes fill and `send` refuses.
    #[default]
    Refuse,
    /// The oldest segment of the log goes, and those of its records that are not final are
    /// counted per topic as dropped for `wal_full`. One segment at a time, and only when a
    /// record has to be journaled. One of them that Kafka has been handed already may still
    /// arrive although it counts as dropped. A record that can't be delivered and finds no room
    /// in the set-aside log is dropped for `set_aside_full`.
    DropOldest,
}

/// What happens when senders outrun a Kafka that takes records: a lane is half full of what it
/// hasn't acknowledged yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Overflow {
    /// The log takes it, and gives it to Kafka in its turn: `send` goes on at the speed of memory
    /// for as long as the log has room. What came later follows through the log until that has
    /// caught up.
    #[default]
    Spill,
    /// As long as Kafka answers, a full lane refuses, and `send_timeout` waits: for bulk loads, which
    /// would else be written and read back. When there is something to do and nothing was
    /// acknowledged for 200 ms, the log takes it as with `Spill`. What gets older than the loss
    /// window is journaled in either case: lanes should hold no more than Kafka takes in that time.
    Refuse,
}

/// What goes first where there is a backlog: records in the log that wait, since Kafka was away or a
/// run before left them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Order {
    /// The backlog, and behind it what is sent now: first arrivals of one thread with one key, or
    /// with one partition, keep the order sent.
    #[default]
    BacklogFirst,
    /// What is sent now goes at once, straight from memory, and the backlog beside it within
    /// [`crate::Builder::replay_share_percent`], its caps and its ramp. *It gives up the order
    /// between the two*: a record of the backlog may arrive behind younger ones of its key or
    /// partition. Within the backlog the order is kept, and within what went live; and no live record
    /// arrives behind a younger one. A record that waited in the log is backlog, also if it was sent
    /// while an older backlog was on its way: so it is with all that is older than the loss window
    /// before Kafka takes it.
    ///
    /// Nothing else changes. [`crate::Pipeline::flush`] and [`crate::Pipeline::close`] wait for
    /// both, a receipt for its own record. After a crash no more can come twice than with the backlog
    /// first: live records that were journaled on their way count against the span until the backlog
    /// has passed them, and when they use up their part, live records wait for it.
    LiveFirst,
}

/// Every setting, typed. Made by [`crate::Builder`]; read by everything else.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) brokers: String,
    pub(crate) wal_dir: Option<PathBuf>,
    pub(crate) at_most_once: bool,
    pub(crate) flush_interval: Option<Duration>,
    pub(crate) flush_records: usize,
    pub(crate) flush_bytes: usize,
    pub(crate) loss_window: Option<Duration>,
    pub(crate) sync_interval: Duration,
    pub(crate) in_flight_max_records: usize,
    pub(crate) in_flight_max_bytes: usize,
    pub(crate) record_bytes_max: usize,
    pub(crate) lanes: usize,
    pub(crate) lane_bytes: usize,
    pub(crate) lane_slots: usize,
    /// `None`: 64 MiB, less where the disk is small.
    pub(crate) segment_bytes: Option<usize>,
    pub(crate) wal_max_bytes: Option<u64>,
    pub(crate) sigbus_guard: bool,
    pub(crate) wal_full: WalFull,
    pub(crate) overflow: Overflow,
    pub(crate) order: Order,
    pub(crate) replay_share_percent: u8,
    pub(crate) receipts_max: usize,
    pub(crate) stall_timeout: Duration,
    pub(crate) topic_grace: Duration,
    pub(crate) partitioner: Partitioner,
    pub(crate) drop_timeout: Duration,
    /// 0: no cap.
    pub(crate) replay_max_records_per_s: u64,
    pub(crate) replay_max_bytes_per_s: u64,
    pub(crate) replay_ramp: Duration,
    pub(crate) extra: Vec<(String, String)>,
}

impl Default for Config {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Config {
            brokers: String::new(),
            wal_dir: None,
            at_most_once: false,
            flush_interval: None,
            flush_records: 20_000,
            flush_bytes: 2 << 20,
            loss_window: Some(Duration::from_secs(1)),
            sync_interval: Duration::from_millis(500),
            in_flight_max_records: 131_072,
            in_flight_max_bytes: 64 << 20,
            record_bytes_max: 1_000_000,
            lanes: (2 * cores).next_power_of_two().min(16),
            lane_bytes: 8 << 20,
            lane_slots: 65_536,
            segment_bytes: None,
            wal_max_bytes: None,
            sigbus_guard: true,
            wal_full: WalFull::Refuse,
            overflow: Overflow::Spill,
            order: Order::BacklogFirst,
            replay_share_percent: 50,
            receipts_max: 65_536,
            stall_timeout: Duration::from_secs(60),
            topic_grace: Duration::from_secs(10),
            partitioner: Partitioner::Crc32,
            drop_timeout: Duration::from_secs(0),
            replay_max_records_per_s: 0,
            replay_max_bytes_per_s: 0,
            replay_ramp: Duration::from_secs(2),
            extra: Vec::new(),
        }
    }
}

impl fmt::Debug for Config {
    /// Names what is known to be no secret; everything passed on to librdkafka shows its name
    /// only, since a value may be a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("brokers", &shown_brokers(&self.brokers))
            .field("wal_dir", &self.wal_dir)
            .field("at_most_once", &self.at_most_once)
            .field("flush_interval", &self.flush_interval())
            .field("flush_records", &self.flush_records)
            .field("flush_bytes", &self.flush_bytes)
            .field("loss_window", &self.loss_window)
            .field("sync_interval", &self.sync_interval)
            .field("in_flight_max_records", &self.in_flight_max_records)
            .field("in_flight_max_bytes", &self.in_flight_max_bytes)
            .field("record_bytes_max", &self.record_bytes_max)
            .field("lanes", &self.lanes)
            .field("lane_bytes", &self.lane_bytes)
            .field("lane_slots", &self.lane_slots)
            .field("segment_bytes", &self.segment_bytes)
            .field("wal_max_bytes", &self.wal_max_bytes)
            .field("sigbus_guard", &self.sigbus_guard)
            .field("wal_full", &self.wal_full)
            .field("overflow", &self.overflow)
            .field("order", &self.order)
            .field("replay_share_percent", &self.replay_share_percent)
            .field("receipts_max", &self.receipts_max)
            .field("stall_timeout", &self.stall_timeout)
            .field("topic_grace", &self.topic_grace)
            .field("partitioner", &self.partitioner)
            .field("replay_max_records_per_s", &self.replay_max_records_per_s)
            .field("replay_max_bytes_per_s", &self.replay_max_bytes_per_s)
            .field("replay_ramp", &self.replay_ramp)
            .field("extra", &self.extra.iter().map(|(k, _)| k).collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// The addresses as they may be shown: one with an `@` may hold a password, and is refused.
pub(crate) fn shown_brokers(brokers: &str) -> &str {
    if brokers.contains('@') { "***" } else { brokers }
}

/// A segment's bytes where the disk has room.
const SEGMENT_BYTES_DEFAULT: usize = 64 << 20;
/// A set-aside segment's bytes, unless segments are smaller or records larger.
const SET_ASIDE_SEGMENT_BYTES: usize = 4 << 20;
/// The highest cap of the replay, in records or bytes a second.
const REPLAY_CAP_MAX: u64 = 1 << 40;
/// Bytes a segment must have beyond its largest record, for header, topic entries and seal.
const SEGMENT_SLACK_BYTES: usize = 64 << 10;

impl Config {
    /// The flush interval: as set, else 500 ms or half the loss window if that is shorter, so
    /// that a healthy run with a short window isn't journaled only because it waits.
    pub(crate) fn flush_interval(&self) -> Duration {
        self.flush_interval.unwrap_or_else(|| {
            let half = self.loss_window.filter(|w| !w.is_zero()).map(|w| w / 2);
            half.unwrap_or(Duration::MAX).min(Duration::from_millis(500))
        })
    }

    /// What the backlog may take of the span beside live records, if they go first.
    pub(crate) fn backlog_percent(&self) -> Option<u8> {
        (self.order == Order::LiveFirst).then_some(self.replay_share_percent)
    }

    /// The smallest segment that holds the largest record, and some.
    fn segment_bytes_min(&self) -> usize {
        (self.record_bytes_max + SEGMENT_SLACK_BYTES).next_power_of_two().max(1 << 20)
    }

    /// A segment's bytes: as set, else the default, halved until four fit into `room_bytes`.
    pub(crate) fn segment_bytes_within(&self, room_bytes: u64) -> usize {
        let least = self.segment_bytes_min();
        self.segment_bytes.unwrap_or_else(|| {
            let mut bytes = SEGMENT_BYTES_DEFAULT.max(least);
            while bytes > least && 4 * bytes as u64 > room_bytes {
                bytes /= 2;
            }
            bytes
        })
    }

    /// A set-aside segment's bytes: 4 MiB, or less where segments are smaller, and never less than
    /// what the largest record needs.
    pub(crate) fn set_aside_segment_bytes(&self, segment_bytes: usize) -> usize {
        let least = (self.record_bytes_max + SEGMENT_SLACK_BYTES).next_power_of_two();
        SET_ASIDE_SEGMENT_BYTES.min(segment_bytes).max(least)
    }

    /// Checks every setting by itself and against the others.
    pub(crate) fn validate(&self, needs_brokers: bool) -> Result<(), ConfigError> {
        if needs_brokers && self.brokers.trim().is_empty() {
            return Err(bad("brokers", &self.brokers, "name at least one broker as host:port"));
        }
        match (&self.wal_dir, self.at_most_once) {
            (Some(dir), true) => {
                return Err(bad(
                    "at_most_once",
                    &dir.display().to_string(),
                    "contradicts wal_dir: choose wal_dir(..) to spill (at-least-once) or at_most_once() to refuse",
                ));
            }
            (None, false) => {
                return Err(bad(
                    "wal_dir",
                    "",
                    "choose what happens when Kafka can't keep up: wal_dir(..) spills (at-least-once), at_most_once() refuses",
                ));
            }
            _ => {}
        }
        self.validate_order()?;
        self.validate_timing()?;
        self.validate_sizes()
    }

    fn validate_order(&self) -> Result<(), ConfigError> {
        let percent = usize::from(self.replay_share_percent);
        in_range("replay_share_percent", percent, 1, 99)?;
        let problem = if self.order == Order::BacklogFirst {
            return Ok(());
        } else if self.wal_dir.is_none() {
            "without a log there is no backlog; it must stay BacklogFirst, or wal_dir(..) be chosen"
        } else if self.loss_window.is_some_and(|w| w.is_zero()) {
            "with loss_window 0 every record goes through the log in its turn; it must stay BacklogFirst, or the window be at least 20 ms"
        } else if self.in_flight_max_records < 2 {
            "a span of one record leaves no room beside the backlog; in_flight_max_records must be at least 2"
        } else {
            return Ok(());
        };
        Err(bad("order", &format!("{:?}", self.order), problem))
    }

    fn validate_timing(&self) -> Result<(), ConfigError> {
        let ms = Duration::from_millis;
        within("sync_interval", self.sync_interval, ms(1), ms(60_000))?;
        within("stall_timeout", self.stall_timeout, ms(1_000), ms(86_400_000))?;
        within("topic_grace", self.topic_grace, ms(100), ms(86_400_000))?;
        if let Some(window) = self.loss_window.filter(|w| !w.is_zero()) {
            within("loss_window", window, ms(20), ms(3_600_000))?;
        }
        within("flush_interval", self.flush_interval(), ms(1), ms(60_000))?;
        within("replay_ramp", self.replay_ramp, ms(0), ms(60_000))?;
        Ok(())
    }

    fn validate_sizes(&self) -> Result<(), ConfigError> {
        in_range("flush_records", self.flush_records, 1, 10_000_000)?;
        in_range("flush_bytes", self.flush_bytes, 1, 1 << 30)?;
        in_range("in_flight_max_records", self.in_flight_max_records, 1, 10_000_000)?;
        in_range("in_flight_max_bytes", self.in_flight_max_bytes, 64 << 10, 2 << 30)?;
        in_range("receipts_max", self.receipts_max, 0, 1 << 24)?;
        for (name, cap) in [
            ("replay_max_records_per_s", self.replay_max_records_per_s),
            ("replay_max_bytes_per_s", self.replay_max_bytes_per_s),
        ] {
            if cap > REPLAY_CAP_MAX {
                let problem = format!("allowed is 0 (no cap) to {REPLAY_CAP_MAX}");
                return Err(bad(name, &cap.to_string(), &problem));
            }
        }
        in_range("lanes", self.lanes, 1, 64)?;
        in_range("lane_bytes", self.lane_bytes, 4 << 10, 1 << 30)?;
        in_range("lane_slots", self.lane_slots, 16, 1 << 24)?;
        for (name, value) in [
            ("lanes", self.lanes),
            ("lane_bytes", self.lane_bytes),
            ("lane_slots", self.lane_slots),
        ] {
            if !value.is_power_of_two() {
                return Err(bad(name, &value.to_string(), "must be a power of two"));
            }
        }
        in_range("record_bytes_max", self.record_bytes_max, 64, 128 << 20)?;
        if self.record_bytes_max > self.lane_bytes / 8 {
            let needed = self.record_bytes_max.saturating_mul(8).next_power_of_two();
            return Err(bad(
                "record_bytes_max",
                &self.record_bytes_max.to_string(),
                &format!(
                    "a record may take at most an eighth of a lane; set lane_bytes to at least {needed}"
                ),
            ));
        }
        let least = self.segment_bytes_min();
        let segment_bytes = self.segment_bytes.unwrap_or(SEGMENT_BYTES_DEFAULT.max(least));
        in_range("segment_bytes", segment_bytes, 128 << 10, 1 << 30)?;
        if segment_bytes < least {
            return Err(bad(
                "segment_bytes",
                &segment_bytes.to_string(),
                &format!("must hold one record of record_bytes_max; at least {least}"),
            ));
        }
        // Where the user left the size to us, it follows the bound down to the least.
        let segment_bytes = self.segment_bytes.unwrap_or(least);
        // Room for set-aside segments is kept: see the log's options.
        let asides = self.set_aside_segment_bytes(segment_bytes);
        let needed = 2 * (segment_bytes + asides) as u64;
        if let Some(max) = self.wal_max_bytes
            && max < needed
        {
            return Err(bad(
                "wal_max_bytes",
                &max.to_string(),
                &format!("must hold two segments and two set-aside ones; at least {needed}"),
            ));
        }
        Ok(())
    }
}

fn bad(name: &str, value: &str, problem: &str) -> ConfigError {
    ConfigError { name: name.into(), value: value.into(), problem: problem.into() }
}

fn within(name: &str, value: Duration, least: Duration, most: Duration) -> Result<(), ConfigError> {
    if value < least || value > most {
        return Err(bad(name, &format!("{value:?}"), &format!("allowed is {least:?} to {most:?}")));
    }
    Ok(())
}

fn in_range(name: &str, value: usize, least: usize, most: usize) -> Result<(), ConfigError> {
    if value < least || value > most {
        return Err(bad(name, &value.to_string(), &format!("allowed is {least} to {most}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Config {
        Config { brokers: "b:9092".into(), at_most_once: true, ..Config::default() }
    }

    type Change = (&'static str, fn(&mut Config));

    #[test]
    fn defaults_are_good() {
        good().validate(true).unwrap();
    }

    #[test]
    fn each_bad_value_is_named() {
        let cases: &[Change] = &[
            ("brokers", |c| c.brokers.clear()),
            ("wal_dir", |c| c.at_most_once = false),
            ("at_most_once", |c| c.wal_dir = Some("/d".into())),
            ("flush_interval", |c| c.flush_interval = Some(Duration::ZERO)),
            ("flush_interval", |c| c.flush_interval = Some(Duration::from_secs(61))),
            ("sync_interval", |c| c.sync_interval = Duration::ZERO),
            ("loss_window", |c| c.loss_window = Some(Duration::from_millis(1))),
            ("stall_timeout", |c| c.stall_timeout = Duration::from_millis(1)),
            ("topic_grace", |c| c.topic_grace = Duration::ZERO),
            ("flush_records", |c| c.flush_records = 0),
            ("flush_bytes", |c| c.flush_bytes = 0),
            ("in_flight_max_records", |c| c.in_flight_max_records = 0),
            ("in_flight_max_bytes", |c| c.in_flight_max_bytes = 1),
            ("receipts_max", |c| c.receipts_max = usize::MAX),
            ("lanes", |c| c.lanes = 0),
            ("lanes", |c| c.lanes = 3),
            ("lane_bytes", |c| c.lane_bytes = 1 << 31),
            ("lane_slots", |c| c.lane_slots = 17),
            ("record_bytes_max", |c| c.record_bytes_max = 8 << 20),
            ("segment_bytes", |c| c.segment_bytes = Some(1 << 20)),
            ("wal_max_bytes", |c| c.wal_max_bytes = Some(1)),
            ("order", |c| c.order = Order::LiveFirst),
            ("order", |c| {
                (c.wal_dir, c.at_most_once) = (Some("/d".into()), false);
                (c.order, c.loss_window) = (Order::LiveFirst, Some(Duration::ZERO));
            }),
            ("order", |c| {
                (c.wal_dir, c.at_most_once) = (Some("/d".into()), false);
                (c.order, c.in_flight_max_records) = (Order::LiveFirst, 1);
            }),
            ("replay_share_percent", |c| c.replay_share_percent = 0),
            ("replay_share_percent", |c| c.replay_share_percent = 100),
            ("replay_ramp", |c| c.replay_ramp = Duration::from_secs(61)),
            ("replay_max_records_per_s", |c| c.replay_max_records_per_s = u64::MAX),
            ("replay_max_bytes_per_s", |c| c.replay_max_bytes_per_s = u64::MAX),
        ];
        for (name, change) in cases {
            let mut c = good();
            change(&mut c);
            let e = c.validate(true).unwrap_err();
            assert_eq!(e.name, *name, "{e}");
            assert!(!e.problem.is_empty());
        }
        println!("{} bad settings were named", cases.len());
    }

    #[test]
    fn segments_are_smaller_on_a_small_disk() {
        let mut c = good();
        assert_eq!(c.segment_bytes_within(u64::MAX), 64 << 20);
        assert_eq!(c.segment_bytes_within(100 << 20), 16 << 20);
        assert_eq!(c.segment_bytes_within(0), 2 << 20);
        c.segment_bytes = Some(32 << 20);
        assert_eq!(c.segment_bytes_within(0), 32 << 20);
    }

    #[test]
    fn debug_hides_what_goes_to_librdkafka() {
        let mut c = good();
        c.extra.push(("sasl.password".into(), "hunter2".into()));
        c.brokers = "sasl_ssl://user:hunter2@b:9092".into();
        let shown = format!("{c:?}");
        assert!(shown.contains("sasl.password") && !shown.contains("hunter2"));
    }

    #[test]
    fn a_short_window_shortens_the_flush_interval() {
        let mut c = good();
        assert_eq!(c.flush_interval(), Duration::from_millis(500));
        c.loss_window = Some(Duration::from_millis(100));
        assert_eq!(c.flush_interval(), Duration::from_millis(50));
        c.loss_window = Some(Duration::ZERO);
        assert_eq!(c.flush_interval(), Duration::from_millis(500));
    }
}
