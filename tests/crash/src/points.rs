//! Owns the named points at which a child can be told to kill itself: an operation of the log's
//! storage, and whether before, in the middle of or after it.

use std::fmt;
use std::str::FromStr;

/// Where in an operation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Phase {
    Before,
    /// Half of its bytes are stored; of a creation, the file is there and has half its length.
    Middle,
    After,
}

/// An operation, as the log uses it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Op {
    pub name: &'static str,
    /// It stores more than a word, so that it has a middle.
    has_middle: bool,
    /// Times that one run does it, roughly; the kill comes at one of them.
    pub often: u64,
}

const fn op(name: &'static str, has_middle: bool, often: u64) -> Op {
    Op { name, has_middle, often }
}

/// Every operation that has named points.
pub const OPS: [Op; 24] = [
    // Making a segment ready.
    op("create", true, 3),
    op("create-aside", true, 1),
    op("populate-segment", false, 3),
    // Beginning it.
    op("segment-header", true, 4),
    op("aside-header", true, 2),
    // Filling it.
    op("topic-name", true, 6),
    op("append", true, 800),
    op("commit", false, 500),
    op("aside-append", true, 8),
    op("aside-commit", false, 3),
    // Sealing it.
    op("seal", true, 2),
    op("seal-commit", false, 2),
    op("locator", true, 3),
    // Making it durable.
    op("segment-sync", false, 5),
    op("aside-sync", false, 1),
    op("old-sync", false, 1),
    op("dir-sync", false, 6),
    // The checkpoint and the manifest.
    op("checkpoint-write", true, 8),
    op("checkpoint-sync", false, 4),
    op("manifest-write", true, 3),
    op("manifest-rename", false, 3),
    // Removing it.
    op("unlink", false, 2),
    op("cut", false, 1),
    // Mending what an earlier run left.
    op("reseal", true, 2),
];

/// One named point.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Point {
    pub op: Op,
    pub phase: Phase,
}

impl Point {
    /// Every named point.
    pub fn all() -> Vec<Point> {
        let phases = [Phase::Before, Phase::Middle, Phase::After];
        let points = OPS.iter().flat_map(|op| phases.map(|phase| Point { op: *op, phase }));
        points.filter(|p| p.op.has_middle || p.phase != Phase::Middle).collect()
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phase = match self.phase {
            Phase::Before => "before",
            Phase::Middle => "middle",
            Phase::After => "after",
        };
        write!(f, "{}:{phase}", self.op.name)
    }
}

impl FromStr for Point {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let found = Point::all().into_iter().find(|p| p.to_string() == s);
        found.ok_or_else(|| format!("no point is named {s}"))
    }
}
