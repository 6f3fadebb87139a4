//! What the targets share: small options, a log in memory, records made from a few bytes of
//! input, and a reader that checks what every reader may rely on.

use arbitrary::Arbitrary;
use forebay::record::{Header, LogPosition, Lsn, RecordView, Shape};
use forebay::topics::TopicTable;
use forebay::wal::{
    AppendError, LogRecord, MemoryStorage, ReadItem, Recovery, SaltSource, Wal, WalKeeper,
    WalOptions,
};
use std::sync::Arc;

/// Segments of 4 KiB: rotation, sealing and unlinking happen in nearly every run.
pub fn options() -> WalOptions {
    WalOptions {
        segment_bytes: 4096,
        set_aside_segment_bytes: 4096,
        wal_bytes_max: Some(64 << 10),
        record_bytes_max: 256,
        read_buffer_bytes: 512,
        sync_interval_ns: 10,
        ..WalOptions::default()
    }
}

/// Bytes that look random and come from `seed` alone. A mutation never takes its bytes from
/// the input: the fuzzer learns checksums from comparisons, and would forge frames.
pub fn noise(seed: u64) -> impl Iterator<Item = u8> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as u8
    })
}

/// Salts from a counter: the same in every run.
pub fn salts(seed: u64) -> SaltSource {
    let mut next = seed;
    Box::new(move || {
        next = next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        next ^ (next >> 29)
    })
}

/// An open log.
pub struct Log {
    pub wal: Wal,
    pub keeper: WalKeeper,
    pub recovery: Recovery,
    pub topics: Arc<TopicTable>,
}

/// Opens a log. `seed` differs between the runs of one directory: salts are new each time.
pub fn open(storage: &MemoryStorage, seed: u64) -> Log {
    try_open(storage, seed).expect("bad data is no reason to refuse")
}

/// Opens a log over a storage that may fail.
pub fn try_open(storage: &MemoryStorage, seed: u64) -> Result<Log, forebay::OpenError> {
    let topics = Arc::new(TopicTable::default());
    let opened = Wal::open(Arc::new(storage.clone()), topics.clone(), options(), salts(seed), 0);
    opened.map(|(wal, keeper, recovery)| Log { wal, keeper, recovery, topics })
}

/// A record but for its number.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    pub topic: u8,
    pub partition: i8,
    pub headers: u8,
    pub key: Option<u8>,
    pub value: Option<u8>,
}

/// A record's parts, made from its number and its spec.
pub struct Parts {
    pub topic: &'static str,
    pub partition: i32,
    pub timestamp_ms: i64,
    pub shape: Shape,
    pub body: Vec<u8>,
}

impl Spec {
    /// The record with the number `lsn`; its bytes depend on both.
    pub fn parts(&self, lsn: u64) -> Parts {
        let mut body = Vec::new();
        for n in 0..self.headers % 3 {
            let value = [n; 3];
            let header = Header { name: "h", value: (n > 0).then_some(&value) };
            let at = body.len();
            body.resize(at + header.encoded_len(), 0);
            header.encode(&mut body[at..]);
        }
        let headers_len = body.len() as u32;
        let key_len = self.key.map(|n| u32::from(n % 64));
        let value_len = self.value.map(|n| u32::from(n % 160));
        let rest = key_len.unwrap_or(0) + value_len.unwrap_or(0);
        body.extend(noise(lsn << 8 | u64::from(self.topic)).take(rest as usize));
        Parts {
            topic: ["a", "bb", "ccc", "a-topic-with-a-longer-name"][usize::from(self.topic % 4)],
            partition: i32::from(self.partition),
            timestamp_ms: (lsn as i64).wrapping_mul(3),
            shape: Shape { headers_len, key_len, value_len },
            body,
        }
    }

    /// Bytes of its frame, without padding.
    pub fn frame_bytes(&self, lsn: u64) -> u64 {
        (forebay::wal::format::FRAME_HEADER_BYTES + self.parts(lsn).body.len()) as u64
    }

    /// Whether this is what came back.
    pub fn check(&self, topics: &TopicTable, lsn: u64, got: &RecordView<'_>) {
        let parts = self.parts(lsn);
        assert_eq!(topics.name(got.topic).as_deref(), Some(parts.topic), "record {lsn}");
        assert_eq!(
            (got.partition, got.timestamp_ms, got.shape, got.body),
            (parts.partition, parts.timestamp_ms, parts.shape, &parts.body[..]),
            "record {lsn}"
        );
    }
}

impl Log {
    /// One append, as the flusher does it.
    pub fn append(&mut self, lsn: u64, spec: &Spec) -> Result<LogPosition, AppendError> {
        let parts = spec.parts(lsn);
        self.wal.append(Lsn(lsn), &view(&parts, &self.topics))
    }

    /// One record into the set-aside segments.
    pub fn set_aside(&mut self, lsn: u64, spec: &Spec) -> Result<LogPosition, AppendError> {
        let parts = spec.parts(lsn);
        self.wal.set_aside(Lsn(lsn), &view(&parts, &self.topics), "reason", 7, lsn as i64)
    }

    /// Reads the backlog to its end, gives each record to `each`, and checks what holds for
    /// any directory: the order, the bounds, the lengths, and that what was counted at open
    /// is what comes. Returns the records' numbers and places, and the number lost.
    pub fn drain(
        &self,
        mut each: impl FnMut(&TopicTable, &LogRecord<'_>),
    ) -> (Vec<(u64, LogPosition)>, u64) {
        let (mut records, mut lost) = (Vec::<(u64, LogPosition)>::new(), 0u64);
        let Some(from) = self.recovery.backlog else {
            assert_eq!(self.recovery.records, 0, "{:?}", self.recovery);
            return (records, lost);
        };
        let mut reader = self.wal.reader(from);
        for step in 0.. {
            assert!(step < 1_000_000, "a reader that never ends");
            match self.wal.read_next(&mut reader) {
                ReadItem::Record(r) => {
                    assert!(records.last().is_none_or(|(last, _)| *last < r.lsn.0), "order");
                    assert!(r.lsn < self.recovery.next_lsn, "above next_lsn");
                    assert!(r.position < r.next);
                    assert_eq!(r.record.body.len(), r.record.shape.body_len());
                    let _ = (r.record.key(), r.record.value(), r.record.headers().count());
                    each(&self.topics, &r);
                    records.push((r.lsn.0, r.position));
                    let next = r.next;
                    assert_eq!(reader.position(), next);
                }
                ReadItem::Damage { records_lost, .. } => lost += records_lost,
                ReadItem::CaughtUp => break,
                ReadItem::Error(kind) => panic!("{kind}"),
            }
        }
        let counted = u128::from(self.recovery.records);
        let yielded = records.len() as u128 + u128::from(lost);
        assert_eq!(counted, yielded, "{:?}", self.recovery);
        // A frame whose topic is named behind it is damaged for the walk, and not for a reader.
        if let Some((first, _)) = records.first()
            && self.recovery.damage.records_lost == 0
        {
            let told = self.recovery.first_lsn.expect("there are records");
            assert!(told.0 <= *first, "{:?}", self.recovery);
        }
        (records, lost)
    }
}

fn view<'a>(parts: &'a Parts, topics: &TopicTable) -> RecordView<'a> {
    RecordView {
        topic: topics.intern(parts.topic),
        partition: parts.partition,
        timestamp_ms: parts.timestamp_ms,
        shape: parts.shape,
        body: &parts.body,
    }
}

/// Calls `put` until it succeeds, with the keeper's help where a segment is wanted.
pub fn helped(
    log: &mut Log,
    mut put: impl FnMut(&mut Log) -> Result<LogPosition, AppendError>,
) -> Result<LogPosition, AppendError> {
    for _ in 0..3 {
        match put(log) {
            Err(AppendError::NotReady) => {
                log.keeper.step(0, None);
            }
            done => return done,
        }
    }
    Err(AppendError::NotReady)
}
