//! Owns the comparison of what was sent with what arrived: lost, duplicates, order.
//!
//! Each record carries its [`Id`]: at the start of its value, or of its key if that is null. Order is
//! promised to the *first arrivals* of one source within one [`Stream`]; a duplicate of an older
//! record may come after newer ones.

use crate::Consumed;
use std::collections::HashMap;

/// Which record it is: who sent it, and its place in what that one sent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Id {
    /// The thread, or whatever else sends in an order of its own.
    pub source: u32,
    /// Counts from 0 within the source.
    pub number: u64,
}

/// Length of an id's text.
pub const ID_BYTES: usize = 15;

impl Id {
    /// Its text: `#` source `:` number `#`, always [`ID_BYTES`] long.
    #[must_use]
    pub fn text(self) -> String {
        format!("#{:02}:{:010}#", self.source, self.number)
    }

    /// The id at the start of `bytes`.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Id> {
        let text = std::str::from_utf8(bytes.get(..ID_BYTES)?).ok()?;
        let (source, number) = text.strip_prefix('#')?.strip_suffix('#')?.split_once(':')?;
        Some(Id { source: source.parse().ok()?, number: number.parse().ok()? })
    }

    /// The id of a record that was read.
    #[must_use]
    pub fn of(record: &Consumed) -> Option<Id> {
        Id::parse(record.value.as_deref().or(record.key.as_deref())?)
    }
}

/// In which order a record stands, besides its source.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stream<'a> {
    /// With all records of the same key, which are all in one partition.
    Key(&'a [u8]),
    /// With all records that were sent to this partition by name.
    Partition(i32),
    /// In none: no key, no partition given.
    Free,
}

impl Stream<'_> {
    /// By key where there is one, else in none.
    #[must_use]
    pub fn by_key(record: &Consumed) -> Stream<'_> {
        record.key.as_deref().map_or(Stream::Free, Stream::Key)
    }
}

/// A first arrival that came after the first arrival of a record sent later.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Disorder {
    /// The record that came too late.
    pub late: Id,
    /// The newest record of its stream that was there before it.
    pub after: Id,
}

/// What was found in a topic.
#[derive(Debug, Default)]
pub struct Audit {
    /// Records in the topic.
    pub records: u64,
    /// Different ids among them.
    pub distinct: u64,
    /// Records whose id had been there before.
    pub duplicates: u64,
    /// Records without an id.
    pub strangers: u64,
    /// Records that broke their stream's order.
    pub disorder: Vec<Disorder>,
    /// Keys found in more than one partition.
    pub split_keys: u64,
    seen: HashMap<u32, Vec<bool>>,
}

impl Audit {
    /// Audits records sorted by partition and offset, as [`crate::Oracle::read`] gives them.
    pub fn new<'a>(records: &'a [Consumed], stream: impl Fn(&'a Consumed) -> Stream<'a>) -> Audit {
        let mut audit = Audit { records: records.len() as u64, ..Audit::default() };
        let mut newest: HashMap<(u32, Stream<'a>), Id> = HashMap::new();
        let mut homes: HashMap<&[u8], (i32, bool)> = HashMap::new();
        for record in records {
            let Some(id) = Id::of(record) else {
                audit.strangers += 1;
                continue;
            };
            let stream = stream(record);
            if let Stream::Key(key) = stream {
                let home = homes.entry(key).or_insert((record.partition, false));
                if home.0 != record.partition && !home.1 {
                    home.1 = true;
                    audit.split_keys += 1;
                }
            }
            let seen = audit.seen.entry(id.source).or_default();
            let place = usize::try_from(id.number).expect("numbers are small");
            if seen.len() <= place {
                seen.resize(place + 1, false);
            }
            if std::mem::replace(&mut seen[place], true) {
                audit.duplicates += 1;
                continue;
            }
            audit.distinct += 1;
            if stream == Stream::Free {
                continue;
            }
            let newest = newest.entry((id.source, stream)).or_insert(id);
            if id.number < newest.number {
                audit.disorder.push(Disorder { late: id, after: *newest });
            } else {
                *newest = id;
            }
        }
        audit
    }

    /// Whether this record arrived.
    #[must_use]
    pub fn has(&self, id: Id) -> bool {
        let place = usize::try_from(id.number).unwrap_or(usize::MAX);
        self.seen.get(&id.source).and_then(|s| s.get(place)).copied().unwrap_or(false)
    }

    /// The records among the first `sent` of each source, in the order of sources, that did not
    /// arrive.
    #[must_use]
    pub fn missing(&self, sent: &[u64]) -> Vec<Id> {
        let ids = sent
            .iter()
            .zip(0..)
            .flat_map(|(n, source)| (0..*n).map(move |number| Id { source, number }));
        ids.filter(|id| !self.has(*id)).collect()
    }

    /// Fails unless exactly the first `sent` records of each source arrived, once each, in order.
    ///
    /// # Panics
    /// With the figures and the first few records that are wrong.
    pub fn assert_exact(&self, sent: &[u64]) {
        self.assert_whole(sent);
        assert_eq!(self.duplicates, 0, "duplicates: {}", self.line(sent));
    }

    /// The same, but duplicates are allowed.
    ///
    /// # Panics
    /// With the figures and the first few records that are wrong.
    pub fn assert_whole(&self, sent: &[u64]) {
        let missing = self.missing(sent);
        let some = &missing[..missing.len().min(5)];
        assert!(missing.is_empty(), "lost {some:?}...: {}", self.line(sent));
        let total: u64 = sent.iter().sum();
        assert_eq!(self.distinct, total, "records that nobody sent: {}", self.line(sent));
        let some = &self.disorder[..self.disorder.len().min(5)];
        assert!(self.disorder.is_empty(), "disorder {some:?}...: {}", self.line(sent));
        assert_eq!((self.strangers, self.split_keys), (0, 0), "{}", self.line(sent));
    }

    /// The figures, for the line that a scenario prints.
    #[must_use]
    pub fn line(&self, sent: &[u64]) -> String {
        format!(
            "sent {}, in the topic {}, lost {}, duplicates {}, disorder {}, split keys {}, \
             strangers {}",
            sent.iter().sum::<u64>(),
            self.records,
            self.missing(sent).len(),
            self.duplicates,
            self.disorder.len(),
            self.split_keys,
            self.strangers
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(partition: i32, offset: i64, key: Option<&str>, number: u64) -> Consumed {
        Consumed {
            partition,
            offset,
            timestamp_ms: 0,
            key: key.map(|k| k.as_bytes().to_vec()),
            value: Some(Id { source: 0, number }.text().into_bytes()),
            headers: Vec::new(),
        }
    }

    fn audit(records: &[Consumed]) -> Audit {
        Audit::new(records, Stream::by_key)
    }

    #[test]
    fn an_id_is_read_back() {
        let id = Id { source: 7, number: 1234 };
        assert_eq!(id.text().len(), ID_BYTES);
        assert_eq!(Id::parse(format!("{} rest", id.text()).as_bytes()), Some(id));
        assert_eq!(Id::parse(b"#07:000000123x#"), None);
        assert_eq!(Id::parse(b"#07"), None);
    }

    #[test]
    fn a_clean_topic_passes() {
        let all = [record(0, 0, Some("a"), 0), record(0, 1, Some("a"), 2), record(1, 0, None, 1)];
        audit(&all).assert_exact(&[3]);
    }

    #[test]
    fn each_fault_is_seen() {
        let lost = audit(&[record(0, 0, Some("a"), 0), record(0, 1, Some("a"), 2)]);
        assert_eq!(lost.missing(&[3]), [Id { source: 0, number: 1 }]);

        let twice = [record(0, 0, Some("a"), 0), record(0, 1, Some("a"), 1)];
        let twice = audit(&[&twice[..], &[record(0, 2, Some("a"), 0)]].concat());
        assert_eq!((twice.duplicates, twice.disorder.len()), (1, 0), "a late duplicate is allowed");

        let swapped = audit(&[record(0, 0, Some("a"), 1), record(0, 1, Some("a"), 0)]);
        assert_eq!(swapped.disorder.len(), 1);
        let free = audit(&[record(0, 0, None, 1), record(0, 1, None, 0)]);
        assert_eq!(free.disorder.len(), 0, "keyless records are in no order");

        let split = audit(&[record(0, 0, Some("a"), 0), record(1, 0, Some("a"), 1)]);
        assert_eq!(split.split_keys, 1);

        let mut stranger = record(0, 0, None, 0);
        stranger.value = Some(b"who am I".to_vec());
        assert_eq!(audit(&[stranger]).strangers, 1);
    }
}
