//! Owns what must be true of the log's directory before anything in it is touched: whose it is,
//! who may read it, that nothing in it leads elsewhere, who holds it, and what filesystem it is on.
//!
//! It holds other people's records, so it is opened only when it is this user's, closed to
//! everyone else, and not reached through a symbolic link that somebody may turn.

use super::format::{NEWER_DIR, QUARANTINE_DIR, SET_ASIDE_DIR};
use crate::error::OpenError;
use crate::stats::{Filesystem, FilesystemKind};
use rustix::fs::FlockOperation;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// The directories that names are in, the log's own first.
pub(super) const DIRS: [&str; 4] = ["", SET_ASIDE_DIR, QUARANTINE_DIR, NEWER_DIR];

fn io_error(dir: &Path, what: &str, source: io::Error) -> OpenError {
    OpenError::Io { what: format!("{what} the log's directory {}", dir.display()), source }
}

fn refused(path: &Path, why: impl Into<String>) -> OpenError {
    OpenError::Refused { path: path.to_path_buf(), why: why.into() }
}

/// Makes the directory or checks it, takes its lock, makes and checks what is within.
pub(super) fn open(dir: &Path) -> Result<File, OpenError> {
    match fs::symlink_metadata(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => make(dir)
            .map_err(|e| io_error(dir, "making (give a path that this user may create)", e))?,
        Err(e) => return Err(io_error(dir, "looking at", e)),
        Ok(found) => {
            check(dir, &found)?;
            if found.mode() & 0o077 != 0 {
                let mode = found.mode() & 0o777;
                return Err(OpenError::Permissions { dir: dir.to_path_buf(), mode });
            }
        }
    }
    let lock = take_lock(dir)?;
    for name in &DIRS[1..] {
        let path = dir.join(name);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let found =
                    fs::symlink_metadata(&path).map_err(|e| io_error(dir, "looking at", e))?;
                check(&path, &found)?;
            }
            Err(e) => {
                return Err(io_error(dir, "writing (the user needs rwx on it) to", e));
            }
            Ok(()) => {}
        }
    }
    Ok(lock)
}

/// A directory, itself and not a link to one, and this user's.
fn check(path: &Path, found: &Metadata) -> Result<(), OpenError> {
    if found.is_symlink() {
        return Err(refused(
            path,
            "is a symbolic link, which somebody may turn elsewhere; give the directory that it \
             leads to",
        ));
    }
    if !found.is_dir() {
        return Err(io_error(path, "opening", io::ErrorKind::NotADirectory.into()));
    }
    check_owner(path, found)
}

fn check_owner(path: &Path, found: &Metadata) -> Result<(), OpenError> {
    let user = rustix::process::geteuid().as_raw();
    if found.uid() == user {
        return Ok(());
    }
    let why = format!(
        "belongs to user {}, and this process runs as user {user}; run it as the owner, or as \
         root: chown -R {user} {}",
        found.uid(),
        path.display()
    );
    Err(refused(path, why))
}

fn make(dir: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).recursive(true).create(dir)?;
    match dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn take_lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("LOCK");
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path);
    let mut lock = opened.map_err(|e| match e.raw_os_error() {
        Some(libc::ELOOP) => refused(&path, "is a symbolic link; remove it"),
        _ => io_error(dir, "writing (the user needs rwx on it) to", e),
    })?;
    let found = lock.metadata().map_err(|e| io_error(dir, "looking at", e))?;
    if !found.is_file() {
        return Err(refused(&path, "is not a file; remove it"));
    }
    check_owner(&path, &found)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // Who holds it is a courtesy; that somebody does is the answer.
            let _ = lock.read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "another process".to_string(),
                said => said.to_string(),
            };
            return Err(OpenError::InUse { dir: dir.to_path_buf(), holder });
        }
        Err(e) => return Err(io_error(dir, "locking", e.into())),
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let said = format!("process {} on {host}\n", std::process::id());
    // A full disk must not keep a backlog from being drained, so this may fail.
    let _ =
        lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| lock.write_all(said.as_bytes()));
    Ok(lock)
}

/// What the directory is on, by the number that the kernel gives.
pub(super) fn filesystem(dir: &Path) -> Option<Filesystem> {
    use FilesystemKind::{CopyOnWrite, Local, Network, Overlay, Unknown, Volatile};
    const KNOWN: [(u32, &str, FilesystemKind); 22] = [
        (0xef53, "ext4", Local),
        (0x5846_5342, "xfs", Local),
        (0xf2f5_2010, "f2fs", Local),
        (0x9123_683e, "btrfs", CopyOnWrite),
        (0x2fc1_2fc1, "zfs", CopyOnWrite),
        (0xca45_1a4e, "bcachefs", CopyOnWrite),
        (0x794c_7630, "overlay", Overlay),
        (0x6969, "nfs", Network),
        (0xff53_4d42, "cifs", Network),
        (0xfe53_4d42, "smb2", Network),
        (0x517b, "smb", Network),
        (0x0102_1997, "9p", Network),
        (0x00c3_6400, "ceph", Network),
        (0x6573_5546, "fuse", Network),
        (0x5346_414f, "afs", Network),
        (0x0bd0_0bd0, "lustre", Network),
        (0x4750_4653, "gpfs", Network),
        (0x0116_1970, "gfs2", Network),
        (0x7461_636f, "ocfs2", Network),
        (0x786f_4256, "vboxsf", Network),
        (0x0102_1994, "tmpfs", Volatile),
        (0x8584_58f6, "ramfs", Volatile),
    ];
    let number = rustix::fs::statfs(dir).ok()?.f_type as u32;
    let known = KNOWN.iter().find(|(n, _, _)| *n == number);
    Some(known.map_or(Filesystem { name: "unknown", kind: Unknown }, |(_, name, kind)| {
        Filesystem { name, kind: *kind }
    }))
}

/// One line for an operator, where the filesystem keeps less than the log counts on.
pub(super) fn warn_of(dir: &Path, filesystem: Filesystem) {
    let why = match filesystem.kind {
        FilesystemKind::Local | FilesystemKind::Unknown => return,
        FilesystemKind::CopyOnWrite => {
            "it copies on write: room that the log has reserved may be gone when it is written \
             to, and a full disk then costs the segment in use"
        }
        FilesystemKind::Overlay => {
            "it is a container's own layer, which is gone with the container: mount a volume"
        }
        FilesystemKind::Network => {
            "it may be on a network: locks, syncs and mappings may not hold what the log counts \
             on, and a lost connection stops whoever touches a page of it"
        }
        FilesystemKind::Volatile => {
            "it is in memory: what the log holds survives a crash of the process, and no restart \
             of the machine"
        }
    };
    tracing::warn!(dir = %dir.display(), filesystem = filesystem.name, "the log's directory: {why}");
}
