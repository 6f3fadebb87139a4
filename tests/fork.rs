//! Fork beside a running pipeline: the child can't send and says so, the parent goes on without a
//! page fault for its arena, and closing tells everything it took.
//!
//! A fork marks every private page of the parent copy-on-write: the next write to each is a fault.
//! The lanes' bytes and slots are kept out of the child, so their pages stay the parent's alone. What
//! a send writes besides (its lane's words, the stack) is a few pages: those faults are counted here,
//! beside a control arena that is inherited.

use forebay::{MemorySink, Pipeline, SendError};
use forebay_testkit::process::page_faults;
use forebay_testkit::say;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
const PAGE: usize = 4096;
const LANE_BYTES: usize = 8 << 20;
const SLOTS: usize = 4096;
const VALUE: usize = 2032;

/// Forks a child that runs `body` and ends with what it returns, once the pipe's other end is
/// closed. Until then it holds every page that it inherited.
struct Child {
    pid: libc::pid_t,
    go_on: libc::c_int,
}

impl Child {
    fn new(body: impl FnOnce() -> i32) -> Child {
        let mut ends = [0; 2];
        // SAFETY: `ends` has room for the two descriptors.
        assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
        // SAFETY: the child touches no lock of another thread: it sends, which takes none, reads
        // from its pipe and ends with `_exit`.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork");
        if pid == 0 {
            let failed = body();
            let mut byte = 0u8;
            // SAFETY: descriptors and buffer are valid; `_exit` ends the process.
            unsafe {
                libc::close(ends[1]);
                libc::read(ends[0], (&raw mut byte).cast(), 1);
                libc::_exit(failed);
            }
        }
        // SAFETY: the descriptor is ours.
        unsafe { libc::close(ends[0]) };
        Child { pid, go_on: ends[1] }
    }

    /// Lets the child end; its exit code.
    fn end(self) -> i32 {
        let mut status = 0;
        // SAFETY: the descriptor is ours, `status` is valid, and the child is ours to wait for.
        unsafe {
            libc::close(self.go_on);
            assert_eq!(libc::waitpid(self.pid, &mut status, 0), self.pid);
        }
        assert!(libc::WIFEXITED(status), "the child died: {status:#x}");
        libc::WEXITSTATUS(status)
    }
}

#[test]
fn the_child_s_sends_say_forked_and_the_parent_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let sink = MemorySink::new();
    let seen = sink.handle();
    let pipeline =
        Pipeline::builder().wal_dir(dir.path().join("wal")).lanes(2).sink(sink).open().unwrap();
    let topic = pipeline.topic("t").unwrap();
    for _ in 0..100 {
        topic.send(b"before").unwrap();
    }
    let child = Child::new(|| {
        let is_refused = [
            topic.send(b"child") == Err(SendError::Forked),
            topic.record(b"child").key(b"k").header("h", b"v").send() == Err(SendError::Forked),
            topic.send_with(8, |_| 0) == Err(SendError::Forked),
            topic.tombstone(b"k") == Err(SendError::Forked),
            pipeline.close(Duration::ZERO).is_err_and(|e| e.why.contains("forked")),
        ];
        is_refused.iter().enumerate().map(|(bit, ok)| i32::from(!ok) << bit).sum()
    });
    for _ in 0..100 {
        topic.send(b"after").unwrap();
    }
    assert_eq!(child.end(), 0, "a bit for each call that went wrong");
    let report = pipeline.close(SOON).unwrap();
    let books = report.stats.books;
    assert!(report.complete && books.balanced(), "{books:?}");
    assert_eq!((books.accepted, books.delivered, books.refused), (200, 200, 0));
    assert!(seen.records().iter().all(|r| r.value.as_deref() != Some(b"child")));
    say("fork: 5 calls of the child refused, 200 records of the parent delivered");
}

#[test]
fn a_fork_costs_the_parent_s_sends_no_fault_in_the_arena() {
    // An arena as it would be without the advice: every page is one fault after a fork.
    let control = LANE_BYTES / PAGE / 4;
    let mut inherited = memmap2::MmapMut::map_anon(control * PAGE).unwrap();
    inherited.advise(memmap2::Advice::NoHugePage).unwrap();
    let touch = |map: &mut memmap2::MmapMut| map.chunks_mut(PAGE).for_each(|page| page[0] += 1);
    touch(&mut inherited);

    let sink = MemorySink::new();
    let _refusing = {
        let handle = sink.handle();
        handle.refuse();
        handle
    };
    // At most once, and the sink takes nothing: a lane's worth of sends fills the arena from one
    // end to the other, and the flusher writes nothing meanwhile.
    let pipeline = Pipeline::builder()
        .at_most_once()
        .lanes(1)
        .lane_bytes(LANE_BYTES)
        .lane_slots(SLOTS)
        .record_bytes_max(4096)
        .flush_interval(Duration::from_secs(60))
        .flush_records(1_000_000)
        .flush_bytes(1 << 30)
        .sink(sink)
        .open()
        .unwrap();
    let topic = pipeline.topic("t").unwrap();
    pipeline.register_thread();
    let value = [7u8; VALUE];
    let quarter = SLOTS / 4;
    let send = |count: usize| (0..count).for_each(|_| topic.send(&value).unwrap());
    // The first quarter twice around would do as well: code, stack and words are warm.
    send(16);
    let before = page_faults();
    send(quarter);
    let healthy = page_faults() - before;

    let child = Child::new(|| 0);
    let before = page_faults();
    touch(&mut inherited);
    let control_faults = page_faults() - before;
    let before = page_faults();
    send(quarter);
    let forked = page_faults() - before;
    let before = page_faults();
    send(16);
    let again = page_faults() - before;
    assert_eq!(child.end(), 0);
    let arena_pages = quarter * VALUE.next_multiple_of(16) / PAGE;
    say(&format!(
        "fork: {quarter} sends over {arena_pages} pages of the arena: {healthy} faults before, \
         {forked} after the fork ({again} for 16 more); control: {control_faults} for {control} \
         inherited pages"
    ));
    assert!(control_faults >= control as u64, "the fork made the control's pages copy-on-write");
    // The lane's words, the stack and what else the process touches; not the slots' pages either.
    let slot_pages = (quarter * 64 / PAGE) as u64;
    assert!(
        forked < slot_pages,
        "{forked} faults for {arena_pages} pages and {slot_pages} of slots"
    );
    drop(topic);
    drop(pipeline);
}
