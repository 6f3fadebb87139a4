//! What a pipeline costs while nothing happens, and while an outage goes on and on: how often its
//! threads wake, and the memory that it takes. Time is printed and never judged; counts are, with
//! room to spare.

use forebay::{MemorySink, Pipeline, WalFull};
use forebay_testkit::process::{self, ThreadFigures};
use forebay_testkit::{say, until};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// One test at a time: they read figures of the whole process.
static ALONE: Mutex<()> = Mutex::new(());

/// What this process's threads called `forebay-...` have done.
fn our_threads() -> BTreeMap<String, ThreadFigures> {
    let threads = process::threads(|name| name.starts_with("forebay-")).into_iter();
    threads.map(|thread| (thread.name.clone(), thread)).collect()
}

/// KiB of memory of our own (not of mapped files), and of all that is resident.
fn resident_kib() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kib = |name| process::number(&status, name).expect(name);
    (kib("RssAnon:"), kib("VmRSS:"))
}

/// Seconds that the test was asked to take, by hand.
fn seconds_by_hand() -> Option<u64> {
    std::env::var("FOREBAY_STEADY_S").ok().map(|s| s.parse().expect("a number of seconds"))
}

/// Prints what our threads do for so long; whether that is little.
fn is_idle(how_long: Duration) -> bool {
    let (before, began) = (our_threads(), Instant::now());
    std::thread::sleep(how_long);
    let (after, s) = (our_threads(), began.elapsed().as_secs_f64());
    assert_eq!(before.keys().collect::<Vec<_>>(), ["forebay-flusher", "forebay-keeper"]);
    [("forebay-flusher", 250.0), ("forebay-keeper", 25.0)].iter().fold(
        true,
        |is_idle, (name, most)| {
            let wakes = (after[*name].switches - before[*name].switches) as f64 / s;
            let cpu = (after[*name].cpu - before[*name].cpu).as_secs_f64() / s * 100.0;
            say(&format!(
                "idle: {name} wakes {wakes:.1} times a second and takes {cpu:.3} % of a core"
            ));
            is_idle && wakes <= *most
        },
    )
}

#[test]
fn an_idle_pipeline_wakes_a_hundred_times_a_second_and_no_more() {
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let pipeline =
        Pipeline::builder().wal_dir(dir.path().join("wal")).sink(MemorySink::new()).open().unwrap();
    let topic = pipeline.topic("t").unwrap();
    topic.send(b"x").unwrap();
    pipeline.flush(Duration::from_secs(60)).unwrap();
    // A thread gives itself its name, once it runs.
    until(Duration::from_secs(60), "both threads run", || our_threads().len() == 2);
    // The keeper counts itself idle after 20 turns of 10 ms; before that a disk may be slow.
    let mut tries = 0;
    while !is_idle(Duration::from_secs(seconds_by_hand().unwrap_or(2))) {
        tries += 1;
        assert!(tries < 20, "it never comes to rest");
    }
    assert!(pipeline.close(Duration::from_secs(60)).unwrap().complete);
}

#[test]
fn memory_is_fixed_at_open_and_flat_over_an_outage() {
    const VALUE: usize = 256;
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let sink = MemorySink::new();
    let seen = sink.handle();
    let (before, _) = resident_kib();
    let pipeline = Pipeline::builder()
        .wal_dir(dir.path().join("wal"))
        .segment_bytes(4 << 20)
        .wal_max_bytes(64 << 20)
        .wal_full(WalFull::DropOldest)
        .loss_window(Duration::from_millis(100))
        .sink(sink)
        .open()
        .unwrap();
    let topic = pipeline.topic("t").unwrap();
    let named_kib = pipeline.stats().memory_bytes / 1024;
    let opened = resident_kib();
    seen.refuse();
    // By hand: so many seconds at about 50,000 records/s, and a line every ten of them.
    let sends: u64 = seconds_by_hand().map_or(400_000, |s| s * 50_000);
    let warm = sends / 5;
    let mut at_warm = opened.0;
    let mut most = 0;
    for n in 0..sends {
        topic.send_timeout(&[7; VALUE], Duration::from_secs(60)).expect("the log takes it");
        if n % 50 == 49 && seconds_by_hand().is_some() {
            std::thread::sleep(Duration::from_millis(1));
        }
        if n % 10_000 == 9_999 {
            let now = resident_kib();
            if n < warm {
                at_warm = at_warm.max(now.0);
            } else {
                most = most.max(now.0);
            }
            if n % 500_000 == 499_999 {
                say(&format!(
                    "outage: after {} records {} KiB, {} with files",
                    n + 1,
                    now.0,
                    now.1
                ));
            }
        }
    }
    let stats = pipeline.stats();
    say(&format!(
        "memory: {named_kib} KiB named at open, {} KiB more after it; in the outage {at_warm} KiB \
         after {warm} records of {VALUE} B, at most {most} KiB up to {sends}; {} MiB in the log, \
         {} records dropped for its bound",
        opened.0.saturating_sub(before),
        stats.wal.as_ref().map_or(0, |w| w.bytes >> 20),
        stats.books.dropped
    ));
    assert!(stats.books.balanced() && stats.books.spilled > warm, "{:?}", stats.books);
    // Were it to grow with what is in the log, it would by 60 MiB and more.
    assert!(most < at_warm + (6 << 10), "{most} KiB after {at_warm}");
    pipeline.close(Duration::ZERO).unwrap();
}
