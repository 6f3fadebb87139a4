//! Starts, pauses, kills and reads real Kafka brokers for tests.
