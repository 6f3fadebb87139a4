//! Owns [`Sequence`]: the three cursors over one log's numbers, and the moves between them.
//!
//! Memory holds every record from `journaled` on; the in-flight table every one from `acked`
//! to `produced`; the log's backlog is what lies between `produced` and `journaled`. The three
//! together cover everything that is not final.

use super::books::Books;
use super::inflight::{InFlight, Line, NO_SLOT, State};
use super::live::Live;
use super::words::{Backlog, End, Finished, Journal, Limits, Next, Popped, Source, Verdict};
use crate::record::{ANY_PARTITION, LogPosition, Lsn, TopicId};
use crate::report::{Opaque, Outcome, Scope};
use std::collections::VecDeque;

#[derive(Clone, Hash, Debug)]
pub(super) struct Held<F> {
    pub(super) popped: Popped<F>,
    pub(super) slot: u32,
    pub(super) done: bool,
}

/// Records popped by one look: up to which number, and when the oldest of them came.
#[derive(Clone, Copy, Hash, Debug)]
struct Batch {
    end: Lsn,
    oldest_ns: u64,
}

/// Rules that a test switches off to see the checker catch it.
#[cfg(test)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Broken {
    /// Rule 1: the newest record enters the log first.
    pub(crate) journal_order: bool,
    /// Rule 2: journaling a record that is in flight makes it be produced again.
    pub(crate) produced_once: bool,
    /// Rule 3: the span has no bound.
    pub(crate) span: bool,
    /// Rule 4: a frame is released when it is handed over.
    pub(crate) release_after_journal: bool,
    /// Rule 5: the reader doesn't pass over what went live.
    pub(crate) live_once: bool,
    /// Rule 5: `acked` goes by the live line alone.
    pub(crate) acked_of_both: bool,
    /// Rule 5: the backlog doesn't wait for what is older and live.
    pub(crate) older_live_first: bool,
}

/// One sequence of records over one log. `F` names an arena frame.
#[derive(Clone, Debug)]
pub struct Sequence<F> {
    pub(super) limits: Limits,
    pub(super) next: Lsn,
    pub(super) produced: Lsn,
    /// Where live records go beside the backlog.
    pub(super) live: Option<Live>,
    /// From here on records are in memory: `memory[i]` has number `journaled + i`.
    pub(super) journaled: Lsn,
    pub(super) memory: VecDeque<Held<F>>,
    batches: VecDeque<Batch>,
    batch_open: bool,
    pub(super) in_flight: InFlight,
    /// The log holds records from `produced` on that have not been admitted.
    pub(super) backlog: Option<LogPosition>,
    released: Vec<F>,
    pub(super) books: Books,
    #[cfg(test)]
    pub(crate) broken: Broken,
}

impl<F: Copy> Sequence<F> {
    /// A sequence whose first own number is `next`, above everything on disk.
    #[must_use]
    pub fn new(limits: Limits, next: Lsn) -> Self {
        Sequence {
            limits,
            next,
            produced: next,
            live: Live::of(&limits, next),
            journaled: next,
            memory: VecDeque::new(),
            batches: VecDeque::new(),
            batch_open: false,
            in_flight: InFlight::new(),
            backlog: None,
            released: Vec::new(),
            books: Books::default(),
            #[cfg(test)]
            broken: Broken::default(),
        }
    }

    /// The log already holds `records` of `topic` that are not final. Said once a topic, before
    /// anything else.
    pub fn recovered(&mut self, topic: TopicId, records: u64) {
        let books = self.books.topic(topic);
        books.recovered += records;
        books.in_wal += records;
    }

    /// The log counted this many more records, of topics that nobody knows any more.
    pub fn recovered_unknown(&mut self, records: u64) {
        self.books.recovered_unknown += records;
    }

    /// The recovered backlog begins here, with number `first`.
    pub fn recovered_from(&mut self, position: LogPosition, first: Lsn) {
        self.backlog = Some(position);
        self.produced = first.min(self.produced);
    }

    // ---- popping -------------------------------------------------------------------------

    /// A record left its lane: it gets the next number.
    pub fn popped(&mut self, popped: Popped<F>) -> Lsn {
        let lsn = self.next;
        self.next = lsn.next();
        match self.batches.back_mut().filter(|_| self.batch_open) {
            Some(b) => {
                b.end = self.next;
                b.oldest_ns = b.oldest_ns.min(popped.arrival_ns);
            }
            None => {
                self.batches.push_back(Batch { end: self.next, oldest_ns: popped.arrival_ns });
                self.batch_open = true;
            }
        }
        let books = self.books.topic(popped.topic);
        books.popped += 1;
        books.in_flight += 1;
        self.memory.push_back(Held { popped, slot: NO_SLOT, done: false });
        lsn
    }

    /// The look is over: records popped from now on form a batch of their own, with an age of
    /// their own.
    pub fn end_batch(&mut self) {
        self.batch_open = false;
    }

    // ---- producing -----------------------------------------------------------------------

    /// The next step of the `produced` cursor. Changes nothing that matters until
    /// [`Sequence::handed`]: a sink that is busy is simply asked again later.
    pub fn next_produce(&mut self) -> Next<F> {
        if let Some(slot) = self.in_flight.next_waiting(Line::Main) {
            return if self.waits_for_live(slot) { Next::LiveFirst } else { self.to_produce(slot) };
        }
        if self.is_span_full() {
            let nothing_left = self.backlog.is_none() && self.produced >= self.next;
            return if nothing_left { Next::Idle } else { Next::SpanFull };
        }
        if self.backlog.is_some() {
            return Next::Read;
        }
        self.produced = self.produced.max(self.journaled);
        if self.live.is_some() {
            return Next::Idle;
        }
        while let Some(held) = self.memory.get((self.produced.0 - self.journaled.0) as usize) {
            if held.done {
                self.produced = self.produced.next();
                continue;
            }
            if self.limits.journal == Journal::First {
                return Next::JournalFirst;
            }
            let p = held.popped;
            let slot = self.in_flight.admit(Line::Main, self.produced, p.topic, p.bytes, p.receipt);
            let at = (self.produced.0 - self.journaled.0) as usize;
            self.memory[at].slot = slot;
            self.produced = self.produced.next();
            return self.to_produce(slot);
        }
        Next::Idle
    }

    pub(super) fn to_produce(&self, slot: u32) -> Next<F> {
        let Some(entry) = self.in_flight.get(slot) else { return Next::Idle };
        match self.source(slot) {
            Some(source) => {
                let opaque = self.in_flight.opaque(slot);
                Next::Produce { opaque, lsn: entry.lsn, topic: entry.topic, source }
            }
            None => Next::Idle,
        }
    }

    /// Where the bytes of an entry lie: the log if it has them, else memory. One of the two
    /// always holds, since memory lets go only of what is final or journaled.
    fn source(&self, slot: u32) -> Option<Source<F>> {
        let entry = self.in_flight.get(slot)?;
        if let Some(position) = entry.journaled {
            return Some(Source::Log(position));
        }
        let at = entry.lsn.0.checked_sub(self.journaled.0)?;
        self.memory.get(at as usize).map(|h| Source::Memory(h.popped.frame))
    }

    fn is_span_full(&self) -> bool {
        #[cfg(test)]
        if self.broken.span {
            return false;
        }
        if let Some(live) = &self.live
            && live.is_share_full(&self.limits, &self.in_flight)
        {
            return true;
        }
        self.in_flight.span_records() >= self.limits.in_flight_max_records
            || self.in_flight.span_bytes() >= self.limits.in_flight_max_bytes
    }

    /// The sink took the record and put it into `partition`.
    pub fn handed(&mut self, opaque: Opaque, partition: i32) {
        let Some(slot) = self.in_flight.find(opaque) else { return };
        self.in_flight.set_state(slot, State::Handed);
        if let Some(entry) = self.in_flight.get_mut(slot) {
            entry.partition = partition;
        }
        #[cfg(test)]
        if self.broken.release_after_journal
            && let Some(Source::Memory(frame)) = self.source(slot)
        {
            self.released.push(frame);
        }
    }

    /// Where to read the backlog from when a reader is set up anew.
    #[must_use]
    pub fn backlog_from(&self) -> Option<LogPosition> {
        self.backlog
    }

    /// A record read at the `produced` cursor. The reader stands behind it now. One that was
    /// admitted before is passed over: a reader that is set up anew starts at the last of them.
    pub fn admit(&mut self, frame: Backlog) {
        if frame.lsn < self.produced || self.passes_over(&frame) {
            return;
        }
        self.backlog = Some(frame.position);
        let Backlog { lsn, topic, bytes, receipt, .. } = frame;
        let slot = self.in_flight.admit(Line::Main, lsn, topic, bytes, receipt);
        if let Some(entry) = self.in_flight.get_mut(slot) {
            entry.journaled = Some(frame.position);
        }
        self.books.topic(frame.topic).replayed += 1;
        self.produced = frame.lsn.next();
    }

    /// The log could not give back this many records that it had counted.
    pub fn damaged(&mut self, records: u64) {
        match &mut self.live {
            // What of it went live is told apart at the next frame.
            Some(live) if live.has_ahead() => live.damaged += records,
            _ => self.books.damaged += records,
        }
    }

    /// The reader has read everything that was appended: the backlog is admitted.
    pub fn caught_up(&mut self) {
        self.judge_damage(self.journaled);
        self.backlog = None;
        self.produced = self.produced.max(self.journaled);
        self.no_backlog();
    }

    // ---- reports -------------------------------------------------------------------------

    /// A report came.
    pub fn reported(&mut self, opaque: Opaque, outcome: Outcome) -> Verdict<F> {
        let Some(slot) = self.in_flight.find(opaque) else { return Verdict::Stale };
        let Some(entry) = self.in_flight.get(slot) else { return Verdict::Stale };
        if !matches!(entry.state, State::Handed | State::Waiting) {
            return Verdict::Stale;
        }
        let (lsn, topic) = (entry.lsn, entry.topic);
        match outcome {
            Outcome::Delivered => match self.end(slot, End::Delivered) {
                Some(finished) => Verdict::Finished(finished),
                None => Verdict::Stale,
            },
            Outcome::Failed {
                scope: scope @ (Scope::Record | Scope::Batch | Scope::Topic),
                reason,
                ..
            } => {
                self.in_flight.set_state(slot, State::Parked);
                match self.source(slot) {
                    Some(source) => Verdict::SetAside { lsn, topic, source, scope, reason },
                    None => Verdict::Stale,
                }
            }
            Outcome::Failed { scope: Scope::Transient, possibly_persisted: false, .. } => {
                self.books.reordered += 1;
                self.in_flight.again(slot);
                Verdict::Again
            }
            // Whatever the broker may hold already is produced again by a new instance only: the
            // old one might still deliver it behind the second copy.
            Outcome::Failed {
                scope: Scope::Instance | Scope::Transient,
                reason,
                possibly_persisted,
            } => {
                self.books.duplicates_possible += u64::from(possibly_persisted);
                self.in_flight.again(slot);
                Verdict::Rebuild(reason)
            }
        }
    }

    /// The record's topic is held: it is not to be handed over, and waits to be set aside.
    pub fn park(&mut self, opaque: Opaque) {
        if let Some(slot) = self.in_flight.find(opaque)
            && self.in_flight.get(slot).is_some_and(|e| e.state == State::Waiting)
        {
            self.in_flight.set_state(slot, State::Parked);
        }
    }

    /// Records of this topic between `acked` and `produced` whose fate is open: they wait to be
    /// handed over, or for their report.
    #[must_use]
    pub fn owed_of(&self, topic: TopicId) -> u64 {
        self.in_flight.owed_of(topic)
    }

    /// Whether a record of this topic with a number below `lsn` is owed that goes before it: a
    /// live one doesn't wait for the backlog.
    #[must_use]
    pub fn owes_before(&self, topic: TopicId, lsn: Lsn, of: Opaque) -> bool {
        let owes = |line| self.in_flight.owes_before(line, topic, lsn);
        self.in_flight.owed_of(topic) > 0
            && (owes(Line::Live) || (!of.is_live() && owes(Line::Main)))
    }

    /// What the sink has of this partition and owes a report for, in order.
    #[must_use]
    pub fn handed_to(&self, topic: TopicId, partition: i32) -> Vec<(Lsn, Opaque)> {
        let slots = self.in_flight.handed_to(topic, partition);
        slots.filter_map(|s| Some((self.in_flight.get(s)?.lsn, self.in_flight.opaque(s)))).collect()
    }

    /// The first record of a line, and where it went, if the sink owes a report for it.
    #[must_use]
    pub fn first_handed(&self, line: Line) -> Option<(Lsn, TopicId, i32)> {
        let entry = self.in_flight.first(line).filter(|e| e.state == State::Handed)?;
        Some((entry.lsn, entry.topic, entry.partition))
    }

    /// Whether the sink owes a report for it.
    #[must_use]
    pub fn is_handed(&self, opaque: Opaque) -> bool {
        let slot = self.in_flight.find(opaque);
        slot.and_then(|s| self.in_flight.get(s)).is_some_and(|e| e.state == State::Handed)
    }

    /// Whether a record below `lsn` that goes before it has to be handed over, or handed over again:
    /// a live one doesn't wait for the backlog.
    pub fn waits_before(&mut self, lsn: Lsn, of: Opaque) -> bool {
        let mut waits = |line| {
            let slot = self.in_flight.next_waiting(line);
            slot.and_then(|s| self.in_flight.get(s)).is_some_and(|e| e.lsn < lsn)
        };
        waits(Line::Live) || (!of.is_live() && waits(Line::Main))
    }

    /// Where the bytes of a parked record lie now: the log may have got them meanwhile.
    #[must_use]
    pub fn source_of(&self, opaque: Opaque) -> Option<(Lsn, Source<F>)> {
        let slot = self.in_flight.find(opaque)?;
        Some((self.in_flight.get(slot)?.lsn, self.source(slot)?))
    }

    /// Where the sink put the record when it took it last.
    #[must_use]
    pub fn partition_of(&self, opaque: Opaque) -> Option<i32> {
        let partition = self.in_flight.get(self.in_flight.find(opaque)?)?.partition;
        (partition != ANY_PARTITION).then_some(partition)
    }

    /// Carries out a verdict that was parked, or gives a record up.
    pub fn finish(&mut self, opaque: Opaque, end: End) -> Option<Finished> {
        let slot = self.in_flight.find(opaque)?;
        self.end(slot, end)
    }

    fn end(&mut self, slot: u32, end: End) -> Option<Finished> {
        let entry = *self.in_flight.get(slot)?;
        if entry.state == State::Done {
            return None;
        }
        let books = self.books.topic(entry.topic);
        if entry.journaled.is_some() {
            books.in_wal -= 1;
        } else {
            books.in_flight -= 1;
        }
        Self::count(books, end);
        let mut arrival_ns = None;
        if entry.journaled.is_none() {
            let at = (entry.lsn.0 - self.journaled.0) as usize;
            arrival_ns = self.memory.get(at).map(|h| h.popped.arrival_ns);
            self.let_go(entry.lsn);
        }
        self.in_flight.done(slot);
        self.forget_ahead();
        Some(Finished {
            lsn: entry.lsn,
            topic: entry.topic,
            receipt: entry.receipt,
            arrival_ns,
            end,
        })
    }

    fn count(books: &mut super::TopicBooks, end: End) {
        match end {
            End::Delivered => books.delivered += 1,
            End::SetAside(reason) => books.set_aside.add(reason, 1),
            End::Dropped(reason) => books.dropped.add(reason, 1),
        }
    }

    /// Gives up everything that is in memory only (a pipeline without a log that closes).
    pub fn abandon(&mut self, reason: &'static str) -> Vec<Finished> {
        let slots: Vec<u32> = self.in_flight.unfinished(self.next).collect();
        let end = End::Dropped(reason);
        let mut finished: Vec<Finished> = slots
            .into_iter()
            .filter(|s| self.in_flight.get(*s).is_some_and(|e| e.journaled.is_none()))
            .collect::<Vec<_>>()
            .into_iter()
            .filter_map(|slot| self.end(slot, end))
            .collect();
        while let Some(held) = self.memory.front() {
            let p = held.popped;
            let lsn = self.journaled;
            let books = self.books.topic(p.topic);
            books.in_flight -= 1;
            Self::count(books, end);
            finished.push(Finished {
                lsn,
                topic: p.topic,
                receipt: p.receipt,
                arrival_ns: Some(p.arrival_ns),
                end,
            });
            self.let_go(lsn);
        }
        finished
    }

    // ---- held topics: what was set aside is not the end of it ------------------------------

    /// An earlier run set this record aside while its topic was held.
    pub fn recovered_aside(&mut self, topic: TopicId, reason: &'static str) {
        let books = self.books.topic(topic);
        books.recovered += 1;
        books.set_aside.add(reason, 1);
    }

    /// A record that was set aside for `reason` is final in another way now.
    pub fn redriven(&mut self, topic: TopicId, reason: &'static str, end: End) {
        let books = self.books.topic(topic);
        books.set_aside.take(reason);
        Self::count(books, end);
    }

    /// A record that was set aside is handed over again after a failed try: `duplicate` when the
    /// first copy may have been kept.
    pub fn redriven_again(&mut self, duplicate: bool) {
        if duplicate {
            self.books.duplicates_possible += 1;
        } else {
            self.books.reordered += 1;
        }
    }

    // ---- making room ---------------------------------------------------------------------

    /// The log is about to let go of everything below `end`: what of it was admitted ends here,
    /// in order. A record that the sink has may still arrive; its report finds nothing any more.
    pub fn drop_admitted(&mut self, end: Lsn, reason: &'static str) -> Vec<Finished> {
        let slots: Vec<u32> = self.in_flight.unfinished(end).collect();
        slots.into_iter().filter_map(|slot| self.end(slot, End::Dropped(reason))).collect()
    }

    /// The same for a record of the backlog, read at the `produced` cursor instead of admitted.
    pub fn end_unread(&mut self, frame: Backlog, end: End) -> Option<Finished> {
        if frame.lsn < self.produced || self.passes_over(&frame) {
            return None;
        }
        self.backlog = Some(frame.position);
        self.produced = frame.lsn.next();
        let books = self.books.topic(frame.topic);
        books.in_wal -= 1;
        Self::count(books, end);
        let Backlog { lsn, topic, receipt, .. } = frame;
        Some(Finished { lsn, topic, receipt, arrival_ns: None, end })
    }

    /// Nothing below `end` is left in the log.
    pub fn dropped_below(&mut self, end: Lsn) {
        self.judge_damage(end.min(self.journaled));
        self.produced = self.produced.max(end.min(self.journaled));
        self.forget_ahead();
    }

    /// A new instance begins: everything that is not final is produced again from `acked`.
    pub fn rebuilt(&mut self) {
        self.books.duplicates_possible += self.in_flight.new_instance();
    }

    // ---- journal -------------------------------------------------------------------------

    /// The next record to put into the log, if its number is below `target`.
    #[must_use]
    pub fn next_append(&self, target: Lsn) -> Option<(Lsn, F)> {
        #[cfg(test)]
        if self.broken.journal_order {
            let (at, held) = self.memory.iter().enumerate().rev().find(|(_, h)| !h.done)?;
            let lsn = Lsn(self.journaled.0 + at as u64);
            return (self.journaled < target).then_some((lsn, held.popped.frame));
        }
        let held = self.memory.front()?;
        (self.journaled < target).then_some((self.journaled, held.popped.frame))
    }

    /// The log has the record that [`Sequence::next_append`] named.
    pub fn appended(&mut self, lsn: Lsn, position: LogPosition) {
        let Some(at) = lsn.0.checked_sub(self.journaled.0) else { return };
        let Some(held) = self.memory.get(at as usize) else { return };
        let (slot, topic) = (held.slot, held.popped.topic);
        let books = self.books.topic(topic);
        books.in_flight -= 1;
        books.in_wal += 1;
        books.spilled += 1;
        if slot == NO_SLOT {
            // Not admitted yet: it, and everything journaled after it, is backlog.
            self.backlog.get_or_insert(position);
        } else if let Some(entry) = self.in_flight.get_mut(slot) {
            entry.journaled = Some(position);
            let is_live = entry.line == Line::Live;
            if is_live {
                self.went_ahead(lsn);
            }
            #[cfg(test)]
            if self.broken.produced_once {
                self.in_flight.again(slot);
            }
        }
        self.let_go(lsn);
    }

    /// Memory needs this record no longer: its frame goes back, and the `journaled` cursor
    /// passes everything at the front that is gone.
    fn let_go(&mut self, lsn: Lsn) {
        let Some(at) = lsn.0.checked_sub(self.journaled.0) else { return };
        let Some(held) = self.memory.get_mut(at as usize) else { return };
        if held.done {
            return;
        }
        held.done = true;
        self.released.push(held.popped.frame);
        while self.memory.front().is_some_and(|h| h.done) {
            self.memory.pop_front();
            self.journaled = self.journaled.next();
        }
        while self.batches.front().is_some_and(|b| b.end <= self.journaled) {
            self.batches.pop_front();
        }
    }

    /// Everything up to here came at or before `cutoff_ns`, or must enter the log before
    /// something that did. [`Sequence::journaled`] itself when nothing is that old.
    #[must_use]
    pub fn journal_target(&self, cutoff_ns: u64) -> Lsn {
        let old = self.batches.iter().rev().find(|b| b.oldest_ns <= cutoff_ns);
        old.map_or(self.journaled, |b| b.end)
    }

    /// Frames that may go back to their lanes; the caller empties the list.
    pub fn released(&mut self) -> &mut Vec<F> {
        &mut self.released
    }

    // ---- looking -------------------------------------------------------------------------

    /// The next number that a popped record gets.
    #[must_use]
    pub fn next(&self) -> Lsn {
        self.next
    }

    /// The next record to put into the log.
    #[must_use]
    pub fn journaled(&self) -> Lsn {
        self.journaled
    }

    /// The next record to admit.
    #[must_use]
    pub fn produced(&self) -> Lsn {
        self.produced
    }

    /// Everything below is final.
    #[must_use]
    pub fn acked(&self) -> Lsn {
        let first = |line| self.in_flight.first(line).map(|e| e.lsn);
        #[cfg(test)]
        if self.broken.acked_of_both
            && let Some(live) = &self.live
        {
            return first(Line::Live).unwrap_or(live.cursor);
        }
        let main = first(Line::Main).unwrap_or(self.produced);
        first(Line::Live).map_or(main, |live| live.min(main))
    }

    /// Records in memory only; not final, not journaled.
    #[must_use]
    pub fn unsafe_records(&self) -> u64 {
        self.books.in_flight()
    }

    /// When the oldest record in memory came; never later than the truth.
    #[must_use]
    pub fn oldest_unsafe_ns(&self) -> Option<u64> {
        self.batches.iter().map(|b| b.oldest_ns).min()
    }

    /// Records popped that no instance has been given.
    #[must_use]
    pub fn waiting_in_memory(&self) -> u64 {
        let cursor = self.live.as_ref().map_or(self.produced, |live| live.cursor);
        self.next.0 - cursor.0.clamp(self.journaled.0, self.next.0)
    }

    /// Records that the sink owes a report for.
    #[must_use]
    pub fn handed_records(&self) -> usize {
        self.in_flight.handed()
    }

    /// Numbers between `acked` and `produced`; with live records first, entries of both lines.
    #[must_use]
    pub fn span_records(&self) -> usize {
        self.in_flight.span_records()
    }

    /// Whether everything that was popped or recovered is final.
    #[must_use]
    pub fn all_final(&self) -> bool {
        self.backlog.is_none() && self.memory.is_empty() && self.in_flight.span_records() == 0
    }

    /// The books.
    #[must_use]
    pub fn books(&self) -> &Books {
        &self.books
    }
}

#[cfg(test)]
impl<F: Copy> Sequence<F> {
    /// What decides the future, for the explorer: no counter that only grows, and of a frame
    /// only what `of_frame` says.
    pub(crate) fn canonical<T: std::hash::Hash>(
        &self,
        of_frame: impl Fn(F) -> T,
        to: &mut impl std::hash::Hasher,
    ) {
        use std::hash::Hash;
        (self.next, self.produced, self.journaled, self.backlog.is_some()).hash(to);
        self.live.hash(to);
        for held in &self.memory {
            (held.done, held.slot == NO_SLOT).hash(to);
            if !held.done {
                of_frame(held.popped.frame).hash(to);
            }
        }
        self.in_flight.canonical(to);
    }
}
