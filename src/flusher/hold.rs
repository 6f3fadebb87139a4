//! Owns held topics: what becomes of the records of a topic that can't be had now (unknown,
//! unauthorised, deleted), and how they come back.
//!
//! As soon as a topic is held, its records go, where the `produced` cursor meets them, into the
//! set-aside log with the reason `held:...`: final for the main sequence, so that nobody waits
//! behind them. The first of them is offered again from time to time (the probe); once it is
//! taken the rest follows, in the order in which it was set aside, straight from the set-aside log
//! to the sink. New records of the topic are set aside behind them until the reader has caught up;
//! from then on they flow as ever. What Kafka owes a report for when a topic is held is waited for,
//! so that what is set aside is in the order of the numbers. After a crash it may not be: what the
//! main log brings once more then is set aside behind newer ones (and a power cut may have taken
//! the first copy). Such records are known by their numbers, and take their turn by them.
//!
//! A set-aside segment goes when all that it holds is final in this way. How far a topic is
//! redriven is in the checkpoint; a run that finds more than that holds the topic from its start.

use super::{Flusher, Parked};
use crate::record::{LogPosition, Lsn, TopicId};
use crate::report::{Opaque, Reason, TOPIC_REASONS};
use crate::stats::HeldTopic;
use crate::wal::{AsideItem, AsideReader, Wal};
use std::collections::{BTreeMap, BTreeSet, HashMap};

mod redrive;

/// Before the first probe, and between two while the sink itself knows that the topic can't be had.
const PROBE_NS: u64 = 100_000_000;
/// Marks our opaques: the in-flight table never has so many slots.
const OURS: u64 = 1 << 31;
/// Whether a report is about a record that is being redriven.
pub(super) fn is_ours(opaque: Opaque) -> bool {
    opaque.0 & OURS != 0
}

/// A reason's name, as one of these words, which live for ever.
fn word(names: &[&'static str], name: &str) -> &'static str {
    names.iter().find(|n| **n == name).copied().unwrap_or("topic")
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Everything of the topic is set aside.
    Held { probe_at_ns: u64 },
    /// One record is on its way to see whether the topic can be had.
    Probing,
    /// What was set aside is on its way, new records are set aside behind it.
    Draining,
    /// New records flow; reports of what was set aside are still owed.
    Flowing,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Handed,
    /// To be handed over again.
    Failed,
    /// It can never be delivered: to be set aside as a dead letter.
    Guilty(Reason),
    Final,
}

/// A record that was read back and isn't behind the mark yet.
struct Open {
    lsn: Lsn,
    reason: &'static str,
    fate: Fate,
}

struct Hold {
    reason: Reason,
    since_unix_ms: i64,
    phase: Phase,
    pause_ns: u64,
    /// Parked in the in-flight table, to be set aside, by number.
    queue: BTreeMap<Lsn, (Opaque, Reason)>,
    /// In the set-aside log and not final.
    records: u64,
    /// Everything of the topic before this place is final.
    mark: LogPosition,
    /// What was read and isn't behind the mark.
    open: BTreeMap<LogPosition, Open>,
    handed: usize,
    /// Everything of the topic before this place has been read.
    read_to: LogPosition,
    reader: Option<AsideReader>,
    /// Records that lie behind newer ones; and the highest number so far.
    early: BTreeSet<(Lsn, LogPosition)>,
    highest: Lsn,
    early_reader: Option<AsideReader>,
    /// Those that can never be delivered, and their own reader: a topic may have many of them.
    guilty: BTreeSet<LogPosition>,
    guilty_reader: Option<AsideReader>,
    /// Found at open: the main log may bring older ones.
    is_old: bool,
}

impl Hold {
    fn new(reason: Reason, since_unix_ms: i64, mark: LogPosition) -> Hold {
        Hold {
            reason,
            since_unix_ms,
            phase: Phase::Held { probe_at_ns: 0 },
            pause_ns: PROBE_NS,
            queue: BTreeMap::new(),
            records: 0,
            mark,
            open: BTreeMap::new(),
            handed: 0,
            read_to: mark,
            reader: None,
            early: BTreeSet::new(),
            highest: Lsn(0),
            early_reader: None,
            guilty: BTreeSet::new(),
            guilty_reader: None,
            is_old: false,
        }
    }

    /// A record is in the set-aside log.
    fn added(&mut self, lsn: Lsn, position: LogPosition) {
        if self.records == 0 && self.open.is_empty() {
            self.mark = position;
        }
        self.records += 1;
        if lsn < self.highest {
            self.early.insert((lsn, position));
        }
        self.highest = self.highest.max(lsn);
    }

    /// The next record that comes out of its place, before the one with this number.
    fn early_before(&self, lsn: Lsn) -> Option<(Lsn, LogPosition)> {
        let is_due = |at: &LogPosition| self.open.get(at).is_none_or(|o| o.fate == Fate::Failed);
        let before = self.early.range(..(lsn, LogPosition::default()));
        before.copied().find(|(_, at)| is_due(at))
    }

    fn is_early(&self, lsn: Lsn, position: LogPosition) -> bool {
        !self.early.is_empty() && self.early.contains(&(lsn, position))
    }

    fn has_read(&mut self, position: LogPosition) {
        let LogPosition { segment, offset } = position;
        self.read_to = self.read_to.max(LogPosition { segment, offset: offset + 1 });
        self.move_mark();
    }

    /// Nothing more is handed over before `probe_at_ns`.
    fn fall_back(&mut self, probe_at_ns: u64) {
        match &mut self.phase {
            Phase::Held { .. } => {}
            phase => *phase = Phase::Held { probe_at_ns },
        }
    }

    /// What was read at this place can never be delivered: to be set aside as a dead letter.
    fn is_guilty(&mut self, position: LogPosition, why: Reason) {
        if let Some(open) = self.open.get_mut(&position) {
            open.fate = Fate::Guilty(why);
            self.guilty.insert(position);
        }
    }

    fn is_final(&mut self, position: LogPosition) {
        if let Some(open) = self.open.get_mut(&position) {
            open.fate = Fate::Final;
            self.early.remove(&(open.lsn, position));
            self.records = self.records.saturating_sub(1);
        }
        self.move_mark();
    }

    fn move_mark(&mut self) {
        let read_to = self.read_to;
        let is_behind = |at: &LogPosition, o: &Open| o.fate == Fate::Final && *at < read_to;
        while let Some(first) = self.open.first_entry().filter(|e| is_behind(e.key(), e.get())) {
            let LogPosition { segment, offset } = *first.key();
            self.mark = LogPosition { segment, offset: offset + 1 };
            first.remove();
        }
    }
}

/// All held topics.
#[derive(Default)]
pub(super) struct Holds {
    topics: BTreeMap<TopicId, Hold>,
    /// How far topics that aren't held any more are redriven.
    marks: BTreeMap<TopicId, LogPosition>,
    /// Set-aside segments that hold records of held topics.
    segments: BTreeSet<u64>,
    /// Set-aside segments that hold dead letters.
    dead: BTreeSet<u64>,
    /// Our opaques on their way.
    tickets: HashMap<u64, (TopicId, LogPosition)>,
    next_ticket: u64,
    /// Reasons that an earlier run may have had, and those seen.
    names: Vec<&'static str>,
    /// Most records on their way.
    window: usize,
    /// Records that were set aside because their topic is held, ever.
    #[cfg(test)]
    pub(super) moved: u64,
}

impl Holds {
    /// What earlier runs left: `marks` say how far their topics are redriven. `found` is told each
    /// record that isn't final, with its topic and reason.
    pub(super) fn find(
        wal: Option<&Wal>,
        window: usize,
        marks: BTreeMap<TopicId, LogPosition>,
        mut found: impl FnMut(TopicId, &'static str),
    ) -> Holds {
        let mut holds = Holds { marks, window, names: TOPIC_REASONS.to_vec(), ..Holds::default() };
        let Some(wal) = wal else { return holds };
        let mut reader = wal.aside_reader(0);
        loop {
            match wal.read_aside(&mut reader) {
                AsideItem::Record(aside) => {
                    let (segment, topic) = (aside.position.segment, aside.record.topic);
                    let Some(reason) = aside.note.held().map(|name| word(&holds.names, name)) else {
                        holds.dead.insert(segment);
                        continue;
                    };
                    holds.segments.insert(segment);
                    let mark = holds.mark_of(topic);
                    if aside.position < mark {
                        continue;
                    }
                    let reason = Reason { name: reason, code: aside.note.code };
                    let new = || Hold::new(reason, aside.note.unix_ms, mark);
                    let hold = holds.topics.entry(topic).or_insert_with(new);
                    hold.added(aside.lsn, aside.position);
                    hold.is_old = true;
                    found(topic, reason.name);
                }
                // What can't be read now is no reason not to open; it stays where it is.
                AsideItem::Error(_) => break,
                AsideItem::CaughtUp => break,
            }
        }
        if holds.segments.is_empty() {
            holds.marks.clear();
        }
        holds
    }

    pub(super) fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }

    /// Whether Kafka owes a report for any record that is redriven.
    pub(super) fn are_on_the_way(&self) -> bool {
        !self.tickets.is_empty()
    }

    /// The topics that are held.
    pub(super) fn held(&self) -> impl Iterator<Item = TopicId> + '_ {
        self.topics.keys().copied()
    }

    fn mark_of(&self, topic: TopicId) -> LogPosition {
        self.marks.get(&topic).copied().unwrap_or_default()
    }

    /// A dead letter lies in this segment: nobody but its owner removes it.
    pub(super) fn has_dead(&mut self, position: LogPosition) {
        self.dead.insert(position.segment);
    }

    /// How far each topic is redriven, for the checkpoint.
    pub(super) fn marks(&self) -> impl Iterator<Item = (TopicId, LogPosition)> + '_ {
        let held = self.topics.iter().map(|(topic, hold)| (*topic, hold.mark));
        let rest = self.marks.iter().filter(|(topic, _)| !self.topics.contains_key(topic));
        held.chain(rest.map(|(topic, mark)| (*topic, *mark)))
    }

    /// What `stats` says of them; the names are filled in by the caller.
    pub(super) fn tell(&self, to: &mut Vec<HeldTopic>, name: impl Fn(TopicId) -> String) {
        to.clear();
        to.extend(self.topics.iter().map(|(topic, hold)| HeldTopic {
            topic: name(*topic),
            reason: hold.reason.name,
            code: hold.reason.code,
            since_unix_ms: hold.since_unix_ms,
            records: hold.records + hold.queue.len() as u64,
            redriving: matches!(hold.phase, Phase::Draining | Phase::Flowing),
        }));
    }
}

impl Flusher {
    /// A record was refused because of its topic: the topic is held from here on.
    pub(super) fn hold(
        &mut self,
        now_ns: u64,
        topic: TopicId,
        lsn: Lsn,
        opaque: Opaque,
        reason: Reason,
    ) {
        let unix_ms = self.clock.unix_ms();
        let name = self.name(topic);
        let holds = &mut self.holds;
        if !holds.names.contains(&reason.name) {
            holds.names.push(reason.name);
        }
        let mark = holds.mark_of(topic);
        let hold = holds.topics.entry(topic).or_insert_with(|| {
            tracing::warn!(topic = %name, reason = reason.name, "the topic is held; its records are set aside until it can be had");
            let mut hold = Hold::new(reason, unix_ms, mark);
            hold.phase = Phase::Held { probe_at_ns: now_ns + PROBE_NS };
            hold
        });
        hold.reason = reason;
        hold.fall_back(now_ns + hold.pause_ns);
        hold.queue.insert(lsn, (opaque, reason));
        self.changed = true;
    }

    /// Whether the record waits because its topic is held.
    pub(super) fn hold_back(&mut self, topic: TopicId, lsn: Lsn, opaque: Opaque) -> bool {
        if self.holds.is_empty() {
            return false;
        }
        let Some(hold) = self.holds.topics.get_mut(&topic) else { return false };
        if hold.phase == Phase::Flowing {
            return false;
        }
        hold.queue.insert(lsn, (opaque, hold.reason));
        self.seq.park(opaque);
        self.changed = true;
        true
    }

    /// Writes what is held back to the set-aside log, in order, as far as the log can serve.
    pub(super) fn set_aside_held(&mut self) {
        let topics: Vec<TopicId> = self.holds.held().collect();
        for topic in topics {
            // What Kafka owes a report for, or a new instance is to be given, may be older.
            if self.seq.owed_of(topic) > 0 {
                continue;
            }
            while let Some(hold) = self.holds.topics.get_mut(&topic) {
                let Some((lsn, (opaque, reason))) = hold.queue.pop_first() else { break };
                let parked = Parked { opaque, reason, held: Some(topic) };
                if !self.aside_one(&parked) {
                    if let Some(hold) = self.holds.topics.get_mut(&topic) {
                        hold.queue.insert(lsn, (opaque, reason));
                    }
                    return;
                }
            }
        }
    }

    /// A record of a held topic is in the set-aside log.
    pub(super) fn held_is_aside(&mut self, topic: TopicId, lsn: Lsn, position: LogPosition) {
        self.holds.segments.insert(position.segment);
        #[cfg(test)]
        {
            self.holds.moved += 1;
        }
        if let Some(hold) = self.holds.topics.get_mut(&topic) {
            hold.added(lsn, position);
        }
    }
}
