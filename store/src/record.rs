//! The small JSON objects: what is in them and who may write them.
//!
//! | object | written by | how |
//! |---|---|---|
//! | [`TaskRecord`] | controllers | create-only, then compare-and-swap |
//! | [`Environment`] | the submitting controller | overwritten; private |
//! | `SlotStatus` (in `tpi-proto`) | the machine that holds the slot | create-only, then compare-and-swap |
//! | [`Identity`] | the machine of that run | overwritten |
//! | [`StopRequest`] | controllers | overwritten |
//! | [`Event`] | anybody | create-only |

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tpi_proto::{
    id::{MachineId, RunId, TaskId},
    spec::TaskSpec,
};

/// Version of the shapes in this module. A reader refuses a newer one, naming it.
pub const RECORD_VERSION: u32 = 1;

/// What was asked, and what the controllers intend. Never says what machines do: their slots say that.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Version of this shape.
    pub version: u32,
    /// The task.
    pub id: TaskId,
    /// Who wrote it last: name and version of the program.
    pub writer: String,
    /// When it was first written.
    pub created: Timestamp,
    /// What was asked.
    pub spec: TaskSpec,
    /// How far the controllers have got, and what they want.
    pub intent: Intent,
    /// When everything must have ended; set before the first machine is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// SHA-256 of the agent binary that this task boots; set once it is in the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_sha256: Option<String>,
    /// Whether the workspace is in the store.
    #[serde(default)]
    pub input_stored: bool,
    /// That no machine could be had in the time given, so that none is wanted any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gave_up: Option<GaveUp>,
}

/// The end of the wait for a first machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GaveUp {
    /// When it was decided.
    pub at: Timestamp,
    /// What to do something about.
    pub reason: Unprovisioned,
    /// What was tried: a lower-case fragment for each type and zone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<String>,
}

/// Why there was no machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unprovisioned {
    /// The account's limit.
    Quota,
    /// Somebody is not permitted something.
    Permission,
    /// The highest price is below the market's.
    Price,
    /// None was free.
    Capacity,
    /// What was asked for cannot be served.
    Request,
    /// Machines came, and gave themselves back because the agent could not be started.
    Agent,
    /// The cloud did not say.
    Unknown,
}

/// What the controllers want of a task. Written before anything that can cost money is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    /// Being submitted: files travel, no machine was asked for.
    Submit,
    /// Machines are wanted (and may exist).
    Run,
    /// It shall end, and nothing shall be left.
    Destroy,
}

/// Values of the script's variables. Kept apart from the record because they may be secrets; `Debug` does
/// not show them.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Version of this shape.
    pub version: u32,
    /// Name and value.
    pub variables: BTreeMap<String, String>,
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment")
            .field("version", &self.version)
            .field("variables", &self.variables.keys().collect::<Vec<_>>())
            .finish()
    }
}

/// Who serves a run, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Version of this shape.
    pub version: u32,
    /// Slot and attempt.
    pub run: RunId,
    /// The machine.
    pub machine: MachineId,
    /// The agent's certificate, PEM; valid for `RunId::server_name`.
    pub certificate: String,
    /// `host:port`, in order of preference; empty when it cannot be reached from outside.
    pub addresses: Vec<String>,
    /// Name and version of the agent.
    pub agent: String,
}

/// A request to stop, for agents that cannot be reached. Agents look for it whenever they renew their lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRequest {
    /// Version of this shape.
    pub version: u32,
    /// When it was made.
    pub at: Timestamp,
    /// Time between SIGTERM and SIGKILL when it is not the task's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_millis: Option<u64>,
}

/// Something that happened, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Version of this shape.
    pub version: u32,
    /// When.
    pub at: Timestamp,
    /// Which run, if one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// Which machine, if one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineId>,
    /// What, as a lower-case fragment.
    pub message: String,
}
