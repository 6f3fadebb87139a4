//! Owns what was measured of rates: how much comes, how much is delivered, and when a backlog
//! will be gone. Pure: time is given.

use std::collections::VecDeque;

/// One bin of [`Rate`].
const BIN_NS: u64 = 1_000_000_000;
/// Whole bins that are remembered.
const BINS: usize = 10;
/// Between two samples of a backlog, and how many are kept: four seconds.
const SAMPLE_NS: u64 = 250_000_000;
const SAMPLES: usize = 16;
/// Nothing is predicted from less than this.
const PREDICT_NS: u64 = 500_000_000;

/// How many records and bytes there were a second, in each of the last ten seconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Rate {
    from_ns: u64,
    now: (u64, u64),
    bins: VecDeque<(u64, u64)>,
    most_records: u64,
}

impl Rate {
    pub(super) fn new(now_ns: u64) -> Rate {
        Rate { from_ns: now_ns, ..Rate::default() }
    }

    pub(super) fn add(&mut self, records: u64, bytes: u64) {
        self.now.0 += records;
        self.now.1 += bytes;
    }

    pub(super) fn tick(&mut self, now_ns: u64) {
        let past_ns = now_ns.saturating_sub(self.from_ns);
        if past_ns < BIN_NS {
            return;
        }
        // What came since the last tick counts in the bin that it ends.
        let ended = std::mem::take(&mut self.now);
        self.most_records = self.most_records.max(ended.0);
        self.bins.push_back(ended);
        for _ in 1..(past_ns / BIN_NS).min(BINS as u64 + 1) {
            self.bins.push_back((0, 0));
        }
        while self.bins.len() > BINS {
            self.bins.pop_front();
        }
        self.from_ns += past_ns / BIN_NS * BIN_NS;
    }

    /// The most of each that there was within one of the last ten seconds.
    pub(super) fn peak(&self) -> (u64, u64) {
        let most = |of: fn(&(u64, u64)) -> u64| self.bins.iter().chain([&self.now]).map(of).max();
        (most(|b| b.0).unwrap_or(0), most(|b| b.1).unwrap_or(0))
    }

    /// The most records that there were within any whole second.
    pub(super) fn most_records(&self) -> u64 {
        self.most_records
    }
}

/// A backlog's last seconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Drain {
    samples: VecDeque<(u64, u64)>,
    estimate_ns: Option<u64>,
}

impl Drain {
    /// A look: `backlog` records wait while the backlog is on its way, `None` while it isn't.
    pub(super) fn note(&mut self, now_ns: u64, backlog: Option<u64>) {
        let Some(backlog) = backlog else {
            if !self.samples.is_empty() {
                *self = Drain::default();
            }
            return;
        };
        let is_due = |last: &(u64, u64)| now_ns.saturating_sub(last.0) >= SAMPLE_NS;
        if !self.samples.back().is_none_or(is_due) {
            return;
        }
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((now_ns, backlog));
        self.estimate_ns = self.samples.front().and_then(|(from_ns, before)| {
            let past_ns = now_ns - from_ns;
            let gone = before.saturating_sub(backlog);
            if past_ns < PREDICT_NS || gone == 0 {
                return None;
            }
            u64::try_from(u128::from(backlog) * u128::from(past_ns) / u128::from(gone)).ok()
        });
    }

    /// How long the backlog will take from the last sample on, if it shrinks.
    pub(super) fn estimate_ns(&self) -> Option<u64> {
        self.estimate_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn the_peak_of_ten_seconds() {
        let mut rate = Rate::new(5 * S);
        rate.add(7, 700);
        assert_eq!((rate.peak(), rate.most_records()), ((7, 700), 0), "the second isn't over");
        rate.tick(6 * S);
        rate.add(3, 900);
        rate.tick(6 * S + 1);
        assert_eq!((rate.peak(), rate.most_records()), ((7, 900), 7));
        rate.tick(30 * S);
        assert_eq!((rate.peak(), rate.most_records()), ((0, 0), 7), "long ago");
    }

    #[test]
    fn what_shrinks_evenly_is_predicted() {
        let mut drain = Drain::default();
        // 1,000 a second of 10,000, looked at every 10 ms.
        let mut wrong = 0;
        for look in 0..=1_000 {
            let now_ns = 3 * S + look * S / 100;
            drain.note(now_ns, Some(10_000 - look * 10));
            let left_ns = (10_000 - look * 10) * S / 1_000;
            match drain.estimate_ns() {
                None => assert!(look <= 50, "nothing predicted at look {look}"),
                Some(ns) => wrong = wrong.max(ns.abs_diff(left_ns)),
            }
        }
        println!("10,000 records, 1,000 a second: wrong by {} ms at most", wrong / 1_000_000);
        assert!(wrong <= SAMPLE_NS, "{wrong}");
        drain.note(20 * S, None);
        assert_eq!(drain.estimate_ns(), None);
        for look in 0..10 {
            drain.note(21 * S + look * S, Some(5 + look));
        }
        assert_eq!(drain.estimate_ns(), None, "it grows");
    }
}
