//! Owns the judgement of what arrived. It knows only what is in the records: nothing of it
//! comes from Forebay's own books.
//!
//! Each value begins with the demo's number, the source (thread) and the record's number
//! within the source, so that lost, repeated, disordered and foreign records can be told apart.

use std::collections::HashMap;

/// Bytes that a value begins with: run (8), source (4), zero (4), number (8), little-endian.
pub const VALUE_BYTES_MIN: i64 = 24;
const HEAD_BYTES: usize = VALUE_BYTES_MIN as usize;
/// Keys that each source's records go round; all sources share them.
pub const KEYS: usize = 256;
/// Length of a key's text.
const KEY_BYTES: usize = 8;

/// The key of this number's record: always the same, spread over all keys.
#[must_use]
pub fn key_index(number: u64) -> usize {
    (number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as usize % KEYS
}

/// A key's text.
#[must_use]
pub fn key_text(index: usize) -> [u8; KEY_BYTES] {
    let mut key = *b"user-000";
    let digits = [index / 100 % 10, index / 10 % 10, index % 10];
    for (place, digit) in key[5..].iter_mut().zip(digits) {
        *place = b'0' + digit as u8;
    }
    key
}

/// A value of `bytes` bytes; [`set_number`] makes it a record's.
#[must_use]
pub fn value(run: u64, source: u32, bytes: usize) -> Vec<u8> {
    let mut value: Vec<u8> = b"a forebay holds what the turbine can't take; "
        .iter()
        .copied()
        .cycle()
        .take(bytes.max(HEAD_BYTES))
        .collect();
    value[..8].copy_from_slice(&run.to_le_bytes());
    value[8..12].copy_from_slice(&source.to_le_bytes());
    value[12..16].fill(0);
    set_number(&mut value, 0);
    value
}

/// Writes the record's number into a value made by [`value`].
pub fn set_number(value: &mut [u8], number: u64) {
    value[16..24].copy_from_slice(&number.to_le_bytes());
}

/// What was counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Different records that arrived.
    pub distinct: u64,
    /// Arrivals of a record that had arrived before.
    pub duplicates: u64,
    /// First arrivals behind a later record of the same thread and key.
    pub order_violations: u64,
    /// Records that nobody sent like that: another key, another length, cut or changed.
    pub strangers: u64,
    /// Offsets that the mock cluster dropped before they were read.
    pub trimmed: u64,
}

/// Takes every record as it arrives.
#[derive(Debug)]
pub struct Oracle {
    run: u64,
    payload: usize,
    tally: Tally,
    sources: HashMap<u32, Source>,
    /// By partition, the offset that comes next.
    next_offset: HashMap<i32, i64>,
}

#[derive(Debug)]
struct Source {
    seen: Vec<u64>,
    /// By key, the newest number plus one.
    newest: Vec<u64>,
}

impl Oracle {
    /// Of the demo `run`, whose values have `payload` bytes.
    #[must_use]
    pub fn new(run: u64, payload: usize) -> Oracle {
        let (sources, next_offset) = (HashMap::new(), HashMap::new());
        Oracle { run, payload, tally: Tally::default(), sources, next_offset }
    }

    /// What was counted so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// An offset was reached. `gaps_count` says that none may be missing, as in the mock.
    pub fn at_offset(&mut self, partition: i32, offset: i64, gaps_count: bool) {
        let next = self.next_offset.entry(partition).or_insert(if gaps_count { 0 } else { offset });
        if gaps_count {
            self.tally.trimmed += u64::try_from(offset - *next).unwrap_or(0);
        }
        *next = (*next).max(offset + 1);
    }

    /// A record arrived. One of another run is none of ours.
    pub fn arrived(&mut self, key: Option<&[u8]>, value: Option<&[u8]>) {
        let head = value.and_then(|v| v.first_chunk::<HEAD_BYTES>());
        let word = |from: usize| -> Option<u64> {
            Some(u64::from_le_bytes(*head?.get(from..)?.first_chunk()?))
        };
        let (Some(run), Some(source), Some(number)) = (word(0), word(8), word(16)) else {
            self.tally.strangers += 1;
            return;
        };
        if run != self.run {
            return;
        }
        let key_at = key_index(number);
        let (Ok(source), Ok(place)) = (u32::try_from(source), usize::try_from(number / 64)) else {
            self.tally.strangers += 1;
            return;
        };
        // A number that far is no number; the bits for it would take all memory.
        let absurd = number > 1 << 40;
        let changed =
            key != Some(&key_text(key_at)[..]) || value.is_none_or(|v| v.len() != self.payload);
        if absurd || changed {
            self.tally.strangers += 1;
            return;
        }
        let source = self
            .sources
            .entry(source)
            .or_insert_with(|| Source { seen: Vec::new(), newest: vec![0; KEYS] });
        if source.seen.len() <= place {
            source.seen.resize(place + 1, 0);
        }
        let bit = 1 << (number % 64);
        if source.seen[place] & bit != 0 {
            self.tally.duplicates += 1;
            return;
        }
        source.seen[place] |= bit;
        self.tally.distinct += 1;
        let newest = &mut source.newest[key_at];
        if number < *newest {
            self.tally.order_violations += 1;
        }
        *newest = (*newest).max(number + 1);
    }

    /// Whether this record arrived.
    #[must_use]
    pub fn has(&self, source: u32, number: u64) -> bool {
        let place = usize::try_from(number / 64).unwrap_or(usize::MAX);
        let word = self.sources.get(&source).and_then(|s| s.seen.get(place)).copied();
        word.is_some_and(|w| w & (1 << (number % 64)) != 0)
    }

    /// Numbers below `sent` of this source that didn't arrive.
    pub fn missing(&self, source: u32, sent: u64) -> impl Iterator<Item = u64> {
        (0..sent).filter(move |n| !self.has(source, *n))
    }

    /// One more than the highest number that arrived of this source.
    #[must_use]
    pub fn reached(&self, source: u32) -> u64 {
        let newest = self.sources.get(&source).map(|s| s.newest.iter().copied().max());
        newest.flatten().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrive(oracle: &mut Oracle, source: u32, number: u64) {
        let mut value = value(7, source, 30);
        set_number(&mut value, number);
        oracle.arrived(Some(&key_text(key_index(number))), Some(&value));
    }

    /// The first number above 0 that shares its key with number 0.
    fn twin() -> u64 {
        (1..).find(|n| key_index(*n) == key_index(0)).unwrap()
    }

    #[test]
    fn what_is_sent_is_what_is_counted() {
        let mut oracle = Oracle::new(7, 30);
        for number in 0..1000 {
            arrive(&mut oracle, 1, number);
        }
        assert_eq!(oracle.tally(), Tally { distinct: 1000, ..Tally::default() });
        assert_eq!(oracle.missing(1, 1000).count(), 0);
        assert_eq!(oracle.missing(1, 1001).collect::<Vec<_>>(), [1000]);
        assert_eq!((oracle.reached(1), oracle.reached(2)), (1000, 0));
    }

    #[test]
    fn duplicates_and_disorder_are_told_apart() {
        let mut oracle = Oracle::new(7, 30);
        arrive(&mut oracle, 0, twin());
        arrive(&mut oracle, 0, 0);
        arrive(&mut oracle, 1, 0);
        arrive(&mut oracle, 0, 0);
        let tally = oracle.tally();
        assert_eq!((tally.distinct, tally.order_violations, tally.duplicates), (3, 1, 1));
    }

    #[test]
    fn strangers_are_no_arrivals() {
        let mut oracle = Oracle::new(7, 30);
        oracle.arrived(None, Some(b"short"));
        oracle.arrived(None, None);
        oracle.arrived(Some(b"user-999"), Some(&value(7, 0, 30)));
        oracle.arrived(Some(&key_text(key_index(0))), Some(&value(7, 0, 31)));
        // Another run's record is nobody's concern.
        oracle.arrived(Some(&key_text(key_index(0))), Some(&value(8, 0, 30)));
        assert_eq!(oracle.tally(), Tally { strangers: 4, ..Tally::default() });
    }

    #[test]
    fn a_gap_in_the_offsets_was_trimmed() {
        let mut oracle = Oracle::new(7, 30);
        oracle.at_offset(0, 5, true);
        oracle.at_offset(0, 6, true);
        oracle.at_offset(0, 9, true);
        oracle.at_offset(1, 100, false);
        oracle.at_offset(1, 103, false);
        assert_eq!(oracle.tally().trimmed, 7);
    }

    #[test]
    fn keys_are_spread() {
        let mut used = [0u32; KEYS];
        (0..25_600).for_each(|n| used[key_index(n)] += 1);
        assert!(used.iter().all(|n| (50..200).contains(n)), "{used:?}");
        assert_eq!(&key_text(207), b"user-207");
    }
}
