//! What a machine is told at boot. Pure: [`Bootstrap`] in, user-data out.
//!
//! User-data is a `#cloud-config` of two commands, which every cloud-init since that of Ubuntu 20.04 understands:
//!
//! ```text
//! bootcmd   every boot, early    writes and starts tpi-power-off.timer      needs no network
//! runcmd    first boot, late     refuses to go on without that timer
//!                                writes /etc/tpi/machine.json and the units below, starts tpi-agent
//!
//! tpi-install.service ──► tpi-agent.service          tpi-power-off.timer
//!   fetch, compare         restarted at most             deadline + grace, or
//!   SHA-256, install       5 times an hour               seconds after boot
//!        │ fails for good       │ fails for good              │
//!        └──────────────────────┴───► tpi-power-off.service ◄─┘
//! ```
//!
//! Everything is a unit file, so it holds after a reboot too. Whatever the agent does or fails to do, the machine goes
//! off; powering off ends it, because clouds are told to terminate machines that do.

mod check;
mod gzip;
mod script;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tpi_proto::machine::{MachineConfig, MachineName};
use url::Url;

/// Most bytes of user-data that a cloud takes, before any encoding (AWS: 16 KiB).
pub const LIMIT: usize = 16 << 10;

/// Everything that user-data is rendered from. Public facts only: no credential and no key. The same for all
/// machines of a group, whenever they start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// What the agent starts from.
    pub config: MachineConfig<MachineName>,
    /// SHA-256 of the agent's binary, in hexadecimal; anything else that is found is not run.
    pub agent_sha256: String,
    /// Where the agent's binary lies.
    pub agent: AgentSource,
    /// When the machine is switched off whatever happens to the agent.
    pub power_off: PowerOff,
}

/// Where a machine finds its agent, and with what it may read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum AgentSource {
    /// An object in S3, read with the credentials of the machine's own role.
    S3 {
        /// Bucket.
        bucket: String,
        /// Key of the object in it (`{prefix}/tasks/{id}/agent/{sha256}`).
        key: String,
        /// Region of the bucket.
        region: String,
        /// Address of S3 when it is not the region's usual one; the bucket is then the first part of the path.
        endpoint: Option<Url>,
        /// Address of the instance metadata service when it is not the usual one.
        metadata: Option<Url>,
    },
}

/// The power-off timer. Whichever of the two comes first counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerOff {
    /// Absolute: the deadline and some grace.
    pub at: Timestamp,
    /// Seconds after each boot: for machines whose clock is wrong.
    pub after_boot_seconds: u64,
}

/// Why there is no user-data.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// It would not be accepted by the cloud, compressed or not.
    #[error("user-data of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// Its size, compressed.
        bytes: usize,
        /// The most there may be.
        limit: usize,
    },
    /// A value that cannot be right, or that does not belong where everybody may read it.
    #[error("{field}: {cause}")]
    Invalid {
        /// Which.
        field: &'static str,
        /// What is wrong.
        cause: String,
    },
    /// The configuration as JSON.
    #[error("writing the machine's configuration")]
    Config(#[source] serde_json::Error),
}

/// The bytes of user-data (not base64), at most [`LIMIT`]; compressed only where they would not fit otherwise.
///
/// # Errors
/// [`RenderError`].
pub fn render(bootstrap: &Bootstrap) -> Result<Vec<u8>, RenderError> {
    let text = script::user_data(bootstrap)?;
    check::no_secret(&text)?;
    if text.len() <= LIMIT {
        return Ok(text.into_bytes());
    }
    let packed = gzip::gzip(text.as_bytes());
    if packed.len() > LIMIT {
        return Err(RenderError::TooLarge { bytes: packed.len(), limit: LIMIT });
    }
    Ok(packed)
}
