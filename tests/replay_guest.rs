//! The pace of the replay, as users see it: the sink in memory, real files, real threads. How
//! exact it is: `flusher/tests/pace.rs`, on a clock that doesn't depend on this machine.

use forebay::{MemorySink, Pipeline};
use forebay_testkit::{say, until};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);

fn builder(dir: &std::path::Path) -> forebay::Builder {
    Pipeline::builder()
        .lanes(2)
        .lane_bytes(1 << 20)
        .record_bytes_max(100_000)
        .segment_bytes(1 << 20)
        .wal_dir(dir.join("wal"))
}

#[test]
fn what_a_run_left_comes_at_the_cap_and_the_books_say_when_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let sink = MemorySink::new();
    sink.handle().refuse();
    let pipeline = builder(dir.path()).sink(sink).open().unwrap();
    let topic = pipeline.topic("t").unwrap();
    for n in 0..4_000u32 {
        topic.record(&n.to_le_bytes()).key(b"k").send_timeout(SOON).unwrap();
    }
    assert_eq!(pipeline.close(Duration::ZERO).unwrap().stats.books.in_wal, 4_000);

    let sink = MemorySink::new();
    let seen = sink.handle();
    let begin = Instant::now();
    let pipeline = builder(dir.path())
        .replay_max_records_per_s(1_000)
        .replay_max_bytes_per_s(1 << 30)
        .replay_ramp(Duration::ZERO)
        .sink(sink)
        .open()
        .unwrap();
    let topic = pipeline.topic("t").unwrap();
    let mut predicted = None;
    for n in 4_000..4_100u32 {
        topic.record(&n.to_le_bytes()).key(b"k").send_timeout(SOON).unwrap();
    }
    until(SOON, "all is delivered", || {
        predicted = predicted.or(pipeline.stats().drain_estimate_ms);
        seen.delivered() >= 4_100
    });
    let took = begin.elapsed();
    say(&format!("4,000 records at 1,000/s: {took:?}, predicted first: {predicted:?} ms"));
    // Never faster than the cap and what it may save up; how much slower is the machine's affair.
    assert!(took >= Duration::from_millis(3_500), "{took:?}");
    assert!(predicted.is_some(), "nothing was predicted in {took:?}");
    let numbers = seen
        .records()
        .into_iter()
        .filter_map(|r| Some(u32::from_le_bytes(r.value?.try_into().ok()?)));
    assert!(numbers.eq(0..4_100), "not all, once, in order");
    let report = pipeline.close(SOON).unwrap();
    assert_eq!((report.stats.books.recovered, report.stats.books.delivered), (4_000, 4_100));
    assert_eq!(report.stats.drain_estimate_ms, None);
}
