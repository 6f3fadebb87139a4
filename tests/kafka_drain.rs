//! How fast a backlog drains, against what the same broker takes from a plain producer. By hand
//! only (`FOREBAY_SCENES=all`): the figures are printed and not judged, the records are.
#![cfg(feature = "kafka")]

mod scenes_common;

use forebay::Pipeline;
use forebay_testkit::{Kafka, KafkaOptions, heavy, private_dir, say};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use scenes_common::{common, left_out};
use std::time::{Duration, Instant};

/// Enough for several seconds, so that the ramp at the beginning is over for most of it.
const RECORDS: u64 = 3_000_000;
const VALUE: [u8; 100] = [b'v'; 100];
const ROUNDS: u32 = 3;
const LIMIT: Duration = Duration::from_secs(120);

fn key(number: u64) -> [u8; 8] {
    (number % 500).to_be_bytes()
}

/// When how many were delivered.
#[derive(Default)]
struct Curve(Vec<(Instant, u64)>);

impl Curve {
    fn note(&mut self, delivered: u64) {
        self.0.push((Instant::now(), delivered));
    }

    /// Records a second over the middle of it: from 40 % to 95 %.
    fn per_s(&self) -> f64 {
        let reached = |percent: u64| {
            self.0.iter().find(|(_, n)| *n >= RECORDS * percent / 100).expect("it got there")
        };
        let (from, to) = (reached(40), reached(95));
        (to.1 - from.1) as f64 / (to.0 - from.0).as_secs_f64()
    }

    fn whole(&self) -> Duration {
        self.0[self.0.len() - 1].0 - self.0[0].0
    }
}

/// A plain loop over rust-rdkafka's producer, with the settings that the pipeline has.
fn plain(brokers: &str, topic: &str) -> Curve {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("enable.idempotence", "true");
    config.set("linger.ms", "5").set("queue.buffering.max.messages", "131072");
    let producer: BaseProducer = config.create().expect("good settings");
    let mut curve = Curve::default();
    curve.note(0);
    let note = |curve: &mut Curve, sent: u64| {
        producer.poll(Duration::ZERO);
        let waiting = u64::try_from(producer.in_flight_count()).unwrap_or(0);
        curve.note(sent.saturating_sub(waiting));
    };
    for number in 0..RECORDS {
        let key = key(number);
        let mut record = BaseRecord::to(topic).payload(&VALUE[..]).key(&key[..]);
        while let Err((error, back)) = producer.send(record) {
            let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
            assert_eq!(error, full);
            record = back;
            std::thread::sleep(Duration::from_micros(500));
            note(&mut curve, number);
        }
        if number % 1_000 == 0 {
            note(&mut curve, number);
        }
    }
    let start = Instant::now();
    while producer.in_flight_count() > 0 {
        assert!(start.elapsed() < LIMIT, "{} in flight", producer.in_flight_count());
        std::thread::sleep(Duration::from_millis(1));
        note(&mut curve, RECORDS);
    }
    curve.note(RECORDS);
    curve
}

/// A backlog that came together while the broker stood still.
fn backlog(kafka: &mut Kafka, topic_name: &str) -> Curve {
    let dir = private_dir();
    let builder = Pipeline::builder().brokers(kafka.brokers()).wal_dir(dir.path());
    let pipeline = builder.wal_max_bytes(4 << 30).open().expect("it opens");
    let topic = pipeline.topic(topic_name).expect("a good name");
    pipeline.ready(Duration::from_secs(60)).expect("the broker is there");
    kafka.pause();
    for number in 0..RECORDS {
        let start = Instant::now();
        while topic.record(&VALUE).key(&key(number)).send().is_err() {
            assert!(start.elapsed() < LIMIT, "{:?}", pipeline.stats());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let start = Instant::now();
    while pipeline.stats().books.in_wal < RECORDS {
        assert!(start.elapsed() < LIMIT, "{:?}", pipeline.stats());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(pipeline.stats().books.delivered, 0, "the broker didn't stand still");
    let mut curve = Curve::default();
    kafka.resume();
    curve.note(0);
    while pipeline.stats().books.delivered < RECORDS {
        assert!(start.elapsed() < LIMIT, "{:?}", pipeline.stats());
        std::thread::sleep(Duration::from_millis(2));
        curve.note(pipeline.stats().books.delivered);
    }
    let report = pipeline.close(Duration::from_secs(10)).expect("it closes");
    common::assert_all_delivered(&report, RECORDS, report.stats.books.refused);
    curve
}

#[test]
fn a_backlog_drains_as_fast_as_a_plain_producer_sends() {
    if left_out("drain against a plain producer") {
        return;
    }
    let _heavy = heavy();
    let Some(mut kafka) = Kafka::start(KafkaOptions::default()) else { return };
    common::warm_up(&kafka);
    for round in 1..=ROUNDS {
        let (theirs, ours) =
            (kafka.topic("plain", common::PARTITIONS), kafka.topic("backlog", common::PARTITIONS));
        // Which one meets the warmer broker changes from round to round.
        let (plain, drain) = if round % 2 == 0 {
            let plain = plain(kafka.brokers(), &theirs);
            (plain, backlog(&mut kafka, &ours))
        } else {
            let drain = backlog(&mut kafka, &ours);
            (plain(kafka.brokers(), &theirs), drain)
        };
        for topic in [&theirs, &ours] {
            let ends = kafka.oracle().end_offsets(topic).expect("it answers");
            assert_eq!(ends.iter().sum::<i64>(), RECORDS as i64, "{topic}");
            kafka.oracle().delete_topic(topic).expect("it is deleted");
        }
        say(&format!(
            "drain of {RECORDS} x 100 B, round {round}: {:.0}/s, a plain producer {:.0}/s: ratio \
             {:.2}; whole {:.1?} against {:.1?}",
            drain.per_s(),
            plain.per_s(),
            drain.per_s() / plain.per_s(),
            drain.whole(),
            plain.whole()
        ));
    }
}
