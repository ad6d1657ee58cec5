//! Everything in an account that carries the mark of a task, each thing alone: what `sweep` judges.
//!
//! A schedule cannot carry a tag; it is ours when its name is ours and its group is, or is gone. What a role allows
//! goes with the role. Neither roles nor profiles show their tags in a list, so each is asked for.

use std::collections::BTreeSet;

use aws_sdk_autoscaling::types::{AutoScalingGroup, Filter as GroupFilter, ScheduledUpdateGroupAction};
use aws_sdk_ec2::{
    primitives::DateTime,
    types::{Filter, Instance, Tag, VolumeState},
};
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use tpi_proto::id::TaskId;

use super::{
    client::Clients,
    error::{failed, is_absent},
    names::{DEADLINE_TAG, IAM_PATH, SCHEDULE, STORE_TAG, TASK_TAG},
    observe::{group_tag, is_over, tag, time},
};
use crate::{
    cloud::{CloudError, Leftover, Leftovers, ResourceKind},
    price,
};

/// Roles and profiles that are asked for at once.
const LOOKS: usize = 8;

/// What tags say; `None` when they name no task.
fn marked<'a>(
    kind: ResourceKind,
    id: Option<&str>,
    region: Option<&str>,
    created: Option<&DateTime>,
    tag: impl Fn(&str) -> Option<&'a str>,
) -> Option<Leftover> {
    let deadline = tag(DEADLINE_TAG).and_then(|text| text.parse().ok());
    Some(Leftover {
        kind,
        id: id?.to_owned(),
        region: region.map(str::to_owned),
        task: tag(TASK_TAG)?.parse().ok()?,
        created: created.and_then(time),
        deadline: deadline.and_then(|seconds| Timestamp::from_second(seconds).ok()),
        store: tag(STORE_TAG).and_then(|text| text.parse().ok()),
        usd_per_hour: None,
    })
}

fn of<'a>(tags: &'a [Tag]) -> impl Fn(&str) -> Option<&'a str> {
    move |key| tag(tags, key)
}

impl Clients {
    /// Everything in this region; of one task, or of all.
    pub(super) async fn things(&self, task: Option<&TaskId>) -> Result<Vec<Leftover>, CloudError> {
        let operation = || format!("looking for what carries the tag {TASK_TAG} in {}", self.region);
        let filter = || match task {
            Some(task) => Filter::builder().name(format!("tag:{TASK_TAG}")).values(task.as_str()).build(),
            None => Filter::builder().name("tag-key").values(TASK_TAG).build(),
        };
        let ec2 = &self.ec2;
        let instances = ec2.describe_instances().filters(filter()).into_paginator().items().send();
        let volumes = ec2.describe_volumes().filters(filter()).into_paginator().items().send();
        let templates = ec2.describe_launch_templates().filters(filter()).into_paginator().items().send();
        let firewalls = ec2.describe_security_groups().filters(filter()).into_paginator().items().send();
        let by_tag = match task {
            Some(task) => {
                GroupFilter::builder().name(format!("tag:{TASK_TAG}")).values(task.as_str()).build()
            }
            None => GroupFilter::builder().name("tag-key").values(TASK_TAG).build(),
        };
        let groups =
            self.scaling.describe_auto_scaling_groups().filters(by_tag).into_paginator().items().send();
        let schedules = self
            .scaling
            .describe_scheduled_actions()
            .set_auto_scaling_group_name(task.map(ToString::to_string))
            .into_paginator()
            .items()
            .send();
        let (of_ec2, groups, schedules) = futures::future::join3(
            futures::future::join4(
                instances.try_collect(),
                volumes.try_collect(),
                templates.try_collect(),
                firewalls.try_collect(),
            ),
            groups.try_collect(),
            schedules.try_collect(),
        )
        .await;
        let (reservations, volumes, templates, firewalls) = of_ec2;
        let reservations = reservations.map_err(failed(operation(), Leftovers::Unknown))?;
        let volumes = volumes.map_err(failed(operation(), Leftovers::Unknown))?;
        let templates = templates.map_err(failed(operation(), Leftovers::Unknown))?;
        let firewalls = firewalls.map_err(failed(operation(), Leftovers::Unknown))?;
        let groups = groups.map_err(failed(operation(), Leftovers::Unknown))?;
        let schedules: Vec<ScheduledUpdateGroupAction> =
            schedules.map_err(failed(operation(), Leftovers::Unknown))?;

        let here = Some(self.region.as_str());
        let instances: Vec<Instance> =
            reservations.into_iter().flat_map(|r| r.instances.unwrap_or_default()).collect();
        let mut found: Vec<Leftover> = Vec::new();
        found.extend(groups.iter().filter_map(|group| {
            let name = group.auto_scaling_group_name();
            let created = group.created_time();
            let mut thing =
                marked(ResourceKind::ScalingGroup, name, here, created, |key| group_tag(group, key))?;
            // One that may have no machine costs nothing and starts nothing.
            thing.usd_per_hour = (group.max_size == Some(0)).then_some(0.0);
            Some(thing)
        }));
        found.extend(instances.iter().filter(|i| !is_over(i)).filter_map(|i| {
            let mut thing =
                marked(ResourceKind::Machine, i.instance_id(), here, i.launch_time(), of(i.tags()))?;
            // What a spot machine costs changes with the market, which is not asked here.
            let kind = i.instance_type().filter(|_| i.instance_lifecycle().is_none());
            thing.usd_per_hour = kind.and_then(|kind| price::aws::on_demand(&self.region, kind.as_str()));
            Some(thing)
        }));
        let there =
            volumes.iter().filter(|v| !matches!(v.state, Some(VolumeState::Deleted | VolumeState::Deleting)));
        found.extend(there.filter_map(|v| {
            marked(ResourceKind::Volume, v.volume_id(), here, v.create_time(), of(v.tags()))
        }));
        found.extend(templates.iter().filter_map(|t| {
            let name = t.launch_template_name();
            marked(ResourceKind::LaunchTemplate, name, here, t.create_time(), of(t.tags()))
        }));
        found.extend(
            firewalls
                .iter()
                .filter_map(|g| marked(ResourceKind::SecurityGroup, g.group_id(), here, None, of(g.tags()))),
        );
        found.extend(self.schedules(schedules, &groups).await?);
        Ok(found)
    }

    /// Those of groups of ours, and of groups that are gone.
    async fn schedules(
        &self,
        all: Vec<ScheduledUpdateGroupAction>,
        ours: &[AutoScalingGroup],
    ) -> Result<Vec<Leftover>, CloudError> {
        let ours: BTreeSet<&str> = ours.iter().filter_map(|g| g.auto_scaling_group_name()).collect();
        let mut found = Vec::new();
        for schedule in all.iter().filter(|s| s.scheduled_action_name() == Some(SCHEDULE)) {
            let group = schedule.auto_scaling_group_name().unwrap_or_default();
            let Ok(task) = group.parse::<TaskId>() else { continue };
            if !ours.contains(group) && self.group(&task).await?.is_some() {
                continue;
            }
            found.push(Leftover {
                kind: ResourceKind::Schedule,
                id: format!("{group}/{SCHEDULE}"),
                region: Some(self.region.clone()),
                deadline: schedule.start_time().and_then(time),
                task,
                created: None,
                store: None,
                usd_per_hour: None,
            });
        }
        Ok(found)
    }

    /// Roles, what they allow, and profiles: of one task, or of all. They are of no region.
    pub(super) async fn identities(&self, task: Option<&TaskId>) -> Result<Vec<Leftover>, CloudError> {
        let operation = || format!("looking for roles and profiles below {IAM_PATH}");
        let (roles, profiles) = match task {
            Some(task) => (vec![task.to_string()], vec![task.to_string()]),
            None => {
                let roles = self.iam.list_roles().path_prefix(IAM_PATH).into_paginator().items().send();
                let profiles =
                    self.iam.list_instance_profiles().path_prefix(IAM_PATH).into_paginator().items().send();
                let (roles, profiles) =
                    futures::future::join(roles.try_collect(), profiles.try_collect()).await;
                let roles = roles.map_err(failed(operation(), Leftovers::Unknown))?;
                let profiles = profiles.map_err(failed(operation(), Leftovers::Unknown))?;
                // The emulator, unlike AWS, does not honour the prefix for profiles.
                let profiles = profiles.into_iter().filter(|p| p.path == IAM_PATH);
                (
                    roles.into_iter().filter(|r| r.path == IAM_PATH).map(|r| r.role_name).collect(),
                    profiles.map(|p| p.instance_profile_name).collect(),
                )
            }
        };
        let roles = futures::stream::iter(roles).map(|name| self.role_things(name)).buffer_unordered(LOOKS);
        let profiles =
            futures::stream::iter(profiles).map(|name| self.profile_things(name)).buffer_unordered(LOOKS);
        let (roles, profiles): (Vec<Vec<Leftover>>, Vec<Vec<Leftover>>) =
            futures::future::try_join(roles.try_collect(), profiles.try_collect()).await?;
        Ok(roles.into_iter().chain(profiles).flatten().collect())
    }

    async fn role_things(&self, name: String) -> Result<Vec<Leftover>, CloudError> {
        let operation = || format!("looking at the role {name}");
        let (role, policies) = futures::future::join(
            self.iam.get_role().role_name(&name).send(),
            self.iam.list_role_policies().role_name(&name).send(),
        )
        .await;
        let role = match role {
            Ok(answer) => answer.role,
            Err(error) if is_absent(&error) => None,
            Err(error) => return Err(failed(operation(), Leftovers::Unknown)(error)),
        };
        let policies = match policies {
            Ok(answer) => answer.policy_names,
            Err(error) if is_absent(&error) => Vec::new(),
            Err(error) => return Err(failed(operation(), Leftovers::Unknown)(error)),
        };
        let Some(role) = role else { return Ok(Vec::new()) };
        let tag = |key: &str| role.tags().iter().find(|t| t.key() == key).map(|t| t.value());
        let of_role = marked(ResourceKind::Role, Some(&name), None, Some(role.create_date()), tag);
        let Some(of_role) = of_role else { return Ok(Vec::new()) };
        let policy = |policy: &String| Leftover {
            kind: ResourceKind::Policy,
            id: format!("{name}/{policy}"),
            ..of_role.clone()
        };
        Ok(policies.iter().map(policy).chain([of_role.clone()]).collect())
    }

    async fn profile_things(&self, name: String) -> Result<Vec<Leftover>, CloudError> {
        let there = self.iam.get_instance_profile().instance_profile_name(&name).send().await;
        let profile = match there {
            Ok(answer) => answer.instance_profile,
            Err(error) if is_absent(&error) => None,
            Err(error) => {
                let operation = format!("looking at the instance profile {name}");
                return Err(failed(operation, Leftovers::Unknown)(error));
            }
        };
        let found = profile.and_then(|profile| {
            let tag = |key: &str| profile.tags().iter().find(|t| t.key() == key).map(|t| t.value());
            marked(ResourceKind::InstanceProfile, Some(&name), None, Some(profile.create_date()), tag)
        });
        Ok(found.into_iter().collect())
    }

    pub(super) async fn delete_schedule(&self, task: &TaskId) -> Result<(), CloudError> {
        let deleted = self
            .scaling
            .delete_scheduled_action()
            .auto_scaling_group_name(task.as_str())
            .scheduled_action_name(SCHEDULE)
            .send()
            .await;
        match deleted {
            Ok(_) => Ok(()),
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => {
                Err(failed(format!("deleting the schedule of {task}"), Leftovers::Remaining)(error))
            }
        }
    }

    /// Regions that the account may use.
    pub(super) async fn enabled_regions(&self) -> Result<BTreeSet<String>, CloudError> {
        let answer = self
            .ec2
            .describe_regions()
            .send()
            .await
            .map_err(failed("asking which regions the account has", Leftovers::None))?;
        Ok(answer.regions.unwrap_or_default().into_iter().filter_map(|r| r.region_name).collect())
    }
}
