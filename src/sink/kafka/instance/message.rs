//! Owns the way from a delivery report back to the record that it is about.

use crate::record::{Header, RecordView, Shape, TopicId};
use rdkafka::bindings::*;
use std::ffi::CStr;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

/// The record of a delivery report, while the report lives.
pub(in crate::sink::kafka) struct Message<'a> {
    message: NonNull<rd_kafka_message_t>,
    report: PhantomData<&'a rd_kafka_event_t>,
}

impl Message<'_> {
    /// The message of a report.
    ///
    /// # Safety
    /// `message` came from the report's event, which lives as long as this value, and nobody else
    /// uses it meanwhile.
    pub(super) unsafe fn new(message: NonNull<rd_kafka_message_t>) -> Self {
        Message { message, report: PhantomData }
    }

    /// The time that the record was handed over with. librdkafka tells it only of a message that
    /// has no error.
    fn timestamp_ms(&self) -> i64 {
        let message = self.message.as_ptr();
        // SAFETY: the message is live and nobody else uses it (see `new`), so its code, which is
        // an integer to librdkafka, may be another one during the call.
        unsafe {
            let code = ptr::addr_of_mut!((*message).err).cast::<i32>();
            let kept = code.replace(0);
            let timestamp_ms = rd_kafka_message_timestamp(message, ptr::null_mut());
            code.write(kept);
            timestamp_ms
        }
    }

    /// Calls `act` with the record as it was handed over; `body` is written over.
    pub fn read<T>(&self, body: &mut Vec<u8>, act: impl FnOnce(&RecordView<'_>) -> T) -> T {
        body.clear();
        self.headers(body);
        let headers_len = body.len() as u32;
        let timestamp_ms = self.timestamp_ms();
        let m = self.message.as_ptr();
        // SAFETY: the message is live, and so are its key and value, which are as long as it says.
        let (key, value, partition) = unsafe {
            let bytes = |at: *mut std::ffi::c_void, len: usize| {
                (!at.is_null()).then(|| std::slice::from_raw_parts(at.cast::<u8>(), len))
            };
            (bytes((*m).key, (*m).key_len), bytes((*m).payload, (*m).len), (*m).partition)
        };
        body.extend_from_slice(key.unwrap_or_default());
        body.extend_from_slice(value.unwrap_or_default());
        let len = |part: Option<&[u8]>| part.map(|p| p.len() as u32);
        let shape = Shape { headers_len, key_len: len(key), value_len: len(value) };
        act(&RecordView { topic: TopicId(0), partition, timestamp_ms, shape, body })
    }

    fn headers(&self, body: &mut Vec<u8>) {
        let mut list = ptr::null_mut();
        // SAFETY: the message is live; the list stays its own.
        unsafe { rd_kafka_message_headers(self.message.as_ptr(), &mut list) };
        if list.is_null() {
            return;
        }
        for at in 0.. {
            let (mut name, mut value, mut len) = (ptr::null(), ptr::null(), 0);
            // SAFETY: the list is live; an index behind its end is an answer, not an error.
            let found =
                unsafe { rd_kafka_header_get_all(list, at, &mut name, &mut value, &mut len) };
            if found != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return;
            }
            // SAFETY: names end in NUL, and a value is as long as is said; both live as long as
            // the message.
            let (name, value) = unsafe {
                let value =
                    (!value.is_null()).then(|| std::slice::from_raw_parts(value.cast::<u8>(), len));
                (CStr::from_ptr(name), value)
            };
            // Names came from us, as UTF-8.
            let name = name.to_string_lossy();
            let header = Header { name: &name, value };
            let from = body.len();
            body.resize(from + header.encoded_len(), 0);
            header.encode(&mut body[from..]);
        }
    }
}

/// Every code that librdkafka has a text for, and its name.
#[cfg(test)]
pub(in crate::sink::kafka) fn known_codes() -> Vec<(i32, String)> {
    let (mut list, mut count) = (ptr::null(), 0);
    // SAFETY: librdkafka answers with a static table; codes are read as integers, and a name is
    // null or ends in NUL.
    unsafe {
        rd_kafka_get_err_descs(&mut list, &mut count);
        let rows = (0..count).map(|at| list.add(at));
        let rows = rows.filter(|row| !(**row).name.is_null());
        rows.map(|row| {
            let code = ptr::addr_of!((*row).code).cast::<i32>().read();
            (code, CStr::from_ptr((*row).name).to_string_lossy().into_owned())
        })
        .collect()
    }
}
