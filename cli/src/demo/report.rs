//! Owns what a demo says at its end: a report for people, an object for scripts, and the verdict.

use super::conductor::Timeline;
use super::oracle::{Oracle, Tally};
use super::senders::{Latencies, Sent};
use super::{Args, OutageKind};
use forebay::{BookTotals, DrillError, DrillReport};
use serde::Serialize;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

/// Everything that was found.
pub struct Outcome {
    pub books: BookTotals,
    pub refused: Vec<(&'static str, u64)>,
    pub timeline: Timeline,
    /// What the pipeline said of the outage, if it was asked to rehearse one.
    pub drilled: Option<Result<DrillReport, DrillError>>,
    /// From the first send until all was delivered.
    pub elapsed: Duration,
    pub sent: Sent,
    pub arrived: Tally,
    pub verdict: Verdict,
}

/// What is wrong, if anything.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Accepted, and neither arrived nor standing anywhere that will still be delivered.
    pub lost: u64,
    faults: Vec<String>,
}

impl Verdict {
    /// Compares what the senders know, what the books say and what arrived.
    pub fn new(args: &Args, books: &BookTotals, sent: &Sent, arrived: &Oracle) -> Verdict {
        let tally = arrived.tally();
        let accepted = sent.accepted_total();
        let missing: u64 = (0..)
            .zip(&sent.accepted)
            .map(|(source, n)| arrived.missing(source, *n).count() as u64)
            .sum();
        let kept = books.in_wal + books.set_aside;
        let lost = missing.saturating_sub(tally.trimmed + kept);
        let mut verdict = Verdict { lost, faults: Vec::new() };
        verdict.fault(lost, "lost");
        verdict.fault(tally.order_violations, "out of order");
        verdict.fault(tally.strangers, "that nobody sent");
        verdict.fault(books.set_aside, "set aside");
        verdict.fault(books.in_wal, "still in the log: Kafka did not take them in time");
        verdict.fault(books.in_lanes + books.in_flight, "neither delivered nor in the log");
        if args.at_most_once {
            verdict.fault(books.refused, "refused: without a log the lanes are all there is");
        }
        verdict.fault(books.dropped, "dropped");
        if !books.balanced() {
            verdict.faults.push(format!("the books don't balance by {}", books.unaccounted()));
        }
        if books.accepted != accepted || books.refused != sent.refused {
            verdict.faults.push(format!(
                "the books say {} accepted and {} refused, the senders counted {accepted} and {}",
                books.accepted, books.refused, sent.refused
            ));
        }
        verdict
    }

    fn fault(&mut self, records: u64, what: &str) {
        if records > 0 {
            self.faults.push(format!("{} records {what}", count(records)));
        }
    }

    /// A drill that was refused, or cost something, is no good run.
    pub fn judge_drill(&mut self, drilled: &Result<DrillReport, DrillError>) {
        match drilled {
            Ok(report) if report.is_good() => {}
            Ok(_) => self.faults.push("the drill was not well".into()),
            Err(why) => self.faults.push(format!("the drill was refused: {why}")),
        }
    }

    /// Nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.faults.is_empty()
    }

    /// In words.
    pub fn text(&self) -> String {
        match self.is_good() {
            true => "nothing lost, the order held, the books balance".to_owned(),
            false => format!("NOT GOOD: {}", self.faults.join("; ")),
        }
    }
}

/// The object that `--json` prints. The names are an interface: scripts read them.
#[derive(Serialize)]
pub struct Json {
    pub accepted: u64,
    pub recovered: u64,
    pub delivered: u64,
    pub spilled: u64,
    pub replayed: u64,
    pub refused: u64,
    pub dropped: u64,
    pub set_aside: u64,
    pub in_lanes: u64,
    pub in_flight: u64,
    pub in_wal: u64,
    pub unaccounted: i64,
    pub balanced: bool,
    pub consumed_distinct: u64,
    pub trimmed_by_mock: u64,
    pub lost: u64,
    pub duplicates: u64,
    pub order_violations: u64,
    pub outage_ms: u64,
    pub drained_ms: u64,
    pub records_per_second: f64,
    pub cpu_healthy: f64,
    pub cpu_outage: f64,
    pub send_ns: Quantiles,
    pub send_outage_ns: Quantiles,
}

/// How long sends took, in ns.
#[derive(Serialize)]
pub struct Quantiles {
    p50: u64,
    p99: u64,
    p999: u64,
    p9999: u64,
    max: u64,
}

impl Quantiles {
    pub fn new(latencies: &Latencies) -> Quantiles {
        let at = |q| latencies.value_at_quantile(q);
        Quantiles {
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: latencies.max(),
        }
    }

    fn rows(&self) -> [(&'static str, u64); 5] {
        let Quantiles { p50, p99, p999, p9999, max } = *self;
        [("p50", p50), ("p99", p99), ("p99.9", p999), ("p99.99", p9999), ("max", max)]
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// To three digits behind the point.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Prints one object on one line.
pub fn print_object(object: &impl Serialize) -> std::io::Result<()> {
    let text = serde_json::to_string(object)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// Prints a report.
pub fn print_text(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

impl Outcome {
    fn per_second(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { (self.books.delivered as f64 / seconds).round() } else { 0.0 }
    }

    /// The object.
    pub fn json(&self) -> Json {
        let (b, t) = (&self.books, &self.timeline);
        Json {
            accepted: b.accepted,
            recovered: b.recovered,
            delivered: b.delivered,
            spilled: b.spilled,
            replayed: b.replayed,
            refused: b.refused,
            dropped: b.dropped,
            set_aside: b.set_aside,
            in_lanes: b.in_lanes,
            in_flight: b.in_flight,
            in_wal: b.in_wal,
            unaccounted: b.unaccounted(),
            balanced: b.balanced(),
            consumed_distinct: self.arrived.distinct,
            trimmed_by_mock: self.arrived.trimmed,
            lost: self.verdict.lost,
            duplicates: self.arrived.duplicates,
            order_violations: self.arrived.order_violations,
            outage_ms: t.outage.map_or(0, ms),
            drained_ms: t.drained.map_or(0, ms),
            records_per_second: self.per_second(),
            cpu_healthy: rounded(t.cpu_healthy),
            cpu_outage: rounded(t.cpu_outage),
            send_ns: Quantiles::new(&self.sent.healthy),
            send_outage_ns: Quantiles::new(&self.sent.outage),
        }
    }

    /// Prints the object.
    pub fn print_json(&self) -> std::io::Result<()> {
        print_object(&self.json())
    }

    /// Prints the report.
    pub fn print(&self, args: &Args) -> std::io::Result<()> {
        // Writing to a string can't fail.
        let mut text = String::new();
        let _ = self.describe(args, &mut text);
        print_text(&text)
    }

    fn describe(&self, args: &Args, to: &mut String) -> std::fmt::Result {
        let (b, t) = (&self.books, &self.timeline);
        writeln!(
            to,
            "{:.1} s, {} threads, {} records/s of {} B{}\n",
            args.seconds.as_secs_f64(),
            args.load.threads,
            count(args.load.rate),
            args.load.payload,
            if args.at_most_once { ", no log (at most once)" } else { "" }
        )?;
        let mut row = |name: &str, n: u64, note: &str| {
            let line = format!("  {name:<22}{:>14}  {note}", count(n));
            writeln!(to, "{}", line.trim_end())
        };
        row("accepted", b.accepted, "")?;
        if b.recovered > 0 {
            row("+ found in the log", b.recovered, "from an earlier run")?;
        }
        let through = match b.spilled {
            0 => String::new(),
            n => format!("{} of all went through the log on disk", count(n)),
        };
        row("= delivered", b.delivered, &through)?;
        row("+ in memory", b.in_lanes + b.in_flight, "")?;
        row("+ in the log", b.in_wal, "")?;
        row("+ set aside", b.set_aside, "")?;
        row("+ dropped", b.dropped, "")?;
        let balance = if b.balanced() { "the books balance" } else { "THE BOOKS DON'T BALANCE" };
        let known: Vec<String> =
            self.refused.iter().map(|(why, n)| format!("{}: {}", why, count(*n))).collect();
        row("unaccounted", b.unaccounted().unsigned_abs(), balance)?;
        row("refused", b.refused, &known.join(", "))?;
        writeln!(to)?;
        let mut row = |name: &str, n: u64, note: &str| {
            let line = format!("  {name:<22}{:>14}  {note}", count(n));
            writeln!(to, "{}", line.trim_end())
        };
        row("read back, distinct", self.arrived.distinct, "by a consumer that knows no books")?;
        row("lost", self.verdict.lost, "")?;
        row("out of order", self.arrived.order_violations, "within a thread and key")?;
        row("duplicates", self.arrived.duplicates, "")?;
        if self.arrived.trimmed > 0 {
            row("trimmed by the mock", self.arrived.trimmed, "delivered, then dropped unread")?;
        }
        writeln!(to)?;
        if let Some(outage) = t.outage {
            self.describe_outage(args, outage, to)?;
        }
        self.describe_costs(to)?;
        writeln!(to, "\n  {}", self.verdict.text())
    }

    fn describe_outage(&self, args: &Args, outage: Duration, to: &mut String) -> std::fmt::Result {
        let t = &self.timeline;
        if let Some(Ok(report)) = &self.drilled {
            writeln!(to, "  an outage was rehearsed; the brokers were well")?;
            for line in report.to_string().lines() {
                writeln!(to, "    {line}")?;
            }
            return writeln!(to);
        }
        let how = match args.outage {
            OutageKind::Freeze => "frozen (no answers)",
            OutageKind::Down => "down (connections refused)",
        };
        writeln!(to, "  brokers {how} for {:.2} s", outage.as_secs_f64())?;
        match t.drained {
            Some(drained) => writeln!(
                to,
                "  {} records waited then, and were delivered {} ms after the return: {}/s\n",
                count(t.backlog),
                count(ms(drained)),
                count((t.backlog as f64 / drained.as_secs_f64().max(0.001)) as u64)
            ),
            None => writeln!(
                to,
                "  {} records waited then, and were never all delivered\n",
                count(t.backlog)
            ),
        }
    }

    fn describe_costs(&self, to: &mut String) -> std::fmt::Result {
        let (sent, t) = (&self.sent, &self.timeline);
        let has_outage = t.outage.is_some();
        let column = |name: &str| if has_outage { format!("{name:>14}") } else { String::new() };
        writeln!(
            to,
            "  {:<22}{:>14}{}{}",
            "each send took",
            "healthy",
            column("in the outage"),
            column("catching up")
        )?;
        let [healthy, outage, after] =
            [&sent.healthy, &sent.outage, &sent.catching_up].map(|l| Quantiles::new(l).rows());
        // No send takes 0 ns: there was none.
        let nanos = |ns: u64| if ns == 0 { "-".to_owned() } else { nanos(ns) };
        for ((h, o), a) in healthy.iter().zip(&outage).zip(&after) {
            writeln!(
                to,
                "    {:<20}{:>14}{}{}",
                h.0,
                nanos(h.1),
                column(&nanos(o.1)),
                column(&nanos(a.1))
            )?;
        }
        writeln!(
            to,
            "  {:<22}{:>14.2}{}  with broker and consumer",
            "cores in use",
            t.cpu_healthy,
            column(&format!("{:.2}", t.cpu_outage))
        )?;
        writeln!(to, "  {:<22}{:>14}", "delivered a second", count(self.per_second() as u64))
    }
}

/// A number with commas.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A short time in the unit that suits it.
pub fn nanos(ns: u64) -> String {
    match ns {
        0..10_000 => format!("{ns} ns"),
        10_000..10_000_000 => format!("{:.0} \u{b5}s", ns as f64 / 1e3),
        _ => format!("{:.0} ms", ns as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_people_read_them() {
        let counts = [0, 12, 999, 1000, 123_456, 1_234_567].map(count);
        assert_eq!(counts, ["0", "12", "999", "1,000", "123,456", "1,234,567"]);
        assert_eq!(
            [80, 9_999, 12_345, 45_000_000].map(nanos),
            ["80 ns", "9999 ns", "12 \u{b5}s", "45 ms"]
        );
    }
}
