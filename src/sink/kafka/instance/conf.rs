//! Owns a librdkafka configuration: the FFI of `rd_kafka_conf_t`.

use super::{ERROR_TEXT_BYTES, text_of};
use crate::error::ConfigError;
use crate::sink::kafka::config::{self, shown};
use crate::sink::kafka::security::certificate_fault;
use rdkafka::bindings::*;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{self, NonNull};

/// Shorter values are in too many words to be replaced in them.
const SECRET_BYTES_MIN: usize = 4;

/// A configuration that librdkafka has accepted; instances are made from copies of it.
pub(in crate::sink::kafka) struct Config {
    pub(super) conf: NonNull<rd_kafka_conf_t>,
    /// Values that may be secrets, to be kept out of librdkafka's words.
    secrets: Vec<String>,
}

// SAFETY: a configuration is plain data owned by this value alone; librdkafka ties it to no
// thread, and every method that changes it takes it whole.
unsafe impl Send for Config {}
// SAFETY: once `new` has returned, `&self` methods only read it or copy it.
unsafe impl Sync for Config {}

impl Config {
    /// Sets every property, and the events that an instance is to raise.
    pub fn new(properties: &[(String, String)]) -> Result<Self, ConfigError> {
        // SAFETY: takes nothing, returns a new configuration.
        let conf = NonNull::new(unsafe { rd_kafka_conf_new() })
            .ok_or_else(|| config::refuse("brokers", "", "librdkafka is out of memory"))?;
        let secret = |(name, value): &&(String, String)| {
            config::may_be_secret(name) && value.len() >= SECRET_BYTES_MIN
        };
        let secrets = properties.iter().filter(secret).map(|(_, value)| value.clone()).collect();
        let config = Config { conf, secrets };
        for (name, value) in properties {
            config.set(name, value)?;
        }
        let events = RD_KAFKA_EVENT_DR | RD_KAFKA_EVENT_ERROR | RD_KAFKA_EVENT_LOG;
        // SAFETY: `conf` is live for as long as `config` is.
        unsafe { rd_kafka_conf_set_events(config.conf.as_ptr(), events) };
        // SAFETY: as above. Without TLS in the build the call does nothing.
        unsafe { rd_kafka_conf_set_ssl_cert_verify_cb(config.conf.as_ptr(), Some(verified)) };
        Ok(config)
    }

    fn set(&self, name: &str, value: &str) -> Result<(), ConfigError> {
        let no_nul = |_| config::refuse(name, shown(name, value), "a NUL byte isn't allowed");
        let c_name = CString::new(name).map_err(no_nul)?;
        let c_value = CString::new(value).map_err(no_nul)?;
        let mut text = [0 as c_char; ERROR_TEXT_BYTES];
        // SAFETY: `conf` is live; both strings end in NUL; `text` is as long as is said.
        let done = unsafe {
            rd_kafka_conf_set(
                self.conf.as_ptr(),
                c_name.as_ptr(),
                c_value.as_ptr(),
                text.as_mut_ptr(),
                text.len(),
            )
        };
        if done == rd_kafka_conf_res_t::RD_KAFKA_CONF_OK {
            return Ok(());
        }
        // librdkafka may repeat the value; it could be a secret.
        let problem = text_of(&text);
        let problem = if shown(name, value) == value {
            problem
        } else {
            // It may also repeat a part of it, in quotes.
            quoting_only(&without(problem, value), value, name)
        };
        Err(config::refuse(name, shown(name, value), problem))
    }

    /// A text of librdkafka's without anything that may be a secret.
    pub(in crate::sink::kafka) fn scrubbed(&self, text: String) -> String {
        self.secrets.iter().fold(text, |text, secret| {
            if text.contains(secret) { text.replace(secret, "***") } else { text }
        })
    }

    /// The value in force of a numeric property, `default` if librdkafka has none.
    pub fn number(&self, name: &CStr, default: u64) -> u64 {
        let mut text = [0 as c_char; 64];
        let mut len = text.len();
        // SAFETY: `conf` is live; `name` ends in NUL; `text` is `len` bytes long.
        let done = unsafe {
            rd_kafka_conf_get(self.conf.as_ptr(), name.as_ptr(), text.as_mut_ptr(), &mut len)
        };
        if done != rd_kafka_conf_res_t::RD_KAFKA_CONF_OK {
            return default;
        }
        text_of(&text).parse().unwrap_or(default)
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        // SAFETY: this value owns the configuration, and instances are made from copies.
        unsafe { rd_kafka_conf_destroy(self.conf.as_ptr()) };
    }
}

/// A text without a value that it may repeat, whole, or cut off where the text's room ended.
fn without(text: String, value: &str) -> String {
    if value.len() < 3 {
        return text;
    }
    let mut text = text.replace(value, "***");
    // A character that was cut through.
    text.truncate(text.trim_end_matches(char::REPLACEMENT_CHARACTER).len());
    let begins = value.char_indices().map(|(at, _)| &value[..at]).filter(|v| v.len() >= 3);
    if let Some(cut) = begins.rev().find(|begin| text.ends_with(begin)) {
        text.truncate(text.len() - cut.len());
        text.push_str("***");
    }
    text
}

/// A text in which nothing stands in quotes but `name`. Where the value has quotes of its own,
/// nobody can say where it ends: then nothing is left of the text from the first quote on.
fn quoting_only(text: &str, value: &str, name: &str) -> String {
    if let Some((begin, _)) = text.split_once('"').filter(|_| value.contains('"')) {
        return format!("{begin}\"***\"");
    }
    let parts = text.split('"').enumerate().map(|(at, part)| match at % 2 {
        1 if part != name => "***",
        _ => part,
    });
    parts.collect::<Vec<_>>().join("\"")
}

/// librdkafka asks it of each certificate in a broker's chain. It lets nothing pass that OpenSSL
/// refuses, and refuses nothing else: it only has the reason written into the log, which
/// librdkafka's error doesn't hold.
unsafe extern "C" fn verified(
    _: *mut rd_kafka_t,
    _: *const c_char,
    _: i32,
    x509_error: *mut c_int,
    depth: c_int,
    _: *const c_char,
    _: usize,
    text: *mut c_char,
    text_bytes: usize,
    _: *mut c_void,
) -> c_int {
    // SAFETY: librdkafka gives a live number, and a buffer of `text_bytes` bytes.
    unsafe {
        if *x509_error == 0 {
            return 1;
        }
        let fault = certificate_fault(*x509_error, depth);
        let bytes = fault.len().min(text_bytes.saturating_sub(1));
        if text_bytes > 0 {
            ptr::copy_nonoverlapping(fault.as_ptr().cast(), text, bytes);
            *text.add(bytes) = 0;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::OnceLock;

    #[test]
    fn a_value_is_taken_out_of_a_text_also_where_the_text_ends_in_it() {
        assert_eq!(without("value \"hunter2\" is bad".into(), "hunter2"), "value \"***\" is bad");
        assert_eq!(without("value \"hunt".into(), "hunter2"), "value \"***");
        assert_eq!(without("value \"hun\u{fffd}".into(), "hunéter"), "value \"***");
        assert_eq!(without("no such property".into(), "hunter2"), "no such property");
        let part = "Invalid value \"unter2\" for property \"a.b\"";
        let part = quoting_only(part, "hunter2", "a.b");
        assert_eq!(part, "Invalid value \"***\" for property \"a.b\"");
        // A part of a value that holds quotes: what stands between two may be outside of both.
        let part = "Invalid value \"\"unter2\"\" for property \"a.b\"";
        assert_eq!(quoting_only(part, "+\"hunter2\"", "a.b"), "Invalid value \"***\"");
    }

    /// Names that librdkafka knows, with the type of each taken in turn, and some that it doesn't.
    fn names() -> &'static [String] {
        static NAMES: OnceLock<Vec<String>> = OnceLock::new();
        NAMES.get_or_init(dumped)
    }

    fn dumped() -> Vec<String> {
        let mut count = 0;
        // SAFETY: the configuration is live until it is destroyed; the dump is an array of `count`
        // strings that end in NUL, freed below.
        unsafe {
            let conf = rd_kafka_conf_new();
            let dump = rd_kafka_conf_dump(conf, &mut count);
            let at = |i: usize| CStr::from_ptr(*dump.add(i)).to_string_lossy().into_owned();
            let names = (0..count).step_by(2).map(at).collect();
            rd_kafka_conf_dump_free(dump, count);
            rd_kafka_conf_destroy(conf);
            names
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        /// No property, whatever its name and value, is a panic; an error names it, says what is
        /// wrong, and repeats no value that could be a secret.
        #[test]
        fn any_property_is_taken_or_refused_by_name(
            at in any::<prop::sample::Index>(),
            odd_name in "\\PC{0,24}",
            known in prop::bool::weighted(0.9),
            value in prop_oneof![
                "\\PC{0,12}",
                "[ -~]{0,700}",
                any::<i64>().prop_map(|n| n.to_string()),
                Just("a\0b".to_owned()),
            ],
        ) {
            let name = if known { at.get(names()).clone() } else { odd_name };
            let marked = format!("{value}Kq7-canary");
            for value in [value, marked] {
                let mut options = crate::sink::kafka::KafkaOptions::new("b:1");
                options.extra.push((name.clone(), value.clone()));
                let taken = config::properties(&options).and_then(|all| Config::new(&all));
                if let Err(error) = taken {
                    let related = error.name.starts_with("sasl.") && name == "security.protocol";
                    prop_assert!(error.name == name || related, "{name:?}: {error:?}");
                    prop_assert!(!error.problem.is_empty(), "{name:?}");
                    let is_shown = !config::may_be_secret(&name);
                    let told = error.to_string();
                    prop_assert!(is_shown || !told.contains("canary"), "{name:?}: {told}");
                }
            }
        }
    }
}
