//! The whole way on the simulated AWS when things go wrong: permissions, throttling, crashes, halves.
//!
//! Needs moto (`TPI_TEST_MOTO`) and a controller with the cloud `aws` (`TPI_TEST_AWS_CONTROLLER`). No machine boots in most
//! of these tests: they are about the account, and the laptop is allowed exactly what `tpi-controller aws policy` prints.
//! The last ones are about machines: see [`Aws`].

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use axum::http::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tpi_controller::engine::{Step, stop_points};
use tpi_tests::{
    Finished, Rig, Running, eventually,
    sim::{
        client::Client,
        front::{EndReason, Front, Instance, InstanceState, Matching, Options, ShortageReason, Trouble},
        world::{self, Aws},
    },
};

const REGION: &str = "us-west-1";
const BUCKET: &str = "tpi-simulated";

/// An account, a bucket, and a laptop.
struct World {
    front: Front,
    rig: Rig,
    /// Somebody who may do everything.
    client: Client,
    policy: Value,
}

impl World {
    /// `None`, with a word about it, where something is missing.
    #[expect(clippy::print_stderr, reason = "says what is skipped")]
    async fn new() -> Result<Option<Self>> {
        let controller = std::env::var_os("TPI_TEST_AWS_CONTROLLER").filter(|path| !path.is_empty());
        let (Some(options), Some(controller)) = (Options::of_environment(), controller) else {
            eprintln!(
                "SKIPPED: no TPI_TEST_MOTO or no TPI_TEST_AWS_CONTROLLER: nothing was tried on the simulated AWS"
            );
            return Ok(None);
        };
        let mut rig = Rig::with(controller.into())?;
        let policy = rig.run(["aws", "policy"])?.success()?;
        let policy = policy.json()?;
        let front = Front::start("127.0.0.1:0".parse()?, options).await?;
        let (key, secret) = front.laptop();
        let client = Client::new(&front.url(), REGION, (&key, &secret, ""));
        let place = format!(
            "<CreateBucketConfiguration><LocationConstraint>{REGION}</LocationConstraint></CreateBucketConfiguration>"
        );
        let told = client.send("s3", Method::PUT, &format!("/{BUCKET}"), "", &[], place.as_bytes()).await?;
        ensure!(told.status == 200, "{told:?}");
        // No machine boots: any program will do, and a small one is quick.
        let agent = rig.folder().join("agent");
        std::fs::copy("/bin/true", &agent)?;
        rig.set("AWS_ACCESS_KEY_ID", &key)
            .set("AWS_SECRET_ACCESS_KEY", &secret)
            .set("AWS_REGION", REGION)
            .set("AWS_ENDPOINT_URL", &front.url())
            .set("AWS_EC2_METADATA_DISABLED", "true")
            .set("TPI_AGENT", &agent.to_string_lossy())
            .set("TPI_STORE", &format!("s3://{BUCKET}/store"));
        front.allow_laptop(Some(policy.clone()));
        Ok(Some(Self { front, rig, client, policy }))
    }

    fn start(&self, name: &str, more: &[(&str, &str)]) -> Result<Running> {
        let task = ["submit", "--detach", "--name", name];
        let flags = ["--cloud", "aws", "--region", REGION, "--ingress", "203.0.113.0/24", "--timeout", "1h"];
        let mut command =
            self.rig.command(task.into_iter().chain(flags).chain(["--", "sh", "-c", "echo hello"]));
        command.envs(more.iter().copied());
        Running::spawn(command)
    }

    fn submit(&self, name: &str) -> Result<Finished> {
        self.start(name, &[])?.wait()
    }

    fn destroy(&self, name: &str) -> Result<Finished> {
        self.rig.run(["destroy", name])
    }

    /// All but buckets, which stay: what is in them does not.
    async fn left(&self) -> Result<Vec<String>> {
        let mut left = self.front.everything_left().await?;
        left.retain(|what| !what.starts_with("bucket "));
        Ok(left)
    }

    async fn is_empty(&self, when: &str) -> Result<()> {
        let left = self.left().await?;
        ensure!(left.is_empty(), "{when}: {left:#?}");
        Ok(())
    }

    /// Does something that the laptop's policy need not allow.
    async fn by_force(&self, service: &str, action: &str, parameters: &[(&str, &str)]) -> Result<()> {
        self.front.allow_laptop(None);
        let told = self.client.ask(service, action, parameters).await?;
        self.front.allow_laptop(Some(self.policy.clone()));
        ensure!(told.status == 200, "{action}: {told:?}");
        Ok(())
    }

    /// Kills a command when it has made a call; whether it came to that.
    fn killed_at(&self, action: &str, trouble: Trouble, command: Running) -> Result<bool> {
        let before = self.front.held();
        let planted = self.front.trouble(Matching::action(action).by("user/"), trouble, 0, None);
        let pid = std::path::PathBuf::from(format!("/proc/{}/stat", command.id()));
        let over = || std::fs::read_to_string(&pid).map_or(true, |stat| stat.contains(") Z "));
        let held = eventually("the call, or the end", || {
            (self.front.held() > before).then_some(true).or_else(|| over().then_some(false))
        })?;
        command.signal(Signal::KILL)?;
        self.front.lift(planted);
        let _finished = command.wait()?;
        Ok(held)
    }
}

/// The policy without an action.
fn without(policy: &Value, action: &str) -> Value {
    let mut policy = policy.clone();
    for statement in policy["Statement"].as_array_mut().into_iter().flatten() {
        if statement["Action"] == action {
            statement["Action"] = json!("none:None");
        }
        if let Some(actions) = statement["Action"].as_array_mut() {
            actions.retain(|a| a != action);
        }
    }
    policy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_printed_policy_is_enough() -> Result<()> {
    let Some(world) = World::new().await? else { return Ok(()) };
    world.submit("least")?.success()?;
    world.submit("least")?.success()?;
    world.rig.run(["list"])?.success()?;
    world.rig.run(["status", "least"])?.success()?;
    ensure!(world.front.instances().await.len() == 1, "{:?}", world.front.instances().await);
    let destroyed = world.destroy("least")?.success()?;
    ensure!(destroyed.stdout_text().contains("nothing is left"), "{}", destroyed.description());
    world.is_empty("destroyed").await?;
    let again = world.destroy("least")?;
    ensure!([Some(0), Some(7)].contains(&again.status.code()), "{}", again.description());
    ensure!(world.front.refused().is_empty(), "{:#?}", world.front.refused());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_permission_is_named() -> Result<()> {
    let Some(world) = World::new().await? else { return Ok(()) };
    for action in [
        "ec2:DescribeSubnets",
        "ec2:CreateSecurityGroup",
        "ec2:CreateTags",
        "ec2:CreateLaunchTemplate",
        "iam:CreateRole",
        "iam:TagRole",
        "iam:PutRolePolicy",
        "iam:PassRole",
        "iam:CreateServiceLinkedRole",
        "autoscaling:CreateAutoScalingGroup",
        "autoscaling:PutScheduledUpdateGroupAction",
        "s3:PutObject",
    ] {
        let name = action.replace(':', "-").to_lowercase();
        world.front.allow_laptop(Some(without(&world.policy, action)));
        let refused = world.submit(&name)?;
        ensure!(
            !refused.status.success() && refused.stderr.contains(action),
            "{action}: {}",
            refused.description()
        );
        ensure!(world.front.instances().await.is_empty(), "{action}: a machine was started");
        world.front.allow_laptop(Some(world.policy.clone()));
        let destroyed = world.destroy(&name)?;
        // Refused before anything was written, there is no task.
        let known = destroyed.status.code() != Some(7);
        ensure!(!known || destroyed.status.success(), "{action}: {}", destroyed.description());
        world.is_empty(action).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn throttling_and_failures_are_waited_out() -> Result<()> {
    let Some(world) = World::new().await? else { return Ok(()) };
    let mut planted = Vec::new();
    for service in ["ec2", "autoscaling", "iam", "sts", "s3"] {
        for (at, trouble) in
            [Trouble::Throttle, Trouble::CutBefore, Trouble::Fail(500), Trouble::Throttle, Trouble::Fail(503)]
                .into_iter()
                .enumerate()
        {
            let skip = u64::try_from(at)? * 3;
            planted.push(world.front.trouble(Matching::service(service), trouble, skip, Some(1)));
        }
    }
    world.submit("slow")?.success()?;
    for service in ["ec2", "autoscaling", "iam", "s3"] {
        for skip in [0, 1, 4] {
            planted.push(world.front.trouble(Matching::service(service), Trouble::Throttle, skip, Some(1)));
        }
    }
    world.destroy("slow")?.success()?;
    let failed = world
        .front
        .calls()
        .into_iter()
        .filter(|call| call.status >= 500 || call.code == "Throttling")
        .count();
    ensure!(failed > 15, "{failed} calls failed");
    for planted in planted {
        world.front.lift(planted);
    }
    world.is_empty("destroyed").await?;
    // Carried out and not answered: made once all the same.
    let calls =
        ["CreateLaunchTemplate", "CreateAutoScalingGroup", "CreateSecurityGroup", "CreateRole", "PutObject"];
    for action in calls.into_iter().chain(["AddRoleToInstanceProfile", "CreateInstanceProfile"]) {
        let _once = world.front.trouble(Matching::action(action), Trouble::CutAfter, 0, Some(1));
    }
    world.submit("cut")?.success()?;
    for action in ["DeleteRole", "DeleteLaunchTemplate", "DeleteSecurityGroup", "DeleteAutoScalingGroup"] {
        let _once = world.front.trouble(Matching::action(action), Trouble::CutAfter, 0, Some(1));
    }
    world.destroy("cut")?.success()?;
    world.is_empty("destroyed after cuts").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_submission_killed_anywhere_is_finished_or_removed() -> Result<()> {
    let Some(world) = World::new().await? else { return Ok(()) };
    let calls = [
        "CreateSecurityGroup",
        "CreateRole",
        "CreateInstanceProfile",
        "CreateLaunchTemplate",
        "AuthorizeSecurityGroupIngress",
        "PutRolePolicy",
        "AddRoleToInstanceProfile",
        "CreateAutoScalingGroup",
        "PutScheduledUpdateGroupAction",
        "UpdateAutoScalingGroup",
    ];
    for (at, action) in calls.into_iter().enumerate() {
        let name = action.to_lowercase();
        // Carried out, and nobody was told; of every third it had not even begun.
        let trouble = if at % 3 == 0 { Trouble::HoldBefore } else { Trouble::HoldAfter };
        let held = world.killed_at(action, trouble, world.start(&name, &[])?)?;
        ensure!(held, "{action} was not called");
        // Every other one is finished first.
        if at % 2 == 0 {
            world.submit(&name)?.success()?;
        }
        // The first call of a name may be a dry run, from before anything was written: then there is no task.
        let destroyed = world.destroy(&name)?;
        ensure!(matches!(destroyed.status.code(), Some(0 | 7)), "{action}: {}", destroyed.description());
        world.is_empty(&format!("killed at {action}, {trouble:?}")).await?;
    }
    for point in stop_points(&Step::SUBMIT) {
        let name = format!("at-{point}");
        let killed = world.start(&name, &[("__TPI_TEST_STOP_AT", &point)])?.wait()?;
        if killed.status.success() {
            // Nothing of that step was to be done here.
            world.destroy(&name)?.success()?;
            continue;
        }
        world.submit(&name)?.success()?;
        world.destroy(&name)?.success()?;
        world.is_empty(&point).await?;
    }
    let alive = world.front.instances().await.into_iter().filter(|i| i.state.is_alive()).count();
    ensure!(alive == 0, "{alive} machines");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destroy_killed_anywhere_is_finished_by_the_next() -> Result<()> {
    let Some(world) = World::new().await? else { return Ok(()) };
    for action in [
        "CreateTags",
        "DeleteAutoScalingGroup",
        "TerminateInstances",
        "RemoveRoleFromInstanceProfile",
        "DeleteInstanceProfile",
        "DeleteRolePolicy",
        "DeleteRole",
        "DeleteLaunchTemplate",
        "DeleteSecurityGroup",
        "DeleteObjects",
    ] {
        let name = action.to_lowercase();
        world.submit(&name)?.success()?;
        let held = world.killed_at(action, Trouble::HoldAfter, world.rig.start(["destroy", &name])?)?;
        ensure!(held, "{action} was not called");
        let again = world.destroy(&name)?;
        // All of the store may have been deleted by then.
        let gone = action == "DeleteObjects" && again.status.code() == Some(7);
        ensure!(gone || again.status.success(), "killed at {action}: {}", again.description());
        world.is_empty(action).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_half_gone_is_removed_whole() -> Result<()> {
    let Some(world) = World::new().await? else { return Ok(()) };
    // What somebody else may have removed by then, one or more at a time.
    let cases: [&[&str]; 7] = [
        &["group"],
        &["template"],
        &["member"],
        &["member", "profile"],
        &["policy"],
        &["member", "policy", "role"],
        &["group", "member", "profile", "policy", "role", "template"],
    ];
    for (at, case) in cases.into_iter().enumerate() {
        let name = format!("half-{at}");
        let id = world.submit(&name)?.success()?.stdout_text();
        let id = id.trim();
        for part in case {
            let (service, action, parameters): (&str, &str, Vec<(&str, &str)>) = match *part {
                "group" => {
                    let force = vec![("AutoScalingGroupName", id), ("ForceDelete", "true")];
                    ("autoscaling", "DeleteAutoScalingGroup", force)
                }
                "template" => ("ec2", "DeleteLaunchTemplate", vec![("LaunchTemplateName", id)]),
                "member" => {
                    let member = vec![("InstanceProfileName", id), ("RoleName", id)];
                    ("iam", "RemoveRoleFromInstanceProfile", member)
                }
                "profile" => ("iam", "DeleteInstanceProfile", vec![("InstanceProfileName", id)]),
                "policy" => ("iam", "DeleteRolePolicy", vec![("RoleName", id), ("PolicyName", "tpi-task")]),
                _ => ("iam", "DeleteRole", vec![("RoleName", id)]),
            };
            world.by_force(service, action, &parameters).await?;
        }
        world.destroy(&name)?.success()?;
        world.is_empty(&format!("without {case:?}")).await?;
    }
    ensure!(world.front.refused().is_empty(), "{:#?}", world.front.refused());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_schedule_alone_ends_a_group_whose_machines_do_nothing() -> Result<()> {
    let Some(world) = World::new().await? else { return Ok(()) };
    let id = world.submit("late")?.success()?.stdout_text();
    let there = |i: &Instance| i.state != InstanceState::Terminated;
    let alive = async || world.front.instances().await.into_iter().filter(there).count();
    wait("a machine", async || alive().await == 1).await?;
    world.front.clock().advance(jiff::SignedDuration::from_mins(59));
    wait("still a machine", async || alive().await == 1).await?;
    world.front.clock().advance(jiff::SignedDuration::from_mins(2));
    wait("the end", async || alive().await == 0).await?;
    let status = world.rig.run(["status", "late"])?;
    ensure!(status.stdout_text().contains("deadline"), "{id}: {}", status.description());
    world.destroy("late")?.success()?;
    world.is_empty("destroyed").await
}

/// Until it is so.
async fn wait(what: &str, look: impl AsyncFn() -> bool) -> Result<()> {
    let begun = std::time::Instant::now();
    while !look().await {
        ensure!(begun.elapsed() < Duration::from_secs(120), "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

#[test]
fn a_machine_whose_agent_was_changed_runs_nothing_and_goes() -> Result<()> {
    let Some(aws) = Aws::open()? else { return Ok(()) };
    let none = aws.front.shortage(None, None, ShortageReason::InsufficientInstanceCapacity);
    let task = aws.submit("changed", "#!/bin/sh\necho ran\n", &[])?;
    let prefix = format!("object {}/some/place/tasks/{task}/agent/", world::BUCKET);
    let left = aws.wait_for(aws.front.everything_left())?;
    let object =
        left.iter().find_map(|what| what.strip_prefix("object ").filter(|_| what.starts_with(&prefix)));
    let object = object.with_context(|| format!("no agent among {left:?}"))?;
    let path = format!("/{object}");
    let client = aws.client();
    let told =
        aws.wait_for(client.send("s3", Method::PUT, &path, "", &[], b"#!/bin/sh\necho something else\n"))?;
    ensure!(told.status == 200, "{told:?}");
    aws.front.lift(none);

    let gone = aws.room.wait("the machine to power itself off", |seen| seen.iter().any(|seen| !seen.alive));
    let seen = aws.wait_for(gone).with_context(|| aws.diagnosis())?;
    let first = seen.first().context("a machine")?.instance.id.clone();
    // For good: it takes its place in the group with it.
    let attached = aws.rig.run(["attach", "changed"])?;
    ensure!(!attached.status.success(), "{}", attached.description());
    ensure!(attached.stdout.is_empty(), "nothing ran: {}", attached.description());
    ensure!(
        aws.room.machines().len() == 1,
        "{first} was replaced: {:?}\n{}",
        aws.room.machines(),
        aws.diagnosis()
    );
    let told = attached.stderr.contains("without its agent");
    ensure!(told, "the user is told: {}\n{}", attached.description(), aws.diagnosis());
    let _destroyed = aws.rig.run(["destroy", "changed"])?.success().with_context(|| aws.diagnosis())?;
    aws.require_empty()
}

#[test]
fn nothing_is_lost_while_the_store_is_away_for_a_minute() -> Result<()> {
    let Some(aws) = Aws::open()? else { return Ok(()) };
    let script = "#!/bin/sh\ni=0\nwhile ! test -e go; do i=$((i+1)); echo line $i; sleep 0.2; done\n\
                  mkdir results\necho $i > results/last\n";
    let _task = aws.submit("away", script, &[])?;
    let slot = aws.wait_slot("away", 0, "the script to run", |slot| slot["phase"] == "run")?;
    let machine = slot["machine"].as_str().context("a machine")?.to_owned();
    let attached = aws.rig.start(["attach", "away"])?;
    let store = Matching::service("s3").by("role/");
    let away = aws.front.trouble(store, Trouble::CutBefore, 0, None);
    let since = std::time::Instant::now();
    // The script ends while the store is away.
    eventually("half a minute", || (since.elapsed() > Duration::from_secs(30)).then_some(()))?;
    drop(aws.until(&machine, "touch /var/lib/tpi/work/go")?);
    eventually("a minute", || (since.elapsed() > Duration::from_secs(60)).then_some(()))?;
    ensure!(aws.alive().len() == 1, "the machine waits for the store\n{}", aws.diagnosis());
    aws.front.lift(away);
    let done = attached.wait()?.success().with_context(|| aws.diagnosis())?;
    let _pulled = aws.rig.run(["pull", "away"])?.success()?;
    let last = std::fs::read_to_string(aws.rig.work().join("results/last"))?;
    let last: u32 = last.trim().parse()?;
    let lines: String = (1..=last).map(|line| format!("line {line}\n")).collect();
    ensure!(last > 100 && done.stdout_text() == lines, "{last}: {}", done.description());
    aws.wait_no_machine()?;
    ensure!(aws.room.machines().len() == 1, "{:?}", aws.room.machines());
    // And the same from the store alone.
    let again = aws.rig.run(["logs", "away"])?.success()?;
    ensure!(again.stdout_text() == lines, "{}", again.description());
    let _destroyed = aws.rig.run(["destroy", "away"])?.success().with_context(|| aws.diagnosis())?;
    aws.require_empty()
}

#[test]
fn a_deadline_during_boot_ends_the_machine() -> Result<()> {
    let Some(aws) = Aws::open()? else { return Ok(()) };
    // It never gets its agent: the answer does not come.
    let held = aws.front.trouble(Matching::action("GetObject").by("role/"), Trouble::HoldBefore, 0, None);
    let _task = aws.submit("boot", "#!/bin/sh\necho ran\n", &["--timeout", "60s"])?;
    let booted = aws.room.wait("a machine", |seen| seen.len() == 1);
    drop(aws.wait_for(booted)?);
    eventually("it to ask for its agent", || (aws.front.held() > 0).then_some(()))
        .with_context(|| aws.diagnosis())?;
    let seen =
        aws.wait_for(aws.room.wait("the machine to be gone", |seen| seen.iter().all(|seen| !seen.alive)))?;
    ensure!(seen.len() == 1, "{seen:?}");
    let instances = aws.wait_for(aws.front.instances());
    ensure!(instances.iter().all(|instance| instance.ended != Some(EndReason::Died)), "{instances:?}");
    aws.front.lift(held);
    let status = aws.rig.run(["status", "boot"])?;
    ensure!(status.stdout_text().contains("deadline"), "{}\n{}", status.description(), aws.diagnosis());
    let _destroyed = aws.rig.run(["destroy", "boot"])?.success().with_context(|| aws.diagnosis())?;
    aws.require_empty()
}
