//! Owns new properties for a sink that runs: a rotated password or certificate.
//!
//! The caller's thread checks them and makes the next producer with them, so that a reload that
//! can't work is an error there and changes nothing. The sink takes the producer over at its next
//! look, by the way of every rebuild: the old one gets its time to report what it has.

use super::config::KafkaOptions;
use super::instance::Instance;
use super::worker::{self, Configs};
use crate::error::ReloadError;
use crate::sink::Reload;
use crate::sync::{AtomicU64, Ordering};
use crate::wake::Waker;
use parking_lot::Mutex;
use std::sync::Arc;

/// A producer with new properties, connecting already.
pub(super) struct Fresh {
    pub configs: Arc<Configs>,
    pub instance: Instance,
    /// Which reload it came of.
    pub number: u64,
}

/// Between whoever reloads and the sink.
pub(super) struct Reloader {
    /// The newest reload that succeeded.
    asked: AtomicU64,
    slot: Mutex<Slot>,
    waker: Waker,
}

struct Slot {
    options: KafkaOptions,
    fresh: Option<Fresh>,
    closed: bool,
}

impl Reloader {
    pub fn new(options: KafkaOptions, waker: Waker) -> Self {
        let slot = Slot { options, fresh: None, closed: false };
        Reloader { asked: AtomicU64::new(0), slot: Mutex::new(slot), waker }
    }

    /// What was reloaded after the reload with this number.
    #[inline]
    pub fn take_newer(&self, than: u64) -> Option<Fresh> {
        if self.asked.load(Ordering::Acquire) == than {
            return None;
        }
        self.slot.lock().fresh.take()
    }

    /// No reload is taken any more.
    pub fn close(&self) {
        let mut slot = self.slot.lock();
        slot.closed = true;
        if let Some(fresh) = slot.fresh.take() {
            worker::destroy(Arc::new(fresh.instance));
        }
    }
}

impl Reload for Reloader {
    fn reload(&self, changes: &[(&str, &str)]) -> Result<(), ReloadError> {
        // Held to the end: of two reloads at a time the later one sees the former's properties.
        let mut slot = self.slot.lock();
        if slot.closed {
            return Err(ReloadError::Closed);
        }
        let mut options = slot.options.clone();
        for (name, value) in changes {
            options.extra.retain(|(known, _)| known != name);
            options.extra.push(((*name).to_owned(), (*value).to_owned()));
        }
        let configs = Arc::new(Configs::new(&options)?);
        let instance =
            Instance::new(&configs.main, self.waker.clone()).map_err(ReloadError::Kafka)?;
        slot.options = options;
        let number = self.asked.load(Ordering::Acquire) + 1;
        if let Some(older) = slot.fresh.replace(Fresh { configs, instance, number }) {
            worker::destroy(Arc::new(older.instance));
        }
        self.asked.store(number, Ordering::Release);
        drop(slot);
        self.waker.wake();
        Ok(())
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::Acquire)
    }
}
