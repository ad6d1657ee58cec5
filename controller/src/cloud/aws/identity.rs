//! Role and instance profile of a task, or the profile that the user names.

use aws_sdk_iam::types::Tag;
use tpi_proto::id::TaskId;

use super::{
    client::Clients,
    error::{code, failed, is_absent, refused},
    lookup::Caller,
    names::{IAM_PATH, ROLE_POLICY, TASK_TAG, own_tags},
    policy::{self, Bucket},
};
use crate::cloud::{CloudError, CloudErrorKind, GroupSpec, Leftovers};

/// What machines are given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Profile {
    /// By name: in the caller's own account.
    Name(String),
    /// By its whole name.
    Arn(String),
}

impl Profile {
    /// Of `permission_set`: the name or the ARN of an instance profile.
    ///
    /// # Errors
    /// When it is neither.
    pub(super) fn parse(text: &str) -> Result<Self, CloudError> {
        let name = |name: &str| {
            !name.is_empty()
                && name.len() <= 128
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+=,.@_-".contains(&b))
        };
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        if let ["arn", partition, "iam", "", account, resource] = parts.as_slice() {
            let account = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
            let last = resource.strip_prefix("instance-profile/").and_then(|path| path.rsplit('/').next());
            if partition.starts_with("aws") && account && last.is_some_and(name) {
                return Ok(Self::Arn(text.to_owned()));
            }
        } else if name(text) {
            return Ok(Self::Name(text.to_owned()));
        }
        Err(refused(
            "choosing the identity of machines",
            format!(
                "{text:?} is not an instance profile: give its name, or arn:aws:iam::ACCOUNT:instance-profile/NAME"
            ),
        ))
    }
}

/// Says what else can be done by those who may not make roles.
fn told(mut error: CloudError) -> CloudError {
    if error.kind == CloudErrorKind::PermissionDenied {
        error.operation.push_str(
            " (who may not make roles passes --permission-set: an instance profile that allows what \
             `tpi-controller aws policy --machine` prints)",
        );
    }
    error
}

fn tags(want: &GroupSpec) -> Result<Vec<Tag>, CloudError> {
    let ours = own_tags(&want.task, want.deadline, &want.store).into_iter();
    let tags = ours.map(|(key, value)| Tag::builder().key(key).value(value).build());
    tags.collect::<Result<_, _>>().map_err(|error| CloudError {
        kind: CloudErrorKind::Other,
        operation: format!("tagging the role of {}", want.task),
        leftovers: Leftovers::None,
        source: Some(error.into()),
    })
}

fn not_ours(what: &str, task: &TaskId) -> CloudError {
    refused(
        format!("making the {what} {task}"),
        format!("there is one of that name that lacks the tag {TASK_TAG}={task}, so it is somebody else's"),
    )
}

impl Clients {
    /// Role and profile, not tied to each other yet.
    pub(super) async fn make_role_and_profile(&self, want: &GroupSpec) -> Result<(), CloudError> {
        let (role, profile) = futures::future::join(self.make_role(want), self.make_profile(want)).await;
        role.and(profile).map_err(told)
    }

    async fn make_role(&self, want: &GroupSpec) -> Result<(), CloudError> {
        let task = &want.task;
        let operation = || format!("making the role {task}");
        let made = self
            .iam
            .create_role()
            .path(IAM_PATH)
            .role_name(task.as_str())
            .assume_role_policy_document(policy::trust().to_string())
            .description(format!("machines of {task}"))
            .set_tags(Some(tags(want)?))
            .send()
            .await;
        match made {
            Ok(_) => Ok(()),
            Err(error) if code(&error) == "EntityAlreadyExists" => {
                let there = self
                    .iam
                    .get_role()
                    .role_name(task.as_str())
                    .send()
                    .await
                    .map_err(failed(operation(), Leftovers::Unknown))?;
                let ours = there.role().is_some_and(|r| is_ours(r.tags(), task));
                if ours { Ok(()) } else { Err(not_ours("role", task)) }
            }
            Err(error) => Err(failed(operation(), Leftovers::Unknown)(error)),
        }
    }

    async fn make_profile(&self, want: &GroupSpec) -> Result<(), CloudError> {
        let task = &want.task;
        let operation = || format!("making the instance profile {task}");
        let made = self
            .iam
            .create_instance_profile()
            .path(IAM_PATH)
            .instance_profile_name(task.as_str())
            .set_tags(Some(tags(want)?))
            .send()
            .await;
        match made {
            Ok(_) => Ok(()),
            Err(error) if code(&error) == "EntityAlreadyExists" => {
                let there = self
                    .iam
                    .get_instance_profile()
                    .instance_profile_name(task.as_str())
                    .send()
                    .await
                    .map_err(failed(operation(), Leftovers::Unknown))?;
                let ours = there.instance_profile().is_some_and(|p| is_ours(p.tags(), task));
                if ours { Ok(()) } else { Err(not_ours("instance profile", task)) }
            }
            Err(error) => Err(failed(operation(), Leftovers::Unknown)(error)),
        }
    }

    /// The role's policy, and the role into the profile.
    pub(super) async fn fill_role_and_profile(
        &self,
        task: &TaskId,
        caller: &Caller,
        bucket: &Bucket,
    ) -> Result<(), CloudError> {
        let document = policy::machine(&caller.partition, &self.region, &caller.account, bucket, task);
        let policy = async {
            self.iam
                .put_role_policy()
                .role_name(task.as_str())
                .policy_name(ROLE_POLICY)
                .policy_document(document.to_string())
                .send()
                .await
                .map_err(failed(format!("writing the policy of the role {task}"), Leftovers::Unknown))
        };
        let member = async {
            let added = self
                .iam
                .add_role_to_instance_profile()
                .instance_profile_name(task.as_str())
                .role_name(task.as_str())
                .send()
                .await;
            match added {
                Ok(_) => Ok(()),
                // A profile holds one role: ours, or none would be able to add it.
                Err(error) if ["LimitExceeded", "EntityAlreadyExists"].contains(&code(&error)) => Ok(()),
                Err(error) => {
                    let operation = format!("putting the role {task} into its instance profile");
                    Err(failed(operation, Leftovers::Unknown)(error))
                }
            }
        };
        let (policy, member) = futures::future::join(policy, member).await;
        policy.map(drop).and(member).map_err(told)
    }

    /// Role and profile, whatever there is of them. Absent is success; somebody else's are left alone.
    pub(super) async fn remove_role_and_profile(&self, task: &TaskId) -> Result<(), CloudError> {
        self.remove_profile(task).await?;
        self.remove_role(task).await
    }

    async fn remove_profile(&self, task: &TaskId) -> Result<(), CloudError> {
        let operation = || format!("removing the instance profile {task}");
        let there = self.iam.get_instance_profile().instance_profile_name(task.as_str()).send().await;
        let profile = match there {
            Ok(there) => there.instance_profile,
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => return Err(failed(operation(), Leftovers::Remaining)(error)),
        };
        let Some(profile) = profile.filter(|p| is_ours(p.tags(), task)) else { return Ok(()) };
        for role in profile.roles() {
            let removed = self
                .iam
                .remove_role_from_instance_profile()
                .instance_profile_name(task.as_str())
                .role_name(role.role_name())
                .send()
                .await;
            match removed {
                Ok(_) => {}
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(failed(operation(), Leftovers::Remaining)(error)),
            }
        }
        match self.iam.delete_instance_profile().instance_profile_name(task.as_str()).send().await {
            Ok(_) => Ok(()),
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(failed(operation(), Leftovers::Remaining)(error)),
        }
    }

    async fn remove_role(&self, task: &TaskId) -> Result<(), CloudError> {
        let operation = || format!("removing the role {task}");
        let (there, policies) = futures::future::join(
            self.iam.get_role().role_name(task.as_str()).send(),
            self.iam.list_role_policies().role_name(task.as_str()).send(),
        )
        .await;
        let there = match there {
            Ok(there) => there.role,
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => return Err(failed(operation(), Leftovers::Remaining)(error)),
        };
        if !there.is_some_and(|role| is_ours(role.tags(), task)) {
            return Ok(());
        }
        let policies = match policies {
            Ok(answer) => answer.policy_names,
            Err(error) if is_absent(&error) => Vec::new(),
            Err(error) => return Err(failed(operation(), Leftovers::Remaining)(error)),
        };
        let deletions = policies
            .iter()
            .map(|policy| self.iam.delete_role_policy().role_name(task.as_str()).policy_name(policy).send());
        for deleted in futures::future::join_all(deletions).await {
            match deleted {
                Ok(_) => {}
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(failed(operation(), Leftovers::Remaining)(error)),
            }
        }
        match self.iam.delete_role().role_name(task.as_str()).send().await {
            Ok(_) => Ok(()),
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(failed(operation(), Leftovers::Remaining)(error)),
        }
    }
}

fn is_ours(tags: &[Tag], task: &TaskId) -> bool {
    tags.iter().any(|t| t.key() == TASK_TAG && t.value() == task.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_a_name_or_an_arn_of_any_partition() {
        for arn in [
            "arn:aws:iam::123456789012:instance-profile/training",
            "arn:aws-us-gov:iam::123456789012:instance-profile/some/path/training",
        ] {
            assert_eq!(Profile::parse(arn).ok(), Some(Profile::Arn(arn.to_owned())));
        }
        assert_eq!(Profile::parse("training").ok(), Some(Profile::Name("training".to_owned())));
        for bad in [
            "",
            "two words",
            "arn:aws:iam:123456789012:instance-profile/x",
            "arn:aws:iam::123456789012:role/x",
            "arn:aws:iam::12:instance-profile/x",
            "arn:aws:iam::123456789012:instance-profile/",
        ] {
            assert!(Profile::parse(bad).is_err(), "{bad}");
        }
    }
}
