//! The whole pipeline over the sink in memory and real files: what a user may rely on.

use forebay::sink::{Opaque, ProduceError, RecordView, Report, Scope, Sink, SinkState};
use forebay::{Level, MemorySink, OpenError, Pipeline, ReceiptError, SendError};
use forebay_testkit::until;
use std::future::Future;
use std::path::Path;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);

fn small() -> forebay::Builder {
    Pipeline::builder()
        .lanes(4)
        .lane_bytes(1 << 20)
        .record_bytes_max(100_000)
        .segment_bytes(1 << 20)
}

fn in_dir(dir: &Path) -> forebay::Builder {
    small().wal_dir(dir.join("wal"))
}

/// `thread-number` values of one thread, in the order delivered.
fn numbers_of(records: &[forebay::sink::MemoryRecord], thread: usize) -> Vec<usize> {
    let prefix = format!("{thread}-");
    let values = records.iter().filter_map(|r| r.value.as_deref());
    values
        .filter_map(|v| std::str::from_utf8(v).ok()?.strip_prefix(&prefix)?.parse().ok())
        .collect()
}

fn send_from_threads(pipeline: &Pipeline, threads: usize, from: usize, to: usize) {
    std::thread::scope(|scope| {
        for t in 0..threads {
            let topic = pipeline.topic("t").unwrap();
            scope.spawn(move || {
                for n in from..to {
                    let value = format!("{t}-{n}");
                    topic.record(value.as_bytes()).key(&[t as u8]).send_timeout(SOON).unwrap();
                }
            });
        }
    });
}

#[test]
fn healthy_records_arrive_in_order_and_never_touch_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let sink = MemorySink::new();
    let seen = sink.handle();
    // A machine that stands still makes records late; lateness and a lane that is half full are
    // what journals, so neither can be reached here.
    let builder = in_dir(dir.path()).loss_window(10 * SOON).lane_bytes(8 << 20);
    let pipeline = builder.flush_interval(Duration::from_millis(500)).sink(sink).open().unwrap();
    pipeline.register_thread();
    pipeline.ready(SOON).unwrap();
    send_from_threads(&pipeline, 4, 0, 5_000);
    pipeline.flush(SOON).unwrap();
    let report = pipeline.close(SOON).unwrap();
    let books = report.stats.books;
    assert!(report.complete && books.balanced(), "{books:?}");
    assert_eq!((books.accepted, books.delivered, books.spilled), (20_000, 20_000, 0));
    let records = seen.records();
    for t in 0..4 {
        assert_eq!(numbers_of(&records, t), (0..5_000).collect::<Vec<_>>());
    }
    println!("{} records delivered, {} spilled", books.delivered, books.spilled);
}

#[test]
fn a_flush_covers_everything_that_was_sent_before_it() {
    let pipeline = small().at_most_once().sink(MemorySink::new()).open().unwrap();
    let rounds = 3_000;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let topic = pipeline.topic("t").unwrap();
                for n in 0..rounds {
                    // Whatever else is in the lanes, this one must be final after the flush.
                    let mut receipt = std::pin::pin!(topic.record(b"x").send_tracked().unwrap());
                    pipeline.flush(SOON).unwrap();
                    let now = receipt.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                    assert_eq!(now, Poll::Ready(Ok(())), "round {n}: flushed and not final");
                }
            });
        }
    });
    assert_eq!(pipeline.close(SOON).unwrap().stats.books.delivered, 2 * rounds);
}

#[test]
fn every_part_of_a_record_arrives() {
    let sink = MemorySink::new();
    let seen = sink.handle();
    let pipeline = small().at_most_once().sink(sink).open().unwrap();
    let topic = pipeline.topic("parts").unwrap();
    topic
        .record(b"v")
        .key(b"")
        .header("a", b"1")
        .header_null("n")
        .partition(7)
        .timestamp(42)
        .send()
        .unwrap();
    topic.tombstone(b"gone").unwrap();
    topic.send(b"").unwrap();
    topic
        .send_with(10, |room| {
            room[..3].copy_from_slice(b"abc");
            3
        })
        .unwrap();
    assert_eq!(topic.send_with(2, |_| 3), Err(SendError::BadLength));
    assert_eq!(topic.record(b"x").partition(-1).send(), Err(SendError::BadPartition));
    assert_eq!(topic.record(b"x").header("", b"").send(), Err(SendError::BadHeader));
    assert_eq!(topic.send(&vec![0; 100_001]), Err(SendError::TooLarge));
    let mut many = topic.record(b"x");
    for _ in 0..17 {
        many = many.header("h", b"");
    }
    assert_eq!(many.send(), Err(SendError::BadHeader));
    pipeline.flush(SOON).unwrap();
    let records = seen.records();
    assert_eq!(records.len(), 4);
    assert_eq!(records[0].key.as_deref(), Some(&b""[..]));
    assert_eq!((records[0].partition, records[0].timestamp_ms), (7, 42));
    let headers = [("a".to_owned(), Some(b"1".to_vec())), ("n".to_owned(), None)];
    assert_eq!(records[0].headers, headers);
    assert_eq!(
        (records[1].value.as_deref(), records[1].key.as_deref()),
        (None, Some(&b"gone"[..]))
    );
    assert_eq!((records[2].value.as_deref(), records[2].key.as_deref()), (Some(&b""[..]), None));
    assert_eq!(records[3].value.as_deref(), Some(&b"abc"[..]));
    let stats = pipeline.close(SOON).unwrap().stats;
    assert_eq!(stats.books.refused, 5, "{:?}", stats.refused);
}

#[test]
fn an_outage_spills_and_everything_arrives_in_order_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let sink = MemorySink::new();
    let seen = sink.handle();
    let pipeline =
        in_dir(dir.path()).loss_window(Duration::from_millis(100)).sink(sink).open().unwrap();
    send_from_threads(&pipeline, 2, 0, 1_000);
    pipeline.flush(SOON).unwrap();
    assert_eq!(seen.delivered(), 2_000);
    seen.refuse();
    send_from_threads(&pipeline, 2, 1_000, 30_000);
    until(SOON, "everything is in the log", || {
        let b = pipeline.stats().books;
        b.in_wal == 58_000 && b.in_lanes == 0 && b.in_flight == 0
    });
    let stats = pipeline.stats();
    assert!(stats.books.balanced());
    assert_eq!(stats.unsafe_records, 0);
    assert!(!stats.states.exposed);
    seen.resume();
    send_from_threads(&pipeline, 2, 30_000, 31_000);
    let report = pipeline.close(SOON).unwrap();
    assert_eq!(report.stats.books.delivered, 62_000);
    // The one that the sink was being offered when the outage began was admitted from memory.
    assert!(report.stats.books.balanced() && report.stats.books.replayed >= 57_999);
    let records = seen.records();
    for t in 0..2 {
        assert_eq!(numbers_of(&records, t), (0..31_000).collect::<Vec<_>>());
    }
    println!("{} spilled, {} replayed", report.stats.books.spilled, report.stats.books.replayed);
}

#[test]
fn what_a_run_leaves_the_next_one_delivers_first() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        // Kafka never there: close, then drop.
        let sink = MemorySink::new();
        sink.handle().refuse();
        let pipeline = in_dir(dir.path()).sink(sink).open().unwrap();
        let before = pipeline.stats().books.recovered as usize / 2;
        send_from_threads(&pipeline, 2, before, before + 1_000);
        if before == 0 {
            let report = pipeline.close(Duration::from_millis(10)).unwrap();
            assert!(report.complete);
            assert_eq!(report.stats.books.in_wal, 2_000);
        } else {
            drop(pipeline);
        }
    }
    let sink = MemorySink::new();
    let seen = sink.handle();
    let pipeline = in_dir(dir.path()).sink(sink).open().unwrap();
    send_from_threads(&pipeline, 2, 2_000, 2_500);
    let stats = pipeline.close(SOON).unwrap().stats;
    assert_eq!((stats.books.recovered, stats.books.accepted), (4_000, 1_000));
    assert_eq!(stats.books.delivered, 5_000);
    assert!(stats.books.balanced());
    for t in 0..2 {
        assert_eq!(numbers_of(&seen.records(), t), (0..2_500).collect::<Vec<_>>());
    }
    // Nothing is left for another run.
    let pipeline = in_dir(dir.path()).sink(MemorySink::new()).open().unwrap();
    assert_eq!(pipeline.stats().books.recovered, 0);
}

#[test]
fn at_most_once_refuses_when_full_and_counts_it() {
    let sink = MemorySink::new();
    let seen = sink.handle();
    seen.refuse();
    let pipeline = small().at_most_once().sink(sink).open().unwrap();
    let topic = pipeline.topic("t").unwrap();
    let mut taken = 0u64;
    let mut refused = 0u64;
    for _ in 0..30_000 {
        match topic.send(&[7; 100]) {
            Ok(()) => taken += 1,
            Err(e) => {
                assert_eq!(e, SendError::Full);
                refused += 1;
            }
        }
    }
    assert!(taken > 1_000 && refused > 1_000, "{taken} {refused}");
    let began = Instant::now();
    assert_eq!(topic.send_timeout(&[7; 100], Duration::from_millis(30)), Err(SendError::Full));
    assert!(began.elapsed() >= Duration::from_millis(30));
    seen.resume();
    topic.send_timeout(&[7; 100], SOON).unwrap();
    let stats = pipeline.close(SOON).unwrap().stats;
    assert_eq!((stats.books.accepted, stats.books.delivered), (taken + 1, taken + 1));
    assert_eq!(stats.books.refused, refused + 1);
    assert!(stats.books.balanced());
    println!("{taken} taken, {refused} refused");
}

#[test]
fn at_most_once_that_closes_in_an_outage_counts_what_it_drops() {
    let sink = MemorySink::new();
    sink.handle().refuse();
    let pipeline = small().at_most_once().sink(sink).open().unwrap();
    let topic = pipeline.topic("t").unwrap();
    for _ in 0..100 {
        topic.send(b"x").unwrap();
    }
    let receipt = topic.record(b"x").send_tracked().unwrap();
    let report = pipeline.close(Duration::from_millis(20)).unwrap();
    assert!(!report.complete);
    assert_eq!(report.stats.topics[0].dropped, [("closed", 101)]);
    assert!(report.stats.books.balanced());
    assert_eq!(receipt.wait(Level::Delivered, SOON), Err(ReceiptError::Dropped));
}

#[test]
fn a_receipt_tells_how_its_record_ended() {
    let dir = tempfile::tempdir().unwrap();
    let sink = MemorySink::new();
    let seen = sink.handle();
    let pipeline = in_dir(dir.path())
        .receipts_max(3)
        .loss_window(Duration::from_millis(50))
        .sink(sink)
        .open()
        .unwrap();
    let topic = pipeline.topic("t").unwrap();
    topic.record(b"1").send_tracked().unwrap().wait(Level::Delivered, SOON).unwrap();

    seen.fail_next(1, Scope::Record, "too_large");
    let bad = topic.record(b"2").send_tracked().unwrap();
    assert_eq!(bad.wait(Level::Delivered, SOON), Err(ReceiptError::SetAside));

    // Through the log: journaled, released, read back, delivered.
    seen.refuse();
    let late = topic.record(b"3").send_tracked().unwrap();
    until(SOON, "it is in the log", || pipeline.stats().books.in_wal == 1);
    assert_eq!(late.wait(Level::Delivered, Duration::ZERO), Err(ReceiptError::StillPending));
    seen.resume();
    late.wait(Level::Delivered, SOON).unwrap();

    let held: Vec<_> = (0..3).filter_map(|_| topic.record(b"4").send_tracked().ok()).collect();
    assert_eq!(held.len(), 1, "the two above still hold theirs");
    assert_eq!(topic.record(b"4").send_tracked().unwrap_err(), SendError::NoReceipt);
    drop((bad, late, held));
    pipeline.flush(SOON).unwrap();
    assert!(topic.record(b"5").send_tracked().is_ok());
    assert!(pipeline.close(SOON).unwrap().stats.books.balanced());
}

#[test]
fn a_waiting_receipt_hurries_the_flush() {
    let interval = Duration::from_secs(60);
    let builder = small().at_most_once().flush_interval(interval).sink(MemorySink::new());
    let pipeline = builder.open().unwrap();
    let topic = pipeline.topic("t").unwrap();
    let began = Instant::now();
    topic.record(b"1").send_tracked().unwrap().wait(Level::Delivered, interval / 2).unwrap();
    println!("delivered after {:?} of a flush interval of {interval:?}", began.elapsed());
}

#[test]
fn errors_are_counted_by_scope_and_reason() {
    let dir = tempfile::tempdir().unwrap();
    let sink = MemorySink::new();
    let seen = sink.handle();
    let pipeline = in_dir(dir.path()).sink(sink).open().unwrap();
    let topic = pipeline.topic("t").unwrap();
    let send = |n: usize| {
        for i in 0..n {
            topic.send(format!("0-{i}").as_bytes()).unwrap();
        }
        pipeline.flush(SOON).unwrap();
    };
    seen.fail_next(3, Scope::Record, "invalid_record");
    seen.fail_next(2, Scope::Topic, "topic_unavailable");
    send(10);
    // Those of the topic's scope are held, and come when it answers again.
    until(SOON, "the topic is no longer held", || {
        let stats = pipeline.stats();
        stats.held.is_empty() && stats.books.set_aside == 3
    });
    seen.fail_next(4, Scope::Transient, "try_again");
    send(10);
    seen.fail_instance("fenced");
    send(10);
    let stats = pipeline.close(SOON).unwrap().stats;
    assert!(stats.books.balanced());
    assert_eq!((stats.books.delivered, stats.books.set_aside), (27, 3));
    assert_eq!(stats.topics[0].set_aside, [("invalid_record", 3)]);
    assert_eq!((stats.books.reordered, stats.rebuilds, seen.rebuilds()), (4, 1, 1));
    assert!(stats.last_rebuild_reason.unwrap().contains("fenced"));
}

#[test]
fn log_first_produces_nothing_that_is_not_journaled() {
    let dir = tempfile::tempdir().unwrap();
    let sink = MemorySink::new();
    let seen = sink.handle();
    let pipeline = in_dir(dir.path()).loss_window(Duration::ZERO).sink(sink).open().unwrap();
    send_from_threads(&pipeline, 2, 0, 2_000);
    let stats = pipeline.close(SOON).unwrap().stats;
    assert_eq!((stats.books.delivered, stats.books.spilled), (4_000, 4_000));
    for t in 0..2 {
        assert_eq!(numbers_of(&seen.records(), t), (0..2_000).collect::<Vec<_>>());
    }
}

#[test]
fn send_after_close_says_closed_and_closing_twice_is_fine() {
    let pipeline = small().at_most_once().sink(MemorySink::new()).open().unwrap();
    let topic = pipeline.topic("t").unwrap();
    topic.send(b"x").unwrap();
    let first = pipeline.close(SOON).unwrap();
    assert_eq!(topic.send(b"x"), Err(SendError::Closed));
    assert_eq!(topic.send_timeout(b"x", SOON), Err(SendError::Closed));
    assert_eq!(topic.record(b"x").send_tracked().unwrap_err(), SendError::Closed);
    assert_eq!(pipeline.close(SOON).unwrap(), first);
    pipeline.flush(SOON).unwrap();
}

/// Takes a few records and then panics on the flusher's thread.
struct PanickingSink(u32);

impl Sink for PanickingSink {
    fn produce(&mut self, _: &str, _: &RecordView<'_>, _: Opaque) -> Result<(), ProduceError> {
        self.0 += 1;
        assert!(self.0 < 10, "the sink panics on purpose");
        Ok(())
    }
    fn serve(&mut self, _: u64, _: &mut Vec<Report>) {}
    fn state(&self) -> SinkState {
        SinkState { connected: true, topics_known: true, ..SinkState::default() }
    }
    fn hurry(&mut self) {}
    fn rebuild(&mut self, _: u64) {}
    fn close(&mut self) {}
}

#[test]
fn a_panic_of_the_flusher_is_visible_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let pipeline = in_dir(dir.path()).sink(PanickingSink(0)).open().unwrap();
    let topic = pipeline.topic("t").unwrap();
    for n in 0..100 {
        topic.send(format!("0-{n}").as_bytes()).unwrap();
    }
    pipeline.flush(Duration::from_millis(300)).unwrap_err();
    let mut more = 0;
    until(SOON, "sends say Stopped", || {
        let sent = topic.send(b"x");
        more += u64::from(sent.is_ok());
        sent == Err(SendError::Stopped)
    });
    let error = pipeline.close(SOON).unwrap_err();
    assert!(error.why.contains("on purpose"), "{error}");
    drop(pipeline);

    let sink = MemorySink::new();
    let seen = sink.handle();
    let pipeline = in_dir(dir.path()).sink(sink).open().unwrap();
    let stats = pipeline.close(SOON).unwrap().stats;
    assert_eq!(stats.books.recovered, 100 + more);
    assert_eq!(numbers_of(&seen.records(), 0), (0..100).collect::<Vec<_>>());
}

#[test]
fn a_directory_has_one_holder_and_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let pipeline = in_dir(dir.path()).sink(MemorySink::new()).open().unwrap();
    match in_dir(dir.path()).sink(MemorySink::new()).open() {
        Err(OpenError::InUse { holder, .. }) => {
            assert!(holder.contains(&std::process::id().to_string()), "{holder}");
        }
        other => panic!("{other:?}"),
    }
    drop(pipeline);
    let wal = dir.path().join("wal");
    assert_eq!(wal.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    std::fs::set_permissions(&wal, std::fs::Permissions::from_mode(0o755)).unwrap();
    let error = in_dir(dir.path()).sink(MemorySink::new()).open().unwrap_err();
    assert!(error.to_string().contains("chmod 700"), "{error}");
}

#[test]
fn bad_settings_and_names_are_refused_with_the_remedy() {
    let neither = Pipeline::builder().sink(MemorySink::new()).open().unwrap_err();
    assert!(
        neither.to_string().contains("wal_dir") && neither.to_string().contains("at_most_once")
    );
    let large = small().at_most_once().record_bytes_max(1 << 20).sink(MemorySink::new()).open();
    assert!(large.unwrap_err().to_string().contains("lane_bytes"));
    let pipeline = small().at_most_once().sink(MemorySink::new()).open().unwrap();
    assert!(pipeline.topic("a b").unwrap_err().to_string().contains("a b"));
}

/// A tmpfs of `bytes`, unmounted in the end. `None`, and a line that says so, without root.
fn small_disk(bytes: u64) -> Option<(tempfile::TempDir, Unmount)> {
    let dir = tempfile::tempdir().unwrap();
    let size = format!("size={bytes}");
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", &size, "forebay-test"])
        .arg(dir.path())
        .status()
        .is_ok_and(|s| s.success());
    if !mounted {
        println!("SKIPPED: mounting a tmpfs needs root");
        return None;
    }
    let unmount = Unmount(dir.path().to_owned());
    Some((dir, unmount))
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_at_open_is_an_error_that_says_what_to_do() {
    let Some((dir, _unmount)) = small_disk(1 << 20) else { return };
    let dir = dir.path().join("wal");
    let small = || Pipeline::builder().record_bytes_max(1_000).sink(MemorySink::new());
    let error = small().wal_dir(&dir).open().unwrap_err().to_string();
    assert!(error.contains("segment_bytes"), "{error}");
    let error = small().wal_dir(&dir).segment_bytes(1 << 20).wal_max_bytes(1 << 24).open();
    let error = error.unwrap_err().to_string();
    assert!(error.contains("free that much"), "{error}");
}

#[test]
fn a_disk_that_fills_up_refuses_and_comes_back() {
    let Some((dir, _unmount)) = small_disk(16 << 20) else { return };
    let sink = MemorySink::new();
    let seen = sink.handle();
    seen.refuse();
    let pipeline = small()
        .wal_dir(dir.path().join("wal"))
        .wal_max_bytes(1 << 30)
        .loss_window(Duration::from_millis(50))
        .sink(sink)
        .open()
        .unwrap();
    let topic = pipeline.topic("t").unwrap();
    let mut taken = 0;
    let value = |n: usize| format!("0-{n:<999}");
    // A send that finds no room in time says little: the machine may have stood still.
    until(SOON, "the disk is full", || {
        while topic.record(value(taken).as_bytes()).send_timeout(Duration::from_secs(1)).is_ok() {
            taken += 1;
        }
        pipeline.stats().wal.is_some_and(|w| w.unavailable.is_some())
    });
    until(SOON, "the disk is known to be full", || {
        let stats = pipeline.stats();
        stats.wal.is_some_and(|w| w.unavailable.is_some()) && stats.states.exposed
    });
    let stats = pipeline.stats();
    assert!(stats.books.balanced() && stats.books.in_wal > 1_000, "{:?}", stats.books);
    let bytes = std::fs::metadata(dir.path()).map(|_| stats.wal.unwrap().bytes).unwrap();
    println!("{taken} taken, {} of them on {bytes} bytes of disk", stats.books.in_wal);
    seen.resume();
    pipeline.flush(SOON).unwrap();
    until(SOON, "it has recovered", || {
        let stats = pipeline.stats();
        let wal = stats.wal.unwrap();
        !stats.states.exposed && wal.keeper_trouble.is_none() && wal.keeper_failures > 0
    });
    topic.send(value(taken).as_bytes()).unwrap();
    let stats = pipeline.close(SOON).unwrap().stats;
    assert_eq!(stats.books.delivered as usize, taken + 1);
    let values: Vec<_> = seen.records().into_iter().map(|r| r.value.unwrap()).collect();
    assert!(values.iter().enumerate().all(|(n, v)| *v == value(n).as_bytes()));
}
