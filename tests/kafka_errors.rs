//! What Kafka or librdkafka refuses: named, counted, and the rest goes on.
#![cfg(feature = "kafka")]

mod kafka_common;

use forebay::{OpenError, Pipeline};
use forebay_testkit::{Kafka, dead_port, say};
use kafka_common as common;
use std::time::{Duration, Instant};

#[test]
fn a_property_that_the_pipeline_owns_is_refused_and_named() {
    for (name, value) in
        [("enable.idempotence", "false"), ("acks", "1"), ("message.timeout.ms", "1000")]
    {
        let dir = tempfile::tempdir().unwrap();
        let builder = Pipeline::builder().brokers("127.0.0.1:1").wal_dir(dir.path());
        let refused = builder.extra(name, value).open().err();
        let text = refused.as_ref().map(ToString::to_string).unwrap_or_default();
        assert!(matches!(refused, Some(OpenError::Config(_))), "{name}: {refused:?}");
        assert!(text.contains(name), "{text}");
    }
}

#[test]
fn a_property_that_librdkafka_does_not_know_is_refused_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let builder = Pipeline::builder().brokers("127.0.0.1:1").wal_dir(dir.path());
    let refused = builder.extra("no.such.property", "1").open().err();
    let text = refused.map(|e| e.to_string()).unwrap_or_default();
    assert!(text.contains("no.such.property"), "{text:?}");
}

#[test]
fn a_name_that_kafka_does_not_allow_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let brokers = format!("127.0.0.1:{}", dead_port());
    let pipeline = Pipeline::builder().brokers(brokers).wal_dir(dir.path()).open().unwrap();
    for name in ["", ".", "..", "a b", "a/b", "ä", &"x".repeat(250)] {
        let refused = pipeline.topic(name).err();
        assert!(refused.is_some_and(|e| e.to_string().contains("249")), "{name:?}");
    }
}

#[test]
fn a_record_too_large_for_its_topic_is_set_aside_alone() {
    let Some(kafka) = Kafka::shared() else { return };
    let topic_name = kafka.topic_with("small", 1, &[("max.message.bytes", "20000")]);
    let dir = tempfile::tempdir().unwrap();
    let (pipeline, topic) = common::open(kafka.brokers(), dir.path(), &topic_name);
    let large = vec![b'x'; 50_000];
    for n in 0..200u32 {
        topic.record(format!("good {n}").as_bytes()).key(b"k").send().unwrap();
        if n == 100 {
            topic.record(&large).key(b"k").send().unwrap();
        }
    }
    common::flush(&pipeline);
    let report = pipeline.close(Duration::from_secs(10)).expect("it closes");
    let books = report.stats.books;
    assert!(report.complete && books.balanced(), "{report:?}");
    assert_eq!((books.accepted, books.delivered, books.set_aside), (201, 200, 1), "{books:?}");
    let records = kafka.oracle().read(&topic_name).unwrap();
    let mut distinct: Vec<_> = records.iter().map(|r| r.value.clone()).collect();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), 200);
    say(&format!("too large for its topic: 1 set aside, {} records for 200", records.len()));
}

#[test]
fn an_unknown_topic_is_set_aside_or_waits_and_others_go_on() {
    let Some(kafka) = Kafka::shared() else { return };
    let topic_name = kafka.topic("known", 1);
    let dir = tempfile::tempdir().unwrap();
    let (pipeline, known) = common::open(kafka.brokers(), dir.path(), &topic_name);
    let unknown = pipeline.topic("nobody-made-this-one").unwrap();
    for _ in 0..100 {
        known.send(b"known").unwrap();
        unknown.send(b"unknown").unwrap();
    }
    let start = Instant::now();
    while pipeline.stats().books.delivered < 100 {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", pipeline.stats());
        std::thread::sleep(Duration::from_millis(20));
    }
    let known_after = start.elapsed();
    while pipeline.stats().books.set_aside < 100 {
        assert!(start.elapsed() < Duration::from_secs(90), "{:?}", pipeline.stats());
        std::thread::sleep(Duration::from_millis(100));
    }
    let aside_after = start.elapsed();
    let report = pipeline.close(Duration::from_secs(10)).expect("it closes");
    let books = report.stats.books;
    assert!(report.complete && books.balanced(), "{report:?}");
    assert_eq!((books.accepted, books.delivered, books.set_aside), (200, 100, 100), "{books:?}");
    let aside: Vec<_> = report.stats.topics.iter().flat_map(|t| &t.set_aside).collect();
    assert!(aside.iter().any(|(name, n)| *name == "topic_unavailable" && *n == 100), "{aside:?}");
    assert_eq!(kafka.oracle().end_offsets(&topic_name).unwrap(), [100]);
    say(&format!(
        "unknown topic: the known one delivered after {known_after:.1?}, 100 set aside after \
         {aside_after:.1?}"
    ));
}

#[test]
fn a_record_over_the_limit_is_refused_at_send_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let brokers = format!("127.0.0.1:{}", dead_port());
    let pipeline = Pipeline::builder().brokers(brokers).wal_dir(dir.path()).open().unwrap();
    let topic = pipeline.topic("t").unwrap();
    assert_eq!(topic.send(&vec![0; 10_000_000]), Err(forebay::SendError::TooLarge));
    assert_eq!(topic.record(b"x").partition(-2).send(), Err(forebay::SendError::BadPartition));
    topic.send(b"good").unwrap();
    let stats = pipeline.stats();
    assert_eq!((stats.books.accepted, stats.books.refused), (1, 2), "{stats:?}");
    assert!(stats.refused.contains(&("too_large", 1)), "{:?}", stats.refused);
    assert!(stats.refused.contains(&("bad_partition", 1)), "{:?}", stats.refused);
    let report = pipeline.close(Duration::from_secs(1)).expect("it closes");
    assert!(report.complete && report.stats.books.balanced(), "{report:?}");
    assert_eq!(topic.send(b"late"), Err(forebay::SendError::Closed));
}
