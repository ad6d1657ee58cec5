//! AWS on an emulator of its API: moto, at `TPI_TEST_AWS_ENDPOINT`, with the images of
//! `xtask/src/moto_images.json`. It runs no machine and no schedule, so what these tests show is about the
//! group; schedules are executed by [`Schedules`].
#![cfg(feature = "aws")]
#![expect(clippy::unwrap_used, reason = "a test")]
#![expect(clippy::disallowed_methods, reason = "pauses between looks at a condition of another process")]

use std::{
    collections::BTreeMap,
    num::NonZeroU16,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use base64::Engine as _;
use jiff::{SignedDuration, Timestamp};
use tpi_controller::{
    cloud::{
        Cloud, CloudError, CloudErrorKind, GroupSpec, GroupState, Leftovers, MachineEnd, Observed,
        aws::{Aws, AwsSettings, CallerAddress},
        conformance,
        plan::Resource,
    },
    home::{Home, KnownTask},
};
use tpi_proto::{
    id::{MachineId, TaskId},
    spec::{CloudName, Ingress, Spot, StorageSpec, TaskSpec},
};
use url::Url;

use self::api::{Api, text, texts};

#[path = "aws/api.rs"]
mod api;
#[path = "aws/bucket.rs"]
mod bucket;
#[path = "aws/front.rs"]
mod front;
#[path = "aws/gate.rs"]
mod gate;
#[path = "aws/lifecycle.rs"]
mod lifecycle;
#[path = "aws/plan.rs"]
mod plan;
#[path = "aws/program.rs"]
mod program;
#[path = "aws/proof.rs"]
mod proof;
#[path = "aws/rounds.rs"]
mod rounds;
#[path = "aws/sweep.rs"]
mod sweep;

/// Generous: other tests may keep the computer busy, and the emulator answers one request after the other.
const PATIENCE: Duration = Duration::from_secs(180);

struct Place {
    home: tempfile::TempDir,
    api: Api,
}

impl Place {
    /// `None`, with a word about it, where there is no emulator.
    #[expect(clippy::print_stderr, reason = "says what is skipped")]
    fn new(region: &str) -> Option<Self> {
        drop(rustls::crypto::ring::default_provider().install_default());
        let Some(endpoint) = std::env::var("TPI_TEST_AWS_ENDPOINT").ok().filter(|e| !e.is_empty()) else {
            eprintln!("SKIPPED: TPI_TEST_AWS_ENDPOINT is not set: there is no emulator of AWS");
            return None;
        };
        let api = Api { endpoint: endpoint.parse().unwrap(), region: region.to_owned() };
        let images = api.done("ec2", "DescribeImages", &[("Owner.1", "099720109477")]);
        assert!(images.contains("noble-24.04"), "start moto with MOTO_AMIS_PATH=xtask/src/moto_images.json");
        Some(Self { home: tempfile::tempdir().unwrap(), api })
    }

    fn settings(&self) -> AwsSettings {
        AwsSettings {
            endpoint: Some(self.api.endpoint.clone()),
            access_key: Some(("test".to_owned(), "test".to_owned())),
            caller_address: CallerAddress::Known([203, 0, 113, 7].into()),
            ..AwsSettings::default()
        }
    }

    fn aws(&self) -> Aws {
        Aws::with(&Home::at(self.home.path()), self.settings())
    }

    fn want(&self, machines: u16, deadline: Timestamp) -> GroupSpec {
        let task = TaskId::seeded("test", &rand::random::<[u8; 16]>()).unwrap();
        let spec = TaskSpec {
            name: "test".to_owned(),
            cloud: CloudName::Aws,
            region: self.api.region.clone(),
            machine: "m".to_owned(),
            image: "ubuntu".to_owned(),
            disk_size: None,
            spot: Spot::OnDemand,
            parallelism: NonZeroU16::new(machines).unwrap(),
            permission_set: None,
            tags: BTreeMap::from([("team".to_owned(), "vision".to_owned())]),
            environment: Vec::new(),
            timeout_seconds: 3600,
            grace_seconds: 1,
            script: "#!/bin/sh\n".to_owned(),
            container: None,
            ingress: Ingress::Caller,
            storage: StorageSpec::default(),
            subnets: Vec::new(),
            provision_timeout_seconds: None,
        };
        let store = Url::parse("s3://tpi-test-bucket/some/path").unwrap();
        // As `submit` does, so that only this region is asked.
        Home::at(self.home.path())
            .remember(&KnownTask {
                id: task.clone(),
                name: "test".to_owned(),
                cloud: CloudName::Aws,
                store: store.clone(),
                region: self.api.region.clone(),
            })
            .unwrap();
        GroupSpec { task, spec, store, deadline, agent_sha256: "0".repeat(64) }
    }

    fn hour(&self, machines: u16) -> GroupSpec {
        self.want(machines, Timestamp::now() + SignedDuration::from_hours(1))
    }

    /// Every resource of the task that there is, whatever its type.
    fn left(&self, task: &TaskId) -> Vec<String> {
        let mut left = Vec::new();
        let by_tag = [("Filter.1.Name", "tag:tpi:task"), ("Filter.1.Value.1", task.as_str())];
        let instances = self.api.done("ec2", "DescribeInstances", &by_tag);
        let states = instances.split("<instanceState>").skip(1);
        left.extend(
            states.map(|s| text(s, "name")).filter(|s| s != "terminated").map(|s| format!("instance {s}")),
        );
        for (action, element) in [
            ("DescribeLaunchTemplates", "launchTemplateId"),
            ("DescribeSecurityGroups", "groupId"),
            ("DescribeVolumes", "volumeId"),
            ("DescribeSpotInstanceRequests", "spotInstanceRequestId"),
            ("DescribeNetworkInterfaces", "networkInterfaceId"),
        ] {
            left.extend(texts(&self.api.done("ec2", action, &by_tag), element));
        }
        let groups = self.api.done(
            "autoscaling",
            "DescribeAutoScalingGroups",
            &[("AutoScalingGroupNames.member.1", task.as_str())],
        );
        left.extend(texts(&groups, "AutoScalingGroupName"));
        // Schedules go with their group, except in the emulator.
        for (action, parameter) in [("GetRole", "RoleName"), ("GetInstanceProfile", "InstanceProfileName")] {
            let answer = self.api.ask("iam", action, &[(parameter, task.as_str())]);
            if answer.split(' ').nth(1) == Some("200") {
                left.push(action.to_owned());
            }
        }
        left
    }
}

impl Place {
    /// What there is of a task but machines and their disks, as plans name it.
    fn resources(&self, task: &TaskId) -> Vec<Resource> {
        let mut found = Vec::new();
        let mut note = |kind: &str, names: Vec<String>| {
            found.extend(names.into_iter().map(|name| Resource::new(kind, name)));
        };
        let id = task.as_str();
        let by_tag = [("Filter.1.Name", "tag:tpi:task"), ("Filter.1.Value.1", id)];
        let groups = self.api.done("ec2", "DescribeSecurityGroups", &by_tag);
        note("security group", texts(&groups, "groupName"));
        let templates = self.api.done("ec2", "DescribeLaunchTemplates", &by_tag);
        note("launch template", texts(&templates, "launchTemplateName"));
        let by_name = [("AutoScalingGroupNames.member.1", id)];
        let groups = self.api.done("autoscaling", "DescribeAutoScalingGroups", &by_name);
        let here = !texts(&groups, "AutoScalingGroupARN").is_empty();
        note("Auto Scaling group", if here { vec![id.to_owned()] } else { Vec::new() });
        let of_group = [("AutoScalingGroupName", id)];
        let schedules = self.api.ask("autoscaling", "DescribeScheduledActions", &of_group);
        note("scheduled action", if here { texts(&schedules, "ScheduledActionName") } else { Vec::new() });
        for (kind, action, parameter) in [
            ("role", "GetRole", "RoleName"),
            ("instance profile", "GetInstanceProfile", "InstanceProfileName"),
        ] {
            let answer = self.api.ask("iam", action, &[(parameter, id)]);
            let there = answer.split(' ').nth(1) == Some("200");
            note(kind, if there { vec![id.to_owned()] } else { Vec::new() });
        }
        found
    }
}

/// Executes schedules when they are due, which the emulator leaves to others.
struct Schedules {
    end: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Schedules {
    fn execute(api: Api) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let schedules = api.ask("autoscaling", "DescribeScheduledActions", &[]);
                for schedule in texts(&schedules, "member") {
                    let due: Timestamp = text(&schedule, "StartTime").parse().unwrap();
                    if due > Timestamp::now() {
                        continue;
                    }
                    let group = text(&schedule, "AutoScalingGroupName");
                    let group = ("AutoScalingGroupName", group.as_str());
                    let size = |name| text(&schedule, name);
                    let (min, max, desired) = (size("MinSize"), size("MaxSize"), size("DesiredCapacity"));
                    let sizes = [group, ("MinSize", &min), ("MaxSize", &max), ("DesiredCapacity", &desired)];
                    let _answer = api.ask("autoscaling", "UpdateAutoScalingGroup", &sizes);
                    let name = text(&schedule, "ScheduledActionName");
                    let this = [group, ("ScheduledActionName", name.as_str())];
                    let _answer = api.ask("autoscaling", "DeleteScheduledAction", &this);
                }
                std::thread::sleep(Duration::from_millis(300));
            }
        });
        Self { end, thread: Some(thread) }
    }
}

impl Drop for Schedules {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

struct Conformance {
    place: Place,
}

#[async_trait]
impl conformance::Rig for Conformance {
    fn cloud(&self) -> Arc<dyn Cloud> {
        Arc::new(self.place.aws())
    }

    async fn want(&self, machines: u16, deadline: Timestamp) -> GroupSpec {
        self.place.want(machines, deadline)
    }

    async fn take(&self, _task: &TaskId, machine: &MachineId) {
        let _answer = self.place.api.done("ec2", "TerminateInstances", &[("InstanceId.1", &machine.0)]);
    }

    async fn break_group(&self, task: &TaskId) -> bool {
        // Nothing keeps a group's size but the group; its schedule can be lost.
        let schedule = [("AutoScalingGroupName", task.as_str()), ("ScheduledActionName", "tpi-deadline")];
        let _answer = self.place.api.done("autoscaling", "DeleteScheduledAction", &schedule);
        true
    }

    async fn half_destroy(&self, task: &TaskId) {
        let group = [("AutoScalingGroupName", task.as_str()), ("ForceDelete", "true")];
        let _answer = self.place.api.done("autoscaling", "DeleteAutoScalingGroup", &group);
        let role = [("InstanceProfileName", task.as_str()), ("RoleName", task.as_str())];
        let _answer = self.place.api.done("iam", "RemoveRoleFromInstanceProfile", &role);
    }

    async fn resources(&self, task: &TaskId) -> Vec<Resource> {
        self.place.resources(task)
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_a_cloud() {
    let Some(place) = Place::new("us-west-1") else { return };
    let _schedules =
        Schedules::execute(Api { endpoint: place.api.endpoint.clone(), region: place.api.region.clone() });
    let rig = Conformance { place };
    if let Err(violation) = conformance::run(&rig).await {
        panic!("{violation}: {:?}", std::error::Error::source(&violation));
    }
}

fn causes(error: &CloudError) -> String {
    let error: &dyn std::error::Error = error;
    let chain = std::iter::successors(Some(error), |e| e.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

async fn made(place: &Place, want: &GroupSpec) -> Observed {
    place.aws().ensure(want).await.unwrap_or_else(|e| panic!("{}", causes(&e)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_made_as_promised_and_leaves_nothing() {
    let Some(place) = Place::new("eu-north-1") else { return };
    let mut want = place.hour(2);
    want.spec.spot = Spot::MaxPrice { usd_per_hour: 0.25 };
    want.spec.disk_size = Some(40);
    let observed = made(&place, &want).await;
    assert_eq!(observed.group, GroupState::Active { size: 2 });
    let id = want.task.as_str();

    let template = place.api.done("ec2", "DescribeLaunchTemplateVersions", &[("LaunchTemplateName", id)]);
    assert_eq!(text(&template, "imageId"), "ami-0aa00000000000002", "the newest");
    assert_eq!(text(&template, "httpTokens"), "required");
    assert_eq!(text(&template, "httpPutResponseHopLimit"), "1");
    assert_eq!(text(&template, "instanceInitiatedShutdownBehavior"), "terminate");
    let mapping = text(&template, "blockDeviceMappingSet");
    assert_eq!(text(&mapping, "deviceName"), "/dev/sda1");
    assert_eq!(
        (text(&mapping, "encrypted"), text(&mapping, "volumeType"), text(&mapping, "volumeSize")),
        ("true".to_owned(), "gp3".to_owned(), "40".to_owned())
    );
    let user_data = base64::engine::general_purpose::STANDARD.decode(text(&template, "userData")).unwrap();
    assert!(!user_data.is_empty() && user_data.len() <= 16 << 10, "{} bytes", user_data.len());

    let by_name = [("Filter.1.Name", "group-name"), ("Filter.1.Value.1", id)];
    let group = place.api.done("ec2", "DescribeSecurityGroups", &by_name);
    let ingress = text(&group, "ipPermissions");
    assert_eq!(
        (texts(&ingress, "cidrIp"), texts(&ingress, "fromPort")),
        (vec!["203.0.113.7/32".to_owned()], vec!["8474".to_owned()])
    );

    let asg =
        place.api.done("autoscaling", "DescribeAutoScalingGroups", &[("AutoScalingGroupNames.member.1", id)]);
    // The emulator forgets how machines are bought when a group's size changes: unit tests see to that.
    assert!(text(&asg, "VPCZoneIdentifier").contains(','), "several zones");
    assert_eq!(text(&asg, "ProcessName"), "AZRebalance");
    let schedules =
        place.api.done("autoscaling", "DescribeScheduledActions", &[("AutoScalingGroupName", id)]);
    let at: Timestamp = text(&schedules, "StartTime").parse().unwrap();
    assert_eq!(at.as_second(), want.deadline.as_second() + 1, "the next whole second");

    let policy = place.api.done("iam", "GetRolePolicy", &[("RoleName", id), ("PolicyName", "tpi-task")]);
    assert!(policy.contains("TerminateInstanceInAutoScalingGroup"), "{policy}");
    let instances = place.api.done(
        "ec2",
        "DescribeInstances",
        &[("Filter.1.Name", "tag:tpi:task"), ("Filter.1.Value.1", id)],
    );
    assert_eq!(texts(&instances, "instanceId").len(), 2);
    assert!(instances.contains("<key>team</key>"), "{instances}");

    let seen = place.aws().observe(&want.task).await.unwrap();
    // The emulator makes machines on demand, and says so, whatever a group asks for.
    assert!(seen.machines.iter().all(|m| m.usd_per_hour == Some(0.408)), "{seen:?}");
    let gone = place.aws().destroy(&want.task).await.unwrap();
    assert!(gone.is_gone());
    assert!(gone.machines.iter().all(|m| m.usd_per_hour == Some(0.408)), "{gone:?}");
    assert_eq!(place.left(&want.task), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_of_the_users_own_is_used_and_never_touched() {
    let Some(place) = Place::new("eu-west-1") else { return };
    let name = format!("own-{:08x}", rand::random::<u32>());
    let _answer = place.api.done("iam", "CreateInstanceProfile", &[("InstanceProfileName", &name)]);
    let mut want = place.hour(1);
    want.spec.permission_set = Some(name.clone());
    want.spec.ingress = Ingress::Closed;
    made(&place, &want).await;
    let id = want.task.as_str();
    let template = place.api.done("ec2", "DescribeLaunchTemplateVersions", &[("LaunchTemplateName", id)]);
    assert_eq!(text(&template, "httpPutResponseHopLimit"), "2");
    assert_eq!(text(&text(&template, "iamInstanceProfile"), "name"), name);
    let group = place.api.done(
        "ec2",
        "DescribeSecurityGroups",
        &[("Filter.1.Name", "group-name"), ("Filter.1.Value.1", id)],
    );
    assert_eq!(texts(&group, "fromPort"), Vec::<String>::new(), "nothing is open");
    assert!(!place.left(&want.task).contains(&"GetRole".to_owned()), "no role is made");
    assert!(place.aws().destroy(&want.task).await.unwrap().is_gone());
    assert_eq!(place.left(&want.task), Vec::<String>::new());
    let _answer = place.api.done("iam", "GetInstanceProfile", &[("InstanceProfileName", &name)]);
    let _answer = place.api.done("iam", "DeleteInstanceProfile", &[("InstanceProfileName", &name)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_shrinks_is_left_so_and_ends_with_its_last_machine() {
    let Some(place) = Place::new("eu-central-1") else { return };
    let want = place.hour(2);
    let observed = made(&place, &want).await;
    let release = |machine: &MachineId| {
        // What a machine sends, with its own signature.
        let call = [("InstanceId", machine.0.as_str()), ("ShouldDecrementDesiredCapacity", "true")];
        let _answer = place.api.done("autoscaling", "TerminateInstanceInAutoScalingGroup", &call);
    };
    release(&observed.machines[0].id);
    let again = made(&place, &want).await;
    assert_eq!((again.group, again.alive().count()), (GroupState::Active { size: 1 }, 1));
    release(&observed.machines[1].id);
    let ended = made(&place, &want).await;
    assert_eq!((ended.group, ended.alive().count()), (GroupState::Ended, 0));
    assert_eq!(ended.machines.len(), 2);
    assert!(place.aws().destroy(&want.task).await.unwrap().is_gone());
    assert_eq!(place.left(&want.task), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cut_off_anywhere_is_finished_or_removed() {
    let Some(place) = Place::new("ca-central-1") else { return };
    // The emulator answers in some tens of milliseconds, so this cuts at about every round.
    for millis in [30, 60, 100, 150, 200, 300, 400, 600] {
        let want = place.hour(1);
        let cut = tokio::time::timeout(Duration::from_millis(millis), place.aws().ensure(&want)).await;
        if millis % 100 == 0 {
            let whole = made(&place, &want).await;
            assert_eq!(
                (whole.group, whole.machines.len()),
                (GroupState::Active { size: 1 }, 1),
                "cut: {cut:?}"
            );
        }
        let cut = tokio::time::timeout(Duration::from_millis(millis), place.aws().destroy(&want.task)).await;
        let gone =
            place.aws().destroy(&want.task).await.unwrap_or_else(|e| panic!("{cut:?}: {}", causes(&e)));
        assert!(gone.is_gone());
        assert!(gone.machines.iter().all(|m| m.end == Some(MachineEnd::Destroyed)), "{gone:?}");
        assert_eq!(place.left(&want.task), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_work_is_refused_before_anything_is_made() {
    let Some(place) = Place::new("us-east-2") else { return };
    type Change = fn(&mut GroupSpec);
    let cases: [(&str, Change); 12] = [
        ("use m+t4", |w| w.spec.machine = "m+k80".to_owned()),
        ("is not a machine of AWS", |w| w.spec.machine = "enormous".to_owned()),
        ("has no x9.huge", |w| w.spec.machine = "x9.huge".to_owned()),
        ("is not a region of AWS", |w| w.spec.region = "us-west-1a".to_owned()),
        ("is not an image", |w| w.spec.image = "windows".to_owned()),
        ("has no image", |w| w.spec.image = "u@099720109477:x86_64:nothing-like-this*".to_owned()),
        ("has no image", |w| {
            w.spec.machine = "m7g.large".to_owned();
            w.spec.image = "u@099720109477:x86_64:*noble*".to_owned();
        }),
        ("is not between", |w| w.spec.spot = Spot::MaxPrice { usd_per_hour: 5000.0 }),
        ("needs 15 GB", |w| w.spec.disk_size = Some(4)),
        ("is not an instance profile", |w| w.spec.permission_set = Some("a b".to_owned())),
        ("is reserved", |w| drop(w.spec.tags.insert("aws:x".to_owned(), String::new()))),
        ("cannot reach the store", |w| w.store = Url::parse("file:///tmp/store").unwrap()),
    ];
    for (expected, change) in cases {
        let mut want = place.hour(1);
        change(&mut want);
        let error = place.aws().ensure(&want).await.expect_err(expected);
        if expected == "has no image" && want.spec.machine == "m7g.large" {
            // The owner's x86 image is there; the machine is of the other kind.
            assert!(causes(&error).contains("arm64"), "{}", causes(&error));
        } else {
            assert!(causes(&error).contains(expected), "{expected}: {}", causes(&error));
        }
        assert_eq!(
            (error.kind, error.leftovers),
            (CloudErrorKind::InvalidSpec, Leftovers::None),
            "{expected}"
        );
        assert_eq!(place.left(&want.task), Vec::<String>::new(), "{expected}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_somebody_elses_is_neither_used_nor_removed() {
    let Some(place) = Place::new("us-west-2") else { return };
    let want = place.hour(1);
    let id = want.task.as_str();
    let vpcs = place.api.done("ec2", "DescribeVpcs", &[]);
    let made = place.api.done(
        "ec2",
        "CreateSecurityGroup",
        &[("GroupName", id), ("GroupDescription", "somebody else's"), ("VpcId", &text(&vpcs, "vpcId"))],
    );
    let error = place.aws().ensure(&want).await.expect_err("the name is taken");
    assert!(causes(&error).contains("somebody else's"), "{}", causes(&error));
    assert!(place.aws().destroy(&want.task).await.unwrap().is_gone());
    let theirs = text(&made, "groupId");
    let there = place.api.done("ec2", "DescribeSecurityGroups", &[("GroupId.1", &theirs)]);
    assert_eq!(text(&there, "groupId"), theirs);
    let _answer = place.api.done("ec2", "DeleteSecurityGroup", &[("GroupId", &theirs)]);
    assert_eq!(place.left(&want.task), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_of_every_kind_are_listed_and_removed() {
    // Not noted anywhere here: found in the regions where tasks usually are.
    let Some(place) = Place::new("us-east-1") else { return };
    let other = Aws::with(&Home::at(place.home.path().join("another computer")), place.settings());
    let task = || TaskId::seeded("orphan", &rand::random::<[u8; 16]>()).unwrap();
    let tag = |resource: &str, task: &TaskId| {
        let tags = [("ResourceId.1", resource), ("Tag.1.Key", "tpi:task"), ("Tag.1.Value", task.as_str())];
        let _answer = place.api.done("ec2", "CreateTags", &tags);
    };
    let vpcs = place.api.done("ec2", "DescribeVpcs", &[]);

    let [role, profile, group, template, machine] = [task(), task(), task(), task(), task()];
    for (action, name, owner) in
        [("CreateRole", "RoleName", &role), ("CreateInstanceProfile", "InstanceProfileName", &profile)]
    {
        let parameters = [
            (name, owner.as_str()),
            ("Path", "/tpi/"),
            ("AssumeRolePolicyDocument", "{}"),
            ("Tags.member.1.Key", "tpi:task"),
            ("Tags.member.1.Value", owner.as_str()),
        ];
        let _answer = place.api.done("iam", action, &parameters);
    }
    let made = place.api.done(
        "ec2",
        "CreateSecurityGroup",
        &[("GroupName", group.as_str()), ("GroupDescription", "x"), ("VpcId", &text(&vpcs, "vpcId"))],
    );
    tag(&text(&made, "groupId"), &group);
    // The emulator shows a template's first tags only.
    let parameters = [
        ("LaunchTemplateName", template.as_str()),
        ("LaunchTemplateData.InstanceType", "t3.micro"),
        ("TagSpecification.1.ResourceType", "launch-template"),
        ("TagSpecification.1.Tag.1.Key", "tpi:task"),
        ("TagSpecification.1.Tag.1.Value", template.as_str()),
    ];
    let _answer = place.api.done("ec2", "CreateLaunchTemplate", &parameters);
    let parameters = [
        ("ImageId", "ami-0aa00000000000002"),
        ("MinCount", "1"),
        ("MaxCount", "1"),
        ("InstanceType", "t3.micro"),
    ];
    let made = place.api.done("ec2", "RunInstances", &parameters);
    tag(&text(&made, "instanceId"), &machine);

    let listed = other.list().await.unwrap();
    for orphan in [&role, &profile, &group, &template, &machine] {
        assert!(listed.contains(orphan), "{orphan} is not among {listed:?}");
        assert!(!place.left(orphan).is_empty());
        assert!(other.destroy(orphan).await.unwrap().is_gone());
        assert_eq!(place.left(orphan), Vec::<String>::new());
    }
    let listed = other.list().await.unwrap();
    assert!([&role, &profile, &group, &template, &machine].into_iter().all(|o| !listed.contains(o)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloud_that_does_not_answer_is_unavailable_and_leaves_nothing() {
    let Some(place) = Place::new("us-west-1") else { return };
    // Nobody listens on a port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let settings = AwsSettings {
        endpoint: Some(format!("http://127.0.0.1:{port}").parse().unwrap()),
        ..place.settings()
    };
    let aws = Aws::with(&Home::at(place.home.path()), settings);
    let want = place.hour(1);
    let error = aws.ensure(&want).await.expect_err("nobody there");
    assert_eq!(
        (error.kind, error.leftovers),
        (CloudErrorKind::Unavailable, Leftovers::None),
        "{}",
        causes(&error)
    );
    let error = aws.observe(&want.task).await.expect_err("nobody there");
    assert_eq!(error.kind, CloudErrorKind::Unavailable);
}
