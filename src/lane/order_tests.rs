//! The order against a model of its senders: threads that send, and send within closures, any
//! number of steps between two reads of a scan.

#![allow(clippy::print_stdout)]

use super::*;
use proptest::prelude::*;
use std::cell::RefCell;

const THREADS: usize = 4;

#[derive(Default)]
struct Sender {
    /// Sequences reserved and not published, the innermost last; whether each has a closure.
    open: Vec<(u64, bool)>,
    /// In the order of publication.
    published: Vec<u64>,
    /// How many of them have left.
    left: usize,
}

struct Senders {
    senders: [Sender; THREADS],
    marks: Vec<Mark>,
    random: u64,
    budget: usize,
}

impl Senders {
    fn new(seed: u64, budget: usize) -> Senders {
        let (senders, marks) = (Default::default(), Vec::new());
        Senders { senders, marks, random: seed | 1, budget }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % below
    }

    /// One thread takes one step: it reserves, or publishes what it reserved last.
    fn step(&mut self) {
        let (who, what) = (self.draw(THREADS as u64) as usize, self.draw(4));
        let head = self.marks.len() as u64;
        let sender = &mut self.senders[who];
        // Between reserve and publish only a closure can send.
        let may_reserve = sender.open.last().is_none_or(|open| open.1);
        if may_reserve && self.budget > 0 && (sender.open.is_empty() || what > 1) {
            self.budget -= 1;
            sender.open.push((head, what % 2 == 0));
            self.marks.push(Mark::Open);
        } else if let Some((seq, has_closure)) = sender.open.pop() {
            sender.published.push(seq);
            self.marks[seq as usize] =
                if has_closure && head > seq + 1 { Mark::Behind(head) } else { Mark::Published };
        }
    }

    fn published(&self) -> usize {
        self.senders.iter().map(|s| s.published.len()).sum()
    }

    fn is_done(&self) -> bool {
        self.budget == 0 && self.senders.iter().all(|s| s.open.is_empty())
    }

    /// A record leaves: it must be its sender's next.
    fn leave(&mut self, seq: u64) {
        let next = |s: &Sender| s.published.get(s.left) == Some(&seq);
        let sender = self.senders.iter_mut().find(|s| next(s));
        sender.unwrap_or_else(|| panic!("{seq} is nobody's next")).left += 1;
    }
}

/// What went through: records, those that left out of their place, holes at the end of a scan.
fn run(seed: u64, budget: usize) -> [usize; 3] {
    let world = RefCell::new(Senders::new(seed, budget));
    let mut order = Order::new(0);
    let (mut left, mut highest, mut out_of_place, mut holes) = (0, 0, 0, 0);
    loop {
        let steps = world.borrow_mut().draw(20);
        (0..steps).for_each(|_| world.borrow_mut().step());
        let is_done = world.borrow().is_done();
        let (head, before) = (world.borrow().marks.len() as u64, world.borrow().published());
        order.scan(head, |seq| {
            let mut world = world.borrow_mut();
            for _ in 0..world.draw(4) {
                world.step();
            }
            world.marks[seq as usize]
        });
        let after = world.borrow().published();
        assert!(left + order.len() >= before, "what was published before the scan is found");
        assert!(left + order.len() <= after, "what isn't published is not counted");
        holes += order.entries.iter().filter(|e| e.state == State::Open).count();
        let takes = if is_done { u64::MAX } else { world.borrow_mut().draw(30) };
        for _ in 0..takes {
            let (oldest, found) = (order.oldest(), order.len());
            let Some(seq) = order.next() else {
                assert_eq!(found, 0);
                break;
            };
            assert!(oldest <= seq && order.len() == found - 1);
            world.borrow_mut().leave(seq);
            left += 1;
            out_of_place += usize::from(seq < highest);
            highest = highest.max(seq);
        }
        if is_done && order.len() == 0 {
            assert_eq!((left, order.oldest(), order.entries.len()), (budget, head, 0));
            return [left, out_of_place, holes];
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 5 } else { 3_000 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn each_sender_s_records_leave_as_it_published_them(seed in any::<u64>(), budget in 1usize..60) {
        run(seed, budget);
    }
}

#[test]
fn a_run_meets_holes_and_records_that_leave_out_of_their_place() {
    let (seeds, enough) = if cfg!(miri) { (1, 5) } else { (20, 100) };
    let sums = (1..=seeds)
        .map(|seed: u64| run(seed << 20, 500))
        .fold([0; 3], |a, b| std::array::from_fn(|i| a[i] + b[i]));
    println!("{} records, {} left out of their place, {} holes met", sums[0], sums[1], sums[2]);
    assert!(sums[1] > enough && sums[2] > enough, "{sums:?}");
}

#[test]
fn a_sender_that_stands_holds_up_nobody_and_leaves_last() {
    let mut order = Order::new(7);
    let standing = |seq| if seq == 9 { Mark::Open } else { Mark::Published };
    for head in [12, 12, 40] {
        order.scan(head, standing);
    }
    assert_eq!((order.len(), order.oldest()), (32, 7));
    let left: Vec<u64> = std::iter::from_fn(|| order.next()).collect();
    assert_eq!(left, (7..40).filter(|&seq| seq != 9).collect::<Vec<_>>());
    assert_eq!((order.len(), order.oldest()), (0, 9));
    order.scan(41, |_| Mark::Published);
    assert_eq!((order.len(), order.oldest()), (2, 9));
    assert_eq!([order.next(), order.next(), order.next()], [Some(9), Some(40), None]);
}
