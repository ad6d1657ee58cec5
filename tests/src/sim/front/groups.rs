//! The calls of Auto Scaling.

use anyhow::Result;
use jiff::Timestamp;

use super::{
    call::Asked,
    form::Form,
    http::Answer,
    instances::at,
    market::whole,
    refusal::{Refusal, query_answer, refuse, request_id},
    scaling::{Activity, Group, GroupName, Schedule, arn},
    shared::Shared,
    xml::Element,
};

const NAMESPACE: &str = "http://autoscaling.amazonaws.com/doc/2011-01-01/";
const PAGE: usize = 100;
const PENDING: &str = "AutoScalingGroup is pending delete";

fn not_found(name: &str) -> Refusal {
    Refusal::new(
        400,
        "ValidationError",
        format!("AutoScalingGroup name not found - AutoScalingGroup '{name}' not found"),
    )
}

fn number(form: &Form, name: &str) -> Result<Option<i64>, Refusal> {
    let Some(text) = form.get(name) else { return Ok(None) };
    match text.parse::<i64>() {
        Ok(number) if number >= 0 => Ok(Some(number)),
        _ => refuse("ValidationError", format!("{name} must be a whole number and not negative")),
    }
}

fn sizes(min: i64, max: i64, desired: i64) -> Result<(), Refusal> {
    if min > max {
        return refuse(
            "ValidationError",
            format!("Max bound, {max}, must be greater than or equal to min bound, {min}"),
        );
    }
    if desired < min || desired > max {
        return refuse(
            "ValidationError",
            format!(
                "Desired capacity:{desired} must be between the specified min size:{min} and max size:{max}"
            ),
        );
    }
    Ok(())
}

fn page<T>(form: &Form, items: Vec<T>) -> (Vec<T>, Option<Element>) {
    let from: usize = form.text("NextToken").parse().unwrap_or(0);
    let most = form.text("MaxRecords").parse().unwrap_or(PAGE).clamp(1, PAGE);
    let next = (from + most < items.len()).then(|| Element::text("NextToken", (from + most).to_string()));
    (items.into_iter().skip(from).take(most).collect(), next)
}

impl Shared {
    /// Any call of the service.
    pub(super) async fn auto_scaling(&self, asked: &Asked) -> Result<Result<Answer, Refusal>> {
        let form = &asked.form;
        let name = (asked.region.clone(), form.text("AutoScalingGroupName").to_owned());
        let done = |result: Result<Vec<Element>, Refusal>| {
            Ok(result.map(|elements| query_answer(NAMESPACE, &asked.action, elements)))
        };
        match asked.action.as_str() {
            "CreateAutoScalingGroup" => {
                let made = self.create_group(&name, form).await?;
                done(made.map(|()| Vec::new()))
            }
            "TerminateInstanceInAutoScalingGroup" => {
                let decrement = match form.text("ShouldDecrementDesiredCapacity") {
                    "true" => true,
                    "false" => false,
                    _ => {
                        return Ok(refuse(
                            "ValidationError",
                            "ShouldDecrementDesiredCapacity has to be true or false",
                        ));
                    }
                };
                let released = self.release(&asked.region, form.text("InstanceId"), decrement).await?;
                done(released.map(|activity| vec![of_activity("Activity", &activity, false)]))
            }
            "UpdateAutoScalingGroup" | "SetDesiredCapacity" => done(self.update_group(&name, form)),
            "DeleteAutoScalingGroup" => done(self.delete_group(&name, form)),
            "DescribeAutoScalingGroups" => done(Ok(self.describe_groups(asked))),
            "DescribeAutoScalingInstances" => done(Ok(self.describe_members(asked))),
            "DescribeScalingActivities" => done(self.describe_activities(asked)),
            "PutScheduledUpdateGroupAction" => done(self.schedule(&name, form)),
            "DescribeScheduledActions" => done(Ok(self.describe_schedules(asked))),
            "DeleteScheduledAction" => done(self.delete_schedule(&name, form)),
            "SuspendProcesses" | "ResumeProcesses" => done(self.suspend(&name, asked)),
            "CreateOrUpdateTags" => done(self.tag_groups(asked)),
            "DescribeTags" => done(Ok(self.describe_tags(asked))),
            other => {
                Ok(refuse("InvalidAction", format!("The action {other} is not valid for this web service.")))
            }
        }
    }

    async fn create_group(&self, name: &GroupName, form: &Form) -> Result<Result<(), Refusal>> {
        let (region, group) = name;
        if self.lock().groups.contains_key(name) {
            return Ok(refuse(
                "AlreadyExists",
                format!(
                    "AutoScalingGroup by this name already exists - A group with the name {group} already exists"
                ),
            ));
        }
        let checked = || {
            if group.is_empty() || group.len() > 255 {
                return refuse("ValidationError", "AutoScalingGroupName has to be of 1 to 255 characters");
            }
            let told = (number(form, "MinSize")?, number(form, "MaxSize")?, number(form, "DesiredCapacity")?);
            let (Some(min), Some(max), desired) = told else {
                return refuse("ValidationError", "MinSize and MaxSize have to be given");
            };
            sizes(min, max, desired.unwrap_or(min))?;
            Ok((min, max, desired.unwrap_or(min)))
        };
        let (min, max, desired) = match checked() {
            Ok(sizes) => sizes,
            Err(refusal) => return Ok(Err(refusal)),
        };
        for subnet in form.text("VPCZoneIdentifier").split(',').map(str::trim) {
            if self.zone_of_subnet(region, subnet).await?.is_none() {
                return Ok(refuse("ValidationError", format!("The subnet ID '{subnet}' does not exist")));
            }
        }
        let launch = self.group_form(region, form);
        if launch.get("ImageId").is_none() {
            return Ok(refuse(
                "ValidationError",
                "You must use a valid fully-formed launch template. The specified launch template does not exist.",
            ));
        }
        if let Some(refusal) = self.launch_refusal(&launch).await? {
            let words = format!("You must use a valid fully-formed launch template. {}", refusal.message);
            return Ok(refuse("ValidationError", words));
        }
        let tags = form.list("Tags").into_iter().map(|tag| {
            (tag.text("Key").to_owned(), (tag.text("Value").to_owned(), tag.is("PropagateAtLaunch")))
        });
        let now = self.clock.now();
        let made = Group {
            arn: arn(region, group, &request_id()),
            form: form.clone(),
            min,
            max,
            desired,
            tags: tags.collect(),
            suspended: std::collections::BTreeSet::new(),
            members: Vec::new(),
            schedules: std::collections::BTreeMap::new(),
            created: now,
            deleting: false,
            cause: format!(
                "At {} a user request created an AutoScalingGroup changing the desired capacity from 0 to {desired}.",
                at(now)
            ),
            unhealthy: 0,
            retry: None,
            failures: 0,
        };
        let mut state = self.lock();
        // Another request may have been quicker.
        if state.groups.contains_key(name) {
            return Ok(refuse("AlreadyExists", "AutoScalingGroup by this name already exists"));
        }
        let _none = state.groups.insert(name.clone(), made);
        for service in ["autoscaling", "spot"] {
            let _new = state.linked.insert(service.to_owned());
        }
        drop(state);
        self.wake.notify_one();
        Ok(Ok(()))
    }

    fn with_group<T>(
        &self,
        name: &GroupName,
        change: impl FnOnce(&mut Group) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let changed = match self.lock().groups.get_mut(name) {
            None => Err(not_found(&name.1)),
            Some(group) if group.deleting => refuse("ScalingActivityInProgress", PENDING),
            Some(group) => change(group),
        };
        self.wake.notify_one();
        changed
    }

    fn update_group(&self, name: &GroupName, form: &Form) -> Result<Vec<Element>, Refusal> {
        let now = at(self.clock.now());
        self.with_group(name, |group| {
            let told = number(form, "DesiredCapacity")?;
            let min = number(form, "MinSize")?.unwrap_or(group.min);
            let max = number(form, "MaxSize")?.unwrap_or(group.max);
            let desired = told.unwrap_or_else(|| group.desired.clamp(min, max.max(min)));
            sizes(min, max, desired)?;
            let before = group.desired;
            group.cause = format!(
                "At {now} a user request update of AutoScalingGroup constraints to min: {min}, max: {max}, desired: \
                 {desired} changing the desired capacity from {before} to {desired}."
            );
            (group.min, group.max, group.desired) = (min, max, desired);
            group.retry = None;
            group.unhealthy = 0;
            let sizes = ["MinSize", "MaxSize", "DesiredCapacity", "AutoScalingGroupName", "Action", "Version"];
            for (key, value) in form.0.iter().filter(|(key, _)| !sizes.contains(&key.as_str())) {
                group.form.set(key, value);
            }
            Ok(Vec::new())
        })
    }

    fn delete_group(&self, name: &GroupName, form: &Form) -> Result<Vec<Element>, Refusal> {
        let now = at(self.clock.now());
        self.with_group(name, |group| {
            if !form.is("ForceDelete") && !group.members.is_empty() {
                return refuse(
                    "ResourceInUse",
                    "You cannot delete an AutoScalingGroup while there are instances or pending Spot instance \
                     request(s) still in the group.",
                );
            }
            group.cause = format!(
                "At {now} a user request force deleted AutoScalingGroup changing the desired capacity from {} to 0.",
                group.desired
            );
            group.deleting = true;
            (group.min, group.max, group.desired) = (0, 0, 0);
            group.schedules.clear();
            Ok(Vec::new())
        })
    }

    fn describe_groups(&self, asked: &Asked) -> Vec<Element> {
        let names = asked.form.values("AutoScalingGroupNames");
        let filters = asked.form.list("Filters");
        let fits = |group: &Group| {
            filters.iter().all(|filter| {
                let values = filter.values("Values");
                let name = filter.text("Name");
                let any = |found: Option<&String>| found.is_some_and(|found| values.contains(found));
                match name.strip_prefix("tag:") {
                    Some(key) => any(group.tags.get(key).map(|tag| &tag.0)),
                    None if name == "tag-key" => group.tags.keys().any(|key| values.contains(key)),
                    None if name == "tag-value" => group.tags.values().any(|tag| values.contains(&tag.0)),
                    None => false,
                }
            })
        };
        let state = self.lock();
        let found: Vec<Element> = state
            .groups
            .iter()
            .filter(|((region, name), group)| {
                *region == asked.region && (names.is_empty() || names.contains(name)) && fits(group)
            })
            .map(|((_, name), group)| of_group(name, group))
            .collect();
        let (found, next) = page(&asked.form, found);
        std::iter::once(Element::new("AutoScalingGroups").with_all(found)).chain(next).collect()
    }

    fn describe_members(&self, asked: &Asked) -> Vec<Element> {
        let ids = asked.form.values("InstanceIds");
        let state = self.lock();
        let groups = state.groups.iter().filter(|((region, _), _)| *region == asked.region);
        let members = groups.flat_map(|((_, name), group)| {
            group.members.iter().map(move |member| {
                of_member("member", &member.id, &member.kind, &member.zone)
                    .with(Element::text("AutoScalingGroupName", name))
            })
        });
        let members: Vec<Element> =
            members.filter(|m| ids.is_empty() || ids.iter().any(|id| id == m.at(&["InstanceId"]))).collect();
        let (members, next) = page(&asked.form, members);
        std::iter::once(Element::new("AutoScalingInstances").with_all(members)).chain(next).collect()
    }

    fn describe_activities(&self, asked: &Asked) -> Result<Vec<Element>, Refusal> {
        let form = &asked.form;
        let name = form.get("AutoScalingGroupName");
        let state = self.lock();
        let there = |name: &str| state.groups.contains_key(&(asked.region.clone(), name.to_owned()));
        if let Some(name) = name
            && !form.is("IncludeDeletedGroups")
            && !there(name)
        {
            return Err(not_found(name));
        }
        let mut found: Vec<&Activity> = state
            .activities
            .iter()
            .filter(|a| a.group.0 == asked.region)
            .filter(|a| match name {
                Some(name) => a.group.1 == name,
                None => form.is("IncludeDeletedGroups") || there(&a.group.1),
            })
            .collect();
        // The newest first.
        found.reverse();
        let (found, next) = page(form, found);
        let found = found.into_iter().map(|a| of_activity("member", a, !there(&a.group.1)));
        Ok(std::iter::once(Element::new("Activities").with_all(found)).chain(next).collect())
    }

    fn schedule(&self, name: &GroupName, form: &Form) -> Result<Vec<Element>, Refusal> {
        if form.get("Recurrence").is_some() {
            return refuse("ValidationError", "this simulation has no recurring schedules");
        }
        let start = form.get("StartTime").or_else(|| form.get("Time")).unwrap_or_default();
        let Ok(start) = start.parse::<Timestamp>() else {
            return refuse("ValidationError", format!("Timestamp format error: {start:?}"));
        };
        let now = self.clock.now();
        if start <= now {
            return refuse("ValidationError", "Given start time is in the past");
        }
        let schedule = Schedule {
            start,
            min: number(form, "MinSize")?,
            max: number(form, "MaxSize")?,
            desired: number(form, "DesiredCapacity")?,
        };
        if (schedule.min, schedule.max, schedule.desired) == (None, None, None) {
            return refuse(
                "ValidationError",
                "At least one of MinSize, MaxSize and DesiredCapacity has to be given",
            );
        }
        let title = form.text("ScheduledActionName").to_owned();
        if title.is_empty() {
            return refuse("ValidationError", "ScheduledActionName has to be given");
        }
        self.with_group(name, |group| {
            if group.schedules.iter().any(|(other, s)| *other != title && s.start == start) {
                let words = "You cannot schedule two or more scaling activities to occur at the same time.";
                return refuse("ValidationError", words);
            }
            let _old = group.schedules.insert(title, schedule);
            Ok(Vec::new())
        })
    }

    fn describe_schedules(&self, asked: &Asked) -> Vec<Element> {
        let name = asked.form.get("AutoScalingGroupName");
        let state = self.lock();
        let groups = state.groups.iter().filter(|((region, _), _)| *region == asked.region);
        let found: Vec<Element> = groups
            .filter(|((_, of), _)| name.is_none_or(|name| of == name))
            .flat_map(|((_, of), group)| {
                group.schedules.iter().map(move |(title, schedule)| {
                    let size = |name: &str, size: Option<i64>| {
                        size.map(|size| Element::text(name, size.to_string()))
                    };
                    Element::new("member")
                        .with(Element::text("AutoScalingGroupName", of))
                        .with(Element::text("ScheduledActionName", title))
                        .with(Element::text("StartTime", whole(schedule.start)))
                        .with(Element::text("Time", whole(schedule.start)))
                        .with_all(size("MinSize", schedule.min))
                        .with_all(size("MaxSize", schedule.max))
                        .with_all(size("DesiredCapacity", schedule.desired))
                })
            })
            .collect();
        let (found, next) = page(&asked.form, found);
        std::iter::once(Element::new("ScheduledUpdateGroupActions").with_all(found)).chain(next).collect()
    }

    fn delete_schedule(&self, name: &GroupName, form: &Form) -> Result<Vec<Element>, Refusal> {
        self.with_group(name, |group| match group.schedules.remove(form.text("ScheduledActionName")) {
            Some(_) => Ok(Vec::new()),
            None => refuse("ValidationError", "Scheduled action name not found"),
        })
    }

    fn suspend(&self, name: &GroupName, asked: &Asked) -> Result<Vec<Element>, Refusal> {
        const ALL: &[&str] = &[
            "AddToLoadBalancer",
            "AlarmNotification",
            "AZRebalance",
            "HealthCheck",
            "InstanceRefresh",
            "Launch",
            "ReplaceUnhealthy",
            "ScheduledActions",
            "Terminate",
        ];
        let mut told = asked.form.values("ScalingProcesses");
        if let Some(unknown) = told.iter().find(|process| !ALL.contains(&process.as_str())) {
            return refuse("ValidationError", format!("The process type {unknown} is not valid"));
        }
        if told.is_empty() {
            told = ALL.iter().map(|process| (*process).to_owned()).collect();
        }
        self.with_group(name, |group| {
            if asked.action == "SuspendProcesses" {
                group.suspended.extend(told);
            } else {
                group.suspended.retain(|process| !told.contains(process));
            }
            Ok(Vec::new())
        })
    }

    fn tag_groups(&self, asked: &Asked) -> Result<Vec<Element>, Refusal> {
        for tag in asked.form.list("Tags") {
            let name = (asked.region.clone(), tag.text("ResourceId").to_owned());
            self.with_group(&name, |group| {
                let value = (tag.text("Value").to_owned(), tag.is("PropagateAtLaunch"));
                let _old = group.tags.insert(tag.text("Key").to_owned(), value);
                Ok(())
            })?;
        }
        Ok(Vec::new())
    }

    fn describe_tags(&self, asked: &Asked) -> Vec<Element> {
        let filters = asked.form.list("Filters");
        let state = self.lock();
        let groups = state.groups.iter().filter(|((region, _), _)| *region == asked.region);
        let tags = groups.flat_map(|((_, name), group)| group.tags.iter().map(move |tag| of_tag(name, tag)));
        let fits = |tag: &Element| {
            filters.iter().all(|filter| {
                let told = match filter.text("Name") {
                    "auto-scaling-group" => tag.at(&["ResourceId"]),
                    "key" => tag.at(&["Key"]),
                    "value" => tag.at(&["Value"]),
                    _ => return false,
                };
                filter.values("Values").iter().any(|value| value == told)
            })
        };
        let (tags, next) = page(&asked.form, tags.filter(fits).collect());
        std::iter::once(Element::new("Tags").with_all(tags)).chain(next).collect()
    }
}

fn of_tag(name: &str, (key, (value, propagate)): (&String, &(String, bool))) -> Element {
    Element::new("member")
        .with(Element::text("ResourceId", name))
        .with(Element::text("ResourceType", "auto-scaling-group"))
        .with(Element::text("Key", key))
        .with(Element::text("Value", value))
        .with(Element::text("PropagateAtLaunch", propagate.to_string()))
}

fn of_member(element: &str, id: &str, kind: &str, zone: &str) -> Element {
    Element::new(element)
        .with(Element::text("InstanceId", id))
        .with(Element::text("InstanceType", kind))
        .with(Element::text("AvailabilityZone", zone))
        .with(Element::text("LifecycleState", "InService"))
        .with(Element::text("HealthStatus", "Healthy"))
        .with(Element::text("ProtectedFromScaleIn", "false"))
}

fn of_group(name: &str, group: &Group) -> Element {
    let form = &group.form;
    let echoed = ["MixedInstancesPolicy", "LaunchTemplate"].into_iter().filter_map(|part| {
        let below = form.below(part);
        (!below.0.is_empty()).then(|| Element::new(part).with_all(below.elements()))
    });
    let zones: std::collections::BTreeSet<&str> = group.members.iter().map(|m| m.zone.as_str()).collect();
    let suspended = group.suspended.iter().map(|process| {
        Element::new("member")
            .with(Element::text("ProcessName", process))
            .with(Element::text("SuspensionReason", "User suspended"))
    });
    let members = group.members.iter().map(|m| of_member("member", &m.id, &m.kind, &m.zone));
    Element::new("member")
        .with(Element::text("AutoScalingGroupName", name))
        .with(Element::text("AutoScalingGroupARN", &group.arn))
        .with(Element::text("MinSize", group.min.to_string()))
        .with(Element::text("MaxSize", group.max.to_string()))
        .with(Element::text("DesiredCapacity", group.desired.to_string()))
        .with(Element::text("DefaultCooldown", "300"))
        .with(Element::text("HealthCheckType", "EC2"))
        .with(Element::text("HealthCheckGracePeriod", "0"))
        .with(Element::text("CreatedTime", whole(group.created)))
        .with(Element::text("VPCZoneIdentifier", form.text("VPCZoneIdentifier")))
        .with(Element::text("NewInstancesProtectedFromScaleIn", "false"))
        .with(
            Element::new("AvailabilityZones").with_all(zones.into_iter().map(|z| Element::text("member", z))),
        )
        .with(Element::new("Instances").with_all(members))
        .with(Element::new("SuspendedProcesses").with_all(suspended))
        .with(Element::new("Tags").with_all(group.tags.iter().map(|tag| of_tag(name, tag))))
        .with_all(echoed)
        .with_all(group.deleting.then(|| Element::text("Status", "Delete in progress")))
}

fn of_activity(element: &str, activity: &Activity, deleted: bool) -> Element {
    let status = if activity.failure.is_some() { "Failed" } else { "Successful" };
    Element::new(element)
        .with(Element::text("ActivityId", &activity.id))
        .with(Element::text("AutoScalingGroupName", &activity.group.1))
        .with(Element::text("Description", &activity.description))
        .with(Element::text("Cause", &activity.cause))
        .with(Element::text("StartTime", activity.began.to_string()))
        .with(Element::text("EndTime", activity.ended.to_string()))
        .with(Element::text("StatusCode", status))
        .with_all(activity.failure.iter().map(|message| Element::text("StatusMessage", message)))
        .with(Element::text("Progress", "100"))
        .with(Element::text("Details", &activity.details))
        .with_all(deleted.then(|| Element::text("AutoScalingGroupState", "Deleted")))
}
