//! Owns [`Broker`]: the child's sink. What it appends survives the child in a file of events that
//! shares nothing with the log. It answers each partition in order, and by a plan drawn from a
//! seed it is healthy, slow, frozen, or frozen in one partition.

use crate::evidence::{Event, Evidence, Words, now_ns};
use crate::records::{Made, PARTITIONS, TOPICS, seen};
use forebay::record::RecordView;
use forebay::report::{Opaque, Outcome, Reason, Report, Scope};
use forebay::sink::{ProduceError, Sink, SinkState};
use forebay_testkit::Random;
use std::collections::VecDeque;
use std::io;

const QUEUES: usize = TOPICS.len() * PARTITIONS;
/// Requests that a partition takes ahead of its reports.
const QUEUE_MAX: usize = 200;
/// Requests of a frozen partition that already lie in the broker's socket: should the process
/// die, they may be appended all the same.
const IN_SOCKET_MAX: usize = 16;
const MS: u64 = 1_000_000;

/// A lie that the judge must notice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lie {
    /// Reports as delivered what it never appended, now and then.
    Loses,
    /// Appends some records behind later ones.
    Swaps,
    /// Appends everything three times.
    Repeats,
    /// Appends a record that was never sent.
    Invents,
    /// Appends a record with other bytes.
    Garbles,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mood {
    Healthy,
    Slow,
    Frozen,
    OneFrozen(usize),
}

#[derive(Clone, Copy, Debug)]
struct Request {
    opaque: Opaque,
    event: Event,
    in_socket: bool,
}

/// See the module.
pub struct Broker {
    queues: Vec<VecDeque<Request>>,
    events: Words,
    looks: Words,
    random: Random,
    seed: u64,
    mood: Mood,
    mood_until_ns: u64,
    /// Stays healthy.
    is_calm: bool,
    turn: usize,
    lie: Option<Lie>,
    /// Why nothing more is appended: the evidence can't be written.
    broken: Option<String>,
}

impl Broker {
    pub fn new(
        evidence: &Evidence,
        seed: u64,
        generation: u64,
        is_calm: bool,
        lie: Option<Lie>,
    ) -> io::Result<Broker> {
        let mut random = Random::new(seed ^ generation.rotate_left(32));
        let first = if random.within(0, 2) == 0 { Mood::Healthy } else { Mood::Frozen };
        Ok(Broker {
            queues: vec![VecDeque::new(); QUEUES],
            events: evidence.topic()?,
            looks: evidence.looks()?,
            mood: if is_calm { Mood::Healthy } else { first },
            mood_until_ns: now_ns() + random.within(20, 300) * MS,
            random,
            seed,
            is_calm,
            turn: 0,
            lie,
            broken: None,
        })
    }

    fn change_mood(&mut self, now_ns: u64) {
        if self.is_calm || now_ns < self.mood_until_ns {
            return;
        }
        self.mood = match self.random.within(0, 7) {
            0..=1 => Mood::Healthy,
            2 => Mood::Slow,
            3..=4 => Mood::OneFrozen(self.random.within(0, QUEUES as u64) as usize),
            _ => Mood::Frozen,
        };
        self.mood_until_ns = now_ns + self.random.within(20, 300) * MS;
    }

    /// Records that a partition may append now.
    fn budget(&mut self, queue: usize) -> usize {
        match self.mood {
            Mood::Frozen => 0,
            Mood::OneFrozen(frozen) if frozen == queue => 0,
            Mood::Slow => self.random.within(0, 4) as usize,
            _ => QUEUE_MAX,
        }
    }

    fn answer(&mut self, queue: usize, events: &mut Vec<Event>, reports: &mut Vec<Report>) {
        let budget = self.budget(queue);
        for _ in 0..budget {
            let Some(Request { opaque, event, .. }) = self.queues[queue].pop_front() else {
                return;
            };
            let swapped = self.lie == Some(Lie::Swaps) && self.random.within(0, 50) == 0;
            if swapped && let Some(next) = self.queues[queue].front_mut() {
                events.push(next.event);
                next.event = event;
            } else {
                self.append(event, events);
            }
            reports.push(Report { opaque, outcome: Outcome::Delivered });
        }
        for request in self.queues[queue].iter_mut().take(IN_SOCKET_MAX) {
            if !request.in_socket && budget == 0 {
                request.in_socket = true;
                events.push(Event { appended: false, ..request.event });
            }
        }
    }

    fn append(&mut self, event: Event, events: &mut Vec<Event>) {
        let is_time = self.random.within(0, 200) == 0;
        match self.lie {
            Some(Lie::Loses) if is_time => {}
            Some(Lie::Garbles) if is_time => {
                events.push(Event { checksum: !event.checksum, ..event });
            }
            Some(Lie::Invents) if is_time => {
                let mut invented = event;
                invented.id.number += 1 << 30;
                invented.checksum = Made::new(self.seed, invented.id).checksum();
                events.extend([event, invented]);
            }
            Some(Lie::Repeats) => events.extend([event; 3]),
            _ => events.push(event),
        }
    }
}

impl Sink for Broker {
    fn produce(
        &mut self,
        topic: &str,
        record: &RecordView<'_>,
        opaque: Opaque,
    ) -> Result<(), ProduceError> {
        let known = TOPICS.iter().position(|t| *t == topic).zip(seen(topic, record));
        let Some((t, (id, checksum))) = known else {
            self.broken = Some(format!("a record that nobody sent: {topic}, {record:?}"));
            return Err(ProduceError::Busy);
        };
        let partition = match (record.partition, record.key()) {
            (named @ 0.., _) => named as usize % PARTITIONS,
            (_, Some(key)) => crc32fast::hash(key) as usize % PARTITIONS,
            (_, None) => {
                self.turn += 1;
                self.turn % PARTITIONS
            }
        };
        let partition = t * PARTITIONS + partition;
        if self.queues[partition].len() >= QUEUE_MAX || self.broken.is_some() {
            return Err(ProduceError::Busy);
        }
        if Made::new(self.seed, id).is_poison {
            let reason = Reason { name: "poison", code: 7 };
            return Err(ProduceError::Rejected { scope: Scope::Record, reason });
        }
        let event = Event { appended: true, id, checksum, partition };
        self.queues[partition].push_back(Request { opaque, event, in_socket: false });
        Ok(())
    }

    fn serve(&mut self, _now_ns: u64, reports: &mut Vec<Report>) {
        let now_ns = now_ns();
        self.change_mood(now_ns);
        let mut noted = self.looks.append(&[now_ns]);
        let (mut events, mut served) = (Vec::new(), Vec::new());
        let first = self.random.within(0, QUEUES as u64) as usize;
        for queue in (first..QUEUES).chain(0..first) {
            self.answer(queue, &mut events, &mut served);
        }
        // What is reported has been appended, never the other way round.
        noted = noted.and_then(|()| self.events.events(&events));
        match noted {
            Ok(()) => reports.append(&mut served),
            Err(e) => self.broken = Some(format!("the evidence can't be written: {e}")),
        }
    }

    fn state(&self) -> SinkState {
        SinkState {
            connected: true,
            topics_known: true,
            last_error: self.broken.clone(),
            outstanding_records: self.queues.iter().map(|q| q.len() as u64).sum(),
            ..SinkState::default()
        }
    }

    fn hurry(&mut self) {}

    fn rebuild(&mut self, _now_ns: u64) {
        self.queues.iter_mut().for_each(VecDeque::clear);
    }

    fn close(&mut self) {}
}
