//! What happens to records, callers, CPU and memory while a real Kafka stands still or the
//! process is killed. Run by hand: it starts a broker of its own and takes minutes.
//!
//! `cargo bench --bench outage -- million blackout kill`, or some of these words; without any,
//! these three:
//! - `million`: 1,000,000 records of 100 B from two threads, as fast as they are taken.
//! - `blackout`: 5 s healthy, 20 s with the broker stopped (SIGSTOP), 5 s more; 50,000 records a
//!   second from two threads, open loop in ticks of 1 ms, each send timed.
//! - `kill`: SIGKILL 4 s into such a stop; Forebay with loss windows of 100 ms, 250 ms and 1 s,
//!   and a new run that opens its directory.
//! - `kill-healthy`: SIGKILL after 5 s without any stop.
//!
//! More words choose the clients: `forebay`, `base`, `threaded`, `future`, `queue`, `channel`, `go`
//! (the program in benches/peers, whose path is `FOREBAY_BENCH_GO`); without any, all that are there.
//! All but Forebay run with batches of 500 ms or 20,000 messages and default buffers. Every
//! client sends in a process of its own, which the bench starts, and what arrived is counted by
//! Apache Kafka's own Java client.
//!
//! `FOREBAY_BENCH_STOP_S` (20) is the length of the stop, `FOREBAY_BENCH_RATE` the rate,
//! `FOREBAY_BENCH_DIR` where logs are made. `--json` prints an object a row.

#![allow(missing_docs, clippy::print_stdout)]

mod child;
#[path = "../common/mod.rs"]
mod common;
mod million;

use child::{LIMIT, PHASES, Page, THREADS};
use common::clients::{BASE, CHANNEL, Client, FOREBAY, FUTURE, Forebay, QUEUE, THREADED, Target};
use common::librdkafka::{Base, Settings};
use common::table::{Cell, Table, note, people};
use common::{env, log_dir, words};
use forebay_testkit::audit::{Audit, Stream};
use forebay_testkit::process::Running;
use forebay_testkit::{Consumed, Kafka, KafkaOptions};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

const PARTITIONS: u32 = 3;
const HEALTHY_S: u64 = 5;
const KILL_AFTER: Duration = Duration::from_secs(4);
const GO: &str = "Go channel + confluent-kafka-go";
const CLIENTS: [(&str, &str); 7] = [
    ("forebay", FOREBAY),
    ("base", BASE),
    ("threaded", THREADED),
    ("future", FUTURE),
    ("queue", QUEUE),
    ("channel", CHANNEL),
    ("go", GO),
];

/// What is in a topic, against what was accepted: each source's first so many numbers.
struct Verdict {
    lost: u64,
    duplicates: u64,
    disorder: u64,
}

/// Numbers are drawn for accepted records only, so what is missing is what is lost.
fn judge(kafka: &Kafka, topic: &str, accepted: &[u64]) -> Verdict {
    // What lay in a broker's socket while it stood may still come.
    let mut ends = Vec::new();
    loop {
        let now = kafka.oracle().end_offsets(topic).expect("the topic is there");
        if now == ends {
            break;
        }
        ends = now;
        std::thread::sleep(Duration::from_secs(1));
    }
    let records = kafka.oracle().read(topic).expect("the topic can be read");
    let in_partition = |r: &Consumed| Stream::Partition(r.partition);
    let audit = Audit::new(&records, in_partition);
    assert_eq!(audit.strangers, 0);
    Verdict {
        lost: audit.missing(accepted).len() as u64,
        duplicates: audit.duplicates,
        disorder: audit.disorder.len() as u64,
    }
}

/// A broker that has taken its first records, which costs it a second and more.
fn broker() -> Kafka {
    let kafka = Kafka::start(KafkaOptions::default()).expect("a real Kafka");
    let topic = kafka.topic("warm-up", PARTITIONS);
    let base = Base::new(kafka.brokers(), &topic, Settings::LIKE_FOREBAY);
    for _ in 0..10_000 {
        base.send(b"first");
    }
    base.flush(LIMIT);
    kafka
}

fn rate() -> u64 {
    env("FOREBAY_BENCH_RATE").unwrap_or(50_000)
}

/// A client's process, at the beginning of its schedule.
struct Sending {
    running: Running,
    page: Page,
    topic: String,
    dir: PathBuf,
    _home: tempfile::TempDir,
}

impl Sending {
    fn start(kafka: &Kafka, name: &str, window_ms: u64, seconds: [u64; 3]) -> Sending {
        let topic = kafka.topic("outage", PARTITIONS);
        let (home, dir) = log_dir();
        let page_path = home.path().join("page");
        let page = Page::open(&page_path);
        let mut command = match name {
            GO => Command::new(std::env::var_os("FOREBAY_BENCH_GO").expect("FOREBAY_BENCH_GO")),
            _ => Command::new(std::env::current_exe().expect("this program")),
        };
        command.arg("child").args([name, kafka.brokers(), &topic]).arg(&dir).arg(&page_path);
        command.arg(rate().to_string()).arg(window_ms.to_string());
        command.args(seconds.map(|s| s.to_string()));
        let mut running = Running::start(command).expect("the child starts");
        let start = Instant::now();
        while !page.has_begun() {
            if running.has_ended() || start.elapsed() > Duration::from_secs(60) {
                panic!("{name} doesn't begin: {:?}", running.wait(Duration::from_secs(1)));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Sending { running, page, topic, dir, _home: home }
    }
}

fn number(of: &Value, name: &str) -> f64 {
    of[name].as_f64().unwrap_or(f64::NAN)
}

fn count(of: &Value, name: &str) -> Cell {
    Cell::Count(of[name].as_u64().unwrap_or(0))
}

fn blackout(names: &[&str]) {
    let mut kafka = broker();
    let stop_s = env("FOREBAY_BENCH_STOP_S").unwrap_or(20);
    let mut found = Vec::new();
    for name in names {
        let sending = Sending::start(&kafka, name, 0, [HEALTHY_S, stop_s, HEALTHY_S]);
        std::thread::sleep(Duration::from_secs(HEALTHY_S));
        kafka.pause();
        std::thread::sleep(Duration::from_secs(stop_s));
        kafka.resume();
        let ended = sending.running.wait(LIMIT * 2);
        assert_eq!(ended.code(), Some(0), "{name}: {ended:?}");
        let lines: Vec<Value> =
            ended.stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        assert_eq!(lines.len(), PHASES.len() + 1, "{name}: {ended:?}");
        let verdict = judge(&kafka, &sending.topic, &sending.page.accepted());
        eprintln!("{name}: done");
        found.push((*name, lines, verdict));
    }
    let what = format!(
        "{} records a second of {} B from {THREADS} threads: {HEALTHY_S} s healthy, {stop_s} s with \
         the broker stopped, {HEALTHY_S} s more; a send in ns, waits against the schedule in ms",
        people(rate()),
        child::VALUE_BYTES
    );
    let columns = [
        "client",
        "phase",
        "sends",
        "refused",
        "p50",
        "p99",
        "p99.9",
        "max",
        "worst wait",
        "cores",
    ];
    let table = Table::new("outage", "phases", &what, &columns);
    for (name, lines, _) in &found {
        for line in &lines[..PHASES.len()] {
            table.row([
                (*name).into(),
                line["phase"].as_str().unwrap_or("").into(),
                count(line, "sends"),
                count(line, "refused"),
                Cell::Number(number(line, "p50"), 0),
                Cell::Number(number(line, "p99"), 0),
                Cell::Number(number(line, "p99.9"), 0),
                Cell::Number(number(line, "max"), 0),
                Cell::Number(number(line, "worst_wait_ms"), 1),
                Cell::Number(number(line, "cores"), 2),
            ]);
        }
    }
    let columns = [
        "client",
        "accepted",
        "refused",
        "lost",
        "duplicates",
        "disorder",
        "memory MiB",
        "CPU s",
        "drained ms",
        "remarks",
    ];
    let table = Table::new("outage", "blackout", "The whole run", &columns);
    for (name, lines, verdict) in &found {
        let all = &lines[PHASES.len()];
        let accepted = all["accepted"].as_array().into_iter().flatten().filter_map(Value::as_u64);
        table.row([
            (*name).into(),
            accepted.sum::<u64>().into(),
            count(all, "refused"),
            verdict.lost.into(),
            verdict.duplicates.into(),
            verdict.disorder.into(),
            Cell::Number(number(all, "memory_mib"), 0),
            Cell::Number(number(all, "cpu_s"), 1),
            Cell::Number(number(all, "drained_ms"), 0),
            all["remarks"].as_str().unwrap_or("").into(),
        ]);
    }
}

/// What a killed process leaves, and for Forebay what the next one finds.
fn kill(kafka: &mut Kafka, table: &Table, name: &str, window_ms: u64, in_a_stop: bool) {
    let sending = Sending::start(kafka, name, window_ms, [3600; 3]);
    std::thread::sleep(Duration::from_secs(HEALTHY_S));
    let sum = |page: &Page| page.accepted().iter().sum::<u64>();
    let mut before = sum(&sending.page);
    if in_a_stop {
        kafka.pause();
        before = sum(&sending.page);
        std::thread::sleep(KILL_AFTER);
    }
    sending.running.kill();
    let Sending { running, page, topic, dir, _home } = sending;
    let ended = running.wait(Duration::from_secs(30));
    assert!(ended.code().is_none(), "{name} ended by itself: {ended:?}");
    let total = sum(&page);
    if in_a_stop {
        kafka.resume();
    }
    let mut recovered = (Cell::None, Cell::None);
    if name == FOREBAY {
        let target = Target {
            dir: Some(&dir),
            window: (window_ms > 0).then(|| Duration::from_millis(window_ms)),
            ..Target::new(kafka.brokers(), &topic, Settings::SLOW_BATCHES)
        };
        let next = Forebay::open(&target, FOREBAY);
        next.flush(LIMIT);
        let stats = next.pipeline.stats();
        recovered = (stats.books.recovered.into(), stats.lost_at_most.into());
    }
    let v = judge(kafka, &topic, &page.accepted());
    let due = if in_a_stop { KILL_AFTER.as_secs() * rate() } else { 0 };
    table.row([
        match name {
            FOREBAY => Cell::Text(format!("{name}, loss window {window_ms} ms")),
            _ => name.into(),
        },
        total.into(),
        (total - before).into(),
        Cell::Number(due.saturating_sub(total - before) as f64, 0),
        v.lost.into(),
        Cell::Number(v.lost as f64 * 1e3 / rate() as f64, 0),
        recovered.0,
        recovered.1,
        v.duplicates.into(),
        v.disorder.into(),
    ]);
}

fn kills(names: &[&str], in_a_stop: bool) {
    let mut kafka = broker();
    let columns = [
        "client",
        "accepted",
        "of them in the stop",
        "due in the stop and not accepted",
        "accepted and gone",
        "ms at the rate",
        "the next run found",
        "it said lost at most",
        "duplicates",
        "disorder",
    ];
    let what = match in_a_stop {
        true => format!("SIGKILL {KILL_AFTER:?} into a stop, {} records a second", people(rate())),
        false => {
            format!("SIGKILL after {HEALTHY_S} s, all healthy, {} records a second", people(rate()))
        }
    };
    let table_name = if in_a_stop { "kill" } else { "kill-healthy" };
    let table = Table::new("outage", table_name, &what, &columns);
    for name in names {
        let windows: &[u64] = if *name == FOREBAY { &[100, 250, 1000] } else { &[0] };
        for window_ms in windows {
            kill(&mut kafka, &table, name, *window_ms, in_a_stop);
        }
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|w| w == "child") {
        return child::run(&args[1..]);
    }
    let words = words();
    let has = |word: &str| words.iter().any(|w| w == word);
    let has_go = std::env::var_os("FOREBAY_BENCH_GO").is_some();
    let chosen = CLIENTS.iter().any(|(word, _)| has(word));
    let names: Vec<&str> = CLIENTS
        .iter()
        .filter(|(word, name)| if chosen { has(word) } else { has_go || *name != GO })
        .map(|(_, name)| *name)
        .collect();
    if !has_go && !chosen {
        note("Without FOREBAY_BENCH_GO the Go program isn't among the clients.");
    }
    let parts = ["million", "blackout", "kill", "kill-healthy"];
    let any = parts.iter().any(|part| has(part));
    let wants = |word: &str| has(word) || (!any && word != "kill-healthy");
    if wants("million") {
        million::run();
    }
    if wants("blackout") {
        blackout(&names);
    }
    if wants("kill") {
        kills(&names, true);
    }
    if wants("kill-healthy") {
        kills(&names, false);
    }
}
