//! What goes over the wire, and the identifiers and states that every other crate shares. No I/O.
//!
//! * [`agent_v1`]: the generated `tpi.agent.v1` service. It is checked in; `cargo xtask codegen` writes it
//!   and a test fails when it differs from the `.proto` file, so a build needs no protocol compiler.
//! * [`tfplugin5`], [`tfplugin_control`]: generated likewise: the part of Terraform's plugin protocol that our provider speaks.
//! * [`id`]: the task's identifier, compatible with the names that users of the Go provider know.
//! * [`machine`]: what a machine is told at boot. Everything that differs per cloud is data in there.
//! * [`spec`]: what the user asked for, as it is kept with the task.
//! * [`state`]: typed states, phases, outcomes and reasons. No state is ever a string.
//! * [`fault`]: errors as text.
//! * [`cert`]: whom to trust: exactly the certificates found in the store, nothing derived from them.

pub mod agent_v1;
pub mod cert;
pub mod fault;
pub mod id;
pub mod machine;
pub mod spec;
pub mod state;
pub mod tfplugin5;
pub mod tfplugin_control;

/// Versions of `tpi.agent.v1` that this build speaks, newest first.
pub const PROTOCOL_VERSIONS: &[u32] = &[1];
