//! Owns the embedded broker: librdkafka's mock cluster, for demos, benches and tests.
//!
//! It keeps records in memory (the last 5 MiB of a partition), checks no CRC and deduplicates
//! nothing: it shows how the pipeline behaves, never what a real Kafka guarantees.

use crate::error::OpenError;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use std::time::Duration;

/// A Kafka cluster inside this process, on ports of the loopback interface.
pub struct EmbeddedBroker {
    cluster: MockCluster<'static, DefaultProducerContext>,
    brokers: i32,
}

impl std::fmt::Debug for EmbeddedBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedBroker").field("brokers", &self.brokers()).finish()
    }
}

fn failed(error: impl std::fmt::Display) -> OpenError {
    OpenError::Kafka(error.to_string())
}

impl EmbeddedBroker {
    /// A cluster of `brokers` brokers, numbered from 1.
    ///
    /// # Errors
    /// When librdkafka can't open the ports.
    pub fn new(brokers: i32) -> Result<Self, OpenError> {
        let cluster = MockCluster::new(brokers).map_err(failed)?;
        Ok(EmbeddedBroker { cluster, brokers })
    }

    /// The bootstrap servers, `host:port` with commas between.
    #[must_use]
    pub fn brokers(&self) -> String {
        self.cluster.bootstrap_servers()
    }

    /// Makes a topic. Topics that a client asks for are made by themselves, with 4 partitions.
    ///
    /// # Errors
    /// When the name or the count isn't allowed.
    pub fn create_topic(&self, topic: &str, partitions: i32) -> Result<(), OpenError> {
        self.cluster.create_topic(topic, partitions, 1).map_err(failed)
    }

    /// Shuts every broker: connections break and new ones are refused.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn down(&self) -> Result<(), OpenError> {
        (1..=self.brokers).try_for_each(|b| self.cluster.broker_down(b)).map_err(failed)
    }

    /// Ends [`EmbeddedBroker::down`].
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn up(&self) -> Result<(), OpenError> {
        (1..=self.brokers).try_for_each(|b| self.cluster.broker_up(b)).map_err(failed)
    }

    /// Makes every answer take this long; a long time is what a frozen broker looks like.
    /// Answers on their way keep the time they had.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn round_trip_time(&self, time: Duration) -> Result<(), OpenError> {
        (1..=self.brokers)
            .try_for_each(|b| self.cluster.broker_round_trip_time(b, time))
            .map_err(failed)
    }

    /// The next produce requests are answered with these errors, one each; nothing is appended.
    pub fn fail_produce(&self, errors: &[RDKafkaRespErr]) {
        self.cluster.request_errors(RDKafkaApiKey::Produce, errors);
    }

    /// Metadata says this error of the topic, until it is set to `RD_KAFKA_RESP_ERR_NO_ERROR`.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn topic_error(&self, topic: &str, error: RDKafkaRespErr) -> Result<(), OpenError> {
        self.cluster.topic_error(topic, error).map_err(failed)
    }
}
