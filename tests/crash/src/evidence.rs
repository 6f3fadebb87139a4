//! Owns what a child leaves behind for the judge: files that are only ever appended to, by one
//! `write` for each entry. The page cache survives SIGKILL, so what a returned `write` wrote is
//! there; an entry cut short was never finished and counts for nothing.

use crate::records::{Id, THREADS};
use forebay::clock::{Clock, SystemClock};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Nanoseconds of the system's monotonic clock: the same for parent and child.
pub fn now_ns() -> u64 {
    SystemClock.now_ns()
}

/// One generation's files.
#[derive(Clone, Debug)]
pub struct Evidence {
    dir: PathBuf,
}

/// Something that happened at a broker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// Appended; otherwise it only lies in the socket of a broker that stands still.
    pub appended: bool,
    pub id: Id,
    pub checksum: u32,
    /// Which partition of all topics.
    pub partition: usize,
}

const EVENT_BYTES: usize = 16;

impl Event {
    fn encode(&self) -> [u8; EVENT_BYTES] {
        let mut b = [0; EVENT_BYTES];
        b[0] = u8::from(self.appended);
        b[1] = self.id.thread as u8;
        b[2] = self.partition as u8;
        b[4..8].copy_from_slice(&self.checksum.to_le_bytes());
        b[8..].copy_from_slice(&self.id.number.to_le_bytes());
        b
    }

    fn decode(b: &[u8; EVENT_BYTES]) -> Event {
        let [_, _, _, _, c0, c1, c2, c3, n @ ..] = *b;
        Event {
            appended: b[0] == 1,
            id: Id { thread: usize::from(b[1]), number: u64::from_le_bytes(n) },
            checksum: u32::from_le_bytes([c0, c1, c2, c3]),
            partition: usize::from(b[2]),
        }
    }
}

/// What the pipeline said of itself after a look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Said {
    /// Looks so far: which look.
    pub looks: u64,
    pub oldest_unsafe_ms: u64,
    pub exposed: u64,
    pub recovered: u64,
    pub accepted: u64,
    pub delivered: u64,
    pub in_wal: u64,
    pub set_aside: u64,
    pub dropped: u64,
    pub damaged: u64,
    /// What came less what stands somewhere, as its absolute value.
    pub unaccounted: u64,
    pub complete: u64,
}

const SAID_WORDS: usize = 12;

impl Said {
    fn words(&self) -> [u64; SAID_WORDS] {
        let Said { looks, oldest_unsafe_ms, exposed, recovered, accepted, delivered, .. } = *self;
        let Said { in_wal, set_aside, dropped, damaged, unaccounted, complete, .. } = *self;
        [
            looks,
            oldest_unsafe_ms,
            exposed,
            recovered,
            accepted,
            delivered,
            in_wal,
            set_aside,
            dropped,
            damaged,
            unaccounted,
            complete,
        ]
    }

    fn of(words: &[u64]) -> Option<Said> {
        let &[
            looks,
            oldest_unsafe_ms,
            exposed,
            recovered,
            accepted,
            delivered,
            in_wal,
            set_aside,
            dropped,
            damaged,
            unaccounted,
            complete,
        ] = words
        else {
            return None;
        };
        Some(Said {
            looks,
            oldest_unsafe_ms,
            exposed,
            recovered,
            accepted,
            delivered,
            in_wal,
            set_aside,
            dropped,
            damaged,
            unaccounted,
            complete,
        })
    }

    pub fn new(stats: &forebay::Stats) -> Said {
        let books = &stats.books;
        Said {
            looks: stats.looks,
            oldest_unsafe_ms: stats.oldest_unsafe_ms,
            exposed: u64::from(stats.states.exposed),
            recovered: books.recovered,
            accepted: books.accepted,
            delivered: books.delivered,
            in_wal: books.in_wal,
            set_aside: books.set_aside,
            dropped: books.dropped,
            damaged: stats.wal.as_ref().map_or(0, |w| w.damaged_records),
            unaccounted: books.unaccounted().unsigned_abs(),
            complete: 0,
        }
    }
}

/// A file of words.
#[derive(Debug)]
pub struct Words(File);

impl Words {
    pub fn append(&mut self, words: &[u64]) -> io::Result<()> {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.0.write_all(&bytes)
    }

    pub fn say(&mut self, said: &Said) -> io::Result<()> {
        self.append(&said.words())
    }

    pub fn events(&mut self, events: &[Event]) -> io::Result<()> {
        let bytes: Vec<u8> = events.iter().flat_map(Event::encode).collect();
        if bytes.is_empty() { Ok(()) } else { self.0.write_all(&bytes) }
    }
}

impl Evidence {
    pub fn at(dir: &Path) -> io::Result<Evidence> {
        std::fs::create_dir_all(dir)?;
        Ok(Evidence { dir: dir.to_path_buf() })
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    fn open(&self, name: &str) -> io::Result<Words> {
        Ok(Words(OpenOptions::new().create(true).append(true).open(self.dir.join(name))?))
    }

    /// When each record of a thread was accepted: one word a record.
    pub fn accepted(&self, thread: usize) -> io::Result<Words> {
        self.open(&format!("accepted-{thread}"))
    }

    /// When each look began.
    pub fn looks(&self) -> io::Result<Words> {
        self.open("looks")
    }

    pub fn said(&self) -> io::Result<Words> {
        self.open("said")
    }

    pub fn closed(&self) -> io::Result<Words> {
        self.open("closed")
    }

    pub fn topic(&self) -> io::Result<Words> {
        self.open("topic")
    }

    /// Notes the named point at which the child kills itself.
    pub fn note_point(&self, point: &str) -> io::Result<()> {
        std::fs::write(self.dir.join("point"), point)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        match std::fs::read(self.dir.join(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => read,
        }
    }

    fn read_words(&self, name: &str) -> io::Result<Vec<u64>> {
        let bytes = self.read(name)?;
        let (words, _cut) = bytes.as_chunks::<8>();
        Ok(words.iter().map(|w| u64::from_le_bytes(*w)).collect())
    }

    fn read_said_of(&self, name: &str) -> io::Result<Vec<Said>> {
        Ok(self.read_words(name)?.chunks_exact(SAID_WORDS).filter_map(Said::of).collect())
    }

    pub fn read_accepted(&self) -> io::Result<Vec<Vec<u64>>> {
        (0..THREADS).map(|t| self.read_words(&format!("accepted-{t}"))).collect()
    }

    pub fn read_looks(&self) -> io::Result<Vec<u64>> {
        self.read_words("looks")
    }

    pub fn read_said(&self) -> io::Result<Vec<Said>> {
        self.read_said_of("said")
    }

    pub fn read_closed(&self) -> io::Result<Option<Said>> {
        Ok(self.read_said_of("closed")?.pop())
    }

    pub fn read_point(&self) -> io::Result<Option<String>> {
        let point = String::from_utf8(self.read("point")?).unwrap_or_default();
        Ok((!point.is_empty()).then_some(point))
    }

    pub fn read_topic(&self) -> io::Result<Vec<Event>> {
        let bytes = self.read("topic")?;
        let (events, _cut) = bytes.as_chunks::<EVENT_BYTES>();
        Ok(events.iter().map(Event::decode).collect())
    }
}
