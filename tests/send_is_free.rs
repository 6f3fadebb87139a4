//! A send costs the calling thread nothing that another could make it wait for: over 1,000,000
//! sends from a registered thread on a lane of its own no allocation, no page fault and no system
//! call, while all is well and in an outage.
//!
//! Allocations are counted by the global allocator, for the sending thread only. Page faults come
//! from `getrusage`, likewise. For system calls the test starts itself as a child process, whose
//! sending thread puts itself under a seccomp filter that kills the process at any call. Each of
//! the three has a control that does what is forbidden and is caught.

use forebay::{MemorySink, Pipeline, SendError, Topic};
use forebay_testkit::process::page_faults;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::{black_box, spin_loop};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const SENDS: u64 = 1_000_000;
const WARM_UP: u64 = 100;
/// Most records that are sent ahead of what is delivered.
const AHEAD: u64 = 5_000;
/// What the child reads its part from.
const PART: &str = "FOREBAY_SEND_IS_FREE";

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator; counting touches a thread-local
// that needs neither memory nor a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // A free is no more welcome than an allocation.
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[derive(Clone, Copy, PartialEq, Debug)]
enum State {
    Healthy,
    Outage,
}

/// What the sending thread has.
struct Sender<'a> {
    topic: &'a Topic,
    state: State,
    /// Records that the sink has delivered.
    delivered: &'a AtomicU64,
}

/// Sends of every kind in turn, each until it is taken; returns how often one was refused. While
/// all is well it stays near what is delivered: flat out, it would fill the lane and the log.
fn send(sender: &Sender<'_>, from: u64, to: u64) -> u64 {
    let value = [7u8; 256];
    let (topic, tracked) = (sender.topic, sender.state == State::Healthy);
    let mut refused = 0;
    for n in from..to {
        while tracked && n >= sender.delivered.load(Ordering::Acquire) + AHEAD {
            spin_loop();
        }
        let key = n.to_le_bytes();
        loop {
            let record = topic.record(&value);
            let done = match n % 6 {
                0 => topic.send(&value),
                1 => record.key(&key).send(),
                2 => record.key(&key).header("a", b"1").header("b", &key).send(),
                3 => topic.send_with(256, |room| {
                    room.fill(n as u8);
                    200
                }),
                4 => topic.tombstone(&key),
                _ if tracked => record.send_tracked().map(drop),
                _ => record.partition(3).timestamp(n as i64).send(),
            };
            match done {
                Ok(()) => break,
                Err(SendError::Full | SendError::NoReceipt) => refused += 1,
                Err(e) => panic!("{e}"),
            }
            spin_loop();
        }
    }
    refused
}

/// Runs `body` on a thread of its own with a topic of a fresh pipeline in `state`, and keeps the
/// sink empty meanwhile. Returns what it returned, and how many records went to the log.
fn on_a_thread<T: Send>(state: State, body: impl FnOnce(&Sender<'_>) -> T + Send) -> (T, u64) {
    let dir = tempfile::tempdir().expect("a directory");
    let sink = MemorySink::new();
    let seen = sink.handle();
    let pipeline = Pipeline::builder()
        .wal_dir(dir.path().join("wal"))
        .wal_max_bytes(2 << 30)
        .lanes(4)
        .flush_interval(Duration::from_millis(1))
        .loss_window(match state {
            State::Healthy => Duration::from_secs(10),
            State::Outage => Duration::from_millis(100),
        })
        .sink(sink)
        .open()
        .expect("the pipeline opens");
    let topic = pipeline.topic("t").expect("a topic");
    if state == State::Outage {
        seen.refuse();
    }
    let delivered = AtomicU64::new(0);
    let result = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            pipeline.register_thread();
            body(&Sender { topic: &topic, state, delivered: &delivered })
        });
        while !sender.is_finished() {
            delivered.fetch_add(seen.take().len() as u64, Ordering::Release);
            std::thread::sleep(Duration::from_millis(1));
        }
        sender.join().expect("the sender")
    });
    let spilled = pipeline.stats().books.spilled;
    seen.resume();
    (result, spilled)
}

/// Allocations and page faults of `body`.
fn count(body: impl FnOnce()) -> (u64, u64) {
    let (allocations, faults) = (ALLOCATIONS.get(), page_faults());
    body();
    (ALLOCATIONS.get() - allocations, page_faults() - faults)
}

#[test]
fn a_million_sends_allocate_nothing_and_fault_on_nothing() {
    for state in [State::Healthy, State::Outage] {
        // The kernel moves pages when it likes (compaction, huge pages), which is a fault that
        // nobody here made. What a send makes, it makes on every fresh pipeline.
        let mut faults_least = u64::MAX;
        for _ in 0..10 {
            let ((allocations, faults, refused), spilled) = on_a_thread(state, |sender| {
                send(sender, 0, WARM_UP);
                let mut refused = 0;
                let (allocations, faults) =
                    count(|| refused = send(sender, WARM_UP, WARM_UP + SENDS));
                (allocations, faults, refused)
            });
            println!(
                "{state:?}: {SENDS} sends: {allocations} allocations, {faults} page faults, \
                 {refused} refusals, {spilled} went to the log"
            );
            assert_eq!(allocations, 0);
            assert_eq!(spilled > 0, state == State::Outage, "the state that was asked for");
            faults_least = faults_least.min(faults);
            if faults == 0 {
                break;
            }
        }
        assert_eq!(faults_least, 0, "{state:?}");
    }
}

#[test]
fn an_allocation_and_a_fault_are_counted() {
    let pages = 64;
    let ((allocations, faults), _) = on_a_thread(State::Healthy, |sender| {
        let mut map = memmap2::MmapMut::map_anon(pages * 4096).expect("memory");
        map.advise(memmap2::Advice::NoHugePage).expect("advice");
        send(sender, 0, WARM_UP);
        count(|| {
            send(sender, WARM_UP, WARM_UP + 1_000);
            drop(black_box(Box::new(7)));
            map.chunks_mut(4096).for_each(|page| page[0] = 1);
        })
    });
    println!("control: {allocations} allocations and frees, {faults} page faults");
    assert_eq!(allocations, 2);
    assert!(faults >= pages as u64);
}

/// From here on the calling thread's only system call is its process's death.
fn forbid_system_calls() {
    let mut filter = [libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_KILL_PROCESS,
    }];
    let program = libc::sock_fprog { len: 1, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its filter live until the calls return; the kernel copies them.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        // Glibc has no wrapper. Without flags the filter is the calling thread's alone.
        let done = libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program);
        assert_eq!(done, 0, "seccomp: {}", std::io::Error::last_os_error());
    }
}

/// The child's part: does nothing in a run of the whole suite.
#[test]
fn the_child_sends_under_the_filter() {
    let Ok(part) = std::env::var(PART) else { return };
    let state = if part.starts_with("outage") { State::Outage } else { State::Healthy };
    let control = part.ends_with("control");
    let refused = AtomicU64::new(u64::MAX);
    on_a_thread::<()>(state, |sender| {
        // The sender can't even end under the filter: another thread ends the process.
        std::thread::scope::<_, ()>(|scope| {
            scope.spawn(|| {
                while refused.load(Ordering::Acquire) == u64::MAX {
                    std::thread::sleep(Duration::from_millis(2));
                }
                println!("{SENDS} sends, {} refusals", refused.load(Ordering::Acquire));
                // SAFETY: ends the process at once, which is what is wanted.
                unsafe { libc::_exit(0) }
            });
            send(sender, 0, WARM_UP);
            forbid_system_calls();
            let n = send(sender, WARM_UP, WARM_UP + SENDS);
            if control {
                // SAFETY: takes nothing and touches nothing.
                unsafe { libc::syscall(libc::SYS_getppid) };
            }
            refused.store(n, Ordering::Release);
            loop {
                spin_loop();
            }
        })
    });
}

fn child(part: &str) -> (ExitStatus, String) {
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "the_child_sends_under_the_filter", "--nocapture"])
        .env(PART, part)
        .output()
        .expect("the child runs");
    (output.status, String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_million_sends_make_no_system_call() {
    for part in ["healthy", "outage"] {
        let (status, said) = child(part);
        assert_eq!(status.code(), Some(0), "{part}: {status}, {said}");
        let line = said.lines().find(|l| l.contains(" sends, ")).expect("the child says so");
        println!("{part}: {line}, 0 system calls");
    }
}

#[test]
fn a_system_call_ends_the_child() {
    let (status, said) = child("healthy-control");
    println!("control: {status}");
    assert_eq!(status.signal(), Some(libc::SIGSYS), "{said}");
    assert!(!said.contains(" sends, "));
}
