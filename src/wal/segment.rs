//! Owns the append side of one segment: header, frames, seal.
//!
//! A frame's bytes are stored first, its commit word last. An append that fails is voided: a
//! void frame takes its place, so that nothing half-written is ever taken for a record. When
//! even that fails, the segment is broken and takes no more.

use super::encode::FrameEncoder;
use super::format::{
    FRAME_HEADER_BYTES, FrameHeader, FrameKind, HEADER_AREA_BYTES, HEADER_AT, SegmentHeader,
    SetAsideNote, TOPICS_PER_SEGMENT_MAX, pad8,
};
use super::seal::{LOCATOR_AT, Locator, SEAL_FIXED_BYTES, SEAL_ROW_BYTES, Seal};
use super::storage::AppendFile;
use crate::record::{Lsn, RecordView, TopicId};
use crate::topics::TopicTable;
use std::io;
use std::sync::Arc;

/// Pages are made present in steps of this many bytes, when a batch didn't announce itself.
const POPULATE_STEP_BYTES: u64 = 64 << 10;
const NOT_NAMED: u32 = u32::MAX;

/// Why a segment didn't take a record.
#[derive(Debug)]
pub(super) enum SegmentError {
    /// It is full, or broken: go to the next one.
    NoRoom,
    /// The storage refused; the record isn't in it.
    Io(io::Error),
}

pub(super) struct SegmentWriter {
    pub file: Box<dyn AppendFile>,
    pub header: SegmentHeader,
    /// Everything below is committed.
    pub end: u64,
    pub next_frame: u64,
    pub records: u64,
    pub first_lsn: u64,
    pub last_lsn: u64,
    /// Topics by their number here.
    topics: Vec<(Arc<str>, TopicId, u64)>,
    /// The number here by topic.
    local_of: Vec<u32>,
    /// Bytes that the seal's value will take.
    seal_value_bytes: u64,
    populated_to: u64,
    encoder: FrameEncoder,
    broken: bool,
}

impl SegmentWriter {
    /// Writes both copies of the header into a prepared file.
    pub fn begin(mut file: Box<dyn AppendFile>, header: SegmentHeader) -> io::Result<Self> {
        file.populate(0, HEADER_AREA_BYTES.min(file.len()))?;
        let bytes = header.encode();
        for at in HEADER_AT {
            file.write_at(at, &bytes)?;
        }
        Ok(SegmentWriter {
            file,
            header,
            end: HEADER_AREA_BYTES,
            next_frame: header.first_frame,
            records: 0,
            first_lsn: 0,
            last_lsn: 0,
            topics: Vec::new(),
            local_of: Vec::new(),
            seal_value_bytes: SEAL_FIXED_BYTES as u64,
            populated_to: 0,
            encoder: FrameEncoder::new(header.salt),
            broken: false,
        })
    }

    /// Makes the pages of the next `bytes` present, within the segment.
    pub fn populate(&mut self, bytes: u64) -> io::Result<()> {
        let from = self.end;
        let to = (from + bytes).min(self.file.len());
        if to > from {
            self.file.populate(from, to - from)?;
            self.populated_to = to;
        }
        Ok(())
    }

    /// Takes no more records from here on; what is in it stays.
    pub fn give_up(&mut self) {
        self.broken = true;
    }

    /// Whether it takes no more records, for whatever reason but want of room.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Ids of its topics by their number here.
    pub fn local_topics(&self) -> Vec<Option<TopicId>> {
        self.topics.iter().map(|(_, id, _)| Some(*id)).collect()
    }

    /// Appends a record, and its topic's name before the first one. Returns its offset.
    pub fn append(
        &mut self,
        lsn: Lsn,
        record: &RecordView<'_>,
        note: Option<&SetAsideNote<'_>>,
        table: &TopicTable,
    ) -> Result<u64, SegmentError> {
        let prefix = note.map(SetAsideNote::encode).unwrap_or_default();
        let length = FRAME_HEADER_BYTES + prefix.len() + record.body.len();
        let local = self.local_of.get(record.topic.0 as usize).copied().unwrap_or(NOT_NAMED);
        let name = if local == NOT_NAMED { table.name(record.topic) } else { None };
        let mut seal_value = self.seal_value_bytes;
        let mut need = pad8(length as u64);
        if local == NOT_NAMED {
            let name_len = name.as_ref().map_or(0, |n| n.len());
            need += 2 * pad8((FRAME_HEADER_BYTES + name_len) as u64);
            seal_value += (SEAL_ROW_BYTES + name_len) as u64;
        }
        let seal = pad8(FRAME_HEADER_BYTES as u64 + seal_value);
        if self.broken
            || length as u64 > u64::from(self.header.frame_bytes_max)
            || self.end + need + seal > self.file.len()
            || (local == NOT_NAMED && self.topics.len() as u32 >= TOPICS_PER_SEGMENT_MAX)
        {
            return Err(SegmentError::NoRoom);
        }
        if self.end + need > self.populated_to {
            self.populate(need.max(POPULATE_STEP_BYTES)).map_err(SegmentError::Io)?;
        }
        let local = if local == NOT_NAMED {
            let Some(name) = name else {
                return Err(SegmentError::Io(io::ErrorKind::InvalidInput.into()));
            };
            self.name_topic(record.topic, name)?
        } else {
            local
        };
        let header = FrameHeader {
            length: length as u32,
            crc: 0,
            lsn: lsn.0,
            frame_number: self.next_frame,
            timestamp_ms: record.timestamp_ms,
            kind: if note.is_some() { FrameKind::SetAside } else { FrameKind::Record },
            prefix_len: prefix.len() as u16,
            topic: local,
            partition: record.partition,
            shape: record.shape,
        };
        let at = self.write_frame(&header, &prefix, record.body)?;
        if self.records == 0 {
            self.first_lsn = lsn.0;
        }
        self.first_lsn = self.first_lsn.min(lsn.0);
        self.last_lsn = self.last_lsn.max(lsn.0);
        self.records += 1;
        self.next_frame += 1;
        self.topics[local as usize].2 += 1;
        Ok(at)
    }

    fn name_topic(&mut self, topic: TopicId, name: Arc<str>) -> Result<u32, SegmentError> {
        let local = self.topics.len() as u32;
        let header =
            FrameHeader::plain(FrameKind::Topic, self.next_frame, local, name.len() as u32);
        for _ in 0..2 {
            self.write_frame(&header, &[], name.as_bytes())?;
        }
        let index = topic.0 as usize;
        if self.local_of.len() <= index {
            self.local_of.resize(index + 1, NOT_NAMED);
        }
        self.local_of[index] = local;
        self.seal_value_bytes += (SEAL_ROW_BYTES + name.len()) as u64;
        self.topics.push((name, topic, 0));
        Ok(local)
    }

    fn write_frame(
        &mut self,
        header: &FrameHeader,
        prefix: &[u8],
        body: &[u8],
    ) -> Result<u64, SegmentError> {
        let at = self.end;
        let image = self.encoder.encode(header, prefix, body);
        match self.file.store_frame(at, image.word, image.head, image.body) {
            Ok(()) => {
                self.end = at + header.stride();
                Ok(at)
            }
            Err(error) => {
                self.void(header.length);
                Err(SegmentError::Io(error))
            }
        }
    }

    /// Puts a void frame over a failed one.
    fn void(&mut self, length: u32) {
        let mut header = FrameHeader::plain(FrameKind::Void, self.next_frame, 0, 0);
        header.length = length;
        let image = self.encoder.encode(&header, &[], &[]);
        match self.file.store_frame(self.end, image.word, image.head, image.body) {
            Ok(()) => self.end += header.stride(),
            Err(_) => self.broken = true,
        }
    }

    /// Writes the seal and says where it is. A segment without one is read just as well, only
    /// scanned from end to end; so a failure is no loss.
    pub fn seal(&mut self) -> io::Result<()> {
        let seal = Seal {
            records: self.records,
            first_lsn: self.first_lsn,
            last_lsn: self.last_lsn,
            next_frame: self.next_frame,
            topics: self.topics.iter().map(|(name, _, n)| (name.clone(), *n)).collect(),
        };
        let value = seal.encode();
        let header = FrameHeader::plain(FrameKind::Seal, self.next_frame, 0, value.len() as u32);
        let at = self.end;
        if at + header.stride() > self.file.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.file.populate(at, header.stride())?;
        self.write_frame(&header, &[], &value).map_err(|e| match e {
            SegmentError::Io(e) => e,
            SegmentError::NoRoom => io::ErrorKind::WriteZero.into(),
        })?;
        let locator = Locator {
            offset: at,
            length: u64::from(header.length),
            next_frame: self.next_frame,
            last_lsn: self.last_lsn,
        };
        let bytes = locator.encode(self.header.salt);
        for at in LOCATOR_AT {
            self.file.write_at(at, &bytes)?;
        }
        self.broken = true;
        Ok(())
    }

    /// Room that any segment needs beside a frame of `frame` bytes with a topic of the longest
    /// name.
    pub fn bytes_for(frame: u64) -> u64 {
        let name = crate::topics::TOPIC_NAME_BYTES_MAX as u64;
        HEADER_AREA_BYTES
            + pad8(frame)
            + 2 * pad8(FRAME_HEADER_BYTES as u64 + name)
            + pad8((FRAME_HEADER_BYTES + SEAL_FIXED_BYTES + SEAL_ROW_BYTES) as u64 + name)
    }

    /// Bytes of its seal frame.
    pub fn seal_bytes(&self) -> u64 {
        FRAME_HEADER_BYTES as u64 + self.seal_value_bytes
    }

    /// How many topics it names.
    pub fn topic_count(&self) -> usize {
        self.topics.len()
    }

    /// Whether nothing was ever appended to it.
    pub fn is_fresh(&self) -> bool {
        self.end == HEADER_AREA_BYTES && !self.broken
    }
}
