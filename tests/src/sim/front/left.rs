//! What there is in the account that a task could have made.

use anyhow::Result;

use super::{model::InstanceState, shared::Shared};

impl Shared {
    pub(super) async fn left(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        let regions = {
            self.finish_ends();
            let state = self.lock();
            for known in &state.instances {
                let instance = &known.instance;
                if instance.state != InstanceState::Terminated {
                    left.push(format!(
                        "instance {} ({:?}) in {}",
                        instance.id, instance.state, instance.region
                    ));
                }
            }
            for ((region, name), group) in &state.groups {
                left.push(format!("scaling group {name} in {region}"));
                left.extend(
                    group.schedules.keys().map(|s| format!("scheduled action {s} of {name} in {region}")),
                );
            }
            state.regions.clone()
        };
        for region in &regions {
            for (action, identifier, what) in [
                ("DescribeVolumes", "volumeId", "volume"),
                ("DescribeLaunchTemplates", "launchTemplateId", "launch template"),
                ("DescribeSecurityGroups", "groupId", "security group"),
                ("DescribeNetworkInterfaces", "networkInterfaceId", "network interface"),
                ("DescribeKeyPairs", "keyPairId", "key pair"),
                ("DescribeSpotInstanceRequests", "spotInstanceRequestId", "spot request"),
                ("DescribeAddresses", "allocationId", "address"),
            ] {
                let answer = self.moto.call("ec2", region, action, []).await?;
                let items = answer.having(identifier).into_iter().filter(|item| item.name == "item");
                for item in items {
                    let default = what == "security group" && item.at(&["groupName"]) == "default";
                    let attached = what == "volume" && item.child("instanceId").is_some();
                    // Members of lists inside have the same name; these have a description of their own.
                    let inner = what == "security group" && item.child("groupDescription").is_none();
                    let inner = inner || (what == "network interface" && item.child("subnetId").is_none());
                    if !default && !attached && !inner {
                        left.push(format!("{what} {} in {region}", item.at(&[identifier])));
                    }
                }
            }
        }
        for (action, list, name, what) in [
            ("ListRoles", "Roles", "RoleName", "role"),
            ("ListInstanceProfiles", "InstanceProfiles", "InstanceProfileName", "instance profile"),
        ] {
            let answer = self.moto.call("iam", "", action, [("MaxItems", "1000")]).await?;
            for parent in answer.having(list).into_iter().filter(|p| p.name.ends_with("Result")) {
                let members = parent.child(list).map(|l| l.children.as_slice()).unwrap_or_default();
                let ours = members.iter().filter(|m| !m.at(&["Path"]).starts_with("/aws-service-role/"));
                left.extend(ours.map(|member| format!("{what} {}", member.at(&[name]))));
            }
        }
        let policies = self.moto.call("iam", "", "ListPolicies", [("Scope", "Local")]).await?;
        left.extend(policies.texts("PolicyName").into_iter().map(|name| format!("policy {name}")));
        for bucket in self.moto.get("/").await?.texts("Name") {
            left.push(format!("bucket {bucket}"));
            let mut next = format!("/{bucket}?list-type=2");
            loop {
                let page = self.moto.get(&next).await?;
                left.extend(page.texts("Key").into_iter().map(|key| format!("object {bucket}/{key}")));
                let Some(token) = page.texts("NextContinuationToken").first().map(|t| (*t).to_owned()) else {
                    break;
                };
                let token: String = url::form_urlencoded::byte_serialize(token.as_bytes()).collect();
                next = format!("/{bucket}?list-type=2&continuation-token={token}");
            }
            let uploads = self.moto.get(&format!("/{bucket}?uploads")).await?;
            left.extend(uploads.texts("Key").into_iter().map(|key| format!("upload {bucket}/{key}")));
        }
        Ok(left)
    }
}
