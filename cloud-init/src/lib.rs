//! What a machine is told at boot. Pure: [`Bootstrap`] in, user-data out.
//!
//! Only the type is here so far: the local cloud starts agents itself and hands them the same
//! [`MachineConfig`] that user-data will carry.

use serde::{Deserialize, Serialize};
use tpi_proto::machine::MachineConfig;

/// Everything that user-data is rendered from. Public facts only: no credential and no key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// What the agent starts from.
    pub config: MachineConfig,
    /// SHA-256 of the agent's binary, in hexadecimal; it lies at `tasks/{id}/agent/{sha256}`.
    pub agent_sha256: String,
    /// Seconds after boot at which the machine powers off whatever happens to the agent.
    pub power_off_after_seconds: u64,
}
