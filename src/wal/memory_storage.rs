//! Owns the simulated storage: deterministic, in memory, with crashes, power cuts and faults.
//!
//! Every call that changes something is an *op* and is counted. The fault model: a process
//! crash keeps everything written; a power cut keeps what was synced, and of the rest any
//! subset of 512-byte sectors, any subset of unsynced names, and either length of a file.

use super::storage::{AppendFile, Storage, StorageFile};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

const SECTOR_BYTES: usize = 512;

/// The calls of the seam, for choosing which ones fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StorageOp {
    /// `create`, or `open_or_create` where nothing was.
    Create,
    /// `write_at`.
    Write,
    /// `commit_at`.
    Commit,
    /// `populate`; not counted, since it changes nothing.
    Populate,
    /// `sync` of a file.
    Sync,
    /// `truncate`.
    Truncate,
    /// `rename`.
    Rename,
    /// `unlink`.
    Unlink,
    /// `sync_dir`.
    SyncDir,
    /// `read_at`, `len`, `open`, `list`; not counted.
    Read,
}

/// Decides whether a call fails, given the number of ops so far. It fails before anything of
/// it is done.
pub type FaultPlan = Box<dyn FnMut(u64, StorageOp) -> Option<io::ErrorKind> + Send>;

/// A directory in memory. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryStorage {
    disk: Arc<Mutex<Disk>>,
}

#[derive(Default)]
struct Disk {
    files: Vec<MemoryFile>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending: Vec<NameOp>,
    ops: u64,
    crash_at: Option<u64>,
    crashed: bool,
    faults: Option<FaultPlan>,
    capacity_bytes: Option<u64>,
    /// File, from, to: reads that touch it fail.
    unreadable: Vec<(usize, u64, u64)>,
}

#[derive(Clone, Default)]
struct MemoryFile {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// A bit for each sector of `live` that differs, or may differ, from `durable`.
    dirty: Vec<u64>,
}

#[derive(Clone)]
enum NameOp {
    Create(String, usize),
    Rename(String, String),
    Unlink(String),
}

impl NameOp {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            NameOp::Create(name, file) => {
                names.insert(name.clone(), *file);
            }
            NameOp::Rename(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            NameOp::Unlink(name) => {
                names.remove(name);
            }
        }
    }
}

impl MemoryFile {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = at + bytes.len();
        if self.live.len() < end {
            self.live.resize(end, 0);
        }
        self.live[at..end].copy_from_slice(bytes);
        for sector in at / SECTOR_BYTES..=(end - 1) / SECTOR_BYTES {
            if self.dirty.len() <= sector / 64 {
                self.dirty.resize(sector / 64 + 1, 0);
            }
            self.dirty[sector / 64] |= 1 << (sector % 64);
        }
    }

    /// Copies the dirty sectors that `keep` chooses into `durable`.
    fn settle(&mut self, mut keep: impl FnMut() -> bool) {
        for (word, bits) in self.dirty.iter().enumerate() {
            let mut bits = *bits;
            while bits != 0 {
                let from = (word * 64 + bits.trailing_zeros() as usize) * SECTOR_BYTES;
                let to = (from + SECTOR_BYTES).min(self.durable.len()).min(self.live.len());
                if from < to && keep() {
                    self.durable[from..to].copy_from_slice(&self.live[from..to]);
                }
                bits &= bits - 1;
            }
        }
        self.dirty.clear();
    }
}

impl Disk {
    fn step(&mut self, op: StorageOp) -> io::Result<()> {
        if self.crashed {
            return Err(io::Error::other("crashed"));
        }
        if let Some(faults) = &mut self.faults
            && let Some(kind) = faults(self.ops, op)
        {
            return Err(kind.into());
        }
        if !matches!(op, StorageOp::Read | StorageOp::Populate) {
            if self.crash_at == Some(self.ops) {
                self.crashed = true;
                return Err(io::Error::other("crashed"));
            }
            self.ops += 1;
        }
        Ok(())
    }

    fn used(&self) -> u64 {
        self.names.values().map(|f| self.files[*f].live.len() as u64).sum()
    }

    fn room(&self, more: u64) -> io::Result<()> {
        match self.capacity_bytes {
            Some(all) if self.used() + more > all => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    fn add(&mut self, name: &str, len: u64) -> usize {
        let file = self.files.len();
        self.files.push(MemoryFile { live: vec![0; len as usize], ..MemoryFile::default() });
        self.names.insert(name.to_string(), file);
        self.pending.push(NameOp::Create(name.to_string(), file));
        file
    }

    /// The write that a crash interrupts leaves its first half.
    fn write(&mut self, file: usize, at: u64, bytes: &[u8]) -> io::Result<()> {
        let crashed_before = self.crashed;
        let step = self.step(StorageOp::Write);
        let done = match &step {
            Ok(()) => bytes.len(),
            Err(_) if self.crashed && !crashed_before => bytes.len() / 16 * 8,
            Err(_) => 0,
        };
        self.files[file].write(at as usize, &bytes[..done]);
        step
    }
}

impl MemoryStorage {
    /// An empty directory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ops so far.
    #[must_use]
    pub fn ops(&self) -> u64 {
        self.disk.lock().ops
    }

    /// The op with this number (from 0) and all calls after it fail; of a write, half is done.
    pub fn crash_at(&self, op: u64) {
        self.disk.lock().crash_at = Some(op);
    }

    /// Whether the crash has happened.
    #[must_use]
    pub fn crashed(&self) -> bool {
        self.disk.lock().crashed
    }

    /// Decides about every call from now on; `None` ends the faults.
    pub fn set_faults(&self, plan: Option<FaultPlan>) {
        self.disk.lock().faults = plan;
    }

    /// Bytes that all files together may have; `None` for no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.disk.lock().capacity_bytes = bytes;
    }

    /// Reads that touch these bytes of a file fail from now on; an empty range mends it. A file's
    /// bytes stay unreadable under another name.
    pub fn set_unreadable(&self, name: &str, from: u64, to: u64) {
        let mut disk = self.disk.lock();
        if let Some(&file) = disk.names.get(name) {
            disk.unreadable.retain(|u| u.0 != file);
            disk.unreadable.extend((from < to).then_some((file, from, to)));
        }
    }

    /// What the next process finds after this one died: everything written so far, synced or
    /// not. What wasn't synced can still be lost in a later power cut.
    #[must_use]
    pub fn process_crash_image(&self) -> MemoryStorage {
        let disk = self.disk.lock();
        MemoryStorage {
            disk: Arc::new(Mutex::new(Disk {
                files: disk.files.clone(),
                names: disk.names.clone(),
                durable_names: disk.durable_names.clone(),
                pending: disk.pending.clone(),
                capacity_bytes: disk.capacity_bytes,
                ..Disk::default()
            })),
        }
    }

    /// What the next process finds after a power cut; `seed` chooses which of the unsynced
    /// sectors, names and lengths are there.
    #[must_use]
    pub fn power_cut_image(&self, seed: u64) -> MemoryStorage {
        let disk = self.disk.lock();
        let mut state = seed;
        let mut coin = || {
            // splitmix64
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) & 1 == 1
        };
        let mut names = disk.durable_names.clone();
        for op in &disk.pending {
            if coin() {
                op.apply(&mut names);
            }
        }
        let mut files = disk.files.clone();
        for file in &mut files {
            if file.durable.len() != file.live.len() && coin() {
                file.durable.resize(file.live.len(), 0);
            }
            file.settle(&mut coin);
            file.live.clone_from(&file.durable);
        }
        MemoryStorage {
            disk: Arc::new(Mutex::new(Disk {
                files,
                durable_names: names.clone(),
                names,
                capacity_bytes: disk.capacity_bytes,
                ..Disk::default()
            })),
        }
    }

    /// A file's bytes, for tests.
    #[must_use]
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        let disk = self.disk.lock();
        disk.names.get(name).map(|f| disk.files[*f].live.clone())
    }

    /// Puts a file there, whole and durable, for tests and fuzzing.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let mut disk = self.disk.lock();
        let file = disk.files.len();
        disk.files.push(MemoryFile {
            live: bytes.to_vec(),
            durable: bytes.to_vec(),
            dirty: Vec::new(),
        });
        disk.names.insert(name.to_string(), file);
        disk.durable_names.insert(name.to_string(), file);
    }

    /// Every file's name, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.disk.lock().names.keys().cloned().collect()
    }

    fn handle(&self, file: usize) -> Arc<dyn StorageFile> {
        Arc::new(Handle { disk: self.disk.clone(), file })
    }
}

impl Storage for MemoryStorage {
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut disk = self.disk.lock();
        disk.step(StorageOp::Read)?;
        let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
        let within = disk.names.keys().filter_map(|name| name.strip_prefix(&prefix));
        Ok(within.filter(|name| !name.contains('/')).map(str::to_string).collect())
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn AppendFile>> {
        let mut disk = self.disk.lock();
        if disk.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        disk.room(len)?;
        disk.step(StorageOp::Create)?;
        let file = disk.add(name, len);
        Ok(Box::new(Appender { disk: self.disk.clone(), file, len }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let mut disk = self.disk.lock();
        disk.step(StorageOp::Read)?;
        let file = *disk.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.handle(file))
    }

    fn open_or_create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let mut disk = self.disk.lock();
        let file = match disk.names.get(name) {
            Some(file) => *file,
            None => {
                disk.step(StorageOp::Create)?;
                disk.add(name, 0)
            }
        };
        Ok(self.handle(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.step(StorageOp::Rename)?;
        let file = disk.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        disk.names.insert(to.to_string(), file);
        disk.pending.push(NameOp::Rename(from.to_string(), to.to_string()));
        Ok(())
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.step(StorageOp::Unlink)?;
        disk.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        disk.pending.push(NameOp::Unlink(name.to_string()));
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.step(StorageOp::SyncDir)?;
        disk.pending.clear();
        disk.durable_names = disk.names.clone();
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let disk = self.disk.lock();
        Ok(disk.capacity_bytes.unwrap_or(1 << 40).saturating_sub(disk.used()))
    }
}

struct Handle {
    disk: Arc<Mutex<Disk>>,
    file: usize,
}

impl StorageFile for Handle {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut disk = self.disk.lock();
        disk.step(StorageOp::Read)?;
        let end = offset + into.len() as u64;
        if disk.unreadable.iter().any(|u| u.0 == self.file && u.1 < end && offset < u.2) {
            return Err(rustix::io::Errno::IO.into());
        }
        let live = &disk.files[self.file].live;
        let from = (offset as usize).min(live.len());
        let n = into.len().min(live.len() - from);
        into[..n].copy_from_slice(&live[from..from + n]);
        Ok(n)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let len = disk.files[self.file].live.len() as u64;
        disk.room((offset + bytes.len() as u64).saturating_sub(len))?;
        disk.write(self.file, offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.step(StorageOp::Sync)?;
        let file = &mut disk.files[self.file];
        file.durable.resize(file.live.len(), 0);
        file.settle(|| true);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let mut disk = self.disk.lock();
        disk.step(StorageOp::Read)?;
        Ok(disk.files[self.file].live.len() as u64)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.step(StorageOp::Truncate)?;
        disk.files[self.file].live.resize(len as usize, 0);
        Ok(())
    }
}

struct Appender {
    disk: Arc<Mutex<Disk>>,
    file: usize,
    len: u64,
}

impl Appender {
    fn in_range(&self, offset: u64, len: usize) -> io::Result<()> {
        let end = offset.checked_add(len as u64);
        end.filter(|end| *end <= self.len).map(|_| ()).ok_or(io::ErrorKind::WriteZero.into())
    }
}

impl AppendFile for Appender {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.in_range(offset, bytes.len())?;
        self.disk.lock().write(self.file, offset, bytes)
    }

    fn commit_at(&mut self, offset: u64, word: u64) -> io::Result<()> {
        self.in_range(offset, 8)?;
        let mut disk = self.disk.lock();
        disk.step(StorageOp::Commit)?;
        disk.files[self.file].write(offset as usize, &word.to_le_bytes());
        Ok(())
    }

    fn populate(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.in_range(offset, len as usize)?;
        self.disk.lock().step(StorageOp::Populate)
    }

    fn file(&self) -> Arc<dyn StorageFile> {
        Arc::new(Handle { disk: self.disk.clone(), file: self.file })
    }

    fn len(&self) -> u64 {
        self.len
    }
}
