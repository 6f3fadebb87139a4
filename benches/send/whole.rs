//! Owns the whole pipeline as a front, before a sink that costs nothing, and its ways to send.

use super::fronts::{Front, LIMIT};
use crate::common::log_dir;
use forebay::sink::{Opaque, Outcome, ProduceError, RecordView, Report, Sink, SinkState};
use forebay::{Builder, Pipeline, SendError, Topic};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Counts what it is given as delivered, and keeps nothing; takes nothing while it refuses.
struct Discard {
    refusing: Arc<AtomicBool>,
    waiting: Vec<Opaque>,
}

impl Sink for Discard {
    fn produce(
        &mut self,
        _: &str,
        record: &RecordView<'_>,
        opaque: Opaque,
    ) -> Result<(), ProduceError> {
        if self.refusing.load(Ordering::Relaxed) {
            return Err(ProduceError::Busy);
        }
        black_box(record.body);
        self.waiting.push(opaque);
        Ok(())
    }

    fn serve(&mut self, _: u64, reports: &mut Vec<Report>) {
        let delivered = |opaque| Report { opaque, outcome: Outcome::Delivered };
        reports.extend(self.waiting.drain(..).map(delivered));
    }

    fn state(&self) -> SinkState {
        SinkState { connected: true, topics_known: true, ..SinkState::default() }
    }

    fn hurry(&mut self) {}

    fn rebuild(&mut self, _: u64) {
        self.waiting.clear();
    }

    fn close(&mut self) {}
}

/// How a record is sent.
#[derive(Clone, Copy, PartialEq)]
pub enum Form {
    Plain,
    Keyed,
    /// A key and two headers.
    Headers,
    /// Encoded in place.
    With,
    /// With a receipt, which is dropped.
    Tracked,
    /// Into a lane that is full, and stays so.
    Refused,
}

/// The pipeline.
pub struct Whole {
    pipeline: Pipeline,
    topic: Topic,
    refusing: Arc<AtomicBool>,
    form: Form,
    outage: bool,
    journaled_before: AtomicU64,
    _home: tempfile::TempDir,
}

impl Whole {
    fn open(form: Form, outage: bool, lanes: usize, more: impl Fn(Builder) -> Builder) -> Self {
        let (home, dir) = log_dir();
        let refusing = Arc::new(AtomicBool::new(form == Form::Refused));
        let sink = Discard { refusing: refusing.clone(), waiting: Vec::new() };
        let builder = Pipeline::builder().lanes(lanes).sink(sink);
        let builder = match form {
            Form::Refused => builder.at_most_once(),
            _ => builder.wal_dir(dir),
        };
        let pipeline = more(builder).open().expect("it opens");
        let topic = pipeline.topic("bench").expect("a good name");
        let journaled_before = AtomicU64::new(0);
        Whole { pipeline, topic, refusing, form, outage, journaled_before, _home: home }
    }

    pub fn healthy(lanes: usize) -> Self {
        Whole::open(Form::Plain, false, lanes, |builder| builder)
    }

    /// Its records go to the log while it is measured.
    pub fn outage(lanes: usize) -> Self {
        // A short window, so that the log is in use soon after an outage begins.
        let short = |builder: Builder| builder.loss_window(Duration::from_millis(100));
        Whole::open(Form::Plain, true, lanes, short)
    }

    pub fn with_form(form: Form) -> Self {
        // Room for every receipt of half a second.
        let whole = Whole::open(form, false, 1, |builder| builder.receipts_max(1 << 20));
        if form == Form::Refused {
            while whole.topic.send(&[7; 256]) != Err(SendError::Full) {}
        }
        whole
    }
}

impl Front for Whole {
    #[inline]
    fn send(&self, _: usize, value: &[u8]) -> bool {
        let topic = &self.topic;
        let sent = match self.form {
            Form::Plain | Form::Refused => topic.send(value),
            Form::Keyed => topic.record(value).key(b"user-123").send(),
            Form::Headers => {
                let record = topic.record(value).key(b"user-123");
                record.header("trace", b"0123456789").header("v", b"1").send()
            }
            Form::With => topic.send_with(value.len(), |room| {
                room[..value.len()].copy_from_slice(value);
                value.len()
            }),
            Form::Tracked => topic.record(value).send_tracked().map(drop),
        };
        sent.is_ok()
    }

    fn drain(&self) {
        if self.form != Form::Refused {
            self.pipeline.flush(LIMIT).expect("the sink takes everything");
        }
    }

    fn drains_itself(&self) -> bool {
        true
    }

    fn begin(&self) {
        self.journaled_before.store(self.journaled(), Ordering::Relaxed);
        if self.outage {
            self.refusing.store(true, Ordering::Relaxed);
        }
    }

    fn is_begun(&self) -> bool {
        !self.outage || self.journaled() > self.journaled_before.load(Ordering::Relaxed)
    }

    fn end(&self) {
        if self.outage {
            self.refusing.store(false, Ordering::Relaxed);
        }
        self.drain();
    }

    fn journaled(&self) -> u64 {
        self.pipeline.stats().books.spilled
    }
}
