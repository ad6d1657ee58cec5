//! What lies on disk for a local task, and who may write it.
//!
//! ```text
//! {local}/{task}/group.json      what the group was made from; written once, by `ensure`
//! {local}/{task}/group.lock      held (flock) by the group while it lives
//! {local}/{task}/state.json      size and machines; written by whoever holds group.lock
//! {local}/{task}/group.log       what the group has to say
//! {local}/{task}/agent-{sha256}  the agent, verified
//! {local}/{task}/machines/{id}/  machine.json, agent.log, and root/ for everything the agent writes: its disk,
//!                                which goes when the machine was released and the store has everything
//! {local}/.locks/{task}          held (flock) by `ensure` and `destroy`, so that they exclude each other
//! {local}/.ended/{task}.json     machines of a destroyed task, remembered for a while, as clouds do
//! ```

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tpi_proto::id::{MachineId, TaskId};
use tpi_store::private::{replace_private, write_private};
use url::Url;

use super::process::ProcessId;
use crate::cloud::{Machine, MachineEnd};

/// Version of the shapes in this module.
pub(super) const LOCAL_VERSION: u32 = 1;

/// What a group was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GroupConfig {
    pub(super) version: u32,
    pub(super) task: TaskId,
    pub(super) slots: u32,
    pub(super) store: Url,
    pub(super) deadline: Timestamp,
    pub(super) agent_sha256: String,
    pub(super) region: String,
    pub(super) machine: String,
    /// Whether agents listen at all.
    pub(super) listen: bool,
}

/// How a group ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum GroupEnd {
    /// Every machine was released.
    Released,
    /// Time was up.
    Deadline,
    /// The task's record says that it shall end, or is gone.
    Unwanted,
}

/// Size and machines of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GroupState {
    pub(super) version: u32,
    /// Machines to keep.
    pub(super) size: u32,
    /// The group's process; absent before it is ready and after it has ended in good order.
    pub(super) process: Option<ProcessId>,
    /// Where machines are released.
    pub(super) port: u16,
    /// Set when it ended by itself; it is not started again then.
    pub(super) ended: Option<GroupEnd>,
    pub(super) machines: Vec<MachineEntry>,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MachineEntry {
    pub(super) id: MachineId,
    pub(super) launched: Timestamp,
    /// The agent, leader of the machine's session; absent until it was seen to run.
    pub(super) agent: Option<ProcessId>,
    /// What proves that a release request comes from this machine.
    pub(super) token: String,
    /// When it asked to be released.
    pub(super) released: Option<Timestamp>,
    pub(super) ended: Option<Timestamp>,
    pub(super) end: Option<MachineEnd>,
}

impl MachineEntry {
    pub(super) fn is_alive(&self) -> bool {
        self.ended.is_none()
    }

    pub(super) fn finish(&mut self, end: MachineEnd, at: Timestamp) {
        if self.ended.is_none() {
            self.ended = Some(at);
            self.end = Some(if self.released.is_some() { MachineEnd::Released } else { end });
        }
    }

    pub(super) fn to_machine(&self) -> Machine {
        Machine {
            id: self.id.clone(),
            launched: self.launched,
            ended: self.ended,
            end: self.end,
            usd_per_hour: Some(0.0),
        }
    }
}

/// Machines of a destroyed task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Ledger {
    pub(super) version: u32,
    pub(super) machines: Vec<Machine>,
}

/// Paths of one task.
#[derive(Debug, Clone)]
pub(super) struct Files {
    dir: PathBuf,
}

impl Files {
    pub(super) fn new(root: &Path, task: &TaskId) -> Self {
        Self { dir: root.join(task.as_str()) }
    }

    pub(super) fn at(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn aside(&self, folder: &str, suffix: &str) -> PathBuf {
        let mut name = self.dir.file_name().unwrap_or_default().to_owned();
        name.push(suffix);
        self.dir.parent().unwrap_or(Path::new("/")).join(folder).join(name)
    }

    pub(super) fn config(&self) -> PathBuf {
        self.dir.join("group.json")
    }

    pub(super) fn state(&self) -> PathBuf {
        self.dir.join("state.json")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("group.log")
    }

    pub(super) fn group_lock(&self) -> PathBuf {
        self.dir.join("group.lock")
    }

    pub(super) fn verb_lock(&self) -> PathBuf {
        self.aside(".locks", "")
    }

    pub(super) fn ledger(&self) -> PathBuf {
        self.aside(".ended", ".json")
    }

    pub(super) fn agent(&self, sha256: &str) -> PathBuf {
        self.dir.join(format!("agent-{sha256}"))
    }

    pub(super) fn machine(&self, id: &MachineId) -> PathBuf {
        self.dir.join("machines").join(&id.0)
    }

    /// Everything that the agent of a machine writes.
    pub(super) fn disk(&self, id: &MachineId) -> PathBuf {
        self.machine(id).join("root")
    }

    /// `None` when there is none.
    pub(super) fn read_config(&self) -> io::Result<Option<GroupConfig>> {
        read(&self.config())
    }

    /// `None` when there is none.
    pub(super) fn read_state(&self) -> io::Result<Option<GroupState>> {
        read(&self.state())
    }

    pub(super) fn write_state(&self, state: &GroupState) -> io::Result<()> {
        write(&self.state(), state)
    }

    pub(super) fn read_ledger(&self) -> io::Result<Option<Ledger>> {
        read(&self.ledger())
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Atomic, readable by the owner only. Never makes the folder of a task that was removed: a group whose
/// directory is gone must notice it.
pub(super) fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    replace_private(path, &serde_json::to_vec_pretty(value)?)
}

/// As [`write`], and makes the folder.
pub(super) fn write_in_new_folder<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    write_private(path, &serde_json::to_vec_pretty(value)?)
}

/// Removes a folder with all that is in it, folders that a script made read-only included. Absent is success.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let absent = |e: io::Error| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) };
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path)?;
            fs::remove_dir_all(path).or_else(absent)
        }
        other => other.or_else(absent),
    }
}

/// Lets the owner change every folder of a tree. Follows no link.
fn open_up(folder: &Path) -> io::Result<()> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}

/// Opens a file to lock it, and makes it when absent. Its folder has to exist.
pub(super) fn open_lock(path: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).write(true).open(path)
}

/// Whether the lock is ours now; it is until the file is closed.
pub(super) fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e)) => Err(e),
    }
}
