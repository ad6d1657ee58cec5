//! `destroy`: bring results home, then remove everything of a task, and prove it.

use std::path::PathBuf;

use super::{
    Context, PROGRAM, error::CliError, exit::Exit, human, progress::Shown, proof, pull, ui::Envelope,
};
use crate::engine::DestroyOptions;

/// End a task, bring its results home, and remove everything of it
///
/// A script that still runs is stopped. Nothing is deleted before results are home and verified.
/// Prints the machines there were, and ends with code 6 when it cannot be proved that nothing is
/// left; run it again then. A task that is gone already is an error with code 7.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Names or identifiers
    #[arg(required = true, value_name = "TASK")]
    tasks: Vec<String>,
    /// Where results go [default: the directory that was submitted]
    #[arg(long, value_name = "DIR", conflicts_with = "discard")]
    to: Option<PathBuf>,
    /// Delete results that cannot be brought home and verified, too
    #[arg(long)]
    discard: bool,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Exit, CliError> {
    let options = DestroyOptions { to: args.to, discard: args.discard };
    let mut exit = Exit::Success;
    let mut failed: Option<CliError> = None;
    for task in &args.tasks {
        // One that fails does not spare the others: each may cost money.
        if let Some(error) = failed.take() {
            context.ui.error(&error.with_program(PROGRAM, &context.me));
        }
        match destroy(context, task, &options).await {
            Ok(Exit::Success) => {}
            Ok(Exit::Detached) => return Ok(Exit::Detached),
            Ok(code) => exit = code,
            Err(CliError::BrokenPipe) => return Err(CliError::BrokenPipe),
            Err(error) => {
                exit = error.exit();
                failed = Some(error);
            }
        }
    }
    failed.map_or(Ok(exit), Err)
}

async fn destroy(context: &Context, name: &str, options: &DestroyOptions) -> Result<Exit, CliError> {
    let Context { ui, engine, interrupt, .. } = context;
    let Some(task) = context.locate(name).await? else { return Ok(Exit::Detached) };
    let shown = Shown::new(ui);
    let destroyed = interrupt.guard(engine.destroy(&task, options, &shown)).await.transpose();
    drop(shown);
    let again = context.command(&format!("destroy {task}"));
    let report = match destroyed {
        Ok(Some(report)) => report,
        Ok(None) => {
            return Ok(context.detached(
                &format!("cut off: task {task} is not gone, and machines may be running"),
                &[format!("to finish: {again}")],
            ));
        }
        Err(error) => {
            let error = CliError::from(error);
            if error.exit() == Exit::NotFound || error.hints_at(" destroy ") {
                return Err(error);
            }
            return Err(error
                .hint(format!("machines may be left until this has succeeded: `{PROGRAM} destroy {task}`")));
        }
    };
    let mut exit = Exit::Success;
    if ui.is_json() {
        ui.json(&Envelope::report("destroy", &report))?;
    } else {
        ui.data(proof::text(&report.proof, true).as_bytes())?;
    }
    if let Some(results) = &report.results
        && (!results.slots.is_empty() || !results.warnings.is_empty())
    {
        exit = pull::tell(context, results);
    }
    // What came with the results has been told with them.
    let told = report.results.as_ref().map_or(&[][..], |results| &results.warnings[..]);
    for warning in report.warnings.iter().filter(|warning| !told.contains(warning)) {
        ui.warning(warning);
    }
    if !report.proof.nothing_left {
        return Err(CliError::text(Exit::Leftovers, format!("something of task {task} is left"))
            .hint(format!("run it again: `{PROGRAM} destroy {task}`")));
    }
    let objects = human::count(report.objects_deleted, "object");
    ui.status(&format!("task {task} is gone; {objects} deleted from the store"));
    Ok(exit)
}
