//! Draining a directory by hand: what a dead or retired process left, into Kafka or elsewhere.
//!
//! Opening a [`Pipeline`] on a directory delivers all of it, and is what most
//! programs want. A [`Redrive`] chooses: some topics only, another topic to send to, a rate, or
//! the dead letters in `set-aside/`. It holds the directory meanwhile.
//!
//! Owns the loop over the log, its marks and its outcome; sending is in `courier`, dead letters
//! are in `aside`.
//!
//! # What holds
//! - Records are sent in the order of the log, one after the other, through a pipeline of the
//!   caller's that has no log of its own. First arrivals of a key keep their order, except
//!   behind a record that Kafka refused at first and took alone (as *reordered* elsewhere).
//! - A record leaves the directory only after Kafka has confirmed it. The marks are stored every
//!   200 ms: a crash costs duplicates, of what was confirmed since then and of what was on its
//!   way (at most 16,384 records or 32 MiB, one longer record more); of dead letters at most
//!   what one segment holds (4 MiB, or one record).
//! - What isn't selected stays where it is. While it holds the watermark back, the file
//!   `replayed` says what is done; the next redrive and the next pipeline pass it over.
//! - A record that Kafka refuses for good, also when it is sent alone, is set aside with the
//!   reason, or stays set aside. A refusal of the whole topic ends the redrive instead.

mod aside;
mod courier;
#[cfg(test)]
mod tests;

use crate::clock::{Clock, SystemClock};
use crate::error::{OpenError, TopicError};
use crate::pipeline::Pipeline;
use crate::record::Lsn;
use crate::report::TOPIC_REASONS;
use crate::wal::{FileStorage, Orphan, ReadItem, Reader, SetAsideNote};
use courier::{Courier, End, Letter};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the marks are stored.
const STORE_EVERY: Duration = Duration::from_millis(200);
/// Longest wait before the caller is asked again whether to stop.
const TICK: Duration = Duration::from_millis(20);

/// A directory that is held to be drained.
pub struct Redrive {
    log: Orphan,
}

/// What to send, and where.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Only records of these topics; empty for all.
    pub topics: Vec<String>,
    /// Only dead letters with one of these reasons; empty for all.
    pub reasons: Vec<String>,
    /// Send to this topic instead of each record's own.
    pub to_topic: Option<String>,
    /// Most records a second.
    pub records_per_s: Option<u32>,
    /// After a stop: how long to wait for what is on its way.
    pub close_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            topics: Vec::new(),
            reasons: Vec::new(),
            to_topic: None,
            records_per_s: None,
            close_timeout: Duration::from_secs(5),
        }
    }
}

/// Where every record that was read ended. `read` is the sum of the others but `lost`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Outcome {
    /// Records that were to be looked at: the backlog, or the dead letters.
    pub total: u64,
    /// Of these: read.
    pub read: u64,
    /// Confirmed by Kafka, and removed or marked.
    pub delivered: u64,
    /// Delivered by an earlier redrive that had not come to its end.
    pub delivered_before: u64,
    /// Refused by Kafka for good: set aside, or still there.
    pub set_aside: u64,
    /// Not selected: still there.
    pub kept: u64,
    /// Sent without an answer, or not to be sent after a refusal: still there.
    pub left: u64,
    /// Damaged: lost before this began, copies of the bytes are in quarantine.
    pub lost: u64,
    /// Everything was read and nothing selected is left.
    pub complete: bool,
    /// Why it ended early, if it wasn't asked to.
    pub trouble: Option<String>,
}

impl Outcome {
    /// Records that were read and stand nowhere: 0, or Forebay is wrong.
    #[must_use]
    pub fn unaccounted(&self) -> i64 {
        let stands =
            self.delivered + self.delivered_before + self.set_aside + self.kept + self.left;
        self.read as i64 - stands as i64
    }
}

/// Why a redrive ended with an error. What was delivered until then is delivered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedriveError {
    /// The directory refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A topic whose name Kafka doesn't allow.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The pipeline took a record no more.
    #[error("the pipeline stopped: {0}")]
    Stopped(String),
}

impl RedriveError {
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> RedriveError {
        move |source| RedriveError::Io { what, source }
    }
}

impl std::fmt::Debug for Redrive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redrive").finish_non_exhaustive()
    }
}

impl Redrive {
    /// Opens an existing directory and holds it until this is dropped or closed. Recovery does
    /// what it always does; see [`Redrive::findings`].
    ///
    /// # Errors
    /// When it isn't there, when a process holds it, or when the system refuses.
    pub fn open(dir: &Path) -> Result<Redrive, OpenError> {
        let storage = FileStorage::open_existing(dir)?;
        Ok(Redrive { log: Orphan::open(Arc::new(storage))? })
    }

    /// What opening found wrong and put aside, in words.
    #[must_use]
    pub fn findings(&self) -> &[String] {
        &self.log.recovery.damage.findings
    }

    /// The backlog's records by topic, damaged ones and those of an unfinished redrive included.
    #[must_use]
    pub fn backlog(&self) -> &[(String, u64)] {
        &self.log.recovery.records_by_topic
    }

    /// The longest record that may be in it: the pipeline must take as much.
    #[must_use]
    pub fn record_bytes_max(&self) -> usize {
        self.log.record_bytes_max()
    }

    /// Sends the backlog's selected records through `pipeline`, which must have no log of its
    /// own. `ask` sees the outcome so far every 20 ms or oftener; false stops.
    ///
    /// # Errors
    /// See [`RedriveError`].
    pub fn run(
        &mut self,
        pipeline: &Pipeline,
        options: &Options,
        ask: &mut dyn FnMut(&Outcome) -> bool,
    ) -> Result<Outcome, RedriveError> {
        let courier = Courier::new(pipeline, options);
        let next_lsn = self.log.recovery.next_lsn;
        let Some(reader) = self.log.reader() else {
            return Ok(Outcome { complete: true, ..Outcome::default() });
        };
        let total = self.log.recovery.records;
        let first = self.log.recovery.first_lsn.unwrap_or(next_lsn);
        Run {
            log: &mut self.log,
            courier,
            options,
            reader,
            read_below: first,
            first_kept: None,
            selected: Vec::new(),
            stopping: None,
            ended: false,
            stored: Instant::now(),
            outcome: Outcome { total, ..Outcome::default() },
        }
        .run(ask)
    }

    /// Sends the selected dead letters, as [`Redrive::run`] does the backlog. Those that are
    /// confirmed are removed, the others stay.
    ///
    /// # Errors
    /// See [`RedriveError`].
    pub fn run_set_aside(
        &mut self,
        pipeline: &Pipeline,
        options: &Options,
        ask: &mut dyn FnMut(&Outcome) -> bool,
    ) -> Result<Outcome, RedriveError> {
        aside::run(&mut self.log, pipeline, options, ask)
    }

    /// Makes everything durable and lets the directory go. A drop lets it go too; what was
    /// confirmed since the last store is then sent again.
    ///
    /// # Errors
    /// What could not be made durable.
    pub fn close(self) -> Result<(), RedriveError> {
        self.log.close().map_err(RedriveError::io("closing the log"))
    }
}

/// One run over the backlog.
struct Run<'a> {
    log: &'a mut Orphan,
    courier: Courier<'a>,
    options: &'a Options,
    reader: Reader,
    /// Every record below was read.
    read_below: Lsn,
    /// The first record that stays: the watermark can't pass it.
    first_kept: Option<Lsn>,
    /// Selected topics that were met.
    selected: Vec<Arc<str>>,
    /// Nothing more is read; give up what is on its way then.
    stopping: Option<Instant>,
    ended: bool,
    stored: Instant,
    outcome: Outcome,
}

impl Run<'_> {
    fn run(mut self, ask: &mut dyn FnMut(&Outcome) -> bool) -> Result<Outcome, RedriveError> {
        loop {
            if !ask(&self.outcome) {
                self.stop();
            }
            while self.stopping.is_none() && !self.ended && self.courier.has_room() {
                self.read_one()?;
            }
            let idle = self.ended || self.stopping.is_some() || !self.courier.has_room();
            let mut wait = if idle { TICK } else { self.courier.until_allowed().min(TICK) };
            if self.courier.is_empty() && !(self.ended || self.stopping.is_some()) {
                std::thread::sleep(wait);
            }
            while let Some((letter, end)) = self.courier.next_end(wait)? {
                wait = Duration::ZERO;
                self.ended_letter(letter, end)?;
            }
            if self.stored.elapsed() >= STORE_EVERY {
                self.stored = Instant::now();
                // It is tried again, and must succeed at the end.
                let _ = self.store();
            }
            let over = self.stopping.is_some_and(|until| Instant::now() >= until);
            if (self.courier.is_empty() && (self.ended || self.stopping.is_some())) || over {
                break;
            }
        }
        self.outcome.left += self.courier.len() as u64;
        self.outcome.complete = self.ended && self.outcome.left == 0;
        self.store().map_err(RedriveError::io("storing what was delivered"))?;
        Ok(self.outcome)
    }

    fn stop(&mut self) {
        self.stopping.get_or_insert_with(|| Instant::now() + self.options.close_timeout);
    }

    fn read_one(&mut self) -> Result<(), RedriveError> {
        let (lsn, letter) = match self.log.read_next(&mut self.reader) {
            ReadItem::CaughtUp => {
                self.ended = true;
                self.read_below = self.log.recovery.next_lsn;
                return Ok(());
            }
            ReadItem::Error(kind) => {
                return Err(RedriveError::Io { what: "reading the log", source: kind.into() });
            }
            ReadItem::Damage { records_lost, .. } => {
                self.outcome.lost += records_lost;
                return Ok(());
            }
            // Below the watermark, in the segment that holds it.
            ReadItem::Record(read) if read.lsn < self.read_below => return Ok(()),
            ReadItem::Record(read) => {
                let topic = self.log.topic(read.record.topic);
                (read.lsn, Letter::new(read.lsn, 0, topic, &read.record))
            }
        };
        self.outcome.read += 1;
        self.read_below = lsn.next();
        if self.log.is_replayed(&letter.topic, lsn.0) {
            self.outcome.delivered_before += 1;
            return Ok(());
        }
        let wanted = &self.options.topics;
        if !wanted.is_empty() && !wanted.iter().any(|t| **t == *letter.topic) {
            self.outcome.kept += 1;
            self.first_kept.get_or_insert(lsn);
            return Ok(());
        }
        if !self.selected.contains(&letter.topic) {
            self.selected.push(letter.topic.clone());
        }
        self.courier.send(letter)
    }

    fn ended_letter(&mut self, letter: Letter, end: End) -> Result<(), RedriveError> {
        match end {
            End::Delivered => {
                self.outcome.delivered += 1;
                self.log.count(&letter.topic, true);
            }
            End::Refused(reason) if TOPIC_REASONS.contains(&reason) => {
                self.outcome.left += 1;
                self.first_kept = Some(self.first_kept.map_or(letter.lsn, |n| n.min(letter.lsn)));
                // Nothing of this topic may count as final from here on.
                self.selected.retain(|t| *t != letter.topic);
                let topic = self.options.to_topic.as_deref().unwrap_or(&letter.topic);
                self.outcome.trouble.get_or_insert(format!("topic {topic}: {reason}"));
                self.stop();
            }
            End::Refused(reason) => {
                let unix_ms = SystemClock.unix_ms();
                let note = SetAsideNote { reason, code: 0, unix_ms };
                self.log
                    .set_aside(letter.lsn, &letter.topic, &letter.view(), &note)
                    .map_err(io::Error::other)
                    .map_err(RedriveError::io("setting a refused record aside"))?;
                self.outcome.set_aside += 1;
                self.log.count(&letter.topic, false);
            }
        }
        Ok(())
    }

    /// Stores how far everything, and how far the selected topics are final.
    fn store(&mut self) -> io::Result<()> {
        let below = self.courier.oldest().unwrap_or(self.read_below).min(self.read_below);
        let watermark = self.first_kept.map_or(below, |kept| kept.min(below));
        self.log.advance(watermark, &self.selected, below)
    }
}
