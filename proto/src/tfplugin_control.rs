//! The generated `plugin`; see `proto/tfplugin/controller.proto` for its documentation.
#![allow(
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    let_underscore_drop,
    reason = "generated code"
)]

include!("gen/plugin.rs");
