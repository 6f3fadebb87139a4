//! The write-ahead log.
mod storage;
mod types;
pub use storage::{AppendFile, Storage, StorageFile};
pub use types::*;

use crate::error::OpenError;
use crate::record::{LogPosition, Lsn, RecordView};
use crate::topics::TopicTable;
use std::io;
use std::sync::Arc;

/// What the checkpoint carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckpointData {
    /// Everything below it is final.
    pub watermark: Lsn,
    /// Above every LSN given so far.
    pub next_lsn: Lsn,
    /// Records accepted since the directory was made.
    pub accepted: u64,
    /// Records delivered.
    pub delivered: u64,
    /// Records neither final nor in the log when it was written.
    pub unsafe_records: u64,
    /// Books by topic.
    pub topics: Vec<TopicBooks>,
}

/// One topic's books.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicBooks {
    /// The topic.
    pub name: String,
    /// Delivered.
    pub delivered: u64,
    /// Set aside.
    pub set_aside: u64,
    /// Dropped by a counted policy.
    pub dropped: u64,
}

/// SKELETON: signatures only in this commit, bodies follow.
pub struct Wal;
/// SKELETON.
pub struct WalKeeper;
/// SKELETON.
pub struct Reader;
/// What one step of the keeper did.
#[derive(Clone, Debug, Default)]
pub struct StepReport {
    /// A segment was prepared: wake a flusher that met `NotReady`.
    pub prepared: bool,
    /// A sync returned.
    pub synced: bool,
    /// Segments unlinked.
    pub unlinked: u64,
    /// The first error of the step.
    pub error: Option<io::ErrorKind>,
}

#[allow(unused_variables)]
impl Wal {
    pub fn open(
        storage: Arc<dyn Storage>, topics: Arc<TopicTable>, options: WalOptions,
        salts: SaltSource, now_unix_ms: i64,
    ) -> Result<(Wal, WalKeeper, Recovery), OpenError> { unimplemented!() }
    pub fn prepare_batch(&mut self, bytes: u64) -> Result<(), AppendError> { unimplemented!() }
    pub fn append(&mut self, lsn: Lsn, record: &RecordView<'_>) -> Result<LogPosition, AppendError> { unimplemented!() }
    pub fn set_aside(&mut self, lsn: Lsn, record: &RecordView<'_>, reason: &str, code: i32, now_unix_ms: i64) -> Result<LogPosition, AppendError> { unimplemented!() }
    pub fn reader(&self, from: LogPosition) -> Reader { unimplemented!() }
    pub fn read_next<'r>(&self, reader: &'r mut Reader) -> ReadItem<'r> { unimplemented!() }
    pub fn read_at(&mut self, position: LogPosition) -> Result<LogRecord<'_>, ReadError> { unimplemented!() }
    pub fn trim(&mut self, acked: Lsn) { unimplemented!() }
    pub fn bytes_on_disk(&self) -> u64 { unimplemented!() }
    /// Everything below it is power-safe.
    pub fn synced_below(&self) -> Lsn { unimplemented!() }
    /// Seals what is open (at close).
    pub fn seal(&mut self) { unimplemented!() }
}
#[allow(unused_variables)]
impl WalKeeper {
    /// One turn; checkpoint: the newest data if it changed.
    pub fn step(&mut self, now_ns: u64, now_unix_ms: i64, checkpoint: Option<&CheckpointData>) -> StepReport { unimplemented!() }
    /// Syncs everything appended so far (flush, close, sync_now).
    pub fn sync_now(&mut self) -> io::Result<()> { unimplemented!() }
}
