//! The pace of the replay, of the very flusher over a log: what was recovered, what spilled, and
//! what arrives beside it.

use super::*;

const S: u64 = 1_000 * MS;

fn options() -> WalOptions {
    WalOptions { segment_bytes: 1 << 18, wal_bytes_max: Some(64 << 20), ..super::options() }
}

fn paced(disk: &MemoryStorage, guest: GuestOptions) -> Machine {
    Machine::open_paced(disk, options(), WalFull::Refuse, guest, 60)
}

/// Looks every 5 ms for `ms`, while `per_look` records arrive at each.
fn load(m: &mut Machine, ms: u64, per_look: u64) -> Stats {
    let looks = (0..ms / 5).map(|_| {
        for _ in 0..per_look {
            m.send();
        }
        m.step(5)
    });
    looks.last().expect("at least one look")
}

/// Goes on until the log is empty; how long that took, and the last snapshot.
fn drain(m: &mut Machine, per_look: u64) -> (u64, Stats) {
    let from_ns = m.clock.now_ns();
    loop {
        let stats = load(m, 5, per_look);
        let past_ns = m.clock.now_ns() - from_ns;
        if stats.books.in_wal == 0 {
            return (past_ns, stats);
        }
        assert!(past_ns < 600 * S, "{:?}", stats.books);
    }
}

/// What spilled in ten seconds comes back at the cap, whatever arrives.
fn spilled(guest: GuestOptions, per_look: u64) -> (u64, u64) {
    let mut m = paced(&MemoryStorage::new(), guest);
    load(&mut m, 1_000, per_look.max(1));
    assert_eq!(m.run(10, 5).books.spilled, 0, "healthy, and something is journaled");
    m.sink.refuse();
    let outage = load(&mut m, 10_000, 2);
    assert!(outage.books.in_wal > 3_800, "{:?}", outage.books);
    assert_eq!(outage.drain_estimate_ms, None, "predicted in an outage");
    m.sink.resume();
    let (past_ns, stats) = drain(&mut m, per_look);
    let delivered = m.delivered();
    let mut sorted = delivered.clone();
    sorted.sort_unstable();
    assert_eq!(delivered, sorted, "order");
    assert_eq!((stats.books.dropped, stats.books.refused), (0, 0));
    println!(
        "{guest:?}, {per_look} a look: {} records drained in {} ms while {} arrived",
        outage.books.in_wal,
        past_ns / MS,
        stats.books.accepted - outage.books.accepted
    );
    (outage.books.in_wal + outage.books.in_flight, past_ns)
}

fn assert_near(is: u64, should: u64, percent: u64) {
    assert!(is.abs_diff(should) * 100 <= should * percent, "{is}, not {should}");
}

#[test]
fn what_spilled_comes_back_at_the_cap_however_much_arrives() {
    // 400 a second on top of nothing, of 400 and of 1,200 a second.
    for per_look in [0, 2, 6] {
        let guest = GuestOptions { records_per_s: Some(400), ..GuestOptions::default() };
        let (backlog, past_ns) = spilled(guest, per_look);
        assert_near(past_ns, backlog * S / 400, 6);
    }
}

#[test]
fn a_cap_on_bytes_counts_what_a_record_counts_in_the_span() {
    for per_look in [0, 4] {
        let bytes = (VALUE_BYTES + super::super::RECORD_OVERHEAD_BYTES) as u64;
        let guest = GuestOptions { bytes_per_s: Some(500 * bytes), ..GuestOptions::default() };
        let (backlog, past_ns) = spilled(guest, per_look);
        assert_near(past_ns, backlog * S / 500, 6);
    }
}

#[test]
fn what_was_recovered_comes_at_the_cap_and_its_end_is_predicted() {
    let disk = MemoryStorage::new();
    {
        let mut m = paced(&disk, GuestOptions::default());
        m.sink.refuse();
        load(&mut m, 10_000, 2);
    }
    let guest = GuestOptions { records_per_s: Some(200), ..GuestOptions::default() };
    let mut m = paced(&disk, guest);
    let backlog = m.recovery.records;
    assert!(backlog > 3_800, "{backlog}");
    let from_ns = m.clock.now_ns();
    let early = load(&mut m, 5_000, 1);
    let said = early.drain_estimate_ms.expect("a prediction") * MS;
    let (left_ns, stats) = drain(&mut m, 1);
    println!(
        "{backlog} recovered; after 5 s it said {} ms, it took {} ms",
        said / MS,
        left_ns / MS
    );
    assert_near(said, left_ns, 10);
    assert_near(m.clock.now_ns() - from_ns, backlog * S / 200, 6);
    assert_eq!(m.run(100, 5).drain_estimate_ms, None, "{stats:?}");
}

#[test]
fn the_ramp_begins_anew_after_each_outage_and_a_healthy_run_is_never_slowed() {
    let guest = GuestOptions {
        records_per_s: Some(1_000),
        ramp_ns: 2 * S,
        seed: 11,
        ..GuestOptions::default()
    };
    let mut m = paced(&MemoryStorage::new(), guest);
    for round in 0..2 {
        let healthy = load(&mut m, 2_000, 20);
        assert!(healthy.books.in_lanes + healthy.books.in_flight <= 120, "{:?}", healthy.books);
        m.sink.refuse();
        load(&mut m, 10_000, 2);
        m.sink.resume();
        let before = m.delivered().len();
        m.run(100, 5);
        let first = m.delivered().len() - before;
        m.run(400, 5);
        let before = m.delivered().len();
        m.run(100, 5);
        let later = m.delivered().len() - before;
        println!("round {round}: {first} in the first half second, {later} in a later one");
        assert!(first <= 160 && (450..=550).contains(&later), "{first}, {later}");
        drain(&mut m, 0);
    }
}

#[test]
fn with_the_log_first_a_healthy_run_is_not_slowed_either() {
    let guest = GuestOptions { records_per_s: Some(1), ..GuestOptions::default() };
    let disk = MemoryStorage::new();
    let mut m = Machine::open_paced(&disk, options(), WalFull::Refuse, guest, 0);
    load(&mut m, 500, 1);
    let mut most = 0;
    for _ in 0..1_000 {
        let books = load(&mut m, 5, 10).books;
        most = most.max(books.in_lanes + books.in_flight + books.in_wal);
    }
    let books = m.run(10, 5).books;
    println!("{} records through the log, at most {most} on their way", books.spilled);
    assert!(books.spilled >= 10_000 && most <= 200, "{most}: {books:?}");
}

#[test]
fn damage_that_waits_for_the_pace_is_counted_before_its_segment_goes() {
    let disk = MemoryStorage::new();
    let name = {
        let mut m = paced(&disk, GuestOptions::default());
        m.sink.refuse();
        load(&mut m, 1_000, 2);
        disk.names().into_iter().find(|name| name.ends_with(".wal")).expect("a segment")
    };
    let mut bytes = disk.contents(&name).expect("its bytes");
    // With the first frames go the topics' names, without which no other can be used.
    bytes[1024..1600].iter_mut().for_each(|byte| *byte ^= 0x55);
    disk.put(&name, &bytes);
    let guest = GuestOptions { records_per_s: Some(1), ramp_ns: S, ..GuestOptions::default() };
    let mut m = paced(&disk, guest);
    let at_first = m.run(2, 5);
    let stats = load(&mut m, 5_000, 1);
    println!(
        "{} recovered, {} of them damaged: {:?}",
        at_first.books.recovered,
        stats.wal.as_ref().map_or(0, |w| w.damaged_records),
        stats.books
    );
    assert!(at_first.books.recovered > 0, "recovery counted nothing: {at_first:?}");
    assert_eq!(stats.wal.map(|w| w.damaged_records), Some(at_first.books.recovered));
    assert_eq!(stats.books.dropped, at_first.books.recovered);
}
