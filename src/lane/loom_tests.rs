//! Loom models of reserve, publish, refuse, close and release, at capacity 1 and 2.
//!
//! The arena is one or two units long, so that ranges are used again at once; every access to a
//! unit, and to a slot, is checked for order against the conflicting ones. Each model runs as it is, and once
//! more for each [`Point`] with that ordering weakened: at least one model must fail then.

use super::lanes::Start;
use super::orderings::{Point, WEAK};
use super::*;
use crate::error::SendError;
use crate::record::TopicId;
use crate::sync::{AtomicBool, Ordering};
use loom::thread;
use std::sync::Arc;

const WRAPPING: Start = Start { position: u32::MAX, seq: (1 << 31) - 1 };

fn options(slots: usize) -> LaneOptions {
    LaneOptions { lanes: 1, lane_bytes: 32, lane_slots: slots, record_bytes_max: 16 }
}

fn record(value: &[u8]) -> OutRecord<'_> {
    OutRecord {
        topic: TopicId(0),
        partition: 0,
        timestamp_ms: 0,
        key: None,
        value: Some(value),
        headers: &[],
        receipt: NO_RECEIPT,
    }
}

/// Pops, reads and releases one record; its first byte.
fn take(drain: &mut Drain) -> Option<u8> {
    let frame = drain.pop(0)?;
    let byte = drain.view(&frame).unwrap().value().unwrap()[0];
    assert!(drain.release(&frame));
    Some(byte)
}

/// Two senders and a drain: what was accepted is popped, each sender's in order, and a refusal
/// is for want of room only.
fn send_and_drain(slots: usize, start: Start) {
    loom::model(move || {
        let (lanes, mut drain) = Lanes::with_start(&options(slots), start).unwrap();
        let send = |who: u8, count: u8| {
            let lanes = lanes.clone();
            thread::spawn(move || {
                let mut accepted = Vec::new();
                for i in 0..count {
                    match lanes.send_as(0, &record(&[who + i; 16])) {
                        Ok(()) => accepted.push(who + i),
                        Err(e) => assert_eq!(e, SendError::Full),
                    }
                }
                accepted
            })
        };
        let (a, b) = (send(10, 2), send(20, 1));
        let mut popped: Vec<u8> = take(&mut drain).into_iter().collect();
        let (a, b) = (a.join().unwrap(), b.join().unwrap());
        popped.extend(std::iter::from_fn(|| take(&mut drain)));
        let of =
            |who: u8| popped.iter().copied().filter(|p| p / 10 * 10 == who).collect::<Vec<_>>();
        assert_eq!((of(10), of(20)), (a, b));
        let look = drain.look(0);
        assert_eq!((look.used_bytes, look.used_slots, look.unpublished()), (0, 0, 0));
        assert_eq!(look.head_seq - start.seq, popped.len() as u64);
    });
}

fn one_slot() {
    send_and_drain(1, Start::default());
}

fn two_slots_across_the_wraps() {
    send_and_drain(2, WRAPPING);
}

/// One sender, one slot: the second send uses the first one's range again.
fn reuse() {
    loom::model(|| {
        let one_unit = LaneOptions { lane_bytes: 16, ..options(1) };
        let (lanes, mut drain) = Lanes::with_start(&one_unit, Start::default()).unwrap();
        let sender = {
            let lanes = lanes.clone();
            thread::spawn(move || {
                (0..2).filter(|&i| lanes.send_as(0, &record(&[i; 16])).is_ok()).count()
            })
        };
        let mut popped = usize::from(take(&mut drain).is_some());
        let accepted = sender.join().unwrap();
        popped += std::iter::from_fn(|| take(&mut drain)).count();
        assert_eq!(accepted, popped);
    });
}

/// Two slots released in the other order: the lane stays full until the first is back, and both
/// ranges are used again.
fn release_out_of_order() {
    loom::model(|| {
        let (lanes, mut drain) = Lanes::with_start(&options(2), WRAPPING).unwrap();
        for i in 0..2 {
            lanes.send_as(0, &record(&[i; 16])).unwrap();
        }
        let sender = {
            let lanes = lanes.clone();
            thread::spawn(move || {
                (2..4).filter(|&i| lanes.send_as(0, &record(&[i; 16])).is_ok()).count()
            })
        };
        let frames = [drain.pop(0).unwrap(), drain.pop(0).unwrap()];
        for i in [1, 0] {
            assert_eq!(drain.view(&frames[i]).unwrap().value().unwrap(), [i as u8; 16]);
            assert!(drain.release(&frames[i]));
        }
        let accepted = sender.join().unwrap();
        assert_eq!(std::iter::from_fn(|| take(&mut drain)).count(), accepted);
        assert_eq!(drain.look(0).used_slots, 0);
    });
}

/// Two senders against close: once the drain reads the closed bit, the head that it read with
/// it is what was accepted, and popping that much ends.
fn close_is_linear() {
    loom::model(|| {
        let (lanes, mut drain) = Lanes::with_start(&options(2), Start::default()).unwrap();
        let send = || {
            let lanes = lanes.clone();
            thread::spawn(move || match lanes.send_as(0, &record(&[1; 16])) {
                Ok(()) => 1,
                Err(e) => {
                    assert_eq!(e, SendError::Closed);
                    0
                }
            })
        };
        let (a, b) = (send(), send());
        lanes.close();
        let at_close = drain.look(0);
        assert!(at_close.closed);
        assert_eq!(lanes.send_as(0, &record(&[2; 16])), Err(SendError::Closed));
        let accepted: u64 = a.join().unwrap() + b.join().unwrap();
        assert_eq!(accepted, at_close.head_seq);
        while take(&mut drain).is_some() {}
        let look = drain.look(0);
        assert!(look.is_drained());
        assert_eq!(look.head_seq, accepted);
    });
}

/// A sender that is refused after `stop` says so: `Closed` is for an orderly close only.
fn stopped_is_seen() {
    loom::model(|| {
        let (lanes, mut drain) = Lanes::with_start(&options(1), Start::default()).unwrap();
        let stopper = {
            let lanes = lanes.clone();
            thread::spawn(move || lanes.stop())
        };
        let sent = lanes.send_as(0, &record(&[1; 16]));
        stopper.join().unwrap();
        match sent {
            Ok(()) => assert_eq!(take(&mut drain), Some(1)),
            Err(e) => assert_eq!(e, SendError::Stopped),
        }
        assert!(drain.look(0).is_drained());
    });
}

/// A frame whose closure gives up is padding: it is popped, counted and given back.
fn abandoned() {
    loom::model(|| {
        let (lanes, mut drain) = Lanes::with_start(&options(1), Start::default()).unwrap();
        let sender = {
            let lanes = lanes.clone();
            thread::spawn(move || lanes.send_with_as(0, &record(&[]), 8, |_| 9))
        };
        assert_eq!(take(&mut drain), None);
        assert_eq!(sender.join().unwrap(), Err(SendError::BadLength));
        assert_eq!(take(&mut drain), None);
        let look = drain.look(0);
        assert_eq!((look.head_seq, look.padding, look.used_slots), (1, 1, 0));
    });
}

/// A look while two threads are in the middle of their sends: what it shows never contradicts
/// itself, and a record that was seen as a hole is a record in the end.
fn look_in_the_middle() {
    loom::model(|| {
        let (lanes, mut drain) = Lanes::with_start(&options(2), WRAPPING).unwrap();
        let send = |value: u8| {
            let lanes = lanes.clone();
            thread::spawn(move || lanes.send_as(0, &record(&[value; 16])).unwrap())
        };
        let senders = [send(1), send(2)];
        let look = drain.look(0);
        let reserved = look.head_seq - WRAPPING.seq;
        assert!(reserved <= 2 && look.queued as u64 <= reserved);
        assert_eq!((look.used_slots, look.used_bytes), (reserved, 16 * reserved));
        senders.into_iter().for_each(|s| s.join().unwrap());
        assert_eq!(drain.look(0).unpublished(), 0);
        assert_eq!(std::iter::from_fn(|| take(&mut drain)).count(), 2);
    });
}

/// A closure that sends: what it sends leaves before its own record, whatever the drain reads when.
fn inner_comes_first() {
    loom::model(|| {
        let (lanes, mut drain) = Lanes::with_start(&options(2), WRAPPING).unwrap();
        let sender = {
            let lanes = lanes.clone();
            thread::spawn(move || {
                let outer = lanes.send_with_as(0, &record(&[]), 16, |to| {
                    lanes.send_as(0, &record(&[1; 16])).unwrap();
                    to.fill(2);
                    16
                });
                outer.unwrap();
            })
        };
        let mut popped: Vec<u8> = take(&mut drain).into_iter().collect();
        popped.extend(take(&mut drain));
        sender.join().unwrap();
        popped.extend(std::iter::from_fn(|| take(&mut drain)));
        assert_eq!(popped, [1, 2]);
        assert_eq!(drain.look(0).used_slots, 0);
    });
}

/// A drain that looks while a sender is in the middle of a send, and after it, with nothing but the
/// stamps between them.
///
/// Loom looks for another order of two accesses to a word only where the last one before was another
/// thread's. A sender reads the reservation before it changes it, which hides the drain's read. So
/// the sender passes flags, each written once, and the drain reads them, to no other end.
fn met_in_the_middle() {
    loom::model(|| {
        let (lanes, mut drain) = Lanes::with_start(&options(2), WRAPPING).unwrap();
        let flags = Arc::new([(); 3].map(|()| AtomicBool::new(false)));
        let sender = {
            let (lanes, flags) = (lanes.clone(), flags.clone());
            thread::spawn(move || {
                let first = lanes.send_with_as(0, &record(&[]), 16, |to| {
                    flags[0].store(true, Ordering::Relaxed);
                    to.fill(1);
                    16
                });
                first.unwrap();
                flags[1].store(true, Ordering::Relaxed);
                lanes.send_as(0, &record(&[2; 16])).unwrap();
                flags[2].store(true, Ordering::Relaxed);
            })
        };
        let mut popped = Vec::new();
        for flag in flags.iter() {
            flag.load(Ordering::Relaxed);
            popped.extend(take(&mut drain));
        }
        sender.join().unwrap();
        popped.extend(std::iter::from_fn(|| take(&mut drain)));
        assert_eq!(popped, [1, 2]);
        assert_eq!(drain.look(0).used_slots, 0);
    });
}

#[test]
fn what_the_drain_meets_in_the_middle_of_sends_is_whole() {
    met_in_the_middle();
}

#[test]
fn what_a_closure_sends_leaves_before_its_own_record() {
    inner_comes_first();
}

#[test]
fn reserve_publish_release_with_one_slot() {
    one_slot();
}

#[test]
fn reserve_publish_release_with_two_slots_across_the_wraps() {
    two_slots_across_the_wraps();
}

#[test]
fn a_range_is_used_again_after_its_release() {
    reuse();
}

#[test]
fn frames_released_in_another_order_are_used_again_after_the_first() {
    release_out_of_order();
}

#[test]
fn accepted_and_closed_are_linear() {
    close_is_linear();
}

#[test]
fn stopped_is_seen_with_the_closed_bit() {
    stopped_is_seen();
}

#[test]
fn an_abandoned_frame_is_given_back() {
    abandoned();
}

#[test]
fn a_look_in_the_middle_of_sends_adds_up() {
    look_in_the_middle();
}

#[test]
fn every_ordering_that_is_weakened_is_caught() {
    const MODELS: [(&str, fn()); 5] = [
        ("a range used again", reuse),
        ("a stop", stopped_is_seen),
        ("two released out of order", release_out_of_order),
        ("a closure that sends", inner_comes_first),
        ("a drain in the middle", met_in_the_middle),
    ];
    for point in Point::ALL {
        // Each on a thread of its own: a model that fails leaves loom's state behind.
        let fails = |model: fn()| {
            std::thread::spawn(move || {
                WEAK.set(Some(point));
                model();
            })
            .join()
            .is_err()
        };
        let caught = MODELS.iter().find(|m| fails(m.1)).map(|m| m.0);
        println!("{point:?} weakened: caught by {caught:?}");
        assert!(caught.is_some(), "{point:?} can be weakened and nothing fails");
    }
}
