//! The second reader of the log, `wal_reader.py`, against the first: record by record, on the
//! golden bytes and on a directory that a pipeline just wrote.

use forebay::inspect::{Directory, Item};
use forebay::sink::Scope;
use forebay::{MemorySink, Pipeline};
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

fn tests_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// What the script prints for a directory; `None` where there is no Python and none is required.
fn second(dir: &Path) -> Option<Vec<String>> {
    let ended = Command::new("python3").arg(tests_dir().join("wal_reader.py")).arg(dir).output();
    let ended = match ended {
        Ok(ended) => ended,
        Err(e) => {
            let required =
                std::env::var("FOREBAY_REQUIRE_KAFKA").is_ok_and(|v| !v.is_empty() && v != "0");
            assert!(!required, "FOREBAY_REQUIRE_KAFKA=1, but there is no python3: {e}");
            println!("SKIPPED: no python3 here: {e}");
            return None;
        }
    };
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success() && said.is_empty(), "{said}");
    let text = String::from_utf8(ended.stdout).expect("UTF-8");
    Some(text.lines().map(str::to_string).collect())
}

fn hex(bytes: Option<&[u8]>) -> String {
    let Some(bytes) = bytes else { return "null".to_string() };
    let mut text = String::from("\"");
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text + "\""
}

fn number<T: ToString>(n: Option<T>) -> String {
    n.map_or("null".to_string(), |n| n.to_string())
}

/// The same by the library.
fn first(dir: &Path) -> Vec<String> {
    let directory = Directory::open(dir).expect("it opens");
    let mut lines = Vec::new();
    for segment in directory.segments().expect("listed") {
        directory
            .walk(&segment, |item| {
                lines.push(match item {
                    Item::Record(r) => {
                        let headers: Vec<String> =
                            r.headers().map(|(name, value)| format!("[{name:?}, {}]", hex(value))).collect();
                        let note = r.set_aside.map_or("null".to_string(), |n| {
                            format!("{{\"unix_ms\": {}, \"code\": {}, \"reason\": {:?}}}", n.unix_ms, n.code, n.reason)
                        });
                        format!(
                            "{{\"lsn\": {}, \"topic\": {:?}, \"partition\": {}, \"timestamp_ms\": {}, \"key\": {}, \"value\": {}, \"headers\": [{}], \"set_aside\": {note}}}",
                            r.lsn,
                            r.topic,
                            number(r.partition),
                            r.timestamp_ms,
                            hex(r.key),
                            hex(r.value),
                            headers.join(", "),
                        )
                    }
                    Item::Bad { from, to, records_lost, .. } => {
                        format!("{{\"bad\": [{from}, {to}], \"records_lost\": {}}}", number(records_lost))
                    }
                    _ => "neither".to_string(),
                });
                true
            })
            .expect("walked");
    }
    lines
}

/// Compares line by line; returns the records and the bad ranges.
fn compare(dir: &Path) -> Option<(usize, usize)> {
    let (first, second) = (first(dir), second(dir)?);
    for (i, (a, b)) in first.iter().zip(&second).enumerate() {
        assert_eq!(a, b, "item {i}");
    }
    assert_eq!(first.len(), second.len());
    let bad = first.iter().filter(|l| l.starts_with("{\"bad\"")).count();
    Some((first.len() - bad, bad))
}

/// Golden files carry a `+` for the `/` of a directory.
fn unpack(golden: &str, dir: &Path) {
    fs::create_dir_all(dir.join("set-aside")).expect("made");
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).expect("set");
    for entry in fs::read_dir(tests_dir().join(golden)).expect("listed") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().replace('+', "/");
        fs::copy(&path, dir.join(name)).expect("copied");
    }
}

#[test]
fn both_readers_agree_on_the_golden_bytes() {
    for (golden, records) in [("golden", 14), ("golden-shapes", 36)] {
        let home = tempfile::tempdir().expect("a directory");
        unpack(golden, home.path());
        let Some(found) = compare(home.path()) else { return };
        println!("{golden}: {} records, {} bad ranges", found.0, found.1);
        assert_eq!(found, (records, 0), "{golden}");
    }
}

/// A directory with several segments, set-aside records and every shape of a record.
fn write(dir: &Path) -> usize {
    let sink = MemorySink::new();
    let handle = sink.handle();
    let pipeline = Pipeline::builder()
        .wal_dir(dir)
        .sink(sink)
        .loss_window(Duration::ZERO)
        .lanes(2)
        .lane_bytes(1 << 20)
        .record_bytes_max(50_000)
        .segment_bytes(1 << 20)
        .open()
        .expect("it opens");
    let topics =
        ["emoji", "votes", "a.long-er_name"].map(|t| pipeline.topic(t).expect("a good name"));
    handle.fail_next(7, Scope::Record, "too large");
    for n in 0..7u8 {
        topics[1].record(&[n; 9]).key(&[n]).send().expect("there is room");
    }
    pipeline.flush(Duration::from_secs(60)).expect("set aside");
    handle.refuse();
    let mut sent = 7;
    for n in 0..2_000usize {
        let value: Vec<u8> = (0..n * 7 % 3_000).map(|i| (i * 31 + n) as u8).collect();
        let key = n.to_le_bytes();
        let topic = &topics[n % 3];
        let mut record = topic.record(&value).timestamp(n as i64 - 5);
        if n % 2 == 0 {
            record = record.key(&key[..n % 9]);
        }
        if n % 5 == 0 {
            record = record.header("größe", b"1").header("empty", b"").header_null("null");
        }
        if n % 4 == 0 {
            record = record.partition((n % 50) as i32);
        }
        record.send_timeout(Duration::from_secs(60)).expect("there is room");
        sent += 1;
        if n % 100 == 0 {
            topic.tombstone(&key).expect("there is room");
            sent += 1;
        }
    }
    let report = pipeline.close(Duration::from_millis(300)).expect("it closes");
    assert!(report.complete && report.stats.books.set_aside == 7, "{:?}", report.stats.books);
    sent
}

#[test]
fn both_readers_agree_on_what_was_just_written_and_on_what_is_damaged() {
    let home = tempfile::tempdir().expect("a directory");
    let dir = home.path().join("log");
    let sent = write(&dir);
    let Some((records, bad)) = compare(&dir) else { return };
    println!("fresh: {records} records, {bad} bad ranges");
    // The seven stand in the log, where they were first, and among the set-aside ones.
    assert_eq!((records, bad), (sent + 7, 0));

    // One frame of each segment is damaged: a bit in its value, its length, its commit word.
    let mut names: Vec<PathBuf> = fs::read_dir(&dir)
        .expect("listed")
        .map(|e| e.expect("an entry").path())
        .filter(|p| p.extension().is_some_and(|e| e == "wal"))
        .collect();
    names.sort();
    let used = |p: &PathBuf| fs::read(p).is_ok_and(|b| b.iter().any(|b| *b != 0));
    names.retain(used);
    assert!(names.len() >= 3, "{names:?}");
    for (i, path) in names.iter().enumerate() {
        let mut bytes = fs::read(path).expect("read");
        // The frame that begins next behind this place: a record's length, CRC, LSN, number.
        let mut at = 1024;
        for _ in 0..200 + i {
            let length = u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
            at += (length as usize).next_multiple_of(8);
        }
        match i % 3 {
            0 => bytes[at + 60] ^= 4,
            1 => bytes[at + 1] ^= 0x80,
            _ => bytes[at..at + 8].fill(0),
        }
        fs::write(path, &bytes).expect("written");
    }
    let (left, bad) = compare(&dir).expect("python3 was there");
    println!("damaged: {left} records, {bad} bad ranges");
    assert_eq!((left, bad), (records - names.len(), names.len()));
}
