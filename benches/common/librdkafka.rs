//! Owns the clients of rust-rdkafka to compare with, plainly used: idempotent, all replicas asked.
//!
//! `BaseProducer`'s reports are served by the threads that send, as its documentation shows; the
//! other two have a thread for that. `FutureProducer`'s future is dropped: nobody waits.

use super::clients::Client;
use rdkafka::ClientConfig;
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{
    BaseProducer, BaseRecord, DeliveryResult, FutureProducer, FutureRecord, Producer,
    ProducerContext, PurgeConfig, ThreadedProducer,
};
use rdkafka::util::AsyncRuntime;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How they are set; `None` leaves librdkafka's default.
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
    /// Batches of 500 ms or 20,000 messages, and librdkafka's default buffers.
    pub const SLOW_BATCHES: Settings = Settings {
        linger_ms: 500,
        batch_messages: Some(20_000),
        queue_messages: None,
        queue_kib: None,
    };
    /// The same with room for 200,000 records a second: 500 ms of them are exactly the default.
    pub const SLOW_AND_ROOMY: Settings =
        Settings { queue_messages: Some(262_144), ..Settings::SLOW_BATCHES };

    fn config(self, brokers: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", brokers)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", self.linger_ms.to_string());
        let given = [
            ("batch.num.messages", self.batch_messages),
            ("queue.buffering.max.messages", self.queue_messages),
            ("queue.buffering.max.kbytes", self.queue_kib),
        ];
        for (name, value) in given {
            if let Some(value) = value {
                config.set(name, value.to_string());
            }
        }
        config
    }
}

/// Counts what is reported delivered.
#[derive(Clone, Default)]
struct Reports(Arc<AtomicU64>);

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        self.0.fetch_add(u64::from(result.is_ok()), Ordering::Relaxed);
    }
}

/// Whether librdkafka took it; its queue is full otherwise.
fn is_taken<T>(result: Result<(), (KafkaError, T)>) -> bool {
    match result {
        Ok(()) => true,
        Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => false,
        Err((error, _)) => panic!("{error}"),
    }
}

/// Waits until nothing is on its way. Not by the wrapper's `flush`: that one looks every 100 ms.
fn flush(limit: Duration, in_flight: impl Fn() -> i32, wait: impl Fn()) {
    let start = Instant::now();
    while in_flight() > 0 {
        assert!(start.elapsed() < limit, "not everything is reported in time");
        wait();
    }
}

fn nap() {
    std::thread::sleep(Duration::from_millis(1));
}

fn everything() -> PurgeConfig {
    PurgeConfig::default().queue().inflight()
}

pub struct Base {
    producer: BaseProducer<Reports>,
    topic: String,
    delivered: Reports,
}

impl Base {
    pub fn new(brokers: &str, topic: &str, settings: Settings) -> Base {
        let delivered = Reports::default();
        let producer = settings.config(brokers).create_with_context(delivered.clone());
        Base { producer: producer.expect("good settings"), topic: topic.to_owned(), delivered }
    }
}

impl Client for Base {
    #[inline]
    fn send(&self, value: &[u8]) -> bool {
        let record = BaseRecord::<(), [u8], ()>::to(&self.topic).payload(value);
        is_taken(self.producer.send(record))
    }

    fn serve(&self) {
        self.producer.poll(Duration::ZERO);
    }

    // Not by `poll(500 µs)`: the wrapper counts whole milliseconds, and spins through less.
    fn wait_for_room(&self) {
        std::thread::sleep(Duration::from_micros(500));
        self.serve();
    }

    fn flush(&self, limit: Duration) {
        let wait = || {
            nap();
            self.serve();
        };
        flush(limit, || self.producer.in_flight_count(), wait);
    }

    fn delivered(&self) -> Option<u64> {
        Some(self.delivered.0.load(Ordering::Relaxed))
    }

    fn at_risk(&self, _: u64) -> u64 {
        self.producer.in_flight_count() as u64
    }

    fn purge(&self) {
        self.producer.purge(everything());
    }
}

pub struct Threaded {
    producer: ThreadedProducer<Reports>,
    topic: String,
    delivered: Reports,
}

impl Threaded {
    pub fn new(brokers: &str, topic: &str, settings: Settings) -> Threaded {
        let delivered = Reports::default();
        let producer = settings.config(brokers).create_with_context(delivered.clone());
        Threaded { producer: producer.expect("good settings"), topic: topic.to_owned(), delivered }
    }
}

impl Client for Threaded {
    #[inline]
    fn send(&self, value: &[u8]) -> bool {
        let record = BaseRecord::<(), [u8], ()>::to(&self.topic).payload(value);
        is_taken(self.producer.send(record))
    }

    fn flush(&self, limit: Duration) {
        flush(limit, || self.producer.in_flight_count(), nap);
    }

    fn delivered(&self) -> Option<u64> {
        Some(self.delivered.0.load(Ordering::Relaxed))
    }

    fn at_risk(&self, _: u64) -> u64 {
        self.producer.in_flight_count() as u64
    }

    fn purge(&self) {
        self.producer.purge(everything());
    }
}

/// `send_result` needs no runtime, but the type wants one.
pub struct NoRuntime;

impl AsyncRuntime for NoRuntime {
    type Delay = std::future::Ready<()>;

    fn spawn<T: Future<Output = ()> + Send + 'static>(_: T) {}

    fn delay_for(_: Duration) -> Self::Delay {
        std::future::ready(())
    }
}

pub struct WithFuture {
    producer: FutureProducer<DefaultClientContext, NoRuntime>,
    topic: String,
}

impl WithFuture {
    pub fn new(brokers: &str, topic: &str, settings: Settings) -> WithFuture {
        let producer = settings.config(brokers).create();
        WithFuture { producer: producer.expect("good settings"), topic: topic.to_owned() }
    }
}

impl Client for WithFuture {
    #[inline]
    fn send(&self, value: &[u8]) -> bool {
        let record = FutureRecord::<(), [u8]>::to(&self.topic).payload(value);
        is_taken(self.producer.send_result(record).map(drop))
    }

    fn flush(&self, limit: Duration) {
        flush(limit, || self.producer.in_flight_count(), nap);
    }

    /// The futures would tell, and they are dropped.
    fn delivered(&self) -> Option<u64> {
        None
    }

    fn at_risk(&self, _: u64) -> u64 {
        self.producer.in_flight_count() as u64
    }

    fn purge(&self) {
        self.producer.purge(everything());
    }
}
