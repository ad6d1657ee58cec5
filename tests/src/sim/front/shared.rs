//! What all parts of a front share.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::Notify;

use super::{
    Options,
    clock::Clock,
    emulator::Moto,
    faults::Fault,
    form::Form,
    http::Answer,
    identity::{Keys, Principal},
    instances::Known,
    model::{Call, Refused},
    scaling::{Activity, Group, GroupName, Shortage},
    xml::Element,
};

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) moto: Moto,
    pub(super) clock: Clock,
    state: Mutex<State>,
    /// Groups are brought to their size by one at a time.
    pub(super) engine: tokio::sync::Mutex<()>,
    /// Requests that must not be carried out twice.
    pub(super) once: tokio::sync::Mutex<BTreeMap<OnceKey, (Form, Answer)>>,
    /// Something has to be done for a group.
    pub(super) wake: Notify,
}

/// Region, action and token.
pub(super) type OnceKey = (String, String, String);

#[derive(Debug)]
pub(super) struct State {
    pub(super) keys: Keys,
    pub(super) laptop_policy: Option<Value>,
    /// Of roles, as they were last read.
    pub(super) policies: BTreeMap<String, Arc<Vec<Value>>>,
    pub(super) calls: Vec<Call>,
    pub(super) refused: Vec<Refused>,
    pub(super) faults: Vec<Fault>,
    /// Calls that were held so far.
    pub(super) held: u64,
    pub(super) shortages: Vec<Shortage>,
    pub(super) prices: BTreeMap<(String, String), f64>,
    pub(super) quotas: BTreeMap<String, f64>,
    pub(super) groups: BTreeMap<GroupName, Group>,
    pub(super) activities: Vec<Activity>,
    pub(super) instances: Vec<Known>,
    pub(super) templates: BTreeMap<(String, String), Template>,
    pub(super) regions: BTreeSet<String>,
    /// Regions of buckets.
    pub(super) buckets: BTreeMap<String, String>,
    /// Buckets that belong to somebody else.
    pub(super) foreign: BTreeSet<String>,
    /// When IAM made what, by name.
    pub(super) made: BTreeMap<String, Timestamp>,
    /// Services whose own roles are there.
    pub(super) linked: BTreeSet<String>,
    /// Whether the emulator's zones and subnets were read, by region.
    pub(super) subnets: BTreeMap<String, BTreeMap<String, String>>,
}

/// A launch template, as it was asked for.
#[derive(Debug, Clone)]
pub(super) struct Template {
    pub(super) id: String,
    /// `LaunchTemplateData`, which has the names of `RunInstances`.
    pub(super) data: Form,
}

/// A role as the emulator has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Role {
    pub(super) name: String,
    pub(super) arn: String,
}

impl Shared {
    pub(super) fn new(options: Options, moto: Moto) -> Self {
        let state = State {
            keys: Keys::new(options.laptop.clone()),
            laptop_policy: options.laptop_policy.clone(),
            policies: BTreeMap::new(),
            calls: Vec::new(),
            refused: Vec::new(),
            faults: Vec::new(),
            held: 0,
            shortages: Vec::new(),
            prices: BTreeMap::new(),
            quotas: super::market::quotas(),
            groups: BTreeMap::new(),
            activities: Vec::new(),
            instances: Vec::new(),
            templates: BTreeMap::new(),
            regions: BTreeSet::new(),
            buckets: BTreeMap::new(),
            foreign: BTreeSet::new(),
            made: BTreeMap::new(),
            linked: BTreeSet::new(),
            subnets: BTreeMap::new(),
        };
        Self {
            options,
            moto,
            clock: Clock::default(),
            state: Mutex::new(state),
            engine: tokio::sync::Mutex::default(),
            once: tokio::sync::Mutex::default(),
            wake: Notify::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn template_id(&self, region: &str, name: &str) -> Option<String> {
        self.lock().templates.get(&(region.to_owned(), name.to_owned())).map(|t| t.id.clone())
    }

    pub(super) async fn role_arn(&self, name: &str) -> Result<Option<String>> {
        let answer = self.moto.ask("iam", "", "GetRole", &Form::of([("RoleName", name)])).await?;
        if !answer.status.is_success() {
            return Ok(None);
        }
        Ok(Element::parse(&answer.text())?.texts("Arn").first().map(|arn| (*arn).to_owned()))
    }

    /// Whether instances may become the role.
    pub(super) async fn trusts_machines(&self, role: &str) -> Result<bool> {
        let answer = self.moto.call("iam", "", "GetRole", [("RoleName", role)]).await?;
        let texts = answer.texts("AssumeRolePolicyDocument");
        let text = texts.first().map(|text| crate::instance::sigv4::decode(text)).unwrap_or_default();
        let trust: Value = serde_json::from_str(&text).context("reading who may become a role")?;
        let statements = trust["Statement"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(statements.iter().any(|statement| {
            statement["Effect"] == "Allow"
                && statement["Action"] == "sts:AssumeRole"
                && statement["Principal"]["Service"] == "ec2.amazonaws.com"
        }))
    }

    async fn profile(&self, name: &str) -> Result<Option<Element>> {
        let form = Form::of([("InstanceProfileName", name)]);
        let answer = self.moto.ask("iam", "", "GetInstanceProfile", &form).await?;
        if !answer.status.is_success() {
            return Ok(None);
        }
        let answer = Element::parse(&answer.text())?;
        Ok(answer.child("GetInstanceProfileResult").and_then(|r| r.child("InstanceProfile")).cloned())
    }

    pub(super) async fn profile_arn(&self, name: &str) -> Result<Option<String>> {
        Ok(self.profile(name).await?.map(|profile| profile.at(&["Arn"]).to_owned()))
    }

    /// Roles in a profile; `None` when there is no such profile.
    pub(super) async fn roles_of(&self, profile: &str) -> Result<Option<Vec<Role>>> {
        let Some(profile) = self.profile(profile).await? else { return Ok(None) };
        let roles = profile.child("Roles").map(|r| r.children.as_slice()).unwrap_or_default().iter();
        let role = |member: &Element| Role {
            name: member.at(&["RoleName"]).to_owned(),
            arn: member.at(&["Arn"]).to_owned(),
        };
        Ok(Some(roles.map(role).collect()))
    }

    /// Policies that apply to somebody; `None`: everything is allowed.
    pub(super) async fn policies_of(&self, principal: &Principal) -> Result<Option<Arc<Vec<Value>>>> {
        match principal {
            Principal::Laptop => Ok(self.lock().laptop_policy.clone().map(|policy| Arc::new(vec![policy]))),
            Principal::Role { role, .. } => {
                if let Some(known) = self.lock().policies.get(role) {
                    return Ok(Some(Arc::clone(known)));
                }
                let policies = Arc::new(self.read_policies(role).await?);
                let _none = self.lock().policies.insert(role.clone(), Arc::clone(&policies));
                Ok(Some(policies))
            }
        }
    }

    /// None of a role that is gone.
    async fn read_policies(&self, role: &str) -> Result<Vec<Value>> {
        let mut policies = Vec::new();
        let ask = async |action: &str, pairs: &[(&str, &str)]| {
            let answer = self.moto.ask("iam", "", action, &Form::of(pairs.iter().copied())).await?;
            if !answer.status.is_success() {
                return Ok::<_, anyhow::Error>(None);
            }
            Ok(Some(Element::parse(&answer.text())?))
        };
        let document = |element: &Element, name: &str| {
            let text = element.texts(name).first().map(|text| crate::instance::sigv4::decode(text));
            serde_json::from_str::<Value>(&text.unwrap_or_default()).context("reading a policy")
        };
        let Some(inline) = ask("ListRolePolicies", &[("RoleName", role)]).await? else { return Ok(policies) };
        let names = inline.having("PolicyNames");
        for name in names.iter().flat_map(|n| n.texts("member")) {
            let asked = [("RoleName", role), ("PolicyName", name)];
            if let Some(policy) = ask("GetRolePolicy", &asked).await? {
                policies.push(document(&policy, "PolicyDocument")?);
            }
        }
        let attached = ask("ListAttachedRolePolicies", &[("RoleName", role)]).await?;
        for arn in attached.iter().flat_map(|a| a.texts("PolicyArn")) {
            let Some(policy) = ask("GetPolicy", &[("PolicyArn", arn)]).await? else { continue };
            let version = policy.texts("DefaultVersionId").first().map_or("v1", |v| *v).to_owned();
            let asked = [("PolicyArn", arn), ("VersionId", version.as_str())];
            if let Some(policy) = ask("GetPolicyVersion", &asked).await? {
                policies.push(document(&policy, "Document")?);
            }
        }
        Ok(policies)
    }

    /// Identifiers of the region's default subnets by zone.
    pub(super) async fn zone_of_subnet(&self, region: &str, subnet: &str) -> Result<Option<String>> {
        if let Some(zone) = self.lock().subnets.get(region).and_then(|known| known.get(subnet)) {
            return Ok(Some(zone.clone()));
        }
        let there = self.moto.call("ec2", region, "DescribeSubnets", []).await?;
        let subnets: BTreeMap<String, String> = there
            .having("availabilityZone")
            .into_iter()
            .map(|item| (item.at(&["subnetId"]).to_owned(), item.at(&["availabilityZone"]).to_owned()))
            .collect();
        let zone = subnets.get(subnet).cloned();
        let _old = self.lock().subnets.insert(region.to_owned(), subnets);
        Ok(zone)
    }
}
