//! Owns the walk over one segment's frames: recovery, readers and inspection all use it.
//!
//! # The table
//! What stands at a position, and the verdict. "Found" is the next position at which a whole
//! good frame stands whose frame number and LSN fit between its neighbours.
//!
//! | met | a good frame found behind it | none found |
//! |---|---|---|
//! | good frame, next in number | accept | accept |
//! | zeroes | bad range up to it | clean end |
//! | fields disagree, CRC fails, cut by the end of the file | bad range up to it | torn tail |
//! | good CRC, frame number or LSN out of order | bad range up to it | torn tail |
//! | good frame, topic unnamed | that frame is a bad range | that frame is a bad range |
//! | seal | end | end |
//!
//! A bad range costs exactly as many records as frame numbers are skipped. A frame found
//! behind a range can't be further in number than frames fit into the range.

use super::format::{
    FRAME_HEADER_BYTES, FrameHeader, FrameKind, HEADER_AREA_BYTES, LocalTopics, SegmentHeader,
    SegmentKind, TOPICS_PER_SEGMENT_MAX, get_u64, pad8,
};
use super::storage::StorageFile;
use crate::topics::TopicTable;
use std::io;
use std::sync::Arc;

/// What a cursor met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// A good frame at this offset; its bytes can be had until the next call.
    Frame(u64, FrameHeader),
    /// Bytes that are no frame. `lost` is `None` when the number before isn't known.
    Bad { from: u64, to: u64, lost: Option<u64> },
    /// No frame stands from `from` on; up to `to` there are bytes that aren't zero.
    End { from: u64, to: u64 },
}

pub(super) struct Cursor {
    file: Arc<dyn StorageFile>,
    header: SegmentHeader,
    /// No byte from here on is looked at.
    pub limit: u64,
    /// Where the next frame should be.
    pub pos: u64,
    /// The next record's frame number, when known.
    pub expect: Option<u64>,
    lsn_min: u64,
    pub topics: LocalTopics,
    table: Arc<TopicTable>,
    sealed: bool,
    buf: Vec<u8>,
    buf_at: u64,
    buffer_bytes: usize,
}

impl Cursor {
    /// A cursor at the first frame.
    pub fn new(
        file: Arc<dyn StorageFile>,
        header: SegmentHeader,
        limit: u64,
        table: Arc<TopicTable>,
        buffer_bytes: usize,
    ) -> Cursor {
        Cursor {
            file,
            header,
            limit,
            pos: HEADER_AREA_BYTES,
            expect: Some(header.first_frame),
            lsn_min: header.base_lsn,
            topics: LocalTopics::new(),
            table,
            sealed: false,
            buf: Vec::new(),
            buf_at: 0,
            buffer_bytes,
        }
    }

    /// Puts the cursor at a position behind the first frame. The topics' names must be given,
    /// since their entries may lie before it.
    pub fn seek(&mut self, pos: u64, topics: LocalTopics) {
        self.sealed = false;
        if pos > HEADER_AREA_BYTES {
            self.pos = pos;
            self.expect = None;
            self.lsn_min = self.header.base_lsn;
        }
        self.topics = topics;
    }

    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    pub fn file(&self) -> &Arc<dyn StorageFile> {
        &self.file
    }

    /// Bytes of the frame that was just returned.
    pub fn frame_bytes(&self, offset: u64, header: &FrameHeader) -> &[u8] {
        let from = offset.saturating_sub(self.buf_at) as usize;
        self.buf.get(from..from + header.length as usize).unwrap_or(&[])
    }

    /// The next frame, bad range or the end. On an error nothing has moved.
    pub fn next(&mut self) -> io::Result<Found> {
        if self.sealed {
            return Ok(Found::End { from: self.pos, to: self.pos });
        }
        let from = self.pos;
        if let Some(header) = self.check(from, from)? {
            return Ok(self.accept(from, header));
        }
        let mut pos = from;
        let mut last_set = from;
        while let Some(at) = self.skip_zeroes(pos)? {
            // `from` was looked at above.
            if at > from
                && let Some(header) = self.check(at, from)?
            {
                let lost = self.expect.map(|n| header.frame_number - n);
                self.expect = Some(header.frame_number);
                self.pos = at;
                return Ok(Found::Bad { from, to: at, lost });
            }
            last_set = at + 8;
            pos = at + 8;
        }
        Ok(Found::End { from, to: last_set.min(self.limit) })
    }

    fn accept(&mut self, at: u64, header: FrameHeader) -> Found {
        let next = (at + header.stride()).min(self.limit);
        match header.kind {
            FrameKind::Topic => self.name_topic(at, &header),
            FrameKind::Seal => self.sealed = true,
            FrameKind::Void => {}
            FrameKind::Record | FrameKind::SetAside => {
                self.pos = next;
                self.expect = Some(header.frame_number.saturating_add(1));
                if self.header.kind == SegmentKind::Main {
                    self.lsn_min = header.lsn.saturating_add(1);
                }
                let named = self.topics.get(header.topic as usize).is_some_and(Option::is_some);
                if !named {
                    return Found::Bad { from: at, to: next, lost: Some(1) };
                }
            }
        }
        self.pos = next;
        Found::Frame(at, header)
    }

    fn name_topic(&mut self, at: u64, header: &FrameHeader) {
        let local = header.topic as usize;
        let name = self.frame_bytes(at, header).get(FRAME_HEADER_BYTES..).unwrap_or(&[]);
        let Ok(name) = std::str::from_utf8(name) else { return };
        let id = self.table.intern(name);
        if self.topics.len() <= local {
            self.topics.resize(local + 1, None);
        }
        self.topics[local] = Some(id);
    }

    /// A whole good frame at `at`, if one is there that may stand behind a gap from `gap_from`.
    fn check(&mut self, at: u64, gap_from: u64) -> io::Result<Option<FrameHeader>> {
        let bytes = self.bytes(at, FRAME_HEADER_BYTES)?;
        if bytes.len() < FRAME_HEADER_BYTES || get_u64(bytes, 0) == 0 {
            return Ok(None);
        }
        let Some(header) = FrameHeader::decode(bytes) else { return Ok(None) };
        let too_long = header.is_record() && header.length > self.header.frame_bytes_max;
        if too_long
            || at + u64::from(header.length) > self.limit
            || !self.fits(&header, at - gap_from)
        {
            return Ok(None);
        }
        let salt = self.header.salt;
        let frame = self.bytes(at, header.length as usize)?.get(..header.length as usize);
        Ok(frame.is_some_and(|f| header.crc_holds(salt, f)).then_some(header))
    }

    /// Whether a frame behind `gap_bytes` of no frames may have this number, LSN and topic.
    fn fits(&self, header: &FrameHeader, gap_bytes: u64) -> bool {
        let records_at_most = gap_bytes / FRAME_HEADER_BYTES as u64;
        let number_fits = self.expect.is_none_or(|n| {
            header.frame_number.checked_sub(n).is_some_and(|skipped| skipped <= records_at_most)
        });
        let rest_fits = match header.kind {
            FrameKind::Record => {
                self.header.kind == SegmentKind::Main
                    && header.lsn >= self.lsn_min
                    && header.lsn < u64::MAX
            }
            FrameKind::SetAside => self.header.kind == SegmentKind::SetAside,
            FrameKind::Topic => header.topic < TOPICS_PER_SEGMENT_MAX,
            FrameKind::Seal | FrameKind::Void => true,
        };
        number_fits && rest_fits && header.frame_number < u64::MAX
    }

    /// The first position at or behind `pos` whose 8 bytes aren't all zero.
    fn skip_zeroes(&mut self, mut pos: u64) -> io::Result<Option<u64>> {
        loop {
            let bytes = self.bytes(pos, 8)?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let blocks = bytes.chunks_exact(64).take_while(|b| **b == [0; 64]).count();
            let words = bytes[blocks * 64..].chunks(8).take_while(|w| w.iter().all(|b| *b == 0));
            let zeroes = (blocks * 64 + words.count() * 8).min(bytes.len());
            if zeroes < bytes.len() {
                return Ok(Some(pos + zeroes as u64));
            }
            pos += pad8(zeroes as u64);
        }
    }

    /// At least `len` bytes at `at`, fewer only at the limit or the file's end, more if they
    /// are there anyway.
    fn bytes(&mut self, at: u64, len: usize) -> io::Result<&[u8]> {
        let left = self.limit.saturating_sub(at);
        let want = (len as u64).min(left) as usize;
        let have = |c: &Cursor| at >= c.buf_at && at + want as u64 <= c.buf_at + c.buf.len() as u64;
        if !have(self) {
            let room = (want.max(self.buffer_bytes) as u64).min(left) as usize;
            self.buf.resize(room, 0);
            self.buf_at = at;
            let read = self.file.read_at(at, &mut self.buf);
            self.buf.truncate(*read.as_ref().unwrap_or(&0));
            let read = read?;
            if read < room {
                // The file is shorter than it should be.
                self.limit = at + read as u64;
            }
        }
        let from = (at.saturating_sub(self.buf_at) as usize).min(self.buf.len());
        let to = ((self.limit.saturating_sub(self.buf_at)) as usize).min(self.buf.len());
        Ok(&self.buf[from.min(to)..to])
    }
}
