//! The generated `tpi.agent.v1`; see `proto/tpi/agent/v1/agent.proto` for its documentation.
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

include!("gen/tpi.agent.v1.rs");
