//! The `forebay` command: lines to Kafka through Forebay, a demo, and what a log holds.
//!
//! Owns the choice of the subcommand and the exit codes: 0 all is well, 1 something is wrong
//! (one line on standard error says what), 2 wrong usage.

mod bench;
mod demo;
mod input;
mod pipe;
mod properties;
mod report;
mod wal;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Get records to Kafka without ever waiting for it.
#[derive(Parser)]
#[command(name = "forebay", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Bench(bench::Args),
    Demo(demo::Args),
    Pipe(pipe::Args),
    Wal(wal::Args),
}

fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    let result = match command {
        Command::Bench(args) => bench::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Pipe(args) => pipe::run(args),
        Command::Wal(args) => wal::run(args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            report::say(format_args!("{error}"));
            ExitCode::FAILURE
        }
    }
}
