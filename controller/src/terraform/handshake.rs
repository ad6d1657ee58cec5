//! What Terraform and a program that it starts say to each other before the first call: the environment one way,
//! one line of stdout the other.

use std::{
    env, fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use tpi_proto::cert::{CertError, PinnedCert};

/// Version of the protocol of plugins as such.
const CORE_VERSION: u32 = 1;
/// Version of the protocol of providers that is spoken here.
const PROVIDER_VERSION: u32 = 5;
const COOKIE_NAME: &str = "TF_PLUGIN_MAGIC_COOKIE";
const COOKIE: &str = "d602bf8f470bc67ca7faa0386276bbdd4330efaf76d1a219cb4d6991ca9872b2";
/// Longest path of a Unix socket, with some to spare.
const SOCKET_PATH_MAX: usize = 100;

/// Why this program does not serve.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// A person started it.
    #[error("this program is started by Terraform, as its provider iterative/iterative")]
    NotTerraform,
    /// Terraform speaks other versions.
    #[error(
        "Terraform speaks versions {offered} of the provider protocol, and this provider version {PROVIDER_VERSION}"
    )]
    Version {
        /// As it says.
        offered: String,
    },
    /// Terraform does not say which certificate it will show, so anybody could take its place.
    #[error("Terraform does not authenticate itself (PLUGIN_CLIENT_CERT is not set)")]
    Anonymous,
    /// What it says is no certificate.
    #[error("reading Terraform's certificate")]
    Certificate(#[source] CertError),
    /// The socket cannot be made.
    #[error("making a socket in {path:?}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A key cannot be made, or used.
    #[error("preparing TLS")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What Terraform said.
#[derive(Debug)]
pub(super) struct Greeting {
    /// The only certificate that may be shown to us.
    pub(super) client: PinnedCert,
}

impl Greeting {
    /// From the environment, through `get` so that nothing is hidden.
    pub(super) fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, HandshakeError> {
        if get(COOKIE_NAME).is_none_or(|cookie| cookie != COOKIE) {
            return Err(HandshakeError::NotTerraform);
        }
        // Very old ones do not say.
        if let Some(offered) = get("PLUGIN_PROTOCOL_VERSIONS").filter(|offered| !offered.is_empty())
            && !offered.split(',').any(|version| version.trim().parse() == Ok(PROVIDER_VERSION))
        {
            return Err(HandshakeError::Version { offered });
        }
        let pem = get("PLUGIN_CLIENT_CERT").filter(|pem| !pem.is_empty()).ok_or(HandshakeError::Anonymous)?;
        let client = PinnedCert::from_pem(pem.as_bytes()).map_err(HandshakeError::Certificate)?;
        Ok(Self { client })
    }
}

/// The line that Terraform waits for.
pub(super) fn line(socket: &Path, certificate: &[u8]) -> String {
    let certificate = STANDARD_NO_PAD.encode(certificate);
    format!("{CORE_VERSION}|{PROVIDER_VERSION}|unix|{}|grpc|{certificate}\n", socket.display())
}

/// A folder that nobody else may look into, removed when dropped.
#[derive(Debug)]
pub(super) struct PrivateFolder(PathBuf);

impl PrivateFolder {
    /// Where Terraform wants sockets, else where temporary files are.
    pub(super) fn make() -> Result<Self, HandshakeError> {
        let wanted = env::var_os("PLUGIN_UNIX_SOCKET_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let parent = wanted.unwrap_or_else(env::temp_dir);
        let name = format!("tpi-{}", hex::encode(rand::random::<[u8; 8]>()));
        let mut path = parent.join(&name);
        if path.as_os_str().len() + "/provider".len() > SOCKET_PATH_MAX {
            path = Path::new("/tmp").join(&name);
        }
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        // A umask may take away, never give: what counts is that nobody else gets in.
        made.and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o700)))
            .map_err(|source| HandshakeError::Socket { path: path.clone(), source })?;
        Ok(Self(path))
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.0.join("provider")
    }
}

impl Drop for PrivateFolder {
    fn drop(&mut self) {
        // What is left of a socket harms nobody.
        drop(fs::remove_dir_all(&self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Greeting, HandshakeError> {
        let get = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        Greeting::read(get)
    }

    #[test]
    fn what_terraform_has_to_say() {
        assert!(matches!(read(&[]), Err(HandshakeError::NotTerraform)));
        assert!(matches!(read(&[(COOKIE_NAME, "x")]), Err(HandshakeError::NotTerraform)));
        let versions = |v| read(&[(COOKIE_NAME, COOKIE), ("PLUGIN_PROTOCOL_VERSIONS", v)]);
        assert!(matches!(versions("6,7"), Err(HandshakeError::Version { .. })));
        assert!(matches!(versions("5,6"), Err(HandshakeError::Anonymous)));
        let broken = read(&[(COOKIE_NAME, COOKIE), ("PLUGIN_CLIENT_CERT", "x")]);
        assert!(matches!(broken, Err(HandshakeError::Certificate(_))));
    }

    #[test]
    fn a_line_has_six_parts() {
        let line = line(Path::new("/tmp/x"), b"abc");
        assert_eq!(line, "1|5|unix|/tmp/x|grpc|YWJj\n");
    }

    #[test]
    fn the_folder_is_private_and_goes_away() {
        let folder = PrivateFolder::make().expect("a folder");
        let path = folder.0.clone();
        assert_eq!(fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o700);
        drop(folder);
        assert!(!path.exists());
    }
}
