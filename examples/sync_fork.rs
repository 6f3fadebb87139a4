//! The fork between "send and go on" and "wait until Kafka has it": most records take the first
//! branch, the few that must not be answered for before they are safe take the second.
//!
//! Runs over the sink in memory, whose handle plays a broker that stands still for a moment.
#![allow(clippy::print_stdout)]

use forebay::{Level, MemorySink, Pipeline, Receipt, ReceiptError};
use std::error::Error;
use std::time::Duration;

fn main() -> Result<(), Box<dyn Error>> {
    let sink = MemorySink::new();
    let broker = sink.handle();
    let pipeline = Pipeline::builder().at_most_once().sink(sink).open()?;
    let votes = pipeline.topic("votes")?;

    // The first branch: nobody waits.
    for _ in 0..1_000 {
        votes.send(b"seen")?;
    }

    // The second: the record is sent the same way, and a receipt comes back. Waiting for it has
    // the flusher send at once instead of at its next interval.
    let receipt = votes.record(b"yes").key(b"user-7").send_tracked()?;
    receipt.wait(Level::Delivered, Duration::from_secs(10))?;
    println!("delivered before the answer went out");

    // A wait that ends too early is no failure: the record is on its way, and sending it again
    // would make two of it.
    broker.hold_reports();
    let receipt = votes.record(b"no").key(b"user-8").send_tracked()?;
    let early = receipt.wait(Level::Delivered, Duration::from_millis(50));
    assert_eq!(early, Err(ReceiptError::StillPending));
    println!("Kafka stands still: {}", ReceiptError::StillPending);
    broker.resume();
    answer(&receipt)?;

    let books = pipeline.close(Duration::from_secs(5))?.stats.books;
    println!(
        "{} accepted: {} delivered, {} dropped; balanced: {}",
        books.accepted,
        books.delivered,
        books.dropped,
        books.balanced()
    );
    Ok(())
}

/// What a handler says, by how its record ended.
fn answer(receipt: &Receipt) -> Result<(), ReceiptError> {
    match receipt.wait(Level::Delivered, Duration::from_secs(10)) {
        Ok(()) => println!("200: counted"),
        Err(ReceiptError::StillPending) => println!("202: taken, not confirmed yet"),
        Err(lost) => return Err(lost),
    }
    Ok(())
}
