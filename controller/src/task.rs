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
    /// Nothing is left but the record.
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
    /// Time was up before every slot had ended.
    TimedOut {
        /// How many had not ended.
        unfinished: u32,
    },
}
