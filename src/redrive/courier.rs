//! Owns the way through a pipeline and back: what is on its way, in order, and how it ended.
//!
//! A record that is refused may be innocent: a request fails as a whole. So it is kept, nothing
//! more is sent until all else has ended, and then it is sent alone; what is refused alone is
//! refused for good, and the pipeline's books say why.

use super::{Options, RedriveError};
use crate::error::SendError;
use crate::pipeline::Pipeline;
use crate::receipt::{Level, Receipt, ReceiptError};
use crate::record::{Lsn, RecordView, Shape, TopicId};
use crate::topic::{Record, Topic};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most records and bytes on their way.
const WINDOW_RECORDS: usize = 16_384;
const WINDOW_BYTES: usize = 32 << 20;
/// Between two tries where a lane is full.
const FULL_WAIT: Duration = Duration::from_millis(1);

/// A record on its way.
pub(super) struct Letter {
    pub lsn: Lsn,
    /// Its place among those of its segment.
    pub index: usize,
    pub topic: Arc<str>,
    partition: i32,
    timestamp_ms: i64,
    shape: Shape,
    body: Vec<u8>,
}

/// How it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    Delivered,
    Refused(&'static str),
}

impl Letter {
    pub(super) fn new(lsn: Lsn, index: usize, topic: Arc<str>, record: &RecordView<'_>) -> Letter {
        Letter {
            lsn,
            index,
            topic,
            partition: record.partition,
            timestamp_ms: record.timestamp_ms,
            shape: record.shape,
            body: record.body.to_vec(),
        }
    }

    pub(super) fn view(&self) -> RecordView<'_> {
        RecordView {
            // Whoever appends it interns the name in its own table.
            topic: TopicId(0),
            partition: self.partition,
            timestamp_ms: self.timestamp_ms,
            shape: self.shape,
            body: &self.body,
        }
    }
}

/// A record that is sent alone.
struct Alone {
    letter: Letter,
    receipt: Receipt,
    /// The topic's refusals before it was sent.
    before: Vec<(&'static str, u64)>,
}

pub(super) struct Courier<'a> {
    pipeline: &'a Pipeline,
    to_topic: Option<&'a str>,
    topics: HashMap<Arc<str>, Topic>,
    window: VecDeque<(Letter, Receipt)>,
    bytes: usize,
    /// Refused in company.
    again: VecDeque<Letter>,
    alone: Option<Alone>,
    rate: Option<Rate>,
}

impl<'a> Courier<'a> {
    pub(super) fn new(pipeline: &'a Pipeline, options: &'a Options) -> Courier<'a> {
        Courier {
            pipeline,
            to_topic: options.to_topic.as_deref(),
            topics: HashMap::new(),
            window: VecDeque::new(),
            bytes: 0,
            again: VecDeque::new(),
            alone: None,
            rate: options.records_per_s.map(Rate::new),
        }
    }

    /// Whether the next record may be sent now.
    pub(super) fn has_room(&mut self) -> bool {
        self.again.is_empty()
            && self.alone.is_none()
            && self.window.len() < WINDOW_RECORDS
            && self.bytes < WINDOW_BYTES
            && self.until_allowed().is_zero()
    }

    /// How long the rate holds the next record back.
    pub(super) fn until_allowed(&mut self) -> Duration {
        self.rate.as_mut().map_or(Duration::ZERO, Rate::until)
    }

    pub(super) fn len(&self) -> usize {
        self.window.len() + self.again.len() + usize::from(self.alone.is_some())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The lowest number on its way.
    pub(super) fn oldest(&self) -> Option<Lsn> {
        let all = self.window.front().map(|(letter, _)| letter);
        let rest = self.again.iter().chain(self.alone.as_ref().map(|a| &a.letter));
        all.into_iter().chain(rest).map(|l| l.lsn).min()
    }

    /// Those on their way, by their place in their segment.
    pub(super) fn outstanding(&self) -> impl Iterator<Item = usize> + '_ {
        let window = self.window.iter().map(|(letter, _)| letter);
        window.chain(&self.again).chain(self.alone.as_ref().map(|a| &a.letter)).map(|l| l.index)
    }

    /// Sends a record.
    pub(super) fn send(&mut self, letter: Letter) -> Result<(), RedriveError> {
        if let Some(rate) = &mut self.rate {
            rate.took_one();
        }
        let receipt = self.post(&letter)?;
        self.bytes += letter.body.len();
        match receipt {
            Some(receipt) => self.window.push_back((letter, receipt)),
            None => self.again.push_back(letter),
        }
        Ok(())
    }

    /// `None` when the pipeline itself refuses the record.
    fn post(&mut self, letter: &Letter) -> Result<Option<Receipt>, RedriveError> {
        let name = self.to_topic.unwrap_or(&letter.topic);
        if !self.topics.contains_key(name) {
            self.topics.insert(name.into(), self.pipeline.topic(name)?);
        }
        let topic = &self.topics[name];
        let view = letter.view();
        loop {
            let mut record = Record::new(topic, view.value()).timestamp(letter.timestamp_ms);
            if let Some(key) = view.key() {
                record = record.key(key);
            }
            if letter.partition >= 0 {
                record = record.partition(letter.partition);
            }
            for header in view.headers() {
                record = match header.value {
                    Some(value) => record.header(header.name, value),
                    None => record.header_null(header.name),
                };
            }
            match record.send_tracked() {
                Ok(receipt) => return Ok(Some(receipt)),
                Err(e) if e.is_retryable() => match self.window.front() {
                    Some((_, first)) => drop(first.wait(Level::Delivered, FULL_WAIT)),
                    None => std::thread::sleep(FULL_WAIT),
                },
                Err(SendError::TooLarge | SendError::BadHeader) => return Ok(None),
                Err(e) => return Err(RedriveError::Stopped(e.to_string())),
            }
        }
    }

    /// The next record that has ended, in order as far as none was refused; `None` when none has
    /// within `wait`.
    pub(super) fn next_end(
        &mut self,
        wait: Duration,
    ) -> Result<Option<(Letter, End)>, RedriveError> {
        while let Some((_, receipt)) = self.window.front() {
            let result = match receipt.wait(Level::Delivered, wait) {
                Err(ReceiptError::StillPending) => return Ok(None),
                Err(ReceiptError::Closed) => return Err(self.stopped()),
                result => result,
            };
            let Some((letter, _)) = self.window.pop_front() else { return Ok(None) };
            match result {
                Ok(()) => {
                    self.bytes -= letter.body.len();
                    return Ok(Some((letter, End::Delivered)));
                }
                Err(_) => self.again.push_back(letter),
            }
        }
        let alone = match self.alone.take() {
            Some(alone) => alone,
            None => {
                let Some(letter) = self.again.pop_front() else { return Ok(None) };
                let before = self.refusals(&letter);
                match self.post(&letter)? {
                    Some(receipt) => Alone { letter, receipt, before },
                    None => return Ok(Some(self.take(letter, End::Refused("record_invalid")))),
                }
            }
        };
        match alone.receipt.wait(Level::Delivered, wait) {
            Err(ReceiptError::StillPending) => {
                self.alone = Some(alone);
                Ok(None)
            }
            Err(ReceiptError::Closed) => Err(self.stopped()),
            Ok(()) => Ok(Some(self.take(alone.letter, End::Delivered))),
            Err(_) => {
                let now = self.refusals(&alone.letter);
                let of = |name| alone.before.iter().find(|(n, _)| *n == name).map_or(0, |r| r.1);
                let rose = now.iter().find(|(name, n)| *n > of(*name));
                let reason = rose.map_or("refused", |(name, _)| *name);
                Ok(Some(self.take(alone.letter, End::Refused(reason))))
            }
        }
    }

    fn take(&mut self, letter: Letter, end: End) -> (Letter, End) {
        self.bytes -= letter.body.len();
        (letter, end)
    }

    fn stopped(&self) -> RedriveError {
        let why = self.pipeline.stats().states.stopped;
        RedriveError::Stopped(why.unwrap_or_else(|| "it was closed".into()))
    }

    /// What the pipeline has given up of the record's topic, by reason.
    fn refusals(&self, letter: &Letter) -> Vec<(&'static str, u64)> {
        let name = self.to_topic.unwrap_or(&letter.topic);
        let topics = self.pipeline.stats().topics;
        let topic = topics.into_iter().find(|t| t.name == name);
        topic.map(|t| [t.dropped, t.set_aside].concat()).unwrap_or_default()
    }
}

/// At most so many records a second; what isn't used within 10 ms is gone.
struct Rate {
    per_s: f64,
    credit: f64,
    at: Instant,
}

impl Rate {
    fn new(per_s: u32) -> Rate {
        Rate { per_s: f64::from(per_s.max(1)), credit: 1.0, at: Instant::now() }
    }

    fn until(&mut self) -> Duration {
        let now = Instant::now();
        let most = (self.per_s / 100.0).max(1.0);
        self.credit += now.duration_since(self.at).as_secs_f64() * self.per_s;
        self.credit = self.credit.min(most);
        self.at = now;
        let missing = 1.0 - self.credit;
        if missing <= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(missing / self.per_s) }
    }

    fn took_one(&mut self) {
        self.credit -= 1.0;
    }
}
