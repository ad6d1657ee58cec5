//! Deriving the state of a task from what is known of it.

use jiff::{SignedDuration, Timestamp};
use tpi_proto::state::{SlotState, SlotStatus, StopReason};
use tpi_store::record::{GaveUp, Intent, TaskRecord};

use super::{EndReason, Machines, TaskOutcome, TaskState};

/// State of a task. `slots` are those that were ever claimed; `now` is judged against the record's deadline.
#[must_use]
pub fn derive(
    record: Option<&TaskRecord>,
    slots: &[SlotStatus],
    machines: Machines,
    stop_requested: bool,
    now: Timestamp,
) -> TaskState {
    let Some(record) = record else {
        return if machines.gone() { TaskState::Destroyed } else { TaskState::Orphaned };
    };
    match record.intent {
        Intent::Submit => return TaskState::Declared,
        Intent::Destroy => return TaskState::Stopping { reason: EndReason::Destroyed },
        Intent::Run => {}
    }
    let late = is_past_deadline(record, now);
    if let Some(outcome) = outcome(record, slots, machines, stop_requested, late) {
        return TaskState::Finished { outcome };
    }
    if record.gave_up.is_some() {
        return TaskState::Stopping { reason: EndReason::Unprovisioned };
    }
    if late || slots.iter().any(|s| is_stopping(s, StopsFor::Deadline)) {
        return TaskState::Stopping { reason: EndReason::Deadline };
    }
    if stop_requested || slots.iter().any(|s| is_stopping(s, StopsFor::User)) {
        return TaskState::Stopping { reason: EndReason::Stopped };
    }
    let working = |s: &SlotStatus| matches!(s.state, SlotState::Active { .. } | SlotState::Stopping { .. });
    if machines.alive > 0 && slots.iter().any(working) { TaskState::Running } else { TaskState::Provisioning }
}

/// How the task ended; `None` while a slot may still begin or end. Derived from the slots alone wherever they
/// have all ended: what the machines do after that changes nothing.
#[must_use]
pub fn outcome(
    record: &TaskRecord,
    slots: &[SlotStatus],
    machines: Machines,
    stop_requested: bool,
    late: bool,
) -> Option<TaskOutcome> {
    let wanted = u32::from(record.spec.parallelism.get());
    let ended = slots
        .iter()
        .filter(|s| s.slot.0 < wanted)
        .filter_map(|s| match &s.state {
            SlotState::Finished { outcome, .. } => Some((s.slot, outcome)),
            SlotState::Active { .. } | SlotState::Stopping { .. } | SlotState::Interrupted => None,
        })
        .collect::<Vec<_>>();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let unfinished = wanted.saturating_sub(count(ended.len()));
    if unfinished > 0 {
        if !machines.gone() {
            return None;
        }
        if let Some(GaveUp { reason, why, .. }) = &record.gave_up {
            return Some(TaskOutcome::Unprovisioned { reason: *reason, why: why.clone() });
        }
        return match (late, stop_requested) {
            (true, _) => Some(TaskOutcome::TimedOut { unfinished }),
            (false, true) => Some(TaskOutcome::Stopped { unfinished }),
            (false, false) => None,
        };
    }
    let failed = ended.iter().filter(|(_, o)| !o.is_success());
    Some(match failed.clone().min_by_key(|(slot, _)| *slot) {
        None => TaskOutcome::Succeeded,
        Some((slot, outcome)) => {
            TaskOutcome::Failed { slot: *slot, outcome: (*outcome).clone(), failed: count(failed.count()) }
        }
    })
}

/// Whether a group has been there for as long as a first machine may take, and never had any. The time counts
/// from where the deadline's does; a group that is not there yet has not been tried.
pub(super) fn waits_in_vain(
    record: &TaskRecord,
    slots: &[SlotStatus],
    machines: Machines,
    now: Timestamp,
) -> bool {
    let (Some(deadline), Some(wait)) = (record.deadline, record.spec.provision_timeout_seconds) else {
        return false;
    };
    let seconds = |n: u64| SignedDuration::from_secs(i64::try_from(n).unwrap_or(i64::MAX));
    let over = deadline
        .checked_sub(seconds(record.spec.timeout_seconds))
        .and_then(|began| began.checked_add(seconds(wait)))
        .is_ok_and(|until| now >= until);
    over && machines.group && !machines.seen && machines.alive == 0 && slots.is_empty()
}

/// Whether every machine left the group without having claimed a slot: none could start its agent, and another one
/// could not either.
pub(super) fn gave_themselves_back(slots: &[SlotStatus], machines: Machines) -> bool {
    machines.ended && machines.seen && machines.gone() && slots.is_empty()
}

pub(super) fn is_past_deadline(record: &TaskRecord, now: Timestamp) -> bool {
    record.deadline.is_some_and(|deadline| now >= deadline)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum StopsFor {
    User,
    Deadline,
}

fn is_stopping(slot: &SlotStatus, what: StopsFor) -> bool {
    match &slot.state {
        SlotState::Stopping { reason } => match reason {
            StopReason::User => what == StopsFor::User,
            StopReason::Deadline => what == StopsFor::Deadline,
            StopReason::PhaseBudget { .. } | StopReason::Preempted | StopReason::Superseded => false,
        },
        SlotState::Active { .. } | SlotState::Interrupted | SlotState::Finished { .. } => false,
    }
}
