//! What the user asked for, checked, as it is kept in the task's record.
//!
//! Field names are those of `iterative_task`. Environment *values* are absent on purpose: they may be
//! secrets and live in one private object of their own; the record holds their names only.

use std::{collections::BTreeMap, fmt, num::NonZeroU16, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// A place that has machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CloudName {
    /// This computer, behaving like a cloud.
    Local,
    /// Amazon Web Services.
    Aws,
    /// Google Cloud.
    Gcp,
    /// Microsoft Azure.
    Az,
    /// A Kubernetes cluster.
    K8s,
}

impl CloudName {
    /// Every cloud there is a name for, whether this build carries it or not.
    pub const ALL: [Self; 5] = [Self::Local, Self::Aws, Self::Gcp, Self::Az, Self::K8s];

    /// Name as written in a configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Aws => "aws",
            Self::Gcp => "gcp",
            Self::Az => "az",
            Self::K8s => "k8s",
        }
    }
}

impl fmt::Display for CloudName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is no cloud's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a cloud (known: local, aws, gcp, az, k8s)")]
pub struct UnknownCloud(pub String);

impl FromStr for CloudName {
    type Err = UnknownCloud;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|c| c.as_str() == text).ok_or_else(|| UnknownCloud(text.to_owned()))
    }
}

/// How machines are bought.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Spot {
    /// Not interruptible.
    OnDemand,
    /// Interruptible, at whatever the market asks.
    MarketPrice,
    /// Interruptible, up to a price.
    MaxPrice {
        /// US dollars per hour.
        usd_per_hour: f64,
    },
}

/// A checked request for one task. `controller/src/spec` makes it; nothing else should.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// As given, or generated.
    pub name: String,
    /// Where.
    pub cloud: CloudName,
    /// Alias or native name.
    pub region: String,
    /// Alias or native name.
    pub machine: String,
    /// Machine image: alias or native name.
    pub image: String,
    /// GB; absent: the image's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_size: Option<u32>,
    /// How machines are bought.
    pub spot: Spot,
    /// Number of slots.
    pub parallelism: NonZeroU16,
    /// Cloud-specific identity of the machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permission_set: Option<String>,
    /// Tags of everything created.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Names of the environment variables kept in `tasks/{id}/environment`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environment: Vec<String>,
    /// Longest time from the first machine's order to the end of everything, in seconds.
    pub timeout_seconds: u64,
    /// Time between SIGTERM and SIGKILL, in seconds.
    pub grace_seconds: u64,
    /// The script, beginning with its shebang.
    pub script: String,
    /// Container image to run the script in; absent: on the machine itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Who may reach the agents.
    #[serde(default)]
    pub ingress: Ingress,
    /// Files that travel.
    pub storage: StorageSpec,
    /// Subnets that machines start in; empty: those of the cloud's default network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<String>,
    /// Longest wait for a first machine, in seconds, counted like the timeout; absent: as long as the task may
    /// exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provision_timeout_seconds: Option<u64>,
}

/// From where the agents' port can be reached. Nobody gets further than the TLS handshake without a
/// certificate that lies in the store; this only decides who may try.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Ingress {
    /// The address that the submitting computer is seen with.
    #[default]
    Caller,
    /// These networks.
    Networks {
        /// In CIDR notation.
        cidrs: Vec<String>,
    },
    /// Nowhere: clients follow the task through the store.
    Closed,
}

impl TaskSpec {
    /// Longest time that the task may exist.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds)
    }

    /// Time between SIGTERM and SIGKILL.
    #[must_use]
    pub fn grace(&self) -> Duration {
        Duration::from_secs(self.grace_seconds)
    }
}

/// What travels to the machine and back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StorageSpec {
    /// Absolute path on the computer that submitted; absent: nothing is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Path below the work directory that is brought home, normalised, `.` for all of it; absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// Rules, in order, after the built-in ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// Whether `.gitignore` files count as rules too.
    #[serde(default)]
    pub gitignore: bool,
    /// A bucket (and path) of the user's own instead of the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}
