//! Ctrl-C and SIGTERM: once to leave in good order, twice to leave at once. Neither ends a task.

use std::io;

use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::exit::Exit;

/// Listens from its making to its end.
#[derive(Debug)]
pub(super) struct Interrupt {
    token: CancellationToken,
    /// Aborted when dropped.
    _listener: JoinSet<()>,
}

impl Interrupt {
    /// Begins to listen.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub(super) fn install() -> io::Result<Self> {
        // SIGINT: a person at the terminal. SIGTERM: service managers, CI jobs that are cancelled. SIGHUP: the
        // terminal has gone.
        let mut int = signal(SignalKind::interrupt())?;
        let mut term = signal(SignalKind::terminate())?;
        let mut hup = signal(SignalKind::hangup())?;
        let token = CancellationToken::new();
        let set = token.clone();
        let mut listener = JoinSet::new();
        let _abort_handle = listener.spawn(async move {
            loop {
                let more = tokio::select! {
                    more = int.recv() => more,
                    more = term.recv() => more,
                    more = hup.recv() => more,
                };
                if more.is_none() {
                    return;
                }
                if set.is_cancelled() {
                    // The status line stays: whoever writes above it may be stuck, and holds its lock.
                    #[expect(clippy::disallowed_methods, reason = "what was asked for is to leave at once")]
                    std::process::exit(i32::from(Exit::Detached.code()));
                }
                set.cancel();
            }
        });
        Ok(Self { token, _listener: listener })
    }

    /// Whether the first one has come.
    #[must_use]
    pub(super) fn is_set(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Waits for the first one.
    pub(super) async fn wait(&self) {
        self.token.cancelled().await;
    }

    /// Cancelled by the first one.
    #[must_use]
    pub(super) fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// The future's output, or `None` when the first one comes before: the future is dropped then, which is
    /// only right for work that is finished by doing it again.
    pub(super) async fn guard<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.wait() => None,
            done = work => Some(done),
        }
    }
}
