//! Damaged directories: what is lost, what is counted, what still comes.

use super::super::checkpoint::SLOTS;
use super::super::format::{FORMAT_VERSION, HEADER_AREA_BYTES};
use super::*;

/// A log of `n` records, the last segment not sealed, and its files' names.
fn log_of(n: u64) -> (MemoryStorage, Vec<String>) {
    let storage = MemoryStorage::new();
    let mut log = open(&storage, small());
    for n in 1..=n {
        append_helped(&mut log, n);
    }
    drop(log);
    let names = storage.names().into_iter().filter(|n| n.ends_with(".wal")).collect();
    (storage, names)
}

fn copy(storage: &MemoryStorage) -> MemoryStorage {
    storage.process_crash_image()
}

#[test]
fn a_flipped_bit_costs_one_record_at_most() {
    let (storage, names) = log_of(60);
    let (mut flips, mut harmless, mut costly) = (0, 0, 0);
    let mut pick = salts(3);
    for name in &names {
        let bytes = storage.contents(name).expect("there");
        if bytes.iter().all(|b| *b == 0) {
            continue;
        }
        for _ in 0..2_000 {
            let bit = pick() as usize % (bytes.len() * 8);
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let image = copy(&storage);
            image.put(name, &bad);
            let (open, lsns, lost) = reopen_and_read(&image);
            let gone = 60 - lsns.len() as u64;
            assert!(gone <= 1, "{name} bit {bit}: {gone} records gone, {:?}", open.recovery);
            // The last record of a segment that was never sealed has no successor whose number
            // tells of it.
            let told = lost + open.recovery.damage.unfinished_tails;
            assert!(told >= gone, "{name} bit {bit}: silent loss");
            flips += 1;
            harmless += u64::from(gone == 0);
            costly += gone;
        }
    }
    println!("{flips} flips: {harmless} harmless, {costly} cost their one record");
    assert!(costly > 0 && harmless > 0);
}

#[test]
fn a_truncated_segment_costs_its_tail_and_the_rest_comes() {
    let (storage, names) = log_of(60);
    let bytes = storage.contents(&names[0]).expect("there");
    for len in (0..=bytes.len()).step_by(40) {
        let image = copy(&storage);
        image.put(&names[0], &bytes[..len]);
        let (open, lsns, lost) = reopen_and_read(&image);
        assert!(lsns.ends_with(&[59, 60]));
        if len as u64 >= HEADER_AREA_BYTES {
            assert_eq!(lsns.len() as u64 + lost, 60, "cut at {len}: {:?}", open.recovery);
        }
    }
}

#[test]
fn a_missing_segment_is_noticed_and_its_records_are_counted() {
    let (storage, names) = log_of(60);
    let image = copy(&storage);
    Storage::unlink(&image, &names[1]).expect("removed");
    let (open, lsns, lost) = reopen_and_read(&image);
    assert_eq!(lsns.len() as u64 + lost, 60);
    assert!(lost > 0);
    assert_eq!(open.recovery.damage.segments_missing, 1);
    assert_eq!(open.recovery.damage.records_lost, lost);
}

#[test]
fn a_newer_version_is_put_aside_untouched() {
    let (storage, names) = log_of(60);
    let mut bytes = storage.contents(&names[0]).expect("there");
    for at in [0, 512] {
        bytes[at + 8..at + 12].copy_from_slice(&(FORMAT_VERSION + 1).to_le_bytes());
        bytes[at + 12..at + 16].copy_from_slice(&2048u32.to_le_bytes());
    }
    storage.put(&names[0], &bytes);
    let (open, lsns, _) = reopen_and_read(&storage);
    assert_eq!(open.recovery.damage.segments_newer, 1);
    assert!(lsns.ends_with(&[60]));
    assert_eq!(storage.contents(&format!("newer-version/{}", names[0])), Some(bytes));
}

#[test]
fn foreign_files_and_copies_are_no_reason_to_refuse() {
    let (storage, names) = log_of(60);
    storage.put("0000000000000100.wal", &storage.contents(&names[0]).expect("there"));
    storage.put("0000000000000101.wal", &[0xa5; 5000]);
    storage.put("0000000000000102.wal", b"");
    storage.put("notes.txt", b"hello");
    let (mut open, lsns, lost) = reopen_and_read(&storage);
    assert_eq!((lsns, lost), ((1..=60).collect(), 0));
    assert_eq!(open.recovery.damage.segments_foreign, 2);
    assert_eq!(storage.contents("notes.txt").as_deref(), Some(&b"hello"[..]));
    assert!(append_helped(&mut open, 61).segment > 0x102);
}

#[test]
fn a_segment_or_checkpoint_of_another_directory_skips_nothing() {
    let (storage, _) = log_of(60);
    let other = MemoryStorage::new();
    let topics = Arc::new(TopicTable::default());
    let (_, mut keeper, _) =
        Wal::open(Arc::new(other.clone()), topics, small(), salts(99), 0).expect("opens");
    let data = CheckpointData { watermark: Lsn(1_000), ..CheckpointData::default() };
    keeper.store_checkpoint(&data).expect("stored");
    let slot = SLOTS.iter().find_map(|s| other.contents(s)).expect("written");
    storage.put(SLOTS[0], &slot);
    let (open, lsns, _) = reopen_and_read(&storage);
    assert_eq!(lsns.len(), 60);
    assert_eq!(open.recovery.damage.checkpoints_bad, 1);
}

#[test]
fn a_torn_checkpoint_costs_duplicates_only() {
    let storage = MemoryStorage::new();
    let mut log = open(&storage, small());
    for n in 1..=60 {
        append_helped(&mut log, n);
    }
    let at = |n| CheckpointData { watermark: Lsn(n), ..CheckpointData::default() };
    log.keeper.store_checkpoint(&at(20)).expect("stored");
    log.keeper.sync_now().expect("synced");
    log.keeper.store_checkpoint(&at(40)).expect("stored");
    drop(log);
    let slots = SLOTS.map(|s| storage.contents(s).expect("both were written"));
    let newest = (0..2).find(|s| slots[*s][40] == 40).expect("one of them");
    for (torn, first) in [(&[][..], 40), (&[newest][..], 20), (&[0, 1][..], 1)] {
        let image = copy(&storage);
        for slot in torn {
            let mut bytes = slots[*slot].clone();
            bytes[33] ^= 1;
            image.put(SLOTS[*slot], &bytes);
        }
        let (open, lsns, _) = reopen_and_read(&image);
        assert_eq!(lsns, (first..=60).collect::<Vec<_>>());
        assert_eq!(open.recovery.damage.checkpoints_bad, torn.len() as u64);
    }
}

#[test]
fn a_payload_that_holds_a_whole_segment_never_comes_back_as_records() {
    let storage = MemoryStorage::new();
    let options = WalOptions {
        segment_bytes: 64 << 10,
        set_aside_segment_bytes: 64 << 10,
        record_bytes_max: 8 << 10,
        ..small()
    };
    // What a segment of the same log looks like, as a value between two others.
    let (inner, names) = log_of(20);
    let payload = inner.contents(&names[0]).expect("there");
    let mut log = open_with(&storage, options.clone(), salts(8));
    append_helped(&mut log, 1);
    let topic = topic_of(&log, "alpha");
    let shape = Shape { headers_len: 0, key_len: None, value_len: Some(payload.len() as u32) };
    let record = RecordView { topic, partition: 0, timestamp_ms: 2, shape, body: &payload };
    let at = log.wal.append(Lsn(2), &record).expect("appended");
    append_helped(&mut log, 3);
    let name = segment_name(SegmentKind::Main, at.segment);
    drop(log);
    let mut bytes = storage.contents(&name).expect("there");
    bytes[at.offset as usize + 20] ^= 4;
    storage.put(&name, &bytes);
    let log = open(&storage, options);
    assert_eq!(read_all(&log, log.recovery.backlog), (vec![1, 3], 1));
    assert_eq!(log.recovery.records, 3);
    assert!(storage.names().iter().any(|n| n.starts_with("quarantine/")));
}

#[test]
fn a_payload_that_copies_frames_of_this_log_never_comes_back_as_records() {
    let options = WalOptions {
        segment_bytes: 64 << 10,
        set_aside_segment_bytes: 64 << 10,
        record_bytes_max: 8 << 10,
        ..small()
    };
    let mut tried = 0;
    // From an earlier segment of the directory, with a salt of its own; and from the very segment,
    // by somebody who reads the log's files: then the salt is right, and number and LSN are not.
    for same_segment in [false, true] {
        for shift in 0..16usize {
            let storage = MemoryStorage::new();
            let mut log = open_with(&storage, options.clone(), salts(8));
            let first = append_helped(&mut log, 1);
            for n in 2..=5 {
                append_helped(&mut log, n);
            }
            if !same_segment {
                log.wal.seal();
            }
            let bytes = storage.contents(&segment_name(SegmentKind::Main, first.segment));
            let from = HEADER_AREA_BYTES as usize;
            let mut payload = vec![0xee; shift];
            payload.extend_from_slice(&bytes.expect("there")[from..from + 1_500]);
            append_helped(&mut log, 6);
            let topic = topic_of(&log, "alpha");
            let shape =
                Shape { headers_len: 0, key_len: None, value_len: Some(payload.len() as u32) };
            let record = RecordView { topic, partition: 0, timestamp_ms: 7, shape, body: &payload };
            let at = log.wal.append(Lsn(7), &record).expect("appended");
            append_helped(&mut log, 8);
            drop(log);
            let name = segment_name(SegmentKind::Main, at.segment);
            // Its commit word, its length, its CRC, its LSN, its kind, a length, its value.
            for byte in [0, 1, 5, 9, 20, 32, 52, 60] {
                let image = copy(&storage);
                let mut bytes = image.contents(&name).expect("there");
                let at = at.offset as usize;
                match byte {
                    0 => bytes[at..at + 8].fill(0),
                    byte => bytes[at + byte] ^= 4,
                }
                image.put(&name, &bytes);
                let log = open_with(&image, options.clone(), salts(9));
                let read = read_all(&log, log.recovery.backlog);
                assert_eq!(read, (vec![1, 2, 3, 4, 5, 6, 8], 1), "{same_segment} {shift} {byte}");
                tried += 1;
            }
        }
    }
    println!("{tried} forgeries, none came back");
}

#[test]
fn arbitrary_bytes_never_stop_an_open() {
    let mut pick = salts(11);
    let (good, names) = log_of(30);
    for round in 0..300 {
        let image = copy(&good);
        for name in &names {
            let mut bytes = image.contents(name).expect("there");
            for _ in 0..pick() % 40 {
                let from = pick() as usize % bytes.len();
                let to = (from + pick() as usize % 600).min(bytes.len());
                let fill = pick() as u8 & if round % 2 == 0 { 0 } else { 0xff };
                bytes[from..to].fill(fill);
            }
            image.put(name, &bytes);
        }
        reopen_and_read(&image);
    }
}

#[test]
fn a_seal_whose_locator_is_lost_still_names_the_topics() {
    let storage = MemoryStorage::new();
    let mut log = open(&storage, small());
    for n in 1..=8 {
        append_helped(&mut log, n);
    }
    log.wal.seal();
    drop(log);
    let segment = inspect(&storage).expect("listed").remove(0);
    let name = segment_name(segment.kind, segment.number);
    let mut bytes = storage.contents(&name).expect("there");
    let mut walk = FrameWalk::new(&storage, &segment).expect("opened").expect("readable");
    let mut names = 0;
    while let Some(item) = walk.next_frame().expect("read") {
        if let Inspected::Frame { offset, header, .. } = item
            && header.kind == FrameKind::Topic
        {
            bytes[offset as usize + format::FRAME_HEADER_BYTES] ^= 1;
            names += 1;
        }
    }
    assert_eq!(names, 6);
    for at in seal::LOCATOR_AT {
        bytes[at as usize] ^= 1;
    }
    storage.put(&name, &bytes);
    let (_, lsns, lost) = reopen_and_read(&storage);
    assert_eq!((lsns, lost), ((1..=8).collect(), 0));
}
