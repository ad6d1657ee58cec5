//! The main job on the simulated AWS, with machines that boot: the real controller, the real user-data, the real agent.

#[path = "aws/faults.rs"]
mod faults;

use anyhow::{Context as _, Result, ensure};
use jiff::SignedDuration;
use tpi_tests::{
    rig::Running,
    sim::{
        front::{Call, EndReason},
        room::Seen,
        world::Aws,
    },
};

/// Waits for the file `go` in its work directory.
const UNTIL_GO: &str = "while ! test -e go; do sleep 0.1; done";

/// Succeeds on a machine whose agent somebody is connected to.
const CONNECTED: &str = "journalctl -u tpi-agent --no-pager | grep -q 'a client connected'";

#[test]
fn a_script_goes_to_a_machine_and_comes_back() -> Result<()> {
    let Some(aws) = Aws::open()? else { return Ok(()) };
    aws.rig.file("data/in.txt", "some data")?;
    let script = format!(
        "#!/bin/sh\ncat data/in.txt\n{UNTIL_GO}\necho at $TPI_REGION on $TPI_MACHINE >&2\nmkdir results\n\
         cp data/in.txt results/out.txt\n"
    );
    aws.rig.file("train.sh", script)?;
    let place = aws.place();
    let mut words = vec!["submit", "--verbose", "--name", "home", "--workdir", ".", "--results", "results"];
    words.extend(place.iter().map(String::as_str));
    words.extend(["--script", "train.sh"]);
    let attached = aws.rig.start(words)?;
    let machine = machine_of(&aws, "home", 0, 1)?;
    drop(aws.until(&machine, CONNECTED)?);
    go(&aws, &machine)?;
    let done = attached.wait()?.success().with_context(|| aws.diagnosis())?;
    ensure!(done.stdout == b"some data", "stdout is exactly the script's: {}", done.description());
    ensure!(done.stderr.contains("following live at "), "over mTLS: {}", done.description());
    ensure!(done.stderr.contains("at us-east-1 on s"), "{}", done.description());
    ensure!(std::fs::read(aws.rig.work().join("results/out.txt"))? == b"some data");
    // Given back by the machine itself, and not replaced.
    aws.wait_no_machine()?;
    ensure!(aws.room.machines().len() == 1, "{:?}", aws.room.machines());
    let destroyed = aws.rig.run(["destroy", "home"])?.success().with_context(|| aws.diagnosis())?;
    ensure!(destroyed.stderr.contains("nothing is left"), "{}", destroyed.description());
    aws.require_empty()?;
    aws.rig.run(["destroy", "home"])?.code(7)?;
    Ok(())
}

/// Where the machine of a slot is.
fn machine_of(aws: &Aws, task: &str, slot: u32, attempt: u32) -> Result<String> {
    let found = aws.wait_slot(task, slot, "the slot to run its script", |found| {
        found["attempt"] == attempt && found["phase"] == "run"
    })?;
    found["machine"].as_str().map(str::to_owned).with_context(|| format!("no machine: {found}"))
}

fn go(aws: &Aws, machine: &str) -> Result<()> {
    drop(aws.until(machine, "touch /var/lib/tpi/work/go")?);
    Ok(())
}

#[test]
fn of_three_machines_one_ends_early_and_one_is_killed() -> Result<()> {
    let Some(aws) = Aws::open()? else { return Ok(()) };
    let script = format!(
        "#!/bin/sh\necho slot $TPI_SLOT attempt $TPI_ATTEMPT\ntest $TPI_SLOT = 0 && exit 0\n{UNTIL_GO}\n\
         mkdir -p results\necho $TPI_SLOT.$TPI_ATTEMPT > results/end-$TPI_SLOT\n"
    );
    let _task = aws.submit("three", &script, &["--parallelism", "3"])?;
    aws.wait_slot("three", 0, "slot 0 to end", |slot| slot["state"] == "finished")?;
    let (first, second) = (machine_of(&aws, "three", 1, 1)?, machine_of(&aws, "three", 2, 1)?);
    // The one that is done has left its group, which has not replaced it.
    let _machines = aws.wait_machines("two machines to be left", |seen| {
        seen.len() == 3 && seen.iter().filter(|seen| seen.alive).count() == 2
    })?;

    aws.room.kill(&second)?;
    let third = machine_of(&aws, "three", 2, 2)?;
    ensure!(third != second, "another machine continues slot 2");
    ensure!(machine_of(&aws, "three", 1, 1)? == first, "slot 1 was never disturbed");
    go(&aws, &first)?;
    go(&aws, &third)?;
    let done = aws.rig.run(["attach", "three"])?.success().with_context(|| aws.diagnosis())?;
    for said in ["slot 0 attempt 1", "slot 1 attempt 1", "slot 2 attempt 2"] {
        ensure!(done.stdout_text().contains(said), "{}", done.description());
    }
    aws.wait_no_machine()?;
    ensure!(aws.room.machines().len() == 4, "{:?}", aws.room.machines());
    let _destroyed = aws.rig.run(["destroy", "three"])?.success().with_context(|| aws.diagnosis())?;
    let ends: Vec<String> = tpi_tests::rig::walk(&aws.rig.work())
        .iter()
        .filter(|path| path.to_string_lossy().contains("results/end-"))
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .collect();
    ensure!(ends.len() == 2 && ends.contains(&"2.2\n".to_owned()), "{ends:?}");
    aws.require_empty()
}

#[test]
fn a_spot_machine_saves_when_it_is_told_and_the_next_goes_on_from_there() -> Result<()> {
    let Some(aws) = Aws::open()? else { return Ok(()) };
    let script = "#!/bin/sh\nmkdir -p results\nn=$(cat results/n 2>/dev/null || echo 0)\n\
                  echo begins at $n\n\
                  trap 'echo 5 > results/n; exit 1' TERM\n\
                  test $n -ge 5 && echo done at $n && exit 0\n\
                  while :; do sleep 0.1; done\n";
    let _task = aws.submit("spot", script, &["--spot", "0"])?;
    let first = machine_of(&aws, "spot", 0, 1)?;
    ensure!(aws.alive().iter().all(|seen| seen.instance.spot), "it is a spot machine");
    drop(aws.until(&first, "pgrep -f 'sleep 0.1'")?);
    let at = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(2);
    aws.room.spot_notice(&first, at)?;
    aws.wait_slot("spot", 0, "the slot to be given up", |slot| {
        slot["state"] == "interrupted" || slot["attempt"] == 2
    })?;
    aws.room.reclaim(&first)?;
    aws.wait_slot("spot", 0, "the slot to end", |slot| slot["state"] == "finished")?;
    let done = aws.rig.run(["attach", "spot"])?.success().with_context(|| aws.diagnosis())?;
    ensure!(done.stdout_text().contains("begins at 5\ndone at 5\n"), "{}", done.description());
    aws.wait_no_machine()?;
    let _destroyed = aws.rig.run(["destroy", "spot"])?.success().with_context(|| aws.diagnosis())?;
    aws.require_empty()
}

#[test]
fn another_laptop_attaches() -> Result<()> {
    let Some(aws) = Aws::open()? else { return Ok(()) };
    let script = format!("#!/bin/sh\necho begun\n{UNTIL_GO}\necho ended\n");
    let task = aws.submit("second", &script, &[])?;
    let machine = machine_of(&aws, "second", 0, 1)?;
    // It knows the store and the account, and nothing else.
    let state = aws.rig.folder().join("other-state");
    let attach = |words: &[&str]| -> Result<Running> {
        let mut command =
            aws.rig.command(["attach", task.as_str(), "--store", "s3://tpi-simulated/some/place"]);
        command.args(words).env("TPI_STATE_DIR", &state);
        Running::spawn(command)
    };
    let attached = attach(&[])?;
    drop(aws.until(&machine, CONNECTED)?);
    go(&aws, &machine)?;
    let done = attached.wait()?.success().with_context(|| aws.diagnosis())?;
    ensure!(done.stdout_text() == "begun\nended\n", "{}", done.description());
    aws.wait_no_machine()?;
    let _destroyed = aws.rig.run(["destroy", "second"])?.success().with_context(|| aws.diagnosis())?;
    aws.require_empty()
}

#[test]
fn the_laptop_is_gone_from_the_start_to_the_end() -> Result<()> {
    let Some(aws) = Aws::open()? else { return Ok(()) };
    let _task =
        aws.submit("alone", "#!/bin/sh\necho here\nmkdir results\necho 42 > results/answer\n", &[])?;
    let _one = aws.wait_machines("a machine", |seen| !seen.is_empty())?;
    aws.wait_no_machine()?;
    ensure!(aws.room.machines().len() == 1, "{:?}", aws.room.machines());
    let attached = aws.rig.run(["attach", "alone"])?.success()?;
    ensure!(attached.stdout_text() == "here\n", "{}", attached.description());
    let _destroyed = aws.rig.run(["destroy", "alone"])?.success()?;
    ensure!(std::fs::read_to_string(aws.rig.work().join("results/answer"))? == "42\n", "results are home");
    aws.require_empty()
}

/// A task whose script never ends, with the machine it is on.
fn endless(aws: &Aws, name: &str, timeout: &str) -> Result<(tpi_proto::id::TaskId, String)> {
    let task = aws.submit(name, "#!/bin/sh\nsleep 100000\n", &["--timeout", timeout])?;
    let machine = machine_of(aws, name, 0, 1)?;
    Ok((task, machine))
}

/// Timeout of a task that is to see its deadline.
const LONG_ENOUGH_TO_BOOT: &str = "100s";
const NO_TIMER: &str = "systemctl stop tpi-power-off.timer && systemctl mask --runtime tpi-power-off.timer";
/// It is dead and stays so, and nobody on the machine minds.
const DEAD: &str = "sed -i '/^OnFailure/d; /^ExecStopPost/d; s/^Restart=.*/Restart=no/' \
    /etc/systemd/system/tpi-agent.service && systemctl daemon-reload && \
    kill -KILL $(systemctl show -P MainPID tpi-agent)";
/// It is there and does nothing.
const FROZEN: &str = "kill -STOP $(systemctl show -P MainPID tpi-agent)";

#[test]
fn an_agent_alone_ends_its_machine() -> Result<()> {
    let Some(aws) = Aws::open()? else { return Ok(()) };
    let (task, machine) = endless(&aws, "agent-only", LONG_ENOUGH_TO_BOOT)?;
    aws.remove_schedule(&task)?;
    drop(aws.until(&machine, NO_TIMER)?);
    aws.wait_no_machine()?;
    ensure!(aws.room.machines().len() == 1, "it was not replaced: {:?}", aws.room.machines());
    let released = |call: &Call| call.action == "TerminateInstanceInAutoScalingGroup" && call.status == 200;
    ensure!(aws.front.calls().iter().any(released), "{:?}", aws.front.calls());
    let _destroyed = aws.rig.run(["destroy", "agent-only"])?.success().with_context(|| aws.diagnosis())?;
    aws.require_empty()
}

#[test]
fn a_schedule_alone_ends_the_machine() -> Result<()> {
    let Some(aws) = Aws::open()? else { return Ok(()) };
    let (_task, machine) = endless(&aws, "schedule-only", "4h")?;
    drop(aws.until(&machine, NO_TIMER)?);
    drop(aws.until(&machine, FROZEN)?);
    aws.front.clock().advance(SignedDuration::from_hours(3));
    ensure!(!aws.alive().is_empty(), "it is not time yet");
    aws.front.clock().advance(SignedDuration::from_hours(2));
    let end = aws.end_of(&machine)?;
    ensure!(end.is_none(), "the account itself has ended it: {end:?}");
    aws.wait_no_machine()?;
    ensure!(aws.room.machines().len() == 1, "it was not replaced: {:?}", aws.room.machines());
    let _destroyed = aws.rig.run(["destroy", "schedule-only"])?;
    aws.require_empty()
}

#[test]
fn a_power_off_timer_alone_ends_the_machine() -> Result<()> {
    let Some(aws) = Aws::open()? else { return Ok(()) };
    // With the timer's grace this takes four minutes.
    let (task, machine) = endless(&aws, "timer-only", LONG_ENOUGH_TO_BOOT)?;
    aws.remove_schedule(&task)?;
    drop(aws.until(&machine, DEAD)?);
    let ended = |seen: &[Seen]| seen.iter().any(|seen| seen.instance.id == machine && !seen.alive);
    let _machines = aws.wait_machines("the timer to end the machine", ended)?;
    let end = aws.end_of(&machine)?;
    ensure!(end == Some(EndReason::PoweredOff), "it has switched itself off: {end:?}\n{}", aws.diagnosis());
    // Without a schedule the group has started another, which goes off as soon as it is up.
    let _machines = aws.wait_machines("another machine to end as well", |seen| {
        seen.iter().filter(|seen| !seen.alive).count() > 1
    })?;
    let _destroyed = aws.rig.run(["destroy", "timer-only"])?;
    aws.require_empty()
}
