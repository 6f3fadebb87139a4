//! A Kafka that stands still, dies or isn't there: everything is taken and arrives once, in order.
#![cfg(feature = "kafka")]

mod kafka_common;

use forebay::{Pipeline, Stats};
use forebay_testkit::audit::Audit;
use forebay_testkit::{Kafka, KafkaOptions, dead_port, heavy, private_dir, say, until};
use kafka_common as common;
use std::time::{Duration, Instant};

const RECORDS_PER_S: u64 = 50_000;
const HEALTHY: Duration = Duration::from_secs(4);
const OUTAGE: Duration = Duration::from_secs(10);
/// Longest wait for anything.
const WHILE: Duration = Duration::from_secs(120);

/// How the broker is out of reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    None,
    Paused,
    Killed,
}

/// The same load under each fault: 4 s healthy, 10 s of the fault, 3 s after it. A broker that is
/// late journals without being at fault: how much is journaled while all is well is printed. That
/// it is nothing where only a fault of ours could: tests/kafka_healthy.rs.
fn outage(fault: Fault) {
    let _heavy = heavy();
    let Some(mut kafka) = Kafka::start(KafkaOptions::default()) else { return };
    common::warm_up(&kafka);
    let topic_name = kafka.topic("outage", common::PARTITIONS);
    let dir = private_dir();
    let (pipeline, topic) =
        common::open_with(kafka.brokers(), dir.path(), &topic_name, common::roomy);

    let load = common::Load::start(&topic, 2, RECORDS_PER_S, u64::MAX);
    std::thread::sleep(Duration::from_secs(1));
    let healthy = common::cores_used(|| std::thread::sleep(HEALTHY - Duration::from_secs(1)));
    let spilled_before = pipeline.stats().books.spilled;
    match fault {
        Fault::None => {}
        Fault::Paused => kafka.pause(),
        Fault::Killed => kafka.kill(),
    }
    let appended_before = kafka.log_bytes(&topic_name);
    let delivered_before = pipeline.stats().books.delivered;
    let mut worst_unsafe_ms = 0;
    let faulted = common::cores_used(|| {
        for _ in 0..OUTAGE.as_millis() / 100 {
            std::thread::sleep(Duration::from_millis(100));
            worst_unsafe_ms = worst_unsafe_ms.max(pipeline.stats().oldest_unsafe_ms);
        }
    });
    let appended_after = kafka.log_bytes(&topic_name);
    if fault != Fault::None {
        until(WHILE, "what waits is journaled", || pipeline.stats().books.in_wal > 0);
    }
    let in_fault = pipeline.stats();
    match fault {
        Fault::None => {}
        Fault::Paused => kafka.resume(),
        Fault::Killed => drop(kafka.restart()),
    }
    let first = first_report(&pipeline);
    std::thread::sleep(Duration::from_secs(3));
    let sent = load.stop();
    let mut draining = Duration::ZERO;
    let drain = common::cores_used(|| {
        let start = Instant::now();
        common::flush(&pipeline);
        draining = start.elapsed();
    });
    let report = pipeline.close(Duration::from_secs(60)).expect("it closes");

    let counts = common::counts(&sent);
    let refused: u64 = sent.iter().map(|s| s.refused).sum();
    let records = kafka.oracle().read(&topic_name).unwrap();
    let audit = Audit::new(&records, common::stream);
    say(&format!(
        "broker {fault:?}: {}; {}; cores {healthy:.2} healthy, {faulted:.2} in the fault, \
         {drain:.2} in {draining:.1?} of draining; oldest unsafe {worst_unsafe_ms} ms; \
         journaled {spilled_before} before the fault; broker's log grew by {} bytes in the fault; \
         the first report {first:.1?} after it",
        audit.line(&counts),
        common::books_line(&report.stats),
        appended_after - appended_before
    ));
    let delivered = in_fault.books.delivered - delivered_before;
    assert_fault_took_place(fault, &in_fault, appended_after - appended_before, delivered);
    assert_eq!(refused, 0, "refused");
    common::assert_all_delivered(&report, counts.iter().sum(), 0);
    audit.assert_exact(&counts);
    records.iter().for_each(common::assert_as_sent);
}

/// Waits until something is reported that wasn't yet; gives the time that took.
fn first_report(pipeline: &Pipeline) -> Duration {
    let (before, start) = (pipeline.stats().books.delivered, Instant::now());
    while pipeline.stats().books.delivered == before {
        assert!(start.elapsed() < Duration::from_secs(120), "{:?}", pipeline.stats());
        std::thread::sleep(Duration::from_millis(5));
    }
    start.elapsed()
}

/// A fault that never happened proves nothing.
fn assert_fault_took_place(fault: Fault, in_fault: &Stats, appended_bytes: u64, delivered: u64) {
    if fault == Fault::None {
        assert!(appended_bytes > 0 && delivered > 0, "the control appended nothing: {in_fault:?}");
    } else {
        assert_eq!(appended_bytes, 0, "the broker went on appending");
        assert!(in_fault.books.in_wal > 0, "nothing was journaled: {in_fault:?}");
    }
}

#[test]
fn control_without_a_fault() {
    outage(Fault::None);
}

#[test]
fn a_broker_paused_for_ten_seconds() {
    outage(Fault::Paused);
}

#[test]
fn a_broker_killed_and_restarted() {
    outage(Fault::Killed);
}

#[test]
fn a_pipeline_closed_in_an_outage_is_delivered_by_the_next() {
    let _heavy = heavy();
    let Some(mut kafka) = Kafka::start(KafkaOptions::default()) else { return };
    let topic_name = kafka.topic("closed", common::PARTITIONS);
    let dir = private_dir();
    let (pipeline, topic) = common::open(kafka.brokers(), dir.path(), &topic_name);
    kafka.pause();
    let sent = common::Load::start(&topic, 2, RECORDS_PER_S, 50_000).finish();
    let report = pipeline.close(Duration::from_secs(2)).expect("it closes");
    let books = report.stats.books;
    assert!(report.complete && books.balanced(), "{report:?}");
    assert_eq!((books.accepted, books.in_lanes, books.in_flight), (100_000, 0, 0), "{books:?}");
    assert!(books.in_wal > 0, "{books:?}");
    let closed_in = report.took;

    kafka.resume();
    let (pipeline, _topic) = common::open(kafka.brokers(), dir.path(), &topic_name);
    common::flush(&pipeline);
    let report = pipeline.close(Duration::from_secs(60)).expect("it closes");
    assert_eq!(report.stats.books.recovered, books.in_wal);
    common::assert_all_delivered(&report, 0, 0);

    let counts = common::counts(&sent);
    let records = kafka.oracle().read(&topic_name).unwrap();
    let audit = Audit::new(&records, common::stream);
    say(&format!(
        "closed in an outage (in {closed_in:.1?}): {} in the log; next run: {}; {}",
        books.in_wal,
        audit.line(&counts),
        common::books_line(&report.stats)
    ));
    audit.assert_whole(&counts);
    // What the paused broker had in its sockets it appends when it goes on.
    assert!(audit.duplicates <= 131_072, "more than could be in flight");
}

#[test]
fn brokers_that_do_not_resolve_open_and_spill_and_say_disconnected() {
    let dir = private_dir();
    let builder = Pipeline::builder().brokers("no-such-host.invalid:9092").wal_dir(dir.path());
    let pipeline = builder.open().expect("it opens without Kafka");
    let topic = pipeline.topic("t").expect("a good name");
    for _ in 0..1000 {
        topic.send(b"value").unwrap();
    }
    until(WHILE, "all is in the log and the failure known", || {
        let stats = pipeline.stats();
        stats.books.in_wal == 1000 && stats.states.disconnected.is_some()
    });
    let stats = pipeline.stats();
    assert!(stats.states.disconnected.is_some(), "{stats:?}");
    assert!(stats.books.balanced(), "{stats:?}");
    assert!(pipeline.ready(Duration::from_millis(100)).is_err());
    let report = pipeline.close(Duration::from_millis(500)).expect("it closes");
    assert!(report.complete, "{report:?}");
    assert_eq!(report.stats.books.in_wal, 1000);
}

#[test]
fn drop_does_not_wait_for_kafka_and_loses_nothing() {
    let dir = private_dir();
    let brokers = format!("127.0.0.1:{}", dead_port());
    let open = || Pipeline::builder().brokers(brokers.as_str()).wal_dir(dir.path()).open().unwrap();
    let pipeline = open();
    let topic = pipeline.topic("t").unwrap();
    for _ in 0..1000 {
        topic.send(b"value").unwrap();
    }
    let start = Instant::now();
    drop(pipeline);
    // Whoever waits for this Kafka waits for ever.
    say(&format!("drop took {:.1?}", start.elapsed()));
    assert_eq!(topic.send(b"late"), Err(forebay::SendError::Closed));
    let next = open();
    assert_eq!(next.stats().books.recovered, 1000);
}
