//! A lane that fills up while the sink answers, and while it doesn't.

use super::*;

fn used(m: &mut Machine) -> usize {
    m.flusher.drain.look(0).used_bytes as usize
}

/// A lane three quarters full of what the sink hasn't acknowledged, long before the loss window.
fn crowded(answer_ns: u64) -> Machine {
    let mut m = Machine::open(&MemoryStorage::new(), options(), WalFull::Refuse);
    m.flusher.timing.loss_window_ns = Some(10_000 * MS);
    m.flusher.timing.answer_ns = answer_ns;
    // Nothing to do for longer than the answer may take.
    m.run(60, 5);
    m.sink.hold_reports();
    while used(&mut m) < LANE_BYTES * 3 / 4 {
        m.send();
    }
    m
}

#[test]
fn a_lane_waits_for_a_sink_that_answers_if_the_user_wants_that() {
    for (answer_ms, spilled_at_once) in [(0, true), (200, false)] {
        let mut m = crowded(answer_ms * MS);
        let first = m.step(5);
        assert_eq!(first.books.spilled > 0, spilled_at_once, "{:?}", first.books);
        // Every answer is good for a while: the lane stays as full as it is.
        let mut stats = first;
        for _ in 0..5 {
            stats = m.run(20, 5);
            m.sink.resume();
            m.step(1);
            m.sink.hold_reports();
            while used(&mut m) < LANE_BYTES * 3 / 4 {
                m.send();
            }
        }
        assert_eq!(stats.books.spilled > 0, spilled_at_once, "{:?}", stats.books);
        // No answer any more: now the log takes it, whatever the user wants.
        let silent = m.run(50, 5);
        println!(
            "{answer_ms} ms: {} spilled while answered, {} then",
            stats.books.spilled, silent.books.spilled
        );
        assert!(silent.books.spilled > stats.books.spilled);
        assert!(used(&mut m) <= LANE_BYTES / 2);
        m.sink.resume();
        m.run(100, 10);
        assert_eq!(m.delivered(), (0..m.sent).collect::<Vec<_>>());
    }
}
