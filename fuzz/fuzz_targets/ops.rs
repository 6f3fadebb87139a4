//! Operations against a model: appends, dead letters, rotation, the keeper's steps, reads,
//! crashes, power cuts, failing calls and flipped bits; the model is a `VecDeque` of what was
//! appended.
//!
//! After a process crash everything that was appended and isn't final comes back; after a power
//! cut everything below `synced_below`. What comes was appended, byte for byte, in order.
#![no_main]

use arbitrary::Arbitrary;
use forebay::record::{LogPosition, Lsn};
use forebay::topics::TopicTable;
use forebay::wal::{
    AppendError, CheckpointData, LogRecord, MemoryStorage, ReadError, ReadItem, Reader, StorageOp,
};
use forebay_fuzz::{Log, Spec, helped, open, try_open};
use libfuzzer_sys::fuzz_target;
use std::collections::VecDeque;
use std::io;

#[derive(Arbitrary, Debug)]
enum Op {
    Append(Spec),
    Burst(Spec, u8),
    SetAside(Spec),
    Seal,
    Step {
        later_ns: u8,
        checkpoint: bool,
    },
    Sync,
    Ack(u8),
    ReadAt(u8),
    Read(u8),
    Fault {
        op: u8,
        after: u8,
        calls: u8,
    },
    Capacity(Option<u8>),
    CrashSoon(u8),
    Crash,
    PowerCut(u8),
    /// A bit of one record's frame, found at the next open.
    Corrupt {
        record: u8,
        bit: u16,
    },
    /// An open whose writes fail.
    FailingOpen {
        op: u8,
        after: u8,
        calls: u8,
    },
}

/// A record that is in the log.
#[derive(Clone, Copy, Debug)]
struct Appended {
    lsn: u64,
    spec: Spec,
    at: LogPosition,
}

struct World {
    storage: MemoryStorage,
    log: Log,
    model: VecDeque<Appended>,
    reader: Reader,
    /// The last record that the reader yielded.
    read_to: u64,
    next_lsn: u64,
    acked: u64,
    now_ns: u64,
    opens: u64,
    /// The append during which the crash came may have been committed.
    cut_off: Option<(u64, Spec)>,
}

/// The calls that can fail without a record being lost: all but reads.
fn faults(op: u8, after: u8, calls: u8) -> forebay::wal::FaultPlan {
    use StorageOp::*;
    let ops = [Create, Write, Commit, Populate, Sync, Truncate, Rename, Unlink, SyncDir];
    let which = ops[usize::from(op) % ops.len()];
    let (mut after, mut calls) = (after % 16, calls % 16);
    Box::new(move |_, op| {
        if op != which || calls == 0 {
            return None;
        }
        if after > 0 {
            after -= 1;
            return None;
        }
        calls -= 1;
        Some(if calls % 2 == 0 { io::ErrorKind::StorageFull } else { io::ErrorKind::Other })
    })
}

impl World {
    fn new() -> World {
        let storage = MemoryStorage::new();
        let log = open(&storage, 1);
        let reader = log.wal.reader(LogPosition::default());
        World {
            storage,
            log,
            model: VecDeque::new(),
            reader,
            read_to: 0,
            next_lsn: 1,
            acked: 0,
            now_ns: 0,
            opens: 1,
            cut_off: None,
        }
    }

    fn append(&mut self, spec: &Spec) {
        let lsn = self.next_lsn;
        match helped(&mut self.log, |l| l.append(lsn, spec)) {
            Ok(at) => {
                assert!(self.model.back().is_none_or(|last| last.at < at), "a position is reused");
                self.model.push_back(Appended { lsn, spec: *spec, at });
                self.next_lsn += 1;
            }
            Err(AppendError::TooLarge) => panic!("every record fits"),
            Err(_) => {
                if self.storage.crashed() && self.cut_off.is_none() {
                    self.cut_off = Some((lsn, *spec));
                }
            }
        }
    }

    fn checkpoint(&self) -> CheckpointData {
        CheckpointData {
            watermark: Lsn(self.acked),
            next_lsn: Lsn(self.next_lsn),
            ..CheckpointData::default()
        }
    }

    fn read(&mut self, records: u8) {
        for _ in 0..records {
            match self.log.wal.read_next(&mut self.reader) {
                ReadItem::Record(r) => {
                    let lsn = r.lsn.0;
                    let found = self.model.iter().find(|a| a.lsn == lsn).expect("a ghost");
                    found.spec.check(&self.log.topics, lsn, &r.record);
                    assert_eq!(r.position, found.at);
                    let passed = |a: &&Appended| (self.read_to + 1..lsn).contains(&a.lsn);
                    let skipped = self.model.iter().filter(passed).find(|a| a.lsn >= self.acked);
                    assert!(skipped.is_none() && lsn > self.read_to, "{skipped:?} was skipped");
                    self.read_to = lsn;
                }
                ReadItem::CaughtUp => {
                    let due = |a: &&Appended| a.lsn > self.read_to && a.lsn >= self.acked;
                    assert!(self.model.iter().find(due).is_none(), "caught up too early");
                    return;
                }
                // Damage of an earlier run, or the append that a crash cut off.
                ReadItem::Damage { .. } => {}
                ReadItem::Error(_) => return,
            }
        }
    }

    fn read_at(&mut self, n: u8) {
        if self.model.is_empty() {
            return;
        }
        let record = self.model[usize::from(n) % self.model.len()];
        let topics = self.log.topics.clone();
        match self.log.wal.read_at(record.at) {
            Ok(r) => {
                assert_eq!((r.lsn.0, r.position), (record.lsn, record.at));
                record.spec.check(&topics, record.lsn, &r.record);
            }
            Err(ReadError::Gone) => assert!(record.lsn < self.acked, "{record:?} is gone"),
            Err(ReadError::Storage(_)) => assert!(self.storage.crashed()),
            Err(e) => panic!("{record:?}: {e}"),
        }
    }

    /// The next process finds `image`. Below `safe` everything that isn't final must come, but
    /// for `damaged`.
    fn reopen(&mut self, image: MemoryStorage, safe: u64, damaged: Option<u64>) {
        self.opens += 1;
        // Opening without room is another matter: it refuses while nothing waits.
        image.set_capacity(None);
        self.storage = image;
        self.log = open(&self.storage, self.opens);
        let mut came: VecDeque<Appended> = VecDeque::new();
        let (model, cut_off) = (&self.model, self.cut_off.take());
        self.log.drain(|topics: &TopicTable, r: &LogRecord<'_>| {
            let lsn = r.lsn.0;
            let known = model.iter().find(|a| a.lsn == lsn).map(|a| a.spec);
            let spec = known.or_else(|| cut_off.filter(|c| c.0 == lsn).map(|c| c.1));
            let spec = spec.unwrap_or_else(|| panic!("{lsn} is a ghost"));
            spec.check(topics, lsn, &r.record);
            came.push_back(Appended { lsn, spec, at: r.position });
        });
        for a in self.model.iter().filter(|a| a.lsn >= self.acked && a.lsn < safe) {
            let is_there = came.iter().any(|c| c.lsn == a.lsn);
            assert!(is_there || damaged == Some(a.lsn), "{a:?}: {:?}", self.log.recovery);
        }
        // What is final may come again after a power cut, or be gone; what was lost is gone.
        let acked = self.acked;
        let model = std::mem::take(&mut self.model);
        let last = came.back().map_or(0, |a| a.lsn);
        self.model =
            model.into_iter().filter(|a| a.lsn < acked && damaged != Some(a.lsn)).collect();
        self.model.retain(|a| came.iter().all(|c| c.lsn != a.lsn));
        self.model.extend(came);
        self.model.make_contiguous().sort_by_key(|a| a.lsn);
        self.next_lsn = self.log.recovery.next_lsn.0.max(1).max(self.acked);
        assert!(self.next_lsn > last);
        self.model.retain(|a| a.lsn < self.next_lsn);
        self.reader = self.log.wal.reader(LogPosition::default());
        self.read_to = 0;
    }

    fn crash(&mut self) {
        self.reopen(self.storage.process_crash_image(), u64::MAX, None);
    }

    fn corrupt(&mut self, record: u8, bit: u16) {
        let image = self.storage.process_crash_image();
        if self.model.is_empty() {
            return;
        }
        let record = self.model[usize::from(record) % self.model.len()];
        let name = format!("{:016x}.wal", record.at.segment);
        let Some(mut bytes) = image.contents(&name) else { return };
        let bit = u64::from(bit) % (record.spec.frame_bytes(record.lsn) * 8);
        let at = (record.at.offset + bit / 8) as usize;
        if at < bytes.len() {
            bytes[at] ^= 1 << (bit % 8);
            image.put(&name, &bytes);
            self.reopen(image, u64::MAX, Some(record.lsn));
        }
    }

    fn failing_open(&mut self, plan: forebay::wal::FaultPlan) {
        let image = self.storage.process_crash_image();
        image.set_faults(Some(plan));
        self.opens += 1;
        drop(try_open(&image, self.opens));
        self.reopen(image.process_crash_image(), u64::MAX, None);
    }

    fn run(&mut self, op: &Op) {
        if self.storage.crashed() && !matches!(op, Op::PowerCut(_)) {
            self.crash();
        }
        match *op {
            Op::Append(ref spec) => self.append(spec),
            Op::Burst(ref spec, n) => (0..n % 32).for_each(|_| self.append(spec)),
            Op::SetAside(ref spec) => {
                let lsn = self.next_lsn;
                self.next_lsn += 1;
                let _ = helped(&mut self.log, |l| l.set_aside(lsn, spec));
            }
            Op::Seal => self.log.wal.seal(),
            Op::Step { later_ns, checkpoint } => {
                self.now_ns += u64::from(later_ns);
                let data = self.checkpoint();
                self.log.keeper.step(self.now_ns, checkpoint.then_some(&data));
            }
            Op::Sync => drop(self.log.keeper.sync_now()),
            Op::Ack(n) => {
                self.acked = (self.acked + u64::from(n)).min(self.next_lsn);
                self.log.wal.trim(Lsn(self.acked));
            }
            Op::ReadAt(n) => self.read_at(n),
            Op::Read(n) => self.read(n),
            Op::Fault { op, after, calls } => {
                self.storage.set_faults(Some(faults(op, after, calls)));
            }
            Op::Capacity(bytes) => {
                self.storage.set_capacity(bytes.map(|n| u64::from(n) << 9));
            }
            Op::CrashSoon(n) => self.storage.crash_at(self.storage.ops() + u64::from(n)),
            Op::Crash => self.crash(),
            Op::PowerCut(seed) => {
                let safe = self.log.wal.synced_below().0;
                let image = self.storage.power_cut_image(u64::from(seed));
                self.reopen(image, safe, None);
            }
            Op::Corrupt { record, bit } => self.corrupt(record, bit),
            Op::FailingOpen { op, after, calls } => self.failing_open(faults(op, after, calls)),
        }
    }
}

fuzz_target!(|ops: Vec<Op>| {
    let mut world = World::new();
    for op in ops.iter().take(64) {
        world.run(op);
    }
    world.crash();
});
