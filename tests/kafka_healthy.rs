//! A healthy Kafka: what was sent is there once, as it was sent, and nothing was journaled.
#![cfg(feature = "kafka")]

mod kafka_common;

use forebay_testkit::audit::{Audit, Id};
use forebay_testkit::{Kafka, heavy, private_dir, say};
use kafka_common as common;
use std::time::{Duration, Instant};

#[test]
fn two_threads_every_kind_of_record() {
    let _heavy = heavy();
    let Some(kafka) = Kafka::shared() else { return };
    let topic_name = kafka.topic("healthy", common::PARTITIONS);
    let dir = private_dir();
    // A broker or a machine that stands still journals nothing with these settings: only a fault of
    // ours does.
    let (pipeline, topic) =
        common::open_with(kafka.brokers(), dir.path(), &topic_name, common::patient);

    let start = Instant::now();
    let load = common::Load::start(&topic, 2, 100_000, 100_000);
    let mut sent = Vec::new();
    let cores = common::cores_used(|| sent = load.finish());
    common::flush(&pipeline);
    let took = start.elapsed();
    let stats = pipeline.stats();
    assert_eq!(stats.books.spilled, 0, "{stats:?}");
    assert!(stats.books.balanced(), "{stats:?}");
    let report = pipeline.close(Duration::from_secs(60)).expect("it closes");
    let counts = common::counts(&sent);
    common::assert_all_delivered(&report, 200_000, 0);

    let records = kafka.oracle().read(&topic_name).unwrap();
    let audit = Audit::new(&records, common::stream);
    say(&format!(
        "healthy: {}; {}; {took:.1?}, {cores:.2} cores",
        audit.line(&counts),
        common::books_line(&report.stats)
    ));
    audit.assert_exact(&counts);
    for record in &records {
        common::assert_as_sent(record);
        let id = Id::of(record).unwrap();
        let (before, after) = sent[id.source as usize].times_ms[id.number as usize];
        assert!(
            (before..=after).contains(&record.timestamp_ms),
            "{id:?} was sent between {before} and {after}, its timestamp is {}",
            record.timestamp_ms
        );
    }
    let lag_ms = sent.iter().map(|s| s.clock_lag_ms).max().unwrap_or(0);
    say(&format!("healthy: the clock of the timestamps is at most {lag_ms} ms late"));
}

#[test]
fn a_tombstone_stands_between_its_key_s_values_and_a_time_of_one_s_own_is_kept() {
    let Some(kafka) = Kafka::shared() else { return };
    let topic_name = kafka.topic("tombstone", common::PARTITIONS);
    let dir = private_dir();
    let (pipeline, topic) = common::open(kafka.brokers(), dir.path(), &topic_name);
    topic.record(b"one").key(b"k").timestamp(1_600_000_000_001).send().unwrap();
    topic.tombstone(b"k").unwrap();
    topic.record(b"two").key(b"k").header_null("gone").send().unwrap();
    topic.record(b"").key(b"k").send().unwrap();
    topic.record(b"no key but an empty one").key(b"").send().unwrap();
    common::flush(&pipeline);
    let report = pipeline.close(Duration::from_secs(60)).expect("it closes");
    common::assert_all_delivered(&report, 5, 0);
    let records = kafka.oracle().read(&topic_name).unwrap();
    let of_k: Vec<_> = records.iter().filter(|r| r.key.as_deref() == Some(b"k")).collect();
    let values: Vec<_> = of_k.iter().map(|r| r.value.as_deref()).collect();
    assert_eq!(values, [Some(&b"one"[..]), None, Some(b"two"), Some(b"")]);
    assert_eq!(of_k[0].timestamp_ms, 1_600_000_000_001);
    assert_eq!(of_k[2].headers, [("gone".to_owned(), None)]);
    assert_eq!(records.iter().filter(|r| r.key.as_deref() == Some(b"")).count(), 1);
}

#[test]
fn a_tracked_record_is_delivered_when_its_receipt_says_so() {
    let Some(kafka) = Kafka::shared() else { return };
    let topic_name = kafka.topic("tracked", 1);
    let dir = private_dir();
    let (pipeline, topic) = common::open(kafka.brokers(), dir.path(), &topic_name);
    let receipt = topic.record(b"vote").send_tracked().expect("a receipt is free");
    receipt.wait(forebay::Level::Delivered, Duration::from_secs(90)).expect("it is delivered");
    assert_eq!(kafka.oracle().end_offsets(&topic_name).unwrap(), [1]);
    let report = pipeline.close(Duration::from_secs(60)).expect("it closes");
    common::assert_all_delivered(&report, 1, 0);
}

#[test]
fn at_most_once_needs_no_directory() {
    let Some(kafka) = Kafka::shared() else { return };
    let topic_name = kafka.topic("at-most-once", common::PARTITIONS);
    let builder = forebay::Pipeline::builder().brokers(kafka.brokers()).at_most_once();
    let pipeline = builder.open().expect("it opens");
    let topic = pipeline.topic(&topic_name).expect("a good name");
    pipeline.ready(Duration::from_secs(90)).expect("the broker is there");
    let sent = common::Load::start(&topic, 2, 50_000, 10_000).finish();
    let report = pipeline.close(Duration::from_secs(90)).expect("it closes");
    let refused = sent.iter().map(|s| s.refused).sum();
    common::assert_all_delivered(&report, 20_000, refused);
    assert_eq!(report.stats.books.spilled, 0);
    let records = kafka.oracle().read(&topic_name).unwrap();
    Audit::new(&records, common::stream).assert_exact(&common::counts(&sent));
}
