//! Owns the choice of queue: crossbeam's `ArrayQueue`, or under loom a model of its contract.
//!
//! Loom proves the protocol around the queue (credits, close, release), not the ring itself.

#[cfg(not(loom))]
pub(super) use crossbeam_queue::ArrayQueue as Queue;

#[cfg(loom)]
pub(super) use model::Queue;

#[cfg(loom)]
mod model {
    use loom::sync::Mutex;
    use std::collections::VecDeque;

    pub(in super::super) struct Queue<T> {
        items: Mutex<VecDeque<T>>,
        capacity: usize,
    }

    impl<T> Queue<T> {
        pub(in super::super) fn new(capacity: usize) -> Self {
            Queue { items: Mutex::new(VecDeque::new()), capacity }
        }

        pub(in super::super) fn push(&self, item: T) -> Result<(), T> {
            let mut items = self.items.lock().unwrap();
            assert!(items.len() < self.capacity, "slot credits make a push infallible");
            items.push_back(item);
            Ok(())
        }

        pub(in super::super) fn pop(&self) -> Option<T> {
            self.items.lock().unwrap().pop_front()
        }

        pub(in super::super) fn len(&self) -> usize {
            self.items.lock().unwrap().len()
        }
    }
}
