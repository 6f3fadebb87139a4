//! Repair of damaged directories in memory: a crash at every op, and a range that can't be read.

use super::*;
use crate::wal::{Verification, Weight, plan, repair, verify};

/// A log of several sealed segments with a flipped bit, a cut segment and a missing one.
fn damaged() -> MemoryStorage {
    let storage = MemoryStorage::new();
    let mut log = open(&storage, small());
    for n in 1..=200 {
        append_helped(&mut log, n);
    }
    log.wal.seal();
    log.keeper.sync_now().unwrap();
    drop(log);
    let segments: Vec<String> =
        storage.names().into_iter().filter(|n| n.ends_with(".wal") && !n.contains('/')).collect();
    assert!(segments.len() >= 5, "{segments:?}");
    let mut bytes = storage.contents(&segments[0]).unwrap();
    bytes[2000] ^= 1;
    storage.put(&segments[0], &bytes);
    let bytes = storage.contents(&segments[1]).unwrap();
    storage.put(&segments[1], &bytes[..2500]);
    Storage::unlink(&storage, &segments[3]).unwrap();
    storage.sync_dir().unwrap();
    storage
}

fn look(storage: &MemoryStorage) -> Verification {
    verify(storage, &mut |_| {}).unwrap()
}

#[test]
fn a_crash_at_every_op_of_a_repair_is_mended_by_another() {
    let before = damaged();
    let found = look(&before);
    assert!(!found.is_sound());
    let whole = before.process_crash_image();
    let done = repair(&whole, &found, 7, &mut |_| {}).unwrap();
    assert_eq!(done.actions, plan(&found));
    assert!(done.after.is_sound(), "{done:?}");
    let after = look(&whole);
    assert!(after.is_sound(), "{after:?}");
    assert_eq!((after.records, after.records_lost()), (found.records, found.records_lost()));
    let ops = whole.ops();
    let mut images = 0;
    for op in 0..ops {
        let storage = before.process_crash_image();
        storage.crash_at(op);
        let _ = repair(&storage, &found, 7, &mut |_| {});
        assert!(storage.crashed());
        for cut in 0..4 {
            let image = match cut {
                0 => storage.process_crash_image(),
                seed => storage.power_cut_image(op * 31 + seed),
            };
            let found_then = look(&image);
            let done = repair(&image, &found_then, 8, &mut |_| {}).unwrap();
            assert!(done.after.is_sound(), "op {op}, image {cut}: {:?}", done.after);
            let after = look(&image);
            assert!(after.is_sound(), "op {op}, image {cut}: {after:?}");
            assert_eq!(after.records, found.records, "op {op}, image {cut}");
            images += 1;
        }
    }
    println!(
        "repair: {ops} ops, {images} images; {} records lost before and after",
        found.records_lost()
    );
}

#[test]
fn a_dry_look_writes_nothing() {
    let storage = damaged().process_crash_image();
    let found = look(&storage);
    assert!(!plan(&found).is_empty());
    assert_eq!(storage.ops(), 0, "verify and plan only read");
    assert!(found.findings.iter().any(|f| f.weight == Weight::Damage && f.verdict == "bad"));
}
