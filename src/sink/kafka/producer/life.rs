//! Owns the life of instances: metadata, and from draining to a new one.

use super::{
    KafkaSink, METADATA_SOON_NS, METADATA_TROUBLE_NS, Phase, REBUILD_PAUSE_MAX_NS, REBUILD_PAUSE_NS,
};
use crate::sink::kafka::describe;
use crate::sink::kafka::errors::classify;
use crate::sink::kafka::instance::{Instance, TopicMetadata};
use crate::sink::kafka::topics::Standing;
use crate::sink::kafka::worker::{Answer, Command, Role};
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
                self.connected = true;
                for metadata in &topics {
                    if let Some(at) = self.by_name.get(&metadata.name) {
                        self.topics[*at as usize].learn(metadata, self.now_ns);
                    }
                }
            }
            Err(error) => {
                if self.connected || self.last_error.is_none() {
                    let name = classify(error).1.name;
                    let text = format!("{name}: metadata: {}", describe(error));
                    self.last_error = Some(text);
                }
                self.connected = false;
            }
        }
        let now_ns = self.now_ns;
        let waits = self.topics.iter().any(|t| match t.standing {
            Standing::Asked => true,
            Standing::Known => false,
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
                if self.outstanding == 0 || self.now_ns >= until_ns =>
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
        let phase = std::mem::replace(&mut self.phase, Phase::Closed);
        if let Phase::Live(instance) | Phase::Draining { instance, .. } = phase {
            self.worker.send(Command::Destroy(instance));
        }
    }
}
