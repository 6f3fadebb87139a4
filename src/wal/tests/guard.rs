//! Tests of the SIGBUS guard: real signals, on files that are cut under their mapping.

use super::*;
use crate::wal::cursor::{Cursor, Found};
use crate::wal::format::{HEADER_AREA_BYTES, HeaderVerdict};
use crate::wal::guard::watched;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

fn storage(home: &tempfile::TempDir) -> FileStorage {
    FileStorage::open(&home.path().join("log")).expect("opens")
}

#[test]
fn a_store_into_a_page_that_is_gone_is_an_error_and_the_process_lives() {
    let home = tempfile::tempdir().expect("a directory");
    let storage = storage(&home);
    let mut file = storage.create("a.wal", 1 << 20).expect("made");
    let mut control = storage.create("b.wal", 1 << 20).expect("made");
    assert!(watched() >= 2);
    for f in [&mut file, &mut control] {
        f.populate(0, 1 << 20).expect("present");
        f.write_at(512 << 10, &[7; 100]).expect("stored");
        f.commit_at(520 << 10, 7).expect("stored");
        f.file().sync().expect("synced");
    }
    file.file().truncate(4096).expect("cut");
    let error = file.write_at((512 << 10) - 8, &[7; 100]).expect_err("the page is gone");
    assert!(error.to_string().contains("SIGBUS"), "{error}");
    // The rest of the mapping goes nowhere, and says so.
    assert!(file.write_at(1000 << 10, &[7; 100]).is_err());
    assert!(file.commit_at(520 << 10, 7).is_err());
    assert!(file.file().sync().is_err(), "a sync of bytes that never reached the file");
    control.write_at((512 << 10) - 8, &[7; 100]).expect("stored");
    control.commit_at(520 << 10, 7).expect("stored");
    control.file().sync().expect("synced");
}

#[test]
fn an_append_into_a_page_that_is_gone_goes_to_the_next_segment_when_tried_again() {
    let home = tempfile::tempdir().expect("a directory");
    let topics = Arc::new(TopicTable::default());
    let options = WalOptions {
        segment_bytes: 1 << 20,
        segments_ahead_max: 1,
        record_bytes_max: 256,
        ..WalOptions::default()
    };
    let (wal, keeper, recovery) =
        Wal::open(Arc::new(storage(&home)), topics.clone(), options, salts(7), 1_000)
            .expect("opens");
    let mut log = Open { wal, keeper, recovery, topics };
    append(&mut log, 1).expect("appended");
    let first = log.wal.active_main().map(|a| a.header.number).expect("a segment");
    let path = home.path().join("log").join(segment_name(SegmentKind::Main, first));
    // Its pages are there: nothing but the signal can tell.
    std::fs::OpenOptions::new().write(true).open(path).and_then(|f| f.set_len(0)).expect("cut");
    assert!(matches!(append(&mut log, 2), Err(AppendError::Storage(_))));
    let mut steps = vec![log.keeper.step(0, None)];
    let at = append(&mut log, 2).expect("in the next segment");
    assert!(at.segment > first);
    steps.push(log.keeper.step(u64::MAX, None));
    let failed = |s: &StepReport| s.error.is_some_and(|(what, _)| what == "sync");
    assert!(steps.iter().any(failed), "{steps:?}");
    assert!(log.wal.stats().sync_failures > 0);
    assert_eq!(log.wal.read_at(at).expect("read").lsn, Lsn(2));
}

/// Runs one of the tests below in a process of its own, which it may end as it likes.
fn alone(test: &str) -> ExitStatus {
    Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", &format!("wal::tests::guard::{test}"), "--nocapture", "--test-threads=1"])
        .env("FOREBAY_TEST_ALONE", "1")
        .output()
        .expect("a child")
        .status
}

fn is_alone() -> bool {
    std::env::var_os("FOREBAY_TEST_ALONE").is_some()
}

/// With our guard installed, a SIGBUS in a mapping that isn't ours.
fn foreign_fault() {
    let home = tempfile::tempdir().expect("a directory");
    let _ours = storage(&home).create("a.wal", 4096).expect("made");
    assert!(watched() > 0);
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(home.path().join("theirs"))
        .expect("made");
    file.set_len(4096).expect("long enough");
    let map = memmap2::MmapOptions::new().len(4096).map_raw(&file).expect("mapped");
    file.set_len(0).expect("cut");
    // SAFETY: within the mapping, which is this function's alone.
    unsafe { map.as_mut_ptr().write_volatile(1) };
    drop(map);
}

#[test]
fn a_signal_about_somebody_elses_mapping_still_ends_the_process() {
    if is_alone() {
        foreign_fault();
        return;
    }
    let status = alone("a_signal_about_somebody_elses_mapping_still_ends_the_process");
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

#[test]
fn a_signal_that_somebody_sent_still_ends_the_process() {
    if is_alone() {
        // Rust's own handler, which is there before ours, would let the first one pass.
        // SAFETY: no pointers; the process is a test's child.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        let home = tempfile::tempdir().expect("a directory");
        let _ours = storage(&home).create("a.wal", 4096).expect("made");
        // SAFETY: no pointers; the process is a test's child.
        unsafe { libc::raise(libc::SIGBUS) };
        return;
    }
    let status = alone("a_signal_that_somebody_sent_still_ends_the_process");
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

extern "C" fn theirs(_: i32) {
    // SAFETY: ends the process at once; safe in a signal handler.
    unsafe { libc::_exit(42) };
}

#[test]
fn a_handler_that_was_there_before_is_called() {
    if is_alone() {
        // SAFETY: a handler that is safe in a signal handler.
        unsafe { libc::signal(libc::SIGBUS, theirs as extern "C" fn(i32) as usize) };
        foreign_fault();
        return;
    }
    let status = alone("a_handler_that_was_there_before_is_called");
    assert_eq!(status.code(), Some(42), "{status}");
}

#[test]
fn without_the_guard_the_signal_ends_the_process() {
    if is_alone() {
        let home = tempfile::tempdir().expect("a directory");
        let storage = storage(&home).with_sigbus_guard(false);
        let mut file = storage.create("a.wal", 1 << 20).expect("made");
        assert_eq!(watched(), 0);
        file.file().truncate(0).expect("cut");
        let _ = file.write_at(0, &[7; 100]);
        return;
    }
    let status = alone("without_the_guard_the_signal_ends_the_process");
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

/// The frames' LSNs and the bad ranges that a walk finds; after `pause` frames `then` is done.
fn walk(path: &std::path::Path, windows: bool, pause: usize, then: impl FnOnce()) -> Vec<String> {
    let dir = path.parent().expect("a directory");
    let storage = FileStorage::open_read_only(dir).expect("opens").with_sigbus_guard(true);
    let name = path.file_name().and_then(|n| n.to_str()).expect("a name");
    let file = storage.open(name).expect("opens");
    let mut area = vec![0; HEADER_AREA_BYTES as usize];
    file.read_at(0, &mut area).expect("read");
    let HeaderVerdict::Good(header) = SegmentHeader::judge(&area) else { panic!("no header") };
    let len = file.len().expect("its length");
    let mut cursor = Cursor::new(file, header, len, Arc::new(TopicTable::default()), 64 << 10);
    if windows {
        cursor.look_through_windows();
    }
    let mut found = Vec::new();
    let mut then = Some(then);
    loop {
        let one = cursor.next().expect("it can be read");
        found.push(match one {
            Found::Frame(at, header) => format!("{at}: {} {:?}", header.lsn, header.kind),
            Found::Bad { from, to, lost, .. } => format!("{from}-{to}: {lost:?}"),
            Found::End { from, .. } => {
                found.push(format!("end {from}"));
                return found;
            }
        });
        if found.len() == pause
            && let Some(then) = then.take()
        {
            assert!(!windows || watched() > 0, "no window is guarded");
            then();
        }
    }
}

#[test]
fn a_walk_through_windows_finds_what_reads_find_also_where_the_file_is_cut_under_it() {
    let home = tempfile::tempdir().expect("a directory");
    let topics = Arc::new(TopicTable::default());
    let options =
        WalOptions { segment_bytes: 8 << 20, record_bytes_max: 256, ..WalOptions::default() };
    let (wal, keeper, recovery) =
        Wal::open(Arc::new(storage(&home)), topics.clone(), options, salts(7), 1_000)
            .expect("opens");
    let mut log = Open { wal, keeper, recovery, topics };
    for n in 1..=50_000 {
        append_helped(&mut log, n);
    }
    log.wal.seal();
    log.keeper.sync_now().expect("synced");
    let first = log.wal.segments[0].header.number;
    drop(log);
    let path = home.path().join("log").join(segment_name(SegmentKind::Main, first));

    let sound = walk(&path, false, 0, || ());
    assert!(sound.len() > 10_000, "{}", sound.len());
    assert_eq!(walk(&path, true, 0, || ()), sound);
    // A flipped bit in the middle.
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).expect("opens");
    let at = file.metadata().expect("its length").len() / 3;
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, at).expect("read");
    std::os::unix::fs::FileExt::write_all_at(&file, &[byte[0] ^ 4], at).expect("written");
    let flipped = walk(&path, false, 0, || ());
    assert_ne!(flipped, sound);
    assert_eq!(walk(&path, true, 0, || ()), flipped);
    // Cut in the middle of the first window, whose pages are there.
    let cut = walk(&path, true, 10, || file.set_len(1 << 20).expect("cut"));
    let whole = cut.len() - 1;
    assert!(whole > 1_000, "{whole}");
    assert_eq!(cut[..whole], flipped[..whole]);
    assert_eq!(walk(&path, false, 0, || ())[..whole], cut[..whole]);
    println!("{} things in it, {whole} before the cut", sound.len());
}
