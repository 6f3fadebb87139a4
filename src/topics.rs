//! Owns the table of topic names: a name is interned once and is a small number from then on.

use crate::record::TopicId;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;

/// Longest topic name that Kafka allows, in bytes.
pub const TOPIC_NAME_BYTES_MAX: usize = 249;

/// Names of topics, each with its [`TopicId`]. Ids are dense from 0 and never change.
#[derive(Default, Debug)]
pub struct TopicTable {
    inner: RwLock<Inner>,
}

#[derive(Default, Debug)]
struct Inner {
    names: Vec<Arc<str>>,
    ids: HashMap<Arc<str>, TopicId>,
}

impl TopicTable {
    /// The id of `name`, new if it wasn't known. The name is not checked here: a log may hold
    /// what an older version allowed.
    pub fn intern(&self, name: &str) -> TopicId {
        if let Some(id) = self.inner.read().ids.get(name) {
            return *id;
        }
        let mut inner = self.inner.write();
        if let Some(id) = inner.ids.get(name) {
            return *id;
        }
        let id = TopicId(inner.names.len() as u32);
        let name: Arc<str> = name.into();
        inner.names.push(name.clone());
        inner.ids.insert(name, id);
        id
    }

    /// The name of `id`, if it was interned here.
    #[must_use]
    pub fn name(&self, id: TopicId) -> Option<Arc<str>> {
        self.inner.read().names.get(id.0 as usize).cloned()
    }

    /// How many topics are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.read().names.len()
    }

    /// Whether no topic is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Whether Kafka allows `name` as a topic: 1 to 249 of `a-z A-Z 0-9 . _ -`, not `.` or `..`.
#[must_use]
pub fn is_valid_topic_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= TOPIC_NAME_BYTES_MAX
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_interned_once() {
        let table = TopicTable::default();
        let a = table.intern("a");
        let b = table.intern("b");
        assert_ne!(a, b);
        assert_eq!(table.intern("a"), a);
        assert_eq!(table.name(b).as_deref(), Some("b"));
        assert_eq!(table.name(TopicId(2)), None);
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn kafka_s_rule_for_names() {
        for good in ["a", "A.b_c-9", &"x".repeat(249)] {
            assert!(is_valid_topic_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a b", "ä", "a/b", "a\0", &"x".repeat(250)] {
            assert!(!is_valid_topic_name(bad), "{bad}");
        }
    }
}
