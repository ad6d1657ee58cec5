//! Making a group, in at most eight rounds of requests; those of one round run at once.
//!
//! ```text
//! 1 look up     account, types, zones, subnets, image; is the group there already?
//! 2 make        security group │ role │ instance profile
//! 3 fill        its rule       │ policy, role into profile │ launch template
//! 4 group       of size zero: nothing runs yet
//! 5 arm         the schedule that ends it at the deadline │ no machine is moved between zones
//! 6 start       now it may have machines
//! 7 look
//! ```
//!
//! A group that may have no machine at all before its deadline was made and not started: one that was cut off
//! between 4 and 6 is finished by the same requests again.

use std::{collections::BTreeMap, time::Duration};

use aws_sdk_autoscaling::types::{
    AutoScalingGroup, InstancesDistribution, LaunchTemplate, LaunchTemplateOverrides,
    LaunchTemplateSpecification, MixedInstancesPolicy, Tag as GroupTag,
};
use aws_sdk_ec2::{
    error::ProvideErrorMetadata as _,
    primitives::DateTime,
    types::{
        Filter, InstanceType, IpPermission, IpRange, Ipv6Range, LaunchTemplateBlockDeviceMappingRequest,
        LaunchTemplateEbsBlockDeviceRequest, LaunchTemplateHttpTokensState,
        LaunchTemplateIamInstanceProfileSpecificationRequest, LaunchTemplateInstanceMetadataEndpointState,
        LaunchTemplateInstanceMetadataOptionsRequest, LaunchTemplateTagSpecificationRequest,
        RequestLaunchTemplateData, ResourceType, ShutdownBehavior, Tag, TagSpecification, VolumeType,
    },
};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use tpi_proto::{id::TaskId, spec::Spot};

use super::{
    AwsSettings,
    boot::{self, AGENT_PORT, StorePlace},
    client::Clients,
    error::{code, failed, refused},
    identity::Profile,
    lookup::{Found, max_price},
    names::{self, CONTENT_TAG, SCHEDULE, TASK_TAG},
    observe::{is_of, tag},
    place,
    policy::Bucket,
};
use crate::cloud::{CloudError, CloudErrorKind, GroupSpec, Leftovers};

/// How long what IAM has made may be unknown to the other services.
const IAM_PATIENCE: Duration = Duration::from_secs(90);
const IAM_PAUSE: Duration = Duration::from_secs(2);

/// The parts of a request that need no cloud to be checked.
pub(super) struct Checked {
    pub(super) types: Vec<String>,
    bucket: Bucket,
    store: StorePlace,
    tags: BTreeMap<String, String>,
    pub(super) profile: Option<Profile>,
    max_price: Option<String>,
    /// As the launch template takes it.
    pub(super) user_data: String,
}

/// What a launch template is made from.
#[derive(Debug)]
struct Template<'a> {
    image: &'a str,
    root_device: &'a str,
    disk_gb: Option<i32>,
    kind: &'a str,
    security_group: &'a str,
    profile: &'a Profile,
    hop_limit: i32,
    user_data: &'a str,
    tags: &'a BTreeMap<String, String>,
}

pub(super) fn check(settings: &AwsSettings, region: &str, want: &GroupSpec) -> Result<Checked, CloudError> {
    let task = &want.task;
    if Timestamp::now() >= want.deadline {
        return Err(refused(format!("creating the group of {task}"), "the task's deadline is over"));
    }
    let types = place::machine(&want.spec.machine)
        .map_err(|error| refused(format!("choosing machines for {task}"), error))?;
    let bucket = Bucket::of(&want.store).ok_or_else(|| {
        let cause =
            format!("machines on AWS cannot reach the store {}: it has to be s3://BUCKET/PATH", want.store);
        refused(format!("creating the group of {task}"), cause)
    })?;
    let store = StorePlace {
        region: settings.store_region.clone().unwrap_or_else(|| region.to_owned()),
        endpoint: settings.store_endpoint.clone(),
        scaling_endpoint: settings.scaling_endpoint.clone(),
    };
    let user_data = boot::user_data(want, region, &bucket, &store)
        .map_err(|error| refused(format!("writing what machines of {task} are told at boot"), error))?;
    Ok(Checked {
        types,
        bucket,
        store,
        tags: names::tags(task, &want.spec, want.deadline, &want.store)?,
        profile: want.spec.permission_set.as_deref().map(Profile::parse).transpose()?,
        max_price: match want.spec.spot {
            Spot::OnDemand | Spot::MarketPrice => None,
            Spot::MaxPrice { usd_per_hour } => Some(max_price(usd_per_hour)?),
        },
        user_data,
    })
}

/// Makes the group exist and start; a group that has started keeps its size.
pub(super) async fn ensure(
    clients: &Clients,
    settings: &AwsSettings,
    want: &GroupSpec,
) -> Result<(), CloudError> {
    let task = &want.task;
    let checked = check(settings, &clients.region, want);
    // A group that has ended is left alone whatever is said about a new one.
    let (group, found) = match &checked {
        Ok(checked) => {
            let looked = clients.look_up(settings, want, &checked.types);
            let (group, found) = futures::future::join(clients.group(task), looked).await;
            (group?, Some(found))
        }
        Err(_) => (clients.group(task).await?, None),
    };
    if let Some(group) = group {
        if !is_of(&group, task) {
            return Err(somebody_elses("scaling group", task));
        }
        if group.status.is_none() && (is_started(&group) || found.is_none()) {
            return if Timestamp::now() < want.deadline { clients.arm(want).await } else { Ok(()) };
        }
    }
    let checked = checked?;
    let Some(found) = found.transpose()? else { return Ok(()) };
    make(clients, want, &checked, &found).await
}

async fn make(
    clients: &Clients,
    want: &GroupSpec,
    checked: &Checked,
    found: &Found,
) -> Result<(), CloudError> {
    let task = &want.task;
    tracing::debug!(%task, ?found, store = ?checked.store, "making a group");
    let role = async {
        match &checked.profile {
            Some(_) => Ok(()),
            None => clients.make_role_and_profile(want).await,
        }
    };
    let security_group = clients.make_security_group(task, &found.network.vpc, &checked.tags);
    // None is dropped while it is under way, or what it makes could not be told when another one fails.
    let (security_group, role) = futures::future::join(security_group, role).await;
    role?;
    let security_group = security_group?;

    let own = Profile::Name(task.to_string());
    let template = Template {
        image: &found.image.id,
        root_device: &found.image.root_device,
        disk_gb: disk_gb(want, found),
        kind: found.types.first().map_or("", String::as_str),
        security_group: &security_group,
        profile: checked.profile.as_ref().unwrap_or(&own),
        // Containers are one hop further away; only the user's own identity is meant for them.
        hop_limit: if checked.profile.is_some() { 2 } else { 1 },
        user_data: &checked.user_data,
        tags: &checked.tags,
    };
    let fill = async {
        match &checked.profile {
            Some(_) => Ok(()),
            None => clients.fill_role_and_profile(task, &found.caller, &checked.bucket).await,
        }
    };
    let (made, opened, filled) = futures::future::join3(
        clients.make_template(task, &template),
        clients.open_port(task, &security_group, &found.from),
        fill,
    )
    .await;
    let made = made?;
    opened?;
    filled?;
    // Who finds the template made already is not alone, or was cut off: the group may be there by now.
    let group = if made == Made::New { None } else { clients.group(task).await? };
    match group {
        Some(group) if !is_of(&group, task) => return Err(somebody_elses("scaling group", task)),
        Some(group) if group.status.is_none() && is_started(&group) => {}
        Some(group) if group.status.is_none() => {}
        Some(_) | None => clients.make_group(want, checked, found).await?,
    }
    clients.arm(want).await?;
    clients.start(want).await
}

/// Size of a machine's disk: what was asked for, else the image's own.
pub(super) fn disk_gb(want: &GroupSpec, found: &Found) -> Option<i32> {
    want.spec.disk_size.and_then(|gb| i32::try_from(gb).ok()).or(found.image.root_gb)
}

/// What was found on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    New,
    Before,
}

/// Only a group that was armed is allowed machines, and only the schedule takes that back.
fn is_started(group: &AutoScalingGroup) -> bool {
    group.max_size.unwrap_or_default() > 0
}

fn somebody_elses(what: &str, task: &TaskId) -> CloudError {
    refused(
        format!("making the {what} {task}"),
        format!("there is one of that name that lacks the tag {TASK_TAG}={task}, so it is somebody else's"),
    )
}

fn ec2_tags(tags: &BTreeMap<String, String>) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect()
}

fn whole_seconds(time: Timestamp) -> DateTime {
    // The next whole second: the cloud may be late, the agent was told the deadline itself.
    let up = i64::from(time.subsec_nanosecond() > 0);
    DateTime::from_secs(time.as_second() + up)
}

impl Clients {
    async fn make_security_group(
        &self,
        task: &TaskId,
        vpc: &str,
        tags: &BTreeMap<String, String>,
    ) -> Result<String, CloudError> {
        let operation = || format!("making the security group {task} in {}", self.region);
        let made = self
            .ec2
            .create_security_group()
            .group_name(task.as_str())
            .description(format!("machines of {task}"))
            .vpc_id(vpc)
            .tag_specifications(
                TagSpecification::builder()
                    .resource_type(ResourceType::SecurityGroup)
                    .set_tags(Some(ec2_tags(tags)))
                    .build(),
            )
            .send()
            .await;
        match made {
            Ok(made) => Ok(made.group_id.unwrap_or_default()),
            Err(error) if code(&error) == "InvalidGroup.Duplicate" => {
                let filter = |name: &str, value: &str| Filter::builder().name(name).values(value).build();
                let there = self
                    .ec2
                    .describe_security_groups()
                    .filters(filter("group-name", task.as_str()))
                    .filters(filter("vpc-id", vpc))
                    .send()
                    .await
                    .map_err(failed(operation(), Leftovers::Unknown))?;
                let group = there.security_groups().first();
                match group.filter(|g| tag(g.tags(), TASK_TAG) == Some(task.as_str())) {
                    Some(ours) => Ok(ours.group_id.clone().unwrap_or_default()),
                    None => Err(somebody_elses("security group", task)),
                }
            }
            Err(error) => Err(failed(operation(), Leftovers::Unknown)(error)),
        }
    }

    /// Lets the agent's port be reached from these networks; from nowhere when there are none.
    async fn open_port(&self, task: &TaskId, group: &str, from: &[String]) -> Result<(), CloudError> {
        if from.is_empty() {
            return Ok(());
        }
        let (six, four): (Vec<&String>, Vec<&String>) = from.iter().partition(|cidr| cidr.contains(':'));
        let about = "who may try to reach agents";
        let four = four.iter().map(|cidr| IpRange::builder().cidr_ip(*cidr).description(about).build());
        let six = six.iter().map(|cidr| Ipv6Range::builder().cidr_ipv6(*cidr).description(about).build());
        let some = |list: Vec<_>| (!list.is_empty()).then_some(list);
        let six: Vec<_> = six.collect();
        let rule = IpPermission::builder()
            .ip_protocol("tcp")
            .from_port(i32::from(AGENT_PORT))
            .to_port(i32::from(AGENT_PORT))
            .set_ip_ranges(some(four.collect()))
            .set_ipv6_ranges((!six.is_empty()).then_some(six))
            .build();
        let opened =
            self.ec2.authorize_security_group_ingress().group_id(group).ip_permissions(rule).send().await;
        match opened {
            Ok(_) => Ok(()),
            Err(error) if code(&error) == "InvalidPermission.Duplicate" => Ok(()),
            Err(error) => {
                let operation = format!("opening port {AGENT_PORT} of {task} for {}", from.join(", "));
                Err(failed(operation, Leftovers::Remaining)(error))
            }
        }
    }

    async fn make_template(&self, task: &TaskId, template: &Template<'_>) -> Result<Made, CloudError> {
        let operation = || format!("making the launch template {task} in {}", self.region);
        let content = hex::encode(Sha256::digest(format!("{template:?}")));
        let mut tags = template.tags.clone();
        let _none = tags.insert(CONTENT_TAG.to_owned(), content.clone());
        // An old one, left by a destroy that was cut off, is replaced once.
        for again in [true, false] {
            let made = self
                .ec2
                .create_launch_template()
                .launch_template_name(task.as_str())
                .launch_template_data(template.data())
                .tag_specifications(
                    TagSpecification::builder()
                        .resource_type(ResourceType::LaunchTemplate)
                        .set_tags(Some(ec2_tags(&tags)))
                        .build(),
                )
                .send()
                .await;
            let error = match made {
                Ok(_) => return Ok(if again { Made::New } else { Made::Before }),
                Err(error) if code(&error).starts_with("InvalidLaunchTemplateName.AlreadyExists") => error,
                Err(error) => return Err(failed(operation(), Leftovers::Remaining)(error)),
            };
            let filter = Filter::builder().name("launch-template-name").values(task.as_str()).build();
            let there = self
                .ec2
                .describe_launch_templates()
                .filters(filter)
                .send()
                .await
                .map_err(failed(operation(), Leftovers::Remaining))?;
            // Gone meanwhile: somebody destroys, or replaces as we do.
            let Some(there) = there.launch_templates().first() else { continue };
            if tag(there.tags(), TASK_TAG) != Some(task.as_str()) {
                return Err(somebody_elses("launch template", task));
            }
            if tag(there.tags(), CONTENT_TAG) == Some(content.as_str()) {
                return Ok(Made::Before);
            }
            if !again {
                return Err(failed(operation(), Leftovers::Remaining)(error));
            }
            self.delete_template(task).await?;
        }
        Err(CloudError {
            kind: CloudErrorKind::Unavailable,
            operation: operation(),
            leftovers: Leftovers::Remaining,
            source: Some("another program makes and removes it at the same time".into()),
        })
    }

    async fn make_group(&self, want: &GroupSpec, checked: &Checked, found: &Found) -> Result<(), CloudError> {
        let task = &want.task;
        let operation = || format!("making the scaling group {task} in {}", self.region);
        let tags: Vec<GroupTag> = checked
            .tags
            .iter()
            .map(|(key, value)| GroupTag::builder().key(key).value(value).propagate_at_launch(true).build())
            .collect();
        let begun = tokio::time::Instant::now();
        loop {
            let made = self
                .scaling
                .create_auto_scaling_group()
                .auto_scaling_group_name(task.as_str())
                .min_size(0)
                .max_size(0)
                .desired_capacity(0)
                .vpc_zone_identifier(found.network.subnets.join(","))
                .mixed_instances_policy(mixed(want, &found.types, checked.max_price.as_deref()))
                .set_tags(Some(tags.clone()))
                .send()
                .await;
            let error = match made {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if code(&error).starts_with("AlreadyExists") {
                let there = self.group(task).await?;
                let ours = there.is_none_or(|group| is_of(&group, task));
                return if ours { Ok(()) } else { Err(somebody_elses("scaling group", task)) };
            }
            // What IAM has made is known elsewhere some seconds later.
            let message = error.message().unwrap_or_default().to_lowercase();
            let unknown = message.contains("iaminstanceprofile") || message.contains("instance profile");
            if !unknown || begun.elapsed() > IAM_PATIENCE {
                return Err(failed(operation(), Leftovers::Remaining)(error));
            }
            tokio::time::sleep(IAM_PAUSE).await;
        }
    }

    /// The schedule that ends the group at the deadline, whatever else has failed.
    async fn arm(&self, want: &GroupSpec) -> Result<(), CloudError> {
        let task = &want.task;
        let schedule = self
            .scaling
            .put_scheduled_update_group_action()
            .auto_scaling_group_name(task.as_str())
            .scheduled_action_name(SCHEDULE)
            .start_time(whole_seconds(want.deadline))
            .min_size(0)
            .max_size(0)
            .desired_capacity(0)
            .send();
        // Moving machines between zones to balance them would end healthy ones.
        let still = self
            .scaling
            .suspend_processes()
            .auto_scaling_group_name(task.as_str())
            .scaling_processes("AZRebalance")
            .send();
        let (schedule, still) = futures::future::join(schedule, still).await;
        let _answer = schedule
            .map_err(failed(format!("scheduling the end of the group {task}"), Leftovers::Remaining))?;
        let _answer = still
            .map_err(failed(format!("keeping machines of {task} where they are"), Leftovers::Remaining))?;
        Ok(())
    }

    async fn start(&self, want: &GroupSpec) -> Result<(), CloudError> {
        let task = &want.task;
        let size = i32::from(want.spec.parallelism.get());
        let started = self
            .scaling
            .update_auto_scaling_group()
            .auto_scaling_group_name(task.as_str())
            .max_size(size)
            .desired_capacity(size)
            .send()
            .await;
        let operation = format!("starting the scaling group {task}");
        let _answer = started.map_err(failed(operation, Leftovers::Remaining))?;
        Ok(())
    }
}

impl Template<'_> {
    fn data(&self) -> RequestLaunchTemplateData {
        let root = LaunchTemplateEbsBlockDeviceRequest::builder()
            .volume_type(VolumeType::Gp3)
            .encrypted(true)
            .delete_on_termination(true)
            .set_volume_size(self.disk_gb)
            .build();
        let profile = LaunchTemplateIamInstanceProfileSpecificationRequest::builder();
        let profile = match self.profile {
            Profile::Name(name) => profile.name(name),
            Profile::Arn(arn) => profile.arn(arn),
        };
        let tagged = |kind: ResourceType| {
            LaunchTemplateTagSpecificationRequest::builder()
                .resource_type(kind)
                .set_tags(Some(ec2_tags(self.tags)))
                .build()
        };
        RequestLaunchTemplateData::builder()
            .image_id(self.image)
            .instance_type(InstanceType::from(self.kind))
            .user_data(self.user_data)
            .security_group_ids(self.security_group)
            .iam_instance_profile(profile.build())
            .instance_initiated_shutdown_behavior(ShutdownBehavior::Terminate)
            .metadata_options(
                LaunchTemplateInstanceMetadataOptionsRequest::builder()
                    .http_endpoint(LaunchTemplateInstanceMetadataEndpointState::Enabled)
                    .http_tokens(LaunchTemplateHttpTokensState::Required)
                    .http_put_response_hop_limit(self.hop_limit)
                    .build(),
            )
            .block_device_mappings(
                LaunchTemplateBlockDeviceMappingRequest::builder()
                    .device_name(self.root_device)
                    .ebs(root)
                    .build(),
            )
            .tag_specifications(tagged(ResourceType::Instance))
            .tag_specifications(tagged(ResourceType::Volume))
            .build()
    }
}

fn mixed(want: &GroupSpec, types: &[String], max_price: Option<&str>) -> MixedInstancesPolicy {
    let on_demand_percentage = match want.spec.spot {
        Spot::OnDemand => 100,
        Spot::MarketPrice | Spot::MaxPrice { .. } => 0,
    };
    let overrides = types.iter().map(|kind| LaunchTemplateOverrides::builder().instance_type(kind).build());
    MixedInstancesPolicy::builder()
        .launch_template(
            LaunchTemplate::builder()
                .launch_template_specification(
                    LaunchTemplateSpecification::builder()
                        .launch_template_name(want.task.as_str())
                        .version("$Latest")
                        .build(),
                )
                .set_overrides(Some(overrides.collect()))
                .build(),
        )
        .instances_distribution(
            InstancesDistribution::builder()
                .on_demand_base_capacity(0)
                .on_demand_percentage_above_base_capacity(on_demand_percentage)
                // In the order given: the documented type first.
                .on_demand_allocation_strategy("prioritized")
                .spot_allocation_strategy("price-capacity-optimized")
                .set_spot_max_price(max_price.map(str::to_owned))
                .build(),
        )
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::aws::fixture;

    fn bought(spot: Spot, max_price: Option<&str>) -> InstancesDistribution {
        let mut want = fixture::want();
        want.spec.spot = spot;
        let types = ["m5.2xlarge".to_owned(), "m6i.2xlarge".to_owned()];
        let policy = mixed(&want, &types, max_price);
        let template = policy.launch_template.expect("a template");
        let overrides: Vec<_> = template.overrides().iter().filter_map(|o| o.instance_type()).collect();
        assert_eq!(overrides, ["m5.2xlarge", "m6i.2xlarge"]);
        let named = template.launch_template_specification.and_then(|s| s.launch_template_name);
        assert_eq!(named.as_deref(), Some(want.task.as_str()));
        policy.instances_distribution.expect("how machines are bought")
    }

    #[test]
    fn spot_machines_are_all_spot_from_the_pools_that_last() {
        let market = bought(Spot::MarketPrice, None);
        assert_eq!(
            (market.on_demand_base_capacity, market.on_demand_percentage_above_base_capacity),
            (Some(0), Some(0))
        );
        assert_eq!(market.spot_allocation_strategy.as_deref(), Some("price-capacity-optimized"));
        assert_eq!(market.spot_max_price, None);
        let limited = bought(Spot::MaxPrice { usd_per_hour: 0.25 }, Some("0.25000"));
        assert_eq!(limited.spot_max_price.as_deref(), Some("0.25000"));
    }

    #[test]
    fn machines_on_demand_are_none_of_them_spot() {
        let bought = bought(Spot::OnDemand, None);
        assert_eq!(bought.on_demand_percentage_above_base_capacity, Some(100));
        assert_eq!(bought.on_demand_allocation_strategy.as_deref(), Some("prioritized"));
    }

    #[test]
    fn the_schedule_is_never_before_the_deadline() {
        let at = |text: &str| whole_seconds(text.parse().expect("a time")).secs();
        assert_eq!(at("2030-01-01T00:00:00.5Z"), at("2030-01-01T00:00:01Z"));
    }
}
