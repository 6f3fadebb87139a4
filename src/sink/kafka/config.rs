//! Owns the sink's options, and the list of librdkafka properties that the pipeline sets itself.

pub use crate::config::Partitioner;
use crate::config::shown_brokers;
use crate::error::ConfigError;

mod secure;

/// What the Kafka sink is built from.
#[derive(Clone)]
pub struct KafkaOptions {
    /// Bootstrap servers, `host:port` with commas between.
    pub brokers: String,
    /// Further librdkafka properties, passed on in this order.
    pub extra: Vec<(String, String)>,
    /// The largest record: headers, key and value.
    pub record_bytes_max: usize,
    /// The most records that the flusher has in flight.
    pub in_flight_max_records: usize,
    /// The most bytes that the flusher has in flight.
    pub in_flight_max_bytes: usize,
    /// How a key chooses the partition.
    pub partitioner: Partitioner,
    /// How long a topic may be unknown to Kafka before its records are rejected.
    pub topic_grace_ms: u64,
    /// How long a partition may be silent with records in flight before a rebuild is asked for.
    pub stall_timeout_ms: u64,
    /// How often metadata is asked for when all is well; more often when it isn't.
    pub metadata_interval_ms: u64,
    /// How long librdkafka waits for more records before it sends a request.
    pub linger_ms: u32,
    /// A partition's records handed over and unreported, in requests. 1 costs the least CPU per
    /// record: whatever is queued behind a request makes librdkafka spin until it is answered.
    pub requests_ahead: u32,
    /// Pause a partition that has been silent this long; 0 never pauses.
    pub silent_ms: u64,
}

impl KafkaOptions {
    /// Options with defaults for these brokers.
    #[must_use]
    pub fn new(brokers: impl Into<String>) -> Self {
        KafkaOptions {
            brokers: brokers.into(),
            extra: Vec::new(),
            record_bytes_max: 1_000_000,
            in_flight_max_records: 131_072,
            in_flight_max_bytes: 64 << 20,
            partitioner: Partitioner::Crc32,
            topic_grace_ms: 10_000,
            stall_timeout_ms: 60_000,
            metadata_interval_ms: 30_000,
            linger_ms: 5,
            requests_ahead: 1,
            silent_ms: 100,
        }
    }
}

/// Shows no value of a property that isn't known to be harmless.
impl std::fmt::Debug for KafkaOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let extra: Vec<(&str, &str)> =
            self.extra.iter().map(|(name, value)| (name.as_str(), shown(name, value))).collect();
        f.debug_struct("KafkaOptions")
            .field("brokers", &shown_brokers(&self.brokers))
            .field("extra", &extra)
            .field("record_bytes_max", &self.record_bytes_max)
            .field("partitioner", &self.partitioner)
            .finish_non_exhaustive()
    }
}

/// Properties whose values may be shown: none can hold a secret.
const HARMLESS: &[&str] = &[
    "batch.num.messages",
    "batch.size",
    "broker.address.family",
    "broker.address.ttl",
    "client.id",
    "client.rack",
    "compression.codec",
    "compression.level",
    "compression.type",
    "debug",
    "enable.sparse.connections",
    "enable.ssl.certificate.verification",
    "log_level",
    "metadata.max.age.ms",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "sasl.mechanism",
    "sasl.mechanisms",
    "security.protocol",
    "socket.keepalive.enable",
    "socket.nagle.disable",
    "socket.timeout.ms",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.endpoint.identification.algorithm",
    "ssl.key.location",
    "ssl.keystore.location",
    "topic.metadata.refresh.interval.ms",
];

/// The value as it may be shown.
pub(super) fn shown<'a>(name: &str, value: &'a str) -> &'a str {
    if HARMLESS.contains(&name) { value } else { "***" }
}

/// Whether a property's value may be a secret: it came from the user and isn't known as harmless.
pub(super) fn may_be_secret(name: &str) -> bool {
    !HARMLESS.contains(&name) && OWNED.iter().all(|(owned, _)| *owned != name)
}

/// (property, why a user can't set it).
const OWNED: &[(&str, &str)] = &[
    ("acks", ACKS),
    ("request.required.acks", ACKS),
    ("bootstrap.servers", BROKERS),
    ("metadata.broker.list", BROKERS),
    ("enable.idempotence", "the pipeline's order rests on idempotence"),
    ("enable.gapless.guarantee", "the pipeline keeps its own order and rebuilds on a gap"),
    ("max.in.flight", IN_FLIGHT),
    ("max.in.flight.requests.per.connection", IN_FLIGHT),
    ("retries", RETRIES),
    ("message.send.max.retries", RETRIES),
    ("linger.ms", LINGER),
    ("queue.buffering.max.ms", LINGER),
    ("message.timeout.ms", TIMEOUT),
    ("delivery.timeout.ms", TIMEOUT),
    ("message.max.bytes", "it follows from record_bytes_max"),
    ("delivery.report.only.error", REPORTS),
    ("dr_cb", REPORTS),
    ("dr_msg_cb", REPORTS),
    ("enabled_events", REPORTS),
    ("queue.buffering.max.messages", QUEUE),
    ("queue.buffering.max.kbytes", QUEUE),
    ("queue.buffering.backpressure.threshold", QUEUE),
    ("queuing.strategy", "first in, first out is the pipeline's order"),
    ("transactional.id", "the pipeline doesn't produce in transactions"),
    ("log.queue", "librdkafka's logs go to `tracing`"),
    ("log_cb", "librdkafka's logs go to `tracing`"),
    ("partitioner", PARTITIONER),
    ("partitioner_cb", PARTITIONER),
    ("sticky.partitioning.linger.ms", PARTITIONER),
    ("msg_order_cmp", "first in, first out is the pipeline's order"),
    ("background_event_cb", REPORTS),
    ("error_cb", REPORTS),
    ("opaque", REPORTS),
    ("interceptors", REPORTS),
    ("plugin.library.paths", "plugins could change what is sent"),
    ("test.mock.num.brokers", "use the embedded broker instead"),
];

const ACKS: &str = "a record counts as delivered only when every in-sync replica has it";
const BROKERS: &str = "use `brokers`";
const IN_FLIGHT: &str = "idempotence bounds it";
const RETRIES: &str = "retries never end: the pipeline alone gives a record up";
const LINGER: &str = "use flush_interval and flush_records; the sink's own linger is short";
const TIMEOUT: &str = "records don't expire in librdkafka: keeping them is the pipeline's work";
const REPORTS: &str = "the pipeline reads every delivery report itself";
const QUEUE: &str = "it follows from in_flight_max_records and in_flight_max_bytes";
const PARTITIONER: &str = "the sink chooses the partition; use the option `partitioner`";

/// Why an address with a user or a password isn't taken.
const NO_LOGIN: &str = "an address is host:port, without user or password; set sasl.username and sasl.password as properties";

/// What one record may take beyond its headers, key and value: the frame that Kafka adds.
const RECORD_OVERHEAD_BYTES: usize = 512;
/// The least that librdkafka allows for `message.max.bytes`.
const MESSAGE_BYTES_MIN: usize = 1_000;
/// The most that librdkafka allows for `message.max.bytes`.
const MESSAGE_BYTES_MAX: usize = 1_000_000_000;

/// A setting that can't be used.
pub(super) fn refuse(name: &str, value: &str, problem: impl Into<String>) -> ConfigError {
    ConfigError { name: name.to_owned(), value: value.to_owned(), problem: problem.into() }
}

/// Refuses a codec that this build lacks; librdkafka's own words name no feature of ours.
fn check_codec(extra: &[(String, String)], has_zstd: bool) -> Result<(), ConfigError> {
    let is_codec = |name: &str| matches!(name, "compression.type" | "compression.codec");
    let wanted = extra.iter().find(|(n, v)| is_codec(n) && v.eq_ignore_ascii_case("zstd"));
    match wanted {
        Some((name, value)) if !has_zstd => Err(refuse(
            name,
            value,
            "this build of forebay lacks it: build it with the feature \"zstd\", or use gzip, snappy or lz4",
        )),
        _ => Ok(()),
    }
}

/// Every property in the order in which it is set: ours that a user may change, the user's,
/// and last ours that nobody changes.
pub(super) fn properties(options: &KafkaOptions) -> Result<Vec<(String, String)>, ConfigError> {
    if options.brokers.trim().is_empty() {
        return Err(refuse("brokers", "", "at least one host:port is needed"));
    }
    if shown_brokers(&options.brokers) != options.brokers {
        return Err(refuse("brokers", "***", NO_LOGIN));
    }
    secure::check(&options.extra)?;
    check_codec(&options.extra, cfg!(feature = "zstd"))?;
    let message_bytes = options.record_bytes_max + RECORD_OVERHEAD_BYTES;
    if message_bytes > MESSAGE_BYTES_MAX {
        let allowed = MESSAGE_BYTES_MAX - RECORD_OVERHEAD_BYTES;
        return Err(refuse(
            "record_bytes_max",
            &options.record_bytes_max.to_string(),
            format!("Kafka takes at most {allowed}"),
        ));
    }
    if options.requests_ahead == 0 {
        return Err(refuse("requests_ahead", "0", "at least 1"));
    }
    let mut all: Vec<(String, String)> = Vec::with_capacity(24 + options.extra.len());
    let mut set = |name: &str, value: String| all.push((name.to_owned(), value));
    set("client.id", "forebay".to_owned());
    // A broker that stands still holds its requests back until this is over, and with them the
    // partitions that others lead by then. What it costs: all requests that are under way to one
    // broker, 1 MB a partition at most, must get through within it.
    set("socket.timeout.ms", "4000".to_owned());
    set("reconnect.backoff.ms", "50".to_owned());
    set("reconnect.backoff.max.ms", "300".to_owned());
    set("socket.keepalive.enable", "true".to_owned());
    // With sparse connections a broker whose partitions are all paused has no reason to connect
    // again, and is found back only when a try meets the end of a backoff.
    set("enable.sparse.connections", "false".to_owned());
    for (name, value) in &options.extra {
        if let Some((_, why)) = OWNED.iter().find(|(owned, _)| owned == name) {
            let problem = format!("the pipeline sets this property itself: {why}");
            return Err(refuse(name, shown_brokers(value), problem));
        }
        set(name, value.clone());
    }
    set("bootstrap.servers", options.brokers.clone());
    set("enable.idempotence", "true".to_owned());
    set("acks", "all".to_owned());
    set("message.timeout.ms", "0".to_owned());
    set("linger.ms", options.linger_ms.to_string());
    set("message.max.bytes", message_bytes.max(MESSAGE_BYTES_MIN).to_string());
    // The flusher's span is the bound; librdkafka's queue must never be the tighter one. It
    // counts bytes of values only, and the old instance's records aren't in the new one.
    let records = (options.in_flight_max_records * 2).clamp(1_000, i32::MAX as usize);
    let kbytes = (options.in_flight_max_bytes * 2 / 1024 + 1024).clamp(4096, 2_000_000_000);
    set("queue.buffering.max.messages", records.to_string());
    set("queue.buffering.max.kbytes", kbytes.to_string());
    set("log.queue", "true".to_owned());
    // The partition is always explicit; this only keeps librdkafka from choosing at random.
    set("partitioner", "consistent".to_owned());
    Ok(all)
}

/// The side instance's properties: one request in flight keeps the order there without
/// idempotence, and without it a refused request costs one round trip, and stops nobody.
pub(super) fn side_properties(main: &[(String, String)]) -> Vec<(String, String)> {
    let own = [
        ("client.id", "forebay-side"),
        ("enable.idempotence", "false"),
        ("max.in.flight", "1"),
        ("retries", "2147483647"),
        ("linger.ms", "1"),
    ];
    let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let replaced = |name: &String| own.iter().any(|(n, _)| n == name);
    let kept = main.iter().filter(|(name, _)| !replaced(name)).cloned();
    kept.chain(own.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_codec_that_this_build_lacks_names_the_feature() {
        let extra = |name: &str, codec: &str| vec![(name.to_owned(), codec.to_owned())];
        for name in ["compression.type", "compression.codec"] {
            let refused = check_codec(&extra(name, "ZSTD"), false).unwrap_err();
            assert_eq!(refused.name, name);
            assert!(refused.problem.contains("feature \"zstd\""), "{refused}");
            assert!(check_codec(&extra(name, "zstd"), true).is_ok());
            assert!(check_codec(&extra(name, "lz4"), false).is_ok());
        }
    }

    #[test]
    fn owned_properties_are_refused_with_the_reason() {
        for (name, why) in OWNED {
            let mut options = KafkaOptions::new("b:1");
            options.extra.push(((*name).to_owned(), "1".to_owned()));
            let error = properties(&options).unwrap_err();
            assert_eq!(&error.name, name);
            assert!(error.problem.contains(why), "{error}");
        }
    }

    #[test]
    fn what_a_user_sets_beats_a_default_and_never_what_is_ours() {
        let mut options = KafkaOptions::new("b:1");
        options.extra.push(("socket.timeout.ms".to_owned(), "5000".to_owned()));
        let all = properties(&options).unwrap();
        let last = |name: &str| all.iter().rfind(|p| p.0 == name).map(|p| p.1.clone());
        assert_eq!(last("socket.timeout.ms").as_deref(), Some("5000"));
        assert_eq!(last("message.max.bytes").as_deref(), Some("1000512"));
        assert_eq!(last("queue.buffering.max.messages").as_deref(), Some("262144"));
    }

    #[test]
    fn debug_shows_no_secret() {
        let mut options = KafkaOptions::new("b:1");
        for name in ["sasl.password", "ssl.key.password", "some.new.secret"] {
            options.extra.push((name.to_owned(), "hunter2".to_owned()));
        }
        options.extra.push(("security.protocol".to_owned(), "SASL_PLAINTEXT".to_owned()));
        options.brokers = "sasl_ssl://user:hunter2@b:1".to_owned();
        let text = format!("{options:?}");
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("SASL_PLAINTEXT"));
        let error = properties(&options).unwrap_err();
        assert!(error.name == "brokers" && !error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn no_brokers_is_an_error() {
        assert_eq!(properties(&KafkaOptions::new(" ")).unwrap_err().name, "brokers");
    }
}
