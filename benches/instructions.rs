//! How many instructions a send takes, counted by callgrind, against the committed numbers in
//! `instructions.txt`: exact and the same on every run, so a change that costs something is seen
//! where a clock sees noise. More than 3 % above ends with an error.
//!
//! Started plainly it runs itself under valgrind, once for each row and twice as many sends each
//! time; the difference, less that of the empty loop, is what one takes. It is the lanes' send: the
//! clock call of `Topic::send` is apart from it, and is another under valgrind, which has no vDSO.

#![allow(missing_docs, clippy::print_stdout)]

use forebay::lane::{LaneOptions, Lanes, NO_RECEIPT, OutRecord};
use forebay::record::{ANY_PARTITION, Header, TopicId};
use std::hint::black_box;
use std::process::{Command, ExitCode};

const SENDS: u64 = 1_000;
const SLACK_PERCENT: f64 = 3.0;
const COMMITTED: &str = include_str!("instructions.txt");
const ROWS: [&str; 7] =
    ["empty", "plain-256", "plain-1024", "keyed-256", "headers-256", "with-256", "refused-256"];

/// The only function in which callgrind counts.
#[inline(never)]
#[unsafe(no_mangle)]
fn forebay_measured(row: &str, sends: u64, lanes: &Lanes) {
    let value = [7u8; 1024];
    let headers = [
        Header { name: "trace", value: Some(&b"0123456789"[..]) },
        Header { name: "v", value: Some(&b"1"[..]) },
    ];
    let plain = OutRecord {
        topic: TopicId(0),
        partition: ANY_PARTITION,
        timestamp_ms: 1,
        key: None,
        value: Some(&value[..256]),
        headers: &[],
        receipt: NO_RECEIPT,
    };
    let keyed = OutRecord { key: Some(b"user-123"), ..plain };
    match row {
        "empty" => (0..sends).for_each(|_| {
            black_box(black_box(&plain));
        }),
        "with-256" => (0..sends).for_each(|_| {
            let encode = |room: &mut [u8]| {
                room.copy_from_slice(&value[..256]);
                256
            };
            black_box(lanes.send_with(black_box(&plain), 256, encode).is_ok());
        }),
        _ => {
            let record = match row {
                "plain-1024" => OutRecord { value: Some(&value), ..plain },
                "keyed-256" => keyed,
                "headers-256" => OutRecord { headers: &headers, ..keyed },
                _ => plain,
            };
            (0..sends).for_each(|_| {
                black_box(lanes.send(black_box(&record)).is_ok());
            });
        }
    }
}

/// What valgrind runs.
fn measured(row: &str, sends: u64) {
    let refused = row.starts_with("refused");
    let options = LaneOptions {
        lanes: 1,
        lane_bytes: 8 << 20,
        lane_slots: if refused { 16 } else { 1 << 16 },
        record_bytes_max: 1 << 20,
    };
    let (lanes, _drain) = Lanes::new(&options).expect("memory");
    Lanes::register_thread();
    // A refused row finds the lane full, and no row is the first to run its code.
    forebay_measured(row, 16, &lanes);
    forebay_measured(row, sends, &lanes);
    let refusals = lanes.refused().iter().sum::<u64>();
    assert_eq!(refusals, if refused { sends } else { 0 }, "the row is what it says");
}

/// Instructions within `forebay_measured`.
fn count(row: &str, sends: u64) -> Result<u64, String> {
    let this = std::env::current_exe().map_err(|e| e.to_string())?;
    let out = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=forebay_measured")
        .arg(this)
        .args(["--row", row, &sends.to_string()])
        .output()
        .map_err(|e| format!("valgrind can't be started ({e}); install it"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    if !out.status.success() {
        return Err(format!("{}: {said}", out.status));
    }
    let line = said.lines().find_map(|l| l.split_once("Collected :")).map(|(_, n)| n.trim());
    line.and_then(|n| n.parse().ok()).ok_or_else(|| format!("no count in: {said}"))
}

fn per_send(row: &str) -> Result<f64, String> {
    Ok((count(row, 2 * SENDS)? - count(row, SENDS)?) as f64 / SENDS as f64)
}

fn committed(row: &str) -> Option<f64> {
    COMMITTED.lines().find_map(|l| l.strip_prefix(row)?.trim().parse().ok())
}

fn compare() -> Result<bool, String> {
    let empty = per_send("empty")?;
    println!("{:<14}{:>10}{:>11}{:>9}", "instructions", "measured", "committed", "");
    let mut all_hold = true;
    for row in ROWS.into_iter().filter(|r| *r != "empty") {
        let measured = per_send(row)? - empty;
        let committed = committed(row).ok_or_else(|| format!("no number for {row}"))?;
        let percent = (measured / committed - 1.0) * 100.0;
        all_hold &= percent <= SLACK_PERCENT;
        println!("{row:<14}{measured:>10.1}{committed:>11.1}{percent:>+8.1} %");
    }
    Ok(all_hold)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|a| a == "--row") {
        measured(&args[at + 1], args[at + 2].parse().expect("a number"));
        return ExitCode::SUCCESS;
    }
    match compare() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            println!("more than {SLACK_PERCENT} % above benches/instructions.txt");
            ExitCode::FAILURE
        }
        Err(e) => {
            println!("{e}");
            ExitCode::FAILURE
        }
    }
}
