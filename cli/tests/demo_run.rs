//! `forebay demo --json`: the object, the exit code, and that an outage costs nothing.

use forebay_testkit::process::{Ended, Running};
use forebay_testkit::{Kafka, heavy, say};
use serde_json::Value;
use std::process::Command;
use std::time::Duration;

/// The fields of the object, all of them.
const FIELDS: [&str; 25] = [
    "accepted",
    "balanced",
    "consumed_distinct",
    "cpu_healthy",
    "cpu_outage",
    "delivered",
    "drained_ms",
    "dropped",
    "duplicates",
    "in_flight",
    "in_lanes",
    "in_wal",
    "lost",
    "order_violations",
    "outage_ms",
    "records_per_second",
    "recovered",
    "refused",
    "replayed",
    "send_ns",
    "send_outage_ns",
    "set_aside",
    "spilled",
    "trimmed_by_mock",
    "unaccounted",
];
const QUANTILES: [&str; 5] = ["max", "p50", "p99", "p999", "p9999"];

fn demo(args: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.arg("demo").args(args);
    let running = Running::start(command).expect("it starts");
    running.wait(Duration::from_secs(200))
}

fn short(args: &[&str]) -> Ended {
    let times = ["--seconds", "4", "--outage-after", "1", "--outage-for", "1", "--json"];
    demo(&[&times, args].concat())
}

fn names(object: &Value) -> Vec<&str> {
    let mut names: Vec<_> =
        object.as_object().expect("an object").keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

fn count(object: &Value, name: &str) -> u64 {
    object[name].as_u64().unwrap_or_else(|| panic!("{name} is no count in {object}"))
}

/// All that must hold of every run whose brokers came back.
fn assert_whole(ended: &Ended) -> Value {
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    assert_eq!(ended.stderr, "", "quiet where nobody watches");
    let json = ended.json();
    let of = |name| count(&json, name);
    assert_eq!(json["balanced"], true, "{json}");
    for name in ["lost", "order_violations", "unaccounted", "dropped", "set_aside"] {
        assert_eq!(of(name), 0, "{name}: {json}");
    }
    for name in ["in_lanes", "in_flight", "in_wal"] {
        assert_eq!(of(name), 0, "{name}: {json}");
    }
    assert_eq!(of("delivered"), of("accepted") + of("recovered"), "{json}");
    for quantiles in ["send_ns", "send_outage_ns"] {
        assert_eq!(names(&json[quantiles]), QUANTILES, "{json}");
    }
    json
}

fn assert_outage(kind: &str) {
    let _heavy = heavy();
    let ended = short(&["--rate", "20000", "--outage", kind]);
    let json = assert_whole(&ended);
    say(&format!("demo {kind}: {json}"));
    let of = |name| count(&json, name);
    assert_eq!(names(&json), FIELDS, "{json}");
    assert_eq!(of("accepted") + of("refused"), 80_000, "{json}");
    assert_eq!(of("consumed_distinct") + of("trimmed_by_mock"), of("accepted"), "{json}");
    assert!(of("outage_ms") >= 990, "{json}");
    assert!(of("drained_ms") > 0, "{json}");
    assert!(count(&json["send_outage_ns"], "max") > 0, "{json}");
}

#[test]
fn frozen_brokers_cost_nothing() {
    assert_outage("freeze");
}

#[test]
fn refused_connections_cost_nothing() {
    assert_outage("down");
}

#[test]
fn a_drill_costs_nothing() {
    let _heavy = heavy();
    let times = ["--seconds", "4", "--outage-after", "1", "--for", "1s"];
    // On a machine that stands still a drill may be refused, or ended before anything spilled.
    let (mut ended, mut json, mut tries) = (None, Value::Null, 0);
    while json["spilled"].as_u64().unwrap_or(0) == 0 && tries < 10 {
        tries += 1;
        let run = demo(&[&times[..], &["--rate", "5000", "--drill", "--json"]].concat());
        json = run.json();
        say(&format!("demo drill: {json}"));
        ended = Some(run);
    }
    let ended = ended.expect("it ran");
    // It may end the outage early, too, which is a fault of the run; not a loss.
    assert!(matches!(ended.code(), Some(0 | 1)), "{ended:?}");
    let of = |name| count(&json, name);
    assert_eq!(names(&json), FIELDS, "{json}");
    assert_eq!(json["balanced"], true, "{json}");
    for name in ["lost", "order_violations", "unaccounted", "dropped", "set_aside", "in_wal"] {
        assert_eq!(of(name), 0, "{name}: {json}");
    }
    assert_eq!(of("delivered"), of("accepted"), "{json}");
    assert!(of("spilled") > 0 && of("outage_ms") > 0, "the drill was refused: {json}");
}

#[test]
fn a_crash_in_the_outage_costs_at_most_the_window() {
    let _heavy = heavy();
    let ended = short(&["--rate", "20000", "--crash", "--loss-window-ms", "200"]);
    let json = ended.json();
    say(&format!("demo --crash: {json}"));
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let mut fields = names(&json);
    fields.retain(|name| *name != "crash");
    assert_eq!(fields, FIELDS, "{json}");
    let (crash, of) = (&json["crash"], |name| count(&json, name));
    assert_eq!(count(crash, "lost_outside_window"), 0, "{json}");
    assert_eq!((of("order_violations"), of("in_wal")), (0, 0), "{json}");
    assert!(of("recovered") > 0, "the killed process left nothing: {json}");
    assert_eq!(of("delivered"), of("accepted") + of("recovered"), "{json}");
    let came = count(crash, "accepted") + of("accepted");
    assert_eq!(of("consumed_distinct") + of("lost") + of("trimmed_by_mock"), came, "{json}");
}

#[test]
fn without_a_log_what_is_refused_is_said() {
    let _heavy = heavy();
    // More than two lanes hold, with an outage as long as it needs.
    let ended = demo(&[
        "--seconds=2",
        "--outage-after=0.5",
        "--outage-for=1.5",
        "--rate=250000",
        "--at-most-once",
    ]);
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    say(&format!("demo --at-most-once:\n{}", ended.stdout));
    for words in ["no log (at most once)", "NOT GOOD", "refused: without a log"] {
        assert!(ended.stdout.contains(words), "{words}: {ended:?}");
    }
}

#[test]
fn a_real_kafka_shows_the_same() {
    let _heavy = heavy();
    let Some(kafka) = Kafka::shared() else { return };
    let topic = kafka.topic("demo", 3);
    let args = ["--brokers", kafka.brokers(), "--topic", &topic, "--rate", "20000", "--json"];
    let ended = demo(&[&args[..], &["--seconds", "2", "--at-most-once"]].concat());
    let json = assert_whole(&ended);
    say(&format!("demo, a real Kafka: {json}"));
    let of = |name| count(&json, name);
    assert_eq!((of("accepted"), of("consumed_distinct")), (40_000, 40_000), "{json}");
    assert_eq!((of("outage_ms"), of("duplicates"), of("trimmed_by_mock")), (0, 0, 0), "{json}");
}

#[test]
fn wrong_usage_is_told_apart() {
    let code = |args: &[&str]| demo(args).code();
    assert_eq!(code(&["--outage", "maybe"]), Some(2));
    assert_eq!(code(&["--brokers", "127.0.0.1:1"]), Some(2), "--topic is missing");
    assert_eq!(code(&["--crash", "--at-most-once"]), Some(2));
    assert_eq!(code(&["--payload", "7"]), Some(2));
    let ended = demo(&["--seconds", "1"]);
    assert_eq!(ended.code(), Some(2));
    assert!(ended.stderr.contains("--outage-after"), "{ended:?}");
    assert_eq!(code(&["--crash", "--outage-for", "0"]), Some(2));
}
