//! Owns the table from librdkafka's error codes to scope and reason.
//!
//! Every code that librdkafka 2.12 knows has a row, whether a delivery report, a produce call or
//! the error callback can give it or not. A number that isn't in the table (a later broker's) is
//! transient and named `other`: nothing is ever given up for a code that nobody has thought
//! about. Codes that our own closing causes are transient too.
//!
//! | scope | what is done | how it is counted |
//! |---|---|---|
//! | record | the record is set aside | `set_aside`, by the row's name |
//! | batch | its records are produced again in ever smaller groups on the side instance ([`super::suspects`]); one that fails alone is of scope record | `reordered`, each |
//! | topic | the topic is held: see the flusher's `hold` | `set_aside` by the row's name, `held` |
//! | instance | the instance is replaced | `rebuilds`, `last_rebuild_reason` |
//! | transient | librdkafka retries it; one that comes back not persisted is produced again, one that may be persisted has the instance replaced | `reordered`; `rebuilds` |
//!
//! A produce call judges one record: what is of scope batch in a report is of scope record there.
//! From the error callback only scope instance (and whatever librdkafka calls fatal) does
//! anything; the rest is told in `last_error`.

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
const TABLE: &[(i32, Scope, &str)] = &[
    (-200, Scope::Transient, "reserved"),
    (-199, Scope::Transient, "message_malformed"),
    (-198, Scope::Transient, "compression_failed"),
    (code::DESTROY, Scope::Transient, "closing"),
    (-196, Scope::Transient, "failed"),
    (code::TRANSPORT, Scope::Transient, "transport"),
    (-194, Scope::Transient, "system_resource"),
    (code::RESOLVE, Scope::Transient, "resolve"),
    (-192, Scope::Transient, "timed_out"),
    (-191, Scope::Transient, "partition_end"),
    (code::UNKNOWN_PARTITION, Scope::Topic, "unknown_partition"),
    (-189, Scope::Transient, "filesystem"),
    (code::UNKNOWN_TOPIC, Scope::Topic, "topic_unavailable"),
    (code::ALL_BROKERS_DOWN, Scope::Transient, "all_brokers_down"),
    // From a produce call: offering the same record again can't end otherwise.
    (-186, Scope::Record, "invalid_argument"),
    (code::TIMED_OUT, Scope::Transient, "timed_out"),
    (code::QUEUE_FULL, Scope::Transient, "queue_full"),
    (-183, Scope::Transient, "replicas_too_few_local"),
    (-182, Scope::Transient, "node_update"),
    (code::SSL, Scope::Transient, "tls"),
    (-180, Scope::Transient, "coordinator_awaited"),
    (-179, Scope::Transient, "group_unknown"),
    (-178, Scope::Transient, "in_progress"),
    (-177, Scope::Transient, "previous_in_progress"),
    (-176, Scope::Transient, "subscription_exists"),
    (-175, Scope::Transient, "partitions_assigned"),
    (-174, Scope::Transient, "partitions_revoked"),
    (-173, Scope::Transient, "conflict"),
    (-172, Scope::Instance, "producer_state"),
    (-171, Scope::Transient, "protocol_unknown"),
    (-170, Scope::Transient, "not_implemented"),
    (code::AUTHENTICATION, Scope::Transient, "authentication"),
    (-168, Scope::Transient, "no_offset"),
    (-167, Scope::Transient, "outdated"),
    (-166, Scope::Transient, "timed_out_in_queue"),
    (-165, Scope::Transient, "feature_unsupported"),
    (-164, Scope::Transient, "cache_awaited"),
    (-163, Scope::Transient, "interrupted"),
    (-162, Scope::Transient, "key_serialization"),
    (-161, Scope::Transient, "value_serialization"),
    (-160, Scope::Transient, "key_deserialization"),
    (-159, Scope::Transient, "value_deserialization"),
    (-158, Scope::Transient, "partial"),
    (-157, Scope::Transient, "read_only"),
    (-156, Scope::Transient, "no_entry"),
    (-155, Scope::Transient, "underflow"),
    (-154, Scope::Transient, "type_invalid"),
    (-153, Scope::Transient, "retry"),
    (-152, Scope::Transient, "closing"),
    (-151, Scope::Transient, "closing"),
    (code::FATAL, Scope::Instance, "producer_fatal"),
    (-149, Scope::Instance, "producer_inconsistent"),
    (-148, Scope::Instance, "producer_gap"),
    (-147, Scope::Transient, "max_poll_exceeded"),
    (-146, Scope::Transient, "broker_unknown"),
    (-145, Scope::Transient, "not_configured"),
    (-144, Scope::Instance, "producer_fenced"),
    (-143, Scope::Transient, "application"),
    (-142, Scope::Transient, "assignment_lost"),
    (-141, Scope::Transient, "no_op"),
    (-140, Scope::Transient, "auto_offset_reset"),
    (-139, Scope::Transient, "log_truncation"),
    // The innocent neighbours of a record that the broker named.
    (-138, Scope::Batch, "other_record_invalid"),
    (-137, Scope::Transient, "broker_destroyed"),
    (-100, Scope::Transient, "reserved"),
    (-1, Scope::Transient, "unknown"),
    (0, Scope::Transient, "no_error"),
    (1, Scope::Transient, "offset_out_of_range"),
    // librdkafka retries it for ever: only the watch over silence ends that.
    (2, Scope::Transient, "corrupt_message"),
    (code::UNKNOWN_TOPIC_OR_PART, Scope::Topic, "topic_unavailable"),
    (4, Scope::Batch, "message_size_invalid"),
    (code::LEADER_NOT_AVAILABLE, Scope::Transient, "leader_not_available"),
    (6, Scope::Transient, "not_leader"),
    (7, Scope::Transient, "request_timed_out"),
    (8, Scope::Transient, "broker_not_available"),
    (9, Scope::Transient, "replica_not_available"),
    (10, Scope::Batch, "message_too_large"),
    (11, Scope::Transient, "controller_epoch_stale"),
    (12, Scope::Transient, "offset_metadata_too_large"),
    (13, Scope::Transient, "network_exception"),
    (14, Scope::Transient, "coordinator_loading"),
    (15, Scope::Transient, "coordinator_not_available"),
    (16, Scope::Transient, "not_coordinator"),
    (code::TOPIC_EXCEPTION, Scope::Topic, "topic_invalid"),
    (18, Scope::Batch, "batch_too_large"),
    (19, Scope::Transient, "replicas_too_few"),
    (20, Scope::Transient, "replicas_too_few_after_append"),
    (21, Scope::Transient, "acks_invalid"),
    (22, Scope::Transient, "generation_illegal"),
    (23, Scope::Transient, "group_protocol_inconsistent"),
    (24, Scope::Transient, "group_id_invalid"),
    (25, Scope::Transient, "member_unknown"),
    (26, Scope::Transient, "session_timeout_invalid"),
    (27, Scope::Transient, "rebalance_in_progress"),
    (28, Scope::Transient, "commit_offset_size_invalid"),
    (code::TOPIC_AUTHORIZATION_FAILED, Scope::Topic, "topic_unauthorised"),
    (30, Scope::Transient, "group_unauthorised"),
    (31, Scope::Instance, "cluster_unauthorised"),
    (32, Scope::Batch, "timestamp_invalid"),
    (33, Scope::Transient, "sasl_mechanism_unsupported"),
    (34, Scope::Transient, "sasl_state_illegal"),
    (35, Scope::Transient, "version_unsupported"),
    (36, Scope::Transient, "topic_exists"),
    (37, Scope::Transient, "partitions_invalid"),
    (38, Scope::Transient, "replication_factor_invalid"),
    (39, Scope::Transient, "replica_assignment_invalid"),
    (40, Scope::Transient, "config_invalid"),
    (41, Scope::Transient, "not_controller"),
    (42, Scope::Transient, "request_invalid"),
    (43, Scope::Topic, "format_unsupported"),
    (44, Scope::Batch, "policy_violation"),
    (45, Scope::Instance, "sequence_out_of_order"),
    // librdkafka takes it for success itself.
    (46, Scope::Transient, "sequence_duplicate"),
    (47, Scope::Instance, "producer_epoch_invalid"),
    (48, Scope::Transient, "transaction_state_invalid"),
    (49, Scope::Instance, "producer_id_invalid"),
    (50, Scope::Transient, "transaction_timeout_invalid"),
    (51, Scope::Transient, "transactions_concurrent"),
    (52, Scope::Transient, "transaction_coordinator_fenced"),
    (53, Scope::Instance, "transactional_id_unauthorised"),
    (54, Scope::Transient, "security_disabled"),
    (55, Scope::Transient, "operation_not_attempted"),
    (56, Scope::Transient, "storage_error"),
    (57, Scope::Transient, "log_dir_not_found"),
    (58, Scope::Transient, "sasl_authentication_failed"),
    (59, Scope::Instance, "producer_id_unknown"),
    (60, Scope::Transient, "reassignment_in_progress"),
    (61, Scope::Transient, "token_auth_disabled"),
    (62, Scope::Transient, "token_not_found"),
    (63, Scope::Transient, "token_owner_mismatch"),
    (64, Scope::Transient, "token_request_not_allowed"),
    (65, Scope::Transient, "token_unauthorised"),
    (66, Scope::Transient, "token_expired"),
    (67, Scope::Transient, "principal_type_invalid"),
    (68, Scope::Transient, "group_not_empty"),
    (69, Scope::Transient, "group_not_found"),
    (70, Scope::Transient, "fetch_session_not_found"),
    (71, Scope::Transient, "fetch_session_epoch_invalid"),
    (72, Scope::Transient, "listener_not_found"),
    (73, Scope::Transient, "topic_deletion_disabled"),
    (74, Scope::Transient, "leader_epoch_fenced"),
    (75, Scope::Transient, "leader_epoch_unknown"),
    (76, Scope::Topic, "compression_unsupported"),
    (77, Scope::Transient, "broker_epoch_stale"),
    (78, Scope::Transient, "offset_not_available"),
    (79, Scope::Transient, "member_id_required"),
    (80, Scope::Transient, "preferred_leader_not_available"),
    (81, Scope::Transient, "group_full"),
    (82, Scope::Transient, "instance_id_fenced"),
    (83, Scope::Transient, "eligible_leaders_not_available"),
    (84, Scope::Transient, "election_not_needed"),
    (85, Scope::Transient, "no_reassignment_in_progress"),
    (86, Scope::Transient, "group_subscribed"),
    (87, Scope::Batch, "record_invalid"),
    (88, Scope::Transient, "offset_commit_unstable"),
    (89, Scope::Transient, "quota_exceeded"),
    (90, Scope::Instance, "producer_fenced"),
    (91, Scope::Transient, "resource_not_found"),
    (92, Scope::Transient, "resource_duplicate"),
    (93, Scope::Transient, "credential_unacceptable"),
    (94, Scope::Transient, "voter_set_inconsistent"),
    (95, Scope::Transient, "update_version_invalid"),
    (96, Scope::Transient, "feature_update_failed"),
    (97, Scope::Transient, "principal_not_readable"),
    (100, Scope::Transient, "topic_id_unknown"),
    (110, Scope::Transient, "member_epoch_fenced"),
    (111, Scope::Transient, "instance_id_unreleased"),
    (112, Scope::Transient, "assignor_unsupported"),
    (113, Scope::Transient, "member_epoch_stale"),
    (117, Scope::Transient, "subscription_unknown"),
    (118, Scope::Transient, "telemetry_too_large"),
    (129, Scope::Transient, "rebootstrap_required"),
    (130, Scope::Transient, "reserved"),
];

/// How far an error with this code reaches when a report or the error callback gives it, and its
/// reason.
pub(super) fn classify(code: i32) -> (Scope, Reason) {
    match TABLE.binary_search_by_key(&code, |row| row.0) {
        Ok(row) => (TABLE[row].1, Reason { name: TABLE[row].2, code }),
        Err(_) => (Scope::Transient, Reason { name: "other", code }),
    }
}

/// The same for a produce call, which judges one record.
pub(super) fn classify_call(code: i32) -> (Scope, Reason) {
    match classify(code) {
        (Scope::Batch, reason) => (Scope::Record, reason),
        other => other,
    }
}

#[cfg(test)]
#[allow(clippy::print_stdout)] // Tests print their counts.
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn the_table_is_ordered_and_has_no_code_twice() {
        assert!(TABLE.windows(2).all(|w| w[0].0 < w[1].0));
    }

    /// librdkafka's own list of its codes, so that a later one can't bring a code unnoticed.
    #[test]
    fn every_code_that_librdkafka_knows_has_a_row() {
        let known = super::super::instance::known_codes();
        let mut scopes = BTreeMap::new();
        for (code, name) in &known {
            let row = TABLE.iter().find(|row| row.0 == *code);
            let (_, scope, reason) = row.unwrap_or_else(|| panic!("no row for {code} {name}"));
            assert!(!reason.is_empty() && *reason != "other", "{name}");
            let stable = |c: u8| c == b'_' || c.is_ascii_lowercase();
            assert!(reason.bytes().all(stable), "{name}: {reason}");
            assert_eq!(classify(*code), (*scope, Reason { name: reason, code: *code }));
            *scopes.entry(format!("{scope:?}")).or_insert(0) += 1;
        }
        println!("{} codes: {scopes:?}", known.len());
    }

    #[test]
    fn scopes() {
        assert_eq!((classify(10).0, classify_call(10).0), (Scope::Batch, Scope::Record));
        assert_eq!(classify(29), (Scope::Topic, Reason { name: "topic_unauthorised", code: 29 }));
        assert_eq!((classify(-150).0, classify_call(-150).0), (Scope::Instance, Scope::Instance));
        for ours in [-197, -152, -151] {
            assert_eq!(classify(ours).0, Scope::Transient);
        }
    }

    #[test]
    fn the_topic_s_reasons_are_those_of_the_table() {
        let of_topics = TABLE.iter().filter(|row| row.1 == Scope::Topic).map(|row| row.2);
        let names: std::collections::BTreeSet<_> = of_topics.collect();
        assert_eq!(names, crate::report::TOPIC_REASONS.into_iter().collect());
    }

    #[test]
    fn an_unknown_code_is_transient_and_keeps_its_number() {
        for code in [9999, -9999, 131] {
            assert_eq!(classify(code), (Scope::Transient, Reason { name: "other", code }));
            assert!(!super::super::describe(code).is_empty());
        }
    }
}
