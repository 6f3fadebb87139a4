//! Kills a pipeline on real files with SIGKILL, at random moments and at named points, opens what
//! it left, and judges the contract and the books by an independent count.
//!
//! Owns the command line. Exit codes: 0 the contract held, 1 it did not (or the run proved too
//! little), 2 wrong usage.

mod broker;
mod campaign;
mod child;
mod evidence;
mod judge;
mod points;
mod records;
mod series;
mod storage;

use broker::Lie;
use clap::{Parser, Subcommand};
use series::Sabotage;
use std::fmt;
use std::process::ExitCode;
use std::str::FromStr;

/// SIGKILL for a pipeline on real files, and a judge of what it leaves.
#[derive(Parser)]
#[command(name = "forebay-crash", arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    CrashCampaign(campaign::Args),
    /// One generation; started by the campaign.
    #[command(hide = true)]
    Child(child::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::CrashCampaign(args) => campaign::run(&args),
        Command::Child(args) => child::run(&args).map_err(|e| e.to_string()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("forebay-crash: {why}");
            ExitCode::FAILURE
        }
    }
}

const LIES: [(&str, Lie); 5] = [
    ("loses", Lie::Loses),
    ("swaps", Lie::Swaps),
    ("repeats", Lie::Repeats),
    ("invents", Lie::Invents),
    ("garbles", Lie::Garbles),
];

impl fmt::Display for Lie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(LIES.iter().find(|(_, lie)| lie == self).map_or("", |(name, _)| name))
    }
}

impl FromStr for Lie {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        LIES.iter().find(|(name, _)| *name == s).map(|(_, lie)| *lie).ok_or("no such lie".into())
    }
}

impl FromStr for Sabotage {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "damage" => Ok(Sabotage::Damage),
            "no-allowance" => Ok(Sabotage::NoAllowance),
            s => s.parse().map(Sabotage::Broker),
        }
    }
}
