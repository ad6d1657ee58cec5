//! Removing everything of a task, whatever there is of it, until nothing is left.
//!
//! Machines are tagged as destroyed first, so that what is seen of them later tells why they went. Then the
//! group and its machines go, with role and profile at the same time; template and security group last,
//! because a launch that is under way may still name them.
//!
//! What a caller may remove is decided by its tags, and what is gone has none. A removal whose answer was lost is sent
//! again and then refused, so each refusal is followed by one more look.

use std::{collections::BTreeSet, time::Duration};

use aws_sdk_ec2::types::{Filter, Tag, VolumeState};
use tokio::time::Instant;
use tpi_proto::id::TaskId;

use super::{
    client::Clients,
    error::{code, failed, is_absent, is_denied},
    names::{END_DESTROYED, END_TAG, TASK_TAG},
    observe::Sight,
};
use crate::cloud::{CloudError, CloudErrorKind, Leftovers};

/// Longest time for machines to end: some GPU machines take minutes to shut down.
const PATIENCE: Duration = Duration::from_secs(900);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

pub(super) async fn destroy(clients: &Clients, task: &TaskId) -> Result<Sight, CloudError> {
    let begun = Instant::now();
    let machines = clients.end_machines(task, begun);
    let (sight, ()) = futures::future::try_join(machines, clients.remove_role_and_profile(task)).await?;
    let ((), (), ()) = futures::future::try_join3(
        clients.delete_template(task),
        clients.delete_security_groups(task, begun),
        clients.delete_volumes(task, begun),
    )
    .await?;
    Ok(sight)
}

fn late(begun: Instant, what: &str) -> Result<(), CloudError> {
    if begun.elapsed() < PATIENCE {
        return Ok(());
    }
    Err(CloudError {
        kind: CloudErrorKind::Unavailable,
        operation: format!("waiting for {what} to end"),
        leftovers: Leftovers::Remaining,
        source: Some(format!("it has not within {} s", PATIENCE.as_secs()).into()),
    })
}

async fn pause(pause: &mut Duration) {
    tokio::time::sleep(*pause).await;
    *pause = (*pause * 2).min(LONGEST_PAUSE);
}

impl Clients {
    /// Until neither group nor machine is left.
    async fn end_machines(&self, task: &TaskId, begun: Instant) -> Result<Sight, CloudError> {
        let mut asked: BTreeSet<String> = BTreeSet::new();
        let mut group_asked = false;
        let mut wait = FIRST_PAUSE;
        loop {
            let sight = self.sight(task).await?;
            let alive: Vec<String> = sight.alive().filter_map(|i| i.instance_id.clone()).collect();
            if sight.group.is_none() && alive.is_empty() {
                return Ok(sight);
            }
            let new: Vec<String> = alive.iter().filter(|id| !asked.contains(*id)).cloned().collect();
            if !new.is_empty() {
                self.mark(task, &new).await?;
            }
            // With its machines; one that is being deleted says so.
            let deleting = sight.group.as_ref().is_some_and(|g| g.status.is_some());
            if sight.group.is_some() && !(group_asked && deleting) {
                self.delete_group(task).await?;
                group_asked = true;
            }
            // Also those that were launched meanwhile, or that no group knows any more.
            if !new.is_empty() {
                self.terminate(task, &new).await?;
                asked.extend(new);
                // Most clouds of one machine are done at once: look again before waiting.
                continue;
            }
            late(begun, &format!("{} machines and the group of {task}", alive.len()))?;
            pause(&mut wait).await;
        }
    }

    /// Says on each machine why it goes. One that is gone already does not matter.
    async fn mark(&self, task: &TaskId, machines: &[String]) -> Result<(), CloudError> {
        let marked = self
            .ec2
            .create_tags()
            .set_resources(Some(machines.to_vec()))
            .tags(Tag::builder().key(END_TAG).value(END_DESTROYED).build())
            .send()
            .await;
        match marked {
            Ok(_) => Ok(()),
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => {
                Err(failed(format!("marking machines of {task} as destroyed"), Leftovers::Remaining)(error))
            }
        }
    }

    async fn delete_group(&self, task: &TaskId) -> Result<(), CloudError> {
        let deleted = self
            .scaling
            .delete_auto_scaling_group()
            .auto_scaling_group_name(task.as_str())
            .force_delete(true)
            .send()
            .await;
        match deleted {
            Ok(_) => Ok(()),
            Err(error) if is_absent(&error) => Ok(()),
            // It is being deleted, or does something that ends by itself: it is looked at again.
            Err(error)
                if code(&error).starts_with("ScalingActivityInProgress")
                    || code(&error).starts_with("ResourceInUse")
                    || code(&error).starts_with("ResourceContention") =>
            {
                Ok(())
            }
            Err(error) => {
                Err(failed(format!("deleting the scaling group {task}"), Leftovers::Remaining)(error))
            }
        }
    }

    async fn terminate(&self, task: &TaskId, machines: &[String]) -> Result<(), CloudError> {
        match self.ec2.terminate_instances().set_instance_ids(Some(machines.to_vec())).send().await {
            Ok(_) => Ok(()),
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(failed(format!("ending machines of {task}"), Leftovers::Remaining)(error)),
        }
    }

    /// The template of that name, if it carries the task's tag. Absent is success.
    pub(super) async fn delete_template(&self, task: &TaskId) -> Result<(), CloudError> {
        let operation = || format!("deleting the launch template {task}");
        let filter = |name: &str| Filter::builder().name(name).values(task.as_str()).build();
        for again in [true, false] {
            let there = self
                .ec2
                .describe_launch_templates()
                .filters(filter("launch-template-name"))
                .filters(filter(&format!("tag:{TASK_TAG}")))
                .send()
                .await
                .map_err(failed(operation(), Leftovers::Remaining))?;
            let mut denied = false;
            for template in there.launch_templates() {
                let id = template.launch_template_id.clone();
                match self.ec2.delete_launch_template().set_launch_template_id(id).send().await {
                    Ok(_) => {}
                    Err(error) if is_absent(&error) => {}
                    Err(error) if again && is_denied(&error) => denied = true,
                    Err(error) => return Err(failed(operation(), Leftovers::Remaining)(error)),
                }
            }
            if !denied {
                break;
            }
        }
        Ok(())
    }

    async fn delete_security_groups(&self, task: &TaskId, begun: Instant) -> Result<(), CloudError> {
        let operation = || format!("deleting the security group {task}");
        let mut wait = FIRST_PAUSE;
        let mut again = true;
        loop {
            let by_tag = Filter::builder().name(format!("tag:{TASK_TAG}")).values(task.as_str()).build();
            let there = self
                .ec2
                .describe_security_groups()
                .filters(by_tag)
                .send()
                .await
                .map_err(failed(operation(), Leftovers::Remaining))?;
            let mut used = false;
            for group in there.security_groups() {
                let id = group.group_id.clone();
                match self.ec2.delete_security_group().set_group_id(id).send().await {
                    Ok(_) => {}
                    Err(error) if is_absent(&error) => {}
                    // A machine's network interface goes a moment after the machine.
                    Err(error) if ["DependencyViolation", "InvalidGroup.InUse"].contains(&code(&error)) => {
                        used = true;
                    }
                    Err(error) if again && is_denied(&error) => (used, again) = (true, false),
                    Err(error) => return Err(failed(operation(), Leftovers::Remaining)(error)),
                }
            }
            if !used {
                return Ok(());
            }
            late(begun, &format!("the last use of the security group {task}"))?;
            pause(&mut wait).await;
        }
    }

    /// Root volumes go with their machines; this makes sure of it.
    async fn delete_volumes(&self, task: &TaskId, begun: Instant) -> Result<(), CloudError> {
        let operation = || format!("deleting volumes of {task}");
        let mut wait = FIRST_PAUSE;
        let mut again = true;
        loop {
            let by_tag = Filter::builder().name(format!("tag:{TASK_TAG}")).values(task.as_str()).build();
            let volumes = self
                .ec2
                .describe_volumes()
                .filters(by_tag)
                .into_paginator()
                .items()
                .send()
                .try_collect()
                .await
                .map_err(failed(operation(), Leftovers::Remaining))?;
            let mut left = 0;
            for volume in volumes {
                match volume.state {
                    Some(VolumeState::Deleted | VolumeState::Deleting) => continue,
                    Some(VolumeState::Available | VolumeState::Error) => {}
                    Some(_) | None => {
                        left += 1;
                        continue;
                    }
                }
                match self.ec2.delete_volume().set_volume_id(volume.volume_id).send().await {
                    Ok(_) => {}
                    Err(error) if is_absent(&error) => {}
                    Err(error) if code(&error) == "VolumeInUse" => left += 1,
                    Err(error) if again && is_denied(&error) => (left, again) = (left + 1, false),
                    Err(error) => return Err(failed(operation(), Leftovers::Remaining)(error)),
                }
            }
            if left == 0 {
                return Ok(());
            }
            late(begun, &format!("{left} volumes of {task}"))?;
            pause(&mut wait).await;
        }
    }
}
