//! Owns the dead letters' way out: segment by segment, oldest first. A segment's letters are
//! sent, those that must stay are written into a new one, and when that is durable the old
//! segment goes. A crash in between leaves both, so a letter may be there, or sent, twice.

use super::courier::{Courier, End, Letter};
use super::{Options, Outcome, RedriveError, TICK};
use crate::pipeline::Pipeline;
use crate::record::{LogPosition, Lsn, RecordView, TopicId};
use crate::report::TOPIC_REASONS;
use crate::wal::{FrameKind, Inspected, Orphan, SegmentSummary, SetAsideNote};
use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

/// One dead letter, while its segment is walked.
struct Dead<'a> {
    lsn: Lsn,
    index: usize,
    topic: &'a str,
    note: SetAsideNote<'a>,
    /// Why, without more.
    reason: &'a str,
    record: RecordView<'a>,
    /// It was held, and delivered since.
    is_final: bool,
}

impl Options {
    fn selects(&self, dead: &Dead<'_>) -> bool {
        let any = |list: &[String], is: &str| list.is_empty() || list.iter().any(|l| l == is);
        any(&self.topics, dead.topic) && any(&self.reasons, dead.reason)
    }
}

fn walk(
    log: &Orphan,
    segment: &SegmentSummary,
    mut visit: impl FnMut(Dead<'_>) -> Result<(), RedriveError>,
) -> Result<u64, RedriveError> {
    let (mut index, mut lost, mut failed) = (0, 0, Ok(()));
    let walked = log.walk(segment, |found| {
        let (offset, header, topic, note, body) = match found {
            Inspected::Bad { records_lost, .. } => {
                lost += records_lost.unwrap_or(0);
                return Ok(());
            }
            Inspected::Frame { offset, header, topic, note, body } => {
                (offset, header, topic, note, body)
            }
        };
        let (FrameKind::SetAside, Some(topic)) = (header.kind, topic) else { return Ok(()) };
        let record = RecordView {
            topic: TopicId(0),
            partition: header.partition,
            timestamp_ms: header.timestamp_ms,
            shape: header.shape,
            body,
        };
        // A reason that isn't UTF-8 is of a later version: the letter is one all the same.
        let note = note.unwrap_or_default();
        let position = LogPosition { segment: segment.number, offset };
        let held = note.held();
        let is_final = held.is_some_and(|(_, p)| log.is_redriven(topic, p, position));
        let reason = held.map_or(note.reason, |(name, _)| name);
        let lsn = Lsn(header.lsn);
        let dead = Dead { lsn, index, topic, note, reason, record, is_final };
        index += 1;
        failed = visit(dead);
        if failed.is_err() { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
    });
    failed?;
    walked.map_err(RedriveError::io("reading a set-aside segment"))?;
    Ok(lost)
}

pub(super) fn run(
    log: &mut Orphan,
    pipeline: &Pipeline,
    options: &Options,
    ask: &mut dyn FnMut(&Outcome) -> bool,
) -> Result<Outcome, RedriveError> {
    let mut outcome = Outcome::default();
    let segments =
        log.set_aside_segments().map_err(RedriveError::io("listing the set-aside segments"))?;
    for segment in &segments {
        let mut records = 0;
        walk(log, segment, |_| {
            records += 1;
            Ok(())
        })?;
        outcome.total += records;
    }
    let mut stopped = false;
    for segment in &segments {
        if stopped {
            break;
        }
        stopped = one_segment(log, pipeline, options, segment, &mut outcome, ask)?;
    }
    outcome.complete = !stopped && outcome.left == 0;
    Ok(outcome)
}

/// Sends the selected letters of one segment; true when it is to end here.
fn one_segment(
    log: &mut Orphan,
    pipeline: &Pipeline,
    options: &Options,
    segment: &SegmentSummary,
    outcome: &mut Outcome,
    ask: &mut dyn FnMut(&Outcome) -> bool,
) -> Result<bool, RedriveError> {
    let mut courier = Courier::new(pipeline, options);
    let mut delivered = BTreeSet::new();
    let mut stopping: Option<Instant> = None;
    let before = (outcome.delivered, outcome.set_aside, outcome.left);
    let (mut met, mut selected, mut read) = (0, 0, 0);
    outcome.lost += walk(log, segment, |dead| {
        met += 1;
        let wait_until = |outcome: &Outcome,
                          stopping: &mut Option<Instant>,
                          ask: &mut dyn FnMut(&Outcome) -> bool| {
            if !ask(outcome) || outcome.trouble.is_some() {
                stopping.get_or_insert_with(|| Instant::now() + options.close_timeout);
            }
        };
        if stopping.is_some() {
            return Ok(());
        }
        read += 1;
        if dead.is_final {
            outcome.delivered_before += 1;
            delivered.insert(dead.index);
            return Ok(());
        }
        if !options.selects(&dead) {
            outcome.kept += 1;
            return Ok(());
        }
        while stopping.is_none() && !courier.has_room() {
            wait_until(outcome, &mut stopping, ask);
            let wait = courier.until_allowed().clamp(Duration::from_millis(1), TICK);
            if courier.is_empty() {
                std::thread::sleep(wait);
            }
            settle(&mut courier, wait, options, outcome, &mut delivered)?;
        }
        if stopping.is_some() {
            read -= 1;
            return Ok(());
        }
        selected += 1;
        courier.send(Letter::new(dead.lsn, dead.index, dead.topic.into(), &dead.record))
    })?;
    outcome.read += read;
    while !courier.is_empty() {
        if !ask(outcome) || outcome.trouble.is_some() {
            stopping.get_or_insert_with(|| Instant::now() + options.close_timeout);
        }
        if stopping.is_some_and(|until| Instant::now() >= until) {
            break;
        }
        settle(&mut courier, TICK, options, outcome, &mut delivered)?;
    }
    let left = courier.outstanding().count() as u64;
    outcome.left += left;
    debug_assert_eq!(
        outcome.delivered + outcome.set_aside + outcome.left,
        before.0 + before.1 + before.2 + selected
    );
    if !delivered.is_empty() {
        if (delivered.len() as u64) < met {
            keep_rest(log, segment, &delivered)?;
        }
        log.remove_set_aside(segment).map_err(RedriveError::io("removing a set-aside segment"))?;
    }
    // A last word that came with the last letter.
    Ok(stopping.is_some() || outcome.trouble.is_some())
}

fn settle(
    courier: &mut Courier<'_>,
    wait: Duration,
    options: &Options,
    outcome: &mut Outcome,
    delivered: &mut BTreeSet<usize>,
) -> Result<(), RedriveError> {
    let mut wait = wait;
    while let Some((letter, end)) = courier.next_end(wait)? {
        wait = Duration::ZERO;
        match end {
            End::Delivered => {
                outcome.delivered += 1;
                delivered.insert(letter.index);
            }
            End::Refused(reason) if TOPIC_REASONS.contains(&reason) => {
                outcome.left += 1;
                let topic = options.to_topic.as_deref().unwrap_or(&letter.topic);
                outcome.trouble.get_or_insert(format!("topic {topic}: {reason}"));
                return Ok(());
            }
            End::Refused(_) => outcome.set_aside += 1,
        }
    }
    Ok(())
}

/// Writes what wasn't delivered into a new set-aside segment, as it was.
fn keep_rest(
    log: &mut Orphan,
    segment: &SegmentSummary,
    delivered: &BTreeSet<usize>,
) -> Result<(), RedriveError> {
    let mut kept = Vec::new();
    walk(log, segment, |dead| {
        if !delivered.contains(&dead.index) {
            let letter = Letter::new(dead.lsn, dead.index, dead.topic.into(), &dead.record);
            let SetAsideNote { reason, code, unix_ms } = dead.note;
            kept.push((letter, reason.to_owned(), code, unix_ms));
        }
        Ok(())
    })?;
    for (letter, reason, code, unix_ms) in &kept {
        let note = SetAsideNote { reason, code: *code, unix_ms: *unix_ms };
        log.set_aside(letter.lsn, &letter.topic, &letter.view(), &note)
            .map_err(io::Error::other)
            .map_err(RedriveError::io("keeping a dead letter"))?;
    }
    Ok(())
}
