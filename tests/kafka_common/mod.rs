//! What the scenarios against a real Kafka share: a load of known records, and the figures.

// Each test file uses its own part of this.
#![allow(dead_code)]

use forebay::{Builder, CloseReport, Pipeline, Stats, Topic};
use forebay_testkit::audit::{Id, Stream};
use forebay_testkit::{Consumed, Kafka, process};
use rustix::time::{ClockId, clock_gettime};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Partitions of the topics here.
pub const PARTITIONS: u32 = 3;
/// Bytes of a value.
const VALUE_BYTES: usize = 100;
/// Different keys of one thread.
const KEYS: u64 = 500;

/// Longer than any machine stands still: what is only late is not journaled by age.
const NEVER: Duration = Duration::from_secs(600);
/// Most that a load makes up for: a machine that stood still doesn't send at once what it owes.
const ARREARS: Duration = Duration::from_millis(100);

/// Lanes that hold many seconds of the loads here: a machine that stands still for a while makes
/// none of them full.
pub fn roomy(builder: Builder) -> Builder {
    builder.lanes(2).lane_bytes(32 << 20).lane_slots(1 << 18)
}

/// For a test that asserts that nothing was journaled: what is late is not, and half a lane holds
/// 200,000 records of [`send`] that nobody answers.
pub fn patient(builder: Builder) -> Builder {
    let builder = builder.lanes(2).lane_bytes(64 << 20).lane_slots(1 << 19);
    builder.loss_window(NEVER).flush_interval(Duration::from_millis(500))
}

/// Opens a pipeline on `dir` and waits until it knows the topic.
pub fn open(brokers: &str, dir: &Path, topic: &str) -> (Pipeline, Topic) {
    open_with(brokers, dir, topic, |builder| builder)
}

/// The same with more settings.
pub fn open_with(
    brokers: &str,
    dir: &Path,
    topic: &str,
    set: impl FnOnce(Builder) -> Builder,
) -> (Pipeline, Topic) {
    let builder = Pipeline::builder().brokers(brokers).wal_dir(dir);
    let pipeline = set(builder).open().expect("it opens");
    let topic = pipeline.topic(topic).expect("a good name");
    pipeline.ready(Duration::from_secs(90)).expect("the broker is there");
    (pipeline, topic)
}

/// Has a fresh broker take a first record: that costs it up to a second and more, which would
/// be journaled by age, and be no fault of anybody's.
pub fn warm_up(kafka: &Kafka) {
    let topic = kafka.topic("warm-up", 1);
    let builder = Pipeline::builder().brokers(kafka.brokers()).at_most_once();
    let pipeline = builder.open().expect("it opens");
    pipeline.topic(&topic).expect("a good name").send(b"first").expect("there is room");
    flush(&pipeline);
    pipeline.close(Duration::from_secs(10)).expect("it closes");
}

/// What kind of record a number stands for: everything about it follows from its [`Id`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// With a key, some with headers.
    Keyed,
    /// Without a key.
    Keyless,
    /// To a partition by name, without a key.
    Explicit(i32),
    /// A null value; the id is the key.
    Tombstone,
}

/// The kind of the record with this number.
pub fn kind(id: Id) -> Kind {
    match id.number % 20 {
        3 | 13 => Kind::Keyless,
        7 => Kind::Explicit((id.number / 20 % u64::from(PARTITIONS)) as i32),
        11 => Kind::Tombstone,
        _ => Kind::Keyed,
    }
}

/// The key of a keyed record; two sources share no key.
pub fn key(id: Id) -> String {
    format!("user-{}-{}", id.source, id.number * 7 % KEYS)
}

/// The value, and nothing else, of the record.
pub fn value(id: Id) -> Vec<u8> {
    let mut value = id.text().into_bytes();
    value.resize(VALUE_BYTES, b'a' + (id.number % 26) as u8);
    value
}

/// The stream of order that a record from Kafka stands in.
pub fn stream(record: &Consumed) -> Stream<'_> {
    match Id::of(record).map(kind) {
        Some(Kind::Explicit(partition)) => Stream::Partition(partition),
        _ => Stream::by_key(record),
    }
}

/// Asserts that a record from Kafka is what was sent under its id, but for its time.
pub fn assert_as_sent(record: &Consumed) {
    let id = Id::of(record).expect("an id");
    let (text, keyed) = (id.text(), Some(key(id).into_bytes()));
    match kind(id) {
        Kind::Keyed => {
            assert_eq!((&record.key, &record.value), (&keyed, &Some(value(id))));
            let wanted: &[(String, Option<Vec<u8>>)] = if id.number.is_multiple_of(4) {
                &[("v".to_owned(), Some(b"1".to_vec())), ("empty".to_owned(), Some(Vec::new()))]
            } else {
                &[]
            };
            assert_eq!(record.headers, wanted);
        }
        Kind::Keyless => assert_eq!((&record.key, &record.value), (&None, &Some(value(id)))),
        Kind::Explicit(partition) => {
            assert_eq!((&record.key, &record.value), (&None, &Some(value(id))));
            assert_eq!(record.partition, partition);
        }
        Kind::Tombstone => {
            assert_eq!((&record.key, &record.value), (&Some(text.into_bytes()), &None));
        }
    }
}

/// Sends the record with this id; says whether it was taken.
pub fn send(topic: &Topic, id: Id) -> bool {
    let (key, value, text) = (key(id), value(id), id.text());
    let sent = match kind(id) {
        Kind::Keyed if id.number.is_multiple_of(4) => {
            topic.record(&value).key(key.as_bytes()).header("v", b"1").header("empty", b"").send()
        }
        Kind::Keyed => topic.record(&value).key(key.as_bytes()).send(),
        Kind::Keyless => topic.send(&value),
        Kind::Explicit(partition) => topic.record(&value).partition(partition).send(),
        Kind::Tombstone => topic.tombstone(text.as_bytes()),
    };
    sent.is_ok()
}

/// Two threads that send at a steady rate until they are stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Sent>>,
}

/// What one thread sent.
#[derive(Default)]
pub struct Sent {
    /// Records taken: the first so many numbers, since a refused one is sent again.
    pub records: u64,
    /// Refusals met on the way.
    pub refused: u64,
    /// When each record was sent, by [`unix_ms`] before and after the call.
    pub times_ms: Vec<(i64, i64)>,
    /// The most milliseconds that this clock was seen behind the exact one.
    pub clock_lag_ms: i64,
}

fn clock_ms(clock: ClockId) -> i64 {
    let now = clock_gettime(clock);
    now.tv_sec * 1_000 + now.tv_nsec / 1_000_000
}

/// Milliseconds since 1970, by the clock that records are stamped with: it moves at ticks, which
/// a virtual machine may get late, and never back.
pub fn unix_ms() -> i64 {
    clock_ms(ClockId::RealtimeCoarse)
}

impl Load {
    /// Starts `threads` threads that send `records_per_s` together, each at most `limit`.
    pub fn start(topic: &Topic, threads: u32, records_per_s: u64, limit: u64) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let rate = records_per_s / u64::from(threads);
        let threads = (0..threads)
            .map(|source| {
                let (topic, stop) = (topic.clone(), stop.clone());
                std::thread::spawn(move || pace(&topic, source, rate, limit, &stop))
            })
            .collect();
        Load { stop, threads }
    }

    /// Stops the threads and says what each sent.
    pub fn stop(self) -> Vec<Sent> {
        self.stop.store(true, Ordering::Relaxed);
        self.finish()
    }

    /// Waits until each thread has sent its limit.
    pub fn finish(self) -> Vec<Sent> {
        self.threads.into_iter().map(|t| t.join().expect("a sender doesn't panic")).collect()
    }
}

fn pace(topic: &Topic, source: u32, rate: u64, limit: u64, stop: &AtomicBool) -> Sent {
    let mut sent = Sent::default();
    let mut start = Instant::now();
    while sent.records < limit && !stop.load(Ordering::Relaxed) {
        let due_at = Duration::from_micros(sent.records * 1_000_000 / rate);
        let late = start.elapsed().checked_sub(due_at);
        let Some(late) = late.filter(|late| !late.is_zero()) else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        start += late.saturating_sub(ARREARS);
        let before = unix_ms();
        let lag_ms = clock_ms(ClockId::Realtime) - unix_ms();
        sent.clock_lag_ms = sent.clock_lag_ms.max(lag_ms);
        if send(topic, Id { source, number: sent.records }) {
            sent.times_ms.push((before, unix_ms()));
            sent.records += 1;
        } else {
            sent.refused += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    sent
}

/// How many each source sent, for the audit.
pub fn counts(sent: &[Sent]) -> Vec<u64> {
    sent.iter().map(|s| s.records).collect()
}

/// The share of one core that this process uses while `part` runs.
pub fn cores_used(part: impl FnOnce()) -> f64 {
    let (cpu, start) = (process::own_cpu_time(), Instant::now());
    part();
    (process::own_cpu_time() - cpu).as_secs_f64() / start.elapsed().as_secs_f64()
}

/// Asserts that the books balance and that everything that was sent is delivered.
pub fn assert_all_delivered(report: &CloseReport, sent: u64, refused: u64) {
    let books = &report.stats.books;
    assert!(books.balanced(), "{books:?}");
    assert!(report.complete, "{report:?}");
    assert_eq!(books.accepted, sent, "{books:?}");
    assert_eq!(books.delivered, books.accepted + books.recovered, "{books:?}");
    assert_eq!(books.set_aside + books.dropped, 0, "{books:?}");
    assert_eq!(books.refused, refused, "{books:?}");
}

/// Waits until what was accepted so far is final.
pub fn flush(pipeline: &Pipeline) {
    let left = pipeline.flush(Duration::from_secs(90));
    assert!(left.is_ok(), "{left:?}: {:?}", pipeline.stats());
}

/// The books in one line.
pub fn books_line(stats: &Stats) -> String {
    let b = &stats.books;
    format!(
        "accepted {}, delivered {}, spilled {}, replayed {}, refused {}, duplicates possible {}, \
         balanced {}",
        b.accepted,
        b.delivered,
        b.spilled,
        b.replayed,
        b.refused,
        b.duplicates_possible,
        b.balanced()
    )
}
