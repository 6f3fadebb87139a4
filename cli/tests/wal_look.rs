//! `forebay wal ls` and `forebay wal export` on what `forebay pipe` wrote while Kafka was never
//! there: while it runs, and after it ended.

use forebay_testkit::process::{Ended, Running};
use forebay_testkit::{dead_port, private_dir, say};
use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);

fn forebay(args: &[&str], dir: &Path) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.args(args).arg(dir);
    Running::start(command).expect("it starts").wait(LIMIT)
}

fn listing(dir: &Path) -> Value {
    let ended = forebay(&["wal", "ls", "--json"], dir);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    ended.json()
}

#[test]
fn what_a_log_holds_is_seen_while_it_is_open_and_after() {
    let dir = private_dir();
    let dir = dir.path();
    let brokers = format!("127.0.0.1:{}", dead_port());
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.args(["pipe", "--brokers", &brokers, "--topic", "look", "--key-separator", "|"]);
    command.args(["--loss-window-ms", "50", "--close-ms", "200", "--wal-dir"]).arg(dir);
    let mut running = Running::start(command).expect("it starts");
    let mut stdin = running.take_stdin();
    for n in 0..1000 {
        writeln!(stdin, "key-{}|value {n}", n % 7).unwrap();
    }
    stdin.write_all(b"no key\n\xff\x00|\xfe\n").unwrap();
    stdin.flush().unwrap();

    let until = Instant::now() + LIMIT;
    let live = loop {
        let live = listing(dir);
        if live["not_final"] == 1002 {
            break live;
        }
        assert!(Instant::now() < until, "{live}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(!running.has_ended(), "it was looked at while it ran");
    running.terminate();
    let ended = running.wait(LIMIT);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    drop(stdin);

    let after = listing(dir);
    say(&format!("wal ls, live: {live}"));
    say(&format!("wal ls, closed: {after}"));
    for seen in [&live, &after] {
        assert_eq!((&seen["records"], &seen["not_final"]), (&1002.into(), &1002.into()), "{seen}");
        assert_eq!(seen["damaged_records"], 0, "{seen}");
        let states: Vec<_> =
            seen["segments"].as_array().unwrap().iter().map(|s| &s["state"]).collect();
        assert!(!states.contains(&&Value::from("unreadable")), "{seen}");
        let topic = serde_json::json!({"topic": "look", "records": 1002, "not_final": 1002});
        assert_eq!(seen["topics"], Value::from(vec![topic]), "{seen}");
    }
    let text = forebay(&["wal", "ls"], dir);
    assert_eq!(text.code(), Some(0), "{text:?}");
    assert!(text.stdout.starts_with("1002 records, 1002 not final, 0 set aside"), "{text:?}");

    let dump = forebay(&["wal", "export"], dir);
    assert_eq!(dump.code(), Some(0), "{dump:?}");
    let records: Vec<Value> =
        dump.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(records.len(), 1002);
    for (n, record) in records.iter().take(1000).enumerate() {
        assert_eq!(record["key"], format!("key-{}", n % 7), "{record}");
        assert_eq!(record["value"], format!("value {n}"), "{record}");
        assert_eq!((&record["topic"], &record["final"]), (&"look".into(), &false.into()));
    }
    assert!(records.windows(2).all(|w| w[0]["lsn"].as_u64() < w[1]["lsn"].as_u64()));
    assert_eq!((&records[1000]["key"], &records[1000]["value"]), (&Value::Null, &"no key".into()));
    assert_eq!(records[1001]["key"], serde_json::json!({"hex": "ff00"}), "{}", records[1001]);
    assert_eq!(records[1001]["value"], serde_json::json!({"hex": "fe"}));

    let raw = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(["wal", "export", "--raw"])
        .arg(dir)
        .output()
        .unwrap();
    let lines: Vec<&[u8]> = raw.stdout.split(|b| *b == b'\n').collect();
    assert_eq!((lines.len(), lines[0], lines[1001]), (1003, &b"value 0"[..], &b"\xfe"[..]));
}

#[test]
fn what_is_no_log_is_told() {
    let dir = private_dir();
    let empty = listing(dir.path());
    assert_eq!((&empty["records"], &empty["segments"]), (&0.into(), &Value::from(vec![0; 0])));
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 0, "looking must leave nothing");
    let ended = forebay(&["wal", "ls"], &dir.path().join("nowhere"));
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    let ended = forebay(&["wal", "export", "--raw", "--json"], dir.path());
    assert_eq!(ended.code(), Some(2), "{ended:?}");
}
