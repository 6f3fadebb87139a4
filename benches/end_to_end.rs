//! Records a second and CPU a record, all the way into Kafka, beside rust-rdkafka's
//! `BaseProducer` with the same settings, interleaved in the same run.
//!
//! Two parts. *Flat out*: threads send as fast as they may, wait where there is no room, and the
//! clock stops when everything is reported delivered. Senders that outrun Kafka fill the lanes, so
//! a pipeline with a log journals most of it and reads it back; `forebay, -log` (at_most_once)
//! holds what it can in memory and lets senders wait, as `BaseProducer` does. *Paced*: 200,000 records a second in all,
//! open loop in ticks of 1 ms, and what that costs in CPU, beside a row `pacer` that sends
//! nothing. CPU is that of this process: with the mock cluster the brokers' is in it, for both
//! rows alike; with a real Kafka it is the client's alone.
//!
//! The target is librdkafka's mock cluster in this process; with `FOREBAY_TEST_BROKERS=host:port`
//! an existing Kafka, with `FOREBAY_BENCH_KAFKA=1` one that is started for it, and
//! `FOREBAY_BENCH_MOCK=0` leaves the mock out. `FOREBAY_BENCH_ROUNDS` (3) is how often each row
//! runs, `FOREBAY_BENCH_RECORDS` (600,000) how many records of 100 B; of 1 KiB it is a third.
//! `--quick` sees that it works.

#![allow(missing_docs, clippy::print_stdout)]

mod common;

use common::base::{Base, Settings};
use common::{Runs, cpu_time, env, is_quick, log_dir, tick};
use forebay::sink::embedded::EmbeddedBroker;
use forebay::{Pipeline, SendError, Topic};
use forebay_testkit::{Kafka, KafkaOptions};
use std::sync::Barrier;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);
const PACED_PER_S: u64 = 200_000;
const PARTITIONS: u32 = 3;

/// What sends. Each is made anew for every round.
enum Client {
    Forebay {
        pipeline: Pipeline,
        topic: Topic,
        _home: tempfile::TempDir,
    },
    Base(Base),
    /// Sends nothing: what the pacing itself costs.
    Pacer,
}

const FOREBAY: &str = "forebay";
const NO_LOG: &str = "forebay, -log";
const BASE: &str = "BaseProducer";

impl Client {
    fn new(name: &str, brokers: &str, topic: &str) -> Client {
        match name {
            FOREBAY | NO_LOG => {
                let (home, dir) = log_dir();
                let builder = Pipeline::builder().brokers(brokers);
                let builder =
                    if name == FOREBAY { builder.wal_dir(dir) } else { builder.at_most_once() };
                let pipeline = builder.open().expect("it opens");
                let topic = pipeline.topic(topic).expect("a good name");
                pipeline.ready(Duration::from_secs(30)).expect("the brokers are there");
                Client::Forebay { pipeline, topic, _home: home }
            }
            BASE => Client::Base(Base::new(brokers, topic, Settings::LIKE_FOREBAY)),
            _ => Client::Pacer,
        }
    }

    /// Sends, and where there is no room waits for it.
    fn send_waiting(&self, value: &[u8]) {
        match self {
            Client::Forebay { topic, .. } => {
                while let Err(e) = topic.send(value) {
                    assert_eq!(e, SendError::Full);
                    std::thread::sleep(Duration::from_micros(500));
                }
            }
            Client::Base(base) => {
                while !base.send(value) {
                    base.poll(Duration::from_micros(500));
                }
            }
            Client::Pacer => {}
        }
    }

    /// Between sends, now and then.
    fn serve(&self) {
        if let Client::Base(base) = self {
            base.poll(Duration::ZERO);
        }
    }

    fn flush(&self) {
        match self {
            Client::Forebay { pipeline, .. } => pipeline.flush(LIMIT).expect("all is final"),
            Client::Base(base) => base.flush(LIMIT),
            Client::Pacer => {}
        }
    }

    fn delivered(&self) -> u64 {
        match self {
            Client::Forebay { pipeline, .. } => {
                let books = pipeline.stats().books;
                assert!(books.balanced(), "{books:?}");
                books.delivered
            }
            Client::Base(base) => base.delivered(),
            Client::Pacer => 0,
        }
    }

    fn spilled(&self) -> u64 {
        match self {
            Client::Forebay { pipeline, .. } => pipeline.stats().books.spilled,
            _ => 0,
        }
    }
}

struct Load {
    threads: u64,
    records: u64,
    bytes: usize,
    per_s: Option<u64>,
}

/// Seconds until all was delivered, CPU seconds, records that went to the log.
fn run(client: &Client, load: &Load) -> (f64, f64, u64) {
    // A first record: connections, metadata, the producer's id. It is not what is measured.
    client.send_waiting(b"first");
    client.flush();
    let each = load.records / load.threads;
    let ready = Barrier::new(load.threads as usize);
    let (before, spilled, start, cpu) =
        (client.delivered(), client.spilled(), Instant::now(), cpu_time());
    std::thread::scope(|scope| {
        for _ in 0..load.threads {
            scope.spawn(|| {
                let value = vec![7u8; load.bytes];
                ready.wait();
                let send = |n: u64, _| {
                    client.send_waiting(&value);
                    if n.is_multiple_of(500) {
                        client.serve();
                    }
                };
                match load.per_s {
                    Some(per_s) => tick(Instant::now(), per_s / load.threads, each, send),
                    None => (0..each).for_each(|n| send(n, 0)),
                }
            });
        }
    });
    client.flush();
    let (took, cpu) = (start.elapsed().as_secs_f64(), (cpu_time() - cpu).as_secs_f64());
    let delivered = client.delivered() - before;
    assert!(matches!(client, Client::Pacer) || delivered == each * load.threads, "{delivered}");
    (took, cpu, client.spilled() - spilled)
}

#[derive(Default)]
struct Row {
    per_s: Runs,
    cpu_us: Runs,
    spilled: u64,
}

fn compare(names: &[&str], load: &Load, rounds: u64, brokers: &str, topic: &str) {
    let mut rows: Vec<Row> = names.iter().map(|_| Row::default()).collect();
    for _ in 0..rounds {
        for (name, row) in names.iter().zip(&mut rows) {
            let client = Client::new(name, brokers, topic);
            let (took, cpu, spilled) = run(&client, load);
            row.per_s.add(load.records as f64 / took / 1e3);
            row.cpu_us.add(cpu * 1e6 / load.records as f64);
            row.spilled += spilled;
        }
    }
    for (name, row) in names.iter().zip(&rows) {
        println!(
            "{name:<13} {:>7} {:>6} | {:>22} | {:>22} | {:>9}",
            load.threads,
            load.bytes,
            row.per_s.show(0),
            row.cpu_us.show(2),
            row.spilled
        );
    }
    let Some(theirs) = names.iter().position(|n| *n == BASE) else { return };
    for (name, row) in names.iter().zip(&rows).skip(theirs + 1) {
        println!(
            "{:>28} | {:>21.2}x | {:>21.2}x |",
            format!("{name} / {BASE}"),
            row.per_s.median() / rows[theirs].per_s.median(),
            row.cpu_us.median() / rows[theirs].cpu_us.median()
        );
    }
}

fn all(target: &str, brokers: &str, topic: &str) {
    let rounds = env("FOREBAY_BENCH_ROUNDS").unwrap_or(if is_quick() { 1 } else { 3 });
    let records = env("FOREBAY_BENCH_RECORDS").unwrap_or(if is_quick() { 20_000 } else { 600_000 });
    let head = format!(
        "{:<13} {:>7} {:>6} | {:>22} | {:>22} | {:>9}",
        "client", "threads", "bytes", "thousands a second", "CPU µs a record", "journaled"
    );
    println!("\n{target}, flat out, {rounds} rounds interleaved: median (least-most)\n{head}");
    for threads in [1, 2] {
        for bytes in [100, 1024] {
            let records = if bytes > 100 { records / 3 } else { records };
            let load = Load { threads, records, bytes, per_s: None };
            compare(&[BASE, FOREBAY, NO_LOG], &load, rounds, brokers, topic);
        }
    }
    println!("\n{target}, {PACED_PER_S} a second in all, open loop in ticks of 1 ms\n{head}");
    let load = Load { threads: 2, records: records * 2, bytes: 100, per_s: Some(PACED_PER_S) };
    compare(&["pacer", BASE, FOREBAY], &load, rounds, brokers, topic);
}

fn main() {
    if env("FOREBAY_BENCH_MOCK") != Some(0) {
        let mock = EmbeddedBroker::new(1).expect("the mock cluster");
        mock.create_topic("bench", PARTITIONS as i32).expect("the topic");
        all("mock cluster", &mock.brokers(), "bench");
    }
    if std::env::var_os("FOREBAY_TEST_BROKERS").is_some() {
        let kafka = Kafka::shared().expect("the brokers of FOREBAY_TEST_BROKERS");
        all("given Kafka", kafka.brokers(), &kafka.topic("bench", PARTITIONS));
    } else if env("FOREBAY_BENCH_KAFKA") == Some(1) {
        let kafka = Kafka::start(KafkaOptions::default()).expect("a real Kafka");
        all("real Kafka, one node", kafka.brokers(), &kafka.topic("bench", PARTITIONS));
    }
}
