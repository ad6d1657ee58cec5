//! `pull`: bring results home.

use std::path::{Path, PathBuf};

use super::{
    Context,
    configured::{Configured, Named, announce, each},
    error::CliError,
    exit::Exit,
    human,
    progress::Shown,
    ui::Envelope,
};
use crate::engine::{Located, PullOptions, PullReport};

/// Names told of files that were changed here only; people edit what they have sent.
const CHANGED_SHOWN: usize = 5;

/// Bring the newest saved results home
///
/// Works while the script runs and after it has ended. A local file that was changed is never
/// replaced. Where the task has a newer one, both are kept, and the command ends with code 8.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name or identifier [default: the tasks of this folder's main.tf]
    task: Option<String>,
    /// Where to [default: the directory that was submitted]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    #[command(flatten)]
    configured: Configured,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Exit, CliError> {
    let names = args.configured.names(context, args.task.into_iter().collect())?;
    one_place(&names, args.to.as_deref())?;
    each(context, names, async |name| {
        announce(context, name);
        let Some(task) = context.locate(&name.task).await? else { return Ok(Exit::Detached) };
        bring(context, &task, args.to.clone()).await
    })
    .await
}

/// Results of several tasks in one directory would be each other's changes.
pub(super) fn one_place(names: &[Named], to: Option<&Path>) -> Result<(), CliError> {
    match (names, to) {
        ([_, _, ..], Some(to)) if names.iter().any(|name| name.declared.is_some()) => {
            let message = format!("{} tasks cannot all bring their results to {}", names.len(), to.display());
            Err(CliError::text(Exit::Usage, message).hint("choose one with --task"))
        }
        _ => Ok(()),
    }
}

/// Brings results home and tells where they are; the end of `submit` too.
pub(super) async fn bring(context: &Context, task: &Located, to: Option<PathBuf>) -> Result<Exit, CliError> {
    let Context { ui, engine, interrupt, .. } = context;
    let shown = Shown::new(ui);
    let pulled = interrupt.guard(engine.pull(task, &PullOptions { to }, &shown)).await.transpose();
    drop(shown);
    let again = context.command(&format!("pull {task}"));
    match pulled {
        Ok(Some(report)) => {
            if ui.is_json() {
                ui.json(&Envelope::report("pull", &report))?;
            }
            let exit = tell(context, &report);
            if report.slots.iter().any(|slot| !slot.report.changed_here.is_empty()) {
                ui.hint(&format!(
                    "to have a file as it was saved: delete or rename the one here, then {again}"
                ));
            }
            Ok(exit)
        }
        Ok(None) => {
            Ok(context.detached("cut off: not all results are home", &[format!("to finish: {again}")]))
        }
        Err(error) => {
            Err(CliError::from(error).hint(format!("results stay in the store; to try again: {again}")))
        }
    }
}

/// In words; the exit code says whether local files were in the way.
pub(super) fn tell(context: &Context, report: &PullReport) -> Exit {
    let ui = &context.ui;
    if report.slots.is_empty() {
        ui.status("no results have been saved");
    }
    for slot in &report.slots {
        let done = &slot.report;
        let of = if report.slots.len() > 1 { format!(" of slot {}", slot.slot) } else { String::new() };
        let to = shortest(&slot.to);
        let same = human::count(done.unchanged, "file");
        ui.status(&match (done.written, done.unchanged) {
            (0, 0) if done.changed_here.is_empty() => format!("results{of}: no files"),
            (0, 0) => format!("results{of}: nothing new"),
            (0, _) if done.changed_here.is_empty() => format!("results{of}: {same} in {to}, none changed"),
            (0, _) => format!("results{of}: nothing new; {same} in {to} as saved"),
            (written, unchanged) => {
                let files = human::count(written, "file");
                let bytes = human::bytes(done.bytes);
                let more = if unchanged > 0 { format!("; {same} unchanged") } else { String::new() };
                format!("results{of}: {files}, {bytes}, in {to}{more}")
            }
        });
        for (kept, beside) in &done.kept {
            ui.warning(&format!(
                "{} was changed here and is kept; the result is {}",
                shortest(&slot.to.join(kept)),
                shortest(&slot.to.join(beside))
            ));
        }
        let changed = done.changed_here.iter().map(|path| shortest(&slot.to.join(path)));
        for path in changed.clone().take(CHANGED_SHOWN) {
            ui.warning(&format!("{path} was changed here and is kept; the task has nothing newer"));
        }
        if let more @ 1.. = changed.len().saturating_sub(CHANGED_SHOWN) {
            let more = human::count(u64::try_from(more).unwrap_or(u64::MAX), "more file");
            ui.warning(&format!("{more} in {to}: changed here and kept; the task has nothing newer"));
        }
        for link in &done.skipped_links {
            ui.warning(&format!(
                "the link {} points outside and was not made",
                shortest(&slot.to.join(link))
            ));
        }
    }
    for warning in &report.warnings {
        ui.warning(warning);
    }
    let kept = report.slots.iter().any(|slot| !slot.report.kept.is_empty());
    if kept { Exit::LocalFiles } else { Exit::Success }
}

/// Relative to the current directory where it is below it.
fn shortest(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    match path.strip_prefix(&here) {
        Ok(below) if below.as_os_str().is_empty() => ".".to_owned(),
        Ok(below) => below.display().to_string(),
        Err(_) => path.display().to_string(),
    }
}
