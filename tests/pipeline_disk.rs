//! The whole pipeline on real files whose room runs out: what `wal_full` promises.

use forebay::sink::MemoryRecord;
use forebay::{MemorySink, Pipeline, WalFull};
use forebay_testkit::until;
use std::path::Path;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
const VALUE_BYTES: usize = 1000;

fn small(dir: &Path) -> forebay::Builder {
    Pipeline::builder()
        .lanes(1)
        .lane_bytes(1 << 20)
        .record_bytes_max(50_000)
        .segment_bytes(1 << 20)
        .wal_dir(dir.join("wal"))
        .loss_window(Duration::from_millis(50))
        .sync_interval(Duration::from_millis(20))
}

fn value(n: usize) -> Vec<u8> {
    format!("{n:<VALUE_BYTES$}").into_bytes()
}

fn numbers(records: &[MemoryRecord]) -> Vec<usize> {
    let values = records.iter().filter_map(|r| std::str::from_utf8(r.value.as_deref()?).ok());
    values.filter_map(|v| v.trim().parse().ok()).collect()
}

fn bytes_on_disk(dir: &Path) -> u64 {
    let count = |dir: &Path| -> u64 {
        let entries = std::fs::read_dir(dir).unwrap().filter_map(Result::ok);
        let is_segment = |e: &std::fs::DirEntry| e.file_name().to_string_lossy().contains(".wal");
        entries.filter(is_segment).filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum()
    };
    count(&dir.join("wal")) + count(&dir.join("wal/set-aside"))
}

#[test]
fn a_log_at_its_bound_drops_the_oldest_and_keeps_the_newest_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let sink = MemorySink::new();
    let seen = sink.handle();
    seen.refuse();
    let bound = 8 << 20;
    let pipeline = small(dir.path())
        .wal_max_bytes(bound)
        .wal_full(WalFull::DropOldest)
        .sink(sink)
        .open()
        .unwrap();
    let topic = pipeline.topic("t").unwrap();
    let sent = 30_000;
    let mut most = 0;
    for n in 0..sent {
        topic.record(&value(n)).send_timeout(SOON).unwrap();
        if n % 500 == 0 {
            most = most.max(bytes_on_disk(dir.path()));
            assert!(pipeline.stats().books.balanced());
        }
    }
    until(SOON, "everything is in the log or dropped", || {
        let books = pipeline.stats().books;
        books.in_lanes + books.in_flight == 0
    });
    let stats = pipeline.stats();
    let dropped = stats.books.dropped;
    assert_eq!(stats.topics[0].dropped, [("wal_full", dropped)]);
    assert_eq!(stats.books.in_wal + dropped, sent as u64);
    assert!(stats.wal.as_ref().is_some_and(|w| w.bytes <= bound), "{:?}", stats.wal);
    assert!(most <= bound, "{most} of {bound} bytes");
    // At least half of the bound is used: no more was dropped than had to be.
    assert!(stats.books.in_wal * VALUE_BYTES as u64 > bound / 2, "{:?}", stats.books);
    seen.resume();
    let report = pipeline.close(SOON).unwrap();
    assert!(report.complete && report.stats.books.balanced());
    let newest: Vec<usize> = (dropped as usize..sent).collect();
    assert_eq!(numbers(&seen.records()), newest);
    println!("{sent} sent, {dropped} dropped, at most {most} of {bound} bytes on disk");
    // The next run finds nothing to do and nothing missing.
    let pipeline = small(dir.path()).sink(MemorySink::new()).open().unwrap();
    let stats = pipeline.stats();
    assert_eq!((stats.books.recovered, stats.wal.unwrap().findings), (0, Vec::new()));
}

#[test]
fn a_close_at_the_bound_drops_the_oldest_and_is_complete() {
    for policy in [WalFull::Refuse, WalFull::DropOldest] {
        let dir = tempfile::tempdir().unwrap();
        let sink = MemorySink::new();
        sink.handle().refuse();
        let pipeline = small(dir.path())
            .lane_bytes(8 << 20)
            .wal_max_bytes(4 << 20)
            .wal_full(policy)
            .loss_window(Duration::from_secs(60))
            .flush_interval(Duration::from_secs(30))
            .sink(sink)
            .open()
            .unwrap();
        let topic = pipeline.topic("t").unwrap();
        for n in 0..3_500 {
            topic.record(&value(n)).send_timeout(SOON).unwrap();
        }
        let report = pipeline.close(Duration::from_millis(10)).unwrap();
        let books = report.stats.books;
        let dropped = &report.stats.topics[0].dropped;
        println!("{policy:?}: {books:?}, {dropped:?}, {:?}", report.took);
        assert!(books.balanced() && books.in_wal > 0 && books.dropped > 0);
        // What the log refuses at close is lost, and said so; what it drops was its policy.
        let why = if policy == WalFull::Refuse { "closed" } else { "wal_full" };
        assert_eq!(dropped, &[(why, books.dropped)]);
        assert_eq!(report.complete, policy == WalFull::DropOldest);
        let sink = MemorySink::new();
        let seen = sink.handle();
        let pipeline = small(dir.path()).sink(sink).open().unwrap();
        pipeline.close(SOON).unwrap();
        let came = numbers(&seen.records());
        assert_eq!(came.len() as u64, books.in_wal);
        match policy {
            WalFull::DropOldest => assert_eq!(came.last(), Some(&3_499)),
            WalFull::Refuse => assert_eq!(came.first(), Some(&0)),
        }
    }
}
