//! The scaling group of a local task: a small process that keeps machines.
//!
//! ```text
//!             ┌──────────── refill (backed off while machines die at once) ◄──┐
//! start ─► adopt what runs ─► keep: releases, exits, deadline, directory ─────┘
//!                               │ size 0            │ deadline, SIGTERM, directory gone, task unwanted
//!                               ▼                   ▼
//!                             ended ◄── SIGTERM, grace, SIGKILL to everything of every machine
//! ```
//!
//! It decides from what is on disk and in the store, so one that was killed is simply started again and
//! continues. One task owns the state; the release server and the waiting for processes only send to it.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use rustix::process::Signal;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};
use tpi_proto::{
    id::{MachineId, SlotIndex},
    state::{Failure, Outcome, Phase, SlotState, SlotStatus},
};
use tpi_store::{
    Store,
    layout::TaskKeys,
    record::{Intent, TaskRecord},
};

use super::{
    files::{self, Files, GroupConfig, GroupEnd, GroupState, LOCAL_VERSION, MachineEntry},
    machine,
    process::{self, ProcessId},
    release::{self, Release},
};
use crate::cloud::MachineEnd;

/// How often the clock, the directory and adopted machines are looked at.
const TICK: Duration = Duration::from_millis(250);
/// Between SIGTERM and SIGKILL at the deadline.
const DEADLINE_GRACE: Duration = Duration::from_secs(10);
/// Between SIGTERM and SIGKILL when the task is destroyed: results were saved before.
const DESTROY_GRACE: Duration = Duration::from_secs(5);
/// How long a released machine may still run.
const RELEASE_GRACE: Duration = Duration::from_secs(10);
/// A machine that lived shorter than this counts as one that could not work.
const SHORT_LIFE: Duration = Duration::from_secs(5);
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// How long the store may take to say whether it has everything of a machine.
const DISK_PATIENCE: Duration = Duration::from_secs(10);
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Why a group could not do its work.
#[derive(Debug, thiserror::Error)]
#[error("{operation}")]
pub struct GroupError {
    /// What was being done.
    pub operation: String,
    /// Cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl GroupError {
    pub(super) fn new(operation: impl Into<String>) -> Self {
        Self { operation: operation.into(), source: None }
    }

    pub(super) fn because(
        operation: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { operation: operation.into(), source: Some(source.into()) }
    }
}

/// Runs the group whose directory is `{state}/local/{task}` until all its machines are released, its deadline
/// is reached or its directory is gone. Makes itself the leader of a new session first. The body of the
/// hidden command `local-group --dir DIR`; needs a tokio runtime. Given a machine's directory instead (by the
/// group itself), it becomes that machine's agent and does not return.
///
/// # Errors
/// When it cannot begin; another group that runs already is success.
pub async fn run(dir: &Path) -> Result<(), GroupError> {
    if machine::is_machine(dir) {
        return Err(machine::become_agent(dir));
    }
    process::leave_terminal().map_err(|e| GroupError::because("leaving the terminal", e))?;
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|e| GroupError::because("listening for SIGTERM", e))?;
    let files = Files::at(dir);
    let lock = files::open_lock(&files.group_lock())
        .map_err(|e| GroupError::because(format!("opening {:?}", files.group_lock()), e))?;
    if !files::try_lock(&lock).map_err(|e| GroupError::because("locking the group", e))? {
        tracing::info!("another process is this group already");
        return Ok(());
    }
    let reading = |e| GroupError::because(format!("reading the group in {dir:?}"), e);
    let Some(config) = files.read_config().map_err(reading)? else {
        tracing::info!("the group was removed before it began");
        return Ok(());
    };
    if config.version != LOCAL_VERSION {
        return Err(GroupError::new(format!("the group in {dir:?} has version {}", config.version)));
    }
    let store = Store::open(&config.store)
        .map_err(|e| GroupError::because(format!("opening the store {}", config.store), e))?;
    let program = std::env::current_exe().map_err(|e| GroupError::because("finding this program", e))?;
    let state = files.read_state().map_err(reading)?.unwrap_or(GroupState {
        version: LOCAL_VERSION,
        size: config.slots,
        process: None,
        port: 0,
        ended: None,
        machines: Vec::new(),
    });
    if state.ended.is_some() {
        return Ok(());
    }

    let (sender, releases) = mpsc::channel(16);
    let listener = listen(state.port).await?;
    let port = listener.local_addr().map_err(|e| GroupError::because("listening for releases", e))?.port();
    let mut server = JoinSet::new();
    let _handle = server.spawn(release::serve(listener, sender));

    let left = config.deadline.duration_since(Timestamp::now());
    let mut group = Group {
        ends_at: Instant::now() + Duration::try_from(left).unwrap_or(Duration::ZERO),
        files,
        config,
        store,
        program,
        state: GroupState { process: ProcessId::own(), port, ..state },
        exits: JoinSet::new(),
        preparing: JoinSet::new(),
        clearing: JoinSet::new(),
        failures: 0,
        retry_at: Instant::now(),
    };
    group.adopt().await;
    group.write();
    let why = group.keep(&mut terminate, releases).await;
    tracing::info!(?why, "the group has ended");
    server.shutdown().await;
    drop(lock);
    Ok(())
}

/// On the port that machines which run already were told, where that is possible.
async fn listen(port: u16) -> Result<TcpListener, GroupError> {
    if port != 0
        && let Ok(listener) = TcpListener::bind(("127.0.0.1", port)).await
    {
        return Ok(listener);
    }
    TcpListener::bind(("127.0.0.1", 0)).await.map_err(|e| GroupError::because("listening for releases", e))
}

/// Why a group stops keeping machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Released,
    Deadline,
    Unwanted,
    /// SIGTERM: the task is destroyed, or the computer shuts down.
    Asked,
    DirectoryGone,
}

/// What is known before a machine is launched.
#[derive(Debug)]
enum Prepared {
    Ready { agent: PathBuf, unfinished: u32 },
    Unwanted,
}

struct Group {
    files: Files,
    config: GroupConfig,
    store: Store,
    program: PathBuf,
    state: GroupState,
    /// One per child: ends when the child does.
    exits: JoinSet<MachineId>,
    /// At most one: what has to be known and fetched before machines are launched.
    preparing: JoinSet<Result<Prepared, GroupError>>,
    /// Disks that are being removed.
    clearing: JoinSet<()>,
    failures: u32,
    retry_at: Instant,
    /// The deadline on the monotonic clock: a wall clock that is set back does not give machines more time.
    ends_at: Instant,
}

impl Group {
    async fn keep(
        &mut self,
        terminate: &mut tokio::signal::unix::Signal,
        mut releases: mpsc::Receiver<Release>,
    ) -> Why {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // Ending comes first, then what changes the size, then filling up.
                biased;
                _ = terminate.recv() => {
                    return self.end(Why::Asked, DESTROY_GRACE, &mut releases).await;
                }
                Some(release) = releases.recv() => self.release(release),
                Some(exit) = self.exits.join_next() => {
                    if let Ok(machine) = exit {
                        self.gone(&machine).await;
                    }
                }
                Some(_cleared) = self.clearing.join_next() => {}
                Some(prepared) = self.preparing.join_next() => {
                    match prepared {
                        Ok(Ok(Prepared::Ready { agent, unfinished })) => self.fill(&agent, unfinished),
                        Ok(Ok(Prepared::Unwanted)) => {
                            return self.end(Why::Unwanted, DESTROY_GRACE, &mut releases).await;
                        }
                        Ok(Err(error)) => {
                            let cause = error.source.as_ref().map(ToString::to_string).unwrap_or_default();
                            tracing::warn!(%error, cause, "cannot launch a machine");
                            self.back_off();
                        }
                        Err(error) => {
                            tracing::warn!(%error, "cannot launch a machine");
                            self.back_off();
                        }
                    }
                }
                _ = tick.tick() => {
                    if !self.files.config().exists() {
                        return self.end(Why::DirectoryGone, Duration::from_secs(1), &mut releases).await;
                    }
                    if Timestamp::now() >= self.config.deadline || Instant::now() >= self.ends_at {
                        return self.end(Why::Deadline, DEADLINE_GRACE, &mut releases).await;
                    }
                    self.look().await;
                }
            }
            let alive = self.alive();
            if self.state.size == 0 && alive == 0 {
                return self.end(Why::Released, Duration::ZERO, &mut releases).await;
            }
            if self.keeping() < self.state.size
                && self.preparing.is_empty()
                && Instant::now() >= self.retry_at
            {
                let (files, config, store) = (self.files.clone(), self.config.clone(), self.store.clone());
                let _handle = self.preparing.spawn(async move { prepare(&files, &config, &store).await });
            }
        }
    }

    fn alive(&self) -> usize {
        self.state.machines.iter().filter(|m| m.is_alive()).count()
    }

    /// Machines that count towards the size.
    fn keeping(&self) -> u32 {
        let kept = self.state.machines.iter().filter(|m| m.is_alive() && m.released.is_none()).count();
        u32::try_from(kept).unwrap_or(u32::MAX)
    }

    fn back_off(&mut self) {
        let delay = BACKOFF_FIRST.saturating_mul(2u32.saturating_pow(self.failures)).min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Instant::now() + delay;
    }

    fn write(&self) {
        // A directory that is gone is noticed at the next tick; on a full disk the next write may work.
        if let Err(error) = self.files.write_state(&self.state) {
            tracing::warn!(%error, "cannot write the group's state");
        }
    }

    /// Takes over what a group before this one has left: machines that run, and the rest of those that do not.
    async fn adopt(&mut self) {
        let mut lost = Vec::new();
        for entry in self.state.machines.iter_mut().filter(|m| m.is_alive()) {
            // Launched, and the group was killed before it could note the process.
            entry.agent = entry.agent.or_else(|| {
                process::with_variable("TPI_MACHINE_ID", &entry.id.0).into_iter().min_by_key(|p| p.started)
            });
            if !entry.agent.is_some_and(ProcessId::is_alive) {
                lost.push(entry.id.clone());
            }
        }
        for machine in lost {
            self.gone(&machine).await;
        }
    }

    /// A machine's agent is no more: what is left of the machine ends as well.
    async fn gone(&mut self, machine: &MachineId) {
        self.kill(machine).await;
        let now = Timestamp::now();
        let Some(entry) = self.state.machines.iter_mut().find(|m| m.id == *machine && m.is_alive()) else {
            return;
        };
        entry.finish(MachineEnd::Lost, now);
        let (released, lived) = (entry.released.is_some(), now.duration_since(entry.launched));
        tracing::info!(%machine, released, "a machine has ended");
        self.write();
        if released {
            let (files, config, store) = (self.files.clone(), self.config.clone(), self.store.clone());
            let id = machine.clone();
            let _handle = self.clearing.spawn(async move { clear_disk(&files, &config, &store, &id).await });
        }
        if released || lived > jiff::SignedDuration::try_from(SHORT_LIFE).unwrap_or_default() {
            self.failures = 0;
            self.retry_at = Instant::now();
        } else {
            self.back_off();
        }
    }

    async fn kill(&self, machine: &MachineId) {
        let agent = self.state.machines.iter().find(|m| m.id == *machine).and_then(|m| m.agent);
        let id = machine.clone();
        let killed =
            tokio::task::spawn_blocking(move || process::kill_machine(&id, agent, KILL_PATIENCE)).await;
        if !killed.unwrap_or(false) {
            tracing::error!(%machine, "processes of a machine could not be killed");
        }
    }

    fn release(&mut self, release: Release) {
        let Release { machine, token, reply } = release;
        let entry = self.state.machines.iter_mut().find(|m| m.id == machine && m.token == token);
        let known = entry.is_some();
        if let Some(entry) = entry
            && entry.is_alive()
            && entry.released.is_none()
        {
            entry.released = Some(Timestamp::now());
            self.state.size = self.state.size.saturating_sub(1);
            tracing::info!(%machine, size = self.state.size, "a machine was released");
            self.write();
        }
        // The machine may be gone by now, which is what was wanted.
        let _unheard = reply.send(known);
    }

    /// Adopted machines are not children, so their end has to be looked for; and released machines must go.
    async fn look(&mut self) {
        let now = Timestamp::now();
        let over = |m: &MachineEntry| {
            let late = m.released.is_some_and(|at| {
                now.duration_since(at) > jiff::SignedDuration::try_from(RELEASE_GRACE).unwrap_or_default()
            });
            late || !m.agent.is_some_and(ProcessId::is_alive)
        };
        let over: Vec<MachineId> =
            self.state.machines.iter().filter(|m| m.is_alive() && over(m)).map(|m| m.id.clone()).collect();
        for machine in over {
            self.gone(&machine).await;
        }
    }

    fn fill(&mut self, agent: &Path, unfinished: u32) {
        // A machine whose slot has ended but whose release did not arrive is not replaced.
        if unfinished < self.state.size {
            self.state.size = unfinished;
            self.write();
        }
        while self.keeping() < self.state.size {
            let entry = MachineEntry {
                id: MachineId(format!("local-{:016x}", rand::random::<u64>())),
                launched: Timestamp::now(),
                agent: None,
                token: hex::encode(rand::random::<[u8; 16]>()),
                released: None,
                ended: None,
                end: None,
            };
            let id = entry.id.clone();
            self.state.machines.push(entry.clone());
            // Noted before it is started, so that it is found whatever happens to this process.
            if let Err(error) = self.files.write_state(&self.state) {
                tracing::warn!(%error, "cannot note a machine before it is launched");
                let _unlaunched = self.state.machines.pop();
                self.back_off();
                return;
            }
            let launched =
                machine::launch(&self.files, &self.config, &entry, self.state.port, agent, &self.program);
            match launched {
                Ok(mut child) => {
                    let process = child.id().and_then(ProcessId::of);
                    if let Some(entry) = self.state.machines.last_mut() {
                        entry.agent = process;
                    }
                    tracing::info!(machine = %id, pid = child.id(), "launched a machine");
                    let _handle = self.exits.spawn(async move {
                        if let Err(error) = child.wait().await {
                            tracing::warn!(machine = %id, %error, "cannot wait for a machine");
                        }
                        id
                    });
                    self.write();
                }
                Err(error) => {
                    let cause = error.source.as_ref().map(ToString::to_string).unwrap_or_default();
                    tracing::warn!(%error, cause, "cannot launch a machine");
                    if let Some(entry) = self.state.machines.last_mut() {
                        entry.finish(MachineEnd::Lost, Timestamp::now());
                    }
                    self.write();
                    self.back_off();
                    return;
                }
            }
        }
    }

    /// Ends every machine and notes why.
    async fn end(&mut self, why: Why, grace: Duration, releases: &mut mpsc::Receiver<Release>) -> Why {
        self.preparing.shutdown().await;
        for entry in self.state.machines.iter().filter(|m| m.is_alive()) {
            if let Some(agent) = entry.agent
                && let Err(error) = agent.signal(Signal::TERM)
            {
                tracing::warn!(machine = %entry.id, %error, "cannot ask a machine to end");
            }
        }
        let until = Instant::now() + grace;
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        while self.state.machines.iter().any(|m| m.is_alive() && m.agent.is_some_and(ProcessId::is_alive))
            && Instant::now() < until
        {
            tokio::select! {
                Some(release) = releases.recv() => self.release(release),
                Some(_machine) = self.exits.join_next() => {}
                _ = tick.tick() => {}
            }
        }
        let left: Vec<MachineId> =
            self.state.machines.iter().filter(|m| m.is_alive()).map(|m| m.id.clone()).collect();
        let end = match why {
            Why::Deadline => MachineEnd::Deadline,
            Why::Released | Why::Unwanted | Why::Asked | Why::DirectoryGone => MachineEnd::Destroyed,
        };
        for machine in left {
            self.kill(&machine).await;
            if let Some(entry) = self.state.machines.iter_mut().find(|m| m.id == machine) {
                entry.finish(end, Timestamp::now());
            }
        }
        self.exits.shutdown().await;
        // Each ends soon: looking is bounded, and a cut off removal would leave half a disk.
        while self.clearing.join_next().await.is_some() {}
        self.state.process = None;
        self.state.ended = match why {
            Why::Released => Some(GroupEnd::Released),
            Why::Deadline => Some(GroupEnd::Deadline),
            Why::Unwanted => Some(GroupEnd::Unwanted),
            // The computer may only shut down: the group can be started again.
            Why::Asked | Why::DirectoryGone => None,
        };
        self.write();
        why
    }
}

/// Removes the disk of a machine that has given itself back, as a cloud does; what the machine has said stays.
/// A disk that has something that the store lacks stays as well, until the task is destroyed.
async fn clear_disk(files: &Files, config: &GroupConfig, store: &Store, machine: &MachineId) {
    let keys = TaskKeys::new(&config.task);
    let stored = async {
        for slot in 0..config.slots {
            let status = store.get_json::<SlotStatus>(&keys.slot(SlotIndex(slot))).await?;
            if status.is_some_and(|(status, _)| status.machine == *machine && !is_stored(&status)) {
                return Ok(false);
            }
        }
        Ok::<_, tpi_store::StoreError>(true)
    };
    match tokio::time::timeout(DISK_PATIENCE, stored).await {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => {
            tracing::warn!(%machine, "the store lacks something of the machine: its disk is kept");
            return;
        }
        Ok(Err(error)) => {
            tracing::warn!(%machine, %error, "not known what the store has of the machine: its disk is kept");
            return;
        }
        Err(_late) => {
            tracing::warn!(%machine, "the store does not answer: the machine's disk is kept");
            return;
        }
    }
    let disk = files.disk(machine);
    let removed = tokio::task::spawn_blocking(move || files::remove_tree(&disk)).await;
    if let Err(error) = removed.unwrap_or_else(|e| Err(io::Error::other(e))) {
        tracing::warn!(%machine, %error, "cannot remove the machine's disk");
    }
}

/// Whether a slot has ended with its work directory and its whole log in the store.
fn is_stored(status: &SlotStatus) -> bool {
    let SlotState::Finished { outcome, .. } = &status.state else { return false };
    if let Outcome::Failed { failure: Failure::AgentLost, .. } = outcome {
        // The machine only found that the one before it was gone, and has nothing of its own.
        return true;
    }
    let saved = match outcome {
        Outcome::Exited { .. } | Outcome::Signalled { .. } | Outcome::Stopped => status.saved.is_some(),
        Outcome::TimedOut { phase } => *phase != Phase::Save && status.saved.is_some(),
        Outcome::Failed { .. } => false,
    };
    saved && status.log_complete.is_some_and(|length| length <= status.log_stored)
}

/// Whether machines are still wanted, how many, and with which agent.
async fn prepare(files: &Files, config: &GroupConfig, store: &Store) -> Result<Prepared, GroupError> {
    let keys = TaskKeys::new(&config.task);
    let reading = |e| GroupError::because(format!("reading the record of {}", config.task), e);
    match store.get_json::<TaskRecord>(&keys.record()).await.map_err(reading)? {
        Some((record, _)) => match record.intent {
            Intent::Run => {}
            Intent::Submit | Intent::Destroy => return Ok(Prepared::Unwanted),
        },
        None => return Ok(Prepared::Unwanted),
    }
    let mut unfinished = 0;
    for slot in 0..config.slots {
        let status = store
            .get_json::<SlotStatus>(&keys.slot(SlotIndex(slot)))
            .await
            .map_err(|e| GroupError::because(format!("reading slot {slot} of {}", config.task), e))?;
        if !status.is_some_and(|(s, _)| s.state.is_final()) {
            unfinished += 1;
        }
    }
    let agent = machine::fetch_agent(files, config, store).await?;
    if !process::is_executable(&agent) {
        return Err(GroupError::because(
            format!("preparing {agent:?}"),
            io::Error::from(io::ErrorKind::PermissionDenied),
        ));
    }
    Ok(Prepared::Ready { agent, unfinished })
}
