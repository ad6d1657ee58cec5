//! From the start of the process until a slot is held: the store, the clock, the task's record.

use std::{
    fs::{File, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use rustix::fs::FlockOperation;
use tpi_proto::{
    fault::chain,
    id::MachineId,
    machine::{HttpCall, MachineConfig, MachineName, Timings},
    state::{Failure, SlotStatus},
};
use tpi_store::{
    Store, StoreError, StoreErrorKind, Version,
    layout::TaskKeys,
    record::{Intent, RECORD_VERSION, TaskRecord},
};

use crate::{
    call::{self, CallError},
    clock::Clock,
    config::{Paths, TestHooks, is_machine_name},
    credentials::open_store,
    exec::leftovers::{self, Scope},
    journal::{self, Journal},
    slots::{self, Claimed},
    supervisor::state::Fault,
};

/// A clock that is off by more than this is worth telling.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_secs(30);

/// Why the agent could not take a slot.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A folder or file of the agent's own.
    #[error("preparing {path:?}")]
    Files {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another agent runs from the same folder.
    #[error("another agent runs in {path:?}")]
    AlreadyRunning {
        /// The folder.
        path: PathBuf,
    },
    /// No metadata service told which machine this is, for the whole boot phase.
    #[error("asking {url:?} for this machine's name: {cause}")]
    Name {
        /// Who was asked.
        url: String,
        /// What came of it.
        cause: String,
    },
    /// The store could not be reached for the whole boot phase.
    #[error("reaching the task's store")]
    Store(#[from] StoreError),
}

/// What booting came to.
#[derive(Debug)]
pub(crate) enum Booted {
    /// A slot is held.
    Held(Box<Held>),
    /// There is nothing to do here (the cause, as a lower-case fragment): the machine is to be given back.
    NothingToDo(&'static str),
}

/// All that a slot's life needs.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) status: SlotStatus,
    pub(crate) version: Version,
    pub(crate) record: Result<TaskRecord, Fault>,
    /// Things to tell the user.
    pub(crate) remarks: Vec<String>,
    /// Held as long as the agent runs.
    pub(crate) _lock: File,
}

/// Finds out which machine this is.
pub(crate) async fn name(
    config: MachineConfig<MachineName>,
    started: Instant,
) -> Result<MachineConfig, BootError> {
    let give_up = started + Timings::of(config.timings.boot_budget);
    let name = match &config.machine {
        MachineName::Fixed(name) => name.clone(),
        MachineName::Ask { ask } => {
            let nobody = config.clone().on(MachineId(String::new()));
            ask_name(ask, &call::Names::new(&nobody, None), give_up).await?
        }
    };
    Ok(config.on(name))
}

/// A machine that has just been made may have no network yet.
async fn ask_name(ask: &HttpCall, names: &call::Names, give_up: Instant) -> Result<MachineId, BootError> {
    let mut pause = Duration::from_millis(200);
    loop {
        let cause = match call::call(ask, names, Duration::from_secs(5)).await {
            Ok((200, name)) if is_machine_name(name.trim()) => return Ok(MachineId(name.trim().to_owned())),
            Ok((200, _)) => "the answer is no name".to_owned(),
            Ok((status, _)) => format!("it answered with status {status}"),
            Err(error @ CallError::Invalid(_)) => {
                return Err(BootError::Name { url: ask.url.clone(), cause: chain(&error) });
            }
            Err(error @ (CallError::Failed(_) | CallError::NoToken { .. } | CallError::Sign(_))) => {
                chain(&error)
            }
        };
        if Instant::now() + pause >= give_up {
            return Err(BootError::Name { url: ask.url.clone(), cause });
        }
        tracing::warn!(cause, "the machine's name is not known yet");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

/// Boots.
pub(crate) async fn boot(
    config: &MachineConfig,
    hooks: &TestHooks,
    started: Instant,
) -> Result<Booted, BootError> {
    let give_up = started + Timings::of(config.timings.boot_budget);
    let paths = Paths::new(config);
    let lock = prepare_files(&paths)?;
    // An earlier agent of this machine may have been killed, and what it ran lives on.
    let killed = leftovers::kill(&config.machine, Scope::All).await;
    let mut remarks = Vec::new();
    if killed > 0 {
        remarks.push(format!("{killed} processes of an earlier agent of this machine were ended"));
    }

    let store = open_store(config)?;
    let clock = Clock::local(hooks.clock_offset);
    let keys = TaskKeys::new(&config.task);
    match patiently(give_up, || clock.correct(&store, keys.root())).await {
        Ok(offset) if offset.abs() > CLOCK_TOLERANCE => {
            let seconds = offset.as_secs();
            remarks.push(format!("this machine's clock is off: the store's is {seconds} s ahead of it"));
        }
        Ok(_) => {}
        Err(error) if error.kind == StoreErrorKind::Unavailable => return Err(error.into()),
        Err(error) => {
            remarks.push(format!(
                "the store's clock cannot be read, so the machine's is used: {}",
                chain(&error)
            ));
        }
    }
    let passed = SignedDuration::try_from(started.elapsed()).unwrap_or_default();
    let began = clock.now().checked_sub(passed).unwrap_or(Timestamp::MIN);
    if clock.now() >= config.deadline {
        return Ok(Booted::NothingToDo("the task's deadline is over"));
    }

    let key = keys.record();
    let record = match patiently(give_up, || store.get_json::<TaskRecord>(&key)).await {
        Ok(None) => return Ok(Booted::NothingToDo("the task is gone")),
        Ok(Some((record, _))) if record.intent == Intent::Destroy => {
            return Ok(Booted::NothingToDo("the task is being destroyed"));
        }
        Ok(Some((record, _))) if record.version > RECORD_VERSION => Err(Fault {
            failure: Failure::Store,
            message: format!(
                "the task's record has version {}, this agent knows {RECORD_VERSION}",
                record.version
            ),
        }),
        Ok(Some((record, _))) => Ok(record),
        Err(error) if error.kind == StoreErrorKind::Corrupt => {
            Err(Fault { failure: Failure::Store, message: chain(&error) })
        }
        Err(error) => return Err(error.into()),
    };
    match slots::claim(&store, &keys, config, &clock, began, give_up).await? {
        Claimed::Held { status, version } => Ok(Booted::Held(Box::new(Held {
            store,
            clock,
            status: *status,
            version,
            record,
            remarks,
            _lock: lock,
        }))),
        Claimed::GivenUp { status } => {
            let run = status.run();
            let (journal, notes) = Journal::new(clock, run, config.machine.clone());
            journal.note("its machines were lost too often: the slot gets no other".to_owned());
            drop(journal);
            journal::write(store, keys, run, notes).await;
            Ok(Booted::NothingToDo("the slot's machines were lost too often"))
        }
        Claimed::AllFinished => Ok(Booted::NothingToDo("all slots have finished")),
        Claimed::NoneFree => Ok(Booted::NothingToDo("all slots are held by other machines")),
    }
}

/// Makes the agent's folders, and makes sure that it is alone in them.
fn prepare_files(paths: &Paths) -> Result<File, BootError> {
    for (dir, mode) in
        [(paths.run(), 0o700), (paths.keys(), 0o700), (paths.spool(), 0o700), (paths.work(), 0o755)]
    {
        std::fs::create_dir_all(&dir)
            .and_then(|()| std::fs::set_permissions(&dir, Permissions::from_mode(mode)))
            .map_err(|source| BootError::Files { path: dir, source })?;
    }
    let path = paths.run().join("lock");
    let file = File::create(&path).map_err(|source| BootError::Files { path: path.clone(), source })?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(BootError::AlreadyRunning { path: paths.run() }),
        Err(error) => Err(BootError::Files { path, source: error.into() }),
    }
}

/// Tries until it works, the failure is one that stays, or time is up. Credentials may take a while to become valid on a
/// machine that has just been made.
pub(crate) async fn patiently<T, F: Future<Output = Result<T, StoreError>>>(
    give_up: Instant,
    mut attempt: impl FnMut() -> F,
) -> Result<T, StoreError> {
    let mut pause = Duration::from_millis(200);
    loop {
        let error = match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let passes = match error.kind {
            StoreErrorKind::Unavailable
            | StoreErrorKind::Unauthenticated
            | StoreErrorKind::PermissionDenied
            | StoreErrorKind::Other => true,
            StoreErrorKind::NotFound
            | StoreErrorKind::AlreadyExists
            | StoreErrorKind::Conflict
            | StoreErrorKind::NoSpace
            | StoreErrorKind::Corrupt
            | StoreErrorKind::Unsupported => false,
        };
        if !passes || Instant::now() + pause >= give_up {
            return Err(error);
        }
        tracing::warn!(error = chain(&error), "the store does not answer yet");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(10));
    }
}
