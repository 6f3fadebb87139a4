//! Owns the verdicts on a position within a segment: what stands there x where -> what is done.
//!
//! # The table
//! *More*: a good frame stands behind it in the same segment, the next position at which a whole
//! frame stands whose frame number and LSN fit between its neighbours. *Final*: every record that
//! may have stood there is below the checkpoint's watermark.
//!
//! | met | more, not final | more, final | no more: sealed | no more: open, not the last | no more: open, the last |
//! |---|---|---|---|---|---|
//! | good frame | accept | pass | accept | accept | accept |
//! | seal | end | end | end | end | end |
//! | zeroes, end of file | damage, by numbers | damage, free | end, by seal | end, by next segment | end |
//! | uncommitted, cut off, lengths that disagree, unknown kind, bad CRC, number or LSN out of order | damage, by numbers | damage, free | tail, by seal | tail, by next segment | tail, unknown |
//! | unreadable | as a bad CRC | | | | |
//! | good frame, topic unnamed | damage, by numbers | damage, free | as with more | | |
//!
//! - *Accept*: a record is delivered. *Pass*: it is final already.
//! - *Damage*: the range goes to quarantine and the walk goes on behind it. *Tail*: it goes to
//!   quarantine, and in a segment without a seal it is cut off. *End*: nothing is there to keep.
//! - What it costs: *by numbers*, as many records as frame numbers are skipped, and one where a
//!   topic is unnamed; *by seal*, up to the number in the seal's locator; *by next segment*, up to
//!   the first number of the segment behind it; *free*, nothing, since all was final; *unknown*,
//!   nothing tells whether a record stood there: it is told in words and counted in
//!   `unfinished_tails`. A cost by seal or by the next segment is nothing too where those say that
//!   all was final.
//! - A stale frame (another salt) is a bad CRC: no scanner can tell the two apart.
//! - The end of the file with more behind it can't be. A position that can't be read is tried
//!   again first; then it is passed a page at a time. Its range isn't copied: the whole file is
//!   kept, and goes to quarantine instead of being removed.

/// What the scanner met at a position.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Met {
    /// A whole good frame: fields agree, the CRC holds, number and LSN fit, its topic is named.
    Frame,
    /// A good seal.
    Seal,
    /// Zeroes up to the next good frame, or to the end.
    Zeroes,
    /// A commit word that is zero, and bytes behind it that aren't.
    Uncommitted,
    /// Nothing: the file or what was written of it ends here.
    EndOfFile,
    /// The beginning of a frame that would end behind the file's end.
    CutOff,
    /// Lengths or flags that contradict each other, or a length that no frame here may have.
    BadLength,
    /// A kind that this format version doesn't have.
    UnknownKind,
    /// The CRC fails: other bytes than were written, or a frame of an earlier use of the blocks.
    BadCrc,
    /// A whole frame whose number or LSN can't stand here.
    OutOfOrder,
    /// A whole record whose topic no entry before it names.
    UnknownTopic,
    /// The storage refuses to read it.
    Unreadable,
}

impl Met {
    /// In words, for findings.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Met::Frame => "a good frame",
            Met::Seal => "a seal",
            Met::Zeroes => "zeroes where a frame should be",
            Met::Uncommitted => "a frame that was never committed",
            Met::EndOfFile => "the end of the file",
            Met::CutOff => "a frame that is cut off",
            Met::BadLength => "a frame whose lengths contradict each other",
            Met::UnknownKind => "a frame of an unknown kind",
            Met::BadCrc => "a frame whose checksum is wrong",
            Met::OutOfOrder => "a frame that is out of order",
            Met::UnknownTopic => "a record whose topic's name is lost",
            Met::Unreadable => "bytes that the disk refuses to read",
        }
    }
}

/// Where it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    /// A good frame stands behind it in the segment.
    pub more: bool,
    /// The segment's seal or locator says how many records it holds.
    pub sealed: bool,
    /// No segment begins behind it.
    pub last: bool,
    /// Every record that may have stood there is known to be below the watermark.
    pub is_final: bool,
}

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Accept,
    Pass,
    End(Cost),
    Damage(Cost),
    Tail(Cost),
}

/// What says how many records are gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cost {
    Free,
    Numbers,
    Seal,
    NextSegment,
    Unknown,
}

/// The table of the module's documentation.
pub(super) fn verdict(met: Met, place: Place) -> Verdict {
    let behind = match place {
        Place { sealed: false, last: true, .. } => Cost::Unknown,
        Place { is_final: true, .. } => Cost::Free,
        Place { sealed: true, .. } => Cost::Seal,
        Place { .. } => Cost::NextSegment,
    };
    let before = if place.is_final { Cost::Free } else { Cost::Numbers };
    match met {
        Met::Frame if place.is_final => Verdict::Pass,
        Met::Frame => Verdict::Accept,
        Met::Seal => Verdict::End(Cost::Free),
        Met::UnknownTopic => Verdict::Damage(before),
        _ if place.more => Verdict::Damage(before),
        Met::Zeroes | Met::EndOfFile => Verdict::End(behind),
        Met::Uncommitted
        | Met::CutOff
        | Met::BadLength
        | Met::UnknownKind
        | Met::BadCrc
        | Met::OutOfOrder
        | Met::Unreadable => Verdict::Tail(behind),
    }
}
