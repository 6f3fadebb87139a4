//! Single-bit flips in a segment of 1 MiB: each is detected or harmless.
//!
//! A flip is judged by a walk of its neighbourhood. It begins at the last record before the flip
//! and ends at the first record behind the flipped frame that stands where it stood before. What
//! a walk yields depends on its position, the frame number and LSN due, the topics named so far
//! and the bytes ahead; from that record on all four are what they were without the flip, so the
//! rest is too. Flips in the header area and in the seal, and a sample of all others, go through
//! a whole recovery, which must lose the same record as the short walk.
//!
//! All of them, sealed and not, by hand (some minutes on two cores):
//! `cargo test --release -p forebay --no-default-features --lib every_single_bit -- --ignored --nocapture`

use super::super::cursor::{Cursor, Found};
use super::super::format::{
    FrameHeader, HEADER_AREA_BYTES, HeaderVerdict, LocalTopics, SegmentHeader, segment_name,
};
use super::*;
use parking_lot::Mutex;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

const SEGMENT_BYTES: u64 = 1 << 20;

fn options() -> WalOptions {
    WalOptions {
        segment_bytes: SEGMENT_BYTES,
        set_aside_segment_bytes: SEGMENT_BYTES,
        wal_bytes_max: Some(8 << 20),
        record_bytes_max: 4096,
        ..WalOptions::default()
    }
}

/// A file of bytes that can be flipped in place.
struct Bytes(Mutex<Vec<u8>>);

impl Bytes {
    fn flip(&self, bit: u64) {
        self.0.lock()[bit as usize / 8] ^= 1 << (bit % 8);
    }
}

impl StorageFile for Bytes {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.0.lock();
        let from = (offset as usize).min(bytes.len());
        let n = into.len().min(bytes.len() - from);
        into[..n].copy_from_slice(&bytes[from..from + n]);
        Ok(n)
    }
    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().len() as u64)
    }
    fn truncate(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A frame of the undamaged segment.
struct Good {
    at: u64,
    end: u64,
    frame: FrameHeader,
    bytes: Vec<u8>,
    /// Topics named before it.
    topics: LocalTopics,
}

/// A segment, and what is in it.
struct Sample {
    storage: MemoryStorage,
    name: String,
    header: SegmentHeader,
    bytes: Vec<u8>,
    frames: Vec<Good>,
    records: u64,
    table: Arc<TopicTable>,
}

fn sample(sealed: bool) -> Sample {
    let storage = MemoryStorage::new();
    let mut log = open(&storage, options());
    let mut n = 0;
    let segment = loop {
        n += 1;
        let at = append_helped(&mut log, n);
        if n % 1_000 == 0 {
            // A failed append leaves a void.
            let mut writes = 0;
            storage.set_faults(Some(Box::new(move |_, op| {
                writes += u64::from(op == StorageOp::Write);
                (op == StorageOp::Write && writes == 1).then_some(io::ErrorKind::Other)
            })));
            append(&mut log, n + 1).expect_err("refused");
            storage.set_faults(None);
        }
        if at.offset > SEGMENT_BYTES - (16 << 10) {
            break at.segment;
        }
    };
    if sealed {
        log.wal.seal();
    }
    let name = segment_name(SegmentKind::Main, segment);
    let bytes = storage.contents(&name).expect("there");
    assert_eq!(bytes.len() as u64, SEGMENT_BYTES);
    let HeaderVerdict::Good(header) = SegmentHeader::judge(&bytes) else { panic!("no header") };
    let table = Arc::new(TopicTable::default());
    let file = Arc::new(Bytes(Mutex::new(bytes.clone())));
    let mut cursor = Cursor::new(file, header, SEGMENT_BYTES, table.clone(), 64 << 10);
    let mut frames = Vec::new();
    loop {
        let topics = cursor.topics.clone();
        match cursor.next().expect("read") {
            Found::Frame(at, frame) => {
                let bytes = cursor.frame_bytes(at, &frame).to_vec();
                frames.push(Good { at, end: at + frame.stride(), frame, bytes, topics });
            }
            Found::End { from, to, .. } => break assert_eq!(from, to),
            bad => panic!("{bad:?}"),
        }
    }
    Sample { storage, name, header, bytes, frames, records: n, table }
}

/// What a flip does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flip {
    /// Every record is there, and nothing was noticed: no CRC covers it, and nobody reads it.
    Harmless,
    /// Noticed; every record is there.
    Noticed,
    /// Noticed; this record is gone.
    Costs(u64),
}

impl Sample {
    /// The index of the frame in which a byte lies; `None` behind the last.
    fn frame_of(&self, byte: u64) -> Option<usize> {
        let i = self.frames.partition_point(|g| g.end <= byte);
        (i < self.frames.len()).then_some(i)
    }

    /// Whether only a whole recovery can judge it: header area and seal.
    fn is_special(&self, byte: u64) -> bool {
        let seal = |i: usize| self.frames[i].frame.kind == FrameKind::Seal;
        byte < HEADER_AREA_BYTES || self.frame_of(byte).is_some_and(seal)
    }

    /// The short walk around a flipped bit. The file has it flipped.
    fn walk(&self, file: &Arc<Bytes>, byte: u64) -> Flip {
        let hit = self.frame_of(byte);
        let last = self.frames.len();
        // The last record in front of the hit; at the beginning the first frame.
        let mut start = hit.unwrap_or(last).saturating_sub(1);
        while start > 0 && !(self.frames[start].frame.is_record() && Some(start) != hit) {
            start -= 1;
        }
        let table = self.table.clone();
        let file: Arc<dyn StorageFile> = file.clone();
        let mut cursor = Cursor::new(file, self.header, SEGMENT_BYTES, table, 1024);
        if start > 0 {
            cursor.seek(self.frames[start].at, self.frames[start].topics.clone());
        }
        let (mut next, mut noticed) = (start, false);
        let mut missing = None;
        loop {
            match cursor.next().expect("read") {
                Found::Frame(at, frame) => {
                    while next < last && self.frames[next].at < at {
                        assert_eq!(Some(next), hit, "byte {byte}: a good frame was passed");
                        if self.frames[next].frame.is_record() {
                            missing = Some(self.frames[next].frame.lsn);
                        }
                        next += 1;
                    }
                    let good = &self.frames[next];
                    let same = good.at == at
                        && good.frame == frame
                        && (frame.kind == FrameKind::Void
                            || cursor.frame_bytes(at, &frame) == good.bytes);
                    assert!(same, "byte {byte}: a frame that was never written");
                    next += 1;
                    if frame.is_record() && hit.is_some_and(|hit| next > hit + 1) {
                        break;
                    }
                    if next == last && frame.kind == FrameKind::Seal {
                        break;
                    }
                }
                Found::Bad { lost, from, to, .. } => {
                    noticed = true;
                    let gone = hit.filter(|i| self.frames[*i].frame.is_record());
                    assert!(from <= byte && byte < to, "byte {byte}: {from} to {to}");
                    assert!(
                        lost.is_none_or(|n| n == u64::from(gone.is_some())),
                        "byte {byte}: {lost:?}"
                    );
                }
                Found::End { from, to, .. } => {
                    noticed |= to > from;
                    for good in &self.frames[next..] {
                        assert!(good.at >= from, "byte {byte}");
                        assert!(missing.is_none(), "byte {byte}: more than one");
                        missing = good.frame.is_record().then_some(good.frame.lsn);
                    }
                    break;
                }
            }
        }
        match missing {
            Some(lsn) => {
                assert!(noticed, "byte {byte}: a silent loss");
                Flip::Costs(lsn)
            }
            None if noticed => Flip::Noticed,
            None => Flip::Harmless,
        }
    }

    /// The same flip through a whole recovery: the record that is gone.
    fn recover(&self, bit: u64) -> Option<u64> {
        let mut bad = self.bytes.clone();
        bad[bit as usize / 8] ^= 1 << (bit % 8);
        let image = self.storage.process_crash_image();
        image.put(&self.name, &bad);
        let open = open(&image, options());
        let (lsns, lost) = read_all(&open, open.recovery.backlog);
        assert_eq!(open.recovery.records, lsns.len() as u64 + lost, "bit {bit}");
        let gone = self.records - lsns.len() as u64;
        assert!(gone <= 1 && gone <= lost + open.recovery.damage.unfinished_tails, "bit {bit}");
        (gone == 1).then(|| {
            let at = lsns.iter().zip(1..).position(|(lsn, n)| *lsn != n);
            at.unwrap_or(lsns.len()) as u64 + 1
        })
    }
}

/// Judges every bit that `walk_step` and `recover_step` choose; prints the counts.
fn flip_all(sealed: bool, walk_step: u64, recover_step: u64) {
    let sample = sample(sealed);
    let bits = SEGMENT_BYTES * 8;
    let counts: [AtomicU64; 4] = Default::default();
    let next = AtomicU64::new(0);
    const CHUNK: u64 = 1 << 14;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let file = Arc::new(Bytes(Mutex::new(sample.bytes.clone())));
                loop {
                    let from = next.fetch_add(CHUNK, Ordering::Relaxed);
                    if from >= bits {
                        return;
                    }
                    for bit in (from..from + CHUNK).filter(|b| b % walk_step == 0) {
                        let special = sample.is_special(bit / 8);
                        let outcome = if special {
                            sample.recover(bit).map_or(Flip::Noticed, Flip::Costs)
                        } else {
                            file.flip(bit);
                            let outcome = sample.walk(&file, bit / 8);
                            file.flip(bit);
                            outcome
                        };
                        if !special && bit % recover_step == 0 {
                            let whole = sample.recover(bit);
                            let short = match outcome {
                                Flip::Costs(lsn) => Some(lsn),
                                _ => None,
                            };
                            assert_eq!(short, whole, "bit {bit}: the two walks differ");
                            counts[3].fetch_add(1, Ordering::Relaxed);
                        }
                        let class = match outcome {
                            Flip::Harmless => 0,
                            Flip::Noticed => 1,
                            Flip::Costs(_) => 2,
                        };
                        counts[class].fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let [harmless, noticed, costly, compared] = counts.map(AtomicU64::into_inner);
    println!(
        "{} segment of 1 MiB, {} records: {} flips: {harmless} harmless, {noticed} noticed (or in header and seal, which stand twice) without a loss, {costly} cost their one record and were counted; {compared} compared with a whole recovery",
        if sealed { "sealed" } else { "open" },
        sample.records,
        harmless + noticed + costly,
    );
    assert_eq!(harmless + noticed + costly, bits.div_ceil(walk_step));
    assert!(harmless > 0 && noticed > 0 && costly > 0 && compared > 0);
}

#[test]
fn a_sample_of_single_bit_flips_is_detected_or_harmless() {
    flip_all(true, 31, 31 * 811);
    flip_all(false, 31, 31 * 811);
}

#[test]
#[ignore = "minutes: all 8,388,608 bits of two segments, by hand"]
fn every_single_bit_flip_of_a_segment_is_detected_or_harmless() {
    flip_all(true, 1, 4_001);
    flip_all(false, 1, 4_001);
}
