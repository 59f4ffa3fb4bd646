//! Executable contracts of the traits of `audit-core`.
//!
//! Each trait has a macro that expands to one test for each behaviour that its documentation
//! promises. Backends in memory, SQLite and every wrapper run the same ones; so can yours:
//!
//! ```
//! use std::sync::Arc;
//! use audit_conformance::LogStoreHarness;
//! use audit_core::{ManualClock, MemoryStore};
//!
//! struct Memory(MemoryStore, Arc<ManualClock>);
//!
//! impl LogStoreHarness for Memory {
//!     type Store = MemoryStore;
//!     type Tenants = MemoryStore;
//!     async fn open() -> Self {
//!         let clock = audit_conformance::clock();
//!         Self(MemoryStore::with_clock(clock.clone()), clock)
//!     }
//!     fn store(&self) -> &MemoryStore { &self.0 }
//!     fn tenants(&self) -> &MemoryStore { &self.0 }
//!     fn clock(&self) -> Option<Arc<ManualClock>> { Some(self.1.clone()) }
//! }
//!
//! audit_conformance::log_store!(Memory);
//! # fn main() {}
//! ```
//!
//! Every contract is also a public function, so that a single one can be run by itself, and takes a
//! harness by type: [`ArchiveHarness`], [`LogStoreHarness`], [`CheckpointStoreHarness`],
//! [`CredentialStoreHarness`], [`ErasureStoreHarness`], [`EventQueueHarness`], [`FailedWritesHarness`],
//! [`GuardHarness`], [`IdleHarness`], [`OffboardingStoreHarness`], [`OutboxHarness`],
//! [`SearchIndexHarness`], [`TamperingHarness`], [`TenantAuthorizerHarness`]. A contract that is broken
//! panics. Contracts run at the same time, make tenants of their own with random ids, and so may
//! share a database, but a queue, an index or an outbox is each one's own.

// A contract fails by panicking, as a test does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

use std::future::Future;
use std::sync::Arc;

use audit_core::{ManualClock, Timestamp};

mod fixture;

pub mod archive;
pub mod checkpoint_store;
pub mod credential_store;
pub mod deployment_store;
pub mod erasure_store;
pub mod event_queue;
pub mod failed_writes;
pub mod guard;
pub mod idle;
pub mod log_store;
pub mod offboarding_store;
pub mod outbox;
pub mod person;
pub mod random;
pub mod retention_store;
pub mod sampled;
pub mod search_index;
pub mod size;
pub mod tampering;
pub mod tenant_authorizer;
pub mod tenant_store;
pub mod tiles;

pub use archive::ArchiveHarness;
pub use checkpoint_store::CheckpointStoreHarness;
pub use credential_store::CredentialStoreHarness;
pub use erasure_store::ErasureStoreHarness;
pub use event_queue::EventQueueHarness;
pub use failed_writes::FailedWritesHarness;
pub use guard::GuardHarness;
pub use idle::IdleHarness;
pub use log_store::LogStoreHarness;
pub use offboarding_store::OffboardingStoreHarness;
pub use outbox::OutboxHarness;
pub use search_index::SearchIndexHarness;
pub use size::{is_full, sized};
pub use tampering::TamperingHarness;
pub use tenant_authorizer::TenantAuthorizerHarness;

/// A clock for a harness, that stands at an arbitrary moment until a contract moves it.
pub fn clock() -> Arc<ManualClock> {
    let start = Timestamp::parse("2026-11-24T03:00:00.123456Z").expect("a time");
    Arc::new(ManualClock::new(start))
}

/// Runs one contract on a runtime of several threads. What the macros expand to.
pub fn run(contract: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(contract);
}

#[doc(hidden)]
#[macro_export]
macro_rules! __contracts {
    ($harness:ty, $module:ident: $($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                $crate::run($crate::$module::$name::<$harness>());
            }
        )*
    };
}

/// Expands to the tests of [`Archive`](audit_core::Archive) for an [`ArchiveHarness`].
#[macro_export]
macro_rules! archive {
    ($harness:ty) => {
        $crate::__contracts!(
            $harness, archive:
            an_object_is_read_as_it_was_stored,
            a_later_object_takes_the_place_of_an_earlier_one,
            what_is_not_there_is_none_and_removed_without_an_error,
            a_list_has_what_is_below_a_folder_in_order,
            a_long_list_comes_in_parts,
            what_is_no_path_is_refused,
            objects_are_read_whole_while_they_are_replaced,
        );
    };
}

/// Expands to the tests of [`LogStore`](audit_core::LogStore) for a [`LogStoreHarness`].
#[macro_export]
macro_rules! log_store {
    ($harness:ty) => {
        $crate::__contracts!(
            $harness, log_store:
            random_operations_of_two_tenants_match_a_model,
            positions_are_gap_free_under_concurrent_appenders,
            a_batch_is_stored_whole_or_not_at_all,
            a_conflict_fails_only_its_own_batch,
            the_same_event_again_is_a_duplicate_with_the_first_receipt,
            reordered_keys_of_raw_json_are_the_same_event,
            other_content_under_an_id_is_a_conflict,
            equal_ids_within_a_call_are_resolved,
            ids_are_taken_per_tenant,
            an_empty_batch_has_no_receipts,
            created_at_never_decreases_and_a_lagging_clock_refuses,
            occurred_at_defaults_to_the_time_of_acceptance,
            an_unknown_tenant_is_refused_unless_the_batch_creates_it,
            a_control_entry_is_not_appended_by_callers,
            an_event_prepared_for_another_tenant_is_refused,
            raw_json_is_kept_byte_for_byte,
            every_field_is_read_as_it_was_recorded,
            what_was_appended_survives_a_reopen,
            every_method_requires_its_permission,
            an_inactive_tenant_takes_no_writes_and_is_read,
            an_inactive_tenant_is_still_erased_and_pruned,
            a_suspended_tenant_refuses_everything,
            a_deleted_tenant_refuses_everything,
            an_unknown_tenant_is_not_read,
            no_method_reads_another_tenant,
            ids_are_looked_up_in_the_order_asked_for,
            positions_are_read_in_the_order_asked_for,
            reading_starts_at_a_position_and_ends_at_the_head,
            pages_cover_everything_once_in_every_order,
            a_page_says_whether_there_is_more,
            a_pages_limit_is_clamped,
            an_ascending_list_goes_on_when_the_log_has_grown,
            appends_between_pages_do_not_disturb_a_descending_list,
            each_filter_field_selects_its_entries,
            conditions_are_anded_and_values_are_ored,
            ranges_are_half_open,
            full_text_finds_what_was_just_recorded,
            a_snapshot_is_one_moment,
            a_scan_filters_and_goes_oldest_first,
            the_head_is_the_merkle_root_of_the_leaf_hashes,
            subtree_hashes_are_those_of_complete_subtrees,
            the_leaf_is_recomputed_from_what_is_shown,
            evidence_opens_every_group_that_is_left,
            evidence_is_of_the_positions_asked_for,
            leaf_data_of_the_straddling_bundle_outlives_a_prune,
            erased_groups_are_gone_and_named,
            an_erasure_leaves_other_entries_alone,
            an_erasure_is_explained_by_a_control_entry,
            an_erasure_of_many_entries_names_ranges,
            an_erasure_of_more_than_a_thousand_ranges_takes_several_entries,
            a_repeated_erasure_writes_nothing,
            an_erased_id_is_a_duplicate_without_comparing,
            erasing_what_is_missing_or_pruned_is_passed_over,
            an_erasure_names_what_pruned_entries_lose_in_the_archive,
            an_erasure_is_refused_when_the_log_was_pruned_since_its_selection,
            a_prune_takes_exactly_the_prefix,
            a_prune_is_explained_by_a_control_entry,
            pruned_ids_stay_duplicates,
            a_required_consumer_bounds_a_prune,
            a_dry_run_can_leave_a_required_consumer_out,
            a_prune_can_be_refused_for_an_erasure_that_came_since,
            a_dry_run_of_a_prune_changes_nothing,
            a_prune_of_nothing_writes_nothing,
            a_legal_hold_refuses_erasures_and_prunes,
            a_hold_of_one_tenant_leaves_others_alone,
            what_was_pruned_before_a_hold_is_swept,
            nothing_younger_than_the_minimum_is_pruned,
            a_hold_comes_before_an_erasure_or_a_prune_or_after_it,
            sweeping_to_the_end_keeps_everything_else_readable,
            counters_equal_a_recount,
            grown_since_never_misses_an_append,
            grown_since_tells_growth_at_every_size,
            cursors_only_go_forwards,
        );
    };
}

/// Expands to the tests of [`TenantStore`](audit_core::TenantStore) for a [`LogStoreHarness`].
#[macro_export]
macro_rules! tenant_store {
    ($harness:ty) => {
        $crate::__contracts!(
            $harness, tenant_store:
            a_tenant_is_read_as_it_was_created,
            a_taken_id_is_a_conflict,
            an_update_is_an_event_of_the_tenant,
            an_update_changes_only_what_it_names,
            a_refused_update_changes_nothing,
            an_update_works_whatever_the_status,
            a_deleted_tenant_is_a_tombstone_for_ever,
            tenants_are_listed_in_pages_by_id,
            tenants_are_found_by_name_and_status,
            one_of_several_creators_wins,
        );
    };
}

/// Expands to the tests of [`RetentionStore`](audit_core::RetentionStore) for a [`LogStoreHarness`].
#[macro_export]
macro_rules! retention_store {
    ($harness:ty) => {
        $crate::__contracts!(
            $harness, retention_store:
            a_retention_is_read_as_it_was_set,
            a_retention_that_is_set_already_is_no_event,
            a_retention_beyond_the_limits_is_refused,
            tenants_with_a_retention_are_listed_by_id,
            a_hold_is_read_as_it_was_placed,
            holds_are_listed_newest_first,
            a_hold_is_released_once,
            open_holds_are_limited,
            a_taken_hold_id_is_a_conflict,
            no_tenant_has_anothers_holds,
            retention_and_holds_change_whatever_the_status,
            a_held_tenant_is_not_deleted,
            a_deleted_tenant_has_neither_retention_nor_holds,
        );
    };
}

/// Expands to the tests of [`CredentialStore`](audit_core::CredentialStore) for a
/// [`CredentialStoreHarness`].
#[macro_export]
macro_rules! credential_store {
    ($harness:ty) => {
        $crate::__contracts!(
            $harness, credential_store:
            a_key_is_found_by_its_secret,
            an_expired_key_is_still_found,
            a_revoked_key_is_gone,
            keys_of_another_tenant_are_invisible,
            keys_are_listed_oldest_first,
            each_method_on_keys_requires_the_permission,
            a_touched_key_says_when,
            a_ticket_is_taken_once_by_concurrent_takers,
            an_expired_or_unknown_ticket_is_not_taken,
        );
    };
}

/// Expands to the tests of [`CheckpointStore`](audit_core::CheckpointStore) for a
/// [`CheckpointStoreHarness`].
#[macro_export]
macro_rules! checkpoint_store {
    ($harness:ty) => {
        $crate::__contracts!(
            $harness, checkpoint_store:
            there_is_one_signer_at_a_time,
            a_checkpoint_is_read_as_it_was_published,
            a_checkpoint_of_another_root_is_a_conflict,
            a_checkpoint_is_never_larger_than_the_log,
            of_each_hour_the_largest_checkpoint_stays,
            a_checkpoint_over_a_change_of_keys_is_never_dropped,
            a_declaration_is_one_control_entry_and_a_change_of_keys,
            an_epoch_begins_right_behind_the_head_that_it_names,
            a_declaration_under_a_taken_id_is_a_conflict,
            only_the_signer_declares,
            no_tenant_reads_anothers_checkpoints,
        );
    };
}

/// Expands to the tests of [`DeploymentStore`](audit_core::DeploymentStore) for a
/// [`CheckpointStoreHarness`] whose store is one.
#[macro_export]
macro_rules! deployment_store {
    ($harness:ty) => {
        $crate::__contracts!(
            $harness, deployment_store:
            heads_that_are_not_committed_to_are_told_in_pages,
            a_head_that_was_committed_to_is_not_told_again,
            heads_are_committed_to_all_or_none,
            the_tree_is_that_of_the_leaves,
            the_newest_opening_of_a_tenant_is_found,
            no_tenant_reads_anothers_opening,
            the_newest_deployment_checkpoint_is_the_largest_that_came_last,
            a_deployment_checkpoint_that_the_log_lacks_is_refused,
        );
    };
}

/// Expands to the tests of [`Guard`](audit_core::Guard) for a [`GuardHarness`].
#[macro_export]
macro_rules! guard {
    ($harness:ty) => {
        $crate::__contracts!(
            $harness, guard:
            what_a_guard_was_told_it_remembers,
            a_guard_lists_the_tenants_that_it_knows,
            a_guard_never_goes_back,
            what_a_guard_knows_already_changes_nothing,
            of_several_who_know_the_same_one_advances,
            a_guard_remembers_the_deployment_log_by_the_same_rules,
            of_several_who_know_the_same_deployment_head_one_advances,
        );
    };
}

/// Expands to the tests of [`ErasureStore`](audit_core::ErasureStore) for an
/// [`ErasureStoreHarness`].
#[macro_export]
macro_rules! erasure_store {
    ($harness:ty) => {
        $crate::__contracts!(
            $harness, erasure_store:
            an_erasure_is_read_as_it_was_begun,
            an_id_is_one_erasure,
            a_step_moves_its_erasure,
            a_step_that_erases_nothing_moves_on,
            a_step_counts_what_pruned_entries_lose,
            a_step_from_elsewhere_does_nothing,
            a_step_is_taken_once,
            entries_recorded_later_are_not_its_subject,
            the_oldest_open_erasure_of_each_tenant_is_told,
            a_failure_is_noted_until_the_next_step,
            marks_find_their_erasures,
            no_tenant_reads_anothers_erasures,
        );
    };
}

/// Expands to the tests of [`OffboardingStore`](audit_core::OffboardingStore) for an
/// [`OffboardingStoreHarness`].
#[macro_export]
macro_rules! offboarding_store {
    ($harness:ty) => {
        $crate::__contracts!(
            $harness, offboarding_store:
            an_ending_closes_the_tenant_and_is_an_event_of_it,
            an_ending_is_asked_for_once,
            the_status_of_a_tenant_that_ends_does_not_change,
            a_held_tenant_does_not_end,
            only_a_log_that_was_asked_to_end_and_did_not_grow_ends,
            a_tenant_does_not_end_while_an_erasure_runs,
            no_erasure_is_begun_once_the_end_is_asked_for,
            nothing_is_erased_or_pruned_once_the_end_is_asked_for,
            endings_and_tombstones_are_told_in_pages,
            an_ended_tenant_refuses_everything,
            a_tombstone_is_read_as_it_was_kept,
            what_an_ended_tenant_left_is_swept_and_nothing_of_another,
            what_is_appended_behind_a_swept_tenant_is_told,
        );
    };
}

/// Expands to the tests of [`EventQueue`](audit_core::EventQueue) for an [`EventQueueHarness`].
#[macro_export]
macro_rules! event_queue {
    ($harness:ty) => {
        $crate::__contracts!(
            $harness, event_queue:
            what_is_sent_is_received_once_and_whole,
            an_acknowledged_message_is_gone,
            a_lease_hides_a_message_and_its_end_brings_it_back,
            an_extended_lease_hides_a_message_longer,
            a_message_given_back_is_delivered_again,
            a_delayed_retry_comes_later,
            a_buried_message_is_a_dead_letter,
            dead_letters_are_redriven,
            dead_letters_are_sifted,
            every_dead_letter_is_sifted,
            a_body_that_is_too_long_fails_alone,
            an_empty_queue_answers_within_the_wait,
            waits_leases_and_delays_are_clamped,
            a_waiting_receiver_is_woken,
            a_lost_handle_is_no_error,
            large_batches_are_cut_by_the_queue,
            concurrent_receivers_share_the_messages,
            a_durable_queue_survives_a_reopen,
        );
    };
}

/// Expands to the tests of [`SearchIndex`](audit_core::SearchIndex) for a [`SearchIndexHarness`].
#[macro_export]
macro_rules! search_index {
    ($harness:ty) => {
        $crate::__contracts!(
            $harness, search_index:
            indexed_entries_are_found,
            no_match_below_indexed_through_is_missing,
            no_match_of_a_random_query_is_missing,
            hits_are_paged_in_both_orders,
            entries_indexed_twice_are_found_once,
            the_index_of_a_pruned_log_starts_later,
            removed_content_is_not_found,
            no_tenant_finds_anothers_entries,
            searching_requires_the_permission,
            an_empty_index_says_so,
            what_is_held_is_told_by_position,
            a_damaged_index_is_mended,
            a_forgotten_tenant_has_nothing_left,
            an_index_is_rebuilt_from_the_logs,
        );
    };
}

/// Expands to the tests of [`Outbox`](audit_core::Outbox) for an [`OutboxHarness`].
#[macro_export]
macro_rules! outbox {
    ($harness:ty) => {
        $crate::__contracts!(
            $harness, outbox:
            rows_are_taken_oldest_first_and_stay,
            rows_that_are_done_are_gone,
            a_parked_row_is_set_aside_with_its_reason,
            parked_rows_are_redriven,
            parked_rows_are_sifted,
            every_parked_row_is_sifted,
            unknown_rows_are_passed_over,
            tenants_are_passed_over,
        );
    };
}

/// Expands to the tests that what is changed behind a store's back, in its exports or in its archive is
/// found, for a [`TamperingHarness`].
#[macro_export]
macro_rules! tampering {
    ($harness:ty) => {
        $crate::__contracts!(
            $harness, tampering:
            what_is_changed_in_the_tables_is_found,
            what_is_changed_in_a_bundle_is_found,
            what_is_changed_in_an_archive_is_found,
            an_untouched_export_raises_no_alarm,
        );
    };
}

/// Expands to the tests that stored tiles are those which the rows make, for a [`TamperingHarness`].
#[macro_export]
macro_rules! tiles {
    ($harness:ty) => {
        $crate::__contracts!(
            $harness, tiles:
            stored_tiles_are_made_again_of_the_rows_byte_for_byte,
        );
    };
}

/// Expands to the tests of what a write leaves that failed, for a [`FailedWritesHarness`].
#[macro_export]
macro_rules! failed_writes {
    ($harness:ty) => {
        $crate::__contracts!(
            $harness, failed_writes:
            no_failed_write_of_the_signer_leaves_two_heads_of_one_size_or_one_that_the_log_lacks,
            a_failed_write_of_entries_leaves_tiles_that_agree_with_the_leaves,
            a_tile_that_the_engine_refuses_leaves_nothing_of_its_append,
        );
    };
}

/// Expands to the tests of what idle tenants cost, for an [`IdleHarness`].
#[macro_export]
macro_rules! idle {
    ($harness:ty) => {
        $crate::__contracts!(
            $harness, idle:
            idle_tenants_cost_one_deployment_checkpoint_a_period,
        );
    };
}

/// Expands to the tests of [`TenantAuthorizer`](audit_core::TenantAuthorizer) for a
/// [`TenantAuthorizerHarness`].
#[macro_export]
macro_rules! tenant_authorizer {
    ($harness:ty) => {
        $crate::__contracts!(
            $harness, tenant_authorizer:
            a_role_grants_its_permissions_and_no_others,
            all_that_is_asked_for_must_be_granted,
            a_credential_limits_its_bearer,
            another_tenant_is_refused,
        );
    };
}

#[cfg(test)]
mod tests {
    /// A contract that no macro names would never run.
    #[test]
    fn every_contract_is_in_a_macro() {
        let macros = include_str!("lib.rs");
        let sources = [
            include_str!("checkpoint_store.rs"),
            include_str!("credential_store.rs"),
            include_str!("deployment_store.rs"),
            include_str!("erasure_store.rs"),
            include_str!("event_queue.rs"),
            include_str!("failed_writes.rs"),
            include_str!("idle.rs"),
            include_str!("log_store/append.rs"),
            include_str!("log_store/consume.rs"),
            include_str!("log_store/erase.rs"),
            include_str!("log_store/hold.rs"),
            include_str!("log_store/list.rs"),
            include_str!("log_store/prune.rs"),
            include_str!("log_store/read.rs"),
            include_str!("log_store/scope.rs"),
            include_str!("log_store/tree.rs"),
            include_str!("offboarding_store.rs"),
            include_str!("outbox.rs"),
            include_str!("retention_store.rs"),
            include_str!("search_index.rs"),
            include_str!("tampering/mod.rs"),
            include_str!("tenant_authorizer.rs"),
            include_str!("tenant_store.rs"),
            include_str!("tiles.rs"),
        ];
        let mut contracts = 0;
        for line in sources.iter().flat_map(|source| source.lines()) {
            let Some(rest) = line.strip_prefix("pub async fn ") else {
                continue;
            };
            let name = rest.split('<').next().unwrap();
            assert!(
                macros.contains(&format!(" {name},\n")),
                "{name} is in no macro"
            );
            contracts += 1;
        }
        assert!(contracts > 100, "{contracts}");
    }
}
