//! Owns everything that takes records to Kafka, behind one trait: Forebay, rust-rdkafka's three
//! producers, and two queues of one's own before such a producer.

use super::hand::Hand;
use super::librdkafka::{Base, Settings, Threaded, WithFuture};
use super::log_dir;
use forebay::{Overflow, Pipeline, Topic};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Something that takes records to a topic.
pub trait Client: Send + Sync {
    /// Whether it was accepted.
    fn send(&self, value: &[u8]) -> bool;
    /// Called now and then by the threads that send.
    fn serve(&self) {}
    /// After a refusal, where the sender has nothing else to do.
    fn wait_for_room(&self) {
        std::thread::sleep(Duration::from_micros(500));
    }
    /// Waits until everything accepted is final.
    fn flush(&self, limit: Duration);
    /// Records reported delivered; `None` if nobody can tell.
    fn delivered(&self) -> Option<u64>;
    /// Of so many accepted, those that a SIGKILL now would take.
    fn at_risk(&self, accepted: u64) -> u64;
    /// Records that went to a log.
    fn journaled(&self) -> u64 {
        0
    }
    /// Gives up what is not delivered, so that the end doesn't wait for it.
    fn purge(&self) {}
    /// Called twenty times a second by a thread that doesn't send.
    fn watch(&self) {}
    /// Remarks at the end of a run.
    fn remarks(&self) -> String {
        String::new()
    }
}

pub const FOREBAY: &str = "forebay";
pub const NO_LOG: &str = "forebay without a log";
/// A log, and senders that wait while Kafka answers, as they do for room in a producer's queue; its
/// lanes have the 64 MiB that the others' queues have.
pub const WAITING: &str = "forebay, Overflow::Refuse";
pub const BASE: &str = "BaseProducer";
pub const THREADED: &str = "ThreadedProducer";
pub const FUTURE: &str = "FutureProducer";
pub const QUEUE: &str = "ArrayQueue + thread";
pub const CHANNEL: &str = "mpsc + thread";
/// Sends nothing: what the schedule itself costs.
pub const PACER: &str = "pacer alone";
/// All of them that aren't Forebay.
pub const PEERS: [&str; 5] = [BASE, THREADED, FUTURE, QUEUE, CHANNEL];

/// Where and how.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub brokers: &'a str,
    pub topic: &'a str,
    /// Of those that aren't Forebay, which comes as it is.
    pub settings: Settings,
    /// Forebay's log and loss window; else a fresh directory and the default.
    pub dir: Option<&'a Path>,
    pub window: Option<Duration>,
}

impl<'a> Target<'a> {
    pub fn new(brokers: &'a str, topic: &'a str, settings: Settings) -> Self {
        Target { brokers, topic, settings, dir: None, window: None }
    }

    /// A client by its name.
    pub fn open(&self, name: &str) -> Box<dyn Client> {
        let Target { brokers, topic, settings, .. } = *self;
        match name {
            FOREBAY | NO_LOG | WAITING => Box::new(Forebay::open(self, name)),
            BASE => Box::new(Base::new(brokers, topic, settings)),
            THREADED => Box::new(Threaded::new(brokers, topic, settings)),
            FUTURE => Box::new(WithFuture::new(brokers, topic, settings)),
            QUEUE => Box::new(ByHand::new(self, Hand::queue)),
            CHANNEL => Box::new(ByHand::new(self, Hand::channel)),
            PACER => Box::new(Pacer),
            _ => panic!("no client is called {name}"),
        }
    }
}

pub struct Forebay {
    pub pipeline: Pipeline,
    topic: Topic,
    oldest_unsafe_ms: AtomicU64,
    _home: tempfile::TempDir,
}

impl Forebay {
    pub fn open(target: &Target<'_>, name: &str) -> Forebay {
        let (home, fresh) = log_dir();
        let mut builder = Pipeline::builder().brokers(target.brokers);
        builder = match name {
            NO_LOG => builder.at_most_once(),
            _ => builder.wal_dir(target.dir.unwrap_or(&fresh)),
        };
        if name == WAITING {
            builder = builder.overflow(Overflow::Refuse).lanes(2).lane_bytes(32 << 20);
        }
        if let Some(window) = target.window {
            builder = builder.loss_window(window);
        }
        let pipeline = builder.open().expect("it opens");
        let topic = pipeline.topic(target.topic).expect("a good name");
        pipeline.ready(Duration::from_secs(30)).expect("the brokers are there");
        Forebay { pipeline, topic, oldest_unsafe_ms: AtomicU64::new(0), _home: home }
    }
}

impl Client for Forebay {
    #[inline]
    fn send(&self, value: &[u8]) -> bool {
        self.topic.send(value).is_ok()
    }

    fn flush(&self, limit: Duration) {
        self.pipeline.flush(limit).expect("all is final");
    }

    fn delivered(&self) -> Option<u64> {
        let books = self.pipeline.stats().books;
        assert!(books.balanced(), "{books:?}");
        Some(books.delivered)
    }

    /// All that the last snapshot, at most a look of the flusher old, doesn't know to be safe.
    fn at_risk(&self, accepted: u64) -> u64 {
        let books = self.pipeline.stats().books;
        accepted.saturating_sub(books.delivered + books.in_wal)
    }

    fn journaled(&self) -> u64 {
        self.pipeline.stats().books.spilled
    }

    fn watch(&self) {
        let now = self.pipeline.stats().oldest_unsafe_ms;
        self.oldest_unsafe_ms.fetch_max(now, Ordering::Relaxed);
    }

    fn remarks(&self) -> String {
        let stats = self.pipeline.stats();
        format!(
            "journaled {}, replayed {}, oldest unsafe {} ms, exposed {} times, rebuilds {}, balanced {}",
            stats.books.spilled,
            stats.books.replayed,
            self.oldest_unsafe_ms.load(Ordering::Relaxed),
            stats.exposed_count,
            stats.rebuilds,
            stats.books.balanced()
        )
    }
}

/// A queue of one's own, a thread behind it that gives everything to a `ThreadedProducer` and
/// tries again when that is full.
struct ByHand {
    hand: Hand,
    producer: Arc<Threaded>,
}

impl ByHand {
    fn new(target: &Target<'_>, hand: impl Fn(Box<dyn FnMut(&[u8]) + Send>) -> Hand) -> ByHand {
        let producer = Arc::new(Threaded::new(target.brokers, target.topic, target.settings));
        let behind = producer.clone();
        let give = move |value: &[u8]| {
            while !behind.send(value) {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        ByHand { hand: hand(Box::new(give)), producer }
    }
}

impl Client for ByHand {
    #[inline]
    fn send(&self, value: &[u8]) -> bool {
        self.hand.send(value)
    }

    fn flush(&self, limit: Duration) {
        self.hand.drain(limit);
        self.producer.flush(limit);
    }

    fn delivered(&self) -> Option<u64> {
        self.producer.delivered()
    }

    fn at_risk(&self, accepted: u64) -> u64 {
        accepted.saturating_sub(self.producer.delivered().unwrap_or(0))
    }

    fn purge(&self) {
        self.producer.purge();
    }
}

struct Pacer;

impl Client for Pacer {
    fn send(&self, value: &[u8]) -> bool {
        std::hint::black_box(value);
        true
    }

    fn flush(&self, _: Duration) {}

    fn delivered(&self) -> Option<u64> {
        None
    }

    fn at_risk(&self, _: u64) -> u64 {
        0
    }
}
