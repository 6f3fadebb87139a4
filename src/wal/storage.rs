//! Owns the seam between the log and the disk: bytes, not records, so that a simulator can
//! tear sectors, lose syncs and fail any call.
//!
//! Names are paths relative to the log's directory, with `/` between a directory and a file
//! (`set-aside/0000000000000007.wal`). Directories are made by the storage itself.

use super::format::FRAME_HEADER_BYTES;
use crate::stats::Filesystem;
use std::io;
use std::sync::Arc;

/// A directory of files. Object-safe.
pub trait Storage: Send + Sync {
    /// The names of the files in `dir` (`""` is the log's own directory), without `dir`, in
    /// no particular order. A directory that isn't there is empty.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;

    /// Makes a file of `len` zero bytes with its blocks allocated, mapped for appending. An
    /// existing file of that name is an error.
    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn AppendFile>>;

    /// Opens a file for reading, syncing and cutting. Maps it for a [`Window`] only.
    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>>;

    /// Opens a small file that is rewritten in place (the checkpoint's slots); makes an empty
    /// one if there is none.
    fn open_or_create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>>;

    /// Renames a file, replacing one of the new name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file's name.
    fn unlink(&self, name: &str) -> io::Result<()>;

    /// Makes creations, renames and removals of names durable.
    fn sync_dir(&self) -> io::Result<()>;

    /// Bytes that are free for us.
    fn free_bytes(&self) -> io::Result<u64>;

    /// What the directory is on, where that is known.
    fn filesystem(&self) -> Option<Filesystem> {
        None
    }
}

/// A file as it is read, synced, cut or rewritten in small: by system calls, but for windows.
pub trait StorageFile: Send + Sync {
    /// Reads at `offset` until `into` is full or the file ends; returns the bytes read.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize>;

    /// Bytes of the file without copying them, where it can: for a walk over a segment that takes
    /// no more frames.
    fn window(&self, _offset: u64, _len: usize) -> Option<Box<dyn Window>> {
        None
    }

    /// Writes all of `bytes` at `offset`; the file grows as needed.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes everything written before the call durable, through the mapping or not.
    fn sync(&self) -> io::Result<()>;

    /// Has the disk begin with what was written, without waiting. A hint: it promises nothing,
    /// and what goes wrong is told by the next sync.
    fn start_writeback(&self) {}

    /// The file's length.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts the file.
    fn truncate(&self, len: u64) -> io::Result<()>;
}

/// Bytes of a file that nobody writes to.
pub trait Window: Send {
    /// The bytes.
    fn bytes(&self) -> &[u8];

    /// Whether the file lost a page meanwhile: the bytes may be zeroes that aren't in it.
    fn is_torn(&self) -> bool;
}

/// The append side of a segment: one owner, stores through a mapping.
///
/// It takes `&mut self`, so that one writer is a matter of types and no lock is needed.
pub trait AppendFile: Send {
    /// Stores `bytes` at `offset`. Out of the file's range is an error.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// One aligned 8-byte store, after everything written before it (Release).
    fn commit_at(&mut self, offset: u64, word: u64) -> io::Result<()>;

    /// Stores a frame at `offset`: `head` and then `body` behind the 8 bytes of its commit word,
    /// then `word`. Files that can do it at once override it; what is in the file in the end is
    /// the same.
    fn store_frame(&mut self, offset: u64, word: u64, head: &[u8], body: &[u8]) -> io::Result<()> {
        // In pieces, so that a simulator can fail or stop between any two of them.
        let mut to = offset + 8;
        let (header, prefix) = head.split_at(head.len().min(FRAME_HEADER_BYTES - 8));
        for part in [header, prefix, body] {
            if !part.is_empty() {
                self.write_at(to, part)?;
                to += part.len() as u64;
            }
        }
        self.commit_at(offset, word)
    }

    /// Makes the pages of a range present and writable, so that what would be a SIGBUS in the
    /// next store is an error here.
    fn populate(&mut self, offset: u64, len: u64) -> io::Result<()>;

    /// The same file for reading and syncing.
    fn file(&self) -> Arc<dyn StorageFile>;

    /// The file's length, fixed at its creation.
    fn len(&self) -> u64;

    /// Whether the file has no byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
