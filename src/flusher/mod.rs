//! Owns the flusher: the only place where lanes, sequence, log and sink meet.
//!
//! `Flusher::look` is one turn: take reports, take records from the lanes, hand over, journal,
//! release, publish. It has no thread, clock or wait of its own; `run` gives it those, and the
//! simulator drives it without them. In a healthy run it touches no file.

mod ages;
mod drill;
mod guest;
mod hold;
mod journal;
mod produce;
mod publish;
mod rates;
#[cfg(test)]
mod read_tests;
mod room;
pub(crate) mod run;
#[cfg(test)]
mod tests;

use crate::clock::Clock;
use crate::config::WalFull;
use crate::keeper::KeeperLink;
use crate::lane::{Drain, Frame, LaneLook};
use crate::record::{Lsn, NO_RECEIPT, TopicId};
use crate::report::{Opaque, Reason, Report};
use crate::sequence::policy::{self, Timing, Waiting};
use crate::sequence::{Finished, Journal, Limits, Popped, Sequence};
use crate::shared::Shared;
use crate::sink::{Sink, SinkState};
use crate::wal::{Reader, Recovery, Wal};
use ages::Ages;
use guest::Guest;
pub(crate) use guest::GuestOptions;
use hdrhistogram::Histogram;
use hold::{Holds, Key};
use std::collections::VecDeque;
use std::sync::Arc;

/// Bytes that a frame counts against the span beyond its body.
const RECORD_OVERHEAD_BYTES: usize = 64;
/// Records handed over in one look, so that a look stays short while a backlog drains.
const PRODUCE_PER_LOOK: usize = 8_192;
/// A hole in a lane older than this is a state.
const LANE_STALLED_NS: u64 = 100_000_000;
/// How often the sink is asked for its state when nothing presses.
const STATE_EVERY_NS: u64 = 10_000_000;

/// What `look` was given to work with.
pub(crate) struct Parts {
    pub(crate) drain: Drain,
    pub(crate) sink: Box<dyn Sink>,
    /// The log and where the directory's keeper listens; `None` for at-most-once.
    pub(crate) wal: Option<(Wal, Arc<KeeperLink>)>,
    pub(crate) recovery: Recovery,
    pub(crate) shared: Arc<Shared>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) timing: Timing,
    pub(crate) wal_full: WalFull,
    pub(crate) guest: GuestOptions,
    /// Live records go beside the backlog, which may take so much of the span.
    pub(crate) backlog_percent: Option<u8>,
    pub(crate) in_flight_max_records: usize,
    pub(crate) in_flight_max_bytes: u64,
    pub(crate) lane_bytes: u64,
    pub(crate) lane_slots: u64,
    pub(crate) memory_bytes: u64,
}

/// A record whose verdict is to be set aside, until that is done.
struct Parked {
    opaque: Opaque,
    reason: Reason,
    /// What of it is held: it will be delivered later.
    held: Option<Key>,
}

/// A flush that somebody waits for.
struct FlushTicket {
    number: u64,
    /// How far each lane must be popped; emptied once it is.
    heads: Vec<u64>,
    /// Everything below must be final.
    target: Lsn,
}

/// See the module.
pub(crate) struct Flusher {
    drain: Drain,
    lanes: Vec<LaneState>,
    seq: Sequence<Frame>,
    sink: Box<dyn Sink>,
    sink_state: SinkState,
    sink_asked_ns: u64,
    wal: Option<Wal>,
    keeper: Option<Arc<KeeperLink>>,
    reader: Option<Reader>,
    wal_full: WalFull,
    /// Everything below is being dropped, to make room in the log.
    dropping: Option<Lsn>,
    /// Reads of the log that fail now.
    reads: [produce::ReadTrouble; 3],
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    timing: Timing,
    lane_bytes: u64,
    lane_slots: u64,
    reports: Vec<Report>,
    parked: VecDeque<Parked>,
    holds: Holds,
    guest: Guest,
    drill: Option<drill::Drill>,
    /// The first number of this run: what is below was found in the log.
    own_from: Lsn,
    /// Of tracked records in the log, by number.
    receipts: VecDeque<(Lsn, u32)>,
    flushes: VecDeque<FlushTicket>,
    flush_seen: u64,
    names: Vec<Arc<str>>,
    stalled_lanes: Vec<usize>,
    /// The sink's state knows of every topic announced; it is to be published.
    announced: bool,
    rebuilding: bool,
    /// When the sink last acknowledged a record, or had nothing to do.
    answered_ns: u64,
    /// The sink didn't take what it was offered last.
    held_up: bool,
    instance_broken: Option<String>,
    close: Option<u64>,
    last_look_ns: u64,
    worst_look_ns: u64,
    changed: bool,
    figures: Figures,
}

struct LaneState {
    ages: Ages,
    look: LaneLook,
    hole: Option<Hole>,
}

impl LaneState {
    /// When the oldest record that waits in the lane came, if one does. One that its sender is
    /// still at isn't accepted, and has no age.
    fn oldest_ns(&mut self) -> Option<u64> {
        if self.look.queued == 0 {
            return None;
        }
        self.ages.oldest(self.look.oldest_unpopped)
    }
}

/// The lowest record of a lane that isn't popped. It is a hole, its sender still at it, once all
/// that was published when it was first seen has been popped without it.
#[derive(Clone, Copy)]
struct Hole {
    seq: u64,
    since_ns: u64,
    published: u64,
    /// It is a hole, and has been for longer than [`LANE_STALLED_NS`].
    is_stalled: bool,
}

impl Hole {
    /// What `look` at `now_ns` says of the hole that was there before, if any.
    fn of(before: Option<Hole>, look: &LaneLook, now_ns: u64) -> Option<Hole> {
        if look.unpublished() == 0 {
            return None;
        }
        let seq = look.oldest_unpopped;
        let first = Hole { seq, since_ns: now_ns, published: look.published(), is_stalled: false };
        let hole = before.filter(|hole| hole.seq == seq).unwrap_or(first);
        let is_stalled =
            look.popped >= hole.published && now_ns.saturating_sub(hole.since_ns) > LANE_STALLED_NS;
        Some(Hole { is_stalled, ..hole })
    }
}

/// Counters and histograms that only the flusher moves.
struct Figures {
    looks: u64,
    look_gap_us: Histogram<u64>,
    delivery_us: Histogram<u64>,
    rebuilds: u64,
    last_rebuild_reason: Option<String>,
    exposed: bool,
    exposed_count: u64,
    append_failures: u64,
    wal_unavailable: Option<String>,
    wal_failed_ns: u64,
    aside_unavailable: Option<String>,
    quarantined: u64,
    findings: Vec<String>,
    lost_at_most: u64,
    /// Recovered records: each may have been handed over by the run before.
    handed_before: u64,
    accepted_before: u64,
    delivered_before: u64,
    memory_bytes: u64,
}

/// What a look leaves to its caller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Looked {
    /// How long the flusher may sleep; 0 when there is more to do at once.
    pub(crate) sleep_ns: u64,
}

fn histogram(high: u64) -> Histogram<u64> {
    // Two digits over a fixed range: the bounds are constants, so this can't fail; the
    // fallback keeps it free of a panic all the same.
    Histogram::new_with_bounds(1, high, 2)
        .or_else(|_| Histogram::new(2))
        .unwrap_or_else(|_| unreachable!("2 significant digits are within hdrhistogram's 0 to 5"))
}

impl Flusher {
    pub(crate) fn new(parts: Parts) -> Self {
        let now_ns = parts.clock.now_ns();
        let recovery = parts.recovery;
        let mut drain = parts.drain;
        let lanes = (0..drain.lane_count())
            .map(|i| {
                let look = drain.look(i);
                LaneState { ages: Ages::new(now_ns, look.head_seq), look, hole: None }
            })
            .collect();
        let journal = match (&parts.wal, parts.timing.loss_window_ns) {
            (None, _) => Journal::Off,
            (Some(_), Some(0)) => Journal::First,
            (Some(_), _) => Journal::Spill,
        };
        let limits = Limits {
            in_flight_max_records: parts.in_flight_max_records,
            in_flight_max_bytes: parts.in_flight_max_bytes,
            journal,
            backlog_percent: parts.backlog_percent,
        };
        let first = Lsn((parts.clock.unix_ms().max(0) as u64 / 1000) << 32).max(recovery.next_lsn);
        let mut seq = Sequence::new(limits, first);
        let mut known = 0;
        for (name, records) in &recovery.records_by_topic {
            seq.recovered(parts.shared.topics.intern(name), *records);
            known += records;
        }
        seq.recovered_unknown(recovery.records.saturating_sub(known));
        let before = recovery.checkpoint.clone().unwrap_or_default();
        if let Some(position) = recovery.backlog {
            // Not from the first record that can be read: damaged ones before it count once the
            // reader comes to them, and their segments must not go before that.
            let found = recovery.first_lsn.unwrap_or(first);
            seq.recovered_from(position, found.min(before.watermark));
        }
        let (wal, keeper) = parts.wal.unzip();
        let marks = hold::marks_of(&before.topics, &parts.shared.topics);
        let mut held = 0;
        let holds =
            Holds::find(wal.as_ref(), parts.in_flight_max_records, marks, |topic, reason| {
                seq.recovered_aside(topic, reason);
                held += 1;
            });
        let damage = &recovery.damage;
        let figures = Figures {
            looks: 0,
            look_gap_us: histogram(60_000_000),
            delivery_us: histogram(3_600_000_000),
            rebuilds: 0,
            last_rebuild_reason: None,
            exposed: false,
            exposed_count: 0,
            append_failures: 0,
            wal_unavailable: None,
            wal_failed_ns: 0,
            aside_unavailable: None,
            quarantined: damage.ranges_quarantined + damage.segments_foreign,
            findings: damage.findings.clone(),
            handed_before: recovery.records + held,
            lost_at_most: before.unsafe_records,
            accepted_before: before.accepted,
            delivered_before: before.delivered,
            memory_bytes: parts.memory_bytes,
        };
        let mut sink = parts.sink;
        for (name, _) in &recovery.records_by_topic {
            sink.announce(name);
        }
        for key in holds.held() {
            if let Some(name) = parts.shared.topics.name(key.topic) {
                sink.announce(&name);
            }
        }
        Flusher {
            drain,
            lanes,
            seq,
            sink_state: sink.state(),
            sink,
            sink_asked_ns: now_ns,
            wal,
            keeper,
            reader: None,
            wal_full: parts.wal_full,
            guest: Guest::new(parts.guest, now_ns),
            drill: None,
            dropping: None,
            reads: Default::default(),
            shared: parts.shared,
            clock: parts.clock,
            timing: parts.timing,
            lane_bytes: parts.lane_bytes,
            lane_slots: parts.lane_slots,
            reports: Vec::new(),
            parked: VecDeque::new(),
            holds,
            own_from: first,
            receipts: VecDeque::new(),
            flushes: VecDeque::new(),
            flush_seen: 0,
            names: Vec::new(),
            stalled_lanes: Vec::new(),
            announced: false,
            rebuilding: false,
            answered_ns: now_ns,
            held_up: false,
            instance_broken: None,
            close: None,
            last_look_ns: now_ns,
            worst_look_ns: policy::LOOK_MAX_NS,
            changed: true,
            figures,
        }
    }

    /// Switches rules of the sequence off, to see that the simulator's checker notices.
    #[cfg(test)]
    pub(crate) fn break_rules(&mut self, broken: crate::sequence::Broken) {
        self.seq.broken = broken;
    }

    /// Records that this run has set aside because their topic is held.
    #[cfg(test)]
    pub(crate) fn held_moves(&self) -> u64 {
        self.holds.moved
    }

    /// Of those, the ones whose partition alone is.
    #[cfg(test)]
    pub(crate) fn held_partition_moves(&self) -> u64 {
        self.holds.moved_of_partitions
    }

    /// Whether anything is held, or on its way back.
    #[cfg(test)]
    pub(crate) fn is_holding(&self) -> bool {
        !self.holds.is_empty()
    }

    /// Whether a whole topic is.
    #[cfg(test)]
    pub(crate) fn is_holding_a_topic(&self) -> bool {
        self.holds.held().any(|key| key.partition().is_none())
    }

    /// One turn at `now_ns`.
    pub(crate) fn look(&mut self, now_ns: u64) -> Looked {
        self.begin(now_ns);
        self.leave_failed_segments();
        self.forgive_wal(now_ns);
        self.serve(now_ns);
        let is_gone = !self.sink_state.connected || self.rebuilding || self.stands_still();
        self.guest.tick(now_ns, self.seq.handed_records(), is_gone);
        self.set_aside_parked();
        // Before the lanes: what was sent before a request was made is seen at the look after.
        let asked = self.shared.flush_asked();
        let is_asked = self.take_requests();
        let waiting = self.look_at_lanes(now_ns);
        self.open_flush(asked);
        self.rehearse(now_ns);
        let hurry = is_asked || !self.flushes.is_empty() || self.close.is_some();
        let cutoff_ns = policy::journal_cutoff_ns(&self.timing, self.worst_look_ns, now_ns);
        let too_old = self.wal.is_some()
            && waiting.oldest_ns.zip(cutoff_ns).is_some_and(|(oldest, cutoff)| oldest <= cutoff);
        if hurry || too_old || policy::flush_is_due(&self.timing, &waiting, now_ns) {
            self.pop_all();
        }
        if hurry {
            self.sink.hurry();
        }
        let dropping = self.drop_oldest(now_ns);
        if let Some(cutoff_ns) = cutoff_ns {
            self.journal_to(self.seq.journal_target(cutoff_ns));
        }
        let mut more = dropping;
        if !self.stands_still() {
            more |= self.redrive_held(now_ns);
            more |= self.produce(now_ns);
        }
        self.watch_front(now_ns);
        if !self.holds.is_empty() {
            self.set_aside_held();
        }
        self.release();
        if self.seq.span_records() == 0 && !self.held_up {
            self.answered_ns = now_ns;
        }
        self.relieve_lanes();
        self.finish(now_ns);
        let sleep_ns = if more { 0 } else { self.sleep_ns(now_ns, &waiting) };
        Looked { sleep_ns }
    }

    fn begin(&mut self, now_ns: u64) {
        let gap = now_ns.saturating_sub(self.last_look_ns);
        self.last_look_ns = now_ns;
        // The worst gap fades by an eighth a look, so that one hiccup doesn't count for ever.
        let faded = self.worst_look_ns - self.worst_look_ns / 8;
        self.worst_look_ns = gap.max(faded).max(policy::LOOK_MAX_NS);
        self.figures.looks += 1;
        self.shared.step();
        self.figures.look_gap_us.saturating_record((gap / 1000).max(1));
        self.shared.heartbeat_ns.store(now_ns.max(1), crate::sync::Ordering::Release);
    }

    /// Notes what is in the lanes, and says what of it waits.
    fn look_at_lanes(&mut self, now_ns: u64) -> Waiting {
        let mut waiting = Waiting { records: self.seq.waiting_in_memory(), ..Waiting::default() };
        for (i, lane) in self.lanes.iter_mut().enumerate() {
            let look = self.drain.look(i);
            self.changed |= look != lane.look;
            lane.look = look;
            lane.ages.note(now_ns, look.head_seq, look.used_bytes);
            if look.queued == 0 {
                // What is still unpopped is in its sender's hands, and accepted from now on.
                lane.ages.begin(now_ns, look.head_seq);
            }
            waiting.records += look.queued as u64;
            if look.queued > 0 {
                waiting.bytes += look.used_bytes;
                waiting.lane_at_mark |= look.used_bytes * policy::FLUSH_MARK_PARTS
                    >= self.lane_bytes
                    || look.used_slots * policy::FLUSH_MARK_PARTS >= self.lane_slots;
            }
            let oldest = lane.oldest_ns();
            waiting.oldest_ns = match (waiting.oldest_ns, oldest) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            lane.hole = Hole::of(lane.hole, &look, now_ns);
        }
        self.set_stalled_lanes();
        waiting
    }

    /// Looks at a lane once more within a look, for what has changed since.
    fn look_again(&mut self, lane: usize) -> LaneLook {
        let look = self.drain.look(lane);
        self.lanes[lane].look = look;
        look
    }

    /// Takes everything that is in the lanes; each record gets its number.
    fn pop_all(&mut self) {
        for i in 0..self.lanes.len() {
            // No more than was there at the look: a fast sender can't keep us here.
            let mut left = self.lanes[i].look.queued;
            while left > 0 {
                let Some(frame) = self.drain.pop(i) else { break };
                left -= 1;
                let bytes = (frame.shape().body_len() + RECORD_OVERHEAD_BYTES) as u32;
                self.guest.arrived(bytes.into());
                self.seq.popped(Popped {
                    frame,
                    topic: frame.topic(),
                    bytes,
                    arrival_ns: self.lanes[i].ages.arrival(frame.lane_seq()),
                    receipt: frame.receipt(),
                });
                self.changed = true;
            }
        }
        self.seq.end_batch();
        let popped: Vec<u64> = (0..self.lanes.len()).map(|i| self.drain.look(i).popped).collect();
        let next = self.seq.next();
        for ticket in &mut self.flushes {
            if !ticket.heads.is_empty() && ticket.heads.iter().zip(&popped).all(|(h, p)| p >= h) {
                ticket.heads.clear();
                ticket.target = next;
            }
        }
    }

    /// A flush that was asked for before the lanes were looked at: for all that was published.
    fn open_flush(&mut self, asked: u64) {
        if asked > self.flush_seen {
            self.flush_seen = asked;
            let heads = self.lanes.iter().map(|l| l.look.published()).collect();
            self.flushes.push_back(FlushTicket { number: asked, heads, target: Lsn(u64::MAX) });
        }
    }

    /// New requests of callers. True when somebody waits for a receipt now.
    fn take_requests(&mut self) -> bool {
        if self.close.is_none() {
            self.close = self.shared.close_deadline_ns();
        }
        if self.shared.announced.load(crate::sync::Ordering::Acquire) {
            let topics = std::mem::take(&mut *self.shared.announce.lock());
            for topic in topics {
                self.sink.announce(&topic);
            }
            self.ask_sink(self.last_look_ns);
            self.announced = true;
            self.changed = true;
        }
        self.shared.take_hurry()
    }

    /// Gives frames back to their lanes.
    fn release(&mut self) {
        for frame in self.seq.released().drain(..) {
            self.drain.release(&frame);
        }
    }

    /// The topic's place in `names`, where it is from now on.
    fn know(&mut self, topic: TopicId) -> usize {
        while self.names.len() <= topic.0 as usize {
            let id = TopicId(self.names.len() as u32);
            // Every id that reaches us was interned; an empty name would be refused by the sink.
            self.names.push(self.shared.topics.name(id).unwrap_or_else(|| "".into()));
        }
        topic.0 as usize
    }

    fn name(&mut self, topic: TopicId) -> Arc<str> {
        let at = self.know(topic);
        self.names[at].clone()
    }

    /// Flushes that are done, receipts that are stale, the log's tail, the snapshot.
    fn finish(&mut self, now_ns: u64) {
        let acked = self.seq.acked();
        let is_final = acked.min(self.holds.partitions_low());
        while self.flushes.front().is_some_and(|f| f.heads.is_empty() && f.target <= is_final) {
            if let Some(ticket) = self.flushes.pop_front() {
                self.shared.set_flush_done(ticket.number);
                self.changed = true;
            }
        }
        while self.receipts.front().is_some_and(|(lsn, _)| *lsn < acked) {
            self.receipts.pop_front();
        }
        if let Some(wal) = &mut self.wal {
            wal.trim(acked);
        }
        self.publish(now_ns);
    }

    fn sleep_ns(&mut self, now_ns: u64, waiting: &Waiting) -> u64 {
        let mut to_mark: Option<u64> = None;
        for lane in &mut self.lanes {
            lane.ages.settled(lane.look.used_bytes);
            let room =
                (self.lane_bytes / policy::HIGH_MARK_PARTS).saturating_sub(lane.look.used_bytes);
            if let Some(t) = lane.ages.until_full_ns(room) {
                to_mark = Some(to_mark.map_or(t, |m| m.min(t)));
            }
        }
        let mut sleep = policy::sleep_ns(&self.timing, waiting, to_mark, now_ns);
        if let Some(t) = self.sink.next_deadline_ns(now_ns) {
            sleep = sleep.min(t.max(policy::LOOK_MIN_NS));
        }
        sleep
    }

    fn receipt_of(&self, lsn: Lsn) -> u32 {
        match self.receipts.binary_search_by_key(&lsn, |(l, _)| *l) {
            Ok(at) => self.receipts[at].1,
            Err(_) => NO_RECEIPT,
        }
    }

    /// A record is final: whoever waits for it hears of it.
    fn finished(&mut self, now_ns: u64, f: Finished) {
        use crate::sequence::End;
        self.changed = true;
        if f.end == End::Delivered {
            self.answered_ns = now_ns;
        }
        if f.lsn.0.is_multiple_of(16)
            && let (End::Delivered, Some(t)) = (f.end, f.arrival_ns)
        {
            self.figures.delivery_us.saturating_record((now_ns.saturating_sub(t) / 1000).max(1));
        }
        if f.receipt != NO_RECEIPT {
            match f.end {
                End::Delivered => self.shared.receipts.delivered(f.receipt),
                End::SetAside(_) => self.shared.receipts.set_aside(f.receipt),
                End::Dropped(_) => self.shared.receipts.dropped(f.receipt),
            }
        }
    }
}
