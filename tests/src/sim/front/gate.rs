//! The way of a request: recognised, delayed or failed on demand, let in, carried out, noted.

use std::time::Instant;

use anyhow::Result;
use http::{Method, StatusCode};

use super::{
    ACCOUNT,
    call::{Asked, Scope},
    faults::{self, Fate},
    http::{Answer, AsyncFnAnswer, Cut, Request},
    identity::Principal,
    instances::EndedBy,
    model::{Call, Refused},
    policy::{self, Denied, Need},
    refusal::{Refusal, code_in, query_answer, refuse, request_id},
    shared::Shared,
    xml::Element,
};

const IAM: &str = "https://iam.amazonaws.com/doc/2010-05-08/";
const STS: &str = "https://sts.amazonaws.com/doc/2011-06-15/";
/// Most characters in all inline policies of a role, without white space.
const INLINE_MAX: usize = 10_240;

impl AsyncFnAnswer for Shared {
    async fn answer(&self, request: Request) -> Result<Answer, Cut> {
        let began = Instant::now();
        let scope = Scope::of(&request);
        let asked = Asked::of(&request, scope.as_ref());
        let (principal, fate) = {
            let mut state = self.lock();
            let holder = scope.as_ref().and_then(|scope| state.keys.holder(&scope.key));
            let name = holder.map(|p| p.name()).unwrap_or_default();
            let fate = faults::fate(&mut state.faults, &asked, &name);
            if !asked.region.is_empty() && asked.service != "s3" {
                let _new = state.regions.insert(asked.region.clone());
            }
            (name, fate)
        };
        let done = self.with_fate(&request, &asked, scope.as_ref(), &fate).await;
        let (status, code) =
            done.as_ref().map_or((0, String::new()), |answer| (answer.status.as_u16(), code_in(answer)));
        let call = Call {
            service: asked.service.clone(),
            action: asked.action.clone(),
            region: asked.region.clone(),
            principal,
            from: request.from.ip(),
            resource: asked.resource(),
            began,
            ended: Instant::now(),
            status,
            code,
        };
        self.lock().calls.push(call);
        done
    }
}

impl Shared {
    async fn with_fate(
        &self,
        request: &Request,
        asked: &Asked,
        scope: Option<&Scope>,
        fate: &Fate,
    ) -> Result<Answer, Cut> {
        if !fate.delay.is_zero() {
            tokio::time::sleep(fate.delay).await;
        }
        if fate.cut_before {
            return Err(Cut);
        }
        if fate.hold_before {
            self.hold().await;
        }
        let done = match &fate.refusal {
            Some(refusal) => Err(refusal.clone()),
            None => self.admit(request, asked, scope).await.unwrap_or_else(|e| Err(Refusal::internal(&e))),
        };
        if fate.hold_after {
            self.hold().await;
        }
        if fate.cut_after {
            return Err(Cut);
        }
        Ok(done.unwrap_or_else(|refusal| refusal.answer(asked, &request.method)))
    }

    /// Until the client is gone, which drops this.
    async fn hold(&self) {
        self.lock().held += 1;
        std::future::pending::<()>().await;
    }

    async fn admit(
        &self,
        request: &Request,
        asked: &Asked,
        scope: Option<&Scope>,
    ) -> Result<Result<Answer, Refusal>> {
        let now = self.clock.now();
        let checked = self.lock().keys.check(request, scope, now);
        let principal = match checked {
            Ok(principal) => principal,
            Err(refusal) => {
                let who = scope.map(|s| s.key.clone()).unwrap_or_default();
                self.note(
                    who,
                    format!("{}:{}", asked.service, asked.action),
                    asked.resource(),
                    &refusal.message,
                );
                return Ok(Err(refusal));
            }
        };
        for need in self.needs(asked, request).await? {
            if let Some(refusal) = self.denied(&principal, asked, &need).await? {
                return Ok(Err(refusal));
            }
        }
        if asked.service == "ec2" && asked.form.is("DryRun") {
            let words = "Request would have succeeded, but DryRun flag is set.";
            return Ok(Err(Refusal::new(412, "DryRunOperation", words)));
        }
        let token = asked.form.get("ClientToken").filter(|token| !token.is_empty() && asked.service == "ec2");
        let Some(token) = token else { return self.carry_out(request, asked, &principal).await };
        let key = (asked.region.clone(), asked.action.clone(), token.to_owned());
        let mut once = self.once.lock().await;
        if let Some((form, answer)) = once.get(&key) {
            if *form != asked.form {
                let words = "The client token has been used before with other parameters.";
                return Ok(refuse("IdempotentParameterMismatch", words));
            }
            return Ok(Ok(answer.clone()));
        }
        let done = self.carry_out(request, asked, &principal).await?;
        if let Ok(answer) = &done
            && answer.status.is_success()
        {
            let _none = once.insert(key, (asked.form.clone(), answer.clone()));
        }
        Ok(done)
    }

    fn note(&self, principal: String, action: String, resource: String, why: &str) {
        self.lock().refused.push(Refused { principal, action, resource, why: why.to_owned() });
    }

    /// The refusal, in the service's words, when somebody may not.
    async fn denied(&self, principal: &Principal, asked: &Asked, need: &Need) -> Result<Option<Refusal>> {
        let Some(policies) = self.policies_of(principal).await? else { return Ok(None) };
        let Err(denied) = policy::decide(&policies, need) else { return Ok(None) };
        let (action, resource) = (&need.action, &need.resource);
        let words = format!(
            "User: {} is not authorized to perform: {action} on resource: {resource} {denied} the {action} action",
            principal.arn()
        );
        let words = words.replace(" for the ", ": ");
        self.note(principal.name(), action.clone(), resource.clone(), &words);
        let of_launch = action.starts_with("ec2:") || action == "iam:PassRole";
        let (code, words) = match asked.service.as_str() {
            "ec2" => {
                let encoded = hex::encode_upper(rand::random::<[u8; 16]>());
                let begin = "You are not authorized to perform this operation.";
                (
                    "UnauthorizedOperation",
                    format!("{begin} {words}. Encoded authorization failure message: {encoded}"),
                )
            }
            // So it is worded: what is missing has to be found by trying to start an instance.
            "autoscaling" if of_launch => {
                let mixed =
                    "MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification.LaunchTemplateName";
                let name =
                    asked.form.get(mixed).or_else(|| asked.form.get("LaunchTemplate.LaunchTemplateName"));
                let words =
                    format!("You are not authorized to use launch template: {}", name.unwrap_or_default());
                ("AccessDenied", words)
            }
            "servicequotas" => ("AccessDeniedException", words),
            _ => ("AccessDenied", words),
        };
        Ok(Some(Refusal::new(if asked.service == "servicequotas" { 400 } else { 403 }, code, words)))
    }

    async fn carry_out(
        &self,
        request: &Request,
        asked: &Asked,
        principal: &Principal,
    ) -> Result<Result<Answer, Refusal>> {
        match asked.service.as_str() {
            "ec2" => self.ec2(request, asked).await,
            "autoscaling" => self.auto_scaling(asked).await,
            "iam" if asked.action == "SimulatePrincipalPolicy" => self.simulate(asked).await,
            "iam" => self.iam(request, asked).await,
            "s3" => self.s3(request, asked, principal).await,
            "servicequotas" => Ok(self.service_quotas(asked)),
            "sts" if asked.action == "GetCallerIdentity" => {
                let id = match principal {
                    Principal::Laptop => "AIDATPILAPTOP0000000",
                    Principal::Role { .. } => "AROATPIROLE000000000",
                };
                let told =
                    [("Arn", principal.arn()), ("UserId", id.to_owned()), ("Account", ACCOUNT.to_owned())];
                let told = told.map(|(name, text)| Element::text(name, text));
                Ok(Ok(query_answer(STS, "GetCallerIdentity", told)))
            }
            other => Ok(refuse("InvalidAction", format!("{other}:{} is not simulated", asked.action))),
        }
    }

    async fn ec2(&self, request: &Request, asked: &Asked) -> Result<Result<Answer, Refusal>> {
        let form = &asked.form;
        let forward = async || self.moto.forward(request, "ec2", &asked.region).await;
        match asked.action.as_str() {
            "RunInstances" => {
                let whole = self.launch_form(&asked.region, form);
                let named = |name: &str| whole.0.keys().any(|key| key.starts_with(name));
                if named("LaunchTemplate.") {
                    let words = "The specified launch template does not exist.";
                    return Ok(refuse("InvalidLaunchTemplateName.NotFoundException", words));
                }
                Ok(self.launch(&asked.region, &whole, None).await?.map(|(answer, _)| answer))
            }
            "TerminateInstances" => self.terminate(asked).await,
            "StopInstances"
            | "StartInstances"
            | "RebootInstances"
            | "CreateLaunchTemplateVersion"
            | "ModifyLaunchTemplate"
            | "CreateFleet"
            | "RequestSpotInstances"
            | "RequestSpotFleet" => {
                let words = format!("{} is not simulated", asked.action);
                Ok(refuse("UnsupportedOperation", words))
            }
            "DescribeInstances" => Ok(Ok(self.describe(&forward().await?)?)),
            "DescribeSpotPriceHistory" => self.price_history(asked).await,
            "CreateLaunchTemplate" => {
                if let Err(refusal) = super::instances::user_data(&form.below("LaunchTemplateData")) {
                    return Ok(Err(refusal));
                }
                let answer = forward().await?;
                if answer.status.is_success() {
                    self.remember_template(asked, &answer)?;
                }
                Ok(Ok(answer))
            }
            "DeleteLaunchTemplate" => {
                let answer = forward().await?;
                if answer.status.is_success() {
                    let gone = |(region, name): &(String, String), id: &str| {
                        *region == asked.region
                            && (form.get("LaunchTemplateName") == Some(name)
                                || form.get("LaunchTemplateId") == Some(id))
                    };
                    self.lock().templates.retain(|name, template| !gone(name, &template.id));
                }
                Ok(Ok(answer))
            }
            "DeleteSecurityGroup" if self.is_used(form.text("GroupId")) => {
                let words = format!("resource {} has a dependent object", form.text("GroupId"));
                Ok(refuse("DependencyViolation", words))
            }
            "CreateTags" | "DeleteTags" => {
                let answer = forward().await?;
                if answer.status.is_success() {
                    let ids = form.values("ResourceId");
                    for known in self.lock().instances.iter_mut().filter(|k| ids.contains(&k.instance.id)) {
                        for tag in form.list("Tag") {
                            let key = tag.text("Key").to_owned();
                            if asked.action == "CreateTags" {
                                let _old = known.instance.tags.insert(key, tag.text("Value").to_owned());
                            } else {
                                let _old = known.instance.tags.remove(&key);
                            }
                        }
                    }
                }
                Ok(Ok(answer))
            }
            _ => Ok(Ok(forward().await?)),
        }
    }

    async fn terminate(&self, asked: &Asked) -> Result<Result<Answer, Refusal>> {
        let ids = asked.form.values("InstanceId");
        for id in &ids {
            if self.instance(id).is_none_or(|instance| instance.region != asked.region) {
                let words = format!("The instance ID '{id}' does not exist");
                return Ok(refuse("InvalidInstanceID.NotFound", words));
            }
        }
        let _engine = self.engine.lock().await;
        let state = |code: &str, name: &str| [Element::text("code", code), Element::text("name", name)];
        let mut items = Vec::new();
        for id in &ids {
            let was = self.end(id, EndedBy::User).await?;
            if was {
                self.member_lost(id, None);
            }
            let [before, now] = match was {
                true => [state("16", "running"), state("32", "shutting-down")],
                false => [state("48", "terminated"), state("48", "terminated")],
            };
            items.push(
                Element::new("item")
                    .with(Element::text("instanceId", id))
                    .with(Element::new("currentState").with_all(now))
                    .with(Element::new("previousState").with_all(before)),
            );
        }
        let answer = Element::new("TerminateInstancesResponse")
            .with(Element::text("requestId", request_id()))
            .with(Element::new("instancesSet").with_all(items));
        Ok(Ok(Answer::xml(answer.to_string())))
    }

    /// What somebody's policies would say.
    async fn simulate(&self, asked: &Asked) -> Result<Result<Answer, Refusal>> {
        let form = &asked.form;
        let source = form.text("PolicySourceArn");
        let name = source.rsplit('/').next().unwrap_or_default().to_owned();
        let principal = if source == Principal::Laptop.arn() {
            Principal::Laptop
        } else if source.contains(":role/") {
            Principal::Role { role: name, session: String::new() }
        } else {
            return Ok(Err(Refusal::new(
                404,
                "NoSuchEntity",
                format!("The entity {source} cannot be found."),
            )));
        };
        let policies = self.policies_of(&principal).await?;
        let resources = match form.values("ResourceArns") {
            none if none.is_empty() => vec!["*".to_owned()],
            resources => resources,
        };
        let mut results = Vec::new();
        for action in form.values("ActionNames") {
            for resource in &resources {
                let mut need = Need::new(&action, resource);
                for entry in form.list("ContextEntries") {
                    for value in entry.values("ContextKeyValues") {
                        need = need.with(entry.text("ContextKeyName"), value);
                    }
                }
                let (decision, missing) = match &policies {
                    None => ("allowed", Vec::new()),
                    Some(policies) => match policy::decide(policies, &need) {
                        Ok(()) => ("allowed", Vec::new()),
                        Err(Denied::Implicitly) => ("implicitDeny", policy::missing(policies, &need)),
                        Err(Denied::Explicitly) => ("explicitDeny", policy::missing(policies, &need)),
                    },
                };
                let missing = missing.into_iter().map(|key| Element::text("member", key));
                results.push(
                    Element::new("member")
                        .with(Element::text("EvalActionName", &action))
                        .with(Element::text("EvalResourceName", resource))
                        .with(Element::text("EvalDecision", decision))
                        .with(Element::new("MatchedStatements"))
                        .with(Element::new("MissingContextValues").with_all(missing)),
                );
            }
        }
        let results =
            [Element::new("EvaluationResults").with_all(results), Element::text("IsTruncated", "false")];
        Ok(Ok(query_answer(IAM, "SimulatePrincipalPolicy", results)))
    }

    async fn iam(&self, request: &Request, asked: &Asked) -> Result<Result<Answer, Refusal>> {
        let form = &asked.form;
        if form.text("RoleName").len() > 64 || form.text("InstanceProfileName").len() > 128 {
            return Ok(refuse(
                "ValidationError",
                "a name is longer than a role's 64 or a profile's 128 characters",
            ));
        }
        for name in ["AssumeRolePolicyDocument", "PolicyDocument"] {
            let Some(text) = form.get(name) else { continue };
            let document: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
            if document["Statement"].is_null() {
                return Ok(refuse(
                    "MalformedPolicyDocument",
                    "This policy contains invalid Json or no Statement",
                ));
            }
            if asked.action == "PutRolePolicy"
                && text.split_whitespace().map(str::len).sum::<usize>() > INLINE_MAX
            {
                let words = format!("Maximum policy size of {INLINE_MAX} bytes exceeded");
                return Ok(refuse("LimitExceeded", words));
            }
        }
        let answer = self.moto.forward(request, "iam", "us-east-1").await?;
        if answer.status.is_success() && !asked.action.starts_with("Get") && !asked.action.starts_with("List")
        {
            let mut state = self.lock();
            state.policies.clear();
            if asked.action == "AddRoleToInstanceProfile" {
                let name = format!("instance-profile/{}", form.text("InstanceProfileName"));
                let _old = state.made.insert(name, self.clock.now());
            }
        }
        Ok(Ok(answer))
    }

    async fn s3(
        &self,
        request: &Request,
        asked: &Asked,
        principal: &Principal,
    ) -> Result<Result<Answer, Refusal>> {
        let owner = request.header("x-amz-expected-bucket-owner");
        if owner.is_some_and(|owner| owner != ACCOUNT) {
            return Ok(Err(Refusal::new(403, "AccessDenied", "Access Denied")));
        }
        if self.lock().foreign.contains(&asked.bucket) {
            return Ok(Err(if asked.action == "CreateBucket" {
                let words = "The requested bucket name is not available. The bucket namespace is shared by all users of \
                             the system. Please select a different name and try again.";
                Refusal::new(409, "BucketAlreadyExists", words)
            } else {
                Refusal::new(403, "AccessDenied", "Access Denied")
            }));
        }
        let region = self.lock().buckets.get(&asked.bucket).cloned();
        if let Some(region) = region
            && region != asked.region
            && asked.action != "CreateBucket"
        {
            let words = format!(
                "The authorization header is malformed; the region '{}' is wrong; expecting '{region}'",
                asked.region
            );
            return Ok(refuse("AuthorizationHeaderMalformed", words));
        }
        let answer = self.moto.forward(request, "s3", &asked.region).await?;
        match asked.action.as_str() {
            "CreateBucket" if answer.status.is_success() => {
                let mut state = self.lock();
                let _known =
                    state.buckets.entry(asked.bucket.clone()).or_insert_with(|| asked.region.clone());
            }
            "DeleteBucket" if answer.status.is_success() => drop(self.lock().buckets.remove(&asked.bucket)),
            // Who may not list is not told what is absent. It is kept as a call that failed, not among those that were
            // refused: nothing was there to be kept from anybody, and machines are made to ask like this.
            "GetObject" if answer.status == StatusCode::NOT_FOUND && request.method != Method::PUT => {
                let list = Need::new("s3:ListBucket", format!("arn:aws:s3:::{}", asked.bucket));
                let policies = self.policies_of(principal).await?;
                if policies.is_some_and(|policies| policy::decide(&policies, &list).is_err()) {
                    let words = format!(
                        "User: {} is not authorized to perform: s3:ListBucket on resource: \"{}\" because no \
                         identity-based policy allows the s3:ListBucket action",
                        principal.arn(),
                        list.resource
                    );
                    return Ok(Err(Refusal::new(403, "AccessDenied", words)));
                }
            }
            _ => {}
        }
        Ok(Ok(answer))
    }
}
