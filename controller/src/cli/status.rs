//! `status`: what is known of a task.

use std::fmt::Write as _;

use jiff::Timestamp;
use tpi_proto::state::SlotStatus;

use super::{
    Context, PROGRAM,
    configured::{Configured, announce, each},
    error::CliError,
    exit::Exit,
    human, may_run, proof,
    table::table,
    ui::{Envelope, Ui},
    words,
};
use crate::{
    engine::StatusReport,
    task::{TaskOutcome, TaskState},
};

/// Show what is known of a task, and what the cloud has of it
///
/// Ends with code 6 when machines may be left that nobody wants any more, and when the cloud cannot be asked.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name or identifier [default: the tasks of this folder's main.tf]
    task: Option<String>,
    #[command(flatten)]
    configured: Configured,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Exit, CliError> {
    let names = args.configured.names(context, args.task.into_iter().collect())?;
    each(context, names, async |name| {
        announce(context, name);
        status(context, &name.task).await
    })
    .await
}

async fn status(context: &Context, name: &str) -> Result<Exit, CliError> {
    let Context { ui, engine, interrupt, .. } = context;
    let Some(task) = context.locate(name).await? else { return Ok(Exit::Detached) };
    let report = interrupt.guard(engine.status(&task)).await.transpose();
    let Some(report) = report.map_err(|error| may_run(error.into(), &task))? else {
        return Ok(Exit::Detached);
    };
    if ui.is_json() {
        ui.json(&Envelope::report("status", &report))?;
    } else {
        ui.data(text(ui, &report, Timestamp::now()).as_bytes())?;
    }
    for warning in &report.warnings {
        ui.warning(&context.as_called(warning));
    }
    if report.proof.unproved.is_some() {
        let id = &report.id;
        return Err(CliError::text(
            Exit::Leftovers,
            format!("the cloud of task {id} could not be asked: what runs there is not known"),
        )
        .hint(format!("to look again: `{PROGRAM} status {id}`"))
        .hint(format!("this removes what there is: `{PROGRAM} destroy {id}`")));
    }
    if unwanted(&report) {
        return Err(CliError::text(Exit::Leftovers, format!("machines of task {} may be left", report.id))
            .hint(format!("this removes them: `{PROGRAM} destroy {}`", report.id)));
    }
    match &report.state {
        TaskState::Finished { outcome } => {
            if let Some(advice) = words::advice(outcome) {
                ui.hint(advice);
            }
            ui.hint(&format!(
                "logs and results stay in the store until {}",
                context.command(&format!("destroy {}", report.id))
            ));
        }
        TaskState::Declared
        | TaskState::Provisioning
        | TaskState::Running
        | TaskState::Stopping { .. }
        | TaskState::Destroyed
        | TaskState::Orphaned => {}
    }
    Ok(Exit::Success)
}

/// Whether there are machines that nothing waits for. Those of a task that has just finished give themselves
/// back; when time is up none may be there.
fn unwanted(report: &StatusReport) -> bool {
    match report.state {
        TaskState::Orphaned | TaskState::Destroyed => !report.proof.nothing_left,
        TaskState::Finished { .. }
        | TaskState::Declared
        | TaskState::Provisioning
        | TaskState::Running
        | TaskState::Stopping { .. } => report.overdue,
    }
}

fn text(ui: &Ui, report: &StatusReport, now: Timestamp) -> String {
    use anstyle::AnsiColor;
    let color = match &report.state {
        TaskState::Finished { outcome: TaskOutcome::Succeeded } | TaskState::Running => AnsiColor::Green,
        TaskState::Finished { .. } | TaskState::Orphaned => AnsiColor::Red,
        TaskState::Declared | TaskState::Provisioning | TaskState::Stopping { .. } | TaskState::Destroyed => {
            AnsiColor::Yellow
        }
    };
    let state = ui.paint_data(color.on_default().bold(), words::task_state(&report.state));
    let mut lines = vec![("task", report.id.to_string()), ("state", state)];
    if let TaskState::Finished { outcome } = &report.state
        && *outcome != TaskOutcome::Succeeded
    {
        lines.push(("outcome", words::task_outcome(outcome)));
    }
    lines.push(("cloud", report.cloud.to_string()));
    lines.push(("store", report.store.to_string()));
    if let Some(created) = report.created {
        lines.push(("created", format!("{} ({} ago)", human::time(created), human::between(created, now))));
    }
    if let Some(deadline) = report.deadline {
        let left = deadline.duration_since(now);
        let left =
            if left.is_positive() { format!(" (in {})", human::duration(left)) } else { String::new() };
        lines.push(("ends by", format!("{}{left}", human::time(deadline))));
    }
    // Writing to a `String` cannot fail.
    let mut text = String::new();
    for (name, value) in lines {
        let _ = writeln!(text, "{name:8} {value}");
    }
    if !report.slots.is_empty() {
        let rows: Vec<[String; 6]> = report.slots.iter().map(|slot| row(slot, now)).collect();
        text.push('\n');
        text.push_str(&table(["SLOT", "ATTEMPT", "MACHINE", "STATE", "LOG", "PHASES"], &rows));
        for slot in &report.slots {
            for warning in &slot.warnings {
                let _ = writeln!(text, "slot {}: {warning}", slot.slot);
            }
        }
    }
    text.push('\n');
    text.push_str(&proof::text(&report.proof, false));
    text
}

fn row(slot: &SlotStatus, now: Timestamp) -> [String; 6] {
    let phases: Vec<String> = slot
        .phases
        .iter()
        // Of a slot that has ended nothing goes on: the last phase is that which nobody was left to end.
        .filter(|timing| timing.ended.is_some() || !slot.state.is_final())
        .map(|timing| {
            let took = human::between(timing.started, timing.ended.unwrap_or(now));
            let more = if timing.ended.is_none() { "…" } else { "" };
            format!("{} {took}{more}", timing.phase.as_str())
        })
        .collect();
    [
        slot.slot.to_string(),
        slot.attempt.to_string(),
        slot.machine.to_string(),
        words::slot_state(&slot.state),
        human::bytes(slot.log_complete.unwrap_or(slot.log_stored)),
        phases.join(", "),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"{
        "version": 1, "id": "tpi-test-3z4xlzwq-3u0vweb4", "cloud": "local", "store": "file:///store/",
        "state": "finished", "outcome": {"result": "failed", "slot": 0, "outcome": {"kind": "exited", "code": 3}, "failed": 1},
        "created": "2026-11-23T20:00:00Z", "deadline": "2026-11-24T20:00:00Z",
        "slots": [{"version": 1, "slot": 0, "attempt": 2, "machine": "m-2", "generation": 7, "state": "finished",
            "outcome": {"kind": "exited", "code": 3}, "at": "2026-11-23T20:01:05Z", "lease": {"renewals": 3, "ttl_millis": 1000},
            "phases": [{"phase": "run", "started": "2026-11-23T20:00:01Z", "ended": "2026-11-23T20:01:05Z", "budget_seconds": 9}],
            "log_stored": 2200, "log_complete": 2200, "warnings": ["the disk is full"]}],
        "group": {"state": "ended"}, "overdue": false,
        "proof": {"nothing_left": true, "checked": "2026-11-23T20:02:00Z", "machines": [], "seconds": 0.0, "usd": null}
    }"#;

    #[test]
    fn a_report_as_text_and_as_json() {
        let report: StatusReport = serde_json::from_str(REPORT).expect("is a report");
        let ui = Ui::new(super::super::Manner {
            quiet: true,
            color: super::super::Color::Never,
            ..Default::default()
        });
        let now = "2026-11-23T20:05:00Z".parse().expect("a time");
        insta::assert_snapshot!(text(&ui, &report, now), @r"
        task     tpi-test-3z4xlzwq-3u0vweb4
        state    failed
        outcome  did not succeed: slot 0 exited with status 3
        cloud    local
        store    file:///store/
        created  2026-11-23 20:00:00Z (5m 0s ago)
        ends by  2026-11-24 20:00:00Z (in 23h 55m)

        SLOT  ATTEMPT  MACHINE  STATE                 LOG     PHASES
        0     2        m-2      exited with status 3  2.2 kB  run 1m 4s
        slot 0: the disk is full

        no machine is there (the cloud was asked at 2026-11-23 20:02:00Z)
        ");
        insta::assert_json_snapshot!(Envelope::report("status", &report));
        assert!(!unwanted(&report));
    }

    #[test]
    fn machines_that_outlive_their_task_are_told() {
        let mut report: StatusReport = serde_json::from_str(REPORT).expect("is a report");
        report.proof.nothing_left = false;
        assert!(!unwanted(&report));
        report.overdue = true;
        assert!(unwanted(&report));
        report.state = TaskState::Orphaned;
        report.overdue = false;
        assert!(unwanted(&report));
    }
}
