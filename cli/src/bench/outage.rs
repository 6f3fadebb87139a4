//! Owns `forebay bench outage`: senders at a fixed rate, the brokers frozen in the middle, and
//! what the callers, the backlog and the CPU did. The run itself is the demo's.

use super::Output;
use super::findings::{Axis, Findings, Line, Machine, Plot, Row, Scale, Table};
use crate::demo::report::Outcome;
use crate::demo::senders::Latencies;
use crate::demo::{self, Load};
use std::error::Error;
use std::time::Duration;

/// What an outage costs: callers, backlog, CPU
#[derive(clap::Args, Clone)]
pub struct Args {
    #[command(flatten)]
    load: Load,
    /// Seconds before the brokers freeze, and after they are back
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    healthy_s: u64,
    /// Seconds for which they are frozen
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    outage_s: u64,
    #[command(flatten)]
    pub(super) output: Output,
}

/// What was seen ten times a second.
#[derive(Default)]
struct Seen {
    waiting: Vec<(f64, f64)>,
    in_log: Vec<(f64, f64)>,
    accepted: Vec<(f64, f64)>,
    delivered: Vec<(f64, f64)>,
}

/// Records a second between one look and the next, from counts.
fn rates(counts: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let step = |pair: &[(f64, f64)]| {
        let [(from, before), (to, after)] = *pair else { return (0.0, 0.0) };
        (to, (after - before) / (to - from).max(1e-3))
    };
    counts.windows(2).map(step).collect()
}

/// Measures.
pub fn run(args: &Args) -> Result<Findings, Box<dyn Error>> {
    let healthy = Duration::from_secs(args.healthy_s);
    let outage = Duration::from_secs(args.outage_s);
    let plan = demo::Args::frozen(healthy * 2 + outage, (healthy, outage), args.load);
    let mut seen = Seen::default();
    let outcome = demo::play(&plan, |glance| {
        let (at, books) = (glance.elapsed.as_secs_f64(), &glance.stats.books);
        let waiting = books.in_lanes + books.in_flight + books.in_wal;
        seen.waiting.push((at, waiting as f64));
        seen.in_log.push((at, books.in_wal as f64));
        seen.accepted.push((at, books.accepted as f64));
        seen.delivered.push((at, books.delivered as f64));
    })?;
    Ok(findings(args, &outcome, seen))
}

fn findings(args: &Args, outcome: &Outcome, seen: Seen) -> Findings {
    let sent = &outcome.sent;
    let parts = [
        ("healthy", &sent.healthy, Some(outcome.timeline.cpu_healthy)),
        ("in the outage", &sent.outage, Some(outcome.timeline.cpu_outage)),
        ("catching up", &sent.catching_up, None),
    ];
    let row = |(name, h, cores): &(&str, &Latencies, Option<f64>)| {
        let mut figures: Vec<f64> =
            [0.5, 0.99, 0.999, 0.9999].map(|q| h.value_at_quantile(q) as f64).to_vec();
        figures.push(h.max() as f64);
        figures.push(cores.unwrap_or(0.0));
        Row { name: (*name).to_owned(), figures }
    };
    let shade = (args.healthy_s as f64, (args.healthy_s + args.outage_s) as f64, "brokers frozen");
    let line = |name: &str, points| Line { name: name.to_owned(), points };
    let time = Axis { label: "seconds", scale: Scale::Linear };
    let t = &outcome.timeline;
    let drained = match t.drained {
        Some(drained) => format!("delivered {} ms after their return", drained.as_millis()),
        None => "never all delivered".to_owned(),
    };
    Findings {
        name: "outage",
        what: format!(
            "{} records/s of {} B from {} threads; the brokers (a mock in this process) are frozen for {} s.",
            args.load.rate, args.load.payload, args.load.threads, args.outage_s
        ),
        machine: Machine::this(),
        tables: vec![Table {
            title: "ns of a send; cores used by the whole process, broker and consumer with it"
                .to_owned(),
            columns: ["p50", "p99", "p99.9", "p99.99", "max", "cores"].map(str::to_owned).to_vec(),
            rows: parts.iter().map(row).collect(),
        }],
        plots: vec![
            Plot {
                name: "percentiles",
                title: "Time of a send, healthy and in the outage".to_owned(),
                x: Axis { label: "percentile", scale: Scale::Nines },
                y: Axis { label: "ns", scale: Scale::Log },
                lines: vec![
                    Line::of_percentiles("healthy", &sent.healthy),
                    Line::of_percentiles("in the outage", &sent.outage),
                ],
                shade: None,
            },
            Plot {
                name: "backlog",
                title: "Records that were accepted and not yet delivered".to_owned(),
                x: time,
                y: Axis { label: "records", scale: Scale::Linear },
                lines: vec![line("all", seen.waiting), line("of them in the log", seen.in_log)],
                shade: Some(shade),
            },
            Plot {
                name: "rates",
                title: "Records a second".to_owned(),
                x: time,
                y: Axis { label: "records/s", scale: Scale::Linear },
                lines: vec![
                    line("accepted", rates(&seen.accepted)),
                    line("delivered", rates(&seen.delivered)),
                ],
                shade: Some(shade),
            },
        ],
        notes: vec![
            format!(
                "accepted {}, delivered {}, through the log {}, refused {}, lost {}; {} records waited and were {drained}.",
                outcome.books.accepted,
                outcome.books.delivered,
                outcome.books.spilled,
                outcome.books.refused,
                outcome.verdict.lost,
                t.backlog
            ),
            format!("Verdict: {}.", outcome.verdict.text()),
        ],
        is_good: outcome.verdict.is_good(),
    }
}
