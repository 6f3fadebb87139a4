//! Owns `forebay bench`: its options, and which measurement they ask for.
//!
//! Files: `send`, `outage`, `replay` (one measurement each), `findings` (what came out, as text,
//! JSON and one HTML file), `chart` (the drawing), `discard` (a sink without Kafka).

mod chart;
mod discard;
mod findings;
mod outage;
mod replay;
mod send;

use clap::Subcommand;
use findings::Findings;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLE: &str = "\
Figures hold for this machine and this moment. Compare rows of one run, not runs.

Example: all three, each with a page to look at
  forebay bench send --html send.html
  forebay bench outage --html outage.html
  forebay bench replay --html replay.html

Exit status: 0 measured, 1 something failed or was lost, 2 wrong usage.";

/// Measure on this machine what a send costs, what an outage costs, and how fast a backlog goes.
///
/// Needs no Kafka: `send` measures without any broker, the others against librdkafka's mock
/// cluster inside this process.
#[derive(clap::Args)]
#[command(after_help = EXAMPLE, subcommand_required = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Send(send::Args),
    Outage(outage::Args),
    Replay(replay::Args),
}

/// Where the findings go.
#[derive(clap::Args, Debug, Clone)]
struct Output {
    /// Print one JSON object on standard output, and nothing else
    #[arg(long)]
    json: bool,
    /// Write one HTML file with tables and plots; it needs nothing from elsewhere
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write each plot as an SVG file into this directory, which is made if need be
    #[arg(long, value_name = "DIR")]
    svg_dir: Option<PathBuf>,
}

impl Output {
    fn write(&self, findings: &Findings) -> Result<(), Box<dyn Error>> {
        if let Some(dir) = &self.svg_dir {
            std::fs::create_dir_all(dir).map_err(|e| format!("making {}: {e}", dir.display()))?;
            for plot in &findings.plots {
                let path = dir.join(format!("{}-{}.svg", findings.name, plot.name));
                std::fs::write(&path, chart::svg(plot)?)
                    .map_err(|e| format!("writing {}: {e}", path.display()))?;
            }
        }
        if let Some(path) = &self.html {
            std::fs::write(path, findings.html()?)
                .map_err(|e| format!("writing {}: {e}", path.display()))?;
        }
        if self.json {
            findings.print_json()?
        } else {
            findings.print_text()?
        }
        Ok(())
    }
}

/// Runs `forebay bench`.
pub fn run(args: Args) -> Result<ExitCode, Box<dyn Error>> {
    let (output, found) = match args.command {
        Command::Send(args) => (args.output.clone(), send::run(&args)?),
        Command::Outage(args) => (args.output.clone(), outage::run(&args)?),
        Command::Replay(args) => (args.output.clone(), replay::run(&args)?),
    };
    output.write(&found)?;
    Ok(if found.is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
