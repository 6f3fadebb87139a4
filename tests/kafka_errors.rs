//! What Kafka or librdkafka refuses: named, counted, and the rest goes on.
#![cfg(feature = "kafka")]

use forebay::{OpenError, Pipeline};
use forebay_testkit::{dead_port, private_dir};
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
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", pipeline.stats());
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
