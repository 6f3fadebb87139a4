//! Drives a sink as the flusher does, and reads back what Kafka has.

use super::super::*;
use crate::clock::{Clock, SystemClock};
use crate::record::{ANY_PARTITION, Header, RecordView, Shape};
use crate::sink::embedded::EmbeddedBroker;
use crate::sink::{Opaque, Outcome, ProduceError, Report, Sink};
use crate::topics::TopicTable;
use crate::wake::Waker;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Headers as _;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use std::time::{Duration, Instant};

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(90);

/// What a test sends.
#[derive(Clone, Debug)]
pub struct Rec {
    pub partition: i32,
    pub timestamp_ms: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Rec {
    pub fn new(value: impl Into<Vec<u8>>) -> Self {
        let value = Some(value.into());
        Rec { partition: ANY_PARTITION, timestamp_ms: 1_000, key: None, value, headers: Vec::new() }
    }

    pub fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.key = Some(key.into());
        self
    }

    pub fn to(mut self, partition: i32) -> Self {
        self.partition = partition;
        self
    }
}

/// Drives a sink as the flusher does.
pub struct Driver {
    pub sink: KafkaSink,
    waker: Waker,
    pub names: TopicTable,
    pub reports: Vec<Report>,
    next: u64,
}

impl Driver {
    pub fn new(options: KafkaOptions) -> Self {
        let waker = Waker::new().unwrap();
        let sink = KafkaSink::new(options, waker.clone()).unwrap();
        let names = TopicTable::default();
        Driver { sink, waker, names, reports: Vec::new(), next: 0 }
    }

    pub fn look(&mut self) {
        self.sink.serve(SystemClock.now_ns(), &mut self.reports);
    }

    pub fn wait(&mut self) {
        let within = self.sink.next_deadline_ns(SystemClock.now_ns()).unwrap_or(5_000_000);
        self.waker.wait(within.min(5_000_000));
        self.look();
    }

    pub fn offer(&mut self, topic: &str, rec: &Rec) -> Result<u64, ProduceError> {
        let mut body = Vec::new();
        for (name, value) in &rec.headers {
            let header = Header { name, value: value.as_deref() };
            let at = body.len();
            body.resize(at + header.encoded_len(), 0);
            header.encode(&mut body[at..]);
        }
        let shape = Shape {
            headers_len: body.len() as u32,
            key_len: rec.key.as_ref().map(|k| k.len() as u32),
            value_len: rec.value.as_ref().map(|v| v.len() as u32),
        };
        body.extend_from_slice(rec.key.as_deref().unwrap_or_default());
        body.extend_from_slice(rec.value.as_deref().unwrap_or_default());
        let view = RecordView {
            topic: self.names.intern(topic),
            partition: rec.partition,
            timestamp_ms: rec.timestamp_ms,
            shape,
            body: &body,
        };
        self.sink.produce(topic, &view, Opaque(self.next))?;
        self.next += 1;
        Ok(self.next - 1)
    }

    /// Offers a record until it is taken or refused for good.
    pub fn send(&mut self, topic: &str, rec: &Rec) -> Result<u64, ProduceError> {
        let until = Instant::now() + LIMIT;
        loop {
            match self.offer(topic, rec) {
                Err(ProduceError::Busy) if Instant::now() < until => self.wait(),
                other => return other,
            }
        }
    }

    pub fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let until = Instant::now() + LIMIT;
        while !done(self) {
            assert!(Instant::now() < until, "waited in vain: {what}; {:?}", self.sink);
            self.wait();
        }
    }

    pub fn look_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.wait();
        }
    }

    /// Every record handed over was reported delivered, once.
    pub fn assert_all_delivered_once(&self) {
        let mut seen = vec![0u32; self.next as usize];
        for report in &self.reports {
            assert_eq!(report.outcome, Outcome::Delivered);
            seen[report.opaque.0 as usize] += 1;
        }
        assert!(seen.iter().all(|n| *n == 1), "lost or doubled: {:?}", self.sink);
        println!("{} records handed over, {} reports, each once", self.next, self.reports.len());
    }
}

#[derive(Debug, PartialEq, Eq, Clone)]
pub struct Got {
    pub partition: i32,
    pub timestamp_ms: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

/// Reads `count` records with a consumer that knows nothing of the sink.
pub fn read(brokers: &str, topic: &str, partitions: i32, count: usize) -> Vec<Got> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "test")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let until = Instant::now() + LIMIT;
    let mut all = Vec::new();
    while all.len() < count && Instant::now() < until {
        if let Some(Ok(m)) = consumer.poll(Duration::from_millis(100)) {
            let headers = m.headers().map_or(Vec::new(), |h| {
                h.iter().map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec))).collect()
            });
            all.push(Got {
                partition: m.partition(),
                timestamp_ms: m.timestamp().to_millis(),
                key: m.key().map(<[u8]>::to_vec),
                value: m.payload().map(<[u8]>::to_vec),
                headers,
            });
        }
    }
    assert_eq!(all.len(), count);
    all
}

pub fn cluster(topic: &str, partitions: i32) -> EmbeddedBroker {
    let broker = EmbeddedBroker::new(1).unwrap();
    broker.create_topic(topic, partitions).unwrap();
    broker
}
