//! Partition choice, running ahead and pausing, on numbers alone.

use super::*;

const LIMITS: Limits = Limits {
    records_ahead: 4,
    bytes_ahead: 400,
    turn_records: 2,
    turn_bytes: 200,
    turn_ns: 1_000,
    silent_ns: 100,
    slow_ns: 40,
    rest_ns: 10,
    probe_every_ns: 500,
    probe_ns: 15,
    stalled_ns: 2_000,
};

fn partitions(count: usize) -> Partitions {
    let mut all = Partitions::default();
    all.set_count(count, 0);
    all
}

fn steps(p: &mut Partitions, now_ns: u64) -> Vec<(i32, Step)> {
    let mut out = Vec::new();
    p.steps(now_ns, &LIMITS, |partition, step| out.push((partition, step)));
    out
}

#[test]
fn a_partition_takes_no_more_than_it_may_run_ahead() {
    let mut p = partitions(1);
    for _ in 0..4 {
        assert_eq!(p.fixed(0, 50, &LIMITS), Choice::Partition(0));
        p.handed_over(0, 50, false, 1);
    }
    assert_eq!(p.fixed(0, 50, &LIMITS), Choice::Busy, "records");
    p.reported(0, 50, 2);
    assert_eq!(p.fixed(0, 50, &LIMITS), Choice::Partition(0));
    assert_eq!(p.fixed(0, 251, &LIMITS), Choice::Busy, "bytes");
}

#[test]
fn one_record_always_fits() {
    let p = partitions(1);
    assert_eq!(p.fixed(0, 1_000_000, &LIMITS), Choice::Partition(0));
}

#[test]
fn a_partition_that_is_not_there_is_unknown() {
    let p = partitions(2);
    assert_eq!(p.fixed(2, 1, &LIMITS), Choice::Unknown);
    assert_eq!(p.fixed(i32::MAX, 1, &LIMITS), Choice::Unknown);
}

#[test]
fn keyless_records_go_in_turns() {
    let mut p = partitions(3);
    let mut went = Vec::new();
    for _ in 0..6 {
        let Choice::Partition(to) = p.keyless(10, 0, &LIMITS) else { panic!("busy") };
        p.handed_over(to, 10, true, 0);
        went.push(to);
    }
    assert_eq!(went, [0, 0, 1, 1, 2, 2]);
}

#[test]
fn a_turn_ends_with_time_too() {
    let mut p = partitions(2);
    assert_eq!(p.keyless(10, 0, &LIMITS), Choice::Partition(0));
    p.handed_over(0, 10, true, 0);
    assert_eq!(p.keyless(10, 999, &LIMITS), Choice::Partition(0));
    assert_eq!(p.keyless(10, 1_000, &LIMITS), Choice::Partition(1));
}

#[test]
fn keyless_records_pass_by_a_partition_without_room() {
    let mut p = partitions(2);
    for _ in 0..4 {
        p.handed_over(0, 10, false, 0);
    }
    for _ in 0..4 {
        assert_eq!(p.keyless(10, 0, &LIMITS), Choice::Partition(1));
        p.handed_over(1, 10, true, 0);
    }
    assert_eq!(p.keyless(10, 0, &LIMITS), Choice::Busy);
}

#[test]
fn no_partitions_means_busy() {
    assert_eq!(partitions(0).keyless(1, 0, &LIMITS), Choice::Busy);
}

#[test]
fn silence_pauses_and_a_report_resumes() {
    let mut p = partitions(2);
    p.handed_over(1, 10, false, 1_000);
    assert_eq!(steps(&mut p, 1_099), []);
    assert_eq!(steps(&mut p, 1_100), [(1, Step::Pause)]);
    assert_eq!(p.fixed(1, 10, &LIMITS), Choice::Busy, "nothing is queued on a paused one");
    assert_eq!((p.silent(), p.longest_silence()), (1, Some((1, 1_000))));
    p.reported(1, 10, 1_150);
    assert_eq!(steps(&mut p, 1_150), [(1, Step::Resume)]);
    assert_eq!((p.silent(), p.longest_silence()), (0, None));
}

#[test]
fn a_silent_partition_is_tried_for_a_moment_and_again() {
    let mut p = partitions(1);
    p.handed_over(0, 10, false, 0);
    let mut log = Vec::new();
    for now in 0..1_700 {
        log.extend(steps(&mut p, now).into_iter().map(|(_, step)| (now, step)));
    }
    let (pause, resume) = (Step::Pause, Step::Resume);
    assert_eq!(log, [(100, pause), (600, resume), (720, pause), (1_220, resume), (1_235, pause)]);
    // Silence is counted from the last report, through every try.
    assert_eq!(p.longest_silence(), Some((0, 0)));
}

#[test]
fn a_report_during_a_try_ends_the_silence_without_another_call() {
    let mut p = partitions(1);
    p.handed_over(0, 10, false, 0);
    p.handed_over(0, 10, false, 0);
    assert_eq!(steps(&mut p, 100), [(0, Step::Pause)]);
    let mut resumed: Vec<i32> = Vec::new();
    p.probe_now(200, |at| resumed.push(at));
    p.probe_now(205, |at| resumed.push(at));
    assert_eq!(resumed, [0], "it is resumed once");
    p.reported(0, 10, 210);
    assert_eq!(steps(&mut p, 220), []);
    assert_eq!(p.silent(), 0);
}

#[test]
fn a_topic_that_shrinks_keeps_open_accounts() {
    let mut p = partitions(4);
    p.handed_over(3, 10, false, 0);
    p.set_count(2, 1);
    assert_eq!((p.count(), p.shrunk(1), p.lost()), (4, Some(false), 1));
    p.reported(3, 10, 2);
    p.set_count(2, 3);
    assert_eq!((p.count(), p.shrunk(3), p.lost()), (2, None, 0));
}

#[test]
fn what_is_in_flight_to_a_partition_that_is_gone_is_lost_after_a_while() {
    let mut p = partitions(4);
    p.handed_over(1, 10, false, 0);
    p.handed_over(3, 10, false, 0);
    p.handed_over(3, 10, false, 0);
    p.set_count(2, 100);
    // It answers, so it is there: the count was that of a broker that is behind.
    p.reported(3, 10, 200);
    p.set_count(2, 300);
    assert_eq!(p.shrunk(300 + GONE_NS - 1), Some(false));
    p.set_count(2, 400);
    assert_eq!((p.shrunk(300 + GONE_NS), p.lost()), (Some(true), 1));
    p.set_count(4, 500);
    assert_eq!((p.count(), p.shrunk(u64::MAX), p.lost()), (4, None, 0));
}

#[test]
fn the_first_of_eight_tries_is_a_long_one() {
    let mut p = partitions(1);
    p.handed_over(0, 10, false, 0);
    let mut resumed_at = 0;
    let mut lengths = Vec::new();
    for now in 0..10_000 {
        for (_, step) in steps(&mut p, now) {
            match step {
                Step::Resume => resumed_at = now,
                Step::Pause if resumed_at > 0 => lengths.push(now - resumed_at),
                Step::Pause => {}
            }
        }
    }
    assert_eq!(lengths[..9], [120, 15, 15, 15, 15, 15, 15, 15, 120]);
}

/// Hands one record to each of these partitions at `now_ns`.
fn hand(p: &mut Partitions, to: &[i32], now_ns: u64) {
    for partition in to {
        p.handed_over(*partition, 10, false, now_ns);
    }
}

fn judge(p: &mut Partitions, now_ns: u64, answered_ns: u64) -> Vec<bool> {
    p.steps(now_ns, &LIMITS, |_, _| {});
    let served_ns = p.last_served_ns(now_ns, &LIMITS);
    p.judge(now_ns, answered_ns, served_ns, &LIMITS);
    (0..p.count() as i32).map(|at| p.is_stalled(at)).collect()
}

#[test]
fn a_partition_is_stalled_that_is_silent_while_another_is_served() {
    let mut p = partitions(2);
    hand(&mut p, &[0, 1], 1_000);
    p.reported(1, 10, 1_050);
    assert_eq!(judge(&mut p, 2_999, 2_000), [false, false], "too soon");
    assert_eq!(judge(&mut p, 3_000, 900), [false, false], "Kafka hasn't answered since");
    assert_eq!(judge(&mut p, 3_000, 2_000), [true, false]);
    assert_eq!(p.fixed(0, 10, &LIMITS), Choice::Stalled(0));
    assert_eq!(p.fixed(1, 10, &LIMITS), Choice::Partition(1));
    assert_eq!(p.keyless(10, 3_000, &LIMITS), Choice::Partition(1), "it goes elsewhere");
    p.reported(0, 10, 3_100);
    assert_eq!(judge(&mut p, 3_101, 2_000), [false, false]);
    assert_eq!(p.fixed(0, 10, &LIMITS), Choice::Partition(0));
}

#[test]
fn nothing_is_stalled_where_all_are_silent_but_for_what_nobody_leads() {
    let mut p = partitions(2);
    hand(&mut p, &[0, 1], 1_000);
    p.reported(0, 10, 1_010);
    p.reported(1, 10, 1_010);
    hand(&mut p, &[0, 1], 1_020);
    assert_eq!(judge(&mut p, 9_000, 8_000), [false, false], "an outage, or one that is over soon");
    assert_eq!(p.fixed(0, 401, &LIMITS), Choice::Busy);
    p.set_leaderless(&[1]);
    assert_eq!(judge(&mut p, 9_001, 8_000), [false, true]);
    assert_eq!(p.longest_silence(), Some((0, 1_020)), "no instance finds a leader where none is");
    p.set_leaderless(&[0, 1]);
    assert_eq!(judge(&mut p, 9_003, 8_000), [true, true]);
    assert!(matches!(p.keyless(10, 9_003, &LIMITS), Choice::Stalled(_)));
}

/// One record handed over at `now_ns` and reported `took_ns` later.
fn answer(p: &mut Partitions, now_ns: u64, took_ns: u64) {
    p.handed_over(0, 10, false, now_ns);
    p.reported(0, 10, now_ns + took_ns);
}

#[test]
fn a_partition_whose_answers_take_long_rests_and_takes_records() {
    let mut p = partitions(1);
    answer(&mut p, 1_000, 39);
    p.handed_over(0, 10, false, 2_000);
    assert_eq!(steps(&mut p, 2_099), [], "its last answer was quick");
    p.reported(0, 10, 2_050);
    p.handed_over(0, 10, false, 3_000);
    assert_eq!(steps(&mut p, 3_009), []);
    assert_eq!(steps(&mut p, 3_010), [(0, Step::Pause)], "its last answer took 50");
    assert_eq!((p.silent(), p.are_resting()), (0, true));
    assert_eq!(p.fixed(0, 10, &LIMITS), Choice::Partition(0), "it takes records all the same");
    p.handed_over(0, 10, false, 3_020);
    p.reported(0, 10, 3_090);
    assert_eq!(steps(&mut p, 3_090), [(0, Step::Resume)]);
    // What was queued meanwhile is under way now.
    assert_eq!(steps(&mut p, 3_100), [(0, Step::Pause)]);
    p.reported(0, 10, 3_120);
    assert_eq!(steps(&mut p, 3_120), [(0, Step::Resume)], "nothing is left to be silent");
    assert!(!p.are_resting());
    p.handed_over(0, 10, false, 4_000);
    assert_eq!(steps(&mut p, 4_050), [], "its last answer took 30");
}

#[test]
fn a_partition_that_rests_for_too_long_is_tried_and_paused() {
    let mut p = partitions(1);
    answer(&mut p, 0, 90);
    p.handed_over(0, 10, false, 1_000);
    let mut log = Vec::new();
    for now in 1_000..1_800 {
        log.extend(steps(&mut p, now).into_iter().map(|(_, step)| (now, step)));
    }
    let (pause, resume) = (Step::Pause, Step::Resume);
    // Twice its last answer, then a long try, and a pause of 500 until the next.
    let wanted = [(1_010, pause), (1_180, resume), (1_300, pause)];
    assert_eq!(log, wanted);
    assert_eq!(p.fixed(0, 10, &LIMITS), Choice::Busy);
    // An outage doesn't make it patient for ever.
    let mut p = partitions(1);
    answer(&mut p, 0, 60_000);
    p.handed_over(0, 10, false, 70_000);
    assert_eq!(steps(&mut p, 70_010), [(0, Step::Pause)]);
    assert_eq!(steps(&mut p, 70_499), []);
    assert_eq!(steps(&mut p, 70_500), [(0, Step::Resume)]);
    let mut resumed: Vec<i32> = Vec::new();
    p.probe_now(70_501, |at| resumed.push(at));
    assert!(resumed.is_empty(), "it is being tried");
}

#[test]
fn a_partition_that_rests_is_tried_when_all_are() {
    let mut p = partitions(1);
    answer(&mut p, 0, 90);
    p.handed_over(0, 10, false, 1_000);
    assert_eq!(steps(&mut p, 1_010), [(0, Step::Pause)]);
    let mut resumed: Vec<i32> = Vec::new();
    p.probe_now(1_011, |at| resumed.push(at));
    assert_eq!(resumed, [0]);
}
