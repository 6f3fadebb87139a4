//! A crash at every op of a scripted run, as a process crash and as power cuts.

use super::*;
use std::io;

/// What the script had been told when the crash came.
#[derive(Default)]
struct Told {
    appended: Vec<u64>,
    synced_below: u64,
    /// Every watermark that was handed to the keeper; the newest is the limit of what may be
    /// skipped.
    watermark: u64,
}

/// Appends, syncs, checkpoints, trims; stops at the first sign of the crash.
fn script(storage: &MemoryStorage) -> Told {
    let mut told = Told::default();
    let topics = Arc::new(TopicTable::default());
    let opened = Wal::open(Arc::new(storage.clone()), topics.clone(), small(), salts(5), 0);
    let Ok((wal, keeper, recovery)) = opened else { return told };
    let mut log = Open { wal, keeper, recovery, topics };
    for n in 1..=120u64 {
        loop {
            match append(&mut log, n) {
                Ok(_) => break told.appended.push(n),
                Err(AppendError::NotReady) if log.keeper.step(n, None).error.is_none() => {}
                Err(_) => return told,
            }
        }
        if n % 7 == 0 {
            let _: io::Result<()> = log.keeper.sync_now();
            told.synced_below = log.wal.synced_below().0;
        }
        if n % 5 == 0 {
            let acked = n.saturating_sub(40);
            told.watermark = told.watermark.max(acked);
            log.wal.trim(Lsn(acked));
            let data = CheckpointData { watermark: Lsn(acked), ..CheckpointData::default() };
            if log.keeper.step(n, Some(&data)).error.is_some() {
                return told;
            }
        }
        if storage.crashed() {
            return told;
        }
    }
    told
}

/// Everything at or above the watermark up to `to` comes, in order, and nothing that was
/// never appended.
fn check(image: &MemoryStorage, told: &Told, to: u64, what: &str) {
    let (mut log, lsns, _) = reopen_and_read(image);
    let newest = told.appended.last().copied().unwrap_or(0);
    // The append that the crash cut off may have been committed before it was reported.
    assert!(lsns.iter().all(|n| *n <= newest + 1), "{what}: a ghost in {lsns:?}");
    let due: Vec<u64> = (told.watermark.max(1)..=to).collect();
    let got: Vec<u64> = lsns.iter().copied().filter(|n| due.contains(n)).collect();
    assert_eq!(got, due, "{what}: {:?}", log.recovery);
    let damage = &log.recovery.damage;
    assert_eq!(damage.segments_missing + damage.segments_foreign - damage.unfinished_tails.min(damage.segments_foreign), 0, "{what}: {damage:?}");
    // And the next run works.
    let next = log.recovery.next_lsn.0.max(200);
    append_helped(&mut log, next);
    assert_eq!(read_all(&log, Some(LogPosition::default())).0.last(), Some(&next));
}

#[test]
fn a_crash_at_every_op_loses_nothing_that_was_promised() {
    let whole = MemoryStorage::new();
    assert_eq!(script(&whole).appended.len(), 120);
    let ops = whole.ops();
    let (mut processes, mut cuts) = (0, 0);
    for op in 0..ops {
        let storage = MemoryStorage::new();
        storage.crash_at(op);
        let told = script(&storage);
        assert!(storage.crashed());
        let newest = told.appended.last().copied().unwrap_or(0);
        check(&storage.process_crash_image(), &told, newest, &format!("process crash at op {op}"));
        processes += 1;
        for seed in 0..4 {
            let image = storage.power_cut_image(op * 31 + seed);
            let synced = told.synced_below.saturating_sub(1);
            check(&image, &told, synced, &format!("power cut at op {op}, seed {seed}"));
            cuts += 1;
        }
    }
    println!("{ops} ops: {processes} process crashes, {cuts} power cuts");
}

#[test]
fn a_crash_during_recovery_is_recovered_from() {
    let storage = MemoryStorage::new();
    storage.crash_at(400);
    let told = script(&storage);
    let newest = told.appended.last().copied().unwrap_or(0);
    let mut tried = 0;
    for op in 0.. {
        let second = storage.process_crash_image();
        second.crash_at(op);
        let topics = Arc::new(TopicTable::default());
        let _ = Wal::open(Arc::new(second.clone()), topics, small(), salts(6), 0);
        if !second.crashed() {
            break;
        }
        check(&second.process_crash_image(), &told, newest, &format!("second crash at op {op}"));
        tried += 1;
    }
    println!("{tried} crashes during recovery");
    assert!(tried > 3);
}

#[test]
fn a_crash_while_an_old_tail_is_sealed_loses_nothing() {
    let storage = MemoryStorage::new();
    storage.crash_at(400);
    let told = script(&storage);
    let newest = told.appended.last().copied().unwrap_or(0);
    let first = storage.process_crash_image();
    let seals = |image: &MemoryStorage| -> u64 {
        let segments = inspect(image).expect("listed");
        segments.iter().map(|s| u64::from(s.seal.is_some())).sum()
    };
    let before = seals(&first);
    let (mut processes, mut cuts) = (0, 0);
    for op in 0.. {
        let second = first.process_crash_image();
        second.crash_at(op);
        let topics = Arc::new(TopicTable::default());
        let opened = Wal::open(Arc::new(second.clone()), topics, small(), salts(6), 0);
        let synced = opened.is_ok_and(|(_wal, mut keeper, _)| keeper.sync_now().is_ok());
        if !second.crashed() {
            assert!(synced);
            assert!(seals(&second) > before, "the tail got no seal");
            let again = open(&second.process_crash_image(), small());
            assert!(again.wal.segments.iter().all(|s| s.seal.is_some()), "it is walked again");
            break;
        }
        let what = format!("crash at op {op} of the second run");
        check(&second.process_crash_image(), &told, newest, &what);
        processes += 1;
        for seed in 0..8 {
            let image = second.power_cut_image(op * 31 + seed);
            let due = told.synced_below.saturating_sub(1);
            check(&image, &told, due, &format!("{what}, power cut {seed}"));
            cuts += 1;
        }
    }
    println!("{processes} process crashes, {cuts} power cuts while a tail was sealed");
    assert!(processes > 15);
}
