//! Who this agent is: a key made on the machine that never leaves it, and a certificate that is published.
//!
//! The certificate names the task and the run, never an address, and is valid for somewhat longer than the task
//! may live on either side, so that no client's clock that is a little off turns a good agent away.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tpi_proto::{
    id::{RunId, TaskId},
    machine::{Addresses, HttpCall, MachineConfig},
};
use tpi_store::{
    Store, StoreError,
    identity::{Holder, KeyError, PrivateKey},
    layout::TaskKeys,
    private::write_private,
    record::{Identity, RECORD_VERSION},
};

use crate::call::{self, Names};

/// Before its making, a certificate is valid for so long: clients' clocks may be behind.
const BACKDATED: SignedDuration = SignedDuration::from_hours(24);
/// After the task's deadline, so long: clients' clocks may be ahead, and saving may take its time.
const BEYOND_DEADLINE: SignedDuration = SignedDuration::from_hours(30 * 24);
/// For each question to a metadata service.
const METADATA_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file of the key.
    #[error("writing {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The key or the certificate.
    #[error(transparent)]
    Make(#[from] KeyError),
    /// It could not be published.
    #[error("publishing where this agent can be reached")]
    Publish(#[source] StoreError),
}

/// A key and its certificate. `Debug` does not show the key.
pub struct KeyPair {
    /// What others compare with.
    pub certificate: CertificateDer<'static>,
    /// The same as text.
    pub certificate_pem: String,
    /// Never leaves the machine.
    pub key: PrivateKeyDer<'static>,
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPair").field("certificate", &self.certificate_pem).finish_non_exhaustive()
    }
}

impl KeyPair {
    /// A new key for one run, and a certificate for [`RunId::server_name`]; a copy of the key lies in `root/keys/`,
    /// readable by its owner only. A run never has more than one key: an agent that starts again has a new attempt.
    ///
    /// # Errors
    /// The key cannot be made or written.
    pub fn create(
        root: &Path,
        task: &TaskId,
        run: RunId,
        now: Timestamp,
        deadline: Timestamp,
    ) -> Result<Self, IdentityError> {
        let key = PrivateKey::generate()?;
        let until = now.max(deadline) + BEYOND_DEADLINE;
        let name = run.server_name(task);
        let certificate = key.certify(Holder::Agent { name: &name }, now - BACKDATED, until)?;
        let path = root.join("keys").join(format!("{run}.pem"));
        write_private(&path, key.to_pem().as_bytes())
            .map_err(|source| IdentityError::File { path, source })?;
        Ok(Self {
            certificate: CertificateDer::from(certificate.der),
            certificate_pem: certificate.pem,
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_pkcs8())),
        })
    }
}

/// Says where this agent can be reached, and with which certificate it will answer there.
///
/// # Errors
/// The store's. An address that a metadata service does not tell is left out.
pub async fn publish(
    store: &Store,
    config: &MachineConfig,
    run: RunId,
    certificate_pem: &str,
    bound: SocketAddr,
) -> Result<(), IdentityError> {
    let addresses = addresses(config, run, bound).await;
    if addresses.is_empty() {
        tracing::warn!("no address is known under which clients could reach this agent");
    }
    let identity = Identity {
        version: RECORD_VERSION,
        run,
        machine: config.machine.clone(),
        certificate: certificate_pem.to_owned(),
        addresses,
        agent: agent_name(),
    };
    let key = TaskKeys::new(&config.task).identity(run);
    store.put_json(&key, &identity).await.map_err(IdentityError::Publish)?;
    Ok(())
}

/// Name and version of this program.
#[must_use]
pub fn agent_name() -> String {
    concat!("tpi-agent/", env!("CARGO_PKG_VERSION")).to_owned()
}

async fn addresses(config: &MachineConfig, run: RunId, bound: SocketAddr) -> Vec<String> {
    let hosts = match &config.addresses {
        Addresses::Static { hosts } => hosts.clone(),
        Addresses::Metadata { calls } => {
            let names = Names::new(config, Some(run));
            // All at once: a service that does not answer must not cost its timeout once per call.
            let asked = calls.iter().map(|call| metadata(call, &names));
            futures::future::join_all(asked).await.into_iter().flatten().collect()
        }
    };
    let mut found = Vec::new();
    for host in hosts {
        let address = with_port(&host, bound.port());
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

/// `host:port`, with brackets around an IPv6 address.
fn with_port(host: &str, port: u16) -> String {
    match host.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, port).to_string(),
        Err(_) => format!("{host}:{port}"),
    }
}

/// One address in plain text. Anything else that an HTTP server might answer with is no address.
async fn metadata(call: &HttpCall, names: &Names) -> Option<String> {
    match call::call(call, names, METADATA_TIMEOUT).await {
        Ok((200, text)) => {
            let text = text.trim();
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
            if !text.is_empty() && text.len() <= 253 && text.chars().all(plain) {
                Some(text.to_owned())
            } else {
                tracing::debug!(url = call.url, "the metadata service answered with no address");
                None
            }
        }
        Ok((status, _)) => {
            tracing::debug!(url = call.url, status, "no address from here");
            None
        }
        Err(error) => {
            tracing::debug!(url = call.url, error = &error as &dyn std::error::Error, "no address from here");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use tpi_proto::{
        cert::PinnedCert,
        id::{Attempt, SlotIndex},
    };

    use super::*;

    #[test]
    fn the_certificate_names_the_run_and_outlives_the_task() {
        let root = tempfile::tempdir().expect("a directory");
        let task = TaskId::deterministic("hello").expect("a name");
        let run = RunId { slot: SlotIndex(1), attempt: Attempt(2) };
        let now = Timestamp::now();
        let deadline = now + SignedDuration::from_hours(5);
        let pair = KeyPair::create(root.path(), &task, run, now, deadline).expect("a key");
        let cert = PinnedCert::from_pem(pair.certificate_pem.as_bytes()).expect("a certificate");
        assert_eq!(cert.der(), pair.certificate.as_ref());
        assert!(cert.is_for(&run.server_name(&task)));
        assert!(!cert.is_for("localhost"));
        assert_eq!(cert.check_validity(now - SignedDuration::from_hours(23)), Ok(()));
        assert_eq!(cert.check_validity(deadline + SignedDuration::from_hours(24 * 29)), Ok(()));
        assert!(cert.check_validity(now - SignedDuration::from_hours(25)).is_err());
        assert!(!format!("{pair:?}").contains("PRIVATE"));

        let key = std::fs::metadata(root.path().join("keys/1-2.pem")).expect("the key's file");
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
        let keys = std::fs::metadata(root.path().join("keys")).expect("the folder");
        assert_eq!(keys.permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn ports_are_put_behind_every_kind_of_host() {
        assert_eq!(with_port("10.0.0.1", 7), "10.0.0.1:7");
        assert_eq!(with_port("::1", 7), "[::1]:7");
        assert_eq!(with_port("a.example", 7), "a.example:7");
    }
}
