//! Recovery over arbitrary bytes: it never panics, never refuses, and what it counts is what a
//! reader then yields.
//!
//! The first byte chooses: raw bytes as a segment, a checkpoint slot and a manifest; or a real
//! log with the input's bytes laid over it at places that the input chooses.
#![no_main]

use forebay::record::{Lsn, RecordView, Shape};
use forebay::topics::TopicTable;
use forebay::wal::{AppendError, MemoryStorage, ReadItem, SaltSource, Wal, WalOptions};
use libfuzzer_sys::fuzz_target;
use std::sync::{Arc, OnceLock};

fn options() -> WalOptions {
    WalOptions {
        segment_bytes: 4096,
        set_aside_segment_bytes: 4096,
        wal_bytes_max: Some(1 << 20),
        record_bytes_max: 256,
        read_buffer_bytes: 512,
        ..WalOptions::default()
    }
}

fn salts() -> SaltSource {
    let mut next = 1;
    Box::new(move || {
        next += 0x9e37_79b9;
        next
    })
}

/// A sound log of three segments, made once.
fn sound() -> MemoryStorage {
    static SOUND: OnceLock<MemoryStorage> = OnceLock::new();
    let made = SOUND.get_or_init(|| {
        let storage = MemoryStorage::new();
        let topics = Arc::new(TopicTable::default());
        let opened = Wal::open(Arc::new(storage.clone()), topics.clone(), options(), salts(), 0);
        let (mut wal, mut keeper, _) = opened.expect("an empty storage opens");
        let shape = Shape { headers_len: 0, key_len: Some(1), value_len: Some(40) };
        for n in 1..=60u64 {
            let topic = topics.intern(["a", "b"][n as usize % 2]);
            let body = [n as u8; 41];
            let record = RecordView { topic, partition: 0, timestamp_ms: 0, shape, body: &body };
            while wal.append(Lsn(n), &record) == Err(AppendError::NotReady) {
                keeper.step(0, None);
            }
        }
        storage
    });
    made.process_crash_image()
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, data)) = data.split_first() else { return };
    let storage = if mode % 2 == 0 {
        let storage = MemoryStorage::new();
        let third = data.len() / 3;
        storage.put("0000000000000001.wal", &data[..third]);
        storage.put("checkpoint-0", &data[third..2 * third]);
        storage.put("manifest", &data[2 * third..]);
        storage
    } else {
        let storage = sound();
        let names = storage.names();
        let mut data = data;
        while let Some((place, rest)) = data.split_at_checked(4) {
            let name = &names[place[0] as usize % names.len()];
            let mut bytes = storage.contents(name).unwrap_or_default();
            let at = usize::from(u16::from_le_bytes([place[1], place[2]]));
            let n = (place[3] as usize % 64).min(rest.len());
            let end = (at + n).min(bytes.len());
            if at < end {
                bytes[at..end].copy_from_slice(&rest[..end - at]);
            }
            storage.put(name, &bytes);
            data = &rest[n..];
        }
        storage
    };
    let topics = Arc::new(TopicTable::default());
    let opened = Wal::open(Arc::new(storage), topics, options(), salts(), 0);
    let (wal, _keeper, recovery) = opened.expect("bad data is no reason to refuse");
    let mut yielded = 0;
    let mut last = None;
    if let Some(from) = recovery.backlog {
        let mut reader = wal.reader(from);
        loop {
            match wal.read_next(&mut reader) {
                ReadItem::Record(r) => {
                    assert!(last < Some(r.lsn), "out of order");
                    assert!(r.lsn < recovery.next_lsn);
                    assert_eq!(r.record.body.len(), r.record.shape.body_len());
                    let _ = (r.record.key(), r.record.value(), r.record.headers().count());
                    last = Some(r.lsn);
                    yielded += 1;
                }
                ReadItem::Damage { records_lost, .. } => yielded += records_lost,
                ReadItem::CaughtUp => break,
                ReadItem::Error(kind) => panic!("{kind}"),
            }
        }
    }
    assert_eq!(recovery.records, yielded, "{recovery:?}");
});
