//! Owns the side instance: made when the first request is refused, given up with the main one.
//! A topic stays suspect for [`CALM_NS`] after its last refused request; as long as it is, its
//! records go this way, so that they don't stop the main instance again and again.

use super::{KafkaSink, MS, NO_TOPIC, Phase, RECORD_OVERHEAD_BYTES};
use crate::record::RecordView;
use crate::sink::kafka::errors::{classify, classify_call};
use crate::sink::kafka::instance::{Delivery, Event, Instance, Message, TopicHandle};
use crate::sink::kafka::suspects::{Suspect, Suspects, Verdict};
use crate::sink::kafka::worker::{Command, Role};
use crate::sink::{Opaque, Outcome, ProduceError, Reason, Report, Scope};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How long after its last refused request a topic is suspect.
const CALM_NS: u64 = 30_000 * MS;
/// The pause before an instance that couldn't be made is tried again.
const BUILD_PAUSE_NS: u64 = 1_000 * MS;

#[derive(Default)]
pub(super) struct Side {
    instance: Option<Arc<Instance>>,
    building: bool,
    build_next_ns: u64,
    topics: BTreeMap<usize, Suspicion>,
    by_handle: BTreeMap<usize, usize>,
    /// When a report came last, or the first of what flies was handed over.
    heard_ns: u64,
    flying: u64,
    /// Records taken from a refused request.
    pub resent: u64,
    body: Vec<u8>,
}

struct Suspicion {
    handle: Option<TopicHandle>,
    suspects: Suspects,
}

impl Side {
    #[inline]
    pub fn is_suspect(&self, topic: usize) -> bool {
        !self.topics.is_empty() && self.topics.contains_key(&topic)
    }

    /// Whether anything waits here for its turn.
    pub fn waits(&self) -> bool {
        self.topics.values().any(|t| !t.suspects.is_empty())
    }

    /// The thread that was to make the instance is gone.
    pub fn lost(&mut self) {
        self.building = false;
    }

    pub fn hurry(&self) {
        if let Some(instance) = &self.instance {
            instance.wake_brokers();
        }
    }

    /// Since when it owes a report, if it does.
    pub fn silent_since_ns(&self) -> Option<u64> {
        (self.flying > 0).then_some(self.heard_ns)
    }
}

impl KafkaSink {
    /// A record whose request the main instance reported as refused.
    #[cold]
    pub(super) fn suspect(
        &mut self,
        delivery: &Delivery,
        message: &Message<'_>,
        topic: u32,
        reports: &mut Vec<Report>,
    ) {
        if topic == NO_TOPIC {
            return self.report(delivery, topic, reports);
        }
        let bytes = delivery.bytes + RECORD_OVERHEAD_BYTES;
        let partitions = &mut self.topics[topic as usize].partitions;
        partitions.reported(delivery.partition, bytes, self.now_ns);
        let mut body = std::mem::take(&mut self.side.body);
        let suspect = message.read(&mut body, |record| Suspect::new(delivery.opaque, record));
        self.side.body = body;
        self.side.resent += 1;
        let now_ns = self.now_ns;
        let suspicion = self.side.topics.entry(topic as usize).or_insert_with(|| {
            let (name, reason) = (&self.topics[topic as usize].name, classify(delivery.code).1);
            let why = reason.name;
            tracing::warn!(target: "forebay::kafka", "{name}: a request was refused: {why}; its records are tried in smaller ones");
            Suspicion { handle: None, suspects: Suspects::new(now_ns) }
        });
        suspicion.suspects.failed_ns = now_ns;
        suspicion.suspects.refused(delivery.partition, suspect);
    }

    /// A new record of a suspect topic.
    #[cold]
    pub(super) fn divert(
        &mut self,
        at: usize,
        partition: i32,
        record: &RecordView<'_>,
        bytes: u64,
        opaque: Opaque,
    ) -> Result<(), ProduceError> {
        let Some(suspicion) = self.side.topics.get_mut(&at) else { return Err(ProduceError::Busy) };
        if !suspicion.suspects.has_room() {
            return Err(ProduceError::Busy);
        }
        suspicion.suspects.push(partition, Suspect::new(opaque.0, record));
        let keyless = record.partition < 0 && record.shape.key_len.is_none();
        self.topics[at].partitions.turned(bytes, keyless);
        self.outstanding += 1;
        Ok(())
    }

    pub(super) fn side_built(&mut self, built: Result<Instance, String>) {
        self.side.building = false;
        match built {
            Ok(instance) if !self.side.topics.is_empty() && self.side.instance.is_none() => {
                self.side.instance = Some(Arc::new(instance));
            }
            // Nobody wants it any more.
            Ok(instance) => {
                self.worker.send(Command::Destroy(Arc::new(instance)));
            }
            Err(text) => {
                self.last_error = Some(format!("side instance: {text}"));
                self.side.build_next_ns = self.now_ns + BUILD_PAUSE_NS;
            }
        }
    }

    /// Takes the side instance's reports and hands the next groups over.
    pub(super) fn step_side(&mut self, reports: &mut Vec<Report>) {
        if self.side.topics.is_empty() {
            return;
        }
        if let Some(instance) = self.side.instance.clone() {
            instance.poll(|event| match event {
                Event::Report(delivery, _) => self.side_report(&delivery, reports),
                Event::Error { code, text, .. } => self.hears(code, text),
                Event::Log { level, facility, text } => self.log(level, facility, text),
            });
            if matches!(self.phase, Phase::Live(_)) {
                self.hand_groups(&instance, reports);
            }
        } else if !self.side.building && self.now_ns >= self.side.build_next_ns {
            self.side.building = self.worker.send(Command::Build(Role::Side));
        }
        let now_ns = self.now_ns;
        let calm = |s: &Suspects| s.is_empty() && now_ns > s.failed_ns + CALM_NS;
        let by_handle = &mut self.side.by_handle;
        self.side.topics.retain(|_, t| {
            let stays = !calm(&t.suspects);
            if let Some(handle) = t.handle.as_ref().filter(|_| !stays) {
                by_handle.remove(&handle.id());
            }
            stays
        });
    }

    fn hand_groups(&mut self, instance: &Arc<Instance>, reports: &mut Vec<Report>) {
        for (&at, suspicion) in &mut self.side.topics {
            let topic = &self.topics[at];
            let idle: Vec<i32> = suspicion.suspects.idle().collect();
            for partition in idle {
                if !topic.partitions.is_idle(partition) {
                    continue;
                }
                if suspicion.handle.is_none() {
                    suspicion.handle = instance.topic(&topic.name);
                    if let Some(handle) = &suspicion.handle {
                        self.side.by_handle.insert(handle.id(), at);
                    }
                }
                let Some(handle) = &suspicion.handle else { continue };
                if self.side.flying == 0 {
                    self.side.heard_ns = self.now_ns;
                }
                let mut refused = None;
                suspicion.suspects.hand_over(partition, |suspect| {
                    let view = suspect.view(partition);
                    let names = &mut self.header_name;
                    refused = handle.produce(partition, &view, suspect.opaque, names).err();
                    self.side.flying += u64::from(refused.is_none());
                    refused.is_none()
                });
                let (scope, reason) = match refused.map(classify_call) {
                    Some((scope @ (Scope::Record | Scope::Topic), reason)) => (scope, reason),
                    _ => continue,
                };
                if let Some(suspect) = suspicion.suspects.take_front(partition) {
                    self.outstanding = self.outstanding.saturating_sub(1);
                    let opaque = Opaque(suspect.opaque);
                    let outcome = Outcome::Failed { scope, reason, possibly_persisted: false };
                    reports.push(Report { opaque, outcome });
                }
            }
        }
    }

    fn side_report(&mut self, delivery: &Delivery, reports: &mut Vec<Report>) {
        self.side.flying = self.side.flying.saturating_sub(1);
        self.side.heard_ns = self.now_ns;
        let Some(at) = self.side.by_handle.get(&delivery.topic) else { return };
        let Some(suspicion) = self.side.topics.get_mut(at) else { return };
        let (scope, reason) = classify(delivery.code);
        let refused = delivery.code != 0 && scope == Scope::Batch;
        let suspects = &mut suspicion.suspects;
        let verdict = suspects.reported(delivery.partition, delivery.opaque, refused, self.now_ns);
        let failed = |scope| Outcome::Failed {
            scope,
            reason,
            possibly_persisted: delivery.possibly_persisted,
        };
        let outcome = match verdict {
            Verdict::Unknown | Verdict::Again => return,
            Verdict::Guilty => failed(Scope::Record),
            Verdict::Final if delivery.code == 0 => Outcome::Delivered,
            Verdict::Final => failed(scope),
        };
        self.outstanding = self.outstanding.saturating_sub(1);
        reports.push(Report { opaque: Opaque(delivery.opaque), outcome });
    }

    /// Hands the side instance to the worker, with all that is in it.
    pub(super) fn give_up_side(&mut self) {
        self.side.topics.clear();
        self.side.by_handle.clear();
        self.side.flying = 0;
        if let Some(instance) = self.side.instance.take() {
            self.worker.send(Command::Destroy(instance));
        }
    }

    /// The side instance, silent for too long, is the whole sink's trouble.
    pub(super) fn watch_side(&mut self, limit_ns: u64) -> Option<Reason> {
        let since_ns = self.side.silent_since_ns()?;
        (self.now_ns >= since_ns + limit_ns).then_some(Reason { name: "stalled", code: 0 })
    }
}
