//! Identifiers of tasks without a name.
//!
//! Terraform learns an identifier only when a task is complete. Should the provider be killed before that, applying again
//! has to find what there is, or machines would run that nobody knows of. So a new identifier is noted first, with what
//! it is for; whoever applies the same in the same folder, while the note is there and its writer is not, takes it over.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use tpi_proto::id::TaskId;

use super::value::Object;

/// An identifier that is this process's own as long as this lives; the note stays until [`Claim::settle`].
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) id: TaskId,
    path: PathBuf,
    /// Locked: the lock ends with the process, however it ends.
    _lock: File,
}

impl Claim {
    /// Terraform is about to know.
    pub(super) fn settle(self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "a note of an identifier stays");
        }
    }
}

/// What tells one configuration from another: its values and the folder it is in.
pub(super) fn purpose(planned: &Object, here: &Path) -> String {
    let mut hash = Sha256::new();
    hash.update(here.as_os_str().as_encoded_bytes());
    hash.update([0]);
    // Maps are ordered by name, so the same values give the same text.
    hash.update(format!("{planned:?}"));
    hex::encode(hash.finalize())
}

/// Takes a noted identifier over, or notes the one that `new` makes.
pub(super) fn claim(
    folder: &Path,
    purpose: &str,
    new: impl FnOnce() -> Option<TaskId>,
) -> io::Result<Option<Claim>> {
    fs::create_dir_all(folder)?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let Some(id) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse::<TaskId>().ok())
        else {
            continue;
        };
        let mut file = match File::options().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => continue,
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let mut noted = String::new();
        let _length = file.read_to_string(&mut noted)?;
        // Settled between opening and locking: then it is somebody's task.
        if noted == purpose && path.exists() {
            tracing::info!(%id, "taking over an identifier that was noted before");
            return Ok(Some(Claim { id, path, _lock: file }));
        }
    }
    let Some(id) = new() else { return Ok(None) };
    let path = folder.join(id.as_str());
    let mut file = File::options().create_new(true).read(true).write(true).open(&path)?;
    file.lock()?;
    file.write_all(purpose.as_bytes())?;
    file.sync_all()?;
    Ok(Some(Claim { id, path, _lock: file }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_is_taken_over_only_from_the_dead() {
        let folder = tempfile::tempdir().expect("a folder");
        let new = || TaskId::seeded("x", &rand::random::<[u8; 16]>()).ok();
        let claim =
            |purpose: &str| claim(folder.path(), purpose, new).expect("claims").expect("an identifier");
        let first = claim("a");
        let second = claim("a");
        assert_ne!(first.id, second.id, "the first one lives");
        let id = first.id.clone();
        drop(first);
        assert_ne!(claim("b").id, id, "for something else");
        let again = claim("a");
        assert_eq!(again.id, id);
        again.settle();
        assert_ne!(claim("a").id, id, "Terraform knows it");
    }
}
