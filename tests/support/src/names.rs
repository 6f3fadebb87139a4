//! Owns names that a test gives and takes away: an `/etc/hosts` of its own for one thread, and for
//! whatever that thread starts.

use crate::disk;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

/// The names that the thread knows.
#[derive(Debug)]
pub struct Hosts {
    dir: tempfile::TempDir,
    /// What the machine's own file says.
    given: String,
}

impl Hosts {
    /// Gives the calling thread a mount namespace with an `/etc/hosts` of its own, and no other
    /// source of names. Threads and processes that it starts from now on share it, nobody else.
    /// `None`, said loudly, where that is not permitted.
    ///
    /// # Panics
    /// When a file can't be written, or when root may not mount although Kafka is required.
    #[must_use]
    pub fn own() -> Option<Hosts> {
        let dir = tempfile::tempdir().expect("a directory");
        let given = fs::read_to_string("/etc/hosts").unwrap_or_default();
        let hosts = Hosts { dir, given };
        hosts.set(&[]);
        // A name that isn't in the file is unknown at once: no server is asked.
        let write = |name: &str, text: &str| fs::write(hosts.dir.path().join(name), text);
        write("nsswitch.conf", "hosts: files\n").expect("it is written");
        write("resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
            .expect("it is written");
        if let Err(why) = hosts.take_over() {
            disk::skip_mounts(&why);
            return None;
        }
        Some(hosts)
    }

    fn take_over(&self) -> Result<(), String> {
        // SAFETY: the call touches no memory of ours; it only moves the calling thread into a
        // mount namespace of its own.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
            return Err(format!("unshare: {}", std::io::Error::last_os_error()));
        }
        mount(&["--make-rprivate", "/"])?;
        for name in ["hosts", "nsswitch.conf", "resolv.conf"] {
            let (own, place) = (self.dir.path().join(name), Path::new("/etc").join(name));
            if name == "hosts" || place.exists() {
                mount(&["--bind", &own.display().to_string(), &place.display().to_string()])?;
            }
        }
        Ok(())
    }

    /// These names are known from now on, beside the machine's own, and no others.
    ///
    /// # Panics
    /// When the file can't be written.
    pub fn set(&self, names: &[(&str, Ipv4Addr)]) {
        let mut text = self.given.clone();
        for (name, address) in names {
            text.push_str(&format!("\n{address} {name}"));
        }
        text.push('\n');
        // In place: what is mounted is this file, not its name.
        fs::write(self.dir.path().join("hosts"), text).expect("the names are written");
    }
}

fn mount(arguments: &[&str]) -> Result<(), String> {
    let out = Command::new("mount").args(arguments).output().map_err(|e| format!("mount: {e}"))?;
    if out.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&out.stderr).trim().to_owned())
}
