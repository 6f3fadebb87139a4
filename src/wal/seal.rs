//! Owns the seal of a segment and the locator that says where it is. Their tables are in
//! [`super::format`].

use super::format::{HEADER_AREA_BYTES, NUMBER_LIMIT, get_u16, get_u32, get_u64, put};
use std::sync::Arc;

/// Where the two copies of the seal locator stand.
pub(super) const LOCATOR_AT: [u64; 2] = [256, 768];
pub(super) const LOCATOR_BYTES: usize = at::LOCATOR_END;
pub(super) const SEAL_FIXED_BYTES: usize = at::SEAL_TOPICS_BEGIN;
pub(super) const SEAL_ROW_BYTES: usize = 8 + 2;

/// Offsets, each the previous one plus its size.
mod at {
    pub const SEAL_RECORDS: usize = 0;
    pub const SEAL_FIRST_LSN: usize = SEAL_RECORDS + 8;
    pub const SEAL_LAST_LSN: usize = SEAL_FIRST_LSN + 8;
    pub const SEAL_NEXT_FRAME: usize = SEAL_LAST_LSN + 8;
    pub const SEAL_TOPICS: usize = SEAL_NEXT_FRAME + 8;
    pub const SEAL_TOPICS_BEGIN: usize = SEAL_TOPICS + 4 + 4;
    const _: () = assert!(SEAL_TOPICS_BEGIN == 40);

    pub const LOCATOR_OFFSET: usize = 0;
    pub const LOCATOR_LEN: usize = LOCATOR_OFFSET + 8;
    pub const LOCATOR_NEXT_FRAME: usize = LOCATOR_LEN + 8;
    pub const LOCATOR_LAST_LSN: usize = LOCATOR_NEXT_FRAME + 8;
    pub const LOCATOR_CRC: usize = LOCATOR_LAST_LSN + 8 + 4;
    pub const LOCATOR_END: usize = LOCATOR_CRC + 4;
    const _: () = assert!(LOCATOR_END == 40);
}

/// A segment's counts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Seal {
    /// Records in it.
    pub records: u64,
    /// Lowest LSN.
    pub first_lsn: u64,
    /// Highest LSN.
    pub last_lsn: u64,
    /// Frame number of the record after it.
    pub next_frame: u64,
    /// Topics by their number in the segment.
    pub topics: Vec<(Arc<str>, u64)>,
}

impl Seal {
    pub fn encode(&self) -> Vec<u8> {
        let mut b = vec![0; SEAL_FIXED_BYTES];
        put(&mut b, at::SEAL_RECORDS, self.records.to_le_bytes());
        put(&mut b, at::SEAL_FIRST_LSN, self.first_lsn.to_le_bytes());
        put(&mut b, at::SEAL_LAST_LSN, self.last_lsn.to_le_bytes());
        put(&mut b, at::SEAL_NEXT_FRAME, self.next_frame.to_le_bytes());
        put(&mut b, at::SEAL_TOPICS, (self.topics.len() as u32).to_le_bytes());
        for (name, records) in &self.topics {
            b.extend_from_slice(&records.to_le_bytes());
            b.extend_from_slice(&(name.len() as u16).to_le_bytes());
            b.extend_from_slice(name.as_bytes());
        }
        b
    }

    pub fn decode(b: &[u8]) -> Option<Seal> {
        let (fixed, mut rest) = b.split_at_checked(SEAL_FIXED_BYTES)?;
        let mut seal = Seal {
            records: get_u64(fixed, at::SEAL_RECORDS),
            first_lsn: get_u64(fixed, at::SEAL_FIRST_LSN),
            last_lsn: get_u64(fixed, at::SEAL_LAST_LSN),
            next_frame: get_u64(fixed, at::SEAL_NEXT_FRAME),
            topics: Vec::new(),
        };
        let mut most = seal.records.max(seal.first_lsn).max(seal.last_lsn).max(seal.next_frame);
        for _ in 0..get_u32(fixed, at::SEAL_TOPICS) {
            let (row, after) = rest.split_at_checked(SEAL_ROW_BYTES)?;
            let (name, after) = after.split_at_checked(get_u16(row, 8) as usize)?;
            seal.topics.push((std::str::from_utf8(name).ok()?.into(), get_u64(row, 0)));
            most = most.max(get_u64(row, 0));
            rest = after;
        }
        (most < NUMBER_LIMIT).then_some(seal)
    }
}

/// Where a segment's seal is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Locator {
    pub offset: u64,
    pub length: u64,
    pub next_frame: u64,
    pub last_lsn: u64,
}

impl Locator {
    pub fn encode(&self, salt: u32) -> [u8; LOCATOR_BYTES] {
        let mut b = [0; LOCATOR_BYTES];
        put(&mut b, at::LOCATOR_OFFSET, self.offset.to_le_bytes());
        put(&mut b, at::LOCATOR_LEN, self.length.to_le_bytes());
        put(&mut b, at::LOCATOR_NEXT_FRAME, self.next_frame.to_le_bytes());
        put(&mut b, at::LOCATOR_LAST_LSN, self.last_lsn.to_le_bytes());
        let mut crc = crc32fast::Hasher::new_with_initial(salt);
        crc.update(&b[..at::LOCATOR_CRC]);
        put(&mut b, at::LOCATOR_CRC, crc.finalize().to_le_bytes());
        b
    }

    /// The first good copy in a segment's header area.
    pub fn find(area: &[u8], salt: u32) -> Option<Locator> {
        LOCATOR_AT.iter().find_map(|at| Locator::decode(area, *at, salt))
    }

    /// How many of the two copies are good.
    pub(super) fn copies_good(area: &[u8], salt: u32) -> usize {
        LOCATOR_AT.iter().filter(|at| Locator::decode(area, **at, salt).is_some()).count()
    }

    fn decode(area: &[u8], from: u64, salt: u32) -> Option<Locator> {
        let b = area.get(from as usize..from as usize + LOCATOR_BYTES)?;
        let mut crc = crc32fast::Hasher::new_with_initial(salt);
        crc.update(&b[..at::LOCATOR_CRC]);
        let locator = Locator {
            offset: get_u64(b, at::LOCATOR_OFFSET),
            length: get_u64(b, at::LOCATOR_LEN),
            next_frame: get_u64(b, at::LOCATOR_NEXT_FRAME),
            last_lsn: get_u64(b, at::LOCATOR_LAST_LSN),
        };
        let holds = crc.finalize() == get_u32(b, at::LOCATOR_CRC);
        let in_bounds = locator.offset >= HEADER_AREA_BYTES
            && locator.length > 0
            && locator.next_frame.max(locator.last_lsn) < NUMBER_LIMIT;
        (holds && in_bounds).then_some(locator)
    }
}
