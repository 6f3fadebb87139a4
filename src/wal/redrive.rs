//! Owns a directory that is drained by hand: its lock, its log, and what moves the marks of
//! what is final. Reading, set-aside, trimming and the checkpoint are the log's own; one thread
//! does what flusher and keeper do in a pipeline.

use super::checkpoint::CheckpointData;
use super::format::{
    ASIDE_PREFIX_BYTES, FRAME_HEADER_BYTES, REASON_BYTES_MAX, SegmentKind, SetAsideNote,
};
use super::inspect::{FrameWalk, Inspected, SegmentSummary, inspect};
use super::keeper::{WalKeeper, quarantine_range};
use super::log::Wal;
use super::reader::Reader;
use super::replayed::Replayed;
use super::segment::SegmentWriter;
use super::shared::BadRange;
use super::storage::Storage;
use super::types::{AppendError, ReadItem, Recovery, WalOptions, random_salts};
use crate::clock::{Clock, SystemClock};
use crate::error::OpenError;
use crate::record::{LogPosition, Lsn, RecordView, TopicId};
use crate::topics::TopicTable;
use std::io;
use std::sync::Arc;

/// Longest record that a pipeline can be set to take.
const RECORD_BYTES_LIMIT: u32 = 128 << 20;

/// A log whose process is gone, held to be drained.
pub struct Orphan {
    storage: Arc<dyn Storage>,
    topics: Arc<TopicTable>,
    wal: Wal,
    keeper: WalKeeper,
    /// What opening found.
    pub recovery: Recovery,
    replayed: Replayed,
    data: CheckpointData,
    record_bytes_max: u32,
}

impl Orphan {
    /// Opens the log; recovery does what it always does.
    ///
    /// # Errors
    /// As [`Wal::open`].
    pub fn open(storage: Arc<dyn Storage>) -> Result<Orphan, OpenError> {
        let io = |what: &str| {
            let what = what.to_owned();
            move |source| OpenError::Io { what, source }
        };
        let summaries = inspect(&*storage).map_err(io("listing the log's directory"))?;
        let beside = (FRAME_HEADER_BYTES + ASIDE_PREFIX_BYTES + REASON_BYTES_MAX) as u32;
        let longest = summaries.iter().filter_map(|s| s.header).map(|h| h.frame_bytes_max).max();
        let options = WalOptions::default();
        let record_bytes_max = longest
            .unwrap_or(0)
            .saturating_sub(beside)
            .clamp(options.record_bytes_max, RECORD_BYTES_LIMIT);
        let segment_bytes =
            SegmentWriter::bytes_for(u64::from(record_bytes_max + beside)).next_power_of_two();
        let options = WalOptions {
            // Nothing is appended to the main log, so its next segment may be small.
            segment_bytes,
            set_aside_segment_bytes: segment_bytes.max(options.set_aside_segment_bytes),
            // What is there already must not keep a refused record from being set aside.
            wal_bytes_max: Some(u64::MAX),
            record_bytes_max,
            ..options
        };
        let topics = Arc::new(TopicTable::default());
        let (wal, keeper, recovery) = Wal::open(
            storage.clone(),
            topics.clone(),
            options,
            random_salts(),
            SystemClock.unix_ms(),
        )?;
        let replayed = wal.replayed_before(&*storage);
        let mut data = recovery.checkpoint.clone().unwrap_or_default();
        data.next_lsn = recovery.next_lsn;
        data.unsafe_records = 0;
        Ok(Orphan { storage, topics, wal, keeper, recovery, replayed, data, record_bytes_max })
    }

    /// The longest record that may be in it.
    #[must_use]
    pub fn record_bytes_max(&self) -> usize {
        self.record_bytes_max as usize
    }

    /// A reader at the first record that may not be final; `None` when there is none.
    #[must_use]
    pub fn reader(&self) -> Option<Reader> {
        self.recovery.backlog.map(|at| self.wal.reader(at))
    }

    /// What comes next.
    pub fn read_next<'r>(&self, reader: &'r mut Reader) -> ReadItem<'r> {
        self.wal.read_next(reader)
    }

    /// The name of a topic that a record was read with.
    #[must_use]
    pub fn topic(&self, id: TopicId) -> Arc<str> {
        self.topics.name(id).unwrap_or_else(|| "".into())
    }

    /// Whether an earlier replay delivered this record.
    #[must_use]
    pub fn is_replayed(&self, topic: &str, lsn: u64) -> bool {
        self.replayed.covers(topic, lsn)
    }

    /// Whether a record that was set aside while its topic, or its `partition` by itself, was held
    /// has been delivered since.
    #[must_use]
    pub fn is_redriven(&self, topic: &str, partition: Option<i32>, position: LogPosition) -> bool {
        let Some(topic) = self.data.topics.iter().find(|t| t.name == topic) else { return false };
        let mark = match partition {
            None => Some(topic.redriven),
            Some(number) => {
                let mut marks = topic.redriven_partitions.iter();
                marks.find(|(p, _)| *p == number).map(|(_, mark)| *mark)
            }
        };
        mark.is_some_and(|mark| position < mark)
    }

    /// Counts a record that was delivered or set aside.
    pub fn count(&mut self, topic: &str, delivered: bool) {
        let books = match self.data.topics.iter().position(|t| t.name == topic) {
            Some(at) => &mut self.data.topics[at],
            None => {
                let name = topic.to_owned();
                self.data.topics.push(super::TopicBooks { name, ..Default::default() });
                let last = self.data.topics.len() - 1;
                &mut self.data.topics[last]
            }
        };
        if delivered {
            books.delivered += 1;
            self.data.delivered += 1;
        } else {
            books.set_aside += 1;
        }
    }

    /// Everything below `watermark` is final, and everything of `topics` below `below`. Stores
    /// that and removes the segments that hold nothing else.
    ///
    /// # Errors
    /// What could not be stored; it is tried again at the next call.
    pub fn advance(&mut self, watermark: Lsn, topics: &[Arc<str>], below: Lsn) -> io::Result<()> {
        let mut marks = self.replayed.clone();
        for topic in topics.iter().filter(|_| below > watermark) {
            let mark = marks.below.entry(topic.to_string()).or_default();
            *mark = (*mark).max(below.0);
        }
        if marks != self.replayed {
            // A set-aside record that a mark counts as final is durable before it.
            self.keeper.sync_now()?;
            marks.store(&*self.storage)?;
            self.replayed = marks;
        }
        self.data.watermark = self.data.watermark.max(watermark);
        self.wal.trim(self.data.watermark);
        let report = self.keeper.step(SystemClock.now_ns(), Some(&self.data));
        match report.error {
            Some((what, kind)) => Err(io::Error::new(kind, what)),
            None => Ok(()),
        }
    }

    /// Writes a record into the set-aside segments.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub fn set_aside(
        &mut self,
        lsn: Lsn,
        topic: &str,
        record: &RecordView<'_>,
        note: &SetAsideNote<'_>,
    ) -> Result<(), AppendError> {
        let record = RecordView { topic: self.topics.intern(topic), ..*record };
        let put = |wal: &mut Wal| wal.set_aside(lsn, &record, note.reason, note.code, note.unix_ms);
        match put(&mut self.wal) {
            Err(AppendError::NotReady) => {
                self.keeper.step(SystemClock.now_ns(), None);
                put(&mut self.wal).map(drop)
            }
            done => done.map(drop),
        }
    }

    /// The set-aside segments as they are now.
    ///
    /// # Errors
    /// When the directory can't be listed.
    pub fn set_aside_segments(&self) -> io::Result<Vec<SegmentSummary>> {
        let mut all = inspect(&*self.storage)?;
        all.retain(|s| s.kind == SegmentKind::SetAside && s.header.is_some());
        Ok(all)
    }

    /// Walks a segment.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn walk(
        &self,
        segment: &SegmentSummary,
        mut visit: impl FnMut(Inspected<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(mut walk) = FrameWalk::new(&*self.storage, segment)? else { return Ok(()) };
        while let Some(found) = walk.next_frame()? {
            visit(found)?;
        }
        Ok(())
    }

    /// Removes a set-aside segment, once what was to be kept of it is durable elsewhere. What is
    /// damaged in it goes to quarantine first.
    ///
    /// # Errors
    /// What could not be done; the segment is still there then, or about to go.
    pub fn remove_set_aside(&mut self, segment: &SegmentSummary) -> io::Result<()> {
        let mut bad = Vec::new();
        self.walk(segment, |found| {
            if let Inspected::Bad { from, to, .. } = found {
                bad.push(BadRange { number: segment.number, from, to });
            }
            Ok(())
        })?;
        for range in &bad {
            quarantine_range(&*self.storage, SegmentKind::SetAside, range, "bad")?;
        }
        self.keeper.sync_now()?;
        self.wal.discard(segment.number);
        let report = self.keeper.step(SystemClock.now_ns(), None);
        match report.error {
            Some((what, kind)) => Err(io::Error::new(kind, what)),
            None => Ok(()),
        }
    }

    /// Makes everything durable and lets the directory go.
    ///
    /// # Errors
    /// What could not be made durable: it will be sent again.
    pub fn close(mut self) -> io::Result<()> {
        self.wal.seal();
        self.keeper.sync_now()?;
        self.keeper.store_checkpoint(&self.data)?;
        self.keeper.sync_now()?;
        if self.replayed.below.values().all(|below| *below <= self.data.watermark.0) {
            Replayed::remove(&*self.storage)?;
        }
        match self.keeper.step(SystemClock.now_ns(), None).error {
            Some((what, kind)) => Err(io::Error::new(kind, what)),
            None => Ok(()),
        }
    }
}
