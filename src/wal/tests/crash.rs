//! A crash before, in the middle of and after every op of a scripted life of a log: as a crash of
//! the process and as power cuts on the simulated disk, and as a crash of the process on real
//! files.
//!
//! The life: three runs over one directory that append, set aside, sync, store checkpoints, trim
//! before and after them, rotate, seal; the first is closed, the others just end.

use super::stops::Stops;
use super::*;
use std::collections::BTreeSet;
use std::path::Path;

/// Records of each run.
type Life = [u64; 3];
const LONG: Life = [90, 40, 20];
/// For real files, where each op costs more.
const SHORT: Life = [34, 12, 8];

/// What the script had been told when the crash came.
#[derive(Default)]
struct Told {
    appended: Vec<u64>,
    aside: Vec<u64>,
    synced_below: u64,
    /// The highest watermark that was handed over: the limit of what may be skipped.
    watermark: u64,
    /// It came to its end.
    done: bool,
}

/// Lives; stops at the first error that a crash explains.
fn live(storage: &Arc<dyn Storage>, life: Life) -> Told {
    let mut told = Told::default();
    let mut next = 1;
    for (run, records) in life.into_iter().enumerate() {
        let topics = Arc::new(TopicTable::default());
        let salts = salts(5 + run as u64);
        let opened = Wal::open(storage.clone(), topics.clone(), small(), salts, 0);
        let Ok((wal, keeper, recovery)) = opened else { return told };
        let mut log = Open { wal, keeper, recovery, topics };
        if live_run(&mut log, &mut told, next, records).is_none() {
            return told;
        }
        next += records;
        if run == 0 && close(&mut log, &mut told).is_none() {
            return told;
        }
    }
    told.done = true;
    told
}

fn live_run(log: &mut Open, told: &mut Told, first: u64, records: u64) -> Option<()> {
    for n in first..first + records {
        loop {
            let is_aside = n.is_multiple_of(9);
            let done = if is_aside { set_aside(log, n) } else { append(log, n) };
            match done {
                Ok(_) if is_aside => break told.aside.push(n),
                Ok(_) => break told.appended.push(n),
                Err(AppendError::NotReady) => {
                    log.keeper.step(n, None).error.is_none().then_some(())?
                }
                Err(_) => return None,
            }
        }
        if n.is_multiple_of(7) {
            let synced = log.keeper.sync_now();
            told.synced_below = told.synced_below.max(log.wal.synced_below().0);
            synced.ok()?;
        }
        if n.is_multiple_of(5) {
            // Once the segments go before the checkpoint that allows it, once after.
            let acked = n.saturating_sub(30);
            told.watermark = told.watermark.max(acked);
            let data = CheckpointData { watermark: Lsn(acked), ..CheckpointData::default() };
            if n.is_multiple_of(2) {
                log.wal.trim(Lsn(acked));
            }
            log.keeper.step(n, Some(&data)).error.is_none().then_some(())?;
            log.wal.trim(Lsn(acked));
        }
    }
    Some(())
}

fn close(log: &mut Open, told: &mut Told) -> Option<()> {
    log.wal.seal();
    log.keeper.sync_now().ok()?;
    told.synced_below = told.synced_below.max(log.wal.synced_below().0);
    let data = CheckpointData { watermark: Lsn(told.watermark), ..CheckpointData::default() };
    log.keeper.store_checkpoint(&data).ok()?;
    log.keeper.sync_now().ok()?;
    log.keeper.step(0, None).error.is_none().then_some(())
}

fn set_aside(log: &mut Open, n: u64) -> Result<LogPosition, AppendError> {
    let (topic, partition, shape, body) = parts(n);
    let topic = log.topics.intern(topic);
    let record = RecordView { topic, partition, timestamp_ms: n as i64, shape, body: &body };
    log.wal.set_aside(Lsn(n), &record, "script", 1, 0)
}

/// The numbers of everything that was set aside, each with its reason.
fn asides(storage: &dyn Storage) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    for segment in inspect(storage).expect("listed") {
        if segment.kind != SegmentKind::SetAside {
            continue;
        }
        let Some(mut walk) = FrameWalk::new(storage, &segment).expect("opened") else { continue };
        while let Some(item) = walk.next_frame().expect("read") {
            if let Inspected::Frame { header, note: Some(note), .. } = item {
                assert_eq!((note.reason, note.code), ("script", 1));
                found.insert(header.lsn);
            }
        }
    }
    found
}

/// Everything at or above the watermark up to `to` comes, in order, and nothing that was
/// never appended; what a checkpoint may call final because it was set aside is there.
fn check(storage: &Arc<dyn Storage>, told: &Told, power_cut: bool, what: &str) {
    let topics = Arc::new(TopicTable::default());
    let (wal, keeper, recovery) =
        Wal::open(storage.clone(), topics.clone(), small(), salts(7), 1_000).expect("it opens");
    let mut log = Open { wal, keeper, recovery, topics };
    let (lsns, lost) = read_backlog(&log);
    let newest = told.appended.iter().chain(&told.aside).max().copied().unwrap_or(0);
    // The append that the crash cut off may have been committed before it was reported.
    assert!(lsns.iter().all(|n| *n <= newest + 1), "{what}: a ghost in {lsns:?}");
    let to = if power_cut { told.synced_below } else { u64::MAX };
    let is_due = |n: &u64| *n >= told.watermark && *n < to;
    let due: Vec<u64> = told.appended.iter().copied().filter(is_due).collect();
    let got: Vec<u64> = lsns.iter().copied().filter(|n| due.contains(n)).collect();
    assert_eq!(got, due, "{what}: {:?}", log.recovery);
    let damage = &log.recovery.damage;
    assert_eq!(damage.segments_missing, 0, "{what}: {damage:?}");
    assert!(damage.segments_foreign <= damage.unfinished_tails, "{what}: {damage:?}");
    assert!(power_cut || damage.records_lost + lost == 0, "{what}: {damage:?}");
    let stored = log.recovery.checkpoint.as_ref().map_or(0, |c| c.watermark.0);
    let aside = asides(&**storage);
    let is_promised = |n: &&u64| !power_cut || **n < stored;
    let gone: Vec<&u64> =
        told.aside.iter().filter(is_promised).filter(|n| !aside.contains(n)).collect();
    assert!(gone.is_empty(), "{what}: set aside and gone: {gone:?}, checkpoint {stored}");
    // And the next run works.
    let next = log.recovery.next_lsn.0.max(200);
    append_helped(&mut log, next);
    assert_eq!(read_all(&log, Some(LogPosition::default())).0.last(), Some(&next), "{what}");
}

fn shared(storage: &MemoryStorage) -> Arc<dyn Storage> {
    Arc::new(storage.clone())
}

/// Eighths of an op: before it, in its middle (twice, since what a tear cuts differs), after it.
const PARTS: [u64; 4] = [0, 3, 6, 8];

#[test]
fn a_crash_at_every_op_loses_nothing_that_was_promised() {
    let whole = MemoryStorage::new();
    assert!(live(&shared(&whole), LONG).done);
    let counts = whole.counts();
    println!("{} ops, {counts:?}", whole.ops());
    assert!(counts.unlinked > 4, "too little rotates");
    let (mut processes, mut cuts) = (0, 0);
    for op in 0..whole.ops() {
        for part in PARTS {
            let storage = MemoryStorage::new();
            storage.crash_in(op, part);
            let told = live(&shared(&storage), LONG);
            assert!(storage.crashed() && !told.done);
            let what = format!("crash in op {op}, {part}/8 of it done");
            check(&shared(&storage.process_crash_image()), &told, false, &what);
            processes += 1;
            for seed in 0..3 {
                let image = storage.power_cut_image(op * 31 + part * 7 + seed);
                check(&shared(&image), &told, true, &format!("{what}, power cut {seed}"));
                cuts += 1;
            }
        }
    }
    println!("{processes} process crashes, {cuts} power cuts");
}

#[test]
fn a_crash_during_recovery_is_recovered_from() {
    let mut tried = 0;
    let whole = MemoryStorage::new();
    live(&shared(&whole), LONG);
    for first in (20..whole.ops()).step_by(61) {
        let storage = MemoryStorage::new();
        storage.crash_at(first);
        let told = live(&shared(&storage), LONG);
        for power_cut in [false, true] {
            for op in 0.. {
                let second = if power_cut {
                    storage.power_cut_image(first)
                } else {
                    storage.process_crash_image()
                };
                second.crash_in(op, PARTS[op as usize % PARTS.len()]);
                let topics = Arc::new(TopicTable::default());
                let opened = Wal::open(shared(&second), topics, small(), salts(6), 0);
                if let Ok((_, mut keeper, _)) = opened {
                    keeper.step(1, Some(&CheckpointData::default()));
                }
                if !second.crashed() {
                    break;
                }
                let what = format!("crash at op {first}, power cut: {power_cut}, then at op {op}");
                check(&shared(&second.process_crash_image()), &told, power_cut, &what);
                check(&shared(&second.power_cut_image(op)), &told, true, &what);
                tried += 1;
            }
        }
    }
    println!("{tried} crashes during recovery");
    assert!(tried > 100);
}

#[test]
fn a_crash_at_every_op_on_real_files_loses_nothing_that_was_promised() {
    // In memory where there is such a filesystem: thousands of syncs wait for no disk.
    let in_memory = tempfile::tempdir_in("/dev/shm");
    let home = in_memory.or_else(|_| tempfile::tempdir()).expect("a directory");
    let files = |name: &str| -> Arc<dyn Storage> {
        Arc::new(FileStorage::open(&home.path().join(name)).expect("opens"))
    };
    let whole = Stops::new(files("whole"), u64::MAX, 0);
    assert!(live(&whole.shared(), SHORT).done);
    let ops = whole.ops();
    let mut crashes = 0;
    for op in 0..ops {
        for part in [0, 4, 8] {
            let name = format!("{op}-{part}");
            let stops = Stops::new(files(&name), op, part);
            let told = live(&stops.shared(), SHORT);
            assert!(stops.has_stopped() && !told.done, "op {op}");
            drop(stops);
            check(&files(&name), &told, false, &format!("crash in op {op}, {part}/8 of it done"));
            remove(&home.path().join(name));
            crashes += 1;
        }
    }
    println!("{ops} ops, {crashes} crashes on real files");
}

fn remove(dir: &Path) {
    std::fs::remove_dir_all(dir).expect("removed");
}

#[test]
fn a_crash_while_an_old_tail_is_sealed_loses_nothing() {
    let storage = MemoryStorage::new();
    storage.crash_at(400);
    let told = live(&shared(&storage), LONG);
    let first = storage.process_crash_image();
    let seals = |image: &MemoryStorage| -> u64 {
        let segments = inspect(image).expect("listed");
        segments.iter().map(|s| u64::from(s.seal.is_some())).sum()
    };
    let before = seals(&first);
    let (mut processes, mut cuts) = (0, 0);
    for op in 0.. {
        let second = first.process_crash_image();
        second.crash_in(op, PARTS[op as usize % PARTS.len()]);
        let topics = Arc::new(TopicTable::default());
        let opened = Wal::open(shared(&second), topics, small(), salts(6), 0);
        let synced = opened.is_ok_and(|(_wal, mut keeper, _)| keeper.sync_now().is_ok());
        if !second.crashed() {
            assert!(synced);
            assert!(seals(&second) > before, "the tail got no seal");
            let again = open(&second.process_crash_image(), small());
            assert!(again.wal.segments.iter().all(|s| s.seal.is_some()), "it is walked again");
            break;
        }
        let what = format!("crash at op {op} of the second run");
        check(&shared(&second.process_crash_image()), &told, false, &what);
        processes += 1;
        for seed in 0..8 {
            let image = second.power_cut_image(op * 31 + seed);
            check(&shared(&image), &told, true, &format!("{what}, power cut {seed}"));
            cuts += 1;
        }
    }
    println!("{processes} process crashes, {cuts} power cuts while a tail was sealed");
    assert!(processes > 15);
}
