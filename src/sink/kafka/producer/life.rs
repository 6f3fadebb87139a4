//! Owns the life of instances: metadata, and from draining to a new one.

use super::{
    KafkaSink, METADATA_SOON_NS, METADATA_TROUBLE_NS, Phase, REBUILD_PAUSE_MAX_NS,
    REBUILD_PAUSE_NS, limits,
};
use crate::sink::Reason;
use crate::sink::kafka::describe;
use crate::sink::kafka::errors::classify;
use crate::sink::kafka::instance::{Instance, TopicMetadata};
use crate::sink::kafka::reload::Fresh;
use crate::sink::kafka::topics::{Standing, Topic};
use crate::sink::kafka::worker::{self, Answer, Command, Role, Worker};
use std::sync::Arc;

impl KafkaSink {
    pub(super) fn ask_metadata(&mut self) {
        let Phase::Live(instance) = &self.phase else { return };
        if self.metadata_asked || self.now_ns < self.metadata_next_ns {
            return;
        }
        let instance = instance.clone();
        let generation = self.generation;
        self.metadata_asked = self.worker.send(Command::Metadata { instance, generation });
        // If no thread could be had it is tried again later; an answer sets its own time.
        self.metadata_next_ns = self.now_ns + METADATA_TROUBLE_NS;
    }

    pub(super) fn learn(&mut self, topics: Result<Vec<TopicMetadata>, i32>) {
        match topics {
            Ok(topics) => {
                self.answered();
                self.metadata_at_ns = self.now_ns;
                for metadata in &topics {
                    if let Some(at) = self.by_name.get(&metadata.name) {
                        self.topics[*at as usize].learn(metadata, self.now_ns);
                    }
                }
            }
            Err(error) => {
                // Who leads what is not known any more.
                self.topics.iter_mut().for_each(|t| t.partitions.set_leaderless(&[]));
                if self.connected || self.last_error.is_none() {
                    let name = classify(error).1.name;
                    let text = format!("{name}: metadata: {}", describe(error));
                    self.last_error = Some(text);
                }
                self.connected = false;
            }
        }
        let now_ns = self.now_ns;
        self.judge_shrunk();
        let waits = self.topics.iter().any(|t| match t.standing {
            Standing::Asked => true,
            Standing::Known => t.partitions.shrunk(now_ns).is_some(),
            Standing::Missing { .. } => t.rejects(now_ns, self.grace_ns).is_none(),
        });
        let rejects = self.topics.iter().any(|t| matches!(t.standing, Standing::Missing { .. }));
        let interval_ns = if waits {
            METADATA_SOON_NS
        } else if rejects || !self.connected || self.silent > 0 {
            METADATA_TROUBLE_NS
        } else {
            self.metadata_interval_ns
        };
        self.metadata_next_ns = now_ns + interval_ns;
    }

    /// Asks for a rebuild when what is in flight to partitions that are gone keeps the new count
    /// from being used: nothing else would end that but the watch.
    fn judge_shrunk(&mut self) {
        let gone = |t: &&Topic| t.partitions.shrunk(self.now_ns) == Some(true);
        let Some(topic) = self.topics.iter().find(gone) else { return };
        if self.fatal.is_some() || !matches!(self.phase, Phase::Live(_)) {
            return;
        }
        let text = format!("partitions_gone: {} has fewer partitions than before", topic.name);
        tracing::warn!(target: "forebay::kafka", "the producer needs a rebuild: {text}");
        self.last_error = Some(text.clone());
        self.fatal = Some((Reason { name: "partitions_gone", code: 0 }, text));
    }

    /// Records that the instance will never report.
    fn lost(&self) -> u64 {
        self.topics.iter().map(|t| t.partitions.lost()).sum()
    }

    pub(super) fn take_answers(&mut self) {
        loop {
            match self.worker.answer() {
                Ok(None) => return,
                Ok(Some(Answer::Metadata { generation, topics })) => {
                    self.metadata_asked = false;
                    if generation == self.generation {
                        self.learn(topics);
                    }
                }
                Ok(Some(Answer::Built(Role::Main, built))) => self.built(built),
                Ok(Some(Answer::Built(Role::Side, built))) => self.side_built(built),
                Err(_) => {
                    // Ask again for what was lost.
                    self.metadata_asked = false;
                    self.side.lost();
                    if matches!(self.phase, Phase::Building) {
                        self.phase = Phase::Waiting { until_ns: self.now_ns + REBUILD_PAUSE_NS };
                    }
                }
            }
        }
    }

    pub(super) fn built(&mut self, built: Result<Instance, String>) {
        match built {
            Ok(instance) if matches!(self.phase, Phase::Building) => {
                self.phase = Phase::Live(Arc::new(instance));
                self.generation += 1;
                self.rebuilt_at_ns = self.now_ns;
                for at in 0..self.topics.len() {
                    self.open_topic(at);
                }
                self.metadata_next_ns = self.now_ns;
            }
            // Nobody wants it any more.
            Ok(instance) => {
                self.worker.send(Command::Destroy(Arc::new(instance)));
            }
            Err(text) => {
                self.last_error = Some(format!("rebuild: {text}"));
                self.phase = Phase::Waiting { until_ns: self.now_ns + self.next_pause() };
            }
        }
    }

    /// How long to wait before the next rebuild.
    pub(super) fn next_pause(&mut self) -> u64 {
        let pause = self.rebuild_pause_ns;
        self.rebuild_pause_ns = (pause * 2).min(REBUILD_PAUSE_MAX_NS);
        pause
    }

    pub(super) fn advance(&mut self) {
        match self.phase {
            Phase::Draining { until_ns, .. }
                if self.outstanding <= self.lost() || self.now_ns >= until_ns =>
            {
                self.give_up_instance();
                let until_ns = self.now_ns + self.next_pause();
                self.phase = Phase::Waiting { until_ns };
            }
            Phase::Waiting { until_ns } if self.now_ns >= until_ns => {
                self.phase = if self.worker.send(Command::Build(Role::Main)) {
                    Phase::Building
                } else {
                    Phase::Waiting { until_ns: self.now_ns + REBUILD_PAUSE_NS }
                };
            }
            _ => {}
        }
    }

    /// Hands the instance to the worker, which destroys it. Handles go first: the last
    /// reference to the instance must not be dropped here.
    pub(super) fn give_up_instance(&mut self) {
        self.by_handle.clear();
        self.give_up_side();
        for topic in &mut self.topics {
            topic.forget();
        }
        self.outstanding = 0;
        self.refused_requests = 0;
        self.silent = 0;
        self.resting = false;
        let phase = std::mem::replace(&mut self.phase, Phase::Closed);
        if let Phase::Live(instance) | Phase::Draining { instance, .. } = phase {
            self.worker.send(Command::Destroy(instance));
        }
    }

    /// Takes over what was reloaded: at once where no instance lives, else when the live one is
    /// given up, which the flusher is asked for.
    pub(super) fn take_reload(&mut self) {
        if let Some(fresh) = self.reloader.take_newer(self.reloads)
            && let Some(older) = self.fresh.replace(fresh)
        {
            worker::destroy(Arc::new(older.instance));
        }
        if self.fresh.is_none() {
            return;
        }
        match self.phase {
            Phase::Waiting { .. } | Phase::Building => self.renew(),
            Phase::Live(_) if self.fatal.is_none() => {
                let text = "reload: new properties".to_owned();
                self.fatal = Some((Reason { name: "reload", code: 0 }, text));
            }
            _ => {}
        }
    }

    /// The fresh producer becomes the instance.
    fn renew(&mut self) {
        let Some(Fresh { configs, instance, number }) = self.fresh.take() else { return };
        self.limits = limits(
            &configs.main,
            self.requests_ahead,
            self.limits.silent_ns,
            self.limits.stalled_ns,
        );
        // A side instance has the old properties, and so has one that is being made.
        self.give_up_side();
        self.side.lost();
        // What the thread was asked is of no use any more. It ends by itself, and destroys a
        // producer that it still makes.
        self.worker.end();
        self.worker = Worker::new(configs, self.worker.waker());
        self.metadata_asked = false;
        self.reloads = number;
        // Only the new one's answers say whether the brokers let it in.
        self.connected = false;
        self.phase = Phase::Building;
        self.built(Ok(instance));
        tracing::info!(target: "forebay::kafka", "new properties are in use");
    }

    /// A broker answered: it let us in.
    pub(super) fn answered(&mut self) {
        let was_connected = std::mem::replace(&mut self.connected, true);
        if self.security.is_refused() {
            for refusal in self.security.answered(was_connected, self.now_ns) {
                tracing::info!(target: "forebay::kafka", "{} is over", refusal.state());
            }
        }
    }
}
