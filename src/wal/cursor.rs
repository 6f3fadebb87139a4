//! Owns the walk over one segment's frames: recovery, readers and inspection all use it.
//!
//! What stands at a position is a [`Met`]; what is made of it, the table in `verdict` says. When
//! no good frame stands where one should, the walk looks for the next position at which a whole
//! good frame stands whose frame number and LSN fit between its neighbours.
//!
//! A bad range costs exactly as many records as frame numbers are skipped. A frame found
//! behind a range can't be further in number than frames fit into the range.
//!
//! A read that fails is an error, and nothing has moved: the caller decides when to try again,
//! and when to let the walk pass unreadable pages.

use super::format::{
    FRAME_HEADER_BYTES, FrameHeader, FrameKind, HEADER_AREA_BYTES, LocalTopics, SegmentHeader,
    SegmentKind, TOPICS_PER_SEGMENT_MAX, get_u64, pad8, zeroes_in_front,
};
use super::prefetch::prefetch;
use super::storage::{StorageFile, Window};
use super::verdict::Met;
use crate::topics::TopicTable;
use std::io;
use std::sync::Arc;

/// What is read at once where a larger read fails, and what is passed when it can't be read.
const PAGE_BYTES: u64 = 4096;
/// Windows begin and end at multiples of this, where the file does: a piece of the page cache of
/// this size is then mapped at once, where the filesystem keeps such pieces.
const WINDOW_BYTES: u64 = 2 << 20;

/// What a cursor met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// A good frame at this offset; its bytes can be had until the next call.
    Frame(u64, FrameHeader),
    /// Bytes that are no frame. `lost` is `None` when the number before isn't known.
    Bad { from: u64, to: u64, lost: Option<u64>, met: Met },
    /// No frame stands from `from` on; up to `to` there are bytes that aren't zero, or that
    /// can't be read.
    End { from: u64, to: u64, met: Met },
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
    /// Holds the bytes from `buf_at` on instead of `buf`, where there is one.
    window: Option<Box<dyn Window>>,
    /// Windows are tried before reads.
    windows: bool,
    /// Ranges that can't be read and are passed over, in order.
    holes: Vec<(u64, u64)>,
    /// Unreadable pages that may still be passed over.
    skips: u32,
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
            window: None,
            windows: false,
            holes: Vec::new(),
            skips: 0,
        }
    }

    /// Lets the walk look at the file through windows. Only for segments that nobody appends to,
    /// and for walks that use nothing of a frame's bytes after they asked for the next one.
    pub fn look_through_windows(&mut self) {
        self.windows = true;
    }

    /// Lets the walk pass over this many unreadable pages.
    pub fn skip_unreadable(&mut self, pages: u32) {
        self.skips = pages;
    }

    /// Whether something between these offsets was passed over unread.
    pub fn is_unreadable(&self, from: u64, to: u64) -> bool {
        self.holes.iter().any(|h| h.0 < to && from < h.1)
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

    /// No record from here on has a lower LSN.
    pub fn lsn_min(&self) -> u64 {
        self.lsn_min
    }

    pub fn file(&self) -> &Arc<dyn StorageFile> {
        &self.file
    }

    /// Bytes of the frame that was just returned.
    pub fn frame_bytes(&self, offset: u64, header: &FrameHeader) -> &[u8] {
        let from = offset.saturating_sub(self.buf_at) as usize;
        self.held().get(from..from + header.length as usize).unwrap_or(&[])
    }

    /// The next frame, bad range or the end. On an error nothing has moved.
    #[inline]
    pub fn next(&mut self) -> io::Result<Found> {
        match self.next_record() {
            Some((at, header)) => Ok(Found::Frame(at, header)),
            None => self.next_found(),
        }
    }

    /// The next frame when it is a good record whose bytes are held: nearly every one is, and
    /// needs nothing of what the table of verdicts is for. `None` says that it isn't, and nothing
    /// has moved.
    // Inlined, and what it calls: a header that is handed on is stored in small pieces and loaded
    // again in large ones, which waits for the stores; in registers it is not.
    #[inline(always)]
    pub fn next_record(&mut self) -> Option<(u64, FrameHeader)> {
        let at = self.pos;
        if self.sealed || !self.holes.is_empty() {
            return None;
        }
        let held = self.held();
        let from = usize::try_from(at.checked_sub(self.buf_at)?).ok()?;
        let bytes = held.get(from..)?;
        let header = FrameHeader::decode(bytes)?;
        let frame = bytes.get(..header.length as usize)?;
        if self.window.is_some() {
            // From memory, and the processor looks ahead to the end of a page only.
            prefetch(frame.as_ptr().wrapping_add(frame.len()), frame.len());
        }
        let is_good = header.is_record()
            && header.length <= self.header.frame_bytes_max
            && at + u64::from(header.length) <= self.limit
            && self.fits(&header, 0)
            && self.topics.get(header.topic as usize).is_some_and(Option::is_some)
            && header.crc_holds(self.header.salt, frame)
            && !self.is_torn();
        if !is_good {
            return None;
        }
        self.pass(at, &header);
        Some((at, header))
    }

    fn is_torn(&self) -> bool {
        self.window.as_ref().is_some_and(|w| w.is_torn())
    }

    /// The same without the short way of [`Cursor::next_record`].
    pub fn next_found(&mut self) -> io::Result<Found> {
        let before = (self.pos, self.expect, self.lsn_min, self.sealed);
        let found = self.step();
        if self.is_torn() {
            // What was found may not be in the file: once more, by reads.
            (self.pos, self.expect, self.lsn_min, self.sealed) = before;
            (self.windows, self.window) = (false, None);
            self.buf.clear();
            return self.step();
        }
        found
    }

    fn step(&mut self) -> io::Result<Found> {
        if self.sealed {
            return Ok(Found::End { from: self.pos, to: self.pos, met: Met::Seal });
        }
        let from = self.pos;
        let mut met = match self.check(from, from)? {
            Ok(header) => return Ok(self.accept(from, header)),
            Err(met) => met,
        };
        let mut pos = from;
        let mut last_set = from;
        while let Some(at) = self.skip_zeroes(pos)? {
            // `from` was looked at above.
            if at > from
                && let Ok(header) = self.check(at, from)?
            {
                let lost = self.expect.map(|n| header.frame_number - n);
                self.expect = Some(header.frame_number);
                self.pos = at;
                return Ok(Found::Bad { from, to: at, lost, met });
            }
            if met == Met::Zeroes {
                met = if self.hole_at(at).is_some() { Met::Unreadable } else { Met::Uncommitted };
            }
            pos = self.hole_at(at).map_or(at + 8, |hole| hole.1);
            last_set = pos;
        }
        Ok(Found::End { from, to: last_set.min(self.limit), met })
    }

    fn accept(&mut self, at: u64, header: FrameHeader) -> Found {
        let from = at;
        let to = self.pass(at, &header);
        match header.kind {
            FrameKind::Topic => self.name_topic(at, &header),
            FrameKind::Seal => self.sealed = true,
            FrameKind::Void => {}
            FrameKind::Record | FrameKind::SetAside => {
                let named = self.topics.get(header.topic as usize).is_some_and(Option::is_some);
                if !named {
                    return Found::Bad { from, to, lost: Some(1), met: Met::UnknownTopic };
                }
            }
        }
        Found::Frame(at, header)
    }

    /// Moves behind a good frame; returns where that is.
    #[inline(always)]
    fn pass(&mut self, at: u64, header: &FrameHeader) -> u64 {
        if header.is_record() {
            self.expect = Some(header.frame_number.saturating_add(1));
            if self.header.kind == SegmentKind::Main {
                self.lsn_min = header.lsn.saturating_add(1);
            }
        }
        self.pos = (at + header.stride()).min(self.limit);
        self.pos
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

    /// What stands at `at`, behind a gap from `gap_from`: a whole good frame, or what else.
    fn check(&mut self, at: u64, gap_from: u64) -> io::Result<Result<FrameHeader, Met>> {
        let bytes = self.bytes(at, FRAME_HEADER_BYTES)?;
        if bytes.len() < 8 {
            let end = bytes.is_empty();
            return Ok(Err(self.short(at, if end { Met::EndOfFile } else { Met::CutOff })));
        }
        if get_u64(bytes, 0) == 0 {
            return Ok(Err(Met::Zeroes));
        }
        if bytes.len() < FRAME_HEADER_BYTES {
            return Ok(Err(self.short(at, Met::CutOff)));
        }
        let kind_is_known = FrameHeader::knows_kind(bytes);
        let Some(header) = FrameHeader::decode(bytes) else {
            return Ok(Err(if kind_is_known { Met::BadLength } else { Met::UnknownKind }));
        };
        if header.is_record() && header.length > self.header.frame_bytes_max {
            return Ok(Err(Met::BadLength));
        }
        if at + u64::from(header.length) > self.limit {
            return Ok(Err(Met::CutOff));
        }
        let fits = self.fits(&header, at - gap_from);
        if !fits && at > gap_from {
            return Ok(Err(Met::OutOfOrder));
        }
        let salt = self.header.salt;
        let length = header.length as usize;
        let Some(frame) = self.bytes(at, length)?.get(..length) else {
            return Ok(Err(self.short(at, Met::CutOff)));
        };
        Ok(match (header.crc_holds(salt, frame), fits) {
            (true, true) => Ok(header),
            (true, false) => Err(Met::OutOfOrder),
            (false, _) => Err(Met::BadCrc),
        })
    }

    /// Why there are fewer bytes at `at` than a frame needs.
    fn short(&self, at: u64, otherwise: Met) -> Met {
        let hole = self.holes.iter().find(|h| h.1 > at);
        if hole.is_some_and(|h| h.0 < self.limit) { Met::Unreadable } else { otherwise }
    }

    fn hole_at(&self, at: u64) -> Option<(u64, u64)> {
        self.holes.iter().find(|h| h.0 <= at && at < h.1).copied()
    }

    /// Whether a frame behind `gap_bytes` of no frames may have this number, LSN and topic.
    #[inline(always)]
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

    /// The first position at or behind `pos` whose 8 bytes aren't all zero, or can't be read.
    fn skip_zeroes(&mut self, mut pos: u64) -> io::Result<Option<u64>> {
        loop {
            let bytes = self.bytes(pos, 8)?;
            if bytes.is_empty() {
                return Ok(self.hole_at(pos).filter(|_| pos < self.limit).map(|_| pos));
            }
            let zeroes = zeroes_in_front(bytes);
            if zeroes < bytes.len() {
                return Ok(Some(pos + zeroes as u64));
            }
            pos += pad8(zeroes as u64);
        }
    }

    /// At least `len` bytes at `at`, fewer only at the limit, at the file's end or at a hole,
    /// more if they are there anyway.
    fn bytes(&mut self, at: u64, len: usize) -> io::Result<&[u8]> {
        let hole = self.holes.iter().find(|h| h.1 > at).map_or(u64::MAX, |h| h.0);
        let left = self.limit.min(hole).saturating_sub(at);
        let want = (len as u64).min(left) as usize;
        if want == 0 {
            return Ok(&[]);
        }
        let have = at >= self.buf_at && at + want as u64 <= self.buf_at + self.held().len() as u64;
        if !have && !self.look(at, want, left) {
            let room = (want.max(self.buffer_bytes) as u64).min(left) as usize;
            self.buf.resize(room, 0);
            self.buf_at = at;
            let read = match self.file.read_at(at, &mut self.buf) {
                Ok(read) => Some(read),
                Err(_) => self.read_pages(want)?,
            };
            if let Some(read) = read {
                self.buf.truncate(read);
                if read < room {
                    // The file is shorter than it should be.
                    self.limit = at + read as u64;
                }
            }
        }
        let held = self.held();
        let from = (at.saturating_sub(self.buf_at) as usize).min(held.len());
        let to = ((self.limit.saturating_sub(self.buf_at)) as usize).min(held.len());
        Ok(&held[from.min(to)..to])
    }

    /// The bytes from `buf_at` on.
    fn held(&self) -> &[u8] {
        self.window.as_ref().map_or(&self.buf, |w| w.bytes())
    }

    /// Moves the window over `at`; false when the bytes have to be read.
    fn look(&mut self, at: u64, want: usize, left: u64) -> bool {
        self.window = None;
        if !self.windows {
            return false;
        }
        let from = at / WINDOW_BYTES * WINDOW_BYTES;
        let to = (at + want as u64).next_multiple_of(WINDOW_BYTES).min(at + left);
        self.window = self.file.window(from, (to - from) as usize);
        self.windows = self.window.is_some();
        self.buf.clear();
        self.buf_at = from;
        self.windows
    }

    /// Fills the buffer a page at a time, up to the first page that can't be read; that one is
    /// passed over if it stands within `want` and may be. `None` when the buffer was cut short by
    /// such a page, else the bytes up to the file's end.
    fn read_pages(&mut self, want: usize) -> io::Result<Option<usize>> {
        let mut done = 0;
        while done < self.buf.len() {
            let at = self.buf_at + done as u64;
            let page_end = (at / PAGE_BYTES + 1) * PAGE_BYTES;
            let end = ((page_end - self.buf_at) as usize).min(self.buf.len());
            match self.file.read_at(at, &mut self.buf[done..end]) {
                Ok(read) if read < end - done => return Ok(Some(done + read)),
                Ok(_) => done = end,
                Err(e) => {
                    self.buf.truncate(done);
                    if done < want || done == 0 {
                        if self.skips == 0 {
                            self.buf.clear();
                            return Err(e);
                        }
                        self.skips -= 1;
                        match self.holes.last_mut().filter(|h| h.1 == at) {
                            Some(hole) => hole.1 = page_end,
                            None => {
                                self.holes.push((at, page_end));
                                self.holes.sort_unstable();
                            }
                        }
                    }
                    return Ok(None);
                }
            }
        }
        Ok(Some(done))
    }
}
