//! Draining a directory by hand, over the sink in memory: what goes, what stays, what a stop or
//! a death in the middle costs.

mod orphan_common;

use forebay::inspect::{Directory, Item};
use forebay::redrive::{Options, Outcome, Redrive};
use forebay::sink::{MemoryRecord, Scope};
use forebay::{MemorySink, Pipeline};
use forebay_testkit::log_dir::segments;
use orphan_common::*;
use std::path::Path;

const RECORDS: u64 = 12_000;

fn to(sink: MemorySink) -> Pipeline {
    builder().at_most_once().sink(sink).open().unwrap()
}

fn only(topics: &[&str]) -> Options {
    let mut options = Options::default();
    options.topics = topics.iter().map(|t| (*t).to_owned()).collect();
    options
}

fn run(dir: &Path, options: &Options) -> (Vec<MemoryRecord>, Outcome) {
    let sink = MemorySink::new();
    let seen = sink.handle();
    let pipeline = to(sink);
    let mut redrive = Redrive::open(dir).unwrap();
    let outcome = redrive.run(&pipeline, options, &mut |_| true).unwrap();
    redrive.close().unwrap();
    assert_eq!(outcome.unaccounted(), 0, "{outcome:?}");
    (seen.records(), outcome)
}

fn numbers(records: &[MemoryRecord]) -> Vec<u64> {
    records.iter().map(|r| number(r.value.as_deref().unwrap())).collect()
}

/// What the next pipeline delivers.
fn rest(dir: &Path) -> Vec<u64> {
    let sink = MemorySink::new();
    let seen = sink.handle();
    let pipeline = in_dir(dir).sink(sink).open().unwrap();
    pipeline.flush(SOON).unwrap();
    let report = pipeline.close(SOON).unwrap();
    let books = report.stats.books;
    assert!(books.balanced() && books.in_wal == 0, "{books:?}");
    numbers(&seen.records())
}

fn set_aside(dir: &Path) -> Vec<(u64, String)> {
    let directory = Directory::open(dir).unwrap();
    let mut found = Vec::new();
    for segment in directory.segments().unwrap() {
        directory
            .walk(&segment, |item| {
                if let Item::Record(record) = item
                    && let Some(why) = record.set_aside
                {
                    found.push((number(record.value.unwrap()), why.reason.to_owned()));
                }
                true
            })
            .unwrap();
    }
    found
}

#[test]
fn everything_goes_in_order_as_it_was() {
    let dir = private_dir();
    fill(dir.path(), RECORDS);
    let (records, outcome) = run(dir.path(), &Options::default());
    assert!(outcome.complete && outcome.delivered == RECORDS, "{outcome:?}");
    assert!(numbers(&records).into_iter().eq(0..RECORDS));
    for (n, record) in (0..).zip(&records) {
        assert_eq!(&*record.topic, topic_of(n));
        assert_eq!(record.timestamp_ms, 1_000_000 + n as i64);
        assert_eq!(record.key.as_deref(), Some(&[b'k', b'0' + (n % 7) as u8][..]));
        let header = ("n".to_owned(), Some(n.to_string().into_bytes()));
        assert_eq!(record.headers, [header]);
    }
    assert_eq!(rest(dir.path()), [0; 0]);
    assert_eq!(segments(dir.path()).len(), 0, "drained segments are removed");
}

#[test]
fn selected_topics_go_and_the_others_stay() {
    let dir = private_dir();
    fill(dir.path(), RECORDS);
    let mut options = only(&["b"]);
    options.to_topic = Some("elsewhere".to_owned());
    let (records, outcome) = run(dir.path(), &options);
    assert!(outcome.complete, "{outcome:?}");
    assert_eq!((outcome.delivered, outcome.kept), (RECORDS / 3, RECORDS / 3 * 2));
    assert!(records.iter().all(|r| &*r.topic == "elsewhere"));
    assert!(numbers(&records).into_iter().eq((0..RECORDS).filter(|n| n % 3 == 1)));
    // Again: nothing of it is left to go.
    let (again, outcome) = run(dir.path(), &only(&["b"]));
    assert_eq!((again.len(), outcome.delivered_before), (0, RECORDS / 3), "{outcome:?}");
    let directory = Directory::open(dir.path()).unwrap();
    let marks: Vec<_> = directory.replayed().collect();
    assert!(
        matches!(marks[..], [("b", below)] if !directory.is_final("a", below - 1)),
        "{marks:?}"
    );
    assert!(directory.is_final("b", marks[0].1 - 1));
    // The next pipeline delivers the others, and only them, in order.
    assert!(rest(dir.path()).into_iter().eq((0..RECORDS).filter(|n| n % 3 != 1)));
    assert_eq!(rest(dir.path()), [0; 0]);
    assert!(!dir.path().join("replayed").exists(), "its time is over");
}

#[test]
fn one_topic_after_the_other_empties_the_directory() {
    let dir = private_dir();
    fill(dir.path(), RECORDS);
    let mut all = Vec::new();
    for topic in ["c", "a", "b"] {
        let (records, outcome) = run(dir.path(), &only(&[topic]));
        assert!(outcome.complete, "{outcome:?}");
        all.extend(numbers(&records));
    }
    all.sort_unstable();
    assert!(all.into_iter().eq(0..RECORDS));
    assert_eq!(segments(dir.path()).len(), 0);
    assert!(!dir.path().join("replayed").exists());
}

#[test]
fn a_stop_in_the_middle_removes_what_was_delivered_and_keeps_the_rest() {
    for topics in [&[][..], &["a", "b"]] {
        let dir = private_dir();
        fill(dir.path(), RECORDS);
        let sink = MemorySink::new();
        let seen = sink.handle();
        let pipeline = to(sink);
        let mut redrive = Redrive::open(dir.path()).unwrap();
        let mut options = only(topics);
        options.records_per_s = Some(5_000);
        let stop = &mut |so_far: &Outcome| so_far.delivered < 3_000;
        let outcome = redrive.run(&pipeline, &options, stop).unwrap();
        redrive.close().unwrap();
        let before = numbers(&seen.records());
        assert!(!outcome.complete && outcome.unaccounted() == 0, "{outcome:?}");
        assert_eq!(before.len() as u64, outcome.delivered);
        assert!((3_000..RECORDS).contains(&outcome.delivered), "{outcome:?}");
        let after = rest(dir.path());
        println!("stopped ({topics:?}): {} before, {} after", before.len(), after.len());
        assert_eq!(before.len() + after.len(), RECORDS as usize, "nothing twice, nothing lost");
        let mut all = [before, after].concat();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..RECORDS));
    }
}

#[test]
fn a_death_in_the_middle_costs_duplicates_only() {
    for topics in [&[][..], &["a", "b"]] {
        let dir = private_dir();
        fill(dir.path(), RECORDS);
        let sink = MemorySink::new();
        let seen = sink.handle();
        let pipeline = to(sink);
        let mut redrive = Redrive::open(dir.path()).unwrap();
        let mut options = only(topics);
        options.records_per_s = Some(5_000);
        // A panic in the middle drops everything without a last store, as a kill does.
        let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            redrive.run(&pipeline, &options, &mut |so_far| {
                assert!(so_far.delivered < 5_000, "dies here");
                true
            })
        }));
        assert!(died.is_err());
        drop(redrive);
        drop(pipeline);
        let before = numbers(&seen.records());
        let after = rest(dir.path());
        let mut all = [before.clone(), after.clone()].concat();
        let arrived = all.len();
        all.sort_unstable();
        all.dedup();
        println!(
            "died ({topics:?}): {} before, {} after, {} twice",
            before.len(),
            after.len(),
            arrived - all.len()
        );
        assert!(all.into_iter().eq(0..RECORDS));
        assert!(arrived - (RECORDS as usize) < before.len(), "a mark was stored on the way");
        assert!(after.is_sorted(), "order");
    }
}

#[test]
fn a_refused_record_is_tried_alone_then_set_aside_and_its_company_goes() {
    let dir = private_dir();
    fill(dir.path(), 300);
    let sink = MemorySink::new();
    let seen = sink.handle();
    // 41 fail in company; tried alone, none of them does.
    seen.fail_next(41, Scope::Record, "message_too_large");
    let pipeline = to(sink);
    let mut redrive = Redrive::open(dir.path()).unwrap();
    let outcome = redrive.run(&pipeline, &Options::default(), &mut |_| true).unwrap();
    redrive.close().unwrap();
    assert!(outcome.complete && outcome.unaccounted() == 0, "{outcome:?}");
    assert_eq!((outcome.delivered, outcome.set_aside), (300, 0), "{outcome:?}");

    let dir = private_dir();
    fill(dir.path(), 1);
    let sink = MemorySink::new();
    sink.handle().fail_next(2, Scope::Record, "message_too_large");
    let pipeline = to(sink);
    let mut redrive = Redrive::open(dir.path()).unwrap();
    let outcome = redrive.run(&pipeline, &Options::default(), &mut |_| true).unwrap();
    redrive.close().unwrap();
    assert_eq!((outcome.delivered, outcome.set_aside), (0, 1), "{outcome:?}");
    assert_eq!(set_aside(dir.path()), [(0, "message_too_large".to_owned())]);
    assert_eq!(rest(dir.path()), [0; 0]);
}

#[test]
fn a_topic_that_is_refused_ends_it_and_nothing_is_set_aside() {
    let dir = private_dir();
    fill(dir.path(), RECORDS);
    let sink = MemorySink::new();
    let seen = sink.handle();
    seen.fail_next(u64::MAX, Scope::Topic, "topic_unauthorised");
    let pipeline = to(sink);
    let mut redrive = Redrive::open(dir.path()).unwrap();
    let mut options = Options::default();
    options.close_timeout = std::time::Duration::from_millis(200);
    let outcome = redrive.run(&pipeline, &options, &mut |_| true).unwrap();
    redrive.close().unwrap();
    assert_eq!(outcome.trouble.as_deref(), Some("topic a: topic_unauthorised"), "{outcome:?}");
    assert_eq!((outcome.delivered, outcome.set_aside, outcome.complete), (0, 0, false));
    assert_eq!(outcome.unaccounted(), 0);
    assert!(rest(dir.path()).into_iter().eq(0..RECORDS), "all is still there, in order");
}

#[test]
fn dead_letters_are_redriven_by_reason_and_the_others_stay_as_they_were() {
    let dir = private_dir();
    fill_set_aside(dir.path(), 1_000);
    let mut options = Options::default();
    options.reasons = vec!["policy_violation".to_owned()];
    let sink = MemorySink::new();
    let seen = sink.handle();
    let pipeline = to(sink);
    let mut redrive = Redrive::open(dir.path()).unwrap();
    let outcome = redrive.run_set_aside(&pipeline, &options, &mut |_| true).unwrap();
    redrive.close().unwrap();
    assert!(outcome.complete && outcome.unaccounted() == 0, "{outcome:?}");
    assert_eq!((outcome.total, outcome.delivered, outcome.kept), (1_000, 300, 700));
    assert!(numbers(&seen.take()).into_iter().eq((0..1_000).filter(|n| n % 10 < 3)));
    let left = set_aside(dir.path());
    assert!(left.iter().map(|(n, _)| *n).eq((0..1_000).filter(|n| n % 10 >= 3)), "{left:?}");
    assert!(left.iter().all(|(_, reason)| reason == "record_invalid"));

    // The rest; three of them are refused once more and stay.
    seen.fail_next(6, Scope::Record, "record_invalid");
    let mut redrive = Redrive::open(dir.path()).unwrap();
    let outcome = redrive.run_set_aside(&pipeline, &only(&["b"]), &mut |_| true).unwrap();
    redrive.close().unwrap();
    let of_b = (0..1_000).filter(|n| n % 10 >= 3 && n % 3 == 1).count() as u64;
    assert_eq!((outcome.delivered + outcome.set_aside, outcome.unaccounted()), (of_b, 0));
    assert_eq!(set_aside(dir.path()).len() as u64, 700 - outcome.delivered, "{outcome:?}");
    let found = forebay::verify::verify(dir.path(), |_| {}).unwrap();
    assert!(found.is_sound(), "{found:?}");
}

#[test]
fn damage_is_counted_and_costs_only_itself() {
    let dir = private_dir();
    fill(dir.path(), RECORDS);
    flip(dir.path(), 4_000);
    flip(dir.path(), 9_000);
    let (records, outcome) = run(dir.path(), &Options::default());
    assert_eq!((outcome.delivered, outcome.lost), (RECORDS - 2, 2), "{outcome:?}");
    assert!(outcome.complete);
    assert!(numbers(&records).into_iter().eq((0..RECORDS).filter(|n| ![4_000, 9_000].contains(n))));
    assert_eq!(rest(dir.path()), [0; 0]);
    let kept = std::fs::read_dir(dir.path().join("quarantine")).unwrap().count();
    assert_eq!(kept, 2, "both ranges are in quarantine");
}

#[test]
fn a_held_or_absent_directory_is_refused_and_an_empty_one_has_nothing() {
    let dir = private_dir();
    let pipeline = in_dir(dir.path()).sink(MemorySink::new()).open().unwrap();
    let refused = Redrive::open(dir.path()).unwrap_err().to_string();
    assert!(refused.contains(&std::process::id().to_string()), "{refused}");
    drop(pipeline);
    let nowhere = dir.path().join("nowhere");
    assert!(Redrive::open(&nowhere).is_err() && !nowhere.exists());
    let (records, outcome) = run(dir.path(), &Options::default());
    assert!(records.is_empty() && outcome.complete, "{outcome:?}");
}
