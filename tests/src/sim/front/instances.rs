//! Instances: what they are made from, and how they end.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Result;
use base64::Engine as _;
use jiff::Timestamp;

use super::{
    call::Asked,
    form::Form,
    http::Answer,
    model::{EndReason, Instance, InstanceState, MetadataOptions, ShutdownBehaviour},
    refusal::{Refusal, refuse},
    shared::{Shared, Template},
    xml::Element,
};

/// Most bytes that an instance can be told.
const USER_DATA_MAX: usize = 16 * 1024;

/// An instance, and what the emulator does not know of it.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) instance: Instance,
    security_groups: Vec<String>,
    /// Interfaces to the network, which the emulator forgets to remove.
    interfaces: Vec<String>,
    /// Code and words of why it ended.
    reason: Option<(&'static str, &'static str)>,
    /// Until when it is being ended.
    until: Option<Instant>,
}

/// Who ends an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndedBy {
    /// A call.
    User,
    /// Itself, or what happened to it.
    Itself(EndReason),
}

impl Shared {
    /// Parameters of `RunInstances` with those of the template that they name.
    pub(super) fn launch_form(&self, region: &str, form: &Form) -> Form {
        let named = form.below("LaunchTemplate");
        let state = self.lock();
        let template = state.templates.iter().find(|((of, name), template)| {
            of == region
                && (named.get("LaunchTemplateName") == Some(name)
                    || named.get("LaunchTemplateId") == Some(&template.id))
        });
        let Some((_, template)) = template else { return form.clone() };
        let first = |key: &str| key.split('.').next().unwrap_or_default().to_owned();
        let own: Vec<String> = form.0.keys().map(|key| first(key)).collect();
        let mut whole = template.data.clone();
        whole.0.retain(|key, _| !own.contains(&first(key)));
        let rest = form.0.iter().filter(|(key, _)| first(key) != "LaunchTemplate");
        whole.0.extend(rest.map(|(key, value)| (key.clone(), value.clone())));
        whole
    }

    /// Why no instance can be started so.
    pub(super) async fn launch_refusal(&self, form: &Form) -> Result<Option<Refusal>> {
        if let Err(refusal) = user_data(form) {
            return Ok(Some(refusal));
        }
        let profile = form.below("IamInstanceProfile");
        let (name, told) = match (profile.get("Name"), profile.get("Arn")) {
            (Some(name), _) => (name, "name"),
            (None, Some(arn)) => (arn.rsplit('/').next().unwrap_or_default(), "arn"),
            (None, None) => return Ok(None),
        };
        let fresh = self.lock().made.get(&format!("instance-profile/{name}")).copied();
        let fresh = fresh.is_some_and(|made| self.clock.now().duration_since(made) < self.options.iam_delay);
        let roles = self.roles_of(name).await?;
        if !fresh && roles.is_some_and(|roles| !roles.is_empty()) {
            return Ok(None);
        }
        let words = format!(
            "Value ({name}) for parameter iamInstanceProfile.{told} is invalid. Invalid IAM Instance Profile {told}"
        );
        Ok(Some(Refusal::new(400, "InvalidParameterValue", words)))
    }

    /// Starts instances; `form` names no template any more.
    pub(super) async fn launch(
        &self,
        region: &str,
        form: &Form,
        group: Option<&str>,
    ) -> Result<Result<(Answer, Vec<String>), Refusal>> {
        if let Some(refusal) = self.launch_refusal(form).await? {
            return Ok(Err(refusal));
        }
        let mut asked = form.clone();
        let _token = asked.0.remove("ClientToken");
        let answer = self.moto.ask("ec2", region, "RunInstances", &asked).await?;
        let element = Element::parse(&answer.text())?;
        if !answer.status.is_success() {
            let text = |name: &str| element.texts(name).first().map(|t| (*t).to_owned()).unwrap_or_default();
            return Ok(Err(Refusal::new(answer.status.as_u16(), &text("Code"), text("Message"))));
        }
        let profile = form.below("IamInstanceProfile");
        let profile =
            profile.get("Name").or_else(|| profile.get("Arn").and_then(|arn| arn.rsplit('/').next()));
        let role = match profile {
            Some(profile) => {
                self.roles_of(profile).await?.unwrap_or_default().into_iter().next().map(|r| r.name)
            }
            None => None,
        };
        let mut ids = Vec::new();
        for item in element.having("instanceState") {
            let instance = Instance {
                id: item.at(&["instanceId"]).to_owned(),
                state: InstanceState::Running,
                region: region.to_owned(),
                zone: item.at(&["placement", "availabilityZone"]).to_owned(),
                kind: item.at(&["instanceType"]).to_owned(),
                group: group.map(str::to_owned),
                image: item.at(&["imageId"]).to_owned(),
                profile: profile.map(str::to_owned),
                role: role.clone(),
                user_data: user_data(form).unwrap_or_default(),
                metadata: metadata(form),
                tags: tags(form, "instance"),
                private_ip: item.at(&["privateIpAddress"]).parse().ok(),
                shutdown: match form.text("InstanceInitiatedShutdownBehavior") {
                    "terminate" => ShutdownBehaviour::Terminate,
                    _ => ShutdownBehaviour::Stop,
                },
                spot: form.get("InstanceMarketOptions.MarketType") == Some("spot"),
                launched: self.clock.now(),
                ended: None,
            };
            ids.push(instance.id.clone());
            self.lock().instances.push(Known {
                instance,
                security_groups: form.values("SecurityGroupId"),
                interfaces: item.texts("networkInterfaceId").into_iter().map(str::to_owned).collect(),
                reason: None,
                until: None,
            });
        }
        Ok(Ok((answer, ids)))
    }

    pub(super) fn instance(&self, id: &str) -> Option<Instance> {
        self.lock().instances.iter().find(|known| known.instance.id == id).map(|known| known.instance.clone())
    }

    /// Ends an instance that is still there; whether it was.
    pub(super) async fn end(&self, id: &str, by: EndedBy) -> Result<bool> {
        let Some(instance) = self.instance(id) else { return Ok(false) };
        match instance.state {
            InstanceState::Terminated | InstanceState::ShuttingDown => return Ok(false),
            InstanceState::Pending
            | InstanceState::Running
            | InstanceState::Stopping
            | InstanceState::Stopped => {}
        }
        let stops =
            by == EndedBy::Itself(EndReason::PoweredOff) && instance.shutdown == ShutdownBehaviour::Stop;
        let action = if stops { "StopInstances" } else { "TerminateInstances" };
        let _answer = self.moto.call("ec2", &instance.region, action, [("InstanceId.1", id)]).await?;
        let interfaces = {
            let mut state = self.lock();
            let known = state.instances.iter_mut().find(|known| known.instance.id == id && !stops);
            known.map(|known| std::mem::take(&mut known.interfaces)).unwrap_or_default()
        };
        for interface in interfaces {
            let form = Form::of([("NetworkInterfaceId", interface.as_str())]);
            // It may have gone with its instance.
            let _answer = self.moto.ask("ec2", &instance.region, "DeleteNetworkInterface", &form).await?;
        }
        let mut state = self.lock();
        if let Some(known) = state.instances.iter_mut().find(|known| known.instance.id == id) {
            let (now, reason, ended) = match by {
                // A machine has time to shut down.
                EndedBy::User => (InstanceState::ShuttingDown, None, None),
                EndedBy::Itself(reason @ EndReason::Died) => {
                    (InstanceState::ShuttingDown, None, Some(reason))
                }
                EndedBy::Itself(reason @ EndReason::PoweredOff) => {
                    let now = if stops { InstanceState::Stopped } else { InstanceState::Terminated };
                    let words = "Client.InstanceInitiatedShutdown: Instance initiated shutdown";
                    (now, Some(("Client.InstanceInitiatedShutdown", words)), Some(reason))
                }
                EndedBy::Itself(reason @ EndReason::SpotReclaimed) => {
                    let words = "Server.SpotInstanceTermination: Spot instance termination";
                    (InstanceState::Terminated, Some(("Server.SpotInstanceTermination", words)), Some(reason))
                }
            };
            known.instance.state = now;
            known.reason = reason;
            known.instance.ended = ended;
            known.until = Some(Instant::now() + self.options.shutdown);
        }
        drop(state);
        Ok(true)
    }

    /// Instances that have been ending for long enough are gone.
    pub(super) fn finish_ends(&self) {
        let now = Instant::now();
        for known in &mut self.lock().instances {
            if known.instance.state == InstanceState::ShuttingDown
                && known.until.is_none_or(|until| until <= now)
            {
                known.instance.state = InstanceState::Terminated;
            }
        }
    }

    /// `DescribeInstances`, with what the emulator does not know.
    pub(super) fn describe(&self, answer: &Answer) -> Result<Answer> {
        if !answer.status.is_success() {
            return Ok(answer.clone());
        }
        self.finish_ends();
        let mut element = Element::parse(&answer.text())?;
        let state = self.lock();
        element.visit(&mut |item| {
            let id = item.child("instanceState").map(|_| item.at(&["instanceId"]).to_owned());
            let Some(id) = id else { return };
            let Some(known) = state.instances.iter().find(|known| known.instance.id == id) else { return };
            if known.instance.state == InstanceState::ShuttingDown
                && let Some(told) = item.child_mut("instanceState")
            {
                told.set("code", "32");
                told.set("name", "shutting-down");
            }
            if let Some((code, words)) = known.reason {
                let told = if code.starts_with("Server.") { code } else { "" };
                item.set("reason", told);
                item.children.retain(|child| child.name != "stateReason");
                item.children.push(
                    Element::new("stateReason")
                        .with(Element::text("code", code))
                        .with(Element::text("message", words)),
                );
            }
        });
        Ok(Answer::xml(element.to_string()))
    }

    /// Whether an instance, or what is left of one, still uses a security group.
    pub(super) fn is_used(&self, security_group: &str) -> bool {
        self.lock().instances.iter().any(|known| {
            let lingers = known.until.is_some_and(|until| Instant::now() < until + LINGER);
            let there = known.instance.state != InstanceState::Terminated || lingers;
            there && known.security_groups.iter().any(|group| group == security_group)
        })
    }

    /// A launch template that was made.
    pub(super) fn remember_template(&self, asked: &Asked, answer: &Answer) -> Result<()> {
        let element = Element::parse(&answer.text())?;
        let id = element.texts("launchTemplateId").first().map(|id| (*id).to_owned()).unwrap_or_default();
        let name = (asked.region.clone(), asked.form.text("LaunchTemplateName").to_owned());
        let data = asked.form.below("LaunchTemplateData");
        let _old = self.lock().templates.insert(name, Template { id, data });
        Ok(())
    }
}

/// A network interface goes a moment after its machine.
const LINGER: Duration = Duration::from_millis(500);

/// What an instance is told, decoded.
pub(super) fn user_data(form: &Form) -> Result<Vec<u8>, Refusal> {
    let Ok(bytes) = base64::engine::general_purpose::STANDARD.decode(form.text("UserData")) else {
        return refuse("InvalidUserData.Malformed", "Invalid BASE64 encoding of user data.");
    };
    if bytes.len() > USER_DATA_MAX {
        return refuse("InvalidParameterValue", "User data is limited to 16384 bytes");
    }
    Ok(bytes)
}

fn metadata(form: &Form) -> MetadataOptions {
    let told = form.below("MetadataOptions");
    MetadataOptions {
        enabled: told.get("HttpEndpoint") != Some("disabled"),
        tokens_required: told.get("HttpTokens") == Some("required"),
        hop_limit: told.text("HttpPutResponseHopLimit").parse().unwrap_or(1),
    }
}

/// Tags that a kind of resource gets.
pub(super) fn tags(form: &Form, kind: &str) -> BTreeMap<String, String> {
    let specifications = form.list("TagSpecification").into_iter();
    let of_kind = specifications.filter(|s| s.text("ResourceType") == kind);
    let tags = of_kind.flat_map(|s| s.list("Tag"));
    tags.map(|tag| (tag.text("Key").to_owned(), tag.text("Value").to_owned())).collect()
}

/// A time as activities tell it.
pub(super) fn at(time: Timestamp) -> String {
    super::market::whole(time)
}
