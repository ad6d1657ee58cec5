//! What Terraform asks for, in our own types: validate, plan, apply, read, import.
//!
//! A task is in one of these states for Terraform; `unfinished` is kept beside the state and found again by every read:
//!
//! ```text
//! (not in state) ─create─► unfinished ─► in state ─update─► in state ─destroy─► (not in state)
//!                              │  ▲                             ▲
//!                 Ctrl-C, error┘  └── read finds it cut off ────┘
//! ```
//!
//! Whatever is cut off is finished by applying or destroying again, because every step of the engine can be repeated.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use tokio_util::sync::CancellationToken;
use tpi_proto::{fault::chain, id::TaskId, tfplugin5::Diagnostic};

use super::{
    config, diagnostics,
    observe::{Seen, observe},
    plan::{self, Plan, Prior},
    private::Private,
    schema::TIMEOUTS,
    value::{Object, Value},
};
use crate::{
    cloud::{self, Registry},
    engine::{Engine, EngineError, ErrorKind, Located, Settings},
    home::{Home, KnownTask},
    spec::{self, Field, Surroundings, duration},
};

mod create;
mod destroy;

/// What an operation leaves.
#[derive(Debug)]
pub(super) struct Left {
    /// What there is now; absent: nothing.
    pub(super) object: Option<Object>,
    pub(super) private: Option<Private>,
    pub(super) diagnostics: Vec<Diagnostic>,
}

impl Left {
    fn nothing(diagnostics: Vec<Diagnostic>) -> Self {
        Self { object: None, private: None, diagnostics }
    }
}

/// One run of the provider.
#[derive(Debug, Clone)]
pub(super) struct Provider(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    engine: OnceLock<Engine>,
    around: Surroundings,
    /// Cancelled by Ctrl-C: what is being done is left to be finished by the next command.
    stop: CancellationToken,
    /// Tasks that this run has created: two resources must not share one.
    created: Mutex<BTreeSet<TaskId>>,
}

impl Provider {
    /// Of this process.
    pub(super) fn new(stop: CancellationToken) -> std::io::Result<Self> {
        let mut around = Surroundings::of_process(cloud::carried().into_iter())?;
        // What Terraform tells its plugins is not the user's, and a pattern may match anything.
        let plugins = |name: &OsString| {
            name.to_str().is_some_and(|n| n.starts_with("PLUGIN_") || n.starts_with("TF_PLUGIN_"))
        };
        around.environment.retain(|name, _| !plugins(name));
        Ok(Self(Arc::new(Inner { engine: OnceLock::new(), around, stop, created: Mutex::default() })))
    }

    fn around(&self) -> &Surroundings {
        &self.0.around
    }

    fn here(&self) -> &PathBuf {
        &self.0.around.current_dir
    }

    pub(super) fn stop(&self) {
        self.0.stop.cancel();
    }

    /// Made when it is first needed: most of what Terraform starts a provider for needs none.
    fn engine(&self) -> Result<&Engine, Diagnostic> {
        if let Some(engine) = self.0.engine.get() {
            return Ok(engine);
        }
        let home = Home::locate(None).map_err(|error| diagnostics::error(chain(&error), "", Vec::new()))?;
        let set = |name: &str| {
            self.around().environment.get(std::ffi::OsStr::new(name)).filter(|value| !value.is_empty())
        };
        let store = set("TPI_STORE").map(|text| {
            let text = text.to_string_lossy();
            url::Url::parse(&text).map_err(|error| {
                let summary = format!("the variable TPI_STORE, {text:?}, is not a URL");
                diagnostics::error(
                    summary,
                    format!("caused by: {error}\nhint: give file:///path or s3://bucket/prefix"),
                    Vec::new(),
                )
            })
        });
        let agent = set("TPI_AGENT").map(PathBuf::from);
        let clouds = Registry::built_in(&home);
        let settings = Settings { home, clouds, store: store.transpose()?, agent };
        Ok(self.0.engine.get_or_init(|| Engine::new(settings)))
    }

    /// Checks the surroundings once, before anything is asked of a cloud.
    pub(super) fn configure(&self) -> Vec<Diagnostic> {
        self.engine().err().into_iter().collect()
    }

    /// What can be said of a configuration without looking at this computer's files: it is asked for before a destroy as
    /// well, when they may be gone.
    pub(super) fn validate(&self, configured: &Object) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        if let Some(blocks @ 2..) = configured.get("storage").and_then(Value::as_list).map(<[Value]>::len) {
            let summary = format!("storage: {blocks} blocks, and a task has one");
            found.push(diagnostics::error(
                summary,
                "hint: put everything into one block",
                diagnostics::at("storage"),
            ));
        }
        for name in TIMEOUTS {
            if let Err(error) = limit(configured, name) {
                found.push(error);
            }
        }
        found.extend(self.check(configured, |field| field != Field::Workdir).1);
        found
    }

    /// Checks what is wanted and known; what is not known yet is checked when it is.
    fn check(
        &self,
        object: &Object,
        wanted: impl Fn(Field) -> bool,
    ) -> (Option<spec::Checked>, Vec<Diagnostic>) {
        let config::Requested { request, unknown } = config::request(object);
        match spec::check(&request, self.around()) {
            Ok(checked) => (unknown.is_empty().then_some(checked), Vec::new()),
            Err(errors) => {
                let told = errors.0.iter().filter(|e| wanted(e.field) && !unknown.contains(&e.field));
                (None, told.map(diagnostics::of_spec).collect())
            }
        }
    }

    /// What applying a configuration would come to. The second part is for Terraform to keep.
    pub(super) fn plan(
        &self,
        configured: &Object,
        prior: Option<(&Object, Option<&Private>)>,
    ) -> (Plan, Vec<Diagnostic>) {
        let before = prior.map(|(object, private)| Prior {
            object,
            unfinished: private.is_some_and(|p| p.unfinished),
            imported: private.is_some_and(|p| p.imported),
        });
        let plan = plan::plan(configured, before, self.here());
        let found = match prior {
            None => {
                let (checked, mut found) = self.check(&plan.planned, |_| true);
                if let Some(checked) = checked {
                    found.extend(checked.warnings.iter().map(|warning| diagnostics::warning(warning, "")));
                    found.extend(resolved(&checked.spec));
                    let store = self.engine().map(|engine| engine.check_store(&checked.spec));
                    found.extend(match store {
                        Ok(store) => store.err().map(|error| diagnostics::of_engine(&error, &[])),
                        Err(error) => Some(error),
                    });
                }
                found.extend(without_effect(&plan.planned));
                found
            }
            Some((object, _)) if plan.replaces.is_empty() && plan::amends(&plan.planned, object) => {
                self.check(&plan.planned, |field| matches!(field, Field::Output | Field::Exclude)).1
            }
            Some(_) => Vec::new(),
        };
        (plan, found)
    }

    /// Finds a task by its identifier, wherever the state says it is.
    async fn locate(
        &self,
        engine: &Engine,
        id: &TaskId,
        object: &Object,
        private: Option<&Private>,
    ) -> Result<Located, EngineError> {
        let home = &engine.settings().home;
        if let Some(Private { cloud: Some(cloud), store: Some(store), .. }) = private
            && matches!(home.recall(id), Ok(None))
        {
            let text = |name: &str| object.get(name).and_then(Value::as_text).unwrap_or_default().to_owned();
            let known = KnownTask {
                id: id.clone(),
                name: text("name"),
                cloud: *cloud,
                store: store.clone(),
                region: text("region"),
            };
            if let Err(error) = home.remember(&known) {
                tracing::warn!(%error, "a task cannot be noted");
            }
        }
        let located = engine.locate(id.as_str()).await;
        if located.as_ref().is_err_and(|error| error.kind == ErrorKind::NotFound)
            && let Err(error) = home.forget(id)
        {
            tracing::debug!(%error, "a note of a task stays");
        }
        located
    }

    /// What has become of a task. One that is gone leaves the state; one that cannot be asked for is an error.
    pub(super) async fn read(&self, mut object: Object, private: Option<Private>) -> Left {
        let keep = |object, private, diagnostics| Left { object: Some(object), private, diagnostics };
        let engine = match self.engine() {
            Ok(engine) => engine,
            Err(error) => return keep(object, private, vec![error]),
        };
        let id = match identifier(&object) {
            Ok(id) => id,
            Err(error) => return keep(object, private, vec![error]),
        };
        let located = match self.locate(engine, &id, &object, private.as_ref()).await {
            Ok(located) => located,
            Err(error) if error.kind == ErrorKind::NotFound => {
                return match why_kept(&id, private.as_ref()) {
                    Some((summary, detail)) => {
                        keep(object, private, vec![diagnostics::warning(summary, detail)])
                    }
                    None => {
                        tracing::info!(%id, "the task is gone");
                        Left::nothing(Vec::new())
                    }
                };
            }
            Err(error) => return keep(object, private, vec![diagnostics::of_engine(&error, &[])]),
        };
        let seen = match observe(engine, &located).await {
            Ok(seen) => seen,
            Err(error) if error.kind == ErrorKind::NotFound => return Left::nothing(Vec::new()),
            Err(error) => return keep(object, private, vec![diagnostics::of_engine(&error, &[])]),
        };
        let mut now = private.unwrap_or_else(|| Private::new(None, None));
        (now.cloud, now.store) = (Some(located.cloud), Some(located.store.url().clone()));
        now.unfinished = seen.unfinished;
        let mut found = Vec::new();
        if seen.report.intent == Some(tpi_store::record::Intent::Destroy) {
            found.push(diagnostics::warning(
                format!("the task {id} is being destroyed"),
                "hint: a destroy was cut off; `terraform destroy` finishes it",
            ));
        } else if located.record.is_none() || seen.report.overdue {
            found.extend(seen.report.warnings.iter().map(|warning| diagnostics::warning(warning, "")));
        }
        adopt(&mut object, seen);
        Left { object: Some(object), private: Some(now), diagnostics: found }
    }

    /// A task that is there, as if this configuration had made it.
    pub(super) async fn import(&self, text: &str) -> Left {
        let failed = |diagnostic| Left::nothing(vec![diagnostic]);
        let engine = match self.engine() {
            Ok(engine) => engine,
            Err(error) => return failed(error),
        };
        let located = match engine.locate(text).await {
            Ok(located) => located,
            Err(error) => return failed(diagnostics::of_engine(&error, &[])),
        };
        let Some(record) = &located.record else {
            let summary = format!("the record of {located} is lost");
            return failed(diagnostics::error(
                summary,
                format!("hint: `tpi-controller destroy {located}` removes its machines"),
                Vec::new(),
            ));
        };
        // Only a name that leads to this task again is its name.
        let name = &record.spec.name;
        let leads_back = TaskId::deterministic(name).is_ok_and(|id| id == located.id);
        let mut object = config::arguments(&record.spec, leads_back.then_some(name.as_str()));
        drop(object.insert("id".to_owned(), Value::text(located.id.as_str())));
        let mut private = Private::new(Some(located.cloud), Some(located.store.url().clone()));
        private.imported = true;
        Left { object: Some(object), private: Some(private), diagnostics: Vec::new() }
    }

    pub(super) async fn apply(
        &self,
        prior: Option<Object>,
        planned: Option<Object>,
        private: Option<Private>,
    ) -> Left {
        match (prior, planned) {
            (None, None) => Left::nothing(Vec::new()),
            (None, Some(planned)) => self.create(planned).await,
            (Some(prior), Some(planned)) => self.update(&prior, planned, private).await,
            (Some(prior), None) => self.destroy(prior, private).await,
        }
    }

    fn created(&self, id: &TaskId) -> bool {
        self.0.created.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone())
    }
}

/// Notes what aliases stand for, where that decides what is paid.
fn resolved(spec: &tpi_proto::spec::TaskSpec) -> Option<Diagnostic> {
    let native = |table: &[spec::place::Alias], text: &str| {
        let alias = table.iter().find(|alias| alias.alias == text)?;
        alias.native(spec.cloud).filter(|native| *native != text).map(|native| format!("{text} is {native}"))
    };
    let told: BTreeMap<_, _> = [
        ("machine", native(&spec::place::MACHINES, &spec.machine)),
        ("region", native(&spec::place::REGIONS, &spec.region)),
    ]
    .into_iter()
    .filter_map(|(name, told)| Some((name, told?)))
    .collect();
    let summary = told.iter().map(|(name, told)| format!("{name} {told}")).collect::<Vec<_>>().join(", ");
    (!summary.is_empty()).then(|| diagnostics::warning(format!("in {}: {summary}", spec.cloud), ""))
}

/// Says what published configurations have and nothing here makes use of.
fn without_effect(planned: &Object) -> Option<Diagnostic> {
    let options = config::storage(planned)?.get("container_opts")?.as_map()?;
    (!options.is_empty()).then(|| {
        diagnostics::warning(
            "storage.container_opts has no effect",
            "The bucket's region and the credentials for it are taken from the environment, as by the cloud's own tools.",
        )
    })
}

/// Puts what was seen into a state.
fn adopt(object: &mut Object, seen: Seen) {
    object.extend(seen.computed);
}

fn identifier(object: &Object) -> Result<TaskId, Diagnostic> {
    let text = object.get("id").and_then(Value::as_text).unwrap_or_default();
    text.parse().map_err(|error: tpi_proto::id::TaskIdError| {
        let detail = "hint: `terraform state rm` makes Terraform forget the resource, and nothing else";
        diagnostics::error(format!("the state has no identifier of a task: {error}"), detail, Vec::new())
    })
}

/// Why a task that cannot be found is not taken for gone.
fn why_kept(id: &TaskId, private: Option<&Private>) -> Option<(String, String)> {
    let forget = "`terraform state rm` makes Terraform forget it, and nothing else";
    let Some(private) = private else {
        return Some((
            format!("the task {id} was not made by this provider, which cannot see it"),
            format!(
                "Its state is kept as it is. If it still exists, the earlier version of the provider that made it has to destroy it.\nhint: {forget}"
            ),
        ));
    };
    let folder = private.store.as_ref().filter(|url| url.scheme() == "file")?.to_file_path().ok()?;
    (!folder.is_dir()).then(|| {
        (
            format!("the task {id} has its record in {}, which is not on this computer", folder.display()),
            format!("Its state is kept as it is.\nhint: run Terraform where the task was made, or name its store with TPI_STORE\nhint: {forget}"),
        )
    })
}

/// How long an operation may take, where the user says so.
fn limit(object: &Object, operation: &str) -> Result<Option<Duration>, Diagnostic> {
    let timeouts = object.get("timeouts").and_then(Value::as_map);
    let Some(text) = timeouts.and_then(|block| block.get(operation)).and_then(Value::as_text) else {
        return Ok(None);
    };
    match duration::seconds(text) {
        Ok(seconds) if seconds > 0 => Ok(Some(Duration::from_secs(seconds))),
        Ok(_) => Err("is 0".to_owned()),
        Err(error) => Err(error.to_string()),
    }
    .map_err(|cause| {
        let summary = format!("timeouts.{operation} {text:?}: {cause}");
        let mut place = diagnostics::at("timeouts");
        place.extend(diagnostics::at(operation));
        diagnostics::error(summary, "hint: give numbers with s, m, h or d, such as 15m or 1h30m", place)
    })
}
