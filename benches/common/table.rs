//! Owns what a bench prints: Markdown tables, or with `--json` one object a row.

use super::Runs;
use serde_json::{Map, Value, json};

/// A figure of a row.
pub enum Cell {
    Text(String),
    Count(u64),
    /// With so many decimals.
    Number(f64, usize),
    /// Several rounds' figures, with so many decimals: `median (least-most)`.
    Spread(Runs, usize),
    /// Doesn't apply to this row.
    None,
}

impl From<&str> for Cell {
    fn from(text: &str) -> Cell {
        Cell::Text(text.to_owned())
    }
}

impl From<u64> for Cell {
    fn from(count: u64) -> Cell {
        Cell::Count(count)
    }
}

impl Cell {
    fn text(&self) -> String {
        match self {
            Cell::Text(text) => text.clone(),
            Cell::Count(count) => people(*count),
            Cell::Number(value, _) if !value.is_finite() => "–".to_owned(),
            Cell::Number(value, decimals) => thousands(&format!("{value:.decimals$}")),
            Cell::Spread(runs, _) if runs.is_empty() => "–".to_owned(),
            Cell::Spread(runs, decimals) => runs.show(*decimals),
            Cell::None => "–".to_owned(),
        }
    }

    fn json(&self) -> Value {
        match self {
            Cell::Text(text) => json!(text),
            Cell::Count(count) => json!(count),
            Cell::Number(value, _) => json!(value),
            Cell::Spread(runs, _) if runs.is_empty() => Value::Null,
            Cell::Spread(runs, _) => {
                let range = runs.range();
                json!({"median": runs.median(), "least": range.start(), "most": range.end()})
            }
            Cell::None => Value::Null,
        }
    }
}

/// `1234567.8` as `1,234,567.8`.
pub fn thousands(text: &str) -> String {
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut out = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) && !out.ends_with('-') {
            out.push(',');
        }
        out.push(digit);
    }
    out + rest
}

/// A count as people read it.
pub fn people(count: u64) -> String {
    thousands(&count.to_string())
}

/// A table that is printed row by row, as rows become known.
pub struct Table {
    bench: &'static str,
    name: &'static str,
    columns: Vec<&'static str>,
}

impl Table {
    /// Prints the head: a sentence on what was done, and the columns. The first is the row's name.
    pub fn new(
        bench: &'static str,
        name: &'static str,
        what: &str,
        columns: &[&'static str],
    ) -> Table {
        if !is_json() {
            println!("\n{what}\n\n| {} |", columns.join(" | "));
            println!("|{}", "---|".repeat(columns.len()));
        }
        Table { bench, name, columns: columns.to_vec() }
    }

    /// Prints a row, a cell for each column.
    pub fn row(&self, cells: impl IntoIterator<Item = Cell>) {
        let cells: Vec<Cell> = cells.into_iter().collect();
        assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        if is_json() {
            let mut object = Map::new();
            object.insert("bench".to_owned(), json!(self.bench));
            object.insert("table".to_owned(), json!(self.name));
            for (column, cell) in self.columns.iter().zip(&cells) {
                object.insert((*column).to_owned(), cell.json());
            }
            println!("{}", Value::Object(object));
        } else {
            let texts: Vec<String> = cells.iter().map(Cell::text).collect();
            println!("| {} |", texts.join(" | "));
        }
    }
}

/// A remark under a table; scripts don't get it.
pub fn note(text: &str) {
    if !is_json() {
        println!("\n{text}");
    }
}

/// Whether rows are to be printed as JSON.
pub fn is_json() -> bool {
    std::env::args().any(|a| a == "--json")
}
