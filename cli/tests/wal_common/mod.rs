//! What the tests of `forebay wal` share: directories that a pipeline left behind.

// Each test file uses its own part of this.
#![allow(dead_code)]

use forebay::sink::Scope;
use forebay::{MemorySink, Pipeline};
use forebay_testkit::process::{Ended, Running};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

pub const LIMIT: Duration = Duration::from_secs(120);

pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.arg("wal").args(args);
    command
}

pub fn forebay(args: &[&str], dir: &Path) -> Ended {
    let mut command = command(args);
    command.arg(dir);
    Running::start(command).expect("it starts").wait(LIMIT)
}

pub fn at(n: u64) -> i64 {
    1_700_000_000_000 + n as i64
}

/// Every 22nd record is a null value under a key of its own.
pub fn is_tombstone(n: u64) -> bool {
    n.is_multiple_of(22)
}

pub fn key(n: u64) -> Option<Vec<u8>> {
    if is_tombstone(n) {
        return Some(format!("tomb {n}").into_bytes());
    }
    (n % 8 != 7).then(|| format!("key {}", n % 8).into_bytes())
}

pub fn value(n: u64) -> Option<Vec<u8>> {
    (!is_tombstone(n)).then(|| {
        let mut value = format!("value {n} \u{fffd}").into_bytes();
        value.resize(150, (n % 256) as u8);
        value
    })
}

/// Those without a key go to partition 2.
pub fn partition(n: u64) -> Option<i32> {
    key(n).is_none().then_some(2)
}

fn send(pipeline: &Pipeline, topics: &[String], n: u64) {
    let topic = pipeline.topic(&topics[n as usize % topics.len()]).unwrap();
    let (key, text) = (key(n), n.to_string());
    let Some(value) = value(n) else {
        while let Err(e) = topic.tombstone(key.as_deref().unwrap_or_default()) {
            assert!(e.is_retryable(), "{e}");
            std::thread::sleep(Duration::from_millis(1));
        }
        return;
    };
    let mut record =
        topic.record(&value).header("n", text.as_bytes()).header_null("null").timestamp(at(n));
    if let Some(key) = &key {
        record = record.key(key);
    }
    if let Some(partition) = partition(n) {
        record = record.partition(partition);
    }
    record.send_timeout(LIMIT).unwrap();
}

/// Leaves records 0 to `records` in `dir`, in turns to `topics`, in segments of 2 MiB.
pub fn fill(dir: &Path, topics: &[String], records: u64) {
    let sink = MemorySink::new();
    sink.handle().refuse();
    let pipeline =
        Pipeline::builder().wal_dir(dir).segment_bytes(2 << 20).sink(sink).open().unwrap();
    for n in 0..records {
        send(&pipeline, topics, n);
    }
    let report = pipeline.close(Duration::from_millis(1)).unwrap();
    assert_eq!(report.stats.books.in_wal, records, "{:?}", report.stats.books);
}

/// Leaves dead letters: the first half for one reason, the others for another.
pub fn fill_set_aside(dir: &Path, topics: &[String], records: u64) {
    let sink = MemorySink::new();
    sink.handle().fail_next(records / 2, Scope::Record, "message_too_large");
    sink.handle().fail_next(records - records / 2, Scope::Record, "policy_violation");
    let pipeline = Pipeline::builder().wal_dir(dir).sink(sink).open().unwrap();
    for n in 0..records {
        send(&pipeline, topics, n);
    }
    let report = pipeline.close(LIMIT).unwrap();
    assert_eq!(report.stats.books.set_aside, records, "{:?}", report.stats.books);
}

/// Flips one bit of a file.
pub fn flip(file: &Path, at: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[at] ^= 0x10;
    std::fs::write(file, bytes).unwrap();
}
