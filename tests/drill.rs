//! A rehearsed outage, as users see it: the sink in memory, real files, real threads.

use forebay::{DrillError, MemorySink, Outage, Pipeline};
use forebay_testkit::{say, until};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);

fn in_dir(dir: &std::path::Path) -> forebay::Builder {
    Pipeline::builder()
        .lanes(4)
        .lane_bytes(1 << 20)
        .record_bytes_max(100_000)
        .segment_bytes(1 << 20)
        .loss_window(Duration::from_millis(200))
        .wal_dir(dir.join("wal"))
}

/// Drills until a drill is neither refused nor cut short: a machine that stands still does either
/// to a pipeline that is well.
fn drill(pipeline: &Pipeline, outage: Outage) -> forebay::DrillReport {
    let begin = Instant::now();
    loop {
        match pipeline.drill(outage) {
            Ok(report) if report.cut_short.is_none() => return report,
            other => assert!(begin.elapsed() < 2 * SOON, "{other:?}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Sends about 20,000 records a second from each of two threads while `body` runs.
fn under_load<T>(pipeline: &Pipeline, body: impl FnOnce() -> T) -> (T, [u64; 2]) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let senders = [0u8, 1].map(|thread| {
            let topic = pipeline.topic("t").expect("a good name");
            let stop = &stop;
            scope.spawn(move || {
                let key = [thread];
                let mut sent = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    for _ in 0..20 {
                        let value = format!("{thread}-{sent}");
                        let record = topic.record(value.as_bytes()).key(&key);
                        // A close in the middle refuses the rest.
                        if record.send_timeout(SOON).is_err() {
                            return sent;
                        }
                        sent += 1;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                sent
            })
        });
        let result = body();
        stop.store(true, Ordering::Relaxed);
        (result, senders.map(|s| s.join().expect("no panic")))
    })
}

fn assert_exact(seen: &forebay::sink::MemoryHandle, sent: [u64; 2]) {
    let records = seen.records();
    for (thread, sent) in sent.into_iter().enumerate() {
        let prefix = format!("{thread}-");
        let numbers = records.iter().filter_map(|r| {
            std::str::from_utf8(r.value.as_deref()?)
                .ok()?
                .strip_prefix(&prefix)?
                .parse::<u64>()
                .ok()
        });
        assert!(numbers.eq(0..sent), "thread {thread}: not all {sent}, once, in order");
    }
}

#[test]
fn a_drill_costs_nothing_and_keeps_the_order() {
    let dir = tempfile::tempdir().unwrap();
    let sink = MemorySink::new();
    let seen = sink.handle();
    let pipeline = in_dir(dir.path()).sink(sink).open().unwrap();
    let (report, sent) = under_load(&pipeline, || {
        until(SOON, "something is delivered", || seen.delivered() > 1_000);
        let outage = Outage::lasting(Duration::from_millis(1_500));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| drill(&pipeline, outage));
            until(SOON, "it began, and another one is refused meanwhile", || {
                pipeline.stats().states.drilling
                    && pipeline.drill(outage) == Err(DrillError::AlreadyRunning)
            });
            waiting.join().expect("no panic")
        })
    });
    let closed = pipeline.close(SOON).unwrap();
    say(&format!("drill: {}", report.to_string().replace('\n', "; ")));
    assert!(report.outage >= Duration::from_millis(1_500), "{report:?}");
    assert!(report.spilled() > 0 && report.backlog_records > 0 && report.backlog_bytes > 0);
    assert_eq!((report.lost(), report.dropped(), report.duplicates_possible()), (0, 0, 0));
    assert!(report.drained.is_some() && report.before.balanced() && report.after.balanced());
    let books = closed.stats.books;
    assert_eq!((books.delivered, books.refused), (sent[0] + sent[1], 0), "{books:?}");
    assert_exact(&seen, sent);
}

#[test]
fn a_close_in_the_middle_ends_it_and_delivers_all() {
    let dir = tempfile::tempdir().unwrap();
    let sink = MemorySink::new();
    let seen = sink.handle();
    let pipeline = in_dir(dir.path()).sink(sink).open().unwrap();
    let pipeline = &pipeline;
    let (closed, sent) = under_load(pipeline, || {
        std::thread::scope(|scope| {
            let outage = Outage::lasting(Duration::from_secs(600));
            let waiting = scope.spawn(move || {
                loop {
                    match pipeline.drill(outage) {
                        Err(DrillError::Closed) => return,
                        // Refused or cut short, on a machine that stood still.
                        other => say(&format!("drill: {other:?}")),
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
            until(SOON, "records spill in a drill", || {
                let stats = pipeline.stats();
                stats.states.drilling && stats.books.in_wal > 2_000
            });
            let closed = pipeline.close(SOON).expect("it closes");
            waiting.join().expect("no panic");
            closed
        })
    });
    let books = closed.stats.books;
    say(&format!("closed in a drill after {:?}: {books:?}", closed.took));
    assert!(closed.complete && books.balanced());
    assert_eq!((books.delivered, books.in_wal), (sent[0] + sent[1], 0), "{books:?}");
    assert_exact(&seen, sent);
}

#[test]
fn it_is_refused_with_the_reason() {
    let short = Outage::lasting(Duration::from_millis(100));
    let without_log = Pipeline::builder().at_most_once().sink(MemorySink::new()).open().unwrap();
    assert_eq!(without_log.drill(short), Err(DrillError::NoLog));
    without_log.close(SOON).unwrap();
    assert_eq!(without_log.drill(short), Err(DrillError::Closed));

    let dir = tempfile::tempdir().unwrap();
    let sink = MemorySink::new();
    let seen = sink.handle();
    let pipeline = in_dir(dir.path()).replay_max_records_per_s(1).sink(sink).open().unwrap();
    assert_eq!(pipeline.drill(Outage::lasting(Duration::ZERO)), Err(DrillError::BadLength));
    seen.refuse();
    until(SOON, "the outage is noticed", || pipeline.stats().states.disconnected.is_some());
    let unhealthy = pipeline.drill(short);
    assert!(matches!(unhealthy, Err(DrillError::Unhealthy(_))), "{unhealthy:?}");
    let topic = pipeline.topic("t").unwrap();
    for _ in 0..100 {
        topic.send(b"waits").unwrap();
    }
    until(SOON, "they are in the log", || pipeline.stats().books.in_wal == 100);
    seen.resume();
    until(SOON, "it is over", || pipeline.stats().states.disconnected.is_none());
    until(SOON, "the backlog is the reason", || {
        let backlog = pipeline.drill(short);
        say(&format!("refused: {unhealthy:?}, {backlog:?}"));
        matches!(backlog, Err(DrillError::Backlog { .. }))
    });
    let left = pipeline.close(Duration::ZERO).unwrap().stats.books;
    assert!(left.balanced() && left.in_wal + left.delivered == 100, "{left:?}");
}
