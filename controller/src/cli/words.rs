//! States, outcomes and reasons as people read them.

use tpi_proto::state::{Failure, Outcome, Phase, SlotState, StopReason};
use tpi_store::record::Unprovisioned;

use crate::{
    cloud::MachineEnd,
    link::{Source, WhyStore},
    task::{EndReason, TaskOutcome, TaskState},
};

/// `exited with status 1`: continues "the script …".
#[must_use]
pub(super) fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Exited { code } => format!("exited with status {code}"),
        Outcome::Signalled { signal } => format!("was killed by signal {signal}"),
        Outcome::TimedOut { phase } => format!("ran out of time in phase {}", phase.as_str()),
        Outcome::Stopped => "was stopped".to_owned(),
        Outcome::Failed { phase, failure, message } => {
            format!("failed in phase {}: {}: {message}", phase.as_str(), failure_text(*failure))
        }
    }
}

fn failure_text(failure: Failure) -> &'static str {
    match failure {
        Failure::Restore => "the workspace could not be restored",
        Failure::Start => "the script could not be started",
        Failure::Save => "results could not be saved",
        Failure::Prepare => "the machine could not be prepared",
        Failure::Store => "what the agent needs is missing from the store",
        Failure::AgentLost => "machines were lost too often",
    }
}

/// One line on how a whole task ended: continues "task x …".
#[must_use]
pub(super) fn task_outcome(result: &TaskOutcome) -> String {
    match result {
        TaskOutcome::Succeeded => "succeeded".to_owned(),
        TaskOutcome::Failed { slot, outcome: how, failed } => match failed {
            0 | 1 => format!("did not succeed: slot {slot} {}", outcome(how)),
            more => format!("did not succeed: slot {slot} {} ({more} slots failed)", outcome(how)),
        },
        TaskOutcome::TimedOut { unfinished } => {
            let slots = super::human::count(u64::from(*unfinished), "slot");
            format!("ran out of time with {slots} unfinished")
        }
        TaskOutcome::Stopped { unfinished } => {
            let slots = super::human::count(u64::from(*unfinished), "slot");
            format!("was stopped with {slots} unfinished")
        }
        TaskOutcome::Unprovisioned { reason, why } => {
            let mut text = match reason {
                Unprovisioned::Agent => unprovisioned(*reason).to_owned(),
                Unprovisioned::Quota
                | Unprovisioned::Permission
                | Unprovisioned::Price
                | Unprovisioned::Capacity
                | Unprovisioned::Request
                | Unprovisioned::Unknown => {
                    format!("got no machine in the time given: {}", unprovisioned(*reason))
                }
            };
            for tried in why {
                // Lines of their own: there is one for each type and zone.
                text.push_str("\n  ");
                text.push_str(tried);
            }
            text
        }
    }
}

fn unprovisioned(reason: Unprovisioned) -> &'static str {
    match reason {
        Unprovisioned::Quota => "the account's limit is reached",
        Unprovisioned::Permission => "not permitted",
        Unprovisioned::Price => "the highest price is below the market's",
        Unprovisioned::Capacity => "the cloud has no capacity",
        Unprovisioned::Request => "the request cannot be served",
        Unprovisioned::Agent => {
            "every machine ended without its agent: what it fetched was not what was sent"
        }
        Unprovisioned::Unknown => "the cloud did not say why",
    }
}

/// What may help, where that can be told from how a task ended.
#[must_use]
pub(super) fn advice(result: &TaskOutcome) -> Option<&'static str> {
    if let TaskOutcome::Unprovisioned { reason, .. } = result {
        return Some(match reason {
            Unprovisioned::Quota => {
                "ask for a higher limit in the cloud's console, or choose a smaller --machine or another --region"
            }
            Unprovisioned::Permission => "see what has to be allowed: `tpi-controller aws policy`",
            Unprovisioned::Price => "raise --spot, or leave it at 0 for the market's price",
            Unprovisioned::Capacity => {
                "try another --region or --machine, --spot -1 for on demand, or a longer --provision-timeout"
            }
            Unprovisioned::Request => "try another --machine, --image or --region",
            Unprovisioned::Agent => {
                "something has changed the agent in the store: destroy the task, see who may write there, and submit again"
            }
            Unprovisioned::Unknown => "try another --region or --machine, or a longer --provision-timeout",
        });
    }
    let TaskOutcome::Failed { outcome: Outcome::Failed { failure, .. }, .. } = result else { return None };
    match failure {
        Failure::AgentLost => Some(
            "a script that uses up the machine's memory, or an image that does not work, ends every machine: try a \
             larger --machine or another --image; the log ends where each machine was lost",
        ),
        Failure::Restore | Failure::Start | Failure::Save | Failure::Prepare | Failure::Store => None,
    }
}

/// A word or two for tables.
#[must_use]
pub(super) fn task_state(state: &TaskState) -> &'static str {
    match state {
        TaskState::Declared => "declared",
        TaskState::Provisioning => "provisioning",
        TaskState::Running => "running",
        TaskState::Stopping { reason: EndReason::Stopped } => "stopping",
        TaskState::Stopping { reason: EndReason::Deadline } => "stopping (deadline)",
        TaskState::Stopping { reason: EndReason::Destroyed } => "being destroyed",
        TaskState::Stopping { reason: EndReason::Unprovisioned } => "stopping (no machine)",
        TaskState::Finished { outcome: TaskOutcome::Succeeded } => "succeeded",
        TaskState::Finished { outcome: TaskOutcome::Failed { .. } } => "failed",
        TaskState::Finished { outcome: TaskOutcome::TimedOut { .. } } => "timed out",
        TaskState::Finished { outcome: TaskOutcome::Stopped { .. } } => "stopped",
        TaskState::Finished { outcome: TaskOutcome::Unprovisioned { .. } } => "got no machine",
        TaskState::Destroyed => "destroyed",
        TaskState::Orphaned => "orphaned",
    }
}

/// State of a slot, for tables.
#[must_use]
pub(super) fn slot_state(state: &SlotState) -> String {
    match state {
        SlotState::Active { phase } => phase_text(*phase).to_owned(),
        SlotState::Stopping { reason } => format!("stopping: {}", stop_reason(reason)),
        SlotState::Interrupted => "interrupted, waiting for another machine".to_owned(),
        SlotState::Finished { outcome: how, .. } => outcome(how),
    }
}

fn stop_reason(reason: &StopReason) -> String {
    match reason {
        StopReason::User => "asked to".to_owned(),
        StopReason::Deadline => "time is up".to_owned(),
        StopReason::PhaseBudget { phase } => format!("phase {} took too long", phase.as_str()),
        StopReason::Preempted => "the cloud takes the machine back".to_owned(),
        StopReason::Superseded => "another machine has the slot".to_owned(),
    }
}

/// What a machine is doing.
#[must_use]
pub(super) fn phase_text(phase: Phase) -> &'static str {
    match phase {
        Phase::Boot => "booting",
        Phase::Prepare => "preparing the machine",
        Phase::Restore => "restoring the workspace",
        Phase::Run => "running",
        Phase::Save => "saving results",
        Phase::Release => "releasing the machine",
    }
}

/// Where the events of a slot come from, and whether more is waited for; nothing where that is what was asked for.
#[must_use]
pub(super) fn source(source: &Source, follow: bool) -> Option<String> {
    match source {
        Source::Waiting if follow => Some("waiting for a machine".to_owned()),
        Source::Waiting => Some("no machine is at work on it yet".to_owned()),
        Source::Live { address } if follow => Some(format!("following live at {address}")),
        Source::Live { address } => Some(format!("asking the agent at {address}")),
        Source::Store { why: WhyStore::NotWanted } => None,
        Source::Store { why: WhyStore::Ended } => Some("reading the store: the run has ended".to_owned()),
        Source::Store { why: WhyStore::Unreachable(why) } => {
            Some(format!("following the store, some seconds behind: {why}"))
        }
        Source::Store { why: WhyStore::Broken(why) } => {
            Some(format!("following the store until the agent answers again: {why}"))
        }
    }
}

/// Why a machine ended.
#[must_use]
pub(super) fn machine_end(end: MachineEnd) -> &'static str {
    match end {
        MachineEnd::Released => "released",
        MachineEnd::Lost => "lost",
        MachineEnd::Deadline => "deadline",
        MachineEnd::Destroyed => "destroyed",
    }
}
