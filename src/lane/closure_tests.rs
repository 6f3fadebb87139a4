//! What `send_with` does: in place, when it panics, when it sends.

use super::*;

#[test]
fn a_closure_writes_in_place() {
    let (lanes, mut drain) = Lanes::new(&SMALL).unwrap();
    let meta = OutRecord {
        key: Some(b"k"),
        headers: &[Header { name: "h", value: Some(b"v") }],
        ..record(b"ignored")
    };
    lanes
        .send_with(&meta, 100, |to| {
            assert_eq!(to.len(), 100);
            to[..3].copy_from_slice(b"abc");
            3
        })
        .unwrap();
    let frame = drain.pop(0).unwrap();
    let view = drain.view(&frame).unwrap();
    assert_eq!((view.key(), view.value()), (Some(&b"k"[..]), Some(&b"abc"[..])));
    assert_eq!(view.headers().count(), 1);
}

#[test]
fn a_panicking_closure_leaves_padding_and_no_record() {
    let (lanes, mut drain) = Lanes::new(&SMALL).unwrap();
    lanes.send(&record(b"before")).unwrap();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        lanes.send_with(&record(b""), 64, |_| panic!("the closure's own"))
    }));
    let payload = panicked.unwrap_err();
    assert_eq!(payload.downcast_ref::<&str>(), Some(&"the closure's own"));
    lanes.send(&record(b"after")).unwrap();
    assert_eq!(popped_value(&mut drain, 0).unwrap(), b"before");
    assert_eq!(popped_value(&mut drain, 0).unwrap(), b"after");
    assert_eq!(drain.pop(0), None);
    let look = drain.look(0);
    assert_eq!((look.head_seq, look.popped, look.padding), (3, 3, 1));
    assert_eq!((look.used_bytes, look.used_slots), (0, 0));
}

#[test]
fn an_open_frame_is_a_hole_until_it_is_published() {
    let (lanes, mut drain) = Lanes::new(&SMALL).unwrap();
    let sent = lanes.send_with(&record(b""), 8, |to| {
        lanes.send(&record(b"inner")).unwrap();
        let look = drain.look(0);
        assert_eq!((look.unpublished(), look.oldest_unpopped, look.head_seq), (1, 0, 2));
        let inner = drain.pop(0).unwrap();
        assert_eq!(inner.lane_seq(), 1);
        assert!(drain.release(&inner));
        let look = drain.look(0);
        assert_eq!((look.oldest_unpopped, look.popped, look.used_slots), (0, 1, 2));
        to[..5].copy_from_slice(b"outer");
        5
    });
    sent.unwrap();
    assert_eq!(popped_value(&mut drain, 0).unwrap(), b"outer");
    let look = drain.look(0);
    assert_eq!((look.unpublished(), look.oldest_unpopped, look.used_slots), (0, 2, 0));
}

#[test]
fn what_closures_send_leaves_before_their_own_records() {
    let (lanes, mut drain) =
        Lanes::with_start(&SMALL, Start { position: 0, seq: (1 << 31) - 2 }).unwrap();
    let send = |value: &[u8]| lanes.send(&record(value)).unwrap();
    let put = |to: &mut [u8], value: &[u8]| {
        to[..value.len()].copy_from_slice(value);
        value.len()
    };
    send(b"1");
    let sent = lanes.send_with(&record(b""), 8, |to| {
        send(b"2");
        let sent = lanes.send_with(&record(b""), 8, |to| {
            send(b"3");
            put(to, b"4")
        });
        sent.unwrap();
        put(to, b"5")
    });
    sent.unwrap();
    send(b"6");
    assert_eq!(drain.look(0).queued, 6);
    let popped: Vec<_> = std::iter::from_fn(|| popped_value(&mut drain, 0)).collect();
    assert_eq!(popped.concat(), b"123456");
    let look = drain.look(0);
    assert_eq!((look.used_slots, look.queued, look.oldest_unpopped), (0, 0, look.head_seq));
}
