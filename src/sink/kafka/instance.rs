//! Owns one librdkafka producer: the FFI, and the only `unsafe` in this room.
//!
//! `rd_kafka_resp_err_t` is a Rust enum in the bindings, but a broker may send a number that the
//! enum lacks, and reading that as the enum would be undefined. So codes are read as integers:
//! from structs through a raw pointer, from functions through a pointer type that returns `i32`.

use super::errors::code;
use crate::record::RecordView;
use crate::wake::Waker;
use rdkafka::bindings::*;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::Arc;

mod conf;
mod message;
pub(super) use conf::Config;
pub(super) use message::Message;
#[cfg(test)]
pub(super) use message::known_codes;

const ERROR_TEXT_BYTES: usize = 512;

/// One producer. Dropping it destroys it, which may block for seconds: only the worker does.
pub(super) struct Instance {
    rk: NonNull<rd_kafka_t>,
    queue: NonNull<rd_kafka_queue_t>,
    /// Keeps the descriptor open that librdkafka writes to.
    _waker: Waker,
}

// SAFETY: librdkafka's producer handle and queue may be used from any thread at any time.
unsafe impl Send for Instance {}
// SAFETY: as above; every method takes `&self` and calls only thread-safe functions, and the
// queue is polled by the sink's thread alone.
unsafe impl Sync for Instance {}

/// A topic's handle in one instance, and the instance, which must outlive it.
pub(super) struct TopicHandle {
    rkt: NonNull<rd_kafka_topic_t>,
    instance: Arc<Instance>,
}

// SAFETY: topic handles are reference-counted objects that any thread may use.
unsafe impl Send for TopicHandle {}

impl Drop for TopicHandle {
    fn drop(&mut self) {
        // SAFETY: `rkt` is a reference that this value owns; its instance is still alive.
        unsafe { rd_kafka_topic_destroy(self.rkt.as_ptr()) };
    }
}

/// What comes out of an instance's queue.
pub(super) enum Event<'a> {
    /// One delivery report, and the record itself.
    Report(Delivery, Message<'a>),
    /// An error that isn't about one record.
    Error { code: i32, fatal: bool, text: &'a str },
    /// A line of librdkafka's log, with its syslog level.
    Log { level: i32, facility: &'a str, text: &'a str },
}

/// One delivery report.
#[derive(Clone, Copy)]
pub(super) struct Delivery {
    pub code: i32,
    /// Identifies the topic; see [`TopicHandle::id`].
    pub topic: usize,
    pub partition: i32,
    /// Bytes of key and value.
    pub bytes: u64,
    pub opaque: u64,
    pub possibly_persisted: bool,
}

/// What metadata says of one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TopicMetadata {
    pub name: String,
    pub partitions: usize,
    pub code: i32,
}

impl Instance {
    /// A new producer. It connects by itself, whether or not any broker is there.
    pub fn new(config: &Config, waker: Waker) -> Result<Instance, String> {
        let mut text = [0 as c_char; ERROR_TEXT_BYTES];
        // SAFETY: `conf` is live; the copy is ours until `rd_kafka_new` takes it.
        let conf = unsafe { rd_kafka_conf_dup(config.conf.as_ptr()) };
        // SAFETY: `conf` is a live configuration; `text` is as long as is said.
        let rk = unsafe {
            rd_kafka_new(rd_kafka_type_t::RD_KAFKA_PRODUCER, conf, text.as_mut_ptr(), text.len())
        };
        let Some(rk) = NonNull::new(rk) else {
            // SAFETY: when `rd_kafka_new` fails the configuration stays ours.
            unsafe { rd_kafka_conf_destroy(conf) };
            return Err(config.scrubbed(text_of(&text)));
        };
        // SAFETY: `rk` is live.
        let queue = unsafe {
            // NULL sends logs to the main queue.
            rd_kafka_set_log_queue(rk.as_ptr(), ptr::null_mut());
            rd_kafka_queue_get_main(rk.as_ptr())
        };
        let Some(queue) = NonNull::new(queue) else {
            // SAFETY: `rk` is live, and nothing else refers to it.
            unsafe { rd_kafka_destroy(rk.as_ptr()) };
            return Err("no main queue".to_owned());
        };
        let one = 1u64.to_ne_bytes();
        // SAFETY: `queue` is live; librdkafka copies the payload; the descriptor stays open as
        // long as the waker in this instance, and its drop takes the event away first.
        unsafe {
            rd_kafka_queue_io_event_enable(
                queue.as_ptr(),
                waker.raw_fd(),
                one.as_ptr().cast(),
                one.len(),
            );
        }
        Ok(Instance { rk, queue, _waker: waker })
    }

    /// Opens a topic's handle, which makes librdkafka ask for its metadata.
    pub fn topic(self: &Arc<Self>, name: &str) -> Option<TopicHandle> {
        let name = CString::new(name).ok()?;
        // SAFETY: `rk` is live; `name` ends in NUL; NULL takes the default topic configuration.
        let rkt = unsafe { rd_kafka_topic_new(self.rk.as_ptr(), name.as_ptr(), ptr::null_mut()) };
        NonNull::new(rkt).map(|rkt| TopicHandle { rkt, instance: self.clone() })
    }

    /// Calls `act` for everything that waits in the queue, without waiting.
    pub fn poll(&self, mut act: impl FnMut(Event<'_>)) {
        loop {
            // SAFETY: `queue` is live.
            let event = unsafe { rd_kafka_queue_poll(self.queue.as_ptr(), 0) };
            let Some(event) = NonNull::new(event) else { return };
            read_event(event, &mut act);
            // SAFETY: the event is ours, and nothing of it is used any more.
            unsafe { rd_kafka_event_destroy(event.as_ptr()) };
        }
    }

    /// Asks Kafka about every topic that has a handle. Blocks up to `timeout_ms`.
    pub fn metadata(&self, timeout_ms: i32) -> Result<Vec<TopicMetadata>, i32> {
        let mut metadata: *const rd_kafka_metadata = ptr::null();
        let ask: unsafe extern "C" fn(
            *mut rd_kafka_t,
            c_int,
            *mut rd_kafka_topic_t,
            *mut *const rd_kafka_metadata,
            c_int,
        ) -> i32 =
            // SAFETY: the enum that it returns has the size and alignment of an `i32`.
            unsafe { std::mem::transmute(rd_kafka_metadata as *const c_void) };
        // SAFETY: `rk` is live; `metadata` is written on success only.
        let code = unsafe { ask(self.rk.as_ptr(), 0, ptr::null_mut(), &mut metadata, timeout_ms) };
        if code != 0 || metadata.is_null() {
            return Err(code);
        }
        // SAFETY: librdkafka gave us the metadata, live until it is destroyed below; it holds
        // `topic_cnt` topics, each with a name that ends in NUL.
        unsafe {
            let count = usize::try_from((*metadata).topic_cnt).unwrap_or(0);
            let topics = (0..count).map(|at| {
                let topic = (*metadata).topics.add(at);
                TopicMetadata {
                    name: CStr::from_ptr((*topic).topic).to_string_lossy().into_owned(),
                    partitions: usize::try_from((*topic).partition_cnt).unwrap_or(0),
                    code: ptr::addr_of!((*topic).err).cast::<i32>().read(),
                }
            });
            let topics = topics.collect();
            rd_kafka_metadata_destroy(metadata);
            Ok(topics)
        }
    }

    /// Pauses or resumes partitions. Waits for librdkafka's main thread. A resume also wakes
    /// the broker threads, which otherwise wouldn't notice for up to a second.
    pub fn pause_resume(&self, partitions: &[(Arc<CStr>, i32)], pause: bool) {
        // SAFETY: the list is ours from here to its destruction; names end in NUL and are copied.
        unsafe {
            let list = rd_kafka_topic_partition_list_new(partitions.len() as c_int);
            if list.is_null() {
                return;
            }
            for (topic, partition) in partitions {
                rd_kafka_topic_partition_list_add(list, topic.as_ptr(), *partition);
            }
            if pause {
                rd_kafka_pause_partitions(self.rk.as_ptr(), list);
            } else {
                rd_kafka_resume_partitions(self.rk.as_ptr(), list);
            }
            rd_kafka_topic_partition_list_destroy(list);
        }
        if !pause {
            self.wake_brokers();
        }
    }

    /// Makes every connected broker's thread look at its partitions now.
    pub fn wake_brokers(&self) {
        // SAFETY: `rk` is live. With timeout 0 a flush only wakes the broker threads; reports
        // go to the queue, since they are events.
        unsafe { rd_kafka_flush(self.rk.as_ptr(), 0) };
    }

    /// The fatal error that the instance has raised, if any.
    pub fn fatal(&self) -> Option<(i32, String)> {
        let mut text = [0 as c_char; ERROR_TEXT_BYTES];
        let ask: unsafe extern "C" fn(*mut rd_kafka_t, *mut c_char, usize) -> i32 =
            // SAFETY: as in `metadata`.
            unsafe { std::mem::transmute(rd_kafka_fatal_error as *const c_void) };
        // SAFETY: `rk` is live; `text` is as long as is said.
        let code = unsafe { ask(self.rk.as_ptr(), text.as_mut_ptr(), text.len()) };
        (code != 0).then(|| (code, text_of(&text)))
    }

    /// Raises a fatal error, as a broker could.
    #[cfg(test)]
    pub fn raise_fatal(&self) {
        // SAFETY: `rk` is live, the text ends in NUL.
        unsafe {
            rd_kafka_test_fatal_error(
                self.rk.as_ptr(),
                rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
                c"raised by a test".as_ptr(),
            );
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // SAFETY: both are live, and topic handles hold an `Arc` of this, so none is left. The
        // event is taken off the queue before the descriptor may close.
        unsafe {
            rd_kafka_queue_io_event_enable(self.queue.as_ptr(), -1, ptr::null(), 0);
            rd_kafka_queue_destroy(self.queue.as_ptr());
            let flags = RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE;
            rd_kafka_destroy_flags(self.rk.as_ptr(), flags);
        }
    }
}

impl TopicHandle {
    /// What [`Delivery::topic`] says for this topic.
    pub fn id(&self) -> usize {
        self.rkt.as_ptr() as usize
    }

    /// Hands one record to librdkafka, which copies it.
    #[inline]
    pub fn produce(
        &self,
        partition: i32,
        record: &RecordView<'_>,
        opaque: u64,
        names: &mut Vec<u8>,
    ) -> Result<(), i32> {
        let mut vus = [const { vu_end() }; 7];
        vus[0].vtype = rd_kafka_vtype_t::RD_KAFKA_VTYPE_RKT;
        vus[0].u.rkt = self.rkt.as_ptr();
        vus[1].vtype = rd_kafka_vtype_t::RD_KAFKA_VTYPE_PARTITION;
        vus[1].u.i32_ = partition;
        vus[2].vtype = rd_kafka_vtype_t::RD_KAFKA_VTYPE_MSGFLAGS;
        vus[2].u.i = RD_KAFKA_MSG_F_COPY;
        vus[3].vtype = rd_kafka_vtype_t::RD_KAFKA_VTYPE_TIMESTAMP;
        // librdkafka takes 0 for "now"; a record must keep its own time.
        vus[3].u.i64_ = if record.timestamp_ms == 0 { 1 } else { record.timestamp_ms };
        vus[4].vtype = rd_kafka_vtype_t::RD_KAFKA_VTYPE_OPAQUE;
        vus[4].u.ptr = opaque as *mut c_void;
        let mut count = 5;
        // A null key or value is left out; an empty one has a pointer that isn't null.
        if let Some(key) = record.key() {
            vus[count].vtype = rd_kafka_vtype_t::RD_KAFKA_VTYPE_KEY;
            vus[count].u.mem = memory(key);
            count += 1;
        }
        if let Some(value) = record.value() {
            vus[count].vtype = rd_kafka_vtype_t::RD_KAFKA_VTYPE_VALUE;
            vus[count].u.mem = memory(value);
            count += 1;
        }
        if record.shape.headers_len > 0 {
            return self.produce_with_headers(&vus[..count], record, names);
        }
        self.call(&vus[..count])
    }

    fn produce_with_headers(
        &self,
        vus: &[rd_kafka_vu_t],
        record: &RecordView<'_>,
        names: &mut Vec<u8>,
    ) -> Result<(), i32> {
        let headers = Headers::new(record, names)?;
        let mut with = [const { vu_end() }; 8];
        with[..vus.len()].copy_from_slice(vus);
        with[vus.len()].vtype = rd_kafka_vtype_t::RD_KAFKA_VTYPE_HEADERS;
        with[vus.len()].u.headers = headers.0.as_ptr();
        self.call(&with[..=vus.len()])?;
        // librdkafka has taken them with the record.
        std::mem::forget(headers);
        Ok(())
    }

    #[inline]
    fn call(&self, vus: &[rd_kafka_vu_t]) -> Result<(), i32> {
        // SAFETY: the instance and the topic handle are live; each vu's union holds the member
        // that its type names; keys and values are copied, F_COPY, before the call returns.
        let error =
            unsafe { rd_kafka_produceva(self.instance.rk.as_ptr(), vus.as_ptr(), vus.len()) };
        if error.is_null() {
            return Ok(());
        }
        let read: unsafe extern "C" fn(*const rd_kafka_error_t) -> i32 =
            // SAFETY: the enum that it returns has the size and alignment of an `i32`.
            unsafe { std::mem::transmute(rd_kafka_error_code as *const c_void) };
        // SAFETY: the error object is ours and live until it is destroyed here.
        let code = unsafe {
            let code = read(error);
            rd_kafka_error_destroy(error);
            code
        };
        Err(code)
    }
}

/// A list of headers that librdkafka hasn't taken.
struct Headers(NonNull<rd_kafka_headers_t>);

impl Headers {
    fn new(record: &RecordView<'_>, name: &mut Vec<u8>) -> Result<Self, i32> {
        // SAFETY: takes a number, returns a new list.
        let list = NonNull::new(unsafe { rd_kafka_headers_new(8) }).ok_or(code::QUEUE_FULL)?;
        let headers = Headers(list);
        for header in record.headers() {
            name.clear();
            name.extend_from_slice(header.name.as_bytes());
            name.push(0);
            let (value, len) = match header.value {
                Some(value) => (value.as_ptr().cast::<c_void>(), value.len() as isize),
                None => (ptr::null(), 0),
            };
            // SAFETY: the list is live; the name is as long as is said and ends in NUL; the
            // value is `len` bytes or NULL; both are copied.
            let added = unsafe {
                rd_kafka_header_add(
                    headers.0.as_ptr(),
                    name.as_ptr().cast(),
                    header.name.len() as isize,
                    value,
                    len,
                )
            };
            if added != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Err(added as i32);
            }
        }
        Ok(headers)
    }
}

impl Drop for Headers {
    fn drop(&mut self) {
        // SAFETY: the list is still ours: after a produce that took it, it is forgotten.
        unsafe { rd_kafka_headers_destroy(self.0.as_ptr()) };
    }
}

const fn vu_end() -> rd_kafka_vu_t {
    rd_kafka_vu_t {
        vtype: rd_kafka_vtype_t::RD_KAFKA_VTYPE_END,
        u: rd_kafka_vu_s__bindgen_ty_1 { ptr: ptr::null_mut() },
    }
}

fn memory(bytes: &[u8]) -> rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 {
    rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 {
        ptr: bytes.as_ptr().cast_mut().cast(),
        size: bytes.len(),
    }
}

/// Reads one event and calls `act` for each thing in it.
fn read_event(event: NonNull<rd_kafka_event_t>, act: &mut impl FnMut(Event<'_>)) {
    let event = event.as_ptr();
    // SAFETY: the event is live during this function, and so is every string and message that
    // it hands out; `act` can't keep them.
    unsafe {
        match rd_kafka_event_type(event) {
            RD_KAFKA_EVENT_DR => loop {
                let Some(message) = NonNull::new(rd_kafka_event_message_next(event).cast_mut())
                else {
                    return;
                };
                act(Event::Report(read_delivery(message.as_ptr()), Message::new(message)));
            },
            RD_KAFKA_EVENT_ERROR => {
                let read: unsafe extern "C" fn(*mut rd_kafka_event_t) -> i32 =
                    std::mem::transmute(rd_kafka_event_error as *const c_void);
                act(Event::Error {
                    code: read(event),
                    fatal: rd_kafka_event_error_is_fatal(event) != 0,
                    text: &borrow_text(rd_kafka_event_error_string(event)),
                });
            }
            RD_KAFKA_EVENT_LOG => {
                let (mut facility, mut text, mut level) = (ptr::null(), ptr::null(), 0);
                if rd_kafka_event_log(event, &mut facility, &mut text, &mut level) == 0 {
                    act(Event::Log {
                        level,
                        facility: &borrow_text(facility),
                        text: &borrow_text(text),
                    });
                }
            }
            _ => {}
        }
    }
}

/// # Safety
/// `message` must be a live message of a delivery report.
unsafe fn read_delivery(message: *const rd_kafka_message_t) -> Delivery {
    // SAFETY: the caller says that the message is live; the error is read as an integer.
    unsafe {
        let status = rd_kafka_message_status(message);
        Delivery {
            code: ptr::addr_of!((*message).err).cast::<i32>().read(),
            topic: (*message).rkt as usize,
            partition: (*message).partition,
            bytes: ((*message).len + (*message).key_len) as u64,
            opaque: (*message)._private as u64,
            possibly_persisted: status != rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_NOT_PERSISTED,
        }
    }
}

/// # Safety
/// `text` must be null or end in NUL and live as long as the answer is used.
unsafe fn borrow_text<'a>(text: *const c_char) -> std::borrow::Cow<'a, str> {
    if text.is_null() {
        return "".into();
    }
    // SAFETY: not null, and the caller says that it ends in NUL.
    unsafe { CStr::from_ptr(text) }.to_string_lossy()
}

fn text_of(buffer: &[c_char]) -> String {
    let bytes: Vec<u8> = buffer.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The text that librdkafka has for an error code, for people.
#[must_use]
pub fn describe(code: i32) -> String {
    let read: unsafe extern "C" fn(i32) -> *const c_char =
        // SAFETY: the enum that it takes is passed as an `i32`; librdkafka has a text for
        // numbers that it doesn't know.
        unsafe { std::mem::transmute(rd_kafka_err2str as *const c_void) };
    // SAFETY: the string ends in NUL and stays as it is until this thread's next call.
    unsafe { borrow_text(read(code)) }.into_owned()
}

/// The partition that librdkafka's own deterministic partitioners choose for a key, an empty
/// one included. `count` must be above 0; librdkafka divides by it.
#[inline]
pub(super) fn partition_of(key: &[u8], count: usize, murmur2: bool) -> i32 {
    if count == 0 {
        return 0;
    }
    let choose = if murmur2 {
        rd_kafka_msg_partitioner_murmur2
    } else {
        rd_kafka_msg_partitioner_consistent
    };
    // SAFETY: both functions only read the key; neither looks at the topic or the opaques.
    unsafe {
        choose(
            ptr::null(),
            key.as_ptr().cast(),
            key.len(),
            count as i32,
            ptr::null_mut(),
            ptr::null_mut(),
        )
    }
}

/// Blocks every signal in the calling thread, so that handlers run on the application's threads.
pub(super) fn block_signals() {
    // SAFETY: both calls only write to, or read, a set that lives on this stack.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &all, ptr::null_mut());
    }
}
