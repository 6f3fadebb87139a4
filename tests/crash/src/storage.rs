//! Owns [`KillStorage`]: the real files, and a SIGKILL for its own process at the n-th time that
//! the log comes to a named point. The pipeline above has no part in it.

use crate::evidence::Evidence;
use crate::points::{Phase, Point};
use forebay::wal::format::{FRAME_HEADER_BYTES, HEADER_AREA_BYTES};
use forebay::wal::{AppendFile, FileStorage, FrameKind, Storage, StorageFile};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Where the seal's locators stand in a segment's header area (DESIGN.md, the log).
const LOCATORS_AT: [u64; 2] = [256, 768];
/// Where a frame says its kind.
const FRAME_KIND_AT: usize = 32;

/// When to die.
#[derive(Debug)]
struct Fuse {
    point: Point,
    left: AtomicU64,
    evidence: Evidence,
}

impl Fuse {
    fn die(&self) -> ! {
        // Without the note the parent takes it for a kill of its own: nothing else depends on it.
        let _ = self.evidence.note_point(&self.point.to_string());
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        loop {
            std::thread::park();
        }
    }

    /// Does `act`, or dies before, after or, by `half`, in the middle of it.
    fn at<T>(&self, op: &str, half: impl FnOnce(), act: impl FnOnce() -> T) -> T {
        let is_here = self.point.op.name == op
            && self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                == Ok(1);
        if !is_here {
            return act();
        }
        match self.point.phase {
            Phase::Before => {}
            Phase::Middle => half(),
            Phase::After => drop(act()),
        }
        self.die()
    }
}

/// See the module.
pub struct KillStorage {
    files: FileStorage,
    dir: PathBuf,
    fuse: Arc<Fuse>,
}

impl KillStorage {
    /// Dies at the `nth` time (from 1) that the log comes to `point`.
    pub fn new(files: FileStorage, dir: &Path, evidence: Evidence, point: Point, nth: u64) -> Self {
        let fuse = Arc::new(Fuse { point, left: AtomicU64::new(nth.max(1)), evidence });
        KillStorage { files, dir: dir.to_path_buf(), fuse }
    }

    fn wrap(&self, name: &str, file: Arc<dyn StorageFile>) -> Arc<dyn StorageFile> {
        let name = name.to_owned();
        Arc::new(KillFile { file, name, mapped: None, fuse: self.fuse.clone() })
    }
}

fn is_aside(name: &str) -> bool {
    name.starts_with("set-aside/")
}

impl Storage for KillStorage {
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.files.list(dir)
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn AppendFile>> {
        let op = if is_aside(name) { "create-aside" } else { "create" };
        let half = || {
            // Best effort: when it fails, the crash came before the creation.
            let mut options = OpenOptions::new();
            let file = options.write(true).create_new(true).mode(0o600).open(self.dir.join(name));
            let _ = file.and_then(|f| f.set_len(len / 2));
        };
        let file = self.fuse.at(op, half, || self.files.create(name, len))?;
        Ok(Box::new(KillAppender {
            file,
            name: name.to_owned(),
            frame_kind: 0,
            written: Arc::new(AtomicBool::new(false)),
            fuse: self.fuse.clone(),
        }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        Ok(self.wrap(name, self.files.open(name)?))
    }

    fn open_or_create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        Ok(self.wrap(name, self.files.open_or_create(name)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let op = if to == "manifest" { "manifest-rename" } else { "quarantine" };
        self.fuse.at(op, || {}, || self.files.rename(from, to))
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        self.fuse.at("unlink", || {}, || self.files.unlink(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.fuse.at("dir-sync", || {}, || self.files.sync_dir())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.files.free_bytes()
    }
}

struct KillFile {
    file: Arc<dyn StorageFile>,
    name: String,
    /// Of a segment that is mapped: whether anything was stored in it.
    mapped: Option<Arc<AtomicBool>>,
    fuse: Arc<Fuse>,
}

impl StorageFile for KillFile {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, into)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let op = match self.name.as_str() {
            "manifest.new" => "manifest-write",
            name if name.starts_with("checkpoint-") => "checkpoint-write",
            name if name.ends_with(".wal") => "reseal",
            _ => return self.file.write_at(offset, bytes),
        };
        let half = || drop(self.file.write_at(offset, &bytes[..bytes.len() / 2]));
        self.fuse.at(op, half, || self.file.write_at(offset, bytes))
    }

    fn sync(&self) -> io::Result<()> {
        let op = match &self.mapped {
            Some(written) if !written.load(Ordering::Relaxed) => return self.file.sync(),
            Some(_) if is_aside(&self.name) => "aside-sync",
            Some(_) => "segment-sync",
            None if self.name.ends_with(".wal") => "old-sync",
            None if self.name.starts_with("checkpoint-") => "checkpoint-sync",
            None => return self.file.sync(),
        };
        self.fuse.at(op, || {}, || self.file.sync())
    }

    fn start_writeback(&self) {
        self.file.start_writeback();
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let op = if self.name.ends_with(".wal") { "cut" } else { "truncate" };
        self.fuse.at(op, || {}, || self.file.truncate(len))
    }
}

struct KillAppender {
    file: Box<dyn AppendFile>,
    name: String,
    /// The kind of the frame that is being stored.
    frame_kind: u8,
    written: Arc<AtomicBool>,
    fuse: Arc<Fuse>,
}

impl KillAppender {
    fn op_of(&mut self, offset: u64, bytes: &[u8]) -> &'static str {
        if LOCATORS_AT.contains(&offset) {
            return "locator";
        }
        if offset < HEADER_AREA_BYTES {
            return if is_aside(&self.name) { "aside-header" } else { "segment-header" };
        }
        // A frame's header comes in one piece, without its commit word.
        if bytes.len() == FRAME_HEADER_BYTES - 8 && self.frame_kind == 0 {
            self.frame_kind = bytes[FRAME_KIND_AT - 8];
        }
        self.frame_op()
    }

    fn frame_op(&self) -> &'static str {
        match self.frame_kind {
            k if k == FrameKind::Topic as u8 => "topic-name",
            k if k == FrameKind::Seal as u8 => "seal",
            k if k == FrameKind::SetAside as u8 => "aside-append",
            _ => "append",
        }
    }
}

impl AppendFile for KillAppender {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let op = self.op_of(offset, bytes);
        self.written.store(true, Ordering::Relaxed);
        let (fuse, file) = (self.fuse.clone(), std::cell::RefCell::new(&mut self.file));
        let half = || drop(file.borrow_mut().write_at(offset, &bytes[..bytes.len() / 2]));
        fuse.at(op, half, || file.borrow_mut().write_at(offset, bytes))
    }

    fn commit_at(&mut self, offset: u64, word: u64) -> io::Result<()> {
        let op = match self.frame_op() {
            "append" => "commit",
            "aside-append" => "aside-commit",
            "seal" => "seal-commit",
            _ => "topic-commit",
        };
        self.frame_kind = 0;
        let file = &mut self.file;
        self.fuse.at(op, || {}, || file.commit_at(offset, word))
    }

    fn populate(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let is_new = !self.written.load(Ordering::Relaxed) && len > HEADER_AREA_BYTES;
        let op = if is_new { "populate-segment" } else { "populate" };
        let file = &mut self.file;
        self.fuse.at(op, || {}, || file.populate(offset, len))
    }

    fn file(&self) -> Arc<dyn StorageFile> {
        Arc::new(KillFile {
            file: self.file.file(),
            name: self.name.clone(),
            mapped: Some(self.written.clone()),
            fuse: self.fuse.clone(),
        })
    }

    fn len(&self) -> u64 {
        self.file.len()
    }
}
