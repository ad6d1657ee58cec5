//! What follows from what: the slot's life as a pure state machine. No I/O, no clock of its own.
//!
//! ```text
//!  Boot ─► Prepare ─► Restore ─► Run ───────────────► Save ─► Settle ─► Done
//!   │         │          │        │ end wanted         ▲        │
//!   │         │          │        └─► Ending ──────────┤        │ conflict
//!   └─────────┴──────────┴── fault, budget, stop ──────┘        ▼
//!              any stage before Done ─ another machine holds it ─► Fenced
//! ```
//!
//! * `Ending`: the script was told to end and has not yet.
//! * `Save`: the last save. Files are saved only when the workspace was restored: a half-restored folder must
//!   never become the newest generation.
//! * `Settle`: the last status is on its way to the store. Nobody is told of it before it is there.
//! * `Done`: it is there (or the deadline came first); the machine is given back.
//! * `Fenced`: the slot belongs to somebody else; nothing may be written any more.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tpi_proto::{
    machine::Timings,
    state::{Failure, Outcome, Phase, PhaseTiming, SlotState, SlotStatus, StopReason},
};

/// Longest grace on a preemption notice: some clouds leave 30 seconds for everything.
const PREEMPTION_GRACE: Duration = Duration::from_secs(15);

/// How the script ended, whoever wanted it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ScriptEnd {
    /// By itself or on request.
    Exited {
        /// Status.
        code: i32,
    },
    /// By a signal.
    Signalled {
        /// Number.
        signal: i32,
    },
    /// It never ran.
    NotStarted {
        /// Lower-case fragment.
        message: String,
    },
}

impl ScriptEnd {
    fn outcome(&self) -> Outcome {
        match self {
            Self::Exited { code } => Outcome::Exited { code: *code },
            Self::Signalled { signal } => Outcome::Signalled { signal: *signal },
            Self::NotStarted { message } => {
                Outcome::Failed { phase: Phase::Run, failure: Failure::Start, message: message.clone() }
            }
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Exited { code } => format!("the script ended with status {code}"),
            Self::Signalled { signal } => format!("the script was ended by signal {signal}"),
            Self::NotStarted { message } => message.clone(),
        }
    }
}

/// Why a phase before the script went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Kind.
    pub(crate) failure: Failure,
    /// Lower-case fragment, causes included.
    pub(crate) message: String,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// Clients can be served.
    Booted(Result<(), Fault>),
    /// The machine is ready.
    Prepared(Result<(), Fault>),
    /// The workspace is there.
    Restored(Result<(), Fault>),
    /// The script and all it started are gone.
    ScriptEnded(ScriptEnd),
    /// The last save is done, or cannot be (with the cause).
    Saved(Result<(), String>),
    /// The last status is in the store.
    Settled,
    /// Somebody asks for the end.
    Stop {
        /// Instead of the task's own.
        grace: Option<Duration>,
    },
    /// The machine is being taken away.
    Preempted,
    /// Another machine holds the slot.
    Superseded,
    /// Time passed: see [`Machine::wake_at`].
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Begin the prepare phase's work.
    Prepare,
    /// Begin the restore phase's work.
    Restore,
    /// Start the script.
    Run,
    /// Drop the work of a phase before the script.
    Abandon,
    /// SIGTERM now, SIGKILL after the grace. Again: the earlier end counts.
    EndScript {
        /// Time in between.
        grace: Duration,
    },
    /// SIGKILL now.
    KillScript,
    /// Last save: the logs, and the work directory when asked.
    Save {
        /// Whether the work directory counts.
        files: bool,
    },
    /// Give up the last save.
    AbandonSave,
    /// Write the last status.
    Settle,
    /// Take the machine out of its group and end.
    Release,
    /// End without giving the machine back: another one is to come, or came already.
    Leave,
}

/// Times that the machine goes by.
#[derive(Debug, Clone)]
pub(crate) struct Budgets {
    /// Of the configuration.
    pub(crate) timings: Timings,
    /// The task's.
    pub(crate) deadline: Timestamp,
    /// Between SIGTERM and SIGKILL.
    pub(crate) grace: Duration,
    /// Longest time of the task.
    pub(crate) timeout: Duration,
}

impl Budgets {
    /// How long before the deadline the script is told to end, so that saving fits.
    pub(crate) fn reserve(&self) -> Duration {
        Timings::of(self.timings.save_budget).min(self.timeout / 10)
    }

    fn soft_deadline(&self) -> Timestamp {
        minus(self.deadline, self.reserve())
    }

    fn of(&self, phase: Phase, now: Timestamp) -> Duration {
        let left = until(now, self.deadline).max(Duration::from_secs(1));
        let own = match phase {
            Phase::Boot => Timings::of(self.timings.boot_budget),
            Phase::Prepare => Timings::of(self.timings.prepare_budget),
            Phase::Restore => Timings::of(self.timings.restore_budget),
            Phase::Run => left,
            Phase::Save => Timings::of(self.timings.save_budget),
            Phase::Release => return Timings::of(self.timings.release_budget),
        };
        own.min(left)
    }
}

fn plus(at: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by).ok().and_then(|d| at.checked_add(d).ok()).unwrap_or(Timestamp::MAX)
}

fn minus(at: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by).ok().and_then(|d| at.checked_sub(d).ok()).unwrap_or(Timestamp::MIN)
}

fn until(now: Timestamp, at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or_default()
}

/// See the module's documentation. `Run` and `Ending` carry nothing: the script is the driver's.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    Boot,
    Prepare,
    Restore,
    Run,
    Ending,
    Save {
        /// How the script ended; absent when it never began.
        script: Option<ScriptEnd>,
        /// A fault of an earlier phase.
        fault: Option<(Phase, Fault)>,
    },
    Settle,
    Done,
    Fenced,
}

/// The slot's life.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    status: SlotStatus,
    stage: Stage,
    reason: Option<StopReason>,
    /// Where `reason` came up.
    reason_phase: Phase,
    budgets: Budgets,
    restored: bool,
}

/// Higher wins when there are several reasons to end.
fn weight(reason: &StopReason) -> u8 {
    match reason {
        StopReason::Preempted => 0,
        StopReason::PhaseBudget { .. } => 1,
        StopReason::Deadline => 2,
        StopReason::User => 3,
        StopReason::Superseded => 4,
    }
}

impl Machine {
    /// Holds a slot; `status` is what was claimed with, its boot phase begun.
    pub(crate) fn new(status: SlotStatus, budgets: Budgets) -> Self {
        Self { status, stage: Stage::Boot, reason: None, reason_phase: Phase::Boot, budgets, restored: false }
    }

    /// As it is to be published.
    pub(crate) fn status(&self) -> &SlotStatus {
        &self.status
    }

    /// Whether the status is the last one, which is to be published only once it is in the store.
    pub(crate) fn is_settling(&self) -> bool {
        matches!(self.stage, Stage::Settle | Stage::Done)
    }

    /// Whether a request to stop would still change or join something.
    pub(crate) fn can_stop(&self) -> bool {
        match self.stage {
            Stage::Boot
            | Stage::Prepare
            | Stage::Restore
            | Stage::Run
            | Stage::Ending
            | Stage::Save { .. } => true,
            Stage::Settle | Stage::Done | Stage::Fenced => false,
        }
    }

    /// Changes what is reported beside the state (log position, saves, warnings); whether anything changed.
    pub(crate) fn note(&mut self, change: impl FnOnce(&mut SlotStatus)) -> bool {
        if matches!(self.stage, Stage::Settle | Stage::Done | Stage::Fenced) {
            return false;
        }
        let before = self.status.clone();
        change(&mut self.status);
        let changed = self.status != before;
        if changed {
            self.status.generation += 1;
        }
        changed
    }

    /// When [`Input::Tick`] is due next.
    pub(crate) fn wake_at(&self) -> Option<Timestamp> {
        let soft = self.reason.is_none().then(|| self.budgets.soft_deadline());
        match self.stage {
            Stage::Boot | Stage::Prepare | Stage::Restore => {
                [self.budget_end(), soft].into_iter().flatten().min()
            }
            Stage::Run => soft,
            Stage::Ending | Stage::Done | Stage::Fenced => None,
            Stage::Save { .. } => self.budget_end(),
            Stage::Settle => self.budget_end().map(|end| end.max(self.budgets.deadline)),
        }
    }

    fn budget_end(&self) -> Option<Timestamp> {
        self.status.phases.last().map(|p| plus(p.started, Duration::from_secs(p.budget_seconds.max(1))))
    }

    /// Total: whatever comes in whatever stage has an answer.
    pub(crate) fn handle(&mut self, now: Timestamp, input: Input) -> Vec<Action> {
        match input {
            Input::Booted(result) => {
                self.early(now, Phase::Boot, result, |m| m.enter(now, Phase::Prepare, Action::Prepare))
            }
            Input::Prepared(result) => {
                self.early(now, Phase::Prepare, result, |m| m.enter(now, Phase::Restore, Action::Restore))
            }
            Input::Restored(result) => self.early(now, Phase::Restore, result, |m| {
                m.restored = true;
                m.enter(now, Phase::Run, Action::Run)
            }),
            Input::ScriptEnded(end) => match self.stage {
                Stage::Run | Stage::Ending => self.save(now, Some(end), None),
                Stage::Boot
                | Stage::Prepare
                | Stage::Restore
                | Stage::Save { .. }
                | Stage::Settle
                | Stage::Done
                | Stage::Fenced => Vec::new(),
            },
            Input::Saved(result) => self.settle(now, result),
            Input::Settled => match self.stage {
                Stage::Settle => self.done(),
                Stage::Boot
                | Stage::Prepare
                | Stage::Restore
                | Stage::Run
                | Stage::Ending
                | Stage::Save { .. }
                | Stage::Done
                | Stage::Fenced => Vec::new(),
            },
            Input::Stop { grace } => {
                let grace = grace.unwrap_or(self.budgets.grace);
                self.end(now, StopReason::User, grace)
            }
            Input::Preempted => {
                let grace = self.budgets.grace.min(PREEMPTION_GRACE);
                self.end(now, StopReason::Preempted, grace)
            }
            Input::Superseded => self.fence(),
            Input::Tick => self.tick(now),
        }
    }

    fn tick(&mut self, now: Timestamp) -> Vec<Action> {
        if self.wake_at().is_none_or(|at| now < at) {
            return Vec::new();
        }
        match self.stage {
            Stage::Boot | Stage::Prepare | Stage::Restore => {
                if self.budget_end().is_some_and(|end| now >= end) && now < self.budgets.soft_deadline() {
                    let phase = self.phase();
                    self.end(now, StopReason::PhaseBudget { phase }, Duration::ZERO)
                } else {
                    self.end(now, StopReason::Deadline, Duration::ZERO)
                }
            }
            Stage::Run => {
                let grace = self.budgets.grace.min(self.budgets.reserve() / 2);
                self.end(now, StopReason::Deadline, grace)
            }
            Stage::Save { .. } => {
                let mut actions = vec![Action::AbandonSave];
                actions.extend(self.settle(now, Err("it took longer than its budget".to_owned())));
                actions
            }
            // The store could not be reached until the deadline; no machine outlives that.
            Stage::Settle => self.done(),
            Stage::Ending | Stage::Done | Stage::Fenced => Vec::new(),
        }
    }

    fn phase(&self) -> Phase {
        self.status.phases.last().map_or(Phase::Boot, |p| p.phase)
    }

    /// The end of a phase before the script, if it is the one that is going on.
    fn early(
        &mut self,
        now: Timestamp,
        phase: Phase,
        result: Result<(), Fault>,
        next: impl FnOnce(&mut Self) -> Vec<Action>,
    ) -> Vec<Action> {
        let current = match self.stage {
            Stage::Boot => Phase::Boot,
            Stage::Prepare => Phase::Prepare,
            Stage::Restore => Phase::Restore,
            Stage::Run | Stage::Ending | Stage::Save { .. } | Stage::Settle | Stage::Done | Stage::Fenced => {
                return Vec::new();
            }
        };
        if current != phase {
            return Vec::new();
        }
        match result {
            Ok(()) => next(self),
            Err(fault) => self.save(now, None, Some((phase, fault))),
        }
    }

    fn enter(&mut self, now: Timestamp, phase: Phase, action: Action) -> Vec<Action> {
        self.begin_phase(now, phase);
        self.stage = match phase {
            Phase::Prepare => Stage::Prepare,
            Phase::Restore => Stage::Restore,
            Phase::Boot | Phase::Run | Phase::Save | Phase::Release => Stage::Run,
        };
        self.publish(SlotState::Active { phase });
        vec![action]
    }

    fn begin_phase(&mut self, now: Timestamp, phase: Phase) {
        if let Some(last) = self.status.phases.last_mut() {
            last.ended = Some(now);
        }
        let budget = self.budgets.of(phase, now);
        self.status.phases.push(PhaseTiming {
            phase,
            started: now,
            ended: None,
            budget_seconds: budget.as_secs() + u64::from(budget.subsec_nanos() > 0),
        });
    }

    fn publish(&mut self, state: SlotState) {
        self.status.state = state;
        self.status.generation += 1;
    }

    /// A reason to end came up.
    fn end(&mut self, now: Timestamp, reason: StopReason, grace: Duration) -> Vec<Action> {
        // Whoever asks, the last save keeps its share of the time that is left.
        let room = until(now, self.budgets.deadline).saturating_sub(self.budgets.reserve() / 2);
        let grace = grace.min(room);
        let stronger = self.reason.as_ref().is_none_or(|old| weight(&reason) > weight(old));
        match &self.stage {
            Stage::Boot | Stage::Prepare | Stage::Restore => {
                self.adopt(reason);
                let mut actions = vec![Action::Abandon];
                actions.extend(self.save(now, None, None));
                actions
            }
            Stage::Run | Stage::Ending => {
                self.stage = Stage::Ending;
                if stronger {
                    self.adopt(reason.clone());
                    self.publish(SlotState::Stopping { reason });
                }
                vec![Action::EndScript { grace }]
            }
            // What ended by itself has ended; but somebody who wants an interrupted task to end is heard.
            Stage::Save { .. } => {
                if stronger && self.reason.is_some() {
                    self.adopt(reason.clone());
                    self.publish(SlotState::Stopping { reason });
                }
                Vec::new()
            }
            Stage::Settle | Stage::Done | Stage::Fenced => Vec::new(),
        }
    }

    fn adopt(&mut self, reason: StopReason) {
        if self.reason.is_none() {
            self.reason_phase = self.phase();
        }
        self.reason = Some(reason);
    }

    fn save(
        &mut self,
        now: Timestamp,
        script: Option<ScriptEnd>,
        fault: Option<(Phase, Fault)>,
    ) -> Vec<Action> {
        self.begin_phase(now, Phase::Save);
        self.stage = Stage::Save { script, fault };
        let state = match &self.reason {
            Some(reason) => SlotState::Stopping { reason: reason.clone() },
            None => SlotState::Active { phase: Phase::Save },
        };
        self.publish(state);
        vec![Action::Save { files: self.restored }]
    }

    fn settle(&mut self, now: Timestamp, saved: Result<(), String>) -> Vec<Action> {
        let Stage::Save { script, fault } = &self.stage else { return Vec::new() };
        let outcome = match &self.reason {
            None => Some(match (fault, script) {
                (Some((phase, fault)), _) => {
                    Outcome::Failed { phase: *phase, failure: fault.failure, message: fault.message.clone() }
                }
                (None, Some(end)) => end.outcome(),
                // Unreachable by construction: without a reason, a save follows a fault or the script.
                (None, None) => Outcome::Stopped,
            }),
            Some(StopReason::User) => Some(Outcome::Stopped),
            Some(StopReason::Deadline) => Some(Outcome::TimedOut { phase: self.reason_phase }),
            Some(StopReason::PhaseBudget { phase }) => Some(Outcome::TimedOut { phase: *phase }),
            Some(StopReason::Preempted | StopReason::Superseded) => None,
        };
        let failed = saved.err();
        let outcome = match (outcome, failed) {
            // An earlier failure says more than the save that failed after it.
            (Some(outcome @ Outcome::Failed { .. }), _) => Some(outcome),
            (Some(_), Some(cause)) => {
                let before = script.as_ref().map(ScriptEnd::describe);
                let message = match before {
                    Some(before) => format!("{before}, but its results could not be saved: {cause}"),
                    None => format!("the log could not be saved: {cause}"),
                };
                Some(Outcome::Failed { phase: Phase::Save, failure: Failure::Save, message })
            }
            (None, Some(cause)) => {
                self.status.warnings.push(format!("the last save before the interruption failed: {cause}"));
                None
            }
            (outcome, None) => outcome,
        };
        self.begin_phase(now, Phase::Release);
        self.stage = Stage::Settle;
        self.publish(match outcome {
            Some(outcome) => SlotState::Finished { outcome, at: now },
            None => SlotState::Interrupted,
        });
        vec![Action::Settle]
    }

    fn done(&mut self) -> Vec<Action> {
        self.stage = Stage::Done;
        if self.status.state.is_final() { vec![Action::Release] } else { vec![Action::Leave] }
    }

    fn fence(&mut self) -> Vec<Action> {
        let actions = match self.stage {
            Stage::Boot | Stage::Prepare | Stage::Restore => vec![Action::Abandon, Action::Leave],
            Stage::Run | Stage::Ending => vec![Action::KillScript, Action::Leave],
            Stage::Save { .. } => vec![Action::AbandonSave, Action::Leave],
            Stage::Settle => vec![Action::Leave],
            Stage::Done | Stage::Fenced => return Vec::new(),
        };
        self.stage = Stage::Fenced;
        self.reason = Some(StopReason::Superseded);
        self.publish(SlotState::Stopping { reason: StopReason::Superseded });
        actions
    }
}

#[cfg(test)]
mod tests;
