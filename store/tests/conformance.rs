//! One suite for every backend: memory, `file://`, and S3 on an emulator.
//!
//! S3 runs when `TPI_TEST_S3_ENDPOINT` names an emulator (`cargo xtask test` starts one).
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "conformance/backends.rs"]
mod backends;
#[path = "conformance/hostile.rs"]
mod hostile;
#[path = "conformance/objects.rs"]
mod objects;
#[path = "conformance/sequences.rs"]
mod sequences;
#[path = "conformance/snapshots.rs"]
mod snapshots;
#[path = "conformance/trees.rs"]
mod trees;

macro_rules! suite {
    ($($module:ident :: $test:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread")] async fn $test() {
                super::$module::$test(super::backends::memory()).await;
            })*
        }
        mod folder {
            $(#[tokio::test(flavor = "multi_thread")] async fn $test() {
                super::$module::$test(super::backends::folder()).await;
            })*
        }
        mod s3 {
            $(#[tokio::test(flavor = "multi_thread")] async fn $test() {
                if let Some(backend) = super::backends::s3(stringify!($test)).await {
                    super::$module::$test(backend).await;
                }
            })*
        }
    };
}

suite!(
    objects::read_and_write,
    objects::odd_keys_are_refused,
    objects::conditional_writes,
    objects::one_of_many_creators_wins,
    objects::counting_with_swaps_loses_nothing,
    objects::swaps_and_overwrites_do_not_mix,
    objects::lists_are_in_order,
    objects::deleting,
    objects::large_objects,
    objects::json_objects,
    objects::clock,
    sequences::logs_are_read_from_any_byte,
    sequences::a_gap_in_a_log_is_an_error,
    sequences::far_into_a_long_log,
    sequences::telemetry_skips_what_is_missing,
    snapshots::folders_come_back,
    snapshots::one_edit_sends_that_file,
    snapshots::machines_save_what_changed,
    snapshots::rules_decide_what_travels,
    snapshots::downloads_overwrite_nothing,
    snapshots::parts_can_be_restored,
    snapshots::links_and_read_only_folders,
    snapshots::interrupted_pushes,
    snapshots::files_that_change_meanwhile,
    snapshots::what_cannot_be_read_is_named,
    hostile::manifests_that_lead_out,
    hostile::links_on_the_disk_lead_nowhere,
    hostile::packs_that_hold_something_else,
    hostile::chunks_that_are_something_else,
    hostile::more_than_there_is_room_for,
);
