//! Tests of the log. Records are made from their number, so that what comes back can be
//! checked without a copy of what went in.

#![allow(clippy::print_stdout)]

mod bad_input;
mod beside;
mod crash;
mod damage;
mod directory;
mod faults;
mod files;
mod flips;
mod golden;
mod guard;
mod log;
mod regress;
mod repair;
mod short_way;
mod stops;
mod verdicts;

use super::*;
use crate::record::{LogPosition, Lsn, RecordView, Shape, TopicId};
use crate::topics::TopicTable;
use std::sync::Arc;

pub(super) fn small() -> WalOptions {
    WalOptions {
        segment_bytes: 4096,
        set_aside_segment_bytes: 4096,
        wal_bytes_max: Some(1 << 20),
        record_bytes_max: 256,
        segments_ahead_max: 1,
        read_buffer_bytes: 512,
        ..WalOptions::default()
    }
}

/// Salts from a counter: the same in every run.
pub(super) fn salts(seed: u64) -> SaltSource {
    let mut next = seed;
    Box::new(move || {
        next = next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        next ^ (next >> 29)
    })
}

pub(super) struct Open {
    pub wal: Wal,
    pub keeper: WalKeeper,
    pub recovery: Recovery,
    pub topics: Arc<TopicTable>,
}

pub(super) fn open(storage: &MemoryStorage, options: WalOptions) -> Open {
    open_with(storage, options, salts(7))
}

pub(super) fn open_with(storage: &MemoryStorage, options: WalOptions, salts: SaltSource) -> Open {
    let topics = Arc::new(TopicTable::default());
    let storage = Arc::new(storage.clone());
    let (wal, keeper, recovery) =
        Wal::open(storage, topics.clone(), options, salts, 1_000).expect("the log opens");
    Open { wal, keeper, recovery, topics }
}

/// The parts of record `n`: topic name, partition, shape, body. Sizes and nulls vary with it.
pub(super) fn parts(n: u64) -> (&'static str, i32, Shape, Vec<u8>) {
    let topic = ["alpha", "beta", "gamma"][(n % 3) as usize];
    let header = crate::record::Header { name: "h", value: Some(b"1") };
    let mut body = Vec::new();
    if n.is_multiple_of(5) {
        body.resize(header.encoded_len(), 0);
        header.encode(&mut body);
    }
    let headers_len = body.len() as u32;
    let key_len = (!n.is_multiple_of(4)).then_some((n % 7) as u32);
    let value_len = (!n.is_multiple_of(11)).then_some((n % 90) as u32);
    let rest = key_len.unwrap_or(0) + value_len.unwrap_or(0);
    body.extend((0..u64::from(rest)).map(|i| (n.wrapping_mul(31) + i * 7 + 1) as u8));
    (topic, (n % 6) as i32 - 1, Shape { headers_len, key_len, value_len }, body)
}

pub(super) fn append(open: &mut Open, n: u64) -> Result<LogPosition, AppendError> {
    let (topic, partition, shape, body) = parts(n);
    let topic = open.topics.intern(topic);
    let record = RecordView { topic, partition, timestamp_ms: n as i64, shape, body: &body };
    open.wal.append(Lsn(n), &record)
}

/// Appends, with the keeper's help where a segment is needed.
pub(super) fn append_helped(open: &mut Open, n: u64) -> LogPosition {
    loop {
        match append(open, n) {
            Ok(at) => return at,
            Err(AppendError::NotReady) => assert!(open.keeper.step(0, None).prepared),
            Err(e) => panic!("record {n}: {e}"),
        }
    }
}

pub(super) fn check_record(r: &LogRecord<'_>, topics: &TopicTable) {
    let (topic, partition, shape, body) = parts(r.lsn.0);
    assert_eq!(topics.name(r.record.topic).as_deref(), Some(topic));
    let expected = RecordView {
        topic: r.record.topic,
        partition,
        timestamp_ms: r.lsn.0 as i64,
        shape,
        body: &body,
    };
    assert_eq!(r.record, expected, "record {}", r.lsn);
}

/// What a reader yields to the end: LSNs, each record checked, and records lost.
pub(super) fn read_all(open: &Open, from: Option<LogPosition>) -> (Vec<u64>, u64) {
    let (mut lsns, mut lost) = (Vec::new(), 0);
    let Some(from) = from else { return (lsns, lost) };
    let mut reader = open.wal.reader(from);
    loop {
        match open.wal.read_next(&mut reader) {
            ReadItem::Record(r) => {
                check_record(&r, &open.topics);
                lsns.push(r.lsn.0);
            }
            ReadItem::Damage { records_lost, .. } => lost += records_lost,
            ReadItem::CaughtUp => return (lsns, lost),
            ReadItem::Error(kind) => panic!("{kind}"),
        }
    }
}

/// Opens, reads the backlog and checks that the books balance: what recovery counted is what
/// the reader yields.
pub(super) fn reopen_and_read(storage: &MemoryStorage) -> (Open, Vec<u64>, u64) {
    let open = open(storage, small());
    let (lsns, lost) = read_backlog(&open);
    (open, lsns, lost)
}

/// Reads the backlog of a log just opened, with the checks of [`reopen_and_read`].
pub(super) fn read_backlog(open: &Open) -> (Vec<u64>, u64) {
    let (lsns, lost) = read_all(open, open.recovery.backlog);
    assert_eq!(open.recovery.records, lsns.len() as u64 + lost, "{:?}", open.recovery);
    assert!(lsns.is_sorted_by(|a, b| a < b), "out of order: {lsns:?}");
    if let Some(first) = lsns.first() {
        assert!(open.recovery.first_lsn.is_some_and(|l| l.0 <= *first), "{:?}", open.recovery);
    }
    assert!(open.recovery.next_lsn.0 > lsns.last().copied().unwrap_or(0) || lsns.is_empty());
    (lsns, lost)
}

pub(super) fn topic_of(open: &Open, name: &str) -> TopicId {
    open.topics.intern(name)
}
