//! `forebay wal replay` into a real Kafka, judged by Kafka's own Java client: all, some topics,
//! another topic, dead letters, a stop and kills in the middle.

mod wal_common;

use forebay_testkit::log_dir::segments;
use forebay_testkit::process::{Ended, Running};
use forebay_testkit::{Consumed, Kafka, heavy, private_dir, say};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use wal_common::*;

const RECORDS: u64 = 20_000;
/// What may be on its way at a kill, and what is confirmed between two stores (200 ms, and as
/// much again on a loaded machine).
const ON_ITS_WAY: u64 = 16_384;

fn replay(kafka: &Kafka, args: &[&str], dir: &Path) -> Command {
    let mut command = command(&["replay", "--json", "--brokers", kafka.brokers()]);
    command.args(args).arg(dir);
    command
}

fn done(command: Command) -> Value {
    let ended = Running::start(command).unwrap().wait(LIMIT);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    closing(&ended)
}

fn closing(ended: &Ended) -> Value {
    let json = ended.json();
    assert_eq!(json["unaccounted"], 0, "{json}");
    json
}

fn count(json: &Value, name: &str) -> u64 {
    json[name].as_u64().unwrap_or_else(|| panic!("{name}: {json}"))
}

/// The number of a record, after a look at each of its parts.
fn checked(record: &Consumed) -> u64 {
    let n: u64 = match (&record.value, &record.key) {
        (None, Some(key)) => {
            String::from_utf8_lossy(key).strip_prefix("tomb ").unwrap().parse().unwrap()
        }
        _ => String::from_utf8_lossy(record.header("n").unwrap()).parse().unwrap(),
    };
    assert_eq!((&record.key, &record.value), (&key(n), &value(n)), "record {n}");
    if !is_tombstone(n) {
        assert_eq!(record.timestamp_ms, at(n), "record {n}");
        let headers =
            [("n".to_owned(), Some(n.to_string().into_bytes())), ("null".to_owned(), None)];
        assert_eq!(record.headers, headers, "record {n}");
    }
    if let Some(partition) = partition(n) {
        assert_eq!(record.partition, partition, "record {n}");
    }
    n
}

/// What arrived of `expected`, how often twice; first arrivals of a key must be in order.
fn audit(records: &[Consumed], expected: impl Iterator<Item = u64>) -> (u64, u64) {
    let mut seen: HashMap<u64, u64> = HashMap::new();
    let mut last: HashMap<(i32, Option<Vec<u8>>), u64> = HashMap::new();
    for record in records {
        let n = checked(record);
        let times = seen.entry(n).or_default();
        *times += 1;
        if *times == 1 {
            let before = last.insert((record.partition, record.key.clone()), n);
            assert!(before.is_none_or(|b| b < n), "{n} after {before:?}");
        }
    }
    let mut arrived = 0;
    for n in expected {
        assert!(seen.remove(&n).is_some(), "record {n} is lost");
        arrived += 1;
    }
    assert!(seen.is_empty(), "strangers: {:?}", seen.keys().take(5));
    (arrived, records.len() as u64 - arrived)
}

fn three_topics(kafka: &Kafka, name: &str) -> Vec<String> {
    (0..3).map(|i| kafka.topic(&format!("{name}{i}"), 3)).collect()
}

#[test]
fn everything_arrives_as_it_was_and_the_directory_is_empty() {
    let Some(kafka) = Kafka::shared() else { return };
    let topics = three_topics(kafka, "replay");
    let dir = private_dir();
    fill(dir.path(), &topics, RECORDS);
    let json = done(replay(kafka, &[], dir.path()));
    assert_eq!((count(&json, "delivered"), &json["complete"]), (RECORDS, &true.into()), "{json}");
    for (i, topic) in (0..).zip(&topics) {
        let records = kafka.oracle().read(topic).unwrap();
        let (_, twice) = audit(&records, (0..RECORDS).filter(|n| n % 3 == i));
        assert_eq!(twice, 0);
    }
    say(&format!("wal replay, all of it: {json}"));
    let json = done(replay(kafka, &[], dir.path()));
    assert_eq!((count(&json, "total"), count(&json, "delivered")), (0, 0), "{json}");
    assert_eq!(segments(dir.path()).len(), 0);
}

#[test]
fn a_selected_topic_goes_elsewhere_and_the_rest_goes_later() {
    let Some(kafka) = Kafka::shared() else { return };
    let topics = three_topics(kafka, "select");
    let elsewhere = kafka.topic("elsewhere", 3);
    let dir = private_dir();
    fill(dir.path(), &topics, RECORDS);
    let json = done(replay(kafka, &["--topic", &topics[1], "--to-topic", &elsewhere], dir.path()));
    let of_1 = (0..RECORDS).filter(|n| n % 3 == 1);
    assert_eq!(count(&json, "delivered"), of_1.clone().count() as u64, "{json}");
    assert_eq!(count(&json, "kept") + count(&json, "delivered"), RECORDS, "{json}");
    let (_, twice) = audit(&kafka.oracle().read(&elsewhere).unwrap(), of_1);
    assert_eq!(twice, 0);
    let listed = forebay(&["ls", "--json"], dir.path()).json();
    assert_eq!(listed["not_final"], RECORDS - count(&json, "delivered"), "{listed}");

    // A pipeline that opens the directory sends the rest, and only the rest.
    let mut pipe = Command::new(env!("CARGO_BIN_EXE_forebay"));
    pipe.args(["pipe", "--json", "--brokers", kafka.brokers(), "--topic", &elsewhere, "--wal-dir"]);
    pipe.arg(dir.path());
    let ended = Running::start(pipe).unwrap().wait(LIMIT);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    for (i, topic) in (0..).zip(&topics) {
        let records = kafka.oracle().read(topic).unwrap();
        let expected = (0..RECORDS).filter(|n| i != 1 && n % 3 == i);
        assert_eq!(audit(&records, expected).1, 0, "topic {i}");
    }
    say(&format!("wal replay, one topic of three: {json}"));
}

#[test]
fn dead_letters_are_sent_again_by_reason() {
    let Some(kafka) = Kafka::shared() else { return };
    let topics = three_topics(kafka, "dead");
    let dir = private_dir();
    fill_set_aside(dir.path(), &topics, 1_000);
    let args = ["--set-aside", "--reason", "message_too_large"];
    let json = done(replay(kafka, &args, dir.path()));
    assert_eq!((count(&json, "total"), count(&json, "delivered")), (1_000, 500), "{json}");
    let listed = forebay(&["ls", "--set-aside", "--json"], dir.path()).json();
    assert_eq!(listed["set_aside_records"], 500, "{listed}");
    let rows = listed["set_aside"].as_array().unwrap();
    assert!(rows.iter().all(|r| r["reason"] == "policy_violation"), "{listed}");
    let json = done(replay(kafka, &["--set-aside"], dir.path()));
    assert_eq!(count(&json, "delivered"), 500, "{json}");
    for (i, topic) in (0..).zip(&topics) {
        let records = kafka.oracle().read(topic).unwrap();
        assert_eq!(audit(&records, (0..1_000).filter(|n| n % 3 == i)).1, 0);
    }
    let listed = forebay(&["ls", "--json"], dir.path()).json();
    assert_eq!(listed["set_aside_records"], 0, "{listed}");
}

#[test]
fn what_shares_a_refused_request_is_sent_and_only_the_culprit_stays() {
    let Some(kafka) = Kafka::shared() else { return };
    let topic = kafka.topic_with("culprit", 1, &[("max.message.bytes", "20000")]);
    let dir = private_dir();
    let sink = forebay::MemorySink::new();
    sink.handle().refuse();
    let pipeline = forebay::Pipeline::builder().wal_dir(dir.path()).sink(sink).open().unwrap();
    let to = pipeline.topic(&topic).unwrap();
    for n in 0..200u32 {
        let bytes = if n == 100 { 50_000 } else { 20 };
        to.record(&vec![b'x'; bytes]).header("n", n.to_string().as_bytes()).send().unwrap();
    }
    pipeline.close(std::time::Duration::ZERO).unwrap();
    let ended = Running::start(replay(kafka, &[], dir.path())).unwrap().wait(LIMIT);
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    let json = closing(&ended);
    assert_eq!((count(&json, "delivered"), count(&json, "set_aside")), (199, 1), "{json}");
    assert_eq!(kafka.oracle().end_offsets(&topic).unwrap(), [199]);
    let dead = forebay(&["export", "--set-aside"], dir.path());
    assert_eq!(dead.stdout.lines().count(), 1, "{}", dead.stdout.len());
    assert!(dead.stdout.contains("\"reason\":\"message_too_large\""), "{}", &dead.stdout[..300]);
}

#[test]
fn a_stop_in_the_middle_keeps_the_rest() {
    let Some(kafka) = Kafka::shared() else { return };
    let topics = three_topics(kafka, "stop");
    let dir = private_dir();
    fill(dir.path(), &topics, RECORDS);
    let running = Running::start(replay(kafka, &["--rate", "2000"], dir.path())).unwrap();
    wait_for(kafka, &topics, 2_000);
    running.interrupt();
    let ended = running.wait(LIMIT);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let first = closing(&ended);
    assert_eq!((&first["complete"], &first["signalled"]), (&false.into(), &true.into()), "{first}");
    let second = done(replay(kafka, &[], dir.path()));
    say(&format!("wal replay, stopped: {first}; again: {second}"));
    assert_eq!(count(&first, "delivered") + count(&second, "delivered"), RECORDS);
    for (i, topic) in (0..).zip(&topics) {
        let records = kafka.oracle().read(topic).unwrap();
        assert_eq!(audit(&records, (0..RECORDS).filter(|n| n % 3 == i)).1, 0, "nothing twice");
    }
}

#[test]
fn killed_in_the_middle_it_loses_nothing() {
    let _heavy = heavy();
    let Some(kafka) = Kafka::shared() else { return };
    for selected in [false, true] {
        let topics = three_topics(kafka, "kill");
        let dir = private_dir();
        fill(dir.path(), &topics, RECORDS);
        let mut args = vec!["--rate", "2000"];
        if selected {
            args.extend(["--topic", &topics[0], "--topic", &topics[2]]);
        }
        let mut kills = 0;
        for _ in 0..3 {
            let mut running = Running::start(replay(kafka, &args, dir.path())).unwrap();
            let so_far = arrived(kafka, &topics);
            wait_for(kafka, &topics, so_far + 1_500);
            kills += u64::from(!running.has_ended());
            running.kill();
            assert_eq!(running.wait(LIMIT).code(), None);
        }
        assert_eq!(kills, 3, "it was killed in the middle");
        let json = done(replay(kafka, &args[..0], dir.path()));
        let mut twice = 0;
        for (i, topic) in (0..).zip(&topics) {
            let records = kafka.oracle().read(topic).unwrap();
            twice += audit(&records, (0..RECORDS).filter(|n| n % 3 == i)).1;
        }
        let bound = kills * (ON_ITS_WAY + 2_000 * 2 / 5);
        say(&format!(
            "wal replay, {kills} kills (selected: {selected}): {twice} twice (bound {bound}); {json}"
        ));
        assert!(twice <= bound);
        assert!(count(&json, "read") < RECORDS || selected, "the kills' work was kept: {json}");
    }
}

#[test]
fn an_unknown_topic_sends_nothing_and_loses_nothing() {
    let Some(kafka) = Kafka::shared() else { return };
    let dir = private_dir();
    fill(dir.path(), &["a".to_owned()], 100);
    let args = ["--to-topic", "nobody-made-this-one-either"];
    let ended = Running::start(replay(kafka, &args, dir.path())).unwrap().wait(LIMIT);
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("nobody-made-this-one-either"), "{ended:?}");
    let listed = forebay(&["ls", "--json"], dir.path()).json();
    assert_eq!(
        (&listed["not_final"], &listed["set_aside_records"]),
        (&100.into(), &0.into()),
        "{listed}"
    );
}

fn arrived(kafka: &Kafka, topics: &[String]) -> u64 {
    let ends = topics.iter().flat_map(|t| kafka.oracle().end_offsets(t).unwrap());
    ends.map(|n| n as u64).sum()
}

fn wait_for(kafka: &Kafka, topics: &[String], records: u64) {
    let began = std::time::Instant::now();
    while arrived(kafka, topics) < records {
        assert!(began.elapsed() < LIMIT, "{} of {records}", arrived(kafka, topics));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
