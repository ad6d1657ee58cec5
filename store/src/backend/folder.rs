//! A folder as a store.
//!
//! Reading and listing are `object_store`'s. Writing is here, because a folder has no compare-and-swap of its
//! own and because a write must be on the disk before it counts:
//!
//! * The content goes to a temporary file below [`PRIVATE`], is synced, and is renamed (or, for create-only
//!   writes, hard-linked, which fails when there is a file) to its place; then the directory is synced. A reader
//!   sees the old object or the new one.
//! * Everything that changes an object holds an exclusive `flock` on one of 64 lock files (by the key's hash)
//!   below [`PRIVATE`]. An update compares the BLAKE3 of what is there with the version it was given and renames
//!   under the same lock, so no write can come between. The kernel gives the lock back when its holder dies.
//! * A version is the BLAKE3 of the content, as an S3 ETag is its MD5: writing the same bytes again gives the
//!   same version, so objects that are swapped carry a counter.
//!
//! `flock` works between processes of one computer and on network file systems that support it (NFSv4). The
//! names below [`PRIVATE`] are never listed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use object_store::{local::LocalFileSystem, path::Path as ObjectPath};
use rustix::fs::{FlockOperation, flock};

/// Folder of lock files and unfinished writes, in the store's root.
pub(super) const PRIVATE: &str = ".tpi-store";

/// Unfinished writes of processes that died are removed when they are this old.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// What to write.
pub(super) enum Content<'a> {
    Bytes(&'a [u8]),
    File(&'a Path),
}

/// How a conditional write ended.
pub(super) enum Outcome {
    Written(String),
    Exists,
    Changed,
}

/// Over what to write.
pub(super) enum Over<'a> {
    Anything,
    Nothing,
    Version(&'a str),
}

#[derive(Debug)]
pub(super) struct Folder {
    pub(super) root: PathBuf,
    pub(super) reader: LocalFileSystem,
}

pub(super) fn version(content: &[u8]) -> String {
    blake3::hash(content).to_hex().to_string()
}

impl Folder {
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root).map_err(|error| {
            if error.kind() == io::ErrorKind::AlreadyExists {
                io::Error::other("there is a file where the folder should be")
            } else {
                error
            }
        })?;
        let root = fs::canonicalize(root)?;
        let reader = LocalFileSystem::new_with_prefix(&root).map_err(io::Error::other)?;
        let folder = Self { root, reader };
        folder.sweep();
        Ok(folder)
    }

    /// Removes what dead processes left; nothing depends on it, so failing is fine.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(self.private("tmp")) else { return };
        for entry in entries.flatten() {
            let age = entry
                .metadata()
                .and_then(|m| m.modified())
                .ok()
                .and_then(|modified| SystemTime::now().duration_since(modified).ok());
            if age.is_some_and(|age| age > ABANDONED)
                && let Err(error) = fs::remove_file(entry.path())
            {
                tracing::debug!(path = ?entry.path(), %error, "abandoned write not removed");
            }
        }
    }

    fn private(&self, name: &str) -> PathBuf {
        self.root.join(PRIVATE).join(name)
    }

    fn path(&self, key: &ObjectPath) -> PathBuf {
        let mut path = self.root.clone();
        path.extend(key.parts().map(|part| part.as_ref().to_owned()));
        path
    }

    /// The root must still be there: a store that was moved or unmounted must not be made anew, empty.
    pub(super) fn check_root(&self) -> io::Result<()> {
        match fs::metadata(&self.root) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(io::Error::new(
                io::ErrorKind::StaleNetworkFileHandle,
                format!("the store's folder {} has gone", self.root.display()),
            )),
            Err(e) => Err(e),
        }
    }

    fn lock(&self, key: &ObjectPath) -> io::Result<File> {
        self.check_root()?;
        let shard = blake3::hash(key.as_ref().as_bytes()).as_bytes()[0] % 64;
        let path = self.private("locks").join(format!("{shard:02}"));
        let open = || OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = match open() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(self.private("locks"))?;
                open()?
            }
            other => other?,
        };
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// A temporary file with the content, on the disk.
    fn stage(&self, content: &Content<'_>) -> io::Result<Staged> {
        let name = hex::encode(rand::random::<[u8; 16]>());
        let path = self.private("tmp").join(name);
        let open = || OpenOptions::new().create_new(true).write(true).open(&path);
        let mut file = match open() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.check_root()?;
                fs::create_dir_all(self.private("tmp"))?;
                open()?
            }
            other => other?,
        };
        let staged = Staged { path };
        match content {
            Content::Bytes(bytes) => file.write_all(bytes)?,
            Content::File(from) => {
                io::copy(&mut File::open(from)?, &mut file)?;
            }
        }
        file.sync_all()?;
        Ok(staged)
    }

    pub(super) fn write(
        &self,
        key: &ObjectPath,
        content: &Content<'_>,
        over: &Over<'_>,
    ) -> io::Result<Outcome> {
        let path = self.path(key);
        let staged = self.stage(content)?;
        let held = self.lock(key)?;
        match over {
            Over::Anything => retry_parent(&path, || fs::rename(&staged.path, &path))?,
            Over::Nothing => match retry_parent(&path, || link(&staged.path, &path)) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(Outcome::Exists),
                other => other?,
            },
            Over::Version(expected) => {
                match fs::read(&path) {
                    Ok(found) if version(&found) == *expected => {}
                    Ok(_) => return Ok(Outcome::Changed),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Outcome::Changed),
                    Err(e) => return Err(e),
                }
                fs::rename(&staged.path, &path)?;
            }
        }
        if let Some(parent) = path.parent() {
            sync_directory(parent)?;
        }
        drop(held);
        Ok(Outcome::Written(match content {
            Content::Bytes(bytes) => version(bytes),
            Content::File(_) => String::new(),
        }))
    }

    /// Absent is success. Folders that become empty go as well.
    pub(super) fn delete(&self, key: &ObjectPath) -> io::Result<()> {
        let path = self.path(key);
        let held = self.lock(key)?;
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(e) => return Err(e),
        }
        drop(held);
        let mut parent = path.parent();
        while let Some(folder) = parent
            && folder != self.root
            && fs::remove_dir(folder).is_ok()
        {
            parent = folder.parent();
        }
        Ok(())
    }
}

/// A temporary file, removed unless it was renamed away.
struct Staged {
    path: PathBuf,
}

impl Drop for Staged {
    fn drop(&mut self) {
        match fs::remove_file(&self.path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::debug!(path = ?self.path, %error, "temporary file not removed"),
        }
    }
}

/// Fails with `AlreadyExists` when there is a file. The caller holds the lock, so that the check that replaces
/// the link on file systems without links is as good.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Err(e)
            if matches!(e.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied)
                && to.parent().is_some_and(Path::exists) =>
        {
            if fs::symlink_metadata(to).is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            fs::rename(from, to)
        }
        other => other,
    }
}

/// Makes the parent folder when it is missing; another process may remove it, empty, between the two steps.
fn retry_parent(path: &Path, mut step: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let mut last = step();
    for _ in 0..100 {
        match last {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if let Some(parent) = path.parent() {
                    match fs::create_dir_all(parent) {
                        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                        _ => parent.parent().map_or(Ok(()), sync_directory)?,
                    }
                }
                last = step();
            }
            other => return other,
        }
    }
    last
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match File::open(path) {
        Ok(directory) => directory.sync_all(),
        // Emptied and removed by somebody else in the meantime.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}
