//! The generated `tfplugin5`; see `proto/tfplugin/provider.proto` for its documentation.
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

include!("gen/tfplugin5.rs");
