//! Owns the flusher's side: look, pop, view, release.
//!
//! The release table has an entry for each slot, indexed by lane sequence. A frame may be
//! released in any order; credits go back as far as everything before is released too. They are
//! stored when a 64th of the lane has come together, and at each look: a store for each frame
//! would take the credits' cache line from the senders each time.

use super::lanes::{Lanes, Start};
use super::options::LaneOptions;
use super::order::Order;
use super::orderings::{Point, release};
use super::slots::PADDING;
use super::word::{UNIT_BYTES, Word, widen};
use crate::record::{RecordView, Shape, TopicId};
use crate::sync::{Ordering, StaticAtomicU64};
use std::io;
use std::sync::Arc;

/// State of an entry of the release table, in its two highest bits; the rest is units.
const HELD: u32 = 1 << 30;
const RELEASED: u32 = 1 << 31;
const STATE: u32 = HELD | RELEASED;

/// Credits are stored when this share of the lane has come together.
const CREDIT_SHARE: usize = 64;

static NEXT_DRAIN: StaticAtomicU64 = StaticAtomicU64::new(0);

/// The flusher's side of all lanes. There is one.
pub struct Drain {
    lanes: Arc<Lanes>,
    sides: Box<[Side]>,
    /// Differs between all drains of the process: a frame is good for its own drain only.
    id: u64,
}

/// What the drain knows of one lane.
struct Side {
    /// Units and state by lane sequence; 0 when not popped yet.
    table: Box<[u32]>,
    /// Everything below is released, and the units up to there.
    released_seq: u64,
    released_position: u32,
    /// What was found published, and what is next of it.
    order: Order,
    /// As `released_seq`, as far as senders were told.
    credited: Word,
    popped: u64,
    padding: u64,
    /// Popped and not released.
    held: u64,
}

/// A record that was popped and not released yet: where it lies, and all about it but its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame {
    drain: u64,
    seq: u64,
    timestamp_ms: i64,
    topic: TopicId,
    partition: i32,
    shape: Shape,
    lane: u32,
    at: u32,
    span: u32,
    receipt: u32,
}

impl Frame {
    /// The lane.
    #[must_use]
    pub fn lane(&self) -> usize {
        self.lane as usize
    }

    /// The record's number on its lane, from 0, in the order of reservation.
    #[must_use]
    pub fn lane_seq(&self) -> u64 {
        self.seq
    }

    /// The topic.
    #[must_use]
    pub fn topic(&self) -> TopicId {
        self.topic
    }

    /// The partition that the caller asked for, or [`crate::record::ANY_PARTITION`].
    #[must_use]
    pub fn partition(&self) -> i32 {
        self.partition
    }

    /// CreateTime: milliseconds since the Unix epoch.
    #[must_use]
    pub fn timestamp_ms(&self) -> i64 {
        self.timestamp_ms
    }

    /// The lengths of the parts.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The receipt that waits for the record, or [`super::NO_RECEIPT`].
    #[must_use]
    pub fn receipt(&self) -> u32 {
        self.receipt
    }

    /// Bytes of the arena that the frame holds until it is released.
    #[must_use]
    pub fn arena_bytes(&self) -> usize {
        self.span as usize * UNIT_BYTES
    }
}

/// One lane at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LaneLook {
    /// Reserved so far: records accepted, and padding.
    pub head_seq: u64,
    /// Popped so far, padding included.
    pub popped: u64,
    /// Padding popped so far. Accepted records are `head_seq - padding`.
    pub padding: u64,
    /// Published and not popped.
    pub queued: usize,
    /// Frames that are popped and not released.
    pub held: u64,
    /// Bytes of the arena that are reserved and not released.
    pub used_bytes: u64,
    /// Slots that are reserved and not released.
    pub used_slots: u64,
    /// The lowest lane sequence that was not popped. If the lane has been popped empty since
    /// a look that showed the same number below `head_seq`, its sender stopped before publishing
    /// it: a hole.
    pub oldest_unpopped: u64,
    /// Whether the lane is closed: then `head_seq` is final.
    pub closed: bool,
}

impl LaneLook {
    /// Published so far, padding included: what every send that had returned before the look is
    /// part of.
    #[must_use]
    pub fn published(&self) -> u64 {
        self.popped + self.queued as u64
    }

    /// Reserved and not yet published: senders between reserve and publish.
    #[must_use]
    pub fn unpublished(&self) -> u64 {
        self.head_seq.saturating_sub(self.published())
    }

    /// Whether the lane is closed and everything was popped.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.closed && self.popped == self.head_seq
    }
}

impl Lanes {
    /// Makes the lanes, faults their memory in, and returns both sides.
    ///
    /// # Errors
    /// When an option is out of range (the message says what is allowed), or when the kernel
    /// refuses memory.
    pub fn new(options: &LaneOptions) -> io::Result<(Arc<Lanes>, Drain)> {
        options.check()?;
        Lanes::with_start(options, Start::default())
    }

    /// As `new`, with counters that begin anywhere; see [`Lanes::senders`].
    pub(super) fn with_start(
        options: &LaneOptions,
        start: Start,
    ) -> io::Result<(Arc<Lanes>, Drain)> {
        let lanes = Lanes::senders(options, start)?;
        Ok((lanes.clone(), Drain::new(lanes)))
    }
}

impl Drain {
    fn new(lanes: Arc<Lanes>) -> Drain {
        let start = lanes.start;
        let side = |_| Side {
            table: vec![0; lanes.options.lane_slots].into_boxed_slice(),
            released_seq: start.seq,
            released_position: start.position,
            order: Order::new(start.seq),
            credited: Word::new(start.position, start.seq as u32),
            popped: start.seq,
            padding: 0,
            held: 0,
        };
        let sides = (0..lanes.options.lanes).map(side).collect();
        // Relaxed: the numbers only have to differ.
        let id = NEXT_DRAIN.fetch_add(1, Ordering::Relaxed);
        Drain { sides, lanes, id }
    }

    /// How many lanes there are; they are numbered from 0.
    #[must_use]
    pub fn lane_count(&self) -> usize {
        self.sides.len()
    }

    /// The callers' side.
    #[must_use]
    pub fn lanes(&self) -> &Arc<Lanes> {
        &self.lanes
    }

    /// Looks at a lane, and gives back all credits that have come together.
    ///
    /// `lane` must be below [`Drain::lane_count`]; anything else is a caller's bug and panics.
    pub fn look(&mut self, lane: usize) -> LaneLook {
        self.credit(lane);
        let head = self.scan(lane);
        let side = &self.sides[lane];
        let head_seq = widen(side.released_seq, head.seq());
        LaneLook {
            head_seq,
            popped: side.popped,
            padding: side.padding,
            queued: side.order.len(),
            held: side.held,
            used_bytes: u64::from(head.units_since(side.credited)) * UNIT_BYTES as u64,
            used_slots: head_seq - side.released_seq,
            oldest_unpopped: side.order.oldest(),
            closed: head.is_closed(),
        }
    }

    /// Finds what was published since the last scan; returns the reservation word that it read.
    fn scan(&mut self, lane: usize) -> Word {
        let Drain { lanes, sides, .. } = self;
        let (side, words) = (&mut sides[lane], &lanes.lanes[lane]);
        let head = Word(words.reservation.0.load(Ordering::Relaxed));
        // A child has no slots to look at.
        if !lanes.arena.is_forked() {
            let mark = |seq: u64| {
                // SAFETY: a slot of this lane, and no fork.
                let slot = unsafe { lanes.arena.slot(&words.share, (seq as u32) << 1) };
                slot.mark(seq)
            };
            side.order.scan(widen(side.released_seq, head.seq()), mark);
        }
        head
    }

    /// Takes the next record of a lane. Padding is released and counted on the way. In a fork of
    /// the lanes' own process there is none.
    ///
    /// `lane` must be below [`Drain::lane_count`]; anything else is a caller's bug and panics.
    #[inline]
    pub fn pop(&mut self, lane: usize) -> Option<Frame> {
        if self.lanes.arena.is_forked() {
            return None;
        }
        loop {
            let seq = match self.sides[lane].order.next() {
                Some(seq) => seq,
                None => {
                    self.scan(lane);
                    self.sides[lane].order.next()?
                }
            };
            let (frame, is_padding) = self.take(lane, seq);
            if !is_padding {
                return Some(frame);
            }
            self.sides[lane].padding += 1;
            self.release(&frame);
        }
    }

    /// The frame of a sequence that the lane's order has given out, and whether it is padding.
    #[inline]
    fn take(&mut self, lane: usize, seq: u64) -> (Frame, bool) {
        let words = &self.lanes.lanes[lane];
        // SAFETY: the slot is this lane's, and the order gives out what was found published, each
        // once; it is not given back before it is released. `pop` has seen that this is no fork.
        let d = unsafe { self.lanes.arena.slot(&words.share, (seq as u32) << 1).descriptor() };
        let side = &mut self.sides[lane];
        let mask = side.table.len() as u64 - 1;
        let span = d.span & !PADDING;
        side.table[(seq & mask) as usize] = span | HELD;
        side.popped += 1;
        side.held += 1;
        let frame = Frame {
            drain: self.id,
            seq,
            timestamp_ms: d.timestamp_ms,
            topic: d.topic,
            partition: d.partition,
            shape: d.shape(),
            lane: lane as u32,
            at: d.at,
            span,
            receipt: d.receipt,
        };
        (frame, d.span & PADDING != 0)
    }

    /// Whether `frame` is this drain's and not released yet.
    #[inline]
    fn holds(&self, frame: &Frame) -> bool {
        if frame.drain != self.id {
            return false;
        }
        let side = &self.sides[frame.lane as usize];
        let slot = frame.seq as usize & (side.table.len() - 1);
        // Below `released_seq` the entry may be that of a newer frame.
        frame.seq >= side.released_seq && side.table[slot] & STATE == HELD
    }

    /// The record's bytes, in place. `None` if the frame was released, is another drain's, or
    /// if this process is a fork of the lanes' own.
    #[inline]
    #[must_use]
    pub fn view<'a>(&'a self, frame: &Frame) -> Option<RecordView<'a>> {
        if !self.holds(frame) || self.lanes.arena.is_forked() {
            return None;
        }
        let share = &self.lanes.lanes[frame.lane as usize].share;
        let offset = frame.at as usize * UNIT_BYTES;
        // SAFETY: the frame was popped and is not released (`holds`), so its range is the
        // drain's, and stays so during `'a`: release takes `&mut self`. The pop's acquire made
        // its bytes visible. The frame's fields are those of its descriptor, so it lies within.
        let body = unsafe { self.lanes.arena.bytes(share, offset, frame.shape.body_len()) };
        Some(RecordView {
            topic: frame.topic,
            partition: frame.partition,
            timestamp_ms: frame.timestamp_ms,
            shape: frame.shape,
            body,
        })
    }

    /// Gives a frame's bytes and slot back, in any order. False, and nothing happens, if it was
    /// released before or is another drain's.
    #[inline]
    pub fn release(&mut self, frame: &Frame) -> bool {
        if !self.holds(frame) {
            return false;
        }
        let side = &mut self.sides[frame.lane as usize];
        let mask = side.table.len() as u64 - 1;
        side.table[(frame.seq & mask) as usize] ^= STATE;
        side.held -= 1;
        loop {
            let entry = &mut side.table[(side.released_seq & mask) as usize];
            if *entry & STATE != RELEASED {
                break;
            }
            side.released_position = side.released_position.wrapping_add(*entry & !STATE);
            *entry = 0;
            side.released_seq += 1;
        }
        let options = &self.lanes.options;
        let now = Word::new(side.released_position, side.released_seq as u32);
        if now.records_since(side.credited) as usize * CREDIT_SHARE >= options.lane_slots
            || now.units_since(side.credited) as usize * UNIT_BYTES * CREDIT_SHARE
                >= options.lane_bytes
        {
            self.credit(frame.lane as usize);
        }
        true
    }

    /// Tells the senders of a lane what was released.
    fn credit(&mut self, lane: usize) {
        let side = &mut self.sides[lane];
        let now = Word::new(side.released_position, side.released_seq as u32);
        if now != side.credited {
            side.credited = now;
            self.lanes.lanes[lane].credits.0.store(now.0, release(Point::Credits));
        }
    }
}

impl std::fmt::Debug for Drain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Drain").field("lanes", &self.lanes).finish_non_exhaustive()
    }
}
