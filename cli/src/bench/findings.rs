//! Owns what a measurement found, and its three forms: text, JSON, one HTML file.

use super::chart;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;

/// What one measurement found. The names are an interface: scripts read them.
#[derive(Serialize)]
pub struct Findings {
    /// `send`, `outage` or `replay`.
    pub name: &'static str,
    /// One line: what was done.
    pub what: String,
    /// Where.
    pub machine: Machine,
    /// The figures.
    pub tables: Vec<Table>,
    /// The same, drawn.
    pub plots: Vec<Plot>,
    /// Remarks, a sentence each.
    pub notes: Vec<String>,
    /// Nothing failed and nothing was lost.
    pub is_good: bool,
}

/// The machine, as far as it says.
#[derive(Serialize)]
pub struct Machine {
    cpu: String,
    cores: usize,
    kernel: String,
}

impl Machine {
    /// This one.
    pub fn this() -> Machine {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':'));
        Machine {
            cpu: cpu.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned()),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        }
    }
}

/// Named figures in rows.
#[derive(Serialize)]
pub struct Table {
    /// What its figures are, with their unit.
    pub title: String,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<Row>,
}

/// A row of a table.
#[derive(Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// One figure a column.
    pub figures: Vec<f64>,
}

/// A drawing of lines.
#[derive(Serialize)]
pub struct Plot {
    /// Part of a file's name.
    pub name: &'static str,
    /// What it shows.
    pub title: String,
    /// What runs to the right.
    pub x: Axis,
    /// What runs upwards.
    pub y: Axis,
    /// The lines.
    pub lines: Vec<Line>,
    /// A part of the x axis that is shaded, with its name.
    pub shade: Option<(f64, f64, &'static str)>,
}

/// An axis.
#[derive(Serialize, Clone, Copy)]
pub struct Axis {
    /// What it is, with its unit.
    pub label: &'static str,
    /// How it is divided.
    pub scale: Scale,
}

/// How an axis is divided.
#[derive(Serialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// Evenly.
    Linear,
    /// By powers of ten.
    Log,
    /// Percentiles: 90 %, 99 %, 99.9 % at even distances. A value is 1 / (1 - quantile).
    Nines,
}

/// A line of a plot.
#[derive(Serialize)]
pub struct Line {
    /// What it is.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<(f64, f64)>,
}

impl Line {
    /// A percentile curve: x is 1 / (1 - quantile). It ends where fewer than ten values lie beyond.
    pub fn of_percentiles(name: &str, of: &Histogram<u64>) -> Line {
        let most = (of.len() as f64 / 10.0).max(10.0);
        let points = (0..)
            .map(|step| 10f64.powf(f64::from(step) / 8.0))
            .take_while(|x| *x <= most)
            .map(|x| (x, of.value_at_quantile(1.0 - 1.0 / x) as f64))
            .collect();
        Line { name: name.to_owned(), points }
    }
}

/// A figure as people read it: three digits that count, or a whole number.
fn figure(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        v if v < 1.0 => format!("{value:.3}"),
        v if v < 10.0 => format!("{value:.2}"),
        v if v < 100.0 => format!("{value:.1}"),
        _ => crate::demo::report::count(value.round() as u64),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

impl Findings {
    /// One object on one line.
    pub fn print_json(&self) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        serde_json::to_writer(&mut out, self)?;
        writeln!(out)?;
        out.flush()
    }

    /// Tables and notes.
    pub fn print_text(&self) -> std::io::Result<()> {
        let mut text = String::new();
        // Writing to a string can't fail.
        let _ = self.describe(&mut text);
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    fn describe(&self, to: &mut String) -> std::fmt::Result {
        let m = &self.machine;
        writeln!(to, "{}\n{}, {} cores, Linux {}", self.what, m.cpu, m.cores, m.kernel)?;
        for table in &self.tables {
            writeln!(to, "\n{}", table.title)?;
            write!(to, "  {:<34}", "")?;
            for column in &table.columns {
                write!(to, "{column:>12}")?;
            }
            writeln!(to)?;
            for row in &table.rows {
                write!(to, "  {:<34}", row.name)?;
                for value in &row.figures {
                    write!(to, "{:>12}", figure(*value))?;
                }
                writeln!(to)?;
            }
        }
        if !self.notes.is_empty() {
            writeln!(to)?;
        }
        for note in &self.notes {
            writeln!(to, "{note}")?;
        }
        Ok(())
    }

    /// One file that needs nothing from elsewhere.
    pub fn html(&self) -> Result<String, Box<dyn Error>> {
        let mut page = String::from(PAGE_HEAD);
        let m = &self.machine;
        write!(page, "<h1>forebay bench {}</h1><p>{}</p>", self.name, escaped(&self.what))?;
        write!(
            page,
            "<p class=\"small\">{}, {} cores, Linux {}</p>",
            escaped(&m.cpu),
            m.cores,
            escaped(&m.kernel)
        )?;
        for plot in &self.plots {
            write!(page, "<figure>{}</figure>", chart::svg(plot)?)?;
        }
        for table in &self.tables {
            write!(page, "<h2>{}</h2><table><tr><th></th>", escaped(&table.title))?;
            for column in &table.columns {
                write!(page, "<th>{}</th>", escaped(column))?;
            }
            page.push_str("</tr>");
            for row in &table.rows {
                write!(page, "<tr><td>{}</td>", escaped(&row.name))?;
                for value in &row.figures {
                    write!(page, "<td class=\"n\">{}</td>", figure(*value))?;
                }
                page.push_str("</tr>");
            }
            page.push_str("</table>");
        }
        for note in &self.notes {
            write!(page, "<p>{}</p>", escaped(note))?;
        }
        page.push_str("</body></html>\n");
        Ok(page)
    }
}

const PAGE_HEAD: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
<title>forebay bench</title><style>\
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}\
table{border-collapse:collapse;margin:.5rem 0 1.5rem}\
th,td{padding:.25rem .75rem;border-bottom:1px solid #d8dee4;text-align:left}\
th:not(:first-child),.n{text-align:right;font-variant-numeric:tabular-nums}\
figure{margin:1.5rem 0}svg{max-width:100%;height:auto}.small{color:#57606a}\
</style></head><body>";

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Findings {
        Findings {
            name: "send",
            what: "a < b & c".to_owned(),
            machine: Machine::this(),
            tables: vec![Table {
                title: "ns".to_owned(),
                columns: vec!["p50".to_owned()],
                rows: vec![Row { name: "healthy".to_owned(), figures: vec![51.4] }],
            }],
            plots: vec![Plot {
                name: "percentiles",
                title: "T".to_owned(),
                x: Axis { label: "percentile", scale: Scale::Nines },
                y: Axis { label: "ns", scale: Scale::Log },
                lines: vec![Line {
                    name: "healthy".to_owned(),
                    points: vec![(1.0, 40.0), (1000.0, 400.0)],
                }],
                shade: None,
            }],
            notes: vec!["A note.".to_owned()],
            is_good: true,
        }
    }

    #[test]
    fn the_page_stands_alone_and_is_escaped() {
        let page = findings().html().expect("a page");
        assert!(page.contains("a &lt; b &amp; c") && page.contains("<svg"));
        assert!(page.contains(">51.4<") && page.contains("A note."));
        // The one address is the name of SVG's language, which nobody fetches.
        let rest = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!rest.contains("http"), "nothing comes from elsewhere");
    }

    #[test]
    fn figures_as_people_read_them() {
        let texts = [0.0, 0.1234, 1.234, 51.44, 123_456.7].map(figure);
        assert_eq!(texts, ["0", "0.123", "1.23", "51.4", "123,457"]);
    }
}
