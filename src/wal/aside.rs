//! Owns reading the set-aside segments of an open log, in order, and letting them go: held topics
//! are redriven from there.

use super::cursor::{Cursor, Found};
use super::format::{
    FRAME_HEADER_BYTES, FrameHeader, FrameKind, HEADER_AREA_BYTES, HeaderVerdict, SegmentHeader,
    SegmentKind, SetAsideNote, segment_name,
};
use super::log::Wal;
use crate::record::{LogPosition, Lsn, RecordView, TopicId};
use std::io;

/// What is read of a segment at once.
const BUFFER_BYTES: usize = 64 << 10;

/// A place in the set-aside segments.
pub struct AsideReader {
    segment: u64,
    /// Everything before this offset was read.
    offset: u64,
    cursor: Option<Cursor>,
    /// Segments that had been rewritten when the cursor's file was opened.
    rewritten: u64,
    /// The record that was read last.
    last: Option<(u64, FrameHeader)>,
}

impl AsideReader {
    /// Whether the frame at this place hasn't been read, and is in the segment that it stands in.
    #[must_use]
    pub fn stands_before(&self, at: LogPosition) -> bool {
        self.segment == at.segment && self.offset <= at.offset
    }

    /// The record that was read last is read again.
    pub fn back(&mut self) {
        if let (Some(cursor), Some((at, header))) = (&mut self.cursor, self.last.take()) {
            cursor.pos = at;
            cursor.expect = Some(header.frame_number);
            self.offset = at;
        }
    }
}

/// What a reader met next.
pub enum AsideItem<'a> {
    /// A record.
    Record(AsideRecord<'a>),
    /// Everything that was set aside has been read. More may come.
    CaughtUp,
    /// The storage refused the read; the reader has not moved.
    Error(io::ErrorKind),
}

/// A record that was set aside.
pub struct AsideRecord<'a> {
    /// The number that it had.
    pub lsn: Lsn,
    /// Where its frame begins.
    pub position: LogPosition,
    /// Why and when it was set aside.
    pub note: SetAsideNote<'a>,
    /// The record itself; the topic is one of the table that the log was opened with.
    pub record: RecordView<'a>,
}

impl Wal {
    /// A reader that begins with the first segment at or behind `from`.
    #[must_use]
    pub fn aside_reader(&self, from: u64) -> AsideReader {
        AsideReader { segment: from, offset: 0, cursor: None, rewritten: 0, last: None }
    }

    /// What comes next. Damaged frames are passed over: opening counts them.
    pub fn read_aside<'r>(&self, reader: &'r mut AsideReader) -> AsideItem<'r> {
        let rewritten = self.segments_rewritten();
        if reader.rewritten != rewritten {
            reader.cursor = None;
            reader.rewritten = rewritten;
        }
        reader.last = None;
        let (at, header) = loop {
            if reader.cursor.is_none() {
                match self.open_aside(reader) {
                    Ok(true) => {}
                    Ok(false) => return AsideItem::CaughtUp,
                    Err(e) => return AsideItem::Error(e.kind()),
                }
            }
            let Some(cursor) = &mut reader.cursor else { return AsideItem::CaughtUp };
            let active = self.active[SegmentKind::SetAside as usize].as_ref();
            let active = active.filter(|a| a.header.number == reader.segment);
            cursor.limit = match active {
                Some(active) => active.end,
                None => match cursor.file().len() {
                    Ok(len) => len,
                    Err(e) => return AsideItem::Error(e.kind()),
                },
            };
            match cursor.next() {
                Err(e) => return AsideItem::Error(e.kind()),
                Ok(Found::Frame(at, header)) => {
                    let is_new = at >= reader.offset;
                    reader.offset = reader.offset.max(cursor.pos);
                    if header.kind == FrameKind::SetAside && is_new {
                        break (at, header);
                    }
                }
                Ok(Found::Bad { .. }) => reader.offset = reader.offset.max(cursor.pos),
                Ok(Found::End { .. }) if active.is_some() => return AsideItem::CaughtUp,
                Ok(Found::End { .. }) => {
                    reader.cursor = None;
                    reader.segment += 1;
                    reader.offset = 0;
                }
            }
        };
        reader.last = Some((at, header));
        self.last_aside(reader).map_or(AsideItem::CaughtUp, AsideItem::Record)
    }

    /// The record that was read last.
    #[must_use]
    pub fn last_aside<'r>(&self, reader: &'r AsideReader) -> Option<AsideRecord<'r>> {
        let (at, header) = reader.last.as_ref()?;
        Some(aside_record(reader.cursor.as_ref()?, reader.segment, *at, header))
    }

    /// Opens the first segment at or behind the reader's; false when there is none.
    fn open_aside(&self, reader: &mut AsideReader) -> io::Result<bool> {
        let active = self.active[SegmentKind::SetAside as usize].as_ref();
        let mut from = reader.segment;
        while let Some(number) = self.next_aside(from) {
            let (file, header) = match active.filter(|a| a.header.number == number) {
                Some(active) => (active.file.file(), active.header),
                None => {
                    let name = segment_name(SegmentKind::SetAside, number);
                    let file = self.common.storage.open(&name)?;
                    let mut area = [0; HEADER_AREA_BYTES as usize];
                    let read = file.read_at(0, &mut area)?;
                    match SegmentHeader::judge(&area[..read]) {
                        HeaderVerdict::Good(header) => (file, header),
                        // Nothing is in it yet: an earlier run prepared it, or the keeper is at it
                        // now. In the latter case it comes next, and the reader must not have
                        // passed it; with a begun one behind it, it never comes.
                        _ => {
                            from = number + 1;
                            continue;
                        }
                    }
                }
            };
            if number != reader.segment {
                reader.segment = number;
                reader.offset = 0;
            }
            // From the first frame on, for the names of topics.
            let cursor = Cursor::new(file, header, 0, self.topics.clone(), BUFFER_BYTES);
            reader.cursor = Some(cursor);
            return Ok(true);
        }
        Ok(false)
    }

    /// The first segment at or behind `from` that may hold records.
    fn next_aside(&self, from: u64) -> Option<u64> {
        let state = self.common.state.lock();
        let prepared = &state.prepared[SegmentKind::SetAside as usize];
        let mut live = state.live.range(from..).filter(|(number, (kind, _))| {
            *kind == SegmentKind::SetAside
                && !state.trimmed.contains(number)
                && prepared.iter().all(|p| p.number != **number)
        });
        live.next().map(|(number, _)| *number)
    }

    /// The set-aside segment that is appended to.
    #[must_use]
    pub fn active_aside(&self) -> Option<u64> {
        self.active[SegmentKind::SetAside as usize].as_ref().map(|a| a.header.number)
    }

    /// A set-aside segment in which every record is final goes to the keeper to be removed.
    pub fn release_aside(&mut self, number: u64) {
        if self.active_aside() == Some(number) {
            self.retire(SegmentKind::SetAside);
        }
        self.discard(number);
    }
}

fn aside_record<'a>(
    cursor: &'a Cursor,
    segment: u64,
    at: u64,
    header: &FrameHeader,
) -> AsideRecord<'a> {
    let bytes = cursor.frame_bytes(at, header).get(FRAME_HEADER_BYTES..).unwrap_or(&[]);
    let (prefix, body) = bytes.split_at_checked(header.prefix_len as usize).unwrap_or((&[], bytes));
    let topic = cursor.topics.get(header.topic as usize).copied().flatten();
    AsideRecord {
        lsn: Lsn(header.lsn),
        position: LogPosition { segment, offset: at },
        note: SetAsideNote::decode(prefix).unwrap_or_default(),
        record: RecordView {
            // The cursor yields no record whose topic isn't named.
            topic: topic.unwrap_or(TopicId(0)),
            partition: header.partition,
            timestamp_ms: header.timestamp_ms,
            shape: header.shape,
            body,
        },
    }
}
