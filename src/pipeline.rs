//! Owns [`Pipeline`]: what users open, ask and close, and the threads behind it.

use crate::clock::Clock;
use crate::error::{ReloadError, TopicError};
use crate::flusher::Flusher;
use crate::keeper::Keeper;
use crate::receipt::Waiting;
use crate::shared::Shared;
use crate::sink::Reload;
use crate::stats::{CloseReport, Stats};
use crate::sync::Ordering;
use crate::thread::{panic_text, spawn};
use crate::topic::Topic;
use crate::topics::is_valid_topic_name;
use parking_lot::Mutex;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

mod drill;

/// A gap in the flusher's looks that counts as a state.
const FLUSHER_STALLED_NS: u64 = 1_000_000_000;
/// After its deadline, `close` waits no longer for a flusher that did nothing for so long.
const FLUSHER_GONE: Duration = Duration::from_secs(10);
/// How often `close` looks whether the flusher lives.
const CLOSE_LOOK: Duration = Duration::from_millis(20);

/// The threads of one pipeline, to be joined in this order.
pub(crate) struct Threads {
    flusher: JoinHandle<()>,
    keeper: Option<JoinHandle<()>>,
}

impl Threads {
    pub(crate) fn start(
        mut flusher: Flusher,
        keeper: Option<Keeper>,
        shared: &Arc<Shared>,
    ) -> io::Result<Self> {
        let on_panic = |who: &'static str, shared: &Arc<Shared>| {
            let shared = shared.clone();
            move |why: String| shared.stop(format!("{who}: {why}"))
        };
        // The keeper first: if the flusher can't be started, its drop ends the keeper.
        let keeper = keeper
            .map(|k| spawn("forebay-keeper", move || k.run(), on_panic("keeper", shared)))
            .transpose()?;
        let stop = on_panic("flusher", shared);
        let body = move || {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| flusher.run())) {
                stop(panic_text(&*panic));
                flusher.salvage();
            }
        };
        let flusher = spawn("forebay-flusher", body, on_panic("flusher", shared))?;
        Ok(Threads { flusher, keeper })
    }

    /// Waits for the flusher's end. False when `deadline` is over and it does nothing any more.
    fn wait_for_flusher(&self, shared: &Shared, deadline: Option<Instant>) -> bool {
        let mut life = (shared.steps.load(Ordering::Acquire), Instant::now());
        loop {
            let mut has_ended =
                || shared.published.lock().closed.is_some() || self.flusher.is_finished();
            if shared.wait_until(CLOSE_LOOK, &mut has_ended) {
                return true;
            }
            let steps = shared.steps.load(Ordering::Acquire);
            if steps != life.0 {
                life = (steps, Instant::now());
            }
            let is_late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if is_late && life.1.elapsed() > FLUSHER_GONE {
                return false;
            }
        }
    }

    fn join(self) {
        // A panic was caught inside and told; join can't fail for another reason.
        let _ = self.flusher.join();
        if let Some(keeper) = self.keeper {
            let _ = keeper.join();
        }
    }
}

/// Takes records from any thread and gets them to Kafka. See the crate's page for the whole.
///
/// Dropping it never waits for Kafka: what is in memory is journaled and synced (without a log:
/// dropped and counted). [`Pipeline::close`] gives Kafka time first.
pub struct Pipeline {
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    threads: Mutex<Option<Threads>>,
    drop_timeout: Duration,
    /// `None` where nothing is journaled by age.
    loss_window: Option<Duration>,
    /// `None`: the sink has no properties.
    reloader: Option<Arc<dyn Reload>>,
    /// The process that the threads belong to.
    owner: u32,
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline").finish_non_exhaustive()
    }
}

/// `flush` ended before everything was final.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{remaining} records are not final yet; they are on their way")]
pub struct FlushError {
    /// Records accepted or recovered and not final, later ones included.
    pub remaining: u64,
}

/// `ready` ended before brokers and topics were known.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not ready: {reason}")]
pub struct NotReady {
    /// What is missing, and the last error if there was one.
    pub reason: String,
}

impl Pipeline {
    pub(crate) fn new(
        shared: Arc<Shared>,
        clock: Arc<dyn Clock>,
        threads: Threads,
        drop_timeout: Duration,
        loss_window: Option<Duration>,
        reloader: Option<Arc<dyn Reload>>,
    ) -> Self {
        let (threads, owner) = (Mutex::new(Some(threads)), std::process::id());
        Pipeline { shared, clock, threads, drop_timeout, loss_window, reloader, owner }
    }

    /// A topic to send to. The name is interned once; asking again is cheap, not free.
    ///
    /// # Errors
    /// When Kafka doesn't allow the name.
    pub fn topic(&self, name: &str) -> Result<Topic, TopicError> {
        if !is_valid_topic_name(name) {
            return Err(TopicError { name: name.into() });
        }
        let id = self.shared.topics.intern(name);
        let name: Arc<str> = name.into();
        self.shared.announce(name.clone());
        Ok(Topic { shared: self.shared.clone(), id, name })
    }

    /// Does now what the calling thread's first send would do (drawing its number), so that
    /// not even the first is slower. Returns the thread's lane, as
    /// [`States::stalled_lanes`](crate::stats::States::stalled_lanes) names it.
    pub fn register_thread(&self) -> usize {
        self.shared.lanes.lane_number()
    }

    /// Waits until a broker is connected and every topic asked for is known, at most `timeout`.
    /// Nobody has to: sends are taken at once.
    ///
    /// # Errors
    /// What is missing when the time is over.
    pub fn ready(&self, timeout: Duration) -> Result<(), NotReady> {
        let is_ready = || {
            let topics_heard = !self.shared.announced.load(Ordering::Acquire);
            let reloads = self.reloader.as_ref().map_or(0, |r| r.asked());
            let sink = &self.shared.published.lock().sink;
            sink.connected && sink.topics_known && topics_heard && sink.reloads >= reloads
        };
        if self.shared.wait_until(timeout, &mut { is_ready }) {
            return Ok(());
        }
        let sink = self.shared.published.lock().sink.clone();
        let what = match (sink.rebuilding, sink.connected) {
            (true, _) => "the producer is being replaced",
            (_, true) => "topics aren't known yet",
            (_, false) => "no broker is connected",
        };
        let reason = match sink.last_error {
            Some(error) => format!("{what} ({error})"),
            None => what.to_owned(),
        };
        Err(NotReady { reason })
    }

    /// Goes on with other librdkafka properties: a rotated password, another certificate. Those
    /// named here take the place of what was set before, the others stay; files that properties
    /// name are read again, so that `reload(&[])` picks up a certificate that was renewed in
    /// place. `brokers` and everything else that isn't librdkafka's stays as it is.
    ///
    /// The properties are checked, and a producer is made with them, before anything changes.
    /// Doesn't wait for Kafka: [`Pipeline::ready`] says afterwards whether it lets us in, and
    /// `stats().states` why it doesn't. The producer in use gets 5 s to report what it has;
    /// what it doesn't report is sent again by the new one, and may be in Kafka twice.
    ///
    /// # Errors
    /// See [`ReloadError`]. Nothing has changed then.
    pub fn reload(&self, properties: &[(&str, &str)]) -> Result<(), ReloadError> {
        let ended = || {
            let published = self.shared.published.lock();
            published.closed.is_some() || published.stopped.is_some()
        };
        if self.is_forked() || ended() {
            return Err(ReloadError::Closed);
        }
        self.reloader.as_ref().ok_or(ReloadError::Unsupported)?.reload(properties)
    }

    /// Sends everything accepted so far without waiting for a batch, and waits until it is
    /// final, at most `timeout`.
    ///
    /// # Errors
    /// How much is not final when the time is over. It is on its way: don't send it again.
    pub fn flush(&self, timeout: Duration) -> Result<(), FlushError> {
        let number = self.shared.ask_flush();
        let shared = &self.shared;
        let done = || {
            let published = shared.published.lock();
            let ended = published.closed.is_some() || published.stopped.is_some();
            ended || shared.flush_done() >= number
        };
        shared.wait_until(timeout, &mut { done });
        if shared.flush_done() >= number {
            return Ok(());
        }
        let books = shared.published.lock().stats.books;
        match books.in_lanes + books.in_flight + books.in_wal {
            0 if shared.published.lock().closed.is_some() => Ok(()),
            remaining => Err(FlushError { remaining }),
        }
    }

    /// The newest snapshot: at most one look (10 ms) old while anything moves. While the flusher
    /// stands, what was sent since its last look is added to `accepted` and `in_lanes`.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let (mut stats, reserved, is_open) = {
            let published = self.shared.published.lock();
            (published.stats.clone(), published.reserved, published.closed.is_none())
        };
        let heartbeat_ns = self.shared.heartbeat_ns.load(Ordering::Acquire);
        let silent_ns = self.clock.now_ns().saturating_sub(heartbeat_ns);
        if is_open && heartbeat_ns > 0 && silent_ns > FLUSHER_STALLED_NS {
            let since = self.shared.lanes.reserved_since(reserved);
            self.add_silence(&mut stats, silent_ns / 1_000_000, since);
        }
        stats
    }

    /// What the flusher would say if it didn't stand: for `silent_ms`, while `since` more came.
    fn add_silence(&self, stats: &mut Stats, silent_ms: u64, since: u64) {
        stats.states.flusher_stalled = true;
        stats.books.accepted += since;
        stats.books.in_lanes += since;
        stats.unsafe_records += since;
        if stats.unsafe_records > 0 {
            stats.oldest_unsafe_ms += silent_ms;
        }
        let is_late = |w: Duration| u128::from(stats.oldest_unsafe_ms) > w.as_millis();
        if stats.wal.is_some() && self.loss_window.is_some_and(is_late) && !stats.states.exposed {
            stats.states.exposed = true;
            stats.exposed_count += 1;
        }
    }

    /// Ends the intake (`send` says `Closed` from here on), gives Kafka until `timeout` to take
    /// what is on its way, journals and syncs the rest, and tells where everything ended. The
    /// log gets up to 2 s beyond the timeout. A second call returns the same report.
    ///
    /// # Errors
    /// When a thread of the pipeline had stopped after a panic: what it said. In a forked child,
    /// which has none of the threads. When the flusher stands and has done nothing for 10 s, the
    /// timeout being over: should it go on, it ends in good order, and closing again says how.
    pub fn close(&self, timeout: Duration) -> Result<CloseReport, CloseError> {
        if self.is_forked() {
            return Err(CloseError {
                why: "this process was forked from the one that opened the pipeline".into(),
                stats: Box::default(),
            });
        }
        let timeout_ns = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        self.shared.ask_close(self.clock.now_ns().saturating_add(timeout_ns));
        let mut threads = self.threads.lock();
        if let Some(running) = threads.take() {
            if !running.wait_for_flusher(&self.shared, Instant::now().checked_add(timeout)) {
                *threads = Some(running);
                return Err(CloseError {
                    why: format!("the flusher has done nothing for {} s", FLUSHER_GONE.as_secs()),
                    stats: Box::new(self.stats()),
                });
            }
            running.join();
        }
        let published = self.shared.published.lock();
        if let Some(why) = &published.stopped {
            return Err(CloseError { why: why.clone(), stats: Box::new(published.stats.clone()) });
        }
        published.closed.clone().ok_or_else(|| CloseError {
            why: "the flusher ended without a report".into(),
            stats: Box::new(published.stats.clone()),
        })
    }
}

/// `close` found that a thread of the pipeline had stopped, or stands.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the pipeline had stopped: {why}")]
pub struct CloseError {
    /// What the panic said, or what stands.
    pub why: String,
    /// The last snapshot.
    pub stats: Box<Stats>,
}

impl Pipeline {
    fn is_forked(&self) -> bool {
        std::process::id() != self.owner
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        // In a child the threads don't exist, and a lock may be held by one of them for ever.
        if !self.is_forked() && self.threads.lock().is_some() {
            // Whoever wants the report calls close(); it has been counted either way.
            let _ = self.close(self.drop_timeout);
        }
    }
}
