//! Owns `forebay wal export`: a directory's records as lines.

use super::bar;
use crate::report::say;
use forebay::inspect::{Directory, Item, Record, Segment};
use serde_json::{Value, json};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

pub const HELP: &str = "\
Fields: lsn, topic, partition (null: the key decides, or nothing), timestamp_ms, key, value,
headers (list of [name, value]), final (true: delivered or set aside already, still in the file),
set_aside (null, or {reason, code, unix_ms}).
Keys and values are strings where they are UTF-8, else {\"hex\": \"00ff\"}; null is null.

Examples
  forebay wal export ./app.wal --only-pending --raw --key-separator : > waiting.txt
  forebay pipe --brokers localhost:9092 --topic t --key-separator : --wal-dir ./t.wal < waiting.txt
  forebay wal export ./app.wal --set-aside --reason message_too_large -o dead.ndjson

Exit status: 0 all that is there was written, 1 something is damaged or can't be read, 2 wrong
usage.";

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The log's directory
    pub dir: PathBuf,
    /// One JSON object a line; what it does anyway
    #[arg(long, conflicts_with = "raw")]
    json: bool,
    /// The values alone, each with a newline behind it; a null value is an empty line
    #[arg(long)]
    raw: bool,
    /// With --raw: the key and this before each value that has a key
    #[arg(long, value_name = "C", requires = "raw")]
    key_separator: Option<String>,
    /// Only records of this topic; may be given more than once
    #[arg(long, value_name = "NAME")]
    topic: Vec<String>,
    /// Only what was set aside: the dead letters
    #[arg(long)]
    set_aside: bool,
    /// Only dead letters with this reason; may be given more than once
    #[arg(long, value_name = "NAME", requires = "set_aside")]
    reason: Vec<String>,
    /// Only what would be sent again: neither final nor set aside
    #[arg(long, conflicts_with = "set_aside")]
    only_pending: bool,
    /// Write to this new file, readable by its owner alone
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Args {
    fn selects(&self, directory: &Directory, record: &Record<'_>) -> bool {
        let any = |list: &[String], is: &str| list.is_empty() || list.iter().any(|l| l == is);
        any(&self.topic, &record.topic)
            && any(&self.reason, record.set_aside.map_or("", |why| why.reason))
            && !(self.only_pending && directory.is_final(&record.topic, record.lsn))
    }
}

/// Writes the selected records; false when something is damaged.
pub fn write_records(directory: &Directory, args: &Args) -> io::Result<bool> {
    let to: Box<dyn Write> = match &args.output {
        Some(file) => {
            let new = std::fs::File::options().write(true).create_new(true).mode(0o600).open(file);
            let named = |e| io::Error::other(format!("{}: {e}", file.display()));
            Box::new(new.map_err(named)?)
        }
        None => Box::new(io::stdout().lock()),
    };
    let mut out = BufWriter::with_capacity(256 << 10, to);
    let mut failed = Ok(());
    let (mut damaged, mut unreadable) = (0, 0);
    let segments = directory.segments()?;
    let bar = match &args.output {
        None if io::stdout().is_terminal() => bar::hidden(),
        _ => bar::of_bytes(segments.iter().map(Segment::bytes).sum()),
    };
    for segment in segments {
        bar.inc(segment.bytes());
        if (args.set_aside && !segment.is_set_aside())
            || (args.only_pending && segment.is_set_aside())
        {
            continue;
        }
        unreadable += u64::from(!segment.is_readable() && !segment.is_unused());
        directory.walk(&segment, |item| {
            match item {
                Item::Record(record) if args.selects(directory, &record) => {
                    failed = if args.raw {
                        write_raw(&mut out, args, &record)
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
    bar.finish_and_clear();
    if damaged > 0 {
        say(format_args!("{damaged} records are damaged and can't be shown"));
    }
    if unreadable > 0 {
        say(format_args!("{unreadable} segments are damaged or of a newer version"));
    }
    Ok(damaged == 0 && unreadable == 0)
}

fn write_raw(out: &mut impl Write, args: &Args, record: &Record<'_>) -> io::Result<()> {
    if let (Some(separator), Some(key)) = (&args.key_separator, record.key) {
        out.write_all(key)?;
        let tab = separator == "\\t";
        out.write_all(if tab { b"\t" } else { separator.as_bytes() })?;
    }
    out.write_all(record.value.unwrap_or(&[]))?;
    out.write_all(b"\n")
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
        "final": record.set_aside.is_some() || directory.is_final(&record.topic, record.lsn),
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
