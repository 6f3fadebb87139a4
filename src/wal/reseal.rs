//! Owns the seal that a recovered segment gets afterwards, so that only one start walks it.
//!
//! The run that wrote it died before it could. Recovery walked it, cut its tail off and counted
//! what is in it; the keeper writes the seal by system calls, after a sync has made the frames
//! durable that the seal counts, and the locator after a sync of the seal. A crash at any point
//! leaves a segment without a locator, to be walked again, or a sound one. Readers of this run
//! don't see it: they stop where the frames end.

use super::format::{FrameHeader, FrameKind, SegmentHeader, SegmentKind};
use super::seal::{LOCATOR_AT, LOCATOR_BYTES, Locator, Seal};
use super::storage::StorageFile;
use std::io;

/// A segment that is to be sealed.
pub(super) struct Resealing {
    pub kind: SegmentKind,
    pub number: u64,
    /// Where its frames end.
    at: u64,
    /// Empty where the seal stands already and only its locator is lost.
    frame: Vec<u8>,
    locator: [u8; LOCATOR_BYTES],
}

impl Resealing {
    /// `stands` is where a good seal is and its length, if there is one.
    pub fn new(header: &SegmentHeader, at: u64, stands: Option<(u64, u64)>, seal: &Seal) -> Self {
        let mut frame = Vec::new();
        if stands.is_none() {
            let value = seal.encode();
            let seal_header =
                FrameHeader::plain(FrameKind::Seal, seal.next_frame, 0, value.len() as u32);
            frame.extend_from_slice(&seal_header.encode(header.salt, &[], &value));
            frame.extend_from_slice(&value);
        }
        let (offset, length) = stands.unwrap_or((at, frame.len() as u64));
        let locator =
            Locator { offset, length, next_frame: seal.next_frame, last_lsn: seal.last_lsn };
        let locator = locator.encode(header.salt);
        Resealing { kind: header.kind, number: header.number, at, frame, locator }
    }

    /// Writes seal and locator; the file's frames are durable.
    pub fn write(&self, file: &dyn StorageFile) -> io::Result<()> {
        if !self.frame.is_empty() {
            let (commit, rest) = self.frame.split_at(8);
            let written = file
                .write_at(self.at + commit.len() as u64, rest)
                .and_then(|()| file.write_at(self.at, commit))
                .and_then(|()| file.sync());
            if let Err(e) = written {
                // Half a seal is an unfinished tail: no harm, but nothing to leave behind.
                let _ = file.truncate(self.at);
                return Err(e);
            }
        }
        for at in LOCATOR_AT {
            file.write_at(at, &self.locator)?;
        }
        file.sync()
    }
}
