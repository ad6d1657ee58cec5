//! This user's key and certificate.
//!
//! They lie in `{state}/identity/`, one pair per user and computer, and the key never leaves it. What makes an agent
//! accept the certificate is that it lies in the task's `clients/`; whoever may write there decides.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};
use tpi_proto::{
    cert::{CertError, Fingerprint, PinnedCert},
    id::TaskId,
};
use tpi_store::{
    Store, StoreError, StoreErrorKind,
    identity::{Holder, KeyError, PrivateKey},
    layout::TaskKeys,
    private::write_private,
};

/// Agents' clocks may be behind ours.
const BACKDATED: SignedDuration = SignedDuration::from_hours(24);
/// How long a certificate is valid.
const VALID: SignedDuration = SignedDuration::from_hours(24 * 365);
/// With less than this left, a new one is made: a task may run for a long time, and its clients with it.
const RENEW_BEFORE: SignedDuration = SignedDuration::from_hours(24 * 60);

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
        source: io::Error,
    },
    /// The new certificate is none.
    #[error("reading a new certificate")]
    Certificate(#[from] CertError),
    /// A key or certificate could not be made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// They are not of each other, or the key is of no kind that TLS knows.
    #[error("putting a key and its certificate together")]
    Pair(#[source] rustls::Error),
}

struct Inner {
    fingerprint: Fingerprint,
    pem: String,
    key: Arc<CertifiedKey>,
}

/// This user's key and certificate. Cheap to clone; `Debug` shows the fingerprint only.
#[derive(Clone)]
pub struct UserIdentity {
    inner: Arc<Inner>,
}

impl UserIdentity {
    /// Reads `{state}/identity/`, or makes it: one key per user, on every computer its own. A certificate that is
    /// about to expire is replaced, as is a pair that is damaged or does not fit together. Any number of processes
    /// may do this at once; all get the same one.
    ///
    /// Does blocking file I/O of a few kilobytes.
    ///
    /// # Errors
    /// The files cannot be read or written.
    pub fn load_or_create(state: &Path) -> Result<Self, IdentityError> {
        let dir = state.join("identity");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(file("creating", &dir))?;
        restrict(&dir, 0o700)?;
        // Whoever reads between two renames would see halves of two pairs.
        let lock = dir.join("lock");
        let held = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock)
            .map_err(file("opening", &lock))?;
        held.lock().map_err(file("locking", &lock))?;

        let now = Timestamp::now();
        if let Some(found) = Self::read(&dir)? {
            let cert = PinnedCert::from_pem(found.inner.pem.as_bytes())?;
            let lasts = now.checked_add(RENEW_BEFORE).is_ok_and(|then| cert.not_after() > then);
            if lasts && cert.check_validity(now).is_ok() {
                return Ok(found);
            }
        }
        Self::create(&dir, now)
        // `held` is closed here, and with it the lock.
    }

    /// `None` when there is none or it is unusable.
    fn read(dir: &Path) -> Result<Option<Self>, IdentityError> {
        let read = |name: &str| {
            let path = dir.join(name);
            match fs::read_to_string(&path) {
                Ok(text) => Ok(Some(text)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
                Err(error) => Err(file("reading", &path)(error)),
            }
        };
        let (Some(key), Some(cert)) = (read("key.pem")?, read("cert.pem")?) else { return Ok(None) };
        restrict(&dir.join("key.pem"), 0o600)?;
        let Ok(key) = PrivateKey::from_pem(&key) else { return Ok(None) };
        Ok(Self::assemble(&key, cert).ok())
    }

    fn create(dir: &Path, now: Timestamp) -> Result<Self, IdentityError> {
        let key = PrivateKey::generate()?;
        let cert = key.certify(Holder::User, now - BACKDATED, now + VALID)?;
        let identity = Self::assemble(&key, cert.pem)?;
        for (name, content) in [("key.pem", &key.to_pem()), ("cert.pem", &identity.inner.pem)] {
            let path = dir.join(name);
            write_private(&path, content.as_bytes()).map_err(file("writing", &path))?;
        }
        Ok(identity)
    }

    fn assemble(key: &PrivateKey, pem: String) -> Result<Self, IdentityError> {
        let cert = PinnedCert::from_pem(pem.as_bytes())?;
        let chain = vec![CertificateDer::from(cert.der().to_vec())];
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_pkcs8()));
        let provider = rustls::crypto::ring::default_provider();
        // Also checks that key and certificate belong together.
        let certified = CertifiedKey::from_der(chain, der, &provider).map_err(IdentityError::Pair)?;
        Ok(Self { inner: Arc::new(Inner { fingerprint: cert.fingerprint(), pem, key: Arc::new(certified) }) })
    }

    /// Names the certificate.
    #[must_use]
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.inner.fingerprint
    }

    /// The certificate as text.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.inner.pem
    }

    pub(super) fn certified_key(&self) -> Arc<CertifiedKey> {
        self.inner.key.clone()
    }

    /// Lets the agents of a task accept this user, now and later. Doing it again is harmless.
    ///
    /// # Errors
    /// The store's.
    pub async fn publish(&self, store: &Store, task: &TaskId) -> Result<(), StoreError> {
        let key = TaskKeys::new(task).client(&self.inner.fingerprint);
        // Named by its content: what is there is the same.
        match store.create(&key, Bytes::from(self.inner.pem.clone())).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind == StoreErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl std::fmt::Debug for UserIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserIdentity").field("fingerprint", self.fingerprint()).finish_non_exhaustive()
    }
}

fn file(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> IdentityError + use<> {
    let path = path.to_owned();
    move |source| IdentityError::File { operation, path: path.clone(), source }
}

/// Takes away what others may do with it.
fn restrict(path: &Path, mode: u32) -> Result<(), IdentityError> {
    let now = fs::metadata(path).map_err(file("looking at", path))?.permissions();
    if now.mode() & 0o777 & !mode != 0 {
        tracing::warn!(path = %path.display(), "others had access to this; they have no longer");
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(file("changing the mode of", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concurrent_callers_get_one_key() {
        let state = tempfile::tempdir().expect("a directory");
        let made: Vec<_> = std::thread::scope(|scope| {
            let all: Vec<_> =
                (0..8).map(|_| scope.spawn(|| UserIdentity::load_or_create(state.path()))).collect();
            all.into_iter().map(|one| one.join().expect("no panic").expect("an identity")).collect()
        });
        assert!(made.windows(2).all(|two| two[0].fingerprint() == two[1].fingerprint()));
        for (name, mode) in [("key.pem", 0o600), ("cert.pem", 0o600), (".", 0o700)] {
            let found = fs::metadata(state.path().join("identity").join(name)).expect("is there");
            assert_eq!(found.permissions().mode() & 0o777, mode, "{name}");
        }
        assert!(!format!("{:?}", made[0]).contains("PRIVATE"));
    }

    #[test]
    fn expiring_damaged_and_unfitting_pairs_are_replaced() {
        let state = tempfile::tempdir().expect("a directory");
        let load = || UserIdentity::load_or_create(state.path()).expect("an identity");
        let dir = state.path().join("identity");
        let first = load();

        let soon = Timestamp::now() - VALID + RENEW_BEFORE - SignedDuration::from_hours(1);
        let old = UserIdentity::create(&dir, soon).expect("an old identity");
        assert_ne!(old.fingerprint(), first.fingerprint());
        let second = load();
        assert_ne!(second.fingerprint(), old.fingerprint());
        assert_eq!(load().fingerprint(), second.fingerprint());

        // As after a crash between the two renames.
        fs::write(dir.join("cert.pem"), &first.inner.pem).expect("written");
        let third = load();
        assert_ne!(third.fingerprint(), first.fingerprint());

        fs::write(dir.join("key.pem"), "nonsense").expect("written");
        assert_ne!(load().fingerprint(), third.fingerprint());
    }
}
