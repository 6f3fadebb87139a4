//! Owns `forebay wal ls`: what a log's directory holds. Read-only, also while a pipeline has the
//! directory open.

use super::{bar, file_of};
use forebay::inspect::{Counts, Directory, Item, Segment};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

pub const HELP: &str = "\
A record that isn't final will be sent again by the next run (or by the one that has the
directory open now). What is final is known up to the last stored checkpoint: beside a live
pipeline the figures are some milliseconds old. What is set aside for a reason that begins with
held: waits for its topic, and the next run goes on waiting; it is listed until its file goes.

Exit status: 0 all that is there can be read, 1 something is damaged or can't be read, 2 wrong
usage.";

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The log's directory
    pub dir: PathBuf,
    /// Only what was set aside: the dead letters
    #[arg(long)]
    set_aside: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
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
    oldest_unix_ms: i64,
    newest_unix_ms: i64,
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
    aside: BTreeMap<(String, String, i32), AsideRow>,
}

impl Sums {
    fn topic(&mut self, name: &str) -> &mut TopicRow {
        let new = || TopicRow { topic: name.to_owned(), ..TopicRow::default() };
        self.topics.entry(name.to_owned()).or_insert_with(new)
    }
}

/// Lists what is there; false when something is damaged.
pub fn list(directory: &Directory, args: &Args) -> io::Result<bool> {
    let mut sums = Sums::default();
    let mut listing = Listing {
        watermark: directory.checkpoint().map(|c| c.watermark),
        next_lsn: directory.checkpoint().map(|c| c.next_lsn),
        ..Listing::default()
    };
    let mut segments = directory.segments()?;
    segments.retain(|s| s.is_set_aside() || !args.set_aside);
    let bar = bar::of_bytes(segments.iter().map(Segment::bytes).sum());
    for segment in segments {
        let row = look(directory, &segment, &mut sums)?;
        listing.bytes += row.bytes;
        listing.damaged_records += row.damaged_records;
        listing.not_final += row.not_final;
        let kind =
            if row.set_aside { &mut listing.set_aside_records } else { &mut listing.records };
        *kind += row.records;
        listing.segments.push(row);
        bar.inc(segment.bytes());
    }
    bar.finish_and_clear();
    listing.topics = sums.topics.into_values().collect();
    listing.set_aside = sums.aside.into_values().collect();
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
        file: file_of(segment).display().to_string(),
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
    if let Some(counts) = sealed.filter(|_| !row.set_aside)
        && let Some(last_final) = all_alike(directory, &counts)
    {
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
    directory.walk(segment, |item| {
        match item {
            Item::Record(record) => {
                row.records += 1;
                row.first_lsn = Some(row.first_lsn.map_or(record.lsn, |n| n.min(record.lsn)));
                row.last_lsn = Some(row.last_lsn.map_or(record.lsn, |n| n.max(record.lsn)));
                match record.set_aside {
                    Some(why) => {
                        let key = (record.topic.clone(), why.reason.to_owned(), why.code);
                        let row = sums.aside.entry(key).or_insert_with(|| AsideRow {
                            topic: record.topic,
                            reason: why.reason.to_owned(),
                            code: why.code,
                            records: 0,
                            oldest_unix_ms: why.unix_ms,
                            newest_unix_ms: why.unix_ms,
                        });
                        row.records += 1;
                        row.oldest_unix_ms = row.oldest_unix_ms.min(why.unix_ms);
                        row.newest_unix_ms = row.newest_unix_ms.max(why.unix_ms);
                    }
                    None => {
                        let not_final = u64::from(!directory.is_final(&record.topic, record.lsn));
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

/// Whether a sealed segment's records are all final (true) or none of them is; `None` where only
/// a walk tells.
fn all_alike(directory: &Directory, counts: &Counts) -> Option<bool> {
    let (Some(first), Some(last)) = (counts.first_lsn, counts.last_lsn) else { return Some(true) };
    // A topic that a replay has drained differs from the others.
    if directory.replayed().any(|(name, below)| {
        below > first && counts.topics.iter().any(|(topic, n)| topic == name && *n > 0)
    }) {
        return None;
    }
    let (first, last) = (directory.is_final("", first), directory.is_final("", last));
    (first == last).then_some(last)
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
            writeln!(
                out,
                "\n{:>12} {:>6} {:>8} {:>8}  reason, topic",
                "set aside", "code", "oldest", "newest"
            )?;
        }
        for row in &self.set_aside {
            let (oldest, newest) = (age(row.oldest_unix_ms), age(row.newest_unix_ms));
            writeln!(
                out,
                "{:>12} {:>6} {oldest:>8} {newest:>8}  {}, {}",
                row.records, row.code, row.reason, row.topic
            )?;
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

/// How long ago that was, in the largest unit that fits.
fn age(unix_ms: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
    match now - unix_ms / 1000 {
        s if s < 120 => format!("{} s", s.max(0)),
        s if s < 2 * 3600 => format!("{} min", s / 60),
        s if s < 48 * 3600 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}
