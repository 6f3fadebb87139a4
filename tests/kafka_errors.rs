//! What Kafka or librdkafka refuses: named, counted, and the rest goes on.
#![cfg(feature = "kafka")]

mod kafka_common;

use forebay::{OpenError, Pipeline};
use forebay_testkit::{Kafka, dead_port, private_dir, say};
use kafka_common as common;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

#[test]
fn a_property_that_the_pipeline_owns_is_refused_and_named() {
    for (name, value) in
        [("enable.idempotence", "false"), ("acks", "1"), ("message.timeout.ms", "1000")]
    {
        let dir = private_dir();
        let builder = Pipeline::builder().brokers("127.0.0.1:1").wal_dir(dir.path());
        let refused = builder.extra(name, value).open().err();
        let text = refused.as_ref().map(ToString::to_string).unwrap_or_default();
        assert!(matches!(refused, Some(OpenError::Config(_))), "{name}: {refused:?}");
        assert!(text.contains(name), "{text}");
    }
}

#[test]
fn a_property_that_librdkafka_does_not_know_is_refused_and_named() {
    let dir = private_dir();
    let builder = Pipeline::builder().brokers("127.0.0.1:1").wal_dir(dir.path());
    let refused = builder.extra("no.such.property", "1").open().err();
    let text = refused.map(|e| e.to_string()).unwrap_or_default();
    assert!(text.contains("no.such.property"), "{text:?}");
}

#[test]
fn a_name_that_kafka_does_not_allow_is_refused() {
    let dir = private_dir();
    let brokers = format!("127.0.0.1:{}", dead_port());
    let pipeline = Pipeline::builder().brokers(brokers).wal_dir(dir.path()).open().unwrap();
    for name in ["", ".", "..", "a b", "a/b", "ä", &"x".repeat(250)] {
        let refused = pipeline.topic(name).err();
        assert!(refused.is_some_and(|e| e.to_string().contains("249")), "{name:?}");
    }
}

/// The broker refuses a request over the topic's limit as a whole. Until such a request is
/// bisected, the records that shared it are set aside too: none is lost, none is silent.
#[test]
fn a_record_too_large_for_its_topic_is_set_aside_and_later_ones_go_on() {
    let Some(kafka) = Kafka::shared() else { return };
    let topic_name = kafka.topic_with("small", 1, &[("max.message.bytes", "20000")]);
    let dir = private_dir();
    let (pipeline, topic) = common::open(kafka.brokers(), dir.path(), &topic_name);
    let send = |first: u32| {
        for n in first..first + 100 {
            topic.record(format!("good {n}").as_bytes()).key(b"k").send().unwrap();
        }
    };
    send(0);
    topic.record(&vec![b'x'; 50_000]).key(b"k").send().unwrap();
    send(100);
    common::flush(&pipeline);
    send(200);
    common::flush(&pipeline);
    let report = pipeline.close(Duration::from_secs(10)).expect("it closes");
    let books = report.stats.books;
    assert!(report.complete && books.balanced(), "{report:?}");
    assert_eq!((books.accepted, books.dropped), (301, 0), "{books:?}");
    let aside: Vec<_> = report.stats.topics.iter().flat_map(|t| &t.set_aside).collect();
    assert_eq!(aside, [&("message_too_large", books.set_aside)]);
    assert!((1..=201).contains(&books.set_aside), "{books:?}");
    let records = kafka.oracle().read(&topic_name).unwrap();
    let values: BTreeSet<_> = records.iter().filter_map(|r| r.value.clone()).collect();
    assert_eq!(values.len() as u64, books.delivered);
    assert!(values.contains(&b"good 299"[..]), "what came later went on");
    say(&format!(
        "too large for its topic: {} set aside (1 alone is too large), {} delivered",
        books.set_aside, books.delivered
    ));
}

#[test]
fn an_unknown_topic_is_set_aside_or_waits_and_others_go_on() {
    let Some(kafka) = Kafka::shared() else { return };
    let topic_name = kafka.topic("known", 1);
    let dir = private_dir();
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
    let dir = private_dir();
    let brokers = format!("127.0.0.1:{}", dead_port());
    let pipeline = Pipeline::builder().brokers(brokers).wal_dir(dir.path()).open().unwrap();
    let topic = pipeline.topic("t").unwrap();
    assert_eq!(topic.send(&vec![0; 10_000_000]), Err(forebay::SendError::TooLarge));
    assert_eq!(topic.record(b"x").partition(-2).send(), Err(forebay::SendError::BadPartition));
    topic.send(b"good").unwrap();
    // A snapshot is published at a look of the flusher.
    let start = Instant::now();
    while pipeline.stats().books.accepted < 1 {
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", pipeline.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
    let stats = pipeline.stats();
    assert_eq!((stats.books.accepted, stats.books.refused), (1, 2), "{stats:?}");
    assert!(stats.refused.contains(&("too_large", 1)), "{:?}", stats.refused);
    assert!(stats.refused.contains(&("bad_partition", 1)), "{:?}", stats.refused);
    let report = pipeline.close(Duration::from_secs(1)).expect("it closes");
    assert!(report.complete && report.stats.books.balanced(), "{report:?}");
    assert_eq!(topic.send(b"late"), Err(forebay::SendError::Closed));
}
