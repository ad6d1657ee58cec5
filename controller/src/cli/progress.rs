//! Bytes on their way to or from the store: a bar on a terminal, a line now and then elsewhere.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use tpi_store::snapshot::{PlanSummary, Progress};

use super::{human, ui::Ui};

/// Between two lines where nothing can be redrawn.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Drawn (or told) until dropped.
#[derive(Debug)]
pub struct Bar {
    ui: Ui,
    bar: ProgressBar,
    doing: &'static str,
    began: Instant,
    told_after: AtomicU64,
}

impl Bar {
    /// Nothing is shown before the total is known, nor for work that is done at once.
    #[must_use]
    pub fn new(ui: &Ui, doing: &'static str) -> Self {
        let bar = ProgressBar::no_length().with_finish(ProgressFinish::AndClear);
        let bar = if ui.is_live() { ui.drawing().add(bar) } else { bar };
        let style = ProgressStyle::with_template(
            "{msg:>12} [{bar:30}] {decimal_bytes} of {decimal_total_bytes} ({decimal_bytes_per_sec}, {eta} left)",
        );
        if let Ok(style) = style {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(doing);
        Self { ui: ui.clone(), bar, doing, began: Instant::now(), told_after: AtomicU64::new(0) }
    }

    /// Time since the beginning.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Bar {
    fn total(&self, bytes: u64) {
        self.bar.set_length(bytes);
    }

    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
        if self.ui.is_live() {
            return;
        }
        let due = self.began.elapsed().as_secs() / LINE_EVERY.as_secs();
        if due > self.told_after.fetch_max(due, Ordering::Relaxed) {
            let total = self.bar.length().map_or_else(String::new, |total| format!(" of {}", human::bytes(total)));
            self.ui.status(&format!("{}: {}{total}", self.doing, human::bytes(self.bar.position())));
        }
    }
}

/// `12,345 files, 3.1 GB, 4 changed, sending 2.2 MB`.
#[must_use]
pub fn plan_line(plan: &PlanSummary) -> String {
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
