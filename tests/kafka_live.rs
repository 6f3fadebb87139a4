//! What is sent while a backlog drains: how long it takes to Kafka with the backlog first and with
//! live records first, and which order each keeps. The figures are printed and not judged.
#![cfg(feature = "kafka")]

mod kafka_common;

use forebay::{Level, Order, Pipeline, Topic};
use forebay_testkit::audit::{Audit, Id, Stream};
use forebay_testkit::{Kafka, KafkaOptions, heavy, private_dir, say, until};
use kafka_common as common;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const BACKLOG: u64 = 300_000;
/// So that the backlog takes seconds, on any machine.
const CAP_PER_S: u64 = 60_000;
const LIMIT: Duration = Duration::from_secs(120);
/// Different keys of one source; `common::key` makes as many.
const KEYS: u64 = 500;

fn open(
    kafka: &Kafka,
    dir: &Path,
    topic: &str,
    order: Order,
    window: Duration,
) -> (Pipeline, Topic) {
    let builder = Pipeline::builder().brokers(kafka.brokers()).wal_dir(dir).order(order);
    let builder = builder.loss_window(window);
    let builder = builder.flush_interval(Duration::from_millis(5));
    let pipeline = builder.replay_max_records_per_s(CAP_PER_S).open().expect("it opens");
    let topic = pipeline.topic(topic).expect("a good name");
    pipeline.ready(Duration::from_secs(60)).expect("the broker is there");
    (pipeline, topic)
}

/// Sends the next record of source 0; waits for room.
fn send(topic: &Topic, number: u64) {
    let id = Id { source: 0, number };
    let (key, value, start) = (common::key(id), common::value(id), Instant::now());
    while topic.record(&value).key(key.as_bytes()).send().is_err() {
        assert!(start.elapsed() < LIMIT, "no room");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What a run of tracked records saw, each sent when the one before was delivered.
#[derive(Default)]
struct Tracked {
    sent: u64,
    took: Vec<Duration>,
    /// Delivered while the backlog was still in the log.
    beside: u64,
}

impl Tracked {
    fn send(&mut self, pipeline: &Pipeline, topic: &Topic) {
        let id = Id { source: 1, number: self.sent };
        let (key, value, start) = (common::key(id), common::value(id), Instant::now());
        let record = topic.record(&value).key(key.as_bytes());
        let receipt = record.send_tracked().expect("there is room");
        receipt.wait(Level::Delivered, LIMIT).expect("it is delivered");
        self.took.push(start.elapsed());
        self.sent += 1;
        self.beside += u64::from(pipeline.stats().books.in_wal > BACKLOG / 20);
    }

    fn line(&self) -> String {
        let mut took = self.took.clone();
        took.sort_unstable();
        let at = |percent: usize| took[(took.len() - 1) * percent / 100];
        format!(
            "{} tracked, {} of them delivered beside it: p50 {:.1?}, p99 {:.1?}, most {:.1?}",
            took.len(),
            self.beside,
            at(50),
            at(99),
            at(100)
        )
    }
}

/// What came behind younger ones is the backlog, in order among itself: so many of each key.
fn overtaken(audit: &Audit) -> usize {
    let mut newest: HashMap<(u32, u64), u64> = HashMap::new();
    for disorder in &audit.disorder {
        let Id { source, number } = disorder.late;
        let before = newest.insert((source, number % KEYS), number);
        assert!(before.is_none_or(|b| b < number), "{disorder:?} came after {before:?}");
    }
    audit.disorder.len()
}

/// One pipeline with `order`, through an outage if `fault`. Whether anything was delivered beside the
/// backlog.
fn run(kafka: &mut Kafka, order: Order, fault: bool) -> bool {
    let topic_name = kafka.topic("live", common::PARTITIONS);
    let dir = private_dir();
    // Not so short that a loaded machine makes a backlog of what goes live.
    let window = Duration::from_secs(if fault { 5 } else { 60 });
    let (pipeline, topic) = open(kafka, dir.path(), &topic_name, order, window);
    let mut sent = 1_000;
    (0..sent).for_each(|number| send(&topic, number));
    common::flush(&pipeline);
    if fault {
        let before = pipeline.stats().books.delivered;
        kafka.pause();
        (sent..sent + BACKLOG).for_each(|number| send(&topic, number));
        sent += BACKLOG;
        until(LIMIT, "the backlog is in the log", || {
            let books = pipeline.stats().books;
            assert_eq!(books.delivered, before, "the broker didn't stand still");
            books.in_wal > BACKLOG * 9 / 10
        });
        kafka.resume();
    }
    // The same keys go on, 1,000 records a second, while tracked ones are sent one by one.
    let (stop, last) = (AtomicBool::new(false), AtomicU64::new(sent));
    let start = Instant::now();
    let mut tracked = Tracked::default();
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                send(&topic, last.fetch_add(1, Ordering::Relaxed));
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        while tracked.sent < 50 || pipeline.stats().books.in_wal > 0 {
            assert!(start.elapsed() < LIMIT, "{:?}", pipeline.stats());
            tracked.send(&pipeline, &topic);
            std::thread::sleep(Duration::from_millis(5));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let took = start.elapsed();
    common::flush(&pipeline);
    let closed = pipeline.close(Duration::from_secs(30)).expect("it closes");
    let counts = [last.load(Ordering::Relaxed), tracked.sent];
    let books = &closed.stats.books;
    let mut audit = Audit::new(&kafka.oracle().read(&topic_name).unwrap(), Stream::by_key);
    say(&format!(
        "{order:?}, fault {fault}, {took:.1?}: {}; {}; {}",
        tracked.line(),
        audit.line(&counts),
        common::books_line(&closed.stats)
    ));
    common::assert_all_delivered(&closed, counts.iter().sum(), books.refused);
    let overtaken = overtaken(&audit);
    if order == Order::LiveFirst && fault {
        assert!(books.spilled > BACKLOG * 9 / 10, "{books:?}");
        assert!(overtaken > 0, "{overtaken} overtaken");
        audit.disorder.clear();
    }
    // Nothing lost, nothing twice, and but for what was just taken out nothing out of order.
    audit.assert_exact(&counts);
    tracked.beside > 0
}

#[test]
fn what_is_sent_beside_a_backlog_is_delivered_at_once_with_live_records_first() {
    let _heavy = heavy();
    let Some(mut kafka) = Kafka::start(KafkaOptions::default()) else { return };
    common::warm_up(&kafka);
    run(&mut kafka, Order::LiveFirst, false);
    run(&mut kafka, Order::BacklogFirst, true);
    // The broker may go on just as librdkafka gives its connection up (after 4 s): then the first
    // live record may wait for as long as the backlog takes.
    let beside = (0..4).any(|_| run(&mut kafka, Order::LiveFirst, true));
    assert!(beside, "no live record was delivered beside the backlog, four times");
}
