//! Owns what the command prints: one line an error, one JSON object at the end.

use forebay::BookTotals;
use serde::Serialize;
use std::fmt;
use std::io::Write;
use std::time::Duration;

/// One line on standard error.
pub fn say(line: fmt::Arguments<'_>) {
    // Standard error may be closed; there is nowhere left to say so.
    let _ = writeln!(std::io::stderr(), "forebay: {line}");
}

/// Where every record ended. The names are an interface: scripts read them.
#[derive(Serialize, Debug)]
pub struct Summary {
    accepted: u64,
    recovered: u64,
    delivered: u64,
    spilled: u64,
    replayed: u64,
    refused: u64,
    dropped: u64,
    set_aside: u64,
    in_lanes: u64,
    in_flight: u64,
    in_wal: u64,
    unaccounted: i64,
    balanced: bool,
    duplicates_possible: u64,
    elapsed_ms: u64,
    records_per_second: f64,
}

impl Summary {
    /// The books at the end, `refused` counting lines that were too long as well.
    pub fn new(books: &BookTotals, refused_lines: u64, elapsed: Duration) -> Self {
        let seconds = elapsed.as_secs_f64();
        let rate = if seconds > 0.0 { books.delivered as f64 / seconds } else { 0.0 };
        Summary {
            accepted: books.accepted,
            recovered: books.recovered,
            delivered: books.delivered,
            spilled: books.spilled,
            replayed: books.replayed,
            refused: books.refused + refused_lines,
            dropped: books.dropped,
            set_aside: books.set_aside,
            in_lanes: books.in_lanes,
            in_flight: books.in_flight,
            in_wal: books.in_wal,
            unaccounted: books.unaccounted(),
            balanced: books.balanced(),
            duplicates_possible: books.duplicates_possible,
            elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            records_per_second: rate.round(),
        }
    }

    /// Prints the object on standard output.
    pub fn print(&self) -> std::io::Result<()> {
        let text = serde_json::to_string(self)?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{text}")?;
        out.flush()
    }
}
