//! Whether a slot whose machine is gone gets another one. No I/O, no clock of its own.
//!
//! ```text
//!  taken back with notice ──────────────────────────────────► take over, nothing is counted
//!  gone without a word, having ─┬─ saved nothing ─► idle + 1, early + 1 ─┐
//!                               ├─ saved ─────────► idle = 0, early + 1 ─┼─► below both limits: take over
//!                               └─ run for long ──► idle = 0, early = 0 ─┘   otherwise: give up
//! ```
//!
//! A script that exhausts the memory of its machine, or an image whose kernel panics, ends every machine that it is
//! given, and only the task's deadline would end that. Saving alone does not prove that things get on: a script that
//! writes a log file and then exhausts the memory saves something new every time. So that has a limit too, a higher one.

use jiff::{SignedDuration, Timestamp};
use tpi_proto::state::{Losses, Phase, Progress, SlotState, SlotStatus, StopReason};

/// Machines that may be lost in a row before anything new was saved.
pub(crate) const MAX_IDLE: u32 = 3;
/// Machines that may be lost in a row before their script had run for [`STEADY`].
pub(crate) const MAX_EARLY: u32 = 10;
/// What ends a machine after its script ran for so long is not how every attempt ends.
pub(crate) const STEADY: SignedDuration = SignedDuration::from_mins(5);

/// What becomes of a slot whose machine is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Another machine takes it.
    TakeOver {
        /// To be noted in the slot.
        losses: Losses,
    },
    /// None does any more.
    GiveUp {
        /// To be noted in the slot.
        losses: Losses,
        /// Lower-case fragment.
        message: String,
    },
}

/// Judges by the last status that the machine wrote.
pub(crate) fn judge(found: &SlotStatus) -> Verdict {
    let lost = u32::from(!had_notice(&found.state));
    let before = found.losses;
    let losses = match found.progress {
        Progress::None => {
            Losses { idle: before.idle.saturating_add(lost), early: before.early.saturating_add(lost) }
        }
        Progress::Saved => Losses { idle: 0, early: before.early.saturating_add(lost) },
        Progress::Steady => Losses::default(),
    };
    let message = if losses.idle >= MAX_IDLE {
        format!("{} in a row were gone without a word before anything new was saved", losses.idle)
    } else if losses.early >= MAX_EARLY {
        let minutes = STEADY.as_mins();
        format!(
            "{} in a row were gone without a word before the script had run for {minutes} minutes",
            losses.early
        )
    } else {
        return Verdict::TakeOver { losses };
    };
    // Only a loss makes the counts rise, so an interruption never ends a slot that was taken over before.
    if lost == 0 { Verdict::TakeOver { losses } } else { Verdict::GiveUp { losses, message } }
}

/// Whether the cloud had said that it takes the machine back. A finished slot has no machine to lose.
fn had_notice(state: &SlotState) -> bool {
    match state {
        SlotState::Interrupted | SlotState::Finished { .. } => true,
        SlotState::Stopping { reason } => match reason {
            StopReason::Preempted => true,
            StopReason::User
            | StopReason::Deadline
            | StopReason::PhaseBudget { .. }
            | StopReason::Superseded => false,
        },
        SlotState::Active { .. } => false,
    }
}

/// How far an attempt has got: never less than it had.
pub(crate) fn progress(status: &SlotStatus, now: Timestamp) -> Progress {
    let running = status.phases.iter().find(|timing| timing.phase == Phase::Run);
    match running {
        Some(run) if run.ended.unwrap_or(now).duration_since(run.started) >= STEADY => Progress::Steady,
        Some(_) | None => status.progress,
    }
}

#[cfg(test)]
mod tests;
