//! Looking at a log's directory without opening it: read-only, also while a pipeline holds it.
//!
//! Owns the public face of inspection; the walk itself is the log's. Nothing here takes a lock,
//! writes, moves or repairs: what is damaged is told, not mended. Beside a live pipeline the
//! picture may be some milliseconds old, and a segment may go while it is looked at.

use crate::record::{Header, Headers};
use crate::wal::{
    FileStorage, FrameKind, FrameWalk, Inspected, Replayed, SegmentKind, SegmentSummary, inspect,
    inspect_checkpoint,
};
use std::io;
use std::path::Path;

/// A log's directory.
#[derive(Debug)]
pub struct Directory {
    storage: FileStorage,
    checkpoint: Option<Checkpoint>,
    replayed: Replayed,
}

/// What the directory's last stored checkpoint says. It is a hint: up to 10 ms old.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Checkpoint {
    /// Every record whose LSN is below it is final. Some above it may be.
    pub watermark: u64,
    /// Above every LSN given so far.
    pub next_lsn: u64,
    /// Records that were neither final nor in the log when it was stored.
    pub unsafe_records: u64,
}

/// One segment: a file of the log.
#[derive(Clone, Debug)]
pub struct Segment {
    summary: SegmentSummary,
}

/// What a sealed segment says of its records without being walked.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Counts {
    /// Records in it.
    pub records: u64,
    /// The lowest LSN, if there is a record.
    pub first_lsn: Option<u64>,
    /// The highest LSN.
    pub last_lsn: Option<u64>,
    /// Records by topic.
    pub topics: Vec<(String, u64)>,
}

/// One thing in a segment.
#[derive(Debug)]
#[non_exhaustive]
pub enum Item<'a> {
    /// A record.
    Record(Record<'a>),
    /// Bytes that are no frame. Behind the last frame of a segment that is being written they
    /// may be an append that isn't finished.
    Bad {
        /// From this offset...
        from: u64,
        /// ...to this one.
        to: u64,
        /// Records that they cost; `None` behind the last good frame.
        records_lost: Option<u64>,
    },
}

/// A record in the log.
#[derive(Debug)]
#[non_exhaustive]
pub struct Record<'a> {
    /// Its number; numbers give the order in which records were taken.
    pub lsn: u64,
    /// Its topic.
    pub topic: String,
    /// The partition that it was sent to by name.
    pub partition: Option<i32>,
    /// CreateTime.
    pub timestamp_ms: i64,
    /// The key; null differs from empty.
    pub key: Option<&'a [u8]>,
    /// The value; null is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Why it was set aside, in a set-aside segment.
    pub set_aside: Option<SetAside<'a>>,
    headers: &'a [u8],
}

/// Why a record was set aside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct SetAside<'a> {
    /// A stable short name.
    pub reason: &'a str,
    /// The error's number, 0 if there is none.
    pub code: i32,
    /// When.
    pub unix_ms: i64,
}

impl Directory {
    /// Looks at a directory; its checkpoint is read now.
    ///
    /// # Errors
    /// When it isn't there or can't be read.
    pub fn open(dir: &Path) -> io::Result<Directory> {
        let storage = FileStorage::open_read_only(dir)?;
        let checkpoint = inspect_checkpoint(&storage).map(|c| Checkpoint {
            watermark: c.watermark.0,
            next_lsn: c.next_lsn.0,
            unsafe_records: c.unsafe_records,
        });
        let replayed = Replayed::read(&storage).unwrap_or_default();
        Ok(Directory { storage, checkpoint, replayed })
    }

    /// The newest good checkpoint; without one, no record is known to be final.
    #[must_use]
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        self.checkpoint
    }

    /// Whether a record of this topic and LSN is known to be final: below the watermark, or
    /// delivered by a [`Redrive`](crate::redrive::Redrive) of selected topics.
    #[must_use]
    pub fn is_final(&self, topic: &str, lsn: u64) -> bool {
        self.checkpoint.is_some_and(|c| lsn < c.watermark) || self.replayed.covers(topic, lsn)
    }

    /// Topics of which a [`Redrive`](crate::redrive::Redrive) has delivered everything below an
    /// LSN, though the watermark is lower.
    pub fn replayed(&self) -> impl Iterator<Item = (&str, u64)> {
        self.replayed.below.iter().map(|(topic, below)| (topic.as_str(), *below))
    }

    /// The segments, oldest first: those of the log, then the set-aside ones.
    ///
    /// # Errors
    /// When the directory can't be listed.
    pub fn segments(&self) -> io::Result<Vec<Segment>> {
        Ok(inspect(&self.storage)?.into_iter().map(|summary| Segment { summary }).collect())
    }

    /// Walks a segment and shows each thing in it, until `visit` returns false. A segment that
    /// isn't readable, or that went meanwhile, shows nothing.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn walk(
        &self,
        segment: &Segment,
        mut visit: impl FnMut(Item<'_>) -> bool,
    ) -> io::Result<()> {
        let mut walk = match FrameWalk::new(&self.storage, &segment.summary) {
            Ok(Some(walk)) => walk,
            Ok(None) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        while let Some(found) = walk.next_frame()? {
            if let Some(item) = item(found)
                && !visit(item)
            {
                break;
            }
        }
        Ok(())
    }
}

/// What a user sees of a frame; `None` for the log's own.
fn item(found: Inspected<'_>) -> Option<Item<'_>> {
    let (header, topic, note, body) = match found {
        Inspected::Bad { from, to, records_lost, .. } => {
            return Some(Item::Bad { from, to, records_lost });
        }
        Inspected::Frame { header, topic, note, body, .. } => (header, topic, note, body),
    };
    if !matches!(header.kind, FrameKind::Record | FrameKind::SetAside) {
        return None;
    }
    let (headers, rest) = body.split_at_checked(header.shape.headers_len as usize)?;
    let (key, value) = rest.split_at_checked(header.shape.key_len.unwrap_or(0) as usize)?;
    Some(Item::Record(Record {
        lsn: header.lsn,
        topic: topic.map(|t| t.to_string()).unwrap_or_default(),
        partition: (header.partition >= 0).then_some(header.partition),
        timestamp_ms: header.timestamp_ms,
        key: header.shape.key_len.map(|_| key),
        value: header.shape.value_len.map(|_| value),
        set_aside: note.map(|n| SetAside { reason: n.reason, code: n.code, unix_ms: n.unix_ms }),
        headers,
    }))
}

impl<'a> Record<'a> {
    /// The headers, in the order in which they were added; a null value differs from empty.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, Option<&'a [u8]>)> {
        Headers::new(self.headers).map(|Header { name, value }| (name, value))
    }
}

impl Segment {
    /// The segment's number, which its file's name says in hexadecimal.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.summary.number
    }

    /// Whether it holds what was set aside.
    #[must_use]
    pub fn is_set_aside(&self) -> bool {
        self.summary.kind == SegmentKind::SetAside
    }

    /// The file's length. A segment that is prepared or written has its full length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.summary.bytes
    }

    /// Whether it is prepared and nothing was written to it yet.
    #[must_use]
    pub fn is_unused(&self) -> bool {
        self.summary.is_unused
    }

    /// Whether its header is good. One that isn't is unused, is damaged or was written by a newer
    /// version.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        self.summary.header.is_some()
    }

    /// When it was begun, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn created_unix_ms(&self) -> Option<i64> {
        self.summary.header.map(|h| h.created_unix_ms)
    }

    /// Its counts, once it is sealed; before that it has to be walked.
    #[must_use]
    pub fn sealed(&self) -> Option<Counts> {
        self.summary.seal.as_ref().map(|seal| Counts {
            records: seal.records,
            first_lsn: (seal.records > 0).then_some(seal.first_lsn),
            last_lsn: (seal.records > 0).then_some(seal.last_lsn),
            topics: seal.topics.iter().map(|(name, n)| (name.to_string(), *n)).collect(),
        })
    }
}
