//! The one task that owns the state of the slot, and the [`Handle`] through which others see it.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::{mpsc, oneshot, watch};
use tpi_proto::{
    id::{MachineId, RunId, TaskId},
    state::SlotStatus,
};

use crate::{logs, telemetry};

/// Everything that the supervisor reacts to.
#[derive(Debug)]
pub(crate) enum Event {
    /// Somebody asks for the end.
    Stop {
        /// Overrides the task's time between SIGTERM and SIGKILL.
        grace: Option<Duration>,
        /// Told the generation that recorded the request.
        reply: oneshot::Sender<u64>,
    },
}

/// The agent is on its way out: the request was not recorded. The slot's final status is in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the agent is ending")]
pub struct Ending;

/// What a process needs that joins the script on its machine (a shell, a forwarded port).
#[derive(Debug, Clone)]
pub struct ProcessContext {
    /// The work directory. Exists from the start of the restore phase on.
    pub work_dir: PathBuf,
    /// The complete environment of the script; start from an empty one. Holds secrets: never log it.
    /// Includes `TPI_MACHINE_ID`, by which everything of a machine is found and killed at its end.
    pub environment: BTreeMap<String, String>,
}

/// A view of the running slot, for the service that clients talk to. Cheap to clone; keeps nothing alive.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(crate) task: TaskId,
    pub(crate) run: RunId,
    pub(crate) machine: MachineId,
    pub(crate) clock_offset: SignedDuration,
    pub(crate) status: watch::Receiver<Arc<SlotStatus>>,
    pub(crate) events: mpsc::Sender<Event>,
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
        Timestamp::now().checked_add(self.clock_offset).unwrap_or_else(|_| Timestamp::now())
    }

    /// The newest status, and every newer one (`SlotStatus::generation` rises; values in between may be
    /// skipped). A final status (`Finished`) or `Interrupted` is seen here only after it is in the store, and is
    /// the last one; then the sender is dropped.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<SlotStatus>> {
        self.status.clone()
    }

    /// Asks for the end. Asking again is harmless: the first grace period stands, unless a later one ends earlier.
    /// Returns the generation of the status that records the request; the end is seen through [`Handle::watch`].
    ///
    /// # Errors
    /// [`Ending`] when there is nothing left to stop.
    pub async fn stop(&self, grace: Option<Duration>) -> Result<u64, Ending> {
        let (reply, answer) = oneshot::channel();
        self.events.send(Event::Stop { grace, reply }).await.map_err(|_| Ending)?;
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
