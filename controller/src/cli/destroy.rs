//! `destroy`: bring results home, then remove everything of a task, and prove it.

use std::{cell::Cell, path::PathBuf};

use super::{
    Context, PROGRAM,
    configured::{Configured, announce, each},
    error::CliError,
    exit::Exit,
    human,
    progress::Shown,
    proof, pull,
    ui::Envelope,
};
use crate::engine::DestroyOptions;

/// End a task, bring its results home, and remove everything of it
///
/// A script that still runs is stopped. Nothing is deleted before results are home and verified.
/// Prints the machines there were, and ends with code 6 when it cannot be proved that nothing is
/// left; run it again then. A task that is gone already is an error with code 7.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Names or identifiers [default: the tasks of this folder's main.tf]
    #[arg(value_name = "TASK")]
    tasks: Vec<String>,
    /// Where results go [default: the directory that was submitted]
    #[arg(long, value_name = "DIR", conflicts_with = "discard")]
    to: Option<PathBuf>,
    /// Delete results that cannot be brought home and verified, too
    #[arg(long)]
    discard: bool,
    #[command(flatten)]
    configured: Configured,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Exit, CliError> {
    let names = args.configured.names(context, args.tasks)?;
    pull::one_place(&names, args.to.as_deref())?;
    if let Some(kept) =
        names.iter().filter_map(|name| name.declared.as_ref()).find(|origin| origin.prevent_destroy)
    {
        let message = format!("{kept} may not be destroyed: its lifecycle has prevent_destroy = true");
        return Err(
            CliError::text(Exit::Request, message).hint("take that line out, or choose others with --task")
        );
    }
    let options = DestroyOptions { to: args.to, discard: args.discard };
    // Of several tasks of a configuration some may never have been submitted.
    let several = names.len() > 1;
    let gone = Cell::new(0);
    let all = names.len();
    // One that fails does not spare the others: each may cost money.
    each(context, names, async |name| {
        announce(context, name);
        match destroy(context, &name.task, &options).await {
            Err(error) if several && name.declared.is_some() && error.exit() == Exit::NotFound => {
                gone.set(gone.get() + 1);
                if gone.get() == all {
                    return Err(error);
                }
                context.ui.status(&format!("task {} is not there", name.task));
                Ok(Exit::Success)
            }
            other => other,
        }
    })
    .await
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
