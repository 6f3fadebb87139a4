//! A crash at every op of a redrive, of the backlog and of dead letters, as a process crash and
//! as power cuts: what wasn't confirmed is still there.

use super::*;
use crate::record::{RecordView, Shape, TopicId};
use crate::sink::{MemoryHandle, MemorySink};
use crate::topics::TopicTable;
use crate::wal::{AppendError, FrameKind, Inspected, MemoryStorage, Wal, WalOptions, random_salts};
use std::collections::BTreeSet;

const RECORDS: u64 = 80;

/// Leaves records 1 to `RECORDS`, in turns in topics a and b, in segments of 4 KiB, synced.
fn fill(set_aside: bool) -> MemoryStorage {
    let storage = MemoryStorage::new();
    let options = WalOptions {
        segment_bytes: 4096,
        set_aside_segment_bytes: 4096,
        record_bytes_max: 256,
        wal_bytes_max: Some(1 << 20),
        ..WalOptions::default()
    };
    let topics = Arc::new(TopicTable::default());
    let (mut wal, mut keeper, _) =
        Wal::open(Arc::new(storage.clone()), topics.clone(), options, random_salts(), 0).unwrap();
    for n in 1..=RECORDS {
        let body = n.to_string().into_bytes();
        let record = RecordView {
            topic: topics.intern(if n % 2 == 0 { "a" } else { "b" }),
            partition: -1,
            timestamp_ms: n as i64,
            shape: Shape { value_len: Some(body.len() as u32), ..Shape::default() },
            body: &body,
        };
        loop {
            let done = if set_aside {
                wal.set_aside(Lsn(n), &record, "r", 1, 5)
            } else {
                wal.append(Lsn(n), &record)
            };
            match done {
                Ok(_) => break,
                Err(AppendError::NotReady) => assert_eq!(keeper.step(n, None).error, None),
                Err(e) => panic!("{e}"),
            }
        }
    }
    wal.seal();
    keeper.sync_now().unwrap();
    storage
}

fn sink() -> (Pipeline, MemoryHandle) {
    let sink = MemorySink::new();
    let handle = sink.handle();
    let pipeline = Pipeline::builder()
        .at_most_once()
        .lanes(1)
        .lane_bytes(64 << 10)
        .lane_slots(1024)
        .record_bytes_max(4096)
        .receipts_max(1024)
        .flush_interval(Duration::from_millis(1))
        .sink(sink)
        .open()
        .unwrap();
    (pipeline, handle)
}

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

fn delivered(seen: &MemoryHandle) -> Vec<u64> {
    seen.take().iter().map(|r| number(r.value.as_deref().unwrap())).collect()
}

/// One redrive of topic a, however far the storage lets it come.
fn redrive(storage: &MemoryStorage, pipeline: &Pipeline, set_aside: bool) {
    let Ok(log) = Orphan::open(Arc::new(storage.clone())) else { return };
    let mut redrive = Redrive { log };
    let options = Options { topics: vec!["a".to_owned()], ..Options::default() };
    let done = if set_aside {
        redrive.run_set_aside(pipeline, &options, &mut |_| true)
    } else {
        redrive.run(pipeline, &options, &mut |_| true)
    };
    if let Ok(outcome) = done {
        assert_eq!(outcome.unaccounted(), 0, "{outcome:?}");
        let _ = redrive.close();
    }
}

/// What is still to be sent, as the next process finds it, in order.
fn remaining(storage: &MemoryStorage) -> Vec<u64> {
    let log = Orphan::open(Arc::new(storage.clone())).unwrap();
    let mut found = Vec::new();
    let Some(mut reader) = log.reader() else { return found };
    loop {
        match log.read_next(&mut reader) {
            ReadItem::Record(read) => {
                let topic = log.topic(read.record.topic);
                if !log.is_replayed(&topic, read.lsn.0) {
                    found.push(number(read.record.value().unwrap()));
                }
            }
            ReadItem::CaughtUp => return found,
            other => panic!("{other:?}"),
        }
    }
}

fn dead_letters(storage: &MemoryStorage) -> Vec<u64> {
    let log = Orphan::open(Arc::new(storage.clone())).unwrap();
    let mut found = Vec::new();
    for segment in log.set_aside_segments().unwrap() {
        log.walk(&segment, |item| {
            if let Inspected::Frame { header, body, note, .. } = item
                && header.kind == FrameKind::SetAside
            {
                assert_eq!(note.map(|n| (n.reason, n.code, n.unix_ms)), Some(("r", 1, 5)));
                found.push(number(body));
            }
            Ok(())
        })
        .unwrap();
    }
    found
}

/// Crashes at every op; `still_there` says what the next process finds.
fn sweep(set_aside: bool, still_there: fn(&MemoryStorage) -> Vec<u64>) {
    let before = fill(set_aside);
    let (pipeline, seen) = sink();
    let whole = before.process_crash_image();
    redrive(&whole, &pipeline, set_aside);
    let sent = delivered(&seen);
    assert!(sent.into_iter().eq((1..=RECORDS).filter(|n| n % 2 == 0)));
    assert!(still_there(&whole).into_iter().eq((1..=RECORDS).filter(|n| n % 2 == 1)));
    let ops = whole.ops();
    let (mut images, mut twice) = (0, 0);
    for op in 0..ops {
        let storage = before.process_crash_image();
        storage.crash_at(op);
        redrive(&storage, &pipeline, set_aside);
        let sent: BTreeSet<u64> = delivered(&seen).into_iter().collect();
        for cut in 0..3 {
            let image = match cut {
                0 => storage.process_crash_image(),
                seed => storage.power_cut_image(op * 31 + seed),
            };
            let left = still_there(&image);
            if !set_aside {
                assert!(left.is_sorted(), "crash at op {op}: out of order: {left:?}");
            }
            let left: BTreeSet<u64> = left.into_iter().collect();
            for n in 1..=RECORDS {
                let is_there = left.contains(&n) || sent.contains(&n);
                assert!(is_there, "crash at op {op}, image {cut}: record {n} is lost");
                assert!(n % 2 == 0 || left.contains(&n), "op {op}, {cut}: {n} wasn't selected");
            }
            twice += left.intersection(&sent).count();
            images += 1;
        }
    }
    println!("redrive (set aside: {set_aside}): {ops} ops, {images} images, {twice} twice, 0 lost");
    assert!(ops > 20, "the crashes took place in its midst");
}

#[test]
fn a_crash_at_every_op_of_a_redrive_loses_nothing() {
    sweep(false, remaining);
}

#[test]
fn a_crash_at_every_op_of_dead_letters_loses_nothing() {
    sweep(true, dead_letters);
}

#[test]
fn the_record_view_of_a_letter_is_what_went_in() {
    let shape = Shape { headers_len: 0, key_len: Some(1), value_len: None };
    let view = RecordView { topic: TopicId(3), partition: 2, timestamp_ms: 9, shape, body: b"k" };
    let letter = Letter::new(Lsn(4), 1, "t".into(), &view);
    assert_eq!(RecordView { topic: TopicId(3), ..letter.view() }, view);
}
