//! Owns `forebay wal`: the choice among its commands, and what they share.
//!
//! `ls`, `export` and `verify` only read, also while a pipeline has the directory open; `repair`
//! and `replay` hold it.

mod bar;
mod export;
mod ls;
mod repair;
mod replay;
mod verify;

use forebay::inspect::{Directory, Segment};
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Look into a write-ahead log's directory, check it, mend it, drain it.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Say what is in it: segments, numbers, records by topic, dead letters by reason
    #[command(after_help = ls::HELP)]
    Ls(ls::Args),
    /// Write its records to standard output or a file, oldest first
    #[command(after_help = export::HELP, alias = "dump")]
    Export(export::Args),
    /// Check every byte that counts; say what is damaged, where, and what it costs
    #[command(after_help = verify::HELP)]
    Verify(verify::Args),
    /// Put what is damaged into quarantine, deleting nothing
    #[command(after_help = repair::HELP)]
    Repair(repair::Args),
    /// Send what a process left behind, or its dead letters, to Kafka
    #[command(after_help = replay::HELP)]
    Replay(replay::Args),
}

/// Runs `forebay wal`.
pub fn run(args: Args) -> Result<ExitCode, Box<dyn Error>> {
    match args.command {
        Command::Ls(args) => looked(&args.dir, |d| ls::list(d, &args)),
        Command::Export(args) => looked(&args.dir, |d| export::write_records(d, &args)),
        Command::Verify(args) => verify::run(&args),
        Command::Repair(args) => repair::run(&args),
        Command::Replay(args) => replay::run(&args),
    }
}

/// What a command that only reads ends with.
fn looked(
    dir: &Path,
    look: impl FnOnce(&Directory) -> io::Result<bool>,
) -> Result<ExitCode, Box<dyn Error>> {
    let directory = Directory::open(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    match look(&directory) {
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => Ok(ExitCode::FAILURE),
        // Whoever read has seen enough.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(e) => Err(format!("{}: {e}", dir.display()).into()),
    }
}

/// A segment's file, relative to the directory.
fn file_of(segment: &Segment) -> PathBuf {
    let dir = if segment.is_set_aside() { "set-aside" } else { "" };
    Path::new(dir).join(format!("{:016x}.wal", segment.number()))
}
