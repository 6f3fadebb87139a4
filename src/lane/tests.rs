//! Tests of the lanes on real threads. Under Miri the sizes shrink.

#![allow(clippy::print_stdout)]

use super::lanes::Start;
use super::*;
use crate::error::SendError;
use crate::record::{ANY_PARTITION, Header, TopicId};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[path = "closure_tests.rs"]
mod closures;
#[cfg(not(miri))]
#[path = "fork_tests.rs"]
mod forks;

const SMALL: LaneOptions =
    LaneOptions { lanes: 1, lane_bytes: 1024, lane_slots: 8, record_bytes_max: 128 };

fn many(full: usize) -> usize {
    if cfg!(miri) { full.div_ceil(200) } else { full }
}

fn record(value: &[u8]) -> OutRecord<'_> {
    OutRecord {
        topic: TopicId(3),
        partition: ANY_PARTITION,
        timestamp_ms: 1_700_000_000_123,
        key: None,
        value: Some(value),
        headers: &[],
        receipt: NO_RECEIPT,
    }
}

fn refusals(lanes: &Lanes, reason: SendError) -> u64 {
    let at = SendError::ALL.iter().position(|&r| r == reason).unwrap();
    lanes.refused()[at]
}

fn popped_value(drain: &mut Drain, lane: usize) -> Option<Vec<u8>> {
    let frame = drain.pop(lane)?;
    let value = drain.view(&frame).unwrap().value().unwrap().to_vec();
    assert!(drain.release(&frame));
    Some(value)
}

#[test]
fn every_part_of_a_record_comes_back() {
    let (lanes, mut drain) = Lanes::new(&SMALL).unwrap();
    let headers = [
        Header { name: "v", value: Some(b"1") },
        Header { name: "empty", value: Some(b"") },
        Header { name: "null", value: None },
    ];
    let key: &[u8] = b"user-7";
    let value: &[u8] = b"payload";
    let parts = [None, Some(&b""[..]), Some(key)];
    let mut tried = 0;
    for key in parts {
        for value in [None, Some(&b""[..]), Some(value)] {
            for headers in [&[][..], &headers[..]] {
                let sent = OutRecord {
                    topic: TopicId(9),
                    partition: 4,
                    timestamp_ms: -1,
                    key,
                    value,
                    headers,
                    receipt: 17,
                };
                lanes.send(&sent).unwrap();
                let frame = drain.pop(0).unwrap();
                let view = drain.view(&frame).unwrap();
                assert_eq!((view.key(), view.value()), (key, value));
                assert_eq!(view.headers().collect::<Vec<_>>(), headers);
                assert_eq!((view.topic, view.partition, view.timestamp_ms), (TopicId(9), 4, -1));
                assert_eq!((frame.topic(), frame.partition()), (TopicId(9), 4));
                assert_eq!((frame.timestamp_ms(), frame.receipt()), (-1, 17));
                assert_eq!(view.body.len(), frame.shape().body_len());
                assert_eq!((frame.lane(), frame.lane_seq()), (0, tried));
                drain.release(&frame);
                tried += 1;
            }
        }
    }
    assert_eq!(drain.pop(0), None);
    println!("{tried} shapes of records");
}

#[test]
fn bodies_wrap_in_one_piece() {
    let (lanes, mut drain) = Lanes::new(&SMALL).unwrap();
    let mut skipped = 0;
    for i in 0..many(20_000) {
        let len = i * 7 % 129;
        let value = vec![i as u8; len];
        lanes.send(&record(&value)).unwrap();
        let frame = drain.pop(0).unwrap();
        assert_eq!(drain.view(&frame).unwrap().value().unwrap(), value);
        skipped += usize::from(frame.arena_bytes() > len.next_multiple_of(16));
        assert!(drain.release(&frame));
    }
    let look = drain.look(0);
    assert_eq!((look.used_bytes, look.used_slots, look.unpublished()), (0, 0, 0));
    assert!(skipped > 0);
    println!("{} records, {skipped} skipped the arena's end", look.head_seq);
}

#[test]
fn full_by_slots_and_by_bytes() {
    let (lanes, mut drain) = Lanes::new(&SMALL).unwrap();
    for _ in 0..8 {
        lanes.send(&record(b"")).unwrap();
    }
    assert_eq!(lanes.send(&record(b"")), Err(SendError::Full));
    let look = drain.look(0);
    assert_eq!((look.used_slots, look.used_bytes, look.queued), (8, 0, 8));
    while popped_value(&mut drain, 0).is_some() {}

    let wide = LaneOptions { lane_slots: 64, ..SMALL };
    let (lanes, mut drain) = Lanes::new(&wide).unwrap();
    for _ in 0..8 {
        lanes.send(&record(&[1; 128])).unwrap();
    }
    assert_eq!(lanes.send(&record(&[1])), Err(SendError::Full));
    lanes.send(&record(b"")).unwrap();
    assert_eq!(drain.look(0).used_bytes, 1024);
    popped_value(&mut drain, 0).unwrap();
    lanes.send(&record(&[2; 128])).unwrap();
    assert_eq!(lanes.send(&record(&[1])), Err(SendError::Full));
    assert_eq!(refusals(&lanes, SendError::Full), 2);
    assert_eq!(drain.look(0).head_seq, 10);
}

#[test]
fn frames_are_released_in_any_order_and_once() {
    let (lanes, mut drain) = Lanes::new(&SMALL).unwrap();
    for i in 0..8u8 {
        lanes.send(&record(&[i; 100])).unwrap();
    }
    let frames: Vec<_> = std::iter::from_fn(|| drain.pop(0)).collect();
    for &i in &[7usize, 3, 1, 2] {
        assert!(drain.release(&frames[i]));
        assert!(!drain.release(&frames[i]), "released twice");
        assert_eq!(drain.view(&frames[i]), None);
    }
    // Frame 0 holds everything back.
    assert_eq!(drain.look(0).used_slots, 8);
    assert_eq!(lanes.send(&record(b"")), Err(SendError::Full));
    assert!(drain.release(&frames[0]));
    assert_eq!(drain.look(0).used_slots, 4);
    lanes.send(&record(&[9; 100])).unwrap();
    // The slot of frame 0 is in use again: the old frame is still known as released.
    let newer = drain.pop(0).unwrap();
    assert!(!drain.release(&frames[0]));
    assert_eq!(drain.view(&frames[0]), None);
    assert_eq!(drain.view(&newer).unwrap().value(), Some(&[9; 100][..]));
    assert_eq!(drain.view(&frames[4]).unwrap().value(), Some(&[4; 100][..]));
}

#[test]
fn another_drain_s_frame_is_ignored() {
    let (lanes, mut drain) = Lanes::new(&SMALL).unwrap();
    let (_other_lanes, mut other) = Lanes::new(&SMALL).unwrap();
    _other_lanes.send(&record(b"b")).unwrap();
    other.pop(0).unwrap();
    lanes.send(&record(b"a")).unwrap();
    let frame = drain.pop(0).unwrap();
    assert_eq!(other.view(&frame), None);
    assert!(!other.release(&frame));
    assert_eq!(drain.view(&frame).unwrap().value(), Some(&b"a"[..]));
}

#[test]
fn refusals_are_typed_and_counted() {
    let (lanes, mut drain) = Lanes::new(&SMALL).unwrap();
    let long_name = "n".repeat(1025);
    let bad = [
        Header { name: "", value: None },
        Header { name: "a\0b", value: None },
        Header { name: &long_name, value: None },
    ];
    for header in &bad {
        let r = OutRecord { headers: std::slice::from_ref(header), ..record(b"x") };
        assert_eq!(lanes.send(&r), Err(SendError::BadHeader));
    }
    let seventeen = [Header { name: "n", value: None }; 17];
    let r = OutRecord { headers: &seventeen, ..record(b"x") };
    assert_eq!(lanes.send(&r), Err(SendError::BadHeader));
    assert_eq!(lanes.send(&record(&[0; 129])), Err(SendError::TooLarge));
    let r = OutRecord { key: Some(&[0; 64]), ..record(&[0; 65]) };
    assert_eq!(lanes.send(&r), Err(SendError::TooLarge));
    assert_eq!(lanes.send_with(&record(b""), usize::MAX, |_| 0), Err(SendError::TooLarge));
    assert_eq!(
        lanes.send(&OutRecord { partition: -2, ..record(b"") }),
        Err(SendError::BadPartition)
    );
    assert_eq!(lanes.send_with(&record(b""), 4, |_| 5), Err(SendError::BadLength));
    assert_eq!(lanes.count_refusal(SendError::NoReceipt), SendError::NoReceipt);
    lanes.close();
    assert_eq!(lanes.send(&record(b"")), Err(SendError::Closed));
    assert_eq!(lanes.send_with(&record(b""), 4, |_| 4), Err(SendError::Closed));
    lanes.stop();
    assert_eq!(lanes.send(&record(b"")), Err(SendError::Stopped));

    assert_eq!(lanes.refused(), [0, 3, 2, 1, 0, 4, 1, 1, 1]);
    assert_eq!(drain.pop(0), None);
    let look = drain.look(0);
    assert_eq!((look.head_seq, look.padding, look.popped), (1, 1, 1));
    assert!(look.is_drained());
    for (i, reason) in SendError::ALL.into_iter().enumerate() {
        assert_eq!(reason as usize, i + 1);
    }
}

#[test]
fn options_out_of_range_say_what_is_allowed() {
    for (options, words) in [
        (LaneOptions { lanes: 3, ..SMALL }, "lanes = 3: a power of two from 1 to 1024"),
        (LaneOptions { lane_bytes: 1000, ..SMALL }, "lane_bytes = 1000"),
        (LaneOptions { lane_slots: 0, ..SMALL }, "lane_slots = 0"),
        (LaneOptions { record_bytes_max: 129, ..SMALL }, "lane_bytes must be at least 1032"),
    ] {
        let e = Lanes::new(&options).map(|_| ()).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::InvalidInput);
        assert!(e.to_string().contains(words), "{e}");
    }
}

#[test]
fn counters_go_on_over_every_wrap() {
    for seq in [(1 << 31) - 3, (1 << 32) - 3, (5 << 31) - 3] {
        let start = Start { position: u32::MAX - 6, seq };
        let (lanes, mut drain) = Lanes::with_start(&SMALL, start).unwrap();
        for i in 0..20u64 {
            lanes.send(&record(&[i as u8; 33])).unwrap();
            lanes.send(&record(&[!i as u8; 17])).unwrap();
            let (a, b) = (drain.pop(0).unwrap(), drain.pop(0).unwrap());
            assert_eq!((a.lane_seq(), b.lane_seq()), (seq + 2 * i, seq + 2 * i + 1));
            assert_eq!(drain.view(&a).unwrap().value(), Some(&[i as u8; 33][..]));
            assert_eq!(drain.view(&b).unwrap().value(), Some(&[!i as u8; 17][..]));
            assert!(drain.release(&b) && drain.release(&a));
            let look = drain.look(0);
            assert_eq!((look.head_seq, look.used_slots), (seq + 2 * i + 2, 0));
            assert_eq!((look.used_bytes, look.oldest_unpopped), (0, look.head_seq));
        }
        lanes.close();
        assert!(drain.look(0).is_drained());
    }
}

#[test]
fn accepted_and_closed_are_linear() {
    let rounds = many(60);
    let (mut accepted_total, mut closed_midway) = (0, 0);
    for round in 0..rounds {
        let options = LaneOptions { lanes: 2, lane_slots: 64, ..SMALL };
        let (lanes, mut drain) = Lanes::new(&options).unwrap();
        let accepted = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (0..4)
            .map(|t| {
                let (lanes, accepted) = (lanes.clone(), accepted.clone());
                std::thread::spawn(move || {
                    loop {
                        match lanes.send_as(t % 2, &record(&[t as u8; 20])) {
                            Ok(()) => accepted.fetch_add(1, Ordering::Relaxed),
                            Err(SendError::Closed) => return,
                            Err(_) => {
                                std::thread::yield_now();
                                0
                            }
                        };
                    }
                })
            })
            .collect();
        let mut popped = 0;
        let close_after = round as u64 * 7 % 500;
        loop {
            for lane in 0..2 {
                // Four that send may be faster than one that pops: not until it is empty.
                while popped < close_after && popped_value(&mut drain, lane).is_some() {
                    popped += 1;
                }
            }
            if popped >= close_after {
                lanes.close();
                for lane in 0..2 {
                    while popped_value(&mut drain, lane).is_some() {
                        popped += 1;
                    }
                }
            }
            if (0..2).all(|lane| drain.look(lane).is_drained()) {
                break;
            }
        }
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(accepted.load(Ordering::Relaxed), popped);
        assert!((0..2).all(|lane| drain.pop(lane).is_none()));
        accepted_total += popped;
        closed_midway += u64::from(popped > 0);
    }
    println!("{rounds} closes, {closed_midway} with traffic: {accepted_total} accepted and popped");
}

#[test]
fn each_thread_s_records_stay_in_order_on_a_shared_lane() {
    let per_thread = many(20_000) as u64;
    let options = LaneOptions { lane_bytes: 4096, lane_slots: 64, ..SMALL };
    let (lanes, mut drain) = Lanes::new(&options).unwrap();
    let threads: Vec<_> = (0..3u8)
        .map(|t| {
            let lanes = lanes.clone();
            std::thread::spawn(move || {
                let mut refused = 0u64;
                for i in 0..per_thread {
                    let mut value = vec![t; 9 + (i % 100) as usize];
                    value[1..9].copy_from_slice(&i.to_le_bytes());
                    while lanes.send(&record(&value)).is_err() {
                        refused += 1;
                        std::thread::yield_now();
                    }
                }
                refused
            })
        })
        .collect();
    let mut next = [0u64; 3];
    let mut held = Vec::new();
    let mut overtaken = 0;
    let mut last = 0;
    while next.iter().sum::<u64>() < 3 * per_thread {
        let Some(frame) = drain.pop(0) else {
            // A sender that was held up before its publish may have an early range: the others
            // fill the lane behind it, and then what is held here keeps the lane full.
            held.drain(..).for_each(|f| assert!(drain.release(&f)));
            drain.look(0);
            std::thread::yield_now();
            continue;
        };
        let value = drain.view(&frame).unwrap().value().unwrap();
        let t = value[0] as usize;
        let i = u64::from_le_bytes(value[1..9].try_into().unwrap());
        assert_eq!((i, value.len()), (next[t], 9 + (i % 100) as usize));
        assert!(value[9..].iter().all(|&b| b == t as u8));
        next[t] += 1;
        overtaken += u64::from(frame.lane_seq() < last);
        last = frame.lane_seq();
        held.push(frame);
        if held.len() == 5 {
            held.drain(..).rev().for_each(|f| assert!(drain.release(&f)));
        }
    }
    let refused: u64 = threads.into_iter().map(|t| t.join().unwrap()).sum();
    held.iter().for_each(|f| assert!(drain.release(f)));
    let look = drain.look(0);
    assert_eq!((look.used_bytes, look.used_slots, look.head_seq), (0, 0, 3 * per_thread));
    assert_eq!(refusals(&lanes, SendError::Full), refused);
    println!("{} records, {refused} refusals, {overtaken} overtaken", look.head_seq);
}

#[test]
fn the_arena_outlives_whichever_side_goes_first() {
    let (lanes, mut drain) = Lanes::new(&SMALL).unwrap();
    lanes.send(&record(b"a")).unwrap();
    drop(lanes);
    assert_eq!(popped_value(&mut drain, 0).unwrap(), b"a");
    let lanes = drain.lanes().clone();
    drop(drain);
    lanes.send(&record(b"b")).unwrap();
}

#[derive(Clone, Debug)]
enum Op {
    Send(usize),
    SendWith(usize, usize),
    Panic(usize),
    Pop,
    Release(usize),
    Close,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0usize..140).prop_map(Op::Send),
        2 => (0usize..140, 0usize..140).prop_map(|(max, len)| Op::SendWith(max, len)),
        1 => (0usize..128).prop_map(Op::Panic),
        8 => Just(Op::Pop),
        8 => any::<usize>().prop_map(Op::Release),
        1 => Just(Op::Close),
    ]
}

/// What a lane should do, in plain words: every frame with its span, in reservation order.
#[derive(Default)]
struct Model {
    position: usize,
    /// (span in bytes, value or padding, popped, released), front is the oldest not released.
    frames: VecDeque<(usize, Option<Vec<u8>>, bool, bool)>,
    closed: bool,
}

impl Model {
    fn admit(&mut self, len: usize, value: Option<Vec<u8>>) -> Result<(), SendError> {
        if len > SMALL.record_bytes_max {
            return Err(SendError::TooLarge);
        }
        if self.closed {
            return Err(SendError::Closed);
        }
        let rounded = len.next_multiple_of(16);
        let left = SMALL.lane_bytes - self.position % SMALL.lane_bytes;
        let span = if rounded > left { left + rounded } else { rounded };
        let used: usize = self.frames.iter().map(|f| f.0).sum();
        if used + span > SMALL.lane_bytes || self.frames.len() == SMALL.lane_slots {
            return Err(SendError::Full);
        }
        self.position += span;
        self.frames.push_back((span, value, false, false));
        Ok(())
    }

    /// Takes padding and then one record; returns the record's value.
    fn pop(&mut self) -> Option<Vec<u8>> {
        let mut found = None;
        for f in self.frames.iter_mut().filter(|f| !f.2) {
            f.2 = true;
            found = f.1.clone();
            f.3 = found.is_none();
            if found.is_some() {
                break;
            }
        }
        self.trim();
        found
    }

    fn release(&mut self, value: &[u8]) {
        let f = self.frames.iter_mut().find(|f| f.2 && !f.3 && f.1.as_deref() == Some(value));
        f.unwrap().3 = true;
        self.trim();
    }

    fn trim(&mut self) {
        while self.frames.front().is_some_and(|f| f.3) {
            self.frames.pop_front();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 2_000 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_lane_does_what_a_deque_does(ops in proptest::collection::vec(op(), 1..120), seq in 0u64..(1 << 33)) {
        let units = SMALL.lane_bytes as u32 / 16;
        let start = Start { position: (seq as u32 / units) * units, seq };
        let (lanes, mut drain) = Lanes::with_start(&SMALL, start).unwrap();
        let mut model = Model::default();
        let mut held: Vec<(Frame, Vec<u8>)> = Vec::new();
        for (i, op) in ops.into_iter().enumerate() {
            match op {
                Op::Send(len) => {
                    // Longer values differ by their first bytes; the shorter by place or length.
                    let value: Vec<u8> = (0..len).map(|at| (i * 31 + at) as u8).collect();
                    prop_assert_eq!(lanes.send(&record(&value)), model.admit(len, Some(value)));
                }
                Op::SendWith(max, len) => {
                    let value = vec![i as u8; len];
                    let sent = lanes.send_with(&record(b""), max, |to| {
                        let n = len.min(max);
                        to[..n].copy_from_slice(&value[..n]);
                        len
                    });
                    let expected = if len > max {
                        model.admit(max, None).and(Err(SendError::BadLength))
                    } else {
                        model.admit(max, Some(value.clone()))
                    };
                    prop_assert_eq!(sent, expected);
                }
                Op::Panic(max) => {
                    // `resume_unwind` runs no panic hook, so that nothing is printed.
                    let result = catch_unwind(AssertUnwindSafe(|| {
                        lanes.send_with(&record(b""), max, |_| std::panic::resume_unwind(Box::new(())))
                    }));
                    match model.admit(max, None) {
                        Ok(()) => prop_assert!(result.is_err()),
                        Err(e) => prop_assert_eq!(result.unwrap(), Err(e)),
                    }
                }
                Op::Pop => {
                    let frame = drain.pop(0);
                    let value = frame.map(|f| drain.view(&f).unwrap().value().unwrap().to_vec());
                    prop_assert_eq!(&value, &model.pop());
                    held.extend(frame.zip(value));
                }
                Op::Release(at) if !held.is_empty() => {
                    let (frame, value) = held.swap_remove(at % held.len());
                    // Frames with equal values are released in the model's order.
                    let twin = held.iter_mut().find(|h| h.1 == value && h.0.lane_seq() < frame.lane_seq());
                    let frame = twin.map_or(frame, |h| std::mem::replace(&mut h.0, frame));
                    prop_assert!(drain.release(&frame));
                    prop_assert!(!drain.release(&frame));
                    model.release(&value);
                }
                Op::Release(_) => {}
                Op::Close => {
                    if i > 60 {
                        lanes.close();
                        model.closed = true;
                    }
                }
            }
            for (frame, value) in &held {
                prop_assert_eq!(drain.view(frame).unwrap().value(), Some(&value[..]));
            }
            let look = drain.look(0);
            prop_assert_eq!(look.used_slots as usize, model.frames.len());
            prop_assert_eq!(look.used_bytes as usize, model.frames.iter().map(|f| f.0).sum::<usize>());
            prop_assert_eq!(look.queued, model.frames.iter().filter(|f| !f.2).count());
            prop_assert_eq!((look.unpublished(), look.closed), (0, model.closed));
        }
    }
}
