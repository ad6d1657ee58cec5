//! Orphans of every type, planted alone: found and removed, and nothing else is touched.

use serde_json::Value;
use tpi_controller::cloud::Cloud as _;
use tpi_proto::id::TaskId;

use super::{
    Place,
    api::{Api, text},
    program::{Computer, done, fresh, out, told},
};

fn task(name: &str) -> TaskId {
    TaskId::seeded(name, &rand::random::<[u8; 16]>()).unwrap()
}

fn tag(api: &Api, resource: &str, task: &TaskId) {
    let tags = [("ResourceId.1", resource), ("Tag.1.Key", "tpi:task"), ("Tag.1.Value", task.as_str())];
    let _answer = api.done("ec2", "CreateTags", &tags);
}

fn template(api: &Api, name: &str, owner: Option<&TaskId>) {
    let mut parameters = vec![("LaunchTemplateName", name), ("LaunchTemplateData.InstanceType", "t3.micro")];
    if let Some(owner) = owner {
        // The emulator shows a template's first tags only.
        parameters.extend([
            ("TagSpecification.1.ResourceType", "launch-template"),
            ("TagSpecification.1.Tag.1.Key", "tpi:task"),
            ("TagSpecification.1.Tag.1.Value", owner.as_str()),
        ]);
    }
    let _answer = api.done("ec2", "CreateLaunchTemplate", &parameters);
}

fn instance(api: &Api) -> String {
    let image = ("ImageId", "ami-0aa00000000000002");
    let one = [image, ("MinCount", "1"), ("MaxCount", "1"), ("InstanceType", "t3.micro")];
    text(&api.done("ec2", "RunInstances", &one), "instanceId")
}

fn security_group(api: &Api, name: &str) -> String {
    let vpcs = api.done("ec2", "DescribeVpcs", &[]);
    let vpc = text(&vpcs, "vpcId");
    let parameters = [("GroupName", name), ("GroupDescription", "x"), ("VpcId", &vpc)];
    text(&api.done("ec2", "CreateSecurityGroup", &parameters), "groupId")
}

/// One orphan of each type; with what it is called in a report.
fn plant(api: &Api, name: &str) -> Vec<(&'static str, TaskId)> {
    let mut planted = Vec::new();
    let mut new = |kind| {
        let task = task(name);
        planted.push((kind, task.clone()));
        task
    };
    tag(api, &instance(api), &new("machine"));
    let zone = format!("{}a", api.region);
    let volume = api.done("ec2", "CreateVolume", &[("Size", "1"), ("AvailabilityZone", &zone)]);
    tag(api, &text(&volume, "volumeId"), &new("volume"));
    let owner = new("launch_template");
    template(api, owner.as_str(), Some(&owner));
    let owner = new("security_group");
    tag(api, &security_group(api, owner.as_str()), &owner);
    let owner = new("scaling_group");
    // Its template is somebody else's.
    let other = format!("{owner}-other");
    template(api, &other, None);
    let parameters = [
        ("AutoScalingGroupName", owner.as_str()),
        ("LaunchTemplate.LaunchTemplateName", &other),
        ("MinSize", "0"),
        ("MaxSize", "0"),
        ("AvailabilityZones.member.1", &zone),
        ("Tags.member.1.Key", "tpi:task"),
        ("Tags.member.1.Value", owner.as_str()),
        ("Tags.member.1.PropagateAtLaunch", "true"),
        ("Tags.member.1.ResourceId", owner.as_str()),
        ("Tags.member.1.ResourceType", "auto-scaling-group"),
    ];
    let _answer = api.done("autoscaling", "CreateAutoScalingGroup", &parameters);
    let owner = new("schedule");
    let parameters =
        [("AutoScalingGroupName", owner.as_str()), ("ScheduledActionName", "tpi-deadline"), ("MaxSize", "0")];
    let _answer = api.done("autoscaling", "PutScheduledUpdateGroupAction", &parameters);
    for (kind, action, parameter) in [
        ("role", "CreateRole", "RoleName"),
        ("policy", "CreateRole", "RoleName"),
        ("instance_profile", "CreateInstanceProfile", "InstanceProfileName"),
    ] {
        let owner = new(kind);
        let parameters = [
            (parameter, owner.as_str()),
            ("Path", "/tpi/"),
            ("AssumeRolePolicyDocument", "{}"),
            ("Tags.member.1.Key", "tpi:task"),
            ("Tags.member.1.Value", owner.as_str()),
        ];
        let _answer = api.done("iam", action, &parameters);
        if kind == "policy" {
            let document = r#"{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"}]}"#;
            let parameters =
                [("RoleName", owner.as_str()), ("PolicyName", "any"), ("PolicyDocument", document)];
            let _answer = api.done("iam", "PutRolePolicy", &parameters);
        }
    }
    planted
}

fn swept(output: &std::process::Output, code: i32) -> Value {
    assert_eq!(output.status.code(), Some(code), "{}", told(output));
    serde_json::from_str(&out(output)).unwrap_or_else(|e| panic!("{e}: {}", told(output)))
}

fn has<'a>(report: &'a Value, kind: &str, task: &TaskId) -> &'a Value {
    let things = report["things"].as_array().unwrap();
    let found = things.iter().find(|thing| thing["kind"] == kind && thing["task"] == task.as_str());
    found.unwrap_or_else(|| panic!("no {kind} of {task} in {report:#}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_orphans_of_every_type_in_two_regions_are_found_and_removed() {
    let regions = ["us-west-2", "us-east-2"];
    let name = fresh("orphan");
    let [Some(one), Some(two)] = regions.map(Place::new) else { return };
    let places = [&one, &two];
    let computer = Computer::new(&one, &one.api.endpoint);
    // A task of that name that is alive, with everything that there can be.
    let wanted: TaskId = done(&computer.submit(&name, None)).parse().unwrap();
    let before = one.left(&wanted);
    assert!(before.len() >= 5, "{before:?}");

    let mut planted = Vec::new();
    let mut strangers = Vec::new();
    for place in places {
        for (kind, task) in plant(&place.api, &name) {
            planted.push((place, kind, task));
        }
        let task = task(&name);
        let url = place.aws().make_store(&place.api.region).await.unwrap();
        let bucket = url.host_str().unwrap();
        let _answer = place.api.s3("PUT", &format!("/{bucket}/tasks/{task}/events/0.json"));
        planted.push((place, "objects", task));
        // Only named as if it were ours.
        strangers.push((
            place,
            security_group(&place.api, &format!("{name}-stranger")),
            instance(&place.api),
        ));
    }
    let mut sweep = vec!["sweep", "--cloud", "aws", "--output", "json", "--task", &name];
    for region in regions {
        sweep.extend(["--region", region]);
    }
    let report = swept(&computer.run(&sweep), 6);
    for (place, kind, task) in &planted {
        let thing = has(&report, kind, task);
        assert_eq!((&thing["verdict"], &thing["removed"]), (&"orphaned".into(), &false.into()), "{thing}");
        let global = ["role", "policy", "instance_profile", "objects"].contains(kind);
        let region = thing["region"].as_str();
        assert_eq!(region, (!global).then_some(place.api.region.as_str()), "{thing}");
        assert!(*kind == "security_group" || *kind == "schedule" || thing["age_seconds"].is_f64(), "{thing}");
    }
    for thing in report["things"].as_array().unwrap() {
        let expected = if thing["task"] == wanted.as_str() { "wanted" } else { "orphaned" };
        assert_eq!(thing["verdict"], expected, "{thing}");
    }
    // All of it is younger than that.
    let young: Vec<&str> = sweep.iter().copied().chain(["--older-than", "1h", "--yes"]).collect();
    assert_eq!(swept(&computer.run(&young), 0)["removed"], 0);

    let yes: Vec<&str> = sweep.iter().copied().chain(["--yes"]).collect();
    let report = swept(&computer.run(&yes), 0);
    assert_eq!(report["left"], 0);
    for (place, kind, task) in &planted {
        assert_eq!(has(&report, kind, task)["removed"], true, "{kind}");
        assert_eq!(place.left(task), Vec::<String>::new(), "{kind}");
    }
    let again = swept(&computer.run(&yes), 0);
    assert!(again["things"].as_array().unwrap().iter().all(|t| t["task"] == wanted.as_str()), "{again:#}");
    assert_eq!(one.left(&wanted), before, "what is wanted stays");
    for (place, group, machine) in strangers {
        let _answer = place.api.done("ec2", "DescribeSecurityGroups", &[("GroupId.1", &group)]);
        let machines = place.api.done("ec2", "DescribeInstances", &[("InstanceId.1", &machine)]);
        assert!(!machines.contains("terminated"), "{machines}");
        let _answer = place.api.done("ec2", "TerminateInstances", &[("InstanceId.1", &machine)]);
    }
    let _text = done(&computer.run(&["destroy", &name]));
    assert_eq!(one.left(&wanted), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_past_its_deadline_goes_and_results_stay() {
    let Some(place) = Place::new("us-east-2") else { return };
    let name = fresh("late");
    let computer = Computer::new(&place, &place.api.endpoint);
    let region = place.api.region.as_str();
    let submit = [
        "submit",
        "--detach",
        "--cloud",
        "aws",
        "--region",
        region,
        "--ingress",
        "none",
        "--name",
        &name,
        "--timeout",
        "20s",
        "--",
        "true",
    ];
    let late: TaskId = done(&computer.run(&submit)).parse().unwrap();
    let sweep = ["sweep", "--cloud", "aws", "--region", region, "--task", &name, "--output", "json", "--yes"];
    let begun = std::time::Instant::now();
    // The emulator executes no schedule, so nothing but the sweep ends it.
    let report = loop {
        let report = swept(&computer.run(&sweep), 0);
        if report["removed"] != 0 {
            break report;
        }
        assert!(begun.elapsed() < super::PATIENCE, "{report:#}");
    };
    assert_eq!(has(&report, "machine", &late)["verdict"], "overdue");
    assert_eq!(has(&report, "machine", &late)["record"], "present");
    assert!(
        has(&report, "machine", &late)["usd_per_hour"].as_f64().is_some_and(|usd| usd > 0.0),
        "{report:#}"
    );
    assert_eq!(place.left(&late), Vec::<String>::new());
    // What it has in the store is there until it is destroyed.
    let status: Value =
        serde_json::from_str(&done(&computer.run(&["status", &name, "--output", "json"]))).unwrap();
    assert_eq!(status["state"], "finished", "{status}");

    // Results without a record are not deleted by the way.
    let url = place.aws().make_store(region).await.unwrap();
    let lost = task(&name);
    let key = format!("/{}/tasks/{lost}/saved/0/1.jsonl.zst", url.host_str().unwrap());
    let _answer = place.api.s3("PUT", &key);
    let report = swept(&computer.run(&sweep), 6);
    assert_eq!(has(&report, "objects", &lost)["verdict"], "results");
    let _answer = place.api.s3("GET", &key);
    let discard: Vec<&str> = sweep.iter().copied().chain(["--discard"]).collect();
    assert_eq!(has(&swept(&computer.run(&discard), 0), "objects", &lost)["removed"], true);
    let _text = done(&computer.run(&["destroy", &name]));
}
