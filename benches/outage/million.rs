//! Owns the row of a million records, as fast as they are taken.

use crate::child::{LIMIT, THREADS, VALUE_BYTES, new_value, stamp};
use crate::common::clients::{Client, FOREBAY, Forebay, Target};
use crate::common::librdkafka::Settings;
use crate::common::table::{Cell, Table};
use crate::common::{cpu_time, memory_peak_mib};
use crate::{PARTITIONS, broker, judge};
use forebay_testkit::audit::Id;
use std::time::{Duration, Instant};

const EACH: u64 = 500_000;

pub fn run() {
    let kafka = broker();
    let topic = kafka.topic("million", PARTITIONS);
    let target = Target::new(kafka.brokers(), &topic, Settings::LIKE_FOREBAY);
    let client = Forebay::open(&target, FOREBAY);
    let (start, cpu) = (Instant::now(), cpu_time());
    let refused: u64 = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..THREADS as u32)
            .map(|source| {
                let client = &client;
                scope.spawn(move || {
                    let mut value = new_value(source);
                    let mut refused = 0;
                    for number in 0..EACH {
                        stamp(&mut value, Id { source, number });
                        while !client.send(&value) {
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
    client.flush(LIMIT);
    let (took, cpu) = (start.elapsed(), cpu_time() - cpu);
    let peak = memory_peak_mib();
    let books = client.pipeline.stats().books;
    assert!(books.balanced() && books.delivered == EACH * THREADS, "{books:?}");
    let v = judge(&kafka, &topic, &[EACH; THREADS as usize]);
    let what = format!(
        "1,000,000 records of {VALUE_BYTES} B from {THREADS} threads to a real Kafka, as fast as \
         they are taken; what is refused is sent again"
    );
    let columns = [
        "client",
        "sent in ms",
        "delivered in ms",
        "thousands a second",
        "CPU µs a record",
        "refusals",
        "journaled",
        "memory MiB",
        "lost",
        "duplicates",
        "disorder",
    ];
    let records = (EACH * THREADS) as f64;
    Table::new("outage", "million", &what, &columns).row([
        "forebay".into(),
        Cell::Number(sent.as_secs_f64() * 1e3, 0),
        Cell::Number(took.as_secs_f64() * 1e3, 0),
        Cell::Number(records / took.as_secs_f64() / 1e3, 0),
        Cell::Number(cpu.as_secs_f64() * 1e6 / records, 2),
        refused.into(),
        books.spilled.into(),
        peak.into(),
        v.lost.into(),
        v.duplicates.into(),
        v.disorder.into(),
    ]);
}
