//! What happens to records, callers, CPU and memory while a real Kafka stands still or the
//! process is killed. Run by hand: it starts a broker of its own and takes minutes.
//!
//! `cargo bench --bench outage -- million blackout base kill`, or some of these words; without
//! any, all but `base`:
//! - `million`: 1,000,000 records of 100 B from two threads, as fast as they are taken.
//! - `blackout`: 5 s healthy, 20 s with the broker stopped (SIGSTOP), 5 s more; 50,000 records a
//!   second from two threads, open loop in ticks of 1 ms, each send timed.
//! - `base`: the same schedule with rust-rdkafka's `BaseProducer` at 500 ms / 20,000 messages.
//! - `kill`: a child process at 50,000 a second is killed (SIGKILL) 4 s into such a stop, with
//!   loss windows of 100 ms, 250 ms and 1 s; then a new run opens its directory.
//!
//! What arrived is counted by Apache Kafka's own Java client. `FOREBAY_BENCH_STOP_S` (20) is the
//! length of the stop, `FOREBAY_BENCH_RATE` the rate, `FOREBAY_BENCH_DIR` where logs are made.

#![allow(missing_docs, clippy::print_stdout)]

mod common;

use common::base::{Base, Settings};
use common::{cpu_time, env, histogram, log_dir, memory_peak_mib, reset_memory_peak, tick, words};
use forebay::{Pipeline, SendError, Topic};
use forebay_testkit::audit::{Audit, ID_BYTES, Id, Stream};
use forebay_testkit::process::Running;
use forebay_testkit::{Consumed, Kafka, KafkaOptions};
use hdrhistogram::Histogram;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

const THREADS: u64 = 2;
const VALUE_BYTES: usize = 100;
const PARTITIONS: u32 = 3;
const HEALTHY: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(120);

/// Writes the id's text over the front of a value, without allocating.
fn stamp(value: &mut [u8], id: Id) {
    let mut left = id.number;
    for at in (4..ID_BYTES - 1).rev() {
        value[at] = b'0' + (left % 10) as u8;
        left /= 10;
    }
}

fn new_value(source: u32) -> Vec<u8> {
    let mut value = Id { source, number: 0 }.text().into_bytes();
    value.resize(VALUE_BYTES, b'v');
    value
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

/// What is in the topic, against what was accepted: each source's first so many numbers.
struct Verdict {
    missing: u64,
    duplicates: u64,
    disorder: usize,
}

/// Numbers are drawn for accepted records only, so what is missing is what is lost.
fn judge(kafka: &Kafka, topic: &str, accepted: &[u64]) -> Verdict {
    let records = kafka.oracle().read(topic).expect("the topic can be read");
    let in_partition = |r: &Consumed| Stream::Partition(r.partition);
    let audit = Audit::new(&records, in_partition);
    assert_eq!(audit.strangers, 0);
    Verdict {
        missing: audit.missing(accepted).len() as u64,
        duplicates: audit.duplicates,
        disorder: audit.disorder.len(),
    }
}

/// A broker that has taken its first record, which costs it a second and more.
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

fn open(brokers: &str, dir: &Path, topic: &str, window: Option<Duration>) -> (Pipeline, Topic) {
    let mut builder = Pipeline::builder().brokers(brokers).wal_dir(dir);
    if let Some(window) = window {
        builder = builder.loss_window(window);
    }
    let pipeline = builder.open().expect("it opens");
    let topic = pipeline.topic(topic).expect("a good name");
    pipeline.ready(Duration::from_secs(30)).expect("the broker is there");
    (pipeline, topic)
}

fn million() {
    let kafka = broker();
    let topic_name = kafka.topic("million", PARTITIONS);
    let (_home, dir) = log_dir();
    let (pipeline, topic) = open(kafka.brokers(), &dir, &topic_name, None);
    let each = 500_000;
    let (start, cpu) = (Instant::now(), cpu_time());
    let refused: u64 = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..THREADS as u32)
            .map(|source| {
                let topic = &topic;
                scope.spawn(move || {
                    let mut value = new_value(source);
                    let mut refused = 0;
                    for number in 0..each {
                        stamp(&mut value, Id { source, number });
                        while let Err(e) = topic.send(&value) {
                            assert_eq!(e, SendError::Full);
                            refused += 1;
                            std::thread::sleep(Duration::from_micros(500));
                        }
                    }
                    refused
                })
            })
            .collect();
        senders.into_iter().map(|s| s.join().expect("a sender")).sum()
    });
    let sent = start.elapsed();
    pipeline.flush(LIMIT).expect("all is final");
    let (took, cpu) = (start.elapsed(), cpu_time() - cpu);
    let peak = memory_peak_mib();
    let report = pipeline.close(LIMIT).expect("it closes");
    let books = report.stats.books;
    assert!(books.balanced() && report.complete, "{books:?}");
    let v = judge(&kafka, &topic_name, &[each; THREADS as usize]);
    println!("\n1,000,000 records of {VALUE_BYTES} B from {THREADS} threads to a real Kafka");
    println!(
        "sent in {:.0} ms, delivered in {:.0} ms: {:.0} a second; CPU {:.2} µs a record; refused \
         and sent again {refused}; journaled {}; memory peak {peak} MiB",
        ms(sent),
        ms(took),
        1e6 / took.as_secs_f64(),
        cpu.as_secs_f64(),
        books.spilled
    );
    println!(
        "accepted {}, delivered {}, in Kafka: lost {}, duplicates {}, disorder {}",
        books.accepted, books.delivered, v.missing, v.duplicates, v.disorder
    );
}

/// Who takes the records in a blackout.
enum Client {
    Forebay(Pipeline, Topic),
    Base(Base),
}

impl Client {
    #[inline]
    fn send(&self, value: &[u8]) -> bool {
        match self {
            Client::Forebay(_, topic) => topic.send(value).is_ok(),
            Client::Base(base) => base.send(value),
        }
    }
}

/// What one phase of the schedule was like for the callers.
#[derive(Clone)]
struct Phase {
    service: Histogram<u64>,
    worst_wait_ns: u64,
    refused: u64,
}

impl Phase {
    fn new() -> Self {
        Phase { service: histogram(), worst_wait_ns: 0, refused: 0 }
    }

    fn add(&mut self, other: &Phase) {
        self.service += &other.service;
        self.worst_wait_ns = self.worst_wait_ns.max(other.worst_wait_ns);
        self.refused += other.refused;
    }

    fn print(&self, name: &str, cores: f64) {
        let s = &self.service;
        println!(
            "{name:<9} {:>9} {:>9} | {:>6} {:>7} {:>8} {:>10} | {:>11.1} | {cores:>5.2}",
            s.len(),
            self.refused,
            s.value_at_quantile(0.5),
            s.value_at_quantile(0.99),
            s.value_at_quantile(0.999),
            s.max(),
            self.worst_wait_ns as f64 / 1e6,
        );
    }
}

struct Sent {
    accepted: u64,
    phases: [Phase; 3],
}

/// One thread's part of the schedule; a refused record is gone, and its number used again.
fn follow(client: &Client, source: u32, start: Instant, per_s: u64, ends_ns: [u64; 3]) -> Sent {
    let mut sent = Sent { accepted: 0, phases: [Phase::new(), Phase::new(), Phase::new()] };
    let mut value = new_value(source);
    let count = per_s * ends_ns[2] / 1_000_000_000;
    let now_ns = || start.elapsed().as_nanos() as u64;
    let mut polled_ns = 0;
    tick(start, per_s, count, |_, due_ns| {
        stamp(&mut value, Id { source, number: sent.accepted });
        let before = now_ns();
        let accepted = client.send(&value);
        let after = now_ns();
        let at = ends_ns.iter().position(|end| due_ns < *end).unwrap_or(2);
        let phase = &mut sent.phases[at];
        phase.service.saturating_record((after - before).max(1));
        phase.worst_wait_ns = phase.worst_wait_ns.max(after.saturating_sub(due_ns));
        phase.refused += u64::from(!accepted);
        sent.accepted += u64::from(accepted);
        if after - polled_ns > 1_000_000 {
            polled_ns = after;
            if let Client::Base(base) = client {
                base.poll(Duration::ZERO);
            }
        }
    });
    sent
}

fn blackout(with_base: bool) {
    let mut kafka = broker();
    let topic = kafka.topic("blackout", PARTITIONS);
    let (_home, dir) = log_dir();
    let client = if with_base {
        Client::Base(Base::new(kafka.brokers(), &topic, Settings::SLOW_BATCHES))
    } else {
        let (pipeline, topic) = open(kafka.brokers(), &dir, &topic, None);
        Client::Forebay(pipeline, topic)
    };
    let rate = env("FOREBAY_BENCH_RATE").unwrap_or(50_000);
    let stop = Duration::from_secs(env("FOREBAY_BENCH_STOP_S").unwrap_or(20));
    let ends = [HEALTHY, HEALTHY + stop, HEALTHY + stop + HEALTHY];
    let ends_ns = ends.map(|d| d.as_nanos() as u64);
    reset_memory_peak();
    let (start, cpu_before) = (Instant::now(), cpu_time());
    let mut cpus = [cpu_before; 4];
    let mut worst_unsafe_ms = 0;
    let (client, kafka_in) = (Arc::new(client), &mut kafka);
    let sent: Vec<Sent> = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..THREADS as u32)
            .map(|source| {
                let client = client.clone();
                scope.spawn(move || follow(&client, source, start, rate / THREADS, ends_ns))
            })
            .collect();
        for (at, end) in ends.iter().enumerate() {
            while start.elapsed() < *end {
                std::thread::sleep(Duration::from_millis(50).min(*end - start.elapsed().min(*end)));
                if let Client::Forebay(pipeline, _) = &*client {
                    worst_unsafe_ms = worst_unsafe_ms.max(pipeline.stats().oldest_unsafe_ms);
                }
            }
            cpus[at + 1] = cpu_time();
            match at {
                0 => kafka_in.pause(),
                1 => kafka_in.resume(),
                _ => {}
            }
        }
        senders.into_iter().map(|s| s.join().expect("a sender")).collect()
    });
    let drain = Instant::now();
    match &*client {
        Client::Forebay(pipeline, _) => pipeline.flush(LIMIT).expect("all is final"),
        Client::Base(base) => base.flush(LIMIT),
    }
    let (drained, cpu_total, peak) = (drain.elapsed(), cpu_time() - cpu_before, memory_peak_mib());
    let accepted: Vec<u64> = sent.iter().map(|s| s.accepted).collect();
    let v = judge(&kafka, &topic, &accepted);
    let who = if with_base { "BaseProducer, 500 ms / 20,000" } else { "forebay, as it comes" };
    println!(
        "\n{who}: {rate}/s from {THREADS} threads, {:?} healthy, {stop:?} stopped, {:?} more; send \
         in ns, wait against the schedule in ms, CPU in cores",
        HEALTHY, HEALTHY
    );
    println!(
        "{:<9} {:>9} {:>9} | {:>6} {:>7} {:>8} {:>10} | {:>11} | {:>5}",
        "phase", "sends", "refused", "p50", "p99", "p99.9", "max", "worst wait", "CPU"
    );
    let names = ["healthy", "stopped", "after"];
    for (at, name) in names.iter().enumerate() {
        let mut sum = Phase::new();
        sent.iter().for_each(|s| sum.add(&s.phases[at]));
        let spent = (cpus[at + 1] - cpus[at]).as_secs_f64();
        let lasted = ends[at] - if at == 0 { Duration::ZERO } else { ends[at - 1] };
        sum.print(name, spent / lasted.as_secs_f64());
    }
    let refused: u64 = sent.iter().flat_map(|s| &s.phases).map(|p| p.refused).sum();
    println!(
        "accepted {}, refused {refused}; in Kafka: lost {}, duplicates {}, disorder {}; memory \
         peak {peak} MiB; CPU {:.1} s in all; drained {:.0} ms after the last send",
        accepted.iter().sum::<u64>(),
        v.missing,
        v.duplicates,
        v.disorder,
        cpu_total.as_secs_f64(),
        ms(drained)
    );
    match &*client {
        Client::Forebay(pipeline, _) => {
            let report = pipeline.close(LIMIT).expect("it closes");
            let b = report.stats.books;
            println!(
                "journaled {}, replayed {}, oldest unsafe {worst_unsafe_ms} ms, exposed {} times, \
                 rebuilds {}, balanced {}",
                b.spilled,
                b.replayed,
                report.stats.exposed_count,
                report.stats.rebuilds,
                b.balanced()
            );
        }
        Client::Base(base) => println!("reported failed {}", base.failed()),
    }
}

/// Counters in a file's page: what a child has written there survives its SIGKILL.
struct Page(memmap2::MmapRaw);

impl Page {
    const BYTES: u64 = 4096;

    fn open(path: &Path) -> Page {
        let mut options = std::fs::File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path).expect("the page's file");
        file.set_len(Page::BYTES).expect("the page's length");
        Page(memmap2::MmapRaw::map_raw(&file).expect("the page is mapped"))
    }

    fn counter(&self, source: usize) -> &AtomicU64 {
        assert!(source < 8);
        // SAFETY: the mapping is a whole page, so it is aligned and holds 64 words a cache line
        // apart; it lives as long as `self`, and everybody uses these words as atomics.
        unsafe { AtomicU64::from_ptr(self.0.as_mut_ptr().cast::<u64>().add(source * 8)) }
    }
}

/// The child: sends until it is killed, and counts what was accepted after each send.
fn child(words: &[String]) {
    let [brokers, topic, dir, page, window_ms, rate] = words else { panic!("{words:?}") };
    let number = |text: &String| -> u64 { text.parse().expect("a number") };
    let window = Duration::from_millis(number(window_ms));
    let (_pipeline, topic) = open(brokers, Path::new(dir), topic, Some(window));
    let page = Page::open(Path::new(page));
    let ready = Barrier::new(THREADS as usize);
    let per_s = number(rate) / THREADS;
    std::thread::scope(|scope| {
        for source in 0..THREADS as u32 {
            let (topic, page, ready) = (&topic, &page, &ready);
            scope.spawn(move || {
                let mut value = new_value(source);
                let mut accepted = 0;
                ready.wait();
                tick(Instant::now(), per_s, per_s * 3600, |_, _| {
                    stamp(&mut value, Id { source, number: accepted });
                    if topic.send(&value).is_ok() {
                        accepted += 1;
                        page.counter(source as usize).store(accepted, Ordering::Release);
                    }
                });
            });
        }
    });
}

fn kill(window: Duration) {
    let mut kafka = broker();
    let topic = kafka.topic("kill", PARTITIONS);
    let (home, dir) = log_dir();
    let page_path = home.path().join("page");
    let page = Page::open(&page_path);
    let rate = env("FOREBAY_BENCH_RATE").unwrap_or(50_000);
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.arg("child").args([kafka.brokers(), &topic]).arg(&dir).arg(&page_path);
    command.arg(window.as_millis().to_string()).arg(rate.to_string());
    let running = Running::start(command).expect("the child starts");
    let accepted = || -> Vec<u64> {
        (0..THREADS as usize).map(|s| page.counter(s).load(Ordering::Acquire)).collect()
    };
    let start = Instant::now();
    while accepted().contains(&0) {
        assert!(start.elapsed() < Duration::from_secs(60), "the child sends nothing");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(HEALTHY);
    kafka.pause();
    let before: u64 = accepted().iter().sum();
    std::thread::sleep(Duration::from_secs(4));
    running.kill();
    let ended = running.wait(Duration::from_secs(30));
    assert!(ended.code().is_none(), "the child ended by itself: {ended:?}");
    let accepted = accepted();
    let total: u64 = accepted.iter().sum();
    kafka.resume();
    let (pipeline, _topic) = open(kafka.brokers(), &dir, &topic, Some(window));
    pipeline.flush(LIMIT).expect("all is final");
    let report = pipeline.close(LIMIT).expect("it closes");
    let stats = &report.stats;
    let v = judge(&kafka, &topic, &accepted);
    println!(
        "loss window {:>4} ms: accepted {total}, of them {} in the stop; gone {} ({:.0} ms at the \
         rate); the next run found {} and said at most {} lost; duplicates {}, disorder {}",
        window.as_millis(),
        total - before,
        v.missing,
        v.missing as f64 * 1e3 / rate as f64,
        stats.books.recovered,
        stats.lost_at_most,
        v.duplicates,
        v.disorder
    );
}

fn main() {
    let words = words();
    if words.first().is_some_and(|w| w == "child") {
        return child(&words[1..]);
    }
    let wants =
        |word: &str| words.iter().any(|w| w == word) || (words.is_empty() && word != "base");
    if wants("million") {
        million();
    }
    if wants("blackout") {
        blackout(false);
    }
    if wants("base") {
        blackout(true);
    }
    if wants("kill") {
        println!("\nkilled (SIGKILL) 4 s into a stop, {THREADS} threads");
        for ms in [100, 250, 1000] {
            kill(Duration::from_millis(ms));
        }
    }
}
