//! An interactive process on the machine, in the work directory, with the script's environment.
//!
//! With a window it has a terminal and is the leader of its session; without, its streams are pipes and it leads a
//! process group. It lives no longer than the client's stream: then it is sent SIGHUP and, a moment later, SIGKILL,
//! with its group. What has left the group is found at the machine's end by `TPI_MACHINE_ID`.

use std::{
    io,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use rustix::process::{Pid, Signal};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    process::Child,
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{Status, Streaming};
use tpi_proto::agent_v1::{
    ShellExit, ShellOpen, ShellRequest, ShellResponse, WindowSize, shell_exit, shell_request, shell_response,
};

use super::refused;
use crate::supervisor::ProcessContext;

/// Between SIGHUP and SIGKILL.
const HANGUP_GRACE: Duration = Duration::from_secs(2);
/// After the process' end its children may hold its streams open; they are read for this long.
const LEAK_TIMEOUT: Duration = Duration::from_secs(1);
const CHUNK: usize = 32 * 1024;
/// Chunks on their way to the client.
const IN_FLIGHT: usize = 8;

type Answer = Result<ShellResponse, Status>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// Takes the first message and starts the process.
pub(super) async fn open(
    mut requests: Streaming<ShellRequest>,
    context: &ProcessContext,
    tasks: &TaskTracker,
) -> Result<impl Stream<Item = Answer> + Send + 'static, Status> {
    let open = match requests.message().await?.and_then(|first| first.message) {
        Some(shell_request::Message::Open(open)) => open,
        Some(
            shell_request::Message::Stdin(_)
            | shell_request::Message::StdinClosed(_)
            | shell_request::Message::Resize(_),
        )
        | None => return Err(refused("the first message of Shell must be `open`".to_owned())),
    };
    let (answers, stream) = mpsc::channel(IN_FLIGHT);
    let session = match open.window {
        Some(window) => with_terminal(&open, window, context),
        None => with_pipes(&open, context),
    };
    let program = command_line(&open, context).0;
    let session = session.map_err(|error| refused(format!("starting {program:?}: {error}")))?;
    tasks.spawn(session.run(requests, answers));
    Ok(ReceiverStream::new(stream))
}

/// Program and arguments; without a command, the user's shell.
fn command_line(open: &ShellOpen, context: &ProcessContext) -> (String, Vec<String>) {
    if let Some((program, arguments)) = open.command.split_first() {
        return (program.clone(), arguments.to_vec());
    }
    let shell = context.environment.get("SHELL").cloned();
    let shell = shell.filter(|shell| Path::new(shell).is_file()).unwrap_or_else(|| {
        let bash = "/bin/bash";
        if Path::new(bash).is_file() { bash } else { "/bin/sh" }.to_owned()
    });
    (shell, Vec::new())
}

/// How a terminal is told its size.
enum Terminal {
    /// There is none.
    None,
    /// Both halves of it; the one that writes also resizes.
    Some(pty_process::OwnedWritePty),
}

struct Session {
    child: Child,
    /// The process' group.
    group: Option<Pid>,
    terminal: Terminal,
    stdin: Option<Writer>,
    stdout: Box<dyn AsyncRead + Send + Unpin>,
    stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
}

fn group_of(child: &Child) -> Option<Pid> {
    child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw)
}

fn with_terminal(open: &ShellOpen, window: WindowSize, context: &ProcessContext) -> io::Result<Session> {
    let (program, arguments) = command_line(open, context);
    let (pty, pts) = pty_process::open().map_err(io::Error::other)?;
    pty.resize(size(window)).map_err(io::Error::other)?;
    let term = if open.term.is_empty() { "xterm" } else { &open.term };
    let child = pty_process::Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(&context.environment)
        .env("TERM", term)
        .current_dir(&context.work_dir)
        .kill_on_drop(true)
        .spawn(pts)
        .map_err(|error| match error {
            pty_process::Error::Io(error) => error,
            pty_process::Error::Rustix(error) => error.into(),
            other @ (pty_process::Error::TokioAsyncFd(_) | pty_process::Error::Unsplit(..)) => {
                io::Error::other(other)
            }
        })?;
    let (read, write) = pty.into_split();
    Ok(Session {
        group: group_of(&child),
        child,
        terminal: Terminal::Some(write),
        stdin: None,
        stdout: Box::new(read),
        stderr: None,
    })
}

fn with_pipes(open: &ShellOpen, context: &ProcessContext) -> io::Result<Session> {
    let (program, arguments) = command_line(open, context);
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(&context.environment)
        .current_dir(&context.work_dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let missing = || io::Error::other("no pipe");
    let stdin = child.stdin.take().ok_or_else(missing)?;
    let stdout = child.stdout.take().ok_or_else(missing)?;
    let stderr = child.stderr.take().ok_or_else(missing)?;
    Ok(Session {
        group: group_of(&child),
        child,
        terminal: Terminal::None,
        stdin: Some(Box::new(stdin)),
        stdout: Box::new(stdout),
        stderr: Some(Box::new(stderr)),
    })
}

fn size(window: WindowSize) -> pty_process::Size {
    let clip = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    pty_process::Size::new(clip(window.rows), clip(window.columns))
}

impl Session {
    async fn run(self, requests: Streaming<ShellRequest>, answers: mpsc::Sender<Answer>) {
        let Self { mut child, group, terminal, stdin, stdout, stderr } = self;
        let output = async {
            let out = pump(stdout, &answers, shell_response::Message::Stdout);
            let err = async {
                if let Some(stderr) = stderr {
                    pump(stderr, &answers, shell_response::Message::Stderr).await;
                }
            };
            tokio::join!(out, err);
        };
        tokio::pin!(output);
        let input = input(requests, stdin, terminal);
        tokio::pin!(input);
        let (mut output_open, mut input_open) = (true, true);
        let ended = loop {
            tokio::select! {
                ended = child.wait() => break Some(ended),
                () = answers.closed() => break None,
                () = &mut output, if output_open => output_open = false,
                () = &mut input, if input_open => input_open = false,
            }
        };
        match ended {
            Some(ended) => {
                if output_open {
                    // Late: somebody else holds the streams. The client gone: nobody to read them for.
                    tokio::select! {
                        late = tokio::time::timeout(LEAK_TIMEOUT, &mut output) => match late {
                            Ok(()) => {}
                            Err(_) => tracing::debug!("a shell's children hold its output open"),
                        },
                        () = answers.closed() => {}
                    }
                }
                let answer = ended
                    .map(|status| ShellResponse {
                        message: Some(shell_response::Message::Exit(exit(status))),
                    })
                    .map_err(|error| super::failed(format!("waiting for the process: {error}")));
                let (Ok(()) | Err(_)) = answers.send(answer).await;
            }
            None => end(&mut child, group).await,
        }
    }
}

/// Ends a process whose client is gone, and its group.
async fn end(child: &mut Child, group: Option<Pid>) {
    signal(group, Signal::HUP);
    if tokio::time::timeout(HANGUP_GRACE, child.wait()).await.is_err() {
        signal(group, Signal::KILL);
        if let Err(error) = child.wait().await {
            tracing::debug!(%error, "waiting for a shell");
        }
    } else {
        // The leader went; what it left behind in its group goes too.
        signal(group, Signal::KILL);
    }
}

fn signal(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group {
        // Gone already is as good.
        let (Ok(()) | Err(_)) = rustix::process::kill_process_group(group, signal);
    }
}

/// Client to process. Ends when the client closes its side or the process takes no more.
async fn input(mut requests: Streaming<ShellRequest>, mut stdin: Option<Writer>, mut terminal: Terminal) {
    loop {
        let message = match requests.message().await {
            Ok(Some(request)) => request.message,
            Ok(None) | Err(_) => return,
        };
        let written = match message {
            Some(shell_request::Message::Stdin(data)) => match (&mut terminal, &mut stdin) {
                (Terminal::Some(pty), _) => pty.write_all(&data).await,
                (Terminal::None, Some(stdin)) => stdin.write_all(&data).await,
                (Terminal::None, None) => Ok(()),
            },
            Some(shell_request::Message::StdinClosed(_)) => match &mut terminal {
                // What a person would type.
                Terminal::Some(pty) => pty.write_all(&[4]).await,
                Terminal::None => {
                    stdin = None;
                    Ok(())
                }
            },
            Some(shell_request::Message::Resize(window)) => match &terminal {
                Terminal::Some(pty) => pty.resize(size(window)).map_err(io::Error::other),
                Terminal::None => Ok(()),
            },
            Some(shell_request::Message::Open(_)) | None => Ok(()),
        };
        if let Err(error) = written {
            tracing::debug!(%error, "a shell takes no more input");
            stdin = None;
        }
    }
}

/// Process to client, until the end of the stream. A terminal whose processes are gone reports an error: the same.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    answers: &mpsc::Sender<Answer>,
    wrap: fn(Bytes) -> shell_response::Message,
) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        match from.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let message = Some(wrap(Bytes::from(buffer.split())));
                if answers.send(Ok(ShellResponse { message })).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn exit(status: ExitStatus) -> ShellExit {
    let status = match (status.code(), status.signal()) {
        (Some(code), _) => shell_exit::Status::Code(code),
        (None, Some(signal)) => shell_exit::Status::Signal(signal),
        (None, None) => shell_exit::Status::Code(-1),
    };
    ShellExit { status: Some(status) }
}
