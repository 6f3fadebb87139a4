//! Starts, pauses, kills and reads real Kafka brokers for tests.
//!
//! * [`Kafka`]: a real Apache Kafka (KRaft, one combined node) from jars that Maven puts under
//!   `target/kafka/`; every fault is a signal to a real process.
//! * [`Cluster`]: three of them, replication 3, each killed, stopped and restarted alone, each with
//!   a [`Proxy`] in front that spoils its connections.
//! * [`Hosts`]: names of machines that a test gives and takes away.
//! * [`secure`]: locked doors for such a broker: TLS, SASL, ACLs, certificates of its own.
//! * [`Oracle`]: what is really in a topic, read by Kafka's own Java client.
//! * [`audit`]: what was sent against what arrived: lost, duplicates, order.
//! * [`process`]: child processes that die with the test, their CPU time, their signals.
//! * [`lines`]: realistic log lines, and a feeder that knows which of them were taken when.
//!
//! Where Java or Maven is missing, [`Kafka::start`] and [`Kafka::shared`] say so loudly and give
//! `None`; with `FOREBAY_REQUIRE_KAFKA=1` they fail instead. `FOREBAY_TEST_BROKERS=host:port`
//! makes [`Kafka::shared`] use an existing cluster; tests with faults always start their own.

pub mod audit;
mod broker;
mod cluster;
mod disk;
mod home;
pub mod lines;
pub mod log_dir;
mod names;
mod oracle;
pub mod process;
mod proxy;
pub mod secure;
mod wire;

pub use broker::{Kafka, KafkaOptions, dead_port};
pub use cluster::{Cluster, ClusterOptions};
pub use names::Hosts;
pub use oracle::{Consumed, Leader, Oracle};
pub use proxy::{Proxy, Trouble};
pub use secure::Door;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

/// Waits until `done` is true, and fails the test when that takes longer than `limit`.
pub fn until(limit: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < limit, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Prints one line past the test harness's capture, so that figures and skips are seen in a
/// plain `cargo test`.
pub fn say(line: &str) {
    // Not `eprintln!`: the harness swallows what a passing test prints with it.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Holds back every other heavy test, in this process or another, until it is dropped. Tests
/// that measure, or that load both cores, hold it.
pub fn heavy() -> std::fs::File {
    home::lock_file("heavy.lock").expect("a lock file under target/kafka")
}

/// A directory that nobody else can read, as a log wants it.
#[must_use]
pub fn private_dir() -> tempfile::TempDir {
    let mode = std::fs::Permissions::from_mode(0o700);
    tempfile::Builder::new().permissions(mode).tempdir().expect("a directory")
}

/// A number that differs from run to run, printed by the tests that draw from it:
/// `FOREBAY_SEED` makes it a given one.
#[must_use]
pub fn seed() -> u64 {
    if let Ok(text) = std::env::var("FOREBAY_SEED") {
        return text.parse().expect("FOREBAY_SEED is a number");
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(1, |age| age.as_nanos() as u64) ^ (u64::from(std::process::id()) << 32)
}

/// A small generator of random numbers (SplitMix64): the same seed gives the same numbers for ever.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number from `low` up to and without `high`.
    pub fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.number() % (high - low).max(1)
    }
}
