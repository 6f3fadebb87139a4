//! A full log lets go of its oldest segment: what becomes of its records.

use super::*;

const FULL: End = End::Dropped("full");

#[test]
fn what_was_handed_over_and_what_was_never_read_both_end_and_late_reports_find_nothing() {
    let mut s = sequence(2);
    pop(&mut s, 0..=4);
    let (first, ..) = hand(&mut s);
    let (second, ..) = hand(&mut s);
    for n in 0..5 {
        append(&mut s, n);
    }
    assert_eq!(released(&mut s), [0, 1, 2, 3, 4]);
    assert_eq!(s.next_produce(), Next::SpanFull);
    // Numbers 100 to 102 go: two that the sink has, one that nobody has read.
    let ended = s.drop_admitted(Lsn(103), "full");
    assert_eq!(
        ended.iter().map(|f| (f.lsn.0, f.end)).collect::<Vec<_>>(),
        [(100, FULL), (101, FULL)]
    );
    let unread = Backlog { receipt: 9, ..backlog(102, 2) };
    let ended = s.end_unread(unread, FULL).unwrap();
    assert_eq!((ended.lsn, ended.receipt, ended.end), (Lsn(102), 9, FULL));
    assert_eq!(s.end_unread(unread, FULL), None, "once");
    s.dropped_below(Lsn(103));
    assert_eq!((s.acked(), s.produced()), (Lsn(103), Lsn(103)));
    balanced(&s);
    assert_eq!((s.books().dropped(), s.books().in_wal(), s.books().replayed()), (3, 2, 0));
    // The sink's reports come all the same.
    assert_eq!(s.reported(first, Outcome::Delivered), Verdict::Stale);
    assert_eq!(s.reported(second, failed(Scope::Transient, true)), Verdict::Stale);
    balanced(&s);
    // The rest goes on in order.
    assert_eq!(s.next_produce(), Next::Read);
    s.admit(backlog(103, 3));
    assert_eq!(hand(&mut s).1, Lsn(103));
}

#[test]
fn a_parked_record_and_one_that_waits_to_be_produced_again_go_too() {
    let mut s = sequence(4);
    pop(&mut s, 0..=2);
    let opaques = [hand(&mut s).0, hand(&mut s).0];
    for n in 0..3 {
        append(&mut s, n);
    }
    assert!(matches!(
        s.reported(opaques[0], failed(Scope::Record, false)),
        Verdict::SetAside { .. }
    ));
    assert_eq!(s.reported(opaques[1], failed(Scope::Transient, false)), Verdict::Again);
    assert_eq!(s.drop_admitted(Lsn(102), "full").len(), 2);
    s.dropped_below(Lsn(102));
    assert_eq!(s.source_of(opaques[0]), None);
    assert_eq!(s.finish(opaques[0], End::SetAside("why")), None);
    assert_eq!((s.acked(), s.books().dropped(), s.books().set_aside()), (Lsn(102), 2, 0));
    balanced(&s);
}

#[test]
fn a_segment_whose_last_records_are_damaged_is_passed() {
    let mut s = Sequence::<u32>::new(limits(8, Journal::Spill), Lsn(200));
    s.recovered(T, 3);
    s.recovered_from(at(0), Lsn(100));
    assert!(s.end_unread(backlog(100, 0), FULL).is_some());
    s.damaged(2);
    s.dropped_below(Lsn(103));
    assert_eq!((s.acked(), s.books().dropped(), s.books().in_wal()), (Lsn(103), 3, 0));
    balanced(&s);
    // Never beyond what is in the log.
    s.dropped_below(Lsn(900));
    assert_eq!(s.produced(), Lsn(200));
}
