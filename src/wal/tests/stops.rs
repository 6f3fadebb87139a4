//! Owns [`Stops`]: a storage over another one that stops in the middle of an op, as a process
//! does that dies there: every call from then on fails, and what was stored stays.

use super::*;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// See the module. Clones share the count.
#[derive(Clone)]
pub(super) struct Stops {
    inner: Arc<dyn Storage>,
    fuse: Arc<Fuse>,
}

struct Fuse {
    /// Ops so far.
    ops: AtomicU64,
    /// The op that is interrupted, and how many eighths of it are done.
    at: u64,
    part: u64,
}

const WHOLE: u64 = 8;

impl Fuse {
    fn dead<T>() -> io::Result<T> {
        Err(io::Error::other("stopped"))
    }

    /// A call that changes nothing.
    fn read<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.ops.load(Ordering::Relaxed) > self.at { Self::dead() } else { act() }
    }

    /// A call that is done whole, or of which `some` does so many eighths.
    fn change<T>(
        &self,
        some: impl FnOnce(u64) -> io::Result<()>,
        act: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let op = self.ops.fetch_add(1, Ordering::Relaxed);
        if op < self.at {
            return act();
        }
        if op == self.at && self.part == WHOLE {
            act()?;
        } else if op == self.at && self.part > 0 {
            some(self.part)?;
        }
        Self::dead()
    }

    fn whole<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.change(|_| Ok(()), act)
    }
}

fn cut(bytes: &[u8], part: u64) -> &[u8] {
    &bytes[..bytes.len() * part as usize / WHOLE as usize]
}

impl Stops {
    /// Stops at this op (from 0), with so many eighths of it done.
    pub fn new(inner: Arc<dyn Storage>, at: u64, part: u64) -> Self {
        Stops { inner, fuse: Arc::new(Fuse { ops: AtomicU64::new(0), at, part }) }
    }

    pub fn shared(&self) -> Arc<dyn Storage> {
        Arc::new(self.clone())
    }

    pub fn ops(&self) -> u64 {
        self.fuse.ops.load(Ordering::Relaxed)
    }

    pub fn has_stopped(&self) -> bool {
        self.ops() > self.fuse.at
    }
}

impl Storage for Stops {
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.fuse.read(|| self.inner.list(dir))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn AppendFile>> {
        let some = |part| self.inner.create(name, len * part / WHOLE).map(|_| ());
        let file = self.fuse.change(some, || self.inner.create(name, len))?;
        Ok(Box::new(StopsAppend { inner: file, fuse: self.fuse.clone() }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let inner = self.fuse.read(|| self.inner.open(name))?;
        Ok(Arc::new(StopsFile { inner, fuse: self.fuse.clone() }))
    }

    fn open_or_create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let inner = self.fuse.whole(|| self.inner.open_or_create(name))?;
        Ok(Arc::new(StopsFile { inner, fuse: self.fuse.clone() }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.fuse.whole(|| self.inner.rename(from, to))
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        self.fuse.whole(|| self.inner.unlink(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.fuse.whole(|| self.inner.sync_dir())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.fuse.read(|| self.inner.free_bytes())
    }
}

struct StopsFile {
    inner: Arc<dyn StorageFile>,
    fuse: Arc<Fuse>,
}

impl StorageFile for StopsFile {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.fuse.read(|| self.inner.read_at(offset, into))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let some = |part| self.inner.write_at(offset, cut(bytes, part));
        self.fuse.change(some, || self.inner.write_at(offset, bytes))
    }

    fn sync(&self) -> io::Result<()> {
        self.fuse.whole(|| self.inner.sync())
    }

    fn len(&self) -> io::Result<u64> {
        self.fuse.read(|| self.inner.len())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.fuse.whole(|| self.inner.truncate(len))
    }
}

struct StopsAppend {
    inner: Box<dyn AppendFile>,
    fuse: Arc<Fuse>,
}

impl AppendFile for StopsAppend {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let inner = std::cell::RefCell::new(&mut self.inner);
        let some = |part| inner.borrow_mut().write_at(offset, cut(bytes, part));
        self.fuse.change(some, || inner.borrow_mut().write_at(offset, bytes))
    }

    fn commit_at(&mut self, offset: u64, word: u64) -> io::Result<()> {
        self.fuse.whole(|| self.inner.commit_at(offset, word))
    }

    fn populate(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.fuse.read(|| self.inner.populate(offset, len))
    }

    fn file(&self) -> Arc<dyn StorageFile> {
        Arc::new(StopsFile { inner: self.inner.file(), fuse: self.fuse.clone() })
    }

    fn len(&self) -> u64 {
        self.inner.len()
    }
}
