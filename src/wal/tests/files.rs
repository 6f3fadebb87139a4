//! The real storage: a directory, mappings, locks, permissions.

use super::*;
use crate::error::OpenError;
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn open_files(storage: FileStorage) -> Open {
    let topics = Arc::new(TopicTable::default());
    let options = WalOptions { wal_bytes_max: None, ..small() };
    let (wal, keeper, recovery) =
        Wal::open(Arc::new(storage), topics.clone(), options, random_salts(), 0).expect("opens");
    Open { wal, keeper, recovery, topics }
}

#[test]
fn what_was_just_stored_through_the_mapping_is_read_by_pread() {
    let home = tempfile::tempdir().expect("a directory");
    let dir = home.path().join("log");
    let mut log = open_files(FileStorage::open(&dir).expect("opens"));
    let mut reader = None;
    for n in 1..=2_000 {
        let at = append_helped(&mut log, n);
        let reader = reader.get_or_insert_with(|| log.wal.reader(at));
        match log.wal.read_next(reader) {
            ReadItem::Record(r) => {
                assert_eq!(r.lsn.0, n);
                check_record(&r, &log.topics);
            }
            other => panic!("record {n}: {other:?}"),
        }
        if n % 100 == 0 {
            log.keeper.sync_now().expect("synced");
        }
    }
    // Beside the holder, read-only.
    let beside = FileStorage::open_read_only(&dir).expect("opens");
    let mut seen = 0;
    for segment in inspect(&beside).expect("listed") {
        let Some(mut walk) = FrameWalk::new(&beside, &segment).expect("opened") else { continue };
        while let Some(item) = walk.next_frame().expect("read") {
            assert!(matches!(item, Inspected::Frame { .. }), "{item:?}");
            seen += u64::from(
                matches!(item, Inspected::Frame { header, .. } if header.kind == FrameKind::Record),
            );
        }
    }
    assert_eq!(seen, 2_000);
    drop(log);
    let again = open_files(FileStorage::open(&dir).expect("opens"));
    assert_eq!(again.recovery.damage, DamageReport::default());
    assert_eq!(read_all(&again, again.recovery.backlog), ((1..=2_000).collect(), 0));
    println!("2000 records over {} segments", again.wal.stats().segments);
    for entry in fs::read_dir(&dir).expect("listed") {
        let entry = entry.expect("an entry");
        let mode = entry.metadata().expect("its mode").permissions().mode() & 0o077;
        assert_eq!(mode, 0, "{:?}", entry.path());
    }
}

#[test]
fn a_second_holder_is_told_who_holds_it() {
    let home = tempfile::tempdir().expect("a directory");
    let dir = home.path().join("log");
    let first = FileStorage::open(&dir).expect("opens");
    match FileStorage::open(&dir) {
        Err(OpenError::InUse { holder, .. }) => {
            assert!(holder.contains(&format!("process {}", std::process::id())), "{holder}");
        }
        other => panic!("{other:?}"),
    }
    drop(first);
    FileStorage::open(&dir).expect("the lock went with its holder");
}

#[test]
fn a_directory_that_others_can_read_is_refused() {
    let home = tempfile::tempdir().expect("a directory");
    let dir = home.path().join("log");
    fs::create_dir(&dir).expect("made");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o750)).expect("set");
    match FileStorage::open(&dir) {
        Err(e @ OpenError::Permissions { mode: 0o750, .. }) => {
            assert!(e.to_string().contains("chmod 700"), "{e}");
        }
        other => panic!("{other:?}"),
    }
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).expect("set");
    FileStorage::open(&dir).expect("mended");
}

#[test]
fn a_path_that_is_a_file_is_an_error() {
    let home = tempfile::tempdir().expect("a directory");
    let path = home.path().join("log");
    fs::write(&path, b"x").expect("written");
    assert!(matches!(FileStorage::open(&path), Err(OpenError::Io { .. })));
}

#[test]
fn a_cut_file_is_an_error_of_populate_and_no_signal() {
    let home = tempfile::tempdir().expect("a directory");
    let storage = FileStorage::open(&home.path().join("log")).expect("opens");
    let mut file = storage.create("x.wal", 64 << 10).expect("made");
    file.populate(0, 64 << 10).expect("present");
    file.write_at(8, b"12345678").expect("stored");
    file.commit_at(0, u64::from_le_bytes(*b"abcdefgh")).expect("stored");
    let mut read = [0; 16];
    assert_eq!(file.file().read_at(0, &mut read).expect("read"), 16);
    assert_eq!(&read, b"abcdefgh12345678");
    assert!(file.commit_at(4, 1).is_err(), "not aligned");
    assert!(file.write_at((64 << 10) - 4, b"12345678").is_err(), "out of range");
    file.file().truncate(4096).expect("cut");
    assert!(file.populate(8192, 4096).is_err());
}
