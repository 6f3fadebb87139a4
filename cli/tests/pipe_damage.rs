//! `forebay pipe` on a log that somebody has damaged: the rest is delivered, damage is said.

mod pipe_common;

use forebay_testkit::audit::{Audit, ID_BYTES, Id, Stream};
use forebay_testkit::lines::{Feeder, LogLines};
use forebay_testkit::process::Running;
use forebay_testkit::{Kafka, dead_port, private_dir, say};
use pipe_common as common;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const LINES: u64 = 5_000;
/// Where the damage is done.
const VICTIM: u64 = 3_000;
const LIMIT: Duration = Duration::from_secs(120);

/// Fills a log without Kafka.
fn fill(topic: &str, dir: &Path) {
    let brokers = format!("127.0.0.1:{}", dead_port());
    let mut command = common::pipe(&brokers, topic, dir);
    command.args(["--close-ms", "500"]);
    let mut running = Running::start(command).unwrap();
    let input = LogLines::new(5, 0, 0).take(LINES as usize);
    assert_eq!(Feeder::start(running.take_stdin(), input, 100_000).finish().lines(), LINES);
    common::until_in_log(dir, LINES);
    running.terminate();
    let ended = running.wait(LIMIT);
    assert_eq!(common::count(&common::closing(&ended), "in_wal"), LINES);
}

/// The file that holds the line with this number, and where.
fn find(dir: &Path, number: u64) -> (PathBuf, u64) {
    let text = Id { source: 0, number }.text();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let Ok(bytes) = std::fs::read(entry.path()) else { continue };
        let found = bytes.windows(ID_BYTES).position(|w| w == text.as_bytes());
        if let Some(at) = found {
            return (entry.path(), at as u64);
        }
    }
    panic!("no file holds line {number}");
}

/// Damages a full log with `damage`, delivers it, and gives what arrived.
fn deliver_damaged(name: &str, damage: impl FnOnce(&Path, u64)) -> Option<Audit> {
    let kafka = Kafka::shared()?;
    let topic = kafka.topic(name, 1);
    let dir = private_dir();
    fill(&topic, dir.path());
    let (file, at) = find(dir.path(), VICTIM);
    damage(&file, at);
    let ended = common::run(
        common::pipe(kafka.brokers(), &topic, dir.path()),
        b"new input all the same\n",
        LIMIT,
    );
    let json = common::closing(&ended);
    let records = kafka.oracle().read(&topic).unwrap();
    let audit = Audit::new(&records, Stream::by_key);
    say(&format!(
        "{name}: {}; {}; says: {}",
        audit.line(&[LINES]),
        common::figures(&json),
        ended.stderr.trim()
    ));
    assert!(ended.stderr.contains("damage"), "it doesn't say so: {ended:?}");
    assert_eq!(audit.duplicates, 0);
    assert_eq!(audit.strangers, 1, "the new line");
    assert!(audit.disorder.is_empty(), "{:?}", audit.disorder);
    assert_eq!(common::count(&json, "delivered"), audit.records, "{json}");
    // What was damaged is not forgotten by the books either.
    assert_eq!(common::count(&json, "accepted"), 1, "{json}");
    Some(audit)
}

#[test]
fn a_flipped_bit_costs_one_record() {
    let flip = |file: &Path, at: u64| {
        let file = std::fs::File::options().read(true).write(true).open(file).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at + 3).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at + 3).unwrap();
    };
    let Some(audit) = deliver_damaged("flipped-bit", flip) else { return };
    assert_eq!(audit.missing(&[LINES]), [Id { source: 0, number: VICTIM }]);
}

#[test]
fn a_truncated_segment_costs_what_was_cut_off() {
    let cut = |file: &Path, at: u64| {
        std::fs::File::options().write(true).open(file).unwrap().set_len(at + 3).unwrap();
    };
    let Some(audit) = deliver_damaged("truncated", cut) else { return };
    let missing = audit.missing(&[LINES]);
    assert_eq!(missing.len() as u64, LINES - VICTIM);
    assert_eq!(missing[0].number, VICTIM);
}

#[test]
fn a_segment_overwritten_with_noise_costs_its_part() {
    let noise = |file: &Path, at: u64| {
        let mut random = forebay_testkit::Random::new(9);
        let bytes: Vec<u8> = (0..10_000).map(|_| random.number() as u8).collect();
        let file = std::fs::File::options().write(true).open(file).unwrap();
        file.write_all_at(&bytes, at).unwrap();
    };
    let Some(audit) = deliver_damaged("noise", noise) else { return };
    let missing = audit.missing(&[LINES]);
    assert_eq!(missing[0].number, VICTIM);
    let last = missing[missing.len() - 1].number;
    assert_eq!(missing.len() as u64, last - VICTIM + 1, "one range");
    assert!(missing.len() < 100, "{} records for 10,000 bytes", missing.len());
}
