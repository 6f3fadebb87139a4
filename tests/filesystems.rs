//! The pipeline on real filesystems that fail: small images of ext4, XFS and btrfs, and a tmpfs,
//! mounted for the test. Each fault is shown to have taken place, and each filesystem has a run
//! without one beside it. Mounting needs root; without it the tests say so and do nothing, and
//! with `CI` or `FOREBAY_REQUIRE_KAFKA` set as root they fail instead.

use forebay::{FilesystemKind, MemorySink, Pipeline, Stats};
use forebay_testkit::until;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(120);
const RECORD_BYTES: usize = 1_000;

/// A filesystem of the test's own; gone when it is dropped, whatever happened.
struct Disk {
    name: &'static str,
    point: PathBuf,
    _home: tempfile::TempDir,
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    match Command::new(program).args(args).output() {
        Ok(out) if out.status.success() => Ok(()),
        Ok(out) => Err(format!("{program}: {}", String::from_utf8_lossy(&out.stderr).trim())),
        Err(e) => Err(format!("{program}: {e}")),
    }
}

impl Disk {
    /// `None`, and a line that says why, where it can't be had.
    fn mount(name: &'static str, megabytes: u64) -> Option<Disk> {
        let home = tempfile::tempdir().expect("a directory");
        let point = home.path().join("mounted");
        fs::create_dir(&point).expect("made");
        let at = point.to_str().expect("a plain path");
        let made = if name == "tmpfs" {
            run("mount", &["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "forebay-test", at])
        } else {
            let image = home.path().join("image");
            File::create(&image).and_then(|f| f.set_len(megabytes << 20)).expect("a sparse image");
            let image = image.to_str().expect("a plain path");
            let quiet = if name == "ext4" { vec!["-q", "-F"] } else { vec!["-q", "-f"] };
            let args: Vec<&str> = quiet.into_iter().chain([image]).collect();
            run(&format!("mkfs.{name}"), &args)
                .and_then(|()| run("mount", &["-t", name, "-o", "loop", image, at]))
        };
        match made {
            Ok(()) => Some(Disk { name, point, _home: home }),
            Err(why) => {
                let wanted = ["CI", "FOREBAY_REQUIRE_KAFKA"].map(std::env::var_os);
                // The user's number is that of what it just made.
                let root = std::os::unix::fs::MetadataExt::uid(
                    &fs::metadata(home.path()).expect("its owner"),
                ) == 0;
                assert!(!root || wanted.iter().all(Option::is_none), "{name}: {why}");
                println!("SKIPPED on {name}, which this user or kernel can't mount: {why}");
                None
            }
        }
    }

    /// Leaves about `megabytes` free.
    fn fill(&self, megabytes: u64) -> PathBuf {
        let path = self.point.join("ballast");
        let file = File::create(&path).expect("made");
        let block = vec![7u8; 1 << 20];
        while self.free_bytes() > megabytes << 20 {
            use std::io::Write;
            if (&file).write_all(&block).is_err() {
                break;
            }
            file.sync_all().expect("synced");
        }
        path
    }

    fn free_bytes(&self) -> u64 {
        let out = Command::new("df")
            .args(["--output=avail", "-B1"])
            .arg(&self.point)
            .output()
            .expect("df");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        text.lines().nth(1).and_then(|l| l.trim().parse().ok()).expect("bytes")
    }

    /// As after a fault of the device: everything fails from here on, for good.
    fn shut_down(&self) {
        // FS_IOC_SHUTDOWN, which ext4 and XFS share; 2 is "without flushing the log".
        const SHUTDOWN: u64 = 0x8004_587d;
        let dir = File::open(&self.point).expect("opened");
        let how: u32 = 2;
        // SAFETY: the descriptor is open; the call reads a u32 that lives until it returns.
        let done = unsafe { libc::ioctl(dir.as_raw_fd(), SHUTDOWN as _, &how) };
        assert_eq!(done, 0, "{}: {}", self.name, std::io::Error::last_os_error());
    }

    fn takes_a_file(&self) -> bool {
        let path = self.point.join("probe");
        let made = fs::write(&path, b"x");
        let _ = fs::remove_file(&path);
        made.is_ok()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let at = self.point.as_os_str();
        let _ = Command::new("umount").arg("-l").arg(at).status();
    }
}

struct Run {
    pipeline: Pipeline,
    sink: forebay::sink::MemoryHandle,
    sent: usize,
}

fn value(n: usize) -> Vec<u8> {
    format!("{n:<RECORD_BYTES$}").into_bytes()
}

impl Run {
    fn open(dir: &Path) -> Run {
        let sink = MemorySink::new();
        let handle = sink.handle();
        let pipeline = Pipeline::builder()
            .lanes(1)
            .lane_bytes(1 << 20)
            .record_bytes_max(10_000)
            .segment_bytes(1 << 20)
            .wal_max_bytes(1 << 30)
            .wal_dir(dir.join("wal"))
            .loss_window(Duration::from_millis(50))
            .sync_interval(Duration::from_millis(50))
            .sink(sink)
            .open()
            .expect("opens");
        Run { pipeline, sink: handle, sent: 0 }
    }

    fn send(&mut self, records: usize) {
        let topic = self.pipeline.topic("t").expect("a name");
        for _ in 0..records {
            topic.record(&value(self.sent)).send_timeout(SOON).expect("taken");
            self.sent += 1;
        }
    }

    /// Sends until nothing more is taken because the log takes nothing.
    fn send_until_refused(&mut self) {
        let topic = self.pipeline.topic("t").expect("a name");
        until(SOON, "the log is full", || {
            while topic.record(&value(self.sent)).send_timeout(Duration::from_millis(700)).is_ok() {
                self.sent += 1;
            }
            // Without that it was a slow disk, or a slow machine.
            self.pipeline.stats().wal.is_some_and(|w| w.unavailable.is_some())
        });
    }

    fn until(&self, what: &str, done: impl Fn(&Stats) -> bool) -> Stats {
        let began = Instant::now();
        loop {
            let stats = self.pipeline.stats();
            assert!(stats.books.balanced(), "{:?}", stats.books);
            if done(&stats) {
                return stats;
            }
            assert!(began.elapsed() < SOON, "waited in vain until {what}: {stats:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Everything sent so far reached Kafka, in order.
    fn delivers_all(&self, on: &str) {
        if let Err(e) = self.pipeline.flush(SOON) {
            panic!("{on}: {e}: {:?}", self.pipeline.stats());
        }
        let values: Vec<_> = self.sink.records().into_iter().filter_map(|r| r.value).collect();
        assert_eq!(values.len(), self.sent, "{on}");
        assert!(values.iter().enumerate().all(|(n, v)| *v == value(n)), "{on}: order");
    }

    fn close(self, on: &str) {
        let stats = self.pipeline.close(SOON).expect("closes").stats;
        assert!(stats.books.balanced(), "{on}: {:?}", stats.books);
        assert_eq!(stats.books.delivered as usize, self.sent, "{on}");
    }
}

const DISKS: [(&str, u64); 4] = [("tmpfs", 40), ("ext4", 64), ("xfs", 300), ("btrfs", 256)];

/// The control of the tests below: the same outage on the same disks, and nothing fails.
#[test]
fn an_outage_on_a_sound_filesystem() {
    for (name, megabytes) in DISKS {
        let Some(disk) = Disk::mount(name, megabytes) else { continue };
        let mut run = Run::open(&disk.point);
        let found = run.pipeline.stats().wal.and_then(|w| w.filesystem).expect("known");
        assert_eq!(found.name, name);
        let kind = match name {
            "tmpfs" => FilesystemKind::Volatile,
            "btrfs" => FilesystemKind::CopyOnWrite,
            _ => FilesystemKind::Local,
        };
        assert_eq!(found.kind, kind, "{name}");
        run.sink.refuse();
        run.send(3_000);
        let sent = run.sent as u64;
        let stats = run.until("all is in the log", |s| s.books.in_wal == sent);
        let wal = stats.wal.expect("a log");
        assert_eq!((wal.append_failures, wal.sync_failures, wal.keeper_trouble), (0, 0, None));
        run.sink.resume();
        run.delivers_all(name);
        println!("{name}: {sent} records through {} segments", wal.segments);
        run.close(name);
    }
}

/// Not on btrfs: there a fault in a mapping waits in the kernel, for seconds each, for room that
/// a full disk doesn't have. The flusher then stands, `flusher_stalled` says so, and `send`
/// refuses.
#[test]
fn a_filesystem_that_fills_up_while_kafka_is_gone_and_is_freed_again() {
    for (name, megabytes) in DISKS.into_iter().filter(|(name, _)| *name != "btrfs") {
        let Some(disk) = Disk::mount(name, megabytes) else { continue };
        let mut run = Run::open(&disk.point);
        let ballast = disk.fill(6);
        run.sink.refuse();
        run.send_until_refused();
        let stats = run.until("the disk is known to be full", |s| {
            s.states.exposed && s.wal.as_ref().is_some_and(|w| w.unavailable.is_some())
        });
        let (in_wal, wal) = (stats.books.in_wal, stats.wal.expect("a log"));
        println!(
            "{name}: {} taken, {in_wal} of them on a disk with {} bytes free: {:?}",
            run.sent,
            disk.free_bytes(),
            wal.unavailable
        );
        assert!(in_wal > 100, "{name}: {in_wal}");
        assert!(disk.free_bytes() < 3 << 20, "{name}: the disk is not full");
        // Kafka is back, the disk is as full as before: everything is delivered.
        run.sink.resume();
        run.delivers_all(name);
        run.until("nothing is exposed", |s| !s.states.exposed);
        // The disk is back: the next outage goes to the log again.
        fs::remove_file(ballast).expect("removed");
        run.sink.refuse();
        run.send(3_000);
        run.until("the log takes records again", |s| {
            s.books.in_wal == 3_000
                && !s.states.exposed
                && s.wal.as_ref().is_some_and(|w| w.unavailable.is_none())
        });
        run.sink.resume();
        run.delivers_all(name);
        run.close(name);
    }
}

#[test]
fn a_filesystem_that_is_shut_down_while_kafka_is_there() {
    for (name, megabytes) in [("ext4", 64), ("xfs", 300)] {
        let Some(disk) = Disk::mount(name, megabytes) else { continue };
        let mut run = Run::open(&disk.point);
        // A segment is in use, so that there is a mapping to lose.
        run.sink.refuse();
        run.send(300);
        run.until("all is in the log", |s| s.books.in_wal == 300);
        run.sink.resume();
        run.delivers_all(name);
        assert!(disk.takes_a_file());
        disk.shut_down();
        assert!(!disk.takes_a_file(), "{name}: it was not shut down");
        run.send(300);
        run.delivers_all(name);
        let stats =
            run.until("it says so", |s| s.wal.as_ref().is_some_and(|w| w.keeper_trouble.is_some()));
        let wal = stats.wal.expect("a log");
        println!("{name}: shut down: {:?}, {} failures", wal.keeper_trouble, wal.keeper_failures);
        run.close(name);
    }
}

/// XFS takes the mapped pages away when it is shut down: without the guard, and the pages made
/// present first, the next append would end the process.
#[test]
fn an_outage_on_an_xfs_that_was_shut_down_leaves_records_in_memory() {
    let Some(disk) = Disk::mount("xfs", 300) else { return };
    let mut run = Run::open(&disk.point);
    run.sink.refuse();
    run.send(100);
    run.until("all is in the log", |s| s.books.in_wal == 100);
    run.sink.resume();
    run.delivers_all("xfs");
    // With a sync the pages of the segment in use are clean, and have to be asked for again.
    // Stores into pages that wait for their sync would go on succeeding.
    rustix::fs::syncfs(File::open(&disk.point).expect("opened")).expect("synced");
    disk.shut_down();
    run.sink.refuse();
    run.send(200);
    let stats = run.until("it is known", |s| {
        s.states.exposed && s.wal.as_ref().is_some_and(|w| w.unavailable.is_some())
    });
    let wal = stats.wal.expect("a log");
    println!(
        "{} in memory: {:?}, {} appends failed",
        stats.books.in_flight, wal.unavailable, wal.append_failures
    );
    assert!(wal.append_failures > 0);
    run.sink.resume();
    run.delivers_all("xfs");
    run.close("xfs");
}

/// What a fault of the device looks like to a filesystem that stops writing because of it.
#[test]
fn an_ext4_that_turns_read_only() {
    let Some(disk) = Disk::mount("ext4", 64) else { return };
    let at = disk.point.to_str().expect("a plain path");
    run("mount", &["-o", "remount,errors=remount-ro", at]).expect("remounted");
    let source = Command::new("findmnt").args(["-no", "SOURCE", at]).output().expect("findmnt");
    let device = String::from_utf8_lossy(&source.stdout).trim().replace("/dev/", "");
    let mut run = Run::open(&disk.point);
    run.send(300);
    run.delivers_all("ext4");
    if fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), b"1").is_err() {
        println!("SKIPPED: this kernel can't make ext4 fail");
        return;
    }
    until(SOON, "it is read-only", || !disk.takes_a_file());
    run.send(300);
    run.delivers_all("ext4");
    run.until("it says so", |s| s.wal.as_ref().is_some_and(|w| w.keeper_trouble.is_some()));
    run.close("ext4");
}
