//! Without a log: in an outage the lanes fill, then `send` refuses, typed and counted. What is
//! in memory when the pipeline closes during the outage is dropped, and counted too.
//!
//! Runs over the sink in memory, whose handle plays the outage.
#![allow(clippy::print_stdout)]

use forebay::{MemorySink, Pipeline, SendError, Stats, Topic};
use std::error::Error;
use std::time::Duration;

fn main() -> Result<(), Box<dyn Error>> {
    let sink = MemorySink::new();
    let broker = sink.handle();
    // Small lanes, so that the outage is felt soon. Their memory is all that an outage takes.
    let pipeline = Pipeline::builder()
        .at_most_once()
        .lanes(1)
        .lane_bytes(1 << 20)
        .lane_slots(4_096)
        .record_bytes_max(1_000)
        .sink(sink)
        .open()?;
    let metrics = pipeline.topic("metrics")?;

    broker.refuse();
    let (taken, refused) = burst(&metrics, 10_000)?;
    println!("an outage: {taken} taken, {refused} refused");

    broker.resume();
    // The only send that may wait: for room, and no longer than it is told.
    metrics.send_timeout(b"cpu 0.2", Duration::from_secs(5))?;
    pipeline.flush(Duration::from_secs(5))?;
    println!("after it: {} delivered", pipeline.stats().books.delivered);

    broker.refuse();
    let (taken, refused) = burst(&metrics, 100)?;
    println!("another outage: {taken} taken, {refused} refused; and the program ends in it");
    let report = pipeline.close(Duration::from_millis(100))?;
    print_books(&report.stats);
    println!("complete: {}", report.complete);
    Ok(())
}

/// Sends `count` records; how many were taken, and how many refused for want of room.
fn burst(topic: &Topic, count: u32) -> Result<(u32, u32), SendError> {
    let (mut taken, mut refused) = (0, 0);
    for n in 0..count {
        match topic.send(format!("cpu 0.{n}").as_bytes()) {
            Ok(()) => taken += 1,
            // The caller still has its data: it may try later, or let it go.
            Err(SendError::Full) => refused += 1,
            Err(other) => return Err(other),
        }
    }
    Ok((taken, refused))
}

fn print_books(stats: &Stats) {
    let books = stats.books;
    println!(
        "{} accepted: {} delivered, {} dropped; {} refused; balanced: {}",
        books.accepted,
        books.delivered,
        books.dropped,
        books.refused,
        books.balanced()
    );
    for topic in &stats.topics {
        for (reason, count) in &topic.dropped {
            println!("  {}: {count} dropped, because {reason}", topic.name);
        }
    }
}
