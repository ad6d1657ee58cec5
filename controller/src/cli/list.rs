//! `list`: every task that can be found.

use jiff::Timestamp;

use super::{Context, error::CliError, exit::Exit, human, table::table, ui::Envelope, words};
use crate::engine::ListEntry;

/// List the tasks known here, in the stores and in the clouds
///
/// Ends with code 4 when something could not be asked, so that tasks may be missing.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only identifiers, one a line
    #[arg(long)]
    ids: bool,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Exit, CliError> {
    let Context { ui, engine, interrupt, .. } = context;
    let Some(report) = interrupt.guard(engine.list()).await.transpose()? else {
        return Ok(Exit::Detached);
    };
    if ui.is_json() {
        ui.json(&Envelope::report("list", &report))?;
    } else if args.ids {
        let ids: String = report.tasks.iter().map(|task| format!("{}\n", task.id)).collect();
        ui.data(ids.as_bytes())?;
    } else if report.tasks.is_empty() {
        ui.status("no tasks");
    } else {
        ui.data(text(&report.tasks, Timestamp::now()).as_bytes())?;
    }
    for warning in &report.warnings {
        ui.warning(warning);
    }
    for hint in &report.hints {
        ui.hint(&context.as_called(hint));
    }
    Ok(if report.warnings.is_empty() { Exit::Success } else { Exit::Unreachable })
}

fn text(tasks: &[ListEntry], now: Timestamp) -> String {
    let rows: Vec<[String; 5]> = tasks
        .iter()
        .map(|task| {
            [
                task.id.to_string(),
                words::task_state(&task.state).to_owned(),
                task.cloud.to_string(),
                task.machines.to_string(),
                task.created.map_or_else(|| "-".to_owned(), |created| human::between(created, now)),
            ]
        })
        .collect();
    table(["TASK", "STATE", "CLOUD", "MACHINES", "AGE"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_a_table() {
        let tasks: Vec<ListEntry> = serde_json::from_str(
            r#"[{"id": "tpi-test-3z4xlzwq-3u0vweb4", "name": "test", "cloud": "local", "store": "file:///store/",
                 "state": "running", "created": "2026-11-23T20:00:00Z", "machines": 2},
                {"id": "tpi-hello-world-4dl8w653-5lubxln8", "name": "hello-world", "cloud": "local",
                 "store": "file:///store/", "state": "orphaned", "machines": 1}]"#,
        )
        .expect("is a list");
        insta::assert_snapshot!(text(&tasks, "2026-11-23T22:05:00Z".parse().expect("a time")), @r"
        TASK                               STATE     CLOUD  MACHINES  AGE
        tpi-test-3z4xlzwq-3u0vweb4         running   local  2         2h 5m
        tpi-hello-world-4dl8w653-5lubxln8  orphaned  local  1         -
        ");
    }
}
