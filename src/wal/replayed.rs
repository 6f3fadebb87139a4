//! Owns `replayed`: what a replay of selected topics has delivered while records of other
//! topics, which stay, hold the watermark back.
//!
//! A hint, as the checkpoint is: without it those records are sent once more. LSNs are never
//! used twice, so what it says stays true for ever.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `FOREBAYR` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | length |
//! | 16 | 4 | CRC-32 of bytes 0 to 15 and 20 to length |
//! | 20 | 4 | topics |
//! | 24 | 8 | directory id |
//! | 32 | | for each topic: LSN (8), name length (2), name: its records below that LSN are final |

use super::checkpoint::{finish, read_whole, replace, verified};
use super::format::{get_u16, get_u32, get_u64, put};
use super::storage::Storage;
use std::collections::BTreeMap;
use std::io;

const MAGIC: [u8; 8] = *b"FOREBAYR";
const FIXED_BYTES: usize = 32;

/// Topics, and below which LSN their records are final.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Replayed {
    pub(super) directory_id: u64,
    /// By topic: everything below is final.
    pub below: BTreeMap<String, u64>,
}

impl Replayed {
    pub(super) const FILE: &str = "replayed";

    fn encode(&self) -> Vec<u8> {
        let mut b = vec![0; FIXED_BYTES];
        put(&mut b, 0, MAGIC);
        put(&mut b, 8, 1u32.to_le_bytes());
        put(&mut b, 20, (self.below.len() as u32).to_le_bytes());
        put(&mut b, 24, self.directory_id.to_le_bytes());
        for (name, lsn) in &self.below {
            b.extend_from_slice(&lsn.to_le_bytes());
            b.extend_from_slice(&(name.len() as u16).to_le_bytes());
            b.extend_from_slice(name.as_bytes());
        }
        finish(&mut b);
        b
    }

    fn decode(b: &[u8]) -> Option<Replayed> {
        let b = verified(b, MAGIC, FIXED_BYTES)?;
        let mut replayed = Replayed { directory_id: get_u64(b, 24), ..Replayed::default() };
        let mut rest = &b[FIXED_BYTES..];
        for _ in 0..get_u32(b, 20) {
            let (fixed, after) = rest.split_at_checked(10)?;
            let (name, after) = after.split_at_checked(get_u16(fixed, 8) as usize)?;
            let name = std::str::from_utf8(name).ok()?.to_owned();
            replayed.below.insert(name, get_u64(fixed, 0));
            rest = after;
        }
        Some(replayed)
    }

    /// What stands there, if it is good.
    #[must_use]
    pub fn read(storage: &dyn Storage) -> Option<Replayed> {
        let file = storage.open(Self::FILE).ok()?;
        Replayed::decode(&read_whole(&*file).ok()?)
    }

    /// Whether a file is there that isn't good.
    pub(super) fn is_bad(storage: &dyn Storage) -> bool {
        match storage.open(Self::FILE) {
            Ok(file) => read_whole(&*file).ok().and_then(|b| Replayed::decode(&b)).is_none(),
            Err(e) => e.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Replaces what stood there; durable when it returns.
    ///
    /// # Errors
    /// What the storage says; the old one still holds.
    pub fn store(&self, storage: &dyn Storage) -> io::Result<()> {
        replace(storage, Self::FILE, &self.encode()).map(drop)
    }

    /// Takes the file away, once the watermark says as much.
    ///
    /// # Errors
    /// What the storage says.
    pub fn remove(storage: &dyn Storage) -> io::Result<()> {
        match storage.unlink(Self::FILE) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Whether this record is final though the watermark is below it.
    #[must_use]
    pub fn covers(&self, topic: &str, lsn: u64) -> bool {
        self.below.get(topic).is_some_and(|below| lsn < *below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::MemoryStorage;

    #[test]
    fn marks_come_back_and_no_flipped_bit_passes() {
        let storage = MemoryStorage::new();
        assert_eq!(Replayed::read(&storage), None);
        assert!(!Replayed::is_bad(&storage));
        let below = [("a".to_owned(), 7), ("b".to_owned(), 9)].into();
        let marks = Replayed { directory_id: 5, below };
        marks.store(&storage).unwrap();
        assert_eq!(Replayed::read(&storage).as_ref(), Some(&marks));
        assert!(marks.covers("a", 6) && !marks.covers("a", 7) && !marks.covers("c", 0));
        let bytes = marks.encode();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Replayed::decode(&flipped), None, "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert_eq!(Replayed::decode(&bytes[..len]), None, "cut at {len}");
        }
        Replayed::remove(&storage).unwrap();
        Replayed::remove(&storage).unwrap();
        assert_eq!(Replayed::read(&storage), None);
    }
}
