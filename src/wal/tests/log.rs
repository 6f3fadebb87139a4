//! Append, read, rotate, trim, set aside, checkpoint: what a sound directory does.

use super::*;
use crate::error::OpenError;
use std::io;

#[test]
fn records_come_back_as_they_went_in_over_many_segments() {
    let storage = MemoryStorage::new();
    let mut log = open(&storage, small());
    assert_eq!((log.recovery.records, log.recovery.backlog), (0, None));
    let positions: Vec<_> = (1..=500).map(|n| append_helped(&mut log, n)).collect();
    let (lsns, lost) = read_all(&log, Some(positions[0]));
    assert_eq!((lsns, lost), ((1..=500).collect(), 0));
    assert!(log.wal.stats().segments > 10, "{:?}", log.wal.stats());
    for (i, at) in positions.iter().enumerate() {
        let topics = log.topics.clone();
        let record = log.wal.read_at(*at).expect("readable");
        assert_eq!((record.lsn.0, record.position), (i as u64 + 1, *at));
        check_record(&record, &topics);
    }
    // From every position, the rest follows.
    for (i, at) in positions.iter().enumerate().step_by(37) {
        assert_eq!(read_all(&log, Some(*at)).0, (i as u64 + 1..=500).collect::<Vec<_>>());
    }
    drop(log);
    let (mut again, lsns, lost) = reopen_and_read(&storage);
    assert_eq!((lsns, lost), ((1..=500).collect(), 0));
    assert_eq!(again.wal.synced_below(), Lsn(1), "nothing was ever synced");
    assert_eq!(again.recovery.damage, DamageReport::default());
    assert_eq!(again.recovery.records_by_topic.iter().map(|t| t.1).sum::<u64>(), 500);
    assert_eq!(again.recovery.next_lsn, Lsn(501));
    again.keeper.sync_now().expect("synced");
    assert_eq!(again.wal.synced_below(), Lsn(501));
    assert_eq!(reopen_and_read(&storage.power_cut_image(1)).1.len(), 500);
}

#[test]
fn a_reader_follows_the_segment_that_is_being_appended_to() {
    let storage = MemoryStorage::new();
    let mut log = open(&storage, small());
    let first = append_helped(&mut log, 1);
    let mut reader = log.wal.reader(first);
    for n in 1..=300 {
        match log.wal.read_next(&mut reader) {
            ReadItem::Record(r) => {
                assert_eq!(r.lsn.0, n);
                check_record(&r, &log.topics);
                assert_eq!(r.next, reader.position());
            }
            other => panic!("record {n}: {other:?}"),
        }
        assert!(matches!(log.wal.read_next(&mut reader), ReadItem::CaughtUp));
        append_helped(&mut log, n + 1);
    }
}

#[test]
fn the_watermark_decides_where_the_backlog_begins() {
    for watermark in [0, 1, 2, 40, 41, 99, 100, 101, 5_000] {
        let storage = MemoryStorage::new();
        let mut log = open(&storage, small());
        // Every second number is never journaled.
        for n in (2..=100).step_by(2) {
            append_helped(&mut log, n);
        }
        let data = CheckpointData { watermark: Lsn(watermark), ..CheckpointData::default() };
        log.keeper.store_checkpoint(&data).expect("stored");
        drop(log);
        let (again, lsns, lost) = reopen_and_read(&storage);
        let due: Vec<u64> = (2..=100).step_by(2).filter(|n| *n >= watermark).collect();
        assert_eq!((lsns, lost), (due, 0), "watermark {watermark}");
        assert_eq!(again.recovery.checkpoint, Some(data));
        assert_eq!(again.recovery.next_lsn, Lsn(watermark.max(101)));
        let by_topic: u64 = again.recovery.records_by_topic.iter().map(|t| t.1).sum();
        assert_eq!(by_topic, again.recovery.records);
    }
}

#[test]
fn what_is_trimmed_is_removed_and_its_number_not_used_again() {
    let storage = MemoryStorage::new();
    let mut log = open(&storage, small());
    for n in 1..=200 {
        append_helped(&mut log, n);
    }
    log.keeper.step(0, None);
    let before = log.wal.bytes_on_disk();
    log.wal.trim(Lsn(201));
    let data = CheckpointData { watermark: Lsn(201), ..CheckpointData::default() };
    let report = log.keeper.step(1, Some(&data));
    assert!(report.unlinked > 5 && report.error.is_none(), "{report:?}");
    assert!(log.wal.bytes_on_disk() < before);
    append_helped(&mut log, 201);
    log.wal.seal();
    let last = storage.names().iter().filter(|n| n.ends_with(".wal")).max().cloned();
    log.wal.trim(Lsn(202));
    log.keeper.step(2, None);
    drop(log);
    let (mut again, lsns, _) = reopen_and_read(&storage);
    assert!(lsns.is_empty());
    assert_eq!(again.recovery.damage, DamageReport::default());
    again.keeper.step(0, None);
    let at = append_helped(&mut again, 300);
    assert!(Some(super::segment_name(SegmentKind::Main, at.segment)) > last);
}

#[test]
fn set_aside_records_keep_their_reason() {
    let storage = MemoryStorage::new();
    let mut log = open(&storage, small());
    let topic = topic_of(&log, "beta");
    let shape = Shape { headers_len: 0, key_len: None, value_len: Some(3) };
    let record = RecordView { topic, partition: 2, timestamp_ms: 5, shape, body: b"bad" };
    let aside = |log: &mut Open, lsn| loop {
        match log.wal.set_aside(Lsn(lsn), &record, "message too large", 10, 77) {
            Ok(at) => return at,
            Err(AppendError::NotReady) => assert!(log.keeper.step(0, None).prepared),
            Err(e) => panic!("{e}"),
        }
    };
    // Their numbers come in any order.
    for lsn in [9, 3, 40, 3].into_iter().cycle().take(60) {
        aside(&mut log, lsn);
    }
    drop(log);
    let (again, lsns, _) = reopen_and_read(&storage);
    assert_eq!((lsns.len(), again.recovery.next_lsn), (0, Lsn(41)));
    assert_eq!(again.recovery.damage, DamageReport::default());
    let mut seen = 0;
    for segment in inspect(&storage).expect("listed") {
        let Some(mut walk) = FrameWalk::new(&storage, &segment).expect("opened") else { continue };
        while let Some(item) = walk.next_frame().expect("read") {
            match item {
                Inspected::Frame { header, topic, note: Some(note), body, .. } => {
                    assert_eq!(
                        (note.reason, note.code, note.unix_ms),
                        ("message too large", 10, 77)
                    );
                    assert_eq!((topic, header.partition, body), (Some("beta"), 2, &b"bad"[..]));
                    seen += 1;
                }
                Inspected::Frame { .. } => {}
                bad => panic!("{bad:?}"),
            }
        }
    }
    assert_eq!(seen, 60);
}

/// A reader that looks while the keeper prepares the segment finds nothing, and must find the
/// records once they are there: what isn't read back is taken for final, and its file removed.
#[test]
fn a_reader_does_not_pass_a_set_aside_segment_that_is_being_prepared() {
    let storage = MemoryStorage::new();
    let mut log = open(&storage, small());
    let topic = topic_of(&log, "beta");
    let shape = Shape { headers_len: 0, key_len: None, value_len: Some(3) };
    let record = RecordView { topic, partition: 2, timestamp_ms: 5, shape, body: b"bad" };
    let set_aside = |log: &mut Open| log.wal.set_aside(Lsn(1), &record, "held", 10, 77);
    assert_eq!(set_aside(&mut log), Err(AppendError::NotReady));
    assert!(log.keeper.step(0, None).prepared);
    // As it is between the file's creation and its being ready.
    let k = SegmentKind::SetAside as usize;
    let prepared = log.wal.common.state.lock().prepared[k].pop_front().expect("prepared");
    let mut reader = log.wal.aside_reader(0);
    assert!(matches!(log.wal.read_aside(&mut reader), AsideItem::CaughtUp));
    log.wal.common.state.lock().prepared[k].push_front(prepared);
    let at = set_aside(&mut log).expect("there is a segment");
    match log.wal.read_aside(&mut reader) {
        AsideItem::Record(aside) => assert_eq!((aside.position, aside.lsn), (at, Lsn(1))),
        AsideItem::CaughtUp => panic!("the reader has passed the segment"),
        AsideItem::Error(kind) => panic!("{kind}"),
    }
}

#[test]
fn a_full_log_refuses_and_takes_again_after_a_trim() {
    let storage = MemoryStorage::new();
    let options = WalOptions { wal_bytes_max: Some(5 * 4096), ..small() };
    let mut log = open(&storage, options);
    let mut n = 1;
    let error = loop {
        match append(&mut log, n) {
            Ok(_) => n += 1,
            Err(AppendError::NotReady) => {
                log.keeper.step(0, None);
            }
            Err(e) => break e,
        }
    };
    assert_eq!(error, AppendError::Full);
    assert!(log.wal.bytes_on_disk() <= 5 * 4096);
    log.wal.trim(Lsn(n));
    assert!(log.keeper.step(0, None).unlinked > 0);
    assert!(log.keeper.step(0, None).prepared);
    append_helped(&mut log, n);
}

#[test]
fn a_full_disk_at_open_is_an_error_that_says_what_to_do() {
    let storage = MemoryStorage::new();
    storage.set_capacity(Some(4000));
    let topics = Arc::new(TopicTable::default());
    let opened = Wal::open(Arc::new(storage), topics, small(), salts(1), 0);
    match opened.map(|_| ()) {
        Err(OpenError::Io { what, source }) => {
            assert_eq!(source.kind(), io::ErrorKind::StorageFull);
            assert!(what.contains("4096 bytes") && what.contains("free"), "{what}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_full_disk_with_a_backlog_opens_so_that_it_can_be_drained() {
    let storage = MemoryStorage::new();
    let mut log = open(&storage, small());
    for n in 1..=100 {
        append_helped(&mut log, n);
    }
    drop(log);
    storage.set_capacity(Some(1));
    let (mut again, lsns, _) = reopen_and_read(&storage);
    assert_eq!(lsns.len(), 100);
    assert_eq!(append(&mut again, 101), Err(AppendError::Storage(io::ErrorKind::StorageFull)));
}

#[test]
fn a_failed_append_leaves_nothing_behind() {
    for op in [StorageOp::Write, StorageOp::Commit, StorageOp::Populate] {
        for nth in 0..12 {
            let storage = MemoryStorage::new();
            let mut log = open(&storage, small());
            append_helped(&mut log, 1);
            let mut seen = 0;
            storage.set_faults(Some(Box::new(move |_, o| {
                seen += u64::from(o == op);
                (o == op && seen == nth + 1).then_some(io::ErrorKind::Other)
            })));
            let mut failures = 0;
            for n in 2..=60 {
                loop {
                    match append(&mut log, n) {
                        Ok(_) => break,
                        // The fault may have met the append, or the keeper's preparing.
                        Err(AppendError::Storage(_)) => {
                            failures += 1;
                            log.keeper.step(0, None);
                        }
                        Err(AppendError::NotReady) => {
                            log.keeper.step(0, None);
                        }
                        Err(e) => panic!("{e}"),
                    }
                }
            }
            assert!(failures <= 2, "{failures}");
            storage.set_faults(None);
            let from = LogPosition { segment: 0, offset: 0 };
            assert_eq!(read_all(&log, Some(from)), ((1..=60).collect(), 0), "{op:?} {nth}");
            drop(log);
            let (again, lsns, lost) = reopen_and_read(&storage);
            assert_eq!((lsns, lost), ((1..=60).collect(), 0), "{op:?} {nth}");
            assert_eq!(again.recovery.damage.records_lost, 0);
        }
    }
}

#[test]
fn what_waits_for_a_sync_stays_bounded() {
    let storage = MemoryStorage::new();
    let mut log = open(&storage, WalOptions { segments_ahead_max: 4, ..small() });
    // The first step's sync is behind us, and none is due any more.
    log.keeper.step(0, None);
    let (mut n, mut most) = (0, 0);
    while log.wal.stats().segments < 100 {
        n += 1;
        loop {
            match append(&mut log, n) {
                Ok(_) => break,
                Err(AppendError::NotReady) => {
                    log.keeper.step(1, None);
                }
                Err(e) => panic!("record {n}: {e}"),
            }
        }
        most = most.max(log.wal.common.state.lock().retired.len());
    }
    println!("{n} records over 100 segments, at most {most} waiting for a sync");
    assert!((2..=24).contains(&most), "{most}");
}
