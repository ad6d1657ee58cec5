//! The one task that owns the state of the slot, and the [`Handle`] through which others see it.
//!
//! ```text
//!   clients ── Handle::stop ──┐                          ┌──► Handle::watch
//!   holder, saver, uploader ──┤                          │
//!   script, preemption ───────┼─► Event ─► state::Machine ┼──► slot in the store (holder)
//!   signals, time ────────────┘             │            │
//!                                           └─► Action ──┴──► phases' work, script, release
//! ```
//!
//! What follows from what is decided in `state`, which is pure. [`drive`] waits for the next event, tells the machine,
//! and carries out the actions. A last status is written to the store first and published after.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tpi_proto::{
    id::{MachineId, RunId, TaskId},
    state::SlotStatus,
};

use self::{
    admission::StopCall,
    state::{Fault, ScriptEnd},
};
use crate::{clock::Clock, logs, save, telemetry};

pub(crate) mod admission;
mod drive;
pub(crate) mod state;
mod work;

pub use self::drive::End;
pub(crate) use self::drive::{drive, give_back};

/// Everything that the supervisor reacts to, besides time and signals.
#[derive(Debug)]
pub(crate) enum Event {
    /// A client asks for the end.
    Stop(StopCall),
    /// A request to stop lies in the store.
    StopFound {
        /// Overrides the task's time between SIGTERM and SIGKILL.
        grace: Option<Duration>,
    },
    /// Clients are served (by this task), or cannot be.
    Booted(Result<JoinHandle<()>, String>),
    /// The machine is ready for the script.
    Prepared(Result<Prepared, Fault>),
    /// The workspace is there.
    Restored(Result<save::Restored, Fault>),
    /// The script ended; its output is still to be read to the end.
    ScriptEnded {
        /// How.
        end: ScriptEnd,
        /// Finishes the log. Absent when there is none.
        pump: Option<logs::pump::Pump>,
    },
    /// A generation was saved.
    Saved {
        /// Which.
        generation: u64,
    },
    /// The last save is done or hopeless.
    LastSave(Result<(), String>),
    /// Another machine holds the slot.
    Superseded,
    /// The cloud takes the machine back.
    Preempted,
    /// The cloud may take the machine back.
    Forewarned,
    /// Something the user should know, or (without text) that it is over.
    Concern {
        /// About what.
        concern: Concern,
        /// As a lower-case fragment.
        text: Option<String>,
    },
}

/// What a warning is about: there is at most one of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Concern {
    /// The status cannot be written.
    Store,
    /// The log cannot be written to the disk.
    Spool,
    /// The log cannot be written to the store.
    Log,
    /// The work directory cannot be saved.
    Save,
    /// Clients cannot be served.
    Clients,
}

/// What the prepare phase found out: environments. They hold secrets and are never logged.
#[derive(Default)]
pub(crate) struct Prepared {
    /// The script's; in a container, what the image does not say itself.
    pub(crate) script: BTreeMap<String, String>,
    /// Of processes on the machine itself.
    pub(crate) machine: BTreeMap<String, String>,
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared").field("script", &self.script.keys().collect::<Vec<_>>()).finish()
    }
}

/// The agent is on its way out: the request was not recorded. The slot's final status is in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the agent is ending")]
pub struct Ending;

/// What a process needs that joins the script on its machine (a shell, a forwarded port).
#[derive(Clone)]
pub struct ProcessContext {
    /// The work directory.
    pub work_dir: PathBuf,
    /// The complete environment for the process; start from an empty one. Holds secrets: `Debug` does not show values.
    /// It is the script's, and `TPI_SHELL`, which tells the process from the script's own when the script ends.
    /// Includes `TPI_MACHINE_ID`, by which everything of a machine is found and killed at its end.
    pub environment: BTreeMap<String, String>,
}

impl std::fmt::Debug for ProcessContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessContext")
            .field("work_dir", &self.work_dir)
            .field("environment", &self.environment.keys().collect::<Vec<_>>())
            .finish()
    }
}

/// A view of the running slot, for the service that clients talk to. Cheap to clone; keeps nothing alive.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(crate) task: TaskId,
    pub(crate) run: RunId,
    pub(crate) machine: MachineId,
    pub(crate) clock: Clock,
    pub(crate) status: watch::Receiver<Arc<SlotStatus>>,
    pub(crate) events: mpsc::WeakSender<Event>,
    pub(crate) logs: logs::Reader,
    pub(crate) telemetry: telemetry::Reader,
    pub(crate) context: watch::Receiver<Option<Arc<ProcessContext>>>,
}

impl Handle {
    /// Whose machine this is.
    #[must_use]
    pub fn task(&self) -> &TaskId {
        &self.task
    }

    /// Slot and attempt. Fixed: a handle exists only once a slot is held.
    #[must_use]
    pub fn run(&self) -> RunId {
        self.run
    }

    /// This boot.
    #[must_use]
    pub fn machine(&self) -> &MachineId {
        &self.machine
    }

    /// Now, by the store's clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The newest status, and every newer one (`SlotStatus::generation` rises; values in between may be
    /// skipped). A final status (`Finished`) or `Interrupted` is seen here only after it is in the store, and is
    /// the last one; then the sender is dropped.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<SlotStatus>> {
        self.status.clone()
    }

    /// Asks for the end. Asking again is harmless: the earliest end of all grace periods counts.
    /// Returns the generation of the status that records the request; the end is seen through [`Handle::watch`].
    ///
    /// # Errors
    /// [`Ending`] when there is nothing left to stop.
    pub async fn stop(&self, grace: Option<Duration>) -> Result<u64, Ending> {
        let (reply, answer) = oneshot::channel();
        let events = self.events.upgrade().ok_or(Ending)?;
        events.send(Event::Stop(StopCall { grace, reply })).await.map_err(|_| Ending)?;
        answer.await.map_err(|_| Ending)
    }

    /// The log, from any byte on.
    #[must_use]
    pub fn logs(&self) -> logs::Reader {
        self.logs.clone()
    }

    /// The samples, from any sequence number on.
    #[must_use]
    pub fn telemetry(&self) -> telemetry::Reader {
        self.telemetry.clone()
    }

    /// What a shell needs; `None` until the workspace is restored.
    #[must_use]
    pub fn context(&self) -> Option<Arc<ProcessContext>> {
        self.context.borrow().clone()
    }
}
