//! What stands, and what goes on: a closure of `send_with` that panics or never returns, a thread
//! stopped between any two instructions of a send, a flusher that stands in its sink. Each is seen
//! in `stats()`, holds up nobody but itself, and is counted at close.

use forebay::sink::MemoryHandle;
use forebay::sink::{Opaque, ProduceError, RecordView, Report, Sink, SinkState};
use forebay::{Level, MemorySink, Pipeline, ReceiptError, SendError, Topic};
use forebay_testkit::{say, until};
use parking_lot::{Condvar, Mutex};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);

fn small() -> forebay::Builder {
    Pipeline::builder()
        .lanes(2)
        .lane_bytes(1 << 18)
        .lane_slots(1024)
        .record_bytes_max(1_000)
        .segment_bytes(1 << 20)
        .flush_interval(Duration::from_millis(5))
}

fn in_dir(dir: &Path) -> forebay::Builder {
    small().wal_dir(dir.join("wal"))
}

/// Runs `body` on a thread whose lane `is_wanted`. A thread's lane is drawn, so some are made in
/// vain.
fn on_lane<T: Send>(
    pipeline: &Pipeline,
    is_wanted: impl Fn(usize) -> bool + Sync,
    body: impl FnOnce() -> T + Send,
) -> T {
    let body = Mutex::new(Some(body));
    loop {
        let done = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let body = is_wanted(pipeline.register_thread()).then(|| body.lock().take());
                body.flatten().map(|body| body())
            });
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        });
        if let Some(done) = done {
            return done;
        }
    }
}

/// Sends `count` records; how many were taken, and how many found the lane full.
fn send(topic: &Topic, who: &str, count: usize) -> (usize, usize) {
    let mut full = 0;
    for n in 0..count {
        match topic.record(format!("{who}-{n}").as_bytes()).send() {
            Ok(()) => {}
            Err(SendError::Full) => full += 1,
            Err(e) => panic!("{e}"),
        }
    }
    (count - full, full)
}

/// As `send`, waiting for room where there is none.
fn send_all(topic: &Topic, who: &str, count: usize) {
    for n in 0..count {
        topic.send_timeout(format!("{who}-{n}").as_bytes(), SOON).expect("room");
    }
}

fn arrived(seen: &MemoryHandle, who: &str) -> usize {
    let prefix = format!("{who}-");
    seen.records()
        .iter()
        .filter(|r| r.value.as_ref().is_some_and(|v| v.starts_with(prefix.as_bytes())))
        .count()
}

/// A thread within a closure of `send_with`, until it is told to go on.
struct Stuck {
    lane: usize,
    go_on: Sender<()>,
    sent: Receiver<Result<(), SendError>>,
}

impl Stuck {
    fn begin(pipeline: &Arc<Pipeline>, topic: &Topic) -> Stuck {
        let (go_on, wait) = channel();
        let (is_in, entered) = channel();
        let (done, sent) = channel();
        let (pipeline, topic) = (pipeline.clone(), topic.clone());
        std::thread::spawn(move || {
            let lane = pipeline.register_thread();
            let result = topic.send_with(100, |room| {
                is_in.send(lane).expect("the test waits");
                let _ = wait.recv();
                room[..7].copy_from_slice(b"stuck-0");
                7
            });
            let _ = done.send(result);
        });
        let lane = entered.recv_timeout(SOON).expect("the closure begins");
        Stuck { lane, go_on, sent }
    }

    fn finish(self) -> Result<(), SendError> {
        self.go_on.send(()).expect("the closure waits");
        self.sent.recv_timeout(SOON).expect("the send returns")
    }
}

#[test]
fn a_closure_that_panics_sends_nothing_and_holds_up_nobody() {
    const ROUNDS: usize = 5_000;
    let dir = tempfile::tempdir().unwrap();
    let sink = MemorySink::new();
    let seen = sink.handle();
    let pipeline = in_dir(dir.path()).sink(sink).open().unwrap();
    let topic = pipeline.topic("t").unwrap();
    let panics = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for who in ["a", "b", "c"] {
            let (topic, panics) = (&topic, &panics);
            scope.spawn(move || {
                for n in 0..ROUNDS {
                    let value = format!("{who}-{n}");
                    topic.send_timeout(value.as_bytes(), SOON).expect("room");
                    let sent = catch_unwind(AssertUnwindSafe(|| {
                        // Without the panic hook, which would print each.
                        topic.send_with(1 + n % 900, |_| resume_unwind(Box::new("on purpose")))
                    }));
                    match sent {
                        Err(_) => panics.fetch_add(1, Ordering::Relaxed),
                        Ok(sent) => {
                            assert_eq!(sent, Err(SendError::Full), "the closure didn't run");
                            0
                        }
                    };
                }
            });
        }
    });
    let report = pipeline.close(SOON).unwrap();
    let (books, panics) = (report.stats.books, panics.into_inner());
    assert!(report.complete && books.balanced(), "{books:?}");
    assert_eq!((books.accepted, books.delivered), (3 * ROUNDS as u64, 3 * ROUNDS as u64));
    assert_eq!(["a", "b", "c"].map(|who| arrived(&seen, who)), [ROUNDS; 3]);
    assert!(panics > 0 && !report.stats.states.lane_stalled);
    say(&format!(
        "panics in closures: {panics}, {} records delivered beside them",
        books.delivered
    ));
}

#[test]
fn a_closure_that_never_returns_is_named_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let sink = MemorySink::new();
    let seen = sink.handle();
    let window = Duration::from_secs(1);
    let pipeline = in_dir(dir.path()).loss_window(window).sink(sink).open().unwrap();
    let pipeline = Arc::new(pipeline);
    let topic = pipeline.topic("t").unwrap();
    assert!(pipeline.stats().states.stalled_lanes.is_empty());
    let stuck = Stuck::begin(&pipeline, &topic);
    until(SOON, "the lane counts as stalled", || pipeline.stats().states.lane_stalled);
    assert_eq!(pipeline.stats().states.stalled_lanes, [stuck.lane]);

    // Another lane, and a flush of it, as if nothing were.
    for _ in 0..20 {
        on_lane(&pipeline, |lane| lane != stuck.lane, || send_all(&topic, "other", 250));
        pipeline.flush(SOON).expect("a record that nobody has finished isn't waited for");
    }
    assert_eq!(arrived(&seen, "other"), 5_000);
    assert_eq!(pipeline.stats().books.in_lanes, 1);
    // The record that isn't finished doesn't keep the flusher busy: one look every 10 ms is the pace of an idle one.
    let looks_now = || {
        let before = pipeline.stats().looks;
        pipeline.topic("t").unwrap(); // has the flusher publish
        until(SOON, "a look is published", || pipeline.stats().looks > before);
        pipeline.stats().looks
    };
    let exposed_before = pipeline.stats().exposed_count;
    let (looks, began) = (looks_now(), Instant::now());
    std::thread::sleep(2 * window);
    let per_s = (looks_now() - looks) as f64 / began.elapsed().as_secs_f64();
    assert!(per_s < 500.0, "{per_s} looks a second for a lane that stands");
    // It is accepted by nobody yet: nothing is exposed, though the window is over twice. The
    // others' records may have been, on a machine that stood still.
    let stats = pipeline.stats();
    assert!(!stats.states.exposed && stats.exposed_count == exposed_before, "{stats:?}");

    // Its own lane: what comes behind it leaves too, until the lane's room is used up.
    let (taken, full) =
        on_lane(&pipeline, |lane| lane == stuck.lane, || send(&topic, "same", 3_000));
    assert!(taken > 0 && full > 0, "{taken} taken, {full} refused");
    until(SOON, "they arrive", || arrived(&seen, "same") == taken);
    // With that lane full for good, the healthy one still doesn't go to the log.
    pipeline.flush(SOON).unwrap();
    let spilled = pipeline.stats().books.spilled;
    for _ in 0..20 {
        on_lane(&pipeline, |lane| lane != stuck.lane, || send_all(&topic, "later", 100));
        pipeline.flush(SOON).unwrap();
    }
    assert_eq!(arrived(&seen, "later"), 2_000);
    // A flusher that got no CPU for long may journal a few by age.
    let spilled = pipeline.stats().books.spilled - spilled;
    assert!(spilled < 1_000, "a stuck lane sent {spilled} of a healthy one's 2,000 to the log");

    let lane = stuck.lane;
    assert_eq!(stuck.finish(), Ok(()));
    until(SOON, "no lane is stalled", || !pipeline.stats().states.lane_stalled);
    until(SOON, "it arrives", || arrived(&seen, "stuck") == 1);
    on_lane(&pipeline, |it| it == lane, || send_all(&topic, "again", 3_000));
    let report = pipeline.close(SOON).unwrap();
    let books = report.stats.books;
    assert!(report.complete && books.balanced(), "{books:?}");
    assert_eq!((books.accepted, books.delivered), (10_001 + taken as u64, 10_001 + taken as u64));
    say(&format!(
        "a closure stood on lane {lane}: {taken} behind it delivered before its lane was full, \
         7,000 on the other; {per_s:.0} looks a second meanwhile; {} refused",
        books.refused
    ));
}

#[test]
fn close_ends_in_time_with_a_closure_that_never_returns() {
    for is_outage in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let sink = MemorySink::new();
        let seen = sink.handle();
        let pipeline = Arc::new(in_dir(dir.path()).sink(sink).open().unwrap());
        let topic = pipeline.topic("t").unwrap();
        if is_outage {
            seen.refuse();
        }
        let stuck = Stuck::begin(&pipeline, &topic);
        let other = |lane| lane != stuck.lane;
        on_lane(&pipeline, other, || send_all(&topic, "other", 400));
        let (taken, _) = on_lane(&pipeline, |l| l == stuck.lane, || send(&topic, "same", 100));
        if !is_outage {
            pipeline.flush(SOON).unwrap();
        }
        let report = pipeline.close(Duration::from_millis(300)).unwrap();
        let books = report.stats.books;
        assert!(books.balanced() && !report.complete, "{books:?}");
        assert_eq!((books.accepted, books.in_lanes), (501, 1), "{books:?}");
        assert_eq!(taken, 100);
        let (in_wal, delivered) = if is_outage { (500, 0) } else { (0, 500) };
        assert_eq!((books.in_wal, books.delivered), (in_wal, delivered), "{books:?}");
        assert_eq!(report.stats.states.stalled_lanes, [stuck.lane]);
        // Its thread can't do harm any more.
        let _ = stuck.finish();
        drop((pipeline, topic));

        let sink = MemorySink::new();
        let seen = sink.handle();
        let pipeline = in_dir(dir.path()).sink(sink).open().unwrap();
        let stats = pipeline.close(SOON).unwrap().stats;
        assert_eq!((stats.books.recovered, seen.delivered() as u64), (in_wal, in_wal));
        say(&format!(
            "close beside a closure that stands, outage {is_outage}: took {:?}, {in_wal} in the log, \
             {delivered} delivered, 1 left in its lane",
            report.took
        ));
    }
}

/// A sink that stands in `produce` while its gate is shut.
struct Gated {
    inner: MemorySink,
    gate: Arc<(Mutex<bool>, Condvar)>,
}

fn set(gate: &(Mutex<bool>, Condvar), is_shut: bool) {
    *gate.0.lock() = is_shut;
    gate.1.notify_all();
}

impl Sink for Gated {
    fn produce(&mut self, t: &str, r: &RecordView<'_>, o: Opaque) -> Result<(), ProduceError> {
        let mut is_shut = self.gate.0.lock();
        while *is_shut {
            self.gate.1.wait(&mut is_shut);
        }
        self.inner.produce(t, r, o)
    }
    fn serve(&mut self, now_ns: u64, reports: &mut Vec<Report>) {
        self.inner.serve(now_ns, reports);
    }
    fn state(&self) -> SinkState {
        self.inner.state()
    }
    fn hurry(&mut self) {}
    fn rebuild(&mut self, now_ns: u64) {
        self.inner.rebuild(now_ns);
    }
    fn close(&mut self) {
        self.inner.close();
    }
}

#[test]
fn a_flusher_that_stands_is_a_state_and_goes_on_where_it_stood() {
    let dir = tempfile::tempdir().unwrap();
    let inner = MemorySink::new();
    let (seen, gate) = (inner.handle(), Arc::<(Mutex<bool>, Condvar)>::default());
    let sink = Gated { inner, gate: gate.clone() };
    let window = Duration::from_millis(500);
    let pipeline = in_dir(dir.path()).loss_window(window).sink(sink).open().unwrap();
    let topic = pipeline.topic("t").unwrap();
    send_all(&topic, "before", 100);
    pipeline.flush(SOON).unwrap();

    set(&gate, true);
    let tracked = topic.record(b"tracked-0").send_tracked().unwrap();
    until(SOON, "the flusher counts as stalled", || pipeline.stats().states.flusher_stalled);
    // Sends go on until the lane is full, and what is accepted is counted without the flusher.
    let (taken, full) = send(&topic, "during", 3_000);
    assert!(taken > 0 && full > 0, "{taken} taken, {full} refused");
    let stats = pipeline.stats();
    assert!(stats.books.balanced(), "{:?}", stats.books);
    assert_eq!(stats.books.accepted, 101 + taken as u64, "{:?}", stats.books);
    assert_eq!(stats.unsafe_records, 1 + taken as u64);
    assert!(stats.states.exposed && stats.oldest_unsafe_ms >= 500, "{stats:?}");
    assert_eq!(
        tracked.wait(Level::Delivered, Duration::from_millis(20)),
        Err(ReceiptError::StillPending)
    );
    pipeline.flush(Duration::from_millis(20)).unwrap_err();

    set(&gate, false);
    tracked.wait(Level::Delivered, SOON).unwrap();
    pipeline.flush(SOON).unwrap();
    until(SOON, "nothing stands", || {
        let states = pipeline.stats().states;
        !states.flusher_stalled && !states.exposed
    });
    let report = pipeline.close(SOON).unwrap();
    assert!(report.complete && report.stats.books.balanced());
    assert_eq!(report.stats.books.accepted, 101 + taken as u64);
    assert_eq!((arrived(&seen, "before"), arrived(&seen, "tracked")), (100, 1));
    say(&format!("a flusher that stood: {taken} taken meanwhile and counted, {full} refused"));
}

#[test]
fn close_gives_up_on_a_flusher_that_stands_and_a_later_close_tells_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let inner = MemorySink::new();
    let (seen, gate) = (inner.handle(), Arc::<(Mutex<bool>, Condvar)>::default());
    let sink = Gated { inner, gate: gate.clone() };
    let pipeline = in_dir(dir.path()).sink(sink).open().unwrap();
    let topic = pipeline.topic("t").unwrap();
    set(&gate, true);
    send_all(&topic, "a", 1);
    until(SOON, "the flusher counts as stalled", || pipeline.stats().states.flusher_stalled);
    let (taken, _) = send(&topic, "a", 300);
    let error = pipeline.close(Duration::from_millis(100)).unwrap_err();
    let books = error.stats.books;
    assert!(error.why.contains("done nothing"), "{error}");
    assert!(books.balanced() && error.stats.states.flusher_stalled, "{error:?}");
    assert_eq!(books.accepted, 1 + taken as u64);
    assert_eq!(books.in_lanes + books.in_flight, books.accepted, "{books:?}");
    assert_eq!(topic.send(b"x"), Err(SendError::Closed));

    set(&gate, false);
    let report = pipeline.close(SOON).unwrap();
    let books = report.stats.books;
    assert!(report.complete && books.balanced(), "{books:?}");
    drop(pipeline);
    let delivered_then = seen.delivered() as u64;
    let sink = MemorySink::new();
    let seen = sink.handle();
    let pipeline = in_dir(dir.path()).sink(sink).open().unwrap();
    let stats = pipeline.close(SOON).unwrap().stats;
    assert_eq!(stats.books.recovered, books.in_wal);
    assert_eq!(delivered_then + seen.delivered() as u64, books.accepted);
    say(&format!(
        "close gave up on a flusher that stood with {} records; it ended later: {delivered_then} \
         delivered, {} in the log",
        books.accepted, books.in_wal
    ));
}

/// 0: run, 1: stop, 2: stopped.
static STOP: AtomicI32 = AtomicI32::new(0);

/// Holds the thread that it interrupts until it may go on.
extern "C" fn hold(_: libc::c_int) {
    STOP.store(2, Ordering::SeqCst);
    while STOP.load(Ordering::SeqCst) == 2 {
        // SAFETY: takes nothing; yields the CPU.
        unsafe { libc::sched_yield() };
    }
}

#[test]
fn a_thread_stopped_in_the_middle_of_a_send_holds_up_its_own_record_only() {
    const STOPS: usize = 60;
    let dir = tempfile::tempdir().unwrap();
    let sink = MemorySink::new();
    let seen = sink.handle();
    let pipeline = in_dir(dir.path()).sink(sink).open().unwrap();
    let topic = pipeline.topic("t").unwrap();
    // SAFETY: the handler calls nothing but `sched_yield`, and the signal is nobody else's.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = hold as *const () as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()), 0);
    }
    let (tell, told) = channel();
    let end = AtomicBool::new(false);
    let mut holes = 0;
    let sent = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            // SAFETY: takes nothing.
            tell.send((pipeline.register_thread(), unsafe { libc::pthread_self() })).unwrap();
            let value = [b'v'; 900];
            let mut sent = 0u64;
            while !end.load(Ordering::Relaxed) {
                sent += u64::from(topic.send(&value).is_ok());
            }
            sent
        });
        let (lane, thread) = told.recv_timeout(SOON).expect("the sender begins");
        for n in 0..STOPS {
            STOP.store(1, Ordering::SeqCst);
            // SAFETY: the thread runs until `end`.
            assert_eq!(unsafe { libc::pthread_kill(thread, libc::SIGUSR1) }, 0);
            until(SOON, "the sender is stopped", || STOP.load(Ordering::SeqCst) == 2);
            let marker = format!("marker{n}");
            on_lane(&pipeline, |it| it != lane, || send_all(&topic, &marker, 1));
            let mut has_come = false;
            let mut has_arrived = |timeout| {
                let began = Instant::now();
                loop {
                    // Taken out: the sender's own are many, and large.
                    let is_marker = |v: &[u8]| v.starts_with(marker.as_bytes());
                    has_come |=
                        seen.take().iter().any(|r| r.value.as_deref().is_some_and(is_marker));
                    if has_come || began.elapsed() >= timeout {
                        return has_come;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            };
            // Wherever it stands, the flusher goes on.
            assert!(has_arrived(SOON), "the other lane's record, while the sender stands");
            pipeline.flush(SOON).expect("the others' records leave");
            holes += usize::from(pipeline.stats().books.in_lanes > 0);
            STOP.store(0, Ordering::SeqCst);
        }
        end.store(true, Ordering::Relaxed);
        sender.join().unwrap()
    });
    let report = pipeline.close(SOON).unwrap();
    let books = report.stats.books;
    assert!(report.complete && books.balanced(), "{books:?}");
    assert_eq!(books.accepted, sent + STOPS as u64);
    say(&format!(
        "{STOPS} stops of a sending thread: {holes} between reserve and publish; the other lane's \
         record arrived each time meanwhile; {sent} records, each counted"
    ));
}
