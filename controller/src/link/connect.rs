//! One connection to the agent of one run.

use std::time::Duration;

use futures::stream::BoxStream;
use jiff::Timestamp;
use tpi_proto::{
    id::{RunId, TaskId},
    state::SlotStatus,
};
use tpi_store::{Store, StoreError, log::Record, telemetry::Sample};

use super::identity::UserIdentity;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No machine has published an identity for this run (not started yet, or it does not listen).
    #[error("the agent of run {run} has not published where it can be reached")]
    NoIdentity {
        /// The run.
        run: RunId,
    },
    /// None of its addresses answered.
    #[error("the agent of run {run} cannot be reached{}", list(tried))]
    Unreachable {
        /// The run.
        run: RunId,
        /// Each address and what happened there.
        tried: Vec<(String, String)>,
    },
    /// The agent does not accept our certificate: it is not (or no longer) among the task's clients.
    #[error("the agent at {address} does not accept this computer's certificate {fingerprint}")]
    Refused {
        /// Where.
        address: String,
        /// Ours.
        fingerprint: String,
    },
    /// Something answered that is not the agent that published the identity.
    #[error("what answers at {address} is not the agent of run {run}: {cause}")]
    WrongCertificate {
        /// The run.
        run: RunId,
        /// Where.
        address: String,
        /// What is wrong.
        cause: String,
    },
    /// No common version of the protocol.
    #[error("the agent speaks protocol versions {theirs:?}, this program {ours:?}")]
    VersionMismatch {
        /// Ours.
        ours: Vec<u32>,
        /// The agent's.
        theirs: Vec<u32>,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The published identity is damaged or of a newer version.
    #[error("reading the identity of run {run}: {cause}")]
    Identity {
        /// The run.
        run: RunId,
        /// What is wrong.
        cause: String,
    },
}

fn list(tried: &[(String, String)]) -> String {
    tried.iter().map(|(address, cause)| format!("; {address}: {cause}")).collect()
}

/// Why a call on a connection failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The connection broke; a new one may work.
    #[error("the connection to the agent broke: {0}")]
    Broken(String),
    /// The agent is on its way out.
    #[error("the agent is ending")]
    Ending,
    /// The agent refuses: what was asked for is wrong or impossible now.
    #[error("the agent refuses: {0}")]
    Refused(String),
    /// The agent failed at it.
    #[error("the agent failed: {0}")]
    Failed(String),
}

/// Part of a live log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogItem {
    /// The next records; never empty.
    Records(Vec<Record>),
    /// The log is complete and ends at this offset. The last item.
    Complete(u64),
}

/// An authenticated connection after `Hello`. Cheap to clone; closed when the last clone and its streams are gone.
#[derive(Debug, Clone)]
pub struct Connection {}

/// Dials the agent of `run`: reads its identity, tries its addresses in order, demands exactly its certificate and
/// name, and says `Hello`. The caller publishes `identity` first. Bounded to about 10 s per address.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(
    _store: &Store,
    _task: &TaskId,
    _run: RunId,
    _identity: &UserIdentity,
) -> Result<Connection, ConnectError> {
    unimplemented!()
}

impl Connection {
    /// Slot and attempt that it serves.
    #[must_use]
    pub fn run(&self) -> RunId {
        unimplemented!()
    }
    /// `host:port` that answered.
    #[must_use]
    pub fn address(&self) -> &str {
        unimplemented!()
    }
    /// Name and version of the agent.
    #[must_use]
    pub fn agent(&self) -> &str {
        unimplemented!()
    }
    /// The agent's idea of now at `Hello`, corrected by the store's clock.
    #[must_use]
    pub fn agent_time(&self) -> Timestamp {
        unimplemented!()
    }
    /// The slot's status with a generation above `after` (0: the newest at once), then every newer one. Ends after the last.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn watch(
        &self,
        _after: u64,
    ) -> Result<BoxStream<'static, Result<SlotStatus, CallError>>, CallError> {
        unimplemented!()
    }
    /// The log from a byte on.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn logs(
        &self,
        _from: u64,
    ) -> Result<BoxStream<'static, Result<LogItem, CallError>>, CallError> {
        unimplemented!()
    }
    /// Samples from a sequence number on.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn telemetry(
        &self,
        _from: u64,
    ) -> Result<BoxStream<'static, Result<Vec<Sample>, CallError>>, CallError> {
        unimplemented!()
    }
    /// Asks the slot to stop; `grace` overrides the task's. Returns the generation that records the request.
    ///
    /// # Errors
    /// [`CallError::Ending`] when there is nothing left to stop; see [`CallError`].
    pub async fn stop(&self, _grace: Option<Duration>) -> Result<u64, CallError> {
        unimplemented!()
    }
}
