//! Owns the errors that users meet, one type an operation.

use std::path::PathBuf;

/// Why `send` refused a record. One byte; the numbers are stable.
///
/// A refused record is untouched: the caller still has its data, and the refusal is counted in
/// `refused[reason]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[repr(u8)]
#[non_exhaustive]
pub enum SendError {
    /// The lane has no room now: the sink and the log did not keep up with this thread's rate.
    #[error(
        "the lane is full: Kafka and the log don't keep up, or the lane is too small for this burst"
    )]
    Full = 1,
    /// The record is longer than `record_bytes_max`.
    #[error("the record is larger than record_bytes_max")]
    TooLarge = 2,
    /// The pipeline was closed.
    #[error("the pipeline is closed")]
    Closed = 3,
    /// The flusher stopped after a panic; what it had taken is journaled as far as it could be.
    #[error("the pipeline's flusher has stopped; stats() says why")]
    Stopped = 4,
    /// This process is a fork of the one that opened the pipeline.
    #[error("this process was forked from the one that opened the pipeline; open a new one here")]
    Forked = 5,
    /// A header's name is empty, too long or holds a NUL byte, or there are too many headers.
    #[error(
        "a header's name is empty, longer than 1024 bytes or holds a NUL byte, or there are more than 16 headers"
    )]
    BadHeader = 6,
    /// An explicit partition below 0.
    #[error("the partition is negative")]
    BadPartition = 7,
    /// No receipt is free: as many tracked records as `receipts_max` are waiting.
    #[error("no receipt is free: receipts_max tracked records are waiting")]
    NoReceipt = 8,
    /// The closure of `send_with` said that it wrote more bytes than it was given.
    #[error("the closure returned a length above the room it was given")]
    BadLength = 9,
}

impl SendError {
    /// Every reason, in the order of their numbers.
    pub const ALL: [SendError; 9] = [
        SendError::Full,
        SendError::TooLarge,
        SendError::Closed,
        SendError::Stopped,
        SendError::Forked,
        SendError::BadHeader,
        SendError::BadPartition,
        SendError::NoReceipt,
        SendError::BadLength,
    ];

    /// Whether the same send may succeed later.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        matches!(self, SendError::Full | SendError::NoReceipt)
    }

    /// A short stable name, for metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            SendError::Full => "full",
            SendError::TooLarge => "too_large",
            SendError::Closed => "closed",
            SendError::Stopped => "stopped",
            SendError::Forked => "forked",
            SendError::BadHeader => "bad_header",
            SendError::BadPartition => "bad_partition",
            SendError::NoReceipt => "no_receipt",
            SendError::BadLength => "bad_length",
        }
    }
}

/// Why a pipeline could not be opened. Bad data in the log is never a reason: it is
/// quarantined and counted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A setting is out of range or contradicts another one.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// Another live process holds the directory.
    #[error("{dir} is in use by {holder}; give each pipeline a directory of its own", dir = dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// What the lock file says of its holder: process number and host.
        holder: String,
    },
    /// The directory can be read by others, and it holds records.
    #[error("{dir} can be read by others (mode {mode:03o}); run: chmod 700 {dir}", dir = dir.display())]
    Permissions {
        /// The directory.
        dir: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The directory, or something in it, is a symbolic link or belongs to another user.
    #[error("{path} {why}", path = path.display())]
    Refused {
        /// What it is.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// The operating system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, on what.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// librdkafka refused its configuration.
    #[error("librdkafka: {0}")]
    Kafka(String),
}

/// A setting that can't be used: which, what it was, what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} = {value}: {problem}")]
pub struct ConfigError {
    /// The setting's name, as in the builder.
    pub name: String,
    /// The value as it was given (never a secret).
    pub value: String,
    /// What is wrong and what is allowed.
    pub problem: String,
}

/// Why `Pipeline::reload` changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReloadError {
    /// A property can't be used, by itself or with those that were set before.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// librdkafka makes no producer with these properties: a file that can't be read, say.
    #[error("librdkafka: {0}")]
    Kafka(String),
    /// The pipeline's sink has no properties.
    #[error("this pipeline's sink has no properties to reload")]
    Unsupported,
    /// The pipeline is closed, has stopped, or belongs to the process that this one was forked
    /// from.
    #[error("the pipeline is closed")]
    Closed,
}

/// Why `Pipeline::topic` refused a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("topic {name:?}: Kafka allows 1 to 249 of a-z A-Z 0-9 . _ - and neither \".\" nor \"..\"")]
pub struct TopicError {
    /// The name that was refused.
    pub name: String,
}
