//! The format, pinned: committed bytes that this version must read for ever and write bit for
//! bit. `FOREBAY_WRITE_GOLDEN=1` writes them anew; a change of them is a change of format.

use super::*;
use std::fs;
use std::path::PathBuf;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
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
            TopicBooks { name: "alpha".into(), delivered: 3, set_aside: 1, dropped: 0 },
            TopicBooks { name: "beta".into(), delivered: 2, set_aside: 0, dropped: 9 },
        ],
    };
    log.keeper.store_checkpoint(&books(2)).expect("stored");
    log.keeper.sync_now().expect("synced");
    log.keeper.store_checkpoint(&books(3)).expect("stored");
    storage
}

fn written(storage: &MemoryStorage) -> Vec<(String, Vec<u8>)> {
    let names = storage.names().into_iter();
    let files = names.filter_map(|n| storage.contents(&n).map(|bytes| (n, bytes)));
    files.filter(|(_, bytes)| bytes.iter().any(|b| *b != 0)).collect()
}

#[test]
fn the_bytes_are_those_that_were_committed() {
    let files = written(&make());
    let write = std::env::var_os("FOREBAY_WRITE_GOLDEN").is_some();
    for (name, bytes) in &files {
        let path = golden(&name.replace('/', "+"));
        if write {
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(&path, bytes).expect("written");
        }
        let committed = fs::read(&path).expect("committed");
        assert!(committed == *bytes, "{name} differs from the committed bytes");
    }
    println!("{} golden files", files.len());
    assert_eq!(files.len(), 6);
}

#[test]
fn the_committed_bytes_are_read() {
    let storage = MemoryStorage::new();
    for entry in fs::read_dir(golden("")).expect("listed") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().replace('+', "/");
        storage.put(&name, &fs::read(&path).expect("read"));
    }
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
