//! `stop`: end a script in good order.

use super::{
    Context,
    configured::{Configured, announce, each},
    error::CliError,
    exit::Exit,
    may_run,
    progress::Shown,
    ui::Envelope,
    value,
};
use crate::engine::StopOptions;

/// Ask the script to stop, save its results and give the machines back
///
/// The script gets SIGTERM, and SIGKILL after the grace period. Logs and results stay until `destroy`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name or identifier [default: the tasks of this folder's main.tf]
    task: Option<String>,
    /// Time between SIGTERM and SIGKILL [default: the task's own]
    #[arg(long, value_name = "DURATION", value_parser = value::duration)]
    grace: Option<std::time::Duration>,
    /// Return at once instead of waiting for the end
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    configured: Configured,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Exit, CliError> {
    let names = args.configured.names(context, args.task.into_iter().collect())?;
    let grace_millis = args.grace.map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
    let wait = !args.no_wait;
    each(context, names, async |name| {
        announce(context, name);
        stop(context, &name.task, StopOptions { grace_millis, wait }).await
    })
    .await
}

async fn stop(context: &Context, name: &str, options: StopOptions) -> Result<Exit, CliError> {
    let Context { ui, engine, interrupt, .. } = context;
    let Some(task) = context.locate(name).await? else { return Ok(Exit::Detached) };
    let shown = Shown::new(ui);
    let stopped = interrupt.guard(engine.stop(&task, options, &shown)).await.transpose();
    drop(shown);
    let Some(report) = stopped.map_err(|error| may_run(error.into(), &task))? else {
        let again = format!("to be sure that it was asked: {}", context.command(&format!("stop {task}")));
        return Ok(context.detached(&format!("no longer waiting for task {task}"), &[again]));
    };
    if ui.is_json() {
        ui.json(&Envelope::report("stop", &report))?;
    }
    if report.ended {
        ui.status(&format!("task {task} has ended"));
        let destroy = context.command(&format!("destroy {task}"));
        ui.hint(&format!("logs and results stay in the store until {destroy}"));
    } else {
        ui.status(&format!("task {task} was asked to stop"));
        ui.hint(&format!("to see it end: {}", context.command(&format!("attach {task}"))));
    }
    Ok(Exit::Success)
}
