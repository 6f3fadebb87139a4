//! A held topic is redriven while the storage is watched.

use super::*;
use crate::sink::Scope;
use crate::wal::StorageOp;

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
