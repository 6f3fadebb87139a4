//! Owns what a demo needs around the pipeline: brokers and topic, embedded or real, the log's
//! directory, and the outage's switch.

use super::reader::Reader;
use super::{Args, OutageKind};
use crate::report::say;
use forebay::sink::embedded::EmbeddedBroker;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::error::Error;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Brokers of the embedded cluster.
const BROKERS: i32 = 3;
/// Partitions of its topic.
const PARTITIONS: i32 = 3;
const TOPIC: &str = "demo";
/// What a frozen broker's answers wait: longer than any demo. Those on their way go out when
/// the time is set back.
const FROZEN: Duration = Duration::from_secs(100_000);
/// The mock keeps 5 MiB of each partition. From this much unread on, its answers get slow.
const UNREAD_BYTES_MAX: u64 = 4 << 20;

/// Brokers, topic and directory.
pub struct Scene {
    embedded: Option<EmbeddedBroker>,
    brokers: String,
    topic: String,
    wal_dir: Option<PathBuf>,
    /// The directory is ours to remove.
    is_temporary: bool,
    run: u64,
    payload: usize,
}

impl Scene {
    /// Starts the embedded cluster, unless a real one is named, and makes the directory.
    pub fn new(args: &Args) -> Result<Scene, Box<dyn Error>> {
        let age = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let run = (age.as_nanos() as u64) ^ (u64::from(std::process::id()) << 48);
        let embedded = match &args.brokers {
            Some(_) => None,
            // Answers that a frozen broker held back come late in the mock, also to a consumer
            // and after the thaw: so a broker of its own serves the consumer then. Brokers that
            // are down shall all be down.
            None if args.outage == OutageKind::Freeze => {
                Some(EmbeddedBroker::with_reader(BROKERS)?)
            }
            None => Some(EmbeddedBroker::new(BROKERS)?),
        };
        let topic = args.topic.clone().unwrap_or_else(|| TOPIC.to_owned());
        if let Some(embedded) = &embedded {
            embedded.create_topic(&topic, PARTITIONS)?;
        }
        let brokers = match (&args.brokers, &embedded) {
            (Some(brokers), _) => brokers.clone(),
            (None, Some(embedded)) => embedded.brokers(),
            (None, None) => String::new(),
        };
        let is_temporary = args.wal_dir.is_none() && !args.at_most_once;
        let wal_dir = if is_temporary { Some(temporary_dir(run)?) } else { args.wal_dir.clone() };
        let payload = args.load.payload as usize;
        Ok(Scene { embedded, brokers, topic, wal_dir, is_temporary, run, payload })
    }

    /// Where to connect.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The log's directory, if there is a log.
    pub fn wal_dir(&self) -> Option<&Path> {
        self.wal_dir.as_deref()
    }

    /// The number that marks this demo's records.
    pub fn run(&self) -> u64 {
        self.run
    }

    /// Starts the consumer; it begins at the end of a real topic.
    pub fn start_reader(&self) -> Result<Reader, Box<dyn Error>> {
        Reader::start(&self.brokers, &self.topic, self.run, self.payload, self.embedded.is_some())
    }

    /// Takes the brokers away.
    pub fn begin_outage(&self, kind: OutageKind) -> Result<(), forebay::OpenError> {
        match (&self.embedded, kind) {
            (None, _) => Ok(()),
            (Some(broker), OutageKind::Freeze) => broker.round_trip_time(FROZEN),
            (Some(broker), OutageKind::Down) => broker.down(),
        }
    }

    /// Brings them back.
    pub fn end_outage(&self, kind: OutageKind) -> Result<(), forebay::OpenError> {
        match (&self.embedded, kind) {
            (None, _) => Ok(()),
            (Some(broker), OutageKind::Freeze) => broker.round_trip_time(Duration::ZERO),
            (Some(broker), OutageKind::Down) => broker.up(),
        }
    }

    /// Makes every answer of the embedded cluster take `time`, so that no more is produced than
    /// the consumer reads.
    pub fn slow_down(&self, time: Duration) {
        if let Some(broker) = &self.embedded {
            // A mock that refuses stays as fast as it was; what it trims is counted.
            let _ = broker.round_trip_time(time);
        }
    }

    /// Bytes that the embedded cluster may hold unread; `None` of a real one, which keeps them.
    pub fn unread_bytes_max(&self) -> Option<u64> {
        self.embedded.as_ref().map(|_| UNREAD_BYTES_MAX)
    }

    /// Removes a temporary directory, unless there is something in it to look at.
    pub fn clean(&self, good: bool) {
        let Some(dir) = self.wal_dir.as_ref().filter(|_| self.is_temporary) else { return };
        if good {
            // It is in the system's place for such things, which is emptied anyway.
            let _ = std::fs::remove_dir_all(dir);
        } else {
            say(format_args!("the log is left in {}", dir.display()));
        }
    }
}

/// A directory for its owner only, removed also when the user ends the demo.
fn temporary_dir(run: u64) -> Result<PathBuf, Box<dyn Error>> {
    let dir = std::env::temp_dir().join(format!("forebay-demo-{run:016x}"));
    DirBuilder::new()
        .mode(0o700)
        .create(&dir)
        .map_err(|e| format!("making {}: {e}", dir.display()))?;
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let doomed = dir.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        if let Some(signal) = signals.forever().next() {
            let _ = std::fs::remove_dir_all(&doomed);
            std::process::exit(128 + signal);
        }
    })?;
    Ok(dir)
}
