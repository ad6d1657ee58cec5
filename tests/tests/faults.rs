//! Bad luck: processes killed at every step, stores and networks that go away, full disks, wrong clocks.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, kill_process};
use tpi_controller::engine::{Step, stop_points};
use tpi_proto::{
    id::{Attempt, TaskId},
    state::{Failure, Outcome, Phase, SlotState},
};
use tpi_tests::{Rig, eventually, rig::walk};

/// Counts to ten, one checkpoint per number, continuing from the last one.
const CHECKPOINTS: &str = "#!/bin/sh
mkdir -p results
i=$(cat results/checkpoint 2>/dev/null || echo 0)
echo from $i
while [ $i -lt 10 ]; do
  i=$((i+1)); sleep 0.3
  echo $i > results/new && mv results/new results/checkpoint
done
echo done
";

fn finished_well(state: &SlotState) -> bool {
    matches!(state, SlotState::Finished { outcome: Outcome::Exited { code: 0 }, .. })
}

#[test]
fn an_agent_killed_in_any_phase_is_replaced_and_the_script_continues() -> Result<()> {
    for phase in [Phase::Boot, Phase::Prepare, Phase::Restore, Phase::Run, Phase::Save, Phase::Release] {
        let mut rig = Rig::new()?;
        // The first machine kills itself when it enters the phase; its successors do not.
        let mark = rig.folder().join("died").to_string_lossy().into_owned();
        rig.set("__TPI_TEST_STOP_AT", phase.as_str()).set("__TPI_TEST_STOP_ONCE", &mark);
        let task = rig.submit("phases", CHECKPOINTS, &["--workdir", ".", "--results", "results"])?;
        let end = rig.wait_finished(&task).with_context(|| format!("killed in {}", phase.as_str()))?;
        ensure!(finished_well(&end.state), "killed in {}: {end:?}", phase.as_str());
        rig.wait_empty()?;
        ensure!(rig.folder().join("died").exists(), "a machine died in {}", phase.as_str());
        rig.run(["pull", "phases"])?.success()?;
        let last = fs::read_to_string(rig.work().join("results/checkpoint"))?;
        ensure!(last == "10\n", "killed in {}: {last:?}", phase.as_str());
        rig.run(["destroy", "phases"])?.success()?;
    }
    Ok(())
}

#[test]
fn a_machine_killed_while_running_continues_from_its_checkpoint() -> Result<()> {
    let rig = Rig::new()?;
    let task = rig.submit(
        "killed",
        &CHECKPOINTS.replace("-lt 10", "-lt 30"),
        &["--workdir", ".", "--results", "results"],
    )?;
    rig.wait_slot(&task, 0, "something saved", |s| s.saved.is_some_and(|g| g >= 1))?;
    let attached = rig.start(["attach", "killed"])?;
    for pid in rig.processes("agent-") {
        kill_process(pid, Signal::KILL)?;
    }
    let end = rig.wait_finished(&task)?;
    ensure!(finished_well(&end.state) && end.attempt > Attempt(1), "{end:?}");
    let attached = attached.wait()?.success()?;
    let text = attached.stdout_text();
    ensure!(text.ends_with("done\n"), "{}", attached.description());
    let resumed = text.lines().filter_map(|l| l.strip_prefix("from ")).next_back().unwrap_or("0");
    ensure!(resumed != "0", "the second attempt began from a checkpoint: {text}");
    rig.wait_empty()
}

fn gone_too_often(state: &SlotState) -> bool {
    matches!(state, SlotState::Finished { outcome: Outcome::Failed { failure: Failure::AgentLost, .. }, .. })
}

#[test]
fn a_script_that_kills_its_machine_every_time_is_given_up() -> Result<()> {
    let rig = Rig::new()?;
    // As the kernel does it when the memory of the machine is used up: nothing can be said any more.
    let script = "#!/bin/sh\necho attempt $TPI_ATTEMPT\nsleep 3\nkill -KILL $PPID\nsleep 1000\n";
    let task = rig.submit("deadly", script, &["--workdir", "."])?;
    let attached = rig.run(["attach", "deadly"])?.code(5)?;
    // What a lost machine printed in its last second may be lost with it.
    let attempts = attached.stdout_text();
    ensure!(attempts.contains("attempt 2") && !attempts.contains("attempt 4"), "{}", attached.description());
    let attached =
        attached.says("machines were lost too often: 3 in a row")?.says("hint: ")?.says("memory")?;
    let end = rig.slot(&task, 0).context("the slot")?;
    ensure!(gone_too_often(&end.state) && end.attempt == Attempt(3), "{end:?}");
    rig.wait_empty().with_context(|| attached.description())?;
    let status = rig.run(["status", "deadly"])?.success()?;
    ensure!(status.stdout_text().contains("lost too often"), "{}", status.description());
    let status = status.says("memory")?;
    ensure!(status.stdout_text().contains("no machine"), "{}", status.description());
    // Nothing is started for it any more, whoever asks.
    rig.run(["attach", "deadly"])?.code(5)?;
    ensure!(rig.alive().is_empty(), "{:?}", rig.alive());
    rig.run(["destroy", "deadly"])?.success()?;
    Ok(())
}

#[test]
fn a_machine_that_dies_before_the_script_every_time_is_given_up() -> Result<()> {
    let mut rig = Rig::new()?;
    rig.set("__TPI_TEST_STOP_AT", Phase::Prepare.as_str());
    let task = rig.submit("broken-image", "#!/bin/sh\necho never\n", &[])?;
    let end = rig.wait_finished(&task)?;
    ensure!(gone_too_often(&end.state) && end.losses.idle == 3, "{end:?}");
    rig.wait_empty()
}

#[test]
fn a_killed_group_is_started_again_by_the_next_command() -> Result<()> {
    let rig = Rig::new()?;
    let script = "#!/bin/sh\nwhile ! test -e go; do sleep 0.05; done\n";
    let task = rig.submit("group", script, &[])?;
    let before = rig.wait_running(&task)?;
    for pid in rig.processes("tpi-controller") {
        kill_process(pid, Signal::KILL)?;
    }
    eventually("the group to be dead", || rig.processes("tpi-controller").is_empty().then_some(()))?;
    rig.run(
        ["submit", "--detach", "--name", "group", "--script"].map(String::from).into_iter().chain([rig
            .folder()
            .join("group.sh")
            .to_string_lossy()
            .into_owned()]),
    )?
    .success()?;
    eventually("a new group", || (!rig.processes("tpi-controller").is_empty()).then_some(()))?;
    let after = rig.slot(&task, 0).context("the slot")?;
    ensure!(after.attempt == before.attempt, "the machine was adopted, not replaced: {after:?}");
    rig.run(["destroy", "group"])?.success()?;
    rig.wait_empty()
}

#[test]
fn a_submit_killed_at_every_step_finishes_when_run_again() -> Result<()> {
    let arguments =
        ["submit", "--name", "steps", "--workdir", ".", "--results", "results", "--script", "s.sh"];
    for point in stop_points(&Step::SUBMIT) {
        // What is done at once is done whole by the time of the first kill, so each point has a task of its own.
        let rig = Rig::new()?;
        rig.file("data", "payload")?;
        rig.file("s.sh", "#!/bin/sh\ncat data\nmkdir results; cp data results/\n")?;
        let mut command = rig.command(arguments);
        command.env("__TPI_TEST_STOP_AT", &point);
        let killed = tpi_tests::Running::spawn(command)?.wait()?;
        ensure!(killed.status.code().is_none(), "{point} did not stop it: {}", killed.description());
        let done = rig.run(arguments)?.success().with_context(|| point.clone())?;
        ensure!(done.stdout == b"payload", "{point}: {}", done.description());
        let task = TaskId::deterministic("steps")?;
        ensure!(rig.slot(&task, 0).is_some_and(|s| s.attempt == Attempt(1)), "{point}: the script ran once");
        rig.wait_empty().with_context(|| point.clone())?;
    }
    Ok(())
}

#[test]
fn a_destroy_killed_at_every_step_finishes_when_run_again() -> Result<()> {
    let script = "#!/bin/sh\nmkdir results; echo kept > results/file\nwhile :; do sleep 0.1; done\n";
    let mut stopped = Vec::new();
    for point in stop_points(&Step::DESTROY) {
        let rig = Rig::new()?;
        let task = rig.submit("steps", script, &["--workdir", ".", "--results", "results"])?;
        rig.wait_slot(&task, 0, "something saved", |s| s.saved.is_some_and(|g| g >= 1))?;
        let mut command = rig.command(["destroy", "steps"]);
        command.env("__TPI_TEST_STOP_AT", &point);
        let killed = tpi_tests::Running::spawn(command)?.wait()?.status.code().is_none();
        // Killed after its very last step it leaves nothing to do, and then says so.
        let again = rig.run(["destroy", "steps"])?;
        ensure!(matches!(again.status.code(), Some(0 | 7)), "{point}: {}", again.description());
        rig.wait_empty().with_context(|| point.clone())?;
        ensure!(fs::read_to_string(rig.work().join("results/file"))? == "kept\n", "{point}");
        ensure!(
            walk(&rig.store().join("tasks")).is_empty(),
            "{point}: {:?}",
            walk(&rig.store().join("tasks"))
        );
        if killed {
            stopped.push(point);
        }
    }
    // A machine that had saved everything by then is not waited for.
    let missed: Vec<String> = stop_points(&Step::DESTROY)
        .into_iter()
        .filter(|point| !point.ends_with("-saves") && !stopped.contains(point))
        .collect();
    ensure!(missed.is_empty(), "{missed:?} did not stop it");
    Ok(())
}

#[test]
fn two_controllers_submit_and_destroy_the_same_task_at_once() -> Result<()> {
    let rig = Rig::new()?;
    rig.file("data", "payload")?;
    rig.file("s.sh", "#!/bin/sh\ncat data\nmkdir results; cp data results/out\n")?;
    let arguments =
        ["submit", "--name", "race", "--workdir", ".", "--results", "results", "--script", "s.sh"];
    let both = [rig.start(arguments)?, rig.start(arguments)?];
    for one in both {
        let done = one.wait()?.success()?;
        ensure!(done.stdout == b"payload", "{}", done.description());
    }
    let task = TaskId::deterministic("race")?;
    ensure!(rig.slot(&task, 0).is_some_and(|s| s.attempt == Attempt(1)), "the script ran once");
    let both = [rig.start(["destroy", "race"])?, rig.start(["destroy", "race"])?];
    for one in both {
        one.wait()?.success()?;
    }
    rig.wait_empty()?;
    ensure!(walk(&rig.store().join("tasks")).is_empty());
    ensure!(fs::read(rig.work().join("results/out"))? == b"payload");
    Ok(())
}

#[test]
fn the_deadline_ends_everything_and_what_was_done_is_kept() -> Result<()> {
    let rig = Rig::new()?;
    let script =
        "#!/bin/sh\nmkdir -p results; echo kept > results/file; trap '' TERM\nwhile :; do sleep 0.1; done\n";
    let task = rig.submit(
        "late",
        script,
        &["--workdir", ".", "--results", "results", "--timeout", "12", "--grace", "1"],
    )?;
    let end = rig.wait_finished(&task)?;
    ensure!(
        matches!(end.state, SlotState::Finished { outcome: Outcome::TimedOut { phase: Phase::Run }, .. }),
        "{end:?}"
    );
    rig.wait_empty()?;
    rig.run(["pull", "late"])?.success()?;
    ensure!(fs::read_to_string(rig.work().join("results/file"))? == "kept\n");
    rig.run(["attach", "late"])?.code(5)?.says("time")?;
    Ok(())
}

#[test]
fn a_stopped_agent_does_not_outlive_the_deadline() -> Result<()> {
    let rig = Rig::new()?;
    let task = rig.submit(
        "frozen",
        "#!/bin/sh\nwhile :; do sleep 0.1; done\n",
        &["--timeout", "10", "--grace", "1"],
    )?;
    rig.wait_running(&task)?;
    // Neither the agent nor anything it could do: only the group is left to end it.
    for pid in rig.processes("agent-") {
        kill_process(pid, Signal::STOP)?;
    }
    rig.wait_empty()
}

#[test]
fn a_wrong_clock_moves_nothing() -> Result<()> {
    for offset in ["3600", "-3600"] {
        let mut rig = Rig::new()?;
        rig.set("__TPI_TEST_CLOCK_OFFSET", offset);
        rig.file("s.sh", "#!/bin/sh\nsleep 4\necho ran\n")?;
        let done =
            rig.run(["submit", "--name", "clock", "--timeout", "120", "--script", "s.sh"])?.success()?;
        ensure!(done.stdout_text() == "ran\n", "{offset}: {}", done.description());
        ensure!(
            done.stderr.contains("following live"),
            "attached live in spite of it: {}",
            done.description()
        );
    }
    Ok(())
}

#[test]
fn a_store_that_goes_away_for_a_while_costs_nothing() -> Result<()> {
    let rig = Rig::new()?;
    let script = "#!/bin/sh\necho before\nwhile ! test -e go; do sleep 0.05; done\necho after\nmkdir results; echo x > results/x\n";
    let task = rig.submit("away", script, &["--workdir", ".", "--results", "results"])?;
    rig.wait_running(&task)?;
    let hidden = rig.state().join("store.hidden");
    fs::rename(rig.store(), &hidden)?;
    fs::write(rig.store(), "a file where the folder was: nothing can be read or written")?;
    release(&rig, &task)?;
    // Longer than a lease: a healthy task is not killed because its store is away.
    std::thread::park_timeout(Duration::from_secs(6));
    ensure!(rig.processes("agent-").len() == 1, "the machine is still there");
    fs::remove_file(rig.store())?;
    fs::rename(&hidden, rig.store())?;
    let end = rig.wait_finished(&task)?;
    ensure!(finished_well(&end.state) && end.attempt == Attempt(1), "{end:?}");
    let logs = rig.run(["logs", "away"])?.success()?;
    ensure!(logs.stdout_text() == "before\nafter\n", "{}", logs.description());
    rig.run(["pull", "away"])?.success()?;
    rig.wait_empty()
}

fn release(rig: &Rig, id: &TaskId) -> Result<()> {
    for machine in fs::read_dir(rig.group(id).join("machines"))? {
        let work = machine?.path().join("root/work");
        if work.is_dir() {
            fs::write(work.join("go"), "")?;
        }
    }
    Ok(())
}

#[test]
fn a_store_that_cannot_be_reached_at_the_start_is_named() -> Result<()> {
    let rig = Rig::new()?;
    fs::create_dir_all(rig.state())?;
    fs::write(rig.store(), "not a folder")?;
    rig.file("s.sh", "#!/bin/sh\n")?;
    let done = rig.run(["submit", "--name", "nowhere", "--script", "s.sh"])?.code(4)?;
    ensure!(done.stderr.contains("store") && done.stderr.contains("hint:"), "{}", done.description());
    ensure!(rig.alive().is_empty(), "nothing was started");
    Ok(())
}

#[test]
fn a_gigabyte_is_slowed_down_but_not_dropped() -> Result<()> {
    let rig = Rig::new()?;
    let megabytes: u64 =
        std::env::var("TPI_TEST_LOG_MEGABYTES").ok().and_then(|v| v.parse().ok()).unwrap_or(192);
    rig.file(
        "s.sh",
        format!(
            "#!/bin/sh\nyes 'a line of a chatty script, again and again' | head -c {}\n",
            megabytes << 20
        ),
    )?;
    let mut command = rig.command(["submit", "--name", "chatty", "--script", "s.sh"]);
    command
        .stdout(fs::File::create(rig.folder().join("out"))?)
        .stderr(fs::File::create(rig.folder().join("err"))?);
    let mut child = command.spawn()?;
    let mut peak = 0;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        for pid in rig.processes("agent-") {
            peak = peak.max(resident(pid.as_raw_nonzero().get()));
        }
        std::thread::park_timeout(Duration::from_millis(50));
    };
    ensure!(status.success(), "{}", fs::read_to_string(rig.folder().join("err"))?);
    let mut expected = blake3::Hasher::new();
    let line = b"a line of a chatty script, again and again\n";
    let mut left = usize::try_from(megabytes << 20)?;
    while left > 0 {
        let part = left.min(line.len());
        expected.update(line.get(..part).unwrap_or_default());
        left -= part;
    }
    let mut actual = blake3::Hasher::new();
    actual.update_reader(fs::File::open(rig.folder().join("out"))?)?;
    ensure!(actual.finalize() == expected.finalize(), "every byte, in order");
    ensure!(peak > 0 && peak < 128 << 20, "the agent's memory stays bounded: {} MiB", peak >> 20);
    rig.wait_empty()
}

/// Resident bytes of a process, 0 when it is gone.
fn resident(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// A small disk of its own, unmounted when dropped.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(at: &'a Path, size: &str) -> Option<Self> {
        fs::create_dir_all(at).ok()?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(at)
            .status()
            .is_ok_and(|s| s.success());
        mounted.then_some(Self(at))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.0).status());
    }
}

#[test]
fn a_full_disk_pauses_the_script_and_loses_nothing() -> Result<()> {
    let rig = Rig::new()?;
    let local = rig.state().join("local");
    let Some(disk) = SmallDisk::mount(&local, "160m") else {
        skipped("a disk that is full: mounting one is not allowed here");
        return Ok(());
    };
    // More output than the disk has room for: the spool has to be trimmed behind what is in the store.
    let script =
        "#!/bin/sh\nyes 'a line of a chatty script, again and again' | head -c 268435456\necho; echo end\n";
    let task = rig.submit("full", script, &[])?;
    let end = rig.wait_finished(&task)?;
    ensure!(finished_well(&end.state), "{end:?}");
    let logs = rig.run(["logs", "full"])?.success()?;
    ensure!(logs.stdout.len() == 268_435_456 + 5, "{} bytes", logs.stdout.len());
    rig.wait_empty()?;
    drop(disk);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a test that cannot run says so")]
fn skipped(what: &str) {
    println!("SKIPPED: {what}");
}

#[test]
fn a_script_that_leaves_processes_behind_ends_all_the_same() -> Result<()> {
    let rig = Rig::new()?;
    let script =
        "#!/bin/sh\n(setsid sleep 1000 &) \nsleep 1000 &\nnohup sleep 1000 >/dev/null 2>&1 &\necho left\n";
    let task = rig.submit("orphans", script, &[])?;
    let end = rig.wait_finished(&task)?;
    ensure!(finished_well(&end.state), "{end:?}");
    rig.wait_empty()
}
