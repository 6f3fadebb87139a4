//! What the tests of `forebay pipe` share: how it is started, and what it must say at its end.

// Each test file uses its own part of this.
#![allow(dead_code)]

use forebay_testkit::lines::SEPARATOR;
use forebay_testkit::process::{Ended, Running};
use forebay_testkit::until;
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The fields of the object that `--json` prints, all of them.
pub const FIELDS: [&str; 16] = [
    "accepted",
    "balanced",
    "delivered",
    "dropped",
    "duplicates_possible",
    "elapsed_ms",
    "in_flight",
    "in_lanes",
    "in_wal",
    "records_per_second",
    "recovered",
    "refused",
    "replayed",
    "set_aside",
    "spilled",
    "unaccounted",
];

/// The command under test.
pub fn forebay() -> Command {
    Command::new(env!("CARGO_BIN_EXE_forebay"))
}

/// `forebay pipe --json` with a log in `dir` and `|` between key and value.
pub fn pipe(brokers: &str, topic: &str, dir: &Path) -> Command {
    let mut command = forebay();
    command.args(["pipe", "--brokers", brokers, "--topic", topic, "--json"]);
    command.arg("--key-separator").arg(SEPARATOR.to_string());
    command.arg("--wal-dir").arg(dir);
    command
}

/// Waits until its log in `dir` holds so many records that are not delivered: it has read them.
pub fn until_in_log(dir: &Path, records: u64) {
    until(Duration::from_secs(120), "the log has them", || {
        let mut ls = forebay();
        ls.args(["wal", "ls", "--json"]).arg(dir);
        let ended = Running::start(ls).expect("it starts").wait(Duration::from_secs(120));
        // Before the directory is there it says so.
        ended.code() == Some(0) && ended.json()["not_final"] == records
    });
}

/// Waits until the process holds the log in `dir`, and has said so there. Its signals have had
/// their handlers before.
pub fn until_held(dir: &Path, running: &Running) {
    let id = running.id().to_string();
    until(Duration::from_secs(120), "the directory is held", || {
        std::fs::read_to_string(dir.join("LOCK")).is_ok_and(|text| text.contains(&id))
    });
}

/// Starts it, gives it `input` and the end of input, and waits for its end.
pub fn run(command: Command, input: &[u8], limit: Duration) -> Ended {
    let mut running = Running::start(command).expect("it starts");
    let mut stdin = running.take_stdin();
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || {
        // It may end before it has read all: that is for the caller to judge.
        let _ = std::io::Write::write_all(&mut stdin, &input);
    });
    let ended = running.wait(limit);
    feeder.join().expect("the feeder doesn't panic");
    ended
}

/// Starts it on what an earlier run left and waits until all of that is delivered.
pub fn drain(brokers: &str, topic: &str, dir: &Path) -> Ended {
    let ended = run(pipe(brokers, topic, dir), b"", Duration::from_secs(200));
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    ended
}

/// The closing object, with all its fields and no other, and balanced books.
pub fn closing(ended: &Ended) -> Value {
    let json = ended.json();
    let fields = json.as_object().expect("an object");
    let mut names: Vec<_> = fields.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, FIELDS, "{json}");
    for (name, value) in fields {
        assert!(if name == "balanced" { value.is_boolean() } else { value.is_number() }, "{json}");
    }
    assert_eq!(json["balanced"], true, "{json}");
    assert_eq!(json["unaccounted"], 0, "{json}");
    json
}

/// One of the object's counts.
pub fn count(json: &Value, name: &str) -> u64 {
    json[name].as_u64().unwrap_or_else(|| panic!("{name} is no count in {json}"))
}

/// The object's counts on one line, those that are not 0.
pub fn figures(json: &Value) -> String {
    let fields = json.as_object().expect("an object");
    let shown = fields.iter().filter(|(_, v)| v.as_f64() != Some(0.0));
    shown.map(|(k, v)| format!("{k} {v}")).collect::<Vec<_>>().join(", ")
}

/// Asserts that it ended with `code` and said why in one line that holds each of `words`.
pub fn assert_refused(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.code(), Some(code), "{ended:?}");
    assert_eq!(ended.stderr.trim_end().lines().count(), 1, "{ended:?}");
    for word in words {
        assert!(ended.stderr.contains(word), "no {word:?} in {ended:?}");
    }
}
