//! What reading a log costs, beside what this machine's memory and processor give.
//!
//! GB/s of the files' bytes; all rows look at the same files, interleaved round after round, from
//! the page cache. **Floors**: `read`, read(2) of 256 KiB at a time into a warm buffer; `map`,
//! windows of 2 MiB mapped, made present and unmapped, nothing loaded; `load`, every word of what
//! is mapped and present; `crc of frames` and `crc of 64 KiB`: crc32fast over the same, in pieces.
//! **The log**: `verify`, sealed segments; `open`, the same segments with their locators gone, so
//! that each is walked, less the opening of an empty directory; `replay`, the reader that
//! a pipeline sends a backlog with.

use crate::common::{Runs, log_dir};
use crate::{Appender, CHUNK_BYTES, NEVER, open, rehearsed, replay, scan, seconds};
use forebay::wal::AppendError;
use memmap2::{Advice, Mmap, MmapOptions};
use std::fs::File;
use std::hint::black_box;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const ROWS: [&str; 8] =
    ["read", "map", "load", "crc of frames", "crc of 64 KiB", "verify", "open", "replay"];
const WINDOW_BYTES: usize = 2 << 20;
/// Where the two copies of a segment's seal locator stand.
const LOCATOR_AT: [u64; 2] = [256, 768];
const LOCATOR_BYTES: usize = 40;

/// Fills a log, with locators or without.
fn fill(dir: &Path, records: u64, value: &[u8], locators: bool) {
    let mut log = open(dir, NEVER);
    let mut appender = Appender::new(&log, value);
    let end = appender.next + records;
    while appender.next < end {
        match appender.append(&mut log.wal) {
            Ok(()) => {}
            Err(AppendError::NotReady) => assert_eq!(log.keeper.step(0, None).error, None),
            Err(e) => panic!("{e}"),
        }
    }
    log.wal.seal();
    log.keeper.sync_now().expect("it can be synced");
    drop(log);
    remove_prepared(dir);
    for path in segments(dir).into_iter().filter(|_| !locators) {
        let file = File::options().write(true).open(&path).expect("the file");
        for at in LOCATOR_AT {
            file.write_all_at(&[0; LOCATOR_BYTES], at).expect("written");
        }
    }
}

/// They are zeroes, and would be looked through as well.
fn remove_prepared(dir: &Path) {
    for path in segments(dir) {
        let mut magic = [0; 8];
        let file = File::open(&path).expect("the file");
        file.read_exact_at(&mut magic, 0).expect("read");
        if magic == [0; 8] {
            std::fs::remove_file(path).expect("removed");
        }
    }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let names = std::fs::read_dir(dir).expect("the directory").map(|e| e.expect("a name").path());
    names.filter(|p| p.extension().is_some_and(|e| e == "wal")).collect()
}

fn read(files: &[PathBuf]) {
    let mut chunk = vec![0u8; CHUNK_BYTES];
    for file in files {
        let mut file = File::open(file).expect("the file");
        while file.read(&mut chunk).expect("it can be read") > 0 {
            black_box(&chunk);
        }
    }
}

fn map_windows(files: &[PathBuf]) {
    for file in files {
        let file = File::open(file).expect("the file");
        let len = file.metadata().expect("its length").len() as usize;
        for at in (0..len).step_by(WINDOW_BYTES) {
            let len = WINDOW_BYTES.min(len - at);
            let map = MmapOptions::new().offset(at as u64).len(len).map_raw_read_only(&file);
            map.and_then(|m| m.advise(Advice::PopulateRead)).expect("it can be mapped");
        }
    }
}

fn maps(files: &[PathBuf]) -> Vec<Mmap> {
    let map = |file: &PathBuf| {
        let file = File::open(file).expect("the file");
        // SAFETY: nobody else has this directory, and nothing writes to it meanwhile.
        let map = unsafe { MmapOptions::new().populate().map(&file) };
        map.expect("it can be mapped")
    };
    files.iter().map(map).collect()
}

fn load(maps: &[Mmap]) {
    for map in maps {
        let words = map.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().expect("8 bytes")));
        black_box(words.fold(0, u64::wrapping_add));
    }
}

fn crc(maps: &[Mmap], piece: usize) {
    for map in maps {
        for piece in map.chunks(piece) {
            black_box(crc32fast::hash(piece));
        }
    }
}

pub fn scans(bytes: usize, megabytes: u64, rounds: u64) {
    let value = vec![7u8; bytes];
    let frame = bytes + 56;
    let records = megabytes * 1_000_000 / frame as u64;
    let (sealed_home, sealed) = log_dir();
    fill(&sealed, records, &value, true);
    let (open_home, unsealed) = log_dir();
    fill(&unsealed, records, &value, false);
    let files = segments(&sealed);
    let len = |f: &PathBuf| std::fs::metadata(f).expect("its length").len();
    let total: u64 = files.iter().map(len).sum();
    let mut rates: [Runs; ROWS.len()] = Default::default();
    for _ in 0..rounds {
        let was_read = seconds(|| read(&files));
        let mapped = seconds(|| map_windows(&files));
        let present = maps(&files);
        let loaded = seconds(|| load(&present));
        let summed = seconds(|| crc(&present, frame));
        let in_large = seconds(|| crc(&present, 64 << 10));
        drop(present);
        let verified = scan(&sealed, records, total);
        let mut log = None;
        let (empty_home, empty) = log_dir();
        let prepared = rehearsed(&empty, || seconds(|| drop(open(&empty, NEVER))));
        drop(empty_home);
        remove_prepared(&unsealed);
        let opened = seconds(|| log = Some(open(&unsealed, NEVER))) - prepared;
        let replayed = replay(&log.expect("it is open"), records);
        let all = [was_read, mapped, loaded, summed, in_large, verified, opened, replayed];
        for (row, took) in all.iter().enumerate() {
            rates[row].add(total as f64 / took / 1e9);
        }
    }
    println!("\n{bytes} B, {records} records, {} segments: GB/s of the files", files.len());
    for (row, name) in ROWS.iter().enumerate() {
        println!("{name:<18} {:>22}", rates[row].show(2));
    }
    drop((sealed_home, open_home));
}
