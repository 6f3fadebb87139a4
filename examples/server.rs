//! A server with a graceful stop: worker threads send, SIGTERM ends the intake of requests, and
//! the pipeline gets a bounded time to hand over what it has.
//!
//! Runs over the sink in memory for one second, or until SIGTERM; with `FOREBAY_BROKERS` it
//! sends to the topic `forebay-server` of a real cluster, which must have that topic.
#![allow(clippy::print_stdout)]

use forebay::{MemorySink, Pipeline, SendError, Topic};
use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const WORKERS: u32 = 4;
const RUN_FOR: Duration = Duration::from_secs(1);

/// Between the requests of one worker.
const PAUSE: Duration = Duration::from_micros(200);

fn main() -> Result<(), Box<dyn Error>> {
    // Before any thread starts, so that each has it blocked and `wait_for` alone gets it.
    let sigterm = block(libc::SIGTERM);

    let dir = std::env::temp_dir().join(format!("forebay-server-{}", std::process::id()));
    let builder = Pipeline::builder().wal_dir(&dir);
    let builder = match std::env::var("FOREBAY_BROKERS") {
        Ok(brokers) => builder.brokers(brokers),
        Err(_) => builder.sink(MemorySink::new()),
    };
    let pipeline = builder.open()?;
    let events = pipeline.topic("forebay-server")?;

    let stop = AtomicBool::new(false);
    let full = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (pipeline, events, stop, full) = (&pipeline, events.clone(), &stop, &full);
            scope.spawn(move || {
                // Not even the first request pays for the thread's first send.
                pipeline.register_thread();
                serve(worker, &events, stop, full);
            });
        }
        let why = if wait_for(&sigterm, RUN_FOR) { "SIGTERM" } else { "its second is over" };
        println!("stopping: {why}");
        stop.store(true, Ordering::Relaxed);
    });

    // No worker is left. Kafka gets five seconds; what it doesn't take is in the log, and the
    // next start delivers it before anything new.
    let report = pipeline.close(Duration::from_secs(5))?;
    let books = report.stats.books;
    println!(
        "{} accepted: {} delivered, {} in the log, {} set aside, {} dropped; {} refused, {} of \
         them for want of room; balanced: {}; closed in {:?}",
        books.accepted,
        books.delivered,
        books.in_wal,
        books.set_aside,
        books.dropped,
        books.refused,
        full.load(Ordering::Relaxed),
        books.balanced(),
        report.took
    );
    if books.in_wal == 0 {
        std::fs::remove_dir_all(&dir)?;
    }
    Ok(())
}

/// One worker: each request leaves an event, whatever Kafka does.
fn serve(worker: u32, events: &Topic, stop: &AtomicBool, full: &AtomicU64) {
    let user = format!("user-{worker}");
    let mut request = 0u64;
    while !stop.load(Ordering::Relaxed) {
        request += 1;
        let event = format!("request {request}");
        match events.record(event.as_bytes()).key(user.as_bytes()).send() {
            Ok(()) => {}
            // The request is answered all the same; the pipeline has counted it as well.
            Err(SendError::Full) => {
                full.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                println!("worker {worker} stops: {error}");
                return;
            }
        }
        std::thread::sleep(PAUSE);
    }
}

/// Blocks a signal in this thread and in those it starts; returns the set that holds it.
fn block(signal: libc::c_int) -> libc::sigset_t {
    // SAFETY: the set is initialised by sigemptyset before it is read, and every pointer is to
    // a local value or null where null is allowed.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        set
    }
}

/// Waits for a signal of the set, at most `timeout`; true when one came.
fn wait_for(set: &libc::sigset_t, timeout: Duration) -> bool {
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: `set` was initialised by `block`, `timeout` lives on the stack, and a null info
    // pointer is allowed.
    unsafe { libc::sigtimedwait(set, std::ptr::null_mut(), &timeout) > 0 }
}
