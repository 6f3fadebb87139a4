//! Verifying and repairing real directories: sound ones, each kind of damage, and what a repair
//! leaves.

mod orphan_common;

use forebay::verify::{Finding, Verification, Weight, bytes_to_verify, plan, repair, verify};
use forebay::{MemorySink, OpenError};
use forebay_testkit::log_dir::{everything, segments};
use orphan_common::*;
use std::path::Path;

const RECORDS: u64 = 12_000;

fn look(dir: &Path) -> Verification {
    let mut last = 0;
    let found = verify(dir, |bytes| {
        assert!(bytes >= last, "progress goes on");
        last = bytes;
    })
    .unwrap();
    assert_eq!((last, bytes_to_verify(dir).unwrap()), (found.bytes, found.bytes));
    found
}

fn damage(found: &Verification) -> Vec<&Finding> {
    found.findings.iter().filter(|f| f.weight == Weight::Damage).collect()
}

/// Damages a full directory, verifies, tries a dry run, repairs, verifies again, and delivers:
/// exactly `lost` records are missing at the end, and were named before.
fn damaged(name: &str, verdict: &str, lost: u64, harm: impl FnOnce(&Path)) -> Verification {
    let dir = private_dir();
    let dir = dir.path();
    fill(dir, RECORDS);
    let sound = look(dir);
    assert!(sound.is_sound() && sound.records == RECORDS, "{sound:?}");
    harm(dir);
    let found = look(dir);
    assert!(!found.is_sound(), "{name}: {found:?}");
    let seen = damage(&found);
    assert!(seen.iter().any(|f| f.verdict == verdict), "{name}: {seen:?}");
    assert_eq!(found.records_lost(), lost, "{name}: {seen:?}");

    let before = everything(dir);
    let actions = plan(&found);
    assert!(!actions.is_empty(), "{name}");
    assert!(everything(dir) == before, "looking and planning change nothing");

    let repaired = repair(dir, |_| {}).unwrap();
    assert_eq!(repaired.actions, actions, "{name}");
    assert!(repaired.after.is_sound(), "{name}: {:?}", damage(&repaired.after));
    let again = look(dir);
    assert!(again.is_sound(), "{name}: {:?}", damage(&again));
    assert!(!again.set_apart.is_empty(), "{name}: quarantine is empty");
    let once_more = repair(dir, |_| {}).unwrap();
    assert_eq!(once_more.actions, [""; 0], "{name}: a second repair finds nothing to do");

    let sink = MemorySink::new();
    let seen = sink.handle();
    let pipeline = in_dir(dir).sink(sink).open().unwrap();
    pipeline.flush(SOON).unwrap();
    let report = pipeline.close(SOON).unwrap();
    assert!(report.stats.books.balanced(), "{name}: {:?}", report.stats.books);
    let arrived = seen.records().len() as u64;
    assert_eq!(arrived, RECORDS - lost, "{name}");
    println!(
        "{name}: {arrived} of {RECORDS} delivered; {} findings, {actions:?}",
        found.findings.len()
    );
    again
}

#[test]
fn a_sound_directory_is_sound() {
    let dir = private_dir();
    let empty = look(dir.path());
    assert!(empty.is_sound() && empty.findings.is_empty(), "{empty:?}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "looking leaves nothing");
    fill(dir.path(), RECORDS);
    let found = look(dir.path());
    assert!(found.segments >= 4 && found.findings.is_empty(), "{found:?}");
    let before = everything(dir.path());
    let repaired = repair(dir.path(), |_| {}).unwrap();
    assert_eq!(repaired.actions, [""; 0]);
    let after = everything(dir.path());
    let same = |(path, _): &&(std::path::PathBuf, Vec<u8>)| !path.ends_with("LOCK");
    assert!(
        before.iter().filter(same).eq(after.iter().filter(same)),
        "nothing to do, nothing done"
    );
}

#[test]
fn the_golden_directory_is_sound() {
    let dir = private_dir();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for entry in std::fs::read_dir(golden).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap().replace('+', "/");
        let to = dir.path().join(name);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(entry.path(), to).unwrap();
    }
    let found = look(dir.path());
    assert!(found.is_sound(), "{found:?}");
    assert!(found.records > 0 && found.set_aside_records > 0, "{found:?}");
    println!("golden: {} records, {} set aside", found.records, found.set_aside_records);
}

#[test]
fn a_flipped_bit_is_a_bad_range_and_known_after_a_repair() {
    let after = damaged("flipped bit", "bad", 1, |dir| flip(dir, 1_000));
    let known: Vec<_> = after.findings.iter().filter(|f| f.weight == Weight::Known).collect();
    assert_eq!(known.len(), 1, "{after:?}");
    let bad = known[0];
    assert_eq!((bad.verdict, bad.records_lost), ("bad", 1));
    assert_eq!(bad.lsn_before.map(|n| n + 2), bad.lsn_after, "{bad:?}");
    assert!(bad.from < bad.to && bad.file.is_some(), "{bad:?}");
}

#[test]
fn noise_over_many_records_is_one_bad_range() {
    let noise = |dir: &Path| {
        let (file, at) = find(dir, 2_000);
        let mut bytes = std::fs::read(&file).unwrap();
        for (i, b) in bytes[at..at + 5_000].iter_mut().enumerate() {
            *b = (i * 7 + 1) as u8;
        }
        std::fs::write(&file, bytes).unwrap();
    };
    let frame = (56 + 7 + 4 + 2 + VALUE_BYTES).next_multiple_of(8);
    damaged("noise", "bad", 1 + (5_000_f64 / frame as f64).floor() as u64, noise);
}

#[test]
fn a_cut_segment_costs_its_end_and_says_how_much() {
    let dir = private_dir();
    fill(dir.path(), RECORDS);
    let (file, at) = find(dir.path(), 500);
    let whole = std::fs::read(&file).unwrap();
    let in_it = numbers_in(&file).len() as u64;
    assert!(whole.len() > at && in_it > 500, "record 500 lies in the first segment");
    damaged("cut", "cut", in_it - 500, |dir| {
        let (file, at) = find(dir, 500);
        std::fs::File::options().write(true).open(file).unwrap().set_len(at as u64 + 9).unwrap();
    });
}

#[test]
fn a_missing_segment_is_missing_and_a_gap() {
    let dir = private_dir();
    fill(dir.path(), RECORDS);
    let second = segments(dir.path())[1].clone();
    let in_it = numbers_in(&second).len() as u64;
    damaged("missing", "missing", in_it, |dir| {
        std::fs::remove_file(&segments(dir)[1]).unwrap();
    });
}

#[test]
fn a_damaged_header_and_a_foreign_copy_go_to_quarantine_whole() {
    let zap = |dir: &Path| {
        let file = &segments(dir)[2];
        let mut bytes = std::fs::read(file).unwrap();
        bytes[20] ^= 1;
        bytes[512 + 20] ^= 1;
        std::fs::write(file, bytes).unwrap();
    };
    let dir = private_dir();
    fill(dir.path(), RECORDS);
    let third = segments(dir.path())[2].clone();
    let in_it = numbers_in(&third).len() as u64;
    damaged("header", "header", in_it, zap);
    damaged("copy", "foreign", 0, |dir| {
        std::fs::copy(&segments(dir)[1], dir.join("00000000000000ff.wal")).unwrap();
    });
}

#[test]
fn bad_checkpoints_and_a_bad_manifest_are_found_and_put_away() {
    damaged("checkpoints", "checkpoint", 0, |dir| {
        for slot in ["checkpoint-0", "checkpoint-1"] {
            let file = dir.join(slot);
            if file.exists() {
                std::fs::write(file, [7; 4096]).unwrap();
            }
        }
    });
    damaged("manifest", "manifest", 0, |dir| {
        std::fs::write(dir.join("manifest"), b"nothing").unwrap();
    });
}

#[test]
fn what_is_no_damage_is_noted_and_no_reason_to_fail() {
    let dir = private_dir();
    let dir = dir.path();
    fill(dir, RECORDS);
    std::fs::write(dir.join("notes.txt"), b"mine").unwrap();
    let file = &segments(dir)[0];
    let mut bytes = std::fs::read(file).unwrap();
    // One copy of the header, and one of the locator.
    bytes[20] ^= 1;
    bytes[768] ^= 1;
    std::fs::write(file, &bytes).unwrap();
    let newest = dir.join("00000000000000fe.wal");
    let mut newer = bytes.clone();
    for at in [0, 512] {
        newer[at + 8] = 9;
        newer[at + 12] = 1;
    }
    std::fs::write(&newest, &newer).unwrap();
    let found = look(dir);
    let notes: Vec<_> = found.findings.iter().map(|f| (f.weight, f.verdict)).collect();
    for verdict in ["other_file", "header_copy", "locator_copy", "newer_version"] {
        assert!(notes.contains(&(Weight::Note, verdict)), "{verdict}: {:?}", found.findings);
    }
    assert!(found.is_sound() && found.records == RECORDS, "{found:?}");
    repair(dir, |_| {}).unwrap();
    let put = dir.join("newer-version/00000000000000fe.wal");
    assert_eq!(std::fs::read(put).unwrap(), newer, "put aside untouched");
    assert!(dir.join("notes.txt").exists());
}

#[test]
fn a_directory_in_use_is_verified_and_not_repaired() {
    let dir = private_dir();
    let sink = MemorySink::new();
    sink.handle().refuse();
    let pipeline = in_dir(dir.path()).sink(sink).open().unwrap();
    let topic = pipeline.topic("a").unwrap();
    let (mut looks, mut sent) = (0, 0);
    while looks < 20 {
        for _ in 0..500 {
            topic.record(&value(sent)).send_timeout(SOON).unwrap();
            sent += 1;
        }
        let found = verify(dir.path(), |_| {}).unwrap();
        assert!(found.is_sound(), "beside a live pipeline: {found:?}");
        looks += 1;
    }
    let refused = repair(dir.path(), |_| {}).unwrap_err();
    let OpenError::InUse { holder, .. } = &refused else { panic!("{refused:?}") };
    assert!(holder.contains(&std::process::id().to_string()), "{refused}");
    pipeline.close(std::time::Duration::ZERO).unwrap();
    let found = look(dir.path());
    println!("{looks} looks beside a live pipeline; then {} records", found.records);
    assert_eq!(found.records, sent);
    assert!(verify(&dir.path().join("nowhere"), |_| {}).is_err());
    assert!(repair(&dir.path().join("nowhere"), |_| {}).is_err());
    assert!(!dir.path().join("nowhere").exists());
}
