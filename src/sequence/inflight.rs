//! Owns the in-flight table: a slab of entries with generations, and two lines of them, each in the
//! order of their numbers: what the `produced` cursor admitted, and what the `live` one did. An
//! entry leaves once it is final and so is everything before it in its line; one of the main line
//! also waits for what is older in the live one. So whatever is final above `acked` is still here.

use crate::record::{ANY_PARTITION, LogPosition, Lsn, TopicId};
use crate::report::Opaque;
use std::collections::VecDeque;

/// Which cursor admitted an entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Line {
    /// `produced`: everything, or with live records first what was read from the log.
    Main = 0,
    /// `live`: what never waited in the log.
    Live = 1,
}

const LINES: [Line; 2] = [Line::Main, Line::Live];

/// No slot.
pub(super) const NO_SLOT: u32 = u32::MAX;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum State {
    /// Not handed to the sink, or to be handed again.
    Waiting,
    /// The sink has it and owes a report.
    Handed,
    /// A verdict is out and the flusher still has to carry it out (set aside).
    Parked,
    /// Final; waits for the entries before it.
    Done,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) lsn: Lsn,
    pub(super) topic: TopicId,
    /// Where the sink put it, once it has it.
    pub(super) partition: i32,
    pub(super) bytes: u32,
    pub(super) receipt: u32,
    pub(super) state: State,
    pub(super) line: Line,
    /// Where the log has it, once it has.
    pub(super) journaled: Option<LogPosition>,
    /// Its place in the order of its line.
    ticket: u64,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    generation: u32,
    entry: Option<Entry>,
}

/// `order` holds slots by admission; `cursor` is the ticket of the first entry that may still have
/// to be handed over.
#[derive(Clone, Debug, Default)]
struct Queue {
    order: VecDeque<u32>,
    first_ticket: u64,
    cursor: u64,
    bytes: u64,
}

/// The table.
#[derive(Clone, Debug)]
pub(super) struct InFlight {
    slots: Vec<Slot>,
    free: Vec<u32>,
    lines: [Queue; 2],
    handed: usize,
    /// Entries that wait or are handed, by topic.
    owed_of: Vec<u64>,
}

impl InFlight {
    pub(super) fn new() -> Self {
        InFlight {
            slots: Vec::new(),
            free: Vec::new(),
            lines: Default::default(),
            handed: 0,
            owed_of: Vec::new(),
        }
    }

    /// Entries of both lines, final ones included.
    pub(super) fn span_records(&self) -> usize {
        LINES.iter().map(|line| self.records_of(*line)).sum()
    }

    /// Their bytes.
    pub(super) fn span_bytes(&self) -> u64 {
        self.lines.iter().map(|l| l.bytes).sum()
    }

    pub(super) fn records_of(&self, line: Line) -> usize {
        self.lines[line as usize].order.len()
    }

    pub(super) fn bytes_of(&self, line: Line) -> u64 {
        self.lines[line as usize].bytes
    }

    /// A line's oldest entry.
    pub(super) fn first(&self, line: Line) -> Option<&Entry> {
        self.lines[line as usize].order.front().and_then(|s| self.get(*s))
    }

    /// The entry gets its place at the end of its line.
    pub(super) fn admit(
        &mut self,
        line: Line,
        lsn: Lsn,
        topic: TopicId,
        bytes: u32,
        receipt: u32,
    ) -> u32 {
        let queue = &self.lines[line as usize];
        let ticket = queue.first_ticket + queue.order.len() as u64;
        let entry = Entry {
            lsn,
            topic,
            partition: ANY_PARTITION,
            bytes,
            receipt,
            state: State::Waiting,
            line,
            journaled: None,
            ticket,
        };
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(Slot { generation: 0, entry: None });
                (self.slots.len() - 1) as u32
            }
        };
        self.slots[slot as usize].entry = Some(entry);
        let topic = topic.0 as usize;
        if self.owed_of.len() <= topic {
            self.owed_of.resize(topic + 1, 0);
        }
        self.owed_of[topic] += 1;
        let queue = &mut self.lines[line as usize];
        queue.order.push_back(slot);
        queue.bytes += u64::from(bytes);
        slot
    }

    pub(super) fn opaque(&self, slot: u32) -> Opaque {
        let s = &self.slots[slot as usize];
        let is_live = s.entry.is_some_and(|e| e.line == Line::Live);
        let opaque = u64::from(s.generation) << 32 | u64::from(slot);
        Opaque(opaque | if is_live { Opaque::LIVE } else { 0 })
    }

    /// The slot that `opaque` names, if its generation still stands.
    pub(super) fn find(&self, opaque: Opaque) -> Option<u32> {
        let slot = (opaque.0 & !Opaque::LIVE) as u32;
        let s = self.slots.get(slot as usize)?;
        (s.entry.is_some() && s.generation == (opaque.0 >> 32) as u32).then_some(slot)
    }

    /// The entry in `slot`, which came from `find`, `admit` or `next_waiting`.
    pub(super) fn get(&self, slot: u32) -> Option<&Entry> {
        self.slots.get(slot as usize)?.entry.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Entry> {
        self.slots.get_mut(slot as usize)?.entry.as_mut()
    }

    /// The first entry of a line that has to be handed over.
    pub(super) fn next_waiting(&mut self, line: Line) -> Option<u32> {
        let l = line as usize;
        loop {
            let queue = &self.lines[l];
            let slot = *queue.order.get((queue.cursor - queue.first_ticket) as usize)?;
            if self.get(slot).is_some_and(|e| e.state == State::Waiting) {
                return Some(slot);
            }
            self.lines[l].cursor += 1;
        }
    }

    /// The entry has to be handed over again: the cursor goes back to it.
    pub(super) fn again(&mut self, slot: u32) {
        self.set_state(slot, State::Waiting);
        if let Some((ticket, line)) = self.get(slot).map(|e| (e.ticket, e.line)) {
            let queue = &mut self.lines[line as usize];
            queue.cursor = queue.cursor.min(ticket);
        }
    }

    /// The entry is final. It and its final neighbours leave at the front of their lines.
    pub(super) fn done(&mut self, slot: u32) {
        self.set_state(slot, State::Done);
        self.leave(Line::Live);
        self.leave(Line::Main);
    }

    fn leave(&mut self, line: Line) {
        let older = match line {
            Line::Main => self.first(Line::Live).map(|e| e.lsn),
            Line::Live => None,
        };
        let queue = &mut self.lines[line as usize];
        while let Some(&front) = queue.order.front() {
            let s = &mut self.slots[front as usize];
            let Some(entry) = s.entry.filter(|e| e.state == State::Done) else { break };
            if older.is_some_and(|older| older < entry.lsn) {
                break;
            }
            s.entry = None;
            s.generation = s.generation.wrapping_add(1);
            queue.bytes -= u64::from(entry.bytes);
            self.free.push(front);
            queue.order.pop_front();
            queue.first_ticket += 1;
        }
        queue.cursor = queue.cursor.max(queue.first_ticket);
    }

    /// A new instance begins: what the old one owed has to be handed over again, under new
    /// generations. Returns how many that were.
    pub(super) fn new_instance(&mut self) -> u64 {
        let mut owed = 0;
        for queue in &mut self.lines {
            for slot in &queue.order {
                let s = &mut self.slots[*slot as usize];
                if let Some(entry) = s.entry.as_mut().filter(|e| e.state == State::Handed) {
                    entry.state = State::Waiting;
                    s.generation = s.generation.wrapping_add(1);
                    owed += 1;
                }
            }
            queue.cursor = queue.first_ticket;
        }
        self.handed = 0;
        owed
    }

    fn entries(&self, line: Line) -> impl Iterator<Item = (u32, &Entry)> {
        let slots = self.lines[line as usize].order.iter();
        slots.filter_map(|s| Some((*s, self.get(*s)?)))
    }

    /// Every entry below `end` that is not final, line by line in order.
    pub(super) fn unfinished(&self, end: Lsn) -> impl Iterator<Item = u32> + '_ {
        let below = move |line| self.entries(line).take_while(move |(_, e)| e.lsn < end);
        let both = below(Line::Main).chain(below(Line::Live));
        both.filter(|(_, e)| e.state != State::Done).map(|(slot, _)| slot)
    }

    /// The entries that the sink has put into this partition, line by line in order.
    pub(super) fn handed_to(&self, topic: TopicId, partition: i32) -> impl Iterator<Item = u32> {
        let is_there =
            move |e: &Entry| (e.state, e.topic, e.partition) == (State::Handed, topic, partition);
        let both = self.entries(Line::Main).chain(self.entries(Line::Live));
        both.filter(move |(_, e)| is_there(e)).map(|(slot, _)| slot)
    }

    /// Whether one of this topic below `lsn`, of this line, waits to be handed over or for its
    /// report.
    pub(super) fn owes_before(&self, line: Line, topic: TopicId, lsn: Lsn) -> bool {
        let is_owed = |e: &Entry| matches!(e.state, State::Waiting | State::Handed);
        let mut before = self.entries(line).take_while(|(_, e)| e.lsn < lsn);
        before.any(|(_, e)| e.topic == topic && is_owed(e))
    }

    /// How many of this topic wait to be handed over or for their report.
    pub(super) fn owed_of(&self, topic: TopicId) -> u64 {
        self.owed_of.get(topic.0 as usize).copied().unwrap_or(0)
    }

    /// How many the sink owes a report for.
    pub(super) fn handed(&self) -> usize {
        self.handed
    }

    pub(super) fn set_state(&mut self, slot: u32, state: State) {
        let Some(entry) = self.slots.get_mut(slot as usize).and_then(|s| s.entry.as_mut()) else {
            return;
        };
        self.handed -= usize::from(entry.state == State::Handed);
        self.handed += usize::from(state == State::Handed);
        let is_owed = |state| matches!(state, State::Waiting | State::Handed);
        let (was, is) = (is_owed(entry.state), is_owed(state));
        entry.state = state;
        if let Some(owed) = self.owed_of.get_mut(entry.topic.0 as usize) {
            *owed = *owed + u64::from(is) - u64::from(was);
        }
    }

    /// What decides the future: the entries in order, without slots, generations and tickets.
    #[cfg(test)]
    pub(super) fn canonical(&self, to: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        for line in LINES {
            let queue = &self.lines[line as usize];
            (queue.cursor - queue.first_ticket, queue.order.len()).hash(to);
            for (_, entry) in self.entries(line) {
                (entry.lsn.0, entry.state, entry.journaled.is_some()).hash(to);
            }
        }
    }
}
