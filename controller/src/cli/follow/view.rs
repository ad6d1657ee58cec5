//! What is known of the slots that are followed, and the status line that says it under the log.

use std::{collections::BTreeMap, fmt::Write as _};

use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use tpi_proto::{
    id::SlotIndex,
    state::{SlotState, SlotStatus},
};
use tpi_store::telemetry::Sample;

use crate::{
    cli::{human, ui::Ui, words},
    link::Source,
};

/// The slots, and a line on the terminal where there is one.
#[derive(Debug)]
pub(super) struct View {
    slots: Vec<SlotIndex>,
    statuses: BTreeMap<SlotIndex, SlotStatus>,
    samples: BTreeMap<SlotIndex, Sample>,
    sources: BTreeMap<SlotIndex, Source>,
    bar: Option<ProgressBar>,
}

impl View {
    /// Nothing is known yet. The line lasts until this is dropped.
    pub(super) fn new(ui: &Ui, slots: &[SlotIndex], follow: bool) -> Self {
        let bar = (follow && ui.is_live()).then(|| {
            let bar = ui.drawing().add(ProgressBar::new_spinner());
            if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self {
            slots: slots.to_vec(),
            statuses: BTreeMap::new(),
            samples: BTreeMap::new(),
            sources: BTreeMap::new(),
            bar,
        }
    }

    /// Takes a status in and gives the one before.
    pub(super) fn status(&mut self, status: SlotStatus) -> Option<SlotStatus> {
        self.statuses.insert(status.slot, status)
    }

    pub(super) fn sample(&mut self, slot: SlotIndex, sample: Sample) {
        let _older = self.samples.insert(slot, sample);
    }

    /// Takes a source in and gives the one before.
    pub(super) fn source(&mut self, slot: SlotIndex, source: Source) -> Option<Source> {
        self.sources.insert(slot, source)
    }

    pub(super) fn into_statuses(mut self) -> BTreeMap<SlotIndex, SlotStatus> {
        std::mem::take(&mut self.statuses)
    }

    /// Whether a slot has neither ended nor an agent that would tell.
    pub(super) fn may_miss_the_end(&self) -> bool {
        self.slots.iter().any(|slot| {
            let ended = self.statuses.get(slot).is_some_and(|status| status.state.is_final());
            let live = matches!(self.sources.get(slot), Some(Source::Live { .. }));
            !ended && !live
        })
    }

    /// A text about a slot, which is named where there are several.
    pub(super) fn prefixed(&self, slot: SlotIndex, text: &str) -> String {
        if self.slots.len() > 1 { format!("slot {slot}: {text}") } else { text.to_owned() }
    }

    /// Draws the line again, with what there is of an unfinished line of the script before it.
    pub(super) fn draw(&self, partial: &[u8], now: Timestamp) {
        let Some(bar) = &self.bar else { return };
        let status = self.line(now);
        let partial = printable(partial);
        if partial.is_empty() {
            bar.set_message(status);
        } else {
            bar.set_message(format!("{partial}  ·  {status}"));
        }
    }

    /// `running 2m 5s · cpu 45% · memory 3.1 GB of 16 GB · gpu 97%, 20 GB of 24 GB · live`.
    fn line(&self, now: Timestamp) -> String {
        let mut parts = Vec::new();
        if let [slot] = self.slots[..] {
            match self.statuses.get(&slot) {
                Some(status) => {
                    let mut text = words::slot_state(&status.state);
                    let since = status.phases.last().filter(|timing| timing.ended.is_none());
                    if let Some(timing) = since {
                        text.push(' ');
                        text.push_str(&human::between(timing.started, now));
                    }
                    parts.push(text);
                    if status.attempt.0 > 1 {
                        parts.push(format!("attempt {}", status.attempt));
                    }
                }
                // Connected, and about to be told more.
                None if matches!(self.sources.get(&slot), Some(Source::Live { .. })) => {}
                None => parts.push("waiting for a machine".to_owned()),
            }
        } else {
            parts.push(self.count());
        }
        if let Some(load) = self.load() {
            parts.push(load);
        }
        let live = self.sources.values().filter(|source| matches!(source, Source::Live { .. })).count();
        let stored = self.sources.values().filter(|source| matches!(source, Source::Store { .. })).count();
        match (live, stored) {
            (0, 0) => {}
            (_, 0) => parts.push("live".to_owned()),
            (0, _) => parts.push("from the store".to_owned()),
            (live, stored) => parts.push(format!("{live} live, {stored} from the store")),
        }
        parts.join(" · ")
    }

    /// `2 at work, 1 ended, 1 waiting`.
    fn count(&self) -> String {
        let of = |wanted: fn(&SlotState) -> bool| {
            self.statuses.values().filter(|status| wanted(&status.state)).count()
        };
        let at_work = of(|state| matches!(state, SlotState::Active { .. } | SlotState::Stopping { .. }));
        let ended = of(SlotState::is_final);
        let waiting = self.slots.len().saturating_sub(at_work + ended);
        [(at_work, "at work"), (ended, "ended"), (waiting, "waiting")]
            .into_iter()
            .filter(|(number, _)| *number > 0)
            .map(|(number, what)| format!("{number} {what}"))
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// Load of the machines at work: the mean of CPUs and GPUs, the sum of memory.
    fn load(&self) -> Option<String> {
        let at_work =
            |slot: &SlotIndex| self.statuses.get(slot).is_some_and(|status| !status.state.is_final());
        let samples: Vec<&Sample> =
            self.samples.iter().filter(|(slot, _)| at_work(slot)).map(|(_, sample)| sample).collect();
        if samples.is_empty() {
            return None;
        }
        let cpu = mean(samples.iter().map(|sample| sample.cpu));
        let used = samples.iter().map(|sample| sample.memory_used).sum();
        let total = samples.iter().map(|sample| sample.memory_total).sum();
        let mut text = format!("cpu {cpu:.0}% · memory {} of {}", human::bytes(used), human::bytes(total));
        let gpus: Vec<_> = samples.iter().flat_map(|sample| &sample.gpus).collect();
        if !gpus.is_empty() {
            let busy = mean(gpus.iter().map(|gpu| gpu.utilisation));
            let used = human::bytes(gpus.iter().map(|gpu| gpu.memory_used).sum());
            let total = human::bytes(gpus.iter().map(|gpu| gpu.memory_total).sum());
            // Writing to a `String` cannot fail.
            let _ = write!(text, " · gpu {busy:.0}%, {used} of {total}");
        }
        Some(text)
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Per cent.
fn mean(shares: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = u32::try_from(shares.len()).map_or(1.0, f64::from).max(1.0);
    shares.sum::<f64>() / count * 100.0
}

/// Without what would move the cursor or change colours.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            // A control sequence ends with a letter or `~`; any other escape takes one more character.
            if chars.next() == Some('[') {
                let _end = chars.find(|c| c.is_ascii_alphabetic() || *c == '~');
            }
        } else if c == '\t' {
            out.push(' ');
        } else if !c.is_control() {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use tpi_proto::state::{Outcome, Phase, PhaseTiming};
    use tpi_store::telemetry::GpuSample;

    use super::{super::tests::status, *};
    use crate::cli::ui::Manner;

    fn view(slots: u32) -> View {
        let slots: Vec<SlotIndex> = (0..slots).map(SlotIndex).collect();
        View::new(&Ui::new(Manner { quiet: true, ..Manner::default() }), &slots, true)
    }

    fn sample() -> Sample {
        Sample {
            sequence: 0,
            time_unix_nanos: 0,
            cpu: 0.45,
            memory_used: 3_100_000_000,
            memory_total: 16_000_000_000,
            disk_used: 0,
            disk_total: 0,
            network_received: 0,
            network_sent: 0,
            gpus: Vec::new(),
        }
    }

    #[test]
    fn the_line_of_one_slot() {
        let mut view = view(1);
        let began = Timestamp::UNIX_EPOCH;
        let now: Timestamp = "1970-01-01T00:02:05Z".parse().expect("a time");
        assert_eq!(view.line(now), "waiting for a machine");
        assert!(view.may_miss_the_end());
        let mut running = status(0, SlotState::Active { phase: Phase::Run });
        running.phases =
            vec![PhaseTiming { phase: Phase::Run, started: began, ended: None, budget_seconds: 10 }];
        drop(view.status(running));
        drop(view.source(SlotIndex(0), Source::Live { address: "127.0.0.1:1".to_owned() }));
        assert!(!view.may_miss_the_end());
        assert_eq!(view.line(now), "running 2m 5s · live");
        view.statuses.clear();
        assert_eq!(view.line(now), "live", "connected: not waiting for a machine any more");
        let mut running = status(0, SlotState::Active { phase: Phase::Run });
        running.phases =
            vec![PhaseTiming { phase: Phase::Run, started: began, ended: None, budget_seconds: 10 }];
        drop(view.status(running));
        let mut load = sample();
        view.sample(SlotIndex(0), load.clone());
        assert_eq!(view.line(now), "running 2m 5s · cpu 45% · memory 3.1 GB of 16 GB · live");
        load.gpus.push(GpuSample {
            index: 0,
            name: "A100".to_owned(),
            utilisation: 0.97,
            memory_used: 20_000_000_000,
            memory_total: 24_000_000_000,
            power_watts: 300.0,
            temperature_celsius: 60.0,
            processes: 1,
        });
        view.sample(SlotIndex(0), load);
        assert_eq!(
            view.line(now),
            "running 2m 5s · cpu 45% · memory 3.1 GB of 16 GB · gpu 97%, 20 GB of 24 GB · live"
        );
    }

    #[test]
    fn the_line_of_several_slots() {
        let mut view = view(4);
        let outcome = Outcome::Exited { code: 0 };
        drop(view.status(status(0, SlotState::Finished { outcome, at: Timestamp::UNIX_EPOCH })));
        drop(view.status(status(1, SlotState::Active { phase: Phase::Run })));
        drop(view.status(status(2, SlotState::Active { phase: Phase::Boot })));
        assert_eq!(view.line(Timestamp::UNIX_EPOCH), "2 at work, 1 ended, 1 waiting");
        assert_eq!(view.prefixed(SlotIndex(1), "text"), "slot 1: text");
    }

    #[test]
    fn unfinished_lines_do_not_move_the_cursor() {
        assert_eq!(printable(b"\x1b[32m 50%\x1b[0m\x1b[2K |##\t|\x07"), " 50% |## |");
        assert_eq!(printable(b"\x1b"), "");
        assert_eq!(printable(b"\x1b[12"), "");
    }
}
