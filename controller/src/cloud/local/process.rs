//! Finding and ending the processes of a machine.
//!
//! A process is named by its id *and* its start time, because ids are used again. Everything of a machine is
//! found in two ways: by the session that its agent leads, and by `TPI_MACHINE_ID` in the environment, which
//! also finds what has made itself a session of its own.

use std::{
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tpi_proto::id::MachineId;

/// A process that cannot be mistaken for a later one with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessId {
    /// Process id.
    pub(super) pid: i32,
    /// Start time in clock ticks since boot.
    pub(super) started: u64,
}

/// Makes this process the leader of a session without a terminal. Whoever started it made it the leader of a process
/// group before it could be sent anything from the terminal; a leader of a group cannot lead a session, so it goes back
/// into its parent's group for a moment, deaf to what the terminal sends, and leaves from there. Where neither is
/// possible it stays apart from the terminal's foreground, which is what matters. Needs a tokio runtime.
pub(super) fn leave_terminal() -> io::Result<()> {
    use rustix::process::{getpgid, getppid, setpgid, setsid};
    if setsid().is_ok() {
        return Ok(());
    }
    // Once handled, these never end this process again. What it starts begins with the defaults.
    let stop = SignalKind::from_raw(Signal::TSTP.as_raw());
    for kind in [SignalKind::interrupt(), SignalKind::quit(), SignalKind::hangup(), stop] {
        drop(signal(kind)?);
    }
    let parents = getppid().map(|parent| getpgid(Some(parent)));
    if let Some(Ok(group)) = parents
        && setpgid(None, Some(group)).is_ok()
        && let Err(error) = setsid()
    {
        tracing::debug!(%error, "stays in the session that it was started in");
    }
    Ok(())
}

/// What `/proc/{pid}/stat` says.
#[derive(Debug, Clone, Copy)]
struct Stat {
    zombie: bool,
    session: i32,
    started: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may contain anything.
    let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
    // Counted from 1 as in proc(5), state is the third field and the first one here.
    let field = |n: usize| fields.get(n - 3).copied();
    Some(Stat {
        zombie: matches!(field(3)?, "Z" | "X"),
        session: field(6)?.parse().ok()?,
        started: field(22)?.parse().ok()?,
    })
}

impl ProcessId {
    /// A process that runs now.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let pid = i32::try_from(pid).ok()?;
        Some(Self { pid, started: stat(pid)?.started })
    }

    /// This process.
    pub(super) fn own() -> Option<Self> {
        Self::of(std::process::id())
    }

    /// Whether it still runs. One that has ended and was not waited for does not.
    pub(super) fn is_alive(self) -> bool {
        stat(self.pid).is_some_and(|s| !s.zombie && s.started == self.started)
    }

    /// Sends a signal to exactly this process; one that is gone is success.
    pub(super) fn signal(self, signal: Signal) -> io::Result<()> {
        let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.pid > 1) else { return Ok(()) };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => {
                // Looked at after the descriptor is held: what it names cannot change any more.
                if self.is_alive() {
                    match pidfd_send_signal(&fd, signal) {
                        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
                        Err(e) => Err(e.into()),
                    }
                } else {
                    Ok(())
                }
            }
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => Ok(()),
            // Kernels without process descriptors: the start time still guards against an old note.
            Err(rustix::io::Errno::NOSYS) if self.is_alive() => {
                rustix::process::kill_process(pid, signal).or(Ok(()))
            }
            Err(rustix::io::Errno::NOSYS) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

fn all() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
}

fn has_variable(pid: i32, variable: &[u8]) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|environ| environ.split(|&b| b == 0).any(|entry| entry == variable))
}

/// Processes with exactly this entry in the environment they began with.
pub(super) fn with_variable(name: &str, value: &str) -> Vec<ProcessId> {
    let variable = format!("{name}={value}").into_bytes();
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    all()
        .filter(|&pid| pid != own && has_variable(pid, &variable))
        .filter_map(|pid| {
            let stat = stat(pid).filter(|s| !s.zombie)?;
            Some(ProcessId { pid, started: stat.started })
        })
        .collect()
}

/// What a variable was for the processes that began with it.
pub(super) fn values_of(name: &str) -> Vec<(String, ProcessId)> {
    let beginning = format!("{name}=").into_bytes();
    let value = |pid: i32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let entry = environ.split(|&b| b == 0).find_map(|entry| entry.strip_prefix(beginning.as_slice()))?;
        Some(String::from_utf8_lossy(entry).into_owned())
    };
    all()
        .filter_map(|pid| {
            let stat = stat(pid).filter(|s| !s.zombie)?;
            Some((value(pid)?, ProcessId { pid, started: stat.started }))
        })
        .collect()
}

/// Everything of a machine that runs now.
pub(super) fn of_machine(machine: &MachineId, agent: Option<ProcessId>) -> Vec<ProcessId> {
    let mut found = with_variable("TPI_MACHINE_ID", &machine.0);
    if let Some(agent) = agent {
        // The session is named by its leader's id. When that id belongs to a younger process by now, the
        // session is not ours any more.
        let ours = stat(agent.pid).is_none_or(|s| s.started == agent.started);
        if ours {
            for pid in all() {
                let Some(stat) = stat(pid) else { continue };
                let process = ProcessId { pid, started: stat.started };
                if !stat.zombie
                    && stat.session == agent.pid
                    && stat.started >= agent.started
                    && !found.contains(&process)
                {
                    found.push(process);
                }
            }
        }
    }
    found
}

/// Kills everything of a machine, again and again until nothing is found: what is killed may have just
/// started something. Blocks; whether nothing is left after `patience`.
#[expect(
    clippy::disallowed_methods,
    reason = "runs where blocking is allowed, and the end of other people's children cannot be waited for"
)]
pub(super) fn kill_machine(machine: &MachineId, agent: Option<ProcessId>, patience: Duration) -> bool {
    let begun = Instant::now();
    loop {
        let found = of_machine(machine, agent);
        if found.is_empty() {
            return true;
        }
        for process in &found {
            if let Err(error) = process.signal(Signal::KILL) {
                tracing::warn!(pid = process.pid, %error, "cannot kill a process of a machine");
            }
        }
        if begun.elapsed() > patience {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a file can be a program of ours.
pub(super) fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_machine_is_killed_with_all_that_hides_from_its_session() {
        let machine = MachineId(format!("test-{:016x}", rand::random::<u64>()));
        // `setsid` is a session of its own; `env -i` hides the variable but stays in that session.
        let mut leader = Command::new("setsid")
            .args(["sh", "-c", "env -i sleep 1000 & setsid sleep 1000 & echo; wait"])
            .env("TPI_MACHINE_ID", &machine.0)
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut line = [0u8];
        io::Read::read_exact(leader.stdout.as_mut().expect("piped"), &mut line).expect("has begun");
        let agent = ProcessId::of(leader.id()).expect("runs");
        assert!(agent.is_alive());
        assert!(of_machine(&machine, Some(agent)).len() >= 2);
        assert!(kill_machine(&machine, Some(agent), Duration::from_secs(30)));
        drop(leader.wait());
        assert!(!agent.is_alive());
        assert!(of_machine(&machine, Some(agent)).is_empty());
        agent.signal(Signal::TERM).expect("gone is success");
    }

    #[test]
    fn a_number_used_again_is_another_process() {
        let own = ProcessId::own().expect("runs");
        assert!(own.is_alive());
        let older = ProcessId { started: own.started - 1, ..own };
        assert!(!older.is_alive());
        older.signal(Signal::KILL).expect("hits nobody");
    }
}
