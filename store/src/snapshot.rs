//! Folders as content-addressed packs, chunks and a manifest.
//!
//! * Files up to 8 MiB travel whole, in packs: `.tar.zst` archives of about 32 MiB (8 MiB from machines), named
//!   by the BLAKE3 of their bytes. A person opens one with `tar --zstd -xf`; entries are named `{hash}-{file name}`.
//! * Larger files are cut into chunks of 1 to 8 MiB where their content says (FastCDC), so that an insertion
//!   changes a chunk or two. A chunk is an object named by the BLAKE3 of its bytes, stored as they are or as
//!   one zstd frame.
//! * The [`Manifest`] names every entry and where its content lies. Content that the store has is not sent
//!   again: packs in the cache are described by `cache-index/{pack}`, written after the pack; chunks are looked
//!   for by name; a machine, which may not list the cache, knows its `base`.
//!
//! Saves that nobody can need any more are taken away while the task runs: see [`Collector`].
//!
//! Owners, extended attributes, set-user and set-group bits and hard links (as such) do not travel.

mod beneath;
mod collect;
mod compact;
mod content;
mod index;
mod known;
mod manifest;
mod objects;
mod pack;
mod parallel;
mod push;
mod restore;
mod scan;
mod tree;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tpi_proto::id::{RunId, TaskId};

use crate::rules::Rules;

pub use collect::{Collected, Collector};
pub use manifest::Manifest;
pub use push::{Plan, plan, push};
pub use restore::{restore, verify};

/// Files above this are stored in chunks.
const LARGEST_SMALL: u64 = 8 << 20;
/// Most bytes of a chunk.
const LARGEST_CHUNK: usize = 8 << 20;
/// More is not a pack of ours.
const PACK_LIMIT: usize = 48 << 20;
/// How the names of folders of unfinished files begin; they never travel.
const STAGING: &str = ".tpi-restore-";

/// Where content is written: controllers share `cache/`, machines write below their task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Space {
    /// `cache/`, shared by the account's tasks.
    Cache,
    /// One save of a machine: a folder of its own below `tasks/{id}/packs/`, which no other push ever writes to.
    Save {
        /// Of which task.
        task: TaskId,
        /// Who saves.
        run: RunId,
        /// Number of the save: higher than any the run has committed.
        save: u64,
    },
}

/// How much is in memory at once while a folder is sent or restored.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Bytes of the archives that packs are made of.
    pack: u64,
    /// Packs.
    packs: usize,
    /// Chunks.
    chunks: usize,
    /// Files that are read to be hashed.
    readers: usize,
}

impl Limits {
    /// On a computer that does little else meanwhile, and is far from its store.
    const AMPLE: Self = Self { pack: 32 << 20, packs: 2, chunks: 4, readers: 16 };
    /// On a machine, whose memory and processors are the script's.
    const SPARING: Self = Self { pack: 8 << 20, packs: 1, chunks: 1, readers: 2 };
}

impl Space {
    fn limits(&self) -> Limits {
        match self {
            Self::Cache => Limits::AMPLE,
            Self::Save { .. } => Limits::SPARING,
        }
    }
}

impl Existing {
    fn limits(self) -> Limits {
        match self {
            Self::Replace => Limits::SPARING,
            Self::KeepBoth => Limits::AMPLE,
        }
    }
}

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

/// What to do with a local file that differs from the one to restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Replace it (machines: the folder is theirs). Little memory is taken.
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
    /// Local files that differ from `base`, while the restored ones do not: there is nothing new to bring, so they are
    /// left as they are, and nothing is put beside them.
    #[serde(default)]
    pub changed_here: Vec<PathBuf>,
    /// Links not made.
    pub skipped_links: Vec<PathBuf>,
}
