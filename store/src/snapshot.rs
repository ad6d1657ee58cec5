//! Folders as content-addressed packs, chunks and a manifest.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tpi_proto::id::TaskId;

use crate::{Store, rules::Rules};

/// Where content is written: controllers share `cache/`, machines write below their task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Space {
    /// `cache/`, shared by the account's tasks.
    Cache,
    /// `tasks/{id}/packs/`.
    Task(TaskId),
}

/// Manifest of a folder: every entry, and where its content lies. JSON in the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {}

/// Told while work goes on; must not block.
pub trait Progress: Send + Sync {
    /// Bytes of content that will be handled, once known.
    fn total(&self, bytes: u64);
    /// Bytes handled since the last call.
    fn advance(&self, bytes: u64);
}

/// No progress wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;
impl Progress for Quiet {
    fn total(&self, _: u64) {}
    fn advance(&self, _: u64) {}
}

/// Why a snapshot could not be taken, sent or restored.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The store.
    #[error(transparent)]
    Store(#[from] crate::StoreError),
    /// A file of the folder.
    #[error("{operation} {path:?}")]
    File {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A manifest or pack that would write outside its folder, is larger than it says, or holds something that is no file.
    #[error("refusing {path:?}: {cause}")]
    Unsafe {
        /// Entry.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// Content that is not what its name promises.
    #[error("damaged content {name}: {cause}")]
    Damaged {
        /// Object or entry.
        name: String,
        /// What is wrong with it.
        cause: String,
    },
    /// Not enough room.
    #[error("{needed} bytes are needed at {path:?} and {free} are free")]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// Bytes.
        needed: u64,
        /// Bytes.
        free: u64,
    },
}

/// What will be sent, in numbers: printed before sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PlanSummary {
    /// Files in the folder.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files whose content is not in the store yet.
    pub changed: u64,
    /// Bytes to send before compression.
    pub send_bytes: u64,
}

/// How to take a snapshot.
#[derive(Debug, Clone)]
pub struct PushOptions {
    /// Which files.
    pub rules: Rules,
    /// Where content goes.
    pub space: Space,
    /// Remembers size, times and hash of files between runs so that unchanged files are not read again; absent: only `base` helps.
    pub index: Option<PathBuf>,
    /// A manifest whose content is known to be in the store (and, for files whose size and times are the same, need not be read).
    pub base: Option<std::sync::Arc<Manifest>>,
}

/// A scanned folder, and what of it has to be sent.
#[derive(Debug)]
pub struct Plan {}

impl Plan {
    /// In numbers.
    pub fn summary(&self) -> PlanSummary {
        unimplemented!()
    }
    /// Things left out that the user should know of: sockets, devices, unreadable entries are errors instead; links out of the folder are kept and named here.
    pub fn warnings(&self) -> &[String] {
        unimplemented!()
    }
}

/// Scans and hashes; writes nothing to the store.
pub async fn plan(
    _store: &Store,
    _root: &Path,
    _options: PushOptions,
    _progress: &dyn Progress,
) -> Result<Plan, SnapshotError> {
    unimplemented!()
}
/// Sends what is missing and returns the manifest, which the caller stores under its key. A file that changes while it is read is
/// read again, then taken as it was at one moment or named in an error.
pub async fn push(_store: &Store, _plan: Plan, _progress: &dyn Progress) -> Result<Manifest, SnapshotError> {
    unimplemented!()
}

impl Manifest {
    /// JSON.
    pub fn to_bytes(&self) -> bytes::Bytes {
        unimplemented!()
    }
    /// From JSON; every path and reference is checked here, so that a restored manifest can only name things inside.
    pub fn from_bytes(_bytes: &[u8]) -> Result<Self, SnapshotError> {
        unimplemented!()
    }
    /// Whether two manifests describe the same files (times included).
    pub fn same_content(&self, _other: &Self) -> bool {
        unimplemented!()
    }
    /// Files and bytes.
    pub fn totals(&self) -> (u64, u64) {
        unimplemented!()
    }
    /// Content objects that it needs.
    pub fn objects(&self) -> Vec<String> {
        unimplemented!()
    }
}

/// What to do with a local file that differs from the one to restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Replace it (machines: the folder is theirs).
    Replace,
    /// Keep it, and put the restored one beside it as `NAME.tpi-{generation or hash}`, reported. A local file that is the same as what was sent (per `base`) may be replaced.
    KeepBoth,
}

/// What to do with a symbolic link that points out of the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutsideLinks {
    /// Make it; it is never followed by us.
    Keep,
    /// Do not make it, report it.
    Skip,
}

/// How to restore.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// Only what lies below this path.
    pub only: Option<PathBuf>,
    /// Which of it.
    pub rules: Rules,
    /// Local files that differ.
    pub existing: Existing,
    /// Links out of the folder.
    pub outside_links: OutsideLinks,
    /// What the local folder held when it was sent: tells files changed here from files changed there.
    pub base: Option<std::sync::Arc<Manifest>>,
}

/// What restoring did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// Files written.
    pub written: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Files that were the same already.
    pub unchanged: u64,
    /// Local files that differed: kept, and where the restored one is.
    pub kept: Vec<(PathBuf, PathBuf)>,
    /// Links not made.
    pub skipped_links: Vec<PathBuf>,
}

/// Fetches, checks every hash, and writes below `root`, which is made when absent. Each file appears whole or not at all.
pub async fn restore(
    _store: &Store,
    _manifest: &Manifest,
    _root: &Path,
    _options: &RestoreOptions,
    _progress: &dyn Progress,
) -> Result<RestoreReport, SnapshotError> {
    unimplemented!()
}
/// Reads the restored files again and compares their hashes: the check before anything is deleted from the store (I6). Lists what differs.
pub async fn verify(
    _manifest: &Manifest,
    _root: &Path,
    _options: &RestoreOptions,
    _report: &RestoreReport,
) -> Result<Vec<PathBuf>, SnapshotError> {
    unimplemented!()
}
