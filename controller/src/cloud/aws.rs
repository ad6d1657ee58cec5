//! Amazon Web Services: for each task one Auto Scaling group, and what it needs.
//!
//! | what | name | for |
//! |---|---|---|
//! | Auto Scaling group | task's identifier | keeps machines; its schedule ends them at the deadline |
//! | launch template | task's identifier | what a machine is made from, and told at boot |
//! | security group | task's identifier | the agent's port, from where the user says |
//! | role and instance profile | task's identifier, path `/tpi/` | this task's objects, and releasing this group's machines |
//!
//! Everything carries the tag `tpi:task` with the task's identifier, and what does not is never touched.
//! There is no note of ours about any of it: names and tags find it again after a crash. Nothing secret is
//! handed to machines: they work with their own role.
//!
//! Types of the SDK stay in the folder beside this file.

use std::{collections::BTreeSet, net::IpAddr};

use async_trait::async_trait;
use tpi_proto::{id::TaskId, spec::CloudName};
use url::Url;

use self::client::{Account, Clients};
use super::{Cloud, CloudError, GroupSpec, Observed, plan::CloudPlan};
use crate::{home::Home, spec::place::REGIONS};

pub mod activity;
mod boot;
mod client;
mod cost;
mod destroy;
mod ensure;
pub mod error;
mod identity;
pub mod image;
mod lookup;
mod market;
mod names;
mod observe;
mod permission;
pub mod place;
mod plan;
mod policy;
mod quota;

pub use policy::{any_machine as any_machine_policy, caller as caller_policy};

/// What the address is that this computer is seen with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CallerAddress {
    /// A service of AWS is asked.
    #[default]
    Ask,
    /// It is known.
    Known(IpAddr),
}

/// How the account is reached; what is absent comes from where every tool of AWS takes it.
#[derive(Debug, Clone, Default)]
pub struct AwsSettings {
    /// One address of all services, for an emulator.
    pub endpoint: Option<Url>,
    /// Key and its secret; else the usual chain of the environment, profiles, SSO and metadata.
    pub access_key: Option<(String, String)>,
    /// Subnets to start machines in; else those of the default network.
    pub subnets: Vec<String>,
    /// Who may reach agents where the caller is asked for.
    pub caller_address: CallerAddress,
    /// Region of the store's bucket; else the task's.
    pub store_region: Option<String>,
    /// Address of S3 as machines see it, when it is not the usual one.
    pub store_endpoint: Option<Url>,
    /// Address of Auto Scaling as machines see it, when it is not the usual one.
    pub scaling_endpoint: Option<Url>,
}

impl AwsSettings {
    /// Of the process environment: the variables of AWS's own tools, and `TPI_AWS_SUBNETS`, separated by commas.
    #[must_use]
    pub fn of_environment() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let url = |name: &str| set(name).and_then(|v| v.parse().ok());
        let subnets = set("TPI_AWS_SUBNETS").unwrap_or_default();
        Self {
            // The SDK reads the rest by itself, per service.
            endpoint: None,
            access_key: None,
            subnets: subnets.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect(),
            caller_address: CallerAddress::Ask,
            store_region: set("AWS_REGION").or_else(|| set("AWS_DEFAULT_REGION")),
            store_endpoint: url("AWS_ENDPOINT_URL_S3").or_else(|| url("AWS_ENDPOINT_URL")),
            scaling_endpoint: url("AWS_ENDPOINT_URL_AUTO_SCALING").or_else(|| url("AWS_ENDPOINT_URL")),
        }
    }
}

/// An account of AWS.
#[derive(Debug, Clone)]
pub struct Aws {
    account: Account,
    home: Home,
}

impl Aws {
    /// The account that the environment's credentials belong to; nothing is asked yet.
    #[must_use]
    pub fn new(home: &Home) -> Self {
        Self::with(home, AwsSettings::of_environment())
    }

    /// The same, reached in another way.
    #[must_use]
    pub fn with(home: &Home, settings: AwsSettings) -> Self {
        Self { account: Account::new(settings), home: home.clone() }
    }

    /// Regions that a task may be in: the one noted here, or all where tasks usually are.
    async fn regions(&self, task: Option<&TaskId>) -> BTreeSet<String> {
        let known = self.home.known().unwrap_or_else(|error| {
            tracing::warn!(%error, "looking in the usual regions: what is noted here cannot be read");
            Vec::new()
        });
        let native = |name: &str| place::region(name).ok();
        if let Some(region) = known
            .iter()
            .find(|k| Some(&k.id) == task && k.cloud == names::CLOUD)
            .and_then(|k| native(&k.region))
        {
            return BTreeSet::from([region]);
        }
        let usual = REGIONS.iter().map(|r| r.aws.to_owned());
        let noted = known.iter().filter(|k| k.cloud == names::CLOUD).filter_map(|k| native(&k.region));
        usual.chain(noted).chain([self.account.own_region().await]).collect()
    }

    async fn clients(&self, task: Option<&TaskId>) -> Vec<Clients> {
        let mut clients = Vec::new();
        for region in self.regions(task).await {
            clients.push(self.account.in_region(&region).await);
        }
        clients
    }
}

/// One task is in one region; the others have nothing to add.
fn merged(all: Vec<Observed>) -> Observed {
    all.into_iter().fold(Observed::absent(), |mut whole, part| {
        if whole.group == Observed::absent().group {
            whole.group = part.group;
        }
        whole.machines.extend(part.machines);
        whole.shortages.extend(part.shortages);
        whole.machines.sort_by_key(|m| m.launched);
        whole
    })
}

#[async_trait]
impl Cloud for Aws {
    fn name(&self) -> CloudName {
        names::CLOUD
    }

    async fn plan(&self, want: &GroupSpec) -> Result<CloudPlan, CloudError> {
        let region = place::region(&want.spec.region)
            .map_err(|e| error::refused(format!("choosing the region of {}", want.task), e))?;
        let clients = self.account.in_region(&region).await;
        plan::plan(&clients, &self.account.settings, want).await
    }

    async fn ensure(&self, want: &GroupSpec) -> Result<Observed, CloudError> {
        let region = place::region(&want.spec.region)
            .map_err(|e| error::refused(format!("choosing the region of {}", want.task), e))?;
        let clients = self.account.in_region(&region).await;
        ensure::ensure(&clients, &self.account.settings, want).await?;
        Ok(clients.sight(&want.task).await?.observed())
    }

    async fn observe(&self, task: &TaskId) -> Result<Observed, CloudError> {
        let clients = self.clients(Some(task)).await;
        let seen = clients.iter().map(async |c| {
            let sight = c.sight(task).await?;
            Ok::<_, CloudError>(c.priced(&sight).await)
        });
        Ok(merged(futures::future::try_join_all(seen).await?))
    }

    async fn destroy(&self, task: &TaskId) -> Result<Observed, CloudError> {
        let clients = self.clients(Some(task)).await;
        let gone = clients.iter().map(async |c| {
            let sight = destroy::destroy(c, task).await?;
            Ok::<_, CloudError>(c.priced(&sight).await)
        });
        Ok(merged(futures::future::try_join_all(gone).await?))
    }

    async fn list(&self) -> Result<Vec<TaskId>, CloudError> {
        let clients = self.clients(None).await;
        let mut tasks: BTreeSet<TaskId> = match clients.first() {
            Some(any) => any.tasks_with_roles().await?,
            None => BTreeSet::new(),
        };
        for found in futures::future::try_join_all(clients.iter().map(Clients::tasks)).await? {
            tasks.extend(found);
        }
        Ok(tasks.into_iter().collect())
    }
}

#[cfg(test)]
mod fixture {
    use std::num::NonZeroU16;

    use tpi_proto::spec::{Ingress, Spot, StorageSpec, TaskSpec};

    use super::*;

    /// A group that could be made.
    pub(super) fn want() -> GroupSpec {
        let spec = TaskSpec {
            name: "test".to_owned(),
            cloud: CloudName::Aws,
            region: "us-west".to_owned(),
            machine: "m".to_owned(),
            image: "ubuntu".to_owned(),
            disk_size: None,
            spot: Spot::OnDemand,
            parallelism: NonZeroU16::MIN,
            permission_set: None,
            tags: std::collections::BTreeMap::new(),
            environment: Vec::new(),
            timeout_seconds: 3600,
            grace_seconds: 30,
            script: "#!/bin/sh\n".to_owned(),
            container: None,
            ingress: Ingress::Caller,
            storage: StorageSpec::default(),
            subnets: Vec::new(),
            provision_timeout_seconds: None,
        };
        GroupSpec {
            task: TaskId::deterministic("test").expect("a name"),
            spec,
            store: Url::parse("s3://bucket/path").expect("a URL"),
            deadline: "2030-01-02T03:04:05Z".parse().expect("a time"),
            agent_sha256: "0".repeat(64),
        }
    }
}
