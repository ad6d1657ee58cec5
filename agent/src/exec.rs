//! Runs the script as a process of this machine.
//!
//! ```text
//!  spawn ─► running ──────────────► exited ─► leftovers end ─► pipes drained ─► ScriptEnd
//!              │ order: end            ▲
//!              └─► SIGTERM ─► grace ─► SIGKILL
//! ```
//!
//! The script leads a process group of its own. Signals go to the group; SIGKILL also to whatever left the group.
//! After the script's end what it left behind may finish writing for [`LEAK_TIMEOUT`], then it is ended too.

use std::{
    collections::BTreeMap,
    io,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    process::{Child, Command},
    sync::watch,
    time::Instant,
};
use tpi_proto::id::{MachineId, RunId, TaskId};

use self::leftovers::Scope;
use crate::{
    logs::pump::{PipeEnds, Pump},
    supervisor::state::ScriptEnd,
};

pub(crate) mod leftovers;
pub(crate) mod script;

/// How long processes that the script left behind may hold its output open.
const LEAK_TIMEOUT: Duration = Duration::from_secs(5);

/// What is wanted of the script. Only ever becomes more urgent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Run.
    Run,
    /// SIGTERM was or is to be sent; SIGKILL follows.
    End {
        /// When.
        kill_at: Instant,
    },
    /// SIGKILL.
    Kill,
}

/// What is run, and how.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// The script's text.
    pub(crate) script: String,
    /// Where its file goes.
    pub(crate) run_dir: PathBuf,
    /// Where it runs.
    pub(crate) work_dir: PathBuf,
    /// All of its environment.
    pub(crate) environment: BTreeMap<String, String>,
    /// Marks its processes.
    pub(crate) machine: MachineId,
    /// Whose it is.
    pub(crate) task: TaskId,
    /// Slot and attempt.
    pub(crate) run: RunId,
}

/// Runs a script to its end. Its output goes to `ends`, of which `pump` has the other side; afterwards nobody
/// writes there any more, and `pump` can be finished.
pub(crate) async fn run(
    job: &Job,
    ends: PipeEnds,
    pump: &mut Pump,
    mut orders: watch::Receiver<Order>,
) -> ScriptEnd {
    let mut child = match start(job, ends).await {
        Ok(child) => child,
        Err(message) => return ScriptEnd::NotStarted { message },
    };
    let status = supervise(job, &mut child, &mut orders).await;
    end_leftovers(job, pump, &mut orders).await;
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => ScriptEnd::Exited { code },
            (None, Some(signal)) => ScriptEnd::Signalled { signal },
            (None, None) => ScriptEnd::Exited { code: -1 },
        },
        Err(error) => ScriptEnd::NotStarted { message: format!("the script cannot be waited for: {error}") },
    }
}

async fn start(job: &Job, ends: PipeEnds) -> Result<Child, String> {
    script::check(&job.script, job.environment.get("PATH").map(String::as_str))?;
    let path = script::write(&job.run_dir, &job.script)
        .map_err(|e| format!("writing the script to {}: {e}", job.run_dir.display()))?;
    let stdout = Stdio::from(ends.stdout);
    let stderr = Stdio::from(ends.stderr);
    spawn(job, &path, stdout, stderr).await.map_err(|e| {
        if e.kind() == io::ErrorKind::ArgumentListTooLong {
            "starting the script: its environment is larger than the system allows".to_owned()
        } else {
            format!("starting the script: {e}")
        }
    })
}

async fn spawn(job: &Job, path: &Path, stdout: Stdio, stderr: Stdio) -> io::Result<Child> {
    let mut command = Command::new(path);
    command
        .env_clear()
        .envs(&job.environment)
        .current_dir(&job.work_dir)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .process_group(0)
        .kill_on_drop(true);
    // A fork elsewhere may hold the script's file open for writing for a moment, until its exec.
    for _ in 0..50 {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            result => return result,
        }
    }
    command.spawn()
}

/// Waits for the script, ending it when ordered to.
async fn supervise(
    job: &Job,
    child: &mut Child,
    orders: &mut watch::Receiver<Order>,
) -> io::Result<ExitStatus> {
    let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let mut termed = false;
    loop {
        let order = *orders.borrow_and_update();
        let kill_at = match order {
            Order::Run => None,
            Order::End { kill_at } => Some(kill_at),
            Order::Kill => Some(Instant::now()),
        };
        if let Some(group) = group
            && kill_at.is_some_and(|at| Instant::now() >= at)
        {
            signal(group, Signal::KILL);
            let status = child.wait().await;
            leftovers::kill(&job.machine, Scope::Script).await;
            return status;
        }
        if let (Some(group), Some(_), false) = (group, kill_at, termed) {
            termed = true;
            signal(group, Signal::TERM);
        }
        let killing = async {
            match kill_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            status = child.wait() => return status,
            Ok(()) = orders.changed() => {}
            () = killing => {}
        }
    }
}

fn signal(group: Pid, signal: Signal) {
    if let Err(error) = kill_process_group(group, signal)
        && error != rustix::io::Errno::SRCH
    {
        tracing::warn!(%error, "the script's processes could not be signalled");
    }
}

/// What the script left behind may finish for a while, then it is ended.
async fn end_leftovers(job: &Job, pump: &mut Pump, orders: &mut watch::Receiver<Order>) {
    let patient = async {
        loop {
            if *orders.borrow_and_update() != Order::Run {
                break;
            }
            if orders.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        () = pump.drained() => {}
        () = patient => {}
        () = tokio::time::sleep(LEAK_TIMEOUT) => {}
    }
    let ended = leftovers::end(&job.machine, Scope::Script).await;
    if ended > 0 {
        tracing::info!(ended, "processes that the script left behind were ended");
    }
}
