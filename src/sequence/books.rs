//! Owns the books: how many records of each topic stand where, moved by one transition each.

use crate::record::TopicId;

/// Counts by a stable reason name; few distinct names, so a list serves.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Counts(Vec<(&'static str, u64)>);

impl Counts {
    pub(super) fn add(&mut self, reason: &'static str, n: u64) {
        match self.0.iter_mut().find(|(name, _)| *name == reason) {
            Some((_, count)) => *count += n,
            None => self.0.push((reason, n)),
        }
    }

    pub(super) fn take(&mut self, reason: &'static str) {
        let found = self.0.iter().position(|(name, count)| *name == reason && *count > 0);
        // A reason of an earlier run may stand under another name.
        let found = found.or_else(|| self.0.iter().position(|(_, count)| *count > 0));
        if let Some(at) = found {
            self.0[at].1 -= 1;
        }
    }

    /// The sum over all reasons.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().map(|(_, n)| n).sum()
    }

    /// Reason and count, in the order of first use.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().copied().filter(|(_, count)| *count > 0)
    }
}

/// Where one topic's records stand, from the pop on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TopicBooks {
    /// Popped from a lane by this run.
    pub popped: u64,
    /// Found in the log when this run opened it.
    pub recovered: u64,
    /// Popped, not journaled, not final: in memory only, handed to the sink or not.
    pub in_flight: u64,
    /// Journaled and not final, handed to the sink or not.
    pub in_wal: u64,
    /// Reported as persisted.
    pub delivered: u64,
    /// Moved to the set-aside log, by reason.
    pub set_aside: Counts,
    /// Given up under a counted policy, by reason.
    pub dropped: Counts,
    /// Ever written to the log by this run.
    pub spilled: u64,
    /// Read back from the log to be produced.
    pub replayed: u64,
}

/// All topics' books and what belongs to no topic.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Books {
    topics: Vec<TopicBooks>,
    /// Frames that the log counted and could not give back: nobody knows their topic.
    pub damaged: u64,
    /// Records that the log counted at open without knowing their topic: damaged then already.
    pub recovered_unknown: u64,
    /// Records handed to a sink again whose first copy the broker may have kept.
    pub duplicates_possible: u64,
    /// Records produced again in one instance after a report that they were not persisted:
    /// later ones of their partition may have gone before them.
    pub reordered: u64,
}

impl Books {
    /// One topic's books, made on first use.
    pub(super) fn topic(&mut self, topic: TopicId) -> &mut TopicBooks {
        let i = topic.0 as usize;
        if i >= self.topics.len() {
            self.topics.resize_with(i + 1, TopicBooks::default);
        }
        &mut self.topics[i]
    }

    /// Every topic's books, by [`TopicId`].
    #[must_use]
    pub fn topics(&self) -> &[TopicBooks] {
        &self.topics
    }

    fn sum(&self, f: impl Fn(&TopicBooks) -> u64) -> u64 {
        self.topics.iter().map(f).sum()
    }

    /// Records popped, of all topics.
    #[must_use]
    pub fn popped(&self) -> u64 {
        self.sum(|t| t.popped)
    }

    /// Records found in the log at open.
    #[must_use]
    pub fn recovered(&self) -> u64 {
        self.sum(|t| t.recovered) + self.recovered_unknown
    }

    /// Records in memory only.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.sum(|t| t.in_flight)
    }

    /// Records in the log and not final. A damaged frame has left its topic's count unknown,
    /// so it is taken off here.
    #[must_use]
    pub fn in_wal(&self) -> u64 {
        (self.sum(|t| t.in_wal) + self.recovered_unknown).saturating_sub(self.damaged)
    }

    /// Records delivered.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.sum(|t| t.delivered)
    }

    /// Records set aside.
    #[must_use]
    pub fn set_aside(&self) -> u64 {
        self.sum(|t| t.set_aside.total())
    }

    /// Records dropped, damaged frames included.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.sum(|t| t.dropped.total()) + self.damaged
    }

    /// Records written to the log by this run.
    #[must_use]
    pub fn spilled(&self) -> u64 {
        self.sum(|t| t.spilled)
    }

    /// Records read back from the log to be produced.
    #[must_use]
    pub fn replayed(&self) -> u64 {
        self.sum(|t| t.replayed)
    }

    /// What is popped or recovered and stands nowhere: 0, or the code is wrong.
    #[must_use]
    pub fn unaccounted(&self) -> i64 {
        let came = self.popped() + self.recovered();
        let stands =
            self.delivered() + self.in_flight() + self.in_wal() + self.set_aside() + self.dropped();
        came as i64 - stands as i64
    }
}
