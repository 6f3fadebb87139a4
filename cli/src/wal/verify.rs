//! Owns `forebay wal verify`: what is damaged in a directory, where, and what it costs.

use super::bar;
use crate::report::say;
use forebay::verify::{Finding, Verification, Weight, bytes_to_verify, verify};
use serde_json::{Value, json};
use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

pub const HELP: &str = "\
Walks every segment from end to end, compares the seals with what it met, and checks checkpoints
and manifest. Reads only, also beside a pipeline that has the directory open; a tail that is being
written is no damage. Each finding weighs one of: damage; known (its copy, or a note of the loss,
is in quarantine/); note (unfinished tails, spare copies, what a newer version wrote).

--json: one object: sound, segments, bytes, records, set_aside_records, records_lost, watermark,
findings (weight, verdict, file, from, to, lsn_before, lsn_after, records_lost, final, says) and
set_apart (file, bytes), what lies in quarantine/ and newer-version/.

Exit status: 0 sound, 1 damage, 2 wrong usage, or the directory can't be read.";

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The log's directory
    dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs `forebay wal verify`.
pub fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let found = match look(&args.dir) {
        Ok(found) => found,
        Err(e) => {
            say(format_args!("{}: {e}", args.dir.display()));
            return Ok(ExitCode::from(2));
        }
    };
    let mut out = io::stdout().lock();
    let written =
        if args.json { writeln!(out, "{}", to_json(&found)) } else { print(&mut out, &found) };
    match written.and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => return Err(e.into()),
        _ => {}
    }
    Ok(if found.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Verifies with a progress bar.
pub fn look(dir: &std::path::Path) -> io::Result<Verification> {
    let bar = bar::of_bytes(bytes_to_verify(dir)?);
    let found = verify(dir, |bytes| bar.set_position(bytes));
    bar.finish_and_clear();
    found
}

/// The object that `--json` prints. The names are an interface: scripts read them.
pub fn to_json(found: &Verification) -> Value {
    let findings: Vec<Value> = found
        .findings
        .iter()
        .map(|f| {
            json!({
                "weight": f.weight.name(),
                "verdict": f.verdict,
                "file": f.file,
                "from": f.from,
                "to": f.to,
                "lsn_before": f.lsn_before,
                "lsn_after": f.lsn_after,
                "records_lost": f.records_lost,
                "final": f.is_final,
                "says": f.says,
            })
        })
        .collect();
    let set_apart: Vec<Value> =
        found.set_apart.iter().map(|(file, bytes)| json!({"file": file, "bytes": bytes})).collect();
    json!({
        "sound": found.is_sound(),
        "segments": found.segments,
        "bytes": found.bytes,
        "records": found.records,
        "set_aside_records": found.set_aside_records,
        "records_lost": found.records_lost(),
        "watermark": found.watermark,
        "findings": findings,
        "set_apart": set_apart,
    })
}

/// Prints what was found, for people.
pub fn print(out: &mut impl Write, found: &Verification) -> io::Result<()> {
    for finding in &found.findings {
        writeln!(out, "{}", line(finding))?;
    }
    for (file, bytes) in &found.set_apart {
        writeln!(out, "{:<7} {file}: {bytes} bytes put apart earlier", "apart")?;
    }
    let damage = found.findings.iter().filter(|f| f.weight == Weight::Damage).count();
    let known = found.findings.iter().filter(|f| f.weight == Weight::Known).count();
    writeln!(
        out,
        "{}: {} segments, {:.1} MiB, {} good records, {} set aside; {damage} findings of damage, {known} known, {} records lost",
        if found.is_sound() { "sound" } else { "damaged" },
        found.segments,
        found.bytes as f64 / f64::from(1 << 20),
        found.records,
        found.set_aside_records,
        found.records_lost(),
    )
}

fn line(f: &Finding) -> String {
    let mut line = format!("{:<7} {}", f.weight.name(), f.file.as_deref().unwrap_or("directory"));
    if let (Some(from), Some(to)) = (f.from, f.to) {
        line.push_str(&format!(", bytes {from} to {to}"));
    }
    match (f.lsn_before, f.lsn_after) {
        (Some(a), Some(b)) => line.push_str(&format!(", between LSN {a} and {b}")),
        (Some(a), None) => line.push_str(&format!(", behind LSN {a}")),
        (None, Some(b)) => line.push_str(&format!(", before LSN {b}")),
        (None, None) => {}
    }
    line.push_str(&format!(": {}: {}", f.verdict, f.says));
    if f.is_final {
        line.push_str(" (already final: nothing that was to be sent)");
    }
    line
}
