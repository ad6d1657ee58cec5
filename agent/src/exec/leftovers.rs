//! Processes that outlive the script: found by the mark in their environment and by their parent, whatever
//! process group or session they moved to.
//!
//! The agent is a child subreaper, so what the script leaves behind becomes its child. Processes of attached shells
//! carry [`SHELL_MARK`] and are spared until the end of the machine.

use std::{
    collections::HashMap,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tokio::time::Instant;
use tpi_proto::id::MachineId;

/// Name of the variable that marks the processes of shells.
pub(crate) const SHELL_MARK: &str = "TPI_SHELL";

/// Between SIGTERM and SIGKILL for what was left behind.
const LEFTOVER_GRACE: Duration = Duration::from_secs(2);
/// How often the processes are looked at while some are to end.
const LOOK: Duration = Duration::from_millis(50);

/// Whether every child of this process that is not a shell's belongs to the script.
static ADOPTING: AtomicBool = AtomicBool::new(false);

/// Which processes to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The script's.
    Script,
    /// Everything of the machine except the agent.
    All,
}

/// Makes orphans of the script children of this process.
///
/// # Errors
/// The system refuses.
pub(crate) fn adopt_orphans() -> std::io::Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    ADOPTING.store(true, Ordering::Relaxed);
    Ok(())
}

struct Entry {
    parent: i32,
    zombie: bool,
}

fn read_stat(pid: i32) -> Option<Entry> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything.
    let rest = stat.get(stat.iter().rposition(|&b| b == b')')? + 2..)?;
    let mut fields = std::str::from_utf8(rest).ok()?.split(' ');
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    Some(Entry { parent, zombie: matches!(state, "Z" | "X") })
}

fn processes() -> HashMap<i32, Entry> {
    let Ok(entries) = fs::read_dir("/proc") else { return HashMap::new() };
    entries
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, read_stat(pid)?)))
        .collect()
}

/// Whether a process carries the machine's mark, and a shell's.
fn marks(pid: i32, machine: &str) -> (bool, bool) {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let mut found = (false, false);
    for variable in environment.split(|&b| b == 0) {
        let Some(at) = variable.iter().position(|&b| b == b'=') else { continue };
        let (name, value) =
            (variable.get(..at).unwrap_or_default(), variable.get(at + 1..).unwrap_or_default());
        found.0 |= name == b"TPI_MACHINE_ID" && value == machine.as_bytes();
        found.1 |= name == SHELL_MARK.as_bytes();
    }
    found
}

/// Living processes in scope: those that carry the machine's mark, and those that descend from this process even if
/// they have cleared their environment.
pub(crate) fn find(machine: &MachineId, scope: Scope) -> Vec<Pid> {
    let me = rustix::process::getpid().as_raw_nonzero().get();
    let all = processes();
    let marks: HashMap<i32, (bool, bool)> = all.keys().map(|&pid| (pid, marks(pid, &machine.0))).collect();
    // Whatever started the agent is not the script's, even where it carries the mark.
    let above: Vec<i32> =
        std::iter::successors(Some(me), |pid| all.get(pid).map(|e| e.parent).filter(|p| *p > 0))
            .take(1_000)
            .collect();
    let in_scope = |pid: i32| {
        let (marked, shell) = marks.get(&pid).copied().unwrap_or_default();
        if scope == Scope::Script && shell {
            return false;
        }
        if marked {
            return true;
        }
        // A bound, in case a parent's number was used again while looking.
        let mut at = pid;
        for _ in 0..1_000 {
            match all.get(&at).map(|e| e.parent) {
                Some(parent) if parent == me => return ADOPTING.load(Ordering::Relaxed),
                Some(parent) if parent > 1 => at = parent,
                Some(_) | None => return false,
            }
            if scope == Scope::Script && marks.get(&at).is_some_and(|m| m.1) {
                return false;
            }
        }
        false
    };
    all.iter()
        .filter(|(pid, entry)| !above.contains(pid) && !entry.zombie && in_scope(**pid))
        .filter_map(|(pid, _)| Pid::from_raw(*pid))
        .collect()
}

fn signal_all(pids: &[Pid], signal: Signal) {
    for &pid in pids {
        if let Err(error) = kill_process(pid, signal)
            && error != rustix::io::Errno::SRCH
        {
            tracing::warn!(pid = pid.as_raw_nonzero().get(), %error, "a process could not be signalled");
        }
    }
}

/// Kills everything in scope at once, and what it starts meanwhile. Returns how many there were at first.
pub(crate) async fn kill(machine: &MachineId, scope: Scope) -> usize {
    let mut first = None;
    for _ in 0..200 {
        let found = find(machine, scope);
        first.get_or_insert(found.len());
        if found.is_empty() {
            break;
        }
        signal_all(&found, Signal::KILL);
        tokio::time::sleep(LOOK).await;
    }
    first.unwrap_or_default()
}

/// Ends everything in scope: SIGTERM, a short grace, SIGKILL.
pub(crate) async fn end(machine: &MachineId, scope: Scope) -> usize {
    let found = find(machine, scope);
    if found.is_empty() {
        return 0;
    }
    signal_all(&found, Signal::TERM);
    let due = Instant::now() + LEFTOVER_GRACE;
    while Instant::now() < due {
        tokio::time::sleep(LOOK).await;
        if find(machine, scope).is_empty() {
            return found.len();
        }
    }
    kill(machine, scope).await;
    found.len()
}

/// Reaps dead children that are not ours to wait for: those seen dead in two looks a while apart. Children that the
/// agent started itself are waited for by their owners long before.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    seen: Vec<i32>,
}

impl Reaper {
    /// One look. Call every few seconds.
    pub(crate) fn look(&mut self) {
        let me = rustix::process::getpid().as_raw_nonzero().get();
        let dead: Vec<i32> =
            processes().into_iter().filter(|(_, e)| e.zombie && e.parent == me).map(|(pid, _)| pid).collect();
        for pid in dead.iter().filter(|pid| self.seen.contains(pid)).filter_map(|pid| Pid::from_raw(*pid)) {
            // Gone already is as good.
            let _gone = waitpid(Some(pid), WaitOptions::NOHANG);
        }
        self.seen = dead;
    }
}
