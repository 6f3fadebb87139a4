//! Verification beside a writer: what is half written for a moment is no damage, what stays is.

use super::*;
use crate::wal::checkpoint::{MANIFEST, SLOTS};
use crate::wal::{Verification, verify};
use std::collections::HashMap;
use std::io;
use std::sync::Mutex;

/// Changes what a read of a file got: its name, where, how many reads of that place came before.
type Meddle = fn(&str, u64, u64, &mut [u8]);

/// Readers of this storage meet what isn't in it.
struct Torn {
    inner: MemoryStorage,
    meddle: Meddle,
    reads: Arc<Mutex<HashMap<(String, u64), u64>>>,
}

struct TornFile {
    name: String,
    inner: Arc<dyn StorageFile>,
    meddle: Meddle,
    reads: Arc<Mutex<HashMap<(String, u64), u64>>>,
}

impl StorageFile for TornFile {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read_at(offset, into)?;
        let mut reads = self.reads.lock().unwrap();
        let before = reads.entry((self.name.clone(), offset)).or_default();
        (self.meddle)(&self.name, offset, *before, &mut into[..read]);
        *before += 1;
        Ok(read)
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn truncate(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

impl Storage for Torn {
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.inner.list(dir)
    }

    fn create(&self, _: &str, _: u64) -> io::Result<Box<dyn AppendFile>> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let inner = Storage::open(&self.inner, name)?;
        let reads = self.reads.clone();
        Ok(Arc::new(TornFile { name: name.to_owned(), inner, meddle: self.meddle, reads }))
    }

    fn open_or_create(&self, _: &str) -> io::Result<Arc<dyn StorageFile>> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn unlink(&self, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync_dir(&self) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.inner.free_bytes()
    }
}

/// Ten records in one open segment, one checkpoint.
fn storage() -> MemoryStorage {
    let storage = MemoryStorage::new();
    let options = WalOptions { segment_bytes: 64 << 10, ..small() };
    let mut log = open(&storage, options);
    for n in 1..=10 {
        append_helped(&mut log, n);
    }
    let data = CheckpointData { next_lsn: Lsn(11), accepted: 10, ..CheckpointData::default() };
    log.keeper.store_checkpoint(&data).unwrap();
    log.keeper.sync_now().unwrap();
    let slots = SLOTS.map(|name| storage.contents(name).is_some());
    assert_eq!(slots, [true, false]);
    storage
}

fn look(meddle: Meddle) -> Verification {
    let torn = Torn { inner: storage(), meddle, reads: Arc::default() };
    let found = verify(&torn, &mut |_| {}).unwrap();
    assert!(torn.reads.lock().unwrap().values().any(|n| *n > 1), "no second look");
    found
}

fn is_open_segment(name: &str) -> bool {
    name.ends_with("1.wal")
}

/// A look that tears the n-th record of the open segment, another one each time.
fn elsewhere_each_time(name: &str, offset: u64, before: u64, bytes: &mut [u8]) {
    if is_open_segment(name) && offset > 0 {
        bytes[40 + 90 * before as usize] ^= 1;
    }
}

fn always_there(name: &str, offset: u64, _: u64, bytes: &mut [u8]) {
    if is_open_segment(name) && offset > 0 {
        bytes[40] ^= 1;
    }
}

fn header_once(name: &str, offset: u64, before: u64, bytes: &mut [u8]) {
    if is_open_segment(name) && offset == 0 && before == 0 {
        bytes[16..].fill(0);
    }
}

fn header_always(name: &str, offset: u64, _: u64, bytes: &mut [u8]) {
    header_once(name, offset, 0, bytes);
}

fn small_files_once(name: &str, _: u64, before: u64, bytes: &mut [u8]) {
    if (name == MANIFEST || name == SLOTS[0]) && before == 0 {
        bytes[40..].fill(0);
    }
}

fn small_files_always(name: &str, offset: u64, _: u64, bytes: &mut [u8]) {
    small_files_once(name, offset, 0, bytes);
}

#[test]
fn what_is_torn_for_a_moment_is_no_damage_and_what_stays_is() {
    let cases: [(&str, Meddle, Meddle, &[&str]); 3] = [
        ("frames", elsewhere_each_time, always_there, &["bad"]),
        ("header", header_once, header_always, &["header"]),
        ("small files", small_files_once, small_files_always, &["checkpoint", "manifest"]),
    ];
    for (what, for_a_moment, always, verdicts) in cases {
        let found = look(for_a_moment);
        assert!(found.is_sound(), "{what}: {found:?}");
        let found = look(always);
        let met: Vec<_> = found.findings.iter().map(|f| f.verdict).collect();
        assert_eq!(met, verdicts, "{what}: {found:?}");
    }
}
