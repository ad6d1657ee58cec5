//! `logs`: what the script has printed.

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

/// Print what the script has printed
///
/// Works after the machines are gone, until the task is destroyed. Of several slots each line begins
/// with its slot; choose one with --slot for its bytes as they are.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name or identifier
    task: String,
    /// Go on with what is printed from now on, until the task ends
    #[arg(long, short)]
    follow: bool,
    /// Only this slot, counted from 0 (can be repeated)
    #[arg(long, value_name = "N")]
    slot: Vec<u32>,
    /// Begin with what was printed then: a duration ago (10m) or a time (RFC 3339)
    #[arg(long, value_name = "WHEN", value_parser = value::since)]
    since: Option<Since>,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Exit, CliError> {
    let Some(task) = context.locate(&args.task).await? else { return Ok(Exit::Detached) };
    if args.follow {
        follow::tell_intent(context, &task);
    }
    let start = args.since.map_or(Start::Beginning, |since| Start::Since(since.moment(Timestamp::now())));
    let slots = slots_of(&task, &args.slot)?;
    let wanted = Wanted { slots, start, follow: args.follow, pass_code: false };
    follow::logs(context, &task, wanted).await
}
