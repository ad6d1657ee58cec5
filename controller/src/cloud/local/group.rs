//! The scaling group of a local task: a small process that keeps machines.

use std::path::Path;

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

/// Runs the group whose directory is `{state}/local/{task}` until all its machines are released, its deadline
/// is reached or its directory is gone. Makes itself the leader of a new session first. The body of the
/// hidden command `local-group --dir DIR`; needs a tokio runtime.
///
/// # Errors
/// When it cannot begin; another group that runs already is success.
pub async fn run(_dir: &Path) -> Result<(), GroupError> {
    unimplemented!()
}
