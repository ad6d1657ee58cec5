//! What the engine tells while it works: bars on a terminal, a line now and then elsewhere.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tpi_store::snapshot::PlanSummary;

use super::{
    human,
    ui::{Envelope, Ui},
};
use crate::engine::{Observer, Progress, Step, Transfer};

/// Between two lines where nothing can be redrawn.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Before a bar is drawn: what is done at once needs none.
const DRAWN_AFTER: Duration = Duration::from_millis(250);

/// Shows progress until dropped.
#[derive(Debug)]
pub(super) struct Shown {
    ui: Ui,
    /// Whether stdout carries one JSON document per line, so that there is room for more of them.
    lines: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    transfers: HashMap<Transfer, Moving>,
    step: Option<Step>,
    waiting_for: usize,
}

#[derive(Debug)]
struct Moving {
    bar: ProgressBar,
    drawn: bool,
    began: Instant,
    told: Instant,
}

impl Shown {
    /// Nothing is shown yet.
    #[must_use]
    pub(super) fn new(ui: &Ui) -> Self {
        Self { ui: ui.clone(), lines: false, state: Mutex::default() }
    }

    /// In JSON: with the plan as a line of its own on stdout.
    #[must_use]
    pub(super) fn with_lines(mut self, lines: bool) -> Self {
        self.lines = lines;
        self
    }

    /// The newest step that began.
    #[must_use]
    pub(super) fn step(&self) -> Option<Step> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).step
    }

    fn begin(&self, transfer: Transfer, bytes: u64) -> Moving {
        let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template(
            "{msg:>18} [{bar:30}] {decimal_bytes} of {decimal_total_bytes} ({decimal_bytes_per_sec}, {eta} left)",
        );
        if let Ok(style) = style {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(doing(transfer));
        Moving { bar, drawn: false, began: Instant::now(), told: Instant::now() }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        for moving in self.state.get_mut().unwrap_or_else(PoisonError::into_inner).transfers.values() {
            moving.bar.finish_and_clear();
        }
    }
}

impl Observer for Shown {
    fn progress(&self, event: Progress) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Progress::Step { step } => {
                state.step = Some(step);
                if let Some(text) = step_text(step) {
                    self.ui.status(text);
                }
            }
            Progress::SendPlan { plan } => {
                // Without a work directory there is nothing to tell.
                if plan.files > 0 {
                    self.ui.status(&format!("workspace: {}", plan_line(&plan)));
                }
                if self.lines && self.ui.is_json() {
                    #[derive(Serialize)]
                    struct Plan {
                        plan: PlanSummary,
                    }
                    // A reader that has gone is met again, and reported, at the next line of data.
                    drop(self.ui.json(&Envelope::new("plan", Plan { plan })));
                }
            }
            Progress::TransferTotal { transfer, bytes } => {
                let moving = state.transfers.entry(transfer).or_insert_with(|| self.begin(transfer, bytes));
                moving.bar.set_length(bytes);
            }
            Progress::TransferAdvance { transfer, bytes } => {
                let moving = state.transfers.entry(transfer).or_insert_with(|| self.begin(transfer, 0));
                moving.bar.inc(bytes);
                if self.ui.is_live() && !moving.drawn && moving.began.elapsed() >= DRAWN_AFTER {
                    moving.drawn = true;
                    moving.bar = self.ui.drawing().add(moving.bar.clone());
                }
                if !self.ui.is_live() && moving.told.elapsed() >= LINE_EVERY {
                    moving.told = Instant::now();
                    let total = moving.bar.length().map(|total| format!(" of {}", human::bytes(total)));
                    let done = human::bytes(moving.bar.position());
                    self.ui.status(&format!("{}: {done}{}", doing(transfer), total.unwrap_or_default()));
                }
            }
            Progress::TransferDone { transfer } => {
                if let Some(moving) = state.transfers.remove(&transfer) {
                    moving.bar.finish_and_clear();
                    let took = moving.began.elapsed();
                    if took >= Duration::from_secs(1) && transfer != Transfer::Scan {
                        let bytes = human::bytes(moving.bar.position());
                        let took = jiff::SignedDuration::try_from(took).unwrap_or_default();
                        self.ui.status(&format!("{}: {bytes} in {}", doing(transfer), human::duration(took)));
                    }
                }
            }
            Progress::Restored { slot, report } => {
                tracing::info!(%slot, written = report.written, unchanged = report.unchanged, "results are home");
            }
            Progress::StopSent { run, direct } => {
                let how =
                    if direct { "was asked to stop" } else { "will find the request to stop in the store" };
                self.ui.status(&format!("the machine of slot {}, attempt {}, {how}", run.slot, run.attempt));
            }
            Progress::WaitingForSlots { slots } => {
                if slots.len() != state.waiting_for {
                    state.waiting_for = slots.len();
                    let slots_left = human::count(slots.len().try_into().unwrap_or(u64::MAX), "slot");
                    self.ui.status(&format!("waiting for {slots_left} to end"));
                }
            }
            Progress::Warning { message } => self.ui.warning(&message),
        }
    }
}

fn doing(transfer: Transfer) -> &'static str {
    match transfer {
        Transfer::Scan => "reading files",
        Transfer::Workspace => "sending files",
        Transfer::Agent => "sending the agent",
        Transfer::Results { .. } => "fetching results",
    }
}

/// What is said of a step; nothing of those that nobody waits for.
fn step_text(step: Step) -> Option<&'static str> {
    match step {
        Step::Record | Step::Environment | Step::Workspace | Step::Agent | Step::Client | Step::Clock => None,
        Step::Machines => Some("ordering machines"),
        Step::Intent | Step::Stop => None,
        Step::Saves => Some("waiting for what the machines still save"),
        Step::Results => Some("bringing results home"),
        Step::Remove => Some("removing machines"),
        Step::Proof => Some("checking that nothing is left"),
        Step::Erase => Some("deleting what is stored"),
    }
}

/// `12,345 files, 3.1 GB, 4 changed, sending 2.2 MB`.
#[must_use]
pub(super) fn plan_line(plan: &PlanSummary) -> String {
    let PlanSummary { files, bytes, changed, send_bytes } = *plan;
    format!(
        "{}, {}, {} changed, sending {}",
        human::count(files, "file"),
        human::bytes(bytes),
        human::grouped(changed),
        human::bytes(send_bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_is_one_line() {
        let plan = PlanSummary { files: 12_345, bytes: 3_100_000_000, changed: 4, send_bytes: 2_200_000 };
        assert_eq!(plan_line(&plan), "12,345 files, 3.1 GB, 4 changed, sending 2.2 MB");
        let one = PlanSummary { files: 1, bytes: 12, changed: 0, send_bytes: 0 };
        assert_eq!(plan_line(&one), "1 file, 12 B, 0 changed, sending 0 B");
    }
}
