//! The simulated AWS itself: what its front does that the emulator behind it does not.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use axum::http::Method;
use base64::Engine as _;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tpi_tests::{
    instance::sigv4,
    sim::{
        client::{Client, Told},
        front::{EndReason, Front, InstanceState, Matching, Options, ShortageReason, Trouble},
    },
};

const REGION: &str = "us-west-2";
const IMAGE: &str = "ami-0aa00000000000002";
const TASK: &str = "tpi-test-3z4xlzwq-3u0vweb4";
const PATIENCE: Duration = Duration::from_secs(60);

/// `None`, with a word about it, where moto is not installed.
#[expect(clippy::print_stderr, reason = "says what is skipped")]
async fn front(change: impl FnOnce(&mut Options)) -> Result<Option<(Front, Client)>> {
    let Some(mut options) = Options::of_environment() else {
        eprintln!("SKIPPED: TPI_TEST_MOTO does not name a virtual environment with moto");
        return Ok(None);
    };
    change(&mut options);
    let front = Front::start("127.0.0.1:0".parse()?, options).await?;
    let (key, secret) = front.laptop();
    let client = Client::new(&front.url(), REGION, (&key, &secret, ""));
    Ok(Some((front, client)))
}

/// Until it is so; what is looked at changes by itself.
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let begun = std::time::Instant::now();
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        ensure!(begun.elapsed() < PATIENCE, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn base64(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// Role, profile, security group and template.
async fn made(client: &Client, policy: &Value) -> Result<String> {
    let trust = json!({
        "Version": "2012-10-17",
        "Statement": [{ "Effect": "Allow", "Principal": { "Service": "ec2.amazonaws.com" }, "Action": "sts:AssumeRole" }],
    })
    .to_string();
    let tag = [("Tags.member.1.Key", "tpi:task"), ("Tags.member.1.Value", TASK), ("Path", "/tpi/")];
    let role = [[("RoleName", TASK), ("AssumeRolePolicyDocument", &trust)].as_slice(), &tag].concat();
    client.done("iam", "CreateRole", &role).await?;
    let policy = policy.to_string();
    let put = [("RoleName", TASK), ("PolicyName", "tpi-task"), ("PolicyDocument", &policy)];
    client.done("iam", "PutRolePolicy", &put).await?;
    client
        .done("iam", "CreateInstanceProfile", &[[("InstanceProfileName", TASK)].as_slice(), &tag].concat())
        .await?;
    let add = [("InstanceProfileName", TASK), ("RoleName", TASK)];
    client.done("iam", "AddRoleToInstanceProfile", &add).await?;
    let vpc = client.done("ec2", "DescribeVpcs", &[]).await?.text("vpcId");
    let tag = |kind: &'static str| {
        [
            ("TagSpecification.1.ResourceType", kind),
            ("TagSpecification.1.Tag.1.Key", "tpi:task"),
            ("TagSpecification.1.Tag.1.Value", TASK),
        ]
    };
    let group = [("GroupName", TASK), ("GroupDescription", "machines"), ("VpcId", &vpc)];
    let group = client
        .done("ec2", "CreateSecurityGroup", &[group.as_slice(), &tag("security-group")].concat())
        .await?;
    let group = group.text("groupId");
    let data = base64("#!/bin/sh\necho hello\n");
    let template = [
        ("LaunchTemplateName", TASK),
        ("LaunchTemplateData.ImageId", IMAGE),
        ("LaunchTemplateData.InstanceType", "t3.medium"),
        ("LaunchTemplateData.UserData", &data),
        ("LaunchTemplateData.SecurityGroupId.1", &group),
        ("LaunchTemplateData.IamInstanceProfile.Name", TASK),
        ("LaunchTemplateData.InstanceInitiatedShutdownBehavior", "terminate"),
        ("LaunchTemplateData.MetadataOptions.HttpTokens", "required"),
        ("LaunchTemplateData.MetadataOptions.HttpPutResponseHopLimit", "2"),
        ("LaunchTemplateData.TagSpecification.1.ResourceType", "volume"),
        ("LaunchTemplateData.TagSpecification.1.Tag.1.Key", "tpi:task"),
        ("LaunchTemplateData.TagSpecification.1.Tag.1.Value", TASK),
    ];
    client
        .done("ec2", "CreateLaunchTemplate", &[template.as_slice(), &tag("launch-template")].concat())
        .await?;
    Ok(group)
}

/// A group of that size of everything above.
async fn grouped(client: &Client, size: &str, spot: bool) -> Result<Told> {
    let subnets = client.done("ec2", "DescribeSubnets", &[]).await?.texts("subnetId").join(",");
    const MIXED: &str = "MixedInstancesPolicy.LaunchTemplate";
    let template = format!("{MIXED}.LaunchTemplateSpecification.LaunchTemplateName");
    let (first, second) = (
        format!("{MIXED}.Overrides.member.1.InstanceType"),
        format!("{MIXED}.Overrides.member.2.InstanceType"),
    );
    let group = [
        ("AutoScalingGroupName", TASK),
        ("MinSize", "0"),
        ("MaxSize", size),
        ("DesiredCapacity", size),
        ("VPCZoneIdentifier", &subnets),
        (&template, TASK),
        (&first, "t3.medium"),
        (&second, "t3.large"),
        (
            "MixedInstancesPolicy.InstancesDistribution.OnDemandPercentageAboveBaseCapacity",
            if spot { "0" } else { "100" },
        ),
        ("Tags.member.1.Key", "tpi:task"),
        ("Tags.member.1.Value", TASK),
        ("Tags.member.1.PropagateAtLaunch", "true"),
    ];
    client.ask("autoscaling", "CreateAutoScalingGroup", &group).await
}

/// Removes all of it.
async fn removed(front: &Front, client: &Client, group: &str) -> Result<()> {
    let delete = [("AutoScalingGroupName", TASK), ("ForceDelete", "true")];
    let _told = client.ask("autoscaling", "DeleteAutoScalingGroup", &delete).await?;
    until("the group is gone", async || {
        let named = [("AutoScalingGroupNames.member.1", TASK)];
        let told = client.done("autoscaling", "DescribeAutoScalingGroups", &named).await?;
        Ok(told.text("AutoScalingGroupName").is_empty().then_some(()))
    })
    .await?;
    client.done("ec2", "DeleteLaunchTemplate", &[("LaunchTemplateName", TASK)]).await?;
    until("the security group is not used any more", async || {
        let told = client.ask("ec2", "DeleteSecurityGroup", &[("GroupId", group)]).await?;
        ensure!(told.status == 200 || told.text("Code") == "DependencyViolation", "{told:?}");
        Ok((told.status == 200).then_some(()))
    })
    .await?;
    let member = [("InstanceProfileName", TASK), ("RoleName", TASK)];
    client.done("iam", "RemoveRoleFromInstanceProfile", &member).await?;
    client.done("iam", "DeleteInstanceProfile", &[("InstanceProfileName", TASK)]).await?;
    client.done("iam", "DeleteRolePolicy", &[("RoleName", TASK), ("PolicyName", "tpi-task")]).await?;
    client.done("iam", "DeleteRole", &[("RoleName", TASK)]).await?;
    assert_eq!(front.everything_left().await?, Vec::<String>::new());
    Ok(())
}

async fn alive(front: &Front, count: usize) -> Result<Vec<tpi_tests::sim::front::Instance>> {
    until(&format!("{count} instances are there"), async || {
        let alive: Vec<_> = front.instances().await.into_iter().filter(|i| i.state.is_alive()).collect();
        Ok((alive.len() == count).then_some(alive))
    })
    .await
}

async fn activities(client: &Client) -> Result<Told> {
    let asked = [("AutoScalingGroupName", TASK), ("IncludeDeletedGroups", "true")];
    client.done("autoscaling", "DescribeScalingActivities", &asked).await
}

fn nothing() -> Value {
    json!({ "Version": "2012-10-17", "Statement": [{ "Effect": "Deny", "Action": "*", "Resource": "*" }] })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_keeps_its_machines_and_ends_on_time() -> Result<()> {
    let Some((front, client)) = front(|_| {}).await? else { return Ok(()) };
    let security_group = made(&client, &nothing()).await?;
    assert_eq!(grouped(&client, "2", true).await?.status, 200);
    assert_eq!(grouped(&client, "2", true).await?.text("Code"), "AlreadyExists");
    let machines = alive(&front, 2).await?;
    let [one, two] = machines.as_slice() else { unreachable!() };
    assert_ne!(one.zone, two.zone);
    assert_eq!(
        (one.kind.as_str(), one.spot, one.profile.as_deref(), one.role.as_deref(), one.group.as_deref()),
        ("t3.medium", true, Some(TASK), Some(TASK), Some(TASK))
    );
    assert_eq!(one.user_data, b"#!/bin/sh\necho hello\n");
    assert_eq!((one.metadata.tokens_required, one.metadata.hop_limit), (true, 2));
    assert_eq!((one.image.as_str(), one.tags["tpi:task"].as_str()), (IMAGE, TASK));
    let told = client.done("ec2", "DescribeInstances", &[]).await?;
    assert_eq!(told.texts("instanceLifecycle"), ["spot", "spot"], "{told:?}");
    // What is in use stays.
    let told = client.ask("ec2", "DeleteSecurityGroup", &[("GroupId", &security_group)]).await?;
    assert_eq!(told.text("Code"), "DependencyViolation");

    // One is lost, and replaced.
    front.end_instance(&one.id, EndReason::SpotReclaimed).await?;
    let machines = alive(&front, 2).await?;
    assert!(machines.iter().all(|m| m.id != one.id));
    let told = client.done("ec2", "DescribeInstances", &[("InstanceId.1", &one.id)]).await?;
    assert!(told.body.contains("<code>Server.SpotInstanceTermination</code>"), "{told:?}");
    let told = activities(&client).await?;
    assert!(told.text("Cause").contains("unhealthy instance needing to be replaced"), "{told:?}");
    let ended = format!("Terminating EC2 instance: {}", one.id);
    assert!(told.texts("Description").contains(&ended), "{told:?}");

    // One releases itself, and is not.
    let release = [("InstanceId", two.id.as_str()), ("ShouldDecrementDesiredCapacity", "true")];
    client.done("autoscaling", "TerminateInstanceInAutoScalingGroup", &release).await?;
    let machines = alive(&front, 1).await?;
    let told = activities(&client).await?;
    assert!(
        told.text("Cause").contains("in response to a user request, shrinking the capacity from 2 to 1"),
        "{told:?}"
    );
    let again = client.ask("autoscaling", "TerminateInstanceInAutoScalingGroup", &release).await?;
    assert_eq!(again.text("Code"), "ValidationError");

    // The schedule ends the rest.
    let at = |time: Timestamp| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let schedule = |time: Timestamp| {
        let sizes = [("MinSize", "0"), ("MaxSize", "0"), ("DesiredCapacity", "0")];
        let named = [("AutoScalingGroupName", TASK.to_owned()), ("ScheduledActionName", "end".to_owned())];
        let all = named.into_iter().chain([("StartTime", at(time))]);
        all.chain(sizes.map(|(n, v)| (n, v.to_owned()))).collect::<Vec<_>>()
    };
    let put = async |time: Timestamp| {
        let form = schedule(time);
        let form: Vec<(&str, &str)> = form.iter().map(|(n, v)| (*n, v.as_str())).collect();
        client.ask("autoscaling", "PutScheduledUpdateGroupAction", &form).await
    };
    assert_eq!(put(Timestamp::now() - SignedDuration::from_secs(5)).await?.text("Code"), "ValidationError");
    assert_eq!(put(Timestamp::now() + SignedDuration::from_hours(1)).await?.status, 200);
    front.clock().advance(SignedDuration::from_mins(59));
    assert_eq!(alive(&front, 1).await?, machines);
    front.clock().advance(SignedDuration::from_mins(2));
    assert!(alive(&front, 0).await?.is_empty());
    let told = activities(&client).await?;
    assert!(
        told.text("Cause").contains("a scheduled action update of AutoScalingGroup constraints"),
        "{told:?}"
    );
    removed(&front, &client, &security_group).await?;
    // What a group did outlives it.
    assert!(activities(&client).await?.body.contains("scheduled action"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shortages_are_told_until_they_are_over() -> Result<()> {
    let Some((front, client)) = front(|options| options.iam_delay = SignedDuration::from_mins(1)).await?
    else {
        return Ok(());
    };
    let security_group = made(&client, &nothing()).await?;
    // What IAM has made is not known at once.
    let told = grouped(&client, "1", false).await?;
    assert!(told.text("Message").contains("iamInstanceProfile.name is invalid"), "{told:?}");
    front.clock().advance(SignedDuration::from_mins(1));
    let none = front.shortage(Some("t3.medium"), None, ShortageReason::InsufficientInstanceCapacity);
    let quota = front.shortage(Some("t3.large"), None, ShortageReason::VcpuLimitExceeded);
    assert_eq!(grouped(&client, "1", false).await?.status, 200);
    let told = until("failures are told", async || {
        let told = activities(&client).await?;
        Ok(told.texts("StatusCode").contains(&"Failed".to_owned()).then_some(told))
    })
    .await?;
    let messages = told.texts("StatusMessage").join("\n");
    for words in ["do not have sufficient t3.medium capacity", "(us-west-2a)", "VcpuLimitExceeded"] {
        assert!(messages.contains(words), "{words}: {messages}");
    }
    assert!(told.text("Details").contains("&quot;Availability Zone&quot;:&quot;us-west-2"), "{told:?}");
    assert!(front.instances().await.is_empty());
    front.lift(none);
    let machines = alive(&front, 1).await?;
    assert_eq!(machines[0].kind, "t3.medium");
    front.lift(quota);
    // Power-off from within: gone, and replaced.
    front.end_instance(&machines[0].id, EndReason::PoweredOff).await?;
    let next = alive(&front, 1).await?;
    assert_ne!(next[0].id, machines[0].id);
    let ended =
        front.instances().await.into_iter().find(|i| i.id == machines[0].id).context("it was there")?;
    assert_eq!((ended.state, ended.ended), (InstanceState::Terminated, Some(EndReason::PoweredOff)));
    // A call ends the other one; it takes a moment, and it is replaced too.
    client.done("ec2", "TerminateInstances", &[("InstanceId.1", &next[0].id)]).await?;
    let told = client.done("ec2", "DescribeInstances", &[("InstanceId.1", &next[0].id)]).await?;
    assert!(told.body.contains("<name>shutting-down</name>"), "{told:?}");
    assert_ne!(alive(&front, 1).await?[0].id, next[0].id);
    removed(&front, &client, &security_group).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spot_price_that_is_too_low_gets_nothing() -> Result<()> {
    let Some((front, client)) = front(|_| {}).await? else { return Ok(()) };
    front.set_spot_price("m5.xlarge", Some("us-west-2b"), 1.25);
    let asked = [
        ("InstanceType.1", "m5.xlarge"),
        ("InstanceType.2", "x9.huge"),
        ("ProductDescription.1", "Linux/UNIX"),
    ];
    let told = client.done("ec2", "DescribeSpotPriceHistory", &asked).await?;
    let (zones, prices) = (told.texts("availabilityZone"), told.texts("spotPrice"));
    assert!(zones.len() >= 3 && prices.len() == zones.len(), "{told:?}");
    let at = zones.iter().position(|zone| zone == "us-west-2b").context("the zone")?;
    assert_eq!(prices[at], "1.250000");
    assert!(prices.iter().all(|price| price.parse::<f64>().is_ok_and(|price| price > 0.01)));

    let quota = async |code: &str| {
        let headers = [
            ("x-amz-target", "ServiceQuotasV20190624.GetServiceQuota"),
            ("content-type", "application/x-amz-json-1.1"),
        ];
        let body = json!({ "ServiceCode": "ec2", "QuotaCode": code }).to_string();
        client.send("servicequotas", Method::POST, "/", "", &headers, body.as_bytes()).await
    };
    front.set_quota("L-DB2E81BA", 4.0);
    let told: Value = serde_json::from_str(&quota("L-DB2E81BA").await?.body)?;
    assert_eq!(
        (&told["Quota"]["Value"], &told["Quota"]["QuotaName"]),
        (&json!(4.0), &json!("Running On-Demand G and VT instances"))
    );
    assert!(quota("L-NONE").await?.body.contains("NoSuchResourceException"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signatures_and_times_are_checked() -> Result<()> {
    let Some((front, client)) =
        front(|options| options.credentials_lifetime = SignedDuration::from_hours(1)).await?
    else {
        return Ok(());
    };
    let code = async |client: &Client, service: &str, action: &str| -> Result<(u16, String)> {
        let told = client.ask(service, action, &[]).await?;
        Ok((told.status, told.text("Code")))
    };
    let refused = |status: u16, code: &str| (status, code.to_owned());
    let mut forged = client.clone();
    forged.credential.secret.push('x');
    assert_eq!(code(&forged, "ec2", "DescribeVpcs").await?, refused(401, "AuthFailure"));
    assert_eq!(code(&forged, "iam", "ListRoles").await?, refused(403, "SignatureDoesNotMatch"));
    let mut nobody = client.clone();
    nobody.credential.key = "AKIANOBODY".to_owned();
    assert_eq!(code(&nobody, "sts", "GetCallerIdentity").await?, refused(403, "InvalidClientTokenId"));
    let told = client.done("sts", "GetCallerIdentity", &[]).await?;
    assert_eq!(told.text("Arn"), "arn:aws:iam::123456789012:user/laptop");

    // A role's session, until it expires.
    let policy = json!({
        "Version": "2012-10-17",
        "Statement": [
            { "Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject"], "Resource": "arn:aws:s3:::tpi-bucket/tasks/mine/*" },
            { "Effect": "Deny", "Action": "s3:PutObject", "Resource": "arn:aws:s3:::tpi-bucket/tasks/mine/record.json" },
            {
                "Effect": "Allow", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::tpi-bucket",
                "Condition": { "StringLikeIfExists": { "s3:prefix": "tasks/mine/*" } },
            },
        ],
    });
    made(&client, &policy).await?;
    assert!(front.role_credentials("nobody").await.is_err());
    let given = front.role_credentials(TASK).await?;
    let machine = Client::new(&front.url(), REGION, (&given.access_key, &given.secret_key, &given.token));
    let place = "<CreateBucketConfiguration><LocationConstraint>us-west-2</LocationConstraint></CreateBucketConfiguration>";
    let told = client.send("s3", Method::PUT, "/tpi-bucket", "", &[], place.as_bytes()).await?;
    assert_eq!(told.status, 200, "{told:?}");
    front.squat("tpi-taken");
    let taken = async |method: Method| -> Result<(u16, String)> {
        let told = client.send("s3", method, "/tpi-taken", "", &[], place.as_bytes()).await?;
        Ok((told.status, told.text("Code")))
    };
    assert_eq!(taken(Method::PUT).await?, refused(409, "BucketAlreadyExists"));
    assert_eq!(taken(Method::GET).await?, refused(403, "AccessDenied"));
    let mut elsewhere = client.clone();
    elsewhere.region = "eu-west-1".to_owned();
    let told = elsewhere.send("s3", Method::GET, "/tpi-bucket/x", "", &[], b"").await?;
    assert_eq!(told.text("Code"), "AuthorizationHeaderMalformed");
    let put = async |who: &Client, key: &str| -> Result<u16> {
        let target = format!("/tpi-bucket/{key}");
        Ok(who.send("s3", Method::PUT, &target, "", &[], b"content").await?.status)
    };
    let get = async |who: &Client, key: &str| -> Result<(u16, String)> {
        let told = who.send("s3", Method::GET, &format!("/tpi-bucket/{key}"), "", &[], b"").await?;
        Ok((told.status, told.text("Code")))
    };
    assert_eq!(put(&machine, "tasks/mine/b%20c").await?, 200);
    assert_eq!(put(&machine, "tasks/mine/a").await?, 200);
    assert_eq!(put(&machine, "tasks/mine/record.json").await?, 403);
    assert_eq!(put(&machine, "tasks/other/a").await?, 403);
    assert_eq!(get(&machine, "tasks/mine/a").await?, (200, String::new()));
    assert_eq!(get(&machine, "tasks/mine/b").await?, refused(404, "NoSuchKey"));
    let list = async |prefix: &str| {
        let query = format!("list-type=2&prefix={prefix}");
        machine.send("s3", Method::GET, "/tpi-bucket", &query, &[], b"").await.map(|told| told.status)
    };
    assert_eq!((list("tasks%2Fmine%2F").await?, list("tasks%2F").await?), (200, 403));
    assert_eq!(code(&machine, "ec2", "DescribeInstances").await?, refused(403, "UnauthorizedOperation"));
    let told = machine.ask("autoscaling", "DescribeAutoScalingGroups", &[]).await?;
    assert!(told.text("Message").contains("autoscaling:DescribeAutoScalingGroups"), "{told:?}");
    let mut other = machine.clone();
    other.credential.token = "another".to_owned();
    assert_eq!(get(&other, "tasks/mine/a").await?.0, 403);

    // Links.
    let host = front.address().to_string();
    let link = |who: &Client, method: &str, seconds: u32| {
        let path = "/tpi-bucket/tasks/mine/a";
        let query =
            sigv4::presigned((method, &host, path), &who.credential, REGION, (Timestamp::now(), seconds));
        format!("{path}?{}", query.unwrap())
    };
    let follow = async |target: &str| -> Result<(u16, String)> {
        let mut headers = axum::http::HeaderMap::new();
        headers.insert("host", host.parse()?);
        let told = client.plain(Method::GET, target, headers, b"").await?;
        Ok((told.status, if told.status == 200 { told.body } else { told.text("Message") }))
    };
    let good = link(&machine, "GET", 600);
    assert_eq!(follow(&good).await?, (200, "content".to_owned()));
    assert_eq!(follow(&link(&machine, "PUT", 600)).await?.0, 403);
    front.clock().advance(SignedDuration::from_mins(11));
    assert_eq!(follow(&good).await?, refused(403, "Request has expired"));
    let long = link(&machine, "GET", 7200);
    assert_eq!(follow(&long).await?.0, 200);
    front.clock().advance(SignedDuration::from_mins(50));
    // A link is good for no longer than the credentials that it was made with.
    assert_eq!(follow(&long).await?, refused(400, "The provided token has expired."));
    assert_eq!(get(&machine, "tasks/mine/a").await?, refused(400, "ExpiredToken"));
    assert_eq!(code(&machine, "autoscaling", "DescribeTags").await?, refused(403, "ExpiredToken"));
    assert_eq!(code(&machine, "ec2", "DescribeTags").await?, refused(400, "RequestExpired"));
    let left = front.everything_left().await?;
    assert!(left.contains(&"object tpi-bucket/tasks/mine/a".to_owned()), "{left:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_faults_and_permissions() -> Result<()> {
    let Some((front, client)) = front(|_| {}).await? else { return Ok(()) };
    let run = |token: &'static str, kind: &'static str| {
        [
            ("ImageId", IMAGE),
            ("MinCount", "1"),
            ("MaxCount", "1"),
            ("InstanceType", kind),
            ("ClientToken", token),
        ]
    };
    // The connection ends after the call was carried out; the same call again makes nothing new.
    let _once = front.trouble(Matching::action("RunInstances"), Trouble::CutAfter, 0, Some(1));
    assert!(client.ask("ec2", "RunInstances", &run("a", "t3.micro")).await.is_err());
    let again = client.done("ec2", "RunInstances", &run("a", "t3.micro")).await?;
    assert_eq!(again.text("instanceId"), alive(&front, 1).await?[0].id);
    let other = client.ask("ec2", "RunInstances", &run("a", "t3.small")).await?;
    assert_eq!(other.text("Code"), "IdempotentParameterMismatch");
    let _once = front.trouble(Matching::action("RunInstances"), Trouble::CutBefore, 0, Some(1));
    assert!(client.ask("ec2", "RunInstances", &run("b", "t3.micro")).await.is_err());
    alive(&front, 1).await?;
    client.done("ec2", "TerminateInstances", &[("InstanceId.1", &again.text("instanceId"))]).await?;
    let big = base64(&"x".repeat(16 * 1024 + 1));
    let big = [run("c", "t3.micro").as_slice(), &[("UserData", &big)]].concat();
    assert_eq!(client.ask("ec2", "RunInstances", &big).await?.text("Code"), "InvalidParameterValue");

    // Trouble in each service's own words, for as many calls as asked for.
    let second = front.trouble(Matching::all().by("user/"), Trouble::Throttle, 1, Some(3));
    let mut seen = Vec::new();
    for (service, action) in [
        ("ec2", "DescribeVpcs"),
        ("ec2", "DescribeVpcs"),
        ("iam", "ListRoles"),
        ("autoscaling", "DescribeTags"),
        ("ec2", "DescribeVpcs"),
    ] {
        let told = client.ask(service, action, &[]).await?;
        seen.push((told.status, told.text("Code")));
    }
    let seen: Vec<_> = seen.iter().map(|(status, code)| (*status, code.as_str())).collect();
    assert_eq!(
        seen,
        [(200, ""), (503, "RequestLimitExceeded"), (400, "Throttling"), (400, "Throttling"), (200, "")]
    );
    front.lift(second);
    let down = front.trouble(Matching::service("s3"), Trouble::Fail(503), 0, None);
    let told = client.send("s3", Method::GET, "/", "", &[], b"").await?;
    assert_eq!((told.status, told.text("Code")), (503, "ServiceUnavailable".to_owned()));
    front.lift(down);
    let _slow = front.trouble(
        Matching::action("DescribeVpcs"),
        Trouble::Delay(Duration::from_millis(120)),
        0,
        Some(1),
    );
    client.done("ec2", "DescribeVpcs", &[]).await?;
    let last = front.calls().pop().context("calls were noted")?;
    assert_eq!(
        (last.action.as_str(), last.principal.as_str(), last.status),
        ("DescribeVpcs", "user/laptop", 200)
    );
    assert!(last.ended - last.began >= Duration::from_millis(120));

    // The least that a user may be allowed.
    let may = |action: &str| json!({ "Version": "2012-10-17", "Statement": [{ "Effect": "Allow", "Action": action, "Resource": "*" }] });
    front.allow_laptop(Some(may("ec2:Describe*")));
    client.done("ec2", "DescribeVpcs", &[]).await?;
    let told = client
        .ask(
            "ec2",
            "CreateSecurityGroup",
            &[("GroupName", "a"), ("GroupDescription", "b"), ("VpcId", "vpc-1")],
        )
        .await?;
    assert_eq!(told.text("Code"), "UnauthorizedOperation");
    assert!(told.text("Message").contains("is not authorized to perform: ec2:CreateSecurityGroup on resource: arn:aws:ec2:us-west-2:123456789012:security-group/*"), "{told:?}");
    let may_not = client.ask("ec2", "CreateSecurityGroup", &[("GroupName", "a"), ("DryRun", "true")]).await?;
    assert_eq!(may_not.text("Code"), "UnauthorizedOperation");
    front.allow_laptop(Some(may("*")));
    let may = client.ask("ec2", "CreateSecurityGroup", &[("GroupName", "a"), ("DryRun", "true")]).await?;
    assert_eq!((may.status, may.text("Code")), (412, "DryRunOperation".to_owned()));
    front.allow_laptop(Some(json!({
        "Version": "2012-10-17",
        "Statement": [
            { "Effect": "Allow", "Action": "iam:SimulatePrincipalPolicy", "Resource": "*" },
            {
                "Effect": "Allow", "Action": "iam:PassRole", "Resource": "arn:aws:iam::*:role/tpi/*",
                "Condition": { "StringEquals": { "iam:PassedToService": "ec2.amazonaws.com" } },
            },
        ],
    })));
    let ask = [
        ("PolicySourceArn", "arn:aws:iam::123456789012:user/laptop"),
        ("ActionNames.member.1", "iam:PassRole"),
        ("ActionNames.member.2", "iam:CreateRole"),
        ("ResourceArns.member.1", "arn:aws:iam::123456789012:role/tpi/x"),
    ];
    let told = client.done("iam", "SimulatePrincipalPolicy", &ask).await?;
    assert_eq!(told.texts("EvalDecision"), ["implicitDeny", "implicitDeny"]);
    assert!(told.body.contains("<member>iam:PassedToService</member>"), "{told:?}");
    let context = [
        ("ContextEntries.member.1.ContextKeyName", "iam:PassedToService"),
        ("ContextEntries.member.1.ContextKeyType", "string"),
        ("ContextEntries.member.1.ContextKeyValues.member.1", "ec2.amazonaws.com"),
    ];
    let told = client.done("iam", "SimulatePrincipalPolicy", &[ask.as_slice(), &context].concat()).await?;
    assert_eq!(told.texts("EvalDecision"), ["allowed", "implicitDeny"]);
    let told = client.ask("iam", "GetRole", &[("RoleName", "tpi-x")]).await?;
    assert_eq!(told.text("Code"), "AccessDenied");
    let refused = front.refused().pop().context("it was noted")?;
    assert_eq!(
        (refused.action.as_str(), refused.resource.as_str()),
        ("iam:GetRole", "arn:aws:iam::123456789012:role/tpi-x")
    );
    Ok(())
}
