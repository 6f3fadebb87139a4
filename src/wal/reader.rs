//! Owns reading: a [`Reader`] that follows the log in order, and what it needs to know of a
//! segment.

use super::cursor::{Cursor, Found};
use super::format::{
    FRAME_HEADER_BYTES, FrameHeader, FrameKind, HEADER_AREA_BYTES, LocalTopics, SegmentHeader,
};
use super::seal::Seal;
use super::shared::BadRange;
use super::storage::StorageFile;
use super::types::{LogRecord, ReadError, ReadItem};
use super::verdict::Met;
use super::{SegmentKind, Wal, segment_name};
use crate::record::{LogPosition, Lsn, RecordView, TopicId};
use crate::sync::Ordering;
use crate::topics::TopicTable;
use std::io;
use std::sync::Arc;

/// A segment that takes no more records. Kept for each segment on disk, so it is small.
#[derive(Clone, Debug)]
pub(super) struct SegmentInfo {
    pub header: SegmentHeader,
    /// Where its frames end.
    pub end: u64,
    /// Frame number of the record after it, damaged ones counted.
    pub next_frame: u64,
    pub last_lsn: Option<u64>,
    /// Where its seal is; `None` in one that was never sealed.
    pub seal: Option<(u64, u64)>,
    /// Its topics, kept only when there is no seal to read them from.
    pub topics: Option<LocalTopics>,
}

/// A place in the log and a buffer in front of it.
pub struct Reader {
    at: LogPosition,
    cursor: Option<Cursor>,
    /// Frame number that comes next, when known.
    expect: Option<u64>,
    /// The segment of `at` has been read to its end.
    ended: bool,
    /// Segments that had been rewritten when the cursor's file was opened.
    rewritten: u64,
    /// What can't be read is passed, until the next record.
    skip: bool,
}

impl Reader {
    pub(super) fn new(at: LogPosition) -> Self {
        Reader { at, cursor: None, expect: None, ended: false, rewritten: 0, skip: false }
    }

    /// Lets the next read pass what the storage refuses: one page, or a segment that can't be
    /// opened at all. What was there comes as [`ReadItem::Damage`]; its file is never removed,
    /// but goes to quarantine when it is trimmed.
    pub fn skip_unreadable(&mut self) {
        self.skip = true;
        if let Some(cursor) = &mut self.cursor {
            cursor.skip_unreadable(1);
        }
    }

    /// Where it stands: what a new reader from here would yield is what this one would.
    #[must_use]
    pub fn position(&self) -> LogPosition {
        self.at
    }
}

const BETWEEN: &str = "records are missing between two segments";
const AT_END: &str = "records are missing at the end of a segment";
const GONE: &str = "the segment's file is gone";
/// Unreadable pages that a walk for names or numbers passes: the flusher waits for it.
const WALK_SKIPS: u32 = 64;

enum Step {
    Record(u64, FrameHeader),
    Damage { records_lost: u64, bytes: u64, why: &'static str },
    CaughtUp,
    Error(io::ErrorKind),
}

/// What a cursor needs to walk a segment.
struct Span {
    header: SegmentHeader,
    end: u64,
    next_frame: u64,
    active: bool,
}

impl Wal {
    /// A reader that begins at `from`; where that is gone, at the first record behind it.
    #[must_use]
    pub fn reader(&self, from: LogPosition) -> Reader {
        let due = self.backlog.filter(|(at, _)| *at == from).map(|(_, due)| due);
        Reader { expect: due, ..Reader::new(from) }
    }

    /// What comes next. The record's bytes can be used until the next call.
    pub fn read_next<'r>(&self, reader: &'r mut Reader) -> ReadItem<'r> {
        let step = match self.next_good(reader) {
            Some((at, header)) => Step::Record(at, header),
            None => self.step(reader),
        };
        match step {
            Step::Damage { records_lost, bytes, why } => {
                ReadItem::Damage { records_lost, bytes, why }
            }
            Step::CaughtUp => ReadItem::CaughtUp,
            Step::Error(kind) => ReadItem::Error(kind),
            Step::Record(at, header) => match &reader.cursor {
                Some(cursor) => ReadItem::Record(log_record(cursor, at, &header)),
                None => ReadItem::CaughtUp,
            },
        }
    }

    /// The next record where it is a good one of the same segment.
    #[inline(always)]
    fn next_good(&self, reader: &mut Reader) -> Option<(u64, FrameHeader)> {
        if reader.rewritten != self.segments_rewritten() {
            return None;
        }
        // Within the limit that the last look at the segment gave: frames are only added.
        let cursor = reader.cursor.as_mut()?;
        let found = cursor.next_record()?;
        cursor.skip_unreadable(0);
        reader.skip = false;
        reader.at.offset = cursor.pos;
        reader.expect = cursor.expect;
        Some(found)
    }

    fn step(&self, reader: &mut Reader) -> Step {
        let rewritten = self.segments_rewritten();
        if reader.rewritten != rewritten {
            // The name leads to another file now; what stands behind the old one may rot.
            reader.cursor = None;
            reader.rewritten = rewritten;
        }
        loop {
            if reader.ended {
                match self.turn_page(reader) {
                    None => return Step::CaughtUp,
                    Some(0) => {}
                    Some(records_lost) => return missing(records_lost, BETWEEN),
                }
            }
            let Some(cursor) = &mut reader.cursor else {
                match self.open_cursor(reader) {
                    Ok(true) => continue,
                    Ok(false) => return Step::CaughtUp,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {
                        // The file went away under us: its records are lost, and counted.
                        return missing(self.end_segment(reader), GONE);
                    }
                    Err(_) if reader.skip => {
                        reader.skip = false;
                        self.keep(reader.at.segment);
                        return missing(self.end_segment(reader), Met::Unreadable.words());
                    }
                    Err(e) => return Step::Error(e.kind()),
                }
            };
            let span = self.span(cursor.header().number);
            let active = span.as_ref().is_some_and(|s| s.active);
            if let Some(span) = span {
                cursor.limit = span.end;
            }
            let from = cursor.pos;
            if from >= cursor.limit {
                if active {
                    return Step::CaughtUp;
                }
                match self.end_segment(reader) {
                    0 => continue,
                    records_lost => return missing(records_lost, AT_END),
                }
            }
            match cursor.next() {
                Err(e) => return Step::Error(e.kind()),
                Ok(Found::Frame(at, header)) => {
                    reader.at.offset = cursor.pos;
                    reader.expect = cursor.expect;
                    if header.is_record() {
                        reader.skip = false;
                        cursor.skip_unreadable(0);
                        return Step::Record(at, header);
                    }
                }
                Ok(Found::Bad { from, to, lost, met }) => {
                    let (number, found) = (cursor.header().number, cursor.expect);
                    let unreadable = cursor.is_unreadable(from, to);
                    reader.at.offset = cursor.pos;
                    reader.expect = found;
                    let lost = lost.unwrap_or_else(|| {
                        let before = self.expect_at(number, from);
                        found.zip(before).map_or(0, |(n, before)| n.saturating_sub(before))
                    });
                    let why = self.report_bad(number, from, to, met, unreadable);
                    return Step::Damage { records_lost: lost, bytes: to - from, why };
                }
                Ok(Found::End { .. }) if active => return Step::CaughtUp,
                Ok(Found::End { from, to, met }) => {
                    let number = cursor.header().number;
                    let unreadable = cursor.is_unreadable(from, to);
                    let mut why = AT_END;
                    if to > from {
                        why = self.report_bad(number, from, to, met, unreadable);
                    }
                    let records_lost = self.end_segment(reader);
                    if records_lost > 0 || to > from {
                        return Step::Damage { records_lost, bytes: to - from, why };
                    }
                }
            }
        }
    }

    /// Marks the reader's segment as read; returns the records that were lost at its end.
    fn end_segment(&self, reader: &mut Reader) -> u64 {
        let number = reader.at.segment;
        reader.cursor = None;
        reader.ended = true;
        let Some(span) = self.span(number) else { return 0 };
        let before = reader.expect.or_else(|| self.expect_at(number, reader.at.offset));
        reader.expect = Some(span.next_frame);
        reader.at.offset = span.end;
        before.map_or(0, |n| span.next_frame.saturating_sub(n))
    }

    /// Goes to the next segment, if there is one; returns the records missing in between.
    fn turn_page(&self, reader: &mut Reader) -> Option<u64> {
        let header = self.header_from(reader.at.segment.saturating_add(1))?;
        let lost = reader.expect.map_or(0, |n| header.first_frame.saturating_sub(n));
        reader.at = LogPosition { segment: header.number, offset: HEADER_AREA_BYTES };
        reader.expect = Some(header.first_frame);
        reader.ended = false;
        Some(lost)
    }

    /// False when there is no segment at or behind the reader.
    fn open_cursor(&self, reader: &mut Reader) -> io::Result<bool> {
        let Some(header) = self.header_from(reader.at.segment) else { return Ok(false) };
        if header.number != reader.at.segment {
            reader.at = LogPosition { segment: header.number, offset: HEADER_AREA_BYTES };
            reader.expect = Some(header.first_frame);
        }
        reader.at.offset = reader.at.offset.max(HEADER_AREA_BYTES);
        let Some(mut cursor) = self.cursor(header.number)? else { return Ok(false) };
        let topics = self.topics_of(header.number, cursor.file(), reader.skip)?;
        cursor.skip_unreadable(u32::from(reader.skip));
        cursor.seek(reader.at.offset, topics);
        if reader.expect.is_some() {
            cursor.expect = reader.expect;
        }
        reader.cursor = Some(cursor);
        Ok(true)
    }

    /// The record at a position that `append` or a reader gave. Reading positions in order is
    /// buffered.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read_at(&mut self, position: LogPosition) -> Result<LogRecord<'_>, ReadError> {
        let storage = |e: io::Error| ReadError::Storage(e.kind());
        let number = position.segment;
        let span = self.span(number).ok_or(ReadError::Gone)?;
        if position.offset < HEADER_AREA_BYTES || position.offset >= span.end {
            return Err(ReadError::Gone);
        }
        let rewritten = self.segments_rewritten();
        let is_current = |c: &Cursor| c.header().number == number;
        let kept =
            self.random.take().filter(is_current).filter(|_| rewritten == self.random_rewritten);
        self.random_rewritten = rewritten;
        let mut cursor = match kept {
            Some(cursor) => cursor,
            None => {
                let mut cursor = self.cursor(number).map_err(storage)?.ok_or(ReadError::Gone)?;
                cursor.topics = self.topics_of(number, cursor.file(), true).map_err(storage)?;
                cursor
            }
        };
        let mut topics = std::mem::take(&mut cursor.topics);
        if let Some(active) = self.active_main()
            && active.header.number == number
            && active.topic_count() != topics.len()
        {
            topics = active.local_topics();
        }
        cursor.limit = span.end;
        cursor.seek(position.offset, topics);
        cursor.expect = None;
        let found = cursor.next().map_err(storage);
        if let Ok(Found::Bad { from, to, .. } | Found::End { from, to, .. }) = found
            && to > from
        {
            self.common.state.lock().bad.push(BadRange { number, from, to });
        }
        let cursor = self.random.insert(cursor);
        match found? {
            Found::Frame(at, header) if at == position.offset && header.is_record() => {
                Ok(log_record(cursor, at, &header))
            }
            _ => Err(ReadError::Damaged),
        }
    }

    pub(super) fn segments_rewritten(&self) -> u64 {
        self.common.segments_rewritten.load(Ordering::Acquire)
    }

    /// The record at a position can't be read and was given up: its file is never removed, but
    /// goes to quarantine when it is trimmed.
    pub fn given_up(&self, position: LogPosition) {
        self.keep(position.segment);
    }

    fn keep(&self, number: u64) {
        let mut state = self.common.state.lock();
        if !state.keep.contains(&number) {
            state.keep.push(number);
        }
    }

    /// The first segment whose number is at least `number`.
    fn header_from(&self, number: u64) -> Option<SegmentHeader> {
        let at = self.segments.partition_point(|s| s.header.number < number);
        let active = self.active_main().map(|a| a.header).filter(|h| h.number >= number);
        self.segments.get(at).map(|s| s.header).or(active)
    }

    fn info(&self, number: u64) -> Option<&SegmentInfo> {
        let at = self.segments.binary_search_by_key(&number, |s| s.header.number).ok()?;
        self.segments.get(at)
    }

    fn span(&self, number: u64) -> Option<Span> {
        if let Some(a) = self.active_main().filter(|a| a.header.number == number) {
            let (header, end, next_frame) = (a.header, a.end, a.next_frame);
            return Some(Span { header, end, next_frame, active: true });
        }
        let s = self.info(number)?;
        Some(Span { header: s.header, end: s.end, next_frame: s.next_frame, active: false })
    }

    /// A cursor at a segment's first frame.
    fn cursor(&self, number: u64) -> io::Result<Option<Cursor>> {
        let Some(span) = self.span(number) else { return Ok(None) };
        let file = match self.active_main().filter(|_| span.active) {
            Some(active) => active.file.file(),
            None => self.common.storage.open(&segment_name(SegmentKind::Main, number))?,
        };
        let (table, buffer) = (self.topics.clone(), self.common.options.read_buffer_bytes);
        Ok(Some(Cursor::new(file, span.header, span.end, table, buffer)))
    }

    /// Names of a segment's topics: what is known, else its seal's, else by a walk.
    fn topics_of(
        &self,
        number: u64,
        file: &Arc<dyn StorageFile>,
        skip: bool,
    ) -> io::Result<LocalTopics> {
        if let Some(active) = self.active_main().filter(|a| a.header.number == number) {
            return Ok(active.local_topics());
        }
        let Some(info) = self.info(number) else { return Ok(LocalTopics::new()) };
        if let Some(topics) = &info.topics {
            return Ok(topics.clone());
        }
        if let Some((offset, length)) = info.seal {
            match read_seal(&**file, &info.header, offset, length) {
                Ok(Some(seal)) => return Ok(intern_all(&seal, &self.topics)),
                Err(e) if !skip => return Err(e),
                _ => {}
            }
        }
        let Some(mut cursor) = self.cursor(number)? else { return Ok(LocalTopics::new()) };
        cursor.skip_unreadable(if skip { WALK_SKIPS } else { 0 });
        loop {
            match cursor.next() {
                Ok(Found::End { .. }) => break,
                Err(e) if !skip => return Err(e),
                Err(_) => break,
                Ok(_) => {}
            }
        }
        Ok(cursor.topics)
    }

    /// The frame number that is due at an offset, by a walk from the segment's beginning:
    /// only needed where a reader begins at damage.
    fn expect_at(&self, number: u64, offset: u64) -> Option<u64> {
        let mut cursor = self.cursor(number).ok().flatten()?;
        cursor.skip_unreadable(WALK_SKIPS);
        while cursor.pos < offset {
            match cursor.next() {
                Ok(Found::End { .. }) => break,
                Err(_) => return None,
                Ok(_) => {}
            }
        }
        cursor.expect
    }

    /// Has the keeper copy a bad range; a file that can't be read is kept whole instead.
    fn report_bad(
        &self,
        number: u64,
        from: u64,
        to: u64,
        met: Met,
        unreadable: bool,
    ) -> &'static str {
        if unreadable {
            self.keep(number);
            return Met::Unreadable.words();
        }
        self.common.state.lock().bad.push(BadRange { number, from, to });
        met.words()
    }
}

fn missing(records_lost: u64, why: &'static str) -> Step {
    Step::Damage { records_lost, bytes: 0, why }
}

/// A seal's names as topics of this table, by local number.
pub(super) fn intern_all(seal: &Seal, table: &TopicTable) -> LocalTopics {
    seal.topics.iter().map(|(name, _)| Some(table.intern(name))).collect()
}

/// The seal at a place, when a good one is there.
pub(super) fn read_seal(
    file: &dyn StorageFile,
    header: &SegmentHeader,
    offset: u64,
    length: u64,
) -> io::Result<Option<Seal>> {
    if length > u64::from(u32::MAX) || offset.saturating_add(length) > file.len()? {
        return Ok(None);
    }
    let mut bytes = vec![0; length as usize];
    if file.read_at(offset, &mut bytes)? < bytes.len() {
        return Ok(None);
    }
    let frame = FrameHeader::decode(&bytes).filter(|f| {
        f.kind == FrameKind::Seal
            && u64::from(f.length) == length
            && f.crc_holds(header.salt, &bytes)
    });
    Ok(frame.and_then(|_| Seal::decode(&bytes[FRAME_HEADER_BYTES..])))
}

fn log_record<'a>(cursor: &'a Cursor, at: u64, header: &FrameHeader) -> LogRecord<'a> {
    let segment = cursor.header().number;
    let body_at = FRAME_HEADER_BYTES + header.prefix_len as usize;
    let topic = cursor.topics.get(header.topic as usize).copied().flatten();
    LogRecord {
        lsn: Lsn(header.lsn),
        position: LogPosition { segment, offset: at },
        next: LogPosition { segment, offset: cursor.pos },
        record: RecordView {
            // The cursor yields no record whose topic isn't named.
            topic: topic.unwrap_or(TopicId(0)),
            partition: header.partition,
            timestamp_ms: header.timestamp_ms,
            shape: header.shape,
            body: cursor.frame_bytes(at, header).get(body_at..).unwrap_or(&[]),
        },
    }
}
