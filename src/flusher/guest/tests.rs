//! Tests of the pace over a model of a log that only counts, on a clock that the test moves.

#![allow(clippy::print_stdout)]

use super::*;

const MS: u64 = 1_000_000;
const S: u64 = 1_000 * MS;

/// A backlog, what arrives, and a sink that takes all and reports at the next look.
struct Model {
    guest: Guest,
    now_ns: u64,
    rng: u64,
    per_s: u64,
    bytes: u64,
    owed_ns: u64,
    backlog: u64,
    handed: u64,
    arrived: u64,
    /// Handed over and not reported.
    open: usize,
    is_gone: bool,
}

impl Model {
    fn new(options: GuestOptions, per_s: u64, bytes: u64, backlog: u64) -> Model {
        Model {
            guest: Guest::new(options, S),
            now_ns: S,
            rng: options.seed,
            per_s,
            bytes,
            owed_ns: 0,
            backlog,
            handed: 0,
            arrived: 0,
            open: 0,
            is_gone: false,
        }
    }

    fn look(&mut self) {
        self.rng = self.rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
        let dt_ns = 500_000 + (self.rng >> 33) % (10 * MS);
        self.now_ns += dt_ns;
        if !self.is_gone {
            for _ in 0..std::mem::take(&mut self.open) {
                self.guest.heard(self.now_ns, true);
            }
        }
        self.guest.tick(self.now_ns, self.open, self.is_gone);
        self.owed_ns += dt_ns * self.per_s;
        for _ in 0..self.owed_ns / S {
            self.guest.arrived(self.bytes);
            self.backlog += 1;
            self.arrived += 1;
        }
        self.owed_ns %= S;
        loop {
            if self.backlog == 0 {
                self.guest.caught_up();
                break;
            }
            self.guest.behind();
            if self.is_gone || !self.guest.may_go() {
                break;
            }
            self.guest.handed(self.bytes, false);
            self.backlog -= 1;
            self.handed += 1;
            self.open += 1;
        }
        self.guest.note_backlog(self.backlog);
    }

    /// Looks until `until_ns` after the first one of all.
    fn run(&mut self, until_ns: u64) {
        while self.now_ns < S + until_ns {
            self.look();
        }
    }

    /// Time until the backlog is gone, from now on.
    fn drained_ns(&mut self) -> u64 {
        let from_ns = self.now_ns;
        while self.guest.is_catching_up() || self.backlog > 0 {
            self.look();
            assert!(self.now_ns - from_ns < 3_600 * S, "{} are left", self.backlog);
        }
        self.now_ns - from_ns
    }
}

/// Within so many thousandths.
fn assert_near(what: &str, is: u64, should: u64, thousandths: u64) {
    println!("{what}: {is}, should be {should}");
    assert!(is.abs_diff(should) * 1000 <= should * thousandths, "{what}: {is}, not {should}");
}

#[test]
fn a_backlog_shrinks_at_the_cap_however_much_arrives() {
    for (cap, per_s) in [(1_000, 0), (1_000, 50_000), (50_000, 1_000), (7, 300), (1_000_000, 9)] {
        let options = GuestOptions { records_per_s: Some(cap), seed: 7, ..Default::default() };
        let mut m = Model::new(options, per_s, 100, cap * 60);
        m.look();
        let drained_ns = m.drained_ns();
        assert_near(&format!("cap {cap}/s, {per_s}/s arrive"), drained_ns, 60 * S, 20);
        // To the record: what arrived, what the cap gave, and one that is let through.
        let most = m.arrived + cap * (m.now_ns - S).div_ceil(S) + 1;
        assert!(m.handed <= most, "{} of {most}", m.handed);
    }
}

#[test]
fn a_cap_on_bytes_holds_with_records_of_any_size() {
    for bytes in [64, 1_000, 900_000] {
        let options = GuestOptions { bytes_per_s: Some(1_000_000), seed: 3, ..Default::default() };
        let backlog = 60_000_000 / bytes;
        let mut m = Model::new(options, 20, bytes, backlog);
        m.look();
        let drained_ns = m.drained_ns();
        let should_ns = backlog * bytes * 1_000;
        assert_near(&format!("1 MB/s, records of {bytes} B"), drained_ns, should_ns, 40);
    }
}

#[test]
fn the_ramp_begins_with_the_first_delivery_at_a_tenth() {
    let options =
        GuestOptions { records_per_s: Some(10_000), ramp_ns: 2 * S, seed: 1, ..Default::default() };
    let mut m = Model::new(options, 0, 100, 1_000_000);
    let mut tenths = Vec::new();
    for tenth in 1..=40u64 {
        let before = m.handed;
        m.run(tenth * S / 10);
        tenths.push(m.handed - before);
    }
    println!("handed in each tenth of a second: {tenths:?}");
    assert!(tenths[0] <= 250, "begins at about 100: {}", tenths[0]);
    assert!(tenths[39].abs_diff(1_000) <= 120, "ends at about 1,000: {}", tenths[39]);
    // 55 % of the cap over the ramp, which begins late by 0.4 s at most, at a tenth.
    let (least, most) = (0.55 * 20_000.0 + 12_000.0, 0.55 * 20_000.0 + 20_000.0);
    assert!((least..most).contains(&(m.handed as f64)), "{}", m.handed);
}

#[test]
fn an_outage_begins_the_ramp_anew_and_leaves_nothing_saved_up() {
    let options =
        GuestOptions { records_per_s: Some(10_000), ramp_ns: 2 * S, seed: 9, ..Default::default() };
    let mut m = Model::new(options, 5_000, 100, 0);
    m.run(10 * S);
    assert_eq!(m.backlog, 0, "a healthy run is caught up");
    m.is_gone = true;
    m.run(40 * S);
    assert!(m.backlog > 140_000, "{}", m.backlog);
    m.is_gone = false;
    let before = (m.handed, m.arrived);
    m.run(41 * S);
    let (handed, arrived) = (m.handed - before.0, m.arrived - before.1);
    println!("in the first second after the outage {handed} handed over, {arrived} arrived");
    assert!(handed > 4_000 && handed < arrived + 10_000 * 55 / 100, "{handed}");
    let drained_ns = m.drained_ns();
    assert_near("the rest drained", drained_ns, 15 * S, 60);
}

#[test]
fn a_sink_that_is_silent_counts_as_away() {
    let options =
        GuestOptions { records_per_s: Some(100), ramp_ns: S, seed: 2, ..Default::default() };
    let mut guest = Guest::new(options, 0);
    guest.heard(0, true);
    guest.tick(2 * S, 5, false);
    assert_eq!(guest.thousandths(), 1000);
    guest.tick(3 * S, 5, false);
    assert_eq!(guest.thousandths(), RAMP_FROM, "3 s without a report");
    guest.heard(4 * S, false);
    guest.tick(4 * S, 5, false);
    assert_eq!(guest.thousandths(), RAMP_FROM, "a failure is no delivery");
    guest.heard(4 * S, true);
    guest.tick(6 * S, 5, false);
    assert_eq!(guest.thousandths(), 1000);
    guest.tick(60 * S, 0, false);
    assert_eq!(guest.thousandths(), 1000, "nothing was owed");
}

#[test]
fn without_a_cap_the_ramp_goes_by_what_was_delivered_and_ends_without_a_bound() {
    let options = GuestOptions { ramp_ns: 2 * S, seed: 4, ..Default::default() };
    let mut m = Model::new(options, 40_000, 100, 0);
    m.run(5 * S);
    m.is_gone = true;
    m.run(15 * S);
    let backlog = m.backlog;
    m.is_gone = false;
    let before = m.handed;
    m.run(16 * S);
    println!("{backlog} wait; in the first second {} went", m.handed - before);
    // 40,000 arrive; the ramp goes from 4,000/s on.
    assert!((40_000..80_000).contains(&(m.handed - before)), "{}", m.handed - before);
    m.run(15 * S + 2_500 * MS);
    assert_eq!(m.backlog, 0, "the ramp is over");

    let unbound = GuestOptions::default();
    let mut m = Model::new(unbound, 0, 100, 1_000_000);
    m.look();
    assert_eq!(m.backlog, 0, "no cap and no ramp");
}

#[test]
fn chance_puts_the_ramp_off_by_up_to_a_fifth() {
    let mut offs: Vec<u64> = (0..1_000)
        .map(|seed| {
            let mut guest =
                Guest::new(GuestOptions { ramp_ns: 2 * S, seed, ..Default::default() }, 0);
            guest.heard(S, true);
            guest.ramp_from_ns.expect("it has begun") - S
        })
        .collect();
    offs.sort_unstable();
    println!("of 1,000 seeds: {} to {} ms", offs[0] / MS, offs[999] / MS);
    assert!(offs[999] <= 400 * MS && offs[0] < 20 * MS && offs[999] > 380 * MS);
    assert!(offs[500].abs_diff(200 * MS) < 30 * MS, "{}", offs[500]);
}

#[test]
fn what_comes_back_beside_live_records_gets_the_cap_and_no_more() {
    let options = GuestOptions { records_per_s: Some(1_000), seed: 5, ..Default::default() };
    let mut guest = Guest::new(options, 0);
    guest.heard(0, true);
    let (mut live, mut redriven, mut waiting) = (0u64, 0u64, 0u64);
    for look in 1..=10_000u64 {
        let now_ns = look * 5 * MS;
        guest.heard(now_ns, true);
        guest.tick(now_ns, 1, false);
        // A batch of 500 every 50 ms: 10,000 a second.
        if look % 10 == 0 {
            waiting += 500;
            (0..500).for_each(|_| guest.arrived(100));
        }
        while guest.may_redrive() {
            guest.handed(100, true);
            redriven += 1;
        }
        while waiting > 0 && guest.may_go() {
            guest.handed(100, false);
            (waiting, live) = (waiting - 1, live + 1);
        }
    }
    println!("in 50 s {live} live and {redriven} redriven went");
    assert_eq!(live, 500_000, "live records never wait");
    assert_near("redriven", redriven, 50_000, 30);
}

#[test]
fn a_backlog_gets_half_of_what_comes_back_beside_it() {
    let options = GuestOptions { records_per_s: Some(1_000), seed: 6, ..Default::default() };
    let mut guest = Guest::new(options, 0);
    guest.heard(0, true);
    guest.behind();
    let (mut backlog, mut redriven) = (0u64, 0u64);
    for look in 1..=10_000u64 {
        guest.heard(look * 5 * MS, true);
        guest.tick(look * 5 * MS, 1, false);
        while guest.may_redrive() {
            guest.handed(100, true);
            redriven += 1;
        }
        while guest.may_go() {
            guest.handed(100, false);
            backlog += 1;
        }
    }
    println!("in 50 s {backlog} of the backlog and {redriven} redriven went");
    assert_near("both", backlog + redriven, 50_000, 20);
    assert!(backlog.abs_diff(redriven) < 20_000, "{backlog} and {redriven}");
}

#[test]
fn the_end_of_a_backlog_is_predicted() {
    let options = GuestOptions { records_per_s: Some(5_000), seed: 8, ..Default::default() };
    let mut m = Model::new(options, 20_000, 100, 100_000);
    m.run(2 * S);
    let left_ms = m.guest.drain_estimate_ms().expect("a prediction");
    let drained_ns = m.drained_ns();
    assert_near("predicted, in ms", left_ms, drained_ns / MS, 50);
    m.look();
    assert_eq!(m.guest.drain_estimate_ms(), None, "nothing waits");
}
