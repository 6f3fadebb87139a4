//! Owns the checkpoint: two slots, each a file, each under one CRC; and the manifest.
//!
//! Both are hints. With both slots bad, recovery from the segments alone is right, with more
//! duplicates; without a manifest, nobody notices that a segment is missing.
//!
//! The keeper writes one slot again and again, and turns to the other only after a sync of
//! the first has returned: so a torn write can cost the newest checkpoint, never both.
//!
//! # Checkpoint slot (`checkpoint-0`, `checkpoint-1`)
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `FOREBAYC` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | length of what the CRC covers, from offset 0 |
//! | 16 | 4 | CRC-32 of bytes 0 to 15 and 20 to length |
//! | 20 | 4 | reserved, 0 |
//! | 24 | 8 | directory id |
//! | 32 | 8 | generation: the higher of two good slots holds |
//! | 40 | 8 | watermark: every LSN below is final |
//! | 48 | 8 | next LSN: above every LSN given |
//! | 56 | 8 | accepted |
//! | 64 | 8 | delivered |
//! | 72 | 8 | unsafe records |
//! | 80 | 4 | topics |
//! | 84 | 4 | reserved, 0 |
//! | 88 | | for each topic: name length (2), counters (2), name, counters (8 each): delivered, set aside, dropped; where it was ever held also segment and offset below which its set-aside records are final, and for each of its partitions that was held by itself its number, segment and offset |
//!
//! Zeroes follow up to a multiple of 4096. A reader skips counters that it doesn't know.
//!
//! # Manifest (`manifest`, replaced by rename)
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `FOREBAYM` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | length |
//! | 16 | 4 | CRC-32 of bytes 0 to 15 and 20 to length |
//! | 20 | 4 | segments |
//! | 24 | 8 | directory id |
//! | 32 | 8 | next segment number |
//! | 40 | | for each segment: number (8), kind (8) |

use super::format::{NUMBER_LIMIT, get_u16, get_u32, get_u64, put};
use super::storage::{Storage, StorageFile};
use crate::record::{LogPosition, Lsn};
use std::io;
use std::sync::Arc;

const CHECKPOINT_MAGIC: [u8; 8] = *b"FOREBAYC";
const MANIFEST_MAGIC: [u8; 8] = *b"FOREBAYM";
const VERSION: u32 = 1;
const CRC_AT: usize = 16;
const CRC_END: usize = 20;
const CHECKPOINT_FIXED_BYTES: usize = 88;
const MANIFEST_FIXED_BYTES: usize = 40;
const BLOCK_BYTES: usize = 4096;
/// Partitions of one topic that a slot can name; what more of them were held is redriven again.
const PARTITIONS_MAX: usize = (u16::MAX as usize - 5) / 3;
/// Above any honest file of either kind; a larger one is bad.
const FILE_BYTES_MAX: u64 = 64 << 20;
pub(super) const SLOTS: [&str; 2] = ["checkpoint-0", "checkpoint-1"];
pub(super) const MANIFEST: &str = "manifest";

/// What the checkpoint carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckpointData {
    /// Everything below it is final.
    pub watermark: Lsn,
    /// Above every LSN given so far.
    pub next_lsn: Lsn,
    /// Records accepted.
    pub accepted: u64,
    /// Records delivered.
    pub delivered: u64,
    /// Records that were neither final nor in the log when it was written.
    pub unsafe_records: u64,
    /// Books by topic.
    pub topics: Vec<TopicBooks>,
}

/// One topic's books.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicBooks {
    /// The topic.
    pub name: String,
    /// Delivered.
    pub delivered: u64,
    /// Set aside.
    pub set_aside: u64,
    /// Dropped by a counted policy.
    pub dropped: u64,
    /// Every record of it that was set aside while it was held, before this place, is final.
    pub redriven: LogPosition,
    /// The same for partitions that were held by themselves.
    pub redriven_partitions: Vec<(i32, LogPosition)>,
}

pub(super) fn finish(b: &mut [u8]) {
    put(b, 12, (b.len() as u32).to_le_bytes());
    let crc = crc_of(b);
    put(b, CRC_AT, crc.to_le_bytes());
}

fn crc_of(b: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&b[..CRC_AT]);
    crc.update(&b[CRC_END..]);
    crc.finalize()
}

/// The covered bytes, when magic, version, length and CRC hold.
pub(super) fn verified(b: &[u8], magic: [u8; 8], fixed: usize) -> Option<&[u8]> {
    if b.len() < fixed || b[..8] != magic || get_u32(b, 8) != VERSION {
        return None;
    }
    let b = b.get(..get_u32(b, 12) as usize)?;
    (b.len() >= fixed && get_u32(b, CRC_AT) == crc_of(b)).then_some(b)
}

pub(super) fn read_whole(file: &dyn StorageFile) -> io::Result<Vec<u8>> {
    let len = file.len()?;
    if len > FILE_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; len as usize];
    let read = file.read_at(0, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// A slot's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    pub directory_id: u64,
    pub generation: u64,
    pub data: CheckpointData,
}

impl Slot {
    pub fn encode(&self) -> Vec<u8> {
        let mut b = vec![0; CHECKPOINT_FIXED_BYTES];
        put(&mut b, 0, CHECKPOINT_MAGIC);
        put(&mut b, 8, VERSION.to_le_bytes());
        let d = &self.data;
        let words = [
            self.directory_id,
            self.generation,
            d.watermark.0,
            d.next_lsn.0,
            d.accepted,
            d.delivered,
            d.unsafe_records,
        ];
        for (i, word) in words.iter().enumerate() {
            put(&mut b, 24 + 8 * i, word.to_le_bytes());
        }
        put(&mut b, 80, (d.topics.len() as u32).to_le_bytes());
        for t in &d.topics {
            b.extend_from_slice(&(t.name.len() as u16).to_le_bytes());
            let LogPosition { segment, offset } = t.redriven;
            let counters = [t.delivered, t.set_aside, t.dropped, segment, offset];
            let partitions =
                &t.redriven_partitions[..t.redriven_partitions.len().min(PARTITIONS_MAX)];
            let count = match partitions.len() {
                0 if t.redriven == LogPosition::default() => 3,
                partitions => counters.len() + 3 * partitions,
            };
            b.extend_from_slice(&(count as u16).to_le_bytes());
            b.extend_from_slice(t.name.as_bytes());
            let of_partition =
                |(number, at): &(i32, LogPosition)| [*number as u64, at.segment, at.offset];
            let partitions = partitions.iter().flat_map(of_partition);
            for counter in counters.into_iter().chain(partitions).take(count) {
                b.extend_from_slice(&counter.to_le_bytes());
            }
        }
        finish(&mut b);
        b.resize(b.len().next_multiple_of(BLOCK_BYTES), 0);
        b
    }

    pub fn decode(b: &[u8]) -> Option<Slot> {
        let b = verified(b, CHECKPOINT_MAGIC, CHECKPOINT_FIXED_BYTES)?;
        let word = |i: usize| get_u64(b, 24 + 8 * i);
        let mut data = CheckpointData {
            watermark: Lsn(word(2)),
            next_lsn: Lsn(word(3)),
            accepted: word(4),
            delivered: word(5),
            unsafe_records: word(6),
            topics: Vec::new(),
        };
        if data.watermark.0.max(data.next_lsn.0) >= NUMBER_LIMIT {
            return None;
        }
        let mut rest = &b[CHECKPOINT_FIXED_BYTES..];
        for _ in 0..get_u32(b, 80) {
            let (lens, after) = rest.split_at_checked(4)?;
            let (name, after) = after.split_at_checked(get_u16(lens, 0) as usize)?;
            let (counters, after) = after.split_at_checked(get_u16(lens, 2) as usize * 8)?;
            let counter =
                |i: usize| if counters.len() >= 8 * i + 8 { get_u64(counters, 8 * i) } else { 0 };
            let of_partition = |b: &[u8]| {
                let at = LogPosition { segment: get_u64(b, 8), offset: get_u64(b, 16) };
                (get_u64(b, 0) as i32, at)
            };
            let partitions = counters.get(5 * 8..).unwrap_or_default().chunks_exact(3 * 8);
            data.topics.push(TopicBooks {
                name: std::str::from_utf8(name).ok()?.to_string(),
                delivered: counter(0),
                set_aside: counter(1),
                dropped: counter(2),
                redriven: LogPosition { segment: counter(3), offset: counter(4) },
                redriven_partitions: partitions.map(of_partition).collect(),
            });
            rest = after;
        }
        Some(Slot { directory_id: word(0), generation: word(1), data })
    }
}

/// Reads both slots, and says which of them are there and bad.
pub(super) fn read_slots(storage: &dyn Storage) -> ([Option<Slot>; 2], [bool; 2]) {
    let read = SLOTS.map(|name| match storage.open(name).and_then(|f| read_whole(&*f)) {
        Ok(bytes) => {
            let slot = Slot::decode(&bytes);
            let is_bad = slot.is_none() && bytes.iter().any(|b| *b != 0);
            (slot, is_bad)
        }
        Err(e) => (None, e.kind() != io::ErrorKind::NotFound),
    });
    let bad = [read[0].1, read[1].1];
    (read.map(|(slot, _)| slot), bad)
}

/// The writing side.
pub(super) struct CheckpointWriter {
    files: [Option<Arc<dyn StorageFile>>; 2],
    /// The slot that is being written.
    current: usize,
    directory_id: u64,
    generation: u64,
    dirty: bool,
    /// What was stored last, until a sync of it has returned.
    unsynced: Vec<u8>,
    /// A write or a sync of the current slot failed: the file is replaced at the next sync.
    distrusted: bool,
}

impl CheckpointWriter {
    /// Writes first to the slot that isn't `newest`.
    pub fn new(directory_id: u64, generation: u64, newest: Option<usize>) -> Self {
        CheckpointWriter {
            files: [None, None],
            current: newest.map_or(0, |n| 1 - n),
            directory_id,
            generation,
            dirty: false,
            unsynced: Vec::new(),
            distrusted: false,
        }
    }

    pub fn store(&mut self, storage: &dyn Storage, data: &CheckpointData) -> io::Result<()> {
        let file = match &self.files[self.current] {
            Some(file) => file.clone(),
            None => {
                let file = storage.open_or_create(SLOTS[self.current])?;
                // A slot whose name a power cut can take is not there, however well synced.
                storage.sync_dir()?;
                self.files[self.current] = Some(file.clone());
                file
            }
        };
        let generation = self.generation + 1;
        let slot = Slot { directory_id: self.directory_id, generation, data: data.clone() };
        self.dirty = true;
        self.generation = generation;
        self.unsynced = slot.encode();
        let written = file.write_at(0, &self.unsynced);
        // What a failed write left there may be torn, and the other slot is the only good one.
        self.distrusted |= written.is_err();
        written
    }

    /// Syncs the slot, if it was written, and turns to the other. After a failure its file is
    /// replaced: another sync of the same one might return well without what the first lost.
    pub fn sync(&mut self, storage: &dyn Storage) -> io::Result<()> {
        let Some(file) = self.files[self.current].clone().filter(|_| self.dirty) else {
            return Ok(());
        };
        if self.distrusted {
            let fresh = replace(storage, SLOTS[self.current], &self.unsynced)?;
            self.files[self.current] = Some(fresh);
        } else if let Err(e) = file.sync() {
            self.distrusted = true;
            return Err(e);
        }
        self.distrusted = false;
        self.dirty = false;
        self.current = 1 - self.current;
        Ok(())
    }
}

/// Puts a new file under a name; when it returns, file and name are durable. Every try begins
/// with a new file, so that no failed sync is ever repeated.
pub(super) fn replace(
    storage: &dyn Storage,
    name: &str,
    bytes: &[u8],
) -> io::Result<Arc<dyn StorageFile>> {
    let new = format!("{name}.new");
    match storage.unlink(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let file = storage.open_or_create(&new)?;
    file.write_at(0, bytes)?;
    file.sync()?;
    storage.rename(&new, name)?;
    storage.sync_dir()?;
    Ok(file)
}

/// The segments that should be there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    pub directory_id: u64,
    pub next_number: u64,
    /// Number and kind.
    pub segments: Vec<(u64, u64)>,
}

impl Manifest {
    pub fn encode(&self) -> Vec<u8> {
        let mut b = vec![0; MANIFEST_FIXED_BYTES];
        put(&mut b, 0, MANIFEST_MAGIC);
        put(&mut b, 8, VERSION.to_le_bytes());
        put(&mut b, 20, (self.segments.len() as u32).to_le_bytes());
        put(&mut b, 24, self.directory_id.to_le_bytes());
        put(&mut b, 32, self.next_number.to_le_bytes());
        for (number, kind) in &self.segments {
            b.extend_from_slice(&number.to_le_bytes());
            b.extend_from_slice(&kind.to_le_bytes());
        }
        finish(&mut b);
        b
    }

    pub fn decode(b: &[u8]) -> Option<Manifest> {
        let b = verified(b, MANIFEST_MAGIC, MANIFEST_FIXED_BYTES)?;
        let rows = b[MANIFEST_FIXED_BYTES..].chunks_exact(16);
        Some(Manifest {
            directory_id: get_u64(b, 24),
            next_number: get_u64(b, 32),
            segments: rows.map(|r| (get_u64(r, 0), get_u64(r, 8))).collect(),
        })
    }

    pub fn read(storage: &dyn Storage) -> Option<Manifest> {
        let file = storage.open(MANIFEST).ok()?;
        Manifest::decode(&read_whole(&*file).ok()?)
    }

    /// Replaces the manifest; when it returns, the new one and all names are durable.
    pub fn publish(&self, storage: &dyn Storage) -> io::Result<()> {
        replace(storage, MANIFEST, &self.encode()).map(|_| ())
    }

    /// Writes over the manifest that is there: takes no room on a disk that has none, as long
    /// as no segment was added. Torn by a crash, it is no manifest, and nothing is missed.
    pub fn overwrite(&self, storage: &dyn Storage) -> io::Result<()> {
        let file = storage.open(MANIFEST)?;
        let bytes = self.encode();
        if file.len()? < bytes.len() as u64 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        file.write_at(0, &bytes)?;
        file.sync()?;
        storage.sync_dir()
    }
}
