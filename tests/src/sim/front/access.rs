//! What has to be allowed for each call: the actions and resources of AWS's service authorization reference, and
//! the dependent ones of their guides.

use std::collections::BTreeMap;

use anyhow::Result;

use super::{ACCOUNT, call::Asked, form::Form, http::Request, policy::Need, shared::Shared, xml::Element};

impl Shared {
    /// All that the caller needs; `None` for calls that anybody may make.
    pub(super) async fn needs(&self, asked: &Asked, request: &Request) -> Result<Vec<Need>> {
        let needs = match asked.service.as_str() {
            "s3" => of_s3(asked, request),
            "ec2" => self.of_ec2(asked).await?,
            "autoscaling" => self.of_scaling(asked).await?,
            "iam" => self.of_iam(asked).await?,
            // Everybody may know who they are.
            "sts" if asked.action == "GetCallerIdentity" => Vec::new(),
            other => vec![Need::new(format!("{other}:{}", asked.action), "*")],
        };
        let region = |need: Need| need.with("aws:RequestedRegion", &asked.region);
        Ok(needs.into_iter().map(region).collect())
    }

    async fn of_ec2(&self, asked: &Asked) -> Result<Vec<Need>> {
        let form = &asked.form;
        let action = format!("ec2:{}", asked.action);
        let arn = |kind: &str, id: &str| format!("arn:aws:ec2:{}:{ACCOUNT}:{kind}/{id}", asked.region);
        let one = |kind: &str, id: &str| Need::new(&action, arn(kind, id));
        Ok(match asked.action.as_str() {
            name if name.starts_with("Describe") || name.starts_with("Get") => vec![Need::new(&action, "*")],
            "RunInstances" => {
                let region = &asked.region;
                let mut needs = self.of_launch(region, &self.launch_form(region, form), true).await?;
                needs.extend(created_tags(asked, "TagSpecification"));
                needs
            }
            "CreateLaunchTemplate" => {
                let need = tagged(one("launch-template", "*"), form, "TagSpecification");
                [vec![need], created_tags(asked, "TagSpecification")].concat()
            }
            "CreateSecurityGroup" => {
                let need = tagged(one("security-group", "*"), form, "TagSpecification");
                let vpc = one("vpc", form.text("VpcId"));
                [vec![need, vpc], created_tags(asked, "TagSpecification")].concat()
            }
            "CreateTags" | "DeleteTags" => {
                let mut needs = self.with_tags(&action, &asked.region, &form.values("ResourceId")).await?;
                for tag in form.list("Tag") {
                    for need in &mut needs {
                        *need = need
                            .clone()
                            .with(&format!("aws:RequestTag/{}", tag.text("Key")), tag.text("Value"))
                            .with("aws:TagKeys", tag.text("Key"));
                    }
                }
                needs
            }
            "DeleteLaunchTemplate" => {
                let id = match form.get("LaunchTemplateId") {
                    Some(id) => id.to_owned(),
                    None => {
                        self.template_id(&asked.region, form.text("LaunchTemplateName")).unwrap_or_default()
                    }
                };
                self.with_tags(&action, &asked.region, &[id]).await?
            }
            _ => {
                let ids = [
                    form.values("InstanceId"),
                    ["GroupId", "VolumeId", "NetworkInterfaceId", "InstanceId", "KeyPairId", "SnapshotId"]
                        .iter()
                        .filter_map(|name| form.get(name).map(str::to_owned))
                        .collect(),
                ]
                .concat();
                if ids.is_empty() {
                    // A kind of resource that is not known here is allowed by `*` only.
                    vec![Need::new(&action, "*")]
                } else {
                    self.with_tags(&action, &asked.region, &ids).await?
                }
            }
        })
    }

    /// One for each resource, with its tags.
    async fn with_tags(&self, action: &str, region: &str, ids: &[String]) -> Result<Vec<Need>> {
        let mut needs = Vec::new();
        for id in ids {
            let kind = match id.split('-').next().unwrap_or_default() {
                "i" => "instance",
                "sg" => "security-group",
                "lt" => "launch-template",
                "vol" => "volume",
                "eni" => "network-interface",
                "ami" => "image",
                "subnet" => "subnet",
                "vpc" => "vpc",
                "key" => "key-pair",
                "snap" => "snapshot",
                _ => "*",
            };
            let mut need = Need::new(action, format!("arn:aws:ec2:{region}:{ACCOUNT}:{kind}/{id}"));
            for (key, value) in self.tags_of(region, id).await? {
                need = need
                    .with(&format!("aws:ResourceTag/{key}"), &value)
                    .with(&format!("ec2:ResourceTag/{key}"), &value);
            }
            needs.push(need);
        }
        Ok(needs)
    }

    async fn tags_of(&self, region: &str, id: &str) -> Result<Vec<(String, String)>> {
        // The emulator's list of all tags leaves out those of templates.
        if id.starts_with("lt-") {
            let pairs = [("LaunchTemplateId.1", id)];
            let answer = self.moto.ask("ec2", region, "DescribeLaunchTemplates", &Form::of(pairs)).await?;
            if !answer.status.is_success() {
                return Ok(Vec::new());
            }
            return Ok(tags_in(&Element::parse(&answer.text())?));
        }
        let pairs = [("Filter.1.Name", "resource-id"), ("Filter.1.Value.1", id)];
        Ok(tags_in(&self.moto.call("ec2", region, "DescribeTags", pairs).await?))
    }

    /// What starting instances needs; `form` has everything that a template would add.
    async fn of_launch(&self, region: &str, form: &Form, direct: bool) -> Result<Vec<Need>> {
        let run = |resource: String| Need::new("ec2:RunInstances", resource).with("ec2:Region", region);
        let arn = |kind: &str, id: &str| format!("arn:aws:ec2:{region}:{ACCOUNT}:{kind}/{id}");
        let mut needs = vec![
            run(format!("arn:aws:ec2:{region}::image/{}", form.text("ImageId"))),
            tagged(run(arn("instance", "*")), form, "TagSpecification"),
            run(arn("network-interface", "*")),
            run(arn("volume", "*")),
            run(arn("subnet", form.get("SubnetId").unwrap_or("*"))),
        ];
        needs.extend(form.values("SecurityGroupId").iter().map(|id| run(arn("security-group", id))));
        if form.get("InstanceMarketOptions.MarketType") == Some("spot") {
            needs.push(run(arn("spot-instances-request", "*")));
        }
        if !direct && !form.list("TagSpecification").is_empty() {
            let create = Need::new("ec2:CreateTags", arn("instance", "*"));
            needs.push(tagged(create.with("ec2:CreateAction", "RunInstances"), form, "TagSpecification"));
        }
        let profile = form.below("IamInstanceProfile");
        let name = profile.get("Name").or_else(|| profile.get("Arn").and_then(|arn| arn.rsplit('/').next()));
        if let Some(name) = name {
            for role in self.roles_of(name).await?.unwrap_or_default() {
                needs.push(
                    Need::new("iam:PassRole", role.arn).with("iam:PassedToService", "ec2.amazonaws.com"),
                );
            }
        }
        Ok(needs)
    }

    async fn of_scaling(&self, asked: &Asked) -> Result<Vec<Need>> {
        let form = &asked.form;
        let action = format!("autoscaling:{}", asked.action);
        if asked.action.starts_with("Describe") {
            return Ok(vec![Need::new(action, "*")]);
        }
        let name = match form.get("AutoScalingGroupName").or_else(|| form.get("Tags.member.1.ResourceId")) {
            Some(name) => name.to_owned(),
            None => self.group_of(form.text("InstanceId")).unwrap_or_default(),
        };
        let (arn, tags) = self.group_arn(&asked.region, &name);
        let mut group = Need::new(action, arn.clone());
        for (key, value) in &tags {
            group = group
                .with(&format!("aws:ResourceTag/{key}"), value)
                .with(&format!("autoscaling:ResourceTag/{key}"), value);
        }
        for tag in form.list("Tags") {
            group = group
                .with(&format!("aws:RequestTag/{}", tag.text("Key")), tag.text("Value"))
                .with("aws:TagKeys", tag.text("Key"));
        }
        let mut needs = vec![group.clone()];
        if asked.action != "CreateAutoScalingGroup" {
            return Ok(needs);
        }
        if !form.list("Tags").is_empty() {
            needs.push(Need { action: "autoscaling:CreateOrUpdateTags".to_owned(), ..group });
        }
        let launch = self.group_form(&asked.region, form);
        let spot = launch.get("InstanceMarketOptions.MarketType") == Some("spot");
        for (service, role) in [("autoscaling", "AutoScaling"), ("spot", "EC2Spot")] {
            let new = (service != "spot" || spot) && !self.lock().linked.contains(service);
            if new {
                let arn = format!(
                    "arn:aws:iam::{ACCOUNT}:role/aws-service-role/{service}.amazonaws.com/AWSServiceRoleFor{role}"
                );
                let need = Need::new("iam:CreateServiceLinkedRole", arn);
                needs.push(need.with("iam:AWSServiceName", format!("{service}.amazonaws.com")));
            }
        }
        needs.extend(self.of_launch(&asked.region, &launch, false).await?);
        Ok(needs)
    }

    async fn of_iam(&self, asked: &Asked) -> Result<Vec<Need>> {
        let form = &asked.form;
        let action = format!("iam:{}", asked.action);
        let profile = form.get("InstanceProfileName");
        let role = form.get("RoleName");
        // What is of one role is about that role.
        if asked.action.starts_with("List") && role.is_none() && profile.is_none() {
            return Ok(vec![Need::new(action, "*")]);
        }
        let path = form.get("Path").unwrap_or("/");
        let mut needs = Vec::new();
        match (profile, role) {
            (Some(profile), _) => {
                let arn = match self.profile_arn(profile).await? {
                    Some(arn) if asked.action != "CreateInstanceProfile" => arn,
                    _ => format!("arn:aws:iam::{ACCOUNT}:instance-profile{path}{profile}"),
                };
                needs.push(tagged_iam(Need::new(&action, arn), form));
                if asked.action == "CreateInstanceProfile" && !form.list("Tags").is_empty() {
                    let arn = format!("arn:aws:iam::{ACCOUNT}:instance-profile{path}{profile}");
                    needs.push(tagged_iam(Need::new("iam:TagInstanceProfile", arn), form));
                }
            }
            (None, Some(role)) => {
                let arn = match self.role_arn(role).await? {
                    Some(arn) if asked.action != "CreateRole" => arn,
                    _ => format!("arn:aws:iam::{ACCOUNT}:role{path}{role}"),
                };
                needs.push(tagged_iam(Need::new(&action, arn.clone()), form));
                if asked.action == "CreateRole" && !form.list("Tags").is_empty() {
                    needs.push(tagged_iam(Need::new("iam:TagRole", arn), form));
                }
            }
            (None, None) => {
                let about = form.get("PolicyArn").or_else(|| form.get("PolicySourceArn"));
                needs.push(Need::new(&action, about.unwrap_or("*")));
            }
        }
        if let ("AddRoleToInstanceProfile", Some(role)) = (asked.action.as_str(), role) {
            let arn = self.role_arn(role).await?;
            let arn = arn.unwrap_or_else(|| format!("arn:aws:iam::{ACCOUNT}:role/{role}"));
            needs.push(Need::new("iam:PassRole", arn).with("iam:PassedToService", "ec2.amazonaws.com"));
        }
        Ok(needs)
    }
}

fn tags_in(element: &Element) -> Vec<(String, String)> {
    let items = element.having("key").into_iter();
    items.map(|item| (item.at(&["key"]).to_owned(), item.at(&["value"]).to_owned())).collect()
}

/// With the tags that the request would set.
fn tagged(mut need: Need, form: &Form, list: &str) -> Need {
    for specification in form.list(list) {
        for tag in specification.list("Tag") {
            need = need
                .with(&format!("aws:RequestTag/{}", tag.text("Key")), tag.text("Value"))
                .with("aws:TagKeys", tag.text("Key"));
        }
    }
    need
}

fn tagged_iam(mut need: Need, form: &Form) -> Need {
    for tag in form.list("Tags") {
        need = need
            .with(&format!("aws:RequestTag/{}", tag.text("Key")), tag.text("Value"))
            .with("aws:TagKeys", tag.text("Key"));
    }
    need
}

/// Tagging at creation is an action of its own.
fn created_tags(asked: &Asked, list: &str) -> Vec<Need> {
    let specifications = asked.form.list(list).into_iter();
    specifications
        .map(|specification| {
            let kind = specification.text("ResourceType");
            let arn = format!("arn:aws:ec2:{}:{ACCOUNT}:{kind}/*", asked.region);
            let need = Need::new("ec2:CreateTags", arn).with("ec2:CreateAction", &asked.action);
            tagged(need, &asked.form, list)
        })
        .collect()
}

fn of_s3(asked: &Asked, request: &Request) -> Vec<Need> {
    let bucket = format!("arn:aws:s3:::{}", asked.bucket);
    let object = |key: &str| format!("{bucket}/{key}");
    if !asked.key.is_empty() {
        let mut needs = vec![Need::new(format!("s3:{}", asked.action), object(&asked.key))];
        if let Some(source) = request.header("x-amz-copy-source") {
            let source = crate::instance::sigv4::decode(source.trim_start_matches('/'));
            let source = source.split('?').next().unwrap_or_default().to_owned();
            needs.push(Need::new("s3:GetObject", format!("arn:aws:s3:::{source}")));
        }
        return needs;
    }
    match asked.action.as_str() {
        "ListAllMyBuckets" => vec![Need::new("s3:ListAllMyBuckets", "*")],
        "DeleteObjects" => {
            let body = String::from_utf8_lossy(&request.body);
            let keys = Element::parse(&body).map(|e| e.texts("Key").join("\n")).unwrap_or_default();
            let keys = keys.lines().map(|key| Need::new("s3:DeleteObject", object(key)));
            keys.chain(body.is_empty().then(|| Need::new("s3:DeleteObject", object("*")))).collect()
        }
        action => {
            let mut context: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for name in ["prefix", "delimiter", "max-keys"] {
                if let Some(value) = asked.query.get(name) {
                    let _none = context.insert(format!("s3:{name}"), vec![value.to_owned()]);
                }
            }
            vec![Need { action: format!("s3:{action}"), resource: bucket, context }]
        }
    }
}
