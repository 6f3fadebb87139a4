//! `forebay pipe` when Kafka stands still or was never there.

mod pipe_common;

use forebay_testkit::audit::{Audit, Stream};
use forebay_testkit::lines::{Feeder, LogLines};
use forebay_testkit::process::Running;
use forebay_testkit::{Kafka, KafkaOptions, dead_port, heavy, private_dir, say};
use pipe_common as common;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn sigterm_in_the_middle_of_an_outage() {
    let _heavy = heavy();
    let Some(mut kafka) = Kafka::start(KafkaOptions::default()) else { return };
    let topic = kafka.topic("sigterm", 3);
    let dir = private_dir();
    let mut command = common::pipe(kafka.brokers(), &topic, dir.path());
    command.args(["--close-ms", "2000"]);
    let mut running = Running::start(command).unwrap();
    let feeder = Feeder::start(running.take_stdin(), LogLines::new(1, 0, 0), 20_000);
    std::thread::sleep(Duration::from_secs(2));
    kafka.pause();
    std::thread::sleep(Duration::from_secs(3));
    let surely = Instant::now();
    running.terminate();
    let ended = running.wait(LIMIT);
    let took = surely.elapsed();
    let fed = feeder.stop();
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let json = common::closing(&ended);
    let of = |name| common::count(&json, name);
    let accepted = of("accepted");
    assert!(fed.accepted_at(surely) <= accepted && accepted <= fed.lines(), "{json}");
    assert_eq!((of("in_lanes"), of("in_flight")), (0, 0), "{json}");
    assert_eq!(of("delivered") + of("in_wal"), accepted, "{json}");
    assert!(of("in_wal") > 0 && of("spilled") > 0, "the outage never took place: {json}");
    // How long it took is printed; without --close-ms it would have waited for this Kafka.

    kafka.resume();
    let next = common::closing(&common::drain(kafka.brokers(), &topic, dir.path()));
    assert_eq!(common::count(&next, "recovered"), of("in_wal"), "{next}");
    let records = kafka.oracle().read(&topic).unwrap();
    let audit = Audit::new(&records, Stream::by_key);
    say(&format!(
        "SIGTERM in an outage, ended in {took:.1?}: {}; next run: {}; {}",
        common::figures(&json),
        common::figures(&next),
        audit.line(&[accepted])
    ));
    audit.assert_whole(&[accepted]);
    assert!(audit.duplicates <= 131_072, "more than could be in flight");
}

#[test]
fn kafka_was_never_there_and_then_it_is() {
    let dir = private_dir();
    let lines = 50_000;
    let brokers = format!("127.0.0.1:{}", dead_port());
    let mut command = common::pipe(&brokers, "never-there", dir.path());
    command.args(["--close-ms", "1000"]);
    let mut running = Running::start(command).unwrap();
    let input = LogLines::new(2, 0, 0).take(lines as usize);
    let fed = Feeder::start(running.take_stdin(), input, 50_000).finish();
    assert_eq!(fed.lines(), lines);
    // The end of input drains without limit: it must still be there, and end on SIGTERM.
    common::until_in_log(dir.path(), lines);
    assert!(!running.has_ended(), "it gave up: {:?}", running.wait(LIMIT));
    running.terminate();
    let ended = running.wait(LIMIT);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let json = common::closing(&ended);
    assert_eq!(common::count(&json, "accepted"), lines, "{json}");
    assert_eq!(common::count(&json, "in_wal"), lines, "{json}");

    let _heavy = heavy();
    let Some(kafka) = Kafka::shared() else { return };
    kafka.oracle().create_topic("never-there", 3, &[]).unwrap();
    let next = common::closing(&common::drain(kafka.brokers(), "never-there", dir.path()));
    assert_eq!(common::count(&next, "recovered"), lines, "{next}");
    assert_eq!(common::count(&next, "delivered"), lines, "{next}");
    let records = kafka.oracle().read("never-there").unwrap();
    let audit = Audit::new(&records, Stream::by_key);
    say(&format!(
        "Kafka never there: {}; next run: {}; {}",
        common::figures(&json),
        common::figures(&next),
        audit.line(&[lines])
    ));
    audit.assert_exact(&[lines]);
}

#[test]
fn sigint_ends_it_while_it_waits_for_input() {
    let dir = private_dir();
    let brokers = format!("127.0.0.1:{}", dead_port());
    let mut command = common::pipe(&brokers, "t", dir.path());
    command.args(["--close-ms", "500"]);
    let mut running = Running::start(command).unwrap();
    let mut stdin = running.take_stdin();
    std::io::Write::write_all(&mut stdin, b"one\ntwo\n").unwrap();
    common::until_in_log(dir.path(), 2);
    running.interrupt();
    let ended = running.wait(LIMIT);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let json = common::closing(&ended);
    assert_eq!(common::count(&json, "accepted"), 2, "{json}");
    assert_eq!(common::count(&json, "in_wal"), 2, "{json}");
    drop(stdin);
}

#[test]
fn new_input_is_taken_while_a_backlog_is_there_and_comes_after_it() {
    let _heavy = heavy();
    let Some(kafka) = Kafka::shared() else { return };
    let topic = kafka.topic("backlog", 1);
    let dir = private_dir();
    let brokers = format!("127.0.0.1:{}", dead_port());
    let mut command = common::pipe(&brokers, &topic, dir.path());
    command.args(["--close-ms", "500"]);
    let mut running = Running::start(command).unwrap();
    let fed = Feeder::start(running.take_stdin(), LogLines::new(4, 0, 0).take(30_000), 100_000);
    assert_eq!(fed.finish().lines(), 30_000);
    common::until_in_log(dir.path(), 30_000);
    running.terminate();
    assert_eq!(running.wait(LIMIT).code(), Some(0));

    let input: Vec<u8> = LogLines::new(4, 0, 30_000).take(30_000).flatten().collect();
    let ended = common::run(common::pipe(kafka.brokers(), &topic, dir.path()), &input, LIMIT);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let json = common::closing(&ended);
    assert_eq!(common::count(&json, "recovered"), 30_000, "{json}");
    assert_eq!(common::count(&json, "accepted"), 30_000, "{json}");
    let records = kafka.oracle().read(&topic).unwrap();
    // One partition and one thread: keyless lines keep their order too.
    let audit = Audit::new(&records, |_| Stream::Partition(0));
    say(&format!("backlog and new input: {}; {}", audit.line(&[60_000]), common::figures(&json)));
    audit.assert_exact(&[60_000]);
}
