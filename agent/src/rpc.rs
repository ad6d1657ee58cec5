//! Where clients are served. Placeholder until the real service is merged: listens to nobody.

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tpi_proto::machine::MachineConfig;
use tpi_store::Store;

use crate::supervisor::Handle;

/// Why clients cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("serving clients: {0}")]
pub struct ServeError(pub String);

/// Makes this run's key, binds `config.listen`, publishes the identity, and serves until `shutdown`.
///
/// Returns once the agent can be reached (or at once when `config.listen` is absent). After `shutdown` is
/// cancelled no new connection is taken, and the task ends when open streams have ended; the caller bounds the wait
/// and aborts it afterwards.
///
/// # Errors
/// The address cannot be bound, or the identity cannot be published.
pub async fn serve(
    _handle: Handle,
    _config: &MachineConfig,
    _store: &Store,
    shutdown: CancellationToken,
) -> Result<JoinHandle<()>, ServeError> {
    Ok(tokio::spawn(async move { shutdown.cancelled().await }))
}
