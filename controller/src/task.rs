//! The domain: what state a task is in, and what has to be done next. Pure: no I/O, no waiting.
//!
//! ```text
//! Declared ─► Provisioning ─► Running ─► Finished(outcome) ─► Destroyed
//!     │            │             │              │
//!     └────────────┴─ Stopping(reason) ─────────┘
//! ```
//!
//! A state is never stored: it is derived from what the controllers intend (the record), what the machines
//! say (the slots) and what the cloud has (the group). So it cannot disagree with them.

use serde::{Deserialize, Serialize};
use tpi_proto::{id::SlotIndex, state::Outcome};
use tpi_store::record::Unprovisioned;

mod plan;
mod state;

pub use plan::{Action, Done, next_action};
pub use state::{derive, outcome};

/// State of a whole task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum TaskState {
    /// Recorded; files travel; no machine was asked for.
    Declared,
    /// Machines are asked for, and none works on a slot yet (or all that did are gone).
    Provisioning,
    /// At least one slot is being worked on.
    Running,
    /// It is being brought to its end.
    Stopping {
        /// Why.
        reason: EndReason,
    },
    /// Every slot has ended, or will never run.
    Finished {
        /// How.
        outcome: TaskOutcome,
    },
    /// Nothing is left.
    Destroyed,
    /// There is no record, and there are machines: only destroying makes sense.
    Orphaned,
}

/// Why a task is being brought to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// Somebody asked it to stop.
    Stopped,
    /// Time is up.
    Deadline,
    /// Somebody destroys it.
    Destroyed,
    /// No machine could be had in the time given.
    Unprovisioned,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "result")]
pub enum TaskOutcome {
    /// Every slot exited with status 0.
    Succeeded,
    /// At least one did not; the lowest of those.
    Failed {
        /// Which slot.
        slot: SlotIndex,
        /// How it ended.
        outcome: Outcome,
        /// How many slots did not succeed.
        failed: u32,
    },
    /// Somebody asked for the end before every slot had begun.
    Stopped {
        /// How many never began, or never reported their end.
        unfinished: u32,
    },
    /// Time was up before every slot had ended.
    TimedOut {
        /// How many had not ended.
        unfinished: u32,
    },
    /// No machine could be had in the time given, so that nothing was run.
    Unprovisioned {
        /// What to do something about.
        reason: Unprovisioned,
        /// What was tried: a lower-case fragment for each type and zone.
        why: Vec<String>,
    },
}

impl TaskState {
    /// Whether nothing will change any more unless somebody acts.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Finished { .. } | Self::Destroyed => true,
            Self::Declared | Self::Provisioning | Self::Running | Self::Stopping { .. } | Self::Orphaned => {
                false
            }
        }
    }
}

/// What the cloud has of a task, as far as it matters for what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Machines {
    /// Whether something exists that could start machines.
    pub group: bool,
    /// Machines that have not ended.
    pub alive: u32,
    /// Whether there is, or was, any machine at all.
    pub seen: bool,
    /// Whether the group is there and wants no machine any more.
    pub ended: bool,
}

impl Machines {
    /// Whether nothing runs and nothing can start.
    #[must_use]
    pub fn gone(self) -> bool {
        !self.group && self.alive == 0
    }
}
