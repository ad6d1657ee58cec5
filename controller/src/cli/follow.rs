//! What `submit`, `attach` and `logs` have in common: a task's events become bytes, lines or JSON, and an end.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use futures::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use serde::Serialize;
use tpi_proto::{
    id::{Attempt, SlotIndex, TaskId},
    state::{Outcome, SlotState, SlotStatus},
};
use tpi_store::{record::Intent, telemetry::Sample};

use super::{
    Context, PROGRAM,
    configured::Configured,
    error::CliError,
    exit::Exit,
    human, slots_of,
    ui::Envelope,
    value::{self, Since},
    words,
};
use crate::{
    cloud::ShortageReason,
    engine::{ErrorKind, Located, StatusReport},
    link::{self, Event, FollowOptions, Start},
    task::{TaskOutcome, TaskState},
};
use sink::Sink;
use view::View;

mod sink;
mod view;

/// How often the status line is drawn again.
const REDRAW: Duration = Duration::from_millis(250);

/// Silence after which the task as a whole is asked after, where no agent would tell its end.
const ASK_AFTER: Duration = Duration::from_secs(10);

/// What `attach` and `logs` let one choose.
#[derive(Debug, clap::Args)]
pub(super) struct Choice {
    /// Name or identifier [default: the task of this folder's main.tf]
    pub(super) task: Option<String>,
    /// Only this slot, counted from 0 (can be repeated)
    #[arg(long, value_name = "N")]
    slot: Vec<u32>,
    /// Begin with what was printed then: a duration ago (10m) or a time (RFC 3339)
    #[arg(long, value_name = "WHEN", value_parser = value::since)]
    since: Option<Since>,
    #[command(flatten)]
    configured: Configured,
}

impl Choice {
    /// The task that was named, or the only one of the configuration.
    pub(super) fn name(&mut self, context: &Context) -> Result<String, CliError> {
        self.configured.one(context, self.task.take())
    }

    /// For the task that it names.
    pub(super) fn of(self, task: &Located, follow: bool, pass_code: bool) -> Result<Wanted, CliError> {
        let start = self.since.map_or(Start::Beginning, |since| Start::Since(since.moment(Timestamp::now())));
        Ok(Wanted { slots: slots_of(task, &self.slot)?, start, follow, pass_code })
    }
}

/// What to show.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Which slots.
    pub(super) slots: Vec<SlotIndex>,
    /// From where on.
    pub(super) start: Start,
    /// Whether to wait for more.
    pub(super) follow: bool,
    /// Whether the script's exit code becomes ours.
    pub(super) pass_code: bool,
}

/// Why showing ended.
enum End {
    /// All there was to show was shown.
    Shown(BTreeMap<SlotIndex, SlotStatus>),
    /// By Ctrl-C.
    Detached,
    /// The task has ended, though not every slot tells how.
    Ended(TaskOutcome),
    /// Somebody destroyed the task meanwhile.
    Gone,
}

/// Follows a task and ends as it does.
pub(super) async fn to_the_end(context: &Context, task: &Located, wanted: Wanted) -> Result<Exit, CliError> {
    let shown = show(context, task, &wanted).await.map_err(|error| goes_on(error, &task.id))?;
    let (statuses, result) = match shown {
        End::Detached => return detached(context, &task.id),
        End::Gone => return Err(gone(task)),
        End::Ended(result) => (BTreeMap::new(), result),
        End::Shown(statuses) => match verdict(&wanted.slots, &statuses) {
            Some(result) => (statuses, result),
            None => match context.interrupt.guard(context.engine.status(task)).await.transpose()? {
                None => return detached(context, &task.id),
                Some(report) => match report.state {
                    TaskState::Finished { outcome } => (statuses, outcome),
                    TaskState::Declared
                    | TaskState::Provisioning
                    | TaskState::Running
                    | TaskState::Stopping { .. }
                    | TaskState::Destroyed
                    | TaskState::Orphaned => {
                        let state = words::task_state(&report.state);
                        return Err(CliError::text(
                            Exit::Task,
                            format!("task {task} has no outcome: it is {state}"),
                        )
                        .hint(format!("look: `{PROGRAM} status {task}`")));
                    }
                },
            },
        },
    };
    let exit = exit_of(&result, wanted.pass_code);
    if context.ui.is_json() {
        #[derive(Serialize)]
        struct Finished<'a> {
            id: &'a TaskId,
            outcome: &'a TaskOutcome,
            exit_code: u8,
        }
        let finished = Finished { id: &task.id, outcome: &result, exit_code: exit.code() };
        context.ui.json(&Envelope::new("finished", finished))?;
    }
    let text = format!("task {task} {}", words::task_outcome(&result));
    if result == TaskOutcome::Succeeded {
        context.ui.status(&text);
    } else {
        context.ui.warning(&text);
    }
    if let Some(advice) = words::advice(&result) {
        context.ui.hint(advice);
    }
    if let Some(timings) = statuses.values().next().filter(|_| wanted.slots.len() == 1).and_then(timings) {
        context.ui.status(&timings);
    }
    Ok(exit)
}

/// Shows logs, whatever the task's end was.
pub(super) async fn logs(context: &Context, task: &Located, wanted: Wanted) -> Result<Exit, CliError> {
    match show(context, task, &wanted).await.map_err(|error| goes_on(error, &task.id))? {
        End::Shown(_) | End::Ended(_) => Ok(Exit::Success),
        End::Detached => Ok(Exit::Detached),
        End::Gone => Err(gone(task)),
    }
}

fn gone(task: &Located) -> CliError {
    CliError::text(Exit::NotFound, format!("task {task} was destroyed meanwhile"))
        .hint(format!("its logs are gone with it; the tasks there are: `{PROGRAM} list`"))
}

/// What Ctrl-C leads to.
pub(super) fn detached(context: &Context, id: &TaskId) -> Result<Exit, CliError> {
    if context.ui.is_json() {
        #[derive(Serialize)]
        struct Detached<'a> {
            id: &'a TaskId,
        }
        context.ui.json(&Envelope::new("detached", Detached { id }))?;
    }
    Ok(context.detached(
        &format!("detached: task {id} goes on"),
        &[
            format!("to come back: {}", context.command(&format!("attach {id}"))),
            format!("to end it: {}", context.command(&format!("destroy {id}"))),
        ],
    ))
}

/// Says what keeps a task from getting on, where its record tells.
pub(super) fn tell_intent(context: &Context, task: &Located) {
    match task.record.as_ref().map(|record| record.intent) {
        Some(Intent::Submit) => {
            context.ui.warning(&format!("task {task} is not submitted completely, and waits for that"));
            context.ui.hint("run its `submit` again to finish it");
        }
        Some(Intent::Destroy) => {
            context.ui.warning(&format!("task {task} is being destroyed"));
            let again = context.command(&format!("destroy {task}"));
            context.ui.hint(&format!("if that was cut off: {again}"));
        }
        Some(Intent::Run) | None => {}
    }
}

/// Following failed; the task did not.
fn goes_on(error: CliError, id: &TaskId) -> CliError {
    error
        .hint(format!("the task may go on; to come back: `{PROGRAM} attach {id}`"))
        .hint(format!("to end it: `{PROGRAM} destroy {id}`"))
}

/// One event as a line of JSON.
#[derive(Serialize)]
struct SlotLine<'a> {
    slot: SlotIndex,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<Attempt>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'a SlotStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sample: Option<&'a Sample>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<SourceLine<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from_offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    length: Option<u64>,
}

/// Where events come from, in JSON.
#[derive(Serialize)]
#[serde(rename_all = "snake_case", tag = "from")]
enum SourceLine<'a> {
    Waiting,
    Live {
        address: &'a str,
    },
    Store {
        reason: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        cause: Option<&'a str>,
    },
}

impl<'a> From<&'a link::Source> for SourceLine<'a> {
    fn from(source: &'a link::Source) -> Self {
        use link::{Source, WhyStore};
        let store = |reason, cause| Self::Store { reason, cause };
        match source {
            Source::Waiting => Self::Waiting,
            Source::Live { address } => Self::Live { address },
            Source::Store { why } => match why {
                WhyStore::NotWanted => store("not_wanted", None),
                WhyStore::Ended => store("ended", None),
                WhyStore::Unreachable(cause) => store("unreachable", Some(cause)),
                WhyStore::Broken(cause) => store("broken", Some(cause)),
            },
        }
    }
}

/// The loop.
async fn show(context: &Context, task: &Located, wanted: &Wanted) -> Result<End, CliError> {
    let Context { ui, interrupt, engine, .. } = context;
    let options = FollowOptions {
        slots: wanted.slots.clone(),
        start: wanted.start.clone(),
        follow: wanted.follow,
        telemetry: wanted.follow && (ui.is_live() || ui.is_json()),
        // Without following too: the agent has what is not in the store yet.
        identity: context.identity(),
    };
    let mut shower = Shower {
        told: BTreeSet::new(),
        sink: Sink::new(ui, wanted.slots.len() > 1)?,
        view: View::new(ui, &wanted.slots, wanted.follow),
        follow: wanted.follow,
        context,
    };
    let mut events = link::follow(&task.store, &task.id, options);
    let mut redraw = tokio::time::interval(REDRAW);
    redraw.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    let mut ended: Option<TaskOutcome> = None;
    loop {
        if interrupt.is_set() {
            shower.sink.finish()?;
            return Ok(End::Detached);
        }
        // What has come already is taken without drawing or writing in between.
        let event = match events.next().now_or_never() {
            Some(event) => event,
            None => {
                shower.sink.flush()?;
                tokio::select! {
                    biased;
                    () = interrupt.wait() => continue,
                    event = events.next() => event,
                    _ = redraw.tick() => {
                        shower.view.draw(shower.sink.partial(), Timestamp::now());
                        if wanted.follow && heard.elapsed() >= ASK_AFTER && shower.view.may_miss_the_end() {
                            heard = Instant::now();
                            match interrupt.guard(engine.status(task)).await {
                                None => continue,
                                Some(Ok(report)) if shower.tell_shortages(&report)? => ended = None,
                                // Twice, so that what the store still has of the log is shown before.
                                Some(Ok(report)) => match report.state {
                                    // Nothing has run, so there is nothing to be shown.
                                    TaskState::Finished { outcome: outcome @ TaskOutcome::Unprovisioned { .. } } => {
                                        shower.sink.finish()?;
                                        return Ok(End::Ended(outcome));
                                    }
                                    TaskState::Finished { outcome } => match ended.replace(outcome) {
                                        None => {}
                                        Some(outcome) => {
                                            shower.sink.finish()?;
                                            return Ok(End::Ended(outcome));
                                        }
                                    },
                                    TaskState::Destroyed => {
                                        shower.sink.finish()?;
                                        return Ok(End::Gone);
                                    }
                                    TaskState::Declared
                                    | TaskState::Provisioning
                                    | TaskState::Running
                                    | TaskState::Stopping { .. }
                                    | TaskState::Orphaned => ended = None,
                                },
                                Some(Err(error)) if error.kind == ErrorKind::NotFound => {
                                    shower.sink.finish()?;
                                    return Ok(End::Gone);
                                }
                                // It is only asked in case; following itself reports what keeps it from going on.
                                Some(Err(error)) => tracing::info!(%error, "asking after the task"),
                            }
                        }
                        continue;
                    }
                }
            }
        };
        match event {
            Some(Ok(Event::End)) | None => {
                shower.sink.finish()?;
                return Ok(End::Shown(shower.view.into_statuses()));
            }
            Some(Ok(event)) => {
                if !matches!(event, Event::Sample { .. }) {
                    heard = Instant::now();
                    ended = None;
                }
                shower.event(event)?;
            }
            Some(Err(error)) => {
                shower.sink.finish()?;
                return Err(error.into());
            }
        }
    }
}

/// Events on their way out.
struct Shower<'a> {
    context: &'a Context,
    sink: Sink,
    view: View,
    /// Whether more is waited for.
    follow: bool,
    /// What has been told to be missing: reason, type and zone.
    told: BTreeSet<(ShortageReason, Option<String>, Option<String>)>,
}

impl Shower<'_> {
    /// Says once what keeps machines from coming; whether anything does while the task waits for them.
    fn tell_shortages(&mut self, report: &StatusReport) -> Result<bool, CliError> {
        if report.state != TaskState::Provisioning {
            return Ok(false);
        }
        for shortage in &report.shortages {
            let pool = (shortage.reason, shortage.machine.clone(), shortage.zone.clone());
            if self.told.insert(pool) {
                self.sink.flush()?;
                self.sink.json("shortage", shortage)?;
                self.context.ui.warning(&format!("{shortage} (it is tried again)"));
            }
        }
        Ok(!report.shortages.is_empty())
    }

    fn event(&mut self, event: Event) -> Result<(), CliError> {
        let empty = |slot| SlotLine {
            slot,
            attempt: None,
            status: None,
            sample: None,
            source: None,
            from_offset: None,
            length: None,
        };
        match event {
            Event::Log { slot, attempt, records } => self.sink.records(slot, attempt, &records)?,
            Event::Status(status) => {
                let line =
                    SlotLine { attempt: Some(status.attempt), status: Some(&status), ..empty(status.slot) };
                self.sink.json("slot", &line)?;
                self.status(*status)?;
            }
            Event::Sample { slot, attempt, sample } => {
                let line = SlotLine { attempt: Some(attempt), sample: Some(&sample), ..empty(slot) };
                self.sink.json("sample", &line)?;
                self.view.sample(slot, sample);
            }
            Event::Source { slot, source } => {
                self.sink.json("source", &SlotLine { source: Some((&source).into()), ..empty(slot) })?;
                let before = self.view.source(slot, source.clone());
                if before.as_ref() != Some(&source)
                    && let Some(text) = words::source(&source, self.follow)
                {
                    self.say(slot, &text)?;
                }
            }
            Event::Lost { slot, attempt, from } => {
                let line = SlotLine { attempt: Some(attempt), from_offset: Some(from), ..empty(slot) };
                self.sink.json("lost", &line)?;
                self.sink.finish_slot(slot)?;
                let at = human::grouped(from);
                self.context.ui.warning(&self.view.prefixed(
                    slot,
                    &format!("the machine of attempt {attempt} was lost, and with it what it printed after byte {at}"),
                ));
            }
            Event::Complete { slot, attempt, length } => {
                let line = SlotLine { attempt: Some(attempt), length: Some(length), ..empty(slot) };
                self.sink.json("complete", &line)?;
                self.sink.finish_slot(slot)?;
            }
            // The loop's own.
            Event::End => {}
        }
        Ok(())
    }

    fn status(&mut self, status: SlotStatus) -> Result<(), CliError> {
        let slot = status.slot;
        let (attempt, state) = (status.attempt, status.state.clone());
        let (machine, warnings) = (status.machine.clone(), status.warnings.clone());
        let before = self.view.status(status);
        let same_attempt = before.as_ref().is_some_and(|before| before.attempt == attempt);
        if !same_attempt && attempt.0 > 1 {
            self.say(slot, &format!("machine {machine} continues with attempt {attempt}"))?;
        }
        let known = before.as_ref().filter(|_| same_attempt).map_or(&[][..], |before| &before.warnings[..]);
        for warning in warnings.iter().filter(|warning| !known.contains(warning)) {
            self.sink.flush()?;
            self.context.ui.warning(&self.view.prefixed(slot, warning));
        }
        let changed = before.is_none_or(|before| before.state != state || !same_attempt);
        // On a terminal the status line says it, and the end is told as a whole.
        if changed && !self.context.ui.is_live() && !state.is_final() {
            self.say(slot, &words::slot_state(&state))?;
        }
        Ok(())
    }

    /// Chatter about a slot, after what was printed before it.
    fn say(&mut self, slot: SlotIndex, text: &str) -> Result<(), CliError> {
        self.sink.flush()?;
        self.context.ui.status(&self.view.prefixed(slot, text));
        Ok(())
    }
}

/// How the task ended, as far as its slots tell.
fn verdict(slots: &[SlotIndex], statuses: &BTreeMap<SlotIndex, SlotStatus>) -> Option<TaskOutcome> {
    let mut worst: Option<(SlotIndex, Outcome)> = None;
    let mut failed = 0;
    for slot in slots {
        match &statuses.get(slot)?.state {
            SlotState::Finished { outcome, .. } if outcome.is_success() => {}
            SlotState::Finished { outcome, .. } => {
                failed += 1;
                worst = worst.or_else(|| Some((*slot, outcome.clone())));
            }
            SlotState::Active { .. } | SlotState::Stopping { .. } | SlotState::Interrupted => return None,
        }
    }
    Some(match worst {
        None => TaskOutcome::Succeeded,
        Some((slot, outcome)) => TaskOutcome::Failed { slot, outcome, failed },
    })
}

/// The exit code that stands for a task's end.
fn exit_of(result: &TaskOutcome, pass_code: bool) -> Exit {
    match result {
        TaskOutcome::Succeeded => Exit::Success,
        TaskOutcome::Failed { outcome: Outcome::Exited { code }, .. } if pass_code => {
            Exit::from_process(*code)
        }
        TaskOutcome::Failed { outcome: Outcome::Signalled { signal }, .. } if pass_code => {
            Exit::from_signal(*signal)
        }
        TaskOutcome::Failed { .. } | TaskOutcome::TimedOut { .. } | TaskOutcome::Stopped { .. } => Exit::Task,
        TaskOutcome::Unprovisioned { .. } => Exit::Cloud,
    }
}

/// `boot 0.4s, restore 0.1s, run 1m 5s, save 0.2s`.
fn timings(status: &SlotStatus) -> Option<String> {
    let phases: Vec<String> = status
        .phases
        .iter()
        .filter_map(|timing| {
            Some(format!("{} {}", timing.phase.as_str(), human::between(timing.started, timing.ended?)))
        })
        .collect();
    (!phases.is_empty()).then(|| phases.join(", "))
}

#[cfg(test)]
mod tests {
    use tpi_proto::{
        id::{MachineId, RunId},
        state::Phase,
    };

    use super::*;

    pub(super) fn status(slot: u32, state: SlotState) -> SlotStatus {
        let run = RunId { slot: SlotIndex(slot), attempt: Attempt(1) };
        SlotStatus { state, ..SlotStatus::claimed(run, MachineId("m-1".to_owned()), 1000) }
    }

    fn finished(outcome: Outcome) -> SlotState {
        SlotState::Finished { outcome, at: Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn the_lowest_slot_that_failed_decides() {
        let slots: Vec<SlotIndex> = (0..3).map(SlotIndex).collect();
        let mut statuses = BTreeMap::new();
        let mut set = |slot, state| drop(statuses.insert(SlotIndex(slot), status(slot, state)));
        set(0, finished(Outcome::Exited { code: 0 }));
        set(1, finished(Outcome::Exited { code: 3 }));
        set(2, SlotState::Active { phase: Phase::Run });
        assert_eq!(verdict(&slots, &statuses), None);
        drop(statuses.insert(SlotIndex(2), status(2, finished(Outcome::Signalled { signal: 9 }))));
        let result = verdict(&slots, &statuses).expect("all have ended");
        assert_eq!(exit_of(&result, false), Exit::Task);
        assert_eq!(exit_of(&result, true), Exit::Passed(3));
        assert_eq!(
            words::task_outcome(&result),
            "did not succeed: slot 1 exited with status 3 (2 slots failed)"
        );
        let only = verdict(&slots[2..], &statuses).expect("it has ended");
        assert_eq!(exit_of(&only, true), Exit::Passed(137));
        assert_eq!(verdict(&slots[..1], &statuses), Some(TaskOutcome::Succeeded));
    }

    #[test]
    fn only_the_scripts_own_ends_are_passed_on() {
        for outcome in [Outcome::Stopped, Outcome::TimedOut { phase: Phase::Run }] {
            let result = TaskOutcome::Failed { slot: SlotIndex(0), outcome, failed: 1 };
            assert_eq!(exit_of(&result, true), Exit::Task);
        }
    }

    #[test]
    fn sources_in_json_are_typed() {
        let why = link::WhyStore::Unreachable("connection refused".to_owned());
        let lines = [
            link::Source::Waiting,
            link::Source::Live { address: "127.0.0.1:4000".to_owned() },
            link::Source::Store { why },
            link::Source::Store { why: link::WhyStore::Ended },
        ]
        .iter()
        .map(|source| serde_json::to_string(&SourceLine::from(source)).expect("is JSON"))
        .collect::<Vec<_>>();
        insta::assert_snapshot!(lines.join("\n"), @r#"
        {"from":"waiting"}
        {"from":"live","address":"127.0.0.1:4000"}
        {"from":"store","reason":"unreachable","cause":"connection refused"}
        {"from":"store","reason":"ended"}
        "#);
    }
}
