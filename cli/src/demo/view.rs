//! Owns the live view: a few lines on standard error while the demo runs, none where that isn't
//! a terminal.

use super::conductor::Glance;
use super::report::{count, nanos};
use super::senders::Phase;
use super::{Args, OutageKind};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::cell::RefCell;
use std::io::IsTerminal;
use std::time::Duration;

/// Slots of one lane, the library's default.
const LANE_SLOTS: u64 = 65_536;
/// Bytes that a record takes in the log beside its value: frame, key, padding.
const FRAME_BYTES: u64 = 64;
const BAR: usize = 24;

/// The lines, if there is somebody to see them.
pub struct View {
    bar: Option<ProgressBar>,
    before: RefCell<Before>,
    slots: u64,
    payload: u64,
    kind: OutageKind,
}

/// What was shown last, for rates.
#[derive(Default)]
struct Before {
    at: Duration,
    accepted: u64,
    delivered: u64,
}

impl View {
    /// A view of this demo.
    pub fn new(args: &Args) -> View {
        let bar = (std::io::stderr().is_terminal() && !args.json).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            // Infallible template; were it not, the default one would do.
            if let Ok(style) = ProgressStyle::with_template("{msg}") {
                bar.set_style(style);
            }
            bar
        });
        View {
            bar,
            before: RefCell::default(),
            slots: LANE_SLOTS * u64::from(args.load.threads),
            payload: u64::from(args.load.payload),
            kind: args.outage,
        }
    }

    /// Draws the newest.
    pub fn show(&self, glance: &Glance<'_>) {
        let Some(bar) = &self.bar else { return };
        let (stats, books) = (glance.stats, &glance.stats.books);
        let mut before = self.before.borrow_mut();
        let seconds = glance.elapsed.saturating_sub(before.at).as_secs_f64().max(0.001);
        let rate = |now: u64, then: u64| count((now.saturating_sub(then) as f64 / seconds) as u64);
        let brokers = match (glance.phase, self.kind) {
            (Phase::Healthy, _) => "brokers well",
            (Phase::Outage, OutageKind::Freeze) => "BROKERS FROZEN",
            (Phase::Outage, OutageKind::Down) => "BROKERS DOWN",
            (Phase::CatchingUp, _) => "brokers back, catching up",
        };
        let mut states: Vec<&str> = Vec::new();
        let s = &stats.states;
        let all = [
            (s.disconnected.is_some(), "disconnected"),
            (s.exposed, "exposed"),
            (s.rebuilding, "rebuilding"),
            (s.paused_partitions > 0, "paused"),
            (s.lane_stalled, "lane stalled"),
            (s.flusher_stalled, "flusher stalled"),
        ];
        states.extend(all.iter().filter(|(holds, _)| *holds).map(|(_, name)| *name));
        if states.is_empty() {
            states.push("ok");
        }
        let mib = (books.in_wal * (self.payload + FRAME_BYTES)) as f64 / f64::from(1 << 20);
        let (p50, p99) = glance.latency_ns;
        bar.set_message(format!(
            "{:5.1} s   {brokers}\n\
             \x20 accepted   {:>11}   {:>9}/s    send p50 {}, p99 {}\n\
             \x20 delivered  {:>11}   {:>9}/s    read back {}\n\
             \x20 lanes      {:>11}   [{}]\n\
             \x20 in flight  {:>11}\n\
             \x20 on disk    {:>11}   {mib:.1} MiB\n\
             \x20 a crash now would lose at most {} records, the oldest {} ms old\n\
             \x20 refused {}   state: {}",
            glance.elapsed.as_secs_f64(),
            count(books.accepted),
            rate(books.accepted, before.accepted),
            nanos(p50),
            nanos(p99),
            count(books.delivered),
            rate(books.delivered, before.delivered),
            count(glance.read),
            count(books.in_lanes),
            gauge(books.in_lanes, self.slots),
            count(books.in_flight),
            count(books.in_wal),
            count(stats.unsafe_records),
            count(stats.oldest_unsafe_ms),
            count(books.refused),
            states.join(", "),
        ));
        bar.tick();
        *before =
            Before { at: glance.elapsed, accepted: books.accepted, delivered: books.delivered };
    }

    /// Takes the lines away.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn gauge(value: u64, full: u64) -> String {
    let filled = (value as f64 / full.max(1) as f64 * BAR as f64).ceil() as usize;
    let filled = filled.min(BAR);
    format!("{}{}", "#".repeat(filled), ".".repeat(BAR - filled))
}
