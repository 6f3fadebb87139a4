//! Owns the tests of the sequence: rule by rule, then every interleaving at small sizes.

mod explorer;
mod live;
mod room;
mod world;

use super::*;
use crate::record::{ANY_PARTITION, LogPosition, Lsn, TopicId};
use crate::report::{Opaque, Outcome, Reason, Scope};

const NONE: u32 = u32::MAX;
const T: TopicId = TopicId(0);

fn limits(records: usize, journal: Journal) -> Limits {
    Limits {
        in_flight_max_records: records,
        in_flight_max_bytes: u64::MAX,
        journal,
        backlog_percent: None,
    }
}

fn sequence(records: usize) -> Sequence<u32> {
    Sequence::new(limits(records, Journal::Spill), Lsn(100))
}

fn popped(frame: u32) -> Popped<u32> {
    Popped { frame, topic: T, bytes: 10, arrival_ns: u64::from(frame), receipt: NONE }
}

fn pop(s: &mut Sequence<u32>, frames: std::ops::RangeInclusive<u32>) {
    for frame in frames {
        s.popped(popped(frame));
    }
}

fn at(offset: u64) -> LogPosition {
    LogPosition { segment: 1, offset }
}

fn backlog(lsn: u64, offset: u64) -> Backlog {
    Backlog { lsn: Lsn(lsn), position: at(offset), topic: T, bytes: 10, receipt: NONE }
}

fn failed(scope: Scope, possibly_persisted: bool) -> Outcome {
    Outcome::Failed { scope, reason: Reason { name: "why", code: 7 }, possibly_persisted }
}

/// Hands the next record over; its opaque, number and source.
#[track_caller]
fn hand(s: &mut Sequence<u32>) -> (Opaque, Lsn, Source<u32>) {
    match s.next_produce() {
        Next::Produce { opaque, lsn, source, .. } => {
            s.handed(opaque, ANY_PARTITION);
            (opaque, lsn, source)
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn append(s: &mut Sequence<u32>, offset: u64) -> (Lsn, u32) {
    let (lsn, frame) = s.next_append(s.next()).unwrap();
    s.appended(lsn, at(offset));
    (lsn, frame)
}

fn released(s: &mut Sequence<u32>) -> Vec<u32> {
    std::mem::take(s.released())
}

#[track_caller]
fn balanced(s: &Sequence<u32>) {
    assert_eq!(s.books().unaccounted(), 0, "{:?}", s.books());
}

#[test]
fn a_healthy_record_goes_from_memory_to_final_and_its_frame_goes_back() {
    let mut s = sequence(8);
    let lsn = s.popped(Popped { receipt: 5, ..popped(1) });
    let (opaque, handed, source) = hand(&mut s);
    assert_eq!((handed, source), (lsn, Source::Memory(1)));
    assert_eq!((s.handed_records(), s.unsafe_records()), (1, 1));
    assert!(released(&mut s).is_empty());
    let arrival_ns = Some(popped(1).arrival_ns);
    let finished = Finished { lsn, topic: T, receipt: 5, arrival_ns, end: End::Delivered };
    assert_eq!(s.reported(opaque, Outcome::Delivered), Verdict::Finished(finished));
    assert_eq!(released(&mut s), [1]);
    assert_eq!((s.acked(), s.journaled(), s.produced()), (Lsn(101), Lsn(101), Lsn(101)));
    assert!(s.all_final());
    assert_eq!((s.books().delivered(), s.books().spilled()), (1, 0));
    balanced(&s);
}

#[test]
fn a_busy_sink_is_offered_the_same_record_again() {
    let mut s = sequence(8);
    s.popped(popped(1));
    s.popped(popped(2));
    let first = s.next_produce();
    assert_eq!(first, s.next_produce());
    assert_eq!(hand(&mut s).1, Lsn(100));
    assert_eq!(hand(&mut s).1, Lsn(101));
    assert_eq!(s.next_produce(), Next::Idle);
}

#[test]
fn records_enter_the_log_in_order_and_final_ones_never() {
    let mut s = sequence(8);
    pop(&mut s, 1..=4);
    let (a, ..) = hand(&mut s);
    let (b, ..) = hand(&mut s);
    s.reported(b, Outcome::Delivered);
    assert_eq!(released(&mut s), [2]);
    assert_eq!(s.next_append(Lsn(100)), None);
    assert_eq!(append(&mut s, 0), (Lsn(100), 1));
    assert_eq!(append(&mut s, 1), (Lsn(102), 3));
    assert_eq!(append(&mut s, 2), (Lsn(103), 4));
    assert_eq!(s.next_append(s.next()), None);
    assert_eq!(released(&mut s), [1, 3, 4]);
    assert_eq!((s.books().in_wal(), s.books().in_flight(), s.books().spilled()), (3, 0, 3));
    s.reported(a, Outcome::Delivered);
    assert_eq!(s.books().in_wal(), 2);
    assert!(released(&mut s).is_empty(), "the frame went back when the log had it");
    balanced(&s);
}

#[test]
fn a_journaled_record_in_flight_is_not_produced_again_by_this_instance() {
    let mut s = sequence(8);
    s.popped(popped(1));
    let (old, ..) = hand(&mut s);
    append(&mut s, 9);
    assert_eq!(s.next_produce(), Next::Idle);
    s.rebuilt();
    let (new, lsn, source) = hand(&mut s);
    assert_eq!((lsn, source), (Lsn(100), Source::Log(at(9))));
    assert_eq!(s.books().duplicates_possible, 1);
    assert_eq!(s.reported(old, Outcome::Delivered), Verdict::Stale);
    assert!(matches!(s.reported(new, Outcome::Delivered), Verdict::Finished(_)));
    assert_eq!(s.reported(new, Outcome::Delivered), Verdict::Stale);
    assert!(s.all_final());
    balanced(&s);
}

#[test]
fn a_slot_that_is_used_again_does_not_hear_old_reports() {
    let mut s = sequence(8);
    s.popped(popped(1));
    let (old, ..) = hand(&mut s);
    s.reported(old, Outcome::Delivered);
    s.popped(popped(2));
    let (new, ..) = hand(&mut s);
    assert_eq!(old.0 as u32, new.0 as u32, "the slot is the same");
    assert_eq!(s.reported(old, Outcome::Delivered), Verdict::Stale);
    assert_eq!(s.reported(Opaque(u64::MAX), Outcome::Delivered), Verdict::Stale);
    assert_eq!(s.books().delivered(), 1);
    assert_eq!(s.finish(old, End::Dropped("x")), None);
}

#[test]
fn the_span_holds_final_numbers_too_until_acked_passes_them() {
    let mut s = sequence(2);
    pop(&mut s, 1..=3);
    let (a, ..) = hand(&mut s);
    let (b, ..) = hand(&mut s);
    assert_eq!(s.next_produce(), Next::SpanFull);
    s.reported(b, Outcome::Delivered);
    assert_eq!(s.next_produce(), Next::SpanFull);
    assert_eq!((s.span_records(), s.acked()), (2, Lsn(100)));
    s.reported(a, Outcome::Delivered);
    assert_eq!((s.span_records(), s.acked()), (0, Lsn(102)));
    assert_eq!(hand(&mut s).1, Lsn(102));
}

#[test]
fn the_span_is_bounded_in_bytes_and_lets_one_large_record_through() {
    let mut limits = limits(100, Journal::Spill);
    limits.in_flight_max_bytes = 5;
    let mut s = Sequence::new(limits, Lsn(1));
    s.popped(popped(1));
    s.popped(popped(2));
    let (a, ..) = hand(&mut s);
    assert_eq!(s.next_produce(), Next::SpanFull);
    s.reported(a, Outcome::Delivered);
    assert_eq!(hand(&mut s).1, Lsn(2));
}

#[test]
fn what_is_journaled_before_it_is_admitted_is_read_back_before_newer_records() {
    let mut s = sequence(8);
    s.popped(Popped { receipt: 3, ..popped(1) });
    s.popped(popped(2));
    append(&mut s, 0);
    append(&mut s, 50);
    s.popped(popped(3));
    assert_eq!(s.backlog_from(), Some(at(0)));
    assert_eq!(s.next_produce(), Next::Read);
    s.admit(Backlog { receipt: 3, ..backlog(100, 0) });
    let (opaque, lsn, source) = hand(&mut s);
    assert_eq!((lsn, source), (Lsn(100), Source::Log(at(0))));
    let Verdict::Finished(f) = s.reported(opaque, Outcome::Delivered) else { panic!() };
    assert_eq!(f.receipt, 3);
    assert_eq!(s.next_produce(), Next::Read);
    s.admit(backlog(101, 50));
    let (b, ..) = hand(&mut s);
    assert_eq!(s.next_produce(), Next::Read);
    s.caught_up();
    assert_eq!(s.waiting_in_memory(), 1);
    assert_eq!(hand(&mut s).2, Source::Memory(3));
    assert_eq!(s.books().replayed(), 2);
    s.reported(b, Outcome::Delivered);
    balanced(&s);
}

#[test]
fn a_reader_set_up_anew_starts_at_the_last_admitted_frame_and_admits_it_once() {
    let mut s = sequence(8);
    pop(&mut s, 1..=3);
    for i in 0..3 {
        append(&mut s, i);
    }
    s.admit(backlog(100, 0));
    s.admit(backlog(101, 1));
    assert_eq!(s.backlog_from(), Some(at(1)));
    s.admit(backlog(101, 1));
    s.admit(backlog(102, 2));
    s.caught_up();
    assert_eq!((s.span_records(), s.books().replayed()), (3, 3));
    let numbers: Vec<_> = (0..3).map(|_| hand(&mut s).1.0).collect();
    assert_eq!(numbers, [100, 101, 102]);
    assert_eq!(s.next_produce(), Next::Idle);
}

#[test]
fn a_recovered_backlog_comes_before_new_records_and_is_in_the_books() {
    let mut s = sequence(8);
    s.recovered(T, 2);
    s.recovered_from(at(7), Lsn(40));
    assert_eq!((s.acked(), s.produced()), (Lsn(40), Lsn(40)));
    s.popped(popped(1));
    balanced(&s);
    assert_eq!(s.next_produce(), Next::Read);
    s.admit(backlog(40, 7));
    let (a, ..) = hand(&mut s);
    // New records enter the log behind the old ones and join the backlog.
    append(&mut s, 90);
    s.admit(backlog(41, 8));
    let (b, ..) = hand(&mut s);
    s.admit(backlog(100, 90));
    s.caught_up();
    let (c, ..) = hand(&mut s);
    for opaque in [c, a, b] {
        s.reported(opaque, Outcome::Delivered);
    }
    assert!(s.all_final());
    assert_eq!(s.acked(), Lsn(101));
    assert_eq!((s.books().recovered(), s.books().delivered()), (2, 3));
    balanced(&s);
}

#[test]
fn damaged_frames_leave_the_log_s_count_and_balance_as_dropped() {
    let mut s = sequence(8);
    s.recovered(T, 3);
    s.recovered_from(at(7), Lsn(40));
    s.admit(backlog(40, 7));
    s.damaged(2);
    s.caught_up();
    let (a, ..) = hand(&mut s);
    s.reported(a, Outcome::Delivered);
    assert!(s.all_final());
    assert_eq!((s.books().in_wal(), s.books().dropped(), s.books().damaged), (0, 2, 2));
    balanced(&s);
}

#[test]
fn not_persisted_is_produced_again_before_anything_new() {
    let mut s = sequence(8);
    pop(&mut s, 1..=3);
    let (a, ..) = hand(&mut s);
    let (b, ..) = hand(&mut s);
    assert_eq!(s.reported(a, failed(Scope::Transient, false)), Verdict::Again);
    assert_eq!(s.reported(b, failed(Scope::Transient, false)), Verdict::Again);
    let numbers: Vec<_> = (0..3).map(|_| hand(&mut s).1.0).collect();
    assert_eq!(numbers, [100, 101, 102]);
    assert_eq!((s.books().reordered, s.books().duplicates_possible), (2, 0));
    assert_eq!(s.books().in_flight(), 3);
}

#[test]
fn possibly_persisted_is_produced_again_by_a_new_instance_only() {
    for scope in [Scope::Transient, Scope::Instance] {
        let mut s = sequence(8);
        pop(&mut s, 1..=2);
        let (a, ..) = hand(&mut s);
        let (b, ..) = hand(&mut s);
        assert!(matches!(s.reported(a, failed(scope, true)), Verdict::Rebuild(_)));
        s.rebuilt();
        assert_eq!(s.reported(b, Outcome::Delivered), Verdict::Stale, "the old instance's");
        let numbers: Vec<_> = (0..2).map(|_| hand(&mut s).1.0).collect();
        assert_eq!(numbers, [100, 101]);
        assert_eq!((s.books().reordered, s.books().duplicates_possible), (0, 2));
        balanced(&s);
    }
}

#[test]
fn a_record_that_can_t_be_delivered_is_parked_until_it_is_set_aside() {
    for scope in [Scope::Record, Scope::Batch, Scope::Topic] {
        let mut s = sequence(8);
        s.popped(Popped { receipt: 4, ..popped(1) });
        let (a, ..) = hand(&mut s);
        let Verdict::SetAside { lsn, source, reason, .. } = s.reported(a, failed(scope, false))
        else {
            panic!("{scope:?}");
        };
        assert_eq!((lsn, source, reason.name), (Lsn(100), Source::Memory(1), "why"));
        // While parked it is neither final nor produced, also not by a new instance.
        assert_eq!(s.reported(a, Outcome::Delivered), Verdict::Stale);
        s.rebuilt();
        assert_eq!(s.next_produce(), Next::Idle);
        assert!(!s.all_final() && s.released().is_empty());
        let finished = s.finish(a, End::SetAside("why")).unwrap();
        assert_eq!((finished.receipt, finished.end), (4, End::SetAside("why")));
        assert_eq!(s.finish(a, End::SetAside("why")), None);
        assert_eq!(released(&mut s), [1]);
        assert_eq!(s.books().topics()[0].set_aside.iter().collect::<Vec<_>>(), [("why", 1)]);
        balanced(&s);
    }
}

#[test]
fn a_sink_s_refusal_at_once_is_judged_like_a_report() {
    let mut s = sequence(8);
    s.popped(popped(1));
    let Next::Produce { opaque, .. } = s.next_produce() else { panic!() };
    assert!(matches!(s.reported(opaque, failed(Scope::Record, false)), Verdict::SetAside { .. }));
    assert!(s.finish(opaque, End::Dropped("why")).is_some());
    assert_eq!((s.handed_records(), s.books().dropped()), (0, 1));
    assert!(s.all_final());
}

#[test]
fn a_rebuild_produces_everything_that_is_not_final_in_order() {
    let mut s = sequence(8);
    pop(&mut s, 1..=4);
    let handed: Vec<_> = (0..3).map(|_| hand(&mut s).0).collect();
    s.reported(handed[1], Outcome::Delivered);
    let why = Reason { name: "why", code: 7 };
    assert_eq!(s.reported(handed[0], failed(Scope::Instance, false)), Verdict::Rebuild(why));
    s.rebuilt();
    assert_eq!(s.handed_records(), 0);
    assert_eq!(s.reported(handed[2], Outcome::Delivered), Verdict::Stale);
    let numbers: Vec<_> = (0..3).map(|_| hand(&mut s).1.0).collect();
    assert_eq!(numbers, [100, 102, 103]);
    assert_eq!(s.books().duplicates_possible, 1, "the one that nobody reported");
    balanced(&s);
}

#[test]
fn log_first_produces_nothing_that_is_not_journaled() {
    let mut s = Sequence::new(limits(8, Journal::First), Lsn(1));
    s.popped(popped(1));
    assert_eq!(s.next_produce(), Next::JournalFirst);
    append(&mut s, 3);
    s.popped(popped(2));
    assert_eq!(s.next_produce(), Next::Read);
    s.admit(backlog(1, 3));
    assert_eq!(hand(&mut s).2, Source::Log(at(3)));
    assert_eq!(s.next_produce(), Next::Read);
    s.caught_up();
    assert_eq!(s.next_produce(), Next::JournalFirst);
}

#[test]
fn what_one_look_popped_has_one_age() {
    let mut s = sequence(8);
    s.popped(popped(10));
    s.popped(popped(12));
    s.end_batch();
    s.popped(popped(20));
    s.end_batch();
    assert_eq!(s.journal_target(9), s.journaled());
    assert_eq!(s.journal_target(10), Lsn(102));
    assert_eq!(s.journal_target(19), Lsn(102));
    assert_eq!(s.journal_target(20), Lsn(103));
    assert_eq!(s.oldest_unsafe_ns(), Some(10));
    let (a, ..) = hand(&mut s);
    let (b, ..) = hand(&mut s);
    s.reported(b, Outcome::Delivered);
    assert_eq!(s.oldest_unsafe_ns(), Some(10));
    s.reported(a, Outcome::Delivered);
    assert_eq!((s.oldest_unsafe_ns(), s.journal_target(15)), (Some(20), s.journaled()));
    append(&mut s, 0);
    assert_eq!((s.oldest_unsafe_ns(), s.unsafe_records()), (None, 0));
}

#[test]
fn giving_up_ends_what_is_in_memory_only() {
    let mut s = sequence(8);
    pop(&mut s, 1..=4);
    let (a, ..) = hand(&mut s);
    let (b, ..) = hand(&mut s);
    append(&mut s, 0);
    let ended = s.abandon("closed");
    assert_eq!(ended.iter().map(|f| f.lsn.0).collect::<Vec<_>>(), [101, 102, 103]);
    assert_eq!(s.reported(b, Outcome::Delivered), Verdict::Stale);
    let mut frames = released(&mut s);
    frames.sort_unstable();
    assert_eq!(frames, [1, 2, 3, 4]);
    assert_eq!((s.books().dropped(), s.books().in_wal()), (3, 1));
    balanced(&s);
    s.reported(a, Outcome::Delivered);
    assert!(s.all_final());
    balanced(&s);
}
