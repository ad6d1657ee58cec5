//! What is kept on this computer: nothing that a task needs to run or to be found by another one.
//!
//! ```text
//! {state}/store/          the default store of the local cloud
//! {state}/local/{task}/   scaling group and machines of a local task
//! {state}/identity/       this user's key and certificate
//! {state}/index/          hashes of files of work directories, so that unchanged ones are not read again
//! {state}/pulled/{id}/    what was brought home last, to tell it from what the user changed since
//! {state}/tasks/{id}.json which cloud and which store a task known here uses
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tpi_proto::{id::TaskId, spec::CloudName};
use tpi_store::private::write_private;
use url::Url;

/// A state directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Neither a flag nor the environment says where it is.
    #[error(
        "there is no place to keep state: none of --state-dir, TPI_STATE_DIR, XDG_STATE_HOME and HOME is set"
    )]
    Nowhere,
    /// A file of it cannot be read or written.
    #[error("{operation} {path:?}")]
    File {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Where a task lives, remembered so that its name alone finds it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownTask {
    /// The task.
    pub id: TaskId,
    /// As the user wrote it.
    pub name: String,
    /// Where its machines are.
    pub cloud: CloudName,
    /// Where its record is.
    pub store: Url,
    /// The region as the user wrote it.
    #[serde(default)]
    pub region: String,
}

/// The state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// `flag`, else `$TPI_STATE_DIR`, else `$XDG_STATE_HOME/tpi`, else `~/.local/state/tpi`; made absolute.
    ///
    /// # Errors
    /// [`HomeError::Nowhere`] when none of them is set, [`HomeError::File`] when the current directory is gone.
    pub fn locate(flag: Option<&Path>) -> Result<Self, HomeError> {
        let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let root = flag
            .map(Path::to_path_buf)
            .or_else(|| set("TPI_STATE_DIR"))
            .or_else(|| set("XDG_STATE_HOME").map(|p| p.join("tpi")))
            .or_else(|| set("HOME").map(|p| p.join(".local/state/tpi")))
            .ok_or(HomeError::Nowhere)?;
        let root = std::path::absolute(&root).map_err(|source| HomeError::File {
            operation: "making absolute",
            path: root.clone(),
            source,
        })?;
        Ok(Self { root })
    }

    /// At a directory; made on first use.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Default store of the local cloud.
    ///
    /// # Errors
    /// When the state directory is not an absolute path.
    pub fn store_url(&self) -> Result<Url, HomeError> {
        let path = self.root.join("store");
        Url::from_directory_path(&path).map_err(|()| HomeError::File {
            operation: "naming as a URL",
            path,
            source: io::Error::new(io::ErrorKind::InvalidInput, "not an absolute path"),
        })
    }

    /// Scaling groups of local tasks.
    #[must_use]
    pub fn local_dir(&self) -> PathBuf {
        self.root.join("local")
    }

    /// This user's key and certificate.
    #[must_use]
    pub fn identity_dir(&self) -> PathBuf {
        self.root.join("identity")
    }

    /// Hashes of the files of work directories.
    #[must_use]
    pub fn index_dir(&self) -> PathBuf {
        self.root.join("index")
    }

    /// What was brought home last.
    #[must_use]
    pub fn pulled_dir(&self) -> PathBuf {
        self.root.join("pulled")
    }

    fn known_file(&self, task: &TaskId) -> PathBuf {
        self.root.join("tasks").join(format!("{task}.json"))
    }

    /// Remembers where a task lives. Atomic.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn remember(&self, known: &KnownTask) -> Result<(), HomeError> {
        let path = self.known_file(&known.id);
        let bytes = serde_json::to_vec_pretty(known).map_err(|e| HomeError::File {
            operation: "encoding",
            path: path.clone(),
            source: e.into(),
        })?;
        write_private(&path, &bytes).map_err(|source| HomeError::File { operation: "writing", path, source })
    }

    /// What is known of a task here.
    ///
    /// # Errors
    /// When the file exists and cannot be read.
    pub fn recall(&self, task: &TaskId) -> Result<Option<KnownTask>, HomeError> {
        let path = self.known_file(task);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| HomeError::File {
                operation: "parsing",
                path,
                source: e.into(),
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(HomeError::File { operation: "reading", path, source }),
        }
    }

    /// Every task known here, in order of identifiers; a file that cannot be read is left out and named in
    /// the log.
    ///
    /// # Errors
    /// When the directory exists and cannot be listed.
    pub fn known(&self) -> Result<Vec<KnownTask>, HomeError> {
        let dir = self.root.join("tasks");
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(HomeError::File { operation: "listing", path: dir, source }),
        };
        let mut all = Vec::new();
        for entry in entries {
            let path = entry
                .map_err(|source| HomeError::File { operation: "listing", path: dir.clone(), source })?
                .path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let read =
                fs::read(&path).and_then(|b| serde_json::from_slice::<KnownTask>(&b).map_err(Into::into));
            match read {
                Ok(known) => all.push(known),
                Err(error) => tracing::warn!(path = %path.display(), %error, "ignoring a note of a task"),
            }
        }
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }

    /// Forgets a task. Absent is success.
    ///
    /// # Errors
    /// When the file exists and cannot be removed.
    pub fn forget(&self, task: &TaskId) -> Result<(), HomeError> {
        let path = self.known_file(task);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(HomeError::File { operation: "removing", path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_remembered_and_forgotten() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let home = Home::at(dir.path());
        let id = TaskId::deterministic("test").expect("a name");
        assert_eq!(home.recall(&id).expect("reads"), None);
        let known = KnownTask {
            id: id.clone(),
            name: "test".to_owned(),
            cloud: CloudName::Local,
            store: home.store_url().expect("absolute"),
            region: "us-west".to_owned(),
        };
        home.remember(&known).expect("writes");
        fs::write(dir.path().join("tasks/broken.json"), b"{").expect("writes");
        assert_eq!(home.recall(&id).expect("reads"), Some(known.clone()));
        assert_eq!(home.known().expect("lists"), [known]);
        home.forget(&id).expect("removes");
        home.forget(&id).expect("absent is success");
        assert_eq!(home.recall(&id).expect("reads"), None);
    }
}
