//! Submit: record, then environment, workspace, agent, certificate and the store's clock at once, then the deadline,
//! then machines.
//!
//! What is done next is decided anew after each step from the record, so a second controller that does the same, or
//! this one run again, finishes what is missing and repeats nothing that matters. The record is read when somebody
//! else may have written it: as long as it is ours alone, each step swaps it for the next version.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex, OnceCell};
use tpi_proto::spec::StorageSpec;
use tpi_store::{
    Store, StoreErrorKind, Version,
    layout::TaskKeys,
    record::{Environment, Intent, RECORD_VERSION, TaskRecord},
    rules::Rules,
    snapshot::{self, PushOptions, Space},
};
use url::Url;

mod differences;

use self::differences::{differing_fields, same_name};
use super::{
    Engine, EngineError, ErrorKind, Observer, Progress, REPORT_VERSION, Step, SubmitOutcome, Submitted,
    Transfer,
    facts::{self, Change, Facts, WRITER},
    hook::{Moment, reached},
    preflight::{doubts, fits},
    progress::Relay,
};
use crate::{
    cloud::{Cloud, GroupSpec, plan::CloudPlan},
    home::{Home, KnownTask},
    link::UserIdentity,
    spec::Checked,
    task::{Action, Done, TaskState},
};

pub(super) struct Submission<'a> {
    home: &'a Home,
    url: Url,
    store: Store,
    /// The record as it was read or written last.
    known: Mutex<Option<(TaskRecord, Version)>>,
    /// The store's clock against this computer's, where it was compared.
    offset: OnceCell<SignedDuration>,
    checked: &'a Checked,
    agent: Option<&'a Path>,
    observer: &'a dyn Observer,
    /// What the cloud would make, where that was asked beforehand.
    planned: Option<CloudPlan>,
}

/// Where a task goes.
pub(super) struct Place {
    pub(super) cloud: Arc<dyn Cloud>,
    pub(super) url: Url,
    pub(super) store: Store,
}

/// Opens the store, and refuses one that machines cannot reach.
pub(super) async fn place(engine: &Engine, checked: &Checked) -> Result<Place, EngineError> {
    let cloud = engine.cloud(checked.spec.cloud)?;
    let url = engine.store_of(cloud.as_ref(), &checked.spec).await?;
    Engine::check_place(checked.spec.cloud, &url)?;
    let store = engine.open(&url).await?;
    Ok(Place { cloud, url, store })
}

pub(super) async fn submit(
    engine: &Engine,
    checked: &Checked,
    observer: &dyn Observer,
) -> Result<Submitted, EngineError> {
    let task = &checked.id;
    let place = place(engine, checked).await?;
    let mut work = Submission::new(engine, &place, checked, observer);
    let Place { cloud, url, .. } = place;
    work.preflight(cloud.as_ref()).await?;
    let home = &engine.settings().home;
    home.remember(&KnownTask {
        id: task.clone(),
        name: checked.spec.name.clone(),
        cloud: checked.spec.cloud,
        store: url.clone(),
        region: checked.spec.region.clone(),
    })
    .map_err(EngineError::home)?;

    engine.make_store(cloud.as_ref(), &checked.spec).await?;
    let found = work.record().await?;
    let mut done = Done::default();
    let mut ordered = false;
    // Set once the clock has been started here: then no machine can have been ordered by anybody else.
    let mut started = false;
    let mut seen: Option<Facts> = None;
    let (record, ended) = loop {
        let known = work.known.lock().await.clone().map(|(record, _)| record);
        let facts = match (seen.take(), known) {
            (Some(facts), _) => facts,
            (None, Some(record)) if record.intent == Intent::Submit || (started && !ordered) => {
                Facts::before_machines(record)
            }
            (None, _) => Facts::read(&work.store, cloud.as_ref(), task).await?,
        };
        let Some(record) = facts.record.clone() else {
            return Err(being_destroyed(checked));
        };
        if record.intent == Intent::Submit && record.spec != checked.spec {
            return Err(overtaken(checked));
        }
        let ended = matches!(facts.state(), TaskState::Finished { .. });
        if record.intent == Intent::Run && !ended && !done.client {
            work.client().await?;
            done.client = true;
            continue;
        }
        match facts.next(done) {
            Action::StoreEnvironment
            | Action::StoreWorkspace
            | Action::StoreAgent
            | Action::PublishClient => work.prepare(&mut done, &record).await?,
            Action::StartClock => {
                started = work.clock().await?;
            }
            // The group ended by itself although slots have not: starting it again would not help them.
            Action::EnsureMachines if ordered => {
                return Err(EngineError::new(
                    ErrorKind::CloudRefused,
                    format!("the machines of {task} have ended before its slots did"),
                )
                .of(task)
                .hint(format!("`tpi-controller destroy {task}`, then submit again")));
            }
            Action::EnsureMachines => {
                seen = Some(work.machines(cloud.as_ref(), &record).await?);
                ordered = true;
            }
            Action::RemoveMachines => {
                let _gone = cloud.destroy(task).await.map_err(EngineError::cloud(task))?;
                ordered = true;
            }
            Action::Wait | Action::Rest => break (record, ended),
            // Whoever looks at the task next decides: machines may have been ordered a moment ago.
            Action::GiveUp => break (record, ended),
            Action::StopSlots
            | Action::AwaitSaves
            | Action::SecureResults
            | Action::Prove
            | Action::EraseStore => return Err(being_destroyed(checked)),
        }
    };

    let differs = match found {
        Found::Nothing => Vec::new(),
        Found::Something => work.differences(&record).await?,
    };
    let outcome = match (found, ended, ordered) {
        (Found::Nothing, _, _) => SubmitOutcome::New,
        (Found::Something, true, _) => SubmitOutcome::Ended,
        (Found::Something, false, true) => SubmitOutcome::Resumed,
        (Found::Something, false, false) => SubmitOutcome::Running,
    };
    let mut warnings = checked.warnings.clone();
    if !differs.is_empty() {
        warnings.push(format!(
            "the task {task} is there already, with other values of {}: they stay as they are",
            differs.join(", ")
        ));
    }
    if outcome == SubmitOutcome::Ended {
        warnings.push(format!(
            "the task {task} has ended and was not started again: `tpi-controller pull {task}` brings its results home, `tpi-controller destroy {task}` makes room for a new one"
        ));
    }
    Ok(Submitted {
        version: REPORT_VERSION,
        id: task.clone(),
        name: record.spec.name,
        cloud: record.spec.cloud,
        store: url,
        deadline: record.deadline,
        outcome,
        differs,
        warnings,
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    Something,
}

fn being_destroyed(checked: &Checked) -> EngineError {
    let task = &checked.id;
    EngineError::new(ErrorKind::BeingDestroyed, format!("the task {task} is being destroyed"))
        .of(task)
        .hint(format!("let `tpi-controller destroy {task}` finish, then submit again"))
        .hint("or submit under another name with `--name`")
}

fn overtaken(checked: &Checked) -> EngineError {
    let task = &checked.id;
    EngineError::new(
        ErrorKind::User,
        format!("another program submits {task} with other settings at the same time"),
    )
    .of(task)
    .hint("submit under another name with `--name`, or run this again when the other one is done")
}

impl<'a> Submission<'a> {
    pub(super) fn new(
        engine: &'a Engine,
        place: &Place,
        checked: &'a Checked,
        observer: &'a dyn Observer,
    ) -> Self {
        let settings = engine.settings();
        let agent = settings.agent.as_deref();
        let store = place.store.clone();
        Self {
            home: &settings.home,
            url: place.url.clone(),
            store,
            known: Mutex::default(),
            offset: OnceCell::new(),
            checked,
            agent,
            observer,
            planned: None,
        }
    }

    /// Asks the cloud, before anything is written or sent, whether it can be what is asked for. A task that has its
    /// machines already is not asked about: they count against the account's limits.
    async fn preflight(&mut self, cloud: &dyn Cloud) -> Result<(), EngineError> {
        let task = &self.checked.id;
        // The agent is not read yet; any other fingerprint is as long.
        let want = self.group(Timestamp::now(), "0".repeat(64))?;
        let (found, planned) =
            futures::future::join(facts::read_record(&self.store, task), cloud.plan(&want)).await;
        let found = match found {
            // It is about to be made.
            Err(error) if facts::is_no_bucket(&error) => None,
            found => found?,
        };
        if found.is_some_and(|(record, _)| record.intent != Intent::Submit) {
            return Ok(());
        }
        let planned = planned.map_err(EngineError::planning(task))?;
        for message in &planned.warnings {
            self.observer.progress(Progress::Warning { message: message.clone() });
        }
        self.planned = Some(planned);
        Ok(())
    }

    /// Plans as if nothing were stored, where the store is not made yet.
    pub(super) fn without_store(&mut self) {
        self.store = Store::memory();
    }

    /// What the cloud would be asked for, were the clock started now.
    pub(super) fn group(&self, now: Timestamp, agent_sha256: String) -> Result<GroupSpec, EngineError> {
        let timeout = jiff::SignedDuration::try_from(self.checked.spec.timeout()).unwrap_or_default();
        let deadline = now
            .checked_add(timeout)
            .map_err(|e| EngineError::new(ErrorKind::User, "adding the timeout to the time").because(e))?;
        Ok(GroupSpec {
            task: self.checked.id.clone(),
            spec: self.checked.spec.clone(),
            store: self.url.clone(),
            deadline,
            agent_sha256,
        })
    }

    fn keys(&self) -> TaskKeys {
        TaskKeys::new(&self.checked.id)
    }

    fn begin(&self, step: Step) {
        self.observer.progress(Progress::Step { step });
        reached(Moment::Before, step);
    }

    /// Creates the record, or takes over the one of a submission that was cut off.
    async fn record(&self) -> Result<Found, EngineError> {
        reached(Moment::Before, Step::Record);
        let task = &self.checked.id;
        let record = TaskRecord {
            version: RECORD_VERSION,
            id: task.clone(),
            writer: WRITER.to_owned(),
            created: Timestamp::now(),
            spec: self.checked.spec.clone(),
            intent: Intent::Submit,
            deadline: None,
            agent_sha256: None,
            input_stored: false,
            gave_up: None,
        };
        match self.store.create_json(&self.keys().record(), &record).await {
            Ok(version) => {
                *self.known.lock().await = Some((record, version));
                self.observer.progress(Progress::Step { step: Step::Record });
                reached(Moment::After, Step::Record);
                return Ok(Found::Nothing);
            }
            Err(error) if error.kind == StoreErrorKind::AlreadyExists => {}
            Err(error) => return Err(EngineError::store(format!("creating the record of {task}"))(error)),
        }
        let found = facts::change_known(&self.store, task, None, |record| {
            if !same_name(&record.spec.name, &self.checked.spec.name) {
                return Err(EngineError::new(
                    ErrorKind::User,
                    format!(
                        "the names {:?} and {:?} give the same identifier {task}, and a task with the former is there",
                        record.spec.name, self.checked.spec.name
                    ),
                )
                .of(task)
                .hint("choose a name that differs within its first 28 letters and digits"));
            }
            match record.intent {
                Intent::Destroy => Err(being_destroyed(self.checked)),
                Intent::Run => Ok(Change::Keep),
                Intent::Submit if record.spec == self.checked.spec => Ok(Change::Keep),
                // Nothing was ordered yet, so the newest request is what counts.
                Intent::Submit => {
                    record.spec = self.checked.spec.clone();
                    record.input_stored = false;
                    Ok(Change::Write)
                }
            }
        })
        .await?;
        match found {
            Some(found) => {
                *self.known.lock().await = Some(found);
                Ok(Found::Something)
            }
            None => Err(being_destroyed(self.checked)),
        }
    }

    /// Everything that is missing before machines can be ordered, at once; then the record says so.
    async fn prepare(&self, done: &mut Done, record: &TaskRecord) -> Result<(), EngineError> {
        let environment = async { if done.environment { Ok(()) } else { self.environment().await } };
        let workspace = async { if record.input_stored { Ok(()) } else { self.workspace().await } };
        let agent = async {
            match &record.agent_sha256 {
                Some(_) => Ok(None),
                None => self.agent().await.map(Some),
            }
        };
        let client = async { if done.client { Ok(()) } else { self.client().await } };
        let offset = self.compare_clocks();
        let ((), (), sha256, (), _offset) =
            futures::future::try_join5(environment, workspace, agent, client, offset).await?;
        done.environment = true;
        done.client = true;
        self.advance(|record| {
            let stored = std::mem::replace(&mut record.input_stored, true);
            let before = record.agent_sha256.clone();
            record.agent_sha256 = sha256.clone().or(before.clone());
            !stored || before != record.agent_sha256
        })
        .await?;
        if !record.input_stored {
            reached(Moment::After, Step::Workspace);
        }
        if record.agent_sha256.is_none() {
            reached(Moment::After, Step::Agent);
        }
        Ok(())
    }

    async fn compare_clocks(&self) -> Result<SignedDuration, EngineError> {
        let keys = self.keys();
        let compared = self.offset.get_or_try_init(|| self.store.clock_offset(keys.root()));
        compared
            .await
            .copied()
            .map_err(EngineError::store("comparing this computer's clock with the store's"))
    }

    async fn environment(&self) -> Result<(), EngineError> {
        self.begin(Step::Environment);
        let _version = self
            .store
            .put_json(&self.keys().environment(), &self.checked.environment)
            .await
            .map_err(EngineError::store("storing the environment"))?;
        reached(Moment::After, Step::Environment);
        Ok(())
    }

    fn root(&self) -> Option<PathBuf> {
        self.checked.spec.storage.workdir.as_deref().map(PathBuf::from)
    }

    /// What is in the work directory, and what of it the store has.
    pub(super) async fn scan(&self) -> Result<snapshot::Plan, EngineError> {
        let StorageSpec { workdir, output: _, exclude, gitignore, container: _ } = &self.checked.spec.storage;
        let root = match workdir {
            Some(workdir) => PathBuf::from(workdir),
            None => self.empty_directory()?,
        };
        let index_dir = self.home.index_dir();
        std::fs::create_dir_all(&index_dir)
            .map_err(|e| file_error(format!("making {}", index_dir.display()), e))?;
        let index = index_dir.join(hex::encode(Sha256::digest(root.as_os_str().as_encoded_bytes())));
        let options = PushOptions {
            rules: rules(exclude, *gitignore)?,
            space: Space::Cache,
            index: Some(index),
            base: None,
        };
        let scan = Relay::new(self.observer, Transfer::Scan);
        let plan = snapshot::plan(&self.store, &root, options, &scan)
            .await
            .map_err(EngineError::snapshot(format!("reading {}", root.display())))?;
        self.observer.progress(Progress::TransferDone { transfer: Transfer::Scan });
        Ok(plan)
    }

    async fn workspace(&self) -> Result<(), EngineError> {
        self.begin(Step::Workspace);
        let sending = || match self.root() {
            Some(root) => format!("sending {}", root.display()),
            None => "sending nothing".to_owned(),
        };
        let plan = self.scan().await?;
        if let Some(planned) = &self.planned {
            let bytes = plan.summary().bytes;
            fits(self.checked, planned, bytes)?;
            if let Some(message) = doubts(planned, bytes) {
                self.observer.progress(Progress::Warning { message });
            }
        }
        for warning in plan.warnings() {
            self.observer.progress(Progress::Warning { message: warning.clone() });
        }
        self.observer.progress(Progress::SendPlan { plan: plan.summary() });
        let relay = Relay::new(self.observer, Transfer::Workspace);
        let manifest =
            snapshot::push(&self.store, plan, &relay).await.map_err(EngineError::snapshot(sending()))?;
        let _version = self
            .store
            .put(&self.keys().input(), manifest.to_bytes())
            .await
            .map_err(EngineError::store(sending()))?;
        self.observer.progress(Progress::TransferDone { transfer: Transfer::Workspace });
        reached(Moment::During, Step::Workspace);
        Ok(())
    }

    fn empty_directory(&self) -> Result<PathBuf, EngineError> {
        let path = self.home.root().join("empty");
        std::fs::create_dir_all(&path).map_err(|e| file_error(format!("making {}", path.display()), e))?;
        Ok(path)
    }

    /// Hash and size of the agent.
    pub(super) async fn read_agent(&self) -> Result<(String, u64), EngineError> {
        let path = find_agent(self.agent)?;
        let reading = format!("reading the agent {}", path.display());
        match tokio::task::spawn_blocking(move || hash(&path)).await {
            Ok(Ok(content)) => Ok(content),
            Ok(Err(error)) => Err(file_error(reading, error)),
            Err(error) => Err(EngineError::new(ErrorKind::Internal, reading).because(error)),
        }
    }

    /// Its SHA-256.
    async fn agent(&self) -> Result<String, EngineError> {
        self.begin(Step::Agent);
        let path = find_agent(self.agent)?;
        let (sha256, size) = self.read_agent().await?;
        let key = self.keys().agent(&sha256);
        let sending = || format!("sending the agent {}", path.display());
        let transfer = Transfer::Agent;
        let there = self.store.head(&key).await.map_err(EngineError::store(sending()))?;
        if there.is_none_or(|object| object.size != size) {
            self.observer.progress(Progress::TransferTotal { transfer, bytes: size });
            self.store.put_file(&key, &path).await.map_err(EngineError::store(sending()))?;
            self.observer.progress(Progress::TransferAdvance { transfer, bytes: size });
            self.observer.progress(Progress::TransferDone { transfer });
        }
        reached(Moment::During, Step::Agent);
        Ok(sha256)
    }

    async fn client(&self) -> Result<(), EngineError> {
        self.begin(Step::Client);
        let identity = UserIdentity::load_or_create(self.home.root())
            .map_err(|e| EngineError::new(ErrorKind::User, "making this user's key").because(e))?;
        identity
            .publish(&self.store, &self.checked.id)
            .await
            .map_err(EngineError::store("publishing this user's certificate"))?;
        reached(Moment::After, Step::Client);
        Ok(())
    }

    /// The deadline counts by the store's clock, which is also what machines correct theirs by. Whether it was
    /// this program that set it.
    async fn clock(&self) -> Result<bool, EngineError> {
        self.begin(Step::Clock);
        let offset = self.compare_clocks().await?;
        let timeout = SignedDuration::try_from(self.checked.spec.timeout()).unwrap_or_default();
        let deadline = Timestamp::now()
            .checked_add(offset)
            .and_then(|now| now.checked_add(timeout))
            .map_err(|e| EngineError::new(ErrorKind::User, "adding the timeout to the time").because(e))?;
        self.advance(|record| {
            record.deadline = Some(deadline);
            record.intent = Intent::Run;
            true
        })
        .await?;
        reached(Moment::After, Step::Clock);
        let known = self.known.lock().await;
        Ok(known.as_ref().is_some_and(|(record, _)| record.deadline == Some(deadline)))
    }

    /// What there is then.
    async fn machines(&self, cloud: &dyn Cloud, record: &TaskRecord) -> Result<Facts, EngineError> {
        self.begin(Step::Machines);
        let task = &self.checked.id;
        let (Some(deadline), Some(agent_sha256)) = (record.deadline, record.agent_sha256.clone()) else {
            return Err(EngineError::new(
                ErrorKind::Internal,
                format!("the record of {task} wants machines without saying until when or with which agent"),
            )
            .of(task)
            .hint(format!("`tpi-controller destroy {task}`, then submit again")));
        };
        let want = GroupSpec {
            task: task.clone(),
            spec: record.spec.clone(),
            store: self.url.clone(),
            deadline,
            agent_sha256,
        };
        let observed = cloud.ensure(&want).await.map_err(EngineError::cloud(task))?;
        // Somebody may have destroyed the task while machines were being ordered: then they are nobody's.
        let facts = Facts::read_beside(&self.store, task, observed).await?;
        let same = |r: &TaskRecord| r.intent == Intent::Run && r.created == record.created;
        if !facts.record.as_ref().is_some_and(same) {
            let _gone = cloud.destroy(task).await.map_err(EngineError::cloud(task))?;
            return Err(being_destroyed(self.checked));
        }
        reached(Moment::After, Step::Machines);
        Ok(facts)
    }

    /// Notes a step in the record while it is still being submitted; nothing when somebody else was faster.
    async fn advance(&self, mut note: impl FnMut(&mut TaskRecord) -> bool) -> Result<(), EngineError> {
        let mut known = self.known.lock().await;
        let record = known.take();
        let record =
            facts::change_known(&self.store, &self.checked.id, record, |record| match record.intent {
                Intent::Submit if record.spec != self.checked.spec => Err(overtaken(self.checked)),
                Intent::Submit => Ok(if note(record) { Change::Write } else { Change::Keep }),
                Intent::Run => Ok(Change::Keep),
                Intent::Destroy => Err(being_destroyed(self.checked)),
            })
            .await?;
        *known = record;
        match &*known {
            Some(_) => Ok(()),
            None => Err(being_destroyed(self.checked)),
        }
    }

    async fn differences(&self, record: &TaskRecord) -> Result<Vec<String>, EngineError> {
        let mut fields = differing_fields(&record.spec, &self.checked.spec).map_err(|error| {
            EngineError::new(ErrorKind::Internal, format!("comparing two requests for {}", self.checked.id))
                .because(error)
        })?;
        let stored = self
            .store
            .get_json::<Environment>(&self.keys().environment())
            .await
            .map_err(EngineError::store("reading the environment"))?;
        if let Some((stored, _)) = stored
            && stored.variables != self.checked.environment.variables
            && !fields.iter().any(|f| f == "environment")
        {
            fields.push("environment".to_owned());
        }
        Ok(fields)
    }
}

fn file_error(message: String, error: io::Error) -> EngineError {
    EngineError::new(ErrorKind::User, message).because(error)
}

pub(super) fn rules(exclude: &[String], gitignore: bool) -> Result<Rules, EngineError> {
    Rules::new(exclude, gitignore).map_err(|errors| {
        let all = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        EngineError::new(ErrorKind::User, all)
    })
}

/// As given, else `$TPI_AGENT`, else `tpi-agent` beside this program.
fn find_agent(given: Option<&Path>) -> Result<PathBuf, EngineError> {
    let missing = |path: &Path| {
        EngineError::new(ErrorKind::User, format!("there is no agent at {}", path.display()))
            .hint("name the agent's program with `--agent FILE` or TPI_AGENT")
            .hint("or build it: `cargo build -p tpi-agent`")
    };
    let named = given
        .map(Path::to_path_buf)
        .or_else(|| std::env::var_os("TPI_AGENT").filter(|v| !v.is_empty()).map(PathBuf::from));
    let path = match named {
        Some(path) => path,
        None => std::env::current_exe()
            .map_err(|e| file_error("finding this program".to_owned(), e))?
            .with_file_name("tpi-agent"),
    };
    if path.is_file() { Ok(path) } else { Err(missing(&path)) }
}

fn hash(path: &Path) -> io::Result<(String, u64)> {
    use io::Read as _;
    let mut file = std::fs::File::open(path)?;
    let (mut hash, mut size) = (Sha256::new(), 0u64);
    let mut buffer = vec![0u8; 1 << 18];
    loop {
        let n = file.read(&mut buffer)?;
        let Some(piece) = buffer.get(..n).filter(|p| !p.is_empty()) else {
            return Ok((hex::encode(hash.finalize()), size));
        };
        hash.update(piece);
        size += u64::try_from(n).unwrap_or(0);
    }
}
