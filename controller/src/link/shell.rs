//! An interactive process on the machine.

use std::{io, pin::pin};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use rustix::termios::{OptionalActions, Termios};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    signal::unix::SignalKind,
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tpi_proto::agent_v1::{
    self as wire, ShellResponse, WindowSize, shell_exit, shell_request, shell_response,
};

use super::connect::{CallError, Connection, StreamError};

const CHUNK: usize = 32 * 1024;
/// Messages on their way to the agent.
const IN_FLIGHT: usize = 8;

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

impl From<Window> for WindowSize {
    fn from(window: Window) -> Self {
        Self { rows: window.rows.into(), columns: window.columns.into() }
    }
}

/// What to run.
#[derive(Debug, Clone, Default)]
pub struct ShellRequest {
    /// Command and arguments; empty: the user's shell.
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

/// Runs one process to its end. `stdin`'s end closes the process' input; `resizes` are new window sizes. Dropping the
/// future kills the process.
///
/// # Errors
/// See [`StreamError`].
pub async fn shell(
    connection: &Connection,
    request: ShellRequest,
    stdin: impl AsyncRead + Send + Unpin,
    mut stdout: impl AsyncWrite + Send + Unpin,
    mut stderr: impl AsyncWrite + Send + Unpin,
    resizes: impl Stream<Item = Window> + Send + Unpin,
) -> Result<ShellExit, StreamError> {
    let (requests, outgoing) = mpsc::channel(IN_FLIGHT);
    let open = wire::ShellOpen {
        command: request.command,
        term: request.term,
        window: request.window.map(WindowSize::from),
    };
    // The receiver is alive: it is the call's own, below.
    let (Ok(()) | Err(_)) = requests.send(message(shell_request::Message::Open(open))).await;
    let mut answers = connection
        .client()
        .shell(ReceiverStream::new(outgoing))
        .await
        .map_err(CallError::from_status)?
        .into_inner();
    let mut input = pin!(input(stdin, resizes, requests));
    let mut input_open = true;
    loop {
        let answer = tokio::select! {
            answer = answers.message() => answer.map_err(CallError::from_status)?,
            read = &mut input, if input_open => {
                input_open = false;
                read.map_err(|source| StreamError::Local { operation: "reading the input", source })?;
                continue;
            }
        };
        let Some(ShellResponse { message }) = answer else {
            return Err(CallError::Broken("it ended without an exit status".to_owned()).into());
        };
        match message {
            Some(shell_response::Message::Stdout(data)) => write(&mut stdout, &data).await?,
            Some(shell_response::Message::Stderr(data)) => write(&mut stderr, &data).await?,
            Some(shell_response::Message::Exit(exit)) => {
                return match exit.status {
                    Some(shell_exit::Status::Code(code)) => Ok(ShellExit::Code(code)),
                    Some(shell_exit::Status::Signal(signal)) => Ok(ShellExit::Signal(signal)),
                    None => Err(CallError::Failed("it sent an empty exit status".to_owned()).into()),
                };
            }
            None => {}
        }
    }
}

async fn write(to: &mut (impl AsyncWrite + Unpin), data: &[u8]) -> Result<(), StreamError> {
    let written = async {
        to.write_all(data).await?;
        to.flush().await
    };
    written.await.map_err(|source| StreamError::Local { operation: "writing the output", source })
}

fn message(message: shell_request::Message) -> wire::ShellRequest {
    wire::ShellRequest { message: Some(message) }
}

/// Never ends before the process does, except with an error: the sender it holds keeps our side of the call open.
async fn input(
    mut stdin: impl AsyncRead + Unpin,
    mut resizes: impl Stream<Item = Window> + Unpin,
    requests: mpsc::Sender<wire::ShellRequest>,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    let (mut reading, mut resizing) = (true, true);
    loop {
        buffer.reserve(CHUNK);
        let next = tokio::select! {
            read = stdin.read_buf(&mut buffer), if reading => {
                if read? == 0 {
                    reading = false;
                    shell_request::Message::StdinClosed(true)
                } else {
                    shell_request::Message::Stdin(Bytes::from(buffer.split()))
                }
            }
            window = resizes.next(), if resizing => match window {
                Some(window) => shell_request::Message::Resize(window.into()),
                None => {
                    resizing = false;
                    continue;
                }
            },
            () = requests.closed() => return Ok(()),
        };
        if requests.send(message(next)).await.is_err() {
            return Ok(());
        }
    }
}

/// This process' terminal in raw mode; restored when dropped. A process that is killed by a signal it does not
/// handle leaves the terminal raw: callers handle SIGINT, SIGTERM and SIGHUP while they hold one.
#[derive(Debug)]
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// `None` when stdin or stdout is not a terminal.
    ///
    /// # Errors
    /// The terminal's modes cannot be read or set.
    pub fn enter() -> io::Result<Option<Self>> {
        let (stdin, stdout) = (rustix::stdio::stdin(), rustix::stdio::stdout());
        if !rustix::termios::isatty(stdin) || !rustix::termios::isatty(stdout) {
            return Ok(None);
        }
        let before = rustix::termios::tcgetattr(stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        // Made first, so that a failure half-way is undone as well.
        let terminal = Self { before };
        rustix::termios::tcsetattr(stdin, OptionalActions::Drain, &raw)?;
        Ok(Some(terminal))
    }

    /// Its size now.
    #[must_use]
    pub fn window(&self) -> Window {
        window()
    }

    /// A new size after each change.
    ///
    /// # Errors
    /// The signal handler cannot be installed.
    pub fn resizes(&self) -> io::Result<impl Stream<Item = Window> + Send + Unpin + 'static + use<>> {
        let changes = tokio::signal::unix::signal(SignalKind::window_change())?;
        Ok(Box::pin(futures::stream::unfold(changes, |mut changes| async move {
            changes.recv().await?;
            Some((window(), changes))
        })))
    }
}

fn window() -> Window {
    match rustix::termios::tcgetwinsize(rustix::stdio::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => Window { rows: size.ws_row, columns: size.ws_col },
        Ok(_) | Err(_) => Window { rows: 24, columns: 80 },
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let stdin = rustix::stdio::stdin();
        if let Err(error) = rustix::termios::tcsetattr(stdin, OptionalActions::Drain, &self.before) {
            tracing::warn!(%error, "cannot restore the terminal; `reset` does");
        }
    }
}
