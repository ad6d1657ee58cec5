//! Auto Scaling: groups, their members, schedules and activities. All of it is done here; the emulator only has the
//! instances.
//!
//! ```text
//!           Create                  Delete (force)              no member left
//! (absent) --------> Active ----------------------> Deleting ------------------> (absent)
//!                     │  ▲ sizes change: call, schedule, release
//!                     └──┘ members follow: launched, ended, replaced
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::Result;
use jiff::Timestamp;
use serde_json::json;

use super::{
    ACCOUNT,
    form::Form,
    instances::{EndedBy, at, tags},
    model::{EndReason, InstanceState, ShortageReason},
    refusal::Refusal,
    shared::{Shared, State},
};

/// Region and name.
pub(super) type GroupName = (String, String);

#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) arn: String,
    /// As asked for.
    pub(super) form: Form,
    pub(super) min: i64,
    pub(super) max: i64,
    pub(super) desired: i64,
    /// Key, value, whether instances get it.
    pub(super) tags: BTreeMap<String, (String, bool)>,
    pub(super) suspended: BTreeSet<String>,
    pub(super) members: Vec<Member>,
    pub(super) schedules: BTreeMap<String, Schedule>,
    pub(super) created: Timestamp,
    pub(super) deleting: bool,
    /// Why its size was last changed.
    pub(super) cause: String,
    /// Members that are to be replaced, for the words of activities.
    pub(super) unhealthy: u64,
    pub(super) retry: Option<Instant>,
    pub(super) failures: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) id: String,
    pub(super) kind: String,
    pub(super) zone: String,
}

/// What happens to a group at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Schedule {
    pub(super) start: Timestamp,
    pub(super) min: Option<i64>,
    pub(super) max: Option<i64>,
    pub(super) desired: Option<i64>,
}

/// What a group did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Activity {
    pub(super) id: String,
    pub(super) group: GroupName,
    pub(super) description: String,
    pub(super) cause: String,
    pub(super) failure: Option<String>,
    pub(super) details: String,
    pub(super) began: Timestamp,
    pub(super) ended: Timestamp,
}

/// Instances that do not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shortage {
    pub(super) id: u64,
    pub(super) kind: Option<String>,
    pub(super) zone: Option<String>,
    pub(super) reason: ShortageReason,
}

/// Pauses of a group whose launches fail.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(8);

impl Group {
    /// Names of the subnets.
    fn subnets(&self) -> Vec<String> {
        let text = self.form.text("VPCZoneIdentifier");
        text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect()
    }
}

/// The group's overrides, else the type of its template.
fn kinds(group: &Form, launch: &Form) -> Vec<String> {
    let overrides = group.below("MixedInstancesPolicy.LaunchTemplate").list("Overrides");
    let kinds: Vec<String> =
        overrides.iter().filter_map(|o| o.get("InstanceType").map(str::to_owned)).collect();
    if kinds.is_empty() { vec![launch.text("InstanceType").to_owned()] } else { kinds }
}

impl Shared {
    pub(super) fn group_arn(&self, region: &str, name: &str) -> (String, BTreeMap<String, String>) {
        match self.lock().groups.get(&(region.to_owned(), name.to_owned())) {
            Some(group) => {
                let tags = group.tags.iter().map(|(key, (value, _))| (key.clone(), value.clone()));
                (group.arn.clone(), tags.collect())
            }
            None => (arn(region, name, "*"), BTreeMap::new()),
        }
    }

    /// Name of the group that an instance is in.
    pub(super) fn group_of(&self, instance: &str) -> Option<String> {
        let state = self.lock();
        let found = state.groups.iter().find(|(_, group)| group.members.iter().any(|m| m.id == instance));
        found.map(|((_, name), _)| name.clone())
    }

    /// What instances of a group are made from: its template, tags and the way they are bought.
    pub(super) fn group_form(&self, region: &str, form: &Form) -> Form {
        let mixed = form.below("MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification");
        let named = if mixed.0.is_empty() { form.below("LaunchTemplate") } else { mixed };
        let named =
            Form(named.0.into_iter().map(|(key, value)| (format!("LaunchTemplate.{key}"), value)).collect());
        let mut launch = self.launch_form(region, &named);
        let distribution = form.below("MixedInstancesPolicy.InstancesDistribution");
        if distribution.get("OnDemandPercentageAboveBaseCapacity") == Some("0") {
            launch.set("InstanceMarketOptions.MarketType", "spot");
            if let Some(price) = distribution.get("SpotMaxPrice").filter(|p| !p.is_empty()) {
                launch.set("InstanceMarketOptions.SpotOptions.MaxPrice", price);
            }
        }
        launch
    }

    /// Brings every group to where it should be, once.
    pub(super) async fn run_groups(&self) -> Result<()> {
        let _engine = self.engine.lock().await;
        self.finish_ends();
        self.run_schedules();
        let names: Vec<GroupName> = self.lock().groups.keys().cloned().collect();
        for name in names {
            self.run_group(&name).await?;
        }
        Ok(())
    }

    fn run_schedules(&self) {
        let now = self.clock.now();
        for group in self.lock().groups.values_mut().filter(|group| !group.deleting) {
            let due: Vec<(String, Schedule)> = group
                .schedules
                .iter()
                .filter(|(_, s)| s.start <= now)
                .map(|(n, s)| (n.clone(), s.clone()))
                .collect();
            for (name, schedule) in due {
                // It happens once.
                let _schedule = group.schedules.remove(&name);
                let before = group.desired;
                group.min = schedule.min.unwrap_or(group.min);
                group.max = schedule.max.unwrap_or(group.max);
                group.desired =
                    schedule.desired.unwrap_or(group.desired).clamp(group.min, group.max.max(group.min));
                group.cause = format!(
                    "At {} a scheduled action update of AutoScalingGroup constraints to min: {}, max: {}, desired: {} \
                     changing the desired capacity from {before} to {}.",
                    at(now),
                    group.min,
                    group.max,
                    group.desired,
                    group.desired
                );
            }
        }
    }

    async fn run_group(&self, name: &GroupName) -> Result<()> {
        loop {
            let Some(group) = self.lock().groups.get(name).cloned() else { return Ok(()) };
            let size = i64::try_from(group.members.len())?;
            let wanted = if group.deleting { 0 } else { group.desired };
            if size > wanted {
                let Some(oldest) = group.members.first() else { return Ok(()) };
                if group.suspended.contains("Terminate") && !group.deleting {
                    return Ok(());
                }
                let now = at(self.clock.now());
                let id = &oldest.id;
                let cause = format!(
                    "{}  At {now} an instance was taken out of service in response to a difference between desired \
                     and actual capacity, shrinking the capacity from {size} to {}.  At {now} instance {id} was \
                     selected for termination.",
                    group.cause,
                    size - 1
                );
                self.take_out(name, id, &cause);
                let _was = self.end(id, EndedBy::User).await?;
                continue;
            }
            if group.deleting {
                if self.lock().instances.iter().any(|known| {
                    known.instance.group.as_deref() == Some(name.1.as_str())
                        && known.instance.region == name.0
                        && known.instance.state == InstanceState::ShuttingDown
                }) {
                    return Ok(());
                }
                drop(self.lock().groups.remove(name));
                return Ok(());
            }
            let paused = group.retry.is_some_and(|retry| Instant::now() < retry);
            if size == wanted || paused || group.suspended.contains("Launch") {
                return Ok(());
            }
            if !self.start_member(name, &group, size).await? {
                return Ok(());
            }
        }
    }

    /// One more member; whether it could be had.
    async fn start_member(&self, name: &GroupName, group: &Group, size: i64) -> Result<bool> {
        let (region, group_name) = name;
        let launch = self.group_form(region, &group.form);
        let now = self.clock.now();
        let cause = if group.unhealthy > 0 {
            format!(
                "At {} an instance was launched in response to an unhealthy instance needing to be replaced.",
                at(now)
            )
        } else {
            format!(
                "{}  At {} an instance was started in response to a difference between desired and actual capacity, \
                 increasing the capacity from {size} to {}.",
                group.cause,
                at(now),
                size + 1
            )
        };
        let mut places = Vec::new();
        for subnet in group.subnets() {
            if let Some(zone) = self.zone_of_subnet(region, &subnet).await? {
                let here = group.members.iter().filter(|m| m.zone == zone).count();
                places.push((here, zone, subnet));
            }
        }
        places.sort();
        let mut failures = Vec::new();
        for kind in kinds(&group.form, &launch) {
            for (_, zone, subnet) in &places {
                let details = json!({ "Subnet ID": subnet, "Availability Zone": zone }).to_string();
                if let Some(message) = self.shortage_of(&launch, &kind, zone) {
                    failures.push((message, details));
                    continue;
                }
                let form = member_form(&launch, group_name, group, &kind, subnet);
                let started = self.launch(region, &form, Some(group_name)).await?;
                let ids = match started {
                    Ok((_, ids)) => ids,
                    Err(refusal) => {
                        failures
                            .push((format!("{} Launching EC2 instance failed.", refusal.message), details));
                        continue;
                    }
                };
                let mut state = self.lock();
                for id in ids {
                    let description = format!("Launching a new EC2 instance: {id}");
                    state.record(
                        name,
                        description,
                        cause.clone(),
                        None,
                        details.clone(),
                        (now, self.clock.now()),
                    );
                    if let Some(group) = state.groups.get_mut(name) {
                        group.members.push(Member { id, kind: kind.clone(), zone: zone.clone() });
                        group.unhealthy = group.unhealthy.saturating_sub(1);
                        group.failures = 0;
                        group.retry = None;
                    }
                }
                return Ok(true);
            }
        }
        let mut state = self.lock();
        for (message, details) in failures {
            let description = format!("Launching a new EC2 instance.  Status Reason: {message}");
            state.record(name, description, cause.clone(), Some(message), details, (now, self.clock.now()));
        }
        if let Some(group) = state.groups.get_mut(name) {
            let pause = RETRY.saturating_mul(2_u32.saturating_pow(group.failures)).min(RETRY_MAX);
            group.failures = group.failures.saturating_add(1);
            group.retry = Some(Instant::now() + pause);
        }
        Ok(false)
    }

    /// Why an instance cannot be had, as activities tell it.
    fn shortage_of(&self, launch: &Form, kind: &str, zone: &str) -> Option<String> {
        let spot = launch.get("InstanceMarketOptions.MarketType") == Some("spot");
        let offered: Option<f64> =
            launch.get("InstanceMarketOptions.SpotOptions.MaxPrice").and_then(|price| price.parse().ok());
        let price = self.spot_price(kind, zone);
        let state = self.lock();
        let planted = state.shortages.iter().find(|shortage| {
            let of_market = match shortage.reason {
                ShortageReason::InsufficientInstanceCapacity | ShortageReason::UnfulfillableCapacity => true,
                ShortageReason::MaxSpotInstanceCountExceeded | ShortageReason::SpotMaxPriceTooLow => spot,
                ShortageReason::VcpuLimitExceeded => !spot,
            };
            of_market
                && shortage.kind.as_deref().is_none_or(|k| k == kind)
                && shortage.zone.as_deref().is_none_or(|z| z == zone)
        });
        let reason = match planted {
            Some(shortage) => shortage.reason,
            None if spot && offered.is_some_and(|offered| offered < price) => {
                ShortageReason::SpotMaxPriceTooLow
            }
            None => return None,
        };
        let market = if spot { "Spot" } else { "On-Demand" };
        let words = match reason {
            ShortageReason::InsufficientInstanceCapacity if spot => {
                "InsufficientInstanceCapacity - There is no Spot capacity available that matches your request."
                    .to_owned()
            }
            ShortageReason::InsufficientInstanceCapacity => format!(
                "InsufficientInstanceCapacity - We currently do not have sufficient {kind} capacity in the \
                 Availability Zone you requested ({zone}). Our system will be working on provisioning additional \
                 capacity."
            ),
            ShortageReason::UnfulfillableCapacity => {
                "UnfulfillableCapacity - Unable to fulfill capacity due to your request configuration. Please adjust \
                 your request and try again."
                    .to_owned()
            }
            ShortageReason::MaxSpotInstanceCountExceeded => {
                "MaxSpotInstanceCountExceeded - Max spot instance count exceeded.".to_owned()
            }
            ShortageReason::VcpuLimitExceeded => {
                "VcpuLimitExceeded - You have requested more vCPU capacity than your current vCPU limit of 0 allows \
                 for the instance bucket that the specified instance type belongs to. Please visit \
                 http://aws.amazon.com/contact-us/ec2-request to request an adjustment to this limit."
                    .to_owned()
            }
            ShortageReason::SpotMaxPriceTooLow => format!(
                "SpotMaxPriceTooLow - Your Spot request price of {} is lower than the minimum required Spot request \
                 fulfillment price of {price}.",
                offered.unwrap_or_default()
            ),
        };
        Some(format!("Could not launch {market} Instances. {words} Launching EC2 instance failed."))
    }

    /// An instance is no member any more, which is an activity. Its end is the caller's.
    pub(super) fn take_out(&self, name: &GroupName, id: &str, cause: &str) {
        let now = self.clock.now();
        let mut state = self.lock();
        let details = match state.groups.get_mut(name) {
            Some(group) => {
                let zone =
                    group.members.iter().find(|m| m.id == id).map(|m| m.zone.clone()).unwrap_or_default();
                group.members.retain(|member| member.id != id);
                json!({ "Availability Zone": zone }).to_string()
            }
            None => String::new(),
        };
        let description = format!("Terminating EC2 instance: {id}");
        state.record(name, description, cause.to_owned(), None, details, (now, now));
    }

    /// An instance ended by itself: its group, if it has one, finds out and replaces it.
    pub(super) fn member_lost(&self, id: &str, reason: Option<EndReason>) {
        let found = {
            let state = self.lock();
            let mut groups = state.groups.iter();
            groups.find(|(_, group)| group.members.iter().any(|m| m.id == id)).map(|(name, _)| name.clone())
        };
        let Some(name) = found else { return };
        let why = match reason {
            Some(EndReason::Died) => "an EC2 instance status checks failure.",
            Some(EndReason::PoweredOff | EndReason::SpotReclaimed) | None => {
                "an EC2 health check indicating it has been terminated or stopped."
            }
        };
        let now = at(self.clock.now());
        self.take_out(
            &name,
            id,
            &format!("At {now} an instance was taken out of service in response to {why}"),
        );
        if let Some(group) = self.lock().groups.get_mut(&name) {
            group.unhealthy += 1;
        }
        self.wake.notify_one();
    }

    /// `TerminateInstanceInAutoScalingGroup`.
    pub(super) async fn release(
        &self,
        region: &str,
        id: &str,
        decrement: bool,
    ) -> Result<Result<Activity, Refusal>> {
        let _engine = self.engine.lock().await;
        let refused = |words: String| Ok(Err(Refusal::new(400, "ValidationError", words)));
        let Some(name) = self.group_of(id) else {
            return refused(format!(
                "Instance Id not found - No managed instance found for instance ID {id}"
            ));
        };
        let name = (region.to_owned(), name);
        let now = at(self.clock.now());
        let mut cause =
            format!("At {now} instance {id} was taken out of service in response to a user request");
        {
            let mut state = self.lock();
            let Some(group) = state.groups.get_mut(&name) else {
                return refused(format!(
                    "Instance Id not found - No managed instance found for instance ID {id}"
                ));
            };
            if decrement {
                if group.desired <= group.min {
                    return refused(format!(
                        "Currently, desiredSize equals minSize ({}). Terminating instance without replacement will \
                         violate group's min size constraint. Either set shouldDecrementDesiredCapacity flag to \
                         false or lower group's min size.",
                        group.min
                    ));
                }
                group.desired -= 1;
                let size = group.desired;
                cause = format!("{cause}, shrinking the capacity from {} to {size}.", size + 1);
            } else {
                group.unhealthy += 1;
                cause.push('.');
            }
        }
        self.take_out(&name, id, &cause);
        let _was = self.end(id, EndedBy::User).await?;
        self.wake.notify_one();
        let state = self.lock();
        let last = state.activities.iter().rev().find(|a| a.group == name).cloned();
        Ok(last.ok_or_else(|| Refusal::new(500, "InternalFailure", "no activity")))
    }
}

impl State {
    fn record(
        &mut self,
        group: &GroupName,
        description: String,
        cause: String,
        failure: Option<String>,
        details: String,
        (began, ended): (Timestamp, Timestamp),
    ) {
        self.activities.push(Activity {
            id: super::refusal::request_id(),
            group: group.clone(),
            description,
            cause,
            failure,
            details,
            began,
            ended,
        });
    }
}

/// Parameters of `RunInstances` for one member.
fn member_form(launch: &Form, name: &str, group: &Group, kind: &str, subnet: &str) -> Form {
    let mut form = launch.clone();
    form.set("InstanceType", kind);
    form.set("SubnetId", subnet);
    form.set("MinCount", "1");
    form.set("MaxCount", "1");
    let volume = tags(launch, "volume");
    let mut instance = tags(launch, "instance");
    let propagated = group.tags.iter().filter(|(_, (_, propagate))| *propagate);
    instance.extend(propagated.map(|(key, (value, _))| (key.clone(), value.clone())));
    let _none = instance.insert("aws:autoscaling:groupName".to_owned(), name.to_owned());
    form.0.retain(|key, _| !key.starts_with("TagSpecification."));
    for (at, (kind, tags)) in [("instance", instance), ("volume", volume)].into_iter().enumerate() {
        if tags.is_empty() {
            continue;
        }
        let prefix = format!("TagSpecification.{}", at + 1);
        form.set(&format!("{prefix}.ResourceType"), kind);
        for (at, (key, value)) in tags.into_iter().enumerate() {
            form.set(&format!("{prefix}.Tag.{}.Key", at + 1), key);
            form.set(&format!("{prefix}.Tag.{}.Value", at + 1), value);
        }
    }
    form
}

pub(super) fn arn(region: &str, name: &str, id: &str) -> String {
    format!("arn:aws:autoscaling:{region}:{ACCOUNT}:autoScalingGroup:{id}:autoScalingGroupName/{name}")
}
