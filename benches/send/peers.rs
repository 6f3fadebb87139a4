//! Owns the table of clients that people use today, beside the pipeline, into the mock cluster.

use super::fronts::{Front, LIMIT, Named, Null};
use super::runner::{Plan, interleave};
use crate::common::clients::{Client, FOREBAY, PEERS, Target};
use crate::common::librdkafka::Settings;
use crate::common::table::{Cell, Table, note, people};
use forebay::sink::embedded::EmbeddedBroker;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// 100,000 records a second and thread: librdkafka's clients refuse at more.
const PACE_NS: u64 = 10_000;

/// A client as a front.
struct Peer {
    client: Box<dyn Client>,
    /// What the threads have accepted, all rounds: a word for each, so that they don't share one.
    accepted: Vec<Padded>,
}

#[repr(align(128))]
#[derive(Default)]
struct Padded(AtomicU64);

impl Front for Peer {
    #[inline]
    fn send(&self, thread: usize, value: &[u8]) -> bool {
        let accepted = self.client.send(value);
        let counter = &self.accepted[thread].0;
        let sum = counter.load(Ordering::Relaxed) + u64::from(accepted);
        counter.store(sum, Ordering::Relaxed);
        accepted
    }

    fn drains_itself(&self) -> bool {
        true
    }

    fn serve(&self) {
        self.client.serve();
    }

    fn end(&self) {
        self.client.flush(LIMIT);
    }

    fn journaled(&self) -> u64 {
        self.client.journaled()
    }

    fn at_risk(&self) -> Option<u64> {
        let accepted = self.accepted.iter().map(|n| n.0.load(Ordering::Relaxed)).sum();
        Some(self.client.at_risk(accepted))
    }
}

pub fn peers() {
    let columns = [
        "client",
        "threads",
        "p50",
        "p99",
        "p99.9",
        "refused",
        "journaled",
        "lost by a kill at its worst moment",
    ];
    let what = format!(
        "ns of a send of 100 B, {} a second and thread, batches of 500 ms or 20,000 records, into \
         the mock cluster in this process; medians of {} rounds (least-most), interleaved",
        people(1_000_000_000 / PACE_NS),
        Plan::rounds()
    );
    let table = Table::new("send", "peers", &what, &columns);
    let mock = EmbeddedBroker::new(1).expect("the mock cluster");
    mock.create_topic("bench", 3).expect("the topic");
    let brokers = mock.brokers();
    let target = Target::new(&brokers, "bench", Settings::SLOW_AND_ROOMY);
    for threads in [1, 2] {
        let mut names: Vec<Named> = vec![("null", Arc::new(Null))];
        for name in PEERS.into_iter().chain([FOREBAY]) {
            let accepted = (0..threads).map(|_| Padded::default()).collect();
            let client = target.open(name);
            names.push((name, Arc::new(Peer { client, accepted })));
        }
        // Longer than a batch may wait.
        let plan = Plan::new(threads, 100);
        let plan = Plan { pace_ns: PACE_NS, for_ns: plan.for_ns * 2, ..plan };
        let rows = interleave(&names, &plan);
        for ((name, _), row) in names.iter().zip(&rows) {
            table.row([
                (*name).into(),
                (threads as u64).into(),
                Cell::Spread(row.p50.clone(), 0),
                Cell::Number(row.p99.median(), 0),
                Cell::Spread(row.p999.clone(), 0),
                row.refused.into(),
                row.journaled.into(),
                Cell::Spread(row.at_risk.clone(), 0),
            ]);
        }
    }
    note("The mock's CPU is in all of these rows; it runs on the same cores.");
}
