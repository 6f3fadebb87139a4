//! Owns the words of the log's interface: options, errors, what recovery found, what a read
//! yields.

use crate::record::{LogPosition, Lsn, RecordView};
use std::io;

/// How the log is laid out. Sizes are bytes.
#[derive(Clone, Debug)]
pub struct WalOptions {
    /// Length of a segment.
    pub segment_bytes: u64,
    /// Length of a set-aside segment.
    pub set_aside_segment_bytes: u64,
    /// Most that all segments together may take; `None` is the lesser of 8 GiB and half of
    /// what is free (what the log has already counts as free).
    pub wal_bytes_max: Option<u64>,
    /// Longest body of a record.
    pub record_bytes_max: u32,
    /// Which of a pipeline's logs this is (0: the main one).
    pub log_id: u32,
    /// Longest time that appended bytes stay unsynced.
    pub sync_interval_ns: u64,
    /// Most main segments that wait for the flusher, however fast it takes them. In quiet
    /// times one waits.
    pub segments_ahead_max: usize,
    /// Bytes that a reader asks for at once.
    pub read_buffer_bytes: usize,
}

impl Default for WalOptions {
    fn default() -> Self {
        WalOptions {
            segment_bytes: 64 << 20,
            set_aside_segment_bytes: 4 << 20,
            wal_bytes_max: None,
            record_bytes_max: 1_000_000,
            log_id: 0,
            sync_interval_ns: 500_000_000,
            segments_ahead_max: 4,
            read_buffer_bytes: 256 << 10,
        }
    }
}

impl WalOptions {
    /// Room that is kept free of main segments: for a set-aside segment, so that records which
    /// can't be delivered never wait for a full log that waits for them, and for its copy
    /// should its sync fail.
    pub(super) fn set_aside_reserve_bytes(&self) -> u64 {
        2 * self.set_aside_segment_bytes
    }

    /// The least that `wal_bytes_max` may be.
    #[must_use]
    pub fn wal_bytes_least(&self) -> u64 {
        2 * self.segment_bytes + self.set_aside_reserve_bytes()
    }
}

/// Where salts and directory ids come from: 64 unpredictable bits a call.
pub type SaltSource = Box<dyn FnMut() -> u64 + Send>;

/// Salts that nobody can predict. `RandomState` is keyed by the system's random source.
#[must_use]
pub fn random_salts() -> SaltSource {
    use std::hash::{BuildHasher, Hasher};
    Box::new(|| std::collections::hash_map::RandomState::new().build_hasher().finish())
}

/// Why a record isn't in the log. Nothing of it is left there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The keeper hasn't prepared the next segment yet. Wake it and try again.
    #[error("the next segment isn't prepared yet")]
    NotReady,
    /// The log is at `wal_bytes_max`.
    #[error("the log is at wal_bytes_max")]
    Full,
    /// The frame doesn't fit in an empty segment: the options contradict each other.
    #[error("the record doesn't fit in a segment")]
    TooLarge,
    /// The storage refused a write, or couldn't give the next segment.
    #[error("the log's storage: {0}")]
    Storage(io::ErrorKind),
}

impl AppendError {
    /// Whether the log has no room: it is at its bound, or the disk is full.
    #[must_use]
    pub fn is_full(self) -> bool {
        match self {
            AppendError::Full => true,
            AppendError::Storage(kind) => is_full(kind),
            AppendError::NotReady | AppendError::TooLarge => false,
        }
    }
}

/// Whether an error of the storage says that there is no room.
pub(super) fn is_full(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What can be let go to make room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Oldest {
    /// The segment whose records are all below this number.
    Below(Lsn),
    /// Room is being made already, or was: wake the keeper and try again.
    Coming,
    /// There is nothing.
    Nothing,
}

/// Why a record can't be read at a position.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The position's segment has been trimmed, or no frame was appended there.
    #[error("nothing is at that position of the log")]
    Gone,
    /// The frame there is damaged.
    #[error("the frame at that position of the log is damaged")]
    Damaged,
    /// The storage refused the read.
    #[error("the log's storage: {0}")]
    Storage(io::ErrorKind),
}

/// What a reader met next.
#[derive(Debug)]
pub enum ReadItem<'a> {
    /// A record.
    Record(LogRecord<'a>),
    /// Damage was passed; the reader stands behind it.
    Damage {
        /// Records that were there and are lost, by their frame numbers: exact.
        records_lost: u64,
        /// Bytes that were skipped.
        bytes: u64,
        /// What stood there, in words.
        why: &'static str,
    },
    /// Everything that was appended has been read. More may come.
    CaughtUp,
    /// The storage refused the read; the reader has not moved. Try again, and when that doesn't
    /// help call [`super::Reader::skip_unreadable`].
    Error(io::ErrorKind),
}

/// A record in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogRecord<'a> {
    /// Its number.
    pub lsn: Lsn,
    /// Where its frame begins.
    pub position: LogPosition,
    /// Where a reader that has read it stands.
    pub next: LogPosition,
    /// The record itself; the topic is one of the table that the log was opened with.
    pub record: RecordView<'a>,
}

/// What opening found in the directory.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    /// Above every LSN that the directory has ever named.
    pub next_lsn: Lsn,
    /// Where to begin to read what isn't final; `None` when there is nothing.
    pub backlog: Option<LogPosition>,
    /// At most the LSN of the first record behind `backlog`; exact unless that one is damaged.
    pub first_lsn: Option<Lsn>,
    /// Records at or above the watermark: exactly what a reader from `backlog` yields, records
    /// and `records_lost` together.
    pub records: u64,
    /// The same by topic, as far as it is known: damaged records have no topic, so the sum may
    /// be below `records`.
    pub records_by_topic: Vec<(String, u64)>,
    /// Bytes of the segments that hold the backlog.
    pub bytes: u64,
    /// What was damaged.
    pub damage: DamageReport,
    /// The newest good checkpoint of this directory.
    pub checkpoint: Option<super::CheckpointData>,
}

/// What recovery found wrong. All zero is a sound directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DamageReport {
    /// Records known to be lost among those counted in [`Recovery::records`] at open; damage
    /// inside sealed segments that open doesn't walk comes as `ReadItem::Damage` only.
    pub records_lost: u64,
    /// Records known to be lost in set-aside segments that open walked.
    pub set_asides_lost: u64,
    /// Bad ranges (or whole files) that were copied or moved to `quarantine/`, or that go there
    /// with their file once it is final.
    pub ranges_quarantined: u64,
    /// Bytes of them.
    pub bytes_quarantined: u64,
    /// Segments that the manifest names and that aren't there.
    pub segments_missing: u64,
    /// Segments of a newer format version, moved to `newer-version/` untouched.
    pub segments_newer: u64,
    /// Segments of another directory, of a wrong name or that can't be read, moved to
    /// `quarantine/` whole.
    pub segments_foreign: u64,
    /// Tails that a crash left unfinished: torn frames behind the last good one. Not damage.
    pub unfinished_tails: u64,
    /// Checkpoint slots that were torn, or belong to another directory.
    pub checkpoints_bad: u64,
    /// One line for each finding, for people.
    pub findings: Vec<String>,
}
