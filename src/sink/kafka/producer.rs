//! Owns [`KafkaSink`]: it puts the instance, the partitions, the topics and the worker together
//! and carries an instance through its life: live, draining, waiting, building, live again.

use super::config::{KafkaOptions, Partitioner};
use super::errors::{classify, classify_call, code};
use super::instance::{Config, Delivery, Event, Instance, partition_of};
use super::partitions::{Choice, Limits};
use super::reload::{Fresh, Reloader};
use super::security::Security;
use super::topics::{Standing, Topic};
use super::worker::{self, Configs, Worker};
use crate::error::OpenError;
use crate::record::{ANY_PARTITION, RecordView};
use crate::sink::{
    Opaque, Outcome, PARTITION_STALLED, ProduceError, Reason, Reload, Report, Scope, Sink,
    SinkState, UNKNOWN_PARTITION,
};
use crate::wake::Waker;
use std::collections::HashMap;
use std::ffi::CStr;
use std::sync::Arc;

mod flow;
mod life;
mod side;
use side::Side;

const MS: u64 = 1_000_000;
/// How long an instance that is being replaced may take to report what it has.
const DRAIN_NS: u64 = 5_000 * MS;
/// The pause before a rebuild; it doubles while rebuilds follow each other closely.
const REBUILD_PAUSE_NS: u64 = 100 * MS;
const REBUILD_PAUSE_MAX_NS: u64 = 30_000 * MS;
/// Rebuilds further apart than this don't count as following each other.
const REBUILD_CALM_NS: u64 = 120_000 * MS;
/// Longest time between two questions for metadata while a topic is not known.
const METADATA_SOON_NS: u64 = 250 * MS;
/// The same while a topic is rejected, a partition silent, or no broker is connected.
const METADATA_TROUBLE_NS: u64 = 1_000 * MS;
/// An unknown partition is rejected only if metadata is no older than this.
const METADATA_FRESH_NS: u64 = 5_000 * MS;
/// How long a partition is silent while others are served before it is stalled: longer than an
/// election or a broker's pause. What it costs: its records stop those behind them for so long.
/// Without a log they are dropped then, so it is the topics' grace time there, which is longer.
const STALLED_NS: u64 = 2_000 * MS;
/// How often `hurry` tries silent partitions.
const HURRY_NS: u64 = 100 * MS;
/// How often partitions are looked over.
const STEP_NS: u64 = 2 * MS;
/// What a record costs in a request beside key and value.
pub(super) const RECORD_OVERHEAD_BYTES: u64 = 32;
/// Requests refused for good, each of which costs the instance an epoch, before it is replaced:
/// librdkafka lets the epoch wrap at 32,767 without a word.
const REFUSED_REQUESTS_MAX: u32 = 10_000;
/// How much the stall timeout may grow while one stall follows another.
const STALL_DOUBLINGS_MAX: u32 = 4;

const NO_TOPIC: u32 = u32::MAX;

enum Phase {
    Live(Arc<Instance>),
    Draining { instance: Arc<Instance>, until_ns: u64 },
    Waiting { until_ns: u64 },
    Building,
    Closed,
}

/// The sink that is Kafka.
pub struct KafkaSink {
    phase: Phase,
    worker: Worker,
    generation: u64,
    topics: Vec<Topic>,
    by_name: HashMap<String, u32>,
    /// From the pipeline's topic number to ours.
    by_id: Vec<u32>,
    /// From the handle in a report to the topic.
    by_handle: HashMap<usize, u32>,
    limits: Limits,
    requests_ahead: u32,
    murmur2: bool,
    pauses: bool,
    grace_ns: u64,
    stall_ns: u64,
    stall_doublings: u32,
    stalled_at_ns: u64,
    metadata_interval_ns: u64,
    metadata_next_ns: u64,
    metadata_asked: bool,
    /// When metadata was answered last.
    metadata_at_ns: u64,
    rebuild_pause_ns: u64,
    rebuilt_at_ns: u64,
    stepped_at_ns: u64,
    hurried_at_ns: u64,
    now_ns: u64,
    /// Where the last record went.
    last_partition: i32,
    outstanding: u64,
    side: Side,
    /// The partition's report that was refused last, and how many such runs there were.
    refused_requests: u32,
    silent: u32,
    /// Some partition rests.
    resting: bool,
    connected: bool,
    fatal: Option<(Reason, String)>,
    last_error: Option<String>,
    security: Security,
    reloader: Arc<Reloader>,
    /// A reloaded producer that waits for the live one's end.
    fresh: Option<Fresh>,
    /// The last reload that was taken over.
    reloads: u64,
    header_name: Vec<u8>,
    pausing: Vec<(Arc<CStr>, i32)>,
    resuming: Vec<(Arc<CStr>, i32)>,
}

impl std::fmt::Debug for KafkaSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaSink").field("state", &self.state()).finish_non_exhaustive()
    }
}

/// Requests of bytes that a partition may have for each request of records. Large records fill a
/// request long before they are many: with one, nothing would be copied while it is under way.
const BYTES_AHEAD: u64 = 2;

/// What bounds a partition, as far as it follows from the configuration.
fn limits(config: &Config, requests_ahead: u32, silent_ns: u64, stalled_ns: u64) -> Limits {
    let batch_records = config.number(c"batch.num.messages", 10_000).max(1);
    let batch_bytes = config.number(c"batch.size", 1_000_000).max(1);
    let ahead = u64::from(requests_ahead);
    Limits {
        records_ahead: u32::try_from(batch_records * ahead).unwrap_or(u32::MAX),
        bytes_ahead: batch_bytes * ahead * BYTES_AHEAD,
        turn_records: u32::try_from(batch_records).unwrap_or(u32::MAX),
        turn_bytes: batch_bytes,
        turn_ns: 10 * MS,
        silent_ns,
        slow_ns: 30 * MS,
        rest_ns: 10 * MS,
        probe_every_ns: 500 * MS,
        probe_ns: 5 * MS,
        stalled_ns,
    }
}

impl KafkaSink {
    /// A sink for these options. It doesn't wait for Kafka: brokers that don't answer, or whose
    /// names don't resolve, show in [`Sink::state`].
    ///
    /// # Errors
    /// When an option is out of range, a property is the pipeline's own, or librdkafka refuses
    /// one.
    pub fn new(options: KafkaOptions, waker: Waker) -> Result<KafkaSink, OpenError> {
        let configs = Arc::new(Configs::new(&options)?);
        let instance = Instance::new(&configs.main, waker.clone()).map_err(OpenError::Kafka)?;
        let silent_ns = options.silent_ms.max(1) * MS;
        let stalled_ns = (options.topic_grace_ms * MS).max(STALLED_NS);
        Ok(KafkaSink {
            phase: Phase::Live(Arc::new(instance)),
            limits: limits(&configs.main, options.requests_ahead, silent_ns, stalled_ns),
            requests_ahead: options.requests_ahead,
            worker: Worker::new(configs, waker.clone()),
            generation: 0,
            topics: Vec::new(),
            by_name: HashMap::new(),
            by_id: Vec::new(),
            by_handle: HashMap::new(),
            murmur2: options.partitioner == Partitioner::Murmur2,
            pauses: options.silent_ms > 0,
            grace_ns: options.topic_grace_ms * MS,
            stall_ns: options.stall_timeout_ms * MS,
            stall_doublings: 0,
            stalled_at_ns: 0,
            metadata_interval_ns: options.metadata_interval_ms.max(1) * MS,
            metadata_next_ns: 0,
            metadata_asked: false,
            metadata_at_ns: 0,
            rebuild_pause_ns: REBUILD_PAUSE_NS,
            rebuilt_at_ns: 0,
            stepped_at_ns: 0,
            hurried_at_ns: 0,
            now_ns: 0,
            last_partition: ANY_PARTITION,
            outstanding: 0,
            side: Side::default(),
            refused_requests: 0,
            silent: 0,
            resting: false,
            connected: false,
            fatal: None,
            last_error: None,
            security: Security::default(),
            fresh: None,
            reloads: 0,
            header_name: Vec::new(),
            pausing: Vec::new(),
            resuming: Vec::new(),
            reloader: Arc::new(Reloader::new(options, waker)),
        })
    }

    #[cfg(test)]
    pub(super) fn raise_fatal(&self) {
        if let Some(instance) = self.instance() {
            instance.raise_fatal();
        }
    }

    #[cfg(test)]
    pub(super) fn pause_for_test(&self, partitions: &[(Arc<CStr>, i32)], pause: bool) {
        if let Some(instance) = self.instance() {
            instance.pause_resume(partitions, pause);
        }
    }

    fn instance(&self) -> Option<&Arc<Instance>> {
        match &self.phase {
            Phase::Live(instance) | Phase::Draining { instance, .. } => Some(instance),
            _ => None,
        }
    }

    /// Our number for a topic, new if its name wasn't known; `None` for a name with a NUL byte.
    fn intern(&mut self, name: &str) -> Option<u32> {
        if let Some(at) = self.by_name.get(name) {
            return Some(*at);
        }
        let at = self.topics.len() as u32;
        self.topics.push(Topic::new(name)?);
        self.by_name.insert(name.to_owned(), at);
        self.open_topic(at as usize);
        Some(at)
    }

    /// Opens a topic's handle in the live instance, and asks for metadata soon.
    fn open_topic(&mut self, at: usize) {
        let Phase::Live(instance) = &self.phase else { return };
        let topic = &mut self.topics[at];
        if topic.handle.is_none() {
            topic.handle = instance.topic(&topic.name);
            if let Some(handle) = &topic.handle {
                self.by_handle.insert(handle.id(), at as u32);
            }
            self.metadata_next_ns = self.now_ns;
        }
    }

    /// Our number for a record's topic.
    #[inline]
    fn topic_of(&mut self, name: &str, id: u32) -> Option<usize> {
        match self.by_id.get(id as usize) {
            Some(at) if *at != NO_TOPIC => Some(*at as usize),
            _ => {
                let at = self.intern(name)?;
                if self.by_id.len() <= id as usize {
                    self.by_id.resize(id as usize + 1, NO_TOPIC);
                }
                self.by_id[id as usize] = at;
                Some(at as usize)
            }
        }
    }

    /// A topic whose partitions are known.
    fn known(&self, name: &str) -> Option<&Topic> {
        let at = *self.by_name.get(name)?;
        self.topics.get(at as usize).filter(|t| t.standing == Standing::Known)
    }

    /// Where a record may go now.
    #[inline]
    fn choose(&mut self, at: usize, record: &RecordView<'_>, bytes: u64) -> Choice {
        let partitions = &mut self.topics[at].partitions;
        if record.partition >= 0 {
            return partitions.fixed(record.partition, bytes, &self.limits);
        }
        match record.key() {
            Some(key) => {
                let partition = partition_of(key, partitions.count(), self.murmur2);
                partitions.fixed(partition, bytes, &self.limits)
            }
            None => partitions.keyless(bytes, self.now_ns, &self.limits),
        }
    }

    /// What a produce call's error means for the record.
    #[cold]
    fn refused(&mut self, at: usize, error: i32) -> ProduceError {
        let (scope, reason) = classify_call(error);
        match scope {
            Scope::Record => ProduceError::Rejected { scope, reason },
            Scope::Topic => {
                // Metadata has the word: the topic may have grown, or be back already.
                self.topics[at].missing(error, self.now_ns);
                self.metadata_soon(METADATA_SOON_NS);
                match self.topics[at].rejects(self.now_ns, self.grace_ns) {
                    Some(reason) => ProduceError::Rejected { scope: Scope::Topic, reason },
                    None => ProduceError::Busy,
                }
            }
            Scope::Instance => {
                self.set_fatal(reason);
                ProduceError::Fatal(reason)
            }
            Scope::Batch | Scope::Transient => ProduceError::Busy,
        }
    }

    #[cold]
    fn unknown_partition(&mut self, at: usize, partition: i32) -> ProduceError {
        let fresh = self.topics[at].checked_ns + METADATA_FRESH_NS > self.now_ns;
        if !fresh {
            // The topic may have grown since.
            self.metadata_soon(METADATA_SOON_NS);
            return ProduceError::Busy;
        }
        let reason = Reason { name: UNKNOWN_PARTITION, code: code::UNKNOWN_PARTITION };
        ProduceError::Stalled { partition, reason }
    }

    fn metadata_soon(&mut self, within_ns: u64) {
        self.metadata_next_ns = self.metadata_next_ns.min(self.now_ns + within_ns);
    }

    fn set_fatal(&mut self, reason: Reason) {
        if self.fatal.is_none() {
            let told = self.instance().and_then(|i| i.fatal()).map(|(_, text)| text);
            let text = told.unwrap_or_else(|| super::describe(reason.code));
            let text = format!("{}: {text}", reason.name);
            tracing::warn!(target: "forebay::kafka", "the producer needs a rebuild: {text}");
            self.last_error = Some(text.clone());
            self.fatal = Some((reason, text));
        }
    }

    fn poll(&mut self, reports: &mut Vec<Report>) {
        let Some(instance) = self.instance().cloned() else { return };
        let mut last = (0usize, NO_TOPIC);
        let mut refused = None;
        instance.poll(|event| match event {
            Event::Report(delivery, message) => {
                if delivery.topic != last.0 {
                    let at = self.by_handle.get(&delivery.topic).copied();
                    last = (delivery.topic, at.unwrap_or(NO_TOPIC));
                }
                let failed = delivery.code != 0 && classify(delivery.code).0 == Scope::Batch;
                // One event holds one request's reports, and a request is of one partition.
                let request = failed.then_some((delivery.topic, delivery.partition));
                self.refused_requests += u32::from(failed && request != refused);
                refused = request;
                if failed {
                    self.suspect(&delivery, &message, last.1, reports);
                } else {
                    self.report(&delivery, last.1, reports);
                }
            }
            Event::Error { code, fatal, text } => self.error(code, fatal, text),
            Event::Log { level, facility, text } => self.log(level, facility, text),
        });
        if self.refused_requests >= REFUSED_REQUESTS_MAX && self.fatal.is_none() {
            self.set_fatal(Reason { name: "refused_requests", code: 0 });
        }
    }

    fn report(&mut self, delivery: &Delivery, topic: u32, reports: &mut Vec<Report>) {
        self.outstanding = self.outstanding.saturating_sub(1);
        if let Some(topic) = self.topics.get_mut(topic as usize) {
            let bytes = delivery.bytes + RECORD_OVERHEAD_BYTES;
            topic.partitions.reported(delivery.partition, bytes, self.now_ns);
        }
        let outcome = if delivery.code == 0 {
            if !self.connected || self.security.is_refused() {
                self.answered();
            }
            Outcome::Delivered
        } else {
            let (scope, reason) = classify(delivery.code);
            match scope {
                Scope::Instance => self.set_fatal(reason),
                Scope::Topic => self.metadata_soon(METADATA_SOON_NS),
                _ => {}
            }
            let possibly_persisted = delivery.possibly_persisted;
            Outcome::Failed { scope, reason, possibly_persisted }
        };
        reports.push(Report { opaque: Opaque(delivery.opaque), outcome });
    }

    fn error(&mut self, error: i32, fatal: bool, text: &str) {
        if fatal || error == code::FATAL {
            self.set_fatal(Reason { name: "producer_fatal", code: error });
            return;
        }
        if error == code::ALL_BROKERS_DOWN {
            self.connected = false;
        }
        self.hears(error, text);
        // After a disconnect the messages to retry lie in the paused queues.
        self.probe();
        self.metadata_soon(METADATA_TROUBLE_NS);
    }

    /// What either instance says of its connections.
    fn hears(&mut self, error: i32, text: &str) {
        if let Some((refusal, told)) = self.security.hears(error, text, self.now_ns) {
            if let Some(told) = told {
                let state = refusal.state();
                tracing::error!(target: "forebay::kafka", "{state}: {told}; records are kept");
                self.last_error = Some(format!("{state}: {told}"));
            }
        } else {
            let name = classify(error).1.name;
            tracing::warn!(target: "forebay::kafka", "{name}: {text}");
            // It follows the errors that say why.
            if error != code::ALL_BROKERS_DOWN || self.last_error.is_none() {
                self.last_error = Some(format!("{name}: {text}"));
            }
        }
    }

    fn log(&mut self, level: i32, facility: &str, text: &str) {
        if !self.security.takes_log(level, facility, text) {
            log(level, facility, text);
        }
    }
}

impl Sink for KafkaSink {
    #[inline]
    fn produce(
        &mut self,
        topic: &str,
        record: &RecordView<'_>,
        opaque: Opaque,
    ) -> Result<(), ProduceError> {
        if !matches!(self.phase, Phase::Live(_)) {
            return Err(ProduceError::Busy);
        }
        if let Some((reason, _)) = &self.fatal {
            return Err(ProduceError::Fatal(*reason));
        }
        let Some(at) = self.topic_of(topic, record.topic.0) else {
            let reason = Reason { name: "topic_invalid", code: code::TOPIC_EXCEPTION };
            return Err(ProduceError::Rejected { scope: Scope::Topic, reason });
        };
        if self.topics[at].standing != Standing::Known {
            return Err(match self.topics[at].rejects(self.now_ns, self.grace_ns) {
                Some(reason) => ProduceError::Rejected { scope: Scope::Topic, reason },
                None => ProduceError::Busy,
            });
        }
        let key = record.shape.key_len.unwrap_or(0);
        let bytes = u64::from(key) + u64::from(record.shape.value_len.unwrap_or(0));
        let bytes = bytes + RECORD_OVERHEAD_BYTES;
        let partition = match self.choose(at, record, bytes) {
            Choice::Partition(partition) => partition,
            Choice::Busy => return Err(ProduceError::Busy),
            Choice::Stalled(partition) => {
                let reason = Reason { name: PARTITION_STALLED, code: 0 };
                return Err(ProduceError::Stalled { partition, reason });
            }
            Choice::Unknown => return Err(self.unknown_partition(at, record.partition)),
        };
        self.last_partition = partition;
        if self.side.is_suspect(at) {
            return self.divert(at, partition, record, bytes, opaque);
        }
        let Some(handle) = &self.topics[at].handle else {
            self.open_topic(at);
            return Err(ProduceError::Busy);
        };
        if let Err(error) = handle.produce(partition, record, opaque.0, &mut self.header_name) {
            return Err(self.refused(at, error));
        }
        let keyless = record.partition < 0 && record.shape.key_len.is_none();
        self.topics[at].partitions.handed_over(partition, bytes, keyless, self.now_ns);
        self.outstanding += 1;
        Ok(())
    }

    fn last_partition(&self) -> i32 {
        self.last_partition
    }

    fn partition_of(&self, topic: &str, record: &RecordView<'_>) -> Option<i32> {
        if record.partition >= 0 {
            return Some(record.partition);
        }
        let partitions = &self.known(topic)?.partitions;
        Some(partition_of(record.key()?, partitions.count(), self.murmur2))
    }

    fn is_stalled(&self, topic: &str, partition: i32) -> bool {
        self.known(topic).is_some_and(|t| t.partitions.is_stalled(partition))
    }

    fn serve(&mut self, now_ns: u64, reports: &mut Vec<Report>) {
        if matches!(self.phase, Phase::Closed) {
            return;
        }
        self.now_ns = now_ns;
        self.take_answers();
        self.poll(reports);
        self.step_side(reports);
        self.step_partitions();
        self.watch();
        self.ask_metadata();
        self.advance();
        self.take_reload();
    }

    fn next_deadline_ns(&mut self, now_ns: u64) -> Option<u64> {
        Some(match self.phase {
            Phase::Closed => return None,
            // The worker wakes us.
            Phase::Building => 1_000 * MS,
            Phase::Waiting { until_ns } => until_ns.saturating_sub(now_ns).max(MS),
            Phase::Draining { .. } => 20 * MS,
            Phase::Live(_) if self.side.waits() => 5 * MS,
            Phase::Live(_) if self.silent > 0 => self.limits.probe_ns,
            Phase::Live(_) if self.outstanding > 0 => (self.limits.silent_ns / 2).max(MS),
            Phase::Live(_) => self.metadata_next_ns.saturating_sub(now_ns).max(MS),
        })
    }

    fn state(&self) -> SinkState {
        SinkState {
            connected: self.connected,
            topics_known: self.topics.iter().all(|t| t.standing == Standing::Known),
            fatal: self.fatal.as_ref().map(|(_, text)| text.clone()),
            rebuilding: !matches!(self.phase, Phase::Live(_) | Phase::Closed),
            paused_partitions: self.silent,
            last_error: self.last_error.clone(),
            auth_failed: self.security.login().cloned(),
            tls_failed: self.security.tls().cloned(),
            reloads: self.reloads,
            outstanding_records: self.outstanding,
            resent_records: self.side.resent,
        }
    }

    fn announce(&mut self, topic: &str) {
        self.intern(topic);
    }

    fn reloader(&self) -> Option<Arc<dyn Reload>> {
        Some(self.reloader.clone())
    }

    fn hurry(&mut self) {
        let Some(instance) = self.instance() else { return };
        if self.now_ns < self.hurried_at_ns + HURRY_NS {
            return;
        }
        instance.wake_brokers();
        self.side.hurry();
        self.hurried_at_ns = self.now_ns;
        self.probe();
    }

    fn rebuild(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        if !matches!(self.phase, Phase::Live(_)) {
            return;
        }
        // What is to be retried lies in the paused queues and must be able to end.
        self.probe();
        if let Phase::Live(instance) = std::mem::replace(&mut self.phase, Phase::Closed) {
            self.phase = Phase::Draining { instance, until_ns: now_ns + DRAIN_NS };
        }
        if now_ns > self.rebuilt_at_ns + REBUILD_CALM_NS {
            self.rebuild_pause_ns = REBUILD_PAUSE_NS;
        }
        self.fatal = None;
    }

    fn close(&mut self) {
        self.reloader.close();
        if let Some(fresh) = self.fresh.take() {
            worker::destroy(Arc::new(fresh.instance));
        }
        self.give_up_instance();
        self.phase = Phase::Closed;
        self.connected = false;
        self.worker.end();
    }
}

impl Drop for KafkaSink {
    fn drop(&mut self) {
        self.close();
    }
}

/// A line of librdkafka's log, by its syslog level.
fn log(level: i32, facility: &str, text: &str) {
    match level {
        ..=3 => tracing::error!(target: "forebay::kafka", "{facility}: {text}"),
        4 => tracing::warn!(target: "forebay::kafka", "{facility}: {text}"),
        5 | 6 => tracing::info!(target: "forebay::kafka", "{facility}: {text}"),
        _ => tracing::debug!(target: "forebay::kafka", "{facility}: {text}"),
    }
}
