//! Owns, for the partitions of one topic, which of them a record goes to, how far it may run
//! ahead of its reports, and when it is paused. Pure: no librdkafka, no clock.
//!
//! Why: an idempotent librdkafka sends one request per partition and round trip, and its broker
//! thread spins for as long as a request is unanswered and anything is queued behind it. So a
//! partition gets little more than one request ahead of its reports, and one that is silent
//! with something in flight is paused: a paused partition doesn't spin, and the reports of what
//! is in flight still come. After a disconnect the retried messages lie in the paused queue, so
//! a paused partition is tried again from time to time.
//!
//! Where answers take long, it would spin for most of the time. So a partition whose last answer was
//! slow *rests* soon after it was heard: it is paused, takes records all the same, and is resumed by
//! the next report.
//!
//! A partition that is silent for much longer, while others are served or Kafka says that it has no
//! leader, is *stalled*: whoever asks is told so, and goes on with records of others.

/// The numbers that bound a partition.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Records handed over and unreported, at most.
    pub records_ahead: u32,
    /// Their bytes, at most; one record always fits.
    pub bytes_ahead: u64,
    /// Keyless records go to one partition for this many records,
    pub turn_records: u32,
    /// or bytes,
    pub turn_bytes: u64,
    /// or nanoseconds, whichever comes first.
    pub turn_ns: u64,
    /// A partition without a report for this long, with something in flight, is paused.
    pub silent_ns: u64,
    /// A partition whose last answer took this long rests
    pub slow_ns: u64,
    /// this long after it was heard.
    pub rest_ns: u64,
    /// A paused partition is tried again this often,
    pub probe_every_ns: u64,
    /// for this long.
    pub probe_ns: u64,
    /// A partition without a report for this long may be stalled.
    pub stalled_ns: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Flow {
    #[default]
    Running,
    /// Paused because its answers take long; it takes records.
    Resting {
        since_ns: u64,
    },
    Paused {
        since_ns: u64,
    },
    Probing {
        since_ns: u64,
    },
}

/// What is to be done to a partition in librdkafka.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Pause,
    Resume,
}

/// One partition's account.
#[derive(Clone, Debug, Default)]
pub(super) struct Partition {
    records: u32,
    bytes: u64,
    /// The last report, or when the first of what is in flight was handed over.
    heard_ns: u64,
    /// How long that report was waited for.
    took_ns: u64,
    /// The last report; 0 before the first.
    reported_ns: u64,
    /// Metadata says that nobody leads it.
    leaderless: bool,
    stalled: bool,
    flow: Flow,
    /// Tries since the last report.
    tries: u32,
}

impl Partition {
    /// Whether a record of `bytes` may be handed over now.
    #[inline]
    fn has_room(&self, bytes: u64, limits: &Limits) -> bool {
        self.records == 0
            || (matches!(self.flow, Flow::Running | Flow::Resting { .. })
                && self.records < limits.records_ahead
                && self.bytes + bytes <= limits.bytes_ahead)
    }

    #[inline]
    fn handed_over(&mut self, bytes: u64, now_ns: u64) {
        if self.records == 0 {
            self.heard_ns = now_ns;
        }
        self.records += 1;
        self.bytes += bytes;
    }

    fn reported(&mut self, bytes: u64, now_ns: u64) {
        self.records = self.records.saturating_sub(1);
        self.bytes = if self.records == 0 { 0 } else { self.bytes.saturating_sub(bytes) };
        if now_ns > self.heard_ns {
            // Those that come with it took no time.
            self.took_ns = now_ns - self.heard_ns;
        }
        self.heard_ns = now_ns;
        self.reported_ns = now_ns;
        self.stalled = false;
        self.tries = 0;
    }

    /// Whether it owes a report for longer than a healthy partition does.
    fn is_silent(&self, now_ns: u64, limits: &Limits) -> bool {
        self.records > 0 && now_ns >= self.heard_ns + limits.silent_ns
    }

    /// How long this try lasts. A short one costs little; the first of eight is long, so that one
    /// also succeeds where the threads get their turn late.
    fn try_ns(&self, limits: &Limits) -> u64 {
        if self.tries % 8 == 1 { limits.probe_ns * 8 } else { limits.probe_ns }
    }

    /// How long a partition that rests may be silent: twice its last answer, within bounds.
    fn patience_ns(&self, limits: &Limits) -> u64 {
        (2 * self.took_ns).clamp(limits.silent_ns, limits.silent_ns * 5)
    }

    fn step(&mut self, now_ns: u64, limits: &Limits) -> Option<Step> {
        let silent = self.records > 0;
        match self.flow {
            Flow::Running if silent && now_ns >= self.heard_ns + limits.silent_ns => {
                self.flow = Flow::Paused { since_ns: now_ns };
                Some(Step::Pause)
            }
            Flow::Running
                if silent
                    && self.took_ns >= limits.slow_ns
                    && now_ns >= self.heard_ns + limits.rest_ns =>
            {
                self.flow = Flow::Resting { since_ns: now_ns };
                Some(Step::Pause)
            }
            Flow::Running => None,
            Flow::Resting { since_ns } if !silent || self.heard_ns >= since_ns => {
                self.flow = Flow::Running;
                Some(Step::Resume)
            }
            // It may have been paused before its request was under way.
            Flow::Resting { .. } if now_ns >= self.heard_ns + self.patience_ns(limits) => {
                self.tries += 1;
                self.flow = Flow::Probing { since_ns: now_ns };
                Some(Step::Resume)
            }
            Flow::Resting { .. } => None,
            // Something was reported since, or nothing is left that could be silent.
            Flow::Paused { since_ns } if !silent || self.heard_ns >= since_ns => {
                self.flow = Flow::Running;
                Some(Step::Resume)
            }
            Flow::Paused { since_ns } if now_ns >= since_ns + limits.probe_every_ns => {
                self.tries += 1;
                self.flow = Flow::Probing { since_ns: now_ns };
                Some(Step::Resume)
            }
            Flow::Paused { .. } => None,
            Flow::Probing { since_ns } if !silent || self.heard_ns >= since_ns => {
                self.flow = Flow::Running;
                None
            }
            Flow::Probing { since_ns } if now_ns >= since_ns + self.try_ns(limits) => {
                self.flow = Flow::Paused { since_ns: now_ns };
                Some(Step::Pause)
            }
            Flow::Probing { .. } => None,
        }
    }

    /// Lets a paused partition be tried now, whatever the time.
    fn probe_now(&mut self, now_ns: u64) -> Option<Step> {
        match self.flow {
            Flow::Paused { .. } | Flow::Resting { .. } => {
                self.tries += 1;
                self.flow = Flow::Probing { since_ns: now_ns };
                Some(Step::Resume)
            }
            Flow::Probing { .. } => {
                self.flow = Flow::Probing { since_ns: now_ns };
                None
            }
            Flow::Running => None,
        }
    }
}

/// The answer to "where does this record go".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Choice {
    /// To this partition, now.
    Partition(i32),
    /// Not now.
    Busy,
    /// Not as long as this partition is stalled.
    Stalled(i32),
    /// The record asks for a partition that the topic doesn't have.
    Unknown,
}

/// For how long metadata must show fewer partitions, without a report from those above, until
/// what is in flight there is taken for lost: a broker that is behind may show an older count.
const GONE_NS: u64 = 500_000_000;

/// Metadata shows fewer partitions than have something in flight.
#[derive(Clone, Copy, Debug)]
struct Shrunk {
    count: usize,
    since_ns: u64,
}

/// The partitions of one topic.
#[derive(Clone, Debug, Default)]
pub(super) struct Partitions {
    all: Vec<Partition>,
    shrunk: Option<Shrunk>,
    turn: usize,
    turn_records: u32,
    turn_bytes: u64,
    turn_from_ns: u64,
}

impl Partitions {
    /// How many partitions there are; 0 until it is known.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// Takes the count from metadata. A topic that shrank (deleted and made again) keeps the
    /// accounts above the count as long as anything in them is unreported.
    pub fn set_count(&mut self, count: usize, now_ns: u64) {
        let above = self.all.get(count..).unwrap_or_default();
        let waiting = above.iter().filter(|p| p.records > 0);
        if let Some(heard_ns) = waiting.map(|p| p.heard_ns).max() {
            let before = self.shrunk.filter(|s| s.count == count && heard_ns <= s.since_ns);
            self.shrunk = before.or(Some(Shrunk { count, since_ns: now_ns }));
            return;
        }
        self.shrunk = None;
        self.all.resize_with(count, Partition::default);
        if self.turn >= count {
            self.turn = 0;
        }
    }

    /// Whether metadata shows fewer partitions than have something in flight, and whether it has
    /// for so long that no report will come: librdkafka gives none for a partition that is gone.
    pub fn shrunk(&self, now_ns: u64) -> Option<bool> {
        self.shrunk.map(|s| now_ns >= s.since_ns + GONE_NS)
    }

    /// How many records are in flight to partitions that are gone.
    pub fn lost(&self) -> u64 {
        let above = self.shrunk.and_then(|s| self.all.get(s.count..)).unwrap_or_default();
        above.iter().map(|p| u64::from(p.records)).sum()
    }

    /// Whether the instance owes no report for this partition.
    pub fn is_idle(&self, partition: i32) -> bool {
        self.all.get(partition as usize).is_none_or(|p| p.records == 0)
    }

    /// For a record that asks for `partition` itself, or whose key chose it.
    #[inline]
    pub fn fixed(&self, partition: i32, bytes: u64, limits: &Limits) -> Choice {
        match self.all.get(partition as usize) {
            None => Choice::Unknown,
            Some(p) if p.has_room(bytes, limits) => Choice::Partition(partition),
            Some(p) if p.stalled => Choice::Stalled(partition),
            Some(_) => Choice::Busy,
        }
    }

    /// For a record without a key: the partition whose turn it is, or the next one with room.
    #[inline]
    pub fn keyless(&mut self, bytes: u64, now_ns: u64, limits: &Limits) -> Choice {
        let over = self.turn_records >= limits.turn_records
            || self.turn_bytes + bytes > limits.turn_bytes
            || now_ns >= self.turn_from_ns + limits.turn_ns;
        if over && self.turn_records > 0 {
            self.next_turn(self.turn + 1, now_ns);
        }
        for step in 0..self.all.len() {
            let at = (self.turn + step) % self.all.len();
            if self.all[at].has_room(bytes, limits) {
                if step > 0 {
                    self.next_turn(at, now_ns);
                } else if self.turn_records == 0 {
                    self.turn_from_ns = now_ns;
                }
                return Choice::Partition(at as i32);
            }
        }
        match self.all.iter().all(|p| p.stalled) {
            true if !self.all.is_empty() => Choice::Stalled(self.turn as i32),
            _ => Choice::Busy,
        }
    }

    fn next_turn(&mut self, at: usize, now_ns: u64) {
        self.turn = at % self.all.len().max(1);
        self.turn_records = 0;
        self.turn_bytes = 0;
        self.turn_from_ns = now_ns;
    }

    /// A record was handed over to `partition`.
    #[inline]
    pub fn handed_over(&mut self, partition: i32, bytes: u64, keyless: bool, now_ns: u64) {
        if let Some(p) = self.all.get_mut(partition as usize) {
            p.handed_over(bytes, now_ns);
        }
        self.turned(bytes, keyless);
    }

    /// A record goes to its partition another way; only the turn of keyless ones moves.
    #[inline]
    pub fn turned(&mut self, bytes: u64, keyless: bool) {
        if keyless {
            self.turn_records += 1;
            self.turn_bytes += bytes;
        }
    }

    /// A record of `partition` was reported.
    #[inline]
    pub fn reported(&mut self, partition: i32, bytes: u64, now_ns: u64) {
        if let Some(p) = self.all.get_mut(partition as usize) {
            p.reported(bytes, now_ns);
        }
    }

    /// Says what is to be paused and resumed now.
    pub fn steps(&mut self, now_ns: u64, limits: &Limits, mut act: impl FnMut(i32, Step)) {
        for (at, p) in self.all.iter_mut().enumerate() {
            if let Some(step) = p.step(now_ns, limits) {
                act(at as i32, step);
            }
        }
    }

    /// Lets every paused partition be tried now.
    pub fn probe_now(&mut self, now_ns: u64, mut act: impl FnMut(i32)) {
        for (at, p) in self.all.iter_mut().enumerate() {
            if p.probe_now(now_ns).is_some() {
                act(at as i32);
            }
        }
    }

    /// Takes from metadata which partitions nobody leads.
    pub fn set_leaderless(&mut self, leaderless: &[i32]) {
        for (at, p) in self.all.iter_mut().enumerate() {
            p.leaderless = leaderless.contains(&(at as i32));
        }
    }

    /// The last report of a partition that isn't silent; 0 if there is none.
    pub fn last_served_ns(&self, now_ns: u64, limits: &Limits) -> u64 {
        let served = self.all.iter().filter(|p| !p.is_silent(now_ns, limits));
        served.map(|p| p.reported_ns).max().unwrap_or(0)
    }

    /// Judges which partitions are stalled: silent for long, and since then Kafka has answered at
    /// `answered_ns`, and served another partition at `served_ns` or said that nobody leads this one.
    pub fn judge(&mut self, now_ns: u64, answered_ns: u64, served_ns: u64, limits: &Limits) {
        for p in self.all.iter_mut().filter(|p| p.flow != Flow::Running && p.records > 0) {
            let is_late = now_ns >= p.heard_ns + limits.stalled_ns && answered_ns > p.heard_ns;
            p.stalled |= is_late && (p.leaderless || served_ns > p.heard_ns);
        }
    }

    /// Whether the partition is stalled.
    pub fn is_stalled(&self, partition: i32) -> bool {
        self.all.get(partition as usize).is_some_and(|p| p.stalled)
    }

    /// How many are paused or being tried.
    pub fn silent(&self) -> u32 {
        let is_silent =
            |p: &&Partition| matches!(p.flow, Flow::Paused { .. } | Flow::Probing { .. });
        self.all.iter().filter(is_silent).count() as u32
    }

    /// Whether any partition rests.
    pub fn are_resting(&self) -> bool {
        self.all.iter().any(|p| matches!(p.flow, Flow::Resting { .. }))
    }

    /// The partition that has been silent longest with something in flight, and since when. One
    /// without a leader doesn't count: no other instance would find it one.
    pub fn longest_silence(&self) -> Option<(i32, u64)> {
        let silent = self.all.iter().enumerate().filter(|(_, p)| p.records > 0 && !p.leaderless);
        silent.map(|(at, p)| (at as i32, p.heard_ns)).min_by_key(|s| s.1)
    }
}

#[cfg(test)]
#[path = "partitions_tests.rs"]
mod tests;
