//! Owns what is held: what becomes of the records of a topic that can't be had now (unknown,
//! unauthorised, deleted), or of one partition that is silent while others are served; and how they
//! come back.
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
//! A silent partition is held in the same way, but nobody may wait for what Kafka owes of it:
//! `partitions.rs`. A topic and its partitions may be held at the same time; what was held first
//! comes back first.
//!
//! A set-aside segment goes when all that it holds is final in this way. How far a topic or a
//! partition is redriven is in the checkpoint; a run that finds more than that holds it from its
//! start.

use super::{Flusher, Parked};
use crate::record::{ANY_PARTITION, LogPosition, Lsn, TopicId};
use crate::report::{Opaque, Reason, TOPIC_REASONS};
use crate::sink::PARTITION_STALLED;
use crate::stats::HeldTopic;
use crate::topics::TopicTable;
use crate::wal::{AsideItem, AsideReader, TopicBooks, Wal};
use std::collections::{BTreeMap, BTreeSet, HashMap};

mod partitions;
mod redrive;

/// Before the first probe, and between two while the sink itself knows that the topic can't be had.
const PROBE_NS: u64 = 100_000_000;
/// Marks our opaques.
const OURS: u64 = Opaque::REDRIVEN;
/// Whether a report is about a record that is being redriven.
pub(super) fn is_ours(opaque: Opaque) -> bool {
    opaque.0 & OURS != 0
}

/// A reason's name, as one of these words, which live for ever.
fn word(names: &[&'static str], name: &str) -> &'static str {
    names.iter().find(|n| **n == name).copied().unwrap_or("topic")
}

/// What is held: a topic, or one partition of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Key {
    pub(super) topic: TopicId,
    /// [`ANY_PARTITION`]: the whole topic.
    partition: i32,
}

impl Key {
    fn whole(topic: TopicId) -> Key {
        Key { topic, partition: ANY_PARTITION }
    }

    fn of(topic: TopicId, partition: Option<i32>) -> Key {
        Key { topic, partition: partition.unwrap_or(ANY_PARTITION) }
    }

    pub(super) fn partition(self) -> Option<i32> {
        (self.partition != ANY_PARTITION).then_some(self.partition)
    }
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

/// A record that is to be set aside.
#[derive(Clone, Copy)]
struct Queued {
    opaque: Opaque,
    reason: Reason,
    /// The sink has it; else it is parked in the in-flight table.
    in_flight: bool,
}

struct Hold {
    /// Its place in the order in which holds began.
    number: u64,
    reason: Reason,
    since_unix_ms: i64,
    phase: Phase,
    pause_ns: u64,
    /// To be set aside, by number.
    queue: BTreeMap<Lsn, Queued>,
    /// What the sink has of the partition belongs into the queue.
    gathers: bool,
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
    /// Records that lie behind newer ones; and the highest number so far. What went live has no
    /// order with the rest: what lies behind it alone is `beside`, and has its turn where it lies.
    early: BTreeSet<(Lsn, LogPosition)>,
    beside: BTreeSet<(Lsn, LogPosition)>,
    highest_in_place: Lsn,
    highest: Lsn,
    early_reader: Option<AsideReader>,
    /// Those that can never be delivered, and their own reader: a topic may have many of them.
    guilty: BTreeSet<LogPosition>,
    guilty_reader: Option<AsideReader>,
    /// Found at open: the main log may bring older ones.
    is_old: bool,
    /// Everything below this number is final, but for what is early, beside or in the queue.
    low: Lsn,
    /// Who waits for a record of a partition that is held: that is no verdict.
    receipts: BTreeMap<LogPosition, u32>,
}

impl Hold {
    fn new(reason: Reason, since_unix_ms: i64, mark: LogPosition) -> Hold {
        Hold {
            number: 0,
            reason,
            since_unix_ms,
            phase: Phase::Held { probe_at_ns: 0 },
            pause_ns: PROBE_NS,
            queue: BTreeMap::new(),
            gathers: false,
            records: 0,
            mark,
            open: BTreeMap::new(),
            handed: 0,
            read_to: mark,
            reader: None,
            early: BTreeSet::new(),
            beside: BTreeSet::new(),
            highest_in_place: Lsn(0),
            highest: Lsn(0),
            early_reader: None,
            guilty: BTreeSet::new(),
            guilty_reader: None,
            is_old: false,
            low: Lsn(0),
            receipts: BTreeMap::new(),
        }
    }

    /// A record is in the set-aside log.
    fn added(&mut self, lsn: Lsn, position: LogPosition, is_live: bool) {
        if self.records == 0 && self.open.is_empty() {
            self.mark = position;
            self.low = lsn;
        }
        self.records += 1;
        if !is_live && lsn < self.highest_in_place {
            self.early.insert((lsn, position));
        } else if lsn < self.highest {
            self.beside.insert((lsn, position));
        }
        if !is_live {
            self.highest_in_place = self.highest_in_place.max(lsn);
        }
        self.highest = self.highest.max(lsn);
    }

    /// The highest number that is its own, set aside or still to be.
    fn newest(&self) -> Lsn {
        let queued = self.queue.last_key_value().map_or(Lsn(0), |(lsn, _)| *lsn);
        self.highest.max(queued)
    }

    /// The next record that comes out of its place, before the one with this number.
    fn early_before(&self, lsn: Lsn) -> Option<(Lsn, LogPosition)> {
        let is_due = |at: &LogPosition| self.open.get(at).is_none_or(|o| o.fate == Fate::Failed);
        let before = self.early.range(..(lsn, LogPosition::default()));
        before.copied().find(|(_, at)| is_due(at))
    }

    fn has_read(&mut self, position: LogPosition) {
        let LogPosition { segment, offset } = position;
        self.read_to = self.read_to.max(LogPosition { segment, offset: offset + 1 });
        self.move_mark();
    }

    /// Those of its records on their way that others wait for. What is held again doesn't count: a
    /// partition that is silent holds up nobody's way back.
    fn on_the_way(&self) -> usize {
        let flows = matches!(self.phase, Phase::Draining | Phase::Flowing);
        if flows { self.handed } else { 0 }
    }

    /// Nothing more is handed over before `probe_at_ns`.
    fn fall_back(&mut self, probe_at_ns: u64) {
        match &mut self.phase {
            Phase::Held { .. } => {}
            phase => {
                // Newer ones may have flown meanwhile.
                self.gathers |= *phase == Phase::Flowing;
                *phase = Phase::Held { probe_at_ns };
            }
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
            self.beside.remove(&(open.lsn, position));
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
            self.low = self.low.max(first.remove().lsn.next());
        }
    }
}

/// All that is held.
#[derive(Default)]
pub(super) struct Holds {
    all: BTreeMap<Key, Hold>,
    /// Holds that ever began.
    begun: u64,
    /// How far what isn't held any more is redriven.
    marks: BTreeMap<Key, LogPosition>,
    /// Set-aside segments that hold records of held topics.
    segments: BTreeSet<u64>,
    /// Set-aside segments that hold dead letters.
    dead: BTreeSet<u64>,
    /// Opaques on their way: ours, and those of records that the sink had before.
    tickets: HashMap<u64, (Key, LogPosition)>,
    /// The latter among them.
    gathered: usize,
    /// The first record of each line of the span, and since when it is that.
    fronts: [(Lsn, u64); 2],
    /// Where the last record was set aside.
    placed: Option<LogPosition>,
    next_ticket: u64,
    /// Reasons that an earlier run may have had, and those seen.
    names: Vec<&'static str>,
    /// Most records on their way.
    window: usize,
    /// Records that were set aside because their topic is held, ever.
    #[cfg(test)]
    pub(super) moved: u64,
    #[cfg(test)]
    pub(super) moved_of_partitions: u64,
}

impl Holds {
    /// What earlier runs left: `marks` say how far their topics are redriven. `found` is told each
    /// record that isn't final, with its topic and reason.
    pub(super) fn find(
        wal: Option<&Wal>,
        window: usize,
        marks: BTreeMap<Key, LogPosition>,
        mut found: impl FnMut(TopicId, &'static str),
    ) -> Holds {
        let mut names = TOPIC_REASONS.to_vec();
        names.push(PARTITION_STALLED);
        let mut holds = Holds { marks, window, names, ..Holds::default() };
        let Some(wal) = wal else { return holds };
        let mut reader = wal.aside_reader(0);
        loop {
            match wal.read_aside(&mut reader) {
                AsideItem::Record(aside) => {
                    let (segment, topic) = (aside.position.segment, aside.record.topic);
                    let Some((name, partition)) = aside.note.held() else {
                        holds.dead.insert(segment);
                        continue;
                    };
                    let (reason, key) = (word(&holds.names, name), Key::of(topic, partition));
                    holds.segments.insert(segment);
                    let mark = holds.mark_of(key);
                    if aside.position < mark {
                        continue;
                    }
                    let reason = Reason { name: reason, code: aside.note.code };
                    let hold = holds.begin(key, || Hold::new(reason, aside.note.unix_ms, mark));
                    hold.added(aside.lsn, aside.position, aside.note.is_live());
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
        self.all.is_empty()
    }

    /// The hold of `key`, a new one if there is none.
    fn begin(&mut self, key: Key, new: impl FnOnce() -> Hold) -> &mut Hold {
        let begun = &mut self.begun;
        self.all.entry(key).or_insert_with(|| {
            *begun += 1;
            Hold { number: *begun, ..new() }
        })
    }

    /// Whether Kafka owes a report for any record that is redriven.
    pub(super) fn are_on_the_way(&self) -> bool {
        !self.tickets.is_empty()
    }

    /// What is held.
    pub(super) fn held(&self) -> impl Iterator<Item = Key> + '_ {
        self.all.keys().copied()
    }

    fn mark_of(&self, key: Key) -> LogPosition {
        self.marks.get(&key).copied().unwrap_or_default()
    }

    /// What of this topic is held.
    fn of_topic(&self, topic: TopicId) -> impl Iterator<Item = (&Key, &Hold)> {
        self.all.range(Key::whole(topic)..=Key { topic, partition: i32::MAX })
    }

    /// Whether a record that goes to `partition` is held back.
    pub(super) fn keeps(&self, topic: TopicId, partition: Option<i32>) -> bool {
        let keeps = |key| self.all.get(&key).is_some_and(|h| h.phase != Phase::Flowing);
        keeps(Key::whole(topic)) || keeps(Key::of(topic, partition))
    }

    /// The hold of the record's partition, when newer ones wait there: it goes before them, also if
    /// the whole topic is refused by now.
    fn older_of(&mut self, topic: TopicId, partition: Option<i32>, lsn: Lsn) -> Option<&mut Hold> {
        let holds_newer = |h: &&mut Hold| h.phase != Phase::Flowing && lsn <= h.newest();
        let whole = self.all.get_mut(&Key::whole(topic)).filter(holds_newer).map(|h| h.number);
        let own = self.all.get_mut(&Key::of(topic, Some(partition?))).filter(holds_newer)?;
        whole.is_none_or(|number| own.number < number).then_some(own)
    }

    /// Whether what was held before this, and what may hold older records of it, isn't through yet.
    fn waits_for_older(&self, key: Key) -> bool {
        let Some(hold) = self.all.get(&key) else { return false };
        let goes_first = |h: &Hold| h.number < hold.number && h.phase != Phase::Flowing;
        if key.partition().is_some() {
            return self.all.get(&Key::whole(key.topic)).is_some_and(goes_first);
        }
        self.of_topic(key.topic).any(|(_, h)| goes_first(h))
    }

    /// A dead letter lies in this segment: nobody but its owner removes it.
    pub(super) fn has_dead(&mut self, position: LogPosition) {
        self.dead.insert(position.segment);
    }

    /// How far each topic and partition is redriven, for the checkpoint.
    pub(super) fn marks(&self) -> impl Iterator<Item = (Key, LogPosition)> + '_ {
        let held = self.all.iter().map(|(key, hold)| (*key, hold.mark));
        let rest = self.marks.iter().filter(|(key, _)| !self.all.contains_key(key));
        held.chain(rest.map(|(key, mark)| (*key, *mark)))
    }

    /// What `stats` says of them; the names are filled in by the caller.
    pub(super) fn tell(&self, to: &mut Vec<HeldTopic>, name: impl Fn(TopicId) -> String) {
        to.clear();
        to.extend(self.all.iter().map(|(key, hold)| HeldTopic {
            topic: name(key.topic),
            partition: key.partition(),
            reason: hold.reason.name,
            code: hold.reason.code,
            since_unix_ms: hold.since_unix_ms,
            records: hold.records + hold.queue.len() as u64,
            redriving: matches!(hold.phase, Phase::Draining | Phase::Flowing),
        }));
    }
}

/// How far what was held is redriven, by the checkpoint's account.
pub(super) fn marks_of(topics: &[TopicBooks], table: &TopicTable) -> BTreeMap<Key, LogPosition> {
    let mut marks = BTreeMap::new();
    for books in topics {
        let partitions = books.redriven_partitions.iter().map(|(p, mark)| (Some(*p), *mark));
        let whole = (books.redriven != LogPosition::default()).then_some((None, books.redriven));
        for (partition, mark) in partitions.chain(whole) {
            marks.insert(Key::of(table.intern(&books.name), partition), mark);
        }
    }
    marks
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
        let partition = self.seq.partition_of(opaque);
        let (holds, key) = (&mut self.holds, Key::whole(topic));
        if !holds.names.contains(&reason.name) {
            holds.names.push(reason.name);
        }
        if let Some(hold) = holds.older_of(topic, partition, lsn) {
            hold.queue.insert(lsn, Queued { opaque, reason, in_flight: false });
            self.changed = true;
            return;
        }
        let mark = holds.mark_of(key);
        let hold = holds.begin(key, || {
            tracing::warn!(topic = %name, reason = reason.name, "the topic is held; its records are set aside until it can be had");
            let mut hold = Hold::new(reason, unix_ms, mark);
            hold.phase = Phase::Held { probe_at_ns: now_ns + PROBE_NS };
            hold
        });
        hold.reason = reason;
        hold.fall_back(now_ns + hold.pause_ns);
        hold.queue.insert(lsn, Queued { opaque, reason, in_flight: false });
        self.changed = true;
    }

    /// Whether the record waits because its topic, or the partition that it must go to, is held.
    pub(super) fn hold_back(
        &mut self,
        topic: TopicId,
        partition: Option<i32>,
        lsn: Lsn,
        opaque: Opaque,
    ) -> bool {
        let holds = |key: Key| self.holds.all.get(&key).filter(|h| h.phase != Phase::Flowing);
        let (whole, own) = (Key::whole(topic), Key::of(topic, partition));
        let key = match (holds(whole), holds(own).filter(|_| own != whole)) {
            (None, None) => return false,
            (Some(_), None) => whole,
            (None, Some(_)) => own,
            // A record of before belongs to the first that may hold newer ones, a new one to the
            // last.
            (Some(w), Some(o)) => {
                let (older, first, last) =
                    if w.number < o.number { (w, whole, own) } else { (o, own, whole) };
                if lsn <= older.newest() { first } else { last }
            }
        };
        let Some(hold) = self.holds.all.get_mut(&key) else { return false };
        hold.queue.insert(lsn, Queued { opaque, reason: hold.reason, in_flight: false });
        self.seq.park(opaque);
        self.changed = true;
        true
    }

    /// Writes what is held back to the set-aside log, in order, as far as the log can serve.
    pub(super) fn set_aside_held(&mut self) {
        let mut keys: Vec<Key> = self.holds.held().collect();
        // A topic and one of its partitions may both be held. The older hold has the older records: a
        // crash must not leave newer ones of a partition without them.
        keys.sort_by_key(|key| self.holds.all.get(key).map(|hold| hold.number));
        for key in keys {
            self.gather(key);
            while let Some((lsn, queued)) = self.next_queued(key) {
                let Queued { opaque, reason, in_flight } = queued;
                self.holds.placed = None;
                if !self.aside_one(&Parked { opaque, reason, held: Some(key) }) {
                    return;
                }
                let placed = self.holds.placed.take();
                let Some(hold) = self.holds.all.get_mut(&key) else { break };
                hold.queue.remove(&lsn);
                if let Some(at) = placed.filter(|_| in_flight) {
                    hold.open.insert(at, Open { lsn, reason: reason.name, fate: Fate::Handed });
                    hold.handed += 1;
                    self.holds.tickets.insert(opaque.0, (key, at));
                    self.holds.gathered += 1;
                }
            }
        }
    }

    /// A record of what is held is in the set-aside log.
    pub(super) fn held_is_aside(
        &mut self,
        key: Key,
        lsn: Lsn,
        position: LogPosition,
        is_live: bool,
    ) {
        self.holds.segments.insert(position.segment);
        self.holds.placed = Some(position);
        #[cfg(test)]
        {
            self.holds.moved += 1;
            self.holds.moved_of_partitions += u64::from(key.partition().is_some());
        }
        if let Some(hold) = self.holds.all.get_mut(&key) {
            hold.added(lsn, position, is_live);
        }
    }
}
