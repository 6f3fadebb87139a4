//! Owns the consumer: it reads all partitions from the start of the demo on, and gives every
//! record to the oracle.
//!
//! The mock cluster keeps only the last 5 MiB of a partition, so it has to keep up; what the
//! mock dropped before it was read shows as a gap in the offsets and is counted apart.

use super::oracle::{Oracle, Tally};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest wait for Kafka's word on a topic.
const ASK: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// What the thread tells while it runs.
#[derive(Default)]
struct Told {
    stop: AtomicBool,
    /// Records read, repeated ones and gaps included.
    passed: AtomicU64,
    /// Different records, and gaps.
    distinct: AtomicU64,
}

/// The running consumer.
pub struct Reader {
    told: Arc<Told>,
    thread: JoinHandle<Oracle>,
}

/// How far the reader is, while it runs.
#[derive(Clone)]
pub struct Progress(Arc<Told>);

impl Progress {
    /// Offsets that lie behind the reader.
    pub fn passed(&self) -> u64 {
        self.0.passed.load(Ordering::Relaxed)
    }
}

impl Reader {
    /// Starts reading: the embedded cluster from its first record, a real topic from its end.
    pub fn start(
        brokers: &str,
        topic: &str,
        run: u64,
        payload: usize,
        is_embedded: bool,
    ) -> Result<Reader, Box<dyn Error>> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("client.id", "forebay-demo")
            .set("group.id", "forebay-demo")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            // The mock holds an empty answer back for the whole of this time.
            .set("fetch.wait.max.ms", "5")
            .set("fetch.error.backoff.ms", "10")
            .set("queued.min.messages", "1000000")
            .set("reconnect.backoff.max.ms", "300")
            .create()?;
        let metadata = consumer.fetch_metadata(Some(topic), ASK)?;
        let found = metadata.topics().iter().find(|t| t.name() == topic);
        let partitions: Vec<i32> =
            found.map(|t| t.partitions().iter().map(|p| p.id()).collect()).unwrap_or_default();
        if partitions.is_empty() {
            return Err(format!("topic {topic} isn't there; make it first").into());
        }
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            let from = match is_embedded {
                true => Offset::Beginning,
                false => Offset::Offset(consumer.fetch_watermarks(topic, partition, ASK)?.1),
            };
            list.add_partition_offset(topic, partition, from)?;
        }
        consumer.assign(&list)?;
        let told = Arc::new(Told::default());
        let oracle = Oracle::new(run, payload);
        let shared = told.clone();
        let thread = std::thread::Builder::new()
            .name("reader".into())
            .spawn(move || read(&consumer, oracle, &shared, is_embedded))?;
        Ok(Reader { told, thread })
    }

    /// How far it is, also while somebody else has the reader.
    pub fn progress(&self) -> Progress {
        Progress(self.told.clone())
    }

    /// Waits until `expected` different records arrived, or none for `patience`, and gives back
    /// what was found.
    pub fn finish(self, expected: u64, patience: Duration) -> Oracle {
        let mut newest = (0, Instant::now());
        while self.told.distinct.load(Ordering::Relaxed) < expected {
            let passed = self.told.passed.load(Ordering::Relaxed);
            if passed != newest.0 {
                newest = (passed, Instant::now());
            }
            if newest.1.elapsed() > patience {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // One more look at what lies behind the last record: it may be a repeated one.
        std::thread::sleep(Duration::from_millis(100));
        self.told.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| Oracle::new(0, 0))
    }
}

fn read(consumer: &BaseConsumer, mut oracle: Oracle, told: &Told, is_embedded: bool) -> Oracle {
    while !told.stop.load(Ordering::Relaxed) {
        // An error is a state of the connection: librdkafka tries again by itself.
        let Some(Ok(message)) = consumer.poll(POLL) else { continue };
        oracle.at_offset(message.partition(), message.offset(), is_embedded);
        oracle.arrived(message.key(), message.payload());
        let Tally { distinct, duplicates, strangers, trimmed, .. } = oracle.tally();
        told.passed.store(distinct + duplicates + strangers + trimmed, Ordering::Relaxed);
        told.distinct.store(distinct + trimmed, Ordering::Relaxed);
    }
    oracle
}
