//! The command line: one file per command, and the only place in the product that prints.
//!
//! stdout is data, stderr is everything else. Commands call the engine and the link, which answer with typed
//! reports, events and errors; here they become text or JSON, and an exit code.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use tpi_proto::id::SlotIndex;
use url::Url;

use crate::{
    cloud::Registry,
    engine::{Engine, Located, Settings},
    home::Home,
    link::UserIdentity,
};
use error::{CliError, Problem};
use exit::Exit;
use interrupt::Interrupt;
use ui::{Color, Format, Manner, Ui};

mod attach;
#[cfg(feature = "aws")]
mod aws;
mod completions;
mod configured;
mod destroy;
mod diagnostics;
pub mod error;
pub mod exit;
mod follow;
mod forward;
pub mod human;
mod interrupt;
mod list;
#[cfg(feature = "local")]
mod local_group;
mod logs;
mod man;
mod plan;
mod progress;
mod proof;
pub mod provider;
mod pull;
pub mod screen;
mod shell;
mod status;
mod stop;
mod submit;
mod sweep;
mod table;
mod terraform;
pub mod ui;
pub mod value;
mod words;

/// Name of the program, as in the commands that hints tell to run.
const PROGRAM: &str = "tpi-controller";

/// Move a script to a rented machine and its results back
#[derive(Debug, Parser)]
#[command(name = PROGRAM, version, arg_required_else_help = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Everywhere")]
struct Global {
    /// Shape of what is printed
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    /// When to use colours
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    color: Color,
    /// Leave chatter out; warnings and errors stay
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Log on stderr what happens (-vv: how; -vvv: everything); TPI_LOG takes filters
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Directory for keys, notes and the local cloud [default: $XDG_STATE_HOME/tpi or ~/.local/state/tpi]
    #[arg(long, global = true, env = "TPI_STATE_DIR", hide_env_values = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Store to use instead of the cloud's own, and to look for tasks in first: file:///path or s3://bucket/prefix
    #[arg(long, global = true, env = "TPI_STORE", hide_env_values = true, value_name = "URL")]
    store: Option<Url>,
    /// The agent to send [default: tpi-agent beside this program]
    #[arg(long, global = true, env = "TPI_AGENT", hide = true, value_name = "FILE")]
    agent: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Task(TaskCommand),
    Completions(completions::Args),
    Man(man::Args),
    Terraform(terraform::Args),
    #[cfg(feature = "aws")]
    Aws(aws::Args),
    #[cfg(feature = "local")]
    LocalGroup(local_group::Args),
}

/// Commands about tasks.
#[derive(Debug, Subcommand)]
enum TaskCommand {
    Submit(Box<submit::Args>),
    Plan(Box<plan::Args>),
    Attach(attach::Args),
    Logs(logs::Args),
    Status(status::Args),
    List(list::Args),
    Stop(stop::Args),
    Pull(pull::Args),
    Destroy(destroy::Args),
    Sweep(sweep::Args),
    Shell(shell::Args),
    Forward(forward::Args),
}

/// The whole command line, for help, completions and manual pages.
#[must_use]
pub fn command() -> clap::Command {
    let table = exit::table();
    let command = Cli::command().after_help(table.clone());
    // The commands that end with a task's own result are those whose codes people look for.
    command
        .mut_subcommand("submit", |sub| sub.after_help(format!("{}\n\n{table}", submit::EXAMPLES)))
        .mut_subcommand("attach", |sub| sub.after_help(table.clone()))
}

/// What every command works with.
struct Context {
    ui: Ui,
    home: Home,
    engine: Engine,
    interrupt: Interrupt,
    /// How this program was called as far as other calls have to be alike, for hints.
    me: String,
}

impl Context {
    /// A command line to show to the user.
    fn command(&self, command: &str) -> String {
        format!("`{} {command}`", self.me)
    }

    /// A text with its command lines made such.
    fn as_called(&self, text: &str) -> String {
        error::as_called(text, PROGRAM, &self.me)
    }

    /// Finds a task; `None` when interrupted.
    async fn locate(&self, task: &str) -> Result<Option<Located>, CliError> {
        let found = self.interrupt.guard(self.engine.locate(task)).await.transpose();
        found.map_err(|error| may_run(error.into(), task))
    }

    /// This user's key; its absence costs the live connection, not the command.
    fn identity(&self) -> Option<UserIdentity> {
        match UserIdentity::load_or_create(self.home.root()) {
            Ok(identity) => Some(identity),
            Err(error) => {
                let problem = Problem::of(&error).one_line();
                self.ui.warning(&format!("following through the store only: {problem}"));
                None
            }
        }
    }

    /// The end of a command that waits, asked for by Ctrl-C.
    fn detached(&self, text: &str, hints: &[String]) -> Exit {
        self.ui.status(text);
        for hint in hints {
            self.ui.hint(hint);
        }
        Exit::Detached
    }
}

/// An error that leaves open whether machines run says how to remove them.
fn may_run(error: CliError, task: impl std::fmt::Display) -> CliError {
    let open = match error.exit() {
        Exit::Cloud | Exit::Unreachable | Exit::Leftovers | Exit::Internal => true,
        Exit::Success
        | Exit::Request
        | Exit::Usage
        | Exit::Task
        | Exit::NotFound
        | Exit::LocalFiles
        | Exit::Detached
        | Exit::Passed(_) => false,
    };
    if open && !error.hints_at(" destroy ") {
        error.hint(format!("if it runs, it ends by its deadline, or by `{PROGRAM} destroy {task}`"))
    } else {
        error
    }
}

/// Slots of a task: those that were asked for, or all.
fn slots_of(task: &Located, wanted: &[u32]) -> Result<Vec<SlotIndex>, CliError> {
    let Some(record) = &task.record else {
        return Err(CliError::text(Exit::NotFound, format!("the record of task {task} is lost"))
            .hint(format!("its machines can still be removed: `{PROGRAM} destroy {task}`")));
    };
    let count = u32::from(record.spec.parallelism.get());
    if let Some(slot) = wanted.iter().find(|slot| **slot >= count) {
        return Err(CliError::text(Exit::Request, format!("task {task} has no slot {slot}"))
            .hint(format!("slots are counted from 0; the last one is {}", count.saturating_sub(1))));
    }
    Ok(if wanted.is_empty() {
        (0..count).map(SlotIndex).collect()
    } else {
        let mut slots: Vec<SlotIndex> = wanted.iter().copied().map(SlotIndex).collect();
        slots.sort_unstable();
        slots.dedup();
        slots
    })
}

/// Runs one command and tells how the program ends. The body of `main`; needs the TLS provider installed.
#[must_use]
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = configured::as_terraform(arguments.into_iter().collect());
    diagnostics::explain_panics(glance(&arguments).format == Format::Json);
    let run = std::panic::AssertUnwindSafe(|| parse_and_run(&arguments));
    std::panic::catch_unwind(run).unwrap_or(Exit::Internal).into()
}

fn parse_and_run(arguments: &[OsString]) -> Exit {
    let manner = glance(arguments);
    let color = match manner.color {
        Color::Auto => clap::ColorChoice::Auto,
        Color::Always => clap::ColorChoice::Always,
        Color::Never => clap::ColorChoice::Never,
    };
    let parsed = command()
        .color(color)
        .try_get_matches_from(arguments)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return usage(&error, manner),
    };
    let Global { output, color, quiet, verbose, .. } = cli.global;
    let ui = Ui::new(Manner { format: output, color, quiet });
    diagnostics::log(&ui, verbose);
    match run(cli, &ui) {
        Ok(exit) => exit,
        Err(error) => {
            ui.error(&error);
            error.exit()
        }
    }
}

/// A command line that cannot be used, or help that was asked for.
fn usage(error: &clap::Error, manner: Manner) -> Exit {
    let asked_for = !error.use_stderr();
    if !asked_for && manner.format == Format::Json {
        let text = error.render().to_string();
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let first = lines.next().unwrap_or_default();
        let message = first.strip_prefix("error: ").unwrap_or(first);
        let report = CliError::text(Exit::Usage, message);
        // What clap adds says what would be right: a tip, the accepted values, the usage.
        Ui::new(manner).error(&lines.fold(report, CliError::hint));
    } else {
        // There is nobody to tell when the terminal is gone.
        drop(error.print());
    }
    if asked_for { Exit::Success } else { Exit::Usage }
}

/// How to talk, read before the command line is understood as a whole: its mistakes are told in that manner.
fn glance(arguments: &[OsString]) -> Manner {
    use clap::ValueEnum;
    let mut manner = Manner::default();
    let texts = arguments.iter().skip(1).map(|argument| argument.to_str().unwrap_or_default());
    let mut texts = texts.take_while(|text| *text != "--");
    while let Some(text) = texts.next() {
        let (flag, value) = match text.split_once('=') {
            Some((flag, value)) => (flag, Some(value)),
            None => (text, None),
        };
        if flag == "--output" {
            let value = value.or_else(|| texts.next()).unwrap_or_default();
            manner.format = Format::from_str(value, false).unwrap_or_default();
        } else if flag == "--color" {
            let value = value.or_else(|| texts.next()).unwrap_or_default();
            manner.color = Color::from_str(value, false).unwrap_or_default();
        }
    }
    manner
}

fn run(cli: Cli, ui: &Ui) -> Result<Exit, CliError> {
    let Cli { global, command } = cli;
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| CliError::internal("starting worker threads", &error))?;
    let result = runtime.block_on(dispatch(global, command, ui));
    // A blocking read of stdin or a slow disk must not hold the program up at its end.
    runtime.shutdown_background();
    result
}

async fn dispatch(global: Global, command: Command, ui: &Ui) -> Result<Exit, CliError> {
    // These need nothing of this computer, or care for their signals themselves.
    match command {
        Command::Completions(args) => completions::run(ui, &args),
        Command::Man(args) => man::run(ui, &args),
        Command::Terraform(args) => terraform::run(ui, args, global.agent),
        #[cfg(feature = "aws")]
        Command::Aws(args) => aws::run(ui, &args),
        #[cfg(feature = "local")]
        Command::LocalGroup(args) => local_group::run(args).await,
        Command::Task(command) => on_task(global, command, ui).await,
    }
}

async fn on_task(global: Global, command: TaskCommand, ui: &Ui) -> Result<Exit, CliError> {
    let home = Home::locate(global.state_dir.as_deref())?;
    let clouds = Registry::built_in(&home);
    let me = called_as(&global);
    let engine =
        Engine::new(Settings { home: home.clone(), clouds, store: global.store, agent: global.agent });
    let interrupt =
        Interrupt::install().map_err(|error| CliError::internal("installing signal handlers", &error))?;
    let context = Context { ui: ui.clone(), home, engine, interrupt, me };
    let result = match command {
        TaskCommand::Submit(args) => submit::run(&context, *args).await,
        TaskCommand::Plan(args) => plan::run(&context, *args).await,
        TaskCommand::Attach(args) => attach::run(&context, args).await,
        TaskCommand::Logs(args) => logs::run(&context, args).await,
        TaskCommand::Status(args) => status::run(&context, args).await,
        TaskCommand::List(args) => list::run(&context, args).await,
        TaskCommand::Stop(args) => stop::run(&context, args).await,
        TaskCommand::Pull(args) => pull::run(&context, args).await,
        TaskCommand::Destroy(args) => destroy::run(&context, args).await,
        TaskCommand::Sweep(args) => sweep::run(&context, args).await,
        TaskCommand::Shell(args) => shell::run(&context, args).await,
        TaskCommand::Forward(args) => forward::run(&context, args).await,
    };
    result.map_err(|error| error.with_program(PROGRAM, &context.me))
}

/// Flags that name another place have to be in the commands that hints tell to run; variables are there anyway.
fn called_as(global: &Global) -> String {
    let mut me = PROGRAM.to_owned();
    let differs = |name: &str, value: &std::ffi::OsStr| std::env::var_os(name).is_none_or(|set| set != value);
    if let Some(dir) = global.state_dir.as_deref().filter(|dir| differs("TPI_STATE_DIR", dir.as_os_str())) {
        me.push_str(" --state-dir ");
        me.push_str(&quoted(&dir.to_string_lossy()));
    }
    if let Some(store) = global.store.as_ref().filter(|store| differs("TPI_STORE", store.as_str().as_ref())) {
        me.push_str(" --store ");
        me.push_str(&quoted(store.as_str()));
    }
    me
}

/// For a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn mistakes_are_told_in_the_manner_that_was_asked_for() {
        let of = |text: &str| glance(&text.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert_eq!(of("x list --output json --nope").format, Format::Json);
        assert_eq!(of("x list --output=json").format, Format::Json);
        assert_eq!(of("x submit -- echo --output json").format, Format::Auto);
        assert_eq!(of("x --color never list").color, Color::Never);
        assert_eq!(of("x list --output").format, Format::Auto);
    }

    #[test]
    fn words_are_quoted_for_a_shell_where_needed() {
        assert_eq!(quoted("/a/b-c"), "/a/b-c");
        assert_eq!(quoted("/it's here"), r"'/it'\''s here'");
    }
}
