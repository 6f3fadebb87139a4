//! Measurements on the mock cluster, run by hand:
//! `cargo test --release --lib kafka::tests::measure -- --ignored --nocapture --test-threads 1`.
//! They print and assert nothing about time.

use super::*;
use crate::record::{RecordView, Shape};
use std::sync::Arc;

/// CPU time so far, in ms, of the threads whose name starts with `prefix` ("" for all).
fn cpu_ms(prefix: &str) -> u64 {
    let mut ticks = 0u64;
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else { continue };
        let (Some(open), Some(close)) = (stat.find('('), stat.rfind(')')) else { continue };
        if stat[open + 1..close].starts_with(prefix) {
            let fields: Vec<&str> = stat[close + 2..].split(' ').collect();
            ticks += fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        }
    }
    ticks * 10
}

struct Load<'a> {
    topic: &'a str,
    partitions: i32,
    bytes: usize,
}

/// Hands `count` records over as fast as the sink takes them, partitions in turn; returns
/// seconds until all are reported and ns per produce call.
fn push(d: &mut Driver, load: &Load<'_>, count: u64) -> (f64, f64) {
    let body = vec![b'x'; load.bytes];
    let topic = d.names.intern(load.topic);
    let shape = Shape { headers_len: 0, key_len: None, value_len: Some(load.bytes as u32) };
    let mut view = RecordView { topic, partition: 0, timestamp_ms: 1, shape, body: &body };
    d.reports.clear();
    let began = Instant::now();
    let (mut sent, mut reported, mut in_produce) = (0, 0, Duration::ZERO);
    while reported < count {
        let (from, first) = (Instant::now(), sent);
        while sent < count {
            view.partition = (sent % load.partitions as u64) as i32;
            if d.sink.produce(load.topic, &view, Opaque(sent)).is_err() {
                break;
            }
            sent += 1;
        }
        if sent > first {
            in_produce += from.elapsed();
        }
        d.wait();
        reported += d.reports.len() as u64;
        d.reports.clear();
    }
    (began.elapsed().as_secs_f64(), in_produce.as_nanos() as f64 / count as f64)
}

fn driver(linger_ms: u32, ahead: u32, silent_ms: u64, partitions: i32) -> (EmbeddedBroker, Driver) {
    let broker = cluster("t", partitions);
    let mut options = KafkaOptions::new(broker.brokers());
    options.linger_ms = linger_ms;
    options.requests_ahead = ahead;
    options.silent_ms = silent_ms;
    let mut d = Driver::new(options);
    let warm = Load { topic: "t", partitions, bytes: 100 };
    d.send("t", &Rec::new("first").to(0)).unwrap();
    d.until("first", |d| d.reports.len() == 1);
    push(&mut d, &warm, 20_000);
    (broker, d)
}

#[test]
#[ignore = "a measurement"]
fn throughput() {
    println!(
        "bytes parts linger ahead | k/s   ns/produce  CPU us/record (whole process, mock too)"
    );
    for (bytes, count) in [(100, 600_000u64), (1_000, 150_000)] {
        for partitions in [1, 3] {
            for linger in [0, 5, 20] {
                for ahead in [1, 2, 4] {
                    let (_broker, mut d) = driver(linger, ahead, 100, partitions);
                    let cpu = cpu_ms("");
                    let load = Load { topic: "t", partitions, bytes };
                    let (s, ns) = push(&mut d, &load, count);
                    let cpu = (cpu_ms("") - cpu) as f64 * 1e3 / count as f64;
                    let rate = count as f64 / s / 1e3;
                    println!(
                        "{bytes:5} {partitions:5} {linger:6} {ahead:5} | {rate:6.0} {ns:8.0} {cpu:10.2}"
                    );
                }
            }
        }
    }
}

/// 50,000 records/s in flushes of 50 ms for `time`; returns CPU ms by thread kind, and taken.
fn paced(d: &mut Driver, time: Duration, partitions: i32) -> (u64, u64, u64) {
    let body = [b'x'; 100];
    let topic = d.names.intern("t");
    let shape = Shape { headers_len: 0, key_len: None, value_len: Some(100) };
    let mut view = RecordView { topic, partition: 0, timestamp_ms: 1, shape, body: &body };
    let began = Instant::now();
    let (all, brokers) = (cpu_ms(""), cpu_ms("rdk:broker"));
    let (mut sent, mut due_flushes) = (0u64, 0u64);
    while began.elapsed() < time {
        if began.elapsed().as_millis() as u64 / 50 >= due_flushes {
            due_flushes += 1;
            for _ in 0..2_500 {
                view.partition = (sent % partitions as u64) as i32;
                if d.sink.produce("t", &view, Opaque(sent)).is_err() {
                    break;
                }
                sent += 1;
            }
        }
        d.wait();
        d.reports.clear();
    }
    (cpu_ms("") - all, cpu_ms("rdk:broker") - brokers, sent)
}

#[test]
#[ignore = "a measurement"]
fn cpu_healthy_and_frozen() {
    let time = Duration::from_secs(4);
    println!(
        "per second of wall time: CPU ms of the process, of rdk:broker threads; records taken"
    );
    for linger in [0, 5, 20] {
        for (name, silent_ms) in [("cure", 100), ("none", 0)] {
            let (broker, mut d) = driver(linger, 1, silent_ms, 3);
            for (phase, rtt_ms) in [("healthy rtt 0", 0), ("healthy rtt 5", 5), ("frozen", 60_000)]
            {
                broker.round_trip_time(Duration::from_millis(rtt_ms)).unwrap();
                d.look_for(Duration::from_millis(300));
                let (all, brokers, sent) = paced(&mut d, time, 3);
                let s = time.as_secs();
                println!(
                    "linger {linger:2} {name} {phase:14}: {:4} {:4} {:6}",
                    all / s,
                    brokers / s,
                    sent / s
                );
            }
        }
    }
}

#[test]
#[ignore = "a measurement"]
fn cost_of_pause_and_resume() {
    let (_broker, mut d) = driver(5, 2, 100, 3);
    let list: Vec<_> = (0..3).map(|p| (Arc::<std::ffi::CStr>::from(c"t"), p)).collect();
    for count in [1, 3] {
        let mut ns = Vec::new();
        for i in 0..2_000 {
            let began = Instant::now();
            d.sink.pause_for_test(&list[..count], i % 2 == 0);
            ns.push(began.elapsed().as_nanos() as u64);
        }
        ns.sort_unstable();
        println!("{count} partitions: p50 {} p99 {} max {} ns", ns[1000], ns[1980], ns[1999]);
    }
    d.look();
}
