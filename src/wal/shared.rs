//! Owns what the two halves of the log share: the flusher's [`super::Wal`] and the keeper's
//! [`super::WalKeeper`].
//!
//! # Orderings
//! `appended_below` and `aside_appends` are stored (Release) after the frame's commit word and
//! loaded (Acquire) by the keeper, under the lock that rotation takes: so every frame that the
//! keeper counts lies in a file that it sees there, and a sync that begins after the load
//! covers it. `synced_below` is stored (Release) after the sync returned. `failed_segment` is
//! stored by the keeper and loaded by the flusher, and orders nothing: the flusher leaves that
//! segment whenever it sees it. `segments_rewritten` is stored (Release) after the rename and
//! loaded (Acquire) before a read, so that whoever sees the count finds the new file under the
//! name. The rest are counts that order nothing.

use super::format::{SegmentHeader, SegmentKind};
use super::storage::{AppendFile, Storage, StorageFile};
use super::types::{AppendError, WalOptions};
use crate::sync::{AtomicU64, Ordering};
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// A segment that waits to be used: allocated, present in memory, mapped, all zero.
pub(super) struct Prepared {
    pub number: u64,
    pub file: Box<dyn AppendFile>,
    pub salt: u32,
}

/// A file that may hold unsynced bytes and takes no more.
pub(super) struct Retired {
    pub kind: SegmentKind,
    pub number: u64,
    pub file: Arc<dyn StorageFile>,
    /// What is known of it beside its file.
    pub known: Known,
    /// Its mapping. The keeper drops it, since that takes long, and before it has the disk begin:
    /// a page that is written while it is mapped is taken from every processor that runs a
    /// thread of this process.
    pub owner: Option<Box<dyn AppendFile>>,
}

/// A range that a reader found bad, to be copied to quarantine by the keeper.
pub(super) struct BadRange {
    pub number: u64,
    pub from: u64,
    pub to: u64,
}

/// What the flusher remembers of a segment that it left.
#[derive(Clone, Copy)]
pub(super) struct Known {
    pub header: SegmentHeader,
    /// Where its frames and its seal end.
    pub end: u64,
    /// Frame number of the record after it.
    pub next_frame: u64,
}

/// A segment whose sync failed: a power cut may cost what it holds until it is rewritten.
pub(super) struct Failed {
    pub kind: SegmentKind,
    pub number: u64,
    /// Its file, where it is still open; the name may be gone.
    pub file: Option<Arc<dyn StorageFile>>,
    /// What this run knows of it; `None` for a segment of an earlier run.
    pub known: Option<Known>,
    /// Still appended to, until the flusher sees it.
    pub active: bool,
    /// Before the next try to rewrite it.
    pub pause_ns: u64,
    pub again_ns: u64,
}

impl Failed {
    pub fn new(kind: SegmentKind, number: u64) -> Self {
        Failed { kind, number, file: None, known: None, active: false, pause_ns: 0, again_ns: 0 }
    }
}

#[derive(Default)]
pub(super) struct State {
    pub prepared: [VecDeque<Prepared>; 2],
    /// Main segments that were taken lately: says how many to prepare ahead.
    pub taken_lately: usize,
    /// A store met an I/O error: the disk may be gone. Pages of prepared segments may still take
    /// stores then, for nothing, so none is begun before a sync of it has returned well.
    pub suspect: bool,
    pub aside_wanted: bool,
    /// Why there is no prepared segment.
    pub shortage: [Option<AppendError>; 2],
    pub active: [Option<(u64, Arc<dyn StorageFile>)>; 2],
    pub retired: Vec<Retired>,
    pub trimmed: Vec<u64>,
    pub bad: Vec<BadRange>,
    /// Segments with bytes that are nowhere else and that can't be copied: moved to quarantine
    /// instead of removed.
    pub keep: Vec<u64>,
    /// Every segment on disk: kind and bytes.
    pub live: BTreeMap<u64, (SegmentKind, u64)>,
    /// Segments whose sync failed: what isn't final in them is not power-safe.
    pub failed: Vec<Failed>,
    /// Bytes of the file that a segment is being rewritten into.
    pub rewriting_bytes: u64,
}

impl State {
    /// Bytes of all segments on disk.
    pub fn used_bytes(&self) -> u64 {
        self.live.values().map(|(_, bytes)| bytes).sum::<u64>() + self.rewriting_bytes
    }

    pub fn is_failed(&self, number: u64) -> bool {
        self.failed.iter().any(|f| f.number == number)
    }
}

pub(super) struct Common {
    pub storage: Arc<dyn Storage>,
    pub options: WalOptions,
    pub wal_bytes_max: u64,
    pub directory_id: u64,
    pub state: Mutex<State>,
    /// Above the LSN of every record in the log.
    pub appended_below: AtomicU64,
    pub aside_appends: AtomicU64,
    pub synced_below: AtomicU64,
    /// The segment in use whose sync failed, by kind; the flusher leaves it.
    pub failed_segment: [AtomicU64; 2],
    pub sync_failures: AtomicU64,
    pub segments_rewritten: AtomicU64,
    /// Records that were no longer there when their segment was rewritten.
    pub records_lost_by_sync: AtomicU64,
    /// Times that the flusher needed a segment and none was ready.
    pub segment_waits: AtomicU64,
    pub ranges_quarantined: AtomicU64,
}

impl Common {
    pub fn bytes_on_disk(&self) -> u64 {
        self.state.lock().used_bytes()
    }

    pub fn synced_below(&self) -> u64 {
        self.synced_below.load(Ordering::Acquire)
    }
}
