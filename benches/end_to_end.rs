//! Records a second and CPU a record, all the way into Kafka, beside rust-rdkafka's producers and
//! queues with such a producer behind, interleaved in the same run.
//!
//! Two parts. *Flat out* (`flat`): threads send as fast as they may, wait where there is no room,
//! and the clock stops when everything is reported delivered. Senders that outrun Kafka fill the
//! lanes, so a pipeline with a log journals most of it and reads it back; with `Overflow::Refuse`, or
//! without a log, it holds what it can in memory and lets senders wait, as the others do. All have Forebay's linger and
//! budget (5 ms, 131,072 records, 64 MiB). *Paced* (`paced`): 200,000 records a second in all, open
//! loop in ticks of 1 ms, batches of 500 ms or 20,000 records, and what that costs in CPU, beside a
//! row that sends nothing. CPU is that of this process: with the mock cluster the brokers' is in it,
//! for all rows alike; with a real Kafka it is the client's alone. What a kill would take is counted
//! as the last send returns.
//!
//! The target is librdkafka's mock cluster in this process; with `FOREBAY_TEST_BROKERS=host:port`
//! an existing Kafka, with `FOREBAY_BENCH_KAFKA=1` one that is started for it, and
//! `FOREBAY_BENCH_MOCK=0` leaves the mock out. With `FOREBAY_BENCH_GO`, the path of the program in
//! benches/peers, that one has a row in `paced`. `FOREBAY_BENCH_ROUNDS` (3) is how often each row
//! runs, `FOREBAY_BENCH_RECORDS` how many records of 100 B; of 1 KiB it is a third. 3,000,000 into
//! the mock, which keeps nothing: fewer don't fill everybody's queues many times over, and measure
//! the start and the end of a run. 600,000 into a real Kafka, which keeps them all: 8 GB.
//! `--quick` sees that it works, `--json` prints an object a row.

#![allow(missing_docs, clippy::print_stdout)]

mod common;

use common::clients::{BASE, CHANNEL, Client, FOREBAY, FUTURE, NO_LOG, PACER, PEERS};
use common::clients::{QUEUE, THREADED, Target, WAITING};
use common::librdkafka::Settings;
use common::table::{Cell, Table, people};
use common::{Runs, cpu_time, env, is_quick, tick, words};
use forebay::sink::embedded::EmbeddedBroker;
use forebay_testkit::process::Running;
use forebay_testkit::{Kafka, KafkaOptions};
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);
const PACED_PER_S: u64 = 200_000;
const PACED_THREADS: u64 = 2;
const PARTITIONS: u32 = 3;
const MOCK_RECORDS: u64 = 3_000_000;
const REAL_RECORDS: u64 = 600_000;
const SERVE_EVERY: u64 = 500;
const GO: &str = "Go channel + confluent-kafka-go";
const GO_PACER: &str = "pacer alone, in Go";

struct Load {
    threads: u64,
    records: u64,
    bytes: usize,
    per_s: Option<u64>,
}

struct Ran {
    /// Until all was delivered.
    took_s: f64,
    cpu_s: f64,
    journaled: u64,
    at_risk: u64,
    refused: u64,
}

/// Sends, and where there is no room waits for it; how often it was refused.
fn send_waiting(client: &dyn Client, value: &[u8]) -> u64 {
    let mut refused = 0;
    while !client.send(value) {
        refused += 1;
        client.wait_for_room();
    }
    refused
}

fn run(client: &dyn Client, load: &Load) -> Ran {
    // A first record: connections, metadata, the producer's id. It is not what is measured.
    send_waiting(client, b"first");
    client.flush(LIMIT);
    let each = load.records / load.threads;
    let ready = Barrier::new(load.threads as usize);
    let refused = AtomicU64::new(0);
    let (before, journaled) = (client.delivered(), client.journaled());
    let (start, cpu) = (Instant::now(), cpu_time());
    std::thread::scope(|scope| {
        for _ in 0..load.threads {
            scope.spawn(|| {
                let value = vec![7u8; load.bytes];
                let mut refusals = 0;
                ready.wait();
                let mut send = |n: u64, _: u64| {
                    refusals += send_waiting(client, &value);
                    if n.is_multiple_of(SERVE_EVERY) {
                        client.serve();
                    }
                };
                match load.per_s {
                    Some(per_s) => tick(Instant::now(), per_s / load.threads, each, &mut send),
                    None => (0..each).for_each(|n| send(n, 0)),
                }
                refused.fetch_add(refusals, Ordering::Relaxed);
            });
        }
    });
    // One record more was sent at first.
    let at_risk = client.at_risk(each * load.threads + 1);
    client.flush(LIMIT);
    let (took_s, cpu_s) = (start.elapsed().as_secs_f64(), (cpu_time() - cpu).as_secs_f64());
    if let (Some(before), Some(after)) = (before, client.delivered()) {
        assert_eq!(after - before, each * load.threads);
    }
    let journaled = client.journaled() - journaled;
    Ran { took_s, cpu_s, journaled, at_risk, refused: refused.into_inner() }
}

/// The same schedule in the Go program, which prints what it cost.
fn run_go(name: &str, brokers: &str, topic: &str, load: &Load) -> Option<Ran> {
    let program = std::env::var_os("FOREBAY_BENCH_GO")?;
    let per_s = load.per_s?;
    let page = tempfile::NamedTempFile::new().expect("a file for the page");
    let mut command = Command::new(program);
    command.args(["child", name, brokers, topic, "-"]).arg(page.path());
    command.arg(per_s.to_string()).args(["0", &(load.records / per_s).to_string(), "0", "0"]);
    let ended = Running::start(command).expect("the Go program starts").wait(LIMIT);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let last = ended.stdout.lines().last().expect("a line for the whole run");
    let all: serde_json::Value = serde_json::from_str(last).expect("an object");
    let number = |name: &str| all[name].as_f64().unwrap_or(f64::NAN);
    let took_s = load.records as f64 / per_s as f64 + number("drained_ms") / 1e3;
    let count = |name: &str| all[name].as_u64().unwrap_or(0);
    let (cpu_s, at_risk, refused) = (number("cpu_s"), count("at_risk"), count("refused"));
    Some(Ran { took_s, cpu_s, journaled: 0, at_risk, refused })
}

#[derive(Default)]
struct Row {
    per_s: Runs,
    cpu_us: Runs,
    at_risk: Runs,
    journaled: u64,
    refused: u64,
}

/// The rows that `FOREBAY_BENCH_ONLY` names, separated by semicolons; all without it.
fn wanted<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let only = std::env::var("FOREBAY_BENCH_ONLY").unwrap_or_default();
    let is_wanted = |name: &&str| only.is_empty() || only.split(';').any(|o| o == *name);
    names.iter().copied().filter(is_wanted).collect()
}

fn rounds() -> u64 {
    env("FOREBAY_BENCH_ROUNDS").unwrap_or(if is_quick() { 1 } else { 3 })
}

fn measure(
    names: &[&str],
    load: &Load,
    settings: Settings,
    brokers: &str,
    topic: &str,
) -> Vec<Row> {
    let mut rows: Vec<Row> = names.iter().map(|_| Row::default()).collect();
    for _ in 0..rounds() {
        for (name, row) in names.iter().zip(&mut rows) {
            let ran = match *name {
                GO | GO_PACER => {
                    let name = if *name == GO { GO } else { PACER };
                    let Some(ran) = run_go(name, brokers, topic, load) else { continue };
                    ran
                }
                name => run(&*Target::new(brokers, topic, settings).open(name), load),
            };
            row.per_s.add(load.records as f64 / ran.took_s / 1e3);
            row.cpu_us.add(ran.cpu_s * 1e6 / load.records as f64);
            row.at_risk.add(ran.at_risk as f64);
            row.journaled += ran.journaled;
            row.refused += ran.refused;
        }
    }
    rows
}

fn flat(target: &str, brokers: &str, topic: &str, records: u64) {
    let what = format!(
        "{target}, flat out; medians of {} rounds (least-most), interleaved; `by BaseProducer`: \
         records a second and CPU divided by its",
        rounds()
    );
    let columns = [
        "client",
        "threads",
        "bytes",
        "thousands a second",
        "CPU µs a record",
        "by BaseProducer",
        "journaled",
        "waits for room",
        "lost by a kill as the last send returns",
    ];
    let table = Table::new("end_to_end", "flat", &what, &columns);
    let records = if is_quick() { 20_000 } else { records };
    let records = env("FOREBAY_BENCH_RECORDS").unwrap_or(records);
    for threads in [1, 2] {
        for bytes in [100, 1024] {
            let records = if bytes > 100 { records / 3 } else { records };
            let load = Load { threads, records, bytes, per_s: None };
            let names: &[&str] = match threads {
                1 => &[BASE, FOREBAY, WAITING, NO_LOG],
                _ => &[BASE, FOREBAY, WAITING, NO_LOG, THREADED, FUTURE, QUEUE, CHANNEL],
            };
            let names = &wanted(names);
            let rows = measure(names, &load, Settings::LIKE_FOREBAY, brokers, topic);
            for (name, row) in names.iter().zip(&rows) {
                let by = |of: fn(&Row) -> &Runs| of(row).median() / of(&rows[0]).median();
                table.row([
                    (*name).into(),
                    threads.into(),
                    (bytes as u64).into(),
                    Cell::Spread(row.per_s.clone(), 0),
                    Cell::Spread(row.cpu_us.clone(), 2),
                    Cell::Text(format!("{:.2}x / {:.2}x", by(|r| &r.per_s), by(|r| &r.cpu_us))),
                    row.journaled.into(),
                    row.refused.into(),
                    Cell::Spread(row.at_risk.clone(), 0),
                ]);
            }
        }
    }
}

fn paced(target: &str, brokers: &str, topic: &str) {
    let what = format!(
        "{target}, {} a second of 100 B from {PACED_THREADS} threads, open loop in ticks \
         of 1 ms, batches of 500 ms or 20,000 records; medians of {} rounds (least-most), interleaved",
        people(PACED_PER_S),
        rounds()
    );
    let columns = [
        "client",
        "CPU µs a record",
        "less the pacer",
        "journaled",
        "refused",
        "lost by a kill as the last send returns",
    ];
    let table = Table::new("end_to_end", "paced", &what, &columns);
    let seconds = if is_quick() { 1 } else { 3 };
    let records = PACED_PER_S * seconds / if is_quick() { 5 } else { 1 };
    let load = Load { threads: PACED_THREADS, records, bytes: 100, per_s: Some(PACED_PER_S) };
    let mut names = vec![PACER];
    names.extend(PEERS);
    names.push(FOREBAY);
    // Its schedule is in whole seconds.
    if std::env::var_os("FOREBAY_BENCH_GO").is_some() && !is_quick() {
        names.extend([GO_PACER, GO]);
    }
    let names = wanted(&names);
    let rows = measure(&names, &load, Settings::SLOW_AND_ROOMY, brokers, topic);
    for (at, (name, row)) in names.iter().zip(&rows).enumerate() {
        let is_pacer = [PACER, GO_PACER].contains(name);
        let pacer = if *name == GO { &rows[at - 1] } else { &rows[0] };
        table.row([
            (*name).into(),
            Cell::Spread(row.cpu_us.clone(), 2),
            match is_pacer {
                true => Cell::None,
                false => Cell::Number(row.cpu_us.median() - pacer.cpu_us.median(), 2),
            },
            row.journaled.into(),
            row.refused.into(),
            if is_pacer { Cell::None } else { Cell::Spread(row.at_risk.clone(), 0) },
        ]);
    }
}

fn all(target: &str, brokers: &str, topic: &str, records: u64) {
    let words = words();
    let wants = |word: &str| words.is_empty() || words.iter().any(|w| w == word);
    if wants("flat") {
        flat(target, brokers, topic, records);
    }
    if wants("paced") {
        paced(target, brokers, topic);
    }
}

fn main() {
    if env("FOREBAY_BENCH_MOCK") != Some(0) {
        let mock = EmbeddedBroker::new(1).expect("the mock cluster");
        mock.create_topic("bench", PARTITIONS as i32).expect("the topic");
        all("mock cluster", &mock.brokers(), "bench", MOCK_RECORDS);
    }
    if std::env::var_os("FOREBAY_TEST_BROKERS").is_some() {
        let kafka = Kafka::shared().expect("the brokers of FOREBAY_TEST_BROKERS");
        all("given Kafka", kafka.brokers(), &kafka.topic("bench", PARTITIONS), REAL_RECORDS);
    } else if env("FOREBAY_BENCH_KAFKA") == Some(1) {
        let kafka = Kafka::start(KafkaOptions::default()).expect("a real Kafka");
        let topic = kafka.topic("bench", PARTITIONS);
        all("real Kafka, one node", kafka.brokers(), &topic, REAL_RECORDS);
    }
}
