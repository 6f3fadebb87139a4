//! What the log does, beside the floors of this machine in the same run.
//!
//! Bytes are those of the records' values, but in `scan`, where they are the files'; a frame has
//! some more. Everything is interleaved:
//! round after round, and a table's rows can be compared with each other only.
//!
//! **Floors.** `memcpy` into memory that is faulted in; `crc` of each value, in cache;
//! `anonymous append`: both, into 64 MiB of faulted memory; `write+sync`: write(2) of 256 KiB at
//! a time to a new file, an fdatasync every 500 ms and one at the end; `read`: read(2) of
//! 256 KiB at a time of what was written, from the page cache.
//! **The log.** `burst`: appends into segments that are ready, no sync; `sustained`: flat out,
//! while a keeper's thread prepares segments and syncs every 500 ms, the last sync included;
//! `scan`: what `forebay wal verify` does: every frame walked, CRCs checked, counts compared;
//! `replay`: the reader that a pipeline sends a backlog with.
//!
//! Then the time of one append at a stated rate, as a flusher makes them (a batch every
//! millisecond; the call that makes a batch's pages present is part of the append before which
//! it stands), and how often the next segment was not ready. Then opening and replaying a
//! backlog: time, and memory.
//!
//! Alone are run, with the words `scan` and `sustained`: what reading the log costs beside more
//! floors, and what sustained appends do beside mappings without a log.
//!
//! `FOREBAY_BENCH_WAL_MB` is the length of each row (default 1024; `--quick` is 96),
//! `FOREBAY_BENCH_DIR` where it is made, `FOREBAY_BENCH_ROUNDS` how often (3),
//! `FOREBAY_BENCH_BACKLOG_GB` the backlog (default 0.5; 0 for none), which alone is run with the
//! word `backlog`.

#![allow(missing_docs, clippy::print_stdout)]

mod common;
#[path = "wal/scan.rs"]
mod scan_floors;
#[path = "wal/sustained.rs"]
mod sustained_floors;

use common::{Runs, env, histogram, is_quick, log_dir, tick, words};
use forebay::record::{ANY_PARTITION, Lsn, RecordView, Shape, TopicId};
use forebay::topics::TopicTable;
use forebay::wal::{
    AppendError, FileStorage, ReadItem, Recovery, Wal, WalKeeper, WalOptions, random_salts,
};
use hdrhistogram::Histogram;
use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const CHUNK_BYTES: usize = 256 << 10;
const SYNC_NS: u64 = 500_000_000;
const NEVER: u64 = u64::MAX;
/// Bytes that a flusher makes present at a time.
const BATCH_BYTES: u64 = 64 << 10;
const ROWS: [&str; 9] = [
    "memcpy",
    "crc",
    "anonymous append",
    "burst",
    "write+sync",
    "sustained",
    "read",
    "scan",
    "replay",
];
/// The floor of each row, by its place in `ROWS`.
const FLOOR: [Option<usize>; 9] =
    [None, None, None, Some(2), None, Some(4), None, Some(6), Some(6)];

struct Log {
    wal: Wal,
    keeper: WalKeeper,
    recovery: Recovery,
    topic: TopicId,
}

fn open(dir: &Path, sync_interval_ns: u64) -> Log {
    let storage = Arc::new(FileStorage::open(dir).expect("the directory"));
    let topics = Arc::new(TopicTable::default());
    let topic = topics.intern("bench");
    let options =
        WalOptions { wal_bytes_max: Some(40 << 30), sync_interval_ns, ..WalOptions::default() };
    let (wal, keeper, recovery) =
        Wal::open(storage, topics, options, random_salts(), 0).expect("it opens");
    Log { wal, keeper, recovery, topic }
}

/// A keeper on its thread, as a pipeline has one: a turn every 10 ms, or when it is woken.
struct Kept {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Kept {
    fn start(mut keeper: WalKeeper) -> Kept {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let start = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                let step = keeper.step(start.elapsed().as_nanos() as u64, None);
                assert_eq!(step.error, None);
                std::thread::park_timeout(Duration::from_millis(10));
            }
            keeper.sync_now().expect("the last sync");
        });
        Kept { stop, thread }
    }

    fn wake(&self) {
        self.thread.thread().unpark();
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wake();
        self.thread.join().expect("the keeper");
    }
}

/// Appends as a flusher does: a batch announces itself.
struct Appender<'a> {
    record: RecordView<'a>,
    frame_bytes: u64,
    next: u64,
    announced: u64,
}

impl<'a> Appender<'a> {
    fn new(log: &Log, value: &'a [u8]) -> Self {
        let record = RecordView {
            topic: log.topic,
            partition: ANY_PARTITION,
            timestamp_ms: 1_700_000_000_000,
            shape: Shape { headers_len: 0, key_len: None, value_len: Some(value.len() as u32) },
            body: value,
        };
        let frame_bytes = Wal::frame_bytes(&record);
        Appender { record, frame_bytes, next: log.recovery.next_lsn.0, announced: 0 }
    }

    fn append(&mut self, wal: &mut Wal) -> Result<(), AppendError> {
        if self.announced < self.frame_bytes {
            self.announced = BATCH_BYTES.max(self.frame_bytes);
            wal.prepare_batch(self.announced)?;
        }
        wal.append(Lsn(self.next), &self.record)?;
        self.announced -= self.frame_bytes;
        self.next += 1;
        Ok(())
    }
}

fn seconds(part: impl FnOnce()) -> f64 {
    let start = Instant::now();
    part();
    start.elapsed().as_secs_f64()
}

/// The second of two runs in a row, the first one's files removed between them. Memory that a
/// virtual machine has given back to its host costs ten times as much at the first touch; the
/// second run finds what the first one, which took pages in the same way, has just let go.
fn rehearsed<T>(dir: &Path, mut run: impl FnMut() -> T) -> T {
    run();
    std::fs::remove_dir_all(dir).expect("removed");
    run()
}

/// Into 64 MiB again and again: what a store costs without a file behind it.
fn anonymous(records: u64, value: &[u8], copy: bool, sum: bool) -> f64 {
    let mut to = vec![1u8; if copy { 64 << 20 } else { 0 }];
    seconds(|| {
        let (mut at, mut sums) = (0, 0);
        for _ in 0..records {
            let value = black_box(value);
            if sum {
                sums ^= crc32fast::hash(value);
            }
            if copy {
                if at + value.len() > to.len() {
                    at = 0;
                }
                to[at..at + value.len()].copy_from_slice(value);
                at += value.len();
            }
        }
        black_box((&to, sums));
    })
}

fn write(dir: &Path, bytes: u64) -> f64 {
    std::fs::create_dir(dir).expect("a directory");
    let mut file = File::create(dir.join("file")).expect("a file");
    let chunk = vec![7u8; CHUNK_BYTES];
    let mut synced = Instant::now();
    seconds(|| {
        for _ in 0..bytes / CHUNK_BYTES as u64 {
            file.write_all(&chunk).expect("room on the disk");
            if synced.elapsed().as_nanos() as u64 >= SYNC_NS {
                file.sync_data().expect("it can be synced");
                synced = Instant::now();
            }
        }
        file.sync_data().expect("it can be synced");
    })
}

fn read(dir: &Path) -> f64 {
    let mut file = File::open(dir.join("file")).expect("the file");
    let mut chunk = vec![0u8; CHUNK_BYTES];
    seconds(|| {
        while file.read(&mut chunk).expect("it can be read") > 0 {
            black_box(&chunk);
        }
    })
}

/// Segment after segment; the keeper's turns between them are not counted.
fn burst(dir: &Path, records: u64, value: &[u8]) -> f64 {
    let mut log = open(dir, NEVER);
    let mut appender = Appender::new(&log, value);
    let end = appender.next + records;
    let mut took = 0.0;
    while appender.next < end {
        took += seconds(|| {
            while appender.next < end {
                match appender.append(&mut log.wal) {
                    Ok(()) => {}
                    Err(AppendError::NotReady) => break,
                    Err(e) => panic!("{e}"),
                }
            }
        });
        assert_eq!(log.keeper.step(0, None).error, None);
    }
    took
}

/// What it took with the last sync, and how often no segment was ready.
fn sustained(dir: &Path, records: u64, value: &[u8]) -> (f64, u64) {
    let log = open(dir, SYNC_NS);
    let mut appender = Appender::new(&log, value);
    let end = appender.next + records;
    let (mut wal, kept) = (log.wal, Kept::start(log.keeper));
    let mut waits = 0;
    let took = seconds(|| {
        while appender.next < end {
            match appender.append(&mut wal) {
                Ok(()) => {}
                Err(AppendError::NotReady) => {
                    waits += 1;
                    kept.wake();
                    while wal.append(Lsn(appender.next), &appender.record).is_err() {
                        std::thread::sleep(Duration::from_micros(50));
                    }
                    appender.next += 1;
                }
                Err(e) => panic!("{e}"),
            }
        }
        kept.end();
    });
    (took, waits)
}

/// The time for `bytes` of the files: they hold heads as well, and the prepared ones are zeroes.
fn scan(dir: &Path, records: u64, bytes: u64) -> f64 {
    let (mut found, mut walked) = (0, 0);
    let took = seconds(|| {
        let verified = forebay::verify::verify(dir, |_| ()).expect("it can be verified");
        (found, walked) = (verified.records, verified.bytes);
    });
    assert_eq!(found, records, "records found by the scan");
    took * bytes as f64 / walked as f64
}

fn replay(log: &Log, records: u64) -> f64 {
    assert_eq!(log.recovery.records, records, "records recovered");
    let mut reader = log.wal.reader(log.recovery.backlog.expect("a backlog"));
    let mut found = 0;
    let took = seconds(|| {
        loop {
            match log.wal.read_next(&mut reader) {
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
    took
}

fn throughput(bytes: usize, megabytes: u64, rounds: u64) {
    let records = (megabytes * 1_000_000 / bytes as u64).max(1);
    let total = records * bytes as u64;
    let value = vec![7u8; bytes];
    let mut rates: [Runs; ROWS.len()] = Default::default();
    let mut ratios: [Runs; ROWS.len()] = Default::default();
    let mut waits = 0;
    for _ in 0..rounds {
        let (home, dir) = log_dir();
        let copied = anonymous(records, &value, true, false);
        let summed = anonymous(records, &value, false, true);
        let both = anonymous(records, &value, true, true);
        let burst = rehearsed(&dir, || burst(&dir, records, &value));
        std::fs::remove_dir_all(&dir).expect("removed");
        let plain = home.path().join("plain");
        let synced = rehearsed(&plain, || write(&plain, total));
        let (appended, waited) = rehearsed(&dir, || sustained(&dir, records, &value));
        waits += waited;
        let was_read = read(&plain);
        let scanned = scan(&dir, records, total);
        let replayed = replay(&open(&dir, NEVER), records);
        let all = [copied, summed, both, burst, synced, appended, was_read, scanned, replayed];
        for (row, took) in all.iter().enumerate() {
            rates[row].add(total as f64 / took / 1e9);
            if let Some(floor) = FLOOR[row] {
                ratios[row].add(all[floor] / took);
            }
        }
    }
    println!("\n{bytes} B, {records} records: GB/s, and the ratio to the floor");
    for (row, name) in ROWS.iter().enumerate() {
        let ratio = match FLOOR[row] {
            Some(floor) => format!("{} of {}", ratios[row].show(2), ROWS[floor]),
            None => String::new(),
        };
        println!("{name:<18} {:>22}   {ratio}", rates[row].show(2));
    }
    println!("sustained: no segment ready {waits} times");
}

fn latency(bytes: usize, per_s: u64, sync_ns: u64, count: u64) {
    let (_home, dir) = log_dir();
    let value = vec![7u8; bytes];
    let log = open(&dir, sync_ns);
    let mut appender = Appender::new(&log, &value);
    let (mut wal, kept) = (log.wal, Kept::start(log.keeper));
    let mut times: Histogram<u64> = histogram();
    let mut null: Histogram<u64> = histogram();
    let mut late = 0;
    let start = Instant::now();
    tick(start, per_s, count, |_, _| {
        let begin = Instant::now();
        while let Err(e) = appender.append(&mut wal) {
            assert_eq!(e, AppendError::NotReady);
            late += 1;
            kept.wake();
            std::thread::sleep(Duration::from_micros(50));
        }
        let took = begin.elapsed();
        times.saturating_record(took.as_nanos() as u64);
        null.saturating_record(Instant::now().elapsed().as_nanos() as u64);
    });
    let rate = count as f64 / start.elapsed().as_secs_f64();
    let waits = wal.stats().segment_waits;
    kept.end();
    let show = |h: &Histogram<u64>| {
        let at = |q| h.value_at_quantile(q);
        format!("{}/{}/{}/{}", at(0.5), at(0.99), at(0.999), h.max())
    };
    let syncs = if sync_ns == NEVER { "no syncs" } else { "syncs every 500 ms" };
    println!(
        "{bytes:>5} B, {rate:.0}/s, {syncs:<18}: {} (timer {}), no segment ready {waits} times, {late} tries",
        show(&times),
        show(&null),
    );
}

/// Kilobytes of a line of /proc/self/status, as MiB.
fn memory_mib(line: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let found = status.lines().find_map(|l| l.strip_prefix(line));
    let kib: Option<f64> = found.and_then(|l| l.split_whitespace().next()?.parse().ok());
    kib.unwrap_or(0.0) / 1024.0
}

fn backlog(gigabytes: f64) {
    let (_home, dir) = log_dir();
    let value = vec![7u8; 1024];
    let records = (gigabytes * 1e9 / 1024.0) as u64;
    let (took, _) = sustained(&dir, records, &value);
    println!("\nbacklog of {gigabytes} GB, {records} records of 1 KiB, filled in {took:.1} s");
    let before = memory_mib("VmRSS:");
    common::reset_memory_peak();
    let start = Instant::now();
    let log = open(&dir, NEVER);
    let opened = start.elapsed().as_secs_f64() * 1e3;
    let (resident, anonymous) = (memory_mib("VmRSS:"), memory_mib("RssAnon:"));
    println!(
        "open {opened:.1} ms (last segment not sealed); resident {resident:.0} MiB \
         (before {before:.0}), of it not from files {anonymous:.1} MiB; segments {}",
        log.wal.stats().segments
    );
    let replayed = replay(&log, records);
    println!(
        "replay {replayed:.1} s, {:.2} GB/s; resident {:.0} MiB, peak {} MiB",
        gigabytes / replayed,
        memory_mib("VmRSS:"),
        common::memory_peak_mib()
    );
}

fn main() {
    let quick = is_quick();
    let gigabytes = std::env::var("FOREBAY_BENCH_BACKLOG_GB").ok().and_then(|g| g.parse().ok());
    let gigabytes = gigabytes.unwrap_or(if quick { 0.1 } else { 0.5 });
    if words().iter().any(|w| w == "backlog") {
        return backlog(gigabytes);
    }
    let megabytes = env("FOREBAY_BENCH_WAL_MB").unwrap_or(if quick { 96 } else { 1024 });
    let rounds = env("FOREBAY_BENCH_ROUNDS").unwrap_or(if quick { 1 } else { 3 });
    println!("{megabytes} MB of values each, {rounds} rounds interleaved: median (least-most)");
    if words().iter().any(|w| w == "latency") {
        return latencies(quick);
    }
    if words().iter().any(|w| w == "scan") {
        return [256, 1024].iter().for_each(|b| scan_floors::scans(*b, megabytes, rounds));
    }
    if words().iter().any(|w| w == "sustained") {
        let floors = sustained_floors::sustained_floors;
        return [256, 1024].iter().for_each(|b| floors(*b, megabytes, rounds));
    }
    for bytes in [256, 1024] {
        throughput(bytes, megabytes, rounds);
    }
    latencies(quick);
    if gigabytes > 0.0 {
        backlog(gigabytes);
    }
}

fn latencies(quick: bool) {
    println!("\none append, p50/p99/p99.9/max ns");
    let seconds = if quick { 1 } else { 4 };
    for (bytes, per_s) in [(256, 1_000_000), (1024, 200_000)] {
        for sync_ns in [NEVER, SYNC_NS] {
            latency(bytes, per_s, sync_ns, per_s * seconds);
        }
    }
}
