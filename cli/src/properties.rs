//! Owns how librdkafka's properties come in: `-X NAME=VALUE`, and a file of such lines.
//!
//! A value may be a secret, and so may be what stands where a name should: neither is ever
//! printed, and clap, which repeats what it can't parse, is given nothing to refuse.

use clap::error::ErrorKind;
use std::convert::Infallible;
use std::error::Error;
use std::path::{Path, PathBuf};

#[derive(clap::Args, Clone, Debug)]
pub struct Properties {
    /// Pass a property on to librdkafka; may be given more than once. Everybody on this machine
    /// sees it in the list of processes: a password belongs into --properties-file
    #[arg(short = 'X', long = "property", value_name = "NAME=VALUE", value_parser = hidden)]
    given: Vec<Hidden>,
    /// Read properties from a file, NAME=VALUE a line, # begins a comment; -X goes before it
    #[arg(long, value_name = "FILE")]
    properties_file: Option<PathBuf>,
}

/// What stood behind -X; `Debug` shows nothing of it.
#[derive(Clone)]
struct Hidden(String);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

fn hidden(text: &str) -> Result<Hidden, Infallible> {
    Ok(Hidden(text.to_owned()))
}

impl Properties {
    /// Whether there is a file, which may change.
    pub fn have_file(&self) -> bool {
        self.properties_file.is_some()
    }

    /// All of them: the file's, then those of the command line. Ends the process, as wrong usage
    /// does, when one of the latter isn't NAME=VALUE.
    pub fn read(&self) -> Result<Vec<(String, String)>, Box<dyn Error>> {
        let mut all = match &self.properties_file {
            Some(file) => read_file(file)?,
            None => Vec::new(),
        };
        for (at, Hidden(text)) in self.given.iter().enumerate() {
            match pair(text) {
                Some(property) => all.push(property),
                None => clap::Error::raw(
                    ErrorKind::ValueValidation,
                    format!(
                        "-X number {} isn't NAME=VALUE (not shown, it may be a secret)\n",
                        at + 1
                    ),
                )
                .exit(),
            }
        }
        Ok(all)
    }
}

/// NAME=VALUE, with whatever stands behind the first `=` as the value.
fn pair(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    (!name.trim().is_empty()).then(|| (name.trim().to_owned(), value.to_owned()))
}

fn read_file(file: &Path) -> Result<Vec<(String, String)>, Box<dyn Error>> {
    let bytes = std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
    parse(&bytes)
        .map_err(|(line, problem)| format!("{}, line {line}: {problem}", file.display()).into())
}

/// The properties in a file, or which line can't be read and why. Blanks around name and value
/// don't count.
fn parse(bytes: &[u8]) -> Result<Vec<(String, String)>, (usize, &'static str)> {
    let mut all = Vec::new();
    for (at, line) in bytes.split(|b| *b == b'\n').enumerate() {
        let line = str::from_utf8(line).map_err(|_| (at + 1, "not UTF-8"))?.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = pair(line).ok_or((at + 1, "must be NAME=VALUE"))?;
        all.push((name, value.trim().to_owned()));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_testkit::{Random, seed};

    #[test]
    fn a_file_is_read_line_by_line() {
        let text = "# secrets\n\n sasl.username = app\r\nsasl.password=a=b #c \nempty=\n";
        let all = parse(text.as_bytes()).unwrap();
        let wanted = [("sasl.username", "app"), ("sasl.password", "a=b #c"), ("empty", "")];
        let wanted: Vec<_> = wanted.map(|(n, v)| (n.to_owned(), v.to_owned())).into();
        assert_eq!(all, wanted);
        assert_eq!(parse(b"a=1\nhunter2\n"), Err((2, "must be NAME=VALUE")));
        assert_eq!(parse(b"a=1\n\n =hunter2"), Err((3, "must be NAME=VALUE")));
        assert_eq!(parse(b"a=\xff"), Err((1, "not UTF-8")));
        assert_eq!(parse(b""), Ok(Vec::new()));
    }

    /// Whatever is in it: each line is a property, nothing, or the line of the error.
    #[test]
    fn no_file_is_too_odd() {
        let first = seed();
        let mut random = Random::new(first);
        let letters = b"=#=ab. \t\r\n\n\0\xc3\xa4\xff";
        let (mut good, mut bad) = (0, 0);
        for _ in 0..20_000 {
            let count = random.within(0, 40);
            let text: Vec<u8> = (0..count)
                .map(|_| letters[random.within(0, letters.len() as u64) as usize])
                .collect();
            let lines = text.split(|b| *b == b'\n').count();
            match parse(&text) {
                Ok(all) => {
                    good += 1;
                    assert!(
                        all.len() <= lines
                            && all.iter().all(|(n, _)| n.trim() == n && !n.is_empty())
                    );
                }
                Err((line, _)) => {
                    bad += 1;
                    assert!((1..=lines).contains(&line), "seed {first}: {text:?}");
                    let upto =
                        text.split(|b| *b == b'\n').take(line - 1).collect::<Vec<_>>().join(&b'\n');
                    assert!(
                        parse(&upto).is_ok(),
                        "seed {first}: an earlier line was at fault: {text:?}"
                    );
                }
            }
        }
        assert!(good > 100 && bad > 100, "{good} good, {bad} bad");
        println!("seed {first}: {good} files read, {bad} refused by line");
    }
}
