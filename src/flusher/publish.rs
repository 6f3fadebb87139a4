//! Owns what the flusher tells the world after a look: the snapshot, the checkpoint, the waiters.

use super::{Flusher, LaneState};
use crate::record::TopicId;
use crate::sequence::Books;
use crate::stats::{BookTotals, Percentiles, States, Stats, TopicStats, WalStats};
use crate::wal::{CheckpointData, TopicBooks as StoredBooks};
use hdrhistogram::Histogram;

fn percentiles(h: &Histogram<u64>) -> Percentiles {
    Percentiles {
        count: h.len(),
        p50: h.value_at_quantile(0.5),
        p99: h.value_at_quantile(0.99),
        p999: h.value_at_quantile(0.999),
        max: h.max(),
    }
}

impl Flusher {
    /// Notes which lanes have a record that its thread doesn't finish.
    pub(super) fn set_stalled_lanes(&mut self) {
        let is_stalled = |l: &LaneState| l.hole.is_some_and(|hole| hole.is_stalled);
        let now = self.lanes.iter().enumerate().filter(|(_, l)| is_stalled(l)).map(|(i, _)| i);
        if now.clone().eq(self.stalled_lanes.iter().copied()) {
            return;
        }
        let now: Vec<usize> = now.collect();
        for lane in now.iter().filter(|lane| !self.stalled_lanes.contains(lane)) {
            tracing::warn!(
                lane,
                "a thread reserved room in a lane and has not finished its record"
            );
        }
        self.stalled_lanes = now;
        self.changed = true;
    }

    /// Publishes the snapshot if anything changed, and lets every waiter look.
    pub(crate) fn publish(&mut self, now_ns: u64) {
        let oldest_unsafe_ns = self.oldest_unsafe_ns();
        let age_ns = oldest_unsafe_ns.map_or(0, |t| now_ns.saturating_sub(t));
        let exposed = self.wal.is_some()
            && self.timing.loss_window_ns.is_some_and(|w| age_ns > w.max(2 * self.worst_look_ns));
        if exposed != self.figures.exposed {
            self.figures.exposed = exposed;
            self.figures.exposed_count += u64::from(exposed);
            self.changed = true;
            if exposed {
                tracing::error!("records are older than the loss window and not in the log");
            }
        }
        self.changed |= self.keeper.as_ref().is_some_and(|k| k.take_changed());
        // An age grows, and a prediction ends, without anything changing.
        let ages = oldest_unsafe_ns.is_some() || self.guest.is_catching_up();
        if self.changed || ages || self.shared.has_waiters() {
            self.changed = false;
            let (totals, reserved) = self.totals();
            let backlog = totals.in_wal + totals.in_flight;
            self.guest.note_backlog(backlog.saturating_sub(self.seq.handed_records() as u64));
            if let Some(keeper) = &self.keeper {
                keeper.offer(|data| self.fill_checkpoint(data, &totals));
            }
            let mut published = self.shared.published.lock();
            self.fill_stats(&mut published.stats, totals, age_ns);
            published.reserved = reserved;
            published.sink.clone_from(&self.sink_state);
            if std::mem::take(&mut self.announced) {
                self.shared.announcement_published();
            }
        }
        self.shared.notify();
    }

    /// The totals as of a look at the lanes, and the sum of their sequences then.
    pub(super) fn totals(&mut self) -> (BookTotals, u32) {
        let (mut accepted, mut in_lanes, mut reserved) = (0, 0, 0u32);
        for i in 0..self.lanes.len() {
            let look = self.look_again(i);
            reserved = reserved.wrapping_add(look.head_seq as u32);
            accepted += look.head_seq - look.padding;
            in_lanes += look.head_seq - look.popped;
        }
        let books: &Books = self.seq.books();
        let totals = BookTotals {
            accepted,
            in_lanes,
            recovered: books.recovered(),
            delivered: books.delivered(),
            in_flight: books.in_flight(),
            in_wal: books.in_wal(),
            set_aside: books.set_aside(),
            dropped: books.dropped(),
            spilled: books.spilled(),
            replayed: books.replayed(),
            refused: self.shared.lanes.refused().iter().sum(),
            duplicates_possible: self.figures.handed_before + books.duplicates_possible,
            reordered: books.reordered + self.sink_state.resent_records,
        };
        (totals, reserved)
    }

    pub(super) fn oldest_unsafe_ns(&mut self) -> Option<u64> {
        let mut oldest = self.seq.oldest_unsafe_ns();
        for i in 0..self.lanes.len() {
            // What this look has popped, and journaled, is in the lane no longer.
            self.look_again(i);
            if let Some(t) = self.lanes[i].oldest_ns() {
                oldest = Some(oldest.map_or(t, |o| o.min(t)));
            }
        }
        oldest
    }

    fn fill_stats(&self, stats: &mut Stats, totals: BookTotals, age_ns: u64) {
        stats.books = totals;
        stats.unsafe_records = totals.in_lanes + totals.in_flight;
        stats.oldest_unsafe_ms = age_ns / 1_000_000;
        stats.drain_estimate_ms = self.guest.drain_estimate_ms();
        let topics = self.seq.books().topics();
        stats.topics.resize_with(topics.len(), TopicStats::default);
        for (i, (to, from)) in stats.topics.iter_mut().zip(topics).enumerate() {
            self.fill_name(&mut to.name, i);
            to.accepted = from.popped;
            to.recovered = from.recovered;
            to.delivered = from.delivered;
            to.in_flight = from.in_flight;
            to.in_wal = from.in_wal;
            to.spilled = from.spilled;
            to.replayed = from.replayed;
            to.set_aside.clear();
            to.set_aside.extend(from.set_aside.iter());
            to.dropped.clear();
            to.dropped.extend(from.dropped.iter());
        }
        self.holds.tell(&mut stats.held, |topic| {
            self.shared.topics.name(topic).map_or_else(String::new, |name| name.to_string())
        });
        stats.refused.clear();
        let refused = self.shared.lanes.refused();
        let named = crate::error::SendError::ALL.iter().zip(refused);
        stats.refused.extend(named.filter(|(_, n)| *n > 0).map(|(e, n)| (e.name(), n)));
        let f = &self.figures;
        stats.wal = self.wal.as_ref().zip(self.keeper.as_ref()).map(|(wal, keeper)| {
            let log = wal.stats();
            let (keeper_failures, keeper_trouble) = keeper.trouble();
            WalStats {
                bytes: log.bytes_on_disk,
                bytes_max: log.wal_bytes_max,
                full: log.full,
                segments: log.segments,
                filesystem: wal.filesystem(),
                segment_waits: log.segment_waits,
                sync_failures: log.sync_failures,
                segments_unsynced: log.segments_unsynced,
                segments_rewritten: log.segments_rewritten,
                records_lost_by_sync: log.records_lost_by_sync,
                keeper_failures,
                keeper_trouble,
                damaged_records: self.seq.books().damaged,
                quarantined: f.quarantined + log.ranges_quarantined,
                append_failures: f.append_failures,
                unavailable: f.wal_unavailable.clone(),
                set_aside_unavailable: f.aside_unavailable.clone(),
                findings: f.findings.clone(),
            }
        });
        let s = &self.sink_state;
        let disconnected =
            (!s.connected).then(|| s.last_error.clone().unwrap_or_else(|| "not yet".into()));
        stats.states = States {
            disconnected,
            auth_failed: s.auth_failed.clone(),
            tls_failed: s.tls_failed.clone(),
            exposed: f.exposed,
            rebuilding: self.rebuilding,
            drilling: self.stands_still(),
            paused_partitions: s.paused_partitions,
            lane_stalled: !self.stalled_lanes.is_empty(),
            stalled_lanes: self.stalled_lanes.clone(),
            flusher_stalled: false,
            stopped: stats.states.stopped.take(),
        };
        stats.exposed_count = f.exposed_count;
        stats.rebuilds = f.rebuilds;
        stats.last_rebuild_reason.clone_from(&f.last_rebuild_reason);
        stats.looks = f.looks;
        stats.look_gap_us = percentiles(&f.look_gap_us);
        stats.delivery_us = percentiles(&f.delivery_us);
        stats.lost_at_most = f.lost_at_most;
        stats.memory_bytes = f.memory_bytes;
    }

    /// A topic's name never changes: it is looked up once.
    fn fill_name(&self, to: &mut String, topic: usize) {
        if to.is_empty()
            && let Some(name) = self.shared.topics.name(TopicId(topic as u32))
        {
            *to = name.to_string();
        }
    }

    fn fill_checkpoint(&self, data: &mut CheckpointData, totals: &BookTotals) {
        data.watermark = self.seq.acked();
        data.next_lsn = self.seq.next();
        data.accepted = self.figures.accepted_before + totals.accepted;
        data.delivered = self.figures.delivered_before + totals.delivered;
        data.unsafe_records = totals.in_lanes + totals.in_flight;
        let topics = self.seq.books().topics();
        data.topics.resize_with(topics.len(), StoredBooks::default);
        for (i, (to, from)) in data.topics.iter_mut().zip(topics).enumerate() {
            self.fill_name(&mut to.name, i);
            to.delivered = from.delivered;
            to.set_aside = from.set_aside.total();
            to.dropped = from.dropped.total();
        }
        data.topics.iter_mut().for_each(|t| t.redriven_partitions.clear());
        for (key, mark) in self.holds.marks() {
            let at = key.topic.0 as usize;
            if data.topics.len() <= at {
                data.topics.resize_with(at + 1, StoredBooks::default);
            }
            self.fill_name(&mut data.topics[at].name, at);
            match key.partition() {
                None => data.topics[at].redriven = mark,
                Some(partition) => data.topics[at].redriven_partitions.push((partition, mark)),
            }
        }
    }
}
