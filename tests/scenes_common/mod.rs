//! What the scenes on three brokers share: one load, one way of judging, one line of figures.
//!
//! A scene sends from two threads, has its fault made, and ends when everything is delivered. It
//! is judged by Kafka's own Java consumer and by the books. `FOREBAY_SCENES=all` runs the long
//! ones too, at 50,000 records/s; without it the load is smaller and they are left out.

// Each test file uses its own part of this.
#![allow(dead_code)]

#[path = "../kafka_common/mod.rs"]
pub mod common;

use common::{Load, Sent};
use forebay::{Pipeline, Receipt, Stats, Topic};
use forebay_testkit::audit::Audit;
use forebay_testkit::{Cluster, Consumed, private_dir, process, say, until};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Seconds of load before the fault and after it.
const BEFORE: Duration = Duration::from_millis(1_500);
const AFTER: Duration = Duration::from_millis(1_500);
/// What may be in flight: the bound on duplicates of each rebuild.
const IN_FLIGHT_MAX: u64 = 131_072;
/// The key of records beside the load.
const EXTRA: &[u8] = b"extra";

/// Whether the long scenes run too.
pub fn all() -> bool {
    std::env::var("FOREBAY_SCENES").is_ok_and(|v| v == "all")
}

/// Says that a scene is left out; true if it is.
pub fn left_out(name: &str) -> bool {
    if !all() {
        say(&format!("scene {name}: left out, FOREBAY_SCENES=all runs it"));
    }
    !all()
}

/// Records a second of both threads together.
pub fn rate() -> u64 {
    if all() { 50_000 } else { 20_000 }
}

/// What a scene is.
pub struct Scene {
    pub name: &'static str,
    /// Its topic; `None` makes one with three partitions, replicated to all.
    pub topic: Option<String>,
    /// Through the proxies, not to the brokers themselves.
    pub proxied: bool,
    /// Records a second of both threads together.
    pub rate: u64,
    /// Whether the cluster's faults may take acknowledged records, or move keys: then lost and
    /// disorder are printed and not judged. The books must balance all the same.
    pub judged: bool,
    /// The most records in flight, where that isn't the default.
    pub span: Option<u64>,
}

impl Scene {
    pub fn new(name: &'static str) -> Scene {
        Scene { name, topic: None, proxied: false, rate: rate(), judged: true, span: None }
    }

    pub fn proxied(mut self) -> Scene {
        self.proxied = true;
        self
    }

    pub fn on(mut self, topic: String) -> Scene {
        self.topic = Some(topic);
        self
    }

    pub fn rate(mut self, records_per_s: u64) -> Scene {
        self.rate = records_per_s;
        self
    }

    pub fn span(mut self, records: u64) -> Scene {
        self.span = Some(records);
        self
    }

    pub fn unjudged(mut self) -> Scene {
        self.judged = false;
        self
    }
}

/// What a fault has at hand.
pub struct Stage<'a> {
    pub cluster: &'a mut Cluster,
    pub pipeline: &'a Pipeline,
    pub topic: &'a str,
    handle: &'a Topic,
    tracked: u64,
    /// Cores used by our threads in the last [`Stage::hold`].
    pub cores: f64,
}

impl Stage<'_> {
    /// Lets the load go on for a while, and measures our CPU.
    pub fn hold(&mut self, time: Duration) {
        let (cpu, start) = (own_cpu(), Instant::now());
        std::thread::sleep(time);
        self.cores = (own_cpu().saturating_sub(cpu)).as_secs_f64() / start.elapsed().as_secs_f64();
    }

    /// Sends one record more than the load and waits until it is delivered; gives the time.
    pub fn send_tracked(&mut self) -> Duration {
        let start = Instant::now();
        let receipt = self.track(0);
        receipt.wait(forebay::Level::Delivered, Duration::from_secs(120)).expect("it is delivered");
        start.elapsed()
    }

    /// Sends one record more than the load, to this partition.
    pub fn track(&mut self, partition: i32) -> Receipt {
        let record = self.handle.record(b"").key(EXTRA).partition(partition);
        self.tracked += 1;
        record.send_tracked().expect("a receipt is free")
    }

    /// Waits until a record is delivered that wasn't yet; gives the time that took.
    pub fn until_delivered(&self) -> Duration {
        let (before, start) = (self.pipeline.stats().books.delivered, Instant::now());
        while self.pipeline.stats().books.delivered == before {
            assert!(start.elapsed() < Duration::from_secs(120), "{:?}", self.pipeline.stats());
            std::thread::sleep(Duration::from_millis(5));
        }
        start.elapsed()
    }

    /// Waits until so much is in the log and not delivered: the fault shows.
    pub fn until_spilled(&self) {
        self.until(|stats| stats.books.in_wal > 0);
    }

    /// Waits until the pipeline's figures say so.
    pub fn until(&self, what: impl Fn(&Stats) -> bool) {
        let start = Instant::now();
        while !what(&self.pipeline.stats()) {
            assert!(start.elapsed() < Duration::from_secs(120), "{:?}", self.pipeline.stats());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Waits until a figure stands: what was on its way when the fault began is through. Gives it.
///
/// It stands when it did for a second in which this process ran: of a step that took longer, since
/// the machine stood still, no more than the step counts.
pub fn still(what: impl Fn() -> u64) -> u64 {
    const STEP: Duration = Duration::from_millis(10);
    let (mut last, mut stood) = (what(), 0);
    until(Duration::from_secs(120), "nothing goes on", || {
        std::thread::sleep(STEP);
        let now = what();
        stood = if now == last { stood + 1 } else { 0 };
        last = now;
        stood == 100
    });
    last
}

/// What is seen of the pipeline while the load runs.
#[derive(Default)]
struct Watch {
    ended: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Default, Clone, Copy)]
struct Seen {
    gap: Duration,
    oldest_unsafe_ms: u64,
    paused: u32,
}

impl Watch {
    fn run(&self, pipeline: &Pipeline) {
        let (mut delivered, mut since) = (0, Instant::now());
        while !self.ended.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
            let stats = pipeline.stats();
            let mut seen = self.seen.lock().unwrap();
            seen.gap = seen.gap.max(since.elapsed());
            if stats.books.delivered > delivered {
                (delivered, since) = (stats.books.delivered, Instant::now());
            }
            seen.oldest_unsafe_ms = seen.oldest_unsafe_ms.max(stats.oldest_unsafe_ms);
            seen.paused = seen.paused.max(stats.states.paused_partitions);
        }
    }
}

/// What a scene left.
pub struct Outcome {
    pub stats: Stats,
    pub audit: Audit,
    pub counts: Vec<u64>,
    pub gap: Duration,
}

/// Plays a scene: `fault` makes the fault, proves it and ends it; it gives its own words for the
/// line that is printed.
pub fn play(
    cluster: &mut Cluster,
    scene: Scene,
    fault: impl FnOnce(&mut Stage<'_>) -> String,
) -> Outcome {
    let name = scene.name;
    let topic_name = scene.topic.unwrap_or_else(|| {
        // The broker's clock stamps the records: their gaps are the gaps of what was appended.
        let stamped = [("message.timestamp.type", "LogAppendTime")];
        cluster.topic("scene", common::PARTITIONS, &stamped)
    });
    let brokers = if scene.proxied { cluster.proxied() } else { cluster.brokers() };
    let dir = private_dir();
    let span = scene.span.unwrap_or(IN_FLIGHT_MAX);
    let builder = common::roomy(Pipeline::builder().brokers(brokers).wal_dir(dir.path()));
    let builder = builder.in_flight_max_records(span as usize);
    let pipeline = builder.open().expect("it opens");
    let topic = pipeline.topic(&topic_name).expect("a good name");
    pipeline.ready(Duration::from_secs(120)).expect("the brokers are there");
    topic.record(b"").key(EXTRA).partition(0).send().expect("there is room");
    common::flush(&pipeline);

    let watch = Watch::default();
    let (sent, words, healthy, faulted, tracked) = std::thread::scope(|scope| {
        scope.spawn(|| watch.run(&pipeline));
        let load = Load::start(&topic, 2, scene.rate, u64::MAX);
        let mut stage = Stage {
            cluster,
            pipeline: &pipeline,
            topic: &topic_name,
            handle: &topic,
            tracked: 1,
            cores: 0.0,
        };
        stage.hold(BEFORE);
        let healthy = std::mem::take(&mut stage.cores);
        // A fault that fails must end the threads too.
        let words = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| fault(&mut stage)));
        let (faulted, tracked) = (stage.cores, stage.tracked);
        std::thread::sleep(AFTER);
        let sent = load.stop();
        watch.ended.store(true, Ordering::Relaxed);
        (sent, words, healthy, faulted, tracked)
    });
    let words = words.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let backlog = pipeline.stats().books.in_wal;
    let start = Instant::now();
    common::flush(&pipeline);
    let drain = start.elapsed();
    let report = pipeline.close(Duration::from_secs(60)).expect("it closes");

    let counts = common::counts(&sent);
    let mut records = cluster.oracle().read(&topic_name).expect("the topic is read");
    records.retain(|r| r.key.as_deref() != Some(EXTRA));
    let audit = Audit::new(&records, common::stream);
    let seen = *watch.seen.lock().unwrap();
    let refused: u64 = sent.iter().map(|s: &Sent| s.refused).sum();
    let books = &report.stats.books;
    say(&format!(
        "scene {name}: accepted {}, delivered {}, lost {}, duplicates {}, disorder {}, spilled {}, \
         refused {refused}, longest gap {:.1?} of a partition's appends, {:.1?} of reports, drain {drain:.1?} of {backlog}, oldest unsafe {} ms, \
         rebuilds {}, cores {healthy:.2} healthy {faulted:.2} in the fault, paused at most {}; {words}",
        books.accepted,
        books.delivered,
        audit.missing(&counts).len(),
        audit.duplicates,
        audit.disorder.len(),
        books.spilled,
        append_gap(&records),
        seen.gap,
        seen.oldest_unsafe_ms,
        report.stats.rebuilds,
        seen.paused,
    ));
    assert!(books.balanced(), "{books:?}");
    if scene.judged {
        assert_eq!(refused, 0, "{:?}", report.stats);
        common::assert_all_delivered(&report, counts.iter().sum::<u64>() + tracked, 0);
        audit.assert_whole(&counts);
        assert!(audit.duplicates <= report.stats.rebuilds * IN_FLIGHT_MAX, "{:?}", report.stats);
        records.iter().for_each(common::assert_as_sent);
    }
    Outcome { stats: report.stats, audit, counts, gap: seen.gap }
}

/// The longest time in which nothing was appended to some partition, by the broker's clock.
fn append_gap(records: &[Consumed]) -> Duration {
    let same = records.windows(2).filter(|w| w[0].partition == w[1].partition);
    let gap_ms = same.map(|w| w[1].timestamp_ms - w[0].timestamp_ms).max().unwrap_or(0);
    Duration::from_millis(gap_ms.max(0).unsigned_abs())
}

/// Whether a thread of this name is ours or librdkafka's: not a sender, nor a proxy.
pub fn is_client(name: &str) -> bool {
    name.starts_with("forebay") || name.starts_with("rdk:")
}

/// The CPU time of our threads and librdkafka's. A thread that ended is forgotten.
fn own_cpu() -> Duration {
    process::threads(is_client).iter().map(|thread| thread.cpu).sum()
}
