//! A rehearsed outage on a real broker: nothing lost, nothing twice, the order kept.
#![cfg(feature = "kafka")]

mod kafka_common;

use forebay::{DrillError, Outage};
use forebay_testkit::audit::Audit;
use forebay_testkit::{Kafka, KafkaOptions, heavy, private_dir, say};
use kafka_common as common;
use std::time::{Duration, Instant};

const RECORDS_PER_S: u64 = 20_000;
const OUTAGE: Duration = Duration::from_secs(4);
/// A loaded machine may make a healthy pipeline look ill for a moment.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn a_drill_on_a_real_broker_loses_repeats_and_reorders_nothing() {
    let _heavy = heavy();
    let Some(kafka) = Kafka::start(KafkaOptions::default()) else { return };
    common::warm_up(&kafka);
    let topic_name = kafka.topic("drill", common::PARTITIONS);
    let dir = private_dir();
    let (pipeline, topic) =
        common::open_with(kafka.brokers(), dir.path(), &topic_name, common::roomy);
    let load = common::Load::start(&topic, 2, RECORDS_PER_S, u64::MAX);
    std::thread::sleep(Duration::from_secs(1));
    let begin = Instant::now();
    let mut refusals = 0;
    let report = loop {
        match pipeline.drill(Outage::lasting(OUTAGE)) {
            Ok(report) if report.cut_short.is_some() && begin.elapsed() < PATIENCE => {
                refusals += 1;
                say(&format!("the drill was cut short: {report}"));
            }
            Ok(report) => break report,
            Err(why @ (DrillError::Unhealthy(_) | DrillError::Backlog { .. }))
                if begin.elapsed() < PATIENCE =>
            {
                refusals += 1;
                say(&format!("the drill was refused: {why}"));
                std::thread::sleep(Duration::from_millis(200));
            }
            Err(why) => panic!("{why}"),
        }
    };
    let sent = load.stop();
    common::flush(&pipeline);
    let closed = pipeline.close(Duration::from_secs(60)).expect("it closes");
    let counts = common::counts(&sent);
    let records = kafka.oracle().read(&topic_name).unwrap();
    let audit = Audit::new(&records, common::stream);
    say(&format!(
        "drill at {RECORDS_PER_S}/s, refused or cut short {refusals} times before: {}; {}; {}",
        report.to_string().replace('\n', "; "),
        audit.line(&counts),
        common::books_line(&closed.stats)
    ));
    // The fault took place: nothing left memory for Kafka, and most of it went through the log.
    assert!(report.outage >= OUTAGE || report.cut_short.is_some(), "{report:?}");
    assert!(report.spilled() > 0 && report.backlog_records > 0, "{report:?}");
    assert_eq!((report.lost(), report.dropped(), report.duplicates_possible()), (0, 0, 0));
    common::assert_all_delivered(&closed, counts.iter().sum(), 0);
    audit.assert_exact(&counts);
    records.iter().for_each(common::assert_as_sent);
}
