//! What the user asked for: raw flags in, a checked [`TaskSpec`] out.
//!
//! All checking is here, and all errors come at once: a person who has made three mistakes wants to hear of
//! three. Numbers are taken as text for the same reason.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

use serde::Serialize;
use tpi_proto::{
    id::TaskId,
    spec::{CloudName, StorageSpec, TaskSpec},
};
use tpi_store::record::{Environment, RECORD_VERSION};

pub(crate) mod duration;
mod files;
pub mod hcl;
pub(crate) mod identity;
mod numbers;
pub mod place;
mod variables;

#[cfg(test)]
mod tests;

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScriptSource {
    /// A file; relative to the current directory. It has to begin with a shebang.
    File(PathBuf),
    /// The text itself; it has to begin with a shebang.
    Text(String),
    /// A command and its arguments; wrapped in a script that `exec`s it, each word quoted.
    Command(Vec<OsString>),
}

/// Flags as they were given; absent ones have the defaults of `iterative_task`, except that the cloud is
/// `local`, so that nothing is ever spent by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// Name, or a whole identifier.
    pub name: Option<String>,
    /// `local` unless named.
    pub cloud: Option<String>,
    /// Alias or native name; `us-west` unless given.
    pub region: Option<String>,
    /// Alias or native name; `m` unless given.
    pub machine: Option<String>,
    /// Alias or native name; `ubuntu` unless given.
    pub image: Option<String>,
    /// Whole GB; 0 or less: the image's own.
    pub disk_size: Option<String>,
    /// US dollars per hour: less than 0 on demand, 0 at market price, more: up to that price.
    pub spot: Option<String>,
    /// Number of slots, 1 to 65535.
    pub parallelism: Option<String>,
    /// Cloud-specific identity of the machines.
    pub permission_set: Option<String>,
    /// `KEY=VALUE`.
    pub tags: Vec<String>,
    /// `NAME=value`, `NAME` (taken from the caller's environment) or `GLOB*` (all that match).
    pub environment: Vec<String>,
    /// Seconds, or a number with `s`, `m`, `h`, `d`, such as `1h30m`; 24 hours unless given.
    pub timeout: Option<String>,
    /// Time between SIGTERM and SIGKILL, written like `timeout`; 30 seconds unless given.
    pub grace: Option<String>,
    /// What to run.
    pub script: Option<ScriptSource>,
    /// Directory to send; relative to the current directory. Absent: nothing is sent.
    pub workdir: Option<PathBuf>,
    /// What to bring home, relative to the work directory. Absent: nothing.
    pub output: Option<String>,
    /// Rules.
    pub exclude: Vec<String>,
    /// Whether `.gitignore` counts.
    pub gitignore: bool,
    /// Container image to run the script in.
    pub container: Option<String>,
    /// `caller`, `closed`, or networks in CIDR notation; `caller` unless given.
    pub ingress: Vec<String>,
    /// Bucket (and path) of the user's own.
    pub storage_container: Option<String>,
    /// Subnets of the cloud; none: its default network, or what the caller's environment names.
    pub subnets: Vec<String>,
    /// Longest wait for a first machine, written like `timeout`, or `none`; 30 minutes unless given.
    pub provision_timeout: Option<String>,
}

/// What a request is checked against, so that checking depends on nothing hidden.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// What relative paths are relative to.
    pub current_dir: PathBuf,
    /// The caller's environment.
    pub environment: BTreeMap<OsString, OsString>,
    /// Clouds that this build carries.
    pub clouds: Vec<CloudName>,
    /// Whether this computer has a GPU that a local machine could use.
    pub local_gpu: bool,
}

impl Surroundings {
    /// Of this process.
    ///
    /// # Errors
    /// When the current directory is gone.
    pub fn of_process(clouds: impl Iterator<Item = CloudName>) -> std::io::Result<Self> {
        Ok(Self {
            current_dir: std::env::current_dir()?,
            environment: std::env::vars_os().collect(),
            clouds: clouds.collect(),
            local_gpu: ["/dev/nvidia0", "/dev/kfd"].iter().any(|p| Path::new(p).exists()),
        })
    }
}

/// A request without errors.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// Which task this is.
    pub id: TaskId,
    /// What is asked.
    pub spec: TaskSpec,
    /// Values of the script's variables.
    pub environment: Environment,
    /// Things the user should know.
    pub warnings: Vec<String>,
}

/// A field of a [`Request`], named as users know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Field {
    /// `Request::name`.
    Name,
    /// `Request::cloud`.
    Cloud,
    /// `Request::region`.
    Region,
    /// `Request::machine`.
    Machine,
    /// `Request::image`.
    Image,
    /// `Request::disk_size`.
    DiskSize,
    /// `Request::spot`.
    Spot,
    /// `Request::parallelism`.
    Parallelism,
    /// `Request::permission_set`.
    PermissionSet,
    /// `Request::tags`.
    Tags,
    /// `Request::environment`.
    Environment,
    /// `Request::timeout`.
    Timeout,
    /// `Request::grace`.
    Grace,
    /// `Request::script`.
    Script,
    /// `Request::workdir`.
    Workdir,
    /// `Request::output`.
    Output,
    /// `Request::exclude`.
    Exclude,
    /// `Request::container`.
    Container,
    /// `Request::ingress`.
    Ingress,
    /// `Request::storage_container`.
    StorageContainer,
    /// `Request::subnets`.
    Subnets,
    /// `Request::provision_timeout`.
    ProvisionTimeout,
}

impl Field {
    /// Name as in `iterative_task`, in JSON and in messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Cloud => "cloud",
            Self::Region => "region",
            Self::Machine => "machine",
            Self::Image => "image",
            Self::DiskSize => "disk_size",
            Self::Spot => "spot",
            Self::Parallelism => "parallelism",
            Self::PermissionSet => "permission_set",
            Self::Tags => "tags",
            Self::Environment => "environment",
            Self::Timeout => "timeout",
            Self::Grace => "grace",
            Self::Script => "script",
            Self::Workdir => "workdir",
            Self::Output => "output",
            Self::Exclude => "exclude",
            Self::Container => "container",
            Self::Ingress => "ingress",
            Self::StorageContainer => "storage_container",
            Self::Subnets => "subnets",
            Self::ProvisionTimeout => "provision_timeout",
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SpecError {
    /// Where.
    pub field: Field,
    /// As it was given; absent when nothing was.
    pub value: Option<String>,
    /// Why it cannot be used, as a lower-case fragment.
    pub cause: String,
    /// What to do instead, as a lower-case fragment.
    pub hint: String,
}

/// Every mistake of a request, in order of fields. `Display` writes one line each, without hints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SpecErrors(pub Vec<SpecError>);

impl fmt::Display for SpecErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, error) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{} {value:?}: {}", self.field, self.cause),
            None => write!(f, "{}: {}", self.field, self.cause),
        }
    }
}

impl std::error::Error for SpecErrors {}

/// Collects mistakes and remarks while a request is checked.
#[derive(Debug, Default)]
struct Findings {
    errors: Vec<SpecError>,
    warnings: Vec<String>,
}

impl Findings {
    fn error(
        &mut self,
        field: Field,
        value: Option<&str>,
        cause: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.errors.push(SpecError {
            field,
            value: value.map(str::to_owned),
            cause: cause.into(),
            hint: hint.into(),
        });
    }

    fn warn(&mut self, warning: impl Into<String>) {
        self.warnings.push(warning.into());
    }
}

/// Checks everything.
///
/// # Errors
/// All mistakes at once.
pub fn check(request: &Request, around: &Surroundings) -> Result<Checked, SpecErrors> {
    // A new field does not compile until it is checked here.
    let Request {
        name,
        cloud,
        region,
        machine,
        image,
        disk_size,
        spot,
        parallelism,
        permission_set,
        tags,
        environment,
        timeout,
        grace,
        script,
        workdir,
        output,
        exclude,
        gitignore,
        container,
        ingress,
        storage_container,
        subnets,
        provision_timeout,
    } = request;
    let mut found = Findings::default();

    let cloud = place::cloud(cloud.as_deref(), &around.clouds, &mut found);
    let region = place::region(region.as_deref(), cloud, &mut found);
    let machine = place::machine(machine.as_deref(), cloud, around.local_gpu, &mut found);
    let image = place::image(image.as_deref(), cloud, &mut found);
    let disk_size = numbers::disk_size(disk_size.as_deref(), cloud, &mut found);
    let spot = numbers::spot(spot.as_deref(), cloud, &mut found);
    let parallelism = numbers::parallelism(parallelism.as_deref(), cloud, &mut found);
    let permission_set = place::permission_set(permission_set.as_deref(), cloud, &mut found);
    let tags = numbers::tags(tags, &mut found);
    let variables = variables::check(environment, &around.environment, &mut found);
    let timeout_seconds = numbers::timeout(timeout.as_deref(), &mut found);
    let grace_seconds = numbers::grace(grace.as_deref(), timeout_seconds, &mut found);
    let text = files::script(script.as_ref(), &around.current_dir, &mut found);
    let workdir = files::workdir(workdir.as_deref(), &around.current_dir, &mut found);
    let output = files::output(output.as_deref(), workdir.as_deref(), request.workdir.is_some(), &mut found);
    let exclude = files::exclude(exclude, *gitignore, &mut found);
    let container = place::container(container.as_deref(), &mut found);
    let ingress = place::ingress(ingress, cloud, &mut found);
    let storage_container = place::storage_container(storage_container.as_deref(), cloud, &mut found);
    let subnets = place::subnets(subnets, cloud, &around.environment, &mut found);
    let provision_timeout_seconds =
        numbers::provision_timeout(provision_timeout.as_deref(), cloud, &mut found);
    let identified = identity::identify(
        name.as_deref(),
        workdir.as_deref(),
        script.as_ref(),
        &around.environment,
        &mut found,
    );

    let Findings { mut errors, warnings } = found;
    errors.sort_by_key(|e| e.field);
    let errors = SpecErrors(errors);
    if !errors.0.is_empty() {
        return Err(errors);
    }
    let (Some((id, name)), Some(cloud), Some(spot), Some(parallelism), Some(script)) =
        (identified, cloud, spot, parallelism, text)
    else {
        // Each of them is absent only after an error was recorded.
        return Err(errors);
    };
    Ok(Checked {
        id,
        spec: TaskSpec {
            name,
            cloud,
            region,
            machine,
            image,
            disk_size,
            spot,
            parallelism,
            permission_set,
            tags,
            environment: variables.keys().cloned().collect(),
            timeout_seconds,
            grace_seconds,
            script,
            container,
            ingress,
            storage: StorageSpec {
                workdir: workdir.map(|p| p.to_string_lossy().into_owned()),
                output,
                exclude,
                gitignore: *gitignore,
                container: storage_container,
            },
            subnets,
            provision_timeout_seconds,
        },
        environment: Environment { version: RECORD_VERSION, variables },
        warnings,
    })
}
