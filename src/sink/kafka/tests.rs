//! The Kafka sink against librdkafka's mock cluster.

use super::*;
use crate::clock::{Clock, SystemClock};
use crate::error::OpenError;
use crate::record::{ANY_PARTITION, Header, RecordView, Shape};
use crate::sink::embedded::EmbeddedBroker;
use crate::sink::{Opaque, Outcome, ProduceError, Report, Scope, Sink};
use crate::topics::TopicTable;
use crate::wake::Waker;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Headers as _;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// What a test sends.
#[derive(Clone, Debug)]
struct Rec {
    partition: i32,
    timestamp_ms: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Rec {
    fn new(value: impl Into<Vec<u8>>) -> Self {
        let value = Some(value.into());
        Rec { partition: ANY_PARTITION, timestamp_ms: 1_000, key: None, value, headers: Vec::new() }
    }

    fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.key = Some(key.into());
        self
    }

    fn to(mut self, partition: i32) -> Self {
        self.partition = partition;
        self
    }
}

/// Drives a sink as the flusher does.
struct Driver {
    sink: KafkaSink,
    waker: Waker,
    names: TopicTable,
    reports: Vec<Report>,
    next: u64,
}

impl Driver {
    fn new(options: KafkaOptions) -> Self {
        let waker = Waker::new().unwrap();
        let sink = KafkaSink::new(options, waker.clone()).unwrap();
        let names = TopicTable::default();
        Driver { sink, waker, names, reports: Vec::new(), next: 0 }
    }

    fn look(&mut self) {
        self.sink.serve(SystemClock.now_ns(), &mut self.reports);
    }

    fn wait(&mut self) {
        let within = self.sink.next_deadline_ns(SystemClock.now_ns()).unwrap_or(5_000_000);
        self.waker.wait(within.min(5_000_000));
        self.look();
    }

    fn offer(&mut self, topic: &str, rec: &Rec) -> Result<u64, ProduceError> {
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
    fn send(&mut self, topic: &str, rec: &Rec) -> Result<u64, ProduceError> {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            match self.offer(topic, rec) {
                Err(ProduceError::Busy) if Instant::now() < until => self.wait(),
                other => return other,
            }
        }
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        while !done(self) {
            assert!(Instant::now() < until, "not in 20 s: {what}; {:?}", self.sink);
            self.wait();
        }
    }

    fn look_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.wait();
        }
    }

    /// Every record handed over was reported delivered, once.
    fn assert_all_delivered_once(&self) {
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
struct Got {
    partition: i32,
    timestamp_ms: Option<i64>,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

/// Reads `count` records with a consumer that knows nothing of the sink.
fn read(brokers: &str, topic: &str, partitions: i32, count: usize) -> Vec<Got> {
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
    let until = Instant::now() + Duration::from_secs(20);
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

fn cluster(topic: &str, partitions: i32) -> EmbeddedBroker {
    let broker = EmbeddedBroker::new(1).unwrap();
    broker.create_topic(topic, partitions).unwrap();
    broker
}

#[test]
fn a_record_arrives_whole_and_null_differs_from_empty() {
    let broker = cluster("t", 1);
    let mut d = Driver::new(KafkaOptions::new(broker.brokers()));
    let mut full = Rec::new("value").key("key");
    full.timestamp_ms = 1_700_000_000_123;
    full.headers = vec![
        ("v".into(), Some(b"1".to_vec())),
        ("null".into(), None),
        ("empty".into(), Some(Vec::new())),
    ];
    let mut tombstone = Rec::new("").key("key");
    tombstone.value = None;
    let empty = Rec::new("").key("");
    let mut epoch = Rec::new("x").to(0);
    epoch.timestamp_ms = 0;
    let sent = [full, tombstone, empty, epoch];
    for rec in &sent {
        d.send("t", rec).unwrap();
    }
    d.until("all reported", |d| d.reports.len() == sent.len());
    d.assert_all_delivered_once();
    assert!(d.sink.state().connected && d.sink.state().topics_known);
    let got = read(&broker.brokers(), "t", 1, sent.len());
    for (got, sent) in got.iter().zip(&sent) {
        assert_eq!((&got.key, &got.value), (&sent.key, &sent.value));
        assert_eq!(got.headers, sent.headers);
        // 0 means "now" to librdkafka.
        assert_eq!(got.timestamp_ms, Some(sent.timestamp_ms.max(1)));
    }
}

#[test]
fn a_key_goes_where_librdkafka_would_send_it() {
    for (partitioner, name) in
        [(Partitioner::Crc32, "consistent"), (Partitioner::Murmur2, "murmur2")]
    {
        let broker = cluster("ours", 7);
        broker.create_topic("theirs", 7).unwrap();
        let theirs: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", broker.brokers())
            .set("partitioner", name)
            .create()
            .unwrap();
        let mut options = KafkaOptions::new(broker.brokers());
        options.partitioner = partitioner;
        let mut d = Driver::new(options);
        let keys: Vec<String> = (0..200).map(|i| "k".repeat(i % 9) + &i.to_string()).collect();
        for key in &keys {
            d.send("ours", &Rec::new("v").key(key.as_bytes())).unwrap();
            theirs.send(BaseRecord::to("theirs").payload("v").key(key)).unwrap();
        }
        theirs.flush(Duration::from_secs(10)).unwrap();
        d.until("all reported", |d| d.reports.len() == keys.len());
        let places = |topic| -> HashMap<Vec<u8>, i32> {
            let all = read(&broker.brokers(), topic, 7, keys.len());
            all.into_iter().map(|g| (g.key.unwrap(), g.partition)).collect()
        };
        let (ours, others) = (places("ours"), places("theirs"));
        assert_eq!(ours, others);
        println!("{name}: {} keys over 7 partitions, all in the same place", ours.len());
    }
}

#[test]
fn keyless_records_reach_every_partition() {
    let broker = cluster("t", 3);
    let mut d = Driver::new(KafkaOptions::new(broker.brokers()));
    for i in 0..90u32 {
        d.send("t", &Rec::new(i.to_string())).unwrap();
        if i % 10 == 9 {
            d.look_for(Duration::from_millis(12));
        }
    }
    d.until("all reported", |d| d.reports.len() == 90);
    let got = read(&broker.brokers(), "t", 3, 90);
    let count = |p| got.iter().filter(|g| g.partition == p).count();
    println!("per partition: {} {} {}", count(0), count(1), count(2));
    assert!((0..3).all(|p| count(p) > 0));
}

#[test]
fn an_unknown_partition_is_the_record_s_own_fault() {
    let broker = cluster("t", 2);
    let mut d = Driver::new(KafkaOptions::new(broker.brokers()));
    d.send("t", &Rec::new("v").to(1)).unwrap();
    let error = d.send("t", &Rec::new("v").to(2)).unwrap_err();
    let ProduceError::Rejected { scope: Scope::Record, reason } = error else {
        panic!("{error:?}")
    };
    assert_eq!(reason.name, "unknown_partition");
    d.until("the good one", |d| d.reports.len() == 1);
}

#[test]
fn a_record_over_the_limit_is_rejected_alone() {
    let broker = cluster("t", 1);
    let mut options = KafkaOptions::new(broker.brokers());
    options.record_bytes_max = 2_000;
    let mut d = Driver::new(options);
    d.send("t", &Rec::new(vec![b'x'; 2_000])).unwrap();
    let error = d.send("t", &Rec::new(vec![b'x'; 3_000])).unwrap_err();
    let ProduceError::Rejected { scope: Scope::Record, reason } = error else {
        panic!("{error:?}")
    };
    assert_eq!(reason.name, "message_too_large");
    d.until("the good one", |d| d.reports.len() == 1);
    d.assert_all_delivered_once();
}

/// Sends records to three partitions through an outage, and reads them back in order.
fn through_an_outage(begin: impl Fn(&EmbeddedBroker), end: impl Fn(&EmbeddedBroker)) {
    let broker = cluster("t", 3);
    let mut d = Driver::new(KafkaOptions::new(broker.brokers()));
    let send = |d: &mut Driver, from: u32, to: u32| {
        for i in from..to {
            d.send("t", &Rec::new(i.to_string()).to((i % 3) as i32)).unwrap();
        }
    };
    send(&mut d, 0, 3_000);
    d.until("healthy", |d| d.reports.len() == 3_000);
    begin(&broker);
    send(&mut d, 3_000, 6_000);
    d.look_for(Duration::from_millis(1_500));
    let state = d.sink.state();
    println!("in the outage: {state:?}, {} reports", d.reports.len());
    assert!(d.reports.len() < 6_000);
    assert!(state.paused_partitions > 0);
    let ended = Instant::now();
    end(&broker);
    d.until("reports after the outage", |d| d.reports.len() == 6_000);
    println!("all reported {} ms after its end", ended.elapsed().as_millis());
    send(&mut d, 6_000, 9_000);
    d.until("the rest", |d| d.reports.len() == 9_000);
    d.assert_all_delivered_once();
    d.look();
    assert_eq!(d.sink.state().outstanding_records, 0);
    d.until("everything resumed", |d| d.sink.state().paused_partitions == 0);
    let got = read(&broker.brokers(), "t", 3, 9_000);
    let mut last = [-1i64; 3];
    for g in &got {
        let n: i64 = String::from_utf8(g.value.clone().unwrap()).unwrap().parse().unwrap();
        assert!(n > last[g.partition as usize], "out of order or doubled: {n}");
        last[g.partition as usize] = n;
    }
}

#[test]
fn a_frozen_broker_is_paused_and_goes_on() {
    through_an_outage(
        |b| b.round_trip_time(Duration::from_secs(4)).unwrap(),
        |b| b.round_trip_time(Duration::ZERO).unwrap(),
    );
}

#[test]
fn a_dead_broker_is_paused_and_goes_on() {
    through_an_outage(|b| b.down().unwrap(), |b| b.up().unwrap());
}

#[test]
fn a_forbidden_topic_fails_with_its_scope_and_comes_back() {
    let broker = cluster("t", 1);
    let mut d = Driver::new(KafkaOptions::new(broker.brokers()));
    d.send("t", &Rec::new("first")).unwrap();
    d.until("first", |d| d.reports.len() == 1);
    broker.fail_produce(&[RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED]);
    d.send("t", &Rec::new("second")).unwrap();
    d.until("second", |d| d.reports.len() == 2);
    let Outcome::Failed { scope, reason, possibly_persisted } = d.reports[1].outcome else {
        panic!("{:?}", d.reports)
    };
    assert_eq!((scope, reason.name), (Scope::Topic, "topic_unauthorised"));
    assert!(!possibly_persisted);
    // librdkafka itself now refuses the topic, until metadata speaks well of it again.
    let refused = d.send("t", &Rec::new("third"));
    println!("right after: {refused:?}");
    d.until("the topic is usable", |d| d.sink.state().topics_known);
    if refused.is_err() {
        d.send("t", &Rec::new("third")).unwrap();
    }
    d.until("third", |d| d.reports.len() == 3);
    assert_eq!(d.reports[2].outcome, Outcome::Delivered);
}

#[test]
fn a_missing_topic_is_rejected_after_its_grace_and_taken_when_it_is_there() {
    let broker = cluster("t", 1);
    let missing = RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
    broker.topic_error("t", missing).unwrap();
    let mut options = KafkaOptions::new(broker.brokers());
    options.topic_grace_ms = 600;
    let mut d = Driver::new(options);
    let began = Instant::now();
    assert_eq!(d.offer("t", &Rec::new("v")), Err(ProduceError::Busy));
    let error = d.send("t", &Rec::new("v")).unwrap_err();
    let ProduceError::Rejected { scope: Scope::Topic, reason } = error else { panic!("{error:?}") };
    assert_eq!(reason.name, "topic_unavailable");
    println!("rejected after {} ms", began.elapsed().as_millis());
    assert!(began.elapsed() >= Duration::from_millis(600));
    assert!(!d.sink.state().topics_known);
    broker.topic_error("t", RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR).unwrap();
    d.until("the topic is there", |d| d.sink.state().topics_known);
    d.send("t", &Rec::new("v")).unwrap();
    d.until("delivered", |d| d.reports.len() == 1);
    d.assert_all_delivered_once();
}

#[test]
fn a_fatal_error_asks_for_a_rebuild_and_the_new_instance_works() {
    let broker = cluster("t", 2);
    let mut d = Driver::new(KafkaOptions::new(broker.brokers()));
    d.send("t", &Rec::new("before")).unwrap();
    d.until("before", |d| d.reports.len() == 1);
    d.sink.raise_fatal();
    d.until("fatal", |d| d.sink.state().fatal.is_some());
    println!("fatal: {:?}", d.sink.state().fatal);
    assert!(matches!(d.offer("t", &Rec::new("x")), Err(ProduceError::Fatal(_))));
    d.sink.rebuild(SystemClock.now_ns());
    assert!(d.sink.state().rebuilding && d.sink.state().fatal.is_none());
    assert_eq!(d.offer("t", &Rec::new("x")), Err(ProduceError::Busy));
    d.until("rebuilt", |d| !d.sink.state().rebuilding);
    d.send("t", &Rec::new("after")).unwrap();
    d.until("after", |d| d.reports.len() == 2);
    d.assert_all_delivered_once();
}

#[test]
fn a_rebuild_in_mid_flight_serves_what_comes_and_drops_the_rest() {
    let broker = cluster("t", 2);
    let mut d = Driver::new(KafkaOptions::new(broker.brokers()));
    d.send("t", &Rec::new("warm")).unwrap();
    d.until("warm", |d| d.reports.len() == 1);
    broker.round_trip_time(Duration::from_secs(8)).unwrap();
    for _ in 0..1_000 {
        d.send("t", &Rec::new("v").to(1)).unwrap();
    }
    d.look_for(Duration::from_millis(300));
    let began = Instant::now();
    d.sink.rebuild(SystemClock.now_ns());
    d.until("rebuilt", |d| !d.sink.state().rebuilding);
    println!("rebuilt after {} ms, {} reports", began.elapsed().as_millis(), d.reports.len());
    assert!(began.elapsed() >= Duration::from_secs(5), "the old one had its time");
    broker.round_trip_time(Duration::ZERO).unwrap();
    let before = d.reports.len();
    let again = d.send("t", &Rec::new("again").to(1)).unwrap();
    d.until("again", |d| d.reports.len() == before + 1);
    d.look_for(Duration::from_millis(1_000));
    assert_eq!(d.reports.len(), before + 1, "nothing of the old instance comes any more");
    assert_eq!(d.reports[before].opaque, Opaque(again));
}

#[test]
fn silence_asks_for_a_rebuild() {
    let broker = cluster("t", 1);
    let mut options = KafkaOptions::new(broker.brokers());
    options.stall_timeout_ms = 700;
    let mut d = Driver::new(options);
    d.send("t", &Rec::new("warm")).unwrap();
    d.until("warm", |d| d.reports.len() == 1);
    broker.round_trip_time(Duration::from_secs(5)).unwrap();
    d.send("t", &Rec::new("v")).unwrap();
    d.until("stalled", |d| d.sink.state().fatal.is_some());
    let why = d.sink.state().fatal.unwrap();
    println!("{why}");
    assert!(why.starts_with("stalled: no report from t [0]"), "{why}");
}

#[test]
fn close_waits_for_nobody() {
    let broker = cluster("t", 1);
    let mut d = Driver::new(KafkaOptions::new(broker.brokers()));
    d.send("t", &Rec::new("warm")).unwrap();
    d.until("warm", |d| d.reports.len() == 1);
    broker.round_trip_time(Duration::from_secs(30)).unwrap();
    for _ in 0..5_000 {
        d.send("t", &Rec::new("v")).unwrap();
    }
    d.look_for(Duration::from_millis(200));
    let began = Instant::now();
    d.sink.close();
    let took = began.elapsed();
    println!("close with 5000 in flight on a frozen broker: {} us", took.as_micros());
    assert!(took < Duration::from_secs(1));
    let before = d.reports.len();
    d.look();
    assert_eq!(d.reports.len(), before);
    assert_eq!(d.offer("t", &Rec::new("v")), Err(ProduceError::Busy));
}

#[test]
fn brokers_that_do_not_resolve_still_open() {
    let mut d = Driver::new(KafkaOptions::new("no-such-host.invalid:9092"));
    assert_eq!(d.offer("t", &Rec::new("v")), Err(ProduceError::Busy));
    d.until("an error to show", |d| d.sink.state().last_error.is_some());
    let state = d.sink.state();
    println!("{state:?}");
    assert!(!state.connected && !state.topics_known && state.fatal.is_none());
}

#[test]
fn a_bad_property_is_named_and_a_secret_is_not_shown() {
    let open = |name: &str, value: &str| {
        let mut options = KafkaOptions::new("b:9092");
        options.extra.push((name.into(), value.into()));
        match KafkaSink::new(options, Waker::new().unwrap()) {
            Err(OpenError::Config(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    for (name, value) in [
        ("enable.idempotence", "false"),
        ("no.such.property", "1"),
        ("batch.size", "many"),
        ("ssl.key.password", "hunter2"),
        ("security.protocol", "ssl"),
    ] {
        if rdkafka_has_tls() && name.starts_with("s") {
            continue;
        }
        let error = open(name, value);
        println!("{error}");
        assert_eq!(error.name, name);
        assert!(!error.to_string().contains("hunter2"));
    }
}

fn rdkafka_has_tls() -> bool {
    ClientConfig::new().set("security.protocol", "ssl").create::<BaseProducer>().is_ok()
}

#[path = "measure.rs"]
mod measure;
