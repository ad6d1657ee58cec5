//! `logs`: what the script has printed.

use super::{
    Context,
    error::CliError,
    exit::Exit,
    follow::{self, Choice},
};

/// Print what the script has printed
///
/// Works after the machines are gone, until the task is destroyed. Of several slots each line begins
/// with its slot; choose one with --slot for its bytes as they are.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Go on with what is printed from now on, until the task ends
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    choice: Choice,
}

pub(super) async fn run(context: &Context, mut args: Args) -> Result<Exit, CliError> {
    let name = args.choice.name(context)?;
    let Some(task) = context.locate(&name).await? else { return Ok(Exit::Detached) };
    if args.follow {
        follow::tell_intent(context, &task);
    }
    let wanted = args.choice.of(&task, args.follow, false)?;
    follow::logs(context, &task, wanted).await
}
