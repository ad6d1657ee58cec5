//! What operations answer with: versioned shapes, the same in JSON as in Rust.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tpi_proto::{
    id::{MachineId, SlotIndex, TaskId},
    spec::{CloudName, Spot, TaskSpec},
    state::SlotStatus,
};
use tpi_store::{
    record::Intent,
    snapshot::{PlanSummary, RestoreReport},
};
use url::Url;

use crate::{
    cloud::{GroupState, Leftover, MachineEnd, Shortage, plan::CloudPlan},
    task::TaskState,
};

/// Version of the shapes in this module.
pub const REPORT_VERSION: u32 = 1;

/// Answer of submit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Submitted {
    /// Version of this shape.
    pub version: u32,
    /// The task.
    pub id: TaskId,
    /// As the user wrote it.
    pub name: String,
    /// Where.
    pub cloud: CloudName,
    /// Where its record is.
    pub store: Url,
    /// When everything will have ended.
    pub deadline: Option<Timestamp>,
    /// What was found, and so done.
    pub outcome: SubmitOutcome,
    /// Fields in which the request differs from the task that is there; empty for a new one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differs: Vec<String>,
    /// Things the user should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What submit found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubmitOutcome {
    /// Nothing: the task is new.
    New,
    /// A submission that had been cut off; it is complete now.
    Resumed,
    /// The task runs already: attach to it.
    Running,
    /// The task has ended: its results and logs are there until it is destroyed.
    Ended,
}

/// Answer of plan: what submitting would do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanReport {
    /// Version of this shape.
    pub version: u32,
    /// The task; of one without a name, another one each time.
    pub id: TaskId,
    /// As the user wrote it.
    pub name: String,
    /// Where.
    pub cloud: CloudName,
    /// Where its record would be.
    pub store: Url,
    /// How machines would be bought.
    pub buys: Spot,
    /// When everything would have ended, were it submitted now.
    pub ends_by: Timestamp,
    /// Longest time that the task may exist.
    pub timeout_seconds: u64,
    /// Longest wait for a first machine; absent: as long as the task may exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provision_timeout_seconds: Option<u64>,
    /// What would be sent.
    pub sends: Sending,
    /// What the cloud would make, and what that costs.
    pub plan: CloudPlan,
    /// Things the user should know, beside the plan's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What would be sent to the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sending {
    /// Directory; absent: nothing but the agent is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Its files, and what of them the store has already.
    pub files: PlanSummary,
    /// The agent's program.
    pub agent_bytes: u64,
}

/// Answer of status.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Version of this shape.
    pub version: u32,
    /// The task.
    pub id: TaskId,
    /// Where.
    pub cloud: CloudName,
    /// Where its record is.
    pub store: Url,
    /// State of the whole.
    #[serde(flatten)]
    pub state: TaskState,
    /// What was asked; absent when the record is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<TaskSpec>,
    /// What the controllers want; absent when the record is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<Intent>,
    /// When the task was first submitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    /// When everything will have ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// Slots that were claimed, in order.
    pub slots: Vec<SlotStatus>,
    /// The group; absent when the cloud could not be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupState>,
    /// What could not be had, the newest first, where machines are missing; the group keeps trying.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shortages: Vec<Shortage>,
    /// Whether machines live although the deadline is over, which should never be.
    pub overdue: bool,
    /// Proof, or what is missing for it.
    pub proof: Proof,
    /// Things the user should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What there was of machines, and whether nothing is left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proof {
    /// Whether the cloud, asked by tag, has nothing of the task.
    pub nothing_left: bool,
    /// Why the cloud could not be asked; then nothing is known, and nothing proved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unproved: Option<String>,
    /// When it was asked.
    pub checked: Timestamp,
    /// Machines as far as the cloud remembers them.
    pub machines: Vec<ProofLine>,
    /// All machines together, in seconds.
    pub seconds: f64,
    /// All machines together, in US dollars; absent when a price is not known.
    pub usd: Option<f64>,
}

/// One machine of a proof.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProofLine {
    /// Which.
    pub machine: MachineId,
    /// When it was launched.
    pub launched: Timestamp,
    /// When it ended; absent while it lives.
    pub ended: Option<Timestamp>,
    /// Why it ended; absent while it lives, and where neither the cloud nor the machine's own slot tells.
    pub end: Option<MachineEnd>,
    /// How long it lived, or has lived so far.
    pub seconds: f64,
    /// Estimate in US dollars; absent when the price is not known.
    pub usd: Option<f64>,
}

/// Answer of list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ListReport {
    /// Version of this shape.
    pub version: u32,
    /// Tasks, newest first; those whose record is lost last.
    pub tasks: Vec<ListEntry>,
    /// What could not be asked, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What to do about the warnings, each said once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
}

/// One task of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ListEntry {
    /// The task.
    pub id: TaskId,
    /// As the user wrote it.
    pub name: String,
    /// Where.
    pub cloud: CloudName,
    /// Where its record is.
    pub store: Url,
    /// State of the whole.
    #[serde(flatten)]
    pub state: TaskState,
    /// When it was first submitted; absent when the record is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    /// When everything will have ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// Machines alive.
    pub machines: u32,
}

/// Answer of stop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StopReport {
    /// Version of this shape.
    pub version: u32,
    /// The task.
    pub id: TaskId,
    /// Slots whose agent was asked directly.
    pub asked: Vec<SlotIndex>,
    /// Slots that will find the request in the store.
    pub left_to_store: Vec<SlotIndex>,
    /// Whether every slot had ended when this was written.
    pub ended: bool,
}

/// Answer of pull.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PullReport {
    /// Version of this shape.
    pub version: u32,
    /// The task.
    pub id: TaskId,
    /// Where results went.
    pub to: Option<PathBuf>,
    /// One per slot that has saved something.
    pub slots: Vec<PulledSlot>,
    /// Things the user should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Results of one slot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PulledSlot {
    /// Which.
    pub slot: SlotIndex,
    /// Which saved generation.
    pub generation: u64,
    /// Where it went.
    pub to: PathBuf,
    /// What was written and what was kept.
    pub report: RestoreReport,
}

/// Answer of destroy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DestroyReport {
    /// Version of this shape.
    pub version: u32,
    /// The task.
    pub id: TaskId,
    /// Results that were brought home; absent when they were given up or the record was lost.
    pub results: Option<PullReport>,
    /// Nothing is left.
    pub proof: Proof,
    /// Objects deleted from the store.
    pub objects_deleted: u64,
    /// Things the user should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Answer of sweep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SweepReport {
    /// Version of this shape.
    pub version: u32,
    /// Everything that was found, by task.
    pub things: Vec<SweptThing>,
    /// How many of them are gone now.
    pub removed: u32,
    /// How many are there that may be wanted by nobody.
    pub left: u32,
    /// What could not be asked or removed, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// One thing that a sweep found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SweptThing {
    /// Where.
    pub cloud: CloudName,
    /// The thing.
    #[serde(flatten)]
    pub thing: Leftover,
    /// How long it has been there; absent where the cloud does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<f64>,
    /// Whether the deadline that is written on it is over.
    pub overdue: bool,
    /// Whether its task has a record.
    pub record: RecordState,
    /// What that comes to.
    pub verdict: Verdict,
    /// Whether it was removed, and is gone.
    pub removed: bool,
}

/// Whether a task has a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordState {
    /// It has.
    Present,
    /// It has none in any store that is known.
    Absent,
    /// A store that may have it cannot be read.
    Unknown,
}

/// What a sweep thinks of a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Its task is alive, or its objects have a record.
    Wanted,
    /// Its task has no record.
    Orphaned,
    /// Its task's deadline is over.
    Overdue,
    /// It cannot be told.
    Unknown,
    /// Unwanted, and younger than what is meant.
    Young,
    /// Orphaned objects among which are results: only who gives them up deletes them.
    Results,
}

impl Verdict {
    /// Whether it should not be there, or may be that.
    #[must_use]
    pub fn is_unwanted(self) -> bool {
        match self {
            Self::Orphaned | Self::Overdue | Self::Unknown | Self::Results => true,
            Self::Wanted | Self::Young => false,
        }
    }
}
