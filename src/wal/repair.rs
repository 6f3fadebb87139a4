//! Owns the mending of a directory that nobody has open: what is bad goes to quarantine with a
//! reason, and a later verification knows it. Nothing is deleted.
//!
//! Whole files and the tails of segments that were never sealed are the business of `recover`,
//! which runs here as it does at every open. What it leaves is done here:
//!
//! | found | done |
//! |---|---|
//! | bad range within a segment | copied to quarantine; its bytes stay in the segment, so that the frame numbers around it go on saying what it cost |
//! | range that the disk refuses to read | a note in quarantine says so |
//! | records missing at a segment's end or between two | a note in quarantine says how many |
//! | checkpoint without a good slot, of another directory; bad `replayed` | moved to quarantine |
//! | manifest bad, or naming what isn't there | moved to quarantine if bad; a new one names what is there |
//!
//! Each step is whole or not done, and done again it changes nothing: a crash in the middle is
//! mended by another repair, or by opening.

use super::checkpoint::{Manifest, SLOTS, replace};
use super::findings::{Finding, Verification, Weight};
use super::format::{NEWER_DIR, QUARANTINE_DIR, SegmentKind, number_of};
use super::keeper::{quarantine_name, quarantine_range};
use super::recover::recover;
use super::replayed::Replayed;
use super::shared::BadRange;
use super::storage::Storage;
use super::types::{WalOptions, random_salts};
use super::verify::{loss_name, verify};
use crate::topics::TopicTable;
use std::io;
use std::sync::Arc;

/// What a repair did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Repaired {
    /// What was to be done, as [`plan`] says it.
    pub actions: Vec<String>,
    /// What stands in the directory now.
    pub after: Verification,
}

/// What a repair would do about these findings, in words.
#[must_use]
pub fn plan(found: &Verification) -> Vec<String> {
    found.findings.iter().filter_map(action).collect()
}

fn action(f: &Finding) -> Option<String> {
    let file = f.file.as_deref().unwrap_or("the directory");
    let range = || format!("bytes {} to {}", f.from.unwrap_or(0), f.to.unwrap_or(0));
    if f.weight == Weight::Known {
        return None;
    }
    Some(match (f.verdict, f.weight) {
        ("bad", _) => format!(
            "{file}: copy {} to {QUARANTINE_DIR}/ ({} records lost)",
            range(),
            f.records_lost
        ),
        ("tail", _) => format!("{file}: move {} to {QUARANTINE_DIR}/ and cut them off", range()),
        ("cut", _) => format!(
            "{file}: move what is no frame at its end to {QUARANTINE_DIR}/ and note {} lost records there",
            f.records_lost
        ),
        ("gap", _) => format!(
            "{file}: note in {QUARANTINE_DIR}/ that {} records before it are lost",
            f.records_lost
        ),
        ("missing", _) => {
            format!("{file}: note in {QUARANTINE_DIR}/ that it is missing, write a new manifest")
        }
        ("unreadable", _) if f.from.is_some() => {
            format!("{file}: note in {QUARANTINE_DIR}/ that {} can't be read", range())
        }
        ("header" | "foreign" | "unreadable" | "unfinished", _) if is_segment(file) => {
            format!("{file}: move it to {QUARANTINE_DIR}/ ({})", f.says)
        }
        ("newer_version", _) => format!("{file}: move it to {NEWER_DIR}/ untouched"),
        ("checkpoint" | "replayed", Weight::Damage) => {
            format!("{file}: move it to {QUARANTINE_DIR}/ ({})", f.says)
        }
        ("manifest", Weight::Damage) => {
            format!("{file}: move it to {QUARANTINE_DIR}/, write a new one from what is there")
        }
        (_, Weight::Damage) => format!("{file}: nothing can be done ({})", f.says),
        _ => return None,
    })
}

fn is_segment(file: &str) -> bool {
    file.rsplit('/').next().and_then(number_of).is_some()
}

/// Repairs what `before`, a verification of the same storage, found. The storage must be held.
///
/// # Errors
/// What the storage says; what was done until then stays done, and can be gone on with.
pub fn repair(
    storage: &dyn Storage,
    before: &Verification,
    now_unix_ms: i64,
    progress: &mut dyn FnMut(u64),
) -> io::Result<Repaired> {
    let actions = plan(before);
    if actions.is_empty() {
        return Ok(Repaired { actions, after: before.clone() });
    }
    let of = |verdict: &'static str| {
        let damage = move |f: &&Finding| f.verdict == verdict && f.weight == Weight::Damage;
        before.findings.iter().filter(damage).filter_map(|f| f.file.as_deref())
    };
    for name in of("checkpoint").chain(of("manifest")).chain(of("replayed")) {
        if SLOTS.contains(&name) || name == "manifest" || name == Replayed::FILE {
            storage.rename(name, &format!("{QUARANTINE_DIR}/{name}-{now_unix_ms}.bad"))?;
        }
    }
    for name in of("missing") {
        if let Some(number) = number_of(name) {
            let text = format!(
                "segment {number:016x} was named by the manifest and was not in the directory\n"
            );
            note(storage, &format!("{number:016x}.missing"), &text)?;
        }
    }
    storage.sync_dir()?;
    let options = WalOptions::default();
    let topics = Arc::new(TopicTable::default());
    let mut salts = random_salts();
    let opened = recover(storage, &topics, &options, salts())?;
    let manifest = Manifest {
        directory_id: opened.directory_id,
        next_number: opened.next_number,
        segments: opened.live.iter().map(|(n, (kind, _))| (*n, *kind as u64)).collect(),
    };
    manifest.publish(storage)?;
    let mut after = verify(storage, progress)?;
    for finding in after.findings.iter_mut().filter(|f| f.weight == Weight::Damage) {
        let (Some(file), Some(from), Some(to)) = (&finding.file, finding.from, finding.to) else {
            continue;
        };
        let name = file.rsplit('/').next().unwrap_or(file);
        let Some(number) = number_of(name) else { continue };
        let range = BadRange { number, from, to };
        match finding.verdict {
            "bad" => {
                let kind = if name == file { SegmentKind::Main } else { SegmentKind::SetAside };
                quarantine_range(storage, kind, &range, "bad")?;
            }
            "unreadable" => {
                let text = format!("bytes {from} to {to} could not be read; {}\n", finding.says);
                note(storage, &quarantine_name(&range, "bad"), &text)?;
            }
            _ => continue,
        }
        finding.weight = Weight::Known;
    }
    for (number, from, to) in std::mem::take(&mut after.losses) {
        let text = format!(
            "records with frame numbers {from} to {} are lost, {} in all: behind or before what is left in segment {number:016x}\n",
            to.saturating_sub(1),
            to - from
        );
        note(storage, &loss_name(number, from, to), &text)?;
    }
    for finding in &mut after.findings {
        if matches!(finding.verdict, "cut" | "gap") {
            finding.weight = Weight::Known;
        }
    }
    Ok(Repaired { actions, after })
}

/// Leaves a text in quarantine, durable.
fn note(storage: &dyn Storage, name: &str, text: &str) -> io::Result<()> {
    replace(storage, &format!("{QUARANTINE_DIR}/{name}"), text.as_bytes()).map(drop)
}
