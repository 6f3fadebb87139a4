//! The format, pinned: committed bytes that this version must read for ever and write bit for
//! bit. `FOREBAY_WRITE_GOLDEN=1` writes them anew; a change of them is a change of format.

use super::*;
use std::fs;
use std::path::PathBuf;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

/// A directory with every kind of frame: records, a failed append, a seal, a set-aside record,
/// an unsealed segment, both checkpoint slots.
fn make() -> MemoryStorage {
    let storage = MemoryStorage::new();
    let mut log = open(&storage, small());
    for n in 1..=6 {
        append_helped(&mut log, n);
    }
    let mut writes = 0;
    storage.set_faults(Some(Box::new(move |_, op| {
        writes += u64::from(op == StorageOp::Write);
        (op == StorageOp::Write && writes == 2).then_some(std::io::ErrorKind::Other)
    })));
    append(&mut log, 7).expect_err("its body is refused");
    storage.set_faults(None);
    for n in 7..=12 {
        append_helped(&mut log, n);
    }
    let topic = topic_of(&log, "beta");
    let shape = Shape { headers_len: 0, key_len: Some(1), value_len: None };
    let record = RecordView { topic, partition: 3, timestamp_ms: 12, shape, body: b"k" };
    assert_eq!(
        log.wal.set_aside(Lsn(12), &record, "too large", 10, 34),
        Err(AppendError::NotReady)
    );
    log.keeper.step(0, None);
    log.wal.set_aside(Lsn(12), &record, "too large", 10, 34).expect("set aside");
    log.wal.seal();
    log.keeper.step(1, None);
    append_helped(&mut log, 13);
    let books = |n| CheckpointData {
        watermark: Lsn(n),
        next_lsn: Lsn(14),
        accepted: 20,
        delivered: 5,
        unsafe_records: 2,
        topics: vec![
            TopicBooks { name: "alpha".into(), delivered: 3, set_aside: 1, ..Default::default() },
            TopicBooks { name: "beta".into(), delivered: 2, dropped: 9, ..Default::default() },
        ],
    };
    log.keeper.store_checkpoint(&books(2)).expect("stored");
    log.keeper.sync_now().expect("synced");
    log.keeper.store_checkpoint(&books(3)).expect("stored");
    storage
}

/// One segment, sealed: every shape that a record can have. Null differs from empty in keys,
/// values and headers.
fn make_shapes() -> MemoryStorage {
    let storage = MemoryStorage::new();
    let mut log = open(&storage, WalOptions { segment_bytes: 8192, ..small() });
    let mut n = 0;
    let parts = [None, Some(&b""[..]), Some(&b"12345"[..])];
    for key in parts {
        for value in parts {
            for headers in 0..4 {
                n += 1;
                let mut body = Vec::new();
                for header in &SHAPE_HEADERS[..headers] {
                    let at = body.len();
                    body.resize(at + header.encoded_len(), 0);
                    header.encode(&mut body[at..]);
                }
                let shape = Shape {
                    headers_len: body.len() as u32,
                    key_len: key.map(|k| k.len() as u32),
                    value_len: value.map(|v| v.len() as u32),
                };
                body.extend_from_slice(key.unwrap_or(b""));
                body.extend_from_slice(value.unwrap_or(b""));
                let topic = topic_of(&log, if n % 2 == 0 { "even" } else { "odd-1.2_3" });
                let (partition, timestamp_ms) = (n as i32 % 4 - 1, n as i64 - 18);
                let record = RecordView { topic, partition, timestamp_ms, shape, body: &body };
                while log.wal.append(Lsn(n), &record).is_err() {
                    log.keeper.step(0, None);
                }
            }
        }
    }
    log.wal.seal();
    log.keeper.sync_now().expect("synced");
    storage
}

const SHAPE_HEADERS: [crate::record::Header<'static>; 3] = [
    crate::record::Header { name: "null", value: None },
    crate::record::Header { name: "empty", value: Some(b"") },
    crate::record::Header { name: "gr\u{f6}\u{df}e", value: Some(b"\x00\xff") },
];

fn written(storage: &MemoryStorage) -> Vec<(String, Vec<u8>)> {
    let names = storage.names().into_iter();
    let files = names.filter_map(|n| storage.contents(&n).map(|bytes| (n, bytes)));
    files.filter(|(_, bytes)| bytes.iter().any(|b| *b != 0)).collect()
}

#[test]
fn the_bytes_are_those_that_were_committed() {
    let mut compared = 0;
    for (dir, storage, expected) in [("golden", make(), 6), ("golden-shapes", make_shapes(), 2)] {
        let files = written(&storage);
        let write = std::env::var_os("FOREBAY_WRITE_GOLDEN").is_some();
        for (name, bytes) in &files {
            let path = golden(dir).join(name.replace('/', "+"));
            if write {
                fs::create_dir_all(path.parent().expect("a parent")).expect("made");
                fs::write(&path, bytes).expect("written");
            }
            let committed = fs::read(&path).expect("committed");
            assert!(committed == *bytes, "{dir}/{name} differs from the committed bytes");
        }
        assert_eq!(files.len(), expected, "{dir}");
        compared += files.len();
    }
    println!("{compared} golden files");
}

fn committed(dir: &str) -> MemoryStorage {
    let storage = MemoryStorage::new();
    for entry in fs::read_dir(golden(dir)).expect("listed") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().replace('+', "/");
        storage.put(&name, &fs::read(&path).expect("read"));
    }
    storage
}

#[test]
fn every_shape_of_a_record_is_read_from_committed_bytes() {
    let log = open(&committed("golden-shapes"), small());
    assert_eq!(log.recovery.damage, DamageReport::default());
    let mut reader = log.wal.reader(log.recovery.backlog.expect("there"));
    let mut n = 0u64;
    while let ReadItem::Record(r) = log.wal.read_next(&mut reader) {
        let part = |i: u64| [None, Some(&b""[..]), Some(&b"12345"[..])][i as usize % 3];
        assert_eq!(r.record.key(), part(n / 12));
        assert_eq!(r.record.value(), part(n / 4));
        let headers: Vec<_> = r.record.headers().collect();
        assert_eq!(headers, SHAPE_HEADERS[..n as usize % 4]);
        assert_eq!((r.lsn.0, r.record.timestamp_ms), (n + 1, n as i64 - 17));
        n += 1;
    }
    assert_eq!(n, 36);
}

#[test]
fn the_committed_bytes_are_read() {
    let storage = committed("golden");
    let mut kinds = Vec::new();
    for segment in inspect(&storage).expect("listed") {
        let Some(mut walk) = FrameWalk::new(&storage, &segment).expect("opened") else { continue };
        while let Some(item) = walk.next_frame().expect("read") {
            match item {
                Inspected::Frame { header, note, .. } => {
                    if let Some(note) = note {
                        assert_eq!((note.reason, note.code, note.unix_ms), ("too large", 10, 34));
                    }
                    kinds.push(header.kind as u8);
                }
                bad => panic!("{bad:?}"),
            }
        }
    }
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds, [1, 2, 3, 4, 5], "every kind of frame");
    let (open, lsns, lost) = reopen_and_read(&storage);
    assert_eq!((lsns, lost), ((3..=13).collect(), 0));
    let checkpoint = open.recovery.checkpoint.expect("there");
    assert_eq!((checkpoint.watermark, checkpoint.topics[1].dropped), (Lsn(3), 9));
}

/// Where a body is put beside its head and where it isn't, and heads longer than the log writes.
#[test]
fn a_frame_s_crc_holds_whatever_its_length() {
    let mut frames = 0;
    let bytes: Vec<u8> = (0..5_000u32).map(|n| n as u8).collect();
    for prefix_len in [0, 12, 1_036, 1_037, 3_000] {
        for body_len in [0, 1, 455, 511, 512, 513, 5_000] {
            let (prefix, body) = (&bytes[..prefix_len], &bytes[..body_len]);
            let kind = if prefix_len > 0 { FrameKind::SetAside } else { FrameKind::Record };
            let plain = FrameHeader::plain(kind, 7, 3, body_len as u32);
            let header = FrameHeader {
                length: plain.length + prefix_len as u32,
                prefix_len: prefix_len as u16,
                ..plain
            };
            let mut frame = header.encode(9, prefix, body).to_vec();
            frame.extend(prefix);
            frame.extend(body);
            let back = FrameHeader::decode(&frame).expect("it decodes");
            assert!(back.crc_holds(9, &frame), "prefix {prefix_len}, body {body_len}");
            frames += 1;
        }
    }
    println!("{frames} frames");
}
