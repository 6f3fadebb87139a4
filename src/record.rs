//! Words about one record that every room uses: its number, its topic, its parts.
//!
//! Owns: [`Lsn`], [`TopicId`], [`LogPosition`], [`RecordView`] and the encoding of headers.
//! A record's bytes always lie in one piece, the *body*: headers, then key, then value. The
//! same body goes from the arena to the sink or into a frame of the log, so it is copied whole.

/// The number that the flusher gives a record when it pops it: one sequence, no gaps within
/// a run, never used twice over the life of a directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The number after this one.
    #[must_use]
    pub fn next(self) -> Lsn {
        Lsn(self.0 + 1)
    }
}

impl std::fmt::Display for Lsn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A topic's number within one pipeline; numbers are dense from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TopicId(pub u32);

/// Where a frame begins: the segment's number and the byte offset within its file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct LogPosition {
    /// The segment's number (not its index: numbers are never reused).
    pub segment: u64,
    /// Byte offset of the frame in the segment's file.
    pub offset: u64,
}

/// `partition` of a record whose partition the sink is to choose.
pub const ANY_PARTITION: i32 = -1;
/// `receipt` of a record that nobody waits for.
pub const NO_RECEIPT: u32 = u32::MAX;
/// Most headers a record may carry.
pub const HEADERS_MAX: usize = 16;
/// Longest header name, in bytes.
pub const HEADER_NAME_BYTES_MAX: usize = 1024;
/// Bytes that the encoding adds to each header's name and value.
pub const HEADER_OVERHEAD_BYTES: usize = 6;

const NULL_VALUE: u32 = u32::MAX;

/// One header: a name and a value, which may be null.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header<'a> {
    /// The name: UTF-8, 1 to [`HEADER_NAME_BYTES_MAX`] bytes, no NUL byte.
    pub name: &'a str,
    /// The value; null differs from empty.
    pub value: Option<&'a [u8]>,
}

impl Header<'_> {
    /// Bytes this header takes in a body.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        HEADER_OVERHEAD_BYTES + self.name.len() + self.value.map_or(0, <[u8]>::len)
    }

    /// Whether Kafka's and our own limits allow this header's name.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        !self.name.is_empty()
            && self.name.len() <= HEADER_NAME_BYTES_MAX
            && !self.name.as_bytes().contains(&0)
    }

    /// Writes the header to the front of `to` and returns the bytes written.
    /// `to` must be at least [`Header::encoded_len`] long; shorter is a caller's bug and panics.
    #[inline]
    pub fn encode(&self, to: &mut [u8]) -> usize {
        let name = self.name.as_bytes();
        let value = self.value.unwrap_or(&[]);
        let value_len = if self.value.is_some() { value.len() as u32 } else { NULL_VALUE };
        to[..2].copy_from_slice(&(name.len() as u16).to_le_bytes());
        to[2..6].copy_from_slice(&value_len.to_le_bytes());
        to[6..6 + name.len()].copy_from_slice(name);
        let end = 6 + name.len() + value.len();
        to[6 + name.len()..end].copy_from_slice(value);
        end
    }
}

/// How long each part of a body is, and which parts are null.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shape {
    /// Bytes of encoded headers, 0 for none.
    pub headers_len: u32,
    /// Bytes of key; `None` is a null key.
    pub key_len: Option<u32>,
    /// Bytes of value; `None` is a null value (a tombstone).
    pub value_len: Option<u32>,
}

impl Shape {
    /// Bytes of the whole body.
    #[must_use]
    #[inline]
    pub fn body_len(&self) -> usize {
        self.headers_len as usize
            + self.key_len.unwrap_or(0) as usize
            + self.value_len.unwrap_or(0) as usize
    }
}

/// A record whose bytes lie somewhere else: in the arena, in a buffer read from the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordView<'a> {
    /// The topic.
    pub topic: TopicId,
    /// The partition the caller asked for, or [`ANY_PARTITION`].
    pub partition: i32,
    /// CreateTime: milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
    /// The lengths of the parts; `body.len()` equals `shape.body_len()`.
    pub shape: Shape,
    /// Headers, key and value, one after another.
    pub body: &'a [u8],
}

impl<'a> RecordView<'a> {
    /// The key; null differs from empty.
    #[must_use]
    #[inline]
    pub fn key(&self) -> Option<&'a [u8]> {
        let from = self.shape.headers_len as usize;
        self.shape.key_len.map(|n| &self.body[from..from + n as usize])
    }

    /// The value; null (a tombstone) differs from empty.
    #[must_use]
    #[inline]
    pub fn value(&self) -> Option<&'a [u8]> {
        let from = self.shape.headers_len as usize + self.shape.key_len.unwrap_or(0) as usize;
        self.shape.value_len.map(|n| &self.body[from..from + n as usize])
    }

    /// The headers, in the order in which they were added.
    #[must_use]
    #[inline]
    pub fn headers(&self) -> Headers<'a> {
        Headers { rest: &self.body[..self.shape.headers_len as usize] }
    }
}

/// Iterates over encoded headers. Malformed bytes end the iteration; they can't come from a
/// lane, and the log checks a frame's CRC before anything reads its headers.
#[derive(Clone, Debug)]
pub struct Headers<'a> {
    rest: &'a [u8],
}

impl<'a> Headers<'a> {
    /// Reads headers encoded by [`Header::encode`].
    #[must_use]
    pub fn new(encoded: &'a [u8]) -> Self {
        Headers { rest: encoded }
    }

    fn read(&mut self) -> Option<Header<'a>> {
        let (lens, rest) = self.rest.split_at_checked(HEADER_OVERHEAD_BYTES)?;
        let name_len = u16::from_le_bytes([lens[0], lens[1]]) as usize;
        let value_len = u32::from_le_bytes([lens[2], lens[3], lens[4], lens[5]]);
        let (name, rest) = rest.split_at_checked(name_len)?;
        let name = std::str::from_utf8(name).ok()?;
        let (value, rest) = if value_len == NULL_VALUE {
            (None, rest)
        } else {
            let (value, rest) = rest.split_at_checked(value_len as usize)?;
            (Some(value), rest)
        };
        self.rest = rest;
        Some(Header { name, value })
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = Header<'a>;

    #[inline]
    fn next(&mut self) -> Option<Header<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        let header = self.read();
        if header.is_none() {
            self.rest = &[];
        }
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_as_they_went_in() {
        let headers = [
            Header { name: "v", value: Some(b"1") },
            Header { name: "empty", value: Some(b"") },
            Header { name: "null", value: None },
        ];
        let mut buf = vec![0; headers.iter().map(Header::encoded_len).sum()];
        let mut at = 0;
        for h in &headers {
            at += h.encode(&mut buf[at..]);
        }
        assert_eq!(at, buf.len());
        assert_eq!(Headers::new(&buf).collect::<Vec<_>>(), headers);
    }

    #[test]
    fn malformed_headers_end_the_iteration() {
        for bytes in [
            &[1u8][..],
            &[9, 0, 0, 0, 0, 0, b'a'],
            &[1, 0, 9, 0, 0, 0, b'a'],
            &[1, 0, 0, 0, 0, 0, 0xff],
        ] {
            assert_eq!(Headers::new(bytes).count(), 0);
        }
    }

    #[test]
    fn null_differs_from_empty() {
        let shape = Shape { headers_len: 0, key_len: Some(0), value_len: None };
        let view =
            RecordView { topic: TopicId(0), partition: 0, timestamp_ms: 0, shape, body: &[] };
        assert_eq!(view.key(), Some(&b""[..]));
        assert_eq!(view.value(), None);
    }
}
