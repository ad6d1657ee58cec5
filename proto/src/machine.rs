//! What a machine is told at boot. The agent knows no cloud: whatever differs between clouds is data here,
//! so adding a cloud writes data and leaves the agent alone.
//!
//! Nothing in here is secret on a real cloud: user-data can be read by every process of the machine and by
//! whoever may describe it. (The local cloud's release token guards nothing but the local group, and its
//! file is readable by its owner only.)

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::id::{MachineId, TaskId};

/// Version of [`MachineConfig`].
pub const MACHINE_CONFIG_VERSION: u32 = 1;

/// All that an agent needs to start from. In user-data, which all machines of a group share, `Machine` is a
/// [`MachineName`]; an agent begins by finding out which machine it is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig<Machine = MachineId> {
    /// Version of this shape; an agent refuses one it does not know.
    pub version: u32,
    /// Whose machine this is.
    pub task: TaskId,
    /// This boot.
    pub machine: Machine,
    /// Number of slots of the task.
    pub slots: u32,
    /// Root of the store: `file:///…`, `s3://bucket/prefix`, `memory://` in tests.
    pub store: Url,
    /// How the store is reached.
    #[serde(default)]
    pub credentials: Credentials,
    /// When the task ends, whatever happens.
    pub deadline: Timestamp,
    /// Where notices appear that the machine is, or may soon be, taken back; empty: there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preemption: Vec<PreemptionNotice>,
    /// How this machine takes itself out of its group; absent: powering off is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<HttpCall>,
    /// Whether to power the machine off after release. Never on the local cloud.
    pub power_off: bool,
    /// Where the agent listens; port 0 lets the system choose. Absent: it does not, and is followed
    /// through the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Addresses under which clients may reach it.
    #[serde(default)]
    pub addresses: Addresses,
    /// Directory for everything the agent writes: work directory, spool, keys.
    pub root: PathBuf,
    /// Timings of leases and budgets.
    #[serde(default)]
    pub timings: Timings,
    /// Variables for the script that the machine's place decides (`TPI_REGION`, `TPI_MACHINE`, `HOME`…).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
}

impl<Machine> MachineConfig<Machine> {
    /// The same for a machine whose name is now known.
    #[must_use]
    pub fn on(self, machine: MachineId) -> MachineConfig {
        MachineConfig {
            version: self.version,
            task: self.task,
            machine,
            slots: self.slots,
            store: self.store,
            credentials: self.credentials,
            deadline: self.deadline,
            preemption: self.preemption,
            release: self.release,
            power_off: self.power_off,
            listen: self.listen,
            addresses: self.addresses,
            root: self.root,
            timings: self.timings,
            environment: self.environment,
        }
    }
}

/// How a machine learns its own name. On the wire a plain string, or `{"ask": call}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
#[expect(clippy::large_enum_variant, reason = "there is one in a process")]
pub enum MachineName {
    /// It is known where the configuration is written.
    Fixed(MachineId),
    /// A metadata service tells: the call answers with the name as plain text.
    Ask {
        /// The call; `{machine}` means nothing in it.
        ask: HttpCall,
    },
}

/// How an agent obtains what it needs to reach the store, and to sign requests ([`Signing`]).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Credentials {
    /// None needed (`file://`), or the process environment has them (tests, development).
    #[default]
    Environment,
    /// Those of the instance's role, from the instance metadata service of AWS, version 2 only.
    AwsInstance {
        /// Address of that service when it is not the usual one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        endpoint: Option<Url>,
        /// Region of the store's bucket.
        region: String,
        /// Address of S3 when it is not the region's usual one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        store_endpoint: Option<Url>,
    },
}

/// Under which addresses an agent tells others to look for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Addresses {
    /// These hosts, each with the port it listens on.
    Static {
        /// Names or addresses.
        hosts: Vec<String>,
    },
    /// Asked of a metadata service: each call answers with one address as plain text.
    Metadata {
        /// The calls, in order of preference.
        calls: Vec<HttpCall>,
    },
}

impl Default for Addresses {
    fn default() -> Self {
        Self::Static { hosts: Vec::new() }
    }
}

/// A notice is there when the call answers 200 and, where given, the body contains a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreemptionNotice {
    /// What to ask.
    pub call: HttpCall,
    /// What the body must contain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contains: Option<String>,
    /// How often to ask, in milliseconds.
    pub interval_millis: u64,
    /// What the notice is a reason for.
    #[serde(default)]
    pub effect: NoticeEffect,
}

/// What an agent does about a notice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoticeEffect {
    /// The machine goes: end the script, save, leave the slot to another machine.
    #[default]
    Interrupt,
    /// The machine may go: save now, and run on.
    Save,
}

/// One HTTP request. `{task}`, `{machine}`, `{slot}` and `{attempt}` are replaced in url and body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpCall {
    /// `GET`, `POST`, `PUT` or `DELETE`.
    pub method: String,
    /// Where to.
    pub url: String,
    /// Sent as they are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Template of the body.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub body: String,
    /// A call to be made first, whose answer this one carries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenCall>,
    /// How the request proves who sends it.
    #[serde(default, skip_serializing_if = "Signing::is_none")]
    pub signing: Signing,
}

/// A call whose answer's body becomes a header of another call. Asked anew each time, so it never expires.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCall {
    /// As in [`HttpCall`].
    pub method: String,
    /// Where to; nothing is replaced in it.
    pub url: String,
    /// Sent as they are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Header of the other call that carries the answer.
    pub header: String,
}

/// How a request is signed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Signing {
    /// Not at all; a header may carry a token.
    #[default]
    None,
    /// AWS Signature Version 4, with the credentials of [`Credentials`].
    AwsV4 {
        /// Name of the service in the signature's scope (`autoscaling`).
        service: String,
        /// Region in the signature's scope.
        region: String,
    },
}

impl Signing {
    fn is_none(&self) -> bool {
        match self {
            Self::None => true,
            Self::AwsV4 { .. } => false,
        }
    }
}

/// Timings, all in milliseconds. Machines of a cloud use the defaults; the local cloud is quicker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timings {
    /// A slot whose lease was not renewed for this long is free.
    pub lease_ttl: u64,
    /// How often a lease is renewed.
    pub lease_renew: u64,
    /// How often the work directory is looked at for changes worth saving.
    pub save_interval: u64,
    /// Oldest log bytes that are not in the store yet.
    pub log_flush: u64,
    /// Longest boot phase.
    pub boot_budget: u64,
    /// Longest prepare phase.
    pub prepare_budget: u64,
    /// Longest restore phase.
    pub restore_budget: u64,
    /// Longest save phase; the deadline leaves room for it.
    pub save_budget: u64,
    /// Longest release phase.
    pub release_budget: u64,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            lease_ttl: 60_000,
            lease_renew: 15_000,
            save_interval: 10_000,
            log_flush: 5_000,
            boot_budget: 300_000,
            prepare_budget: 1_200_000,
            restore_budget: 3_600_000,
            save_budget: 1_800_000,
            release_budget: 120_000,
        }
    }
}

impl Timings {
    /// A field of this struct as a duration.
    #[must_use]
    pub const fn of(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As it was before machines could ask for their names; the local cloud writes it still.
    const FIXED: &str = r#"{
        "version": 1, "task": "TASK", "machine": "m-1", "slots": 1, "store": "file:///tmp/store",
        "credentials": {"kind": "environment"}, "deadline": "2031-02-03T04:05:06Z",
        "release": {"method": "POST", "url": "http://127.0.0.1:1/release/{machine}",
                    "headers": {"x-token": "t"}, "body": "", "signing": {"kind": "none"}},
        "power_off": false, "root": "/tmp/m-1"
    }"#;

    #[test]
    fn a_name_is_a_string_or_a_question() {
        let task = TaskId::deterministic("hello").expect("a name");
        let text = FIXED.replace("TASK", task.as_str());
        let group: MachineConfig<MachineName> = serde_json::from_str(&text).expect("it is read");
        let name = MachineId("m-1".to_owned());
        assert_eq!(group.machine, MachineName::Fixed(name.clone()));
        assert!(group.preemption.is_empty());
        let own: MachineConfig = serde_json::from_str(&text).expect("it is read");
        assert_eq!(group.clone().on(name), own);

        let ask = own.release.clone().expect("there is one");
        let asking = MachineName::Ask { ask };
        let text = serde_json::to_string(&asking).expect("it is written");
        assert!(text.starts_with(r#"{"ask":{"method":"POST","#), "{text}");
        assert_eq!(serde_json::from_str::<MachineName>(&text).expect("it is read"), asking);
    }
}
