//! Places that have machines, behind one trait; and which of them this build carries.
//!
//! A cloud is asked for a *group* that keeps a number of machines, never for single machines: whatever
//! replaces a machine that dies is the cloud's own, so that no server of ours has to run.

use std::{collections::BTreeMap, fmt, sync::Arc};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tpi_proto::{
    id::{MachineId, TaskId},
    spec::{CloudName, TaskSpec},
};
use tpi_store::{Store, StoreError};
use url::Url;

use self::plan::CloudPlan;

#[cfg(feature = "aws")]
pub mod aws;
pub mod conformance;
#[cfg(feature = "local")]
pub mod local;
pub mod plan;

/// Machines and their surroundings for one task in one account and region.
///
/// Every verb is idempotent: called twice, or after a crash anywhere inside, it leaves the same world. A call
/// that fails or is dropped may have done anything up to all of its work; calling it again finishes it.
#[async_trait]
pub trait Cloud: fmt::Debug + Send + Sync {
    /// Which cloud.
    fn name(&self) -> CloudName;

    /// What [`ensure`](Self::ensure) would make of this, what it would cost at most, and whatever would keep it from
    /// working: it is refused here rather than after something was made. Makes nothing.
    async fn plan(&self, want: &GroupSpec) -> Result<CloudPlan, CloudError>;

    /// Makes the group exist, once. A group that exists is left as it is, also when its size has shrunk
    /// because machines were released.
    async fn ensure(&self, want: &GroupSpec) -> Result<Observed, CloudError>;

    /// What is there; absent is a value.
    async fn observe(&self, task: &TaskId) -> Result<Observed, CloudError>;

    /// Ends the group and every machine, and returns when nothing of the task is left; absent is success.
    /// What is returned still names the machines that there were.
    async fn destroy(&self, task: &TaskId) -> Result<Observed, CloudError>;

    /// Tasks that something exists for, found without any record of ours.
    async fn list(&self) -> Result<Vec<TaskId>, CloudError>;

    /// Everything that carries the mark of a task, each thing alone, whoever made it and whatever else is left
    /// of its task. What lacks the mark is not looked at.
    async fn survey(&self, regions: &Regions) -> Result<Vec<Leftover>, CloudError>;

    /// Removes these, and whatever hangs on them, of tasks that nobody wants any more. Absent is success.
    async fn remove(&self, things: &[Leftover]) -> Result<(), CloudError>;

    /// The cloud's own stores, of tasks that name none: those that are there. None where the cloud cannot be asked
    /// because nothing says how, which is so for everybody who does not use it.
    async fn stores(&self, regions: &Regions) -> Result<Vec<Url>, CloudError>;

    /// The cloud's own store for a region, whether it is there or not.
    async fn store_url(&self, region: &str) -> Result<Url, CloudError>;

    /// Makes that store exist, closed to others and certainly the account's.
    async fn make_store(&self, region: &str) -> Result<Url, CloudError>;

    /// Opens a store with what this cloud is reached with; `None` when it is none of this cloud's.
    ///
    /// # Errors
    /// When the URL is none.
    async fn open_store(&self, url: &Url) -> Result<Option<Store>, StoreError>;
}

/// Where to look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Regions {
    /// Where tasks usually are, and where those known here are.
    #[default]
    Usual,
    /// In these, as users write them.
    Named(Vec<String>),
    /// In all that the account has.
    All,
}

/// What a cloud makes for a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResourceKind {
    /// Costs money as long as it is there.
    Machine,
    /// A disk; costs money.
    Volume,
    /// Keeps machines.
    ScalingGroup,
    /// Ends a group at its deadline.
    Schedule,
    /// What machines are made from.
    LaunchTemplate,
    /// Who may reach machines.
    SecurityGroup,
    /// What machines may do.
    Role,
    /// How machines get their role.
    InstanceProfile,
    /// What a role allows.
    Policy,
    /// What a task has in a store; costs money.
    Objects,
}

impl ResourceKind {
    /// Whether the thing by itself costs money, or starts something that does.
    #[must_use]
    pub fn costs(self) -> bool {
        match self {
            Self::Machine | Self::Volume | Self::ScalingGroup | Self::Objects => true,
            Self::Schedule
            | Self::LaunchTemplate
            | Self::SecurityGroup
            | Self::Role
            | Self::InstanceProfile
            | Self::Policy => false,
        }
    }
}

impl fmt::Display for ResourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Machine => "machine",
            Self::Volume => "volume",
            Self::ScalingGroup => "scaling group",
            Self::Schedule => "schedule",
            Self::LaunchTemplate => "launch template",
            Self::SecurityGroup => "security group",
            Self::Role => "role",
            Self::InstanceProfile => "instance profile",
            Self::Policy => "policy",
            Self::Objects => "objects",
        })
    }
}

/// One thing that a task has, or had and left behind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Leftover {
    /// What it is.
    pub kind: ResourceKind,
    /// As the cloud names it.
    pub id: String,
    /// Where it is; absent for what is everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Whose it is.
    pub task: TaskId,
    /// Since when it is there, where the cloud says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    /// When it should have ended, by what is written on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// Where its task has its record, by what is written on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<Url>,
    /// US dollars per hour; absent when not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usd_per_hour: Option<f64>,
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.id)?;
        if let Some(region) = &self.region {
            write!(f, " in {region}")?;
        }
        Ok(())
    }
}

/// What a group is made from. All of it comes from the task's record, so that any computer can make it.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupSpec {
    /// The task; a tag on everything created.
    pub task: TaskId,
    /// What was asked.
    pub spec: TaskSpec,
    /// Root of the store that has the record.
    pub store: Url,
    /// When everything must have ended. The cloud itself enforces it, whatever has crashed.
    pub deadline: Timestamp,
    /// The agent to boot, at its key in the store.
    pub agent_sha256: String,
}

/// What is there of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// The group.
    pub group: GroupState,
    /// Machines, those that have ended included as long as the cloud remembers them; in order of launch.
    pub machines: Vec<Machine>,
    /// What could not be had, as far as the cloud tells, the newest first; the group keeps trying.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shortages: Vec<Shortage>,
}

impl Observed {
    /// Nothing, and nothing remembered.
    #[must_use]
    pub fn absent() -> Self {
        Self { group: GroupState::Absent, machines: Vec::new(), shortages: Vec::new() }
    }

    /// Whether nothing is left that runs or could start.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.group == GroupState::Absent && self.alive().next().is_none()
    }

    /// Machines that have not ended.
    pub fn alive(&self) -> impl Iterator<Item = &Machine> {
        self.machines.iter().filter(|m| m.ended.is_none())
    }
}

/// State of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum GroupState {
    /// There is none.
    Absent,
    /// It keeps machines.
    Active {
        /// How many.
        size: u32,
    },
    /// It ended by itself, all machines released or the deadline reached; nothing of it runs.
    Ended,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Its identifier, as the agent on it knows it.
    pub id: MachineId,
    /// When it was launched.
    pub launched: Timestamp,
    /// When it ended; absent while it lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// Why it ended; absent while it lives, and where the cloud does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<MachineEnd>,
    /// US dollars per hour; absent when not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usd_per_hour: Option<f64>,
}

/// Why a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineEnd {
    /// It gave itself back.
    Released,
    /// It died, or the cloud took it.
    Lost,
    /// The group's schedule ended it.
    Deadline,
    /// Somebody destroyed the task.
    Destroyed,
}

/// Why a machine is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShortageReason {
    /// The zone has no such machine free.
    Capacity,
    /// The highest price is below the market's.
    Price,
    /// The account's limit.
    Quota,
    /// The caller or the group's role may not.
    Permission,
    /// The image, type or profile cannot be used; more of the same will not help.
    Request,
    /// Anything else.
    Other,
}

impl fmt::Display for ShortageReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Capacity => "no capacity",
            Self::Price => "the highest price is below the market's",
            Self::Quota => "the account's limit is reached",
            Self::Permission => "not permitted",
            Self::Request => "the request cannot be served",
            Self::Other => "failed",
        })
    }
}

/// A machine that could not be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortage {
    /// Why.
    pub reason: ShortageReason,
    /// Where, when the cloud says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Which type, when the cloud says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// In the cloud's words.
    pub message: String,
    /// When it was tried last.
    pub at: Timestamp,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no {}", self.machine.as_deref().unwrap_or("machine"))?;
        if let Some(zone) = &self.zone {
            write!(f, " in {zone}")?;
        }
        write!(f, ": {}: {}", self.reason, self.message)
    }
}

/// What a caller can act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloudErrorKind {
    /// Credentials are missing, expired or wrong.
    Unauthenticated,
    /// They do not allow this.
    PermissionDenied,
    /// The account's limit.
    QuotaExceeded,
    /// The cloud has no such machine free.
    NoCapacity,
    /// Too many requests.
    Throttled,
    /// The cloud does not know what was asked for.
    InvalidSpec,
    /// This cloud cannot do that.
    NotSupported,
    /// It cannot be reached, or failed inside.
    Unavailable,
    /// Anything else.
    Other,
}

impl CloudErrorKind {
    /// Whether trying the same again may help.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        match self {
            Self::Throttled | Self::Unavailable | Self::NoCapacity => true,
            Self::Unauthenticated
            | Self::PermissionDenied
            | Self::QuotaExceeded
            | Self::InvalidSpec
            | Self::NotSupported
            | Self::Other => false,
        }
    }
}

/// Whether a failed call may have left something behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leftovers {
    /// Certainly not.
    None,
    /// Certainly, and nothing of it costs anything or can start something that does.
    Free,
    /// Certainly.
    Remaining,
    /// Cannot be told; what every create that was cut off answers.
    Unknown,
}

/// What was being done, and why it failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation}")]
pub struct CloudError {
    /// What a caller can act on.
    pub kind: CloudErrorKind,
    /// What was being done to what.
    pub operation: String,
    /// Whether something may have been left behind.
    pub leftovers: Leftovers,
    /// Cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Names of the clouds that this build carries; nothing of them is loaded.
#[must_use]
pub fn carried() -> Vec<CloudName> {
    let mut names = CloudName::ALL.to_vec();
    names.retain(|name| match name {
        CloudName::Local => cfg!(feature = "local"),
        CloudName::Aws => cfg!(feature = "aws"),
        CloudName::Gcp | CloudName::Az | CloudName::K8s => false,
    });
    names
}

/// Clouds that can be used.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    clouds: BTreeMap<&'static str, Arc<dyn Cloud>>,
}

impl Registry {
    /// None.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// Clouds that this build carries: one line each.
    #[must_use]
    pub fn built_in(home: &crate::home::Home) -> Self {
        let registry = Self::empty();
        #[cfg(feature = "local")]
        let registry = registry.with(Arc::new(local::Local::new(home)));
        #[cfg(feature = "aws")]
        let registry = registry.with(Arc::new(aws::Aws::new(home)));
        #[cfg(not(any(feature = "local", feature = "aws")))]
        let _home = home;
        registry
    }

    /// With one more (or another in its place).
    #[must_use]
    pub fn with(mut self, cloud: Arc<dyn Cloud>) -> Self {
        let _replaced = self.clouds.insert(cloud.name().as_str(), cloud);
        self
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, name: CloudName) -> Option<Arc<dyn Cloud>> {
        self.clouds.get(name.as_str()).cloned()
    }

    /// Names, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = CloudName> {
        self.clouds.values().map(|c| c.name())
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Arc<dyn Cloud>> {
        self.clouds.values()
    }
}
