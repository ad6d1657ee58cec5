//! A task is cut off anywhere, destroyed twice, and destroyed when parts of it are gone: always the same end.

use std::os::unix::process::ExitStatusExt as _;

use tpi_controller::{
    cloud::Cloud as _,
    engine::{Step, stop_points},
};
use tpi_proto::id::TaskId;

use super::{
    Place,
    api::{Api, text},
    made,
    program::{Computer, done, fresh, out, told},
};

const ABORTED: i32 = 6;
const NOT_FOUND: i32 = 7;

fn objects(place: &Place, computer: &Computer, id: &TaskId) -> Vec<String> {
    let status = computer.run(&["status", id.as_str()]);
    assert_eq!(status.status.code(), Some(NOT_FOUND), "{}", told(&status));
    place.left(id)
}

#[test]
fn a_submit_that_is_killed_at_any_step_is_finished_by_the_next() {
    let Some(place) = Place::new("ca-central-1") else { return };
    let computer = Computer::new(&place, &place.api.endpoint);
    let mut reached = 0;
    for point in stop_points(&Step::SUBMIT) {
        let name = fresh("killed");
        let killed = computer.submit(&name, Some(&point));
        // Some points are passed by a submission that has nothing to do there.
        let aborted = killed.status.signal() == Some(ABORTED);
        assert!(aborted || killed.status.success(), "{point}: {}", told(&killed));
        reached += u32::from(aborted);
        let id: TaskId = done(&computer.submit(&name, None)).parse().unwrap();
        let machines = place.api.done(
            "ec2",
            "DescribeInstances",
            &[("Filter.1.Name", "tag:tpi:task"), ("Filter.1.Value.1", id.as_str())],
        );
        assert_eq!(machines.matches("<instanceId>").count(), 1, "{point}: one machine");
        // The same again is the task that is there.
        let again = computer.submit(&name, None);
        assert_eq!(done(&again), id.as_str(), "{point}");
        let _text = done(&computer.run(&["destroy", &name]));
        assert_eq!(objects(&place, &computer, &id), Vec::<String>::new(), "{point}");
    }
    assert!(reached >= 14, "{reached} points were reached");
}

#[test]
fn a_destroy_that_is_killed_at_any_step_is_finished_by_the_next() {
    let Some(place) = Place::new("us-east-2") else { return };
    let computer = Computer::new(&place, &place.api.endpoint);
    let mut reached = 0;
    for point in stop_points(&Step::DESTROY) {
        let name = fresh("ended");
        let id: TaskId = done(&computer.submit(&name, None)).parse().unwrap();
        let killed = computer.run_until(&["destroy", &name], Some(&point));
        let aborted = killed.status.signal() == Some(ABORTED);
        assert!(aborted || killed.status.success(), "{point}: {}", told(&killed));
        reached += u32::from(aborted);
        let again = computer.run(&["destroy", id.as_str()]);
        let gone = again.status.code() == Some(NOT_FOUND);
        assert!(again.status.success() || gone, "{point}: {}", told(&again));
        assert_eq!(objects(&place, &computer, &id), Vec::<String>::new(), "{point}");
        // A third time there is nothing to destroy.
        let third = computer.run(&["destroy", id.as_str()]);
        assert_eq!(third.status.code(), Some(NOT_FOUND), "{point}: {}", told(&third));
        assert_eq!(out(&third), "");
    }
    assert!(reached >= 8, "{reached} points were reached");
}

type Take = fn(&Api, &str);

/// What can be lost alone, and how.
const PARTS: [(&str, Take); 8] = [
    ("group", |api, id| {
        let group = [("AutoScalingGroupName", id), ("ForceDelete", "true")];
        let _answer = api.done("autoscaling", "DeleteAutoScalingGroup", &group);
    }),
    ("schedule", |api, id| {
        let schedule = [("AutoScalingGroupName", id), ("ScheduledActionName", "tpi-deadline")];
        let _answer = api.done("autoscaling", "DeleteScheduledAction", &schedule);
    }),
    ("machine", |api, id| {
        let filter = [("Filter.1.Name", "tag:tpi:task"), ("Filter.1.Value.1", id)];
        let machine = text(&api.done("ec2", "DescribeInstances", &filter), "instanceId");
        let _answer = api.done("ec2", "TerminateInstances", &[("InstanceId.1", &machine)]);
    }),
    ("template", |api, id| {
        let _answer = api.done("ec2", "DeleteLaunchTemplate", &[("LaunchTemplateName", id)]);
    }),
    ("security group", |api, id| {
        let filter = [("Filter.1.Name", "group-name"), ("Filter.1.Value.1", id)];
        let group = text(&api.done("ec2", "DescribeSecurityGroups", &filter), "groupId");
        // AWS would refuse while a machine uses it, and so may the emulator.
        let _answer = api.ask("ec2", "DeleteSecurityGroup", &[("GroupId", &group)]);
    }),
    ("policy", |api, id| {
        let _answer = api.done("iam", "DeleteRolePolicy", &[("RoleName", id), ("PolicyName", "tpi-task")]);
    }),
    ("role", |api, id| {
        let member = [("InstanceProfileName", id), ("RoleName", id)];
        let _answer = api.done("iam", "RemoveRoleFromInstanceProfile", &member);
        let _answer = api.done("iam", "DeleteRolePolicy", &[("RoleName", id), ("PolicyName", "tpi-task")]);
        let _answer = api.done("iam", "DeleteRole", &[("RoleName", id)]);
    }),
    ("profile", |api, id| {
        let member = [("InstanceProfileName", id), ("RoleName", id)];
        let _answer = api.done("iam", "RemoveRoleFromInstanceProfile", &member);
        let _answer = api.done("iam", "DeleteInstanceProfile", &[("InstanceProfileName", id)]);
    }),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn destroy_ends_well_whichever_part_is_gone() {
    let Some(place) = Place::new("af-south-1") else { return };
    for (part, take) in PARTS {
        let want = place.hour(1);
        let _observed = made(&place, &want).await;
        take(&place.api, want.task.as_str());
        assert!(place.aws().destroy(&want.task).await.unwrap().is_gone(), "{part}");
        assert_eq!(place.left(&want.task), Vec::<String>::new(), "{part}");
        assert!(place.aws().destroy(&want.task).await.unwrap().is_gone(), "{part}, twice");
    }
}

#[test]
fn a_submit_that_fails_leaves_the_task_that_is_there_alone() {
    let Some(place) = Place::new("eu-north-1") else { return };
    let computer = Computer::new(&place, &place.api.endpoint);
    let name = fresh("there");
    let id: TaskId = done(&computer.submit(&name, None)).parse().unwrap();
    let before = place.left(&id);
    let region = place.api.region.as_str();
    let base =
        ["submit", "--detach", "--cloud", "aws", "--region", region, "--ingress", "none", "--name", &name];
    for (change, code) in [
        (&["--image", "windows", "--", "true"][..], Some(1)),
        (&["--machine", "x9.huge", "--", "true"], None),
        (&["--workdir", "nowhere", "--", "true"], Some(1)),
        (&["--timeout", "0", "--", "true"], Some(1)),
    ] {
        let output = computer.run(&[&base[..], change].concat());
        match code {
            Some(code) => assert_eq!(output.status.code(), Some(code), "{}", told(&output)),
            // The task runs already: nothing is started, and that is said.
            None => assert!(told(&output).contains("already"), "{}", told(&output)),
        }
        assert_eq!(place.left(&id), before, "{change:?}");
    }
    // Nor does a new name that fails.
    let other = fresh("fails");
    let arguments = [
        "submit",
        "--detach",
        "--cloud",
        "aws",
        "--region",
        region,
        "--ingress",
        "none",
        "--name",
        &other,
        "--machine",
        "x9.huge",
        "--",
        "true",
    ];
    let failed = computer.run(&arguments);
    assert_eq!(failed.status.code(), Some(3), "{}", told(&failed));
    assert_eq!(place.left(&id), before);
    // It was refused before anything was written.
    assert_eq!(computer.run(&["destroy", &other]).status.code(), Some(NOT_FOUND));
    let _text = done(&computer.run(&["destroy", &name]));
    assert_eq!(place.left(&id), Vec::<String>::new());
}
