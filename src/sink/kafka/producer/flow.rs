//! Owns the flow of a live instance: pausing what is silent, and the watch over silence.

use super::{KafkaSink, MS, Phase, STALL_DOUBLINGS_MAX, STEP_NS};
use crate::sink::Reason;
use crate::sink::kafka::partitions::Step;

impl KafkaSink {
    /// Resumes whatever is paused, to be tried.
    pub(super) fn probe(&mut self) {
        for topic in &mut self.topics {
            let name = &topic.c_name;
            topic.partitions.probe_now(self.now_ns, |p| self.resuming.push((name.clone(), p)));
        }
        self.carry_out();
    }

    /// Pauses what is silent, and resumes what speaks again.
    pub(super) fn step_partitions(&mut self) {
        if (self.outstanding == 0 && self.silent == 0 && !self.resting)
            || !self.pauses
            || self.now_ns < self.stepped_at_ns + STEP_NS
        {
            return;
        }
        self.stepped_at_ns = self.now_ns;
        let silent_before = std::mem::take(&mut self.silent);
        self.resting = false;
        for topic in &mut self.topics {
            let name = &topic.c_name;
            topic.partitions.steps(self.now_ns, &self.limits, |partition, step| {
                let list = match step {
                    Step::Pause => &mut self.pausing,
                    Step::Resume => &mut self.resuming,
                };
                list.push((name.clone(), partition));
            });
            self.silent += topic.partitions.silent();
            self.resting |= topic.partitions.are_resting();
        }
        self.carry_out();
        if self.silent > 0 && self.connected {
            self.judge_stalls();
        }
        if self.silent > 0 && silent_before == 0 {
            // The answer, or none, tells a frozen cluster from a slow partition.
            self.metadata_soon(0);
        }
    }

    /// A partition that owes reports while others don't is stalled.
    fn judge_stalls(&mut self) {
        let (now_ns, answered_ns) = (self.now_ns, self.metadata_at_ns);
        let served = self.topics.iter().map(|t| t.partitions.last_served_ns(now_ns, &self.limits));
        let served_ns = served.max().unwrap_or(0);
        for topic in &mut self.topics {
            topic.partitions.judge(now_ns, answered_ns, served_ns, &self.limits);
        }
    }

    /// Both calls wait for librdkafka's main thread, never for Kafka. They come from this
    /// thread only: of two that overtake each other librdkafka drops one.
    pub(super) fn carry_out(&mut self) {
        if let Phase::Live(instance) | Phase::Draining { instance, .. } = &self.phase {
            if !self.pausing.is_empty() {
                instance.pause_resume(&self.pausing, true);
            }
            if !self.resuming.is_empty() {
                instance.pause_resume(&self.resuming, false);
            }
        }
        self.pausing.clear();
        self.resuming.clear();
    }

    /// Asks for a rebuild when a partition has been silent for too long. It judges nothing
    /// else and discards nothing.
    pub(super) fn watch(&mut self) {
        if self.outstanding == 0 || self.fatal.is_some() || !matches!(self.phase, Phase::Live(_)) {
            return;
        }
        let limit_ns = self.stall_ns << self.stall_doublings;
        if self.stall_doublings > 0 && self.now_ns > self.stalled_at_ns + 4 * limit_ns {
            self.stall_doublings = 0;
        }
        if let Some(reason) = self.watch_side(limit_ns) {
            return self.set_fatal(reason);
        }
        let silences = self.topics.iter().filter_map(|t| {
            t.partitions.longest_silence().map(|(partition, since)| (since, &t.name, partition))
        });
        let Some((since_ns, topic, partition)) = silences.min() else { return };
        if self.now_ns < since_ns + limit_ns {
            return;
        }
        let seconds = (self.now_ns - since_ns) / (1_000 * MS);
        let text = format!("stalled: no report from {topic} [{partition}] for {seconds} s");
        tracing::warn!(target: "forebay::kafka", "the producer needs a rebuild: {text}");
        self.stalled_at_ns = self.now_ns;
        self.stall_doublings = (self.stall_doublings + 1).min(STALL_DOUBLINGS_MAX);
        self.last_error = Some(text.clone());
        self.fatal = Some((Reason { name: "stalled", code: 0 }, text));
    }
}
