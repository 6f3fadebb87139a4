//! Whose the directory is, and that nothing in it leads elsewhere.

use super::*;
use crate::error::OpenError;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

#[test]
fn a_directory_that_is_a_link_is_refused_and_its_target_untouched() {
    let home = tempfile::tempdir().expect("a directory");
    let target = home.path().join("target");
    fs::create_dir(&target).expect("made");
    fs::set_permissions(&target, fs::Permissions::from_mode(0o700)).expect("set");
    let link = home.path().join("log");
    symlink(&target, &link).expect("linked");
    match FileStorage::open(&link) {
        Err(e @ OpenError::Refused { .. }) => {
            assert!(e.to_string().contains("give the directory that it leads to"), "{e}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(fs::read_dir(&target).expect("listed").count(), 0);
    // Links on the way to it are the administrator's business.
    symlink(home.path(), home.path().join("way")).expect("linked");
    FileStorage::open(&home.path().join("way").join("target")).expect("opens");
}

#[test]
fn links_within_the_directory_are_refused() {
    for name in ["LOCK", "set-aside", "quarantine", "newer-version"] {
        let home = tempfile::tempdir().expect("a directory");
        let dir = home.path().join("log");
        drop(FileStorage::open(&dir).expect("opens"));
        let victim = home.path().join("victim");
        if name == "LOCK" {
            fs::remove_file(dir.join(name)).expect("removed");
            fs::write(&victim, b"precious").expect("written");
        } else {
            fs::remove_dir(dir.join(name)).expect("removed");
            fs::create_dir(&victim).expect("made");
        }
        symlink(&victim, dir.join(name)).expect("linked");
        let error = FileStorage::open(&dir).expect_err(name);
        assert!(matches!(error, OpenError::Refused { .. }), "{name}: {error}");
        if name == "LOCK" {
            assert_eq!(fs::read(&victim).expect("there"), b"precious");
        }
    }
}

#[test]
fn a_segment_that_is_a_link_is_never_followed() {
    let home = tempfile::tempdir().expect("a directory");
    let dir = home.path().join("log");
    let open = || {
        let storage = Arc::new(FileStorage::open(&dir).expect("opens"));
        let topics = Arc::new(TopicTable::default());
        Wal::open(storage, topics, small(), salts(7), 1_000).expect("the log opens")
    };
    let (mut wal, mut keeper, _) = open();
    let topics = wal.topics.clone();
    let record = |body| RecordView {
        topic: topics.intern("t"),
        partition: 0,
        timestamp_ms: 1,
        shape: Shape { headers_len: 0, key_len: None, value_len: Some(3) },
        body,
    };
    wal.append(Lsn(1), &record(b"abc")).expect("appended");
    keeper.sync_now().expect("synced");
    drop((wal, keeper));
    let names: Vec<_> = fs::read_dir(&dir)
        .expect("listed")
        .map(|e| e.expect("an entry").path())
        .filter(|p| p.extension().is_some_and(|e| e == "wal"))
        .collect();
    for path in &names {
        let moved = home.path().join(path.file_name().expect("a name"));
        fs::rename(path, &moved).expect("moved");
        symlink(&moved, path).expect("linked");
    }
    let before: Vec<_> = names
        .iter()
        .map(|p| fs::read(home.path().join(p.file_name().expect("a name"))).expect("read"))
        .collect();
    let (wal, mut keeper, recovery) = open();
    keeper.step(0, None);
    assert_eq!(recovery.records, 0, "{recovery:?}");
    assert_eq!(recovery.damage.segments_missing, names.len() as u64, "{recovery:?}");
    drop((wal, keeper));
    for (path, before) in names.iter().zip(before) {
        let after = fs::read(home.path().join(path.file_name().expect("a name"))).expect("read");
        assert!(after == before, "a file outside the directory was written to");
    }
    println!("{} segments were links", names.len());
}

#[test]
fn what_belongs_to_somebody_else_is_refused() {
    let home = tempfile::tempdir().expect("a directory");
    let dir = home.path().join("log");
    drop(FileStorage::open(&dir).expect("opens"));
    if std::os::unix::fs::chown(&dir, Some(65_534), None).is_err() {
        println!("SKIPPED: giving a directory to another user needs root");
        return;
    }
    let error = FileStorage::open(&dir).expect_err("another user's");
    assert!(matches!(error, OpenError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("65534") && error.to_string().contains("chown"), "{error}");
    std::os::unix::fs::chown(&dir, Some(0), None).expect("given back");
    let storage = FileStorage::open(&dir).expect("opens");
    storage.create("0000000000000001.wal", 4096).expect("made");
    std::os::unix::fs::chown(dir.join("0000000000000001.wal"), Some(65_534), None).expect("given");
    let error = storage.open("0000000000000001.wal").err().expect("another user's file");
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
}

#[test]
fn the_holder_is_named_by_process_and_host() {
    let home = tempfile::tempdir().expect("a directory");
    let dir = home.path().join("log");
    let held = FileStorage::open(&dir).expect("opens");
    match FileStorage::open(&dir) {
        Err(OpenError::InUse { holder, .. }) => {
            let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
            assert_eq!(holder, format!("process {} on {host}", std::process::id()));
        }
        other => panic!("{other:?}"),
    }
    drop(held);
    FileStorage::open(&dir).expect("free again");
}

#[test]
fn the_filesystem_is_known_by_name() {
    use crate::stats::FilesystemKind;
    let in_memory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let storage = FileStorage::open(&in_memory.path().join("log")).expect("opens");
    let found = storage.filesystem().expect("known");
    assert_eq!((found.name, found.kind), ("tmpfs", FilesystemKind::Volatile));
}
