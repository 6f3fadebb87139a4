//! Owns `forebay wal ls` and `forebay wal dump`: what a log's directory holds. Read-only, also
//! while a pipeline has the directory open.

use crate::report::say;
use forebay::inspect::{Directory, Item, Record, Segment};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

const LS_HELP: &str = "\
A record that isn't final will be sent again by the next run (or by the one that has the
directory open now). What is final is known up to the last stored checkpoint: beside a live
pipeline the figures are some milliseconds old.

Exit status: 0 all that is there can be read, 1 something is damaged or can't be read, 2 wrong
usage.";

const DUMP_HELP: &str = "\
Fields: lsn, topic, partition (null: the key decides, or nothing), timestamp_ms, key, value,
headers (list of [name, value]), final (true: delivered or set aside already, still in the file),
set_aside (null, or {reason, code, unix_ms}).
Keys and values are strings where they are UTF-8, else {\"hex\": \"00ff\"}; null is null.

Example: what would be sent again, one value a line
  forebay wal dump ./app.wal | jq -r 'select(.final | not) | .value'

Exit status: 0 all that is there was written, 1 something is damaged or can't be read, 2 wrong
usage.";

/// Look into a write-ahead log's directory, read-only, also while it is in use.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Say what is in it: segments, numbers, records by topic, how many aren't final
    #[command(after_help = LS_HELP)]
    Ls(Ls),
    /// Write its records to standard output, oldest first, one JSON object a line
    #[command(after_help = DUMP_HELP)]
    Dump(Dump),
}

#[derive(clap::Args, Debug)]
struct Ls {
    /// The log's directory
    dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args, Debug)]
struct Dump {
    /// The log's directory
    dir: PathBuf,
    /// One JSON object a line; what it does anyway
    #[arg(long, conflicts_with = "raw")]
    json: bool,
    /// The values alone, each with a newline behind it; a null value is an empty line
    #[arg(long)]
    raw: bool,
}

/// Runs `forebay wal`.
pub fn run(args: Args) -> Result<ExitCode, Box<dyn Error>> {
    let dir = match &args.command {
        Command::Ls(ls) => &ls.dir,
        Command::Dump(dump) => &dump.dir,
    };
    let directory = Directory::open(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let done = match &args.command {
        Command::Ls(ls) => list(&directory, ls),
        Command::Dump(dump) => write_records(&directory, dump),
    };
    match done {
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => Ok(ExitCode::FAILURE),
        // Whoever read has seen enough.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(e) => Err(format!("{}: {e}", dir.display()).into()),
    }
}

/// What a segment's file is.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
enum State {
    /// Complete; nothing is appended to it any more.
    Sealed,
    /// Being written, or left by a process that didn't close.
    Open,
    /// Prepared; nothing was written to it yet.
    Unused,
    /// Damaged, or of a newer version.
    Unreadable,
}

#[derive(Serialize, Debug)]
struct SegmentRow {
    file: String,
    set_aside: bool,
    state: State,
    bytes: u64,
    first_lsn: Option<u64>,
    last_lsn: Option<u64>,
    records: u64,
    not_final: u64,
    damaged_records: u64,
}

#[derive(Serialize, Default, Debug)]
struct TopicRow {
    topic: String,
    records: u64,
    not_final: u64,
}

#[derive(Serialize, Debug)]
struct AsideRow {
    topic: String,
    reason: String,
    code: i32,
    records: u64,
}

/// The object that `ls --json` prints. The names are an interface: scripts read them.
#[derive(Serialize, Default, Debug)]
struct Listing {
    watermark: Option<u64>,
    next_lsn: Option<u64>,
    bytes: u64,
    records: u64,
    not_final: u64,
    set_aside_records: u64,
    damaged_records: u64,
    topics: Vec<TopicRow>,
    set_aside: Vec<AsideRow>,
    segments: Vec<SegmentRow>,
}

/// What is summed up while segments are looked at.
#[derive(Default)]
struct Sums {
    topics: BTreeMap<String, TopicRow>,
    aside: BTreeMap<(String, String, i32), u64>,
}

impl Sums {
    fn topic(&mut self, name: &str) -> &mut TopicRow {
        let new = || TopicRow { topic: name.to_owned(), ..TopicRow::default() };
        self.topics.entry(name.to_owned()).or_insert_with(new)
    }
}

fn list(directory: &Directory, args: &Ls) -> io::Result<bool> {
    let mut sums = Sums::default();
    let mut listing = Listing {
        watermark: directory.checkpoint().map(|c| c.watermark),
        next_lsn: directory.checkpoint().map(|c| c.next_lsn),
        ..Listing::default()
    };
    for segment in directory.segments()? {
        let row = look(directory, &segment, &mut sums)?;
        listing.bytes += row.bytes;
        listing.damaged_records += row.damaged_records;
        listing.not_final += row.not_final;
        let kind =
            if row.set_aside { &mut listing.set_aside_records } else { &mut listing.records };
        *kind += row.records;
        listing.segments.push(row);
    }
    listing.topics = sums.topics.into_values().collect();
    listing.set_aside = sums
        .aside
        .into_iter()
        .map(|((topic, reason, code), records)| AsideRow { topic, reason, code, records })
        .collect();
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        serde_json::to_writer(&mut out, &listing)?;
        writeln!(out)?;
    } else {
        listing.print(&mut out)?;
    }
    out.flush()?;
    let unreadable = listing.segments.iter().filter(|s| s.state == State::Unreadable).count();
    Ok(listing.damaged_records == 0 && unreadable == 0)
}

/// A segment's row: from its seal where that is enough, else by a walk.
fn look(directory: &Directory, segment: &Segment, sums: &mut Sums) -> io::Result<SegmentRow> {
    let sealed = segment.sealed();
    let mut row = SegmentRow {
        file: format!(
            "{}{:016x}.wal",
            if segment.is_set_aside() { "set-aside/" } else { "" },
            segment.number()
        ),
        set_aside: segment.is_set_aside(),
        state: match (segment.is_readable(), &sealed) {
            (false, _) if segment.is_unused() => State::Unused,
            (false, _) => State::Unreadable,
            (true, Some(_)) => State::Sealed,
            (true, None) => State::Open,
        },
        bytes: segment.bytes(),
        first_lsn: None,
        last_lsn: None,
        records: 0,
        not_final: 0,
        damaged_records: 0,
    };
    if let Some(counts) = sealed.filter(|_| !row.set_aside) {
        let is_final = |lsn: Option<u64>| lsn.is_none_or(|n| directory.is_final(n));
        let (first_final, last_final) = (is_final(counts.first_lsn), is_final(counts.last_lsn));
        // In between, only a walk tells how many are on which side.
        if first_final == last_final {
            let not_final = |n: u64| if last_final { 0 } else { n };
            (row.first_lsn, row.last_lsn) = (counts.first_lsn, counts.last_lsn);
            row.records = counts.records;
            row.not_final = not_final(counts.records);
            for (name, records) in &counts.topics {
                let topic = sums.topic(name);
                topic.records += records;
                topic.not_final += not_final(*records);
            }
            return Ok(row);
        }
    }
    directory.walk(segment, |item| {
        match item {
            Item::Record(record) => {
                row.records += 1;
                row.first_lsn = Some(row.first_lsn.map_or(record.lsn, |n| n.min(record.lsn)));
                row.last_lsn = Some(row.last_lsn.map_or(record.lsn, |n| n.max(record.lsn)));
                match record.set_aside {
                    Some(why) => {
                        let key = (record.topic, why.reason.to_owned(), why.code);
                        *sums.aside.entry(key).or_default() += 1;
                    }
                    None => {
                        let not_final = u64::from(!directory.is_final(record.lsn));
                        row.not_final += not_final;
                        let topic = sums.topic(&record.topic);
                        topic.records += 1;
                        topic.not_final += not_final;
                    }
                }
            }
            Item::Bad { records_lost, .. } => row.damaged_records += records_lost.unwrap_or(0),
            _ => {}
        }
        true
    })?;
    Ok(row)
}

impl Listing {
    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(
            out,
            "{} records, {} not final, {} set aside, {:.1} MiB on disk",
            self.records,
            self.not_final,
            self.set_aside_records,
            self.bytes as f64 / f64::from(1 << 20)
        )?;
        match self.watermark {
            Some(watermark) => writeln!(out, "everything below LSN {watermark} is final")?,
            None => writeln!(out, "no checkpoint: no record is known to be final")?,
        }
        if self.damaged_records > 0 {
            writeln!(out, "{} records are damaged", self.damaged_records)?;
        }
        if !self.topics.is_empty() {
            writeln!(out, "\n{:>12} {:>12}  topic", "records", "not final")?;
        }
        for topic in &self.topics {
            writeln!(out, "{:>12} {:>12}  {}", topic.records, topic.not_final, topic.topic)?;
        }
        if !self.set_aside.is_empty() {
            writeln!(out, "\n{:>12} {:>6}  reason, topic", "set aside", "code")?;
        }
        for row in &self.set_aside {
            writeln!(out, "{:>12} {:>6}  {}, {}", row.records, row.code, row.reason, row.topic)?;
        }
        if !self.segments.is_empty() {
            writeln!(
                out,
                "\n{:>12} {:>12} {:>12}  {:<10}  {:<31} {:<41}",
                "bytes", "records", "not final", "state", "segment", "LSNs"
            )?;
        }
        for row in &self.segments {
            let state = match row.state {
                State::Sealed => "sealed",
                State::Open => "open",
                State::Unused => "unused",
                State::Unreadable => "unreadable",
            };
            let lsns = match (row.first_lsn, row.last_lsn) {
                (Some(first), Some(last)) => format!("{first}..={last}"),
                _ => String::new(),
            };
            let line = format!(
                "{:>12} {:>12} {:>12}  {state:<10}  {:<31} {lsns}",
                row.bytes, row.records, row.not_final, row.file
            );
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

fn write_records(directory: &Directory, args: &Dump) -> io::Result<bool> {
    let mut out = BufWriter::with_capacity(256 << 10, io::stdout().lock());
    let mut failed = Ok(());
    let (mut damaged, mut unreadable) = (0, 0);
    for segment in directory.segments()? {
        unreadable += u64::from(!segment.is_readable() && !segment.is_unused());
        directory.walk(&segment, |item| {
            match item {
                Item::Record(record) => {
                    failed = if args.raw {
                        out.write_all(record.value.unwrap_or(&[]))
                            .and_then(|()| out.write_all(b"\n"))
                    } else {
                        write_json(&mut out, directory, &record)
                    };
                }
                Item::Bad { records_lost, .. } => damaged += records_lost.unwrap_or(0),
                _ => {}
            }
            failed.is_ok()
        })?;
        std::mem::replace(&mut failed, Ok(()))?;
    }
    out.flush()?;
    if damaged > 0 {
        say(format_args!("{damaged} records are damaged and can't be shown"));
    }
    if unreadable > 0 {
        say(format_args!("{unreadable} segments are damaged or of a newer version"));
    }
    Ok(damaged == 0 && unreadable == 0)
}

fn write_json(out: &mut impl Write, directory: &Directory, record: &Record<'_>) -> io::Result<()> {
    let headers: Vec<Value> =
        record.headers().map(|(name, value)| json!([name, bytes(value)])).collect();
    let set_aside = record
        .set_aside
        .map(|why| json!({ "reason": why.reason, "code": why.code, "unix_ms": why.unix_ms }));
    let object = json!({
        "lsn": record.lsn,
        "topic": record.topic,
        "partition": record.partition,
        "timestamp_ms": record.timestamp_ms,
        "key": bytes(record.key),
        "value": bytes(record.value),
        "headers": headers,
        "final": record.set_aside.is_some() || directory.is_final(record.lsn),
        "set_aside": set_aside,
    });
    serde_json::to_writer(&mut *out, &object)?;
    out.write_all(b"\n")
}

/// Bytes as JSON: a string where they are UTF-8, hexadecimal in an object where they aren't.
fn bytes(bytes: Option<&[u8]>) -> Value {
    let Some(bytes) = bytes else { return Value::Null };
    match std::str::from_utf8(bytes) {
        Ok(text) => Value::from(text),
        Err(_) => {
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            json!({ "hex": hex })
        }
    }
}
