//! Where the time of sustained appends goes, beside a plain writer and beside mappings alone.
//!
//! GB/s of what is put into the files; the rows of a round follow each other, each rehearsed.
//! `write+sync`: write(2) of 256 KiB at a time to one file; `mapped+sync`: no log, only what a
//! log in mapped files can't do without: pieces of a frame's length copied into files of 64 MiB
//! that another thread has allocated, mapped and made present, unmapped and handed to the disk
//! when they are full; `sustained`: the log. All three sync every 500 ms and at the end.

use crate::common::{Runs, log_dir};
use crate::{SYNC_NS, rehearsed, seconds, sustained, write};
use memmap2::{Advice, MmapMut};
use std::collections::VecDeque;
use std::fs::File;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const FILE_BYTES: usize = 64 << 20;
/// Files that wait to be filled, as many as the log's keeper prepares at most.
const AHEAD: usize = 4;
const PRESENT_STEP_BYTES: usize = 2 << 20;

#[derive(Default)]
struct Shared {
    ready: Mutex<VecDeque<(File, MmapMut)>>,
    full: Mutex<Vec<(File, MmapMut)>>,
    /// The file that is being filled.
    current: Mutex<Option<File>>,
    done: AtomicBool,
}

fn prepare(path: &Path) -> (File, MmapMut) {
    let file = File::options().read(true).write(true).create_new(true).open(path).expect("a file");
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, FILE_BYTES as u64)
        .expect("room on the disk");
    // SAFETY: the file was just made here, and nobody else knows of it.
    let map = unsafe { MmapMut::map_mut(&file) }.expect("it can be mapped");
    let _ = map.advise(Advice::HugePage);
    for at in (0..FILE_BYTES).step_by(PRESENT_STEP_BYTES) {
        map.advise_range(Advice::PopulateWrite, at, PRESENT_STEP_BYTES).expect("present");
    }
    (file, map)
}

/// The keeper's part.
fn keep(dir: &Path, shared: &Shared) {
    let (mut made, mut unsynced, mut synced) = (0, Vec::<File>::new(), Instant::now());
    loop {
        let done = shared.done.load(Ordering::Acquire);
        if !done && shared.ready.lock().expect("alive").len() < AHEAD {
            let file = prepare(&dir.join(format!("{made}")));
            made += 1;
            shared.ready.lock().expect("alive").push_back(file);
        }
        for (file, map) in std::mem::take(&mut *shared.full.lock().expect("alive")) {
            drop(map);
            start_writeback(&file);
            unsynced.push(file);
        }
        if done || synced.elapsed().as_nanos() as u64 >= SYNC_NS {
            synced = Instant::now();
            let current = shared.current.lock().expect("alive").as_ref().map(File::try_clone);
            for file in unsynced.drain(..).chain(current.and_then(Result::ok)) {
                file.sync_data().expect("it can be synced");
            }
        }
        if done {
            return;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}

fn start_writeback(file: &File) {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open, and the call takes no pointers.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

fn mapped(dir: &Path, pieces: u64, piece: usize) -> f64 {
    std::fs::create_dir(dir).expect("a directory");
    let (from, shared) = (vec![7u8; piece], Shared::default());
    seconds(|| {
        std::thread::scope(|scope| {
            scope.spawn(|| keep(dir, &shared));
            let mut left = pieces;
            while left > 0 {
                let Some((file, mut map)) = shared.ready.lock().expect("alive").pop_front() else {
                    std::thread::sleep(Duration::from_micros(50));
                    continue;
                };
                *shared.current.lock().expect("alive") = file.try_clone().ok();
                let here = left.min((FILE_BYTES / piece) as u64);
                for to in map.chunks_exact_mut(piece).take(here as usize) {
                    to.copy_from_slice(std::hint::black_box(&from));
                }
                left -= here;
                *shared.current.lock().expect("alive") = None;
                shared.full.lock().expect("alive").push((file, map));
            }
            shared.done.store(true, Ordering::Release);
        });
    })
}

pub fn sustained_floors(bytes: usize, megabytes: u64, rounds: u64) {
    let value = vec![7u8; bytes];
    let frame = bytes + 56;
    let records = megabytes * 1_000_000 / frame as u64;
    let total = records * frame as u64;
    let mut rates: [Runs; 3] = Default::default();
    let mut ratios: [Runs; 3] = Default::default();
    let mut waits = 0;
    for _ in 0..rounds {
        let (home, dir) = log_dir();
        let plain = home.path().join("plain");
        let written = rehearsed(&plain, || write(&plain, total));
        std::fs::remove_dir_all(&plain).expect("removed");
        let mapped = rehearsed(&plain, || mapped(&plain, records, frame));
        std::fs::remove_dir_all(&plain).expect("removed");
        let (appended, waited) = rehearsed(&dir, || sustained(&dir, records, &value));
        waits += waited;
        for (row, took) in [written, mapped, appended].into_iter().enumerate() {
            rates[row].add(total as f64 / took / 1e9);
            ratios[row].add(written / took);
        }
    }
    println!("\n{bytes} B, {records} records: GB/s of the files, and the ratio to write+sync");
    for (row, name) in ["write+sync", "mapped+sync", "sustained"].iter().enumerate() {
        println!("{name:<18} {:>22}   {}", rates[row].show(2), ratios[row].show(2));
    }
    println!("no segment ready {waits} times");
}
