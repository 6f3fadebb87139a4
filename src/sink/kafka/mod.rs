//! The sink that is Kafka: librdkafka's producer, driven raw.
//!
//! | file | owns |
//! |---|---|
//! | `config` | options, and which librdkafka properties are ours |
//! | `errors` | error code to scope and reason |
//! | `instance` | the FFI: the only `unsafe` in this room |
//! | `partitions` | choice of partition, how far ahead, pausing; pure |
//! | `suspects` | a topic whose requests are refused as a whole, and the culprits in them; pure |
//! | `topics` | what metadata says of a topic |
//! | `security` | whether brokers refuse our login or TLS |
//! | `reload` | new properties for a sink that runs |
//! | `worker` | the thread for everything that blocks |
//! | `producer` | [`KafkaSink`], which puts them together |

mod config;
mod errors;
mod instance;
mod partitions;
mod producer;
mod reload;
mod security;
mod suspects;
mod topics;
mod worker;

pub use config::{KafkaOptions, Partitioner};
pub use instance::describe;
pub use producer::KafkaSink;

#[cfg(test)]
#[allow(clippy::print_stdout)] // Tests print their counts.
mod tests;
