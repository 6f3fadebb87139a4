//! Owns what the two halves of the log share: the flusher's [`super::Wal`] and the keeper's
//! [`super::WalKeeper`].
//!
//! # Orderings
//! `appended_below` and `aside_appends` are stored (Release) after the frame's commit word and
//! loaded (Acquire) by the keeper, under the lock that rotation takes: so every frame that the
//! keeper counts lies in a file that it sees there, and a sync that begins after the load
//! covers it. `synced_below` is stored (Release) after the sync returned. The rest are counts
//! that order nothing.

use super::format::SegmentKind;
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
    pub number: u64,
    pub file: Arc<dyn StorageFile>,
    /// Unmapped by the keeper, since that takes long.
    pub owner: Box<dyn AppendFile>,
    /// The disk has been told to begin with it.
    pub writing: bool,
}

/// A range that a reader found bad, to be copied to quarantine by the keeper.
pub(super) struct BadRange {
    pub number: u64,
    pub from: u64,
    pub to: u64,
}

#[derive(Default)]
pub(super) struct State {
    pub prepared: [VecDeque<Prepared>; 2],
    /// Main segments that were taken lately: says how many to prepare ahead.
    pub taken_lately: usize,
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
    pub failed: Vec<u64>,
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
    /// The segment whose sync failed last; the flusher leaves it.
    pub failed_segment: AtomicU64,
    pub sync_failures: AtomicU64,
    /// Times that the flusher needed a segment and none was ready.
    pub segment_waits: AtomicU64,
    pub ranges_quarantined: AtomicU64,
}

impl Common {
    pub fn bytes_on_disk(&self) -> u64 {
        self.state.lock().live.values().map(|(_, bytes)| bytes).sum()
    }

    pub fn synced_below(&self) -> u64 {
        self.synced_below.load(Ordering::Acquire)
    }
}
