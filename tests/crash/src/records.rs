//! Owns what each record looks like: everything of it follows from seed, thread and number, so
//! that the judge can tell it again without a copy of what was sent.

use forebay::record::{ANY_PARTITION, RecordView};
use forebay::{SendError, Topic};
use forebay_testkit::Random;

/// Threads that send.
pub const THREADS: usize = 3;
/// The topics.
pub const TOPICS: [&str; 3] = ["alpha", "beta", "gamma"];
/// Partitions of each topic.
pub const PARTITIONS: usize = 4;
/// Longest value.
pub const VALUE_BYTES_MAX: u64 = 3_000;
/// Bits of a timestamp that hold the number; the thread stands above them.
const NUMBER_BITS: u32 = 40;
const TOMBSTONE: &str = "gone-";

/// Which record: the thread that sent it and its number there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Id {
    pub thread: usize,
    pub number: u64,
}

/// A record as it is sent.
#[derive(Clone, Debug)]
pub struct Made {
    pub id: Id,
    /// Which of [`TOPICS`].
    pub topic: usize,
    /// The partition, where the sender names it.
    pub partition: Option<usize>,
    /// The key; null differs from empty.
    pub key: Option<Vec<u8>>,
    /// The value; null is a tombstone.
    pub value: Option<Vec<u8>>,
    /// A header: its value, which may be null.
    pub header: Option<Option<[u8; 8]>>,
    /// No broker ever takes it: it must end among the set-aside ones.
    pub is_poison: bool,
}

/// What the contract keeps in order: a thread's records with one key, or with one partition
/// named by the sender.
pub type Stream = (usize, usize, Option<usize>, Option<Vec<u8>>);

impl Made {
    pub fn new(seed: u64, id: Id) -> Made {
        let mut r = Random::new(seed ^ (id.number << 8) ^ id.thread as u64);
        let topic = r.within(0, TOPICS.len() as u64) as usize;
        let named = r.within(0, PARTITIONS as u64) as usize;
        let user = format!("user-{}-{}", id.thread, r.within(0, 6)).into_bytes();
        let (partition, key) = match r.within(0, 8) {
            0 => (None, None),
            1 => (Some(named), None),
            2 => (Some(named), Some(Vec::new())),
            3 => (Some(named), Some(user)),
            _ => (None, Some(user)),
        };
        let is_poison = r.within(0, 200) == 0;
        let header = match r.within(0, 6) {
            0 => Some(None),
            1 => Some(Some(r.number().to_le_bytes())),
            _ => None,
        };
        let mut value = vec![0; r.within(0, VALUE_BYTES_MAX) as usize];
        for chunk in value.chunks_mut(8) {
            chunk.copy_from_slice(&r.number().to_le_bytes()[..chunk.len()]);
        }
        let value = Some(value);
        let made = Made { id, topic, partition, key, value, header, is_poison };
        if r.within(0, 40) == 0 { made.into_tombstone() } else { made }
    }

    /// A tombstone can't name a time of its own, so its key says which it is.
    fn into_tombstone(self) -> Made {
        let key = format!("{TOMBSTONE}{}-{}", self.id.thread, self.id.number).into_bytes();
        Made {
            partition: None,
            key: Some(key),
            value: None,
            header: None,
            is_poison: false,
            ..self
        }
    }

    fn timestamp_ms(&self) -> i64 {
        ((self.id.thread as i64) << NUMBER_BITS) | self.id.number as i64
    }

    /// `None` for a record without a key and a partition: nothing keeps those in order.
    pub fn stream(&self) -> Option<Stream> {
        let key = if self.partition.is_some() { None } else { self.key.clone() };
        (self.partition.is_some() || key.is_some()).then_some((
            self.id.thread,
            self.topic,
            self.partition,
            key,
        ))
    }

    pub fn send(&self, topics: &[Topic]) -> Result<(), SendError> {
        let topic = &topics[self.topic];
        let key = self.key.as_deref();
        let Some(value) = self.value.as_deref() else {
            return topic.tombstone(key.unwrap_or_default());
        };
        let mut record = topic.record(value).timestamp(self.timestamp_ms());
        if let Some(key) = key {
            record = record.key(key);
        }
        if let Some(partition) = self.partition {
            record = record.partition(partition as i32);
        }
        match &self.header {
            None => record,
            Some(None) => record.header_null("h"),
            Some(Some(value)) => record.header("h", value),
        }
        .send()
    }

    /// The checksum that [`seen`] gives for it.
    pub fn checksum(&self) -> u32 {
        let mut crc = Checksum::default();
        crc.part(Some(TOPICS[self.topic].as_bytes()));
        let partition = self.partition.map_or(ANY_PARTITION, |p| p as i32);
        crc.part(Some(&partition.to_le_bytes()));
        crc.part(self.key.as_deref());
        crc.part(self.value.as_deref());
        if let Some(value) = &self.header {
            crc.part(Some(b"h"));
            crc.part(value.as_ref().map(|v| &v[..]));
        }
        crc.0.finalize()
    }
}

#[derive(Default)]
struct Checksum(crc32fast::Hasher);

impl Checksum {
    /// A null part differs from an empty one.
    fn part(&mut self, bytes: Option<&[u8]>) {
        self.0.update(&bytes.map_or(u64::MAX, |b| b.len() as u64).to_le_bytes());
        self.0.update(bytes.unwrap_or_default());
    }
}

/// Which record a time and a key name.
pub fn id_of(timestamp_ms: i64, key: Option<&[u8]>) -> Option<Id> {
    if let Some(rest) = key.and_then(|k| k.strip_prefix(TOMBSTONE.as_bytes())) {
        let (thread, number) = std::str::from_utf8(rest).ok()?.split_once('-')?;
        return Some(Id { thread: thread.parse().ok()?, number: number.parse().ok()? });
    }
    let number = timestamp_ms as u64 & ((1 << NUMBER_BITS) - 1);
    Some(Id { thread: usize::try_from(timestamp_ms >> NUMBER_BITS).ok()?, number })
}

/// Which record a sink was handed, and the checksum of all its parts.
pub fn seen(topic: &str, record: &RecordView<'_>) -> Option<(Id, u32)> {
    let id = id_of(record.timestamp_ms, record.key())?;
    let mut crc = Checksum::default();
    crc.part(Some(topic.as_bytes()));
    crc.part(Some(&record.partition.to_le_bytes()));
    crc.part(record.key());
    crc.part(record.value());
    for header in record.headers() {
        crc.part(Some(header.name.as_bytes()));
        crc.part(header.value);
    }
    Some((id, crc.0.finalize()))
}
