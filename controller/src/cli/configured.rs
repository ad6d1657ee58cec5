//! Tasks of a `main.tf`: what commands work on when no task is named.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches};

use super::{
    Context, PROGRAM,
    error::{CliError, Problem},
    exit::Exit,
};
use crate::spec::hcl::{self, Configuration, Declared, HclErrors, Inputs, VariableArgument};

/// Which configuration, and which of its tasks.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Configuration (main.tf)")]
pub(super) struct Configured {
    /// Folder whose iterative_task resources are meant [default: this one]
    #[arg(long = "file", value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Only this resource or name of the configuration (can be repeated) [default: all]
    #[arg(long = "task", value_name = "NAME")]
    chosen: Vec<String>,
    #[command(flatten)]
    variables: Variables,
}

/// `--var` and `--var-file`, in the order in which they were given: later ones win.
#[derive(Debug, Clone, Default)]
struct Variables(Vec<VariableArgument>);

impl Args for Variables {
    fn augment_args(command: clap::Command) -> clap::Command {
        command
            .arg(
                Arg::new("var")
                    .long("var")
                    .value_name("NAME=VALUE")
                    .action(ArgAction::Append)
                    .help("Value of a variable of the configuration (can be repeated)"),
            )
            .arg(
                Arg::new("var_file")
                    .long("var-file")
                    .value_name("FILE")
                    .value_parser(clap::value_parser!(PathBuf))
                    .action(ArgAction::Append)
                    .help("File of such values (can be repeated)"),
            )
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Variables {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut found: BTreeMap<usize, VariableArgument> = BTreeMap::new();
        let texts = matches.get_many::<String>("var").into_iter().flatten();
        for (index, text) in matches.indices_of("var").into_iter().flatten().zip(texts) {
            let Some((name, value)) = text.split_once('=') else {
                let cause = format!("--var {text:?} has no '=': write --var NAME=VALUE\n");
                return Err(clap::Error::raw(clap::error::ErrorKind::ValueValidation, cause));
            };
            let (name, value) = (name.trim().to_owned(), value.to_owned());
            drop(found.insert(index, VariableArgument::Value { name, value }));
        }
        let paths = matches.get_many::<PathBuf>("var_file").into_iter().flatten();
        for (index, path) in matches.indices_of("var_file").into_iter().flatten().zip(paths) {
            drop(found.insert(index, VariableArgument::File(path.clone())));
        }
        Ok(Self(found.into_values().collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Terraform's own way to write them, with one dash.
pub(super) fn as_terraform(arguments: Vec<OsString>) -> Vec<OsString> {
    let mut own = true;
    arguments
        .into_iter()
        .map(|argument| {
            own &= argument != "--";
            let text = argument.to_str().filter(|_| own).unwrap_or_default();
            let name = text.split_once('=').map_or(text, |(name, _)| name);
            if name == "-var" || name == "-var-file" { format!("-{text}").into() } else { argument }
        })
        .collect()
}

/// A configuration that has been read, and those of its tasks that are meant.
pub(super) struct Chosen {
    pub(super) inputs: Inputs,
    pub(super) configuration: Configuration,
    /// Positions in the configuration's tasks.
    chosen: Vec<usize>,
}

impl Chosen {
    /// The tasks that are meant; at least one.
    pub(super) fn tasks(&self) -> Vec<&Declared> {
        self.chosen.iter().filter_map(|n| self.configuration.tasks.get(*n)).collect()
    }
}

/// A task to work on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    /// Name or identifier.
    pub(super) task: String,
    /// Of the configuration, when it was not named.
    pub(super) declared: Option<Origin>,
}

/// Where a task is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) address: String,
    place: String,
    pub(super) prevent_destroy: bool,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.address, self.place)
    }
}

impl Configured {
    /// Whether any of it was given.
    pub(super) fn is_given(&self) -> bool {
        self.folder.is_some() || !self.chosen.is_empty() || !self.variables.0.is_empty()
    }

    /// Whether there is a configuration to use without being told to.
    pub(super) fn is_here() -> bool {
        std::env::current_dir().is_ok_and(|here| hcl::is_configured(&here))
    }

    /// Reads it.
    pub(super) fn read(&self, context: &Context) -> Result<Chosen, CliError> {
        let folder = self.folder.as_deref().unwrap_or(Path::new("."));
        let doing = "finding the folder of the configuration";
        let folder = folder.canonicalize().map_err(|error| CliError::file(doing, folder, &error))?;
        if !folder.is_dir() {
            let message = format!("{} is not a folder", folder.display());
            let hint = "all files of a folder are one configuration: name the folder";
            return Err(CliError::text(Exit::Request, message).hint(hint));
        }
        let variables = self.variables.0.iter().map(from_here).collect::<Result<_, _>>()?;
        let inputs = Inputs { folder, environment: std::env::vars_os().collect(), variables };
        let configuration = hcl::read(&inputs)?;
        for warning in &configuration.warnings {
            context.ui.warning(warning);
        }
        let chosen = self.choose(&configuration, &inputs)?;
        Ok(Chosen { inputs, configuration, chosen })
    }

    fn choose(&self, configuration: &Configuration, inputs: &Inputs) -> Result<Vec<usize>, CliError> {
        let tasks = &configuration.tasks;
        if tasks.is_empty() {
            let message = format!("the configuration in {} has no task", inputs.folder.display());
            let hint = "a task is a resource \"iterative_task\" (with a count or for_each that is not empty)";
            return Err(CliError::text(Exit::Request, message).hint(hint));
        }
        if self.chosen.is_empty() {
            return Ok((0..tasks.len()).collect());
        }
        let mut found = Vec::new();
        for name in &self.chosen {
            let before = found.len();
            found.extend(tasks.iter().enumerate().filter(|(_, task)| is(task, name)).map(|(n, _)| n));
            if found.len() == before {
                let known: Vec<&str> = tasks.iter().map(|task| task.address.as_str()).collect();
                let message =
                    format!("the configuration in {} has no task {name:?}", inputs.folder.display());
                return Err(
                    CliError::text(Exit::Request, message).hint(format!("it has {}", known.join(", ")))
                );
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// The tasks that were named, or those of the configuration.
    pub(super) fn names(&self, context: &Context, named: Vec<String>) -> Result<Vec<Named>, CliError> {
        if !named.is_empty() {
            if self.is_given() {
                let message =
                    "a task was named, and --file, --task, --var and --var-file are of a configuration";
                return Err(CliError::text(Exit::Usage, message).hint("leave one of them out"));
            }
            return Ok(named.into_iter().map(|task| Named { task, declared: None }).collect());
        }
        if !self.is_given() && !Self::is_here() {
            return Err(CliError::text(
                Exit::Usage,
                "no task is named, and there is no main.tf in this folder",
            )
            .hint(format!("name a task (`{PROGRAM} list` shows them), or a folder with --file DIR")));
        }
        let by_name =
            |error: CliError| error.hint("a task can be named instead, and then the files are not read");
        let chosen = self.read(context).map_err(by_name)?;
        chosen
            .tasks()
            .into_iter()
            .map(|task| {
                let origin = Origin {
                    address: task.address.clone(),
                    place: task.position.to_string(),
                    prevent_destroy: task.prevent_destroy,
                };
                let Some(id) = task.identifier(&chosen.inputs) else {
                    let message = format!("{origin} has a name that cannot be used");
                    return Err(CliError::text(Exit::Request, message)
                        .hint("choose a name with at least one letter or digit, and at most 63 characters"));
                };
                Ok(Named { task: id.to_string(), declared: Some(origin) })
            })
            .collect()
    }

    /// The only task that is meant.
    pub(super) fn one(&self, context: &Context, named: Option<String>) -> Result<String, CliError> {
        let mut names = self.names(context, named.into_iter().collect())?;
        match (names.pop(), names.as_slice()) {
            (Some(only), []) => {
                announce(context, &only);
                Ok(only.task)
            }
            (last, others) => {
                let all = others.iter().chain(last.as_ref());
                let all: Vec<&str> =
                    all.filter_map(|name| Some(name.declared.as_ref()?.address.as_str())).collect();
                let message =
                    format!("the configuration has {} tasks, and one is shown at a time", all.len());
                Err(CliError::text(Exit::Request, message)
                    .hint(format!("choose one with --task: {}", all.join(", "))))
            }
        }
    }
}

/// Says which task a resource is.
pub(super) fn announce(context: &Context, name: &Named) {
    if let Some(origin) = &name.declared {
        context.ui.status(&format!("{origin} is task {}", name.task));
    }
}

/// Does something with (or for) each task. One that fails does not spare the others; the last failure is the result.
pub(super) async fn each<T>(
    context: &Context,
    names: Vec<T>,
    run: impl AsyncFn(&T) -> Result<Exit, CliError>,
) -> Result<Exit, CliError> {
    let mut exit = Exit::Success;
    let mut failed: Option<CliError> = None;
    for name in &names {
        if let Some(error) = failed.take() {
            context.ui.error(&error.with_program(PROGRAM, &context.me));
        }
        match run(name).await {
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

/// Files are relative to where the command was called, as all paths on a command line are.
fn from_here(variable: &VariableArgument) -> Result<VariableArgument, CliError> {
    Ok(match variable {
        VariableArgument::Value { .. } => variable.clone(),
        VariableArgument::File(path) => {
            let full = std::path::absolute(path);
            VariableArgument::File(full.map_err(|error| CliError::file("finding", path, &error))?)
        }
    })
}

/// Whether a task is called so: by its address, its label (every instance) or its name.
fn is(task: &Declared, name: &str) -> bool {
    let label = task.address.strip_prefix("iterative_task.").unwrap_or(&task.address);
    let plain = label.split('[').next().unwrap_or(label);
    let wanted = name.strip_prefix("iterative_task.").unwrap_or(name);
    wanted == label
        || wanted == plain
        || task.request.name.as_deref().is_some_and(|own| own.trim() == name.trim())
}

impl From<HclErrors> for CliError {
    fn from(errors: HclErrors) -> Self {
        let problems = errors.0.into_iter().map(|error| {
            let problem = Problem::text(error.to_string());
            match error.hint {
                Some(hint) if !hint.is_empty() => problem.hint(hint),
                Some(_) | None => problem,
            }
        });
        Self::several(Exit::Request, problems.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_keep_their_order() {
        let of = |arguments: &[&str]| {
            let command = Variables::augment_args(clap::Command::new("x"));
            let all = ["x"].iter().chain(arguments).map(OsString::from).collect();
            let matches = command.try_get_matches_from(as_terraform(all)).expect("parses");
            Variables::from_arg_matches(&matches).map(|variables| variables.0)
        };
        let value =
            |name: &str, value: &str| VariableArgument::Value { name: name.into(), value: value.into() };
        let file = |path: &str| VariableArgument::File(path.into());
        let found = of(&["-var", "a=1", "--var-file", "f", "-var=b=x=y", "-var-file=g"]).expect("variables");
        assert_eq!(found, [value("a", "1"), file("f"), value("b", "x=y"), file("g")]);
        assert!(of(&["--var", "a"]).is_err());
        let own = ["x", "--", "-var"].map(OsString::from).to_vec();
        assert_eq!(as_terraform(own.clone()), own, "what follows -- is not ours");
    }
}
