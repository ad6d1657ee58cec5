//! Carries out what a task needs: submit, status, list, stop, pull, destroy; and sweep, for what has no task any more.
//!
//! Each operation is a sequence of idempotent steps with all of its state in the store, so one that was cut
//! off anywhere is finished by running it again, on this or on another computer. Two that run at once are
//! kept apart by conditional writes.

use std::{fmt, path::PathBuf, sync::Arc};

use tpi_proto::{
    id::TaskId,
    spec::{CloudName, TaskSpec},
};
use tpi_store::{Store, record::TaskRecord};
use url::Url;

use crate::{
    cloud::{Cloud, Regions, Registry},
    home::Home,
    spec::Checked,
};

mod amend;
mod destroy;
mod error;
mod facts;
mod find;
mod give_up;
mod hook;
mod plan;
mod preflight;
mod progress;
mod pull;
mod report;
mod stop;
mod submit;
mod sweep;

pub use error::{EngineError, ErrorKind};
pub use hook::stop_points;
pub use progress::{Observer, Progress, Silent, Step, Transfer};
pub use report::*;
pub use sweep::SweepOptions;

/// What an engine works with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// State of this computer.
    pub home: Home,
    /// Clouds.
    pub clouds: Registry,
    /// Store to use instead of the cloud's default one.
    pub store: Option<Url>,
    /// The agent to send; absent: `tpi-agent` beside this program.
    pub agent: Option<PathBuf>,
}

/// The engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {
    settings: Arc<Settings>,
}

/// A task that was found, and where its things are.
#[derive(Debug, Clone)]
pub struct Located {
    /// The task.
    pub id: TaskId,
    /// Where its machines are.
    pub cloud: CloudName,
    /// Where its record is.
    pub store: Store,
    /// Its record as it was when the task was found; absent when it is lost and only machines are left.
    pub record: Option<TaskRecord>,
}

/// How to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StopOptions {
    /// Time between SIGTERM and SIGKILL instead of the task's own, in milliseconds.
    pub grace_millis: Option<u64>,
    /// Wait until every slot has ended.
    pub wait: bool,
}

/// How to bring results home.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PullOptions {
    /// Instead of the task's own work directory.
    pub to: Option<PathBuf>,
}

/// How to destroy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DestroyOptions {
    /// Where results go instead of the task's own work directory.
    pub to: Option<PathBuf>,
    /// Give results up: delete also what could not be downloaded and verified.
    pub discard: bool,
}

impl Engine {
    /// Does nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings: Arc::new(settings) }
    }

    /// What it works with.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// A cloud that can be used.
    fn cloud(&self, name: CloudName) -> Result<Arc<dyn Cloud>, EngineError> {
        self.settings.clouds.get(name).ok_or_else(|| {
            EngineError::new(ErrorKind::User, format!("the cloud {name} is not part of this build"))
                .hint(format!("use a build with the feature `{name}`"))
        })
    }

    /// Opens a store with the credentials of the cloud that it belongs to.
    async fn open(&self, url: &Url) -> Result<Store, EngineError> {
        let failed = |error| EngineError::store(format!("opening the store {url}"))(error);
        for cloud in self.settings.clouds.all() {
            if let Some(store) = cloud.open_store(url).await.map_err(failed)? {
                return Ok(store);
            }
        }
        Store::open(url).map_err(failed)
    }

    /// Where tasks of a cloud have their records, as far as they name no store of their own.
    async fn stores(&self, cloud: &dyn Cloud, regions: &Regions) -> Result<Vec<Url>, EngineError> {
        match &self.settings.store {
            Some(url) if Self::may_keep(cloud.name(), url) => Ok(vec![url.clone()]),
            // Machines elsewhere reach no folder of this computer, so nothing of theirs is in it.
            Some(_) => Ok(Vec::new()),
            None => cloud
                .stores(regions)
                .await
                .map_err(EngineError::of_cloud(format!("looking for the stores of {}", cloud.name()))),
        }
    }

    /// Where a new task has its record: in the user's own bucket where one is given, else in the cloud's own. Nothing
    /// is made; [`Engine::make_store`] does that.
    async fn store_of(&self, cloud: &dyn Cloud, spec: &TaskSpec) -> Result<Url, EngineError> {
        match (&spec.storage.container, &self.settings.store, cloud.name()) {
            (Some(container), _, CloudName::Aws) => {
                Url::parse(&format!("s3://{container}")).map_err(|error| {
                    EngineError::new(ErrorKind::User, format!("naming the bucket {container:?} as a URL"))
                        .because(error)
                        .hint("give `--storage BUCKET/PATH`")
                })
            }
            (_, Some(url), _) => Ok(url.clone()),
            (_, None, name) => cloud
                .store_url(&spec.region)
                .await
                .map_err(EngineError::of_cloud(format!("naming the store of {name} in {}", spec.region))),
        }
    }

    /// Makes that store exist where it is the cloud's own.
    async fn make_store(&self, cloud: &dyn Cloud, spec: &TaskSpec) -> Result<(), EngineError> {
        let own_bucket = spec.storage.container.is_some() && cloud.name() == CloudName::Aws;
        if own_bucket || self.settings.store.is_some() {
            return Ok(());
        }
        let making = format!("making the store of {} in {}", cloud.name(), spec.region);
        let made = cloud.make_store(&spec.region).await.map_err(EngineError::of_cloud(making));
        match made {
            Ok(_url) => Ok(()),
            Err(error) if error.hints.is_empty() => {
                Err(error.hint("name a bucket of your own with `--storage BUCKET/PATH`"))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether a new task would have a place for its record, as far as that can be told without asking anybody.
    ///
    /// # Errors
    /// [`ErrorKind::User`].
    pub fn check_store(&self, spec: &TaskSpec) -> Result<(), EngineError> {
        match (&spec.storage.container, &self.settings.store) {
            // A bucket of the user's own, or the account's.
            (Some(_), _) | (None, None) => Ok(()),
            (None, Some(url)) => Self::check_place(spec.cloud, url),
        }
    }

    fn check_place(cloud: CloudName, store: &Url) -> Result<(), EngineError> {
        if Self::may_keep(cloud, store) {
            return Ok(());
        }
        Err(EngineError::new(ErrorKind::User, format!("machines in {cloud} cannot reach the store {store}"))
            .hint("name a bucket with `--store s3://BUCKET/PATH` or `--storage BUCKET/PATH`"))
    }

    /// Whether tasks of a cloud may have their records in a store; machines elsewhere reach no folder of this
    /// computer.
    fn may_keep(cloud: CloudName, store: &Url) -> bool {
        match cloud {
            CloudName::Aws => store.scheme() == "s3",
            CloudName::Local | CloudName::Gcp | CloudName::Az | CloudName::K8s => true,
        }
    }

    /// What [`submit`](Self::submit) would make and send, and what it would cost at most. Makes and sends nothing.
    ///
    /// # Errors
    /// See [`ErrorKind`]; whatever would keep the machines from working is refused as it would be at submit.
    pub async fn plan(&self, checked: &Checked, observer: &dyn Observer) -> Result<PlanReport, EngineError> {
        plan::plan(self, checked, observer).await
    }

    /// Submits, or finishes a submission that was cut off, or finds that the task is there already
    /// (see [`Submitted::outcome`]). Returns once the cloud keeps the machines; it does not wait for them.
    ///
    /// # Errors
    /// See [`ErrorKind`].
    pub async fn submit(&self, checked: &Checked, observer: &dyn Observer) -> Result<Submitted, EngineError> {
        submit::submit(self, checked, observer).await
    }

    /// Changes what is brought home of a task that is there. The script and its machines are not concerned.
    ///
    /// # Errors
    /// See [`ErrorKind`].
    pub async fn amend(
        &self,
        task: &Located,
        output: Option<&str>,
        exclude: &[String],
    ) -> Result<(), EngineError> {
        amend::amend(task, output, exclude).await
    }

    /// Finds a task by identifier or by name: among those known here first, then in the stores and the
    /// clouds.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], or [`ErrorKind::Ambiguous`] when several tasks have that name.
    pub async fn locate(&self, text: &str) -> Result<Located, EngineError> {
        find::locate(self, text).await
    }

    /// What is known of a task, from its record, its slots and its cloud.
    ///
    /// # Errors
    /// See [`ErrorKind`]. A cloud or a store that cannot be asked is an error, never an empty answer.
    pub async fn status(&self, task: &Located) -> Result<StatusReport, EngineError> {
        find::status(self, task).await
    }

    /// Every task that can be found: known here, in the stores, in the clouds.
    ///
    /// # Errors
    /// See [`ErrorKind`]; what cannot be asked is named in the report while anything else can.
    pub async fn list(&self) -> Result<ListReport, EngineError> {
        find::list(self).await
    }

    /// Asks the script to stop; results are saved and the machines give themselves back.
    ///
    /// # Errors
    /// See [`ErrorKind`].
    pub async fn stop(
        &self,
        task: &Located,
        options: StopOptions,
        observer: &dyn Observer,
    ) -> Result<StopReport, EngineError> {
        stop::stop(self, task, options, observer).await
    }

    /// Brings the newest saved results home and verifies them. Never replaces a local file that was changed
    /// here: both are kept.
    ///
    /// # Errors
    /// See [`ErrorKind`].
    pub async fn pull(
        &self,
        task: &Located,
        options: &PullOptions,
        observer: &dyn Observer,
    ) -> Result<PullReport, EngineError> {
        pull::pull(self, task, options, observer).await
    }

    /// Finds what tasks have left behind, and removes what nobody wants if that is asked for.
    ///
    /// # Errors
    /// See [`ErrorKind`]; what cannot be asked is named in the report while anything else can.
    pub async fn sweep(&self, options: &SweepOptions) -> Result<SweepReport, EngineError> {
        sweep::sweep(self, options).await
    }

    /// Ends the task: saves, brings results home, verifies them, removes every machine, proves it, and only
    /// then deletes what is in the store.
    ///
    /// # Errors
    /// See [`ErrorKind`]. Nothing is deleted when results could not be verified, unless they are given up.
    pub async fn destroy(
        &self,
        task: &Located,
        options: &DestroyOptions,
        observer: &dyn Observer,
    ) -> Result<DestroyReport, EngineError> {
        destroy::destroy(self, task, options, observer).await
    }
}

impl fmt::Display for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.id.fmt(f)
    }
}
