//! The harness itself: a broker starts, is read, is paused, killed and restarted, and ends.

use forebay_testkit::process::{self, Running};
use forebay_testkit::{Door, Kafka, KafkaOptions, heavy, say};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn what_was_produced_is_read_as_it_was() {
    let Some(kafka) = Kafka::shared() else { return };
    let topic = kafka.topic("as-it-was", 3);
    let oracle = kafka.oracle();
    let time = Some(1_700_000_000_123);
    oracle.produce(&topic, Some(2), time, Some(b"k"), Some(b"v"), &[]).unwrap();
    oracle.produce(&topic, Some(2), time, None, Some(b""), &[("a", Some(b"1"))]).unwrap();
    oracle
        .produce(&topic, Some(0), time, Some(b""), None, &[("a", None), ("a", Some(b"\xff"))])
        .unwrap();
    assert_eq!(oracle.end_offsets(&topic).unwrap(), [1, 0, 2]);
    let records = oracle.read(&topic).unwrap();
    assert_eq!(records.len(), 3);
    let first = &records[0];
    assert_eq!((first.partition, first.offset, first.timestamp_ms), (0, 0, 1_700_000_000_123));
    assert_eq!((first.key.as_deref(), first.value.as_deref()), (Some(&b""[..]), None));
    assert_eq!(first.headers, [("a".to_owned(), None), ("a".to_owned(), Some(vec![0xff]))]);
    assert_eq!(records[1].key.as_deref(), Some(&b"k"[..]));
    assert_eq!(records[2].key, None);
    assert_eq!(records[2].value.as_deref(), Some(&b""[..]));
    assert_eq!(records[2].header("a"), Some(&b"1"[..]));
    assert!(oracle.end_offsets("no-such-topic").is_err());
}

#[test]
fn a_broker_is_paused_killed_and_restarted() {
    let _heavy = heavy();
    let start = Instant::now();
    let Some(mut kafka) = Kafka::start(KafkaOptions::default()) else { return };
    let started = start.elapsed();
    let topic = kafka.topic("faults", 1);
    let put = |kafka: &Kafka| {
        kafka.oracle().produce(&topic, None, None, None, Some(b"v"), &[]).unwrap();
    };
    put(&kafka);

    kafka.pause();
    assert_eq!(process::state(kafka.pid()).unwrap(), 'T');
    let before = (kafka.log_bytes(&topic), process::cpu_time(kafka.pid()).unwrap());
    assert!(before.0 > 0);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!((kafka.log_bytes(&topic), process::cpu_time(kafka.pid()).unwrap()), before);
    kafka.resume();
    put(&kafka);
    assert!(kafka.log_bytes(&topic) > before.0);

    kafka.kill();
    assert!(std::net::TcpStream::connect(kafka.brokers()).is_err());
    let after_kill = kafka.restart();
    put(&kafka);
    kafka.stop();
    let after_stop = kafka.restart();
    put(&kafka);
    assert_eq!(kafka.oracle().read(&topic).unwrap().len(), 4);
    say(&format!(
        "harness: started in {started:.1?}, restarted after a kill in {after_kill:.1?}, \
         after a stop in {after_stop:.1?}"
    ));

    kafka.pause();
    let pid = kafka.pid();
    drop(kafka);
    assert!(process::state(pid).is_err(), "a paused broker outlived its test");
}

/// Runs one test of this file again, in a process of its own.
fn again(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--include-ignored", "--nocapture"]);
    command.env_remove("FOREBAY_REQUIRE_KAFKA").env_remove("FOREBAY_TEST_BROKERS");
    command
}

#[test]
fn without_java_a_test_is_skipped_loudly_or_fails_where_kafka_is_required() {
    let test = "what_was_produced_is_read_as_it_was";
    let mut command = again(test);
    command.env("PATH", "/nonexistent");
    let ended = Running::start(command).unwrap().wait(Duration::from_secs(120));
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    assert!(
        ended.stderr.contains(&format!("SKIPPED {test}: no real Kafka here: java")),
        "{ended:?}"
    );

    let mut command = again(test);
    command.env("PATH", "/nonexistent").env("FOREBAY_REQUIRE_KAFKA", "1");
    let ended = Running::start(command).unwrap().wait(Duration::from_secs(120));
    assert_ne!(ended.code(), Some(0), "{ended:?}");
    assert!(ended.stderr.contains("FOREBAY_REQUIRE_KAFKA=1"), "{ended:?}");
}

#[test]
#[ignore = "run by the test below, which kills it"]
fn holds_a_broker_until_it_is_killed() {
    let Some(mut kafka) = Kafka::start(KafkaOptions::default()) else { return };
    kafka.pause();
    say(&format!("broker {}", kafka.pid()));
    std::thread::sleep(Duration::from_secs(600));
}

#[test]
fn a_broker_ends_with_a_test_that_is_killed() {
    let _heavy = heavy();
    if Kafka::shared().is_none() {
        return;
    }
    let mut command = again("holds_a_broker_until_it_is_killed");
    command.stderr(Stdio::piped()).stdout(Stdio::null());
    let mut child = process::spawn(command).unwrap();
    let errors = BufReader::new(child.stderr.take().unwrap());
    let pid = errors
        .lines()
        .find_map(|line| line.unwrap().strip_prefix("broker ").and_then(|pid| pid.parse().ok()));
    let pid: u32 = pid.expect("it says the broker's process number");
    assert_eq!(process::state(pid).unwrap(), 'T');
    child.kill().unwrap();
    child.wait().unwrap();
    let start = Instant::now();
    // Gone, or dead and not yet waited for by whoever inherits it.
    while process::state(pid).is_ok_and(|state| state != 'Z') {
        assert!(start.elapsed() < Duration::from_secs(60), "the broker outlived its test");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_broker_with_locked_doors_starts_and_has_passwords_and_acls() {
    let _heavy = heavy();
    let start = Instant::now();
    let options = KafkaOptions { secure: true, ..KafkaOptions::default() };
    let Some(mut kafka) = Kafka::start(options) else { return };
    let started = start.elapsed();
    let topic = kafka.topic("behind-doors", 1);
    let oracle = kafka.oracle();
    oracle.set_password("somebody", "secret").unwrap();
    oracle.forbid("somebody", &topic, "Write").unwrap();
    oracle.permit(&topic).unwrap();
    oracle.produce(&topic, None, None, None, Some(b"v"), &[]).unwrap();
    for door in [Door::Login, Door::Tls, Door::Mutual, Door::TlsLogin, Door::Expired] {
        assert!(std::net::TcpStream::connect(kafka.door(door)).is_ok(), "{door:?}");
    }
    kafka.stop();
    kafka.restart();
    assert_eq!(kafka.oracle().end_offsets(&topic).unwrap(), [1]);
    say(&format!("harness: with locked doors started in {started:.1?}"));
}
