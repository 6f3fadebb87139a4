//! Live records beside a backlog, of the very flusher over a log.

use super::*;

const S: u64 = 1_000 * MS;
/// A flush is due after 20 ms, and looks are 5 ms apart.
const AT_ONCE_MS: u64 = 35;

fn open(disk: &MemoryStorage, backlog_percent: Option<u8>, records_per_s: u64) -> Machine {
    let options = WalOptions { segment_bytes: 1 << 18, wal_bytes_max: Some(64 << 20), ..options() };
    let guest = GuestOptions {
        records_per_s: Some(records_per_s).filter(|cap| *cap > 0),
        ..GuestOptions::default()
    };
    let sink_of = |sink| -> Box<dyn Sink> { Box::new(sink) };
    Machine::build(disk, options, WalFull::Refuse, guest, 60, backlog_percent, sink_of)
}

/// Two records a look of 5 ms, until the log is empty. The longest that one sent meanwhile took, and
/// how long all took.
fn drain(m: &mut Machine) -> (u64, u64) {
    let (from_ns, first) = (m.clock.now_ns(), m.sent);
    let (mut sent_ns, mut longest_ns) = (Vec::new(), 0);
    let mut seen = m.sink.delivered();
    loop {
        for _ in 0..2 {
            m.send();
            sent_ns.push(m.clock.now_ns());
        }
        let stats = m.step(5);
        let delivered = m.delivered();
        for number in &delivered[seen..] {
            if *number >= first {
                let took_ns = m.clock.now_ns() - sent_ns[(number - first) as usize];
                longest_ns = longest_ns.max(took_ns);
            }
        }
        seen = delivered.len();
        let past_ns = m.clock.now_ns() - from_ns;
        if stats.books.in_wal == 0 && past_ns > 200 * MS {
            return (longest_ns / MS, past_ns / MS);
        }
        assert!(past_ns < 600 * S, "{:?}", stats.books);
    }
}

fn outage(m: &mut Machine, records: u64) {
    m.send_in_steps(100);
    m.run(10, 5);
    m.sink.refuse();
    m.send_in_steps(records);
    m.run(20, 5);
}

/// What came behind a younger one: in order among themselves, as the rest is by what it is.
fn overtaken(delivered: &[u64]) -> Vec<u64> {
    let mut newest = None;
    let late = delivered.iter().copied().filter(|n| {
        let is_late = newest.is_some_and(|newest| *n < newest);
        newest = newest.max(Some(*n));
        is_late
    });
    let late: Vec<u64> = late.collect();
    assert!(late.is_sorted(), "the backlog's own order: {late:?}");
    late
}

/// Each once, whatever the order.
fn assert_whole(m: &mut Machine) {
    m.run(50, 5);
    let mut all = m.delivered();
    all.sort_unstable();
    assert!(all.iter().copied().eq(0..m.sent), "{} delivered of {} sent", all.len(), m.sent);
}

#[test]
fn live_records_go_at_once_and_the_backlog_at_its_cap_beside_them() {
    for percent in [None, Some(50), Some(1)] {
        let mut m = open(&MemoryStorage::new(), percent, 400);
        outage(&mut m, 2_000);
        m.sink.resume();
        let (longest_ms, took_ms) = drain(&mut m);
        let late = overtaken(&m.delivered());
        println!(
            "{percent:?}: 2,000 records drained in {took_ms} ms, {} of them overtaken; a live one \
             took {longest_ms} ms at most",
            late.len()
        );
        assert_whole(&mut m);
        assert_eq!(percent.is_none(), late.is_empty());
        assert!(percent.is_none() || longest_ms <= AT_ONCE_MS);
        assert!(percent.is_some() || longest_ms > 1_000, "the control");
        // At the cap, whatever arrives; or, with a share of one record, at one a look.
        let should_ms = if percent == Some(1) { 10_000 } else { 5_000 };
        assert!(took_ms.abs_diff(should_ms) <= 500, "{took_ms}");
    }
}

#[test]
fn what_a_run_left_goes_beside_what_is_sent_now() {
    let disk = MemoryStorage::new();
    {
        let mut m = open(&disk, None, 0);
        m.sink.refuse();
        m.send_in_steps(1_000);
        m.run(20, 5);
    }
    let mut m = open(&disk, Some(50), 400);
    let recovered = m.recovery.records;
    assert!(recovered > 900, "{recovered}");
    let (longest_ms, took_ms) = drain(&mut m);
    println!("{recovered} recovered, drained in {took_ms} ms; a live one took {longest_ms} ms");
    assert!(longest_ms <= AT_ONCE_MS);
    let stats = m.run(20, 5);
    assert_eq!(stats.books.delivered, recovered + m.sent);
    assert_eq!((stats.books.dropped, stats.books.set_aside), (0, 0));
}

#[test]
fn a_second_outage_while_the_first_backlog_drains_loses_and_repeats_nothing() {
    let mut m = open(&MemoryStorage::new(), Some(50), 400);
    outage(&mut m, 1_000);
    m.sink.resume();
    for round in 0..3 {
        m.send_in_steps(100);
        // The sink has live records and says nothing: they get old, and are journaled on their way.
        m.sink.hold_reports();
        m.send_in_steps(20);
        m.run(20, 5);
        m.sink.refuse();
        m.send_in_steps(50);
        let stats = m.run(20, 5);
        assert!(stats.books.in_wal > 500, "round {round}: {:?}", stats.books);
        assert_eq!(stats.books.duplicates_possible, 0);
        m.sink.resume();
    }
    let (longest_ms, took_ms) = drain(&mut m);
    let late = overtaken(&m.delivered());
    println!("drained in {took_ms} ms, {} overtaken; {longest_ms} ms at most", late.len());
    assert_whole(&mut m);
}

#[test]
fn a_flush_waits_for_the_backlog_too() {
    let mut m = open(&MemoryStorage::new(), Some(50), 400);
    outage(&mut m, 400);
    m.sink.resume();
    let asked = m.shared.ask_flush();
    m.send();
    let stats = m.run(40, 5);
    let last = m.sent - 1;
    assert!(m.delivered().contains(&last), "the live one is there: {:?}", stats.books);
    assert!(stats.books.in_wal > 0 && m.shared.flush_done() < asked, "{:?}", stats.books);
    assert!(stats.drain_estimate_ms.is_none());
    let stats = m.run(120, 5);
    assert!(stats.drain_estimate_ms.is_some(), "a backlog that shrinks has an end");
    let stats = m.run(200, 5);
    assert_eq!((stats.books.in_wal, m.shared.flush_done()), (0, asked));
    assert_whole(&mut m);
}
