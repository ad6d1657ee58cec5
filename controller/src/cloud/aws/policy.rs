//! Policies: what machines may do, and what the caller has to be allowed. Pure, with golden files.

use serde_json::{Value, json};
use tpi_proto::id::TaskId;
use tpi_store::layout::{self, TaskKeys};
use url::Url;

use super::names::{IAM_PATH, TASK_TAG};

const VERSION: &str = "2012-10-17";

/// A bucket and a path in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bucket {
    /// Its name.
    pub(super) name: String,
    /// Without slashes at its ends; empty: the whole bucket.
    prefix: String,
}

impl Bucket {
    /// Of a store's URL; `None` when it is not in S3.
    pub(super) fn of(store: &Url) -> Option<Self> {
        let name = store.host_str().filter(|_| store.scheme() == "s3")?.to_owned();
        Some(Self { name, prefix: store.path().trim_matches('/').to_owned() })
    }

    /// A key of the store as the bucket has it.
    pub(super) fn key(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_owned() } else { format!("{}/{key}", self.prefix) }
    }

    fn arn(&self, partition: &str, key: &str) -> String {
        format!("arn:{partition}:s3:::{}/{}", self.name, self.key(key))
    }
}

/// Who may become the machines' role: machines.
pub(super) fn trust() -> Value {
    json!({
        "Version": VERSION,
        "Statement": [{
            "Effect": "Allow",
            "Principal": { "Service": "ec2.amazonaws.com" },
            "Action": "sts:AssumeRole",
        }],
    })
}

/// What the machines of one task may do: work with this task's objects, read shared content by its hash, and
/// take themselves out of their own group.
pub(super) fn machine(partition: &str, region: &str, account: &str, bucket: &Bucket, task: &TaskId) -> Value {
    let place = format!("{partition}:autoscaling:{region}:{account}");
    of_machines(partition, bucket, TaskKeys::new(task).root(), &place, task.as_str())
}

/// The same for the machines of any task whose objects are in `storage` (`BUCKET/PATH`): for a role of the
/// user's own.
#[must_use]
pub fn any_machine(partition: &str, storage: &str) -> Value {
    let (name, prefix) = storage.split_once('/').unwrap_or((storage, ""));
    let bucket = Bucket { name: name.to_owned(), prefix: prefix.trim_matches('/').to_owned() };
    let place = format!("{partition}:autoscaling:*:*");
    of_machines(partition, &bucket, &format!("{}/tpi-*", layout::TASKS), &place, "tpi-*")
}

fn of_machines(partition: &str, bucket: &Bucket, root: &str, place: &str, name: &str) -> Value {
    let of_task = |rest: &str| bucket.arn(partition, &format!("{root}/{rest}"));
    let group = format!("arn:{place}:autoScalingGroup:*:autoScalingGroupName/{name}");
    json!({
        "Version": VERSION,
        "Statement": [
            {
                "Sid": "OwnObjects",
                "Effect": "Allow",
                "Action": [
                    "s3:GetObject",
                    "s3:PutObject",
                    "s3:DeleteObject",
                    "s3:AbortMultipartUpload",
                ],
                "Resource": of_task("*"),
            },
            {
                // Who may attach, and with what a task runs, is decided by callers alone.
                "Sid": "NotWhatCallersWrite",
                "Effect": "Deny",
                "Action": ["s3:PutObject", "s3:DeleteObject"],
                "Resource": [
                    of_task("record.json"),
                    of_task("environment"),
                    of_task("input*"),
                    of_task("agent/*"),
                    of_task("clients/*"),
                ],
            },
            {
                "Sid": "SharedContentByItsHash",
                "Effect": "Allow",
                "Action": "s3:GetObject",
                "Resource": bucket.arn(partition, &format!("{}/*", layout::CACHE)),
            },
            {
                // A read has no prefix, so what is absent is answered with 403: machines look for it by its name.
                "Sid": "OwnNames",
                "Effect": "Allow",
                "Action": "s3:ListBucket",
                "Resource": format!("arn:{partition}:s3:::{}", bucket.name),
                "Condition": { "StringLike": { "s3:prefix": bucket.key(&format!("{root}/*")) } },
            },
            {
                "Sid": "OwnRelease",
                "Effect": "Allow",
                "Action": "autoscaling:TerminateInstanceInAutoScalingGroup",
                "Resource": group,
            },
        ],
    })
}

/// The least that a caller has to be allowed, for every command. `permission_set` makes the statements about
/// roles unnecessary, except passing that very role.
#[must_use]
pub fn caller(partition: &str) -> Value {
    let roles = format!("arn:{partition}:iam::*:role{IAM_PATH}*");
    let profiles = format!("arn:{partition}:iam::*:instance-profile{IAM_PATH}*");
    let ours =
        |service: &str| json!({ "StringLike": { format!("{service}:ResourceTag/{TASK_TAG}"): "tpi-*" } });
    json!({
        "Version": VERSION,
        "Statement": [
            {
                "Sid": "Look",
                "Effect": "Allow",
                "Action": [
                    "autoscaling:DescribeAutoScalingGroups",
                    "autoscaling:DescribeScalingActivities",
                    "autoscaling:DescribeScheduledActions",
                    "ec2:DescribeImages",
                    "ec2:DescribeInstanceTypeOfferings",
                    "ec2:DescribeInstanceTypes",
                    "ec2:DescribeInstances",
                    "ec2:DescribeLaunchTemplates",
                    "ec2:DescribeRegions",
                    "ec2:DescribeSecurityGroups",
                    "ec2:DescribeSubnets",
                    "ec2:DescribeVolumes",
                    "iam:ListRoles",
                    "iam:ListInstanceProfiles",
                ],
                "Resource": "*",
            },
            {
                // Without these plans say less, and refusals come later; nothing else needs them.
                "Sid": "BetterPlans",
                "Effect": "Allow",
                "Action": [
                    "ec2:DescribeSpotPriceHistory",
                    "iam:SimulatePrincipalPolicy",
                    "servicequotas:GetServiceQuota",
                ],
                "Resource": "*",
            },
            {
                "Sid": "Make",
                "Effect": "Allow",
                "Action": [
                    "ec2:AuthorizeSecurityGroupIngress",
                    "ec2:CreateLaunchTemplate",
                    "ec2:CreateSecurityGroup",
                    "ec2:CreateTags",
                    "ec2:RunInstances",
                ],
                "Resource": "*",
            },
            {
                "Sid": "RemoveOnlyOurs",
                "Effect": "Allow",
                "Action": [
                    "ec2:DeleteLaunchTemplate",
                    "ec2:DeleteSecurityGroup",
                    "ec2:DeleteVolume",
                    "ec2:TerminateInstances",
                ],
                "Resource": "*",
                "Condition": ours("aws"),
            },
            {
                "Sid": "Groups",
                "Effect": "Allow",
                "Action": [
                    "autoscaling:CreateAutoScalingGroup",
                    "autoscaling:CreateOrUpdateTags",
                    "autoscaling:DeleteAutoScalingGroup",
                    "autoscaling:DeleteScheduledAction",
                    "autoscaling:PutScheduledUpdateGroupAction",
                    "autoscaling:SuspendProcesses",
                    "autoscaling:UpdateAutoScalingGroup",
                ],
                "Resource": format!(
                    "arn:{partition}:autoscaling:*:*:autoScalingGroup:*:autoScalingGroupName/tpi-*"
                ),
            },
            {
                "Sid": "Roles",
                "Effect": "Allow",
                "Action": [
                    "iam:AddRoleToInstanceProfile",
                    "iam:CreateInstanceProfile",
                    "iam:CreateRole",
                    "iam:DeleteInstanceProfile",
                    "iam:DeleteRole",
                    "iam:DeleteRolePolicy",
                    "iam:GetInstanceProfile",
                    "iam:GetRole",
                    "iam:ListRolePolicies",
                    "iam:PutRolePolicy",
                    "iam:RemoveRoleFromInstanceProfile",
                    "iam:TagInstanceProfile",
                    "iam:TagRole",
                ],
                "Resource": [roles.clone(), profiles],
            },
            {
                // What is absent has no path: without this, AWS answers that it may not be looked for.
                "Sid": "RolesThatAreGone",
                "Effect": "Allow",
                "Action": [
                    "iam:DeleteInstanceProfile",
                    "iam:DeleteRole",
                    "iam:DeleteRolePolicy",
                    "iam:GetInstanceProfile",
                    "iam:GetRole",
                    "iam:ListRolePolicies",
                    "iam:RemoveRoleFromInstanceProfile",
                ],
                "Resource": [
                    format!("arn:{partition}:iam::*:role/tpi-*"),
                    format!("arn:{partition}:iam::*:instance-profile/tpi-*"),
                ],
            },
            {
                "Sid": "PassRolesToMachinesOnly",
                "Effect": "Allow",
                "Action": "iam:PassRole",
                "Resource": roles,
                "Condition": { "StringEquals": { "iam:PassedToService": "ec2.amazonaws.com" } },
            },
            {
                "Sid": "FirstUseOfAnAccount",
                "Effect": "Allow",
                "Action": "iam:CreateServiceLinkedRole",
                "Resource": format!("arn:{partition}:iam::*:role/aws-service-role/*"),
                "Condition": {
                    "StringEquals": {
                        "iam:AWSServiceName": ["autoscaling.amazonaws.com", "spot.amazonaws.com"],
                    },
                },
            },
            {
                "Sid": "Store",
                "Effect": "Allow",
                "Action": [
                    "s3:AbortMultipartUpload",
                    "s3:CreateBucket",
                    "s3:DeleteObject",
                    "s3:GetBucketTagging",
                    "s3:GetObject",
                    "s3:ListBucket",
                    "s3:PutBucketOwnershipControls",
                    "s3:PutBucketPublicAccessBlock",
                    "s3:PutBucketTagging",
                    "s3:PutEncryptionConfiguration",
                    "s3:PutLifecycleConfiguration",
                    "s3:PutObject",
                ],
                "Resource": [
                    format!("arn:{partition}:s3:::tpi-*"),
                    format!("arn:{partition}:s3:::tpi-*/*"),
                ],
            },
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pretty(value: &Value) -> String {
        serde_json::to_string_pretty(value).expect("encodes")
    }

    fn task() -> TaskId {
        TaskId::deterministic("test").expect("a name")
    }

    #[test]
    fn machines_may_do_little() {
        let bucket = Bucket::of(&Url::parse("s3://bucket/some/path/").expect("a URL")).expect("a bucket");
        insta::assert_snapshot!(pretty(&machine("aws", "us-west-1", "123456789012", &bucket, &task())));
    }

    #[test]
    fn the_policy_denies_what_the_layout_says_callers_write() {
        let bucket = Bucket::of(&Url::parse("s3://bucket").expect("a URL")).expect("a bucket");
        let policy = machine("aws", "us-west-1", "123456789012", &bucket, &task());
        let denied: Vec<&str> = policy["Statement"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|statement| statement["Effect"] == "Deny")
            .flat_map(|statement| statement["Resource"].as_array().into_iter().flatten())
            .filter_map(Value::as_str)
            .collect();
        let is_denied = |key: &str| {
            let arn = format!("arn:aws:s3:::bucket/{key}");
            denied.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(beginning) => arn.starts_with(beginning),
                None => arn == *pattern,
            })
        };
        let keys = TaskKeys::new(&task());
        let clients = format!("{}/some.pem", keys.clients());
        for key in [keys.record(), keys.environment(), keys.input(), keys.agent("0"), clients] {
            assert!(is_denied(&key), "{key}");
        }
        for key in [keys.slots(), keys.events()] {
            assert!(!is_denied(&format!("{key}/0.json")), "{key}");
        }
    }

    #[test]
    fn a_role_of_ones_own_needs_this() {
        insta::assert_snapshot!(pretty(&any_machine("aws", "bucket/some/path")));
    }

    #[test]
    fn callers_need_this() {
        insta::assert_snapshot!(pretty(&caller("aws")));
    }

    #[test]
    fn only_machines_become_the_role() {
        insta::assert_snapshot!(pretty(&trust()));
    }

    #[test]
    fn policies_fit_into_what_aws_takes() {
        let bucket =
            Bucket::of(&Url::parse(&format!("s3://{}/{}", "b".repeat(63), "p".repeat(300))).expect("a URL"))
                .expect("a bucket");
        let id = TaskId::seeded(&"n".repeat(28), b"seed").expect("a name");
        let policy = machine("aws-us-gov", "us-gov-west-1", "123456789012", &bucket, &id).to_string();
        assert!(policy.len() < 10_240, "{} characters in a role's inline policies", policy.len());
        assert!(caller("aws").to_string().len() < 6_144, "a managed policy");
    }

    #[test]
    fn stores_outside_s3_have_no_bucket() {
        for other in ["file:///tmp/x", "memory://x"] {
            assert_eq!(Bucket::of(&Url::parse(other).expect("a URL")), None);
        }
    }
}
