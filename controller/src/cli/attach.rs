//! `attach`: follow a task to its end.

use jiff::Timestamp;

use super::{
    Context,
    error::CliError,
    exit::Exit,
    follow::{self, Wanted},
    slots_of,
    value::{self, Since},
};
use crate::link::Start;

/// Follow a task to its end
///
/// Shows everything that the script has printed so far, then what it prints, then how it ended.
/// Ctrl-C detaches and never ends the task. Any number of computers may be attached.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name or identifier
    task: String,
    /// Only this slot, counted from 0 (can be repeated)
    #[arg(long, value_name = "N")]
    slot: Vec<u32>,
    /// Begin with what was printed then: a duration ago (10m) or a time (RFC 3339)
    #[arg(long, value_name = "WHEN", value_parser = value::since)]
    since: Option<Since>,
    /// End with the script's own exit code
    #[arg(long)]
    exit_with_task_code: bool,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Exit, CliError> {
    let Some(task) = context.locate(&args.task).await? else { return Ok(Exit::Detached) };
    follow::tell_intent(context, &task);
    let start = args.since.map_or(Start::Beginning, |since| Start::Since(since.moment(Timestamp::now())));
    let slots = slots_of(&task, &args.slot)?;
    let wanted = Wanted { slots, start, follow: true, pass_code: args.exit_with_task_code };
    follow::to_the_end(context, &task, wanted).await
}
