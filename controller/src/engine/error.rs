//! Errors of the engine.

use serde::Serialize;
use tpi_proto::id::TaskId;

/// What a caller can act on; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request, a flag or the local set-up is wrong.
    User,
    /// The cloud said no: authentication, quota, capacity, an unknown machine.
    CloudRefused,
    /// The store, the cloud or an agent cannot be reached.
    Unreachable,
    /// Something may be left behind, or that nothing is left cannot be proved.
    LeftBehind,
    /// There is no such task.
    NotFound,
    /// More than one task has that name.
    Ambiguous,
    /// The task is being destroyed.
    BeingDestroyed,
    /// Results could not be downloaded or verified; nothing was deleted.
    Unverified,
    /// A defect.
    Internal,
}

/// What was being done to what, why it failed, and what to do next.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct EngineError {
    /// What a caller can act on.
    pub kind: ErrorKind,
    /// What was being done to what, as a lower-case fragment; the cause is the source.
    pub message: String,
    /// The task, if one.
    pub task: Option<TaskId>,
    /// What to do next: lower-case fragments, commands in backquotes.
    pub hints: Vec<String>,
    /// Cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}
