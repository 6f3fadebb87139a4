//! Owns the in-flight table: a slab of entries with generations, and the order in which they
//! were admitted. An entry lives from its admission (at `produced`) until `acked` passes it.

use crate::record::{ANY_PARTITION, LogPosition, Lsn, TopicId};
use crate::report::Opaque;
use std::collections::VecDeque;

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
    /// Where the log has it, once it has.
    pub(super) journaled: Option<LogPosition>,
    /// Its place in the order of admission.
    ticket: u64,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    generation: u32,
    entry: Option<Entry>,
}

/// The table. `order` holds slots by admission; `cursor` is the ticket of the first entry that
/// may still have to be handed over.
#[derive(Clone, Debug)]
pub(super) struct InFlight {
    slots: Vec<Slot>,
    free: Vec<u32>,
    order: VecDeque<u32>,
    first_ticket: u64,
    cursor: u64,
    bytes: u64,
    handed: usize,
    /// Entries that wait or are handed, by topic.
    owed_of: Vec<u64>,
}

impl InFlight {
    pub(super) fn new() -> Self {
        InFlight {
            slots: Vec::new(),
            free: Vec::new(),
            order: VecDeque::new(),
            first_ticket: 0,
            cursor: 0,
            bytes: 0,
            handed: 0,
            owed_of: Vec::new(),
        }
    }

    /// Numbers between `acked` and `produced`, final ones included.
    pub(super) fn span_records(&self) -> usize {
        self.order.len()
    }

    /// Their bytes.
    pub(super) fn span_bytes(&self) -> u64 {
        self.bytes
    }

    /// The oldest entry.
    pub(super) fn first(&self) -> Option<&Entry> {
        self.order.front().and_then(|s| self.get(*s))
    }

    pub(super) fn admit(&mut self, lsn: Lsn, topic: TopicId, bytes: u32, receipt: u32) -> u32 {
        let ticket = self.first_ticket + self.order.len() as u64;
        let entry = Entry {
            lsn,
            topic,
            partition: ANY_PARTITION,
            bytes,
            receipt,
            state: State::Waiting,
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
        self.order.push_back(slot);
        self.bytes += u64::from(bytes);
        slot
    }

    pub(super) fn opaque(&self, slot: u32) -> Opaque {
        Opaque(u64::from(self.slots[slot as usize].generation) << 32 | u64::from(slot))
    }

    /// The slot that `opaque` names, if its generation still stands.
    pub(super) fn find(&self, opaque: Opaque) -> Option<u32> {
        let slot = opaque.0 as u32;
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

    /// The first entry in order that has to be handed over.
    pub(super) fn next_waiting(&mut self) -> Option<u32> {
        while let Some(&slot) = self.order.get((self.cursor - self.first_ticket) as usize) {
            if self.get(slot).is_some_and(|e| e.state == State::Waiting) {
                return Some(slot);
            }
            self.cursor += 1;
        }
        None
    }

    /// The entry has to be handed over again: the cursor goes back to it.
    pub(super) fn again(&mut self, slot: u32) {
        self.set_state(slot, State::Waiting);
        if let Some(ticket) = self.get(slot).map(|e| e.ticket) {
            self.cursor = self.cursor.min(ticket);
        }
    }

    /// The entry is final. It and its final neighbours leave at the front of the order.
    pub(super) fn done(&mut self, slot: u32) {
        self.set_state(slot, State::Done);
        while let Some(&front) = self.order.front() {
            let s = &mut self.slots[front as usize];
            let Some(entry) = s.entry.filter(|e| e.state == State::Done) else { break };
            s.entry = None;
            s.generation = s.generation.wrapping_add(1);
            self.bytes -= u64::from(entry.bytes);
            self.free.push(front);
            self.order.pop_front();
            self.first_ticket += 1;
        }
        self.cursor = self.cursor.max(self.first_ticket);
    }

    /// A new instance begins: what the old one owed has to be handed over again, under new
    /// generations. Returns how many that were.
    pub(super) fn new_instance(&mut self) -> u64 {
        let mut owed = 0;
        for slot in &self.order {
            let s = &mut self.slots[*slot as usize];
            if let Some(entry) = s.entry.as_mut().filter(|e| e.state == State::Handed) {
                entry.state = State::Waiting;
                s.generation = s.generation.wrapping_add(1);
                owed += 1;
            }
        }
        self.cursor = self.first_ticket;
        self.handed = 0;
        owed
    }

    /// Every entry that is not final, in order.
    pub(super) fn unfinished(&self) -> impl Iterator<Item = u32> + '_ {
        self.order.iter().copied().filter(|s| self.get(*s).is_some_and(|e| e.state != State::Done))
    }

    /// The entries that the sink has put into this partition, in order.
    pub(super) fn handed_to(&self, topic: TopicId, partition: i32) -> impl Iterator<Item = u32> {
        let is_there =
            move |e: &Entry| (e.state, e.topic, e.partition) == (State::Handed, topic, partition);
        self.order.iter().copied().filter(move |s| self.get(*s).is_some_and(is_there))
    }

    /// Whether one of this topic below `lsn` waits to be handed over or for its report.
    pub(super) fn owes_before(&self, topic: TopicId, lsn: Lsn) -> bool {
        let is_owed = |e: &Entry| matches!(e.state, State::Waiting | State::Handed);
        let entries = self.order.iter().filter_map(|s| self.get(*s));
        entries.take_while(|e| e.lsn < lsn).any(|e| e.topic == topic && is_owed(e))
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
        (self.cursor - self.first_ticket).hash(to);
        for entry in self.order.iter().filter_map(|s| self.get(*s)) {
            (entry.lsn.0, entry.state, entry.journaled.is_some()).hash(to);
        }
    }
}
