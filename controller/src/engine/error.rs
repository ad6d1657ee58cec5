//! Errors of the engine.

use serde::Serialize;
use tpi_proto::id::TaskId;
use tpi_store::{StoreError, StoreErrorKind, snapshot::SnapshotError};

use crate::{
    cloud::{CloudError, CloudErrorKind, Leftovers},
    home::HomeError,
};

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

impl EngineError {
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), task: None, hints: Vec::new(), source: None }
    }

    pub(super) fn of(mut self, task: &TaskId) -> Self {
        self.task = Some(task.clone());
        self
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    pub(super) fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// For `map_err` on the store's errors.
    pub(super) fn store(message: impl Into<String>) -> impl FnOnce(StoreError) -> Self {
        move |error| {
            let (kind, hint) = of_store(error.kind);
            let new = Self::new(kind, message).because(error);
            match hint {
                Some(hint) => new.hint(hint),
                None => new,
            }
        }
    }

    /// For `map_err` on errors of snapshots.
    pub(super) fn snapshot(message: impl Into<String>) -> impl FnOnce(SnapshotError) -> Self {
        move |error| {
            let message = message.into();
            match error {
                SnapshotError::Store(error) => Self::store(message)(error),
                SnapshotError::File { .. } => Self::new(ErrorKind::User, message)
                    .because(error)
                    .hint("check the file and its permissions, or leave it out with `--exclude`"),
                SnapshotError::NoSpace { .. } => {
                    Self::new(ErrorKind::User, message).because(error).hint("make room on the disk")
                }
                SnapshotError::Unsafe { .. } | SnapshotError::Damaged { .. } => {
                    Self::new(ErrorKind::Unverified, message).because(error)
                }
            }
        }
    }

    /// For `map_err` on errors of the state directory.
    pub(super) fn home(error: HomeError) -> Self {
        Self::new(ErrorKind::User, "keeping state on this computer")
            .because(error)
            .hint("choose another directory with `--state-dir DIR`")
    }

    /// For `map_err` where a cloud that does not answer leaves open whether machines of a task are left.
    pub(super) fn unproved(task: &TaskId) -> impl FnOnce(CloudError) -> Self {
        move |error| {
            let retry = error.kind.is_retryable();
            let new = Self::new(
                ErrorKind::LeftBehind,
                format!("it cannot be proved that nothing of {task} is left"),
            )
            .of(task)
            .because(error);
            let new = if retry {
                new.hint("the machines end by the deadline, whether the cloud answers or not")
            } else {
                new
            };
            new.hint(format!("to try again: `tpi-controller destroy {task}`"))
        }
    }

    /// For `map_err` on errors of a cloud that are about no task.
    pub(super) fn of_cloud(doing: impl Into<String>) -> impl FnOnce(CloudError) -> Self {
        move |error| {
            let (refused, hint) = of_cloud(error.kind);
            let new = Self::new(refused, doing).because(error);
            match hint {
                Some(hint) => new.hint(hint),
                None => new,
            }
        }
    }

    /// For `map_err` on what a cloud refuses before anything was made.
    pub(super) fn planning(task: &TaskId) -> impl FnOnce(CloudError) -> Self {
        move |error| {
            let (refused, hint) = of_cloud(error.kind);
            let new = Self::new(refused, format!("planning the machines of {task}")).because(error);
            match hint {
                Some(hint) => new.hint(hint),
                None => new,
            }
        }
    }

    /// For `map_err` on a cloud's errors.
    pub(super) fn cloud(task: &TaskId) -> impl FnOnce(CloudError) -> Self {
        move |error| {
            let (refused, hint) = of_cloud(error.kind);
            let kind = match error.leftovers {
                // What is left is named, and costs nothing: the cause is the news.
                Leftovers::None | Leftovers::Free => refused,
                Leftovers::Remaining | Leftovers::Unknown => ErrorKind::LeftBehind,
            };
            let new = Self::new(kind, format!("machines of {task}")).of(task).because(error);
            let new = match hint {
                Some(hint) => new.hint(hint),
                None => new,
            };
            new.hint(format!("to remove whatever there is: `tpi-controller destroy {task}`"))
        }
    }
}

fn of_cloud(kind: CloudErrorKind) -> (ErrorKind, Option<&'static str>) {
    let again = Some("run the same command again in a while");
    match kind {
        CloudErrorKind::Unauthenticated => {
            (ErrorKind::CloudRefused, Some("check the credentials in your environment"))
        }
        CloudErrorKind::PermissionDenied => {
            (ErrorKind::CloudRefused, Some("see what has to be allowed: `tpi-controller aws policy`"))
        }
        CloudErrorKind::QuotaExceeded | CloudErrorKind::InvalidSpec | CloudErrorKind::NotSupported => {
            (ErrorKind::CloudRefused, None)
        }
        CloudErrorKind::NoCapacity => (ErrorKind::CloudRefused, again),
        CloudErrorKind::Throttled | CloudErrorKind::Unavailable => (ErrorKind::Unreachable, again),
        CloudErrorKind::Other => (ErrorKind::Internal, None),
    }
}

fn of_store(kind: StoreErrorKind) -> (ErrorKind, Option<&'static str>) {
    match kind {
        StoreErrorKind::Unavailable => (
            ErrorKind::Unreachable,
            Some("check the network; running the same command again continues where this one ended"),
        ),
        StoreErrorKind::Unauthenticated => {
            (ErrorKind::CloudRefused, Some("check the credentials in your environment"))
        }
        StoreErrorKind::PermissionDenied => {
            (ErrorKind::CloudRefused, Some("check what the credentials in your environment allow"))
        }
        StoreErrorKind::NoSpace => (ErrorKind::User, Some("make room on the disk")),
        StoreErrorKind::Unsupported => (ErrorKind::User, Some("check the URL of the store")),
        StoreErrorKind::Corrupt => (
            ErrorKind::Unverified,
            Some("the object is damaged, or was written by a newer version of tpi-controller"),
        ),
        StoreErrorKind::NotFound | StoreErrorKind::AlreadyExists | StoreErrorKind::Conflict => {
            (ErrorKind::Internal, None)
        }
        // A store that fails in a way of its own (a folder that cannot be made, an answer nobody knows) is no
        // defect of ours.
        StoreErrorKind::Other => {
            (ErrorKind::Unreachable, Some("check the URL of the store, and who may write there"))
        }
    }
}
