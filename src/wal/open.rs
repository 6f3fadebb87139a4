//! Owns the making of the two halves of the log from a storage.

use super::checkpoint::CheckpointWriter;
use super::format::{ASIDE_PREFIX_BYTES, FRAME_HEADER_BYTES, REASON_BYTES_MAX, SegmentKind};
use super::keeper::{NO_SEGMENT, WalKeeper};
use super::log::Wal;
use super::recover::recover;
use super::replayed::Replayed;
use super::rewrite::unfinished_rewrites;
use super::segment::SegmentWriter;
use super::shared::{Common, Failed, State};
use super::storage::Storage;
use super::types::{Recovery, SaltSource, WalOptions};
use crate::error::{ConfigError, OpenError};
use crate::sync::AtomicU64;
use crate::topics::TopicTable;
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;

const WAL_BYTES_MAX_DEFAULT: u64 = 8 << 30;

fn io_error(what: &str) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Io { what: what.to_string(), source }
}

impl Wal {
    /// Opens the log of a directory: recovers what is there, prepares the first segment.
    ///
    /// # Errors
    /// Never for bad data. [`OpenError::Config`] when the sizes contradict each other,
    /// [`OpenError::Io`] when the directory can't be listed or, with no backlog in it, when
    /// there is no room for the first segment. With a backlog the log opens all the same, to
    /// be drained; appends say what is wrong.
    pub fn open(
        storage: Arc<dyn Storage>,
        topics: Arc<TopicTable>,
        options: WalOptions,
        mut salts: SaltSource,
        now_unix_ms: i64,
    ) -> Result<(Wal, WalKeeper, Recovery), OpenError> {
        let frame_bytes_max = check(&options)?;
        let opened = recover(&*storage, &topics, &options, salts())
            .map_err(io_error("listing the log's directory"))?;
        let used: u64 = opened.live.values().map(|(_, bytes)| bytes).sum();
        let wal_bytes_max = match options.wal_bytes_max {
            Some(bytes) => bytes,
            None => {
                let free = storage
                    .free_bytes()
                    .map_err(io_error("asking how much is free on the log's filesystem"))?;
                (free.saturating_add(used) / 2).min(WAL_BYTES_MAX_DEFAULT)
            }
        };
        let mut recovery = opened.recovery;
        let unfinished = unfinished_rewrites(&*storage);
        recovery.damage.unfinished_tails += unfinished.len() as u64;
        if options.wal_bytes_max.is_none()
            && wal_bytes_max < options.wal_bytes_least()
            && recovery.records == 0
        {
            return Err(OpenError::Io {
                what: format!(
                    "the log may take {wal_bytes_max} bytes, half of what is free, and two \
                     segments and two set-aside ones need {}; free more, or set wal_max_bytes \
                     and segment_bytes",
                    options.wal_bytes_least()
                ),
                source: rustix::io::Errno::NOSPC.into(),
            });
        }
        let recovered = opened.live.iter().map(|(number, (kind, _))| (*kind, *number)).collect();
        let synced_below = recovery.first_lsn.unwrap_or(recovery.next_lsn).0;
        let common = Arc::new(Common {
            storage,
            wal_bytes_max,
            directory_id: opened.directory_id,
            state: Mutex::new(State {
                live: opened.live,
                trimmed: opened.trimmed,
                failed: unfinished.into_iter().map(|(k, n)| Failed::new(k, n)).collect(),
                keep: opened.keep,
                ..State::default()
            }),
            appended_below: AtomicU64::new(recovery.next_lsn.0),
            aside_appends: AtomicU64::new(0),
            synced_below: AtomicU64::new(synced_below),
            failed_segment: [AtomicU64::new(NO_SEGMENT), AtomicU64::new(NO_SEGMENT)],
            sync_failures: AtomicU64::new(0),
            segments_rewritten: AtomicU64::new(0),
            records_lost_by_sync: AtomicU64::new(0),
            segment_waits: AtomicU64::new(0),
            ranges_quarantined: AtomicU64::new(0),
            options,
        });
        let mut keeper = WalKeeper {
            common: common.clone(),
            salts,
            next_number: opened.next_number,
            checkpoint: CheckpointWriter::new(
                opened.directory_id,
                opened.generation,
                opened.newest_slot,
            ),
            synced_at_ns: None,
            synced_asides: 0,
            unmade: None,
            manifest_stale: false,
            names_pending: false,
            recovered,
            reseal: opened.reseal,
        };
        let prepared = keeper.prepare(SegmentKind::Main);
        if let Err(source) = prepared
            && recovery.records == 0
        {
            let bytes = common.options.segment_bytes;
            return Err(OpenError::Io {
                what: format!(
                    "preparing a segment of {bytes} bytes in the log's directory (free that \
                     much there, or set a smaller segment_bytes)"
                ),
                source,
            });
        }
        let backlog = recovery.backlog.map(|at| (at, opened.backlog_frame));
        let mut wal = Wal {
            common,
            topics,
            segments: opened.segments,
            backlog,
            active: [None, None],
            next_frame: opened.next_frame,
            frame_bytes_max,
            random: None,
            random_rewritten: 0,
            starved: false,
            unix_ms: now_unix_ms,
            replayed: Vec::new(),
        };
        let before = wal.replayed_before(&*wal.common.storage);
        let watermark = recovery.checkpoint.as_ref().map_or(0, |c| c.watermark.0);
        if !before.below.is_empty() && before.below.values().all(|below| *below <= watermark) {
            // The watermark has come as far. If it stays, no harm is done.
            let _ = Replayed::remove(&*wal.common.storage);
        }
        let named = before.below.iter().map(|(name, below)| (wal.topics.intern(name), *below));
        wal.replayed = named.collect();
        Ok((wal, keeper, recovery))
    }
}

/// Checks the sizes against each other; returns the longest frame.
fn check(options: &WalOptions) -> Result<u32, ConfigError> {
    let frame = u64::from(options.record_bytes_max)
        + (FRAME_HEADER_BYTES + ASIDE_PREFIX_BYTES + REASON_BYTES_MAX) as u64;
    let need = SegmentWriter::bytes_for(frame);
    let sizes = [
        ("segment_bytes", options.segment_bytes),
        ("set_aside_segment_bytes", options.set_aside_segment_bytes),
    ];
    for (name, value) in sizes {
        if value < need || value % 8 != 0 || value > u64::from(u32::MAX) {
            return Err(ConfigError {
                name: name.to_string(),
                value: value.to_string(),
                problem: format!(
                    "must be a multiple of 8, at most 4 GiB, and at least {need} to hold a record of record_bytes_max = {} bytes",
                    options.record_bytes_max
                ),
            });
        }
    }
    if let Some(max) = options.wal_bytes_max
        && max < options.wal_bytes_least()
    {
        return Err(ConfigError {
            name: "wal_bytes_max".to_string(),
            value: max.to_string(),
            problem: format!(
                "must hold two segments of {} bytes and two set-aside ones of {}",
                options.segment_bytes, options.set_aside_segment_bytes
            ),
        });
    }
    Ok(frame.min(u64::from(u32::MAX)) as u32)
}
