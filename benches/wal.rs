//! What the log does in GB/s, beside memcpy and plain sequential writes and reads of the same
//! bytes, interleaved in the same run.
//!
//! Bytes are those of the records' values; a frame has some more. Rows that write: `memcpy`
//! into memory that is faulted in, `write` (write(2) of 256 KiB at a time to a new file, no
//! sync), `write+sync` (the same with an fdatasync every 64 MiB and at the end), `append` (a frame
//! a record into segments that are ready), `append+wait` (the same, with the time that it waited
//! for segments: a keeper's thread prepares them and syncs every 500 ms, as in a pipeline, and
//! flat out it is what bounds the log). Rows that read what was appended, from the page cache: `read`
//! (read(2) of 256 KiB at a time), `scan` (the walk over every frame that recovery and `forebay
//! wal` make, CRCs checked), `replay` (the reader that a pipeline sends a backlog with).
//! `reopen` is the time to open that directory again; its last segment is not sealed, as after a
//! crash.
//!
//! `FOREBAY_BENCH_WAL_MB` is the length of each (default 512; `--quick` is 48),
//! `FOREBAY_BENCH_DIR` where it is made, `FOREBAY_BENCH_ROUNDS` how often (3).

#![allow(missing_docs, clippy::print_stdout)]

mod common;

use common::{Runs, env, is_quick, log_dir};
use forebay::record::{ANY_PARTITION, Lsn, RecordView, Shape};
use forebay::topics::TopicTable;
use forebay::wal::{
    AppendError, FileStorage, FrameKind, FrameWalk, Inspected, ReadItem, Recovery, Wal, WalKeeper,
    WalOptions, inspect, random_salts,
};
use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const CHUNK_BYTES: usize = 256 << 10;
const SYNC_CHUNKS: u64 = 256;
const ROWS: [&str; 8] =
    ["memcpy", "write", "write+sync", "append", "append+wait", "read", "scan", "replay"];

fn open(dir: &Path) -> (Wal, WalKeeper, Recovery, Arc<TopicTable>) {
    let storage = Arc::new(FileStorage::open(dir).expect("the directory"));
    let topics = Arc::new(TopicTable::default());
    let options = WalOptions { wal_bytes_max: Some(8 << 30), ..WalOptions::default() };
    let (wal, keeper, recovery) =
        Wal::open(storage, topics.clone(), options, random_salts(), 0).expect("it opens");
    (wal, keeper, recovery, topics)
}

fn seconds(part: impl FnOnce()) -> f64 {
    let start = Instant::now();
    part();
    start.elapsed().as_secs_f64()
}

fn copy(records: u64, value: &[u8]) -> f64 {
    let mut to = vec![1u8; 64 << 20];
    seconds(|| {
        let mut at = 0;
        for _ in 0..records {
            if at + value.len() > to.len() {
                at = 0;
            }
            to[at..at + value.len()].copy_from_slice(black_box(value));
            at += value.len();
        }
        black_box(&to);
    })
}

fn write(dir: &Path, bytes: u64, sync: bool) -> f64 {
    let mut file = File::create(dir.join("plain")).expect("a file");
    let chunk = vec![7u8; CHUNK_BYTES];
    seconds(|| {
        for n in 1..=bytes / CHUNK_BYTES as u64 {
            file.write_all(&chunk).expect("room on the disk");
            if sync && n.is_multiple_of(SYNC_CHUNKS) {
                file.sync_data().expect("it can be synced");
            }
        }
        if sync {
            file.sync_data().expect("it can be synced");
        }
    })
}

fn read(dir: &Path) -> f64 {
    let mut file = File::open(dir.join("plain")).expect("the file");
    let mut chunk = vec![0u8; CHUNK_BYTES];
    seconds(|| {
        while file.read(&mut chunk).expect("it can be read") > 0 {
            black_box(&chunk);
        }
    })
}

/// What it took, and how much of that was waiting for segments.
fn append(dir: &Path, records: u64, value: &[u8]) -> (f64, f64) {
    let (mut wal, mut keeper, recovery, topics) = open(dir);
    let stop = Arc::new(AtomicBool::new(false));
    let kept = {
        let stop = stop.clone();
        std::thread::spawn(move || {
            let start = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                let step = keeper.step(start.elapsed().as_nanos() as u64, None);
                assert_eq!(step.error, None);
                if !step.prepared {
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
        })
    };
    let record = RecordView {
        topic: topics.intern("bench"),
        partition: ANY_PARTITION,
        timestamp_ms: 1_700_000_000_000,
        shape: Shape { headers_len: 0, key_len: None, value_len: Some(value.len() as u32) },
        body: value,
    };
    let mut waited = Duration::ZERO;
    let took = seconds(|| {
        for n in 0..records {
            // As a flusher's batch does: what would be a signal becomes an error.
            if n % 1_024 == 0 {
                wal.prepare_batch(1_024 * Wal::frame_bytes(&record)).expect("room on the disk");
            }
            let lsn = Lsn(recovery.next_lsn.0 + n);
            while let Err(e) = wal.append(lsn, &record) {
                assert_eq!(e, AppendError::NotReady);
                let since = Instant::now();
                std::thread::sleep(Duration::from_micros(100));
                waited += since.elapsed();
            }
        }
    });
    stop.store(true, Ordering::Relaxed);
    kept.join().expect("the keeper");
    (took, waited.as_secs_f64())
}

fn scan(dir: &Path, records: u64) -> f64 {
    let storage = FileStorage::open_read_only(dir).expect("the directory");
    let mut found = 0;
    let took = seconds(|| {
        for segment in inspect(&storage).expect("it can be listed") {
            let Some(mut walk) = FrameWalk::new(&storage, &segment).expect("it opens") else {
                continue;
            };
            while let Some(item) = walk.next_frame().expect("it can be read") {
                if let Inspected::Frame { header, body, .. } = item {
                    black_box(body);
                    found += u64::from(header.kind == FrameKind::Record);
                }
            }
        }
    });
    assert_eq!(found, records, "records found by the scan");
    took
}

/// What opening took, and what reading everything took.
fn replay(dir: &Path, records: u64) -> (f64, f64) {
    let mut opened = None;
    let open_s = seconds(|| opened = Some(open(dir)));
    let (wal, _keeper, recovery, _topics) = opened.expect("it was opened");
    assert_eq!(recovery.records, records, "records recovered");
    let mut reader = wal.reader(recovery.backlog.expect("a backlog"));
    let mut found = 0;
    let took = seconds(|| {
        loop {
            match wal.read_next(&mut reader) {
                ReadItem::Record(record) => {
                    black_box(record.record.body);
                    found += 1;
                }
                ReadItem::CaughtUp => break,
                other => panic!("{other:?}"),
            }
        }
    });
    assert_eq!(found, records, "records replayed");
    (open_s, took)
}

fn main() {
    let megabytes = env("FOREBAY_BENCH_WAL_MB").unwrap_or(if is_quick() { 48 } else { 512 });
    let rounds = env("FOREBAY_BENCH_ROUNDS").unwrap_or(if is_quick() { 1 } else { 3 });
    println!("{megabytes} MB of values each, {rounds} rounds interleaved: median (least-most)");
    for bytes in [256usize, 1024] {
        let records = (megabytes * 1_000_000 / bytes as u64).max(1);
        let total = records * bytes as u64;
        let value = vec![7u8; bytes];
        let mut rates: [Runs; ROWS.len()] = Default::default();
        let mut opens = Runs::default();
        for _ in 0..rounds {
            let (home, dir) = log_dir();
            let copied = copy(records, &value);
            let synced = write(home.path(), total, true);
            let written = write(home.path(), total, false);
            let (appended, waited) = append(&dir, records, &value);
            let was_read = read(home.path());
            let scanned = scan(&dir, records);
            let (opened, replayed) = replay(&dir, records);
            let all =
                [copied, written, synced, appended - waited, appended, was_read, scanned, replayed];
            for (rate, took) in rates.iter_mut().zip(all) {
                rate.add(total as f64 / took / 1e9);
            }
            opens.add(opened * 1e3);
        }
        println!("\n{bytes} B, {records} records");
        for (name, rate) in ROWS.iter().zip(&rates) {
            println!("{name:<12} {:>22} GB/s", rate.show(2));
        }
        println!("reopen       {:>22} ms", opens.show(1));
    }
}
