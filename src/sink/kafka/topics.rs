//! Owns what the sink knows of its topics: partitions, and whether Kafka has them.

use super::errors::{classify, code};
use super::instance::{TopicHandle, TopicMetadata};
use super::partitions::Partitions;
use crate::sink::Reason;
use std::ffi::{CStr, CString};
use std::sync::Arc;

/// How a topic stands with Kafka.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// No answer yet: its records wait.
    Asked,
    /// Its partitions are known.
    Known,
    /// Kafka says that it doesn't have it, or that it can't be used; for how long.
    Missing { since_ns: u64, code: i32 },
}

/// One topic.
pub(super) struct Topic {
    pub name: String,
    pub c_name: Arc<CStr>,
    pub handle: Option<TopicHandle>,
    pub partitions: Partitions,
    pub standing: Standing,
    /// When metadata last said anything of it.
    pub checked_ns: u64,
}

impl Topic {
    /// A topic that nothing is known of; `None` if the name holds a NUL byte.
    pub fn new(name: &str) -> Option<Topic> {
        let c_name: Arc<CStr> = CString::new(name).ok()?.into();
        Some(Topic {
            name: name.to_owned(),
            c_name,
            handle: None,
            partitions: Partitions::default(),
            standing: Standing::Asked,
            checked_ns: 0,
        })
    }

    /// Takes what metadata says of the topic.
    pub fn learn(&mut self, metadata: &TopicMetadata, now_ns: u64) {
        self.checked_ns = now_ns;
        match metadata.code {
            // No leader somewhere: the partitions are known all the same.
            0 | code::LEADER_NOT_AVAILABLE if metadata.partitions > 0 => {
                self.partitions.set_count(metadata.partitions, now_ns);
                self.standing = Standing::Known;
            }
            // Just being created.
            0 | code::LEADER_NOT_AVAILABLE => {}
            missing => self.missing(missing, now_ns),
        }
    }

    /// Kafka, or librdkafka, says that the topic can't be used.
    pub fn missing(&mut self, code: i32, now_ns: u64) {
        let since_ns = match self.standing {
            Standing::Missing { since_ns, .. } => since_ns,
            _ => now_ns,
        };
        self.standing = Standing::Missing { since_ns, code };
    }

    /// Why records of this topic are rejected now, if they are. A topic that is unknown gets
    /// time to appear; one that is forbidden doesn't.
    #[inline]
    pub fn rejects(&self, now_ns: u64, grace_ns: u64) -> Option<Reason> {
        let Standing::Missing { since_ns, code } = self.standing else { return None };
        let at_once = code == code::TOPIC_AUTHORIZATION_FAILED || code == code::TOPIC_EXCEPTION;
        if !at_once && now_ns < since_ns.saturating_add(grace_ns) {
            return None;
        }
        let reason = classify(code).1;
        // Whatever else metadata says, the topic can't be had.
        let name = if reason.name == "other" { "topic_unavailable" } else { reason.name };
        Some(Reason { name, code })
    }

    /// Forgets the instance that is being given up. Nothing of it is in flight any more.
    pub fn forget(&mut self) {
        self.handle = None;
        self.partitions = Partitions::default();
        self.standing = Standing::Asked;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(code: i32, partitions: usize) -> TopicMetadata {
        TopicMetadata { name: "t".into(), partitions, code }
    }

    #[test]
    fn an_unknown_topic_has_a_grace_time_and_may_come_back() {
        let mut topic = Topic::new("t").unwrap();
        assert_eq!(topic.rejects(u64::MAX, 0), None, "not answered is not missing");
        topic.learn(&says(3, 0), 100);
        topic.learn(&says(3, 0), 105);
        assert_eq!(topic.rejects(109, 10), None);
        assert_eq!(topic.rejects(110, 10), Some(Reason { name: "topic_unavailable", code: 3 }));
        topic.learn(&says(0, 4), 111);
        assert_eq!((topic.standing, topic.partitions.count()), (Standing::Known, 4));
        assert_eq!(topic.rejects(u64::MAX, 0), None);
    }

    #[test]
    fn a_forbidden_topic_has_none() {
        let mut topic = Topic::new("t").unwrap();
        topic.learn(&says(29, 0), 100);
        assert_eq!(topic.rejects(100, 1000).map(|r| r.name), Some("topic_unauthorised"));
    }

    #[test]
    fn a_topic_without_a_leader_is_known_and_one_without_partitions_is_not() {
        let mut topic = Topic::new("t").unwrap();
        topic.learn(&says(5, 0), 1);
        assert_eq!(topic.standing, Standing::Asked);
        topic.learn(&says(5, 3), 1);
        assert_eq!(topic.standing, Standing::Known);
    }

    #[test]
    fn a_name_with_a_nul_byte_is_no_topic() {
        assert!(Topic::new("a\0b").is_none());
    }
}
