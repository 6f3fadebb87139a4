//! Every kind of storage call fails in every way, under a pipeline that is at work: it goes on
//! delivering, says what is wrong, counts it, and is well again when the disk is.

use super::*;
use crate::wal::StorageOp;
use std::io::ErrorKind;

/// How a row of the table begins: the calls that fail, and what that must lead to.
struct Row {
    what: &'static str,
    ops: &'static [StorageOp],
    /// The log can't take what it must, so the window isn't kept.
    exposes: bool,
    /// What is in the log can't be read, so it can't be delivered meanwhile.
    holds_up: bool,
    named: fn(&Seen) -> bool,
}

const ROWS: &[Row] = &[
    Row {
        what: "create",
        ops: &[StorageOp::Create],
        exposes: true,
        holds_up: false,
        named: |s| s.unavailable.is_some() && s.keeper_trouble.is_some(),
    },
    Row {
        what: "write",
        ops: &[StorageOp::Write],
        exposes: true,
        holds_up: false,
        named: |s| s.unavailable.is_some() && s.keeper_trouble.is_some(),
    },
    Row {
        what: "commit",
        ops: &[StorageOp::Commit],
        exposes: true,
        holds_up: false,
        named: |s| s.unavailable.is_some(),
    },
    Row {
        what: "populate",
        ops: &[StorageOp::Populate],
        exposes: true,
        holds_up: false,
        named: |s| s.unavailable.is_some() && s.keeper_trouble.is_some(),
    },
    Row {
        what: "sync",
        ops: &[StorageOp::Sync],
        exposes: false,
        holds_up: false,
        named: |s| s.keeper_trouble.is_some() && s.unsynced,
    },
    Row {
        what: "rename",
        ops: &[StorageOp::Rename],
        exposes: false,
        holds_up: false,
        named: |s| s.keeper_trouble.is_some(),
    },
    Row {
        what: "unlink",
        ops: &[StorageOp::Unlink],
        exposes: false,
        holds_up: false,
        named: |s| s.keeper_trouble.is_some(),
    },
    Row {
        what: "sync of the directory",
        ops: &[StorageOp::SyncDir],
        exposes: false,
        holds_up: false,
        named: |s| s.keeper_trouble.is_some(),
    },
    Row {
        what: "read",
        ops: &[StorageOp::Read],
        exposes: false,
        holds_up: true,
        named: |s| s.unavailable.as_ref().is_some_and(|u| u.contains("read")),
    },
    Row {
        what: "directory turned read-only",
        ops: &[
            StorageOp::Create,
            StorageOp::Write,
            StorageOp::Truncate,
            StorageOp::Rename,
            StorageOp::Unlink,
        ],
        exposes: true,
        holds_up: false,
        named: |s| s.unavailable.is_some() && s.keeper_trouble.is_some(),
    },
    Row {
        what: "everything",
        ops: &[
            StorageOp::Create,
            StorageOp::Write,
            StorageOp::Commit,
            StorageOp::Populate,
            StorageOp::Sync,
            StorageOp::Truncate,
            StorageOp::Rename,
            StorageOp::Unlink,
            StorageOp::SyncDir,
            StorageOp::Read,
        ],
        exposes: true,
        holds_up: true,
        named: |s| s.unavailable.is_some() && s.keeper_trouble.is_some(),
    },
];

/// A full disk, an I/O error, a read-only filesystem, a write that is cut short, no permission.
const KINDS: [ErrorKind; 5] = [
    ErrorKind::StorageFull,
    ErrorKind::Other,
    ErrorKind::ReadOnlyFilesystem,
    ErrorKind::WriteZero,
    ErrorKind::PermissionDenied,
];

fn failures(stats: &Stats) -> u64 {
    let wal = stats.wal.as_ref().expect("a log");
    wal.append_failures + wal.keeper_failures + wal.sync_failures
}

/// One cell of the table; `None` is the control. Returns how many calls failed.
fn cell(fault: Option<(&Row, ErrorKind)>) -> u64 {
    let name = fault.map_or("no fault".to_string(), |(r, k)| format!("{} fails: {k:?}", r.what));
    let disk = MemoryStorage::new();
    let mut m = Machine::open(&disk, options(), WalFull::Refuse);
    m.send_in_steps(20);
    m.run(20, 5);
    assert_eq!(m.delivered().len(), 20, "{name}");
    // An outage: some of it is in the log when the trouble comes.
    m.sink.refuse();
    m.send_in_steps(40);
    let stats = m.run(30, 5);
    assert_eq!((stats.books.in_wal, failures(&stats)), (40, 0), "{name}");
    assert_eq!(m.seen, Seen::default(), "{name}: trouble before the fault");

    let failed = Arc::new(AtomicU64::new(0));
    if let Some((row, kind)) = fault {
        let (ops, failed) = (row.ops, failed.clone());
        disk.set_faults(Some(Box::new(move |_, op| {
            let fails = ops.contains(&op);
            failed.fetch_add(u64::from(fails), Ordering::Relaxed);
            fails.then_some(kind)
        })));
    }
    m.send_in_steps(60);
    m.run(40, 5);
    // Kafka is back and the disk isn't. What can't be read is given up after half a second.
    m.sink.resume();
    let (exposes, holds_up) = fault.map_or((false, false), |(r, _)| (r.exposes, r.holds_up));
    let stats = m.run(if holds_up { 40 } else { 100 }, 5);
    if !holds_up {
        assert_eq!(m.delivered(), (0..120).collect::<Vec<_>>(), "{name}");
        // What comes now goes to Kafka from memory.
        m.send_in_steps(20);
        m.run(20, 5);
        assert_eq!(m.delivered().len(), 140, "{name}");
    } else {
        // One may have been read before.
        assert!(m.delivered().len() <= 21, "{name}: the fault took place");
        m.send_in_steps(20);
        m.run(20, 5);
    }
    if let Some((row, _)) = fault {
        assert!((row.named)(&m.seen), "{name}: {:?}", m.seen);
        assert_eq!(m.seen.exposed, exposes, "{name}: {:?}", m.seen);
        assert!(failures(&stats) > 0 && failed.load(Ordering::Relaxed) > 0, "{name}");
    } else {
        assert_eq!((&m.seen, failures(&stats)), (&Seen::default(), 0), "{name}");
    }

    // The disk is back, and everything is well by itself.
    disk.set_faults(None);
    m.run(60, 200);
    m.seen = Seen::default();
    let stats = m.run(5, 200);
    assert_eq!(m.seen, Seen::default(), "{name}: {:?}", stats.wal);
    assert_eq!(m.delivered(), (0..140).collect::<Vec<_>>(), "{name}");
    assert_eq!(stats.books.delivered, 140, "{name}");
    let before = failures(&stats);
    m.sink.refuse();
    m.send_in_steps(60);
    let stats = m.run(60, 5);
    assert_eq!(failures(&stats), before, "{name}");
    assert_eq!((stats.books.in_wal, stats.unsafe_records), (60, 0), "{name}");
    assert_eq!(m.seen, Seen::default(), "{name}");

    // Its log holds what it must, in this process's end and in a power cut.
    let images = [disk.process_crash_image(), disk.power_cut_image(1), disk.power_cut_image(2)];
    for image in images {
        let mut next = Machine::open(&image, options(), WalFull::Refuse);
        assert_eq!(next.recovery.records, 60, "{name}: {:?}", next.recovery);
        let damage = &next.recovery.damage;
        assert_eq!((damage.records_lost, damage.segments_missing), (0, 0), "{name}: {damage:?}");
        next.run(60, 10);
        assert_eq!(next.delivered(), (140..200).collect::<Vec<_>>(), "{name}");
    }
    failed.load(Ordering::Relaxed)
}

#[test]
fn every_call_that_fails_has_a_state_a_counter_and_a_way_back() {
    assert_eq!(cell(None), 0);
    let (mut cells, mut failed) = (0, 0);
    for row in ROWS {
        for kind in KINDS {
            failed += cell(Some((row, kind)));
            cells += 1;
        }
    }
    println!("{cells} cells and a control; {failed} calls failed");
}
