//! Owns `forebay wal repair`: puts what is damaged into quarantine.

use super::{bar, verify};
use forebay::verify::{bytes_to_verify, plan, repair};
use serde_json::json;
use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

pub const HELP: &str = "\
Nothing is deleted. A bad range inside a segment is copied to quarantine/ and its bytes stay where
they are: the numbers of the frames around it say what it cost, and verify knows it from then on.
Tails that a crash left are moved, files that can't be read as segments are moved whole, and of
losses without bytes a note is left. What is lost stays lost: records behind the damage were never
in danger, and a pipeline that opens the directory delivers them with or without a repair.
A repair that is killed can be run again.

Exit status: 0 the directory is sound now (--dry-run: would be, or is), 1 something is left, the
directory is in use or can't be written, 2 wrong usage.";

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The log's directory; no process may have it open
    dir: PathBuf,
    /// Say what it would do, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object: dry_run, actions, and after, as verify --json prints it
    #[arg(long)]
    json: bool,
}

/// Runs `forebay wal repair`.
pub fn run(args: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let named = |e: io::Error| format!("{}: {e}", args.dir.display());
    let (actions, after) = if args.dry_run {
        let found = verify::look(&args.dir).map_err(named)?;
        (plan(&found), found)
    } else {
        // Once before and once after.
        let bar = bar::of_bytes(2 * bytes_to_verify(&args.dir).map_err(named)?);
        let repaired = repair(&args.dir, |bytes| bar.set_position(bytes));
        bar.finish_and_clear();
        let repaired = repaired?;
        (repaired.actions, repaired.after)
    };
    let mut out = io::stdout().lock();
    if args.json {
        let object = json!({
            "dry_run": args.dry_run,
            "actions": actions,
            "after": verify::to_json(&after),
        });
        writeln!(out, "{object}")?;
    } else {
        let did = if args.dry_run { "would" } else { "done" };
        for action in &actions {
            writeln!(out, "{did:<7} {action}")?;
        }
        if actions.is_empty() {
            writeln!(out, "nothing to do")?;
        }
        if !args.dry_run {
            verify::print(&mut out, &after)?;
        }
    }
    out.flush()?;
    let helpless = actions.iter().any(|a| a.contains("nothing can be done"));
    let good = if args.dry_run { !helpless } else { after.is_sound() };
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
