//! Owns the bytes on disk: segment header and frames; the seal's code is in `seal`. Normative.
//!
//! Everything is little-endian. Version 1.
//!
//! # Segment file
//! `NNNNNNNNNNNNNNNN.wal` (the segment's number in hexadecimal), preallocated with zeroes.
//!
//! | offset | size | what |
//! |---|---|---|
//! | 0 | 128 | header |
//! | 256 | 40 | seal locator, zero until the segment is sealed |
//! | 512 | 128 | copy of the header, in a sector of its own |
//! | 768 | 40 | copy of the seal locator |
//! | 1024 | | frames, each at a multiple of 8, to the first zero commit word |
//!
//! # Header
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `FOREBAYW` (this and the version stand there in every version) |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | header length: where frames begin, 1024 |
//! | 16 | 8 | segment number, never reused |
//! | 24 | 4 | salt: random, new at every use of a segment; it stands here only |
//! | 28 | 4 | log id: 0 is the main log |
//! | 32 | 1 | kind: 0 main, 1 set aside |
//! | 33 | 3 | reserved, 0 |
//! | 36 | 4 | longest frame that will be in this segment |
//! | 40 | 8 | directory id |
//! | 48 | 8 | base LSN: no record in it is below (0 in set-aside segments) |
//! | 56 | 8 | first frame number |
//! | 64 | 8 | created, Unix milliseconds |
//! | 72 | 8 | length of the file when it was made |
//! | 80 | 44 | reserved, 0 |
//! | 124 | 4 | CRC-32 of bytes 0 to 123 |
//!
//! # Frame
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | length: header, prefix and body; the next frame begins at the next multiple of 8 |
//! | 4 | 4 | CRC-32, seeded with the salt, over bytes 0 to 3 and 8 to length |
//! | 8 | 8 | LSN (0 in topic entry, seal and void) |
//! | 16 | 8 | frame number: dense over records and set-aside records of one log; other kinds carry that of the next one |
//! | 24 | 8 | timestamp, Unix milliseconds |
//! | 32 | 1 | kind: 1 record, 2 topic entry, 3 seal, 4 set-aside record, 5 void |
//! | 33 | 1 | flags: 1 null key, 2 null value |
//! | 34 | 2 | prefix length |
//! | 36 | 4 | topic: a number within this segment, named by a topic entry before its first use |
//! | 40 | 4 | partition, -1 for any |
//! | 44 | 4 | headers length |
//! | 48 | 4 | key length, 0 when null |
//! | 52 | 4 | value length, 0 when null |
//! | 56 | | prefix, headers, key, value; then zeroes to a multiple of 8, which no CRC covers |
//!
//! Bytes 0 to 7 are the commit word: one aligned store, after all other bytes of the frame.
//!
//! - *Topic entry*: `topic` is the number, the value is the name. Written twice, one after the
//!   other, so that damage of one costs no record.
//! - *Set-aside record*: a record with a prefix: time of setting aside (8 bytes, Unix
//!   milliseconds), error code (4, signed), then the reason in UTF-8.
//! - *Void*: an append that failed. Its length is what it took; its lengths are 0, and its
//!   CRC covers the 56 bytes of the header alone.
//! - *Seal*: the last frame. Its value:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | records (and set-aside records) |
//! | 8 | 8 | first LSN, 0 when there is no record (lowest in a set-aside segment) |
//! | 16 | 8 | last LSN, 0 when there is no record (highest in a set-aside segment) |
//! | 24 | 8 | frame number of the next record after this segment |
//! | 32 | 4 | topics |
//! | 36 | 4 | reserved, 0 |
//! | 40 | | for each topic, in the order of its number from 0: records (8), name length (2), name |
//!
//! # Seal locator
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | offset of the seal frame |
//! | 8 | 8 | its length |
//! | 16 | 8 | frame number of the next record after this segment |
//! | 24 | 8 | last LSN, as in the seal |
//! | 32 | 4 | reserved, 0 |
//! | 36 | 4 | CRC-32, seeded with the salt, of bytes 0 to 35 |
//!
//! LSNs, frame numbers and counts of records are below 2^63: what says otherwise is damaged.
//!
//! # What is assumed of the medium
//! An aligned 8-byte store is never torn in memory. On disk a sector of 512 bytes is old or
//! new, never mixed; writeback has no order; a sync covers what was stored in that file before
//! it was called; a directory's sync covers names. A mapping promises nothing else.

use super::encode::FrameEncoder;
use crate::record::{Shape, TopicId};

pub(super) const MAGIC: [u8; 8] = *b"FOREBAYW";
/// The format version that this code writes.
pub const FORMAT_VERSION: u32 = 1;
/// Where the frames of a segment begin.
pub const HEADER_AREA_BYTES: u64 = 1024;
/// Bytes of a frame's header.
pub const FRAME_HEADER_BYTES: usize = at::FRAME_HEADER_END;
/// Where the two copies of a segment's header stand.
pub(super) const HEADER_AT: [u64; 2] = [0, 512];
pub(super) const SEGMENT_HEADER_BYTES: usize = at::SEGMENT_HEADER_END;
pub(super) const ASIDE_PREFIX_BYTES: usize = 12;
/// Longest reason that a set-aside record keeps; longer ones are cut.
pub const REASON_BYTES_MAX: usize = 1024;
/// Most topics that a segment names.
pub(super) const TOPICS_PER_SEGMENT_MAX: u32 = 1 << 16;

/// LSNs, frame numbers and counts of records are below it, so that sums of them don't overflow.
pub(super) const NUMBER_LIMIT: u64 = 1 << 63;

/// Offsets, each the previous one plus its size.
pub(super) mod at {
    pub const VERSION: usize = 8;
    pub const HEADER_LEN: usize = VERSION + 4;
    pub const NUMBER: usize = HEADER_LEN + 4;
    pub const SALT: usize = NUMBER + 8;
    pub const LOG_ID: usize = SALT + 4;
    pub const SEGMENT_KIND: usize = LOG_ID + 4;
    pub const FRAME_BYTES_MAX: usize = SEGMENT_KIND + 1 + 3;
    pub const DIRECTORY_ID: usize = FRAME_BYTES_MAX + 4;
    pub const BASE_LSN: usize = DIRECTORY_ID + 8;
    pub const FIRST_FRAME: usize = BASE_LSN + 8;
    pub const CREATED: usize = FIRST_FRAME + 8;
    pub const FILE_BYTES: usize = CREATED + 8;
    pub const RESERVED: usize = FILE_BYTES + 8;
    pub const HEADER_CRC: usize = RESERVED + 44;
    pub const SEGMENT_HEADER_END: usize = HEADER_CRC + 4;
    const _: () = assert!(SEGMENT_HEADER_END == 128);

    pub const LENGTH: usize = 0;
    pub const CRC: usize = LENGTH + 4;
    pub const LSN: usize = CRC + 4;
    pub const FRAME_NUMBER: usize = LSN + 8;
    pub const TIMESTAMP: usize = FRAME_NUMBER + 8;
    pub const KIND: usize = TIMESTAMP + 8;
    pub const FLAGS: usize = KIND + 1;
    pub const PREFIX_LEN: usize = FLAGS + 1;
    pub const TOPIC: usize = PREFIX_LEN + 2;
    pub const PARTITION: usize = TOPIC + 4;
    pub const HEADERS_LEN: usize = PARTITION + 4;
    pub const KEY_LEN: usize = HEADERS_LEN + 4;
    pub const VALUE_LEN: usize = KEY_LEN + 4;
    pub const FRAME_HEADER_END: usize = VALUE_LEN + 4;
    const _: () = assert!(FRAME_HEADER_END == 56);
}

pub(super) fn put<const N: usize>(to: &mut [u8], at: usize, bytes: [u8; N]) {
    to[at..at + N].copy_from_slice(&bytes);
}

pub(super) fn get<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&from[at..at + N]);
    bytes
}

pub(super) fn get_u16(from: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(get(from, at))
}

pub(super) fn get_u32(from: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(get(from, at))
}

pub(super) fn get_u64(from: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(get(from, at))
}

/// `n` rounded up to a multiple of 8.
pub(super) const fn pad8(n: u64) -> u64 {
    n.div_ceil(8) * 8
}

/// How many zero bytes stand in front, in whole words of 8 but at the end.
pub(super) fn zeroes_in_front(bytes: &[u8]) -> usize {
    let blocks = bytes.chunks_exact(64).take_while(|b| **b == [0; 64]).count();
    let words = bytes[blocks * 64..].chunks(8).take_while(|w| w.iter().all(|b| *b == 0));
    (blocks * 64 + words.count() * 8).min(bytes.len())
}

/// What a segment is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum SegmentKind {
    /// The log.
    Main = 0,
    /// Dead letters.
    SetAside = 1,
}

/// A segment's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// The segment's number.
    pub number: u64,
    /// Seed of every CRC in the segment.
    pub salt: u32,
    /// Which log it belongs to.
    pub log_id: u32,
    /// What it is for.
    pub kind: SegmentKind,
    /// Longest frame that will be in it.
    pub frame_bytes_max: u32,
    /// The directory that it was made in.
    pub directory_id: u64,
    /// No record's LSN is below.
    pub base_lsn: u64,
    /// The first record's frame number.
    pub first_frame: u64,
    /// When it was begun.
    pub created_unix_ms: i64,
    /// How long the file was made.
    pub file_bytes: u64,
}

/// What the first bytes of a file say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderVerdict {
    Good(SegmentHeader),
    /// Nothing was ever written there.
    Unused,
    Newer(u32),
    Bad,
}

impl SegmentHeader {
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut b = [0; SEGMENT_HEADER_BYTES];
        put(&mut b, 0, MAGIC);
        put(&mut b, at::VERSION, FORMAT_VERSION.to_le_bytes());
        put(&mut b, at::HEADER_LEN, (HEADER_AREA_BYTES as u32).to_le_bytes());
        put(&mut b, at::NUMBER, self.number.to_le_bytes());
        put(&mut b, at::SALT, self.salt.to_le_bytes());
        put(&mut b, at::LOG_ID, self.log_id.to_le_bytes());
        b[at::SEGMENT_KIND] = self.kind as u8;
        put(&mut b, at::FRAME_BYTES_MAX, self.frame_bytes_max.to_le_bytes());
        put(&mut b, at::DIRECTORY_ID, self.directory_id.to_le_bytes());
        put(&mut b, at::BASE_LSN, self.base_lsn.to_le_bytes());
        put(&mut b, at::FIRST_FRAME, self.first_frame.to_le_bytes());
        put(&mut b, at::CREATED, self.created_unix_ms.to_le_bytes());
        put(&mut b, at::FILE_BYTES, self.file_bytes.to_le_bytes());
        let crc = crc32fast::hash(&b[..at::HEADER_CRC]);
        put(&mut b, at::HEADER_CRC, crc.to_le_bytes());
        b
    }

    fn decode(b: &[u8]) -> Option<SegmentHeader> {
        if b.len() < SEGMENT_HEADER_BYTES
            || b[..8] != MAGIC
            || get_u32(b, at::VERSION) != FORMAT_VERSION
            || get_u32(b, at::HEADER_LEN) != HEADER_AREA_BYTES as u32
            || get_u32(b, at::HEADER_CRC) != crc32fast::hash(&b[..at::HEADER_CRC])
            || get_u64(b, at::BASE_LSN) >= NUMBER_LIMIT
            || get_u64(b, at::FIRST_FRAME) >= NUMBER_LIMIT
        {
            return None;
        }
        Some(SegmentHeader {
            number: get_u64(b, at::NUMBER),
            salt: get_u32(b, at::SALT),
            log_id: get_u32(b, at::LOG_ID),
            kind: match b[at::SEGMENT_KIND] {
                0 => SegmentKind::Main,
                1 => SegmentKind::SetAside,
                _ => return None,
            },
            frame_bytes_max: get_u32(b, at::FRAME_BYTES_MAX),
            directory_id: get_u64(b, at::DIRECTORY_ID),
            base_lsn: get_u64(b, at::BASE_LSN),
            first_frame: get_u64(b, at::FIRST_FRAME),
            created_unix_ms: get_u64(b, at::CREATED) as i64,
            file_bytes: get_u64(b, at::FILE_BYTES),
        })
    }

    /// How many of the two copies are good.
    pub(super) fn copies_good(area: &[u8]) -> usize {
        let copies = HEADER_AT.map(|at| area.get(at as usize..).unwrap_or(&[]));
        copies.iter().filter(|c| SegmentHeader::decode(c).is_some()).count()
    }

    /// Judges the first [`HEADER_AREA_BYTES`] of a file, or what there is of them. One good
    /// copy is enough.
    pub fn judge(area: &[u8]) -> HeaderVerdict {
        let copies = HEADER_AT.map(|at| area.get(at as usize..).unwrap_or(&[]));
        if let Some(header) = copies.iter().find_map(|c| SegmentHeader::decode(c)) {
            return HeaderVerdict::Good(header);
        }
        if area.iter().all(|b| *b == 0) {
            return HeaderVerdict::Unused;
        }
        // A newer version may have moved everything but magic and version.
        if area.len() >= at::NUMBER && area[..8] == MAGIC {
            let version = get_u32(area, at::VERSION);
            let bytes = get_u32(area, at::HEADER_LEN);
            let crc_holds = area.len() >= SEGMENT_HEADER_BYTES
                && get_u32(area, at::HEADER_CRC) == crc32fast::hash(&area[..at::HEADER_CRC]);
            if version > FORMAT_VERSION && (bytes != HEADER_AREA_BYTES as u32 || crc_holds) {
                return HeaderVerdict::Newer(version);
            }
        }
        HeaderVerdict::Bad
    }
}

/// What a frame holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameKind {
    /// A record.
    Record = 1,
    /// A topic's name.
    Topic = 2,
    /// The end of the segment, with its counts.
    Seal = 3,
    /// A record with the reason why it was set aside.
    SetAside = 4,
    /// A failed append.
    Void = 5,
}

/// A frame's first 56 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// Bytes from the commit word to the end of the body.
    pub length: u32,
    /// The checksum.
    pub crc: u32,
    /// The record's number.
    pub lsn: u64,
    /// The record's number in the log.
    pub frame_number: u64,
    /// CreateTime.
    pub timestamp_ms: i64,
    /// What it holds.
    pub kind: FrameKind,
    /// Bytes before the body.
    pub prefix_len: u16,
    /// The topic's number in this segment.
    pub topic: u32,
    /// The partition.
    pub partition: i32,
    /// The body's parts.
    pub shape: Shape,
}

impl FrameHeader {
    /// A header of `kind` with everything else 0, for frames without a record.
    pub(super) fn plain(kind: FrameKind, frame_number: u64, topic: u32, value_len: u32) -> Self {
        FrameHeader {
            length: FRAME_HEADER_BYTES as u32 + value_len,
            crc: 0,
            lsn: 0,
            frame_number,
            timestamp_ms: 0,
            kind,
            prefix_len: 0,
            topic,
            partition: 0,
            shape: Shape { headers_len: 0, key_len: None, value_len: Some(value_len) },
        }
    }

    /// The header's bytes with the CRC over them and the two parts that follow.
    pub fn encode(&self, salt: u32, prefix: &[u8], body: &[u8]) -> [u8; FRAME_HEADER_BYTES] {
        let mut b = [0; FRAME_HEADER_BYTES];
        let mut encoder = FrameEncoder::new(salt);
        let image = encoder.encode(self, prefix, body);
        put(&mut b, at::LENGTH, image.word.to_le_bytes());
        b[at::LSN..].copy_from_slice(&image.head[..FRAME_HEADER_BYTES - at::LSN]);
        b
    }

    /// Puts what stands behind the commit word: in whole words, because what was just stored is
    /// loaded again in larger pieces.
    pub(super) fn put_fields(&self, to: &mut [u8]) {
        const { assert!(at::FLAGS == at::KIND + 1 && at::PREFIX_LEN == at::KIND + 2) };
        const { assert!(at::TOPIC == at::KIND + 4 && at::HEADERS_LEN == at::PARTITION + 4) };
        const { assert!(at::VALUE_LEN == at::KEY_LEN + 4) };
        let pair = |low: u32, high: u32| u64::from(low) | (u64::from(high) << 32);
        let flags = u32::from(self.shape.key_len.is_none())
            | (u32::from(self.shape.value_len.is_none()) << 1);
        let kind = self.kind as u32 | (flags << 8) | (u32::from(self.prefix_len) << 16);
        let (key, value) = (self.shape.key_len.unwrap_or(0), self.shape.value_len.unwrap_or(0));
        let words = [
            (at::LSN, self.lsn),
            (at::FRAME_NUMBER, self.frame_number),
            (at::TIMESTAMP, self.timestamp_ms as u64),
            (at::KIND, pair(kind, self.topic)),
            (at::PARTITION, pair(self.partition as u32, self.shape.headers_len)),
            (at::KEY_LEN, pair(key, value)),
        ];
        for (at, word) in words {
            put(to, at - at::LSN, word.to_le_bytes());
        }
    }

    /// Whether the kind in a header's bytes is one of this version.
    pub(super) fn knows_kind(b: &[u8]) -> bool {
        matches!(b.get(at::KIND), Some(1..=5))
    }

    /// Reads a header whose fields agree with each other; the CRC isn't looked at.
    #[inline(always)]
    pub fn decode(b: &[u8]) -> Option<FrameHeader> {
        // Of a known length, so that no field's place is checked again.
        let b: &[u8; FRAME_HEADER_BYTES] = b.first_chunk()?;
        let kind = match b[at::KIND] {
            1 => FrameKind::Record,
            2 => FrameKind::Topic,
            3 => FrameKind::Seal,
            4 => FrameKind::SetAside,
            5 => FrameKind::Void,
            _ => return None,
        };
        let flags = b[at::FLAGS];
        let (key_len, value_len) = (get_u32(b, at::KEY_LEN), get_u32(b, at::VALUE_LEN));
        if flags & !3 != 0 || (flags & 1 != 0 && key_len != 0) || (flags & 2 != 0 && value_len != 0)
        {
            return None;
        }
        let header = FrameHeader {
            length: get_u32(b, at::LENGTH),
            crc: get_u32(b, at::CRC),
            lsn: get_u64(b, at::LSN),
            frame_number: get_u64(b, at::FRAME_NUMBER),
            timestamp_ms: get_u64(b, at::TIMESTAMP) as i64,
            kind,
            prefix_len: get_u16(b, at::PREFIX_LEN),
            topic: get_u32(b, at::TOPIC),
            partition: get_u32(b, at::PARTITION) as i32,
            shape: Shape {
                headers_len: get_u32(b, at::HEADERS_LEN),
                key_len: (flags & 1 == 0).then_some(key_len),
                value_len: (flags & 2 == 0).then_some(value_len),
            },
        };
        let parts = u64::from(header.prefix_len)
            + u64::from(header.shape.headers_len)
            + u64::from(key_len)
            + u64::from(value_len);
        let agrees = match kind {
            FrameKind::Void => parts == 0 && header.length as usize >= FRAME_HEADER_BYTES,
            _ => u64::from(header.length) == FRAME_HEADER_BYTES as u64 + parts,
        };
        let prefix_agrees = match kind {
            FrameKind::SetAside => header.prefix_len as usize >= ASIDE_PREFIX_BYTES,
            _ => header.prefix_len == 0,
        };
        let in_bounds = header.lsn < NUMBER_LIMIT && header.frame_number < NUMBER_LIMIT;
        (agrees && prefix_agrees && in_bounds).then_some(header)
    }

    /// Whether the CRC holds over a whole frame's bytes, `length` of them.
    #[inline(always)]
    pub fn crc_holds(&self, salt: u32, frame: &[u8]) -> bool {
        let covered = if self.kind == FrameKind::Void { FRAME_HEADER_BYTES } else { frame.len() };
        // What it covers is in two pieces, with the CRC itself between them. A CRC begins with
        // its seed XORed into the first four bytes: a seed that turns the CRC's bytes, which
        // stand right before the second piece, into those of the length makes it one piece.
        let seed = salt ^ self.length ^ self.crc;
        let mut crc = crc32fast::Hasher::new_with_initial(seed);
        crc.update(frame.get(at::CRC..covered).unwrap_or(&[]));
        crc.finalize() == self.crc
    }

    /// Bytes from this frame's beginning to the next one's.
    pub(super) fn stride(&self) -> u64 {
        pad8(u64::from(self.length))
    }

    pub(super) fn is_record(&self) -> bool {
        matches!(self.kind, FrameKind::Record | FrameKind::SetAside)
    }
}

/// What a set-aside record says beside the record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetAsideNote<'a> {
    /// Why.
    pub reason: &'a str,
    /// Kafka's or our error code.
    pub code: i32,
    /// When.
    pub unix_ms: i64,
}

/// What the reason of a record begins with that was set aside while its topic was held, or one
/// partition of it: then the partition follows in brackets.
const HELD: &str = "held:";
/// What follows then where the record had gone live, beside a backlog.
const LIVE: &str = "live:";

impl<'a> SetAsideNote<'a> {
    /// The reason that a held record is set aside with.
    pub fn held_reason(name: &str, partition: Option<i32>, is_live: bool) -> String {
        let live = if is_live { LIVE } else { "" };
        match partition {
            Some(partition) => format!("{HELD}{live}{name}[{partition}]"),
            None => format!("{HELD}{live}{name}"),
        }
    }

    /// Whether it had gone live: it waits for nothing that went through the log.
    pub fn is_live(&self) -> bool {
        self.reason.strip_prefix(HELD).is_some_and(|held| held.starts_with(LIVE))
    }

    /// What was held, and why: the name, and the partition if it was held by itself. `None` for a
    /// dead letter.
    pub fn held(&self) -> Option<(&'a str, Option<i32>)> {
        let held = self.reason.strip_prefix(HELD)?;
        let held = held.strip_prefix(LIVE).unwrap_or(held);
        let of_partition = held.strip_suffix(']').and_then(|h| h.split_once('['));
        let of_partition = of_partition.and_then(|(name, n)| Some((name, n.parse().ok()?)));
        Some(of_partition.map_or((held, None), |(name, n)| (name, Some(n))))
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut cut = self.reason.len().min(REASON_BYTES_MAX);
        while !self.reason.is_char_boundary(cut) {
            cut -= 1;
        }
        let mut b = Vec::with_capacity(ASIDE_PREFIX_BYTES + cut);
        b.extend_from_slice(&self.unix_ms.to_le_bytes());
        b.extend_from_slice(&self.code.to_le_bytes());
        b.extend_from_slice(&self.reason.as_bytes()[..cut]);
        b
    }

    pub fn decode(b: &'a [u8]) -> Option<Self> {
        let (fixed, reason) = b.split_at_checked(ASIDE_PREFIX_BYTES)?;
        Some(SetAsideNote {
            reason: std::str::from_utf8(reason).ok()?,
            code: get_u32(fixed, 8) as i32,
            unix_ms: get_u64(fixed, 0) as i64,
        })
    }
}

/// A segment's topics by their local numbers; `None` where the name is lost.
pub(super) type LocalTopics = Vec<Option<TopicId>>;

/// The file name of a segment, relative to the log's directory.
pub(super) fn segment_name(kind: SegmentKind, number: u64) -> String {
    match kind {
        SegmentKind::Main => format!("{number:016x}.wal"),
        SegmentKind::SetAside => format!("{SET_ASIDE_DIR}/{number:016x}.wal"),
    }
}

/// The number that a file's name begins with, if it is a segment's or one made from it.
pub(super) fn number_of(name: &str) -> Option<u64> {
    let digits = name.get(..16)?;
    digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')).then_some(())?;
    u64::from_str_radix(digits, 16).ok()
}

/// Directory of dead letters.
pub const SET_ASIDE_DIR: &str = "set-aside";
/// Directory of what was bad.
pub const QUARANTINE_DIR: &str = "quarantine";
/// Directory of what a newer version wrote.
pub const NEWER_DIR: &str = "newer-version";
