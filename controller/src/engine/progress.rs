//! What an engine tells while it works. Typed: how it is shown is decided where it is shown.

use serde::Serialize;
use tpi_proto::id::{RunId, SlotIndex};
use tpi_store::snapshot::{PlanSummary, RestoreReport};

/// Told while work goes on; must not block.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn progress(&self, event: Progress);
}

/// Nobody listens.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn progress(&self, _: Progress) {}
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Progress {
    /// A step begins. Steps that have been done before are passed over without a word.
    Step {
        /// Which.
        step: Step,
    },
    /// What will be sent; told before anything is.
    SendPlan {
        /// In numbers.
        plan: PlanSummary,
    },
    /// A transfer begins, or its size is known now.
    TransferTotal {
        /// Which.
        transfer: Transfer,
        /// Its size.
        bytes: u64,
    },
    /// Bytes handled since the last of these.
    TransferAdvance {
        /// Which.
        transfer: Transfer,
        /// How many more.
        bytes: u64,
    },
    /// A transfer is complete.
    TransferDone {
        /// Which.
        transfer: Transfer,
    },
    /// Results of a slot are home and verified.
    Restored {
        /// Which slot.
        slot: SlotIndex,
        /// What was written.
        report: RestoreReport,
    },
    /// A running machine was asked to stop, or could not be asked directly and will find the request in the
    /// store.
    StopSent {
        /// Which run.
        run: RunId,
        /// Whether it was asked directly.
        direct: bool,
    },
    /// Waiting for these slots to end.
    WaitingForSlots {
        /// Those that have not ended.
        slots: Vec<SlotIndex>,
    },
    /// Something the user should know.
    Warning {
        /// A lower-case fragment.
        message: String,
    },
}

/// What is being moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case", tag = "what")]
pub enum Transfer {
    /// Reading the work directory.
    Scan,
    /// The work directory, to the store.
    Workspace,
    /// The agent's program, to the store.
    Agent,
    /// Results, from the store.
    Results {
        /// Of which slot.
        slot: SlotIndex,
    },
}

/// Steps of the operations, in order. Their names ([`Step::as_str`]) are where the process can be made to
/// abort in tests, before and after each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Submit: the record is created.
    Record,
    /// Submit: the script's variables.
    Environment,
    /// Submit: the work directory.
    Workspace,
    /// Submit: the agent's program.
    Agent,
    /// Submit: this user's certificate.
    Client,
    /// Submit: the clock starts: deadline and intent.
    Clock,
    /// Submit: machines are ordered.
    Machines,
    /// Destroy: the intent.
    Intent,
    /// Destroy: scripts are asked to stop.
    Stop,
    /// Destroy: final saves are waited for.
    Saves,
    /// Destroy: results come home and are verified.
    Results,
    /// Destroy: machines are removed.
    Remove,
    /// Destroy: nothing is left, and that is proved.
    Proof,
    /// Destroy: the store is emptied.
    Erase,
}

impl Step {
    /// Steps of submit, in order.
    pub const SUBMIT: [Self; 7] = [
        Self::Record,
        Self::Environment,
        Self::Workspace,
        Self::Agent,
        Self::Client,
        Self::Clock,
        Self::Machines,
    ];
    /// Steps of destroy, in order.
    pub const DESTROY: [Self; 7] =
        [Self::Intent, Self::Stop, Self::Saves, Self::Results, Self::Remove, Self::Proof, Self::Erase];

    /// Name as used in JSON and by tests.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::Environment => "environment",
            Self::Workspace => "workspace",
            Self::Agent => "agent",
            Self::Client => "client",
            Self::Clock => "clock",
            Self::Machines => "machines",
            Self::Intent => "intent",
            Self::Stop => "stop",
            Self::Saves => "saves",
            Self::Results => "results",
            Self::Remove => "remove",
            Self::Proof => "proof",
            Self::Erase => "erase",
        }
    }
}

/// Passes the progress of a snapshot on.
pub(super) struct Relay<'a> {
    observer: &'a dyn Observer,
    transfer: Transfer,
}

impl<'a> Relay<'a> {
    pub(super) fn new(observer: &'a dyn Observer, transfer: Transfer) -> Self {
        Self { observer, transfer }
    }
}

impl tpi_store::snapshot::Progress for Relay<'_> {
    fn total(&self, bytes: u64) {
        self.observer.progress(Progress::TransferTotal { transfer: self.transfer, bytes });
    }

    fn advance(&self, bytes: u64) {
        self.observer.progress(Progress::TransferAdvance { transfer: self.transfer, bytes });
    }
}
