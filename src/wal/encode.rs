//! Owns the making of a frame's bytes, in the shape in which they are stored.
//!
//! An append is bound by memory, so what counts here is how often a byte is touched: a short
//! frame is put together in one place, summed in one pass and copied once; of a long one only
//! the head is, and the body is summed and copied from where it stands.

use super::format::{ASIDE_PREFIX_BYTES, FRAME_HEADER_BYTES, FrameHeader, REASON_BYTES_MAX, at};
use crc32fast::Hasher;

/// Longest head that the log writes: a header with the longest prefix.
const HEAD_BYTES_MAX: usize = FRAME_HEADER_BYTES + ASIDE_PREFIX_BYTES + REASON_BYTES_MAX;
/// The longest body that is put beside its head.
const BODY_BYTES_MAX: usize = 512;
/// Bytes of the commit word.
const WORD_BYTES: usize = at::LSN;

/// A frame as it is stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Image<'a> {
    /// The commit word.
    pub word: u64,
    /// What stands behind it.
    pub head: &'a [u8],
    /// What stands behind that.
    pub body: &'a [u8],
}

/// Makes the frames of one segment.
pub(super) struct FrameEncoder {
    /// Seeded with the segment's salt: what the processor can do is found out once.
    seeded: Hasher,
    bytes: Vec<u8>,
}

impl FrameEncoder {
    pub fn new(salt: u32) -> FrameEncoder {
        FrameEncoder {
            seeded: Hasher::new_with_initial(salt),
            bytes: vec![0; HEAD_BYTES_MAX + BODY_BYTES_MAX],
        }
    }

    /// The frame of this header, prefix and body.
    pub fn encode<'a>(
        &'a mut self,
        header: &FrameHeader,
        prefix: &[u8],
        body: &'a [u8],
    ) -> Image<'a> {
        let head_bytes = FRAME_HEADER_BYTES + prefix.len();
        if head_bytes > HEAD_BYTES_MAX {
            self.bytes.resize(head_bytes + BODY_BYTES_MAX, 0);
        }
        header.put_fields(&mut self.bytes[WORD_BYTES..]);
        // The CRC's own place holds the length while it is made: what the CRC covers, the length
        // and all that follows the CRC, is one piece then.
        let length = header.length.to_le_bytes();
        self.bytes[at::CRC..at::LSN].copy_from_slice(&length);
        let mut end = FRAME_HEADER_BYTES;
        for part in [prefix, if body.len() <= BODY_BYTES_MAX { body } else { &[] }] {
            if !part.is_empty() {
                self.bytes[end..end + part.len()].copy_from_slice(part);
                end += part.len();
            }
        }
        let body = if body.len() <= BODY_BYTES_MAX { &[] } else { body };
        let mut crc = self.seeded.clone();
        crc.update(&self.bytes[at::CRC..end]);
        if !body.is_empty() {
            crc.update(body);
        }
        let word = u64::from(header.length) | (u64::from(crc.finalize()) << 32);
        Image { word, head: &self.bytes[WORD_BYTES..end], body }
    }
}
