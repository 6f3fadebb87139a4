//! Directories that somebody or something has made bad: each opens, delivers every good record,
//! and says what it found.

use super::super::checkpoint::SLOTS;
use super::super::format::{HEADER_AREA_BYTES, HeaderVerdict, SegmentHeader};
use super::*;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};

/// A log of records 1 to `n`, the last segment not sealed; the names of its segments in order.
fn log_of(n: u64, seed: u64) -> (MemoryStorage, Vec<String>) {
    let storage = MemoryStorage::new();
    let mut log = open_with(&storage, small(), salts(seed));
    for n in 1..=n {
        append_helped(&mut log, n);
    }
    // The manifest names the segments from now on.
    log.keeper.sync_now().expect("synced");
    drop(log);
    let is_used = |n: &String| storage.contents(n).is_some_and(|b| b.iter().any(|b| *b != 0));
    let names = storage.names().into_iter().filter(|n| n.ends_with(".wal") && is_used(n));
    let names = names.collect();
    (storage, names)
}

fn header_of(storage: &MemoryStorage, name: &str) -> SegmentHeader {
    match SegmentHeader::judge(&storage.contents(name).expect("there")) {
        HeaderVerdict::Good(header) => header,
        verdict => panic!("{name}: {verdict:?}"),
    }
}

/// LSNs of a segment: up to the next one's first.
fn lsns_of(storage: &MemoryStorage, names: &[String], i: usize, n: u64) -> Vec<u64> {
    let base = |i: usize| names.get(i).map_or(n + 1, |name| header_of(storage, name).base_lsn);
    (base(i)..base(i + 1)).collect()
}

fn says(open: &Open, words: &[&str]) {
    for word in words {
        let findings = &open.recovery.damage.findings;
        assert!(findings.iter().any(|f| f.contains(word)), "{word:?} isn't said: {findings:?}");
    }
}

fn all() -> Vec<u64> {
    (1..=60).collect()
}

/// Goes on: the next record is appended and read, and the next start finds no damage.
fn goes_on(mut open: Open, storage: &MemoryStorage) {
    let next = open.recovery.next_lsn.0.max(100);
    append_helped(&mut open, next);
    assert_eq!(read_all(&open, Some(LogPosition::default())).0.last(), Some(&next));
    open.keeper.step(0, None);
    drop(open);
    let (again, lsns, _) = reopen_and_read(storage);
    assert_eq!(lsns.last(), Some(&next));
    let damage = &again.recovery.damage;
    assert_eq!((damage.segments_missing, damage.segments_foreign), (0, 0), "{damage:?}");
}

#[test]
fn empty_files_are_nothing() {
    let (storage, _) = log_of(60, 7);
    for name in
        ["00000000000000a0.wal", "set-aside/00000000000000a1.wal", "checkpoint-0", "manifest"]
    {
        storage.put(name, b"");
    }
    let (open, lsns, lost) = reopen_and_read(&storage);
    assert_eq!((lsns, lost), (all(), 0));
    assert_eq!(open.recovery.damage, DamageReport::default());
    goes_on(open, &storage);
    assert!(storage.contents("00000000000000a0.wal").is_none(), "removed by the keeper");
}

#[test]
fn random_bytes_in_every_file_s_place_are_put_aside() {
    let mut pick = salts(21);
    let mut noise = |n: usize| -> Vec<u8> { (0..n).map(|_| pick() as u8 | 1).collect() };
    for len in [1, 100, 1024, 5_000, 300_000] {
        let (storage, _) = log_of(60, 7);
        storage.put("00000000000000a0.wal", &noise(len));
        storage.put("set-aside/00000000000000a1.wal", &noise(len));
        for name in ["checkpoint-0", "checkpoint-1", "manifest"] {
            storage.put(name, &noise(len));
        }
        let (open, lsns, lost) = reopen_and_read(&storage);
        assert_eq!((lsns, lost), (all(), 0));
        let damage = &open.recovery.damage;
        assert_eq!((damage.segments_foreign, damage.checkpoints_bad), (2, 2), "{damage:?}");
        says(
            &open,
            &[
                "moved to quarantine/00000000000000a0.",
                "moved to quarantine/00000000000000a1.",
                "checkpoint",
            ],
        );
        goes_on(open, &storage);
    }
}

#[test]
fn a_directory_full_of_foreign_files_is_left_alone() {
    let (storage, _) = log_of(60, 7);
    let mut names: Vec<String> = (0..500).map(|i| format!("photo-{i}.jpeg")).collect();
    let odd = [
        "x.wal",
        "1.wal",
        "000000000000000G.wal",
        "00000000000000AB.wal",
        "0000000000000001.wal.bak",
        "ffffffffffffffff.wal",
        "LOCK",
        "checkpoint-2",
        "manifest.old",
        "quarantine/notes",
        "set-aside/readme.txt",
    ];
    names.extend(odd.map(str::to_string));
    for name in &names {
        storage.put(name, name.as_bytes());
    }
    let (open, lsns, lost) = reopen_and_read(&storage);
    assert_eq!((lsns, lost), (all(), 0));
    assert_eq!(open.recovery.damage, DamageReport::default());
    goes_on(open, &storage);
    for name in &names {
        assert_eq!(storage.contents(name).as_deref(), Some(name.as_bytes()), "{name}");
    }
}

#[test]
fn a_segment_of_another_directory_delivers_nothing() {
    let (other, others) = log_of(30, 99);
    let (storage, names) = log_of(60, 7);
    // Under a number of its own, and over one of ours.
    storage.put(&others[0], &storage.contents(&others[0]).expect("same number"));
    let mut foreign = other.contents(&others[0]).expect("there");
    storage.put("set-aside/notes", b"");
    let beyond = "00000000000000a0.wal";
    storage.put(beyond, &foreign);
    let (open, lsns, lost) = reopen_and_read(&storage.process_crash_image());
    assert_eq!((lsns, lost), (all(), 0));
    assert_eq!(open.recovery.damage.segments_foreign, 1);
    says(&open, &["moved to quarantine/00000000000000a0.foreign"]);

    Storage::unlink(&storage, beyond).expect("removed");
    let over = lsns_of(&storage, &names, 0, 60);
    storage.put(&names[0], &foreign);
    let (open, lsns, _) = reopen_and_read(&storage);
    assert_eq!(lsns, all().into_iter().filter(|n| !over.contains(n)).collect::<Vec<_>>());
    says(&open, &["belongs to another directory"]);
    let kept = storage.contents("quarantine/0000000000000001.foreign").expect("kept");
    foreign.truncate(kept.len());
    assert!(kept == foreign);
    goes_on(open, &storage);
}

#[test]
fn copies_of_a_segment_deliver_nothing_twice_and_none_overwrites_another() {
    let (storage, names) = log_of(60, 7);
    let bytes = storage.contents(&names[1]).expect("there");
    storage.put("00000000000000a0.wal", &bytes);
    // The same number in the other directory: the good one stays in the books.
    storage.put(&format!("set-aside/{}", names[1]), &bytes);
    storage.put(&format!("quarantine/{}.foreign", &names[1][..16]), b"an earlier find");
    let (mut open, lsns, lost) = reopen_and_read(&storage);
    assert_eq!((lsns, lost), (all(), 0));
    assert_eq!(open.recovery.damage.segments_foreign, 2);
    says(&open, &["a copy, or renamed"]);
    let quarantine =
        |tail: &str| storage.contents(&format!("quarantine/{}.foreign{tail}", &names[1][..16]));
    assert_eq!(quarantine("").as_deref(), Some(&b"an earlier find"[..]));
    assert!(quarantine("-2").is_some_and(|b| b == bytes));
    open.wal.trim(Lsn(1_000));
    open.keeper.step(0, None);
    assert!(storage.contents(&names[1]).is_none(), "the good one is removed like any other");
    goes_on(open, &storage);
}

#[test]
fn a_checkpoint_ahead_of_the_log_means_that_all_of_it_is_final() {
    let (storage, _) = log_of(60, 7);
    let log = open(&storage, small());
    let mut keeper = log.keeper;
    let ahead =
        CheckpointData { watermark: Lsn(5_000), next_lsn: Lsn(6_000), ..Default::default() };
    keeper.store_checkpoint(&ahead).expect("stored");
    let (open, lsns, lost) = reopen_and_read(&storage);
    assert_eq!((lsns, lost), (vec![], 0));
    assert_eq!(open.recovery.next_lsn, Lsn(6_000), "no number is given twice");
    assert_eq!(open.recovery.damage.findings, [""; 0]);
    goes_on(open, &storage);
}

#[test]
fn hints_of_another_directory_skip_nothing_and_miss_nothing() {
    let (other, _) = log_of(60, 99);
    let mut keeper = open_with(&other, small(), salts(99)).keeper;
    let ahead =
        CheckpointData { watermark: Lsn(5_000), next_lsn: Lsn(5_000), ..Default::default() };
    for _ in 0..2 {
        keeper.store_checkpoint(&ahead).expect("stored");
        keeper.sync_now().expect("synced");
    }
    keeper.step(0, None);
    let (storage, _) = log_of(60, 7);
    for name in ["checkpoint-0", "checkpoint-1", "manifest"] {
        storage.put(name, &other.contents(name).expect("there"));
    }
    let (open, lsns, lost) = reopen_and_read(&storage);
    assert_eq!((lsns, lost), (all(), 0));
    let damage = &open.recovery.damage;
    assert_eq!((damage.checkpoints_bad, damage.segments_missing), (2, 0), "{damage:?}");
    says(
        &open,
        &["checkpoint-0: it belongs to another directory", "manifest: it belongs to another"],
    );
    assert_eq!(
        storage.contents("quarantine/checkpoint-1.foreign"),
        other.contents("checkpoint-1"),
        "kept"
    );
    goes_on(open, &storage);

    // With one segment of its own and no manifest, two foreign slots are still one vote.
    let (storage, names) = log_of(3, 7);
    assert_eq!(names.len(), 1);
    Storage::unlink(&storage, "manifest").expect("removed");
    for name in SLOTS {
        storage.put(name, &other.contents(name).expect("there"));
    }
    assert_eq!(reopen_and_read(&storage).1, [1, 2, 3]);
}

#[test]
fn segments_missing_in_the_middle_are_named_and_their_records_counted() {
    let (storage, names) = log_of(200, 7);
    assert!(names.len() >= 7, "{names:?}");
    let gone: Vec<u64> =
        [1, 2, 4].iter().flat_map(|i| lsns_of(&storage, &names, *i, 200)).collect();
    for i in [1, 2, 4] {
        Storage::unlink(&storage, &names[i]).expect("removed");
    }
    let (open, lsns, lost) = reopen_and_read(&storage);
    assert_eq!(lsns, (1..=200).filter(|n| !gone.contains(n)).collect::<Vec<_>>());
    assert_eq!(lost, gone.len() as u64);
    assert_eq!(open.recovery.damage.segments_missing, 3);
    assert_eq!(open.recovery.damage.records_lost, lost);
    says(&open, &["the manifest names it, and it isn't in the directory", "are missing"]);
    goes_on(open, &storage);
}

#[test]
fn an_unreadable_segment_costs_itself_and_is_kept() {
    let (storage, names) = log_of(60, 7);
    for i in 0..names.len() {
        let image = storage.process_crash_image();
        image.set_unreadable(&names[i], 0, HEADER_AREA_BYTES);
        let gone = lsns_of(&storage, &names, i, 60);
        let (open, lsns, lost) = reopen_and_read(&image);
        let due: Vec<u64> = all().into_iter().filter(|n| !gone.contains(n)).collect();
        assert_eq!(lsns, due, "segment {i}");
        // What is missing at either end has no neighbour that tells how much it was.
        let inner = i > 0 && i + 1 < names.len();
        assert_eq!(lost, if inner { gone.len() as u64 } else { 0 }, "segment {i}");
        assert_eq!(open.recovery.damage.segments_foreign, 1);
        says(&open, &["the disk refuses to read it", "move the file back"]);
        let kept = format!("quarantine/{}.unreadable", &names[i][..16]);
        assert_eq!(image.contents(&kept), storage.contents(&names[i]));

        // As the words say: it reads again, it is moved back, and it is delivered.
        drop(open);
        image.set_unreadable(&kept, 0, 0);
        Storage::rename(&image, &kept, &names[i]).expect("moved back");
        let (open, lsns, lost) = reopen_and_read(&image);
        assert_eq!((lsns, lost), (all(), 0), "segment {i}");
        goes_on(open, &image);
    }
}

#[test]
fn a_disk_that_refuses_for_a_moment_costs_nothing() {
    let (storage, _) = log_of(60, 7);
    let mut reads = 0u64;
    storage.set_faults(Some(Box::new(move |_, op| {
        reads += u64::from(op == StorageOp::Read);
        // The first listing has no second try; from then on every fourth read fails once.
        (op == StorageOp::Read && reads > 12 && reads.is_multiple_of(4))
            .then_some(io::ErrorKind::Other)
    })));
    let open = open(&storage, small());
    storage.set_faults(None);
    assert_eq!(open.recovery.records, 60, "{:?}", open.recovery);
    assert_eq!(open.recovery.damage.segments_foreign, 0, "{:?}", open.recovery);
    assert_eq!(read_all(&open, open.recovery.backlog), (all(), 0));
}

#[test]
fn a_hole_that_reads_as_zeroes_costs_what_was_in_it() {
    let (storage, names) = log_of(60, 7);
    let (mut holes, mut costly) = (0, 0);
    for name in &names {
        let bytes = storage.contents(name).expect("there");
        for sector in 2..bytes.len() / 512 {
            for sectors in [1, 3, 16] {
                let to = (sector + sectors).min(bytes.len() / 512) * 512;
                let mut sparse = bytes.clone();
                sparse[sector * 512..to].fill(0);
                let image = storage.process_crash_image();
                image.put(name, &sparse);
                let (open, lsns, lost) = reopen_and_read(&image);
                let damage = &open.recovery.damage;
                let is_last = *name == names[names.len() - 1];
                // The last one has no seal and no successor: nothing says how long it was.
                assert!(is_last || lsns.len() as u64 + lost == 60, "{name} {sector}: {damage:?}");
                assert!(lost == 0 || damage.records_lost == lost || damage.findings.is_empty());
                holes += 1;
                costly += u64::from(lost > 0);
            }
        }
    }
    println!("{holes} holes, {costly} of them in records");
    assert!(costly > 0 && costly < holes);
}

#[test]
fn a_disk_too_full_to_be_cleaned_is_drained_and_cleaned_later() {
    for cleaning_fails in [true, false] {
        let (storage, names) = log_of(60, 7);
        // Beside the backlog there is something to be cleaned up, and something bad.
        storage.put("00000000000000a0.wal", &[0xa5; 5_000]);
        let mut bytes = storage.contents(&names[0]).expect("there");
        bytes[1_300] ^= 1;
        storage.put(&names[0], &bytes);
        let refused = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let count = refused.clone();
        storage.set_faults(Some(Box::new(move |_, op| {
            let fails = match op {
                StorageOp::Read | StorageOp::Populate => false,
                StorageOp::Unlink | StorageOp::Rename | StorageOp::SyncDir | StorageOp::Sync => {
                    cleaning_fails
                }
                _ => true,
            };
            count.fetch_add(u64::from(fails), Ordering::Relaxed);
            fails.then_some(io::ErrorKind::StorageFull)
        })));
        let (mut open, lsns, lost) = reopen_and_read(&storage);
        assert_eq!(lsns.len() as u64 + lost, 60, "{:?}", open.recovery);
        assert!(lost <= 1);
        assert!(refused.load(Ordering::Relaxed) > 0, "nothing was refused");
        assert!(append(&mut open, 100).is_err());
        open.wal.trim(Lsn(1_000));
        let report = open.keeper.step(0, None);
        assert!(report.error.is_some());
        if !cleaning_fails {
            // Removing makes the room that a new manifest needs.
            assert!(report.unlinked > 0, "{report:?}");
        }
        storage.set_faults(None);
        let report = open.keeper.step(1, None);
        assert!(report.error.is_none(), "{report:?}");
        append_helped(&mut open, 100);
        drop(open);
        // What could not be moved away then is moved away now.
        assert_eq!(reopen_and_read(&storage).1.last(), Some(&100));
        for name in &names {
            assert!(storage.contents(name).is_none(), "{name} is still there");
        }
        // The bad bytes are still somewhere.
        let kept = storage.names().into_iter().filter(|n| n.starts_with("quarantine/"));
        assert!(kept.count() >= 1);
    }
}

/// Writes a directory in memory to a real one.
fn write_out(storage: &MemoryStorage, dir: &Path) {
    for sub in ["", "set-aside", "quarantine", "newer-version"] {
        fs::create_dir_all(dir.join(sub)).expect("made");
        fs::set_permissions(dir.join(sub), fs::Permissions::from_mode(0o700)).expect("set");
    }
    for name in storage.names() {
        fs::write(dir.join(&name), storage.contents(&name).expect("there")).expect("written");
    }
}

/// A real storage that counts the files it holds open.
struct Counting {
    inner: FileStorage,
    open: Arc<AtomicI64>,
    most: Arc<AtomicI64>,
}

struct Counted {
    inner: Arc<dyn StorageFile>,
    open: Arc<AtomicI64>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl StorageFile for Counted {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.inner.read_at(offset, into)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.inner.write_at(offset, bytes)
    }
    /// What is durable isn't counted here, and three thousand syncs take long.
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.inner.truncate(len)
    }
}

impl Storage for Counting {
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.inner.list(dir)
    }
    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn AppendFile>> {
        self.inner.create(name, len)
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let inner = self.inner.open(name)?;
        let now = self.open.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        Ok(Arc::new(Counted { inner, open: self.open.clone() }))
    }
    fn open_or_create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.inner.open_or_create(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn unlink(&self, name: &str) -> io::Result<()> {
        self.inner.unlink(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.inner.sync_dir()
    }
    fn free_bytes(&self) -> io::Result<u64> {
        self.inner.free_bytes()
    }
}

fn count(of: &str) -> usize {
    match of {
        "maps" => fs::read_to_string("/proc/self/maps").expect("read").lines().count(),
        _ => fs::read_dir("/proc/self/fd").expect("read").count(),
    }
}

#[test]
fn three_thousand_segments_take_a_few_descriptors_and_mappings() {
    const RECORDS: u64 = 3_000 * 26;
    let options = WalOptions { wal_bytes_max: Some(64 << 20), ..small() };
    let memory = MemoryStorage::new();
    let mut log = open_with(&memory, options.clone(), salts(7));
    for n in 1..=RECORDS {
        append_helped(&mut log, n);
    }
    let segments = log.wal.stats().segments;
    assert!(segments >= 3_000, "{segments}");
    drop(log);
    let home = tempfile::tempdir().expect("a directory");
    let dir = home.path().join("log");
    write_out(&memory, &dir);
    drop(memory);

    let (fds, maps) = (count("fd"), count("maps"));
    let inner = FileStorage::open(&dir).expect("opens");
    let most = Arc::new(AtomicI64::new(0));
    let storage = Counting { inner, open: Arc::default(), most: most.clone() };
    let topics = Arc::new(TopicTable::default());
    let (wal, mut keeper, recovery) =
        Wal::open(Arc::new(storage), topics.clone(), options, salts(8), 0).expect("opens");
    assert_eq!(recovery.damage, DamageReport::default());
    assert_eq!(recovery.records, RECORDS);
    keeper.sync_now().expect("synced");
    let mut reader = wal.reader(recovery.backlog.expect("there"));
    let (mut next, mut fds_most, mut maps_most) = (1, count("fd"), count("maps"));
    loop {
        match wal.read_next(&mut reader) {
            ReadItem::Record(r) => {
                assert_eq!(r.lsn.0, next);
                check_record(&r, &topics);
                next += 1;
            }
            ReadItem::CaughtUp => break,
            other => panic!("{other:?}"),
        }
        if next % 5_000 == 0 {
            fds_most = fds_most.max(count("fd"));
            maps_most = maps_most.max(count("maps"));
        }
    }
    assert_eq!(next, RECORDS + 1);
    let files = most.load(Ordering::Relaxed);
    println!(
        "{segments} segments: {files} files open at once; descriptors {fds} -> {fds_most}, mappings {maps} -> {maps_most} (with the tests beside)"
    );
    assert!(files <= 4, "{files} files at once");
    // Other tests run beside this one.
    assert!(fds_most < fds + 100 && maps_most < maps + 100);
}

/// What matters over real files too: a segment that is a hole, a directory in a file's place, a
/// copy by another user's tool, a cut file.
#[test]
fn a_real_directory_that_is_bad_in_many_ways_opens() {
    let (memory, names) = log_of(60, 7);
    let home = tempfile::tempdir().expect("a directory");
    let dir = home.path().join("log");
    write_out(&memory, &dir);
    // A sparse file: its hole reads as zeroes.
    let hole = fs::File::create(dir.join("00000000000000a0.wal")).expect("made");
    hole.set_len(1 << 20).expect("grown");
    fs::write(dir.join("00000000000000a1.wal"), [0xa5; 5_000]).expect("written");
    fs::copy(dir.join(&names[0]), dir.join("00000000000000a2.wal")).expect("copied");
    // The next numbers are taken by a directory and by a link to nowhere.
    fs::create_dir(dir.join("00000000000000a3.wal")).expect("made");
    std::os::unix::fs::symlink("/nonexistent", dir.join("00000000000000a4.wal")).expect("linked");
    fs::write(dir.join("notes.txt"), "hello").expect("written");
    let cut = fs::OpenOptions::new().write(true).open(dir.join(&names[1])).expect("opened");
    cut.set_len(2_000).expect("cut");
    let gone = lsns_of(&memory, &names, 1, 60);

    let topics = Arc::new(TopicTable::default());
    let storage = FileStorage::open(&dir).expect("opens");
    let (wal, keeper, recovery) =
        Wal::open(Arc::new(storage), topics.clone(), small(), salts(8), 0).expect("opens");
    let mut log = Open { wal, keeper, recovery, topics };
    let (lsns, lost) = read_all(&log, log.recovery.backlog);
    assert_eq!(lsns.len() as u64 + lost, 60, "{:?}", log.recovery);
    assert!(lost > 0 && lost <= gone.len() as u64);
    assert_eq!(log.recovery.damage.records_lost, lost);
    assert_eq!(log.recovery.damage.segments_foreign, 2, "{:?}", log.recovery.damage);
    says(&log, &["a copy, or renamed", "its header", "at the end of"]);
    append_helped(&mut log, 100);
    log.keeper.sync_now().expect("synced");
    assert_eq!(fs::read_to_string(dir.join("notes.txt")).expect("read"), "hello");
    let left = fs::read_dir(dir.join("quarantine")).expect("listed").count();
    assert!(left >= 2, "{left} in quarantine");
}
