//! Owns log lines as input for a command, and the knowledge of which of them it took when.

use crate::Random;
use crate::audit::Id;
use std::io::Write;
use std::process::ChildStdin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What stands between key and value in the lines made here.
pub const SEPARATOR: char = '|';

/// Lines of a web server's log, the same for the same seed. Most have a key (a user), one in 16
/// has none, one in 64 holds bytes that aren't UTF-8. The value starts with the line's [`Id`].
#[derive(Clone, Debug)]
pub struct LogLines {
    random: Random,
    source: u32,
    next: u64,
}

impl LogLines {
    /// Lines of `source`, the first numbered `first`.
    #[must_use]
    pub fn new(seed: u64, source: u32, first: u64) -> LogLines {
        LogLines { random: Random::new(seed ^ first), source, next: first }
    }
}

impl Iterator for LogLines {
    type Item = Vec<u8>;

    /// The next line, with its line feed.
    fn next(&mut self) -> Option<Vec<u8>> {
        const PATHS: [&str; 6] =
            ["/", "/api/v1/emoji", "/api/v1/vote", "/live/room/finals", "/login", "/static/app.js"];
        const AGENTS: [&str; 3] = [
            "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
            "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15",
            "okhttp/4.12.0",
        ];
        let id = Id { source: self.source, number: self.next };
        let r = &mut self.random;
        let mut line = Vec::with_capacity(256);
        if !id.number.is_multiple_of(16) {
            // Few users write much, many write little.
            let user = r.within(0, 1000).min(r.within(0, 1000));
            line.extend_from_slice(format!("user-{user}{SEPARATOR}").as_bytes());
        }
        line.extend_from_slice(
            format!(
                "{} 10.{}.{}.{} - - [23/Nov/2026:{:02}:{:02}:{:02} +0000] \"{} {}?q={:x} HTTP/1.1\" \
                 {} {} \"-\" \"{}\"",
                id.text(),
                r.within(0, 256),
                r.within(0, 256),
                r.within(1, 255),
                r.within(0, 24),
                r.within(0, 60),
                r.within(0, 60),
                if r.within(0, 3) == 0 { "POST" } else { "GET" },
                PATHS[r.within(0, PATHS.len() as u64) as usize],
                r.number() >> r.within(8, 60),
                if r.within(0, 50) == 0 { 503 } else { 200 },
                r.within(20, 90_000),
                AGENTS[r.within(0, AGENTS.len() as u64) as usize],
            )
            .as_bytes(),
        );
        if id.number % 64 == 1 {
            line.extend_from_slice(b" \xff\xfe\x80");
        }
        line.push(b'\n');
        self.next += 1;
        Some(line)
    }
}

/// Writes lines to a command's standard input at a steady rate, on a thread of its own.
#[derive(Debug)]
pub struct Feeder {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Fed>,
}

/// What a feeder wrote, and when.
///
/// When is a line surely accepted? The pipe to the command holds `capacity` bytes and no more. So
/// when a write returns and `w` bytes are written in all, the command has read `w - capacity`.
/// It reads at most `capacity` bytes at a time, and sends all whole lines of one read before it
/// reads again: so all that ended `2 x capacity` before `w` was sent before the last read began.
#[derive(Debug)]
pub struct Fed {
    /// The byte after each line, counted from the first byte written.
    ends: Vec<u64>,
    /// Bytes written, and when the write returned.
    writes: Vec<(Instant, u64)>,
    capacity: u64,
}

impl Feeder {
    /// Starts to write `lines`, `lines_per_s` of them; they end, or [`Feeder::stop`] ends them.
    pub fn start(
        stdin: ChildStdin,
        lines: impl Iterator<Item = Vec<u8>> + Send + 'static,
        lines_per_s: u64,
    ) -> Feeder {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let thread = std::thread::spawn(move || feed(stdin, lines, lines_per_s, &flag));
        Feeder { stop, thread }
    }

    /// Ends the feeding, closes the input and says what was written.
    #[must_use]
    pub fn stop(self) -> Fed {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the feeder doesn't panic")
    }

    /// Waits until all lines are written, closes the input and says what was written.
    #[must_use]
    pub fn finish(self) -> Fed {
        self.thread.join().expect("the feeder doesn't panic")
    }
}

fn feed(
    mut stdin: ChildStdin,
    mut lines: impl Iterator<Item = Vec<u8>>,
    lines_per_s: u64,
    stop: &AtomicBool,
) -> Fed {
    const TICK: Duration = Duration::from_millis(2);
    let capacity = rustix::pipe::fcntl_setpipe_size(&stdin, 4096);
    let capacity = capacity.expect("a pipe of one page") as u64;
    let mut fed = Fed { ends: Vec::new(), writes: Vec::new(), capacity };
    let (mut end, mut written) = (0, 0);
    let start = Instant::now();
    let mut batch = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let due = start.elapsed().as_micros() as u64 * lines_per_s / 1_000_000;
        batch.clear();
        while (fed.ends.len() as u64) < due && batch.len() < 4096 {
            let Some(line) = lines.next() else { break };
            end += line.len() as u64;
            fed.ends.push(end);
            batch.extend_from_slice(&line);
        }
        if batch.is_empty() {
            if (fed.ends.len() as u64) < due {
                break;
            }
            std::thread::sleep(TICK);
            continue;
        }
        // Small writes: each one that returns says how far the command has read.
        for part in batch.chunks(1024) {
            if stdin.write_all(part).is_err() {
                return fed;
            }
            written += part.len() as u64;
            fed.writes.push((Instant::now(), written));
        }
    }
    fed
}

impl Fed {
    /// How many lines were written at all, the last one perhaps in part.
    #[must_use]
    pub fn lines(&self) -> u64 {
        self.ends.len() as u64
    }

    /// How many lines the command had surely accepted at `when`.
    #[must_use]
    pub fn accepted_at(&self, when: Instant) -> u64 {
        let writes = self.writes.partition_point(|(at, _)| *at <= when);
        let written = writes.checked_sub(1).map_or(0, |last| self.writes[last].1);
        let safe = written.saturating_sub(2 * self.capacity);
        self.ends.partition_point(|end| *end <= safe) as u64
    }

    /// Bytes written.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.writes.last().map_or(0, |(_, written)| *written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn lines_are_the_same_for_the_same_seed_and_carry_their_ids() {
        let lines: Vec<_> = LogLines::new(7, 3, 40).take(200).collect();
        assert_eq!(lines, LogLines::new(7, 3, 40).take(200).collect::<Vec<_>>());
        for (number, line) in (40..).zip(&lines) {
            assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
            let value = line.split(|b| *b == SEPARATOR as u8).next_back().unwrap();
            assert_eq!(Id::parse(value), Some(Id { source: 3, number }));
        }
    }

    #[test]
    fn a_reader_that_stops_has_accepted_no_more_than_it_read() {
        // It reads 100 lines and then no more: the rest stays in the pipe.
        let mut child = Command::new("sh")
            .args(["-c", "head -n 100 >/dev/null; sleep 5"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let feeder = Feeder::start(stdin, LogLines::new(1, 0, 0), 100_000);
        std::thread::sleep(Duration::from_millis(500));
        child.kill().unwrap();
        child.wait().unwrap();
        let fed = feeder.stop();
        let accepted = fed.accepted_at(Instant::now());
        // `head` reads in blocks, so it takes a little more than 100 lines.
        assert!(accepted < 150, "{accepted}");
        assert!(fed.lines() > accepted);
    }
}
