//! Child processes, none of which outlives us.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often a condition is looked at again.
const AGAIN: Duration = Duration::from_millis(20);

/// Set when a person or a supervisor asked us to end. Taking the signals keeps them from ending us before
/// what we started has been ended.
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    pub(crate) fn listen() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP]
        {
            signal_hook::flag::register(signal, Arc::clone(&flag)).context("listening for signals")?;
        }
        Ok(Self(flag))
    }

    pub(crate) fn happened(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Runs `command` to its end; once interrupted it is asked to end too, and killed if it does not.
    pub(crate) fn run(&self, command: &mut Command) -> Result<ExitStatus> {
        let mut child = command.spawn().with_context(|| format!("starting {}", program(command)))?;
        let mut asked = None;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            match asked {
                None if self.happened() => {
                    terminate(&child);
                    asked = Some(Instant::now());
                }
                Some(since) if since.elapsed() > Duration::from_secs(10) => child.kill()?,
                None | Some(_) => {}
            }
            pause();
        }
    }
}

/// A process in the background, in a process group of its own so that Ctrl-C leaves it to us; ended with us.
pub(crate) struct Server {
    name: &'static str,
    child: Child,
}

impl Server {
    pub(crate) fn start(name: &'static str, command: &mut Command) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {name} ({})", program(command)))?;
        Ok(Self { name, child })
    }

    /// Waits until `ready` holds; an error when the server ends before, or takes longer than `limit`.
    pub(crate) fn wait_until(&mut self, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let started = Instant::now();
        while !ready() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended at once: {status}", self.name);
            }
            if started.elapsed() > limit {
                bail!("{} was not ready after {} s", self.name, limit.as_secs());
            }
            pause();
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        terminate(&self.child);
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(20) {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            pause();
        }
        // Nothing is left to do about a failure here: the process is gone, or not ours any more.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// SIGTERM. The standard library only knows SIGKILL, and every shell has `kill` built in.
fn terminate(child: &Child) {
    let sent = Command::new("sh").args(["-c", "kill -TERM \"$1\"", "sh", &child.id().to_string()]).status();
    drop(sent);
}

/// A port of the loopback interface that is free now.
pub(crate) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port")?;
    Ok(listener.local_addr()?.port())
}

pub(crate) fn answers(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

/// Runs to the end; its output is shown only when it fails.
pub(crate) fn quietly(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("starting {}", program(command)))?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        let last: Vec<_> = told.trim().lines().rev().take(5).collect();
        let last: Vec<_> = last.into_iter().rev().collect();
        bail!("{} failed ({}): {}", program(command), output.status, last.join(" | "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where `name` is on the PATH.
pub(crate) fn found(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

#[expect(clippy::disallowed_methods, reason = "a plain program waiting for another process")]
pub(crate) fn pause() {
    std::thread::sleep(AGAIN);
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}
