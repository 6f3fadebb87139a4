//! The whole way of a record, in the fewest lines.
//!
//! Without Kafka it runs over the sink in memory; with `FOREBAY_BROKERS=host:port` it sends to
//! the topic `forebay-minimal` of a real cluster, which must have that topic.
#![allow(clippy::print_stdout)]

use forebay::{MemorySink, Pipeline};
use std::error::Error;
use std::time::Duration;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::temp_dir().join(format!("forebay-minimal-{}", std::process::id()));
    let builder = Pipeline::builder().wal_dir(&dir);
    let builder = match std::env::var("FOREBAY_BROKERS") {
        Ok(brokers) => builder.brokers(brokers),
        Err(_) => builder.sink(MemorySink::new()),
    };
    // Doesn't wait for Kafka: brokers that can't be reached are a state, not an error.
    let pipeline = builder.open()?;
    let clicks = pipeline.topic("forebay-minimal")?;

    for n in 0..1_000u32 {
        // Takes the record or refuses it, at once; the bytes are copied.
        clicks.send(format!("click {n}").as_bytes())?;
    }
    clicks.record(b"signed up").key(b"user-7").header("v", b"1").send()?;
    clicks.tombstone(b"user-6")?;

    let report = pipeline.close(Duration::from_secs(5))?;
    let books = report.stats.books;
    println!(
        "{} accepted: {} delivered, {} in the log, {} set aside, {} dropped; balanced: {}",
        books.accepted,
        books.delivered,
        books.in_wal,
        books.set_aside,
        books.dropped,
        books.balanced()
    );
    if books.in_wal == 0 {
        std::fs::remove_dir_all(&dir)?;
    } else {
        println!("the next run on {} delivers the rest", dir.display());
    }
    Ok(())
}
