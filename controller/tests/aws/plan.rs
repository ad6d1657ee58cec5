//! Plans: what they tell, what they refuse, and that they make nothing.

use std::{collections::BTreeSet, path::PathBuf, process::Command};

use tpi_controller::cloud::plan::{CloudPlan, PriceBasis};

use super::{
    front::{Answer, Front},
    *,
};

const NOBODY_MAY: &str = "<Response><Errors><Error><Code>UnauthorizedOperation</Code><Message>You are not authorized to \
                          perform this operation.</Message></Error></Errors><RequestID>r</RequestID></Response>";

fn behind(place: &Place, front: &Front) -> Aws {
    let settings = AwsSettings { endpoint: Some(front.endpoint.clone()), ..place.settings() };
    Aws::with(&Home::at(place.home.path()), settings)
}

/// Everything of a region that could be made, whoever made it.
fn everything(place: &Place) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (service, action, element) in [
        ("ec2", "DescribeInstances", "instanceId"),
        ("ec2", "DescribeLaunchTemplates", "launchTemplateId"),
        ("ec2", "DescribeSecurityGroups", "groupId"),
        ("ec2", "DescribeVolumes", "volumeId"),
        ("ec2", "DescribeKeyPairs", "keyPairId"),
        ("ec2", "DescribeNetworkInterfaces", "networkInterfaceId"),
        ("ec2", "DescribeSpotInstanceRequests", "spotInstanceRequestId"),
        ("ec2", "DescribeTags", "value"),
        ("autoscaling", "DescribeAutoScalingGroups", "AutoScalingGroupARN"),
        ("autoscaling", "DescribeScheduledActions", "ScheduledActionARN"),
    ] {
        let answer = place.api.done(service, action, &[]);
        found.extend(texts(&answer, element).into_iter().map(|name| format!("{element} {name}")));
    }
    found
}

fn prices(zones: &[&str], prices: &[(&str, f64)]) -> Answer {
    let items = prices.iter().flat_map(|(kind, price)| {
        zones.iter().map(move |zone| {
            format!(
                "<item><instanceType>{kind}</instanceType><productDescription>Linux/UNIX</productDescription>\
                 <spotPrice>{price:.6}</spotPrice><timestamp>{}</timestamp><availabilityZone>{zone}</availabilityZone></item>",
                Timestamp::now() - SignedDuration::from_hours(2)
            )
        })
    });
    let body = format!(
        "<DescribeSpotPriceHistoryResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>r</requestId>\
         <spotPriceHistorySet>{}</spotPriceHistorySet><nextToken></nextToken></DescribeSpotPriceHistoryResponse>",
        items.collect::<String>()
    );
    Answer::new(&["Action=DescribeSpotPriceHistory"], 200, body)
}

fn limit(code: &str, vcpus: f64) -> Answer {
    let body = format!(r#"{{"Quota":{{"QuotaCode":"{code}","ServiceCode":"ec2","Value":{vcpus:?}}}}}"#);
    Answer::new(&["ServiceQuotasV20190624.GetServiceQuota", code], 200, body)
}

async fn planned(aws: &Aws, want: &GroupSpec) -> CloudPlan {
    aws.plan(want).await.unwrap_or_else(|error| panic!("{}", causes(&error)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_tells_everything_and_makes_nothing() {
    let Some(place) = Place::new("ap-northeast-1") else { return };
    let mut want = place.hour(2);
    want.spec.disk_size = Some(40);
    let before = everything(&place);
    let plan = planned(&place.aws(), &want).await;
    assert_eq!(everything(&place), before);
    assert_eq!(place.left(&want.task), Vec::<String>::new());

    assert_eq!((plan.region.as_str(), plan.machines), ("ap-northeast-1", 2));
    let image = plan.image.unwrap();
    assert_eq!(
        (image.id.as_str(), image.owner.as_str(), image.arch.as_str(), image.root_device.as_str()),
        ("ami-0aa00000000000002", "099720109477", "x86_64", "/dev/sda1")
    );
    let zones: BTreeSet<&str> = plan.offers.iter().map(|o| o.zone.as_str()).collect();
    assert!(zones.len() > 1 && zones.iter().all(|zone| zone.starts_with("ap-northeast-1")), "{zones:?}");
    let first = &plan.offers[0];
    assert_eq!((first.machine.as_str(), first.usd_per_hour), ("m5.2xlarge", Some(0.496)));
    assert_eq!(first.basis, PriceBasis::List);
    assert_eq!(plan.openings[0].from, "203.0.113.7/32");
    let disk = plan.disk.unwrap();
    assert_eq!((disk.gb, disk.encrypted), (Some(40), true));
    // m7a.2xlarge is the dearest.
    let per_hour = 2.0 * (0.598_92 + 0.096 * 40.0 / 730.0);
    assert!(plan.ceiling.usd.is_some_and(|usd| (usd - per_hour).abs() < 1e-4), "{:?}", plan.ceiling);
    // The emulator has neither limits nor a judgement of policies.
    assert!(plan.warnings.iter().any(|w| w.contains("limits are not known")), "{:?}", plan.warnings);
    assert_eq!(plan.limits, Vec::new());
    let boot = plan.boot.unwrap();
    assert!(boot.bytes > 1000 && boot.bytes <= boot.most, "{boot:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_market_that_says_nothing_usable_is_not_known() {
    let Some(place) = Place::new("eu-west-3") else { return };
    let mut want = place.hour(1);
    want.spec.spot = Spot::MaxPrice { usd_per_hour: 0.01 };
    let plan = planned(&place.aws(), &want).await;
    assert!(plan.offers.iter().all(|offer| offer.usd_per_hour.is_none()), "{:?}", plan.offers);
    assert_eq!(plan.offers[0].basis, PriceBasis::Market { since: None });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_market_decides_about_a_highest_price() {
    let Some(place) = Place::new("eu-west-2") else { return };
    let types = ["m5.2xlarge", "m6i.2xlarge", "m6a.2xlarge", "m5a.2xlarge", "m7i.2xlarge", "m7a.2xlarge"];
    let priced: Vec<(&str, f64)> = types.iter().map(|kind| (*kind, 0.2)).collect();
    let front = Front::before(
        &place.api.endpoint,
        vec![prices(&["eu-west-2a", "eu-west-2b", "eu-west-2c"], &priced)],
    );
    let aws = behind(&place, &front);
    let mut want = place.hour(1);
    want.spec.spot = Spot::MaxPrice { usd_per_hour: 0.1 };
    let error = aws.plan(&want).await.expect_err("below the market");
    assert_eq!((error.kind, error.leftovers), (CloudErrorKind::InvalidSpec, Leftovers::None));
    assert!(causes(&error).contains("$0.2000 at least"), "{}", causes(&error));
    want.spec.spot = Spot::MaxPrice { usd_per_hour: 0.3 };
    let plan = planned(&aws, &want).await;
    assert_eq!(plan.offers[0].usd_per_hour, Some(0.2));
    assert!(matches!(plan.offers[0].basis, PriceBasis::Market { since: Some(_) }));
    assert!(plan.ceiling.how.contains("$0.3000"), "{:?}", plan.ceiling);
    want.spec.spot = Spot::MaxPrice { usd_per_hour: 3.0 };
    let plan = planned(&aws, &want).await;
    assert!(plan.warnings.iter().any(|w| w.contains("above the price on demand")), "{:?}", plan.warnings);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_the_account_are_refused_beforehand() {
    let Some(place) = Place::new("ap-southeast-2") else { return };
    let front = Front::before(
        &place.api.endpoint,
        vec![limit("L-1216C47A", 16.0), limit("L-34B43A08", 64.0), limit("L-DB2E81BA", 0.0)],
    );
    let aws = behind(&place, &front);
    let mut want = place.hour(2);
    let plan = planned(&aws, &want).await;
    let found = &plan.limits[0];
    assert_eq!((found.code.as_str(), found.vcpus, found.needed), ("L-1216C47A", 16.0, 16.0));
    // What runs already counts, whoever started it; the emulator does not say how many vCPUs it has.
    let parameters = [
        ("ImageId", "ami-0aa00000000000002"),
        ("MinCount", "1"),
        ("MaxCount", "1"),
        ("InstanceType", "m5.2xlarge"),
    ];
    let made = place.api.done("ec2", "RunInstances", &parameters);
    let error = aws.plan(&want).await.expect_err("there is room for one more");
    assert_eq!((error.kind, error.leftovers), (CloudErrorKind::QuotaExceeded, Leftovers::None));
    let told = causes(&error);
    assert!(
        told.contains("L-1216C47A") && told.contains("16 vCPUs, 8 of them in use, and 16 more"),
        "{told}"
    );
    want.spec.spot = Spot::MarketPrice;
    assert_eq!(planned(&aws, &want).await.limits[0].code, "L-34B43A08", "spot machines have their own");
    want.spec.spot = Spot::OnDemand;
    want.spec.machine = "m+t4".to_owned();
    let error = aws.plan(&want).await.expect_err("none are allowed");
    assert!(causes(&error).contains("L-DB2E81BA"), "{}", causes(&error));
    let instance = text(&made, "instanceId");
    let _answer = place.api.done("ec2", "TerminateInstances", &[("InstanceId.1", &instance)]);
    assert_eq!(place.left(&want.task), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_permitted_is_named_beforehand() {
    let Some(place) = Place::new("eu-south-1") else { return };
    let want = place.hour(1);
    for action in ["CreateSecurityGroup", "CreateLaunchTemplate", "RunInstances", "DescribeImages"] {
        let parameter = format!("Action={action}&");
        let front = Front::before(&place.api.endpoint, vec![Answer::new(&[&parameter], 403, NOBODY_MAY)]);
        let error = behind(&place, &front).plan(&want).await.expect_err(action);
        assert_eq!((error.kind, error.leftovers), (CloudErrorKind::PermissionDenied, Leftovers::None));
        assert!(causes(&error).contains(&format!("ec2:{action}")), "{}", causes(&error));
        let made = front.seen().into_iter().filter(|request| request.contains("Action=Create"));
        assert!(
            made.clone().all(|request| request.contains("DryRun=true")),
            "{:?}",
            made.collect::<Vec<_>>()
        );
    }
    let me = "<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>arn:aws:iam::123456789012:user/me</Arn>\
              <UserId>me</UserId><Account>123456789012</Account></GetCallerIdentityResult></GetCallerIdentityResponse>";
    let no = "<SimulatePrincipalPolicyResponse><SimulatePrincipalPolicyResult><EvaluationResults><member>\
              <EvalActionName>iam:CreateRole</EvalActionName><EvalDecision>implicitDeny</EvalDecision></member>\
              </EvaluationResults></SimulatePrincipalPolicyResult></SimulatePrincipalPolicyResponse>";
    let answers = vec![
        Answer::new(&["Action=GetCallerIdentity"], 200, me),
        Answer::new(&["Action=SimulatePrincipalPolicy", "iam%3ACreateRole"], 200, no),
        Answer::new(&["Action=SimulatePrincipalPolicy"], 200, no.replace("implicitDeny", "allowed")),
    ];
    let front = Front::before(&place.api.endpoint, answers);
    let mut want = place.hour(1);
    let error = behind(&place, &front).plan(&want).await.expect_err("no role can be made");
    assert_eq!(error.kind, CloudErrorKind::PermissionDenied);
    let told = causes(&error);
    assert!(told.contains("iam:CreateRole") && told.contains("--permission-set"), "{told}");
    let own = format!("own-{:08x}", rand::random::<u32>());
    want.spec.permission_set = Some(own.clone());
    let error = behind(&place, &front).plan(&want).await.expect_err("there is no such profile");
    assert!(causes(&error).contains("there is no instance profile"), "{}", causes(&error));
    let _answer = place.api.done("iam", "CreateInstanceProfile", &[("InstanceProfileName", &own)]);
    let plan = planned(&behind(&place, &front), &want).await;
    assert!(plan.resources.iter().all(|resource| resource.kind != "role"), "{:?}", plan.resources);
    assert_eq!(plan.identity.as_deref(), Some(own.as_str()));
    assert!(plan.warnings.iter().any(|warning| warning.contains("has no role")), "{:?}", plan.warnings);
    let _answer = place.api.done("iam", "DeleteInstanceProfile", &[("InstanceProfileName", &own)]);
    assert_eq!(place.left(&want.task), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_work_is_refused_by_plan_as_by_ensure() {
    let Some(place) = Place::new("ap-south-1") else { return };
    type Change = fn(&mut GroupSpec);
    let long: String = (0..20_000).map(|_| char::from(rand::random_range(b'a'..=b'z'))).collect();
    let mut want = place.hour(1);
    want.store = Url::parse(&format!("s3://bucket/{long}")).unwrap();
    let error = place.aws().plan(&want).await.expect_err("user-data that does not fit");
    assert!(causes(&error).contains("told at boot"), "{}", causes(&error));
    assert_eq!((error.kind, error.leftovers), (CloudErrorKind::InvalidSpec, Leftovers::None));

    let none = "<DescribeSubnetsResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>r</requestId>\
                <subnetSet/></DescribeSubnetsResponse>";
    let front = Front::before(&place.api.endpoint, vec![Answer::new(&["Action=DescribeSubnets"], 200, none)]);
    let error = behind(&place, &front).plan(&place.hour(1)).await.expect_err("no default network");
    assert!(causes(&error).contains("--subnet"), "{}", causes(&error));

    let cases: [(&str, Change); 8] = [
        ("another machine or region, such as ap-northeast-1, ", |w| {
            w.spec.machine = "p4de.24xlarge".to_owned();
        }),
        ("use m+t4", |w| w.spec.machine = "m+k80".to_owned()),
        ("has no x9.huge", |w| w.spec.machine = "x9.huge".to_owned()),
        ("of one region only", |w| w.spec.image = "ami-0123456789abcdef0".to_owned()),
        ("is an image for x86_64 machines", |w| {
            w.spec.machine = "m7g.large".to_owned();
            w.spec.image = "ami-0aa00000000000002".to_owned();
        }),
        ("is not between", |w| w.spec.spot = Spot::MaxPrice { usd_per_hour: 5000.0 }),
        ("needs 15 GB", |w| w.spec.disk_size = Some(4)),
        ("looking for subnets", |w| w.spec.subnets = vec!["subnet-0123456789abcdef0".to_owned()]),
    ];
    for (expected, change) in cases {
        let mut want = place.hour(1);
        change(&mut want);
        let error = place.aws().plan(&want).await.expect_err(expected);
        assert!(causes(&error).contains(expected), "{expected}: {}", causes(&error));
        assert_eq!(error.leftovers, Leftovers::None, "{expected}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subnets_of_the_task_are_used_by_every_computer() {
    let Some(place) = Place::new("eu-central-1") else { return };
    let subnets = place.api.done("ec2", "DescribeSubnets", &[]);
    let last = texts(&subnets, "subnetId").pop().unwrap();
    let mut want = place.hour(1);
    want.spec.subnets = vec![last.clone()];
    let plan = planned(&place.aws(), &want).await;
    assert_eq!(plan.subnets.iter().map(|s| s.id.as_str()).collect::<Vec<_>>(), [last.as_str()]);
    assert!(plan.offers.iter().all(|offer| offer.zone == plan.subnets[0].zone), "{:?}", plan.offers);
    made(&place, &want).await;
    let group = place.api.done(
        "autoscaling",
        "DescribeAutoScalingGroups",
        &[("AutoScalingGroupNames.member.1", want.task.as_str())],
    );
    assert_eq!(text(&group, "VPCZoneIdentifier"), last);
    assert!(place.aws().destroy(&want.task).await.unwrap().is_gone());
}

/// The program itself, against a bucket of its own.
struct Program {
    place: Place,
    bucket: String,
}

impl Program {
    fn new(region: &str) -> Option<Self> {
        let place = Place::new(region)?;
        let program = Self { place, bucket: format!("tpi-plan-{:08x}", rand::random::<u32>()) };
        let made = program.s3("PUT", "");
        assert!(made.split(' ').nth(1) == Some("200"), "{made}");
        Some(program)
    }

    fn s3(&self, method: &str, rest: &str) -> String {
        use std::io::{Read as _, Write as _};
        let endpoint = &self.place.api.endpoint;
        let host = endpoint.host_str().unwrap();
        let mut stream =
            std::net::TcpStream::connect((host, endpoint.port_or_known_default().unwrap())).unwrap();
        write!(
            stream,
            "{method} /{}{rest} HTTP/1.0\r\nHost: {host}\r\nAuthorization: AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0\r\nContent-Length: 0\r\n\r\n",
            self.bucket
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn objects(&self) -> Vec<String> {
        texts(&self.s3("GET", "?list-type=2"), "Key")
    }

    fn run(&self, endpoint: &Url, arguments: &[&str]) -> std::process::Output {
        let agent = self.agent();
        Command::new(env!("CARGO_BIN_EXE_tpi-controller"))
            .env_clear()
            .env("HOME", self.place.home.path())
            .env("AWS_ENDPOINT_URL", endpoint.as_str().trim_end_matches('/'))
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .env("AWS_REGION", &self.place.api.region)
            .arg("--agent")
            .arg(agent)
            .arg("--state-dir")
            .arg(self.place.home.path())
            .args(arguments)
            .output()
            .unwrap()
    }

    fn agent(&self) -> PathBuf {
        let path = self.place.home.path().join("agent");
        std::fs::write(&path, b"an agent").unwrap();
        path
    }

    fn arguments<'a>(&'a self, command: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let own = [
            command,
            "--cloud",
            "aws",
            "--storage",
            &self.bucket,
            "--region",
            &self.place.api.region,
            "--ingress",
            "none",
        ];
        [&own[..], more, &["--", "true"]].concat()
    }
}

fn told(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn the_command_makes_and_sends_nothing() {
    let Some(program) = Program::new("sa-east-1") else { return };
    let workdir = program.place.home.path().join("work");
    std::fs::create_dir(&workdir).unwrap();
    std::fs::write(workdir.join("data"), vec![7; 5000]).unwrap();
    let workdir = workdir.to_str().unwrap();
    let before = everything(&program.place);
    let arguments = program.arguments("plan", &["--name", "bees", "--workdir", workdir, "--timeout", "2h"]);
    let output = program.run(&program.place.api.endpoint, &arguments);
    assert!(output.status.success(), "{}", told(&output));
    let text = told(&output);
    for expected in [
        "m5.2xlarge",
        "$0.6120",
        "1 file, 5.0 kB",
        "Auto Scaling group tpi-bees-",
        "at most $",
        "nothing was made",
    ] {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
    let json = program.run(&program.place.api.endpoint, &[&["--output", "json"], &arguments[..]].concat());
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(
        (&report["kind"], &report["version"], &report["sends"]["files"]["send_bytes"]),
        (&"task_plan".into(), &1.into(), &5000.into())
    );
    assert_eq!(everything(&program.place), before);
    assert_eq!(program.objects(), Vec::<String>::new());
}

#[test]
fn what_is_refused_at_submit_is_refused_before_anything_is_written() {
    let Some(program) = Program::new("ap-northeast-2") else { return };
    let front = Front::before(&program.place.api.endpoint, vec![limit("L-1216C47A", 4.0)]);
    for command in ["plan", "submit"] {
        let output = program.run(&front.endpoint, &program.arguments(command, &["--name", "bees"]));
        assert_eq!(output.status.code(), Some(3), "{}", told(&output));
        assert!(
            told(&output).contains("is 4 vCPUs, 0 of them in use, and 8 more are needed"),
            "{}",
            told(&output)
        );
    }
    assert_eq!(program.objects(), Vec::<String>::new());
}

const NONE_FREE: &str = "We currently do not have sufficient g5.xlarge capacity in the Availability Zone you requested \
                         (ap-southeast-1a). Our system will be working on provisioning additional capacity. Launching \
                         EC2 instance failed.";
const NO_MORE: &str = "You have requested more vCPU capacity than your current vCPU limit of 4 allows for the instance \
                       bucket that the specified instance type belongs to. Launching EC2 instance failed.";

/// A group that keeps failing, as the emulator's never does: no machine is seen, and activities say why.
fn nothing_free(reasons: &[(&str, &str)]) -> Vec<Answer> {
    let activities = reasons.iter().map(|(zone, message)| {
        format!(
            "<member><ActivityId>a</ActivityId><AutoScalingGroupName>g</AutoScalingGroupName><Cause>c</Cause>\
             <StartTime>{}</StartTime><StatusCode>Failed</StatusCode><StatusMessage>{message}</StatusMessage>\
             <Description>Launching a new EC2 instance.  Status Reason: {message}</Description>\
             <Details>{{\"Availability Zone\":\"{zone}\"}}</Details></member>",
            Timestamp::now()
        )
    });
    let activities = format!(
        "<DescribeScalingActivitiesResponse xmlns=\"http://autoscaling.amazonaws.com/doc/2011-01-01/\">\
         <DescribeScalingActivitiesResult><Activities>{}</Activities></DescribeScalingActivitiesResult>\
         </DescribeScalingActivitiesResponse>",
        activities.collect::<String>()
    );
    let none = "<DescribeInstancesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>r</requestId>\
                <reservationSet/></DescribeInstancesResponse>";
    vec![
        Answer::new(&["Action=DescribeScalingActivities"], 200, activities),
        Answer::new(&["Action=DescribeInstances&"], 200, none),
    ]
}

#[test]
fn a_first_machine_is_not_waited_for_for_ever() {
    let Some(program) = Program::new("ap-southeast-1") else { return };
    let answers = nothing_free(&[("ap-southeast-1a", NONE_FREE), ("ap-southeast-1b", NO_MORE)]);
    let front = Front::before(&program.place.api.endpoint, answers);
    let arguments = program.arguments("submit", &["--name", "bees", "--provision-timeout", "15s"]);
    let output = program.run(&front.endpoint, &arguments);
    let text = told(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    for expected in [
        "no g5.xlarge in ap-southeast-1a: no capacity",
        "(it is tried again)",
        "got no machine in the time given: the account's limit is reached",
        "in ap-southeast-1b: the account's limit is reached",
        "ask for a higher limit",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in {text}");
    }
    let json = program.run(&front.endpoint, &["--output", "json", "status", "bees"]);
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(
        (&report["state"], &report["outcome"]["result"], &report["outcome"]["reason"]),
        (&"finished".into(), &"unprovisioned".into(), &"quota".into()),
        "{report}"
    );
    let task: TaskId = report["id"].as_str().unwrap().parse().unwrap();
    assert_eq!(program.place.left(&task), Vec::<String>::new(), "the group is gone");
    // Submitting it again orders nothing.
    let again = program.run(&front.endpoint, &[&arguments[..], &[]].concat());
    assert_eq!(again.status.code(), Some(3), "{}", told(&again));
    assert_eq!(program.place.left(&task), Vec::<String>::new());
    let gone = program.run(&front.endpoint, &["destroy", "bees"]);
    assert!(gone.status.success(), "{}", told(&gone));
    assert_eq!(program.objects(), Vec::<String>::new());
}

#[test]
fn one_that_looks_without_attaching_ends_the_wait_too() {
    let Some(program) = Program::new("eu-central-1") else { return };
    let front = Front::before(&program.place.api.endpoint, nothing_free(&[("eu-central-1a", NONE_FREE)]));
    let more = ["--name", "wasps", "--provision-timeout", "1s", "--detach"];
    let output = program.run(&front.endpoint, &program.arguments("submit", &more));
    assert!(output.status.success(), "{}", told(&output));
    let begun = std::time::Instant::now();
    let report = loop {
        let json = program.run(&front.endpoint, &["--output", "json", "status", "wasps"]);
        let report: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
        if report["state"] == "finished" {
            break report;
        }
        assert_eq!(report["shortages"][0]["reason"], "capacity", "{report}");
        assert!(begun.elapsed() < PATIENCE, "{report}");
    };
    assert_eq!(report["outcome"]["reason"], "capacity", "{report}");
    let gone = program.run(&front.endpoint, &["destroy", "wasps"]);
    assert!(gone.status.success(), "{}", told(&gone));
}
