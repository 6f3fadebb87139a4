//! Owns the model of a disk: what is in the page cache, what is durable, and what a crash or a
//! power cut leaves of them.

use super::{FaultPlan, StorageCounts, StorageOp};
use std::collections::BTreeMap;
use std::io;

const SECTOR_BYTES: usize = 512;

#[derive(Default)]
pub(super) struct Disk {
    pub(super) files: Vec<MemoryFile>,
    pub(super) names: BTreeMap<String, usize>,
    pub(super) durable_names: BTreeMap<String, usize>,
    pub(super) pending: Vec<NameOp>,
    pub(super) ops: u64,
    /// The op that the crash interrupts, and how many eighths of it are done.
    pub(super) crash_in: Option<(u64, u64)>,
    pub(super) crashed: bool,
    pub(super) counts: StorageCounts,
    pub(super) faults: Option<FaultPlan>,
    pub(super) capacity_bytes: Option<u64>,
    /// File, from, to: reads that touch it fail.
    pub(super) unreadable: Vec<(usize, u64, u64)>,
}

#[derive(Clone, Default)]
pub(super) struct MemoryFile {
    pub(super) live: Vec<u8>,
    pub(super) durable: Vec<u8>,
    /// A bit for each sector of `live` that differs, or may differ, from `durable`.
    pub(super) dirty: Vec<u64>,
}

/// All of an op, in eighths.
pub(super) const WHOLE: u64 = 8;

#[derive(Clone)]
pub(super) enum NameOp {
    Create(String, usize),
    /// Also of a file whose creation is not there: the new name is then all that it has.
    Rename(String, String, usize),
    Unlink(String),
}

impl NameOp {
    /// What is left of it when another file has this name now, for good.
    pub(super) fn without(self, name: &str) -> Option<NameOp> {
        match self {
            NameOp::Create(created, _) if created == name => None,
            NameOp::Unlink(unlinked) if unlinked == name => None,
            NameOp::Rename(_, to, _) if to == name => None,
            NameOp::Rename(from, to, file) if from == name => Some(NameOp::Create(to, file)),
            other => Some(other),
        }
    }

    pub(super) fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            NameOp::Create(name, file) => {
                names.insert(name.clone(), *file);
            }
            NameOp::Rename(from, to, file) => {
                if names.get(from) == Some(file) {
                    names.remove(from);
                }
                names.insert(to.clone(), *file);
            }
            NameOp::Unlink(name) => {
                names.remove(name);
            }
        }
    }
}

impl MemoryFile {
    pub(super) fn write(&mut self, at: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = at + bytes.len();
        if self.live.len() < end {
            self.live.resize(end, 0);
        }
        self.live[at..end].copy_from_slice(bytes);
        self.soil(at, end);
    }

    pub(super) fn soil(&mut self, from: usize, to: usize) {
        for sector in from / SECTOR_BYTES..to.div_ceil(SECTOR_BYTES) {
            if self.dirty.len() <= sector / 64 {
                self.dirty.resize(sector / 64 + 1, 0);
            }
            self.dirty[sector / 64] |= 1 << (sector % 64);
        }
    }

    pub(super) fn truncate(&mut self, len: usize) {
        // What is cut off reads as zeroes, should the file grow again.
        self.soil(len, self.live.len());
        self.live.resize(len, 0);
    }

    /// What isn't dirty is read as it is on disk.
    pub(super) fn evict(&mut self) {
        for at in (0..self.live.len()).step_by(SECTOR_BYTES) {
            let sector = at / SECTOR_BYTES;
            let owed = self.dirty.get(sector / 64).is_some_and(|w| w & (1 << (sector % 64)) != 0);
            let to = (at + SECTOR_BYTES).min(self.live.len());
            match self.durable.get(at..to) {
                _ if owed => {}
                Some(durable) => self.live[at..to].copy_from_slice(durable),
                None => self.live[at..to].fill(0),
            }
        }
    }

    /// A power cut: of what wasn't synced, what `coin` chooses.
    pub(super) fn cut_power(&mut self, mut coin: impl FnMut() -> bool) {
        let (synced, last) = (self.durable.len(), self.live.len());
        if synced != last && coin() {
            let between = (synced + last) / 2 / SECTOR_BYTES * SECTOR_BYTES;
            let is_between = between > synced.min(last) && coin() && coin();
            self.durable.resize(if is_between { between } else { last }, 0);
        }
        self.settle(coin);
        self.live.clone_from(&self.durable);
    }

    /// Copies the dirty sectors that `keep` chooses into `durable`.
    pub(super) fn settle(&mut self, mut keep: impl FnMut() -> bool) {
        for (word, bits) in self.dirty.iter().enumerate() {
            let mut bits = *bits;
            while bits != 0 {
                let from = (word * 64 + bits.trailing_zeros() as usize) * SECTOR_BYTES;
                let to = (from + SECTOR_BYTES).min(self.durable.len()).min(self.live.len());
                if from < to && keep() {
                    self.durable[from..to].copy_from_slice(&self.live[from..to]);
                }
                bits &= bits - 1;
            }
        }
        self.dirty.clear();
    }
}

impl Disk {
    /// Whether the call fails, and how many eighths of it are done.
    pub(super) fn step(&mut self, op: StorageOp) -> (u64, io::Result<()>) {
        let crashed = || Err(io::Error::other("crashed"));
        if self.crashed {
            return (0, crashed());
        }
        if let Some(faults) = &mut self.faults
            && let Some(kind) = faults(self.ops, op)
        {
            return (0, Err(kind.into()));
        }
        if !matches!(op, StorageOp::Read | StorageOp::Populate) {
            if let Some((_, done)) = self.crash_in.filter(|(op, _)| *op == self.ops) {
                self.crashed = true;
                return (done, crashed());
            }
            self.ops += 1;
        }
        (WHOLE, Ok(()))
    }

    /// The same for a call that is done whole or not at all.
    pub(super) fn step_whole(
        &mut self,
        op: StorageOp,
        act: impl FnOnce(&mut Disk),
    ) -> io::Result<()> {
        let (done, said) = self.step(op);
        if done == WHOLE {
            act(self);
        }
        said
    }

    pub(super) fn read(&mut self) -> io::Result<()> {
        self.step(StorageOp::Read).1
    }

    /// What the next process finds; files that no name can lead to any more are left out.
    pub(super) fn image(&self) -> Disk {
        let pending = self.pending.iter().filter_map(|op| match op {
            NameOp::Create(_, file) | NameOp::Rename(_, _, file) => Some(file),
            NameOp::Unlink(_) => None,
        });
        let mut files = vec![MemoryFile::default(); self.files.len()];
        for file in self.names.values().chain(self.durable_names.values()).chain(pending) {
            files[*file].clone_from(&self.files[*file]);
        }
        Disk {
            files,
            names: self.names.clone(),
            durable_names: self.durable_names.clone(),
            pending: self.pending.clone(),
            capacity_bytes: self.capacity_bytes,
            counts: self.counts,
            ..Disk::default()
        }
    }

    pub(super) fn used(&self) -> u64 {
        self.names.values().map(|f| self.files[*f].live.len() as u64).sum()
    }

    pub(super) fn room(&self, more: u64) -> io::Result<()> {
        match self.capacity_bytes {
            Some(all) if self.used() + more > all => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    pub(super) fn add(&mut self, name: &str, len: u64) -> usize {
        let file = self.files.len();
        self.files.push(MemoryFile { live: vec![0; len as usize], ..MemoryFile::default() });
        self.names.insert(name.to_string(), file);
        self.pending.push(NameOp::Create(name.to_string(), file));
        file
    }

    pub(super) fn write(&mut self, file: usize, at: u64, bytes: &[u8]) -> io::Result<()> {
        let (done, said) = self.step(StorageOp::Write);
        let done = bytes.len() * done as usize / WHOLE as usize;
        self.files[file].write(at as usize, &bytes[..done]);
        said
    }
}
