//! What a real Kafka makes of our records: codecs, large ones, nulls, headers, keys, times.
#![cfg(feature = "kafka")]

mod kafka_common;

use forebay::{Builder, Partitioner, Pipeline, SendError};
use forebay_testkit::audit::Audit;
use forebay_testkit::{Consumed, Kafka, dead_port, private_dir, say};
use kafka_common as common;
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

/// Opens with more settings, sends by `send`, closes, and reads what is in the topic.
fn round(
    kafka: &Kafka,
    topic_name: &str,
    set: impl FnOnce(Builder) -> Builder,
    send: impl FnOnce(&forebay::Topic),
) -> (forebay::Stats, Vec<Consumed>) {
    let dir = private_dir();
    let builder = Pipeline::builder().brokers(kafka.brokers()).wal_dir(dir.path());
    let pipeline = set(builder).open().expect("it opens");
    let topic = pipeline.topic(topic_name).expect("a good name");
    pipeline.ready(Duration::from_secs(90)).expect("the broker is there");
    send(&topic);
    common::flush(&pipeline);
    let report = pipeline.close(Duration::from_secs(60)).expect("it closes");
    assert!(report.complete && report.stats.books.balanced(), "{report:?}");
    (report.stats, kafka.oracle().read(topic_name).expect("the topic is read"))
}

#[test]
fn every_codec_arrives_as_it_was_sent() {
    let Some(kafka) = Kafka::shared() else { return };
    let mut plain = 0;
    let zstd = cfg!(feature = "zstd").then_some("zstd");
    for codec in ["none", "gzip", "snappy", "lz4"].into_iter().chain(zstd) {
        let topic_name = kafka.topic("codec", common::PARTITIONS);
        let mut counts = Vec::new();
        let (stats, records) = round(
            kafka,
            &topic_name,
            |b| b.extra("compression.type", codec),
            |topic| {
                counts = common::counts(&common::Load::start(topic, 2, 40_000, 10_000).finish())
            },
        );
        assert_eq!(stats.books.delivered, 20_000);
        Audit::new(&records, common::stream).assert_exact(&counts);
        records.iter().for_each(common::assert_as_sent);
        let bytes = kafka.log_bytes(&topic_name);
        say(&format!("codec {codec}: 20000 records in {bytes} bytes of the broker's log"));
        if codec == "none" {
            plain = bytes;
        } else {
            assert!(bytes < plain, "{codec}: nothing was compressed");
        }
    }
}

#[test]
fn records_of_a_megabyte_and_an_eighth_of_a_lane() {
    let Some(kafka) = Kafka::shared() else { return };
    let topic_name = kafka.topic_with("large", 1, &[("max.message.bytes", "3000000")]);
    let most = 2_000_000;
    let value = |n: usize| vec![b'a' + (n % 26) as u8; most - n * 90_000];
    let set = |b: Builder| b.record_bytes_max(most).lane_bytes(16 << 20).wal_max_bytes(256 << 20);
    let (stats, records) = round(kafka, &topic_name, set, |topic| {
        for n in 0..20 {
            topic.send_timeout(&value(n), Duration::from_secs(60)).expect("there is room in time");
        }
        assert_eq!(topic.send(&vec![0; most + 1]), Err(SendError::TooLarge));
    });
    assert_eq!((stats.books.delivered, stats.books.refused), (20, 1));
    let values: Vec<_> = records.iter().filter_map(|r| r.value.clone()).collect();
    assert_eq!(values, (0..20).map(value).collect::<Vec<_>>());
    let dir = private_dir();
    let builder = Pipeline::builder().brokers(kafka.brokers()).wal_dir(dir.path());
    let refused = builder.record_bytes_max(most).open().err().map(|e| e.to_string());
    assert!(refused.as_ref().is_some_and(|e| e.contains("lane_bytes")), "{refused:?}");
}

/// The largest record of the default settings, against a topic with Kafka's own default limit: over
/// the log and a next run, and directly.
#[test]
fn a_megabyte_by_default_goes_through_the_log_too() {
    let Some(kafka) = Kafka::shared() else { return };
    let topic_name = kafka.topic("megabyte", 1);
    let value = |n: usize| vec![b'a' + n as u8; 1_000_000 - n];
    let dir = private_dir();
    let open = |brokers: &str| {
        Pipeline::builder().brokers(brokers).wal_dir(dir.path()).open().expect("it opens")
    };
    let send = |topic: &forebay::Topic, numbers: std::ops::Range<usize>| {
        for n in numbers {
            topic.send_timeout(&value(n), Duration::from_secs(60)).expect("there is room in time");
        }
        assert_eq!(topic.send(&[0; 1_000_001]), Err(SendError::TooLarge));
    };
    let pipeline = open(&format!("127.0.0.1:{}", dead_port()));
    send(&pipeline.topic(&topic_name).unwrap(), 0..10);
    let report = pipeline.close(Duration::from_secs(1)).unwrap();
    assert_eq!(report.stats.books.in_wal, 10, "{report:?}");
    let pipeline = open(kafka.brokers());
    send(&pipeline.topic(&topic_name).unwrap(), 10..20);
    common::flush(&pipeline);
    let report = pipeline.close(Duration::from_secs(60)).unwrap();
    assert_eq!((report.stats.books.recovered, report.stats.books.delivered), (10, 20));
    let records = kafka.oracle().read(&topic_name).unwrap();
    let values: Vec<_> = records.into_iter().filter_map(|r| r.value).collect();
    assert!(values == (0..20).map(value).collect::<Vec<_>>(), "{} records", values.len());
}

#[test]
fn nulls_and_empties_and_sixteen_headers() {
    let Some(kafka) = Kafka::shared() else { return };
    let topic_name = kafka.topic("shapes", 2);
    let names: Vec<String> = (0..17).map(|n| format!("header-{n}")).collect();
    let values: Vec<Vec<u8>> = (0..16).map(|n| vec![n as u8; n * 10]).collect();
    let (stats, records) = round(
        kafka,
        &topic_name,
        |b| b,
        |topic| {
            topic.record(b"").partition(1).send().unwrap();
            topic.tombstone(b"key").unwrap();
            let mut full = topic.record(b"full").key(b"").partition(0);
            for (name, value) in names.iter().zip(&values) {
                full = if value.len() == 50 {
                    full.header_null(name)
                } else {
                    full.header(name, value)
                };
            }
            full.send().unwrap();
            let mut over = topic.record(b"over");
            for name in &names {
                over = over.header(name, b"x");
            }
            assert!(over.send().is_err(), "a seventeenth header");
        },
    );
    assert_eq!((stats.books.delivered, stats.books.refused), (3, 1));
    let of = |value: Option<&[u8]>| {
        records.iter().find(|r| r.value.as_deref() == value).expect("it arrived")
    };
    assert_eq!((of(Some(b"")).partition, &of(Some(b"")).key), (1, &None));
    assert_eq!(of(None).key.as_deref(), Some(&b"key"[..]));
    let full = of(Some(b"full"));
    assert_eq!((full.partition, full.key.as_deref()), (0, Some(&b""[..])));
    let wanted: Vec<_> = names
        .iter()
        .zip(&values)
        .map(|(name, value)| (name.clone(), (value.len() != 50).then(|| value.clone())))
        .collect();
    assert_eq!(full.headers, wanted);
}

/// `Partitioner::Murmur2` sends a key where Kafka's own Java producer sends it.
#[test]
fn keys_go_where_java_sends_them() {
    let Some(kafka) = Kafka::shared() else { return };
    let (theirs, ours) = (kafka.topic("java", 7), kafka.topic("murmur2", 7));
    let keys: Vec<Vec<u8>> =
        (0..40u8).map(|n| (0..=n).map(|b| b.wrapping_mul(37) ^ n).collect()).collect();
    for key in &keys {
        kafka.oracle().produce(&theirs, None, None, Some(key), Some(b"v"), &[]).unwrap();
    }
    let (_, records) = round(
        kafka,
        &ours,
        |b| b.partitioner(Partitioner::Murmur2),
        |topic| keys.iter().for_each(|key| topic.record(b"v").key(key).send().unwrap()),
    );
    let homes = |records: &[Consumed]| -> HashMap<Vec<u8>, i32> {
        records.iter().map(|r| (r.key.clone().expect("a key"), r.partition)).collect()
    };
    let (theirs, ours) = (homes(&kafka.oracle().read(&theirs).unwrap()), homes(&records));
    assert_eq!((theirs.len(), &theirs), (keys.len(), &ours));
    let used: std::collections::HashSet<_> = theirs.values().collect();
    say(&format!(
        "murmur2: {} keys as Java sends them, {} of 7 partitions",
        keys.len(),
        used.len()
    ));
}

#[test]
fn times_survive_the_log_and_the_next_run() {
    let Some(kafka) = Kafka::shared() else { return };
    let topic_name = kafka.topic("times", common::PARTITIONS);
    let dir = private_dir();
    let open = |brokers: &str, dir: &Path| {
        Pipeline::builder().brokers(brokers).wal_dir(dir).open().expect("it opens")
    };
    let pipeline = open(&format!("127.0.0.1:{}", dead_port()), dir.path());
    let topic = pipeline.topic(&topic_name).unwrap();
    topic.record(b"own").key(b"own").timestamp(1_500_000_000_123).send().unwrap();
    let before = common::unix_ms();
    for n in 0..1_000u32 {
        topic.record(&n.to_be_bytes()).key(b"now").send().unwrap();
    }
    let after = common::unix_ms();
    let report = pipeline.close(Duration::from_millis(100)).unwrap();
    assert_eq!(report.stats.books.in_wal, 1_001);
    std::thread::sleep(Duration::from_millis(500));
    let pipeline = open(kafka.brokers(), dir.path());
    let opened = common::unix_ms();
    common::flush(&pipeline);
    pipeline.close(Duration::from_secs(60)).unwrap();
    let records = kafka.oracle().read(&topic_name).unwrap();
    assert_eq!(records.len(), 1_001);
    for record in records {
        let allowed = match record.key.as_deref() {
            Some(b"own") => 1_500_000_000_123..=1_500_000_000_123,
            _ => before..=after,
        };
        assert!(allowed.contains(&record.timestamp_ms), "{record:?}, replayed after {opened}");
    }
}

/// The broker refuses the whole request in which one time is too old: that one is set aside, and
/// the others are delivered.
#[test]
fn a_time_that_the_broker_refuses_is_set_aside() {
    let Some(kafka) = Kafka::shared() else { return };
    let limits = [("message.timestamp.before.max.ms", "3600000")];
    let topic_name = kafka.topic_with("old", 1, &limits);
    let (now, day_ms) = (common::unix_ms(), 86_400_000);
    let (stats, records) = round(
        kafka,
        &topic_name,
        |b| b,
        |topic| {
            for n in 0..21i64 {
                let (text, time) = (n.to_string(), if n == 10 { now - day_ms } else { now - n });
                let record = topic.record(text.as_bytes()).key(b"k").header("n", text.as_bytes());
                record.timestamp(time).send().unwrap();
            }
        },
    );
    let books = stats.books;
    let aside: Vec<_> = stats.topics.iter().flat_map(|t| &t.set_aside).collect();
    say(&format!(
        "too old for the broker: {} delivered, set aside {aside:?}, reordered {}",
        books.delivered, books.reordered
    ));
    assert_eq!((books.delivered, books.set_aside, books.dropped), (20, 1, 0), "{books:?}");
    assert_eq!(aside, [&("timestamp_invalid", 1)]);
    assert!(books.reordered > 0, "nothing was sent again: {books:?}");
    // What was sent again is what it was: its time, too.
    let wanted: Vec<i64> = (0..21).filter(|n| *n != 10).collect();
    // Not in their order: they may have left in more than one request.
    let mut found: Vec<i64> = records.iter().map(|r| now - r.timestamp_ms).collect();
    found.sort_unstable();
    assert_eq!(found, wanted, "times");
    for record in &records {
        let text = (now - record.timestamp_ms).to_string().into_bytes();
        assert_eq!(record.header("n"), Some(&*text), "{record:?}");
        assert_eq!((&record.key, &record.value), (&Some(b"k".to_vec()), &Some(text)));
    }
}
