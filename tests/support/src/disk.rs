//! Owns small disks for brokers: a tmpfs of a given size, which a test fills and frees.

use crate::{home, say};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The file that takes up the room.
const BALLAST: &str = "forebay-ballast";

/// A tmpfs that is mounted as long as this.
#[derive(Debug)]
pub(crate) struct Disk {
    point: PathBuf,
}

impl Disk {
    /// Mounts one at `point`, a directory that it makes. `None`, said loudly, where this user may
    /// not mount; where Kafka is required and the user is root, that is a failure.
    pub(crate) fn mount(point: &Path, mebibytes: u64) -> Option<Disk> {
        fs::create_dir_all(point).expect("the mount point is made");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "forebay-test"]);
        let why = match mount.arg(point).output() {
            Ok(out) if out.status.success() => return Some(Disk { point: point.to_owned() }),
            Ok(out) => String::from_utf8_lossy(&out.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        skip_mounts(&why);
        None
    }

    /// Takes all the room that is left; gives how much that was.
    pub(crate) fn fill(&self) -> u64 {
        let mut ballast = File::options()
            .create(true)
            .append(true)
            .open(self.point.join(BALLAST))
            .expect("the ballast can be made");
        let mut bytes = 0;
        let mut block = vec![7u8; 1 << 20];
        while !block.is_empty() {
            match ballast.write(&block) {
                Ok(count) => bytes += count as u64,
                // No room for so much: for less?
                Err(_) => block.truncate(block.len() / 2),
            }
        }
        bytes
    }

    /// Gives the room back.
    pub(crate) fn free(&self) {
        let _ = fs::remove_file(self.point.join(BALLAST));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that still ends there doesn't hold it up.
        let _ = Command::new("umount").arg("-l").arg(&self.point).status();
    }
}

/// Says that mounts are not permitted here; fails where they must be.
pub(crate) fn skip_mounts(why: &str) {
    let is_root = rustix::process::geteuid().is_root();
    assert!(!(home::is_required() && is_root), "root can't mount here: {why}");
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    say(&format!("SKIPPED {test}: this user may not mount here: {why}"));
}
