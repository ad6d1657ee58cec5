//! `shell`: a terminal on a machine of a task.

use futures::StreamExt as _;
use tpi_proto::{id::SlotIndex, state::SlotState};

use super::{Context, PROGRAM, error::CliError, exit::Exit, may_run};
use crate::{
    engine::Located,
    link::{
        self, Connection, UserIdentity,
        shell::{RawTerminal, ShellExit, ShellRequest},
    },
};

/// Open a terminal on a machine of a task, or run a command there
///
/// Begins in the work directory of the script. Ends with the exit code of what was run.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Name or identifier
    task: String,
    /// Which slot, counted from 0 [default: the first one at work]
    #[arg(long, value_name = "N")]
    slot: Option<u32>,
    /// Command and arguments [default: a login shell]
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Exit, CliError> {
    let Context { interrupt, .. } = context;
    if context.ui.is_json() && args.command.is_empty() {
        return Err(CliError::text(Exit::Usage, "a terminal has no JSON shape")
            .hint("leave --output json out, or give a command"));
    }
    let Some(task) = context.locate(&args.task).await? else { return Ok(Exit::Detached) };
    let Some(connection) = interrupt.guard(dial(context, &task, args.slot)).await.transpose()? else {
        return Ok(Exit::Detached);
    };
    let connection = connection.0;
    // A command without a terminal on our side gets none there: its bytes pass unchanged.
    let mut terminal =
        RawTerminal::enter().map_err(|error| CliError::internal("setting the terminal up", &error))?;
    let request = ShellRequest {
        command: args.command,
        term: std::env::var("TERM").unwrap_or_default(),
        window: terminal.as_ref().map(RawTerminal::window),
    };
    let resizes = match &terminal {
        Some(terminal) => terminal
            .resizes()
            .map_err(|error| CliError::internal("watching the size of the terminal", &error))?
            .left_stream(),
        None => futures::stream::pending().right_stream(),
    };
    let (stdin, stdout, stderr) = (tokio::io::stdin(), tokio::io::stdout(), tokio::io::stderr());
    let work = link::shell::shell(&connection, request, stdin, stdout, stderr, resizes);
    let ended = interrupt.guard(work).await;
    let broken = !matches!(ended, Some(Ok(_)));
    if terminal.take().is_some() && broken {
        // The cursor is wherever the shell there left it.
        context.ui.data(b"\n")?;
    }
    match ended {
        None => Ok(Exit::Detached),
        Some(ended) => Ok(match ended? {
            ShellExit::Code(0) => Exit::Success,
            ShellExit::Code(code) => Exit::from_process(code),
            ShellExit::Signal(signal) => Exit::from_signal(signal),
        }),
    }
}

/// Connects to the agent of a slot that is at work.
pub(super) async fn dial(
    context: &Context,
    task: &Located,
    wanted: Option<u32>,
) -> Result<(Connection, UserIdentity), CliError> {
    let identity = UserIdentity::load_or_create(context.home.root())?;
    let report = context.engine.status(task).await.map_err(|error| may_run(error.into(), task))?;
    let at_work = |state: &SlotState| match state {
        SlotState::Active { .. } | SlotState::Stopping { .. } => true,
        SlotState::Interrupted | SlotState::Finished { .. } => false,
    };
    let mut candidates = report.slots.iter().filter(|slot| at_work(&slot.state));
    let chosen = match wanted {
        None => candidates.next(),
        Some(wanted) => candidates.find(|slot| slot.slot == SlotIndex(wanted)),
    };
    let Some(slot) = chosen else {
        let what = wanted.map_or_else(|| "no slot".to_owned(), |slot| format!("not slot {slot}"));
        return Err(CliError::text(
            Exit::Unreachable,
            format!("{what} of task {task} has a machine at work"),
        )
        .hint(format!("look: `{PROGRAM} status {task}`")));
    };
    if report.slots.len() > 1 && wanted.is_none() {
        context.ui.status(&format!("slot {}", slot.slot));
    }
    identity.publish(&task.store, &task.id).await?;
    let connection = link::connect(&task.store, &task.id, slot.run(), &identity).await?;
    Ok((connection, identity))
}
