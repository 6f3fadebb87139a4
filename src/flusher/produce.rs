//! Owns the way to the sink and back: handing over, reports, set-aside, rebuild.

use super::room::SET_ASIDE_FULL;
use super::{Flusher, PRODUCE_PER_LOOK, Parked, RECORD_OVERHEAD_BYTES, STATE_EVERY_NS, hold};
use crate::record::{LogPosition, Lsn, TopicId};
use crate::report::{Opaque, Outcome, Report, Scope};
use crate::sequence::{Backlog, End, Line, Next, Source, Verdict};
use crate::sink::ProduceError;
use crate::wal::{AppendError, ReadError, ReadItem, SetAsideNote};

/// What came of offering one record to the sink.
enum Offer {
    Taken,
    /// The sink, the span or the log can't go on now.
    Stop,
    /// The record is out of the way; go on with the next.
    Skip,
}

/// A record that is offered.
struct Offered {
    opaque: Opaque,
    lsn: Lsn,
    topic: TopicId,
    /// Where it goes decides whether it is held.
    asks: bool,
}

/// Why a record could not be set aside yet.
enum NotAside {
    Append(AppendError),
    Read(LogPosition, std::io::ErrorKind),
}

/// Who reads the log; each tries again by itself.
#[derive(Clone, Copy)]
pub(super) enum ReadOf {
    Backlog = 0,
    Offer = 1,
    Parked = 2,
}

/// A read that the storage refuses.
#[derive(Clone, Copy, Default)]
pub(super) struct ReadTrouble {
    tries: u32,
    pub(super) retry_at_ns: u64,
}

/// Times that a read is tried, and the pause between them, before what can't be read is given up.
/// A disk that comes back within ten seconds costs nothing.
const READ_TRIES: u32 = 21;
const READ_PAUSE_NS: u64 = 500_000_000;
/// Most findings that are told in words.
const FINDINGS_MAX: usize = 200;

impl Flusher {
    /// Takes the sink's reports.
    pub(super) fn serve(&mut self, now_ns: u64) {
        let mut reports = std::mem::take(&mut self.reports);
        self.sink.serve(now_ns, &mut reports);
        for Report { opaque, outcome } in reports.drain(..) {
            self.guest.heard(now_ns, outcome == Outcome::Delivered);
            self.report(now_ns, opaque, outcome);
        }
        self.reports = reports;
        self.release();
        if self.rebuilding || now_ns.saturating_sub(self.sink_asked_ns) >= STATE_EVERY_NS {
            self.ask_sink(now_ns);
        }
    }

    fn report(&mut self, now_ns: u64, opaque: Opaque, outcome: Outcome) {
        if hold::is_ours(opaque) || self.holds.has_ticket(opaque) {
            return self.redriven(now_ns, opaque, outcome);
        }
        match self.seq.reported(opaque, outcome) {
            Verdict::Stale => {}
            Verdict::Finished(finished) => self.finished(now_ns, finished),
            Verdict::SetAside { lsn, topic, scope: Scope::Topic, reason, .. }
                if self.wal.is_some() =>
            {
                self.hold(now_ns, topic, lsn, opaque, reason);
            }
            Verdict::SetAside { reason, .. } => {
                self.parked.push_back(Parked { opaque, reason, held: None });
            }
            Verdict::Again => self.changed = true,
            Verdict::Rebuild(reason) => {
                self.instance_broken = Some(format!("{} ({})", reason.name, reason.code));
            }
        }
    }

    /// Asks the sink how it is, and rebuilds it if it must be.
    pub(super) fn ask_sink(&mut self, now_ns: u64) {
        self.sink_asked_ns = now_ns;
        let state = self.sink.state();
        self.changed |= state != self.sink_state;
        self.sink_state = state;
        if self.rebuilding {
            if !self.sink_state.rebuilding {
                self.rebuilding = false;
                // From here on nothing of the old instance can be reported any more.
                self.seq.rebuilt();
                self.held_are_owed(now_ns);
                self.changed = true;
            }
            return;
        }
        let broken = self.instance_broken.take();
        if let Some(why) = self.sink_state.fatal.clone().or(broken) {
            tracing::warn!(reason = %why, "the producer instance is replaced");
            self.figures.rebuilds += 1;
            self.figures.last_rebuild_reason = Some(why);
            self.rebuilding = true;
            self.changed = true;
            self.sink.rebuild(now_ns);
        }
    }

    /// Moves the `produced` cursor, and the `live` one before it where there is one, as far as sink,
    /// span and log allow. True when it stopped only to keep the look short.
    pub(super) fn produce(&mut self, now_ns: u64) -> bool {
        if !self.seq.has_live() {
            let (more, stopped) = self.produce_line(now_ns, Line::Main);
            self.held_up = stopped;
            return more;
        }
        // Each line stops by itself: what the sink doesn't take of one says nothing about the other.
        let (more_live, live_stopped) = self.produce_line(now_ns, Line::Live);
        if self.seq.is_behind() {
            self.guest.behind();
        } else {
            self.guest.caught_up();
        }
        let (more, stopped) = self.produce_line(now_ns, Line::Main);
        self.held_up = live_stopped || stopped;
        more_live || more
    }

    /// Whether it stopped only to keep the look short, and whether the sink didn't take a record.
    fn produce_line(&mut self, now_ns: u64, line: Line) -> (bool, bool) {
        for _ in 0..PRODUCE_PER_LOOK {
            let next = match line {
                Line::Main => self.seq.next_produce(),
                Line::Live => self.seq.next_live(),
            };
            if !self.seq.has_live() {
                match next {
                    Next::Read | Next::Produce { source: Source::Log(_), .. } => {
                        self.guest.behind();
                    }
                    Next::Idle => self.guest.caught_up(),
                    _ => {}
                }
            }
            if line == Line::Main && !self.guest.may_go() {
                return (false, self.held_up);
            }
            let offer = match next {
                Next::Produce { opaque, lsn, topic, source } => {
                    let asks = self.holds.has_partition_of(topic);
                    if !asks && self.hold_back(topic, None, lsn, opaque) {
                        Offer::Skip
                    } else {
                        self.offer(now_ns, Offered { opaque, lsn, topic, asks }, source)
                    }
                }
                Next::Read => self.read_backlog(now_ns),
                Next::SpanFull | Next::JournalFirst | Next::LiveFirst | Next::Idle => {
                    return (false, false);
                }
            };
            match offer {
                Offer::Taken => self.changed = true,
                Offer::Skip => {}
                Offer::Stop => return (false, true),
            }
        }
        (true, self.held_up)
    }

    fn offer(
        &mut self,
        now_ns: u64,
        offered: Offered,
        source: Source<crate::lane::Frame>,
    ) -> Offer {
        let Offered { opaque, lsn, topic, asks } = offered;
        match source {
            Source::Memory(frame) => {
                let at = self.know(topic);
                if asks {
                    let Some(view) = self.drain.view(&frame) else { return Offer::Stop };
                    let partition = self.sink.partition_of(&self.names[at], &view);
                    if self.hold_back(topic, partition, lsn, opaque) {
                        return Offer::Skip;
                    }
                }
                let Some(view) = self.drain.view(&frame) else { return Offer::Stop };
                let result = self.sink.produce(&self.names[at], &view, opaque);
                self.offered(now_ns, topic, opaque, result, view.body.len())
            }
            Source::Log(position) => {
                if now_ns < self.reads[ReadOf::Offer as usize].retry_at_ns {
                    return Offer::Stop;
                }
                let at = self.know(topic);
                let Some(wal) = &mut self.wal else { return Offer::Stop };
                let (result, body) = match wal.read_at(position) {
                    Ok(read) => {
                        let partition = if asks {
                            self.sink.partition_of(&self.names[at], &read.record)
                        } else {
                            None
                        };
                        let result = if asks && self.holds.keeps(topic, partition) {
                            Err(partition)
                        } else {
                            Ok(self.sink.produce(&self.names[at], &read.record, opaque))
                        };
                        (result, read.record.body.len())
                    }
                    Err(ReadError::Storage(kind)) => {
                        if !self.read_failed(ReadOf::Offer, now_ns, kind) {
                            return Offer::Stop;
                        }
                        self.unreadable(position);
                        self.give_up(now_ns, opaque, "unreadable");
                        return Offer::Skip;
                    }
                    Err(ReadError::Gone | ReadError::Damaged) => {
                        self.give_up(now_ns, opaque, "damaged");
                        return Offer::Skip;
                    }
                };
                self.read_works(ReadOf::Offer);
                match result {
                    Ok(result) => self.offered(now_ns, topic, opaque, result, body),
                    Err(partition) => {
                        self.hold_back(topic, partition, lsn, opaque);
                        Offer::Skip
                    }
                }
            }
        }
    }

    pub(super) fn give_up(&mut self, now_ns: u64, opaque: Opaque, why: &'static str) {
        if let Some(finished) = self.seq.finish(opaque, End::Dropped(why)) {
            self.finished(now_ns, finished);
        }
    }

    fn offered(
        &mut self,
        now_ns: u64,
        topic: TopicId,
        opaque: Opaque,
        result: Result<(), ProduceError>,
        body_bytes: usize,
    ) -> Offer {
        match result {
            Ok(()) => {
                self.seq.handed(opaque, self.sink.last_partition());
                let bytes = (body_bytes + RECORD_OVERHEAD_BYTES) as u64;
                if opaque.is_live() {
                    self.guest.handed_live(bytes);
                } else {
                    self.guest.handed(bytes, false);
                }
                Offer::Taken
            }
            Err(ProduceError::Busy) => Offer::Stop,
            Err(ProduceError::Stalled { partition, reason }) => {
                if !self.stalled(now_ns, topic, partition, reason, opaque) {
                    // A topic has no so many partitions: what asks for them is wrong.
                    let scope = Scope::Record;
                    let outcome = Outcome::Failed { scope, reason, possibly_persisted: false };
                    self.report(now_ns, opaque, outcome);
                }
                Offer::Skip
            }
            Err(ProduceError::Rejected { scope, reason }) => {
                let outcome = Outcome::Failed { scope, reason, possibly_persisted: false };
                self.report(now_ns, opaque, outcome);
                Offer::Skip
            }
            Err(ProduceError::Fatal(reason)) => {
                self.instance_broken = Some(format!("{} ({})", reason.name, reason.code));
                if !self.rebuilding {
                    self.ask_sink(now_ns);
                }
                Offer::Stop
            }
        }
    }

    /// The log refused a read. True when it was tried often enough: what can't be read is given
    /// up, and so is what fails next to it, until something is read again.
    pub(super) fn read_failed(
        &mut self,
        of: ReadOf,
        now_ns: u64,
        kind: std::io::ErrorKind,
    ) -> bool {
        self.wal_failed(&format!("read: {kind}"));
        let read = &mut self.reads[of as usize];
        read.tries += 1;
        if read.tries >= READ_TRIES {
            return true;
        }
        read.retry_at_ns = now_ns + READ_PAUSE_NS;
        false
    }

    pub(super) fn read_works(&mut self, of: ReadOf) {
        if self.reads[of as usize].tries > 0 {
            self.reads[of as usize] = ReadTrouble::default();
            self.wal_works();
        }
    }

    fn unreadable(&mut self, position: LogPosition) {
        if let Some(wal) = &self.wal {
            wal.given_up(position);
        }
    }

    /// Reads the next frame of the backlog, admits it and offers it while its bytes are here.
    fn read_backlog(&mut self, now_ns: u64) -> Offer {
        if now_ns < self.reads[ReadOf::Backlog as usize].retry_at_ns {
            return Offer::Stop;
        }
        let from = self.seq.backlog_from();
        let Some(wal) = &mut self.wal else {
            self.seq.caught_up();
            return Offer::Skip;
        };
        if self.reader.is_none() {
            self.reader = from.map(|position| wal.reader(position));
        }
        let Some(mut reader) = self.reader.take() else {
            self.seq.caught_up();
            return Offer::Skip;
        };
        let mut reads_again = false;
        let offer = match wal.read_next(&mut reader) {
            ReadItem::Record(read) => {
                if self.reads[ReadOf::Backlog as usize].tries > 0 {
                    self.reads[ReadOf::Backlog as usize] = ReadTrouble::default();
                    reads_again = true;
                }
                let admitted = read.lsn >= self.seq.produced();
                let is_replayed = wal.is_replayed(read.record.topic, read.lsn);
                if admitted {
                    let receipt = self.receipt_of(read.lsn);
                    self.seq.admit(Backlog {
                        lsn: read.lsn,
                        position: read.position,
                        topic: read.record.topic,
                        bytes: (read.record.body.len() + RECORD_OVERHEAD_BYTES) as u32,
                        receipt,
                    });
                }
                match self.seq.next_produce() {
                    Next::Produce { opaque, lsn, .. } if lsn == read.lsn && is_replayed => {
                        if let Some(finished) = self.seq.finish(opaque, End::Delivered) {
                            self.finished(now_ns, finished);
                        }
                        Offer::Skip
                    }
                    Next::Produce { opaque, lsn, topic, .. } if lsn == read.lsn => {
                        let name = self.name(topic);
                        let partition = match self.holds.has_partition_of(topic) {
                            true => self.sink.partition_of(&name, &read.record),
                            false => None,
                        };
                        if self.hold_back(topic, partition, lsn, opaque) {
                            Offer::Skip
                        } else {
                            let result = self.sink.produce(&name, &read.record, opaque);
                            let body = read.record.body.len();
                            self.offered(now_ns, topic, opaque, result, body)
                        }
                    }
                    _ => Offer::Skip,
                }
            }
            ReadItem::Damage { records_lost, bytes, why } => {
                self.damaged(records_lost, bytes, why);
                Offer::Skip
            }
            ReadItem::CaughtUp => {
                self.seq.caught_up();
                // The reader goes on later from wherever the next backlog begins.
                self.reader = None;
                return Offer::Skip;
            }
            ReadItem::Error(kind) => {
                if self.read_failed(ReadOf::Backlog, now_ns, kind) {
                    // A page a look, so that a dead disk doesn't hold up what still arrives.
                    reader.skip_unreadable();
                }
                Offer::Stop
            }
        };
        self.reader = Some(reader);
        if reads_again {
            self.wal_works();
        }
        offer
    }

    /// The log could not give back what it had counted.
    pub(super) fn damaged(&mut self, records_lost: u64, bytes: u64, why: &str) {
        tracing::error!(records_lost, bytes, why, "the log is damaged; what follows is good");
        if self.figures.findings.len() < FINDINGS_MAX {
            self.figures
                .findings
                .push(format!("replay: {records_lost} records in {bytes} bytes are lost: {why}"));
        }
        self.seq.damaged(records_lost);
        self.changed = true;
    }

    /// Writes what can't be delivered to the set-aside log; without a log it is dropped. What
    /// can't be written now stays parked and keeps its place.
    pub(super) fn set_aside_parked(&mut self) {
        if self.parked.is_empty() && self.holds.is_empty() {
            self.figures.aside_unavailable = None;
            return;
        }
        for _ in 0..self.parked.len() {
            let Some(parked) = self.parked.pop_front() else { break };
            if !self.aside_one(&parked) {
                self.parked.push_front(parked);
                return;
            }
        }
        self.set_aside_held();
        self.release();
    }

    /// Ends one parked record; false when the log can't serve now.
    pub(super) fn aside_one(&mut self, parked: &Parked) -> bool {
        let now_ns = self.last_look_ns;
        if now_ns < self.reads[ReadOf::Parked as usize].retry_at_ns {
            return false;
        }
        let Some((lsn, source)) = self.seq.source_of(parked.opaque) else { return true };
        let end = match self.set_aside(parked, lsn, source) {
            Ok(end) => end,
            Err(NotAside::Append(error)) if error.is_full() && self.drops() => {
                self.aside_failed(error);
                End::Dropped(SET_ASIDE_FULL)
            }
            Err(NotAside::Append(error)) => {
                self.aside_failed(error);
                return false;
            }
            Err(NotAside::Read(position, kind)) => {
                if !self.read_failed(ReadOf::Parked, now_ns, kind) {
                    return false;
                }
                self.unreadable(position);
                End::Dropped("unreadable")
            }
        };
        if matches!(end, End::SetAside(_)) {
            self.aside_works();
        }
        if let Some(finished) = self.seq.finish(parked.opaque, end) {
            match parked.held {
                Some(key) => self.finished_aside(now_ns, key, finished),
                None => self.finished(now_ns, finished),
            }
        }
        true
    }

    fn set_aside(
        &mut self,
        parked: &Parked,
        lsn: Lsn,
        source: Source<crate::lane::Frame>,
    ) -> Result<End, NotAside> {
        let reason = parked.reason;
        let Some(wal) = &mut self.wal else { return Ok(End::Dropped(reason.name)) };
        let now = self.clock.unix_ms();
        let copy;
        let record = match source {
            Source::Memory(frame) => match self.drain.view(&frame) {
                Some(view) => view,
                // A frame that memory still names is held; a fork's child never gets here.
                None => return Ok(End::Dropped("damaged")),
            },
            Source::Log(position) => match wal.read_at(position) {
                Ok(read) => {
                    copy = read.record.body.to_vec();
                    crate::record::RecordView { body: &copy, ..read.record }
                }
                Err(ReadError::Storage(kind)) => return Err(NotAside::Read(position, kind)),
                Err(_) => return Ok(End::Dropped("damaged")),
            },
        };
        self.reads[ReadOf::Parked as usize] = ReadTrouble::default();
        let is_live = parked.opaque.is_live();
        let held_reason =
            |key: hold::Key| SetAsideNote::held_reason(reason.name, key.partition(), is_live);
        let held = parked.held.map(held_reason);
        let words = held.as_deref().unwrap_or(reason.name);
        match wal.set_aside(lsn, &record, words, reason.code, now) {
            Ok(position) => {
                match parked.held {
                    Some(key) => self.held_is_aside(key, lsn, position, is_live),
                    None => self.holds.has_dead(position),
                }
                Ok(End::SetAside(reason.name))
            }
            Err(error) => Err(NotAside::Append(error)),
        }
    }
}
