//! What fuzzing found, each case made small.

use super::super::format::{HEADER_AT, get_u32, get_u64, put};
use super::*;

/// A segment cut behind its header holds no record; those that it held are still missing, and
/// the segment behind it knows how many they were.
#[test]
fn the_records_of_an_emptied_oldest_segment_are_counted() {
    for (watermark, cut, came) in [(0, 175, 1), (0, 1024, 1), (15, 1400, 0)] {
        let storage = MemoryStorage::new();
        let mut log = open(&storage, small());
        let first = append_helped(&mut log, 1);
        for n in 2..=20 {
            append_helped(&mut log, n);
        }
        log.wal.seal();
        let last = append_helped(&mut log, 21);
        assert!(first.segment < last.segment);
        let data = CheckpointData { watermark: Lsn(watermark), ..CheckpointData::default() };
        log.keeper.store_checkpoint(&data).expect("stored");
        drop(log);
        let name = segment_name(SegmentKind::Main, first.segment);
        let bytes = storage.contents(&name).expect("there");
        storage.put(&name, &bytes[..cut]);
        let (_, lsns, lost) = reopen_and_read(&storage);
        assert_eq!(lsns.last(), Some(&21));
        assert!(lost > 0, "cut at {cut}: records are gone without a word: {lsns:?}");
        if watermark == 0 {
            assert_eq!((lsns.len() as u64, lost), (came, 20), "cut at {cut}");
        }
    }
}

/// A file cut to nothing, or zeroed from end to end, is not taken for one that was prepared and
/// never used.
#[test]
fn an_emptied_segment_is_told_from_an_unused_one() {
    for emptied in [vec![], vec![0; 4096]] {
        let storage = MemoryStorage::new();
        let mut log = open(&storage, small());
        let first = append_helped(&mut log, 1);
        log.wal.seal();
        append_helped(&mut log, 2);
        drop(log);
        let control = reopen_and_read(&storage.process_crash_image());
        assert_eq!((control.1, control.0.recovery.damage), (vec![1, 2], DamageReport::default()));
        storage.put(&segment_name(SegmentKind::Main, first.segment), &emptied);
        let (open, lsns, _) = reopen_and_read(&storage);
        let damage = &open.recovery.damage;
        assert_eq!(lsns, [2]);
        assert_eq!((damage.segments_missing, damage.unfinished_tails), (0, 1), "{damage:?}");
    }
}

/// A good frame in the place of the first record of the backlog: a reader that begins there
/// knows which number is due, and counts the record that is gone.
#[test]
fn a_frame_moved_to_where_the_backlog_begins_hides_no_loss() {
    for moved in [3, 4, 5] {
        let storage = MemoryStorage::new();
        let mut log = open(&storage, small());
        let at: Vec<_> = (1..=6).map(|n| append_helped(&mut log, n)).collect();
        let data = CheckpointData { watermark: Lsn(3), ..CheckpointData::default() };
        log.keeper.store_checkpoint(&data).expect("stored");
        drop(log);
        let name = segment_name(SegmentKind::Main, at[0].segment);
        let mut bytes = storage.contents(&name).expect("there");
        let frame = at[moved].offset as usize;
        let length = get_u32(&bytes, frame) as usize;
        let copy = bytes[frame..frame + length].to_vec();
        bytes[at[2].offset as usize..][..length].copy_from_slice(&copy);
        storage.put(&name, &bytes);
        let (_, lsns, lost) = reopen_and_read(&storage);
        assert_eq!(lsns.len() as u64 + lost, 4, "record {} moved: {lsns:?}", moved + 1);
    }
}

/// A stray file's name, or a manifest's word, doesn't make the segments' numbers run out.
#[test]
fn numbers_do_not_run_out_by_a_stray_name_or_manifest() {
    let manifest = Manifest { directory_id: 1, next_number: u64::MAX, segments: Vec::new() };
    let strays = [
        ("manifest", manifest.encode()),
        ("3fffffffffffffff.wal", vec![0; 4096]),
        ("7ffffffffffffffe.wal", vec![0; 4096]),
        ("7ffffffffffffffe.wal", b"hello".to_vec()),
        ("7fffffffffffffff.wal", b"hello".to_vec()),
        ("ffffffffffffffff.wal", b"hello".to_vec()),
    ];
    for (name, bytes) in strays {
        let storage = MemoryStorage::new();
        storage.put(name, &bytes);
        // Leaves a segment that was prepared and never used.
        drop(reopen_and_read(&storage));
        for n in 1..=3 {
            let (mut open, lsns, lost) = reopen_and_read(&storage);
            assert_eq!((lsns, lost), ((1..n).collect(), 0), "{name}");
            append_helped(&mut open, n);
        }
    }
}

/// A file that ends within the fields that every version has is bad, and no panic.
#[test]
fn a_file_of_a_few_bytes_with_the_magic_is_bad() {
    let whole = [&b"FOREBAYW"[..], &[0xff; 24]].concat();
    for len in 0..whole.len() {
        let storage = MemoryStorage::new();
        storage.put("0000000000000001.wal", &whole[..len]);
        let (open, ..) = reopen_and_read(&storage);
        let damage = open.recovery.damage;
        let moved = damage.segments_foreign + damage.segments_newer;
        assert_eq!(moved, u64::from(len > 0), "{len} bytes: {damage:?}");
    }
}

/// Numbers that only damage can have made, under a checksum that holds: nothing overflows.
#[test]
fn absurd_numbers_under_a_good_checksum_are_damage() {
    for (at, word) in [(48, u64::MAX), (56, u64::MAX), (48, 1 << 63), (56, 1 << 63)] {
        let storage = MemoryStorage::new();
        let mut log = open(&storage, small());
        let first = append_helped(&mut log, 1);
        log.wal.seal();
        append_helped(&mut log, 2);
        drop(log);
        let name = segment_name(SegmentKind::Main, first.segment);
        let mut bytes = storage.contents(&name).expect("there");
        assert!(get_u64(&bytes, at) < 2);
        for copy in HEADER_AT {
            let header = &mut bytes[copy as usize..][..128];
            put(header, at, word.to_le_bytes());
            let crc = crc32fast::hash(&header[..124]);
            put(header, 124, crc.to_le_bytes());
        }
        storage.put(&name, &bytes);
        let (mut open, lsns, _) = reopen_and_read(&storage);
        assert_eq!((lsns, open.recovery.damage.segments_foreign), (vec![2], 1));
        append_helped(&mut open, 3);
    }
}

/// An empty file among the dead letters that has the number of a segment of the log: removing
/// it doesn't remove the segment.
#[test]
fn an_unused_file_under_another_segments_number_costs_nothing() {
    for bytes in [vec![], vec![0; 4096]] {
        let storage = MemoryStorage::new();
        let mut log = open(&storage, small());
        let at = append_helped(&mut log, 1);
        drop(log);
        storage.put(&segment_name(SegmentKind::SetAside, at.segment), &bytes);
        for _ in 0..3 {
            let (mut open, lsns, lost) = reopen_and_read(&storage);
            assert_eq!((lsns, lost), (vec![1], 0));
            open.keeper.step(0, None);
            open.keeper.step(1, None);
        }
    }
}

/// The other way round: an empty file of the log under a dead letters' segment's number.
#[test]
fn an_unused_file_under_a_set_aside_segments_number_costs_nothing() {
    let storage = MemoryStorage::new();
    let mut log = open(&storage, small());
    let (topic, partition, shape, body) = parts(1);
    let topic = topic_of(&log, topic);
    let record = RecordView { topic, partition, timestamp_ms: 1, shape, body: &body };
    let at = loop {
        match log.wal.set_aside(Lsn(1), &record, "why", 1, 2) {
            Err(AppendError::NotReady) => drop(log.keeper.step(0, None)),
            done => break done.expect("set aside"),
        }
    };
    drop(log);
    let name = segment_name(SegmentKind::SetAside, at.segment);
    storage.put(&segment_name(SegmentKind::Main, at.segment), &[0; 4096]);
    for _ in 0..3 {
        let (mut open, ..) = reopen_and_read(&storage);
        open.keeper.step(0, None);
        open.keeper.step(1, None);
        assert!(storage.names().contains(&name), "{:?}", storage.names());
    }
}
