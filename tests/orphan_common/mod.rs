//! What the tests of verify, repair and redrive share: directories that a pipeline left.

// Each test file uses its own part of this.
#![allow(dead_code)]

use forebay::sink::Scope;
use forebay::{MemorySink, Pipeline};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub const SOON: Duration = Duration::from_secs(30);
/// Bytes of a record's value.
pub const VALUE_BYTES: usize = 200;

pub fn builder() -> forebay::Builder {
    Pipeline::builder().lanes(1).lane_bytes(1 << 20).record_bytes_max(100_000)
}

pub fn in_dir(dir: &Path) -> forebay::Builder {
    builder().segment_bytes(1 << 20).wal_dir(dir)
}

/// A value that says its number.
pub fn value(n: u64) -> Vec<u8> {
    let mut value = format!("{n:010}-").into_bytes();
    value.resize(VALUE_BYTES, b'.');
    value
}

/// The number that a value says.
pub fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(&value[..10]).unwrap().parse().unwrap()
}

pub fn topic_of(n: u64) -> &'static str {
    ["a", "b", "c"][(n % 3) as usize]
}

/// Leaves `records` in `dir`, none delivered, in segments of 1 MiB: record `n` in topic a, b or c
/// by its remainder, with a key of its remainder by 7, a header and a time of its own.
pub fn fill(dir: &Path, records: u64) {
    let sink = MemorySink::new();
    sink.handle().refuse();
    let pipeline = in_dir(dir).sink(sink).open().unwrap();
    for n in 0..records {
        let topic = pipeline.topic(topic_of(n)).unwrap();
        let key = [b'k', b'0' + (n % 7) as u8];
        topic
            .record(&value(n))
            .key(&key)
            .header("n", n.to_string().as_bytes())
            .timestamp(1_000_000 + n as i64)
            .send_timeout(SOON)
            .unwrap();
    }
    let report = pipeline.close(Duration::from_millis(1)).unwrap();
    assert_eq!(report.stats.books.in_wal, records, "{:?}", report.stats.books);
}

/// Leaves `records` dead letters in `dir`: of each ten the first three `policy_violation`, the
/// others `record_invalid`.
pub fn fill_set_aside(dir: &Path, records: u64) {
    let sink = MemorySink::new();
    let handle = sink.handle();
    for _ in 0..records / 10 {
        handle.fail_next(3, Scope::Record, "policy_violation");
        handle.fail_next(7, Scope::Record, "record_invalid");
    }
    let pipeline = in_dir(dir).sink(sink).open().unwrap();
    for n in 0..records {
        let topic = pipeline.topic(topic_of(n)).unwrap();
        topic.record(&value(n)).key(b"k").timestamp(5 + n as i64).send_timeout(SOON).unwrap();
    }
    let report = pipeline.close(SOON).unwrap();
    assert_eq!(report.stats.books.set_aside, records, "{:?}", report.stats.books);
}

/// The file that holds the record with this number, and where its value is.
pub fn find(dir: &Path, n: u64) -> (PathBuf, usize) {
    let wanted = &value(n)[..11];
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let Ok(bytes) = std::fs::read(entry.path()) else { continue };
        if let Some(at) = bytes.windows(11).position(|w| w == wanted) {
            return (entry.path(), at);
        }
    }
    panic!("no file holds record {n}");
}

/// The numbers of the records in a file.
pub fn numbers_in(file: &Path) -> Vec<u64> {
    let bytes = std::fs::read(file).unwrap();
    let is_value = |at: usize| {
        let digits = at.checked_sub(10).and_then(|from| bytes.get(from..at));
        digits.is_some_and(|d| d.iter().all(u8::is_ascii_digit))
            && bytes.get(at + 1..at + 9).is_some_and(|rest| rest == b"........")
    };
    let ends = (0..bytes.len()).filter(|at| bytes[*at] == b'-' && is_value(*at));
    ends.map(|at| number(&bytes[at - 10..])).collect()
}

/// Flips a bit in a record's value.
pub fn flip(dir: &Path, n: u64) {
    let (file, at) = find(dir, n);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[at + 20] ^= 4;
    std::fs::write(&file, bytes).unwrap();
}

/// A directory that nobody else can read, without the golden files' names in it.
pub fn private_dir() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::Permissions::from_mode(0o700);
    tempfile::Builder::new().permissions(mode).tempdir().unwrap()
}
