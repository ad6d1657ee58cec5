//! What the machine was told at boot, checked; and where its files lie.

use std::path::{Path, PathBuf};

use jiff::SignedDuration;
use tpi_proto::{
    id::MachineId,
    machine::{MACHINE_CONFIG_VERSION, MachineConfig, MachineName},
    state::Phase,
};

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No such file, or not readable.
    #[error("reading {path:?}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not JSON of this shape.
    #[error("parsing {path:?}")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Written for another agent.
    #[error("{path:?} has version {found}, this agent knows {MACHINE_CONFIG_VERSION}")]
    Version {
        /// Which.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// A value that cannot work.
    #[error("{path:?}: {cause}")]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
}

/// Reads and checks a configuration.
///
/// # Errors
/// [`ConfigError`].
pub fn load(path: &Path) -> Result<MachineConfig<MachineName>, ConfigError> {
    let text = std::fs::read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let config: MachineConfig<MachineName> = serde_json::from_slice(&text)
        .map_err(|source| ConfigError::Parse { path: path.to_owned(), source })?;
    if config.version != MACHINE_CONFIG_VERSION {
        return Err(ConfigError::Version { path: path.to_owned(), found: config.version });
    }
    match check(&config) {
        Ok(()) => Ok(config),
        Err(cause) => Err(ConfigError::Invalid { path: path.to_owned(), cause }),
    }
}

/// Whether a text can be a machine's name: it becomes part of addresses, of keys and of a process' environment.
pub(crate) fn is_machine_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=253).contains(&text.len()) && text.chars().all(plain)
}

fn check(config: &MachineConfig<MachineName>) -> Result<(), String> {
    if config.slots == 0 {
        return Err("a task has at least one slot".to_owned());
    }
    if !config.root.is_absolute() {
        return Err(format!("root {:?} is not an absolute path", config.root));
    }
    match &config.machine {
        MachineName::Fixed(MachineId(name)) if !is_machine_name(name) => {
            return Err(format!("{name:?} is not a machine's name"));
        }
        MachineName::Fixed(_) | MachineName::Ask { .. } => {}
    }
    let t = &config.timings;
    if t.lease_renew == 0 || t.lease_renew.saturating_mul(2) > t.lease_ttl {
        return Err(format!(
            "a lease of {} ms must be renewed at least twice in its time, not every {} ms",
            t.lease_ttl, t.lease_renew
        ));
    }
    Ok(())
}

/// Where everything lies that the agent writes.
#[derive(Debug, Clone)]
pub struct Paths {
    root: PathBuf,
}

impl Paths {
    /// Below `config.root`.
    #[must_use]
    pub fn new(config: &MachineConfig) -> Self {
        Self { root: config.root.clone() }
    }

    /// The script's work directory.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    /// Logs on their way to the store, one folder per run.
    #[must_use]
    pub fn spool(&self) -> PathBuf {
        self.root.join("spool")
    }

    /// The agent's key.
    #[must_use]
    pub fn keys(&self) -> PathBuf {
        self.root.join("keys")
    }

    /// The script itself and small things of this boot.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }
}

/// Switches that only tests use. This is the one place that reads them.
#[derive(Debug, Clone, Default)]
pub struct TestHooks {
    /// `__TPI_TEST_CLOCK_OFFSET`: seconds by which this computer's clock is taken to be wrong.
    pub clock_offset: SignedDuration,
    /// `__TPI_TEST_STOP_AT`: name of the phase at whose begin the agent dies, as if killed.
    pub stop_at: Option<Phase>,
    /// `__TPI_TEST_STOP_ONCE`: a file that the first agent to die leaves behind, so that its successors, which
    /// have the same variables, live.
    pub stop_once: Option<PathBuf>,
}

impl TestHooks {
    /// From the process' environment.
    #[must_use]
    pub fn from_environment() -> Self {
        let read = |name| std::env::var(name).ok();
        let seconds = read("__TPI_TEST_CLOCK_OFFSET").and_then(|v| v.parse().ok()).unwrap_or(0);
        let stop_at =
            read("__TPI_TEST_STOP_AT").and_then(|v| Phase::ALL.into_iter().find(|p| p.as_str() == v));
        let stop_once = read("__TPI_TEST_STOP_ONCE").map(PathBuf::from);
        Self { clock_offset: SignedDuration::from_secs(seconds), stop_at, stop_once }
    }

    /// Dies here, if a test asked for that.
    pub(crate) fn begins(&self, phase: Phase) {
        let first = || self.stop_once.as_ref().is_none_or(|mark| std::fs::File::create_new(mark).is_ok());
        if self.stop_at == Some(phase) && first() {
            std::process::abort();
        }
    }
}
