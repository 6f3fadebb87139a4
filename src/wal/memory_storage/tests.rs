//! The model itself: each thing that a crash or a power cut may leave does come.

use super::*;
use std::collections::BTreeSet;

const SEEDS: u64 = 400;

/// What power cuts leave of `name`, over many seeds: `None` is that it isn't there.
fn left(storage: &MemoryStorage, name: &str) -> BTreeSet<Option<Vec<u8>>> {
    (0..SEEDS).map(|seed| storage.power_cut_image(seed).contents(name)).collect()
}

fn file(storage: &MemoryStorage, name: &str, bytes: &[u8]) -> Arc<dyn StorageFile> {
    let file = storage.open_or_create(name).expect("made");
    file.write_at(0, bytes).expect("written");
    file
}

/// Fuzzing `ops` found it: a power cut brought back what had stood there before a file was put.
#[test]
fn what_was_put_is_there_whatever_was_to_become_of_its_name() {
    let storage = MemoryStorage::new();
    file(&storage, "made", b"old");
    file(&storage, "moved", b"old");
    storage.rename("moved", "away").expect("renamed");
    file(&storage, "from", b"old");
    storage.rename("from", "to").expect("renamed");
    file(&storage, "gone", b"old");
    storage.unlink("gone").expect("unlinked");
    let names = ["made", "moved", "to", "gone"];
    names.iter().for_each(|name| storage.put(name, b"new"));
    for name in names {
        assert_eq!(left(&storage, name), BTreeSet::from([Some(b"new".to_vec())]), "{name}");
    }
    let away = left(&storage, "away");
    assert!(away.contains(&None) && away.contains(&Some(b"old".to_vec())), "{away:?}");
}

#[test]
fn a_power_cut_keeps_any_subset_of_the_sectors() {
    let storage = MemoryStorage::new();
    let f = file(&storage, "f", &[1; 3 * 512]);
    f.sync().expect("synced");
    storage.sync_dir().expect("synced");
    f.write_at(0, &[2; 3 * 512]).expect("written");
    let sectors = |bytes: Option<Vec<u8>>| bytes.map(|b| [b[0], b[512], b[1024]]);
    let seen: BTreeSet<_> = left(&storage, "f").into_iter().map(sectors).collect();
    assert_eq!(seen.len(), 8, "{seen:?}");
    assert!(left(&storage, "f").iter().flatten().all(|b| b.len() == 3 * 512));
}

#[test]
fn a_power_cut_leaves_the_synced_length_the_last_one_or_one_between() {
    let storage = MemoryStorage::new();
    let made = storage.create("f", 4096).expect("made");
    storage.sync_dir().expect("synced");
    let lengths = |s: &MemoryStorage| -> BTreeSet<usize> {
        left(s, "f").into_iter().flatten().map(|b| b.len()).collect()
    };
    assert_eq!(lengths(&storage), BTreeSet::from([0, 2048, 4096]));
    made.file().sync().expect("synced");
    assert_eq!(lengths(&storage), BTreeSet::from([4096]));
    made.file().truncate(512).expect("cut");
    assert_eq!(lengths(&storage), BTreeSet::from([512, 2048, 4096]));
    let file = made.file();
    file.write_at(4000, &[1; 96]).expect("written");
    file.sync().expect("synced");
    let after = storage.power_cut_image(0).contents("f").expect("there");
    assert!(after[512..4000].iter().all(|b| *b == 0), "what was cut off came back");
}

#[test]
fn names_come_and_go_apart_from_contents() {
    let storage = MemoryStorage::new();
    file(&storage, "old", b"old").sync().expect("synced");
    file(&storage, "gone", b"gone").sync().expect("synced");
    storage.sync_dir().expect("synced");
    file(&storage, "new", b"new");
    storage.rename("new", "old").expect("renamed");
    storage.unlink("gone").expect("removed");
    let seen = left(&storage, "old");
    // The rename with its content, without it, and not at all.
    for expected in [&b"new"[..], b"\0\0\0", b"", b"old"] {
        assert!(seen.contains(&Some(expected.to_vec())), "{expected:?} in {seen:?}");
    }
    assert_eq!(left(&storage, "gone"), BTreeSet::from([None, Some(b"gone".to_vec())]));
    storage.sync_dir().expect("synced");
    assert_eq!(left(&storage, "gone"), BTreeSet::from([None]));
}

#[test]
fn a_crash_comes_before_in_the_middle_of_and_after_an_op() {
    let stored = |part: u64, act: &dyn Fn(&MemoryStorage)| {
        let storage = MemoryStorage::new();
        file(&storage, "f", b"xxxxxxxx");
        storage.crash_in(storage.ops(), part);
        act(&storage);
        assert!(storage.crashed());
        let image = storage.process_crash_image();
        (image.contents("f"), image.contents("g").map(|b| b.len()))
    };
    let f = |b: &[u8]| Some(b.to_vec());
    let create = |s: &MemoryStorage| assert!(s.create("g", 4096).is_err());
    assert_eq!(stored(0, &create), (f(b"xxxxxxxx"), None));
    assert_eq!(stored(4, &create), (f(b"xxxxxxxx"), Some(2048)));
    assert_eq!(stored(8, &create), (f(b"xxxxxxxx"), Some(4096)));
    let unlink = |s: &MemoryStorage| assert!(s.unlink("f").is_err());
    assert_eq!(stored(4, &unlink), (f(b"xxxxxxxx"), None));
    assert_eq!(stored(8, &unlink), (None, None));
    let rename = |s: &MemoryStorage| assert!(s.rename("f", "g").is_err());
    assert_eq!(stored(4, &rename), (f(b"xxxxxxxx"), None));
    assert_eq!(stored(8, &rename), (None, Some(8)));

    for (part, expected) in [(0, b"xxxxxxxx"), (4, b"yyyyxxxx"), (8, b"yyyyyyyy")] {
        let storage = MemoryStorage::new();
        let f = file(&storage, "f", b"xxxxxxxx");
        storage.crash_in(storage.ops(), part);
        assert!(f.write_at(0, b"yyyyyyyy").is_err());
        assert_eq!(storage.process_crash_image().contents("f"), Some(expected.to_vec()));
    }
}

#[test]
fn what_a_failed_sync_lost_the_next_one_does_not_bring_back() {
    let storage = MemoryStorage::new();
    let f = file(&storage, "f", b"old");
    f.sync().expect("synced");
    storage.sync_dir().expect("synced");
    f.write_at(0, b"new").expect("written");
    storage.set_faults(Some(Box::new(|_, op| {
        (op == StorageOp::Sync).then_some(io::ErrorKind::Other)
    })));
    assert!(f.sync().is_err());
    storage.set_faults(None);
    f.sync().expect("synced");
    assert_eq!(storage.contents("f"), Some(b"new".to_vec()), "the page cache still has it");
    assert_eq!(left(&storage, "f"), BTreeSet::from([Some(b"old".to_vec())]));
}
