//! TCP through the connection.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::{
    connect::{CallError, Connection},
    identity::UserIdentity,
};
use tpi_proto::id::{RunId, TaskId};
use tpi_store::Store;

/// Why one stream ended early.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The call: nothing listens there, or the connection broke.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The local side.
    #[error("{operation}")]
    Local {
        /// What was being done.
        operation: &'static str,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
}

/// Carries one stream to `host:port` as seen from the machine (empty host: 127.0.0.1), both ways, each closed on its own.
///
/// # Errors
/// See [`ForwardError`].
pub async fn forward(
    _connection: &Connection,
    _host: &str,
    _port: u16,
    _local: impl AsyncRead + AsyncWrite + Send + 'static,
) -> Result<(), ForwardError> {
    unimplemented!()
}

/// A local port whose connections are carried to the machine.
#[derive(Debug)]
pub struct Listener {}

impl Listener {
    /// Listens on `local` (port 0: any).
    ///
    /// # Errors
    /// The address is taken.
    pub async fn bind(_local: SocketAddr) -> std::io::Result<Self> {
        unimplemented!()
    }

    /// Where.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        unimplemented!()
    }

    /// Serves until `stop`; dials again when the connection has broken. `failed` is told of each stream that failed.
    pub async fn serve(
        self,
        _store: &Store,
        _task: &TaskId,
        _run: RunId,
        _identity: &UserIdentity,
        _host: &str,
        _port: u16,
        _stop: CancellationToken,
        _failed: impl Fn(&(dyn std::error::Error + 'static)) + Send + Sync,
    ) {
        unimplemented!()
    }
}
