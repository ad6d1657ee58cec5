//! One test's world, and how to look at it.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::Read,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tpi_proto::{
    id::{SlotIndex, TaskId},
    state::{Phase, SlotState, SlotStatus},
};
use tpi_store::layout::TaskKeys;

/// How long anything may take that should take a moment. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Looks until `probe` finds something.
///
/// The processes under test are other processes: there is nothing in here to be notified by, so this looks
/// again every few milliseconds, and gives up with `what` after [`PATIENCE`].
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(found) = probe() {
            return Ok(found);
        }
        ensure!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain for: {what}");
        std::thread::park_timeout(Duration::from_millis(15));
    }
}

/// A program of this workspace, or why it is not there.
pub fn program(variable: &str, name: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(PathBuf::from(path));
    }
    let mut folder = std::env::current_exe().context("finding the test's own path")?;
    while folder.pop() {
        let candidate = folder.join(name);
        if candidate.is_file() {
            return Ok(candidate);
        }
        if folder.ends_with("target") {
            break;
        }
    }
    bail!("{name} is not built; hint: run `cargo xtask test`, or set {variable}")
}

/// A state directory, a work directory, and the programs.
#[derive(Debug)]
pub struct Rig {
    folder: tempfile::TempDir,
    controller: PathBuf,
    agent: PathBuf,
    variables: BTreeMap<String, String>,
}

impl Rig {
    /// A fresh world.
    pub fn new() -> Result<Self> {
        Self::with(program("TPI_CONTROLLER", "tpi-controller")?)
    }

    /// A fresh world with another controller.
    pub fn with(controller: PathBuf) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("tpi-test-").tempdir()?;
        fs::create_dir(folder.path().join("work"))?;
        Ok(Self { folder, controller, agent: program("TPI_AGENT", "tpi-agent")?, variables: BTreeMap::new() })
    }

    /// Sets a variable for every command from now on.
    pub fn set(&mut self, name: &str, value: &str) -> &mut Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Where everything of this test lies.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The user's work directory.
    pub fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    /// The state directory.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// The default store of the local cloud.
    pub fn store(&self) -> PathBuf {
        self.state().join("store")
    }

    /// Writes a file of the work directory.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.work().join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// A command in this world, with nothing of the caller's environment but what it needs.
    pub fn command(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        self.other(&self.controller, arguments)
    }

    /// Another program in this world, as [`Rig::command`].
    pub fn other(&self, program: &Path, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(self.work())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.folder.path())
            .env("TPI_STATE_DIR", self.state())
            .env("TPI_AGENT", &self.agent)
            .envs(&self.variables)
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Finished> {
        self.start(arguments)?.wait()
    }

    /// Starts a command.
    pub fn start(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Running> {
        Running::spawn(self.command(arguments))
    }

    /// Submits a script that runs by itself; gives the task.
    pub fn submit(&self, name: &str, script: &str, flags: &[&str]) -> Result<TaskId> {
        let path = self.folder.path().join(format!("{name}.sh"));
        fs::write(&path, script)?;
        let mut arguments = vec!["submit", "--detach", "--name", name, "--script"];
        let path = path.to_string_lossy().into_owned();
        arguments.push(&path);
        arguments.extend(flags);
        let finished = self.run(arguments)?.success()?;
        let id = finished.stdout_text();
        id.trim_end().parse().with_context(|| format!("stdout of submit --detach: {id:?}"))
    }

    /// A slot's status as the store has it.
    pub fn slot(&self, task: &TaskId, slot: u32) -> Option<SlotStatus> {
        let bytes = fs::read(self.store().join(TaskKeys::new(task).slot(SlotIndex(slot)))).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Waits until a slot's status is as wanted.
    pub fn wait_slot(
        &self,
        task: &TaskId,
        slot: u32,
        what: &str,
        wanted: impl Fn(&SlotStatus) -> bool,
    ) -> Result<SlotStatus> {
        eventually(what, || self.slot(task, slot).filter(&wanted))
            .with_context(|| format!("last seen: {:?}\n{}", self.slot(task, slot), self.diagnosis(task)))
    }

    /// Waits until the script of slot 0 runs.
    pub fn wait_running(&self, task: &TaskId) -> Result<SlotStatus> {
        self.wait_slot(task, 0, "the script to run", |s| s.state == SlotState::Active { phase: Phase::Run })
    }

    /// Waits until slot 0 has ended.
    pub fn wait_finished(&self, task: &TaskId) -> Result<SlotStatus> {
        self.wait_slot(task, 0, "the slot to end", |s| s.state.is_final())
    }

    /// Folder of the local cloud's group for a task.
    pub fn group(&self, task: &TaskId) -> PathBuf {
        self.state().join("local").join(task.as_str())
    }

    /// Processes of this world whose executable's name begins with `name`.
    pub fn processes(&self, name: &str) -> Vec<Pid> {
        processes_of(self.folder.path())
            .into_iter()
            .filter(|(_, n)| n.starts_with(name))
            .map(|(p, _)| p)
            .collect()
    }

    /// Every process of this world but the commands that the test itself started.
    pub fn alive(&self) -> Vec<(Pid, String)> {
        processes_of(self.folder.path())
    }

    /// Waits until no process of this world is left.
    pub fn wait_empty(&self) -> Result<()> {
        eventually("every process to be gone", || self.alive().is_empty().then_some(()))
            .with_context(|| format!("alive: {:?}", self.alive()))
    }

    /// What helps to understand a failure.
    pub fn diagnosis(&self, task: &TaskId) -> String {
        let mut text = String::new();
        for entry in walk(&self.group(task)) {
            let log = entry.extension().is_some_and(|e| e == "log");
            if log && let Ok(content) = fs::read_to_string(&entry) {
                let tail: Vec<&str> = content.lines().rev().take(25).collect();
                let heading = format!("--- {}", entry.display());
                for line in [heading.as_str()].iter().chain(tail.iter().rev()) {
                    text.push_str(line);
                    text.push('\n');
                }
            }
        }
        text
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // A failed test must not leave machines: groups first, or they would replace what is killed.
        for _ in 0..20 {
            let mut alive = self.alive();
            if alive.is_empty() {
                break;
            }
            alive.sort_by_key(|(_, name)| !name.starts_with("tpi-controller"));
            for (pid, _) in alive {
                let _gone_already = kill_process(pid, Signal::KILL);
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        if std::thread::panicking() || std::env::var_os("TPI_TEST_KEEP").is_some() {
            eprint_kept(self.folder.path());
        }
    }
}

#[expect(clippy::print_stderr, reason = "a failed test says where its traces were")]
fn eprint_kept(folder: &Path) {
    eprintln!("the world of this test was {}", folder.display());
}

/// Processes that carry a folder's path in their environment or arguments: everything started in a rig does.
fn processes_of(folder: &Path) -> Vec<(Pid, String)> {
    let needle = folder.as_os_str().as_encoded_bytes();
    let own = std::process::id();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        if u32::try_from(pid) == Ok(own) {
            continue;
        }
        let holds = |file: &str| {
            fs::read(entry.path().join(file)).is_ok_and(|b| b.windows(needle.len()).any(|w| w == needle))
        };
        let zombie = fs::read_to_string(entry.path().join("stat"))
            .ok()
            .and_then(|s| s.rsplit_once(") ").map(|(_, rest)| rest.starts_with('Z')))
            .unwrap_or(true);
        if !zombie && (holds("environ") || holds("cmdline")) {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            found.extend(Pid::from_raw(pid).map(|pid| (pid, name.trim().to_owned())));
        }
    }
    found
}

/// Files below a folder.
pub fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                folders.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    files
}

/// A command that runs; both of its outputs are read all the time.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: JoinHandle<Vec<u8>>,
    stderr: JoinHandle<Vec<u8>>,
    line: String,
}

impl Running {
    /// Starts a command with its outputs captured.
    pub fn spawn(mut command: Command) -> Result<Self> {
        let line = format!("{command:?}");
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {line}"))?;
        let stdout = read_all(child.stdout.take());
        let stderr = read_all(child.stderr.take());
        Ok(Self { child, stdout, stderr, line })
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid =
            i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("pid of the command")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Result<Finished> {
        let status = eventually("the command to end", || self.child.try_wait().ok().flatten());
        let status = match status {
            Ok(status) => status,
            Err(error) => {
                self.child.kill()?;
                let stderr = self.stderr.join().unwrap_or_default();
                return Err(error.context(format!(
                    "{}\nstderr: {}",
                    self.line,
                    String::from_utf8_lossy(&stderr)
                )));
            }
        };
        Ok(Finished {
            status,
            stdout: self.stdout.join().unwrap_or_default(),
            stderr: String::from_utf8_lossy(&self.stderr.join().unwrap_or_default()).into_owned(),
            line: self.line,
        })
    }
}

fn read_all(source: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut source) = source {
            // What was read before an error is still worth showing.
            drop(source.read_to_end(&mut bytes));
        }
        bytes
    })
}

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    /// How.
    pub status: ExitStatus,
    /// All of stdout.
    pub stdout: Vec<u8>,
    /// All of stderr.
    pub stderr: String,
    /// The command line.
    pub line: String,
}

impl Finished {
    /// Stdout as text.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Stdout as one JSON document.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.stdout).with_context(|| self.description())
    }

    /// Everything, for a failure's message.
    pub fn description(&self) -> String {
        let shown = self.stdout.get(..self.stdout.len().min(4000)).unwrap_or_default();
        format!(
            "{}\n{} (signal {:?})\nstdout: {}\nstderr: {}",
            self.line,
            self.status,
            self.status.signal(),
            String::from_utf8_lossy(shown),
            self.stderr
        )
    }

    /// Requires an exit code.
    pub fn code(self, wanted: i32) -> Result<Self> {
        ensure!(self.status.code() == Some(wanted), "wanted exit code {wanted}: {}", self.description());
        Ok(self)
    }

    /// Requires exit code 0.
    pub fn success(self) -> Result<Self> {
        self.code(0)
    }

    /// Requires a text in stderr.
    pub fn says(self, text: &str) -> Result<Self> {
        ensure!(self.stderr.contains(text), "wanted {text:?} in stderr: {}", self.description());
        Ok(self)
    }
}
