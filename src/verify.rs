//! Checking a log's directory, and mending it.
//!
//! [`verify`] only reads, also beside a pipeline that has the directory open. [`repair`] holds
//! the directory: it moves or copies what is bad to quarantine and deletes nothing; what is
//! lost stays named, as known.
//!
//! Owns the public face; the checks are the log's own.

use crate::clock::{Clock, SystemClock};
use crate::error::OpenError;
use crate::wal::{self, FileStorage};
use std::io;
use std::path::Path;

pub use crate::wal::{Finding, Repaired, Verification, Weight, plan};

/// Bytes that [`verify`] will walk: for a progress bar.
///
/// # Errors
/// When the directory isn't there or can't be listed.
pub fn bytes_to_verify(dir: &Path) -> io::Result<u64> {
    wal::bytes_to_verify(&FileStorage::open_read_only(dir)?)
}

/// Walks every segment of a directory from end to end and checks checkpoint and manifest.
/// `progress` is told the bytes walked so far.
///
/// # Errors
/// When the directory isn't there or can't be listed; a file that can't be read is a finding.
pub fn verify(dir: &Path, mut progress: impl FnMut(u64)) -> io::Result<Verification> {
    let storage = FileStorage::open_read_only(dir)?.with_sigbus_guard(true);
    wal::verify(&storage, &mut progress)
}

/// Repairs what [`verify`] finds, in a directory that nobody has open. What it would do, [`plan`]
/// says. `progress` is told the bytes walked by the verification before and the one after.
///
/// # Errors
/// When a process holds the directory, or the system refuses; what was done stays done.
pub fn repair(dir: &Path, mut progress: impl FnMut(u64)) -> Result<Repaired, OpenError> {
    let io = |source| OpenError::Io { what: format!("repairing {}", dir.display()), source };
    let storage = FileStorage::open_existing(dir)?;
    let before = wal::verify(&storage, &mut progress).map_err(io)?;
    let walked = before.bytes;
    let mut rest = |bytes| progress(walked + bytes);
    wal::repair(&storage, &before, SystemClock.unix_ms(), &mut rest).map_err(io)
}
