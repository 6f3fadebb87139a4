//! A held topic is redriven while the storage is watched.

use super::*;
use crate::sink::Scope;
use crate::wal::{FrameWalk, Inspected, Storage, StorageOp, inspect};

/// Each of many records can't be delivered when its topic is redriven: it becomes a dead letter,
/// and finding them takes one way through the set-aside log, not one way each.
#[test]
fn a_hold_full_of_dead_letters_is_read_once() {
    const RECORDS: u64 = 400;
    let disk = MemoryStorage::new();
    let options = WalOptions { set_aside_segment_bytes: 1 << 17, ..options() };
    let mut m = Machine::open(&disk, options, WalFull::Refuse);
    m.sink.fail_next(1, Scope::Topic, "topic_unavailable");
    // The first of topic `a`, and with it the topic.
    m.send_in_steps(2);
    while m.step(1).held.is_empty() {}
    // The probe comes after 100 ms on this clock: none while they are sent.
    for _ in 0..RECORDS {
        m.send();
    }
    let stats = m.run(20, 1);
    let held = stats.held.first().map_or(0, |h| h.records);
    assert!(held >= RECORDS / 2, "{stats:?}");

    let reads = Arc::new(AtomicU64::new(0));
    let counted = reads.clone();
    disk.set_faults(Some(Box::new(move |_, op| {
        counted.fetch_add(u64::from(op == StorageOp::Read), Ordering::Relaxed);
        None
    })));
    m.sink.fail_next(held, Scope::Record, "bad");
    let stats = m.run(300, 5);
    disk.set_faults(None);
    assert!(stats.held.is_empty(), "{:?}", stats.held);
    let books = stats.books;
    assert_eq!((books.delivered, books.set_aside), (m.sent - held, held), "{books:?}");
    let reads = reads.load(Ordering::Relaxed);
    println!("{held} dead letters among what was held: {reads} reads");
    // 1 KB each: there and back through 60 KB, twice over, and what the keeper reads.
    assert!(reads < 2 * held, "{reads} reads for {held} records");
}

/// The dead letters in the set-aside log.
fn dead_letters(disk: &MemoryStorage) -> u64 {
    let mut dead = 0;
    for segment in inspect(disk).expect("listed") {
        let Some(mut walk) = FrameWalk::new(disk, &segment).expect("opened") else { continue };
        while let Some(item) = walk.next_frame().expect("read") {
            if let Inspected::Frame { note: Some(note), .. } = item {
                dead += u64::from(note.held().is_none());
            }
        }
    }
    dead
}

/// Reads fail for a while, at any moment of a redrive that finds dead letters: each of them is in the
/// log in the end, as the books say.
#[test]
fn dead_letters_of_a_hold_survive_reads_that_fail() {
    const HELD: u64 = 21;
    let mut failed = 0;
    for first in 0..10 {
        let disk = MemoryStorage::new();
        let options = WalOptions { set_aside_segment_bytes: 1 << 17, ..options() };
        let mut m = Machine::open(&disk, options, WalFull::Refuse);
        m.sink.fail_next(1, Scope::Topic, "topic_unavailable");
        m.send_in_steps(2);
        while m.step(1).held.is_empty() {}
        (0..2 * HELD - 2).for_each(|_| m.send());
        assert_eq!(m.run(20, 1).held.first().map(|h| h.records), Some(HELD));
        let (reads, fails) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (count, counted) = (reads.clone(), fails.clone());
        disk.set_faults(Some(Box::new(move |_, op| {
            let is_read = op == StorageOp::Read;
            let number = count.fetch_add(u64::from(is_read), Ordering::Relaxed);
            let fails = is_read && (first..first + 3).contains(&number);
            counted.fetch_add(u64::from(fails), Ordering::Relaxed);
            fails.then_some(std::io::ErrorKind::Other)
        })));
        m.sink.fail_next(HELD, Scope::Record, "bad");
        let stats = m.run(300, 5);
        disk.set_faults(None);
        let books = stats.books;
        assert_eq!((books.delivered, books.set_aside), (m.sent - HELD, HELD), "{books:?}");
        assert!(stats.held.is_empty(), "{:?}", stats.held);
        assert_eq!(dead_letters(&disk), HELD, "reads failed from {first} on");
        failed += fails.load(Ordering::Relaxed);
    }
    assert!(failed >= 10, "only {failed} reads failed");
    println!("{failed} reads failed in 10 redrives, {HELD} dead letters in the log after each");
}

/// A held record is damaged on the disk before it is read back: it stays counted as set aside, and
/// its file stays. The rest comes back, and without damage the file goes.
#[test]
fn a_file_with_a_held_record_that_cannot_be_read_is_kept() {
    for damaged in [0, 1] {
        let disk = MemoryStorage::new();
        let options = WalOptions { set_aside_segment_bytes: 1 << 17, ..options() };
        let mut m = Machine::open(&disk, options, WalFull::Refuse);
        m.sink.fail_next(1, Scope::Topic, "topic_unavailable");
        m.send_in_steps(2);
        while m.step(1).held.is_empty() {}
        (0..40).for_each(|_| m.send());
        let stats = m.run(20, 1);
        assert_eq!(stats.held.first().map(|h| h.records), Some(21), "{stats:?}");
        let files = || -> Vec<String> {
            let names = disk.names().into_iter();
            names.filter(|name| name.contains("aside") && name.ends_with("wal")).collect()
        };
        let aside = files();
        let [name] = &aside[..] else { panic!("{aside:?}") };
        if damaged > 0 {
            let bytes = disk.contents(name).expect("there");
            // The last value ends in dots.
            let last = bytes.iter().rposition(|b| *b == b'.').expect("a value");
            let file = disk.open(name).expect("there");
            file.write_at(last as u64, b"!").expect("written");
        }
        let stats = m.run(300, 5);
        assert!(stats.held.is_empty(), "{:?}", stats.held);
        let books = stats.books;
        assert_eq!((books.delivered, books.set_aside), (m.sent - damaged, damaged), "{books:?}");
        assert_eq!(files().len() as u64, damaged);
    }
    println!("1 of 21 held records damaged: 1 left, its file kept; control: none left");
}
