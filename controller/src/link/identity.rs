//! This user's key and certificate.

use std::{path::Path, path::PathBuf, sync::Arc};

use tpi_proto::{
    cert::{CertError, Fingerprint},
    id::TaskId,
};
use tpi_store::{Store, StoreError};

/// Why this user has no usable key.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file or folder of it.
    #[error("{operation} {}", path.display())]
    File {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The certificate on disk is none.
    #[error("reading {}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: CertError,
    },
    /// A key or certificate could not be made or read.
    #[error("making a key and certificate: {0}")]
    Key(String),
}

/// This user's key and certificate. Cheap to clone; `Debug` shows the fingerprint only.
#[derive(Clone)]
pub struct UserIdentity {
    inner: Arc<()>,
}

impl UserIdentity {
    /// Reads `{state}/identity/`, or makes it: one key per user, on every computer its own. A certificate that is
    /// about to expire is replaced. Any number of processes may do this at once; all get the same one.
    ///
    /// Does blocking file I/O of a few kilobytes.
    ///
    /// # Errors
    /// The files cannot be read, written, or are not what they should be.
    pub fn load_or_create(_state: &Path) -> Result<Self, IdentityError> {
        unimplemented!()
    }

    /// Names the certificate.
    #[must_use]
    pub fn fingerprint(&self) -> &Fingerprint {
        let _ = &self.inner;
        unimplemented!()
    }

    /// Lets the agents of a task accept this user, now and later. Doing it again is harmless.
    ///
    /// # Errors
    /// The store's.
    pub async fn publish(&self, _store: &Store, _task: &TaskId) -> Result<(), StoreError> {
        unimplemented!()
    }
}

impl std::fmt::Debug for UserIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserIdentity").field("fingerprint", self.fingerprint()).finish_non_exhaustive()
    }
}
