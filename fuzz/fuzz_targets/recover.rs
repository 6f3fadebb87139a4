//! Recovery over arbitrary bytes: it never panics, never refuses, what it counts is what a
//! reader then yields, and a second open finds the same.
//!
//! Bytes alone stop at the first checksum. So a directory is described: files under any name,
//! made of raw bytes, of headers, frames, seals and locators whose fields are arbitrary and
//! whose checksums are right, of checkpoints and manifests likewise.
#![no_main]

use arbitrary::Arbitrary;
use forebay::record::{Lsn, Shape};
use forebay::wal::{
    CheckpointData, FrameHeader, FrameKind, FrameWalk, Locator, Manifest, MemoryStorage, Seal,
    SegmentHeader, SegmentKind, Slot, TopicBooks, inspect, inspect_checkpoint,
};
use forebay_fuzz::{Spec, helped, open};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    directory_id: u8,
    files: Vec<File>,
}

/// Most files belong to one directory.
fn id(input: &Input, of_file: u8) -> u64 {
    (if of_file < 224 { input.directory_id } else { of_file }).into()
}

#[derive(Arbitrary, Debug)]
enum File {
    Segment(Segment),
    Checkpoint { slot: bool, directory_id: u8, words: [Word; 6], topics: Vec<(Text, u64)> },
    Manifest { directory_id: u8, next_number: Word, segments: Vec<(u8, u8)> },
    Raw { name: Name, bytes: Vec<u8> },
}

#[derive(Arbitrary, Debug)]
enum Name {
    Segment { number: u8, aside: bool },
    Checkpoint(bool),
    Manifest,
    Quarantine(u8),
    Other(u8),
}

#[derive(Arbitrary, Debug)]
struct Segment {
    number: u8,
    aside: bool,
    /// The number in the header, when it isn't that of the name.
    other_number: Option<u64>,
    directory_id: u8,
    log_id: bool,
    base_lsn: Word,
    first_frame: Word,
    frame_bytes_max: Word,
    copies: [bool; 2],
    locator: Option<Place>,
    pieces: Vec<Piece>,
}

/// Small, near an edge, or anything.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Word {
    Small(u8),
    Below(u8),
    Half(u8),
    Any(u64),
}

impl Word {
    fn get(self) -> u64 {
        match self {
            Word::Small(n) => n.into(),
            Word::Below(n) => u64::MAX - u64::from(n),
            Word::Half(n) => (1 << 63) - 1 + u64::from(n),
            Word::Any(n) => n,
        }
    }
}

/// A name that mostly is text.
#[derive(Arbitrary, Debug)]
struct Text(u8, Option<u8>);

impl Text {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![b'a' + self.0 % 26; usize::from(self.0 % 8)];
        bytes.extend(self.1);
        bytes
    }
}

#[derive(Arbitrary, Debug)]
enum Place {
    /// Where the last seal of the file stands.
    Seal {
        next_frame: Word,
        last_lsn: Word,
    },
    Any {
        offset: Word,
        length: Word,
        next_frame: Word,
        last_lsn: Word,
    },
}

#[derive(Arbitrary, Debug)]
enum Piece {
    Zeroes(u16),
    Raw(Vec<u8>),
    Topic {
        number: u32,
        frame_number: Word,
        name: Text,
    },
    Record(Frame),
    /// A record that continues those before it.
    Next(Spec),
    Void {
        length: u16,
        frame_number: Word,
    },
    Seal {
        words: [Word; 4],
        frame_number: Word,
        topics: Vec<(u8, Word)>,
    },
    BadSeal(Vec<u8>),
    NewTopic(Text),
}

#[derive(Arbitrary, Debug)]
struct Frame {
    aside: bool,
    lsn: Word,
    number: Word,
    topic: u8,
    headers: Vec<u8>,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    prefix: Vec<u8>,
    length_off_by: u8,
}

const SALT: u32 = 0x5eed;
/// Longer files only make runs slower.
const FILE_BYTES_MAX: usize = 16 << 10;

fn push(file: &mut Vec<u8>, header: &FrameHeader, prefix: &[u8], body: &[u8]) {
    file.extend(header.encode(SALT, prefix, body));
    file.extend(prefix);
    file.extend(body);
    file.resize(file.len().next_multiple_of(8), 0);
}

fn plain(kind: FrameKind, frame_number: u64, topic: u32, len: usize) -> FrameHeader {
    FrameHeader {
        length: 56 + len as u32,
        crc: 0,
        lsn: 0,
        frame_number,
        timestamp_ms: 0,
        kind,
        prefix_len: 0,
        topic,
        partition: 0,
        shape: Shape { headers_len: 0, key_len: None, value_len: Some(len as u32) },
    }
}

impl Segment {
    fn bytes(&self, directory_id: u64) -> Vec<u8> {
        let kind = if self.aside { SegmentKind::SetAside } else { SegmentKind::Main };
        let mut file = vec![0; 1024];
        let (mut lsn, mut number) = (self.base_lsn.get().max(1), self.first_frame.get());
        let mut topics = 0;
        let mut seal_at = None;
        for piece in self.pieces.iter().take(64) {
            if file.len() > FILE_BYTES_MAX {
                break;
            }
            match piece {
                Piece::Zeroes(n) => file.resize(file.len() + usize::from(*n & 0x7ff), 0),
                Piece::Raw(bytes) => file.extend(bytes),
                Piece::Topic { number, frame_number, name } => {
                    let name = name.bytes();
                    let header = plain(FrameKind::Topic, frame_number.get(), *number, name.len());
                    push(&mut file, &header, &[], &name);
                }
                Piece::NewTopic(name) => {
                    let name = name.bytes();
                    let header = plain(FrameKind::Topic, number, topics, name.len());
                    push(&mut file, &header, &[], &name);
                    topics += 1;
                }
                Piece::Next(spec) => {
                    let parts = spec.parts(lsn);
                    let mut header = plain(FrameKind::Record, number, u32::from(spec.topic % 4), 0);
                    header.length = 56 + parts.body.len() as u32;
                    (header.lsn, header.shape) = (lsn, parts.shape);
                    push(&mut file, &header, &[], &parts.body);
                    lsn = lsn.saturating_add(1);
                    number = number.saturating_add(1);
                }
                Piece::Record(f) => {
                    let prefix = if f.aside { &f.prefix[..] } else { &[] };
                    let mut body = f.headers.clone();
                    body.extend(f.key.iter().flatten());
                    body.extend(f.value.iter().flatten());
                    let kind = if f.aside { FrameKind::SetAside } else { FrameKind::Record };
                    let mut header = plain(kind, f.number.get(), f.topic.into(), 0);
                    let length = 56 + prefix.len() + body.len();
                    header.length = (length + usize::from(f.length_off_by >> 6)) as u32;
                    header.lsn = f.lsn.get();
                    header.prefix_len = prefix.len() as u16;
                    header.shape = Shape {
                        headers_len: f.headers.len() as u32,
                        key_len: f.key.as_ref().map(|k| k.len() as u32),
                        value_len: f.value.as_ref().map(|v| v.len() as u32),
                    };
                    push(&mut file, &header, prefix, &body);
                }
                Piece::Void { length, frame_number } => {
                    let mut header = plain(FrameKind::Void, frame_number.get(), 0, 0);
                    header.length = 56 + u32::from(length & 0x3ff);
                    push(&mut file, &header, &[], &[]);
                }
                Piece::Seal { words, frame_number, topics } => {
                    let words = words.map(Word::get);
                    let seal = Seal {
                        records: words[0],
                        first_lsn: words[1],
                        last_lsn: words[2],
                        next_frame: words[3],
                        topics: topics
                            .iter()
                            .map(|(t, n)| (format!("t{}", t % 4).into(), n.get()))
                            .collect(),
                    };
                    let value = seal.encode();
                    seal_at = Some((file.len() as u64, 56 + value.len() as u64));
                    let header = plain(FrameKind::Seal, frame_number.get(), 0, value.len());
                    push(&mut file, &header, &[], &value);
                }
                Piece::BadSeal(value) => {
                    seal_at = Some((file.len() as u64, 56 + value.len() as u64));
                    push(&mut file, &plain(FrameKind::Seal, number, 0, value.len()), &[], value);
                }
            }
        }
        let header = SegmentHeader {
            number: self.other_number.unwrap_or(self.number.into()),
            salt: SALT,
            log_id: u32::from(self.log_id && self.number > 250),
            kind,
            frame_bytes_max: self.frame_bytes_max.get() as u32,
            directory_id,
            base_lsn: self.base_lsn.get(),
            first_frame: self.first_frame.get(),
            created_unix_ms: 0,
            file_bytes: file.len() as u64,
        };
        for (at, copy) in [0, 512].into_iter().zip(self.copies) {
            if copy {
                file[at..at + 128].copy_from_slice(&header.encode());
            }
        }
        let locator = self.locator.as_ref().and_then(|place| {
            Some(match place {
                Place::Seal { next_frame, last_lsn } => Locator {
                    offset: seal_at?.0,
                    length: seal_at?.1,
                    next_frame: next_frame.get(),
                    last_lsn: last_lsn.get(),
                },
                Place::Any { offset, length, next_frame, last_lsn } => Locator {
                    offset: offset.get(),
                    length: length.get(),
                    next_frame: next_frame.get(),
                    last_lsn: last_lsn.get(),
                },
            })
        });
        if let Some(locator) = locator {
            file[256..296].copy_from_slice(&locator.encode(SALT));
        }
        file
    }
}

fn segment_name(number: u8, aside: bool) -> String {
    format!("{}{number:016x}.wal", if aside { "set-aside/" } else { "" })
}

fn put(storage: &MemoryStorage, input: &Input) {
    let slot_name = |slot: bool| format!("checkpoint-{}", u8::from(slot));
    for file in input.files.iter().take(12) {
        match file {
            File::Segment(segment) => {
                let name = segment_name(segment.number, segment.aside);
                storage.put(&name, &segment.bytes(id(input, segment.directory_id)));
            }
            File::Checkpoint { slot, directory_id, words, topics } => {
                let words = words.map(Word::get);
                let books = |(name, n): &(Text, u64)| TopicBooks {
                    name: String::from_utf8_lossy(&name.bytes()).into_owned(),
                    delivered: *n,
                    set_aside: *n,
                    dropped: *n,
                    ..TopicBooks::default()
                };
                let data = CheckpointData {
                    watermark: Lsn(words[0]),
                    next_lsn: Lsn(words[1]),
                    accepted: words[2],
                    delivered: words[3],
                    unsafe_records: words[4],
                    topics: topics.iter().map(books).collect(),
                };
                let slot_of =
                    Slot { directory_id: id(input, *directory_id), generation: words[5], data };
                storage.put(&slot_name(*slot), &slot_of.encode());
            }
            File::Manifest { directory_id, next_number, segments } => {
                let manifest = Manifest {
                    directory_id: id(input, *directory_id),
                    next_number: next_number.get(),
                    segments: segments.iter().map(|(n, k)| ((*n).into(), (*k).into())).collect(),
                };
                storage.put("manifest", &manifest.encode());
            }
            File::Raw { name, bytes } => {
                let name = match name {
                    Name::Segment { number, aside } => segment_name(*number, *aside),
                    Name::Checkpoint(slot) => slot_name(*slot),
                    Name::Manifest => "manifest".to_string(),
                    Name::Quarantine(n) => format!("quarantine/{n:016x}.bad"),
                    Name::Other(n) => format!("{n:016x}wal"),
                };
                storage.put(&name, bytes);
            }
        }
    }
}

/// Looking without opening never panics and ends.
fn look(storage: &MemoryStorage) {
    let _ = inspect_checkpoint(storage);
    for segment in inspect(storage).expect("the directory can be listed") {
        let Ok(Some(mut walk)) = FrameWalk::new(storage, &segment) else { continue };
        for step in 0.. {
            assert!(step < 1_000_000, "a walk that never ends");
            if walk.next_frame().expect("readable").is_none() {
                break;
            }
        }
    }
}

fuzz_target!(|input: Input| {
    let storage = MemoryStorage::new();
    put(&storage, &input);
    look(&storage);
    let mut log = open(&storage, 1);
    let (records, lost) = log.drain(|_, _| {});
    // What was read in order is read by position as well.
    for (lsn, at) in &records {
        assert_eq!(log.wal.read_at(*at).expect("it was just read").lsn.0, *lsn);
    }
    let next = log.recovery.next_lsn.0;
    log.keeper.step(0, None);
    drop(log);
    look(&storage);
    let mut log = open(&storage, 2);
    let (again, lost_again) = log.drain(|_, _| {});
    assert_eq!(again, records, "a second open finds something else");
    assert!(lost_again <= lost, "{lost} records were lost, and now {lost_again}");
    assert!(log.recovery.next_lsn.0 <= next);
    // And the log works, but at the very end of its numbers.
    if next < u64::MAX - 1 {
        let spec = Spec { topic: 0, partition: 0, headers: 1, key: None, value: Some(9) };
        let _ = helped(&mut log, |l| l.append(next.max(1), &spec));
    }
    log.keeper.step(100, None);
});
