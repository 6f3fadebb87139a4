//! The walk's short way for good records: it must find what the long way finds, in the same
//! order, whatever stands in the segment; and a frame's CRC in one piece is that of its two.

use super::super::cursor::{Cursor, Found};
use super::super::format::{
    FRAME_HEADER_BYTES, FrameHeader, HeaderVerdict, SegmentHeader, segment_name,
};
use super::super::storage::Window;
use super::*;
use forebay_testkit::say;
use proptest::collection::vec;
use proptest::prelude::*;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

const SEGMENT_BYTES: u64 = 64 << 10;

/// A segment's bytes, and where its frames begin.
struct Sample {
    bytes: Vec<u8>,
    header: SegmentHeader,
    starts: Vec<usize>,
}

fn sample(kind: SegmentKind) -> Sample {
    let storage = MemoryStorage::new();
    let options = WalOptions {
        segment_bytes: SEGMENT_BYTES,
        set_aside_segment_bytes: SEGMENT_BYTES,
        ..small()
    };
    let mut log = open(&storage, options);
    for n in 1..=300 {
        append_helped(&mut log, n);
        let (topic, partition, shape, body) = parts(n);
        let topic = log.topics.intern(topic);
        let record = RecordView { topic, partition, timestamp_ms: 1, shape, body: &body };
        while log.wal.set_aside(Lsn(n), &record, "why", 3, 1).is_err() {
            log.keeper.step(0, None);
        }
    }
    log.wal.seal();
    let is_wanted = |name: &String| {
        let header = SegmentHeader::judge(&storage.contents(name).unwrap_or_default());
        matches!(header, HeaderVerdict::Good(h) if segment_name(kind, h.number) == *name)
    };
    let name = storage.names().into_iter().find(is_wanted).expect("a segment");
    let bytes = storage.contents(&name).expect("its bytes");
    let HeaderVerdict::Good(header) = SegmentHeader::judge(&bytes) else { panic!("no header") };
    let found = walk(&Whole(bytes.clone().into()), header, false, true, 512);
    let starts = found.iter().filter_map(|f| match f.0 {
        Found::Frame(at, _) => Some(at as usize),
        _ => None,
    });
    Sample { starts: starts.collect(), bytes, header }
}

fn samples() -> &'static [Sample; 2] {
    static SAMPLES: OnceLock<[Sample; 2]> = OnceLock::new();
    SAMPLES.get_or_init(|| [sample(SegmentKind::Main), sample(SegmentKind::SetAside)])
}

/// A file that can be looked at through windows.
#[derive(Clone)]
struct Whole(Arc<[u8]>);

struct Look(Arc<[u8]>, usize, usize);

impl Window for Look {
    fn bytes(&self) -> &[u8] {
        &self.0[self.1..self.2]
    }
    fn is_torn(&self) -> bool {
        false
    }
}

impl StorageFile for Whole {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let from = (offset as usize).min(self.0.len());
        let n = into.len().min(self.0.len() - from);
        into[..n].copy_from_slice(&self.0[from..from + n]);
        Ok(n)
    }
    fn window(&self, offset: u64, len: usize) -> Option<Box<dyn Window>> {
        let (from, to) = (offset as usize, offset as usize + len);
        (to <= self.0.len()).then(|| Box::new(Look(self.0.clone(), from, to)) as Box<dyn Window>)
    }
    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }
    fn truncate(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// What a walk met, and what it knew after each step.
type Steps = Vec<(Found, Vec<u8>, u64, Option<u64>, u64)>;

fn walk(file: &Whole, header: SegmentHeader, short: bool, windows: bool, buffer: usize) -> Steps {
    let (len, table) = (file.0.len() as u64, Arc::new(TopicTable::default()));
    let mut cursor = Cursor::new(Arc::new(file.clone()), header, len, table, buffer);
    if windows {
        cursor.look_through_windows();
    }
    let mut steps = Steps::new();
    loop {
        let found = if short { cursor.next() } else { cursor.next_found() }.expect("read");
        let bytes = match &found {
            Found::Frame(at, frame) => cursor.frame_bytes(*at, frame).to_vec(),
            _ => Vec::new(),
        };
        steps.push((found, bytes, cursor.pos, cursor.expect, cursor.lsn_min()));
        if matches!(found, Found::End { .. }) {
            return steps;
        }
    }
}

/// One change of a segment.
#[derive(Clone, Debug)]
enum Change {
    Flip { frame: usize, byte: usize, bit: u8 },
    Zero { at: usize, len: usize },
    Copy { from: usize, to: usize },
    Cut { at: usize },
    Number { frame: usize, field: usize, add: i8 },
}

fn change() -> impl Strategy<Value = Change> {
    let at = 1024..SEGMENT_BYTES as usize;
    prop_oneof![
        4 => (any::<usize>(), 0..160_usize, 0..8_u8)
            .prop_map(|(frame, byte, bit)| Change::Flip { frame, byte, bit }),
        2 => (at.clone(), 1..2048_usize).prop_map(|(at, len)| Change::Zero { at, len }),
        2 => (any::<usize>(), any::<usize>()).prop_map(|(from, to)| Change::Copy { from, to }),
        1 => at.prop_map(|at| Change::Cut { at }),
        3 => (any::<usize>(), 0..4_usize, -2..3_i8)
            .prop_map(|(frame, field, add)| Change::Number { frame, field, add }),
    ]
}

fn apply(sample: &Sample, bytes: &mut Vec<u8>, change: &Change) {
    let start = |n: usize| sample.starts[n % sample.starts.len()];
    let length =
        |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| sample.bytes[at + i])) as usize;
    match *change {
        Change::Flip { frame, byte, bit } => {
            if let Some(byte) = bytes.get_mut(start(frame) + byte) {
                *byte ^= 1 << bit;
            }
        }
        Change::Zero { at, len } => {
            let (from, to) = (at.min(bytes.len()), (at + len).min(bytes.len()));
            bytes[from..to].fill(0);
        }
        Change::Copy { from, to } => {
            let (from, to) = (start(from), start(to));
            let n = length(from);
            if to + n <= bytes.len() {
                bytes[to..to + n].copy_from_slice(&sample.bytes[from..from + n]);
            }
        }
        Change::Cut { at } => bytes.truncate(at),
        // A frame that is whole in itself, and wrong where it stands.
        Change::Number { frame, field, add } => {
            let at = start(frame);
            let frame = &sample.bytes[at..at + length(at)];
            let Some(mut header) = FrameHeader::decode(frame) else { return };
            let moved = |n: u64| n.saturating_add_signed(i64::from(add));
            match field {
                0 => header.lsn = moved(header.lsn),
                1 => header.frame_number = moved(header.frame_number),
                2 => header.topic = moved(u64::from(header.topic)) as u32,
                _ => header.kind = FrameKind::Void,
            }
            let to = FRAME_HEADER_BYTES + usize::from(header.prefix_len);
            let (prefix, body) = (&frame[FRAME_HEADER_BYTES..to], &frame[to..]);
            let head = header.encode(sample.header.salt, prefix, body);
            if at + head.len() <= bytes.len() {
                bytes[at..at + head.len()].copy_from_slice(&head);
            }
        }
    }
}

/// Both ways through the same bytes, by windows and by reads of several sizes. True when they met
/// something else than good frames to the seal.
fn agree(sample: &Sample, bytes: Vec<u8>) -> bool {
    let file = Whole(bytes.into());
    let expected = walk(&file, sample.header, false, false, 512);
    for (windows, buffer) in [(false, 512), (false, 4096), (false, 256 << 10), (true, 512)] {
        for short in [true, false] {
            let found = walk(&file, sample.header, short, windows, buffer);
            assert_eq!(found, expected, "windows {windows}, buffer {buffer}, short {short}");
        }
    }
    expected.len() != sample.starts.len() + 1
        || !expected[..sample.starts.len()].iter().all(|s| matches!(s.0, Found::Frame(..)))
}

#[test]
fn the_short_way_finds_what_the_long_way_finds_in_damaged_segments() {
    for sample in samples() {
        assert!(sample.starts.len() > 300, "{}", sample.starts.len());
        assert!(!agree(sample, sample.bytes.clone()), "the control is sound");
    }
    let (cases, damaged) = (AtomicU64::new(0), AtomicU64::new(0));
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() };
    proptest!(config, |(aside: bool, changes in vec(change(), 1..6))| {
        let sample = &samples()[usize::from(aside)];
        let mut bytes = sample.bytes.clone();
        changes.iter().for_each(|c| apply(sample, &mut bytes, c));
        cases.fetch_add(1, Ordering::Relaxed);
        damaged.fetch_add(u64::from(agree(sample, bytes)), Ordering::Relaxed);
    });
    let (cases, damaged) = (cases.into_inner(), damaged.into_inner());
    assert!(damaged > cases / 4, "{damaged} of {cases} segments were damaged");
    say(&format!("{cases} changed segments, {damaged} with damage: both ways agree on each"));
}

#[test]
fn a_frames_crc_in_one_piece_is_that_of_its_two() {
    let sums = AtomicU64::new(0);
    let config = ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() };
    proptest!(config, |(
        salt: u32,
        body in vec(any::<u8>(), 0..900),
        flip in proptest::option::of((any::<usize>(), 0..8_u8)),
    )| {
        let shape = Shape { headers_len: 0, key_len: None, value_len: Some(body.len() as u32) };
        let header = FrameHeader {
            timestamp_ms: 7,
            shape,
            ..FrameHeader::plain(FrameKind::Record, 9, 2, body.len() as u32)
        };
        let mut frame = header.encode(salt, &[], &body).to_vec();
        frame.extend_from_slice(&body);
        if let Some((byte, bit)) = flip {
            let byte = byte % frame.len();
            frame[byte] ^= 1 << bit;
        }
        let field = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| frame[at + i]));
        let mut crc = crc32fast::Hasher::new_with_initial(salt);
        crc.update(&frame[..4]);
        crc.update(&frame[8..]);
        let holds = crc.finalize() == field(4);
        prop_assert_eq!(holds, flip.is_none());
        let said = FrameHeader { length: field(0), crc: field(4), ..header };
        prop_assert_eq!(said.crc_holds(salt, &frame), holds);
        sums.fetch_add(1, Ordering::Relaxed);
    });
    say(&format!("{} frames", sums.into_inner()));
}
