//! Owns the real storage: a directory of files, held by one process at a time.
//!
//! The directory is 0700, its files 0600. `LOCK` is locked with flock and says who holds it;
//! the lock goes when the last handle to the storage goes.
//!
//! # Orderings
//! A directory's `changed` is set after a name in it changed, and cleared before the sync: a
//! change that comes between them is synced once more.

use super::directory::{self, DIRS};
use super::mapping::Mapping;
use super::storage::{AppendFile, Storage, StorageFile, Window};
use super::window::ReadWindow;
use crate::error::OpenError;
use crate::stats::{Filesystem, FilesystemKind};
use rustix::fs::{FallocateFlags, IFlags};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Zeroes written at a time, where blocks can't be allocated.
const ZEROES_BYTES: u64 = 64 << 10;

/// A directory on a local filesystem.
#[derive(Debug)]
pub struct FileStorage {
    dir: PathBuf,
    /// Held for the lock; `None` for a reader beside the holder.
    _lock: Option<File>,
    sigbus_guard: bool,
    filesystem: Option<Filesystem>,
    /// Whether a name in the directory changed since it was synced, by its place in [`DIRS`].
    changed: [AtomicBool; DIRS.len()],
}

impl FileStorage {
    /// Opens or makes the directory and takes its lock.
    ///
    /// # Errors
    /// When another process holds it, when others can read it, when it or what is in it belongs
    /// to another user or is a symbolic link, or when the system refuses.
    pub fn open(dir: &Path) -> Result<FileStorage, OpenError> {
        let lock = directory::open(dir)?;
        let filesystem = directory::filesystem(dir);
        if let Some(filesystem) = filesystem {
            directory::warn_of(dir, filesystem);
        }
        // What an earlier process renamed may not be durable yet.
        let changed = DIRS.map(|_| AtomicBool::new(true));
        Ok(FileStorage {
            dir: dir.to_path_buf(),
            _lock: Some(lock),
            sigbus_guard: true,
            filesystem,
            changed,
        })
    }

    /// Whether the mappings of segments to come are guarded against SIGBUS: a handler for that
    /// signal, chained to the one before it, is installed once for the process. On by default.
    #[must_use]
    pub fn with_sigbus_guard(mut self, on: bool) -> FileStorage {
        self.sigbus_guard = on;
        self
    }

    /// Opens an existing directory and takes its lock; makes none.
    ///
    /// # Errors
    /// As [`FileStorage::open`], and when it isn't there.
    pub fn open_existing(dir: &Path) -> Result<FileStorage, OpenError> {
        fs::read_dir(dir).map_err(|source| OpenError::Io {
            what: format!("opening the log's directory {}", dir.display()),
            source,
        })?;
        FileStorage::open(dir)
    }

    /// Opens an existing directory for inspection, beside a process that holds it.
    ///
    /// # Errors
    /// When it isn't there or can't be read.
    pub fn open_read_only(dir: &Path) -> io::Result<FileStorage> {
        fs::read_dir(dir)?;
        let changed = DIRS.map(|_| AtomicBool::new(false));
        Ok(FileStorage {
            dir: dir.to_path_buf(),
            _lock: None,
            sigbus_guard: false,
            filesystem: directory::filesystem(dir),
            changed,
        })
    }

    /// Notes that a name in a file's directory has changed.
    fn changed(&self, name: &str) {
        let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
        let at = DIRS.iter().position(|d| *d == dir).unwrap_or(0);
        self.changed[at].store(true, Ordering::Release);
    }

    fn open_with(&self, name: &str, create: bool) -> io::Result<Arc<dyn StorageFile>> {
        let write = self._lock.is_some();
        let file = OpenOptions::new()
            .read(true)
            .write(write)
            .create(create && write)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(self.dir.join(name))?;
        if create {
            self.changed(name);
        }
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if write && found.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the file belongs to another user",
            ));
        }
        Ok(Arc::new(RealFile { file, lost: Arc::default(), guarded: self.sigbus_guard }))
    }
}

/// Gives the file its blocks. Where the filesystem can't do that, zeroes are written.
fn allocate(file: &File, len: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
        Err(rustix::io::Errno::OPNOTSUPP) => {
            let zeroes = vec![0; ZEROES_BYTES.min(len) as usize];
            let mut at = 0;
            while at < len {
                let n = (len - at).min(ZEROES_BYTES);
                file.write_all_at(&zeroes[..n as usize], at)?;
                at += n;
            }
            Ok(())
        }
        done => Ok(done?),
    }
}

impl Storage for FileStorage {
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.dir.join(dir)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn AppendFile>> {
        let path = self.dir.join(name);
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        self.changed(name);
        // Where the filesystem copies on write, room that was reserved once is reserved no more
        // after the first sync; without copies it is. Elsewhere the flag isn't known.
        if self.filesystem.is_some_and(|f| f.kind == FilesystemKind::CopyOnWrite) {
            let _ = rustix::fs::ioctl_setflags(&file, IFlags::NOCOW);
        }
        let made = allocate(&file, len)
            .and_then(|()| Mapping::new(&file, len as usize, self.sigbus_guard));
        match made {
            Ok(map) => {
                let guarded = self.sigbus_guard;
                let file = Arc::new(RealFile { file, lost: map.lost(), guarded });
                Ok(Box::new(MappedFile { map, file }))
            }
            Err(e) => {
                // What can't be allocated must not stay behind as a hole.
                let _ = fs::remove_file(&path);
                Err(e)
            }
        }
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.open_with(name, false)
    }

    fn open_or_create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.open_with(name, true)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.dir.join(from), self.dir.join(to))?;
        self.changed(from);
        self.changed(to);
        Ok(())
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.dir.join(name))?;
        self.changed(name);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        for (dir, changed) in DIRS.iter().zip(&self.changed) {
            if changed.swap(false, Ordering::AcqRel) {
                let synced = File::open(self.dir.join(dir)).and_then(|d| d.sync_all());
                if synced.is_err() {
                    changed.store(true, Ordering::Release);
                }
                synced?;
            }
        }
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let found = rustix::fs::statvfs(&self.dir)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn filesystem(&self) -> Option<Filesystem> {
        self.filesystem
    }
}

struct RealFile {
    file: File,
    /// A store through the mapping went nowhere.
    lost: Arc<AtomicBool>,
    /// Loads from a mapping of it may be caught.
    guarded: bool,
}

impl StorageFile for RealFile {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            match self.file.read_at(&mut into[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn window(&self, offset: u64, len: usize) -> Option<Box<dyn Window>> {
        if !self.guarded {
            return None;
        }
        Some(Box::new(ReadWindow::new(&self.file, offset, len)?))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()?;
        if self.lost.load(Ordering::Acquire) {
            // What was appended may not be in the file, however well it was synced.
            return Err(io::Error::other("a page of it was taken away (SIGBUS)"));
        }
        Ok(())
    }

    fn start_writeback(&self) {
        use std::os::fd::AsRawFd;
        // SAFETY: the descriptor is open, and the call takes no pointers.
        unsafe {
            libc::sync_file_range(self.file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE);
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
}

struct MappedFile {
    map: Mapping,
    file: Arc<RealFile>,
}

impl AppendFile for MappedFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.map.write_at(offset, bytes)
    }

    fn commit_at(&mut self, offset: u64, word: u64) -> io::Result<()> {
        self.map.commit_at(offset, word)
    }

    fn store_frame(&mut self, offset: u64, word: u64, head: &[u8], body: &[u8]) -> io::Result<()> {
        self.map.store_frame(offset, word, head, body)
    }

    fn populate(&mut self, offset: u64, len: u64) -> io::Result<()> {
        match self.map.populate(offset, len) {
            // The blocks are allocated; the pages come with the first store.
            Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(()),
            done => done,
        }
    }

    fn file(&self) -> Arc<dyn StorageFile> {
        self.file.clone()
    }

    fn len(&self) -> u64 {
        self.map.len() as u64
    }
}
