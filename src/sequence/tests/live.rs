//! Live records beside a backlog.

use super::*;

fn live_first(records: usize) -> Sequence<u32> {
    let limits = Limits { backlog_percent: Some(50), ..limits(records, Journal::Spill) };
    Sequence::new(limits, Lsn(100))
}

/// Hands the next live record over.
#[track_caller]
fn hand_live(s: &mut Sequence<u32>) -> (Opaque, Lsn, Source<u32>) {
    match s.next_live() {
        Next::Produce { opaque, lsn, source, .. } => {
            assert!(opaque.is_live());
            s.handed(opaque, ANY_PARTITION);
            (opaque, lsn, source)
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn deliver(s: &mut Sequence<u32>, opaque: Opaque) {
    assert!(matches!(s.reported(opaque, Outcome::Delivered), Verdict::Finished(_)));
    balanced(s);
}

/// Reads the frame of this number, which lies at the offset of the same number, and hands it over.
#[track_caller]
fn read(s: &mut Sequence<u32>, lsn: u64) -> Opaque {
    assert_eq!(s.next_produce(), Next::Read);
    s.admit(backlog(lsn, lsn));
    let (opaque, handed, source) = hand(s);
    assert_eq!((handed, source), (Lsn(lsn), Source::Log(at(lsn))));
    assert!(!opaque.is_live());
    opaque
}

#[test]
fn without_a_backlog_everything_is_live_and_acked_follows() {
    let mut s = live_first(4);
    pop(&mut s, 0..=4);
    assert_eq!(s.next_produce(), Next::Idle);
    let opaques: Vec<Opaque> = (0..4).map(|_| hand_live(&mut s).0).collect();
    assert_eq!((s.next_live(), s.waiting_in_memory()), (Next::SpanFull, 1), "the whole span");
    for opaque in opaques {
        deliver(&mut s, opaque);
    }
    assert_eq!((s.acked(), s.produced()), (Lsn(104), Lsn(104)));
    let (last, ..) = hand_live(&mut s);
    deliver(&mut s, last);
    assert!(s.all_final());
    assert_eq!(s.next_live(), Next::Idle);
}

#[test]
fn what_waits_in_the_log_goes_beside_what_is_in_memory() {
    let mut s = live_first(4);
    pop(&mut s, 0..=1);
    append(&mut s, 100);
    append(&mut s, 101);
    pop(&mut s, 2..=3);
    let (live, lsn, source) = hand_live(&mut s);
    assert_eq!((lsn, source), (Lsn(102), Source::Memory(2)));
    let first = read(&mut s, 100);
    deliver(&mut s, live);
    assert_eq!((s.acked(), s.span_records()), (Lsn(100), 1), "the backlog isn't final");
    let second = read(&mut s, 101);
    assert_eq!(s.next_produce(), Next::SpanFull, "its share is half of four");
    let (live, ..) = hand_live(&mut s);
    deliver(&mut s, second);
    deliver(&mut s, first);
    assert_eq!(s.acked(), Lsn(102));
    assert_eq!(s.next_produce(), Next::Read);
    s.caught_up();
    deliver(&mut s, live);
    assert_eq!((s.acked(), s.all_final(), s.next_produce()), (Lsn(104), true, Next::Idle));
    assert_eq!(released(&mut s), [0, 1, 2, 3]);
}

#[test]
fn what_was_journaled_on_its_way_is_passed_over_and_counts_against_the_live_part() {
    let mut s = live_first(4);
    pop(&mut s, 0..=0);
    append(&mut s, 100);
    pop(&mut s, 1..=2);
    let (a, ..) = hand_live(&mut s);
    let (b, ..) = hand_live(&mut s);
    append(&mut s, 101);
    append(&mut s, 102);
    deliver(&mut s, a);
    deliver(&mut s, b);
    pop(&mut s, 3..=3);
    assert_eq!(s.next_live(), Next::SpanFull, "two may come twice after a crash");
    let first = read(&mut s, 100);
    assert_eq!(s.next_produce(), Next::Read);
    s.admit(backlog(101, 101));
    s.admit(backlog(102, 102));
    assert_eq!((s.produced(), s.next_produce()), (Lsn(103), Next::Read));
    assert_eq!(s.next_live(), Next::SpanFull, "they are above what isn't final");
    deliver(&mut s, first);
    assert_eq!((s.acked(), s.books().replayed()), (Lsn(103), 1));
    assert_eq!(hand_live(&mut s).1, Lsn(103));
}

#[test]
fn what_is_final_behind_an_older_live_record_keeps_its_place_in_the_span() {
    let mut s = live_first(4);
    pop(&mut s, 0..=0);
    append(&mut s, 100);
    pop(&mut s, 1..=3);
    let (stuck, ..) = hand_live(&mut s);
    for n in 101..=103 {
        append(&mut s, n);
    }
    let first = read(&mut s, 100);
    deliver(&mut s, first);
    assert_eq!(s.next_produce(), Next::Read);
    s.admit(backlog(101, 101));
    let second = read(&mut s, 102);
    deliver(&mut s, second);
    assert_eq!((s.acked(), s.span_records()), (Lsn(101), 2));
    let third = read(&mut s, 103);
    deliver(&mut s, third);
    assert_eq!(s.next_produce(), Next::SpanFull);
    deliver(&mut s, stuck);
    assert_eq!((s.acked(), s.span_records(), s.next_produce()), (Lsn(104), 0, Next::Read));
}

#[test]
fn no_record_of_the_backlog_goes_before_an_older_live_one() {
    let mut s = live_first(6);
    pop(&mut s, 0..=0);
    append(&mut s, 100);
    pop(&mut s, 1..=2);
    let (live, ..) = hand_live(&mut s);
    append(&mut s, 101);
    append(&mut s, 102);
    assert_eq!(s.reported(live, failed(Scope::Transient, false)), Verdict::Again);
    let first = read(&mut s, 100);
    deliver(&mut s, first);
    s.admit(backlog(101, 101));
    s.admit(backlog(102, 102));
    assert_eq!(s.next_produce(), Next::LiveFirst);
    assert_eq!(hand_live(&mut s).1, Lsn(101));
    assert_eq!(hand(&mut s).1, Lsn(102));
    // A new instance is given both anew, each in its order.
    s.rebuilt();
    assert_eq!(s.next_produce(), Next::LiveFirst);
    assert_eq!((hand_live(&mut s).2, hand(&mut s).1), (Source::Log(at(101)), Lsn(102)));
}

#[test]
fn damage_among_what_went_live_is_not_the_backlog_s_loss() {
    let mut s = live_first(8);
    pop(&mut s, 0..=0);
    append(&mut s, 100);
    pop(&mut s, 1..=3);
    let (live, ..) = hand_live(&mut s);
    for n in 101..=103 {
        append(&mut s, n);
    }
    deliver(&mut s, live);
    let first = read(&mut s, 100);
    // Frames 101 and 102 are gone: the first is delivered already.
    s.damaged(2);
    balanced(&s);
    assert_eq!(s.books().dropped(), 0, "nobody knows yet");
    let last = read(&mut s, 103);
    assert_eq!((s.books().dropped(), s.books().in_wal()), (1, 2));
    balanced(&s);
    deliver(&mut s, first);
    deliver(&mut s, last);
    s.caught_up();
    assert!(s.all_final());
    assert_eq!((s.books().delivered(), s.books().in_wal(), s.acked()), (3, 0, Lsn(104)));
}

#[test]
fn a_full_log_drops_the_backlog_and_passes_over_what_went_live() {
    let mut s = live_first(8);
    pop(&mut s, 0..=0);
    append(&mut s, 100);
    pop(&mut s, 1..=2);
    let (open, ..) = hand_live(&mut s);
    append(&mut s, 101);
    append(&mut s, 102);
    let full = End::Dropped("full");
    let ended = s.drop_admitted(Lsn(103), "full");
    assert_eq!(ended.iter().map(|f| f.lsn.0).collect::<Vec<_>>(), [101]);
    assert_eq!(s.end_unread(backlog(100, 100), full).map(|f| f.lsn), Some(Lsn(100)));
    assert_eq!(s.end_unread(backlog(101, 101), full), None, "it has ended");
    assert_eq!(s.end_unread(backlog(102, 102), full).map(|f| f.lsn), Some(Lsn(102)));
    s.dropped_below(Lsn(103));
    assert_eq!((s.acked(), s.books().dropped(), s.books().in_wal()), (Lsn(103), 3, 0));
    assert_eq!(s.reported(open, Outcome::Delivered), Verdict::Stale);
    balanced(&s);
}

#[test]
fn where_nothing_can_go_beside_a_backlog_it_goes_first() {
    let of = |records, journal| {
        let limits = Limits { backlog_percent: Some(50), ..limits(records, journal) };
        Sequence::<u32>::new(limits, Lsn(100)).has_live()
    };
    assert!(of(2, Journal::Spill));
    assert!(!of(1, Journal::Spill) && !of(2, Journal::First) && !of(2, Journal::Off));
}
