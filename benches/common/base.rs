//! The client to compare with: rust-rdkafka's `BaseProducer`, plainly used. The thread that
//! sends also serves the reports, as its documentation shows.

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{
    BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext, PurgeConfig,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[derive(Default)]
pub struct Counts {
    pub delivered: AtomicU64,
    pub failed: AtomicU64,
}

struct Reports(Arc<Counts>);

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let counter = if result.is_ok() { &self.0.delivered } else { &self.0.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// How it is set; `None` leaves librdkafka's default.
#[derive(Clone, Copy)]
pub struct Settings {
    pub linger_ms: u64,
    pub batch_messages: Option<u64>,
    pub queue_messages: Option<u64>,
    pub queue_kib: Option<u64>,
}

impl Settings {
    /// What Forebay sets: its linger of 5 ms, its budget of 131,072 records and 64 MiB.
    pub const LIKE_FOREBAY: Settings = Settings {
        linger_ms: 5,
        batch_messages: None,
        queue_messages: Some(131_072),
        queue_kib: Some(64 << 10),
    };
    /// Those of facts that were measured with 500 ms or 20,000 messages and default buffers.
    pub const SLOW_BATCHES: Settings = Settings {
        linger_ms: 500,
        batch_messages: Some(20_000),
        queue_messages: None,
        queue_kib: None,
    };
}

/// An idempotent `BaseProducer` to one topic.
pub struct Base {
    producer: BaseProducer<Reports>,
    topic: String,
    counts: Arc<Counts>,
}

impl Base {
    pub fn new(brokers: &str, topic: &str, settings: Settings) -> Base {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", brokers)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", settings.linger_ms.to_string());
        let given = [
            ("batch.num.messages", settings.batch_messages),
            ("queue.buffering.max.messages", settings.queue_messages),
            ("queue.buffering.max.kbytes", settings.queue_kib),
        ];
        for (name, value) in given {
            if let Some(value) = value {
                config.set(name, value.to_string());
            }
        }
        let counts = Arc::new(Counts::default());
        let producer =
            config.create_with_context(Reports(counts.clone())).expect("a good configuration");
        Base { producer, topic: topic.to_owned(), counts }
    }

    /// Whether librdkafka took it; its queue is full otherwise.
    #[inline]
    pub fn send(&self, value: &[u8]) -> bool {
        let record = BaseRecord::<(), [u8], ()>::to(&self.topic).payload(value);
        match self.producer.send(record) {
            Ok(()) => true,
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => false,
            Err((error, _)) => panic!("{error}"),
        }
    }

    /// Serves reports; waits for all of `time`.
    pub fn poll(&self, time: Duration) {
        self.producer.poll(time);
    }

    /// Waits until everything is reported. Not by the wrapper's `flush`: that one looks every
    /// 100 ms only.
    pub fn flush(&self, limit: Duration) {
        let start = Instant::now();
        while self.producer.in_flight_count() > 0 {
            assert!(start.elapsed() < limit, "not everything is reported in time");
            self.producer.poll(Duration::from_millis(1));
        }
    }

    pub fn delivered(&self) -> u64 {
        self.counts.delivered.load(Ordering::Relaxed)
    }

    pub fn failed(&self) -> u64 {
        self.counts.failed.load(Ordering::Relaxed)
    }

    /// Gives up what is not delivered, so that the end doesn't wait for it.
    pub fn purge(&self) {
        self.producer.purge(PurgeConfig::default().queue().inflight());
    }
}
