//! Owns the pace at which a backlog is handed over, so that a Kafka which has just come back isn't
//! broken by all who waited for it. Pure: no clock, no thread; chance comes from a seed.
//!
//! Each record that arrives earns the right to hand one over, and the caps of the replay earn more
//! by time: so the total is the live rate plus the cap, and a backlog shrinks at the cap. Once a
//! record has to come from the log *everything* is paced, until the hand-over has caught up with
//! what arrives. A healthy pipeline is never slowed; its records only spend what they earned.
//!
//! The caps grow from a tenth to the whole within the ramp, which begins with the first delivery
//! after the sink was away, put off by up to a fifth of the ramp by chance. Without a cap the ramp
//! goes by the most that was delivered in a second of this run, and ends without a bound.
//!
//! Arithmetic is in whole numbers of a millionth of a millionth of a record or byte: a cap per
//! second times nanoseconds times thousandths of the ramp. Nothing is rounded, so nothing drifts.

use super::rates::{Drain, Rate};
use crate::chance::splitmix64;

/// One record or byte.
const UNIT: i128 = 1_000_000_000_000;
/// What a cap earned in this time may be saved up; looks are at most 10 ms apart when all is well.
const SAVED_NS: u64 = 250_000_000;
/// What arrived in the last one to two of these may still be handed over at once.
const RECENT_NS: u64 = 500_000_000;
/// Without any report for so long, with something handed over, the sink counts as away.
const SILENT_NS: u64 = 3_000_000_000;
/// The least that the ramp goes by where no cap is set.
const RAMP_RECORDS_PER_S: u64 = 10_000;
/// Thousandths of the caps at the ramp's begin.
const RAMP_FROM: u64 = 100;

/// Settings of the replay.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GuestOptions {
    pub(crate) records_per_s: Option<u64>,
    pub(crate) bytes_per_s: Option<u64>,
    pub(crate) ramp_ns: u64,
    pub(crate) seed: u64,
}

/// What was earned and not spent, of records or of bytes.
#[derive(Clone, Debug, Default)]
struct Purse {
    level: i128,
    /// What arrived in this half second, and in the one before.
    recent: [u64; 2],
}

impl Purse {
    fn arrived(&mut self, n: u64) {
        self.level += i128::from(n) * UNIT;
        self.recent[0] += n;
    }

    fn recent(&self) -> i128 {
        i128::from(self.recent[0] + self.recent[1]) * UNIT
    }

    /// `dt_ns` have passed at `per_s` times thousandths. What can't be saved is lost.
    fn earn(&mut self, per_s: u64, thousandths: u64, dt_ns: u64) {
        let per_ns = i128::from(per_s) * i128::from(thousandths);
        self.level += per_ns * i128::from(dt_ns);
        let most = self.recent() + per_ns * i128::from(SAVED_NS);
        self.level = self.level.min(most.max(1));
    }

    /// Those who need not ask get into debt by no more than what has just arrived.
    fn spend(&mut self, n: u64, asked: bool) {
        let least = if asked { i128::MIN } else { -self.recent() };
        self.level = (self.level - i128::from(n) * UNIT).max(least.min(self.level));
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Guest {
    options: GuestOptions,
    rng: u64,
    now_ns: u64,
    recent_from_ns: u64,
    records: Purse,
    bytes: Purse,
    /// When the ramp begins or began; `None` while the sink is away.
    ramp_from_ns: Option<u64>,
    /// Nothing was owed, or the last report came.
    heard_ns: u64,
    catching_up: bool,
    /// Bytes that arrived less those handed over; moved by what is handed over again.
    waiting_bytes: i64,
    /// What has to be left for the backlog by what comes back beside it.
    kept: (i128, i128),
    pub(super) arrivals: Rate,
    delivered: Rate,
    drain: Drain,
}

impl Guest {
    pub(crate) fn new(options: GuestOptions, now_ns: u64) -> Guest {
        Guest {
            options,
            rng: options.seed,
            now_ns,
            recent_from_ns: now_ns,
            records: Purse::default(),
            bytes: Purse::default(),
            ramp_from_ns: None,
            heard_ns: now_ns,
            catching_up: false,
            waiting_bytes: 0,
            kept: (0, 0),
            arrivals: Rate::new(now_ns),
            delivered: Rate::new(now_ns),
            drain: Drain::default(),
        }
    }

    /// A look begins. The sink owes reports of `handed` records; `is_gone` when it says itself
    /// that it can't be had. Reports of this look have been told.
    pub(crate) fn tick(&mut self, now_ns: u64, handed: usize, is_gone: bool) {
        let dt_ns = now_ns.saturating_sub(self.now_ns);
        self.now_ns = now_ns;
        if handed == 0 {
            self.heard_ns = now_ns;
        }
        if is_gone || self.is_silent() {
            self.ramp_from_ns = None;
        }
        if is_gone {
            self.forget();
        }
        let recent_ns = now_ns.saturating_sub(self.recent_from_ns);
        if recent_ns >= RECENT_NS {
            for purse in [&mut self.records, &mut self.bytes] {
                let before = if recent_ns < 2 * RECENT_NS { purse.recent[0] } else { 0 };
                purse.recent = [0, before];
            }
            self.recent_from_ns = now_ns;
        }
        self.arrivals.tick(now_ns);
        self.delivered.tick(now_ns);
        let thousandths = self.thousandths();
        self.records.earn(self.records_per_s().unwrap_or(0), thousandths, dt_ns);
        self.bytes.earn(self.options.bytes_per_s.unwrap_or(0), thousandths, dt_ns);
        let half = |purse: &Purse| if self.catching_up { purse.level.max(0) / 2 } else { 0 };
        self.kept = (half(&self.records), half(&self.bytes));
    }

    /// A record left its lane.
    pub(crate) fn arrived(&mut self, bytes: u64) {
        self.arrivals.add(1, bytes);
        self.waiting_bytes += bytes as i64;
        self.records.arrived(1);
        self.bytes.arrived(bytes);
    }

    /// A report came. With a delivery the sink is there, and if it was away the ramp begins.
    pub(crate) fn heard(&mut self, now_ns: u64, is_delivery: bool) {
        self.heard_ns = now_ns;
        self.delivered.add(u64::from(is_delivery), 0);
        if is_delivery && self.ramp_from_ns.is_none() {
            let jitter_ns = match self.options.ramp_ns / 5 {
                0 => 0,
                most => splitmix64(&mut self.rng) % (most + 1),
            };
            self.ramp_from_ns = Some(now_ns + jitter_ns);
            self.forget();
        }
    }

    /// What was earned while the sink was away is owed to nobody: it is backlog.
    fn forget(&mut self) {
        (self.records, self.bytes) = Default::default();
    }

    fn thousandths(&self) -> u64 {
        let ramp_ns = self.options.ramp_ns;
        match self.ramp_from_ns {
            _ if ramp_ns == 0 => 1000,
            None => RAMP_FROM,
            Some(from_ns) => {
                let past_ns = self.now_ns.saturating_sub(from_ns).min(ramp_ns);
                let grown =
                    u128::from(1000 - RAMP_FROM) * u128::from(past_ns) / u128::from(ramp_ns);
                RAMP_FROM + grown as u64
            }
        }
    }

    /// The cap on records; in the ramp there is always one.
    fn records_per_s(&self) -> Option<u64> {
        let in_ramp = || {
            (self.thousandths() < 1000)
                .then(|| self.delivered.most_records().max(RAMP_RECORDS_PER_S))
        };
        self.options.records_per_s.or_else(in_ramp)
    }

    /// The next record to hand over lies in the log.
    pub(crate) fn behind(&mut self) {
        self.catching_up = true;
    }

    /// Nothing waits to be handed over.
    pub(crate) fn caught_up(&mut self) {
        self.catching_up = false;
    }

    /// A backlog is on its way, or waits for the sink.
    pub(crate) fn is_catching_up(&self) -> bool {
        self.catching_up
    }

    /// The sink owes reports, and gave none for long.
    pub(crate) fn is_silent(&self) -> bool {
        self.now_ns.saturating_sub(self.heard_ns) >= SILENT_NS
    }

    /// Only differences mean something.
    pub(crate) fn waiting_bytes(&self) -> i64 {
        self.waiting_bytes
    }

    /// Whether the main sequence may hand over a record now.
    pub(crate) fn may_go(&self) -> bool {
        !self.catching_up || self.has_more_than((0, 0))
    }

    /// Whether a record that was set aside while its topic was held may go now. While there is a
    /// backlog too, half of what was there at the look's begin is the backlog's.
    pub(crate) fn may_redrive(&self) -> bool {
        self.has_more_than(self.kept)
    }

    fn has_more_than(&self, kept: (i128, i128)) -> bool {
        (self.records_per_s().is_none() || self.records.level > kept.0)
            && (self.options.bytes_per_s.is_none() || self.bytes.level > kept.1)
    }

    /// A record was handed over, of the main sequence or `redriven`.
    pub(crate) fn handed(&mut self, bytes: u64, redriven: bool) {
        let asked = redriven || self.catching_up;
        self.waiting_bytes -= bytes as i64;
        self.records.spend(1, asked);
        self.bytes.spend(bytes, asked);
    }

    /// A live record was handed over beside the backlog: it asks nobody.
    pub(crate) fn handed_live(&mut self, bytes: u64) {
        self.waiting_bytes -= bytes as i64;
        self.records.spend(1, false);
        self.bytes.spend(bytes, false);
    }

    /// The look ends with so many records that wait to be handed over.
    pub(crate) fn note_backlog(&mut self, records: u64) {
        let is_draining = self.catching_up && self.ramp_from_ns.is_some() && records > 0;
        self.drain.note(self.now_ns, is_draining.then_some(records));
    }

    /// When the backlog will be gone, as it shrank in the last seconds.
    pub(crate) fn drain_estimate_ms(&self) -> Option<u64> {
        self.drain.estimate_ns().map(|ns| ns / 1_000_000)
    }
}

#[cfg(test)]
mod tests;
