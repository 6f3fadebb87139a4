//! The Kafka sink against librdkafka's mock cluster.

use super::*;
use crate::clock::{Clock, SystemClock};
use crate::error::OpenError;
use crate::sink::embedded::EmbeddedBroker;
use crate::sink::{Opaque, Outcome, ProduceError, Scope, Sink};
use crate::wake::Waker;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::types::RDKafkaRespErr;
use std::collections::HashMap;
use std::time::{Duration, Instant};

#[path = "tests_driver.rs"]
mod driver;
use driver::{Driver, Rec, cluster, read};

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
        theirs.flush(Duration::from_secs(90)).unwrap();
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
fn an_unknown_partition_concerns_nobody_else() {
    let broker = cluster("t", 2);
    let mut d = Driver::new(KafkaOptions::new(broker.brokers()));
    d.send("t", &Rec::new("v").to(1)).unwrap();
    let error = d.send("t", &Rec::new("v").to(2)).unwrap_err();
    let ProduceError::Stalled { partition: 2, reason } = error else { panic!("{error:?}") };
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
    // A silent partition is soon paused and takes no more.
    let mut sent = 3_000u32;
    while sent < 6_000 {
        match d.offer("t", &Rec::new(sent.to_string()).to((sent % 3) as i32)) {
            Ok(_) => sent += 1,
            Err(error) => {
                println!("at {sent}: {error:?}");
                break;
            }
        }
    }
    d.look_for(Duration::from_millis(1_500));
    d.until("a silent partition is paused", |d| d.sink.state().paused_partitions > 0);
    let state = d.sink.state();
    println!("in the outage: {state:?}, {sent} sent, {} reports", d.reports.len());
    assert!(d.reports.len() < sent as usize);
    let ended = Instant::now();
    end(&broker);
    d.until("reports after the outage", |d| d.reports.len() == sent as usize);
    println!("all reported {} ms after its end", ended.elapsed().as_millis());
    send(&mut d, sent, 9_000);
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
fn pausing_all_the_time_loses_nothing_and_keeps_the_order() {
    let broker = cluster("t", 3);
    broker.round_trip_time(Duration::from_millis(8)).unwrap();
    let mut options = KafkaOptions::new(broker.brokers());
    options.silent_ms = 2;
    options.linger_ms = 0;
    let mut d = Driver::new(options);
    let mut pauses = 0;
    for i in 0..6_000u32 {
        d.send("t", &Rec::new(i.to_string()).to((i % 3) as i32)).unwrap();
        if i % 100 == 99 {
            d.look_for(Duration::from_millis(5));
            pauses += d.sink.state().paused_partitions;
        }
    }
    d.until("all reported", |d| d.reports.len() == 6_000);
    d.assert_all_delivered_once();
    println!("paused partitions seen, summed over looks: {pauses}");
    assert!(pauses > 0);
    let mut last = [-1i64; 3];
    for g in read(&broker.brokers(), "t", 3, 6_000) {
        let n: i64 = String::from_utf8(g.value.unwrap()).unwrap().parse().unwrap();
        assert!(n > last[g.partition as usize], "out of order or doubled: {n}");
        last[g.partition as usize] = n;
    }
}

#[test]
fn what_librdkafka_retries_is_delivered_in_the_end() {
    let broker = cluster("t", 1);
    let mut d = Driver::new(KafkaOptions::new(broker.brokers()));
    d.send("t", &Rec::new("first")).unwrap();
    d.until("first", |d| d.reports.len() == 1);
    broker.fail_produce(&[RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS; 4]);
    let began = Instant::now();
    d.send("t", &Rec::new("second")).unwrap();
    d.until("second", |d| d.reports.len() == 2);
    println!("delivered at the fifth try, after {} ms", began.elapsed().as_millis());
    d.assert_all_delivered_once();
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
    broker.round_trip_time(Duration::from_secs(60)).unwrap();
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
    broker.round_trip_time(Duration::from_secs(60)).unwrap();
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
    broker.round_trip_time(Duration::from_secs(60)).unwrap();
    for _ in 0..5_000 {
        d.send("t", &Rec::new("v")).unwrap();
    }
    d.look_for(Duration::from_millis(200));
    let began = Instant::now();
    d.sink.close();
    let took = began.elapsed();
    println!("close with 5000 in flight on a frozen broker: {} us", took.as_micros());
    assert!(took < Duration::from_secs(20), "it waited for the answers");
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
