//! Owns the way back of what was set aside while its topic was held: probing, handing over in the
//! order of the numbers, reports, and the end of segments in which all is final.

use super::{Fate, Hold, Key, OURS, Open, PROBE_NS, Phase, is_ours, word};
use crate::flusher::{Flusher, RECORD_OVERHEAD_BYTES};
use crate::record::LogPosition;
use crate::report::{Opaque, Outcome, Scope};
use crate::sequence::End;
use crate::sink::ProduceError;
use crate::wal::{AsideItem, AsideReader, AsideRecord, Wal};
use std::io::ErrorKind;

/// Between two probes that Kafka refuses: from the first pause doubling up to this. Each costs the
/// instance a pause.
const PROBE_MAX_NS: u64 = 30_000_000_000;
/// Records of one hold that are looked at in one look.
const PER_LOOK: usize = 4_096;

/// Reads the record at a place; a reader that stands before it goes on from there. `None`: it is gone
/// with its file.
///
/// # Errors
/// The storage refuses the read for now.
fn find<'r>(
    wal: &Wal,
    reader: &'r mut Option<AsideReader>,
    at: LogPosition,
) -> Result<Option<AsideRecord<'r>>, ErrorKind> {
    let is_near = |r: &AsideReader| {
        r.stands_before(at) || wal.last_aside(r).is_some_and(|aside| aside.position == at)
    };
    if !reader.as_ref().is_some_and(is_near) {
        *reader = None;
    }
    let reader = reader.get_or_insert_with(|| wal.aside_reader(at.segment));
    while reader.stands_before(at) {
        match wal.read_aside(reader) {
            AsideItem::Record(aside) if aside.position >= at => break,
            AsideItem::Record(_) => {}
            AsideItem::CaughtUp => return Ok(None),
            AsideItem::Error(kind) => return Err(kind),
        }
    }
    Ok(wal.last_aside(reader).filter(|aside| aside.position == at))
}

impl Flusher {
    /// Probes and drains. True when it stopped only to keep the look short.
    pub(in crate::flusher) fn redrive_held(&mut self, now_ns: u64) -> bool {
        if self.holds.is_empty() {
            if !self.holds.segments.is_empty() {
                self.let_segments_go();
            }
            return false;
        }
        let mut more = false;
        let keys: Vec<Key> = self.holds.held().collect();
        let mut on_the_way: usize = self.holds.all.values().map(Hold::on_the_way).sum();
        for key in keys {
            self.judge_guilty(key);
            on_the_way -= self.holds.all.get(&key).map_or(0, Hold::on_the_way);
            more |= self.redrive_one(now_ns, key, on_the_way);
            on_the_way += self.holds.all.get(&key).map_or(0, Hold::on_the_way);
            let holds = &mut self.holds;
            let done = |h: &Hold| h.phase == Phase::Flowing && h.open.is_empty();
            if let Some(hold) = holds.all.get(&key).filter(|h| done(h)) {
                if hold.records > 0 {
                    // Passed over as damaged: a file that holds what isn't final is left.
                    let (records, segments) = (hold.records, &holds.segments);
                    tracing::error!(
                        ?key,
                        records,
                        ?segments,
                        "held records can't be read back; their files are kept"
                    );
                    holds.dead.extend(segments);
                }
                holds.marks.insert(key, hold.mark);
                holds.all.remove(&key);
                self.changed = true;
            }
        }
        self.let_segments_go();
        more
    }

    fn redrive_one(&mut self, now_ns: u64, key: Key, others_on_the_way: usize) -> bool {
        if self.holds.waits_for_older(key) {
            return false;
        }
        let name = self.name(key.topic);
        let owed = if key.partition().is_none() { self.seq.owed_of(key.topic) } else { 0 };
        let Flusher { wal: Some(wal), holds, sink, seq, guest, .. } = self else { return false };
        let Some(hold) = holds.all.get_mut(&key) else { return false };
        if let Some(partition) = key.partition()
            && hold.handed > 0
            && sink.is_stalled(&name, partition)
        {
            hold.fall_back(now_ns + PROBE_NS);
        }
        match hold.phase {
            Phase::Flowing => return false,
            Phase::Probing if hold.handed > 0 => return false,
            Phase::Probing | Phase::Draining => {}
            Phase::Held { probe_at_ns } => {
                hold.is_old &= seq.produced() < self.own_from;
                // What is to be set aside must not be older than what is read back.
                let queued =
                    hold.queue.first_key_value().is_some_and(|(lsn, _)| *lsn < hold.highest);
                let waits = queued || hold.gathers || owed > 0 || hold.handed > 0 || hold.is_old;
                if waits || now_ns < probe_at_ns {
                    return false;
                }
                hold.reader = Some(wal.aside_reader(hold.mark.segment));
                hold.phase = Phase::Probing;
            }
        }
        let Some(mut reader) = hold.reader.take() else { return false };
        let mut looked = 0;
        let more = loop {
            let on_the_way = others_on_the_way + hold.handed + seq.handed_records();
            if on_the_way >= holds.window
                || !guest.may_redrive()
                || (hold.phase == Phase::Probing && hold.handed > 0)
            {
                break false;
            }
            looked += 1;
            if looked > PER_LOOK {
                break true;
            }
            let mut aside = match wal.read_aside(&mut reader) {
                AsideItem::Record(aside) => aside,
                AsideItem::Error(_) => break false,
                AsideItem::CaughtUp => {
                    // One that went before its turn is final, and its segment may be gone: it
                    // isn't met here any more.
                    if let Some(last) = hold.open.last_key_value().map(|(at, _)| *at) {
                        hold.has_read(last);
                    }
                    // Guilty ones that wait for the log come behind nobody.
                    if hold.queue.is_empty() {
                        hold.phase = Phase::Flowing;
                        self.changed = true;
                        let partition = key.partition();
                        tracing::info!(topic = %name, partition, "what was held flows again");
                    }
                    break false;
                }
            };
            let held =
                aside.note.held().map(|(_, partition)| Key::of(aside.record.topic, partition));
            if held != Some(key) || aside.position < hold.mark {
                continue;
            }
            let is_done = |o: &Open| o.fate != Fate::Failed;
            // One that is out of its place and hasn't had its turn has it here at last.
            if hold.open.get(&aside.position).is_some_and(is_done) {
                hold.has_read(aside.position);
                continue;
            }
            let before = hold.early_before(aside.lsn);
            if let Some((_, at)) = before {
                reader.back();
                match find(wal, &mut hold.early_reader, at) {
                    Ok(Some(early)) => aside = early,
                    Err(_) => break false,
                    Ok(None) => {
                        hold.early.retain(|(_, position)| *position != at);
                        continue;
                    }
                }
            }
            let (at, lsn) = (aside.position, aside.lsn);
            let reason = aside.note.held().map_or("", |(name, _)| name);
            let reason = word(&holds.names, reason);
            let ticket = holds.next_ticket;
            let opaque = Opaque((ticket >> 31) << 32 | OURS | (ticket & (OURS - 1)));
            match sink.produce(&name, &aside.record, opaque) {
                Ok(()) => {
                    holds.next_ticket += 1;
                    guest.handed((aside.record.body.len() + RECORD_OVERHEAD_BYTES) as u64, true);
                    holds.tickets.insert(opaque.0, (key, at));
                    hold.handed += 1;
                    hold.open.insert(at, Open { lsn, reason, fate: Fate::Handed });
                    self.changed = true;
                    if before.is_none() {
                        hold.has_read(at);
                    }
                }
                Err(ProduceError::Busy) => {
                    reader.back();
                    break false;
                }
                Err(ProduceError::Stalled { reason, .. }) => {
                    reader.back();
                    hold.reason = reason;
                    hold.fall_back(now_ns + PROBE_NS);
                    break false;
                }
                Err(ProduceError::Rejected {
                    scope: Scope::Record | Scope::Batch,
                    reason: why,
                }) => {
                    hold.open.insert(at, Open { lsn, reason, fate: Fate::Failed });
                    hold.is_guilty(at, why);
                    // It is set aside anew at the next look, and the rest goes on.
                    if before.is_none() {
                        hold.has_read(at);
                    }
                }
                Err(ProduceError::Rejected { reason: why, .. }) => {
                    reader.back();
                    hold.reason = why;
                    hold.fall_back(now_ns + PROBE_NS);
                    break false;
                }
                Err(ProduceError::Fatal(why)) => {
                    reader.back();
                    self.instance_broken = Some(format!("{} ({})", why.name, why.code));
                    break false;
                }
            }
        };
        hold.reader = Some(reader);
        more
    }

    /// A report about a record that is being redriven.
    pub(in crate::flusher) fn redriven(&mut self, now_ns: u64, opaque: Opaque, outcome: Outcome) {
        let Some((key, at)) = self.holds.tickets.remove(&opaque.0) else { return };
        self.holds.gathered -= usize::from(!is_ours(opaque));
        let Some(hold) = self.holds.all.get_mut(&key) else { return };
        let Some(open) = hold.open.get_mut(&at) else { return };
        self.changed = true;
        hold.handed -= 1;
        let reason = open.reason;
        match outcome {
            Outcome::Delivered => {
                self.seq.redriven(key.topic, reason, End::Delivered);
                hold.is_final(at);
                if let Some(receipt) = hold.receipts.remove(&at) {
                    self.shared.receipts.delivered(receipt);
                }
                hold.pause_ns = PROBE_NS;
                if hold.phase == Phase::Probing {
                    hold.phase = Phase::Draining;
                }
            }
            Outcome::Failed { scope: Scope::Record | Scope::Batch, reason: why, .. } => {
                hold.is_guilty(at, why);
                if hold.phase == Phase::Probing {
                    hold.phase = Phase::Draining;
                }
            }
            Outcome::Failed { scope: Scope::Topic, reason: why, .. } => {
                open.fate = Fate::Failed;
                hold.reason = why;
                if hold.phase == Phase::Probing {
                    hold.pause_ns = (hold.pause_ns * 2).min(PROBE_MAX_NS);
                }
                hold.fall_back(now_ns + hold.pause_ns);
            }
            Outcome::Failed { scope: Scope::Transient, possibly_persisted: false, .. } => {
                open.fate = Fate::Failed;
                self.seq.redriven_again(false);
                hold.fall_back(now_ns);
            }
            Outcome::Failed { reason: why, possibly_persisted, .. } => {
                open.fate = Fate::Failed;
                hold.fall_back(now_ns);
                self.instance_broken = Some(format!("{} ({})", why.name, why.code));
                if possibly_persisted {
                    self.seq.redriven_again(true);
                }
            }
        }
    }

    /// A new instance begins: what the old one owed is handed over again.
    pub(in crate::flusher) fn held_are_owed(&mut self, now_ns: u64) {
        self.holds.tickets.clear();
        self.holds.gathered = 0;
        for hold in self.holds.all.values_mut() {
            for open in hold.open.values_mut().filter(|o| o.fate == Fate::Handed) {
                open.fate = Fate::Failed;
                self.seq.redriven_again(true);
            }
            hold.handed = 0;
            if hold.phase != Phase::Flowing || !hold.open.is_empty() {
                hold.phase = Phase::Held { probe_at_ns: now_ns };
            }
        }
    }

    /// Writes what turned out to be a dead letter anew, with its own reason.
    fn judge_guilty(&mut self, key: Key) {
        let unix_ms = self.clock.unix_ms();
        loop {
            let Flusher { wal: Some(wal), holds, .. } = self else { return };
            let Some(hold) = holds.all.get_mut(&key) else { return };
            let Some(at) = hold.guilty.first().copied() else {
                return;
            };
            let (reason, why) = match hold.open.get(&at) {
                Some(Open { reason, fate: Fate::Guilty(why), .. }) => (*reason, *why),
                _ => {
                    hold.guilty.remove(&at);
                    continue;
                }
            };
            let written = match find(wal, &mut hold.guilty_reader, at) {
                Ok(Some(aside)) => {
                    let (lsn, record) = (aside.lsn, aside.record);
                    wal.set_aside(lsn, &record, why.name, why.code, unix_ms).map(Some)
                }
                Ok(None) => Ok(None),
                // It stays guilty until it can be read.
                Err(_) => return,
            };
            match written {
                Ok(position) => {
                    if let Some(position) = position {
                        self.holds.has_dead(position);
                        self.aside_works();
                    }
                    self.seq.redriven(key.topic, reason, End::SetAside(why.name));
                    if let Some(hold) = self.holds.all.get_mut(&key) {
                        hold.guilty.remove(&at);
                        hold.is_final(at);
                        if let Some(receipt) = hold.receipts.remove(&at) {
                            self.shared.receipts.set_aside(receipt);
                        }
                    }
                    self.changed = true;
                }
                Err(error) => {
                    self.aside_failed(error);
                    return;
                }
            }
        }
    }

    /// Hands set-aside segments in which all is final to the keeper.
    fn let_segments_go(&mut self) {
        let Some(wal) = &mut self.wal else { return };
        let holds = &mut self.holds;
        let needed = holds.all.values().filter(|h| h.records > 0).map(|h| h.mark.segment).min();
        while let Some(first) = holds.segments.first().copied() {
            let is_active = wal.active_aside() == Some(first);
            if needed.is_some_and(|n| first >= n) || (is_active && !holds.all.is_empty()) {
                return;
            }
            holds.segments.pop_first();
            if !holds.dead.contains(&first) {
                wal.release_aside(first);
                self.changed = true;
                if let Some(keeper) = &self.keeper {
                    keeper.wake();
                }
            }
        }
    }
}
