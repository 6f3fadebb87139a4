//! Owns receipts: what `send_tracked` returns, and the fixed table behind them.
//!
//! A slot is taken from a lock-free list at the send and given back when both sides are done
//! with it: the flusher has said how the record ended, and the receipt is gone. Nothing is
//! allocated for a tracked record.
//!
//! # Orderings
//! A slot's word goes `PENDING -> ended` by the flusher and gains `DETACHED` by the receipt's
//! drop, each by a read-modify-write, so exactly one of the two sees the other and frees the
//! slot. The word carries no other data; acquire and release pair it with the waker's mutex.

use crate::sync::{AtomicU32, Ordering};
use crossbeam_queue::ArrayQueue;
use parking_lot::Mutex;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

const FREE: u32 = 0;
const PENDING: u32 = 1;
const DELIVERED: u32 = 2;
const SET_ASIDE: u32 = 3;
const DROPPED: u32 = 4;
const LEFT: u32 = 5;
const DETACHED: u32 = 0x100;

/// How far a tracked record must have come for [`Receipt::wait`] to return.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Level {
    /// Kafka's delivery report says that the record is persisted.
    Delivered,
}

/// Why a receipt is not, or not yet, good.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiptError {
    /// The time is over and the record is still on its way. It will arrive: do not send it again.
    #[error("the record is still on its way; don't send it again")]
    StillPending,
    /// Kafka refused this record for good, or its topic; it is in the set-aside log.
    #[error("Kafka refused the record; it is in the set-aside log")]
    SetAside,
    /// The record was given up under a counted policy.
    #[error("the record was dropped; stats() says why")]
    Dropped,
    /// The pipeline was closed first. With a log the record is in it, and the next run delivers it.
    #[error("the pipeline was closed before the record was delivered")]
    Closed,
}

struct Slot {
    word: AtomicU32,
    waker: Mutex<Option<Waker>>,
}

/// What a receipt needs from the pipeline while it waits.
pub(crate) trait Waiting: Send + Sync {
    /// Asks the flusher to send what it has now.
    fn hurry(&self);
    /// Waits until `done` says so, at most until `timeout` has passed.
    fn wait_until(&self, timeout: Duration, done: &mut dyn FnMut() -> bool) -> bool;
}

/// The fixed table of receipts.
pub(crate) struct Receipts {
    slots: Box<[Slot]>,
    free: ArrayQueue<u32>,
}

impl Receipts {
    pub(crate) fn new(count: usize) -> Self {
        // A queue can't have capacity 0; with no slot it stays empty.
        let free = ArrayQueue::new(count.max(1));
        for i in 0..count {
            let _ = free.push(i as u32);
        }
        let slots = (0..count)
            .map(|_| Slot { word: AtomicU32::new(FREE), waker: Mutex::new(None) })
            .collect();
        Receipts { slots, free }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.slots.len() * (size_of::<Slot>() + 16)
    }

    pub(crate) fn take(&self) -> Option<u32> {
        let slot = self.free.pop()?;
        self.slots[slot as usize].word.store(PENDING, Ordering::Release);
        Some(slot)
    }

    fn give_back(&self, slot: u32) {
        let s = &self.slots[slot as usize];
        *s.waker.lock() = None;
        s.word.store(FREE, Ordering::Release);
        let _ = self.free.push(slot);
    }

    /// The record was refused after all: nobody will end it.
    pub(crate) fn untake(&self, slot: u32) {
        self.give_back(slot);
    }

    fn end(&self, slot: u32, how: u32) {
        let Some(s) = self.slots.get(slot as usize) else { return };
        let mut was = s.word.load(Ordering::Acquire);
        loop {
            if was & !DETACHED != PENDING {
                return;
            }
            let to = how | (was & DETACHED);
            match s.word.compare_exchange(was, to, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(now) => was = now,
            }
        }
        if was & DETACHED != 0 {
            self.give_back(slot);
        } else if let Some(waker) = s.waker.lock().take() {
            waker.wake();
        }
    }

    pub(crate) fn delivered(&self, slot: u32) {
        self.end(slot, DELIVERED);
    }

    pub(crate) fn set_aside(&self, slot: u32) {
        self.end(slot, SET_ASIDE);
    }

    pub(crate) fn dropped(&self, slot: u32) {
        self.end(slot, DROPPED);
    }

    /// The pipeline closes: whatever is pending will be heard of no more.
    pub(crate) fn close(&self) {
        for slot in 0..self.slots.len() as u32 {
            self.end(slot, LEFT);
        }
    }
}

/// Tells how one record ended. May be dropped at any time; the record goes its way.
///
/// As a [`Future`] it resolves when the record is final; no runtime is needed.
#[must_use = "a receipt that nobody waits for costs a slot for nothing; use send() instead"]
pub struct Receipt {
    pub(crate) table: Arc<Receipts>,
    pub(crate) waiting: Arc<dyn Waiting>,
    pub(crate) slot: u32,
}

impl Receipt {
    fn result(&self) -> Option<Result<(), ReceiptError>> {
        match self.table.slots[self.slot as usize].word.load(Ordering::Acquire) {
            DELIVERED => Some(Ok(())),
            SET_ASIDE => Some(Err(ReceiptError::SetAside)),
            DROPPED => Some(Err(ReceiptError::Dropped)),
            LEFT => Some(Err(ReceiptError::Closed)),
            _ => None,
        }
    }

    /// Waits until the record has reached `level`, at most `timeout`. Has the flusher send at
    /// once instead of at its next interval.
    ///
    /// # Errors
    /// [`ReceiptError::StillPending`] when the time is over: the record is still on its way.
    /// The others say that it will not be delivered by this pipeline.
    pub fn wait(&self, level: Level, timeout: Duration) -> Result<(), ReceiptError> {
        let Level::Delivered = level;
        if let Some(result) = self.result() {
            return result;
        }
        self.waiting.hurry();
        self.waiting.wait_until(timeout, &mut || self.result().is_some());
        self.result().unwrap_or(Err(ReceiptError::StillPending))
    }
}

impl Future for Receipt {
    type Output = Result<(), ReceiptError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(result) = self.result() {
            return Poll::Ready(result);
        }
        *self.table.slots[self.slot as usize].waker.lock() = Some(cx.waker().clone());
        // The record may have ended before the waker was there.
        match self.result() {
            Some(result) => Poll::Ready(result),
            None => {
                self.waiting.hurry();
                Poll::Pending
            }
        }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        let was = self.table.slots[self.slot as usize].word.fetch_or(DETACHED, Ordering::AcqRel);
        if was != PENDING {
            self.table.give_back(self.slot);
        }
    }
}

impl std::fmt::Debug for Receipt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receipt").field("result", &self.result()).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    struct Never;
    impl Waiting for Never {
        fn hurry(&self) {}
        fn wait_until(&self, _: Duration, done: &mut dyn FnMut() -> bool) -> bool {
            done()
        }
    }

    fn receipt(table: &Arc<Receipts>) -> Receipt {
        let slot = table.take().unwrap();
        Receipt { table: table.clone(), waiting: Arc::new(Never), slot }
    }

    #[test]
    fn a_slot_comes_back_whichever_side_is_last() {
        let table = Arc::new(Receipts::new(1));
        for _ in 0..3 {
            let r = receipt(&table);
            assert!(table.take().is_none());
            assert_eq!(r.wait(Level::Delivered, Duration::ZERO), Err(ReceiptError::StillPending));
            table.delivered(r.slot);
            assert_eq!(r.wait(Level::Delivered, Duration::ZERO), Ok(()));
            drop(r);
            let r = receipt(&table);
            let slot = r.slot;
            drop(r);
            assert!(table.take().is_none(), "the record is still on its way");
            table.dropped(slot);
        }
        let r = receipt(&table);
        table.close();
        assert_eq!(r.wait(Level::Delivered, Duration::ZERO), Err(ReceiptError::Closed));
    }

    #[test]
    fn a_future_is_woken() {
        struct Flag(std::sync::atomic::AtomicBool);
        impl std::task::Wake for Flag {
            fn wake(self: Arc<Self>) {
                self.0.store(true, std::sync::atomic::Ordering::SeqCst);
            }
        }
        let table = Arc::new(Receipts::new(2));
        let mut r = receipt(&table);
        let flag = Arc::new(Flag(false.into()));
        let waker = Waker::from(flag.clone());
        let mut cx = Context::from_waker(&waker);
        assert!(Pin::new(&mut r).poll(&mut cx).is_pending());
        table.set_aside(r.slot);
        assert!(flag.0.load(std::sync::atomic::Ordering::SeqCst));
        assert_eq!(Pin::new(&mut r).poll(&mut cx), Poll::Ready(Err(ReceiptError::SetAside)));
    }
}
