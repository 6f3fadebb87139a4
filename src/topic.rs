//! Owns what application threads hold to send: [`Topic`] and [`Record`].

use crate::clock::coarse_unix_ms;
use crate::error::SendError;
use crate::lane::OutRecord;
use crate::receipt::{Receipt, Waiting};
use crate::record::{ANY_PARTITION, HEADERS_MAX, Header, NO_RECEIPT, TopicId};
use crate::shared::Shared;
use std::sync::Arc;
use std::time::Duration;

/// A topic to send to: interned once, cheap to clone, usable from any thread.
///
/// Every send stamps the record with the wall clock's milliseconds, good to a jiffy (1 to 10 ms).
#[derive(Clone)]
pub struct Topic {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: TopicId,
    pub(crate) name: Arc<str>,
}

impl std::fmt::Debug for Topic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Topic").field(&self.name).finish()
    }
}

impl Topic {
    /// The topic's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[inline]
    fn out<'a>(&self, value: Option<&'a [u8]>) -> OutRecord<'a> {
        OutRecord {
            topic: self.id,
            partition: ANY_PARTITION,
            timestamp_ms: coarse_unix_ms(),
            key: None,
            value,
            headers: &[],
            receipt: NO_RECEIPT,
        }
    }

    /// Sends a value without a key. Never waits, never allocates; the bytes are copied.
    ///
    /// # Errors
    /// See [`SendError`]; the record was not taken, and the refusal is counted.
    #[inline]
    pub fn send(&self, value: &[u8]) -> Result<(), SendError> {
        self.shared.lanes.send(&self.out(Some(value)))
    }

    /// Begins a record with a key, headers, a partition or a time of its own.
    #[inline]
    pub fn record<'a>(&'a self, value: &'a [u8]) -> Record<'a> {
        Record::new(self, Some(value))
    }

    /// Sends a null value under `key`: on a compacted topic it deletes the key.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn tombstone(&self, key: &[u8]) -> Result<(), SendError> {
        self.shared.lanes.send(&OutRecord { key: Some(key), ..self.out(None) })
    }

    /// Sends a value that `encode` writes in place: it gets room for `len_max` bytes (whose
    /// content is arbitrary) and returns how many it wrote. The room is taken for `len_max`.
    ///
    /// A panic in `encode` sends nothing and goes on to the caller. While `encode` runs, the room of
    /// later records of this lane doesn't come back, and once it is used up the lane refuses: keep
    /// it short.
    ///
    /// # Errors
    /// See [`SendError`]; [`SendError::BadLength`] when `encode` returned more than `len_max`.
    pub fn send_with(
        &self,
        len_max: usize,
        encode: impl FnOnce(&mut [u8]) -> usize,
    ) -> Result<(), SendError> {
        self.shared.lanes.send_with(&self.out(None), len_max, encode)
    }

    /// Sends a value and, where its lane is full, waits for room, at most `timeout`. The only
    /// send that may wait.
    ///
    /// # Errors
    /// See [`SendError`]; [`SendError::Full`] when there was no room in time.
    pub fn send_timeout(&self, value: &[u8], timeout: Duration) -> Result<(), SendError> {
        self.record(value).send_timeout(timeout)
    }
}

/// A record being put together, on the stack. Ends with one of its `send`s.
#[must_use = "nothing is sent before send()"]
#[derive(Clone, Copy)]
pub struct Record<'a> {
    topic: &'a Topic,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    partition: i32,
    timestamp_ms: Option<i64>,
    headers: [Header<'a>; HEADERS_MAX],
    header_count: usize,
}

impl std::fmt::Debug for Record<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Record").field("topic", &self.topic.name).finish_non_exhaustive()
    }
}

impl<'a> Record<'a> {
    pub(crate) fn new(topic: &'a Topic, value: Option<&'a [u8]>) -> Self {
        Record {
            topic,
            key: None,
            value,
            partition: ANY_PARTITION,
            timestamp_ms: None,
            headers: [Header { name: "", value: None }; HEADERS_MAX],
            header_count: 0,
        }
    }

    /// Sets the key; empty differs from null, which is none at all.
    #[inline]
    pub fn key(mut self, key: &'a [u8]) -> Self {
        self.key = Some(key);
        self
    }

    /// Adds a header. At most 16; names are 1 to 1024 bytes without NUL.
    #[inline]
    pub fn header(self, name: &'a str, value: &'a [u8]) -> Self {
        self.add(Header { name, value: Some(value) })
    }

    /// Adds a header with a null value.
    pub fn header_null(self, name: &'a str) -> Self {
        self.add(Header { name, value: None })
    }

    fn add(mut self, header: Header<'a>) -> Self {
        if let Some(place) = self.headers.get_mut(self.header_count) {
            *place = header;
        }
        self.header_count += 1;
        self
    }

    /// Sets the partition, 0 or above. Without it the key decides, or the sink's turn. With a log, a
    /// record of a partition that the topic doesn't have waits until it has it ([`Stats::held`](crate::Stats::held)).
    #[inline]
    pub fn partition(mut self, partition: i32) -> Self {
        // ANY_PARTITION is not for callers to name: a negative number is refused at the send.
        self.partition = if partition < 0 { i32::MIN } else { partition };
        self
    }

    /// Sets CreateTime, in milliseconds since the Unix epoch.
    #[inline]
    pub fn timestamp(mut self, unix_ms: i64) -> Self {
        self.timestamp_ms = Some(unix_ms);
        self
    }

    #[inline]
    fn try_send(&self, receipt: u32) -> Result<(), SendError> {
        // One header too many is given on as an invalid one, so that the lane counts it.
        let headers = if self.header_count > HEADERS_MAX {
            &[Header { name: "", value: None }][..]
        } else {
            &self.headers[..self.header_count]
        };
        self.topic.shared.lanes.send(&OutRecord {
            topic: self.topic.id,
            partition: self.partition,
            timestamp_ms: self.timestamp_ms.unwrap_or_else(coarse_unix_ms),
            key: self.key,
            value: self.value,
            headers,
            receipt,
        })
    }

    /// Sends the record. Never waits, never allocates; the bytes are copied.
    ///
    /// # Errors
    /// See [`SendError`]; the record was not taken, and the refusal is counted.
    #[inline]
    pub fn send(self) -> Result<(), SendError> {
        self.try_send(NO_RECEIPT)
    }

    /// Sends the record and, where its lane is full, waits for room, at most `timeout`.
    ///
    /// # Errors
    /// See [`SendError`]; [`SendError::Full`] when there was no room in time.
    pub fn send_timeout(self, timeout: Duration) -> Result<(), SendError> {
        let mut result = self.try_send(NO_RECEIPT);
        if result != Err(SendError::Full) {
            return result;
        }
        // A refusal that is followed by another try isn't one: only the last word counts.
        let shared = &self.topic.shared;
        shared.lanes.forgive_refusal(SendError::Full);
        shared.hurry();
        shared.wait_until(timeout, &mut || {
            result = self.try_send(NO_RECEIPT);
            if result == Err(SendError::Full) {
                shared.lanes.forgive_refusal(SendError::Full);
            }
            result != Err(SendError::Full)
        });
        if result == Err(SendError::Full) {
            shared.lanes.count_refusal(SendError::Full);
        }
        result
    }

    /// Sends the record and returns a receipt that tells how it ended. Never waits, never
    /// allocates.
    ///
    /// # Errors
    /// See [`SendError`]; [`SendError::NoReceipt`] when `receipts_max` are in use.
    pub fn send_tracked(self) -> Result<Receipt, SendError> {
        let shared = &self.topic.shared;
        let Some(slot) = shared.receipts.take() else {
            return Err(shared.lanes.count_refusal(SendError::NoReceipt));
        };
        if let Err(e) = self.try_send(slot) {
            shared.receipts.untake(slot);
            return Err(e);
        }
        Ok(Receipt { table: shared.receipts.clone(), waiting: shared.clone(), slot })
    }
}
