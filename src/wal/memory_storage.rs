//! Owns the simulated storage: deterministic, in memory, with crashes, power cuts and faults.
//!
//! Every call that changes something is an *op* and is counted. The fault model:
//! - A crash of the process comes before, in the middle of or after any op. What was stored is
//!   there; of the write that it interrupts a part, of a creation a file of another length.
//! - A power cut keeps what was synced. Of the rest it keeps any subset of the 512-byte sectors
//!   (writeback has no order), any subset of the changes of names (so a rename without the
//!   content, a removal taken back), and of a file's lengths the synced one, the last one, or one
//!   between.
//! - A sync that fails has lost what it was to write: the next one, which succeeds, doesn't
//!   bring it back.

mod disk;
#[cfg(test)]
mod tests;

use super::storage::{AppendFile, Storage, StorageFile};
use crate::chance::splitmix64;
use disk::{Disk, MemoryFile, NameOp, WHOLE};
use parking_lot::{Mutex, MutexGuard};
use std::io;
use std::sync::Arc;

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

/// What was done to segments over the life of a directory, for the coverage of a simulation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StorageCounts {
    /// Files made by `create`.
    pub created: u64,
    /// Names removed.
    pub unlinked: u64,
}

/// Called before a call of the seam; not while it runs itself.
pub type Meanwhile = Box<dyn FnMut() + Send>;

/// The disk, and what else goes on while somebody uses it.
#[derive(Default)]
struct Machine {
    disk: Mutex<Disk>,
    meanwhile: Mutex<Option<Meanwhile>>,
}

impl Machine {
    fn with(disk: Disk) -> Self {
        Machine { disk: Mutex::new(disk), meanwhile: Mutex::default() }
    }

    /// The disk, for a call of the seam.
    fn called(&self) -> MutexGuard<'_, Disk> {
        let meanwhile = self.meanwhile.lock().take();
        if let Some(mut meanwhile) = meanwhile {
            meanwhile();
            self.meanwhile.lock().get_or_insert(meanwhile);
        }
        self.disk.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock()
    }
}

/// A directory in memory. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryStorage {
    disk: Arc<Machine>,
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

    /// The op with this number (from 0) and all calls after it fail; half of it is done.
    pub fn crash_at(&self, op: u64) {
        self.crash_in(op, WHOLE / 2);
    }

    /// The same with so many eighths of it done: 0 is before it, 8 after it. What has no middle
    /// is done at 8 only.
    pub fn crash_in(&self, op: u64, eighths: u64) {
        self.disk.lock().crash_in = Some((op, eighths.min(WHOLE)));
    }

    /// What was done to segments, by earlier processes too.
    #[must_use]
    pub fn counts(&self) -> StorageCounts {
        self.disk.lock().counts
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

    /// What goes on before each call of the seam from now on: another thread's work, say, at every
    /// point at which this one touches the disk. `None` ends it.
    pub fn set_meanwhile(&self, meanwhile: Option<Meanwhile>) {
        *self.disk.meanwhile.lock() = meanwhile;
    }

    /// Bytes that all files together may have; `None` for no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.disk.lock().capacity_bytes = bytes;
    }

    /// The page cache lets go of what it holds of a file and doesn't owe the disk: what a
    /// failed sync lost is read as it is on disk from now on.
    pub fn evict(&self, name: &str) {
        let mut disk = self.disk.lock();
        if let Some(&file) = disk.names.get(name) {
            disk.files[file].evict();
        }
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
        let image = self.disk.lock().image();
        MemoryStorage { disk: Arc::new(Machine::with(image)) }
    }

    /// What the next process finds after a power cut; `seed` chooses which of the unsynced
    /// sectors, names and lengths are there.
    #[must_use]
    pub fn power_cut_image(&self, seed: u64) -> MemoryStorage {
        let mut image = self.disk.lock().image();
        let mut state = seed;
        let mut coin = || splitmix64(&mut state) & 1 == 1;
        for op in std::mem::take(&mut image.pending) {
            if coin() {
                op.apply(&mut image.durable_names);
            }
        }
        image.names.clone_from(&image.durable_names);
        for file in &mut image.files {
            file.cut_power(&mut coin);
        }
        MemoryStorage { disk: Arc::new(Machine::with(image)) }
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
        // Nothing that was to become of the name can bring back what stood there.
        let pending = std::mem::take(&mut disk.pending);
        disk.pending = pending.into_iter().filter_map(|op| op.without(name)).collect();
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
        let mut disk = self.disk.called();
        disk.read()?;
        let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
        let within = disk.names.keys().filter_map(|name| name.strip_prefix(&prefix));
        Ok(within.filter(|name| !name.contains('/')).map(str::to_string).collect())
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn AppendFile>> {
        let mut disk = self.disk.called();
        if disk.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        disk.room(len)?;
        let (done, said) = disk.step(StorageOp::Create);
        let file = if done > 0 { disk.add(name, len * done / WHOLE) } else { 0 };
        said?;
        disk.counts.created += 1;
        Ok(Box::new(Appender { disk: self.disk.clone(), file, len }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let mut disk = self.disk.called();
        disk.read()?;
        let file = *disk.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.handle(file))
    }

    fn open_or_create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let mut disk = self.disk.called();
        let file = match disk.names.get(name) {
            Some(file) => *file,
            None => {
                let mut file = 0;
                disk.step_whole(StorageOp::Create, |disk| file = disk.add(name, 0))?;
                file
            }
        };
        Ok(self.handle(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.disk.called();
        let file = disk.names.get(from).copied();
        disk.step_whole(StorageOp::Rename, |disk| {
            if let Some(file) = file {
                disk.names.remove(from);
                disk.names.insert(to.to_string(), file);
                disk.pending.push(NameOp::Rename(from.to_string(), to.to_string(), file));
            }
        })?;
        file.map(|_| ()).ok_or(io::ErrorKind::NotFound.into())
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        let mut disk = self.disk.called();
        let mut was_there = false;
        disk.step_whole(StorageOp::Unlink, |disk| {
            was_there = disk.names.remove(name).is_some();
            if was_there {
                disk.pending.push(NameOp::Unlink(name.to_string()));
                disk.counts.unlinked += 1;
            }
        })?;
        if was_there { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.disk.called().step_whole(StorageOp::SyncDir, |disk| {
            disk.pending.clear();
            disk.durable_names = disk.names.clone();
        })
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let disk = self.disk.called();
        Ok(disk.capacity_bytes.unwrap_or(1 << 40).saturating_sub(disk.used()))
    }
}

struct Handle {
    disk: Arc<Machine>,
    file: usize,
}

impl StorageFile for Handle {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut disk = self.disk.called();
        disk.read()?;
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
        let mut disk = self.disk.called();
        let len = disk.files[self.file].live.len() as u64;
        disk.room((offset + bytes.len() as u64).saturating_sub(len))?;
        disk.write(self.file, offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.disk.called();
        let id = self.file;
        let said = disk.step_whole(StorageOp::Sync, |disk| {
            let file = &mut disk.files[id];
            file.durable.resize(file.live.len(), 0);
            file.settle(|| true);
        });
        if said.is_err() && !disk.crashed {
            disk.files[id].dirty.clear();
        }
        said
    }

    fn len(&self) -> io::Result<u64> {
        let mut disk = self.disk.called();
        disk.read()?;
        Ok(disk.files[self.file].live.len() as u64)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let (mut disk, id) = (self.disk.called(), self.file);
        disk.step_whole(StorageOp::Truncate, |disk| disk.files[id].truncate(len as usize))
    }
}

struct Appender {
    disk: Arc<Machine>,
    file: usize,
    len: u64,
}

impl Appender {
    fn in_range(&self, offset: u64, len: usize) -> io::Result<()> {
        // Where the file was cut, a real mapping has no page any more.
        let there = self.len.min(self.disk.lock().files[self.file].live.len() as u64);
        let end = offset.checked_add(len as u64);
        end.filter(|end| *end <= there).map(|_| ()).ok_or(io::ErrorKind::WriteZero.into())
    }
}

impl AppendFile for Appender {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.in_range(offset, bytes.len())?;
        self.disk.called().write(self.file, offset, bytes)
    }

    fn commit_at(&mut self, offset: u64, word: u64) -> io::Result<()> {
        self.in_range(offset, 8)?;
        let (mut disk, id) = (self.disk.called(), self.file);
        disk.step_whole(StorageOp::Commit, |disk| {
            disk.files[id].write(offset as usize, &word.to_le_bytes());
        })
    }

    fn populate(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.in_range(offset, len as usize)?;
        self.disk.called().step(StorageOp::Populate).1
    }

    fn file(&self) -> Arc<dyn StorageFile> {
        Arc::new(Handle { disk: self.disk.clone(), file: self.file })
    }

    fn len(&self) -> u64 {
        self.len
    }
}
