//! A directory that the code wrote, then damaged: damage costs what it touched, and no more.
//!
//! The oracle knows where each frame stood. Whatever comes back was written, byte for byte, in
//! order; every record outside the touched ranges comes back; the books balance; nothing that
//! should come is missing without a word; and a second open finds the same records.
#![no_main]

use arbitrary::Arbitrary;
use forebay::record::Lsn;
use forebay::topics::TopicTable;
use forebay::wal::{
    CheckpointData, FrameKind, FrameWalk, Inspected, MemoryStorage, SegmentKind, inspect,
};
use forebay_fuzz::{Log, Spec, helped, noise, open};
use libfuzzer_sys::fuzz_target;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Arbitrary, Debug)]
struct Input {
    records: Vec<(Spec, Beside)>,
    sealed: bool,
    mutations: Vec<Mutation>,
}

/// What happens after an append.
#[derive(Arbitrary, Debug)]
enum Beside {
    Nothing,
    SetAside,
    Checkpoint(u8),
    Seal,
    Sync,
}

#[derive(Arbitrary, Debug)]
enum Mutation {
    Flip { file: u8, at: u16, bit: u8 },
    Fill { file: u8, at: u16, bytes: u16, with: u8 },
    Noise { file: u8, at: u16, bytes: u8, seed: u8 },
    Sector { file: u8, sector: u8 },
    Truncate { file: u8, at: u16 },
    Extend { file: u8, bytes: u8, seed: u8 },
    Copy { from: u8, from_at: u16, to: u8, to_at: u16, bytes: u16 },
    Swap { from: u8, from_at: u16, to: u8, to_at: u16, bytes: u16 },
    Delete { file: u8 },
    Duplicate { file: u8, number: u8, aside: bool },
    FlipFrame { frame: u16, at: u16, bit: u8 },
    ZeroFrame { frame: u16 },
    MoveFrame { frame: u16, to: u16 },
    RemoveFrame { frame: u16 },
}

/// A frame of the directory as it was written.
struct Frame {
    file: String,
    from: u64,
    /// Without padding, which no checksum covers.
    to: u64,
    kind: FrameKind,
    lsn: u64,
    topic: u32,
}

/// What the code wrote.
struct Written {
    storage: MemoryStorage,
    main: BTreeMap<u64, Spec>,
    aside: BTreeMap<u64, Spec>,
    watermark: u64,
    frames: Vec<Frame>,
}

fn name_of(kind: SegmentKind, number: u64) -> String {
    match kind {
        SegmentKind::Main => format!("{number:016x}.wal"),
        SegmentKind::SetAside => format!("set-aside/{number:016x}.wal"),
    }
}

/// Every good frame of a directory.
fn frames(storage: &MemoryStorage) -> Vec<Frame> {
    let mut frames = Vec::new();
    for segment in inspect(storage).expect("the directory can be listed") {
        let Some(mut walk) = FrameWalk::new(storage, &segment).expect("readable") else { continue };
        for step in 0.. {
            assert!(step < 1_000_000, "a walk that never ends");
            match walk.next_frame().expect("readable") {
                Some(Inspected::Frame { offset, header, .. }) => frames.push(Frame {
                    file: name_of(segment.kind, segment.number),
                    from: offset,
                    to: offset + u64::from(header.length),
                    kind: header.kind,
                    lsn: header.lsn,
                    topic: header.topic,
                }),
                Some(Inspected::Bad { from, to, .. }) => assert!(from < to),
                None => break,
            }
        }
    }
    frames
}

fn write(input: &Input) -> Written {
    let storage = MemoryStorage::new();
    let mut log = open(&storage, 1);
    let (mut main, mut aside, mut watermark) = (BTreeMap::new(), BTreeMap::new(), 0);
    for (n, (spec, beside)) in input.records.iter().take(80).enumerate() {
        let lsn = n as u64 + 1;
        match beside {
            Beside::SetAside => {
                if helped(&mut log, |l| l.set_aside(lsn, spec)).is_ok() {
                    aside.insert(lsn, *spec);
                }
                continue;
            }
            Beside::Checkpoint(back) => {
                watermark = watermark.max(lsn.saturating_sub(u64::from(*back)));
                let data = CheckpointData {
                    watermark: Lsn(watermark),
                    next_lsn: Lsn(lsn),
                    ..CheckpointData::default()
                };
                log.keeper.store_checkpoint(&data).expect("stored");
            }
            Beside::Seal => log.wal.seal(),
            Beside::Sync => log.keeper.sync_now().expect("synced"),
            Beside::Nothing => {}
        }
        if helped(&mut log, |l| l.append(lsn, spec)).is_ok() {
            main.insert(lsn, *spec);
        }
    }
    if input.sealed {
        log.wal.seal();
    }
    let frames = frames(&storage);
    Written { storage, main, aside, watermark, frames }
}

/// Which bytes of which file were touched.
#[derive(Default)]
struct Touched {
    ranges: BTreeMap<String, Vec<(u64, u64)>>,
}

impl Touched {
    fn add(&mut self, file: &str, from: u64, to: u64) {
        if from < to {
            self.ranges.entry(file.to_string()).or_default().push((from, to));
        }
    }

    fn hits(&self, file: &str, from: u64, to: u64) -> bool {
        let ranges = self.ranges.get(file);
        ranges.is_some_and(|r| r.iter().any(|(f, t)| *f < to && from < *t))
    }

    /// Whether this frame may be missing.
    fn excuses(&self, frame: &Frame, all: &[Frame]) -> bool {
        let file = &frame.file;
        let header_gone = self.hits(file, 0, 128) && self.hits(file, 512, 640);
        let names_it =
            |f: &&Frame| f.file == *file && f.kind == FrameKind::Topic && f.topic == frame.topic;
        let name_gone = all.iter().filter(names_it).all(|f| self.hits(file, f.from, f.to));
        header_gone || name_gone || self.hits(file, frame.from, frame.to)
    }
}

fn mutate(written: &Written, mutation: &Mutation, touched: &mut Touched) {
    let storage = &written.storage;
    let names = storage.names();
    if names.is_empty() {
        return;
    }
    let name = |file: u8| names[usize::from(file) % names.len()].clone();
    let read = |name: &str| storage.contents(name).unwrap_or_default();
    let frame = |n: u16| written.frames.get(usize::from(n) % written.frames.len().max(1));
    let mut put = |name: &str, bytes: &[u8], from: usize, to: usize| {
        storage.put(name, bytes);
        touched.add(name, from as u64, to as u64);
    };
    let end = u64::MAX as usize;
    match *mutation {
        Mutation::Flip { file, at, bit } => {
            let (name, mut bytes) = (name(file), read(&name(file)));
            if bytes.is_empty() {
                return;
            }
            let at = usize::from(at) % bytes.len();
            bytes[at] ^= 1 << (bit % 8);
            put(&name, &bytes, at, at + 1);
        }
        Mutation::Fill { file, at, bytes: n, with } => {
            let (name, mut bytes) = (name(file), read(&name(file)));
            let from = usize::from(at).min(bytes.len());
            let to = (from + usize::from(n)).min(bytes.len());
            bytes[from..to].fill(with);
            put(&name, &bytes, from, to);
        }
        Mutation::Noise { file, at, bytes: n, seed } => {
            let (name, mut bytes) = (name(file), read(&name(file)));
            let from = usize::from(at).min(bytes.len());
            let to = (from + usize::from(n)).min(bytes.len());
            bytes.splice(from..to, noise(u64::from(seed)).take(to - from));
            put(&name, &bytes, from, to);
        }
        Mutation::Sector { file, sector } => {
            let (name, mut bytes) = (name(file), read(&name(file)));
            let from = (usize::from(sector) * 512).min(bytes.len());
            let to = (from + 512).min(bytes.len());
            bytes[from..to].fill(0);
            put(&name, &bytes, from, to);
        }
        Mutation::Truncate { file, at } => {
            let (name, mut bytes) = (name(file), read(&name(file)));
            let at = usize::from(at).min(bytes.len());
            bytes.truncate(at);
            put(&name, &bytes, at, end);
        }
        Mutation::Extend { file, bytes: n, seed } => {
            let (name, mut bytes) = (name(file), read(&name(file)));
            bytes.extend(noise(u64::from(seed)).take(usize::from(n)));
            put(&name, &bytes, 0, 0);
        }
        Mutation::Copy { from, from_at, to, to_at, bytes: n } => {
            // A good frame in a wrong place may make those between implausible: all behind it
            // is excused.
            let source = read(&name(from));
            let (name, mut bytes) = (name(to), read(&name(to)));
            let at = usize::from(to_at).min(bytes.len());
            let tail = &source[usize::from(from_at).min(source.len())..];
            let n = usize::from(n).min(tail.len()).min(bytes.len() - at);
            bytes[at..at + n].copy_from_slice(&tail[..n]);
            put(&name, &bytes, at, if n == 0 { at } else { end });
        }
        Mutation::Swap { from, from_at, to, to_at, bytes: n } => {
            let (a, b) = (name(from), name(to));
            let (mut one, mut two) = (read(&a), read(&b));
            let (i, j) = (usize::from(from_at).min(one.len()), usize::from(to_at).min(two.len()));
            let n = usize::from(n).min(one.len() - i).min(two.len() - j);
            if a == b || n == 0 {
                return;
            }
            one[i..i + n].swap_with_slice(&mut two[j..j + n]);
            put(&a, &one, i, end);
            put(&b, &two, j, end);
        }
        Mutation::Delete { file } => {
            let name = name(file);
            use forebay::wal::Storage;
            storage.unlink(&name).expect("it is there");
            touched.add(&name, 0, u64::MAX);
        }
        Mutation::Duplicate { file, number, aside } => {
            let bytes = read(&name(file));
            let kind = if aside { SegmentKind::SetAside } else { SegmentKind::Main };
            let to = name_of(kind, u64::from(number));
            if to != name(file) {
                put(&to, &bytes, 0, end);
            }
        }
        Mutation::FlipFrame { frame: n, at, bit } => {
            let Some(f) = frame(n) else { return };
            let mut bytes = read(&f.file);
            let at = (f.from + u64::from(at) % (f.to - f.from)) as usize;
            if at < bytes.len() {
                bytes[at] ^= 1 << (bit % 8);
                put(&f.file, &bytes, at, at + 1);
            }
        }
        Mutation::ZeroFrame { frame: n } => {
            let Some(f) = frame(n) else { return };
            let mut bytes = read(&f.file);
            let (from, to) = (f.from as usize, f.to as usize);
            if to <= bytes.len() {
                bytes[from..to].fill(0);
                put(&f.file, &bytes, from, to);
            }
        }
        Mutation::MoveFrame { frame: n, to } => {
            let (Some(f), Some(t)) = (frame(n), frame(to)) else { return };
            let source = read(&f.file);
            let mut bytes = read(&t.file);
            let Some(moved) = source.get(f.from as usize..f.to as usize) else { return };
            let at = t.from as usize;
            if at + moved.len() <= bytes.len() {
                bytes[at..at + moved.len()].copy_from_slice(moved);
                put(&t.file, &bytes, at, end);
            }
        }
        Mutation::RemoveFrame { frame: n } => {
            let Some(f) = frame(n) else { return };
            let mut bytes = read(&f.file);
            let (from, to) = (f.from as usize, f.to as usize);
            if to <= bytes.len() {
                bytes.drain(from..to);
                put(&f.file, &bytes, from, end);
            }
        }
    }
}

/// What an open log yields: only what was written.
fn yielded(log: &Log, written: &Written) -> (Vec<u64>, u64) {
    let (records, lost) = log.drain(|topics: &TopicTable, r| {
        let spec = written.main.get(&r.lsn.0);
        spec.expect("a ghost").check(topics, r.lsn.0, &r.record);
    });
    (records.into_iter().map(|(lsn, _)| lsn).collect(), lost)
}

fuzz_target!(|input: Input| {
    let written = write(&input);
    let mut touched = Touched::default();
    for mutation in input.mutations.iter().take(8) {
        mutate(&written, mutation, &mut touched);
    }
    let mut log = open(&written.storage, 2);
    let (lsns, lost) = yielded(&log, &written);
    let came: BTreeSet<u64> = lsns.iter().copied().collect();
    for frame in written.frames.iter().filter(|f| f.kind == FrameKind::Record) {
        assert!(
            came.contains(&frame.lsn)
                || frame.lsn < written.watermark
                || touched.excuses(frame, &written.frames),
            "record {} at {} of {} was not touched and didn't come: {:?}",
            frame.lsn,
            frame.from,
            frame.file,
            log.recovery
        );
    }
    // What is missing between two records that came is counted: frame numbers are dense. What
    // is missing before all of them is told of, as long as there is a manifest. (The end of a
    // log that was zeroed looks like a log that ended there.)
    let between = |from: u64, to: u64| {
        let due = written.main.keys().filter(|n| (from.max(written.watermark)..to).contains(n));
        due.filter(|n| !came.contains(n)).count() as u64
    };
    let (first, last) = (lsns.first().copied().unwrap_or(0), lsns.last().copied().unwrap_or(0));
    let missing = between(first, last);
    assert!(missing <= lost, "{missing} records are gone and {lost} were told");
    let d = log.recovery.damage.clone();
    let told =
        lost + d.segments_missing + d.segments_foreign + d.segments_newer + d.unfinished_tails;
    let missing = between(0, first);
    if missing > 0 && !touched.ranges.contains_key("manifest") {
        assert!(told > 0, "the {missing} oldest records are gone without a word: {d:?}");
    }
    // Dead letters are read by inspection: the same holds for them.
    let aside = frames(&written.storage);
    let aside: BTreeSet<u64> =
        aside.iter().filter(|f| f.kind == FrameKind::SetAside).map(|f| f.lsn).collect();
    assert!(aside.iter().all(|lsn| written.aside.contains_key(lsn)), "a ghost was set aside");
    for frame in written.frames.iter().filter(|f| f.kind == FrameKind::SetAside) {
        assert!(
            aside.contains(&frame.lsn) || touched.excuses(frame, &written.frames),
            "set-aside record {} was not touched and is gone",
            frame.lsn
        );
    }
    // What was bad is copied before anything else happens to it; a second open finds the same.
    log.keeper.step(0, None);
    drop(log);
    let mut log = open(&written.storage, 3);
    assert_eq!(yielded(&log, &written).0, lsns, "a second open finds something else");
    // And the log works.
    let next = log.recovery.next_lsn.0.max(1);
    let spec = Spec { topic: 0, partition: 0, headers: 1, key: None, value: Some(9) };
    helped(&mut log, |l| l.append(next, &spec)).expect("there is room");
});
