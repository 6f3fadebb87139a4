//! Owns looking at a log without opening it: read-only, also while another process holds it.

use super::checkpoint::CheckpointData;
use super::cursor::{Cursor, Found};
use super::format::{
    FRAME_HEADER_BYTES, FrameHeader, FrameKind, HEADER_AREA_BYTES, HeaderVerdict, SET_ASIDE_DIR,
    SegmentHeader, SegmentKind, SetAsideNote, number_of, segment_name,
};
use super::reader::read_seal;
use super::recover::newest_checkpoint;
use super::seal::{Locator, Seal};
use super::storage::{Storage, StorageFile};
use super::survey::persist;
use super::verdict::Met;
use crate::record::TopicId;
use crate::topics::TopicTable;
use std::io;
use std::sync::Arc;

/// What a segment's file says of itself.
#[derive(Clone, Debug)]
pub struct SegmentSummary {
    /// The number in its name.
    pub number: u64,
    /// The kind that its directory says.
    pub kind: SegmentKind,
    /// Its length.
    pub bytes: u64,
    /// Its header; `None` in one that was never used, that is damaged, or of a newer version.
    pub header: Option<SegmentHeader>,
    /// Nothing was written to it yet, or it has gone meanwhile.
    pub is_unused: bool,
    /// Its counts, once it is sealed.
    pub seal: Option<Seal>,
}

/// One thing in a segment.
#[derive(Debug)]
pub enum Inspected<'a> {
    /// A good frame.
    Frame {
        /// Where it begins.
        offset: u64,
        /// Its fields.
        header: FrameHeader,
        /// The topic's name, of a record.
        topic: Option<&'a str>,
        /// Why and when, of a set-aside record.
        note: Option<SetAsideNote<'a>>,
        /// Headers, key and value; a topic's name; a seal's counts.
        body: &'a [u8],
    },
    /// Bytes that are no frame.
    Bad {
        /// From here...
        from: u64,
        /// ...to here.
        to: u64,
        /// Records that they cost, when a good frame stands behind them.
        records_lost: Option<u64>,
        /// What stands there.
        met: Met,
    },
}

/// Every segment of a log, by number.
///
/// # Errors
/// When the directory can't be listed; a segment that can't be read has no header here.
pub fn inspect(storage: &dyn Storage) -> io::Result<Vec<SegmentSummary>> {
    let mut found = Vec::new();
    for (kind, dir) in [(SegmentKind::Main, ""), (SegmentKind::SetAside, SET_ASIDE_DIR)] {
        for name in storage.list(dir)?.iter().filter(|n| n.ends_with(".wal")) {
            if let Some(number) = number_of(name) {
                found.push(summary(storage, kind, number));
            }
        }
    }
    found.sort_by_key(|s| (s.kind, s.number));
    Ok(found)
}

/// The newest good checkpoint.
#[must_use]
pub fn inspect_checkpoint(storage: &dyn Storage) -> Option<CheckpointData> {
    newest_checkpoint(storage)
}

fn summary(storage: &dyn Storage, kind: SegmentKind, number: u64) -> SegmentSummary {
    let mut summary =
        SegmentSummary { number, kind, bytes: 0, header: None, is_unused: false, seal: None };
    let file = match storage.open(&segment_name(kind, number)) {
        Ok(file) => file,
        Err(e) => {
            summary.is_unused = e.kind() == io::ErrorKind::NotFound;
            return summary;
        }
    };
    summary.bytes = file.len().unwrap_or(0);
    let mut area = [0; HEADER_AREA_BYTES as usize];
    let Ok(read) = file.read_at(0, &mut area) else { return summary };
    match SegmentHeader::judge(&area[..read]) {
        HeaderVerdict::Good(header) => {
            summary.header = Some(header);
            summary.seal = Locator::find(&area[..read], header.salt)
                .and_then(|l| read_seal(&*file, &header, l.offset, l.length).ok().flatten());
        }
        verdict => summary.is_unused = verdict == HeaderVerdict::Unused,
    }
    summary
}

/// Walks the frames of one segment.
pub struct FrameWalk {
    cursor: Cursor,
    table: Arc<TopicTable>,
    /// The names that the table has, by id.
    names: Vec<Arc<str>>,
}

impl FrameWalk {
    /// Begins at the first frame; `None` for a segment without a good header.
    ///
    /// # Errors
    /// When the file can't be opened.
    pub fn new(storage: &dyn Storage, segment: &SegmentSummary) -> io::Result<Option<Self>> {
        let Some(header) = segment.header else { return Ok(None) };
        let file: Arc<dyn StorageFile> =
            storage.open(&segment_name(segment.kind, segment.number))?;
        let table = Arc::new(TopicTable::default());
        let len = file.len()?;
        Ok(Some(FrameWalk {
            cursor: Cursor::new(file, header, len, table.clone(), 256 << 10),
            table,
            names: Vec::new(),
        }))
    }

    /// The next frame or bad range; `None` at the end. Pages that can't be read are tried again,
    /// then passed: they are a bad range.
    ///
    /// # Errors
    /// None today.
    pub fn next_frame(&mut self) -> io::Result<Option<Inspected<'_>>> {
        let found = match persist(|| self.cursor.next()) {
            Ok(found) => found,
            Err(_) => {
                self.cursor.skip_unreadable(u32::MAX);
                self.cursor.next()?
            }
        };
        Ok(match found {
            Found::End { from, to, met } if to > from => {
                self.cursor.pos = self.cursor.limit;
                Some(Inspected::Bad { from, to, records_lost: None, met })
            }
            Found::End { .. } => None,
            Found::Bad { from, to, lost, met } => {
                Some(Inspected::Bad { from, to, records_lost: lost, met })
            }
            Found::Frame(offset, header) => {
                if header.kind == FrameKind::Topic {
                    let id = |n: usize| self.table.name(TopicId(n as u32));
                    self.names.extend((self.names.len()..self.table.len()).map_while(id));
                }
                let bytes = self.cursor.frame_bytes(offset, &header);
                let rest = bytes.get(FRAME_HEADER_BYTES..).unwrap_or(&[]);
                let (prefix, body) =
                    rest.split_at_checked(header.prefix_len as usize).unwrap_or((&[], rest));
                let topic = self.cursor.topics.get(header.topic as usize).copied().flatten();
                Some(Inspected::Frame {
                    offset,
                    header,
                    topic: topic
                        .filter(|_| header.is_record())
                        .and_then(|id| self.names.get(id.0 as usize).map(|n| &**n)),
                    note: (header.kind == FrameKind::SetAside)
                        .then(|| SetAsideNote::decode(prefix))
                        .flatten(),
                    body,
                })
            }
        })
    }
}
