//! An interactive process on the machine.

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite};

use super::connect::{CallError, Connection};

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// What to run.
#[derive(Debug, Clone, Default)]
pub struct ShellRequest {
    /// Command and arguments; empty: a login shell.
    pub command: Vec<String>,
    /// `TERM`; empty: the machine's default.
    pub term: String,
    /// Absent: no terminal; stdin, stdout and stderr are pipes.
    pub window: Option<Window>,
}

/// How the process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShellExit {
    /// By itself.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

/// Why a shell ended without an exit status.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// The call.
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

/// Runs one process to its end. `stdin`'s end closes the process' input; `resizes` are new window sizes. Dropping the
/// future kills the process.
///
/// # Errors
/// See [`ShellError`].
pub async fn shell(
    _connection: &Connection,
    _request: ShellRequest,
    _stdin: impl AsyncRead + Send + Unpin + 'static,
    _stdout: impl AsyncWrite + Send + Unpin,
    _stderr: impl AsyncWrite + Send + Unpin,
    _resizes: impl Stream<Item = Window> + Send + Unpin + 'static,
) -> Result<ShellExit, ShellError> {
    unimplemented!()
}

/// This process' terminal in raw mode; restored when dropped.
#[derive(Debug)]
pub struct RawTerminal {}

impl RawTerminal {
    /// `None` when stdin or stdout is not a terminal.
    ///
    /// # Errors
    /// The terminal's modes cannot be read or set.
    pub fn enter() -> std::io::Result<Option<Self>> {
        unimplemented!()
    }

    /// Its size now.
    #[must_use]
    pub fn window(&self) -> Window {
        unimplemented!()
    }

    /// A new size after each change.
    ///
    /// # Errors
    /// The signal handler cannot be installed.
    pub fn resizes(&self) -> std::io::Result<impl Stream<Item = Window> + Send + Unpin + 'static> {
        Ok(futures::stream::pending())
    }
}
