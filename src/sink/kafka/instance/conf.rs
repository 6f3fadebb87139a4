//! Owns a librdkafka configuration: the FFI of `rd_kafka_conf_t`.

use super::{ERROR_TEXT_BYTES, text_of};
use crate::error::ConfigError;
use crate::sink::kafka::config::{self, shown};
use rdkafka::bindings::*;
use std::ffi::{CStr, CString, c_char};
use std::ptr::NonNull;

/// A configuration that librdkafka has accepted; instances are made from copies of it.
pub(in crate::sink::kafka) struct Config {
    pub(super) conf: NonNull<rd_kafka_conf_t>,
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
        let config = Config { conf };
        for (name, value) in properties {
            config.set(name, value)?;
        }
        let events = RD_KAFKA_EVENT_DR | RD_KAFKA_EVENT_ERROR | RD_KAFKA_EVENT_LOG;
        // SAFETY: `conf` is live for as long as `config` is.
        unsafe { rd_kafka_conf_set_events(config.conf.as_ptr(), events) };
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
        let mut problem = text_of(&text);
        // librdkafka may repeat the value; it could be a secret.
        if shown(name, value) != value && value.len() > 2 {
            problem = problem.replace(value, "***");
        }
        if problem.contains("not available at build time")
            || problem.contains("not supported in this build")
        {
            problem.push_str("; this build of forebay has no TLS, SCRAM, OAUTHBEARER, Kerberos or zstd in its librdkafka");
        }
        Err(config::refuse(name, shown(name, value), problem))
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
