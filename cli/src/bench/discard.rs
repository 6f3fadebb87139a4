//! Owns a sink that counts everything as delivered and keeps nothing, so that what is measured
//! is the way to the sink; while it is told to refuse, it takes nothing, as Kafka in an outage.

use forebay::sink::{Opaque, Outcome, ProduceError, RecordView, Report, Sink, SinkState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The switch of a [`Discard`].
#[derive(Clone, Default)]
pub struct Refusing(Arc<AtomicBool>);

impl Refusing {
    /// From now on nothing is taken, or everything again.
    pub fn set(&self, refusing: bool) {
        self.0.store(refusing, Ordering::Relaxed);
    }
}

/// The sink.
pub struct Discard {
    refusing: Refusing,
    waiting: Vec<Opaque>,
}

impl Discard {
    /// A sink that listens to this switch.
    pub fn new(refusing: &Refusing) -> Discard {
        Discard { refusing: refusing.clone(), waiting: Vec::new() }
    }
}

impl Sink for Discard {
    fn produce(
        &mut self,
        _: &str,
        record: &RecordView<'_>,
        opaque: Opaque,
    ) -> Result<(), ProduceError> {
        if self.refusing.0.load(Ordering::Relaxed) {
            return Err(ProduceError::Busy);
        }
        std::hint::black_box(record.body);
        self.waiting.push(opaque);
        Ok(())
    }

    fn serve(&mut self, _: u64, reports: &mut Vec<Report>) {
        let delivered = |opaque| Report { opaque, outcome: Outcome::Delivered };
        reports.extend(self.waiting.drain(..).map(delivered));
    }

    fn state(&self) -> SinkState {
        SinkState {
            connected: true,
            topics_known: true,
            outstanding_records: self.waiting.len() as u64,
            ..SinkState::default()
        }
    }

    fn hurry(&mut self) {}

    fn rebuild(&mut self, _: u64) {
        self.waiting.clear();
    }

    fn close(&mut self) {
        self.waiting.clear();
    }
}
