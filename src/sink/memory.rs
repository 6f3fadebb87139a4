//! Owns the sink in memory: for users' tests and for our own.

use super::{Opaque, Outcome, ProduceError, Reason, Report, Scope, Sink, SinkState};
use crate::record::RecordView;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;

/// One record as [`MemorySink`] got it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemoryRecord {
    /// The topic's name.
    pub topic: String,
    /// The partition that the record asked for, or -1 for none.
    pub partition: i32,
    /// CreateTime: milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
    /// The key; null differs from empty.
    pub key: Option<Vec<u8>>,
    /// The value; null (a tombstone) differs from empty.
    pub value: Option<Vec<u8>>,
    /// The headers, in the order in which they were added.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

/// A sink that keeps every record in memory and reports it delivered: for tests of programs
/// that use Forebay, without Kafka.
///
/// It starts healthy. [`MemorySink::handle`] gives a handle that stays usable after the sink
/// has gone into a pipeline: it shows the records and injects trouble.
///
/// ```
/// # #[cfg(feature = "internals")] {
/// use forebay::sink::MemorySink;
/// let sink = MemorySink::new();
/// let handle = sink.handle();
/// // ... Pipeline::builder().sink(sink) ...
/// assert!(handle.records().is_empty());
/// # }
/// ```
#[derive(Debug, Default)]
pub struct MemorySink {
    shared: Arc<Mutex<Shared>>,
    closed: bool,
}

/// Looks into a [`MemorySink`] and steers it; cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct MemoryHandle {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    delivered: Vec<MemoryRecord>,
    waiting: VecDeque<(Opaque, MemoryRecord)>,
    reports: VecDeque<Report>,
    reports_held: bool,
    refusing: bool,
    failures: VecDeque<Failure>,
    fatal: Option<String>,
    rebuilds: u64,
}

#[derive(Debug)]
struct Failure {
    scope: Scope,
    name: &'static str,
    left: u64,
}

impl MemorySink {
    /// A healthy sink without records.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A handle to this sink.
    #[must_use]
    pub fn handle(&self) -> MemoryHandle {
        MemoryHandle { shared: self.shared.clone() }
    }
}

impl MemoryHandle {
    /// The records delivered so far, in the order of delivery.
    #[must_use]
    pub fn records(&self) -> Vec<MemoryRecord> {
        self.shared.lock().delivered.clone()
    }

    /// How many records were delivered so far.
    #[must_use]
    pub fn delivered(&self) -> usize {
        self.shared.lock().delivered.len()
    }

    /// Takes the records delivered so far out of the sink.
    #[must_use]
    pub fn take(&self) -> Vec<MemoryRecord> {
        std::mem::take(&mut self.shared.lock().delivered)
    }

    /// Begins an outage as a frozen broker makes it: records are taken, nothing is delivered or
    /// reported until [`MemoryHandle::resume`].
    pub fn hold_reports(&self) {
        self.shared.lock().reports_held = true;
    }

    /// Begins an outage in which no record is taken either, until [`MemoryHandle::resume`].
    pub fn refuse(&self) {
        self.shared.lock().refusing = true;
    }

    /// Ends every outage; what was held is delivered at the sink's next look, in order.
    pub fn resume(&self) {
        let mut shared = self.shared.lock();
        shared.reports_held = false;
        shared.refusing = false;
    }

    /// The next `count` records that would be delivered fail instead, with an error of this
    /// scope and name. Calls add up. An error of scope [`Scope::Instance`] also asks for a
    /// rebuild.
    pub fn fail_next(&self, count: u64, scope: Scope, name: &'static str) {
        if count > 0 {
            self.shared.lock().failures.push_back(Failure { scope, name, left: count });
        }
    }

    /// The sink says that it needs a rebuild, and takes nothing until it gets one.
    pub fn fail_instance(&self, why: &str) {
        self.shared.lock().fatal = Some(why.to_owned());
    }

    /// How often the sink was rebuilt.
    #[must_use]
    pub fn rebuilds(&self) -> u64 {
        self.shared.lock().rebuilds
    }
}

const FATAL: Reason = Reason { name: "injected", code: 0 };

impl Shared {
    /// Ends the first waiting record: delivered, or failed as was asked for.
    fn settle(&mut self, opaque: Opaque, record: MemoryRecord) {
        let outcome = match self.failures.front_mut() {
            None => {
                self.delivered.push(record);
                Outcome::Delivered
            }
            Some(failure) => {
                let (scope, name) = (failure.scope, failure.name);
                failure.left -= 1;
                if failure.left == 0 {
                    self.failures.pop_front();
                }
                if scope == Scope::Instance {
                    self.fatal = Some(name.to_owned());
                }
                let reason = Reason { name, code: 0 };
                Outcome::Failed { scope, reason, possibly_persisted: false }
            }
        };
        self.reports.push_back(Report { opaque, outcome });
    }
}

impl Sink for MemorySink {
    fn produce(
        &mut self,
        topic: &str,
        record: &RecordView<'_>,
        opaque: Opaque,
    ) -> Result<(), ProduceError> {
        let mut shared = self.shared.lock();
        if shared.fatal.is_some() {
            return Err(ProduceError::Fatal(FATAL));
        }
        if self.closed || shared.refusing {
            return Err(ProduceError::Busy);
        }
        let record = MemoryRecord {
            topic: topic.to_owned(),
            partition: record.partition,
            timestamp_ms: record.timestamp_ms,
            key: record.key().map(<[u8]>::to_vec),
            value: record.value().map(<[u8]>::to_vec),
            headers: record
                .headers()
                .map(|h| (h.name.to_owned(), h.value.map(<[u8]>::to_vec)))
                .collect(),
        };
        shared.waiting.push_back((opaque, record));
        Ok(())
    }

    fn serve(&mut self, _now_ns: u64, reports: &mut Vec<Report>) {
        if self.closed {
            return;
        }
        let mut shared = self.shared.lock();
        if shared.reports_held {
            return;
        }
        while let Some((opaque, record)) = shared.waiting.pop_front() {
            shared.settle(opaque, record);
        }
        reports.extend(shared.reports.drain(..));
    }

    fn state(&self) -> SinkState {
        let shared = self.shared.lock();
        SinkState {
            connected: !self.closed && !shared.reports_held && !shared.refusing,
            topics_known: true,
            fatal: shared.fatal.clone(),
            outstanding_records: (shared.waiting.len() + shared.reports.len()) as u64,
            ..SinkState::default()
        }
    }

    fn hurry(&mut self) {}

    fn rebuild(&mut self, _now_ns: u64) {
        let mut shared = self.shared.lock();
        shared.waiting.clear();
        shared.reports.clear();
        shared.fatal = None;
        shared.rebuilds += 1;
    }

    fn close(&mut self) {
        self.closed = true;
        let mut shared = self.shared.lock();
        shared.waiting.clear();
        shared.reports.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Header, Shape, TopicId};

    fn body() -> (Vec<u8>, Shape) {
        let header = Header { name: "h", value: None };
        let mut body = vec![0; header.encoded_len()];
        let headers_len = header.encode(&mut body) as u32;
        body.extend_from_slice(b"keyvalue");
        (body, Shape { headers_len, key_len: Some(3), value_len: Some(5) })
    }

    fn produce(sink: &mut MemorySink, opaque: u64) -> Result<(), ProduceError> {
        let (body, shape) = body();
        let view =
            RecordView { topic: TopicId(0), partition: 2, timestamp_ms: 7, shape, body: &body };
        sink.produce("t", &view, Opaque(opaque))
    }

    fn serve(sink: &mut MemorySink) -> Vec<Report> {
        let mut reports = Vec::new();
        sink.serve(0, &mut reports);
        reports
    }

    #[test]
    fn everything_of_a_record_is_kept() {
        let mut sink = MemorySink::new();
        produce(&mut sink, 1).unwrap();
        assert_eq!(serve(&mut sink), [Report { opaque: Opaque(1), outcome: Outcome::Delivered }]);
        let records = sink.handle().take();
        assert_eq!(
            records,
            [MemoryRecord {
                topic: "t".into(),
                partition: 2,
                timestamp_ms: 7,
                key: Some(b"key".to_vec()),
                value: Some(b"value".to_vec()),
                headers: vec![("h".into(), None)],
            }]
        );
        assert_eq!(sink.handle().delivered(), 0);
    }

    #[test]
    fn an_outage_holds_and_a_resume_lets_go_in_order() {
        let mut sink = MemorySink::new();
        let handle = sink.handle();
        handle.hold_reports();
        produce(&mut sink, 1).unwrap();
        produce(&mut sink, 2).unwrap();
        assert_eq!(serve(&mut sink), []);
        assert_eq!(sink.state().outstanding_records, 2);
        handle.refuse();
        assert_eq!(produce(&mut sink, 3), Err(ProduceError::Busy));
        handle.resume();
        let order: Vec<u64> = serve(&mut sink).iter().map(|r| r.opaque.0).collect();
        assert_eq!(order, [1, 2]);
    }

    #[test]
    fn failures_are_injected_and_counted_down() {
        let mut sink = MemorySink::new();
        sink.handle().fail_next(1, Scope::Record, "bad");
        produce(&mut sink, 1).unwrap();
        produce(&mut sink, 2).unwrap();
        let reports = serve(&mut sink);
        assert!(matches!(reports[0].outcome, Outcome::Failed { scope: Scope::Record, .. }));
        assert_eq!(reports[1].outcome, Outcome::Delivered);
    }

    #[test]
    fn a_rebuild_forgets_what_was_unreported() {
        let mut sink = MemorySink::new();
        let handle = sink.handle();
        produce(&mut sink, 1).unwrap();
        handle.fail_instance("gone");
        assert!(matches!(produce(&mut sink, 2), Err(ProduceError::Fatal(_))));
        assert_eq!(sink.state().fatal.as_deref(), Some("gone"));
        sink.rebuild(0);
        assert_eq!(serve(&mut sink), []);
        assert_eq!(handle.rebuilds(), 1);
        produce(&mut sink, 3).unwrap();
        assert_eq!(serve(&mut sink).len(), 1);
    }
}
