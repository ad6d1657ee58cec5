//! `attach`: follow a task to its end.

use super::{
    Context,
    error::CliError,
    exit::Exit,
    follow::{self, Choice},
};

/// Follow a task to its end
///
/// Shows everything that the script has printed so far, then what it prints, then how it ended.
/// Ctrl-C detaches and never ends the task. Any number of computers may be attached.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// End with the script's own exit code
    #[arg(long)]
    exit_with_task_code: bool,
    #[command(flatten)]
    choice: Choice,
}

pub(super) async fn run(context: &Context, mut args: Args) -> Result<Exit, CliError> {
    let name = args.choice.name(context)?;
    let Some(task) = context.locate(&name).await? else { return Ok(Exit::Detached) };
    follow::tell_intent(context, &task);
    let wanted = args.choice.of(&task, true, args.exit_with_task_code)?;
    follow::to_the_end(context, &task, wanted).await
}
