//! The drill, of the very flusher on the test's clock: what it notes, what it refuses, what ends it.

use super::*;
use crate::drill::{Desk, DrillError, DrillReport, Outage};
use std::time::Duration;

const S: u64 = 1_000 * MS;

fn options() -> WalOptions {
    WalOptions { segment_bytes: 1 << 18, wal_bytes_max: Some(4 << 20), ..super::options() }
}

fn machine(guest: GuestOptions) -> Machine {
    Machine::open_paced(&MemoryStorage::new(), options(), WalFull::Refuse, guest, 60)
}

fn load(m: &mut Machine, ms: u64, per_look: u64) -> Stats {
    let looks = (0..ms / 5).map(|_| {
        (0..per_look).for_each(|_| m.send());
        m.step(5)
    });
    looks.last().expect("at least one look")
}

/// Asks for a drill, and looks once.
fn ask(m: &mut Machine, outage: Outage) -> Option<DrillError> {
    m.shared.ask_drill(outage).expect("there is none");
    m.step(5);
    refusal(m)
}

fn refusal(m: &Machine) -> Option<DrillError> {
    let mut desk = m.shared.drill.lock();
    let Desk::Ended(result) = &*desk else { return None };
    let why = result.clone().err();
    *desk = Desk::Free;
    why
}

fn report(m: &mut Machine, per_look: u64) -> DrillReport {
    let from_ns = m.clock.now_ns();
    loop {
        load(m, 5, per_look);
        let desk = std::mem::take(&mut *m.shared.drill.lock());
        match desk {
            Desk::Ended(result) => return result.expect("a report"),
            desk => *m.shared.drill.lock() = desk,
        }
        assert!(m.clock.now_ns() - from_ns < 600 * S, "no report");
    }
}

#[test]
fn the_report_says_what_happened() {
    let cap = GuestOptions { records_per_s: Some(400), ..GuestOptions::default() };
    let mut m = machine(cap);
    assert_eq!(load(&mut m, 2_000, 2).books.spilled, 0);
    let before = m.delivered().len();
    assert_eq!(ask(&mut m, Outage::lasting(Duration::from_secs(10))), None);
    let in_drill = load(&mut m, 9_900, 2);
    assert!(in_drill.states.drilling, "{:?}", in_drill.states);
    let handed = m.delivered().len() - before;
    assert!(handed <= 64, "{handed} were delivered in the outage");
    let report = report(&mut m, 2);
    println!("{report}");
    assert!(report.is_good(), "{report:?}");
    assert_eq!(report.outage, Duration::from_secs(10));
    assert!((3_900..=4_100).contains(&report.backlog_records), "{}", report.backlog_records);
    let each = (VALUE_BYTES + super::super::RECORD_OVERHEAD_BYTES) as u64;
    let bytes = report.backlog_bytes;
    assert!((3_900 * each..=4_100 * each).contains(&bytes), "{bytes}");
    let drained = report.drained.expect("it drained").as_millis() as u64;
    assert!((9_400..=10_600).contains(&drained), "{drained} ms for 4,000 at 400/s");
    assert!(report.oldest_unsafe_ms <= 60 && report.spilled() >= 7_500, "{report:?}");
    let delivered = m.delivered();
    assert!(delivered.is_sorted(), "order");
    let stats = m.run(20, 5);
    assert_eq!(stats.books.delivered, stats.books.accepted);
    assert_eq!((stats.books.duplicates_possible, stats.states.drilling), (0, false));
}

#[test]
fn it_is_refused_where_something_is_wrong_already() {
    let lasting = |s| Outage::lasting(Duration::from_secs(s));
    let mut m = machine(GuestOptions::default());
    load(&mut m, 2_000, 4);
    assert_eq!(ask(&mut m, lasting(0)), Some(DrillError::BadLength));
    assert_eq!(ask(&mut m, lasting(3_601)), Some(DrillError::BadLength));
    // 800 records a second of 164 B: twice that for an hour doesn't fit into 4 MiB.
    let no_room = ask(&mut m, lasting(3_600));
    println!("{no_room:?}");
    assert!(matches!(no_room, Some(DrillError::NoRoom { needed_bytes, free_bytes })
            if needed_bytes.abs_diff(2 * 3_600 * 800 * 164) < 20 << 20 && free_bytes < 4 << 20));
    m.sink.refuse();
    load(&mut m, 500, 4);
    let unhealthy = ask(&mut m, lasting(1));
    assert!(matches!(unhealthy, Some(DrillError::Unhealthy(_))), "{unhealthy:?}");
    m.sink.resume();
    m.flusher.guest = super::super::Guest::new(
        GuestOptions { records_per_s: Some(1), ..GuestOptions::default() },
        m.clock.now_ns(),
    );
    load(&mut m, 100, 1);
    let backlog = ask(&mut m, lasting(1));
    println!("{backlog:?}");
    assert!(matches!(backlog, Some(DrillError::Backlog { records }) if records > 100));
    m.shared.ask_close(m.clock.now_ns());
    assert_eq!(ask(&mut m, lasting(1)), Some(DrillError::Closed));
}

#[test]
fn it_ends_early_when_the_log_runs_short_of_room() {
    let mut m = machine(GuestOptions::default());
    load(&mut m, 500, 1);
    assert_eq!(ask(&mut m, Outage::lasting(Duration::from_secs(20))), None, "little comes");
    load(&mut m, 10_000, 12);
    let report = report(&mut m, 12);
    println!("{report}");
    assert!(report.cut_short.as_deref().is_some_and(|why| why.contains("room")), "{report:?}");
    assert!(report.outage < Duration::from_secs(20) && report.drained.is_some());
    assert_eq!((report.lost(), report.refused(), report.dropped()), (0, 0, 0));
    assert!(!report.is_good());
    assert!(m.delivered().is_sorted(), "order");
}

#[test]
fn a_close_ends_it_and_delivers() {
    let mut m = machine(GuestOptions::default());
    load(&mut m, 500, 2);
    assert_eq!(ask(&mut m, Outage::lasting(Duration::from_secs(10))), None);
    let waiting = load(&mut m, 1_000, 2).books;
    assert!(waiting.in_wal > 300, "{waiting:?}");
    m.shared.ask_close(m.clock.now_ns() + 10 * S);
    let stats = m.run(50, 5);
    assert_eq!(refusal(&m), Some(DrillError::Closed));
    assert_eq!(stats.books.delivered, stats.books.accepted, "{:?}", stats.books);
    assert!(m.delivered().is_sorted() && !stats.states.drilling);
}

#[test]
fn a_drain_that_takes_too_long_is_said_and_goes_on() {
    let mut m = machine(GuestOptions { records_per_s: Some(50), ..GuestOptions::default() });
    load(&mut m, 500, 2);
    let outage = Outage::lasting(Duration::from_secs(2)).drain_within(Duration::from_secs(1));
    assert_eq!(ask(&mut m, outage), None);
    let report = report(&mut m, 2);
    assert_eq!((report.drained, report.lost(), report.is_good()), (None, 0, false), "{report}");
    let again = ask(&mut m, outage);
    assert!(matches!(again, Some(DrillError::Backlog { .. })), "{again:?}");
    load(&mut m, 30_000, 0);
    let books = m.run(1, 5).books;
    assert_eq!(books.delivered, books.accepted);
}
