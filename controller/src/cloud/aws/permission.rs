//! Whether the caller may make what a group needs, asked before anything is made: EC2 answers to requests that it
//! shall not carry out, and IAM to a question about the caller's policies.
//!
//! Only a clear no is a refusal. Who may not ask IAM is told so, and meets the refusal when making the role, which
//! is before any machine.

use aws_sdk_ec2::{
    error::{ProvideErrorMetadata, SdkError},
    types::{InstanceType, RequestLaunchTemplateData, ResourceType, Tag, TagSpecification},
};
use aws_sdk_iam::{
    config::retry::RetryConfig,
    types::{ContextEntry, ContextKeyTypeEnum, PolicyEvaluationDecisionType},
};
use tpi_proto::id::TaskId;

use super::{
    client::Clients,
    error::{code, failed, is_absent, refused},
    identity::Profile,
    lookup::{Caller, Found},
    names::{IAM_PATH, TASK_TAG},
};
use crate::cloud::{CloudError, CloudErrorKind, Leftovers};

/// What EC2 answers to a request that would have been carried out.
const WOULD_HAVE: &str = "DryRunOperation";
const DENIED: &str = "UnauthorizedOperation";

/// Actions on the role and the profile of a task.
const ON_ROLES: [&str; 7] = [
    "iam:CreateRole",
    "iam:TagRole",
    "iam:PutRolePolicy",
    "iam:CreateInstanceProfile",
    "iam:TagInstanceProfile",
    "iam:AddRoleToInstanceProfile",
    "iam:PassRole",
];
/// Actions on the group of a task.
const ON_GROUPS: [&str; 4] = [
    "autoscaling:CreateAutoScalingGroup",
    "autoscaling:PutScheduledUpdateGroupAction",
    "autoscaling:SuspendProcesses",
    "autoscaling:UpdateAutoScalingGroup",
];

/// What to do about a lack of permissions.
const WITHOUT_ROLES: &str = "who may not make roles passes --permission-set: an instance profile that allows what \
                             `tpi-controller aws policy --machine` prints";

/// Whether an answer is a clear no.
fn denied<E, R>(answer: Result<(), SdkError<E, R>>, operation: &str) -> Result<(), CloudError>
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    R: std::fmt::Debug + Send + Sync + 'static,
{
    match answer {
        Err(error) if code(&error) == DENIED => Err(failed(operation, Leftovers::None)(error)),
        Err(error) if code(&error) == WOULD_HAVE => Ok(()),
        // The real request is what decides about everything else.
        Err(error) => {
            tracing::debug!(%operation, code = code(&error), "a request that is not to be carried out");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

impl Clients {
    /// Refuses what the caller certainly may not do.
    ///
    /// # Errors
    /// With the action that is missing. What could not be asked comes back as warnings.
    pub(super) async fn check_permissions(
        &self,
        task: &TaskId,
        found: &Found,
        profile: Option<&Profile>,
    ) -> Result<Vec<String>, CloudError> {
        let (iam, profile, (), (), ()) = futures::future::try_join5(
            self.ask_iam(task, &found.caller, profile),
            self.look_at_profile(task, profile),
            self.may_make_security_groups(task, found),
            self.may_make_templates(task, found),
            self.may_run(task, found),
        )
        .await?;
        Ok(iam.into_iter().chain(profile).collect())
    }

    /// A profile of the user's own has to be there, and to have a role. Who may not look is not told so: it is not
    /// among the least permissions.
    async fn look_at_profile(
        &self,
        task: &TaskId,
        profile: Option<&Profile>,
    ) -> Result<Option<String>, CloudError> {
        let name = match profile {
            None => return Ok(None),
            Some(Profile::Name(name)) => name,
            Some(Profile::Arn(arn)) => arn.rsplit('/').next().unwrap_or_default(),
        };
        match self.iam.get_instance_profile().instance_profile_name(name).send().await {
            Ok(there) => {
                let without = there.instance_profile().is_some_and(|profile| profile.roles().is_empty());
                Ok(without.then(|| {
                    format!("the instance profile {name} has no role: machines with it can reach no store")
                }))
            }
            Err(error) if is_absent(&error) => Err(refused(
                format!("choosing the identity of machines of {task}"),
                format!("there is no instance profile {name} in this account"),
            )),
            Err(error) => {
                tracing::debug!(code = code(&error), "looking at a profile of the user's own");
                Ok(None)
            }
        }
    }

    async fn may_make_security_groups(&self, task: &TaskId, found: &Found) -> Result<(), CloudError> {
        let answer = self
            .ec2
            .create_security_group()
            .dry_run(true)
            .group_name(task.as_str())
            .description(format!("machines of {task}"))
            .vpc_id(&found.network.vpc)
            .tag_specifications(tags(task, ResourceType::SecurityGroup))
            .send()
            .await;
        denied(answer.map(drop), &format!("asking whether the security group {task} may be made"))
    }

    async fn may_make_templates(&self, task: &TaskId, found: &Found) -> Result<(), CloudError> {
        let answer = self
            .ec2
            .create_launch_template()
            .dry_run(true)
            .launch_template_name(task.as_str())
            .launch_template_data(RequestLaunchTemplateData::builder().image_id(&found.image.id).build())
            .tag_specifications(tags(task, ResourceType::LaunchTemplate))
            .send()
            .await;
        denied(answer.map(drop), &format!("asking whether the launch template {task} may be made"))
    }

    async fn may_run(&self, task: &TaskId, found: &Found) -> Result<(), CloudError> {
        let (Some(kind), Some(subnet)) = (found.types.first(), found.network.subnets.first()) else {
            return Ok(());
        };
        let answer = self
            .ec2
            .run_instances()
            .dry_run(true)
            .min_count(1)
            .max_count(1)
            .image_id(&found.image.id)
            .instance_type(InstanceType::from(kind.as_str()))
            .subnet_id(subnet)
            .tag_specifications(tags(task, ResourceType::Instance))
            .send()
            .await;
        denied(answer.map(drop), &format!("asking whether machines of {task} may be started"))
    }

    /// A warning where IAM cannot be asked.
    async fn ask_iam(
        &self,
        task: &TaskId,
        caller: &Caller,
        profile: Option<&Profile>,
    ) -> Result<Option<String>, CloudError> {
        let Some(principal) = principal(&caller.arn) else { return Ok(None) };
        let Caller { account, partition, .. } = caller;
        let group = format!(
            "arn:{partition}:autoscaling:{}:{account}:autoScalingGroup:*:autoScalingGroupName/{task}",
            self.region
        );
        let role = format!("arn:{partition}:iam::{account}:role{IAM_PATH}{task}");
        let instance_profile = format!("arn:{partition}:iam::{account}:instance-profile{IAM_PATH}{task}");
        let on_roles = async {
            match profile {
                Some(_) => Ok(Vec::new()),
                None => {
                    let (for_profiles, for_roles): (Vec<&str>, Vec<&str>) =
                        ON_ROLES.iter().partition(|action| action.contains("InstanceProfile"));
                    let (mut one, other) = futures::future::try_join(
                        self.lacking(&principal, &for_roles, &role),
                        self.lacking(&principal, &for_profiles, &instance_profile),
                    )
                    .await?;
                    one.extend(other);
                    Ok(one)
                }
            }
        };
        let asked = futures::future::try_join(on_roles, self.lacking(&principal, &ON_GROUPS, &group)).await;
        let (on_roles, on_groups) = match asked {
            Ok(answers) => answers,
            Err(error) => {
                let cause = tpi_proto::fault::chain(&error);
                return Ok(Some(format!(
                    "what these credentials allow could not be asked beforehand: {cause}"
                )));
            }
        };
        let refused = |what: &str, actions: &[String], more: &str| CloudError {
            kind: CloudErrorKind::PermissionDenied,
            operation: format!("asking whether {what} of {task} may be made"),
            leftovers: Leftovers::None,
            source: Some(format!("{} may not {}{more}", caller.arn, actions.join(", ")).into()),
        };
        if !on_roles.is_empty() {
            return Err(refused("the role", &on_roles, &format!(" ({WITHOUT_ROLES})")));
        }
        if !on_groups.is_empty() {
            return Err(refused("the scaling group", &on_groups, ""));
        }
        Ok(None)
    }

    /// Those of the actions that the principal certainly may not do.
    async fn lacking(
        &self,
        principal: &str,
        actions: &[&str],
        resource: &str,
    ) -> Result<Vec<String>, CloudError> {
        let context = ContextEntry::builder()
            .context_key_name("iam:PassedToService")
            .context_key_type(ContextKeyTypeEnum::String)
            .context_key_values("ec2.amazonaws.com")
            .build();
        // Good to know only: nobody waits for it.
        let once =
            aws_sdk_iam::config::Builder::new().retry_config(RetryConfig::standard().with_max_attempts(1));
        let answer = self
            .iam
            .simulate_principal_policy()
            .policy_source_arn(principal)
            .set_action_names(Some(actions.iter().map(|action| (*action).to_owned()).collect()))
            .resource_arns(resource)
            .context_entries(context)
            .customize()
            .config_override(once)
            .send()
            .await
            .map_err(failed(format!("asking IAM about {principal}"), Leftovers::None))?;
        let results = answer.evaluation_results.unwrap_or_default().into_iter();
        Ok(results
            .filter(|result| {
                let no =
                    [PolicyEvaluationDecisionType::ExplicitDeny, PolicyEvaluationDecisionType::ImplicitDeny]
                        .contains(&result.eval_decision);
                // A condition on what only a real request has (a tag, an address) cannot be judged.
                no && result.missing_context_values().is_empty()
            })
            .map(|result| result.eval_action_name)
            .collect())
    }
}

fn tags(task: &TaskId, kind: ResourceType) -> TagSpecification {
    TagSpecification::builder()
        .resource_type(kind)
        .tags(Tag::builder().key(TASK_TAG).value(task.as_str()).build())
        .build()
}

/// Whose policies count: a user's, or those of the role that was assumed. An account's own user may do everything.
fn principal(arn: &str) -> Option<String> {
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    let ["arn", partition, service, _, account, resource] = parts.as_slice() else { return None };
    match (*service, resource.split_once('/')) {
        ("iam", Some(("user" | "role", _))) => Some(arn.to_owned()),
        ("sts", Some(("assumed-role", rest))) => {
            let role = rest.split('/').next()?;
            Some(format!("arn:{partition}:iam::{account}:role/{role}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_belong_to_users_and_roles() {
        for (arn, expected) in [
            ("arn:aws:iam::123456789012:user/a/b", Some("arn:aws:iam::123456789012:user/a/b")),
            (
                "arn:aws-cn:sts::123456789012:assumed-role/admin/session",
                Some("arn:aws-cn:iam::123456789012:role/admin"),
            ),
            ("arn:aws:iam::123456789012:root", None),
            ("arn:aws:sts::123456789012:federated-user/x", None),
            ("", None),
        ] {
            assert_eq!(principal(arn).as_deref(), expected, "{arn}");
        }
    }
}
