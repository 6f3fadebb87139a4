//! The write-ahead log: where records go that Kafka doesn't take now, and where they are read
//! from when it does.
//!
//! Owns: the files of a log's directory. [`Wal`] is the flusher's half (append, read, trim:
//! no sync, no file made or removed), [`WalKeeper`] the keeper's (everything slow). The bytes
//! are in [`format`], the verdicts on what recovery meets in `cursor` and `recover`.
//!
//! Reading order: `storage`, `format`, `segment`, `log`, `cursor`, `reader`, `recover`,
//! `keeper`, `checkpoint`.

mod checkpoint;
mod cursor;
mod directory;
mod file_storage;
pub mod format;
mod guard;
mod inspect;
mod keeper;
mod log;
mod mapping;
mod memory_storage;
mod open;
mod reader;
mod recover;
mod seal;
mod segment;
mod shared;
mod storage;
#[cfg(test)]
mod tests;
mod types;

pub use checkpoint::{CheckpointData, TopicBooks};
pub use file_storage::FileStorage;
pub use format::{FrameHeader, FrameKind, SegmentHeader, SegmentKind, SetAsideNote};
pub use inspect::{FrameWalk, Inspected, SegmentSummary, inspect, inspect_checkpoint};
pub use keeper::{StepReport, WalKeeper};
pub use log::{Wal, WalStats};
pub use memory_storage::{FaultPlan, MemoryStorage, StorageOp};
pub use reader::Reader;
pub use seal::Seal;
pub use storage::{AppendFile, Storage, StorageFile};
pub use types::{
    AppendError, DamageReport, LogRecord, ReadError, ReadItem, Recovery, SaltSource, WalOptions,
    random_salts,
};

use format::segment_name;
