//! The write-ahead log: where records go that Kafka doesn't take now, and where they are read
//! from when it does.
//!
//! Owns: the files of a log's directory. [`Wal`] is the flusher's half (append, read, trim:
//! no sync, no file made or removed), [`WalKeeper`] the keeper's (everything slow). The bytes
//! are in [`format`], the verdicts on what recovery meets in `verdict` (positions) and `recover`
//! (whole segments).
//!
//! Reading order: `storage`, `format`, `segment`, `log`, `verdict`, `cursor`, `reader`,
//! `recover`, `survey`, `keeper`, `room`, `rewrite`,
//! `checkpoint`.

mod aside;
mod checkpoint;
mod cursor;
mod directory;
mod encode;
mod file_storage;
mod findings;
pub mod format;
mod guard;
mod hints;
mod inspect;
mod keeper;
mod log;
mod mapping;
mod memory_storage;
mod open;
mod prefetch;
mod reader;
mod recover;
mod redrive;
mod repair;
mod replayed;
mod reseal;
mod rewrite;
mod room;
mod seal;
mod segment;
mod shared;
mod storage;
mod survey;
#[cfg(test)]
mod tests;
mod types;
mod verdict;
mod verify;
mod verify_segment;
mod window;

pub use aside::{AsideItem, AsideReader, AsideRecord};
pub use checkpoint::{CheckpointData, Manifest, Slot, TopicBooks};
pub use file_storage::FileStorage;
pub use findings::{Finding, Verification, Weight};
pub use format::{FrameHeader, FrameKind, HeaderVerdict, SegmentHeader, SegmentKind, SetAsideNote};
pub use inspect::{FrameWalk, Inspected, SegmentSummary, inspect, inspect_checkpoint};
pub use keeper::{StepReport, WalKeeper};
pub use log::{Wal, WalStats};
pub use memory_storage::{FaultPlan, Meanwhile, MemoryStorage, StorageCounts, StorageOp};
pub use reader::Reader;
pub use redrive::Orphan;
pub use repair::{Repaired, plan, repair};
pub use replayed::Replayed;
pub use seal::{Locator, Seal};
pub use storage::{AppendFile, Storage, StorageFile, Window};
pub use types::{
    AppendError, DamageReport, LogRecord, Oldest, ReadError, ReadItem, Recovery, SaltSource,
    WalOptions, random_salts,
};
pub use verdict::Met;
pub use verify::{bytes_to_verify, verify};

use format::segment_name;
