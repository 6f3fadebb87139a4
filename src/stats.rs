//! Owns what a pipeline says of itself: [`Stats`], a snapshot whose books always balance.

use std::time::Duration;

/// Where every record stands. In each snapshot `accepted + recovered` equals the sum of
/// `delivered`, `in_lanes`, `in_flight`, `in_wal`, `set_aside` and `dropped`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct BookTotals {
    /// Records that `send` took.
    pub accepted: u64,
    /// Records found in the log at open, not final then.
    pub recovered: u64,
    /// Records whose delivery report says they are persisted.
    pub delivered: u64,
    /// Records in the lanes, not yet looked at.
    pub in_lanes: u64,
    /// Records taken from the lanes, not final and not in the log.
    pub in_flight: u64,
    /// Records in the log and not final, whether handed to Kafka or not.
    pub in_wal: u64,
    /// Records in the set-aside log.
    pub set_aside: u64,
    /// Records given up under a counted policy.
    pub dropped: u64,
    /// Of all: ever written to the log by this run. In a healthy run this stays 0.
    pub spilled: u64,
    /// Of all: read back from the log to be produced.
    pub replayed: u64,
    /// Records that `send` refused; they were never accepted and stand outside the sum.
    pub refused: u64,
    /// Most records that may be in Kafka twice: handed over again though the first copy may
    /// have been kept. Every recovered record counts, since the run before may have handed it
    /// over: an upper bound, and often a high one.
    pub duplicates_possible: u64,
    /// Records produced again in the same instance after a failed request, perhaps behind
    /// later ones of their partition.
    pub reordered: u64,
}

impl BookTotals {
    /// Records that came and stand nowhere: 0, or Forebay is wrong.
    #[must_use]
    pub fn unaccounted(&self) -> i64 {
        let came = self.accepted + self.recovered;
        let stands = self.delivered
            + self.in_lanes
            + self.in_flight
            + self.in_wal
            + self.set_aside
            + self.dropped;
        came as i64 - stands as i64
    }

    /// Whether the books balance.
    #[must_use]
    pub fn balanced(&self) -> bool {
        self.unaccounted() == 0
    }
}

/// One topic's books, counted from the moment its records leave the lanes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct TopicStats {
    /// The topic's name.
    pub name: String,
    /// Records taken from the lanes.
    pub accepted: u64,
    /// Records found in the log at open.
    pub recovered: u64,
    /// Delivered.
    pub delivered: u64,
    /// Not final and not in the log.
    pub in_flight: u64,
    /// In the log and not final.
    pub in_wal: u64,
    /// Set aside, by reason.
    pub set_aside: Vec<(&'static str, u64)>,
    /// Dropped, by reason.
    pub dropped: Vec<(&'static str, u64)>,
    /// Ever written to the log.
    pub spilled: u64,
    /// Read back from the log.
    pub replayed: u64,
}

/// A topic that can't be had now: its records are set aside, in order, and delivered by themselves
/// when it can.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct HeldTopic {
    /// The topic's name.
    pub topic: String,
    /// The partition, where only that is held: it is silent while others are served, or Kafka doesn't
    /// have it.
    pub partition: Option<i32>,
    /// Why: `topic_unavailable`, `topic_unauthorised`, ...
    pub reason: &'static str,
    /// Kafka's or librdkafka's number for it.
    pub code: i32,
    /// Since when, in milliseconds since 1970; perhaps since an earlier run.
    pub since_unix_ms: i64,
    /// Records that wait for it. Those in the set-aside log count as `set_aside` in the books.
    pub records: u64,
    /// It can be had again, and they are on their way.
    pub redriving: bool,
}

/// The filesystem of the log's directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Filesystem {
    /// Its name: `ext4` (which ext2 and ext3 can't be told from), `xfs`, `btrfs`; `unknown` for
    /// one that Forebay doesn't know.
    pub name: &'static str,
    /// What the log can count on.
    pub kind: FilesystemKind,
}

/// What the log can count on, by kinds of filesystems. All but `Local` and `Unknown` are warned
/// of at open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum FilesystemKind {
    /// What the log was made for: room that is reserved stays reserved.
    Local,
    /// It copies on write, so room that was reserved may be gone.
    CopyOnWrite,
    /// A container's own layer, which goes with the container.
    Overlay,
    /// On a network, on several machines, or in another process: locks, syncs and mappings may
    /// not hold.
    Network,
    /// In memory: gone when the machine restarts.
    Volatile,
    /// Not known.
    Unknown,
}

/// What the log says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct WalStats {
    /// Bytes of all segments on disk: prepared, set-aside and rewritten ones included.
    pub bytes: u64,
    /// Most that they may take: `wal_max_bytes`, or what was chosen at open.
    pub bytes_max: u64,
    /// There is no room for another segment: the log is at `wal_max_bytes`, or the disk is full.
    /// Appends go on while the segment in use has room; then `wal_full` decides. Ends when
    /// something was delivered and removed, or the disk has room again.
    pub full: bool,
    /// Segments of the main log.
    pub segments: u64,
    /// What its directory is on.
    pub filesystem: Option<Filesystem>,
    /// Times that the next segment wasn't ready when a record needed it; the record waited.
    pub segment_waits: u64,
    /// Syncs of segments that failed, or after which a segment's file was gone or cut.
    pub sync_failures: u64,
    /// Segments whose sync failed and that aren't rewritten yet: a power cut may cost what they
    /// hold. Each is copied into a new file as soon as the disk lets us, and whenever that fails
    /// again after a pause that grows from 0.1 to 10 s. 0 is well.
    pub segments_unsynced: u64,
    /// Segments that were rewritten after a failed sync, and are trusted again.
    pub segments_rewritten: u64,
    /// Records that could not be read back when their segment was rewritten after a failed sync.
    /// When the replay comes to them it counts them in `damaged_records`.
    pub records_lost_by_sync: u64,
    /// Turns of the keeper (preparing, syncing, rewriting, checkpoint, manifest, removing) in
    /// which something failed; each is tried again.
    pub keeper_failures: u64,
    /// What failed in the keeper's last turn, if anything did.
    pub keeper_trouble: Option<String>,
    /// Records that recovery or replay could not read; they are in `dropped`.
    pub damaged_records: u64,
    /// Ranges and files that were copied or moved to `quarantine/`.
    pub quarantined: u64,
    /// Appends that failed (full disk, I/O error, `wal_max_bytes`); each was tried again.
    pub append_failures: u64,
    /// Why the log can't be written or read now, if it can't. What Kafka takes goes on being
    /// delivered from memory; what waits longer than the loss window makes `exposed`. Tried
    /// again at each look that needs it; over with the first append that succeeds, or once
    /// nothing has failed for a second and a segment is ready.
    pub unavailable: Option<String>,
    /// Why records that can't be delivered aren't set aside now, if there are any. They keep
    /// their place, and once they fill the span nothing is handed over. Tried at each look; to
    /// make room, move files away from `set-aside/`.
    pub set_aside_unavailable: Option<String>,
    /// What recovery found and did, in words; empty when all was sound.
    pub findings: Vec<String>,
}

/// States that may hold at once; a healthy pipeline has none of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct States {
    /// No broker is connected: why, if known.
    pub disconnected: Option<String>,
    /// A broker refuses the login: which, and what it said. Records are kept. After the
    /// password is put right, on the broker or by [`crate::Pipeline::reload`], they go on.
    pub auth_failed: Option<String>,
    /// TLS with a broker fails: which, and why. Records are kept. [`crate::Pipeline::reload`]
    /// reads certificates again.
    pub tls_failed: Option<String>,
    /// Records are older than `loss_window` and neither final nor in the log.
    pub exposed: bool,
    /// The producer instance is being replaced.
    pub rebuilding: bool,
    /// An outage is rehearsed: nothing is handed over ([`crate::Pipeline::drill`]).
    pub drilling: bool,
    /// Partitions that are paused because their broker is silent.
    pub paused_partitions: u32,
    /// A thread reserved room in a lane more than 100 ms ago and has not finished its record.
    pub lane_stalled: bool,
    /// Which lanes that holds for. [`Pipeline::register_thread`](crate::Pipeline::register_thread)
    /// tells a thread its lane.
    pub stalled_lanes: Vec<usize>,
    /// The flusher has not looked for more than a second.
    pub flusher_stalled: bool,
    /// The flusher or keeper stopped after a panic: what it said.
    pub stopped: Option<String>,
}

/// Percentiles of a distribution.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Percentiles {
    /// How many values were counted.
    pub count: u64,
    /// Median.
    pub p50: u64,
    /// 99 of 100 are at or below.
    pub p99: u64,
    /// 999 of 1000 are at or below.
    pub p999: u64,
    /// The largest.
    pub max: u64,
}

/// A snapshot of a pipeline.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Where every record stands.
    pub books: BookTotals,
    /// The same by topic.
    pub topics: Vec<TopicStats>,
    /// Topics that are held.
    pub held: Vec<HeldTopic>,
    /// Refused sends by reason.
    pub refused: Vec<(&'static str, u64)>,
    /// The log, if there is one.
    pub wal: Option<WalStats>,
    /// States.
    pub states: States,
    /// How much would be lost if the process died now: at most this many records (those in
    /// the lanes and in flight).
    pub unsafe_records: u64,
    /// And back to when: the age of the oldest of them, in milliseconds.
    pub oldest_unsafe_ms: u64,
    /// When the backlog will have been handed over, in milliseconds, if it goes on shrinking
    /// as it did in the last seconds (at most four). `None` where there is no backlog, where it
    /// doesn't shrink, while Kafka is away, and for half a second after it is back. While the
    /// replay still speeds up ([`Builder::replay_ramp`](crate::Builder::replay_ramp)) it says
    /// too much.
    pub drain_estimate_ms: Option<u64>,
    /// Times that the state `exposed` began.
    pub exposed_count: u64,
    /// Producer instances replaced.
    pub rebuilds: u64,
    /// Why the last one was.
    pub last_rebuild_reason: Option<String>,
    /// Looks of the flusher.
    pub looks: u64,
    /// Gaps between looks in microseconds.
    pub look_gap_us: Percentiles,
    /// Time from arrival to the delivery report in microseconds (one record in 16).
    pub delivery_us: Percentiles,
    /// What the run before this one may have lost at most, if it ended without `close`: its
    /// unsafe records when it last stored its checkpoint. What came after that store, one look
    /// and one turn of the keeper (about 20 ms), is not in it.
    pub lost_at_most: u64,
    /// Bytes of memory that lanes and tables take, fixed at open.
    pub memory_bytes: u64,
}

/// What became of everything when the pipeline was closed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct CloseReport {
    /// The last snapshot. `in_wal` records will be delivered by the next run.
    pub stats: Stats,
    /// Everything that was accepted is final or in the log.
    pub complete: bool,
    /// How long it took.
    pub took: Duration,
}
