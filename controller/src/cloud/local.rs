//! This computer, behaving like a cloud, because it is how everyone will develop.
//!
//! Each task has a scaling group: a small detached process ([`group`]) that keeps its machines, each one
//! agent with a directory and a session of its own. The group survives the controller and never outlives the
//! task. Nothing costs anything and no permission is needed; machines are not isolated from each other or
//! from the user: scripts run as the user does.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use rustix::process::Signal;
use tpi_proto::{
    id::TaskId,
    spec::{CloudName, Ingress},
};
use tpi_store::{Store, StoreError};
use url::Url;

use self::{
    files::{Files, GroupConfig, LOCAL_VERSION, Ledger},
    process::ProcessId,
};
use super::{
    Cloud, CloudError, CloudErrorKind, GroupSpec, GroupState, Leftover, Leftovers, Machine, MachineEnd,
    Observed, Regions,
    plan::{Ceiling, CloudPlan, Offer, PriceBasis, Resource},
};
use crate::home::Home;

mod files;
pub mod group;
mod machine;
mod process;
mod release;
mod survey;

/// Longest time for a group to begin.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// Longest time for a group to end after SIGTERM: its own grace and some.
const END_PATIENCE: Duration = Duration::from_secs(20);
/// What a plan calls a group.
const GROUP_KIND: &str = "scaling group";
const POLL: Duration = Duration::from_millis(20);
/// How long ended machines are remembered after a task was destroyed.
const LEDGER_LIFE: SignedDuration = SignedDuration::from_hours(7 * 24);

/// The local cloud of one state directory.
#[derive(Debug, Clone)]
pub struct Local {
    root: PathBuf,
    home: Home,
    program: Option<PathBuf>,
}

impl Local {
    /// Keeps groups below the state directory; each is a process of this same program.
    #[must_use]
    pub fn new(home: &Home) -> Self {
        Self { root: home.local_dir(), home: home.clone(), program: None }
    }

    /// Runs groups with another program that has the `local-group` command: for programs that only link
    /// this library.
    #[must_use]
    pub fn with_program(mut self, program: PathBuf) -> Self {
        self.program = Some(program);
        self
    }

    /// Held while a verb changes the world; released when it is dropped.
    async fn lock(&self, files: &Files) -> Result<File, CloudError> {
        let path = files.verb_lock();
        let open = || {
            use std::os::unix::fs::DirBuilderExt as _;
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path.parent().unwrap_or(Path::new("/")))?;
            files::open_lock(&path)
        };
        let file = open().map_err(|e| failed(format!("opening {path:?}"), Leftovers::None, e))?;
        // Another verb is bounded by its own patience; this outlasts it.
        let begun = Instant::now();
        loop {
            match files::try_lock(&file) {
                Ok(true) => return Ok(file),
                Ok(false) if begun.elapsed() < 2 * START_PATIENCE => tokio::time::sleep(POLL).await,
                Ok(false) => {
                    return Err(failed(
                        format!("waiting for another program that works on {:?}", files.dir()),
                        Leftovers::Unknown,
                        io::Error::from(io::ErrorKind::TimedOut),
                    ));
                }
                Err(e) => return Err(failed(format!("locking {path:?}"), Leftovers::None, e)),
            }
        }
    }

    fn look(&self, task: &TaskId) -> Result<Observed, CloudError> {
        let files = Files::new(&self.root, task);
        let reading = |e| failed(format!("reading the group of {task}"), Leftovers::Unknown, e);
        let runs = |state: &files::GroupState| state.process.is_some_and(ProcessId::is_alive);
        let mut read = files.read_state().map_err(reading)?;
        let mut running = read.as_ref().is_some_and(runs);
        if !running && read.as_ref().is_some_and(|state| state.process.is_some()) {
            // It may have noted its end, and ended, since that was read; what it leaves now is its last word.
            read = files.read_state().map_err(reading)?;
            running = read.as_ref().is_some_and(runs);
        }
        let Some(state) = read else {
            let machines = files.read_ledger().map_err(reading)?.map(|l| l.machines).unwrap_or_default();
            return Ok(Observed { group: GroupState::Absent, machines, shortages: Vec::new() });
        };
        let now = Timestamp::now();
        let machines = state
            .machines
            .iter()
            .map(|entry| {
                let mut entry = entry.clone();
                // Looking through all processes is only for machines whose agent is gone.
                if entry.is_alive()
                    && !entry.agent.is_some_and(ProcessId::is_alive)
                    && process::of_machine(&entry.id, entry.agent).is_empty()
                {
                    // One that is being launched right now has no process yet.
                    if !(running && entry.agent.is_none()) {
                        entry.finish(MachineEnd::Lost, now);
                    }
                }
                entry.to_machine()
            })
            .collect();
        let group = match (running, state.ended) {
            (true, _) => GroupState::Active { size: state.size },
            (false, Some(_)) => GroupState::Ended,
            // It was killed; `ensure` starts it again.
            (false, None) => GroupState::Absent,
        };
        Ok(Observed { group, machines, shortages: Vec::new() })
    }

    async fn start(&self, files: &Files, want: &GroupSpec) -> Result<(), CloudError> {
        let program = match &self.program {
            Some(program) => program.clone(),
            None => std::env::current_exe()
                .map_err(|e| failed("finding this program".to_owned(), Leftovers::None, e))?,
        };
        let log = File::options()
            .create(true)
            .append(true)
            .open(files.log())
            .map_err(|e| failed(format!("opening {:?}", files.log()), Leftovers::None, e))?;
        let errors =
            log.try_clone().map_err(|e| failed("opening the group's log".to_owned(), Leftovers::None, e))?;
        // What the group does is worth a few lines, whatever this program itself is asked to say.
        let verbosity = std::env::var("TPI_LOG").unwrap_or_else(|_| "warn,tpi_controller=info".to_owned());
        let mut child = tokio::process::Command::new(&program)
            .args(["local-group", "--dir"])
            .arg(files.dir())
            // A task that is submitted from inside another one is not part of that one's machine.
            .env_remove("TPI_MACHINE_ID")
            .env("TPI_LOG", verbosity)
            .current_dir(files.dir())
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            // Ctrl-C at the terminal is for this program, not for the group, from its very first moment.
            .process_group(0)
            .kill_on_drop(false)
            .spawn()
            .map_err(|e| failed(format!("starting {program:?}"), Leftovers::None, e))?;
        let begun = Instant::now();
        loop {
            let state = files
                .read_state()
                .map_err(|e| failed(format!("reading the group of {}", want.task), Leftovers::Unknown, e))?;
            if state.is_some_and(|s| s.ended.is_some() || s.process.is_some_and(ProcessId::is_alive)) {
                return Ok(());
            }
            // Success means that another process is the group; it is about to say so.
            if let Ok(Some(status)) = child.try_wait()
                && !status.success()
            {
                let log = fs::read_to_string(files.log()).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(5).collect();
                let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
                return Err(failed(
                    format!("starting the group of {}", want.task),
                    Leftovers::None,
                    io::Error::other(format!("it ended with {status}: {tail}")),
                ));
            }
            if begun.elapsed() > START_PATIENCE {
                return Err(failed(
                    format!("waiting for the group of {} to begin", want.task),
                    Leftovers::Unknown,
                    io::Error::from(io::ErrorKind::TimedOut),
                ));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Ends a group that runs; returns with its lock held, so that none can start any more.
    async fn end_group(&self, files: &Files, task: &TaskId) -> Result<File, CloudError> {
        let lock = files::open_lock(&files.group_lock())
            .map_err(|e| failed(format!("opening the lock of {task}"), Leftovers::Unknown, e))?;
        let begun = Instant::now();
        let mut asked = None;
        loop {
            let free = files::try_lock(&lock)
                .map_err(|e| failed(format!("locking the group of {task}"), Leftovers::Unknown, e))?;
            if free {
                return Ok(lock);
            }
            let process = files
                .read_state()
                .map_err(|e| failed(format!("reading the group of {task}"), Leftovers::Unknown, e))?
                .and_then(|s| s.process);
            if let Some(process) = process {
                let late = begun.elapsed() > END_PATIENCE;
                if asked != Some(process) || late {
                    asked = Some(process);
                    let signal = if late { Signal::KILL } else { Signal::TERM };
                    process.signal(signal).map_err(|e| {
                        failed(format!("ending the group of {task}"), Leftovers::Remaining, e)
                    })?;
                }
            }
            if begun.elapsed() > 2 * END_PATIENCE {
                return Err(failed(
                    format!("waiting for the group of {task} to end"),
                    Leftovers::Remaining,
                    io::Error::from(io::ErrorKind::TimedOut),
                ));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

fn failed(
    operation: String,
    leftovers: Leftovers,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> CloudError {
    CloudError { kind: CloudErrorKind::Other, operation, leftovers, source: Some(source.into()) }
}

fn refused(operation: String, cause: &'static str) -> CloudError {
    CloudError {
        kind: CloudErrorKind::InvalidSpec,
        operation,
        leftovers: Leftovers::None,
        source: Some(cause.into()),
    }
}

fn creating(want: &GroupSpec) -> String {
    format!("creating the group of {}", want.task)
}

/// Whether machines reach the store.
fn reachable(want: &GroupSpec) -> Result<(), CloudError> {
    if want.store.scheme() == "memory" {
        return Err(refused(
            creating(want),
            "machines are other processes and cannot share memory with this one",
        ));
    }
    Ok(())
}

/// Whether anything may begin any more.
fn in_time(want: &GroupSpec) -> Result<(), CloudError> {
    if Timestamp::now() >= want.deadline {
        return Err(refused(creating(want), "the task's deadline is over"));
    }
    Ok(())
}

/// Kills everything of these machines; whether nothing is left.
async fn kill_all(machines: Vec<(tpi_proto::id::MachineId, Option<ProcessId>)>) -> bool {
    tokio::task::spawn_blocking(move || {
        machines.iter().all(|(id, agent)| process::kill_machine(id, *agent, Duration::from_secs(10)))
    })
    .await
    .unwrap_or(false)
}

#[async_trait]
impl Cloud for Local {
    fn name(&self) -> CloudName {
        CloudName::Local
    }

    async fn plan(&self, want: &GroupSpec) -> Result<CloudPlan, CloudError> {
        reachable(want)?;
        in_time(want)?;
        let free = |machine: &str| Offer {
            machine: machine.to_owned(),
            zone: "this computer".to_owned(),
            usd_per_hour: Some(0.0),
            basis: PriceBasis::Free,
        };
        Ok(CloudPlan {
            region: want.spec.region.clone(),
            resources: vec![Resource::new(GROUP_KIND, want.task.as_str())],
            machines: u32::from(want.spec.parallelism.get()),
            offers: vec![free(&want.spec.machine)],
            left_out: Vec::new(),
            image: None,
            subnets: Vec::new(),
            openings: Vec::new(),
            identity: None,
            disk: None,
            boot: None,
            limits: Vec::new(),
            ceiling: Ceiling { usd: Some(0.0), how: "machines are processes of this computer".to_owned() },
            warnings: Vec::new(),
        })
    }

    async fn ensure(&self, want: &GroupSpec) -> Result<Observed, CloudError> {
        reachable(want)?;
        let files = Files::new(&self.root, &want.task);
        let _lock = self.lock(&files).await?;
        let seen = self.look(&want.task)?;
        match seen.group {
            GroupState::Active { .. } | GroupState::Ended => return Ok(seen),
            GroupState::Absent => {}
        }
        in_time(want)?;
        let creating = |e| failed(creating(want), Leftovers::None, e);
        let config = GroupConfig {
            version: LOCAL_VERSION,
            task: want.task.clone(),
            slots: u32::from(want.spec.parallelism.get()),
            store: want.store.clone(),
            deadline: want.deadline,
            agent_sha256: want.agent_sha256.clone(),
            region: want.spec.region.clone(),
            machine: want.spec.machine.clone(),
            listen: want.spec.ingress != Ingress::Closed,
        };
        if files.read_config().map_err(creating)?.is_none() {
            match fs::remove_file(files.ledger()) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(creating(e)),
                Ok(()) | Err(_) => {}
            }
            files::write_in_new_folder(&files.config(), &config).map_err(creating)?;
        }
        self.start(&files, want).await?;
        self.look(&want.task)
    }

    async fn observe(&self, task: &TaskId) -> Result<Observed, CloudError> {
        self.look(task)
    }

    async fn destroy(&self, task: &TaskId) -> Result<Observed, CloudError> {
        let files = Files::new(&self.root, task);
        let _lock = self.lock(&files).await?;
        let removing =
            |e: io::Error| failed(format!("removing the group of {task}"), Leftovers::Remaining, e);
        if files.dir().is_dir() {
            let _group = self.end_group(&files, task).await?;
            let mut machines: Vec<Machine> = Vec::new();
            if let Some(mut state) = files.read_state().map_err(removing)? {
                let all = state.machines.iter().map(|m| (m.id.clone(), m.agent)).collect();
                if !kill_all(all).await {
                    return Err(removing(io::Error::other("a process does not end")));
                }
                for entry in &mut state.machines {
                    entry.finish(MachineEnd::Destroyed, Timestamp::now());
                }
                state.process = None;
                files.write_state(&state).map_err(removing)?;
                machines = state.machines.iter().map(files::MachineEntry::to_machine).collect();
            }
            if !machines.is_empty() {
                files::write_in_new_folder(&files.ledger(), &Ledger { version: LOCAL_VERSION, machines })
                    .map_err(removing)?;
            }
            remove_dir(files.dir()).map_err(removing)?;
        }
        // Agents whose directory was removed by somebody else.
        let dir = files.dir().to_string_lossy().into_owned();
        for process in process::with_variable(machine::GROUP_VARIABLE, &dir) {
            process.signal(Signal::KILL).map_err(removing)?;
        }
        self.look(task)
    }

    async fn list(&self) -> Result<Vec<TaskId>, CloudError> {
        let listing = |e| failed(format!("listing {:?}", self.root), Leftovers::None, e);
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(listing(e)),
        };
        let mut tasks = Vec::new();
        for entry in entries {
            let name = entry.map_err(listing)?.file_name();
            if let Some(task) = name.to_str().and_then(|n| n.parse::<TaskId>().ok()) {
                tasks.push(task);
            }
        }
        tasks.sort();
        forget_old(&self.root.join(".ended"));
        Ok(tasks)
    }

    /// There is one region, whatever it is called.
    async fn survey(&self, _regions: &Regions) -> Result<Vec<Leftover>, CloudError> {
        let mut found = Vec::new();
        for task in self.list().await? {
            let seen = self.look(&task)?;
            let of_group = survey::of_group(&self.root, &task, &seen)
                .map_err(|e| failed(format!("reading the group of {task}"), Leftovers::Unknown, e))?;
            found.extend(of_group);
        }
        let root = self.root.clone();
        let homeless = tokio::task::spawn_blocking(move || survey::homeless(&root)).await;
        found.extend(
            homeless.map_err(|e| failed("looking through processes".to_owned(), Leftovers::Unknown, e))?,
        );
        Ok(found)
    }

    async fn remove(&self, things: &[Leftover]) -> Result<(), CloudError> {
        let tasks: BTreeSet<&TaskId> = things.iter().map(|thing| &thing.task).collect();
        for task in tasks {
            let _gone = self.destroy(task).await?;
        }
        Ok(())
    }

    async fn stores(&self, _regions: &Regions) -> Result<Vec<Url>, CloudError> {
        Ok(vec![self.store_url("").await?])
    }

    async fn make_store(&self, region: &str) -> Result<Url, CloudError> {
        // A folder is made by who opens it.
        self.store_url(region).await
    }

    async fn store_url(&self, _region: &str) -> Result<Url, CloudError> {
        self.home
            .store_url()
            .map_err(|e| failed("naming the store of this computer".to_owned(), Leftovers::None, e))
    }

    async fn open_store(&self, url: &Url) -> Result<Option<Store>, StoreError> {
        match url.scheme() {
            "file" => Store::open(url).map(Some),
            _ => Ok(None),
        }
    }
}

/// The configuration goes first: without it a group that is about to start ends at once, and a removal that
/// was cut off is not mistaken for a group.
fn remove_dir(dir: &Path) -> io::Result<()> {
    for name in ["group.json", "state.json"] {
        match fs::remove_file(dir.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Ok(()) | Err(_) => {}
        }
    }
    files::remove_tree(dir)
}

/// Best effort: what cannot be read stays.
fn forget_old(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let old = entry
            .metadata()
            .and_then(|m| m.modified())
            .ok()
            .and_then(|t| Timestamp::try_from(t).ok())
            .is_some_and(|t| Timestamp::now().duration_since(t) > LEDGER_LIFE);
        if old {
            drop(fs::remove_file(entry.path()));
        }
    }
}
