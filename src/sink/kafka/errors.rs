//! Owns the table from librdkafka's error codes to scope and reason.
//!
//! A code that isn't in the table is transient: nothing is ever given up for a code that
//! nobody has thought about. Codes that our own closing causes are transient too.

use crate::sink::{Reason, Scope};

/// Local codes (negative) and the broker's codes that the sink treats by name.
pub(super) mod code {
    pub const DESTROY: i32 = -197;
    pub const TRANSPORT: i32 = -195;
    pub const RESOLVE: i32 = -193;
    pub const UNKNOWN_PARTITION: i32 = -190;
    pub const UNKNOWN_TOPIC: i32 = -188;
    pub const ALL_BROKERS_DOWN: i32 = -187;
    pub const TIMED_OUT: i32 = -185;
    pub const QUEUE_FULL: i32 = -184;
    pub const SSL: i32 = -181;
    pub const AUTHENTICATION: i32 = -169;
    pub const FATAL: i32 = -150;
    pub const TOPIC_EXCEPTION: i32 = 17;
    pub const UNKNOWN_TOPIC_OR_PART: i32 = 3;
    pub const LEADER_NOT_AVAILABLE: i32 = 5;
    pub const TOPIC_AUTHORIZATION_FAILED: i32 = 29;
}

/// (code, scope, name), ordered by code.
///
/// `message_too_large` from the broker judges the whole request: a batch over the topic's
/// `max.message.bytes` fails every record in it, though none may be too large alone. Until
/// batches are bisected it counts against each record; `batch.size` below the topic's limit
/// avoids it.
const TABLE: &[(i32, Scope, &str)] = &[
    (code::DESTROY, Scope::Transient, "closing"),
    (code::TRANSPORT, Scope::Transient, "transport"),
    (code::RESOLVE, Scope::Transient, "resolve"),
    (-192, Scope::Transient, "timed_out"),
    (code::UNKNOWN_PARTITION, Scope::Topic, "unknown_partition"),
    (code::UNKNOWN_TOPIC, Scope::Topic, "topic_unavailable"),
    (code::ALL_BROKERS_DOWN, Scope::Transient, "all_brokers_down"),
    // From a produce call: offering the same record again can't end otherwise.
    (-186, Scope::Record, "invalid_argument"),
    (code::TIMED_OUT, Scope::Transient, "timed_out"),
    (code::QUEUE_FULL, Scope::Transient, "queue_full"),
    (code::SSL, Scope::Transient, "tls"),
    (-172, Scope::Instance, "producer_state"),
    (code::AUTHENTICATION, Scope::Transient, "authentication"),
    (-152, Scope::Transient, "closing"),
    (-151, Scope::Transient, "closing"),
    (code::FATAL, Scope::Instance, "producer_fatal"),
    (-149, Scope::Instance, "producer_inconsistent"),
    (-148, Scope::Instance, "producer_gap"),
    (-144, Scope::Instance, "producer_fenced"),
    // The innocent neighbours of a record that the broker named.
    (-138, Scope::Transient, "other_record_invalid"),
    (2, Scope::Transient, "corrupt_message"),
    (code::UNKNOWN_TOPIC_OR_PART, Scope::Topic, "topic_unavailable"),
    (4, Scope::Record, "message_size_invalid"),
    (10, Scope::Record, "message_too_large"),
    (code::TOPIC_EXCEPTION, Scope::Topic, "topic_invalid"),
    (18, Scope::Record, "batch_too_large"),
    (code::TOPIC_AUTHORIZATION_FAILED, Scope::Topic, "topic_unauthorised"),
    (31, Scope::Instance, "cluster_unauthorised"),
    (32, Scope::Record, "timestamp_invalid"),
    (43, Scope::Topic, "format_unsupported"),
    (44, Scope::Record, "policy_violation"),
    (45, Scope::Instance, "sequence_out_of_order"),
    (47, Scope::Instance, "producer_epoch_invalid"),
    (49, Scope::Instance, "producer_id_invalid"),
    (59, Scope::Instance, "producer_id_unknown"),
    (76, Scope::Topic, "compression_unsupported"),
    (87, Scope::Record, "record_invalid"),
    (90, Scope::Instance, "producer_fenced"),
];

/// How far an error with this code reaches, and its reason.
pub(super) fn classify(code: i32) -> (Scope, Reason) {
    match TABLE.binary_search_by_key(&code, |row| row.0) {
        Ok(row) => (TABLE[row].1, Reason { name: TABLE[row].2, code }),
        Err(_) => (Scope::Transient, Reason { name: "other", code }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_ordered_and_has_no_code_twice() {
        assert!(TABLE.windows(2).all(|w| w[0].0 < w[1].0));
    }

    #[test]
    fn scopes() {
        assert_eq!(classify(10).0, Scope::Record);
        assert_eq!(classify(29), (Scope::Topic, Reason { name: "topic_unauthorised", code: 29 }));
        assert_eq!(classify(-150).0, Scope::Instance);
        for ours in [-197, -152, -151] {
            assert_eq!(classify(ours).0, Scope::Transient);
        }
    }

    #[test]
    fn an_unknown_code_is_transient_and_keeps_its_number() {
        for code in [9999, -9999, 131] {
            assert_eq!(classify(code), (Scope::Transient, Reason { name: "other", code }));
            assert!(!super::super::describe(code).is_empty());
        }
    }
}
