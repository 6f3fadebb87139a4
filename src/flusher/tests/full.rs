//! A log that has no room: refuse, or drop the oldest; and what the set-aside log takes of it.

use super::*;
use crate::sink::Scope;
use crate::wal::{FrameKind, SegmentKind, StorageOp, inspect};
use std::io::ErrorKind;

fn bounded(segments: u64) -> WalOptions {
    WalOptions { wal_bytes_max: Some(segments * 4096), ..options() }
}

fn dropped(stats: &Stats, reason: &str) -> Vec<u64> {
    let of = |t: &crate::stats::TopicStats| {
        t.dropped.iter().filter(|(why, _)| *why == reason).map(|(_, n)| *n).sum()
    };
    stats.topics.iter().map(of).collect()
}

/// Main segments' records in a directory.
fn records_in_log(disk: &MemoryStorage) -> u64 {
    let segments = inspect(disk).expect("listed");
    let mut records = 0;
    for segment in segments.iter().filter(|s| s.kind == SegmentKind::Main) {
        let Some(mut walk) = crate::wal::FrameWalk::new(disk, segment).expect("opened") else {
            continue;
        };
        while let Some(item) = walk.next_frame().expect("read") {
            let frame = matches!(item, crate::wal::Inspected::Frame { header, .. } if header.kind == FrameKind::Record);
            records += u64::from(frame);
        }
    }
    records
}

#[test]
fn a_full_log_refuses_by_default_and_takes_again() {
    let mut m = Machine::open(&MemoryStorage::new(), bounded(8), WalFull::Refuse);
    m.sink.refuse();
    m.send_in_steps(300);
    let stats = m.run(40, 5);
    assert!(m.seen.full && m.seen.exposed && m.seen.unavailable.is_some(), "{:?}", m.seen);
    assert!(stats.books.in_wal > 50 && stats.books.in_lanes + stats.books.in_flight > 50);
    assert_eq!(stats.books.dropped, 0);
    m.sink.resume();
    m.run(60, 10);
    assert_eq!(m.delivered(), (0..300).collect::<Vec<_>>());
    m.seen = Seen::default();
    m.run(250, 10);
    m.seen = Seen::default();
    m.run(5, 10);
    assert_eq!(m.seen, Seen::default());
}

#[test]
fn a_full_log_drops_its_oldest_segment_and_counts_it_per_topic() {
    // In an outage that begins with a full span of records handed over, and in one that takes
    // nothing.
    for handed in [false, true] {
        let disk = MemoryStorage::new();
        let mut m = Machine::open(&disk, bounded(8), WalFull::DropOldest);
        match handed {
            true => m.sink.hold_reports(),
            false => m.sink.refuse(),
        }
        let mut most_waiting = 0;
        let mut before = 0;
        for _ in 0..200 {
            let stats = m.send_in_steps(4);
            let now = stats.books.dropped;
            // Never more than one segment at a time, and never while there is room.
            assert!(now - before <= 17, "{before} to {now}");
            let wal = stats.wal.as_ref().expect("a log");
            assert!(now == before || wal.bytes + 3 * 4096 > wal.bytes_max, "{wal:?}");
            before = now;
            most_waiting = most_waiting.max(stats.unsafe_records);
        }
        let stats = m.run(40, 5);
        assert!(!m.seen.exposed && m.seen.unavailable.is_none(), "{:?}", m.seen);
        assert!(most_waiting < 40, "{most_waiting}: the window was kept");
        let by_topic = dropped(&stats, "wal_full");
        let all: u64 = by_topic.iter().sum();
        assert_eq!(all, stats.books.dropped);
        assert!(by_topic.iter().all(|n| n.abs_diff(all / 2) <= 9) && all > 600, "{by_topic:?}");
        assert_eq!(stats.books.accepted, 800);
        assert_eq!(stats.books.in_wal, 800 - all);
        // The log is as full as it may be: no more went than had to.
        assert!(stats.books.in_wal >= 4 * 17, "{:?}", stats.books);
        assert!(records_in_log(&disk) >= stats.books.in_wal);

        // A crash now: what is left comes, and nothing counts as lost or missing.
        let mut next = Machine::open(&disk.process_crash_image(), bounded(8), WalFull::DropOldest);
        let damage = &next.recovery.damage;
        assert_eq!((damage.records_lost, damage.segments_missing), (0, 0), "{damage:?}");
        assert!(next.recovery.records >= stats.books.in_wal);
        next.run(60, 10);
        assert_eq!(next.delivered().last(), Some(&799));

        m.sink.resume();
        let stats = m.run(100, 10);
        let delivered = m.delivered();
        let newest: Vec<u64> = (all..800).collect();
        if handed {
            // What Kafka had been handed arrives although it counts as dropped.
            assert!(delivered.ends_with(&newest), "{delivered:?}");
            assert!(delivered.len() as u64 >= 800 - all + 60);
        } else {
            assert_eq!(delivered, newest, "the newest, in order");
        }
        assert_eq!((stats.books.delivered, stats.books.in_wal), (800 - all, 0));
        println!("handed over: {handed}; {all} dropped, {} delivered", delivered.len());
    }
}

#[test]
fn a_full_disk_drops_the_oldest_too_and_needs_no_room_to_free_some() {
    let disk = MemoryStorage::new();
    let mut m = Machine::open(&disk, options(), WalFull::DropOldest);
    m.sink.refuse();
    m.send_in_steps(200);
    m.run(20, 5);
    let before = m.step(5);
    assert_eq!((before.books.in_wal, before.books.dropped), (200, 0));
    // Not one byte more than there is: a new manifest finds no room either.
    let used: usize = disk.names().iter().filter_map(|n| disk.contents(n)).map(|c| c.len()).sum();
    disk.set_capacity(Some(used as u64));
    m.send_in_steps(300);
    let stats = m.run(40, 5);
    let all: u64 = dropped(&stats, "wal_full").iter().sum();
    assert!(all > 0 && all == stats.books.dropped, "{:?}", stats.books);
    assert_eq!(stats.unsafe_records, 0, "{:?}", m.seen);
    let used: usize = disk.names().iter().filter_map(|n| disk.contents(n)).map(|c| c.len()).sum();
    println!("{all} of 500 dropped on a full disk, {used} bytes in use");
    for image in [disk.process_crash_image(), disk.power_cut_image(3)] {
        let next = Machine::open(&image, options(), WalFull::DropOldest);
        let damage = &next.recovery.damage;
        assert_eq!((damage.records_lost, damage.segments_missing), (0, 0), "{damage:?}");
    }
    disk.set_capacity(None);
    m.sink.resume();
    m.run(100, 10);
    assert_eq!(m.delivered(), (all..500).collect::<Vec<_>>());
}

#[test]
fn a_full_disk_on_which_no_manifest_can_be_written_is_cleaned_all_the_same() {
    let disk = MemoryStorage::new();
    let mut m = Machine::open(&disk, options(), WalFull::Refuse);
    m.sink.refuse();
    m.send_in_steps(200);
    m.run(20, 5);
    let segments =
        |disk: &MemoryStorage| disk.names().iter().filter(|n| n.ends_with(".wal")).count();
    let before = segments(&disk);
    // No new file, and no byte of an old one.
    disk.set_faults(Some(Box::new(|_, op| {
        matches!(op, StorageOp::Create | StorageOp::Write).then_some(ErrorKind::StorageFull)
    })));
    m.sink.resume();
    m.run(60, 10);
    assert_eq!(m.delivered().len(), 200);
    let after = segments(&disk);
    assert!(after + 5 < before, "{before} segments, then {after}");
    // The old manifest names what is gone, and it is below the watermark: no loss.
    let next = Machine::open(&disk.process_crash_image(), options(), WalFull::Refuse);
    assert_eq!(next.recovery.damage.records_lost, 0);
    disk.set_faults(None);
    m.run(10, 10);
    let next = Machine::open(&disk.process_crash_image(), options(), WalFull::Refuse);
    assert_eq!(next.recovery.damage.segments_missing, 0, "{:?}", next.recovery.damage);
    println!("{before} segments, {after} after the disk had no room for a manifest");
}

#[test]
fn a_full_log_whose_first_record_can_t_be_delivered_is_drained() {
    // The record waits for the set-aside log, and the log waits for the record: unless room is
    // kept, neither ever goes on.
    let mut m = Machine::open(&MemoryStorage::new(), bounded(4), WalFull::Refuse);
    m.sink.refuse();
    m.send_in_steps(120);
    m.run(40, 5);
    assert!(m.seen.full);
    m.sink.fail_next(2, Scope::Record, "too_large");
    m.sink.resume();
    let stats = m.run(200, 10);
    assert_eq!(m.delivered(), (2..120).collect::<Vec<_>>());
    assert_eq!((stats.books.set_aside, stats.books.in_wal), (2, 0));
}

#[test]
fn the_set_aside_log_starves_nobody_and_says_when_it_is_full() {
    for policy in [WalFull::Refuse, WalFull::DropOldest] {
        let disk = MemoryStorage::new();
        let mut m = Machine::open(&disk, bounded(16), policy);
        m.sink.fail_next(120, Scope::Record, "invalid");
        m.send_in_steps(120);
        let stats = m.run(60, 5);
        let wal = stats.wal.as_ref().expect("a log");
        let asides = |disk: &MemoryStorage| {
            let names = disk.names();
            names.iter().filter(|n| n.starts_with("set-aside/")).count()
        };
        assert_eq!(asides(&disk), 4, "a quarter of 16: {wal:?}");
        let kept = stats.books.set_aside;
        assert!(kept >= 48, "{kept}");
        if policy == WalFull::DropOldest {
            let full: u64 = dropped(&stats, "set_aside_full").iter().sum();
            assert_eq!(full, 120 - kept);
            // The pipeline goes on.
            m.send_in_steps(50);
            m.run(20, 5);
            assert_eq!(m.delivered(), (120..170).collect::<Vec<_>>());
        } else {
            assert!(wal.set_aside_unavailable.is_some(), "{wal:?}");
            assert_eq!(stats.books.dropped, 0);
            // They wait in the log until somebody makes room there.
            m.send_in_steps(60);
            let stats = m.run(40, 5);
            let books = &stats.books;
            assert_eq!(books.in_wal + books.delivered, 180 - kept, "{books:?}");
            assert!(books.delivered < 8, "they hold up what is behind them: {books:?}");
            assert!(!stats.states.exposed, "{:?}", stats.wal);
            let storage: &dyn crate::wal::Storage = &disk;
            let mut moved = 0;
            for _ in 0..10 {
                for name in disk.names().iter().filter(|n| n.starts_with("set-aside/")) {
                    storage.unlink(name).expect("moved away");
                    moved += 1;
                }
                m.run(20, 10);
            }
            let stats = m.step(10);
            assert_eq!(m.delivered(), (120..180).collect::<Vec<_>>());
            let left = stats.wal.as_ref().expect("a log");
            assert_eq!((stats.books.set_aside, &left.set_aside_unavailable), (120, &None));
            println!("{kept} set aside, {moved} files moved away, then all 120");
        }
        assert!(stats.wal.is_some_and(|w| w.bytes <= w.bytes_max));
    }
}

#[test]
fn the_bound_holds_while_segments_are_rewritten() {
    let disk = MemoryStorage::new();
    let mut m = Machine::open(&disk, bounded(16), WalFull::DropOldest);
    let on_disk = |disk: &MemoryStorage| -> u64 {
        let names = disk.names();
        let segments = names.iter().filter(|n| n.ends_with(".wal") || n.ends_with(".wal.new"));
        segments.filter_map(|n| disk.contents(n)).map(|c| c.len() as u64).sum()
    };
    m.sink.fail_next(200, Scope::Record, "invalid");
    let mut nth = 0u64;
    disk.set_faults(Some(Box::new(move |_, op| {
        nth += u64::from(op == StorageOp::Sync);
        (op == StorageOp::Sync && nth.is_multiple_of(5)).then_some(ErrorKind::Other)
    })));
    let mut most = 0;
    for round in 0..100 {
        if round == 10 {
            m.sink.refuse();
        }
        m.send_in_steps(8);
        most = most.max(on_disk(&disk));
    }
    let stats = m.run(20, 10);
    let wal = stats.wal.expect("a log");
    println!("most {most} of {} bytes; {wal:?}", wal.bytes_max);
    assert!(most <= wal.bytes_max && most + 5 * 4096 > wal.bytes_max, "{most}");
    assert!(wal.segments_rewritten >= 5 && stats.books.dropped > 0 && stats.books.set_aside > 0);
}
