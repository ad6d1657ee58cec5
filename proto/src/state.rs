//! States of a slot, as the machine that holds it reports them; phases, outcomes and reasons.
//!
//! ```text
//!            ┌────────────── Active ──────────────┐
//! (claimed) ─► boot ─► prepare ─► restore ─► run ─► save ─► release ─► Finished(outcome)
//!                 │        │          │       │       ▲
//!                 └────────┴──────────┴───────┴─ Stopping(reason)
//! ```
//!
//! Any phase may end in `Stopping`: what can be saved is saved, and the slot becomes `Finished` with the
//! reason as its outcome — or, when the machine is being taken away, `Interrupted`, and the next machine
//! takes the slot over with the next attempt. Only `Finished` is final. A slot whose machine is gone without a word is
//! taken over as well, until its [`Losses`] are too many: then whoever finds that writes `Finished` in its place.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::{Attempt, MachineId, RunId, SlotIndex};

/// Version of the JSON shapes in this module.
pub const STATUS_VERSION: u32 = 1;

/// What a machine does, in order. Each phase has a start, an end and a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// From the agent's start until it holds a slot and can be reached.
    Boot,
    /// GPU driver and container runtime.
    Prepare,
    /// The workspace is fetched.
    Restore,
    /// The user's script.
    Run,
    /// Results and logs go to the store for the last time.
    Save,
    /// The machine takes itself out of its group.
    Release,
}

impl Phase {
    /// All phases in order.
    pub const ALL: [Self; 6] =
        [Self::Boot, Self::Prepare, Self::Restore, Self::Run, Self::Save, Self::Release];

    /// Name as shown to people and used in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Prepare => "prepare",
            Self::Restore => "restore",
            Self::Run => "run",
            Self::Save => "save",
            Self::Release => "release",
        }
    }
}

/// Start, end and budget of one phase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseTiming {
    /// Which phase.
    pub phase: Phase,
    /// When it began.
    pub started: Timestamp,
    /// When it ended; absent while it lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// Longest it may last, in seconds.
    pub budget_seconds: u64,
}

/// Why a running slot is being brought to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum StopReason {
    /// Somebody asked: `stop`, `destroy`, or the agent's own SIGTERM from an operator.
    User,
    /// The task's deadline.
    Deadline,
    /// A phase used up its budget.
    PhaseBudget {
        /// The phase.
        phase: Phase,
    },
    /// The cloud takes the machine back; another will continue.
    Preempted,
    /// Another machine holds this slot now; this one must not touch it any more.
    Superseded,
}

/// How a slot ended for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Outcome {
    /// The script ended by itself.
    Exited {
        /// Its exit status.
        code: i32,
    },
    /// The script was killed by a signal that was not ours.
    Signalled {
        /// Number of the signal.
        signal: i32,
    },
    /// Time was up: the task's deadline or a phase's budget.
    TimedOut {
        /// What was going on.
        phase: Phase,
    },
    /// Somebody asked for the end.
    Stopped,
    /// The script could not be run, or the machine could not be prepared.
    Failed {
        /// Where.
        phase: Phase,
        /// Which kind of failure.
        failure: Failure,
        /// Cause, as a lower-case fragment.
        message: String,
    },
}

impl Outcome {
    /// Whether the script ended with status 0.
    #[must_use]
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Exited { code: 0 })
    }
}

/// Kinds of failure that are not the script's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// The workspace could not be restored.
    Restore,
    /// The script could not be started: no interpreter, not executable, no such container image.
    Start,
    /// Results could not be saved, though the script may have succeeded.
    Save,
    /// The GPU driver or the container runtime could not be made ready.
    Prepare,
    /// A task's record or another object the agent depends on is missing or unreadable.
    Store,
    /// Machines were lost too often, one after another ([`Losses`]): the slot gets no other. The phase is that in which
    /// the last one was lost.
    AgentLost,
}

/// State of one slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum SlotState {
    /// A machine works on it.
    Active {
        /// What it does now.
        phase: Phase,
    },
    /// It is being brought to its end, in good order.
    Stopping {
        /// Why.
        #[serde(flatten)]
        reason: StopReason,
    },
    /// The machine was taken away; the slot waits for the next one.
    Interrupted,
    /// It has ended for good.
    Finished {
        /// How.
        outcome: Outcome,
        /// When.
        at: Timestamp,
    },
}

impl SlotState {
    /// Whether nothing will change any more.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Finished { .. })
    }
}

/// How a slot is held: `renewals` rises while the holder lives. Whoever wants the slot watches the number on
/// its own monotonic clock, so no two machines' clocks are ever compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Times renewed.
    pub renewals: u64,
    /// The holder promises to renew well within this time, in milliseconds.
    pub ttl_millis: u64,
}

impl Lease {
    /// Time without a renewal after which the holder counts as gone.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_millis)
    }
}

/// How far an attempt has got, as far as it matters when its machine is lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// Nothing that a successor could build on.
    #[default]
    None,
    /// It saved a generation of its own.
    Saved,
    /// Its script has run for a while: whatever ends the machine now is not how the task begins.
    Steady,
}

impl Progress {
    /// Whether there is none; left out of JSON then.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// Machines of a slot that were lost one after another: gone without a word, as by a kernel panic or when memory ran
/// out. One that the cloud took back with notice is not lost. The counts bound what a task can cost that ends its
/// machine every time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Losses {
    /// In a row, each before it had saved anything.
    #[serde(default)]
    pub idle: u32,
    /// In a row, each before its script had run for a while.
    #[serde(default)]
    pub early: u32,
}

impl Losses {
    /// Whether there are none; left out of JSON then.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// All that is known of one slot: the content of `slots/{index}.json`, and of every `Watch` message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotStatus {
    /// Version of this shape.
    pub version: u32,
    /// Rank.
    pub slot: SlotIndex,
    /// Which try.
    pub attempt: Attempt,
    /// Who holds it.
    pub machine: MachineId,
    /// Rises with every change within an attempt; renewals do not count.
    pub generation: u64,
    /// State.
    #[serde(flatten)]
    pub state: SlotState,
    /// How it is held.
    pub lease: Lease,
    /// Timings of the phases of this attempt, in order.
    pub phases: Vec<PhaseTiming>,
    /// Bytes of this attempt's log that are in the store.
    #[serde(default)]
    pub log_stored: u64,
    /// Length of this attempt's log; set once it is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_complete: Option<u64>,
    /// Newest saved generation of the work directory (see `saved/`), over all attempts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<u64>,
    /// How far this attempt has got.
    #[serde(default, skip_serializing_if = "Progress::is_none")]
    pub progress: Progress,
    /// What became of the machines before this one.
    #[serde(default, skip_serializing_if = "Losses::is_none")]
    pub losses: Losses,
    /// Things the user should know, such as a full disk. Newest last, bounded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl SlotStatus {
    /// What a machine claims a slot with: booting, nothing printed, nothing saved. `lease_ttl` is in milliseconds.
    #[must_use]
    pub fn claimed(run: RunId, machine: MachineId, lease_ttl: u64) -> Self {
        Self {
            version: STATUS_VERSION,
            slot: run.slot,
            attempt: run.attempt,
            machine,
            generation: 1,
            state: SlotState::Active { phase: Phase::Boot },
            lease: Lease { renewals: 0, ttl_millis: lease_ttl },
            phases: Vec::new(),
            log_stored: 0,
            log_complete: None,
            saved: None,
            progress: Progress::None,
            losses: Losses::default(),
            warnings: Vec::new(),
        }
    }

    /// Slot and attempt.
    #[must_use]
    pub fn run(&self) -> RunId {
        RunId { slot: self.slot, attempt: self.attempt }
    }
}
