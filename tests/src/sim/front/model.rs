//! What the front tells, and is told.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use jiff::Timestamp;

/// State of an instance, in EC2's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum InstanceState {
    /// Being started.
    Pending,
    /// Started.
    Running,
    /// Being ended for good.
    ShuttingDown,
    /// Gone.
    Terminated,
    /// Being switched off.
    Stopping,
    /// Switched off.
    Stopped,
}

impl InstanceState {
    /// Whether a machine has to be there for it.
    #[must_use]
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Pending | Self::Running)
    }
}

/// What happens to an instance that powers itself off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownBehaviour {
    /// It is switched off and can be started again.
    Stop,
    /// It is gone.
    Terminate,
}

/// The instance's metadata service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetadataOptions {
    /// Whether there is one.
    pub enabled: bool,
    /// Only IMDSv2 is answered.
    pub tokens_required: bool,
    /// Hops that the answer with a token may make.
    pub hop_limit: u8,
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// `i-…`
    pub id: String,
    /// Now.
    pub state: InstanceState,
    /// Where.
    pub region: String,
    /// Where in it.
    pub zone: String,
    /// Its type.
    pub kind: String,
    /// The group that it belongs to, or belonged to when it ended.
    pub group: Option<String>,
    /// `ami-…`
    pub image: String,
    /// Name of the instance profile.
    pub profile: Option<String>,
    /// Name of the role in that profile, as it was at launch.
    pub role: Option<String>,
    /// Decoded; not unpacked.
    pub user_data: Vec<u8>,
    /// Of its metadata service.
    pub metadata: MetadataOptions,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// As EC2 tells it; the machine room may use another.
    pub private_ip: Option<Ipv4Addr>,
    /// What it does when it is powered off from within.
    pub shutdown: ShutdownBehaviour,
    /// Whether it is bought on the spot market.
    pub spot: bool,
    /// By the front's clock.
    pub launched: Timestamp,
    /// Why it ended, when the front was told.
    pub ended: Option<EndReason>,
}

/// Why an instance ends without anybody having called for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// From within.
    PoweredOff,
    /// Its capacity went to somebody else.
    SpotReclaimed,
    /// Its hardware failed.
    Died,
}

/// Credentials that a role's session has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleCredentials {
    /// Name of the role.
    pub role: String,
    /// `ASIA…`
    pub access_key: String,
    /// Never sent.
    pub secret_key: String,
    /// Sent with each request.
    pub token: String,
    /// By the front's clock.
    pub expires: Timestamp,
}

/// One request that came in, and how it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// `ec2`, `autoscaling`, `iam`, `sts`, `s3`, `servicequotas`.
    pub service: String,
    /// As policies name it, without the service: `RunInstances`, `GetObject`.
    pub action: String,
    /// Region that it was signed for.
    pub region: String,
    /// `user/…` or `role/…`; empty when nobody was recognised.
    pub principal: String,
    /// Where it came from.
    pub from: IpAddr,
    /// For S3 bucket and key; for others empty.
    pub resource: String,
    /// When it had arrived.
    pub began: std::time::Instant,
    /// When it was answered, or cut off.
    pub ended: std::time::Instant,
    /// 0: cut off without an answer.
    pub status: u16,
    /// Code of the error; empty when there was none, or none was told.
    pub code: String,
}

/// A call that was refused for want of a permission, a signature, or time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Who.
    pub principal: String,
    /// What was missing: `ec2:RunInstances`; of a bad signature the call's own action.
    pub action: String,
    /// On what.
    pub resource: String,
    /// In words.
    pub why: String,
}

/// Why instances do not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShortageReason {
    /// None free of the type in the zone.
    InsufficientInstanceCapacity,
    /// None free of any type that was asked for.
    UnfulfillableCapacity,
    /// The account's quota of spot machines.
    MaxSpotInstanceCountExceeded,
    /// The account's quota of machines on demand.
    VcpuLimitExceeded,
    /// Less was offered than is asked.
    SpotMaxPriceTooLow,
}

/// What a fault is about; all that is given has to fit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matching {
    /// `s3`, …
    pub service: Option<String>,
    /// `RunInstances`, …
    pub action: Option<String>,
    /// Begins like this: `user/`, `role/`.
    pub principal: Option<String>,
}

impl Matching {
    /// Every call.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Calls of a service.
    #[must_use]
    pub fn service(name: &str) -> Self {
        Self { service: Some(name.to_owned()), ..Self::default() }
    }

    /// Calls of that name.
    #[must_use]
    pub fn action(name: &str) -> Self {
        Self { action: Some(name.to_owned()), ..Self::default() }
    }

    /// The same, of principals whose name begins so.
    #[must_use]
    pub fn by(mut self, principal: &str) -> Self {
        self.principal = Some(principal.to_owned());
        self
    }

    pub(super) fn fits(&self, service: &str, action: &str, principal: &str) -> bool {
        self.service.as_deref().is_none_or(|s| s == service)
            && self.action.as_deref().is_none_or(|a| a == action)
            && self.principal.as_deref().is_none_or(|p| principal.starts_with(p))
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The service says that it was asked too often, in its own words.
    Throttle,
    /// An internal error: 500 or 503.
    Fail(u16),
    /// The connection ends before anything is done.
    CutBefore,
    /// It ends after all is done.
    CutAfter,
    /// Nothing is done, and nothing answered for as long as the client waits.
    HoldBefore,
    /// All is done, and nothing answered for as long as the client waits.
    HoldAfter,
    /// The call takes this much longer.
    Delay(Duration),
}
