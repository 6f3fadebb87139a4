//! Every cell of the recovery table: each situation is built, opened, read to its end, opened
//! again and trimmed.

use super::super::format::{
    FRAME_HEADER_BYTES, FrameHeader, HeaderVerdict, SegmentHeader, pad8, segment_name,
};
use super::super::seal::{LOCATOR_AT, LOCATOR_BYTES, Locator};
use super::super::verdict::{Cost, Met, Place, Verdict, verdict};
use super::*;

/// A frame spans more than two pages, so that a page of it can be lost without its neighbours.
const VALUE_BYTES: usize = 9_000;

fn options() -> WalOptions {
    WalOptions {
        segment_bytes: 128 << 10,
        set_aside_segment_bytes: 128 << 10,
        wal_bytes_max: Some(8 << 20),
        record_bytes_max: 16 << 10,
        read_buffer_bytes: 32 << 10,
        ..WalOptions::default()
    }
}

/// Every `Met`, by naming each one's successor: a new one without a place here doesn't compile.
fn after(met: Option<Met>) -> Option<Met> {
    Some(match met {
        None => Met::Frame,
        Some(Met::Frame) => Met::Seal,
        Some(Met::Seal) => Met::Zeroes,
        Some(Met::Zeroes) => Met::EndOfFile,
        Some(Met::EndOfFile) => Met::Uncommitted,
        Some(Met::Uncommitted) => Met::CutOff,
        Some(Met::CutOff) => Met::BadLength,
        Some(Met::BadLength) => Met::UnknownKind,
        Some(Met::UnknownKind) => Met::BadCrc,
        Some(Met::BadCrc) => Met::OutOfOrder,
        Some(Met::OutOfOrder) => Met::UnknownTopic,
        Some(Met::UnknownTopic) => Met::Unreadable,
        Some(Met::Unreadable) => return None,
    })
}

fn all_met() -> impl Iterator<Item = Met> {
    std::iter::successors(after(None), |met| after(Some(*met)))
}

fn places() -> impl Iterator<Item = Place> {
    (0..16u8).map(|bits| Place {
        more: bits & 1 != 0,
        sealed: bits & 2 != 0,
        last: bits & 4 != 0,
        is_final: bits & 8 != 0,
    })
}

/// In how many ways a situation can come about.
fn ways(met: Met) -> usize {
    match met {
        // A flipped bit; a frame under another salt.
        Met::BadCrc => 2,
        // An LSN that was given before; a frame number from far ahead; one from before.
        Met::OutOfOrder => 3,
        _ => 1,
    }
}

/// Segments of ten records each: 1 to 10, 11 to 20 and, unless the second is the last, 21 to 30.
struct Scene {
    storage: MemoryStorage,
    name: String,
    header: SegmentHeader,
    /// Where records 11 to 20 begin.
    at: Vec<u64>,
}

fn scene(last: bool, watermark: u64) -> Scene {
    let storage = MemoryStorage::new();
    let mut log = open(&storage, options());
    let topic = topic_of(&log, "alpha");
    let mut places = Vec::new();
    for n in 1..=if last { 20 } else { 30u64 } {
        let body = vec![n as u8; VALUE_BYTES];
        let shape = Shape { headers_len: 0, key_len: None, value_len: Some(VALUE_BYTES as u32) };
        let record = RecordView { topic, partition: 0, timestamp_ms: 1, shape, body: &body };
        places.push(loop {
            match log.wal.append(Lsn(n), &record) {
                Ok(at) => break at,
                Err(AppendError::NotReady) => assert!(log.keeper.step(0, None).prepared),
                Err(e) => panic!("{e}"),
            }
        });
        if n % 10 == 0 {
            log.wal.seal();
        }
    }
    let data =
        CheckpointData { watermark: Lsn(watermark), next_lsn: Lsn(31), ..Default::default() };
    log.keeper.store_checkpoint(&data).expect("stored");
    log.keeper.sync_now().expect("synced");
    let name = segment_name(SegmentKind::Main, places[10].segment);
    assert!(places[9].segment < places[10].segment && places[10].segment == places[19].segment);
    let bytes = storage.contents(&name).expect("there");
    let HeaderVerdict::Good(header) = SegmentHeader::judge(&bytes) else { panic!("no header") };
    Scene { storage, name, header, at: places[10..20].iter().map(|p| p.offset).collect() }
}

/// Puts the situation into the second segment. Returns what stands there from the place on, and
/// up to where: what must be in quarantine.
fn build(scene: &Scene, met: Met, way: usize, place: Place) -> Vec<u8> {
    let Scene { storage, name, header, at } = scene;
    let mut bytes = storage.contents(name).expect("there");
    let locator = Locator::find(&bytes, header.salt).expect("sealed");
    let from = if place.more { at[4] } else { at[9] } as usize;
    let end = if place.more { at[5] } else { locator.offset } as usize;
    let seal_end = pad8(locator.offset + locator.length) as usize;
    let is_clean = matches!(met, Met::Frame | Met::Seal);
    let mut to = end;
    if !place.sealed {
        // As it is when the process died before: no seal, no locator.
        for at in LOCATOR_AT {
            bytes[at as usize..at as usize + LOCATOR_BYTES].fill(0);
        }
        bytes[locator.offset as usize..].fill(0);
    } else if !place.more && !is_clean && met != Met::UnknownTopic {
        // With the seal in place a good frame would stand behind.
        bytes[locator.offset as usize + 20] ^= 1;
        to = seal_end;
    }
    let mut frame = FrameHeader::decode(&bytes[from..]).expect("a frame");
    let body = bytes[from + FRAME_HEADER_BYTES..from + frame.length as usize].to_vec();
    let write = |bytes: &mut Vec<u8>, frame: &FrameHeader, salt: u32| {
        bytes[from..from + FRAME_HEADER_BYTES].copy_from_slice(&frame.encode(salt, &[], &body));
    };
    match met {
        Met::Frame | Met::Seal => {}
        Met::Zeroes => {
            let zero_to = if place.more { end } else { bytes.len() };
            bytes[from..zero_to].fill(0);
            to = if place.more { end } else { from };
        }
        Met::EndOfFile => {
            bytes.truncate(from);
            to = from;
        }
        Met::Uncommitted => bytes[from..from + 8].fill(0),
        Met::CutOff if place.more => {
            // Only a void may be longer than the longest record.
            let mut void = FrameHeader::plain(FrameKind::Void, frame.frame_number, 0, 0);
            void.length = 1 << 20;
            write(&mut bytes, &void, header.salt);
        }
        Met::CutOff => {
            bytes.truncate(from + 5_000);
            to = from + 5_000;
        }
        Met::BadLength => bytes[from + 52] ^= 1,
        Met::UnknownKind => bytes[from + 32] = 9,
        Met::BadCrc if way == 0 => bytes[from + 5_000] ^= 0x10,
        Met::BadCrc => write(&mut bytes, &frame, header.salt ^ 0xdead_beef),
        Met::OutOfOrder => {
            match way {
                0 => frame.lsn = 3,
                1 => frame.frame_number += 100,
                _ => frame.frame_number -= 1,
            }
            write(&mut bytes, &frame, header.salt);
        }
        Met::UnknownTopic => {
            frame.topic = 77;
            write(&mut bytes, &frame, header.salt);
        }
        Met::Unreadable => {}
    }
    let bad = if is_clean { Vec::new() } else { bytes[from..to].to_vec() };
    storage.put(name, &bytes);
    if met == Met::Unreadable {
        let page = (from as u64 / 4096 + 1) * 4096;
        assert!(page + 4096 < end as u64);
        storage.set_unreadable(name, page, page + 4096);
    }
    bad
}

/// What a reader yields; where the storage refuses, it is told to pass.
fn read(open: &Open) -> (Vec<u64>, u64) {
    let (mut lsns, mut lost) = (Vec::new(), 0);
    let Some(from) = open.recovery.backlog else { return (lsns, lost) };
    let mut reader = open.wal.reader(from);
    for _ in 0..1_000 {
        match open.wal.read_next(&mut reader) {
            ReadItem::Record(r) => {
                assert!(r.record.body.iter().all(|b| *b == r.lsn.0 as u8));
                assert_eq!(r.record.body.len(), VALUE_BYTES);
                lsns.push(r.lsn.0);
            }
            ReadItem::Damage { records_lost, .. } => lost += records_lost,
            ReadItem::CaughtUp => return (lsns, lost),
            ReadItem::Error(_) => reader.skip_unreadable(),
        }
    }
    panic!("no end")
}

fn check(met: Met, way: usize, place: Place, watermark: u64) {
    let what = format!("{met:?} {way} {place:?}, watermark {watermark}");
    let scene = scene(place.last, watermark);
    let bad = build(&scene, met, way, place);
    let ruled = verdict(met, place);
    let top = if place.last { 20 } else { 30 };
    let gone = if place.more { 15 } else { 20 };
    let is_gone = !matches!(met, Met::Frame | Met::Seal);
    let due: Vec<u64> = (watermark.max(1)..=top).filter(|n| !(is_gone && *n == gone)).collect();
    let (costs, unfinished) = match ruled {
        Verdict::Accept | Verdict::Pass => (0, 0),
        Verdict::End(Cost::Free | Cost::Unknown) | Verdict::Damage(Cost::Free) => (0, 0),
        Verdict::End(_) | Verdict::Damage(_) | Verdict::Tail(Cost::Seal) => (1, 0),
        Verdict::Tail(Cost::Free) => (0, u64::from(!place.sealed)),
        Verdict::Tail(Cost::Unknown) => (0, 1),
        Verdict::Tail(_) => (1, 1),
    };
    let kept_bytes = matches!(ruled, Verdict::Damage(_) | Verdict::Tail(_));

    let mut log = open(&scene.storage, options());
    let damage = log.recovery.damage.clone();
    let (lsns, lost) = read(&log);
    assert_eq!((&lsns, lost), (&due, costs), "{what}: {:?}", log.recovery);
    assert_eq!(log.recovery.records, due.len() as u64 + costs, "{what}: {:?}", log.recovery);
    // A sealed segment that doesn't hold the watermark isn't walked at open, but when it is read.
    let walked = !place.sealed || !place.more || (11..=20).contains(&watermark);
    let seen =
        walked && !(met == Met::UnknownTopic && place.sealed && !(11..=20).contains(&watermark));
    assert_eq!(damage.records_lost, if seen { costs } else { 0 }, "{what}: {damage:?}");
    assert_eq!(
        damage.findings.is_empty(),
        !seen || (!kept_bytes && costs == 0),
        "{what}: {damage:?}"
    );
    let below = met == Met::UnknownTopic && place.sealed && watermark > 20;
    assert_eq!(damage.unfinished_tails, unfinished, "{what}: {damage:?}");
    let others = (
        damage.segments_missing,
        damage.segments_newer,
        damage.segments_foreign,
        damage.checkpoints_bad,
    );
    assert_eq!(others, (0, 0, 0, 0), "{what}");

    // Nothing bad is gone: it is in quarantine, byte for byte.
    log.keeper.step(0, None);
    let quarantined = |storage: &MemoryStorage| -> Vec<String> {
        storage.names().into_iter().filter(|n| n.starts_with("quarantine/")).collect()
    };
    let mut copies = quarantined(&scene.storage);
    copies.retain(|n| !n.ends_with(".kept"));
    let copied = kept_bytes && met != Met::Unreadable && !below;
    assert_eq!(copies.len(), usize::from(copied), "{what}: {copies:?}");
    if copied {
        assert!(scene.storage.contents(&copies[0]).expect("there") == bad, "{what}: other bytes");
    }

    // The next start finds the same; what a walk found is sealed now.
    log.keeper.sync_now().expect("synced");
    let image = scene.storage.process_crash_image();
    if met == Met::Unreadable {
        let page = (if place.more { scene.at[4] } else { scene.at[9] } / 4096 + 1) * 4096;
        image.set_unreadable(&scene.name, page, page + 4096);
    }
    let again = open(&image, options());
    assert_eq!(read(&again), (due, costs), "{what}, the second start: {:?}", again.recovery);
    if met != Met::Unreadable {
        assert_eq!(again.recovery.damage.unfinished_tails, 0, "{what}, the second start");
        // What is whole is sealed by now; what is damaged is told at each start.
        let cut = !place.more && !place.sealed && met != Met::UnknownTopic;
        let stands = place.sealed && (place.more || met == Met::UnknownTopic);
        if !is_gone || cut || stands {
            assert!(again.wal.segments.iter().all(|s| s.seal.is_some()), "{what}: walked again");
        }
    }

    // Delivered: the segments go, but for the one that could never be read whole.
    log.wal.trim(Lsn(1_000));
    log.keeper.step(1, None);
    assert!(scene.storage.contents(&scene.name).is_none(), "{what}");
    if met == Met::Unreadable {
        let left = quarantined(&scene.storage);
        assert_eq!(left.len(), 1, "{what}: {left:?}");
        assert!(left[0].ends_with(".kept"), "{what}: {left:?}");
    }
}

#[test]
fn every_cell_of_the_recovery_table_does_what_it_says() {
    let (mut cells, mut situations) = (0, 0);
    for met in all_met() {
        for place in places() {
            // A good seal ends a segment; and behind the end of a file nothing stands.
            if matches!(met, Met::Seal | Met::EndOfFile) && place.more {
                continue;
            }
            cells += 1;
            let watermarks = match (place.more, place.is_final) {
                (_, false) => &[0, 13][..],
                (true, true) => &[18],
                (false, true) => &[25],
            };
            for &watermark in watermarks {
                for way in 0..ways(met) {
                    check(met, way, place, watermark);
                    situations += 1;
                }
            }
        }
    }
    println!("{cells} cells of the table, {situations} situations");
    assert_eq!(cells, 12 * 16 - 2 * 8);
}

/// The table as it stands in the documentation, so that neither changes alone.
#[test]
fn the_table_is_the_one_in_the_documentation() {
    let columns = |met| {
        let at =
            |more, is_final, sealed, last| verdict(met, Place { more, sealed, last, is_final });
        let more = [at(true, false, true, true), at(true, true, true, true)];
        let end = [
            at(false, false, true, false),
            at(false, false, false, false),
            at(false, false, false, true),
        ];
        more.into_iter().chain(end).collect::<Vec<_>>()
    };
    let free = Verdict::Damage(Cost::Free);
    let numbers = Verdict::Damage(Cost::Numbers);
    for met in all_met() {
        let expected = match met {
            Met::Frame => {
                [Verdict::Accept, Verdict::Pass, Verdict::Accept, Verdict::Accept, Verdict::Accept]
            }
            Met::Seal => [Verdict::End(Cost::Free); 5],
            Met::Zeroes | Met::EndOfFile => [
                numbers,
                free,
                Verdict::End(Cost::Seal),
                Verdict::End(Cost::NextSegment),
                Verdict::End(Cost::Unknown),
            ],
            Met::UnknownTopic => [numbers, free, numbers, numbers, numbers],
            Met::Uncommitted
            | Met::CutOff
            | Met::BadLength
            | Met::UnknownKind
            | Met::BadCrc
            | Met::OutOfOrder
            | Met::Unreadable => [
                numbers,
                free,
                Verdict::Tail(Cost::Seal),
                Verdict::Tail(Cost::NextSegment),
                Verdict::Tail(Cost::Unknown),
            ],
        };
        assert_eq!(columns(met), expected, "{met:?}");
    }
}
