//! `forebay wal verify`, `repair` and `export` on what a pipeline left, whole and damaged.

mod wal_common;

use forebay_testkit::log_dir::{everything, segments};
use forebay_testkit::process::Running;
use forebay_testkit::{private_dir, say};
use serde_json::Value;
use std::path::Path;
use wal_common::*;

const RECORDS: u64 = 20_000;

fn topics() -> Vec<String> {
    ["a", "b"].map(str::to_owned).to_vec()
}

fn verify(dir: &Path, code: i32) -> Value {
    let ended = forebay(&["verify", "--json"], dir);
    assert_eq!(ended.code(), Some(code), "{ended:?}");
    let text = forebay(&["verify"], dir);
    assert_eq!(text.code(), Some(code), "{text:?}");
    let first_word = if code == 0 { "sound: " } else { "damaged: " };
    assert!(text.stdout.lines().last().is_some_and(|l| l.starts_with(first_word)), "{text:?}");
    ended.json()
}

fn verdicts<'a>(found: &'a Value, weight: &str) -> Vec<&'a str> {
    let findings = found["findings"].as_array().unwrap().iter();
    findings.filter(|f| f["weight"] == weight).map(|f| f["verdict"].as_str().unwrap()).collect()
}

#[test]
fn each_kind_of_damage_is_found_planned_and_repaired() {
    type Harm = fn(&Path);
    let cases: [(&str, &str, Harm); 6] = [
        ("a flipped bit", "bad", |dir| flip(&segments(dir)[0], 50_000)),
        ("a cut segment", "cut", |dir| {
            let file = std::fs::File::options().write(true).open(&segments(dir)[0]).unwrap();
            file.set_len(900_001).unwrap();
        }),
        ("a missing segment", "missing", |dir| std::fs::remove_file(&segments(dir)[1]).unwrap()),
        ("a damaged header", "header", |dir| {
            flip(&segments(dir)[1], 30);
            flip(&segments(dir)[1], 512 + 30);
        }),
        ("noise for a segment", "header", |dir| {
            let noise: Vec<u8> =
                (0..300_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
            std::fs::write(dir.join("00000000000000ee.wal"), noise).unwrap();
        }),
        ("a copy of a segment", "foreign", |dir| {
            std::fs::copy(&segments(dir)[0], dir.join("00000000000000ee.wal")).unwrap();
        }),
    ];
    let home = private_dir();
    let whole = home.path().join("whole");
    fill(&whole, &topics(), RECORDS);
    let sound = verify(&whole, 0);
    assert_eq!(
        (&sound["records"], &sound["records_lost"]),
        (&RECORDS.into(), &0.into()),
        "{sound}"
    );
    assert_eq!(sound["findings"], Value::from(vec![0; 0]));
    for (name, verdict, harm) in cases {
        let copy = private_dir();
        let dir = copy.path();
        for (path, bytes) in everything(&whole) {
            let to = dir.join(path.strip_prefix(&whole).unwrap());
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::write(to, bytes).unwrap();
        }
        harm(dir);
        let found = verify(dir, 1);
        assert!(verdicts(&found, "damage").contains(&verdict), "{name}: {found}");
        let lost = found["records_lost"].as_u64().unwrap();

        let before = everything(dir);
        let dry = forebay(&["repair", "--dry-run", "--json"], dir);
        assert_eq!(dry.code(), Some(0), "{name}: {dry:?}");
        assert!(everything(dir) == before, "{name}: a dry run changed something");
        let planned = dry.json()["actions"].clone();
        assert!(!planned.as_array().unwrap().is_empty(), "{name}");

        let done = forebay(&["repair", "--json"], dir);
        assert_eq!(done.code(), Some(0), "{name}: {done:?}");
        assert_eq!(done.json()["actions"], planned, "{name}: it does what it said");
        let after = verify(dir, 0);
        assert!(!after["set_apart"].as_array().unwrap().is_empty(), "{name}: {after}");
        assert_eq!(after["records_lost"], if verdict == "foreign" { 0 } else { lost }, "{name}");
        let good = after["records"].as_u64().unwrap();
        assert_eq!(good + lost, RECORDS, "{name}: {after}");
        say(&format!("{name}: {lost} lost, {good} good; {planned}"));
    }
}

#[test]
fn a_directory_in_use_is_verified_and_exported_but_neither_repaired_nor_replayed() {
    let dir = private_dir();
    let brokers = format!("127.0.0.1:{}", forebay_testkit::dead_port());
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.args(["pipe", "--brokers", &brokers, "--topic", "t", "--loss-window-ms", "20"]);
    command.args(["--close-ms", "100", "--wal-dir"]).arg(dir.path());
    let mut running = Running::start(command).unwrap();
    let mut stdin = running.take_stdin();
    let feeder = std::thread::spawn(move || {
        let line = vec![b'x'; 300];
        for _ in 0..40_000 {
            use std::io::Write;
            if stdin.write_all(&[&line[..], b"\n"].concat()).is_err() {
                break;
            }
        }
    });
    while segments(dir.path()).is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    for _ in 0..5 {
        verify(dir.path(), 0);
    }
    let id = running.id().to_string();
    for args in [
        &["repair"][..],
        &["replay", "--brokers", &brokers],
        &["replay", "--brokers", &brokers, "--set-aside"],
    ] {
        let refused = forebay(args, dir.path());
        assert_eq!(refused.code(), Some(1), "{refused:?}");
        assert!(refused.stderr.contains(&id) && refused.stderr.contains("in use"), "{refused:?}");
    }
    assert_eq!(forebay(&["export", "--raw", "-o", "/dev/null"], dir.path()).code(), Some(1));
    assert!(!running.has_ended());
    feeder.join().unwrap();
    running.terminate();
    assert_eq!(running.wait(LIMIT).code(), Some(0));
    let found = verify(dir.path(), 0);
    assert_eq!(found["records"], 40_000, "{found}");
}

#[test]
fn export_selects_and_loses_nothing() {
    let dir = private_dir();
    let topics = topics();
    fill_set_aside(dir.path(), &topics, 100);
    fill(dir.path(), &topics, 2_000);
    let lines = |args: &[&str]| -> Vec<Value> {
        let ended = forebay(args, dir.path());
        assert_eq!(ended.code(), Some(0), "{ended:?}");
        ended.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    };
    let all = lines(&["export"]);
    assert_eq!(all, lines(&["dump", "--json"]), "the name it had before");
    let of_b = lines(&["export", "--topic", "b"]);
    assert_eq!(of_b.iter().filter(|r| r["set_aside"].is_null()).count(), 1_000);
    assert!(of_b.iter().all(|r| r["topic"] == "b"));
    let dead = lines(&["export", "--set-aside"]);
    assert_eq!(dead.len(), 100);
    let large = lines(&["export", "--set-aside", "--reason", "message_too_large", "--topic", "a"]);
    assert!(!large.is_empty() && large.len() < 100, "{}", large.len());
    assert!(large.iter().all(|r| r["set_aside"]["reason"] == "message_too_large"));
    for (n, record) in (0..).zip(all.iter().filter(|r| r["set_aside"].is_null())) {
        if is_tombstone(n) {
            assert_eq!(
                (&record["key"], &record["value"]),
                (&format!("tomb {n}").into(), &Value::Null)
            );
            continue;
        }
        let bytes = match &record["value"] {
            Value::String(text) => text.as_bytes().to_vec(),
            other => {
                let hex = other["hex"].as_str().unwrap();
                (0..hex.len())
                    .step_by(2)
                    .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
                    .collect()
            }
        };
        assert_eq!(Some(bytes), value(n), "record {n}");
        assert_eq!(record["headers"], serde_json::json!([["n", n.to_string()], ["null", null]]));
        assert_eq!(record["timestamp_ms"], at(n));
    }
    let file = dir.path().join("out.txt");
    let path = file.to_str().unwrap();
    let args = ["export", "--raw", "--key-separator", "|", "--only-pending", "-o", path];
    assert_eq!(forebay(&args, dir.path()).code(), Some(0));
    let raw = std::fs::read(&file).unwrap();
    assert!(
        raw.starts_with(b"tomb 0|\nkey 1|value 1 "),
        "{:?}",
        String::from_utf8_lossy(&raw[..40])
    );
    let again = forebay(&args, dir.path());
    assert_eq!(again.code(), Some(1), "an existing file is not written over: {again:?}");
    assert_eq!(std::fs::read(&file).unwrap(), raw);
    let listed = forebay(&["ls", "--set-aside", "--json"], dir.path()).json();
    assert_eq!((&listed["set_aside_records"], &listed["records"]), (&100.into(), &0.into()));
    let row = &listed["set_aside"][0];
    assert!(row["oldest_unix_ms"].as_i64() <= row["newest_unix_ms"].as_i64(), "{listed}");
}

#[test]
fn wrong_usage_is_told_and_harms_nothing() {
    let dir = private_dir();
    let nowhere = dir.path().join("nowhere");
    for (args, code) in [
        (&["verify"][..], 2),
        (&["repair"], 1),
        (&["repair", "--dry-run"], 1),
        (&["export"], 1),
        (&["replay", "--brokers", "127.0.0.1:1"], 1),
        (&["replay"], 2),
        (&["replay", "--brokers", "127.0.0.1:1", "--rate", "0"], 2),
        (&["replay", "--brokers", "127.0.0.1:1", "--reason", "x"], 2),
        (&["export", "--raw", "--json"], 2),
        (&["export", "--only-pending", "--set-aside"], 2),
        (&["export", "--key-separator", "|"], 2),
    ] {
        let ended = forebay(args, &nowhere);
        assert_eq!(ended.code(), Some(code), "{args:?}: {ended:?}");
        assert!(!ended.stderr.is_empty(), "{args:?}");
        assert!(!nowhere.exists(), "{args:?} made a directory");
    }
    let file = dir.path().join("file");
    std::fs::write(&file, b"not a directory").unwrap();
    assert_eq!(forebay(&["verify"], &file).code(), Some(2));
    assert_eq!(forebay(&["repair"], &file).code(), Some(1));
    assert_eq!(std::fs::read(&file).unwrap(), b"not a directory");
    fill(&dir.path().join("wal"), &topics(), 10);
    let bad = ["replay", "--brokers", "127.0.0.1:1", "--to-topic", "a b"];
    let ended = forebay(&bad, &dir.path().join("wal"));
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("249"), "{ended:?}");
}
