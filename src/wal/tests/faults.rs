//! Storage faults at the log's own level: syncs that fail, files that go or shrink, a disk and a
//! bound that are full.

use super::*;
use crate::record::LogPosition;
use std::io;

const BEGIN: LogPosition = LogPosition { segment: 0, offset: 0 };
const SECOND: u64 = 1_000_000_000;

fn disk() -> MemoryStorage {
    MemoryStorage::new()
}

/// Every call of `op` fails from now on.
fn fail(storage: &MemoryStorage, op: StorageOp, kind: io::ErrorKind) {
    storage.set_faults(Some(Box::new(move |_, o| (o == op).then_some(kind))));
}

/// The next call of `op` fails, after `skip` that don't.
fn fail_once(storage: &MemoryStorage, op: StorageOp, skip: u64) {
    let mut seen = 0;
    storage.set_faults(Some(Box::new(move |_, o| {
        seen += u64::from(o == op);
        (o == op && seen == skip + 1).then_some(io::ErrorKind::Other)
    })));
}

fn set_aside(log: &mut Open, lsn: u64) -> Result<LogPosition, AppendError> {
    let topic = topic_of(log, "beta");
    let shape = Shape { headers_len: 0, key_len: None, value_len: Some(100) };
    let record = RecordView { topic, partition: 2, timestamp_ms: 5, shape, body: &[7; 100] };
    log.wal.set_aside(Lsn(lsn), &record, "bad", 10, 77)
}

fn set_aside_helped(log: &mut Open, lsn: u64) {
    loop {
        match set_aside(log, lsn) {
            Ok(_) => return,
            Err(AppendError::NotReady) => assert!(log.keeper.step(0, None).prepared),
            Err(e) => panic!("{e}"),
        }
    }
}

/// Set-aside records that an inspection finds in a directory.
fn asides_in(storage: &MemoryStorage) -> Vec<u64> {
    let mut found = Vec::new();
    for segment in inspect(storage).expect("listed") {
        let Some(mut walk) = FrameWalk::new(storage, &segment).expect("opened") else { continue };
        while let Some(item) = walk.next_frame().expect("read") {
            if let Inspected::Frame { header, note: Some(_), .. } = item {
                found.push(header.lsn);
            }
        }
    }
    found
}

/// Turns until what failed is rewritten; the flusher looks in between.
fn mend(log: &mut Open, from_ns: u64) {
    for turn in 0..200 {
        log.wal.leave_failed();
        log.keeper.step(from_ns + turn * SECOND, None);
        if log.wal.stats().segments_unsynced == 0 {
            return;
        }
    }
    panic!("never rewritten: {:?}", log.wal.stats());
}

/// What a power cut leaves is what was promised: everything below `synced_below`.
fn power_safe(storage: &MemoryStorage, log: &Open, what: &str) {
    let below = log.wal.synced_below().0;
    for seed in 0..8 {
        let image = storage.power_cut_image(seed);
        let (_, lsns, _) = reopen_and_read(&image);
        let due: Vec<u64> = (1..below).collect();
        let got: Vec<u64> = lsns.iter().copied().filter(|n| *n < below).collect();
        assert_eq!(got, due, "{what}, seed {seed}");
    }
}

#[test]
fn a_failed_sync_is_never_believed_and_its_segment_is_rewritten() {
    let storage = disk();
    let mut log = open(&storage, small());
    for n in 1..=5 {
        append_helped(&mut log, n);
    }
    log.keeper.sync_now().expect("synced");
    assert_eq!(log.wal.synced_below(), Lsn(6));
    let at = append_helped(&mut log, 6);
    fail_once(&storage, StorageOp::Sync, 0);
    log.keeper.sync_now().expect_err("fails");
    storage.set_faults(None);
    // To sync it once more would say that all is well, and it isn't.
    log.keeper.sync_now().expect("nothing new to sync");
    assert_eq!(log.wal.synced_below(), Lsn(6), "record 6 may be lost");
    assert_eq!((log.wal.stats().sync_failures, log.wal.stats().segments_unsynced), (1, 1));
    let lost = storage.power_cut_image(1);
    assert_eq!(reopen_and_read(&lost).1, [1, 2, 3, 4, 5], "the fault took place");

    // A reader stands in the middle of it, and no append comes.
    let mut reader = log.wal.reader(BEGIN);
    assert!(matches!(log.wal.read_next(&mut reader), ReadItem::Record(r) if r.lsn == Lsn(1)));
    mend(&mut log, SECOND);
    assert_eq!(log.wal.synced_below(), Lsn(7));
    assert_eq!(log.wal.stats().segments_rewritten, 1);
    power_safe(&storage, &log, "rewritten");
    assert_eq!(log.wal.read_at(at).expect("its position stays").lsn, Lsn(6));
    for n in 2..=6 {
        assert!(matches!(log.wal.read_next(&mut reader), ReadItem::Record(r) if r.lsn == Lsn(n)));
    }
    append_helped(&mut log, 7);
    assert_eq!(read_all(&log, Some(BEGIN)), ((1..=7).collect(), 0));
    assert!(!storage.names().iter().any(|n| n.ends_with(".new")), "{:?}", storage.names());
}

#[test]
fn a_rewrite_survives_a_failure_and_a_crash_at_every_op() {
    // The script up to the failed sync, and how many ops it took.
    let until_failed = |storage: &MemoryStorage| {
        let mut log = open(storage, small());
        for n in 1..=60 {
            append_helped(&mut log, n);
        }
        log.keeper.sync_now().expect("synced");
        for n in 61..=70 {
            append_helped(&mut log, n);
        }
        for lsn in 200..=205 {
            set_aside_helped(&mut log, lsn);
        }
        fail_once(storage, StorageOp::Sync, 0);
        log.keeper.sync_now().expect_err("fails");
        storage.set_faults(None);
        log
    };
    let whole = disk();
    let mut log = until_failed(&whole);
    let first = whole.ops();
    mend(&mut log, SECOND);
    let ops = whole.ops() - first;
    assert!(log.wal.stats().segments_rewritten >= 1);
    let (mut failures, mut processes, mut cuts) = (0, 0, 0);
    for op in 0..ops {
        // Fails there, and is done again.
        let storage = disk();
        let mut log = until_failed(&storage);
        storage.set_faults(Some(Box::new(move |at, o| {
            (at == first + op && o != StorageOp::Read).then_some(io::ErrorKind::Other)
        })));
        log.wal.leave_failed();
        let mut said = 0;
        for turn in 0..30 {
            said += u64::from(log.keeper.step(SECOND * (1 + turn), None).error.is_some());
            log.wal.leave_failed();
            if turn == 0 {
                storage.set_faults(None);
            }
            power_safe(&storage, &log, &format!("op {op} failed, turn {turn}"));
        }
        failures += said;
        assert_eq!(log.wal.stats().segments_unsynced, 0, "op {op}");
        assert_eq!(log.wal.synced_below(), Lsn(71), "op {op}");
        assert_eq!(read_all(&log, Some(BEGIN)).0, (1..=70).collect::<Vec<_>>());

        // Dies there; the next run finishes it.
        let storage = disk();
        let mut log = until_failed(&storage);
        storage.crash_at(first + op);
        for turn in 0..4 {
            log.wal.leave_failed();
            log.keeper.step(SECOND * (1 + turn), None);
        }
        assert!(storage.crashed(), "op {op}");
        let image = storage.process_crash_image();
        let (mut next, lsns, lost) = reopen_and_read(&image);
        assert_eq!((lsns, lost), ((1..=70).collect(), 0), "op {op}");
        assert_eq!(next.recovery.damage.segments_foreign, 0, "op {op}: {:?}", next.recovery.damage);
        mend(&mut next, SECOND);
        next.keeper.sync_now().expect("synced");
        assert_eq!(next.wal.synced_below(), Lsn(206), "op {op}");
        power_safe_records(&image, 70, &format!("op {op}, the next run"));
        let mut asides = asides_in(&image.power_cut_image(op));
        asides.dedup();
        assert_eq!(asides, (200..=205).collect::<Vec<_>>(), "op {op}");
        processes += 1;
        for seed in 0..4 {
            let (_, lsns, _) = reopen_and_read(&storage.power_cut_image(op * 7 + seed));
            let below = log.wal.synced_below().0;
            assert!((1..below).all(|n| lsns.contains(&n)), "op {op}: {lsns:?}");
            cuts += 1;
        }
    }
    println!("{ops} ops: {failures} failed turns, {processes} process crashes, {cuts} power cuts");
    assert!(failures >= 3 && ops >= 6);
}

fn power_safe_records(storage: &MemoryStorage, to: u64, what: &str) {
    for seed in 0..4 {
        let (_, lsns, _) = reopen_and_read(&storage.power_cut_image(seed));
        assert_eq!(lsns, (1..=to).collect::<Vec<_>>(), "{what}, seed {seed}");
    }
}

#[test]
fn what_the_page_cache_lost_meanwhile_is_counted_and_nothing_else() {
    let storage = disk();
    let mut log = open(&storage, small());
    for n in 1..=8 {
        append_helped(&mut log, n);
    }
    log.keeper.sync_now().expect("synced");
    for n in 9..=16 {
        append_helped(&mut log, n);
    }
    fail_once(&storage, StorageOp::Sync, 0);
    log.keeper.sync_now().expect_err("fails");
    storage.set_faults(None);
    let name = segment_name(SegmentKind::Main, 1);
    log.wal.leave_failed();
    storage.evict(&name);
    log.keeper.step(SECOND, None);
    let stats = log.wal.stats();
    assert_eq!((stats.segments_rewritten, stats.segments_unsynced), (1, 0), "{stats:?}");
    assert!(stats.records_lost_by_sync > 0, "{stats:?}");
    let (lsns, lost) = read_all(&log, Some(BEGIN));
    assert_eq!(lost, stats.records_lost_by_sync);
    assert_eq!(lsns.len() as u64 + lost, 16);
    assert!(lsns.starts_with(&[1, 2, 3, 4, 5, 6, 7, 8]));
    println!("{lost} of 8 records were gone from the page cache");
}

#[test]
fn two_syncs_that_fail_in_one_turn_are_both_left() {
    let storage = disk();
    let mut log = open(&storage, small());
    append_helped(&mut log, 1);
    set_aside_helped(&mut log, 90);
    log.keeper.step(0, None);
    log.keeper.sync_now().expect("synced");
    // One more main segment that is retired and unsynced behind them.
    for n in 2..=60 {
        append_helped(&mut log, n);
    }
    set_aside_helped(&mut log, 91);
    fail(&storage, StorageOp::Sync, io::ErrorKind::Other);
    log.keeper.sync_now().expect_err("fails");
    storage.set_faults(None);
    let failed = log.wal.stats().segments_unsynced;
    assert!(failed >= 3, "{failed}");
    assert!(log.wal.leave_failed());
    assert!(!log.wal.leave_failed(), "both were left at once");
    mend(&mut log, SECOND);
    assert_eq!(log.wal.stats().segments_rewritten, failed);
    assert_eq!(log.wal.synced_below(), Lsn(61));
    let image = storage.power_cut_image(3);
    assert_eq!(asides_in(&image), [90, 91]);
    power_safe(&storage, &log, "both");
}

#[test]
fn a_checkpoint_never_counts_on_a_set_aside_record_that_is_not_synced() {
    let data = CheckpointData { watermark: Lsn(2), ..CheckpointData::default() };
    let mut refused = [0; 2];
    // The main segment's sync fails, or the set-aside one's.
    for skip in 0..2 {
        let storage = disk();
        let mut log = open(&storage, small());
        append_helped(&mut log, 1);
        set_aside_helped(&mut log, 1);
        fail_once(&storage, StorageOp::Sync, skip);
        refused[skip as usize] += u64::from(log.keeper.store_checkpoint(&data).is_err());
        storage.set_faults(None);
        for _ in 0..3 {
            let stored = log.keeper.store_checkpoint(&data).is_ok();
            let safe = asides_in(&storage.power_cut_image(5)) == [1];
            assert!(!stored || safe, "a checkpoint that skips record 1, which is nowhere");
            refused[skip as usize] += u64::from(!stored);
        }
        mend(&mut log, SECOND);
        log.keeper.store_checkpoint(&data).expect("stored");
        assert_eq!(asides_in(&storage.power_cut_image(5)), [1]);
    }
    assert_eq!(refused, [1, 4]);
}

#[test]
fn a_checkpoint_slot_whose_sync_fails_is_made_anew() {
    let storage = disk();
    let mut log = open(&storage, small());
    let store = |log: &mut Open, n: u64| {
        let data = CheckpointData { watermark: Lsn(n), ..CheckpointData::default() };
        log.keeper.store_checkpoint(&data)
    };
    store(&mut log, 1).expect("stored");
    log.keeper.sync_now().expect("synced");
    store(&mut log, 2).expect("stored");
    fail_once(&storage, StorageOp::Sync, 0);
    log.keeper.sync_now().expect_err("the slot's sync fails");
    storage.set_faults(None);
    let on_disk = |seed| open(&storage.power_cut_image(seed), small()).recovery.checkpoint;
    assert!((0..8).all(|s| on_disk(s).is_some_and(|c| c.watermark == Lsn(1))), "the fault is real");
    // No new checkpoint is stored in between: the old bytes go into a new file.
    log.keeper.sync_now().expect("made anew");
    assert!((0..8).all(|s| on_disk(s).is_some_and(|c| c.watermark == Lsn(2))));
    // A write that fails half way is no reason to turn to the only good slot.
    fail_once(&storage, StorageOp::Write, 0);
    store(&mut log, 3).expect_err("fails");
    storage.set_faults(None);
    log.keeper.sync_now().expect("made anew");
    store(&mut log, 4).expect("stored");
    assert!((0..8).all(|s| on_disk(s).is_some_and(|c| c.watermark >= Lsn(3))));
}

#[test]
fn a_segment_of_an_earlier_run_whose_sync_fails_is_rewritten() {
    let storage = disk();
    let mut log = open(&storage, small());
    for n in 1..=100 {
        append_helped(&mut log, n);
    }
    log.wal.seal();
    drop(log);
    let (mut again, lsns, _) = reopen_and_read(&storage);
    assert_eq!(lsns.len(), 100);
    fail(&storage, StorageOp::Sync, io::ErrorKind::Other);
    again.keeper.sync_now().expect_err("fails");
    storage.set_faults(None);
    let failed = again.wal.stats().segments_unsynced;
    assert!(failed > 2);
    mend(&mut again, SECOND);
    assert_eq!(again.wal.stats().segments_rewritten, failed);
    again.keeper.sync_now().expect("synced");
    assert_eq!(again.wal.synced_below(), Lsn(101));
    power_safe(&storage, &again, "an earlier run's");
    println!("{failed} segments of an earlier run rewritten");
}

#[test]
fn a_disk_that_fails_every_sync_is_left_alone_and_comes_back() {
    let storage = disk();
    let mut log = open(&storage, small());
    append_helped(&mut log, 1);
    fail(&storage, StorageOp::Sync, io::ErrorKind::Other);
    let (mut n, mut errors) = (2, 0);
    for turn in 0..400 {
        // A process crash costs nothing meanwhile, so appends go on.
        append_helped(&mut log, n);
        n += 1;
        log.wal.leave_failed();
        errors += u64::from(log.keeper.step(turn * SECOND / 2, None).error.is_some());
    }
    let stats = log.wal.stats();
    assert!(errors > 100 && stats.segments_unsynced > 4, "{errors} {stats:?}");
    assert!(log.wal.synced_below() <= Lsn(1));
    // Not a segment for each sync: four are left, then they fill up as ever.
    assert!(stats.segments < 30, "{stats:?}");
    storage.set_faults(None);
    mend(&mut log, 1000 * SECOND);
    log.keeper.step(2000 * SECOND, None);
    append_helped(&mut log, n);
    log.keeper.sync_now().expect("synced");
    assert_eq!(log.wal.synced_below(), Lsn(n + 1));
    assert_eq!(read_all(&log, Some(BEGIN)), ((1..=n).collect(), 0));
    power_safe(&storage, &log, "back again");
    println!("{errors} failed turns, {n} records in {} segments", stats.segments);
}

#[test]
fn a_segment_in_use_that_somebody_removes_is_put_back() {
    let storage = disk();
    let mut log = open(&storage, small());
    for n in 1..=10 {
        append_helped(&mut log, n);
    }
    log.keeper.sync_now().expect("synced");
    let name = segment_name(SegmentKind::Main, 1);
    Storage::unlink(&storage, &name).expect("somebody removes it");
    Storage::sync_dir(&storage).expect("for good");
    append_helped(&mut log, 11);
    log.keeper.sync_now().expect_err("the name is gone");
    assert_eq!(log.wal.synced_below(), Lsn(11));
    mend(&mut log, SECOND);
    assert!(storage.contents(&name).is_some());
    assert_eq!((log.wal.synced_below(), log.wal.stats().segments_rewritten), (Lsn(12), 1));
    assert_eq!(read_all(&log, Some(BEGIN)), ((1..=11).collect(), 0));
    power_safe(&storage, &log, "put back");
    append_helped(&mut log, 12);
}

#[test]
fn an_older_segment_that_somebody_removes_is_counted_and_the_rest_comes() {
    let storage = disk();
    let mut log = open(&storage, small());
    for n in 1..=100 {
        append_helped(&mut log, n);
    }
    log.keeper.sync_now().expect("synced");
    let gone = segment_name(SegmentKind::Main, 2);
    Storage::unlink(&storage, &gone).expect("somebody removes it");
    let (lsns, lost) = read_all(&log, Some(BEGIN));
    assert!(lost > 5 && lsns.len() as u64 + lost == 100, "{lost}");
    // It goes like any other in the end.
    log.wal.trim(Lsn(101));
    assert!(log.keeper.step(SECOND, None).error.is_none());
    append_helped(&mut log, 101);
    println!("{lost} of 100 records were in it");
}

#[test]
fn a_segment_that_shrinks_costs_what_was_cut_and_the_log_goes_on() {
    for active in [true, false] {
        let storage = disk();
        let mut log = open(&storage, small());
        let records = if active { 10 } else { 60 };
        for n in 1..=records {
            append_helped(&mut log, n);
        }
        log.keeper.sync_now().expect("synced");
        let name = segment_name(SegmentKind::Main, 1);
        let file = Storage::open(&storage, &name).expect("there");
        file.truncate(1_500).expect("somebody cuts it");
        let mut n = records + 1;
        let mut failed = 0;
        while n <= records + 40 {
            match append(&mut log, n) {
                Ok(_) => n += 1,
                Err(AppendError::NotReady) => drop(log.keeper.step(0, None)),
                Err(_) => failed += 1,
            }
            assert!(failed <= 2, "the next append goes to another segment");
        }
        assert_eq!(failed > 0, active);
        let _: io::Result<()> = log.keeper.sync_now();
        mend(&mut log, SECOND);
        log.keeper.sync_now().expect("synced");
        assert_eq!(log.wal.synced_below(), Lsn(n));
        let (lsns, lost) = read_all(&log, Some(BEGIN));
        assert!(lost > 0 && lsns.len() as u64 + lost == n - 1, "{lost} of {}", n - 1);
        assert!(lsns.ends_with(&(records + 1..n).collect::<Vec<_>>()));
        println!("in use: {active}; {lost} records were cut off");
    }
}

#[test]
fn a_file_that_can_t_be_made_whole_nor_removed_is_the_only_one_of_its_kind() {
    let storage = disk();
    let mut log = open(&storage, small());
    for n in 1..=3 {
        append_helped(&mut log, n);
    }
    storage.set_faults(Some(Box::new(|_, op| {
        matches!(op, StorageOp::Populate | StorageOp::Unlink).then_some(io::ErrorKind::Other)
    })));
    let mut failed = 0;
    for turn in 0..100 {
        failed += u64::from(log.keeper.step(turn * SECOND, None).error.is_some());
        log.wal.leave_failed();
        let _ = append(&mut log, 4 + turn);
    }
    let segments = storage.names().iter().filter(|n| n.ends_with(".wal")).count();
    assert!(failed > 50 && segments <= 4, "{failed} {segments}");
    let on_disk = log.wal.bytes_on_disk();
    assert!(on_disk >= segments as u64 * 4096 - 4096, "{on_disk}: they count");
    storage.set_faults(None);
    log.keeper.step(1000 * SECOND, None);
    assert!(log.keeper.step(1001 * SECOND, None).error.is_none());
    println!("{failed} failed turns, {segments} segments on disk");
}
