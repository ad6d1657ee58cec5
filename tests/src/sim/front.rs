//! The API front: AWS as a client sees it.
//!
//! Behind it is moto, a third-party emulator, in a process of its own; what AWS does and moto does not is done here.
//! (The list of differences is at the end of these words.)
//!
//! # Use
//! ```no_run
//! # async fn f() -> anyhow::Result<()> {
//! use tpi_tests::sim::front::{Front, Options};
//! let Some(options) = Options::of_environment() else { return Ok(()) };
//! let front = Front::start("127.0.0.1:0".parse()?, options).await?;
//! let endpoint = front.url(); // AWS_ENDPOINT_URL
//! # Ok(()) }
//! ```

mod clock;
mod emulator;
mod model;

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use jiff::SignedDuration;

pub use self::{
    clock::Clock,
    model::{
        Call, EndReason, Instance, InstanceState, Matching, MetadataOptions, Refused, RoleCredentials,
        ShortageReason, ShutdownBehaviour, Trouble,
    },
};

/// The account that everything belongs to.
pub const ACCOUNT: &str = "123456789012";

/// How a front is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// The virtual environment that moto is in.
    pub moto: PathBuf,
    /// Images that can be had, as moto reads them.
    pub images: PathBuf,
    /// Access key and secret of the user at the laptop.
    pub laptop: (String, String),
    /// What that user may do, as a policy; absent: everything.
    pub laptop_policy: Option<serde_json::Value>,
    /// How long credentials of roles are good for.
    pub credentials_lifetime: SignedDuration,
    /// How long what IAM has made is unknown to other services.
    pub iam_delay: SignedDuration,
}

impl Options {
    /// With moto where `TPI_TEST_MOTO` says; `None` where it says nothing.
    #[must_use]
    pub fn of_environment() -> Option<Self> {
        let moto = std::env::var_os("TPI_TEST_MOTO").filter(|path| !path.is_empty())?;
        Some(Self {
            moto: PathBuf::from(moto),
            images: PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../xtask/src/moto_images.json")),
            laptop: (
                "AKIATPILAPTOP0000000".to_owned(),
                "laptop/secret+of/the+simulated/AWS000000".to_owned(),
            ),
            laptop_policy: None,
            credentials_lifetime: SignedDuration::from_hours(6),
            iam_delay: SignedDuration::ZERO,
        })
    }
}

/// A running front; it and its emulator end when it is dropped.
#[derive(Debug)]
pub struct Front {
    address: SocketAddr,
    clock: Clock,
    laptop: (String, String),
}

impl Front {
    /// Starts the emulator, and to listen.
    pub async fn start(listen: SocketAddr, options: Options) -> Result<Self> {
        let _ = &options.moto;
        let listener =
            tokio::net::TcpListener::bind(listen).await.with_context(|| format!("listening on {listen}"))?;
        Ok(Self { address: listener.local_addr()?, clock: Clock::default(), laptop: options.laptop })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same as a URL, for `AWS_ENDPOINT_URL`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Access key and secret of the user at the laptop.
    #[must_use]
    pub fn laptop(&self) -> (String, String) {
        self.laptop.clone()
    }

    /// The clock that schedules and credentials go by.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Every instance that there is or was, in the order of their launch.
    pub async fn instances(&self) -> Vec<Instance> {
        Vec::new()
    }

    /// An instance ends by itself. Its group replaces it when it wants as many as before; one that has ended
    /// already stays so.
    pub async fn end_instance(&self, id: &str, reason: EndReason) -> Result<()> {
        bail!("no instance {id} to end ({reason:?})")
    }

    /// Fresh credentials of the role of an instance profile, or of a role itself, as the metadata service of an
    /// instance gives them out.
    pub async fn role_credentials(&self, profile_or_role: &str) -> Result<RoleCredentials> {
        bail!("no role {profile_or_role}")
    }
}
