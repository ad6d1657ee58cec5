//! Our own binaries, driven by their command line as a person drives them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Bench;
use crate::process::{self, quietly};

/// One state folder of `tpi-controller`, with the tasks submitted from it, which end with it.
pub(super) struct Product {
    controller: PathBuf,
    agent: PathBuf,
    state: PathBuf,
    environment: Vec<(String, String)>,
    tasks: Vec<String>,
}

impl Product {
    pub(super) fn new(bench: &Bench<'_>, name: &str) -> Result<Self> {
        let binaries = bench.binaries()?;
        Ok(Self {
            controller: binaries.controller.clone(),
            agent: binaries.agent.clone(),
            state: bench.folder(&format!("state-{name}"))?,
            environment: Vec::new(),
            tasks: Vec::new(),
        })
    }

    /// Variables for every command from now on.
    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    pub(super) fn agent(&self) -> &Path {
        &self.agent
    }

    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.controller);
        command
            .env("TPI_STATE_DIR", &self.state)
            .env("TPI_AGENT", &self.agent)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .args(arguments);
        command
    }

    /// `submit --detach`, with the time the command took.
    pub(super) fn submit(&mut self, name: &str, arguments: &[&str]) -> Result<Duration> {
        let started = Instant::now();
        self.tasks.push(name.to_owned());
        let fixed = ["submit", "--detach", "--name", name, "--timeout", "2h"];
        quietly(&mut self.command(&[&fixed[..], arguments].concat()))?;
        Ok(started.elapsed())
    }

    /// Processes of agents of this state folder.
    pub(super) fn agents(&self) -> Result<Vec<u32>> {
        let state = self.state.to_string_lossy().into_owned();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let entry = entry?;
            let Ok(id) = entry.file_name().to_string_lossy().parse() else { continue };
            // Gone meanwhile, or not ours to look at.
            let Ok(line) = std::fs::read_to_string(entry.path().join("cmdline")) else { continue };
            let arguments: Vec<_> = line.split('\0').collect();
            if arguments.contains(&"--config") && arguments.contains(&"run") && line.contains(&state) {
                found.push(id);
            }
        }
        Ok(found)
    }

    /// The only agent, once it runs.
    pub(super) fn wait_agent(&self) -> Result<u32> {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(60) {
            if let [one] = self.agents()?[..] {
                return Ok(one);
            }
            process::pause();
        }
        bail!("no agent runs after a minute")
    }

    /// The file in which the agent says where it is.
    pub(super) fn identity(&self) -> Result<PathBuf> {
        fn look(folder: &Path) -> Option<PathBuf> {
            for entry in std::fs::read_dir(folder).ok()?.flatten() {
                let path = entry.path();
                if path.is_dir() {
                    if let Some(found) = look(&path) {
                        return Some(found);
                    }
                } else if entry.file_name() == "identity.json" {
                    return Some(path);
                }
            }
            None
        }
        look(&self.state.join("store")).context("no agent has published where it is")
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        for task in &self.tasks {
            // A task that never was recorded is gone already; anything else shows as left in the state folder.
            drop(quietly(&mut self.command(&["destroy", "--discard", task])));
        }
    }
}

/// A field of `/proc/{id}/status`, in MiB.
pub(super) fn memory(id: u32, field: &str) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("no {field} in the status of process {id}"))? / 1024.0)
}

/// Processor time used so far, in seconds.
pub(super) fn processor(id: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The name, in parentheses, may hold anything.
    let (_, rest) = text.rsplit_once(')').context("reading /proc")?;
    let fields: Vec<_> = rest.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok());
    let (user, system) = (ticks(11).context("reading /proc")?, ticks(12).context("reading /proc")?);
    let second = quietly(Command::new("getconf").arg("CLK_TCK"))?.trim().parse::<f64>()?;
    Ok((user + system) / second)
}
