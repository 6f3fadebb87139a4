//! Owns the drill: whether one may begin, the time in which nothing is handed over, what is noted
//! meanwhile, and its end.
//!
//! To the rest of the flusher a drill is a sink that takes nothing: reports of what was handed
//! over still come, everything else goes the way of an outage.

use super::Flusher;
use crate::drill::{DrillError, DrillReport, Outage};
use crate::error::SendError;
use crate::record::Lsn;
use std::time::Duration;

/// How much more room the log must have than what comes at the measured rate.
const SAFETY: u64 = 2;

/// A drill under way.
pub(super) struct Drill {
    from_ns: u64,
    until_ns: u64,
    drain_ns: u64,
    look_ns: u64,
    /// When the hand-over went on, and what had a number then.
    resumed: Option<(u64, Lsn)>,
    full_before: u64,
    exposed_before: u64,
    bytes_before: i64,
    report: DrillReport,
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Flusher {
    /// Nothing is handed over now: an outage is rehearsed.
    pub(super) fn stands_still(&self) -> bool {
        self.drill.as_ref().is_some_and(|drill| drill.resumed.is_none())
    }

    /// Begins, watches and ends a drill.
    pub(super) fn rehearse(&mut self, now_ns: u64) {
        if self.shared.drill_is_asked()
            && let Some(outage) = self.shared.take_drill(self.drill.is_some())
        {
            match self.may_drill(outage) {
                Ok(()) => self.begin_drill(now_ns, outage),
                Err(why) => self.shared.end_drill(Err(why)),
            }
        }
        let Some(mut drill) = self.drill.take() else { return };
        self.changed = true;
        if self.close.is_some() {
            tracing::info!("the drill ends: the pipeline is being closed");
            return self.shared.end_drill(Err(DrillError::Closed));
        }
        self.note_drill(now_ns, &mut drill);
        match drill.resumed {
            None => {
                let why = self.drill_cost(&drill);
                if why.is_some() || now_ns >= drill.until_ns {
                    drill.report.outage = Duration::from_nanos(now_ns - drill.from_ns);
                    drill.report.cut_short = why;
                    drill.resumed = Some((now_ns, self.seq.next()));
                    tracing::info!("the rehearsed outage is over; the backlog goes on its way");
                }
            }
            Some((since_ns, target)) => {
                let past_ns = now_ns - since_ns;
                let is_done = self.seq.acked() >= target && !self.guest.is_catching_up();
                if is_done || past_ns >= drill.drain_ns {
                    drill.report.drained = is_done.then(|| Duration::from_nanos(past_ns));
                    drill.report.after = self.totals().0;
                    return self.shared.end_drill(Ok(drill.report));
                }
            }
        }
        self.drill = Some(drill);
    }

    /// Whether everything is well enough for an outage of our own making.
    fn may_drill(&self, outage: Outage) -> Result<(), DrillError> {
        if self.close.is_some() {
            return Err(DrillError::Closed);
        }
        let Some(wal) = &self.wal else { return Err(DrillError::NoLog) };
        if outage.lasts < Duration::from_millis(1) || outage.lasts > Outage::LASTS_MAX {
            return Err(DrillError::BadLength);
        }
        let sink = &self.sink_state;
        let log = wal.stats();
        let trouble = sink
            .auth_failed
            .clone()
            .or_else(|| sink.tls_failed.clone())
            .or_else(|| {
                let why = || sink.last_error.clone().unwrap_or_else(|| "not yet".into());
                (!sink.connected).then(|| format!("no broker is connected ({})", why()))
            })
            .or_else(|| {
                let is_replaced = self.rebuilding || self.instance_broken.is_some();
                is_replaced.then(|| "the producer is being replaced".into())
            })
            .or_else(|| self.guest.is_silent().then(|| "Kafka doesn't answer".into()))
            .or_else(|| self.figures.exposed.then(|| "records are exposed".into()))
            .or_else(|| self.figures.wal_unavailable.clone())
            .or_else(|| self.figures.aside_unavailable.clone())
            .or_else(|| self.keeper.as_ref().and_then(|keeper| keeper.trouble().1));
        if let Some(why) = trouble {
            return Err(DrillError::Unhealthy(why));
        }
        let books = self.seq.books();
        let waiting = books.in_wal() + books.in_flight();
        let records = waiting.saturating_sub(self.seq.handed_records() as u64);
        if self.guest.is_catching_up() || self.holds.are_on_the_way() {
            return Err(DrillError::Backlog { records });
        }
        let per_s = u128::from(self.guest.arrivals.peak().1);
        let needed = per_s * outage.lasts.as_millis() * u128::from(SAFETY) / 1000;
        let needed_bytes = u64::try_from(needed).unwrap_or(u64::MAX);
        let free_bytes = log.wal_bytes_max.saturating_sub(log.bytes_on_disk);
        if log.full || self.dropping.is_some() || free_bytes < needed_bytes {
            return Err(DrillError::NoRoom { needed_bytes, free_bytes });
        }
        Ok(())
    }

    fn begin_drill(&mut self, now_ns: u64, outage: Outage) {
        tracing::warn!(lasts = ?outage.lasts, "a drill begins: nothing is handed over to Kafka");
        let report = DrillReport { before: self.totals().0, ..DrillReport::default() };
        self.drill = Some(Drill {
            from_ns: now_ns,
            until_ns: now_ns.saturating_add(ns(outage.lasts)),
            drain_ns: ns(outage.drain_within),
            look_ns: now_ns,
            resumed: None,
            full_before: self.refused_full(),
            exposed_before: self.figures.exposed_count,
            bytes_before: self.guest.waiting_bytes(),
            report,
        });
    }

    fn refused_full(&self) -> u64 {
        let refused = self.shared.lanes.refused();
        let of = SendError::ALL.iter().zip(refused).find(|(e, _)| **e == SendError::Full);
        of.map_or(0, |(_, n)| n)
    }

    fn note_drill(&mut self, now_ns: u64, drill: &mut Drill) {
        let books = self.seq.books();
        let waiting = books.in_wal() + books.in_flight();
        let records = waiting.saturating_sub(self.seq.handed_records() as u64);
        let bytes = self.guest.waiting_bytes() - drill.bytes_before;
        let fill = self.lanes.iter().map(|lane| {
            let bytes = lane.look.used_bytes * 100 / self.lane_bytes.max(1);
            bytes.max(lane.look.used_slots * 100 / self.lane_slots.max(1))
        });
        let fill = fill.max().unwrap_or(0);
        let gap = Duration::from_nanos(now_ns.saturating_sub(drill.look_ns));
        drill.look_ns = now_ns;
        let oldest_ns = self.oldest_unsafe_ns().unwrap_or(now_ns);
        let report = &mut drill.report;
        report.backlog_records = report.backlog_records.max(records);
        report.backlog_bytes = report.backlog_bytes.max(bytes.max(0).unsigned_abs());
        report.lane_fill_percent = report.lane_fill_percent.max(fill);
        report.look_gap = report.look_gap.max(gap);
        let age_ms = now_ns.saturating_sub(oldest_ns) / 1_000_000;
        report.oldest_unsafe_ms = report.oldest_unsafe_ms.max(age_ms);
    }

    /// What the drill is about to cost; then it is over at once.
    fn drill_cost(&self, drill: &Drill) -> Option<String> {
        if let Some(why) = &self.figures.wal_unavailable {
            return Some(format!("the log is unavailable: {why}"));
        }
        let is_full = self.dropping.is_some() || self.wal.as_ref().is_none_or(|w| w.stats().full);
        let why = if is_full {
            "the log has no room for another segment"
        } else if self.refused_full() > drill.full_before {
            "a lane was full and refused a send"
        } else if self.figures.exposed_count > drill.exposed_before {
            "records were exposed: older than the loss window and not in the log"
        } else {
            return None;
        };
        Some(why.into())
    }
}
