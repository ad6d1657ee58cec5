//! `main.tf` without Terraform: reads the `iterative_task` resources of a folder into the same [`Request`] that
//! flags make.
//!
//! The language is Terraform's as far as a task can need it; the README has a table. Two rules hold throughout:
//! what a task does not depend on is left alone (other resources, providers, outputs), and what a task depends on
//! and is not understood is refused with its place, never skipped. All mistakes are told at once, except that a
//! file which cannot be parsed tells its first one only.
//!
//! Reading is pure but for the files of the folder and those that functions name. Its time, memory and recursion
//! are limited, whatever the input ([`eval`]).

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use tpi_proto::id::TaskId;

use super::{Checked, Field, Request, SpecError, Surroundings, identity};

mod eval;
mod fault;
mod folder;
mod functions;
mod heredoc;
mod inputs;
mod module;
mod number;
mod source;
mod syntax;
mod task;
mod types;
mod value;

#[cfg(test)]
mod tests;

pub use fault::{HclError, HclErrors};
pub use source::Position;
pub use task::Declared;

/// Stack of the thread that reads. The parser and the evaluator limit how deep they go, and this is enough for
/// both limits in a build without optimisation.
const STACK: usize = 64 * 1024 * 1024;

/// Shortest text that is kept out of messages, in characters.
const SECRET_MIN: usize = 3;

/// What a configuration is read from.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// Its folder; absolute. What relative paths are relative to.
    pub folder: PathBuf,
    /// The caller's environment: `TF_VAR_*`, `TF_WORKSPACE`, `HOME`, and those that name a run of a
    /// continuous-integration system.
    pub environment: BTreeMap<OsString, OsString>,
    /// From the command line, in its order.
    pub variables: Vec<VariableArgument>,
}

/// `--var` or `--var-file`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VariableArgument {
    /// A name and its value, as an expression where the variable is a list, map or the like.
    Value {
        /// As declared.
        name: String,
        /// As written.
        value: String,
    },
    /// A file of values; relative to the folder.
    File(PathBuf),
}

/// The tasks of a folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Configuration {
    /// In the order of files and lines; instances in that of their keys.
    pub tasks: Vec<Declared>,
    /// Things the user should know.
    pub warnings: Vec<String>,
    secrets: Secrets,
}

/// Values that may be in no message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Secrets(Vec<String>);

impl Secrets {
    fn hidden(&self, text: &str) -> String {
        // Longer ones first: one may contain another.
        self.0.iter().fold(text.to_owned(), |text, secret| text.replace(secret, "(sensitive)"))
    }

    fn hide(&self, error: HclError) -> HclError {
        HclError {
            position: error.position,
            resource: error.resource,
            expression: error.expression.map(|text| self.hidden(&text)),
            cause: self.hidden(&error.cause),
            hint: error.hint.map(|text| self.hidden(&text)),
        }
    }
}

/// Whether a folder has a configuration, of tasks or of anything else.
#[must_use]
pub fn is_configured(folder: &Path) -> bool {
    folder::names(folder)
        .is_ok_and(|names| names.iter().any(|name| name.ends_with(".tf") || name.ends_with(".tf.json")))
}

/// Reads a folder.
///
/// # Errors
/// Everything that is wrong with what a task depends on.
pub fn read(inputs: &Inputs) -> Result<Configuration, HclErrors> {
    on_large_stack(|| read_here(inputs))
}

fn on_large_stack<T: Send>(run: impl FnOnce() -> Result<T, HclErrors> + Send) -> Result<T, HclErrors> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("hcl".to_owned()).stack_size(STACK);
        match thread.spawn_scoped(scope, run) {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(error) => {
                Err(HclErrors(vec![plain(format!("starting a thread to read with: {error}"), None)]))
            }
        }
    })
}

fn plain(cause: String, hint: Option<&str>) -> HclError {
    HclError { position: None, resource: None, expression: None, cause, hint: hint.map(str::to_owned) }
}

fn read_here(inputs: &Inputs) -> Result<Configuration, HclErrors> {
    let shown = inputs.folder.display();
    let names = folder::names(&inputs.folder)
        .map_err(|error| HclErrors(vec![plain(format!("reading the folder {shown}: {error}"), None)]))?;
    if names.len() > folder::FILES_MAX {
        let cause = format!("the folder {shown} has more than {} configuration files", folder::FILES_MAX);
        return Err(HclErrors(vec![plain(cause, None)]));
    }
    let home = inputs.environment.get(OsStr::new("HOME")).map(PathBuf::from);
    // The parsed files are borrowed by what reads them, so both live here.
    let mut files = Vec::new();
    let mut first = eval::Evaluator::new(inputs.folder.clone(), home.clone());
    let mut errors = Vec::new();
    let mut any = false;
    for name in names.iter().filter(|name| name.ends_with(".tf") || name.ends_with(".tf.json")) {
        any = true;
        if name.ends_with(".json") {
            let cause = format!("{name}: configurations in JSON are not read");
            errors.push(plain(cause, Some("write it in Terraform's own language, or use Terraform")));
        } else if name == "override.tf" || name.ends_with("_override.tf") {
            let cause = format!("{name}: files that override others are not read");
            errors.push(plain(cause, Some("put what it says into the other files, or use Terraform")));
        } else {
            match folder::read(&inputs.folder.join(name)) {
                Ok(text) => files.extend(module::parse(&mut first, PathBuf::from(name), text)),
                Err(cause) => errors.push(plain(format!("{name}: {cause}"), None)),
            }
        }
    }
    if !any {
        let cause = format!("the folder {shown} has no configuration: no file whose name ends with .tf");
        return Err(HclErrors(vec![plain(cause, Some("name the folder that has it with `--file DIR`"))]));
    }
    let mut warnings = Vec::new();
    let mut of = eval::Evaluator::new(inputs.folder.clone(), home);
    of.texts = std::mem::take(&mut first.texts);
    of.faults = std::mem::take(&mut first.faults);
    of.workspace = workspace(inputs);
    let tasks = module::declare(&mut of, &files, &mut warnings);
    inputs::give(&mut of, inputs, &names, &mut warnings);
    let mut declared = Vec::new();
    // What is missing because of a file that cannot be parsed is no mistake of the others.
    if of.faults.is_empty() && errors.is_empty() {
        for task in tasks {
            declared.extend(task::read(&mut of, task, &mut warnings));
        }
    }
    let mut secrets: Vec<String> = of.secrets.iter().map(|text| text.to_string()).collect();
    // What is shorter is no secret, and in many words.
    secrets.retain(|text| text.chars().count() >= SECRET_MIN);
    secrets.sort_by_key(|text| std::cmp::Reverse(text.len()));
    secrets.dedup();
    let secrets = Secrets(secrets);
    let mut seen = Vec::new();
    for (resource, fault) in &of.faults {
        // The same of every instance is told once.
        if let Some(span) = fault.span {
            if seen.contains(&(span, &fault.cause)) {
                continue;
            }
            seen.push((span, &fault.cause));
        }
        errors.push(secrets.hide(HclError {
            position: fault.span.map(|span| of.texts.position(span)),
            resource: resource.clone(),
            expression: fault.span.filter(|_| fault.shown).map(|span| of.texts.shown(span)),
            cause: fault.cause.clone(),
            hint: fault.hint.clone(),
        }));
    }
    if !errors.is_empty() {
        errors.sort();
        return Err(HclErrors(errors));
    }
    Ok(Configuration { tasks: declared, warnings, secrets })
}

/// As Terraform finds it.
fn workspace(inputs: &Inputs) -> String {
    let set =
        inputs.environment.get(OsStr::new("TF_WORKSPACE")).and_then(|name| name.to_str()).map(str::to_owned);
    let chosen = || folder::read(&inputs.folder.join(".terraform/environment")).ok();
    set.filter(|name| !name.is_empty())
        .or_else(chosen)
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "default".to_owned())
}

impl Declared {
    /// What is asked, with a name that is the same each time: a resource without one has none to be found by, and
    /// Terraform keeps a random one in its state. Here the folder and the address stand for it; in a run of a
    /// continuous-integration system the run and the address.
    #[must_use]
    pub fn named(&self, inputs: &Inputs) -> Request {
        let mut request = self.request.clone();
        if request.name.as_deref().is_none_or(str::is_empty) {
            let label = self.address.split_once('.').map_or(self.address.as_str(), |(_, label)| label);
            let seed = format!("{}\0{}", inputs.folder.display(), self.address);
            request.name = Some(match TaskId::seeded(label, seed.as_bytes()) {
                Ok(id) if !identity::is_run(&inputs.environment) => id.to_string(),
                Ok(_) | Err(_) => label.to_owned(),
            });
        }
        request
    }

    /// Which task it is, whether or not the rest of it can be used now.
    #[must_use]
    pub fn identifier(&self, inputs: &Inputs) -> Option<TaskId> {
        identity::of_name(self.named(inputs).name.as_deref()?, &inputs.environment)
    }
}

impl Configuration {
    /// Checks tasks as flags are checked.
    ///
    /// # Errors
    /// All mistakes at once, with the places of the arguments.
    pub fn check(
        &self,
        tasks: &[&Declared],
        inputs: &Inputs,
        around: &Surroundings,
    ) -> Result<Vec<Checked>, HclErrors> {
        let around = Surroundings { current_dir: inputs.folder.clone(), ..around.clone() };
        let mut errors = Vec::new();
        let mut ready: Vec<(&Declared, Checked)> = Vec::new();
        for task in tasks {
            match super::check(&task.named(inputs), &around) {
                Ok(mut checked) => {
                    for warning in &mut checked.warnings {
                        *warning = self.secrets.hidden(warning);
                    }
                    if let Some((other, _)) = ready.iter().find(|(_, other)| other.id == checked.id) {
                        let at = task.positions.get(&Field::Name).unwrap_or(&task.position);
                        errors.push(HclError {
                            position: Some(at.clone()),
                            resource: Some(task.address.clone()),
                            expression: None,
                            cause: format!(
                                "has the same name as {}, so both would be one task",
                                other.address
                            ),
                            hint: Some("make the name differ, with each.key or count.index".to_owned()),
                        });
                    }
                    ready.push((task, checked));
                }
                Err(wrong) => errors.extend(wrong.0.iter().map(|error| self.placed(task, error))),
            }
        }
        if errors.is_empty() {
            return Ok(ready.into_iter().map(|(_, checked)| checked).collect());
        }
        errors.sort();
        Err(HclErrors(errors))
    }

    fn placed(&self, task: &Declared, error: &SpecError) -> HclError {
        let position = task.positions.get(&error.field).unwrap_or(&task.position);
        // A script is long, and its place says which one it is.
        let value = error.value.as_deref().filter(|_| error.field != Field::Script);
        let what = match value {
            Some(value) => format!("{} {value:?}: {}", error.field, error.cause),
            None => format!("{}: {}", error.field, error.cause),
        };
        self.secrets.hide(HclError {
            position: Some(position.clone()),
            resource: Some(task.address.clone()),
            expression: None,
            cause: what,
            hint: Some(error.hint.replace("the current directory", "the folder of the configuration")),
        })
    }
}
