//! `submit`: start a task, follow it to its end, and bring its results home.

use std::{cell::RefCell, ffi::OsString, io::Read as _, path::PathBuf};

use serde::Serialize;

use super::{
    Context, PROGRAM,
    configured::{Configured, each},
    error::CliError,
    exit::Exit,
    follow::{self, Wanted},
    human,
    progress::Shown,
    pull, slots_of,
    ui::Envelope,
};
use crate::{
    engine::{Step, SubmitOutcome, Submitted},
    link::Start,
    spec::{self, Checked, Request, ScriptSource, Surroundings},
};

/// Shown below the flags.
pub(super) const EXAMPLES: &str = "\
Examples:
  tpi-controller submit --workdir . --results results -- python3 train.py
  tpi-controller submit --name nightly --script train.sh --timeout 12h --detach
  tpi-controller submit --task nightly --var epochs=20
  tpi-controller submit --parallelism 4 -- sh -c 'echo \"slot $TPI_SLOT of $TPI_SLOTS\"'";

/// Start a task, follow it to its end and bring its results home
///
/// With no command and no flag that describes a task, the iterative_task resources of this folder's
/// main.tf are started, without Terraform, and followed one after the other.
/// Without --cloud nothing is ever spent: the machines are processes of this computer.
/// Submitting a name again finishes a submission that was cut off, or attaches to the task that
/// runs already. Ctrl-C detaches and never ends the task. Not on a terminal, stdout carries exactly
/// what the script writes to its stdout. A task is kept until `destroy` removes it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Return once machines are ordered; stdout carries the task's identifier
    #[arg(long, short)]
    detach: bool,
    /// End with the script's own exit code
    #[arg(long, conflicts_with = "detach")]
    exit_with_task_code: bool,
    /// Leave results in the store at the end
    #[arg(long, conflicts_with = "detach")]
    no_pull: bool,
    #[command(flatten)]
    what: WhatArgs,
}

/// What `submit` and `plan` are about.
#[derive(Debug, clap::Args)]
pub(super) struct WhatArgs {
    /// Command and arguments to run
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "file")]
    command: Vec<OsString>,
    /// Name of the task; the same name is the same task [default: a random one]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    script: ScriptArgs,
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    configured: Configured,
}

/// How.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Script")]
struct ScriptArgs {
    /// Script to run, beginning with its shebang line; - is stdin
    #[arg(long = "script", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Variable for the script; NAME alone takes the caller's value, NAME* all that match (can be repeated)
    #[arg(long, short, value_name = "NAME[=VALUE]", allow_hyphen_values = true)]
    environment: Vec<String>,
    /// Container image to run the script in [default: none]
    #[arg(long, value_name = "IMAGE")]
    container: Option<String>,
    /// When everything ends, whatever happens: seconds, or 90s, 15m, 24h [default: 24h]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
    timeout: Option<String>,
    /// Time between SIGTERM and SIGKILL when the script is stopped [default: 30s]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
    grace: Option<String>,
}

/// Where.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Machines")]
struct MachineArgs {
    /// local, aws, gcp, az or k8s [default: local]
    #[arg(long)]
    cloud: Option<String>,
    /// Region, as an alias or as the cloud calls it [default: us-west]
    #[arg(long)]
    region: Option<String>,
    /// Type of machine, as an alias or as the cloud calls it [default: m]
    #[arg(long)]
    machine: Option<String>,
    /// Machine image, as an alias or as the cloud calls it [default: ubuntu]
    #[arg(long)]
    image: Option<String>,
    /// Disk in GB [default: the image's own]
    #[arg(long, value_name = "GB", allow_hyphen_values = true)]
    disk_size: Option<String>,
    /// Interruptible machines: 0 at market price, more up to so many US dollars per hour [default: -1, on demand]
    #[arg(long, value_name = "PRICE", allow_hyphen_values = true)]
    spot: Option<String>,
    /// Number of machines, each with a slot of its own [default: 1]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    parallelism: Option<String>,
    /// Identity that the machines have in their cloud
    #[arg(long, value_name = "NAME")]
    permission_set: Option<String>,
    /// Tag of everything that is created (can be repeated)
    #[arg(long = "tags", visible_alias = "tag", value_name = "KEY=VALUE")]
    tags: Vec<String>,
    /// Subnet of AWS to start machines in (can be repeated) [default: TPI_AWS_SUBNETS, or the default network's]
    #[arg(long = "subnet", value_name = "ID")]
    subnets: Vec<String>,
    /// How long to wait for a first machine, such as 30m; none: until the timeout [default: 30m]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
    provision_timeout: Option<String>,
    /// Who may try to reach the agents: caller, none (also written closed), or networks such as
    /// 203.0.113.0/24 (can be repeated) [default: caller]
    #[arg(long, value_name = "FROM")]
    ingress: Vec<String>,
}

/// What travels.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Files")]
struct FileArgs {
    /// Directory to send; the script runs in its copy [default: nothing is sent]
    #[arg(long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// What to bring home, relative to the work directory; . is all of it [default: nothing]
    #[arg(long, visible_alias = "storage-output", value_name = "PATH")]
    results: Option<String>,
    /// What not to send or bring home: a path, a pattern, or a rule with + or - (can be repeated)
    #[arg(long, value_name = "RULE", allow_hyphen_values = true)]
    exclude: Vec<String>,
    /// Leave out what .gitignore files name as well
    #[arg(long)]
    gitignore: bool,
    /// Bucket (and path) of your own instead of the default one
    #[arg(long, value_name = "BUCKET[/PATH]")]
    storage: Option<String>,
}

pub(super) async fn run(context: &Context, args: Args) -> Result<Exit, CliError> {
    let named = args.what.name.is_some();
    let manner = Manner { detach: args.detach, pass_code: args.exit_with_task_code, no_pull: args.no_pull };
    let checked = match requested(context, args.what)? {
        Requested::Configured(tasks) => return of_configuration(context, &tasks, manner).await,
        Requested::Flags(checked) => checked,
    };
    for warning in &checked.warnings {
        context.ui.warning(warning);
    }
    context.ui.status(&format!("task {}", checked.id));
    match order(context, &checked, named, manner).await? {
        Ordered::Known(submitted) => to_the_end(context, &submitted, manner).await,
        Ordered::Left(exit) => Ok(exit),
    }
}

/// What is asked for, without mistakes.
pub(super) enum Requested {
    /// By flags.
    Flags(Box<Checked>),
    /// By the configuration of a folder: each with where it is declared; at least one.
    Configured(Vec<(String, Checked)>),
}

/// What `submit` and `plan` are about: the flags' task, or those of the configuration when no flag describes one.
pub(super) fn requested(context: &Context, args: WhatArgs) -> Result<Requested, CliError> {
    let around = Surroundings::of_process(context.engine.settings().clouds.names())
        .map_err(|error| CliError::file("finding", std::path::Path::new("the current directory"), &error))?;
    let configured = args.configured.clone();
    let request = request(args)?;
    let plain = request == Request::default();
    if configured.is_given() && !plain {
        let message = "--file, --task, --var and --var-file are of a configuration, which has all the rest";
        return Err(CliError::text(Exit::Usage, message)
            .hint("leave out the flags and the command that describe a task, or those four"));
    }
    if plain && (configured.is_given() || Configured::is_here()) {
        let chosen = configured.read(context)?;
        let tasks = chosen.tasks();
        let checked = chosen.configuration.check(&tasks, &chosen.inputs, &around)?;
        let origins = tasks.iter().map(|task| format!("{} ({})", task.address, task.position));
        return Ok(Requested::Configured(origins.zip(checked).collect()));
    }
    let checked = spec::check(&request, &around).map_err(|error| {
        let error = CliError::from(error);
        if request.script.is_none() && Configured::is_here() {
            error.hint("the main.tf of this folder is used when no flag describes a task")
        } else {
            error
        }
    })?;
    Ok(Requested::Flags(Box::new(checked)))
}

/// Every task is ordered before any is followed.
async fn of_configuration(
    context: &Context,
    tasks: &[(String, Checked)],
    manner: Manner,
) -> Result<Exit, CliError> {
    let mut names = Vec::with_capacity(tasks.len());
    for (origin, checked) in tasks {
        for warning in &checked.warnings {
            context.ui.warning(&format!("{origin}: {warning}"));
        }
        context.ui.status(&format!("{origin} is task {}", checked.id));
        names.push(checked.id.to_string());
    }
    let ordered: RefCell<Vec<Submitted>> = RefCell::new(Vec::new());
    let exit = each(context, names, async |name| {
        let Some((_, checked)) = tasks.iter().find(|(_, checked)| checked.id.as_str() == name) else {
            return Ok(Exit::Success);
        };
        if tasks.len() > 1 {
            context.ui.status(&format!("submitting task {name}"));
        }
        match order(context, checked, true, manner).await? {
            Ordered::Known(submitted) => {
                ordered.borrow_mut().push(*submitted);
                Ok(Exit::Success)
            }
            Ordered::Left(exit) => Ok(exit),
        }
    })
    .await;
    let ordered = ordered.into_inner();
    if manner.detach || matches!(exit, Ok(Exit::Detached)) || ordered.is_empty() {
        return exit;
    }
    let failed = exit.err().map(|error| {
        let exit = error.exit();
        context.ui.error(&error.with_program(PROGRAM, &context.me));
        exit
    });
    let count = ordered.len();
    let ends: Vec<usize> = (0..count).collect();
    let end = each(context, ends, async |n| {
        let Some(submitted) = ordered.get(*n) else { return Ok(Exit::Success) };
        if count > 1 {
            context.ui.status(&format!("following task {} ({} of {count})", submitted.id, n + 1));
        }
        to_the_end(context, submitted, manner).await
    })
    .await?;
    Ok(if end == Exit::Success { failed.unwrap_or(end) } else { end })
}

/// What is wanted of it once it is ordered.
#[derive(Debug, Clone, Copy)]
struct Manner {
    detach: bool,
    pass_code: bool,
    no_pull: bool,
}

/// What has become of a submission.
enum Ordered {
    Known(Box<Submitted>),
    /// By Ctrl-C.
    Left(Exit),
}

async fn order(
    context: &Context,
    checked: &Checked,
    named: bool,
    manner: Manner,
) -> Result<Ordered, CliError> {
    let Context { ui, engine, interrupt, .. } = context;
    let detach = manner.detach;
    let shown = Shown::new(ui).with_lines(!detach);
    let submitted = interrupt.guard(engine.submit(checked, &shown)).await;
    let ordered = shown.step().is_some_and(|step| step >= Step::Clock);
    drop(shown);
    let submitted = match submitted {
        None => return Ok(Ordered::Left(cut_off(context, checked, named, ordered))),
        Some(Ok(submitted)) => submitted,
        Some(Err(error)) => {
            let error = CliError::from(error);
            return Err(if ordered && !error.hints_at(" destroy ") {
                error.hint(format!(
                    "machines may be running; this removes them: `{PROGRAM} destroy {}`",
                    checked.id
                ))
            } else {
                error
            });
        }
    };
    tell(context, &submitted)?;
    if detach {
        if !ui.is_json() {
            ui.data(format!("{}\n", submitted.id).as_bytes())?;
        }
        ui.hint(&format!("follow it: {}", context.command(&format!("attach {}", submitted.id))));
    }
    Ok(Ordered::Known(Box::new(submitted)))
}

/// Follows a task that was ordered, and brings its results home.
async fn to_the_end(context: &Context, submitted: &Submitted, manner: Manner) -> Result<Exit, CliError> {
    let ui = &context.ui;
    let Manner { detach, pass_code, no_pull } = manner;
    if detach {
        return Ok(Exit::Success);
    }
    let ended_before = submitted.outcome == SubmitOutcome::Ended;
    let Some(task) = context.locate(submitted.id.as_str()).await? else {
        return follow::detached(context, &submitted.id);
    };
    let wanted = Wanted { slots: slots_of(&task, &[])?, start: Start::Beginning, follow: true, pass_code };
    let exit = follow::to_the_end(context, &task, wanted).await?;
    if exit == Exit::Detached {
        return Ok(exit);
    }
    let results = task.record.as_ref().is_some_and(|record| record.spec.storage.output.is_some());
    let brought =
        if results && !no_pull { pull::bring(context, &task, None).await } else { Ok(Exit::Success) };
    if ended_before {
        ui.status("this task had ended before: nothing was run now");
        let id = &submitted.id;
        ui.hint(&format!("to run it again: {}, then submit", context.command(&format!("destroy {id}"))));
    } else {
        let destroy = context.command(&format!("destroy {}", submitted.id));
        ui.hint(&format!("logs and results stay in the store until {destroy}"));
    }
    match (exit, brought) {
        (Exit::Success | Exit::Passed(0), brought) => brought,
        (exit, Ok(_)) => Ok(exit),
        (exit, Err(error)) => {
            // The script's end is the news; what went wrong after it is told beside.
            ui.error(&error.with_program(PROGRAM, &context.me));
            Ok(exit)
        }
    }
}

/// Flags as the specification takes them. A flag that is not passed on here is an unread field, which does not
/// compile without a warning; a field of the request without a flag does not compile at all.
fn request(args: WhatArgs) -> Result<Request, CliError> {
    let WhatArgs { script, machine, files, .. } = args;
    // `none` is how a person says it, `closed` how the specification does.
    let ingress = |from: String| if from == "none" { "closed".to_owned() } else { from };
    Ok(Request {
        name: args.name,
        script: source(script.file, args.command)?,
        environment: script.environment,
        container: script.container,
        timeout: script.timeout,
        grace: script.grace,
        cloud: machine.cloud,
        region: machine.region,
        machine: machine.machine,
        image: machine.image,
        disk_size: machine.disk_size,
        spot: machine.spot,
        parallelism: machine.parallelism,
        permission_set: machine.permission_set,
        tags: machine.tags,
        ingress: machine.ingress.into_iter().map(ingress).collect(),
        workdir: files.workdir,
        output: files.results,
        exclude: files.exclude,
        gitignore: files.gitignore,
        storage_container: files.storage,
        subnets: machine.subnets,
        provision_timeout: machine.provision_timeout,
    })
}

fn source(file: Option<PathBuf>, command: Vec<OsString>) -> Result<Option<ScriptSource>, CliError> {
    Ok(match file {
        Some(path) if path.as_os_str() == "-" => Some(ScriptSource::Text(from_stdin()?)),
        Some(path) => Some(ScriptSource::File(path)),
        None if command.is_empty() => None,
        None => Some(ScriptSource::Command(command)),
    })
}

fn from_stdin() -> Result<String, CliError> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .read_to_end(&mut bytes)
        .map_err(|error| CliError::file("reading", std::path::Path::new("the script from stdin"), &error))?;
    String::from_utf8(bytes)
        .map_err(|_| CliError::text(Exit::Request, "the script from stdin is not text (not UTF-8)"))
}

/// What was found and done.
fn tell(context: &Context, submitted: &Submitted) -> Result<(), CliError> {
    let Context { ui, .. } = context;
    if ui.is_json() {
        ui.json(&Envelope::report("submitted", submitted))?;
    }
    let id = &submitted.id;
    let differs = submitted.differs.join(", ");
    let refused = submitted.outcome == SubmitOutcome::Ended && !differs.is_empty();
    for warning in submitted.warnings.iter().filter(|_| !refused) {
        ui.warning(warning);
    }
    match submitted.outcome {
        SubmitOutcome::New | SubmitOutcome::Resumed => {
            if submitted.outcome == SubmitOutcome::Resumed {
                ui.status("finished a submission that had been cut off");
            }
            let until = submitted.deadline.map(|at| format!(", and ends by {}", human::time(at)));
            ui.status(&format!("submitted to {}{}", submitted.cloud, until.unwrap_or_default()));
        }
        SubmitOutcome::Running => {
            ui.status(&format!("task {id} runs already: nothing was started"));
        }
        SubmitOutcome::Ended => {
            if refused {
                return Err(CliError::text(
                    Exit::Request,
                    format!("task {id} has ended, and was submitted with other settings ({differs})"),
                )
                .hint(format!(
                    "to run it again: `{PROGRAM} destroy {id}`, then submit; or choose another --name"
                )));
            }
        }
    }
    Ok(())
}

/// Ctrl-C before the submission was complete.
fn cut_off(context: &Context, checked: &Checked, named: bool, ordered: bool) -> Exit {
    #[derive(Serialize)]
    struct CutOff<'a> {
        id: &'a str,
        machines_may_run: bool,
    }
    let id = checked.id.as_str();
    if context.ui.is_json() {
        // The program ends either way.
        drop(context.ui.json(&Envelope::new("cut_off", CutOff { id, machines_may_run: ordered })));
    }
    let again = if named { "run the same command again" } else { "run it again with --name" };
    let again = if named { again.to_owned() } else { format!("{again} {id}") };
    context.detached(
        &format!("cut off: task {id} is not submitted yet"),
        &[
            format!("to finish: {again}"),
            format!("to remove what there is: {}", context.command(&format!("destroy {id}"))),
        ],
    )
}
