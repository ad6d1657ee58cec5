//! Launching one machine of a local group: its directory, its configuration, its agent in a session of its own.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::{
        fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Stdio,
};

use futures::StreamExt as _;
use sha2::{Digest as _, Sha256};
use tokio::process::{Child, Command};
use tpi_proto::machine::{Addresses, Credentials, MACHINE_CONFIG_VERSION, MachineConfig, Timings};
use tpi_store::{Store, layout::TaskKeys};

use super::{
    files::{Files, GroupConfig, MachineEntry},
    group::GroupError,
    release,
};

/// Names the directory of the group that a process belongs to: finds agents whose directory was removed.
pub(super) const GROUP_VARIABLE: &str = "TPI_LOCAL_GROUP";

/// What an agent gets of the environment of whoever started the group: how to reach the store and the
/// container runtime, and where certificates are. Nothing else: it is a machine of its own.
fn is_passed_on(name: &str) -> bool {
    const NAMES: [&str; 14] = [
        "HOME",
        "PATH",
        "TMPDIR",
        "DOCKER_HOST",
        "XDG_RUNTIME_DIR",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "TPI_LOG",
    ];
    NAMES.contains(&name) || name.starts_with("AWS_") || name.starts_with("__TPI_TEST_")
}

/// Fetches the agent into the group's directory unless it is there, and checks its hash either way.
pub(super) async fn fetch_agent(
    files: &Files,
    config: &GroupConfig,
    store: &Store,
) -> Result<PathBuf, GroupError> {
    let path = files.agent(&config.agent_sha256);
    let present = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || hash_file(&path)).await.unwrap_or(None)
    };
    if present.as_deref() == Some(config.agent_sha256.as_str()) {
        return Ok(path);
    }
    let key = TaskKeys::new(&config.task).agent(&config.agent_sha256);
    let mut stream =
        store.get_stream(&key).await.map_err(|e| GroupError::because("fetching the agent", e))?;
    let temporary = path.with_extension("part");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(|e| GroupError::because(format!("writing {temporary:?}"), e))?;
    let mut hash = Sha256::new();
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|e| GroupError::because("fetching the agent", e))?;
        hash.update(&piece);
        file.write_all(&piece).map_err(|e| GroupError::because(format!("writing {temporary:?}"), e))?;
    }
    let got = hex::encode(hash.finalize());
    if got != config.agent_sha256 {
        drop(fs::remove_file(&temporary));
        return Err(GroupError::new(format!(
            "the agent in the store has SHA-256 {got} instead of {}: refusing to run it",
            config.agent_sha256
        )));
    }
    let finish = || {
        file.set_permissions(fs::Permissions::from_mode(0o700))?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    };
    finish().map_err(|e| GroupError::because(format!("writing {path:?}"), e))?;
    Ok(path)
}

fn hash_file(path: &Path) -> Option<String> {
    let mut file = fs::File::open(path).ok()?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 1 << 18];
    loop {
        match io::Read::read(&mut file, &mut buffer).ok()? {
            0 => return Some(hex::encode(hash.finalize())),
            n => hash.update(buffer.get(..n)?),
        }
    }
}

/// Writes the machine's configuration and starts its agent.
pub(super) fn launch(
    files: &Files,
    config: &GroupConfig,
    entry: &MachineEntry,
    port: u16,
    agent: &Path,
    program: &Path,
) -> Result<Child, GroupError> {
    let dir = files.machine(&entry.id);
    let root = files.disk(&entry.id);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&root)
        .map_err(|e| GroupError::because(format!("making {root:?}"), e))?;
    let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let mut environment = BTreeMap::new();
    for (name, value) in [
        ("HOME", variable("HOME")),
        ("PATH", variable("PATH")),
        ("TPI_REGION", Some(config.region.clone())),
        ("TPI_MACHINE", Some(config.machine.clone())),
    ] {
        if let Some(value) = value {
            let _new = environment.insert(name.to_owned(), value);
        }
    }
    let machine = MachineConfig {
        version: MACHINE_CONFIG_VERSION,
        task: config.task.clone(),
        machine: entry.id.clone(),
        slots: config.slots,
        store: config.store.clone(),
        credentials: Credentials::Environment,
        deadline: config.deadline,
        preemption: Vec::new(),
        release: Some(release::call(port, &entry.token)),
        power_off: false,
        listen: config.listen.then(|| ([127, 0, 0, 1], 0).into()),
        addresses: Addresses::Static {
            hosts: if config.listen { vec!["127.0.0.1".to_owned()] } else { Vec::new() },
        },
        root,
        // Processes start and die quickly here, and the store is near.
        timings: Timings {
            lease_ttl: 4_000,
            lease_renew: 1_000,
            save_interval: 2_000,
            log_flush: 1_000,
            ..Timings::default()
        },
        environment,
    };
    super::files::write(&dir.join("machine.json"), &machine)
        .map_err(|e| GroupError::because(format!("writing the configuration of {}", entry.id), e))?;
    let log = dir.join("agent.log");
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&log)
        .map_err(|e| GroupError::because(format!("opening {log:?}"), e))?;
    let errors = log.try_clone().map_err(|e| GroupError::because("opening the machine's log", e))?;
    let passed_on: Vec<(OsString, OsString)> =
        std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_passed_on)).collect();
    // The group's own program makes the session and becomes the agent: see `become_agent`.
    Command::new(program)
        .args(["local-group", "--dir"])
        .arg(&dir)
        .env_clear()
        .envs(passed_on)
        .env("TPI_MACHINE_ID", &entry.id.0)
        .env(GROUP_VARIABLE, files.dir())
        .env(AGENT_VARIABLE, agent)
        .current_dir(&dir)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .kill_on_drop(false)
        .spawn()
        .map_err(|e| GroupError::because(format!("starting machine {}", entry.id), e))
}

const AGENT_VARIABLE: &str = "TPI_LOCAL_AGENT";

/// Whether a directory is a machine's and not a group's.
pub(super) fn is_machine(dir: &Path) -> bool {
    dir.join("machine.json").is_file()
}

/// Makes this process the leader of a new session and turns it into the machine's agent; the process id stays,
/// so that whoever started it can wait for it. Returns only when that fails.
pub(super) fn become_agent(dir: &Path) -> GroupError {
    let Some(agent) = std::env::var_os(AGENT_VARIABLE) else {
        return GroupError::new("a machine's directory is not a group's: only its group starts it");
    };
    if let Err(error) = rustix::process::setsid() {
        return GroupError::because("making a session for the machine", io::Error::from(error));
    }
    let error = std::process::Command::new(&agent)
        .arg("run")
        .arg("--config")
        .arg(dir.join("machine.json"))
        .env_remove(AGENT_VARIABLE)
        .exec();
    GroupError::because(format!("starting the agent {agent:?}"), error)
}
