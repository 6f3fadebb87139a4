//! Owns the course of a demo: when the brokers go and come back, and what is measured meanwhile.

use super::OutageKind;
use super::reader::{Progress, Reader};
use super::scene::Scene;
use super::senders::{Phase, Senders, Shared};
use forebay::{DrillError, DrillReport, Stats};
use rustix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_millis(2);
/// How often somebody is shown something.
const SHOW: Duration = Duration::from_millis(100);
/// The start of a run isn't measured: connections are made, caches are cold.
const WARM_UP: Duration = Duration::from_millis(500);
/// Without any record becoming final for this long, the wait for the rest is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// What an answer takes while the consumer is behind.
const SLOW: Duration = Duration::from_millis(20);
/// Bytes that a record takes in a broker beside its value.
const RECORD_BYTES: u64 = 20;

/// What is to happen.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How long is sent.
    pub seconds: Duration,
    /// When the brokers go, and for how long.
    pub outage: Option<(Duration, Duration)>,
    /// How they go.
    pub kind: OutageKind,
    /// Bytes of a value.
    pub payload: u32,
}

/// What happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timeline {
    /// How long the brokers were away.
    pub outage: Option<Duration>,
    /// Records that waited when they came back.
    pub backlog: u64,
    /// Most records that were in the log and not final.
    pub in_wal_peak: u64,
    /// From their return until all that had waited was delivered.
    pub drained: Option<Duration>,
    /// Cores in use by the whole process while all was well.
    pub cpu_healthy: f64,
    /// The same in the outage.
    pub cpu_outage: f64,
    /// An outage was planned and could not be made.
    pub failed: bool,
}

impl Timeline {
    /// The outage was rehearsed.
    pub fn add_drill(&mut self, drilled: &Result<DrillReport, DrillError>) {
        if let Ok(report) = drilled {
            self.outage = Some(report.outage);
            self.backlog = report.backlog_records;
            self.drained = report.drained;
        }
    }
}

/// What the view shows.
pub struct Glance<'a> {
    /// Since the first send.
    pub elapsed: Duration,
    /// What the brokers do.
    pub phase: Phase,
    /// What the pipeline says.
    pub stats: &'a Stats,
    /// The newest p50 and p99 of a send.
    pub latency_ns: (u64, u64),
    /// Records that the consumer has read.
    pub read: u64,
}

/// A time and the CPU used until then.
#[derive(Clone, Copy)]
pub struct Mark {
    at: Instant,
    /// CPU time of the whole process.
    pub cpu: Duration,
}

impl Mark {
    /// Now.
    pub fn now() -> Mark {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let cpu = Duration::new(cpu.tv_sec.unsigned_abs(), cpu.tv_nsec.unsigned_abs() as u32);
        Mark { at: Instant::now(), cpu }
    }

    /// Cores in use since `earlier`.
    fn cores_since(self, earlier: Mark) -> f64 {
        let wall = self.at.saturating_duration_since(earlier.at).as_secs_f64();
        if wall > 0.0 { (self.cpu.saturating_sub(earlier.cpu)).as_secs_f64() / wall } else { 0.0 }
    }
}

/// Carries the plan out.
pub struct Conductor<'a> {
    plan: Plan,
    scene: &'a Scene,
    reading: Progress,
    sending: Arc<Shared>,
    shown: Option<Instant>,
    healthy_from: Option<Mark>,
    outage_from: Option<Mark>,
    /// When the brokers came back, and how many records had to become final from then on.
    back: Option<(Instant, u64)>,
    is_slowed: bool,
    timeline: Timeline,
}

/// Records that are final.
fn finished(stats: &Stats) -> u64 {
    stats.books.delivered + stats.books.set_aside + stats.books.dropped
}

impl<'a> Conductor<'a> {
    /// Ready to begin with the senders.
    pub fn new(plan: Plan, scene: &'a Scene, reader: &Reader, senders: &Senders) -> Self {
        Conductor {
            plan,
            scene,
            reading: reader.progress(),
            sending: senders.shared(),
            shown: None,
            healthy_from: None,
            outage_from: None,
            back: None,
            is_slowed: false,
            timeline: Timeline::default(),
        }
    }

    /// Since the first send.
    pub fn elapsed(&self) -> Duration {
        self.sending.begin.elapsed()
    }

    /// What happened.
    pub fn into_timeline(self) -> Timeline {
        self.timeline
    }

    /// Until everything is sent and the outage is over.
    pub fn play(&mut self, stats: &mut dyn FnMut() -> Stats, mut show: impl FnMut(&Glance<'_>)) {
        loop {
            self.tick(&stats(), &mut show);
            let outage_ahead = self.plan.outage.is_some() && self.back.is_none();
            if self.elapsed() >= self.plan.seconds && !outage_ahead {
                break;
            }
            std::thread::sleep(TICK);
        }
        if let (None, Some(from)) = (self.plan.outage, self.healthy_from) {
            self.timeline.cpu_healthy = Mark::now().cores_since(from);
        }
    }

    /// Until everything is final, or nothing becomes final any more.
    pub fn drain(&mut self, stats: &mut dyn FnMut() -> Stats, mut show: impl FnMut(&Glance<'_>)) {
        let mut newest = (0, Instant::now());
        loop {
            let now = stats();
            self.tick(&now, &mut show);
            let done = finished(&now);
            if done != newest.0 {
                newest = (done, Instant::now());
            }
            if done >= now.books.accepted + now.books.recovered || newest.1.elapsed() > PATIENCE {
                return;
            }
            std::thread::sleep(TICK);
        }
    }

    fn tick(&mut self, stats: &Stats, show: &mut impl FnMut(&Glance<'_>)) {
        let elapsed = self.elapsed();
        let until = self.plan.outage.map_or(self.plan.seconds, |(after, _)| after);
        if self.healthy_from.is_none() && elapsed >= WARM_UP.min(until / 4) {
            self.healthy_from = Some(Mark::now());
        }
        self.timeline.in_wal_peak = self.timeline.in_wal_peak.max(stats.books.in_wal);
        if let Some((after, lasts)) = self.plan.outage {
            if self.outage_from.is_none() && elapsed >= after {
                self.begin_outage();
            }
            if self.back.is_none() && elapsed >= after + lasts {
                self.end_outage(stats);
            }
        }
        if self.sending.phase() != Phase::Outage {
            self.bound_unread(stats);
        }
        if let Some((since, target)) = self.back
            && self.timeline.drained.is_none()
            && finished(stats) >= target
        {
            self.timeline.drained = Some(since.elapsed());
            self.sending.set_phase(Phase::Healthy);
        }
        if self.shown.is_none_or(|at| at.elapsed() >= SHOW) {
            self.shown = Some(Instant::now());
            show(&Glance {
                elapsed,
                phase: self.sending.phase(),
                stats,
                latency_ns: self.sending.latency_ns(),
                read: self.reading.passed(),
            });
        }
    }

    /// Bounds what is delivered to what the consumer has read, where the mock would drop the rest.
    fn bound_unread(&mut self, stats: &Stats) {
        let Some(most) = self.scene.unread_bytes_max() else { return };
        let unread = stats.books.delivered.saturating_sub(self.reading.passed());
        let is_behind = unread * (u64::from(self.plan.payload) + RECORD_BYTES) > most;
        if is_behind != self.is_slowed {
            self.is_slowed = is_behind;
            self.scene.slow_down(if is_behind { SLOW } else { Duration::ZERO });
        }
    }

    fn begin_outage(&mut self) {
        let mark = Mark::now();
        self.timeline.failed |= self.scene.begin_outage(self.plan.kind).is_err();
        self.sending.set_phase(Phase::Outage);
        self.timeline.cpu_healthy = self.healthy_from.map_or(0.0, |from| mark.cores_since(from));
        self.outage_from = Some(mark);
    }

    fn end_outage(&mut self, stats: &Stats) {
        self.is_slowed = false;
        let mark = Mark::now();
        self.timeline.failed |= self.scene.end_outage(self.plan.kind).is_err();
        self.sending.set_phase(Phase::CatchingUp);
        let due = stats.books.accepted + stats.books.recovered;
        self.timeline.backlog = due - finished(stats).min(due);
        self.back = Some((mark.at, due));
        if let Some(from) = self.outage_from {
            self.timeline.cpu_outage = mark.cores_since(from);
            self.timeline.outage = Some(mark.at.saturating_duration_since(from.at));
        }
    }
}
