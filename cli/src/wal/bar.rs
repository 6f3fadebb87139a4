//! Owns the progress bars: on standard error, only where that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};

const BYTES: &str = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta} {msg}";
const RECORDS: &str = "{bar:30} {pos}/{len} records {per_sec} ETA {eta} {msg}";

/// A bar over bytes that are walked.
pub fn of_bytes(total: u64) -> ProgressBar {
    bar(total, BYTES)
}

/// No bar: its lines would run into what goes to the terminal.
pub fn hidden() -> ProgressBar {
    ProgressBar::hidden()
}

/// A bar over records.
pub fn of_records(total: u64) -> ProgressBar {
    bar(total, RECORDS)
}

fn bar(total: u64, template: &str) -> ProgressBar {
    // It draws nothing where standard error is no terminal.
    let bar = ProgressBar::new(total);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
