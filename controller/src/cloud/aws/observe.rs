//! What is there of a task: group, machines, and everything else that carries its tag.

use std::collections::BTreeSet;

use aws_sdk_autoscaling::types::{AutoScalingGroup, Filter as GroupFilter, ScalingActivityStatusCode};
use aws_sdk_ec2::{
    primitives::DateTime,
    types::{Filter, Instance, InstanceStateName, Tag},
};
use jiff::{Timestamp, fmt::strtime::BrokenDownTime, tz::TimeZone};
use tpi_proto::id::{MachineId, TaskId};

use super::{
    activity::{self, Activity},
    client::Clients,
    error::{failed, is_absent},
    names::{DEADLINE_TAG, END_DESTROYED, END_TAG, IAM_PATH, TASK_TAG},
};
use crate::cloud::{CloudError, GroupState, Leftovers, Machine, MachineEnd, Observed};

/// Clocks of two services of the cloud may differ by this much.
const CLOCK_TOLERANCE_SECONDS: i64 = 2;

/// A group and its machines, as AWS tells.
#[derive(Debug, Default)]
pub(super) struct Sight {
    pub(super) group: Option<AutoScalingGroup>,
    pub(super) instances: Vec<Instance>,
    pub(super) activities: Vec<Activity>,
}

impl Clients {
    /// The group of that name, whoever made it.
    pub(super) async fn group(&self, task: &TaskId) -> Result<Option<AutoScalingGroup>, CloudError> {
        let answer = self
            .scaling
            .describe_auto_scaling_groups()
            .auto_scaling_group_names(task.as_str())
            .send()
            .await
            .map_err(failed(format!("looking for the group {task} in {}", self.region), Leftovers::None))?;
        Ok(answer.auto_scaling_groups.unwrap_or_default().into_iter().next())
    }

    pub(super) async fn instances(&self, task: &TaskId) -> Result<Vec<Instance>, CloudError> {
        let by_tag = Filter::builder().name(format!("tag:{TASK_TAG}")).values(task.as_str()).build();
        let reservations = self
            .ec2
            .describe_instances()
            .filters(by_tag)
            .into_paginator()
            .items()
            .send()
            .try_collect()
            .await
            .map_err(failed(format!("looking for machines of {task} in {}", self.region), Leftovers::None))?;
        Ok(reservations.into_iter().flat_map(|r| r.instances.unwrap_or_default()).collect())
    }

    /// What the group did, the newest first; nothing when there never was one.
    async fn activities(&self, task: &TaskId) -> Result<Vec<Activity>, CloudError> {
        let answer = self
            .scaling
            .describe_scaling_activities()
            .auto_scaling_group_name(task.as_str())
            .include_deleted_groups(true)
            .send()
            .await;
        let activities = match answer {
            Ok(answer) => answer.activities.unwrap_or_default(),
            Err(error) if is_absent(&error) => return Ok(Vec::new()),
            Err(error) => {
                let operation = format!("reading what the group {task} did in {}", self.region);
                return Err(failed(operation, Leftovers::None)(error));
            }
        };
        Ok(activities.into_iter().map(of_sdk).collect())
    }

    pub(super) async fn sight(&self, task: &TaskId) -> Result<Sight, CloudError> {
        let (group, instances, activities) =
            futures::future::try_join3(self.group(task), self.instances(task), self.activities(task)).await?;
        Ok(Sight { group: group.filter(|g| is_of(g, task)), instances, activities })
    }

    /// Tasks that anything exists for in this region; roles are not of a region.
    pub(super) async fn tasks(&self) -> Result<BTreeSet<TaskId>, CloudError> {
        let operation = || format!("listing what carries the tag {TASK_TAG} in {}", self.region);
        let by_key = || Filter::builder().name("tag-key").values(TASK_TAG).build();
        let templates =
            self.ec2.describe_launch_templates().filters(by_key()).into_paginator().items().send();
        let security_groups =
            self.ec2.describe_security_groups().filters(by_key()).into_paginator().items().send();
        // Ended machines stay visible for an hour; they are no reason to look for a task.
        let alive = Filter::builder()
            .name("instance-state-name")
            .set_values(Some(
                ["pending", "running", "shutting-down", "stopping", "stopped"].map(str::to_owned).to_vec(),
            ))
            .build();
        let instances =
            self.ec2.describe_instances().filters(by_key()).filters(alive).into_paginator().items().send();
        let by_key = GroupFilter::builder().name("tag-key").values(TASK_TAG).build();
        let groups =
            self.scaling.describe_auto_scaling_groups().filters(by_key).into_paginator().items().send();
        let (templates, security_groups, reservations, groups) = futures::future::join4(
            templates.try_collect(),
            security_groups.try_collect(),
            instances.try_collect(),
            groups.try_collect(),
        )
        .await;
        let templates = templates.map_err(failed(operation(), Leftovers::None))?;
        let security_groups = security_groups.map_err(failed(operation(), Leftovers::None))?;
        let reservations = reservations.map_err(failed(operation(), Leftovers::None))?;
        let groups = groups.map_err(failed(operation(), Leftovers::None))?;
        let instances: Vec<Instance> =
            reservations.into_iter().flat_map(|r| r.instances.unwrap_or_default()).collect();
        let of_ec2 = templates
            .iter()
            .map(|t| t.tags())
            .chain(security_groups.iter().map(|g| g.tags()))
            .chain(instances.iter().map(Instance::tags))
            .filter_map(|tags| tag(tags, TASK_TAG));
        let of_groups = groups.iter().filter_map(|g| group_tag(g, TASK_TAG));
        Ok(of_ec2.chain(of_groups).filter_map(|value| value.parse().ok()).collect())
    }

    /// Tasks that a role or a profile exists for.
    pub(super) async fn tasks_with_roles(&self) -> Result<BTreeSet<TaskId>, CloudError> {
        let operation = || format!("listing roles and profiles below {IAM_PATH}");
        let roles = self.iam.list_roles().path_prefix(IAM_PATH).into_paginator().items().send();
        let profiles =
            self.iam.list_instance_profiles().path_prefix(IAM_PATH).into_paginator().items().send();
        let (roles, profiles) = futures::future::join(roles.try_collect(), profiles.try_collect()).await;
        let roles = roles.map_err(failed(operation(), Leftovers::None))?;
        let profiles = profiles.map_err(failed(operation(), Leftovers::None))?;
        // The emulator, unlike AWS, does not honour the prefix for profiles.
        let roles = roles.into_iter().filter(|r| r.path == IAM_PATH).map(|r| r.role_name);
        let profiles = profiles.into_iter().filter(|p| p.path == IAM_PATH).map(|p| p.instance_profile_name);
        Ok(roles.chain(profiles).filter_map(|name| name.parse().ok()).collect())
    }
}

impl Sight {
    pub(super) fn observed(&self) -> Observed {
        let mut machines: Vec<Machine> =
            self.instances.iter().filter_map(|i| machine(i, &self.activities)).collect();
        machines.sort_by(|a, b| a.launched.cmp(&b.launched).then_with(|| a.id.cmp(&b.id)));
        if let Some(group) = &self.group {
            by_size(&mut machines, group);
        }
        let alive = machines.iter().any(|m| m.ended.is_none());
        let group = match &self.group {
            None => GroupState::Absent,
            Some(group) => {
                match u32::try_from(group.desired_capacity.unwrap_or_default()).unwrap_or_default() {
                    // It exists, wants none and has none: it ended by itself, or was never started.
                    0 if !alive => GroupState::Ended,
                    size => GroupState::Active { size },
                }
            }
        };
        Observed { group, machines, shortages: activity::shortages(&self.activities) }
    }

    pub(super) fn alive(&self) -> impl Iterator<Item = &Instance> {
        self.instances.iter().filter(|i| !is_over(i))
    }
}

pub(super) fn is_over(instance: &Instance) -> bool {
    instance.state().and_then(|s| s.name()) == Some(&InstanceStateName::Terminated)
}

pub(super) fn is_of(group: &AutoScalingGroup, task: &TaskId) -> bool {
    group_tag(group, TASK_TAG) == Some(task.as_str())
}

pub(super) fn group_tag<'a>(group: &'a AutoScalingGroup, key: &str) -> Option<&'a str> {
    group.tags().iter().find(|t| t.key() == Some(key)).and_then(|t| t.value())
}

pub(super) fn tag<'a>(tags: &'a [Tag], key: &str) -> Option<&'a str> {
    tags.iter().find(|t| t.key() == Some(key)).and_then(|t| t.value())
}

pub(super) fn time(time: &DateTime) -> Option<Timestamp> {
    Timestamp::new(time.secs(), i32::try_from(time.subsec_nanos()).ok()?).ok()
}

fn of_sdk(activity: aws_sdk_autoscaling::types::Activity) -> Activity {
    let failed = activity.status_code == Some(ScalingActivityStatusCode::Failed)
        || activity.status_code == Some(ScalingActivityStatusCode::Cancelled);
    Activity {
        description: activity.description.unwrap_or_default(),
        cause: activity.cause.unwrap_or_default(),
        failed,
        message: activity.status_message.unwrap_or_default(),
        details: activity.details.unwrap_or_default(),
        began: activity.start_time.as_ref().and_then(time).unwrap_or_default(),
        ended: activity.end_time.as_ref().and_then(time),
    }
}

fn machine(instance: &Instance, activities: &[Activity]) -> Option<Machine> {
    let id = instance.instance_id()?;
    let launched = instance.launch_time().and_then(time).unwrap_or_default();
    let told = is_over(instance).then(|| activity::end_of(activities, id)).flatten();
    let end = is_over(instance).then(|| {
        let told_at = told.and_then(|(_, at)| at);
        let at = transition_time(instance.state_transition_reason().unwrap_or_default())
            .or(told_at)
            .unwrap_or_else(Timestamp::now);
        // It is told in whole seconds.
        let at = at.max(launched);
        (at, why(instance, told.map(|(end, _)| end), at))
    });
    Some(Machine {
        id: MachineId(id.to_owned()),
        launched,
        ended: end.map(|e| e.0),
        end: end.and_then(|e| e.1),
        usd_per_hour: None,
    })
}

/// A machine that gives itself back makes its group smaller, and keeps the most that it may have; so as many as are
/// missing were released. Where that does not tell which ones, they keep silent.
fn by_size(machines: &mut [Machine], group: &AutoScalingGroup) {
    let size = |n: Option<i32>| usize::try_from(n.unwrap_or_default()).unwrap_or_default();
    let (most, wanted) = (size(group.max_size), size(group.desired_capacity));
    // The schedule takes the most away as well.
    if most == 0 {
        return;
    }
    let known = machines.iter().filter(|m| m.end == Some(MachineEnd::Released)).count();
    let released = most.saturating_sub(wanted).saturating_sub(known);
    let silent = machines.iter().filter(|m| m.ended.is_some() && m.end.is_none()).count();
    let end = match released {
        0 => MachineEnd::Lost,
        all if all == silent => MachineEnd::Released,
        _ => return,
    };
    for machine in machines.iter_mut().filter(|m| m.ended.is_some() && m.end.is_none()) {
        machine.end = Some(end);
    }
}

/// Tags know best, then the group's own words, then the time; `None` where nothing tells.
fn why(instance: &Instance, told: Option<MachineEnd>, at: Timestamp) -> Option<MachineEnd> {
    if tag(instance.tags(), END_TAG) == Some(END_DESTROYED) {
        return Some(MachineEnd::Destroyed);
    }
    let interrupted = instance
        .state_reason()
        .and_then(|r| r.code())
        .is_some_and(|code| code.starts_with("Server.Spot") || code.starts_with("Server.Insufficient"));
    if interrupted {
        return Some(MachineEnd::Lost);
    }
    if told.is_some() {
        return told;
    }
    let deadline = tag(instance.tags(), DEADLINE_TAG).and_then(|text| text.parse::<i64>().ok());
    if deadline.is_some_and(|deadline| at.as_second() + CLOCK_TOLERANCE_SECONDS >= deadline) {
        return Some(MachineEnd::Deadline);
    }
    None
}

/// The time in `User initiated (2026-01-01 00:00:00 GMT)`.
fn transition_time(reason: &str) -> Option<Timestamp> {
    let (_, rest) = reason.split_once('(')?;
    let (text, _) = rest.split_once(')')?;
    let text = text.strip_suffix("GMT").or_else(|| text.strip_suffix("UTC"))?.trim();
    let broken = BrokenDownTime::parse("%Y-%m-%d %H:%M:%S", text).ok()?;
    TimeZone::UTC.to_timestamp(broken.to_datetime().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_machines_went_is_told_by_the_size_of_the_group_or_not_at_all() {
        let machine = |end| Machine {
            id: MachineId("i-1".to_owned()),
            launched: Timestamp::UNIX_EPOCH,
            ended: Some(Timestamp::UNIX_EPOCH),
            end,
            usd_per_hour: None,
        };
        let group =
            |most, wanted| AutoScalingGroup::builder().max_size(most).desired_capacity(wanted).build();
        use MachineEnd::{Lost, Released};
        for (most, wanted, silent, expected) in [
            (2, 2, vec![None], vec![Some(Lost)]),
            (2, 1, vec![None], vec![Some(Released)]),
            (2, 0, vec![None, None], vec![Some(Released); 2]),
            (2, 1, vec![None, None], vec![None; 2]),
            (2, 1, vec![Some(Released), None], vec![Some(Released), Some(Lost)]),
            (2, 1, vec![None, Some(Lost)], vec![Some(Released), Some(Lost)]),
            // After the schedule.
            (0, 0, vec![None], vec![None]),
        ] {
            let mut machines: Vec<Machine> = silent.into_iter().map(machine).collect();
            by_size(&mut machines, &group(most, wanted));
            let ends: Vec<_> = machines.iter().map(|m| m.end).collect();
            assert_eq!(ends, expected, "{most} {wanted}");
        }
    }

    #[test]
    fn the_time_of_an_end_is_read() {
        let expected: Timestamp = "2026-01-02T03:04:05Z".parse().expect("a time");
        assert_eq!(transition_time("User initiated (2026-01-02 03:04:05 GMT)"), Some(expected));
        assert_eq!(transition_time("User initiated (2026-01-02 03:04:05 UTC)"), Some(expected));
        for none in ["", "User initiated", "Server.SpotInstanceTermination", "x (yesterday)"] {
            assert_eq!(transition_time(none), None, "{none}");
        }
    }
}
