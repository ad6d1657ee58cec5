//! The main job, as a person does it: submit, attach, results; and the same with the laptop closed.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tpi_proto::{
    id::Attempt,
    state::{Outcome, Phase, SlotState},
};
use tpi_tests::{Rig, Running, eventually};

const COUNT: &str = "#!/bin/sh\nfor i in 1 2 3; do echo line $i; done\necho trouble >&2\nmkdir -p results\necho 42 > results/answer\n";

#[test]
fn submit_attaches_and_brings_the_results_home() -> Result<()> {
    let rig = Rig::new()?;
    rig.file("data/in.txt", "some data")?;
    rig.file("train.sh", "#!/bin/sh\ncat data/in.txt\nmkdir results\ncp data/in.txt results/out.txt\n")?;
    let done = rig
        .run(["submit", "--name", "home", "--workdir", ".", "--results", "results", "--script", "train.sh"])?
        .success()?;
    ensure!(done.stdout == b"some data", "stdout is exactly the script's: {}", done.description());
    ensure!(std::fs::read(rig.work().join("results/out.txt"))? == b"some data");

    let destroyed = rig.run(["destroy", "home"])?.success()?;
    ensure!(destroyed.stderr.contains("nothing is left"), "{}", destroyed.description());
    rig.wait_empty()?;
    ensure!(tpi_tests::rig::walk(&rig.store().join("tasks")).is_empty(), "the store is empty");
    ensure!(rig.work().join("results/out.txt").exists(), "destroy keeps what is at home");
    rig.run(["destroy", "home"])?.code(7)?.says("there is no task")?;
    Ok(())
}

#[test]
fn a_command_after_two_dashes_is_run_as_given() -> Result<()> {
    let rig = Rig::new()?;
    let done =
        rig.run(["submit", "--name", "args", "--", "printf", "%s|", "a b", "$HOME", "it's"])?.success()?;
    ensure!(done.stdout_text() == "a b|$HOME|it's|", "{}", done.description());
    Ok(())
}

#[test]
fn streams_are_kept_apart_and_bytes_are_kept_whole() -> Result<()> {
    let rig = Rig::new()?;
    let script = "#!/bin/sh\nprintf '\\000\\377\\r no newline at all'\nprintf 'to stderr' >&2\nexec 1>&-\nsleep 0.2\nprintf ' after stdout was closed' >&2\n";
    rig.file("bytes.sh", script)?;
    let done = rig.run(["submit", "--name", "bytes", "--script", "bytes.sh"])?.success()?;
    ensure!(done.stdout == b"\0\xff\r no newline at all", "{}", done.description());
    done.says("to stderr after stdout was closed")?;
    Ok(())
}

#[test]
fn the_output_of_a_task_that_ends_at_once_is_complete_each_time() -> Result<()> {
    let rig = Rig::new()?;
    // Whether the agent is reached before it is done, or only the store is left, is a matter of milliseconds.
    for round in 0..15 {
        let done = rig.run(["submit", "--name", &format!("hi-{round}"), "--", "echo", "hi"])?.success()?;
        ensure!(done.stdout == b"hi\n", "round {round}: {}", done.description());
    }
    rig.wait_empty()
}

#[test]
fn the_exit_code_tells_how_the_task_ended() -> Result<()> {
    let rig = Rig::new()?;
    rig.run(["submit", "--name", "three", "--", "sh", "-c", "exit 3"])?.code(5)?.says("3")?;
    rig.run(["submit", "--name", "three-too", "--exit-with-task-code", "--", "sh", "-c", "exit 3"])?
        .code(3)?;
    rig.run(["submit", "--name", "killed", "--", "sh", "-c", "kill -SEGV $$"])?.code(5)?.says("signal 11")?;
    rig.run(["attach", "three"])?.code(5)?;
    rig.run(["attach", "never-was"])?.code(7)?;
    Ok(())
}

#[test]
fn a_script_without_an_interpreter_is_a_failure_that_names_it() -> Result<()> {
    let rig = Rig::new()?;
    let task = rig.submit("interpreter", "#!/no/such/interpreter\n", &[])?;
    let end = rig.wait_finished(&task)?;
    let SlotState::Finished { outcome: Outcome::Failed { phase: Phase::Run, message, .. }, .. } = &end.state
    else {
        anyhow::bail!("{:?}", end.state);
    };
    ensure!(message.contains("/no/such/interpreter"), "{message}");
    rig.run(["attach", "interpreter"])?.code(5)?.says("/no/such/interpreter")?;
    Ok(())
}

#[test]
fn the_laptop_is_closed_and_another_time_the_results_are_there() -> Result<()> {
    let rig = Rig::new()?;
    let task = rig.submit("closed-laptop", COUNT, &["--workdir", ".", "--results", "results"])?;
    rig.wait_finished(&task)?;
    rig.wait_empty()?;
    // The machine is gone: everything comes from the store.
    let logs = rig.run(["logs", "closed-laptop"])?.success()?;
    ensure!(logs.stdout_text() == "line 1\nline 2\nline 3\n", "{}", logs.description());
    let attached = rig.run(["attach", "closed-laptop"])?.success()?;
    ensure!(attached.stdout_text() == "line 1\nline 2\nline 3\n", "{}", attached.description());
    rig.run(["pull", "closed-laptop"])?.success()?;
    ensure!(std::fs::read_to_string(rig.work().join("results/answer"))? == "42\n");
    Ok(())
}

#[test]
fn interrupt_detaches_and_says_how_to_come_back() -> Result<()> {
    let rig = Rig::new()?;
    rig.file("wait.sh", "#!/bin/sh\necho begun\nwhile ! test -e go; do sleep 0.05; done\necho ended\n")?;
    let attached = rig.start(["submit", "--name", "detach", "--script", "wait.sh"])?;
    let task = "detach".to_owned();
    let id = tpi_proto::id::TaskId::deterministic(&task)?;
    rig.wait_running(&id)?;
    attached.signal(Signal::INT)?;
    let detached = attached.wait()?.code(130)?;
    ensure!(detached.stderr.contains("tpi-controller attach"), "{}", detached.description());
    ensure!(rig.slot(&id, 0).is_some_and(|s| !s.state.is_final()), "the task goes on");

    let again = rig.start(["attach", "detach"])?;
    release(&rig, &id)?;
    let done = again.wait()?.success()?;
    ensure!(done.stdout_text() == "begun\nended\n", "from the first byte: {}", done.description());
    Ok(())
}

/// Lets a script that waits for the file `go` continue.
fn release(rig: &Rig, id: &tpi_proto::id::TaskId) -> Result<()> {
    for machine in std::fs::read_dir(rig.group(id).join("machines"))? {
        let work = machine?.path().join("root/work");
        if work.is_dir() {
            std::fs::write(work.join("go"), "")?;
        }
    }
    Ok(())
}

#[test]
fn submitting_again_attaches_instead_of_starting_a_second_one() -> Result<()> {
    let rig = Rig::new()?;
    let script = "#!/bin/sh\necho begun\nwhile ! test -e go; do sleep 0.05; done\necho ended\n";
    let task = rig.submit("again", script, &[])?;
    rig.wait_running(&task)?;
    rig.file("again.sh", script)?;
    let second = rig.start(["submit", "--name", "again", "--script", "again.sh"])?;
    release(&rig, &task)?;
    let second = second.wait()?.success()?;
    ensure!(second.stdout_text() == "begun\nended\n", "{}", second.description());
    ensure!(rig.slot(&task, 0).is_some_and(|s| s.attempt == Attempt(1)));
    let third = rig.run(["submit", "--name", "again", "--script", "again.sh"])?;
    ensure!(third.stderr.contains("tpi-controller destroy"), "{}", third.description());
    Ok(())
}

#[test]
fn slots_know_their_rank_and_never_share_anything() -> Result<()> {
    let rig = Rig::new()?;
    let script = "#!/bin/sh\necho rank $TPI_SLOT of $TPI_SLOTS attempt $TPI_ATTEMPT beside $TPI_PEERS\nmkdir -p results\necho $TPI_SLOT > results/rank\n";
    let task =
        rig.submit("ranks", script, &["--parallelism", "3", "--workdir", ".", "--results", "results"])?;
    for slot in 0..3 {
        rig.wait_slot(&task, slot, "the slot to end", |s| s.state.is_final())?;
        let logs = rig.run(["logs", "ranks", "--slot", &slot.to_string()])?.success()?;
        let said = format!("rank {slot} of 3 attempt 1 beside 127.0.0.1,127.0.0.1,127.0.0.1\n");
        ensure!(logs.stdout_text() == said, "{}", logs.description());
    }
    rig.wait_empty()?;
    let done = rig.run(["attach", "ranks"])?.success()?;
    ensure!(done.stdout_text().lines().count() == 3, "{}", done.description());
    rig.run(["pull", "ranks"])?.success()?;
    let mut ranks: Vec<String> = tpi_tests::rig::walk(&rig.work())
        .iter()
        .filter(|p| p.ends_with("results/rank"))
        .filter_map(|p| std::fs::read_to_string(p).ok())
        .collect();
    ranks.sort();
    ensure!(ranks == ["0\n", "1\n", "2\n"], "{ranks:?}");
    Ok(())
}

#[test]
fn a_finished_slot_leaves_the_others_alone() -> Result<()> {
    let rig = Rig::new()?;
    let script = "#!/bin/sh\ntest $TPI_SLOT = 0 && exit 0\nwhile ! test -e go; do sleep 0.05; done\n";
    let task = rig.submit("early", script, &["--parallelism", "2"])?;
    rig.wait_slot(&task, 0, "slot 0 to end", |s| s.state.is_final())?;
    eventually("one machine to be left", || (rig.processes("agent-").len() == 1).then_some(()))?;
    ensure!(rig.slot(&task, 1).is_some_and(|s| !s.state.is_final()), "slot 1 runs on");
    release(&rig, &task)?;
    let end = rig.wait_slot(&task, 1, "slot 1 to end", |s| s.state.is_final())?;
    ensure!(end.attempt == Attempt(1), "slot 1 was never disturbed: {end:?}");
    rig.wait_empty()
}

#[test]
fn a_closed_network_is_followed_through_the_store() -> Result<()> {
    let rig = Rig::new()?;
    rig.file("closed.sh", COUNT)?;
    let done =
        rig.run(["submit", "--name", "closed", "--ingress", "none", "--script", "closed.sh"])?.success()?;
    ensure!(done.stdout_text() == "line 1\nline 2\nline 3\n", "{}", done.description());
    done.says("store")?;
    Ok(())
}

#[test]
fn stop_gives_the_script_its_grace_and_keeps_what_it_saved() -> Result<()> {
    let rig = Rig::new()?;
    let script = "#!/bin/sh\nmkdir -p results\ntrap 'echo stopped > results/last; exit 0' TERM\necho ready\nwhile :; do sleep 0.05; done\n";
    let task = rig.submit("stop", script, &["--workdir", ".", "--results", "results"])?;
    rig.wait_running(&task)?;
    wait_for_log(&rig, "stop", "ready\n")?;
    rig.run(["stop", "stop"])?.success()?;
    let end = rig.wait_finished(&task)?;
    ensure!(matches!(end.state, SlotState::Finished { outcome: Outcome::Stopped, .. }), "{end:?}");
    rig.run(["pull", "stop"])?.success()?;
    ensure!(std::fs::read_to_string(rig.work().join("results/last"))? == "stopped\n");
    rig.wait_empty()
}

fn wait_for_log(rig: &Rig, task: &str, text: &str) -> Result<()> {
    eventually("the log to hold a text", || {
        let logs = rig.run(["logs", task]).ok()?;
        logs.stdout_text().contains(text).then_some(())
    })
}

#[test]
fn destroy_while_running_saves_first() -> Result<()> {
    let rig = Rig::new()?;
    let script = "#!/bin/sh\nmkdir -p results\ntrap 'echo late > results/late; exit 1' TERM\necho early > results/early\necho ready\nwhile :; do sleep 0.05; done\n";
    let task = rig.submit("saves", script, &["--workdir", ".", "--results", "results"])?;
    rig.wait_running(&task)?;
    wait_for_log(&rig, "saves", "ready\n")?;
    rig.run(["destroy", "saves"])?.success()?;
    ensure!(std::fs::read_to_string(rig.work().join("results/early"))? == "early\n");
    ensure!(std::fs::read_to_string(rig.work().join("results/late"))? == "late\n");
    rig.wait_empty()?;
    rig.run(["status", "saves"])?.code(7)?;
    Ok(())
}

#[test]
fn attach_ends_when_another_terminal_destroys_the_task() -> Result<()> {
    let rig = Rig::new()?;
    let task = rig.submit("ended", "#!/bin/sh\necho ready\nwhile :; do sleep 0.05; done\n", &[])?;
    rig.wait_running(&task)?;
    let mut command = rig.command(["attach", "ended"]);
    let mut attached = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdout = BufReader::new(attached.stdout.take().context("a pipe")?);
    let mut line = String::new();
    stdout.read_line(&mut line)?;
    ensure!(line == "ready\n", "{line:?}");

    rig.run(["destroy", "ended"])?.success()?;
    let status = eventually("attach to end", || attached.try_wait().ok().flatten());
    attached.kill()?;
    let mut said = String::new();
    attached.stderr.take().context("a pipe")?.read_to_string(&mut said)?;
    let code = status.with_context(|| said.clone())?.code();
    // The agent tells how the script ended, if there is time for that before the machine is gone.
    let ended = code == Some(5) && said.contains("was stopped");
    let gone = code == Some(7) && said.contains("was destroyed meanwhile");
    ensure!(ended || gone, "{code:?}: {said}");
    Ok(())
}

#[test]
fn a_local_file_that_differs_is_kept() -> Result<()> {
    let rig = Rig::new()?;
    rig.file("results/answer", "mine, older\n")?;
    let task = rig.submit("keep", COUNT, &["--workdir", ".", "--results", "results"])?;
    rig.wait_finished(&task)?;
    rig.file("results/answer", "mine, edited meanwhile\n")?;
    let pulled = rig.run(["pull", "keep"])?;
    ensure!(std::fs::read_to_string(rig.work().join("results/answer"))? == "mine, edited meanwhile\n");
    let both = tpi_tests::rig::walk(&rig.work().join("results"));
    let theirs = both.iter().any(|p| std::fs::read_to_string(p).is_ok_and(|t| t == "42\n"));
    ensure!(theirs, "both are there: {both:?} {}", pulled.description());
    ensure!(pulled.stderr.contains("answer"), "{}", pulled.description());
    Ok(())
}

#[test]
fn a_result_that_was_edited_since_it_came_is_kept_and_told() -> Result<()> {
    let rig = Rig::new()?;
    let script = "#!/bin/sh\nmkdir -p results\necho 42 > results/answer\necho 43 > results/other\n";
    let task = rig.submit("edited", script, &["--workdir", ".", "--results", "results"])?;
    rig.wait_finished(&task)?;
    rig.run(["pull", "edited"])?.success()?;
    let again = rig.run(["pull", "edited"])?.success()?.says("2 files in ., none changed")?;
    ensure!(!again.stderr.contains("changed here"), "{}", again.description());

    rig.file("results/answer", "mine, edited since\n")?;
    let told = rig.run(["pull", "edited"])?.success()?.says("results/answer was changed here")?;
    ensure!(!told.stderr.contains("none changed"), "{}", told.description());
    ensure!(std::fs::read_to_string(rig.work().join("results/answer"))? == "mine, edited since\n");
    let json = rig.run(["--output", "json", "pull", "edited"])?.success()?.json()?;
    ensure!(json["slots"][0]["report"]["changed_here"] == serde_json::json!(["results/answer"]), "{json}");

    // As the hint says.
    told.says("delete")?;
    std::fs::remove_file(rig.work().join("results/answer"))?;
    rig.run(["pull", "edited"])?.success()?;
    ensure!(std::fs::read_to_string(rig.work().join("results/answer"))? == "42\n");

    rig.file("results/answer", "mine, at the end\n")?;
    rig.run(["destroy", "edited"])?.success()?.says("results/answer was changed here")?;
    ensure!(std::fs::read_to_string(rig.work().join("results/answer"))? == "mine, at the end\n");
    Ok(())
}

#[test]
fn the_environment_travels_and_is_seen_nowhere() -> Result<()> {
    let mut rig = Rig::new()?;
    rig.set("MY_SECRET", "s3cr3t-value").set("GITHUB_RUN_ATTEMPT", "7");
    let script = "#!/bin/sh\necho $MY_SECRET $PLAIN $GITHUB_RUN_ATTEMPT $TPI_TASK | tr a-z A-Z\nwhile ! test -e go; do sleep 0.05; done\n";
    let task = rig.submit("secret", script, &["-e", "MY_SECRET", "-e", "PLAIN=plain"])?;
    rig.wait_running(&task)?;
    for file in tpi_tests::rig::walk(&rig.state()) {
        let named = file.ends_with(format!("tasks/{task}/environment"));
        let content = std::fs::read(&file).unwrap_or_default();
        let leaks = content.windows(12).any(|w| w == b"s3cr3t-value");
        ensure!(named || !leaks, "the value lies in {}", file.display());
    }
    for command in [["status", "secret"], ["list", "--quiet"]] {
        ensure!(!rig.run(command)?.stdout_text().contains("s3cr3t"));
    }
    release(&rig, &task)?;
    rig.wait_finished(&task)?;
    let logs = rig.run(["logs", "secret"])?.success()?;
    ensure!(logs.stdout_text() == "S3CR3T-VALUE PLAIN 7 TRUE\n", "{}", logs.description());
    rig.run(["destroy", "secret"])?.success()?;
    Ok(())
}

#[test]
fn everything_answers_in_json() -> Result<()> {
    let rig = Rig::new()?;
    let task = rig.submit("json", COUNT, &["--workdir", ".", "--results", "results"])?;
    rig.wait_finished(&task)?;
    for command in ["status", "pull", "stop", "destroy"] {
        let done = rig.run(["--output", "json", command, "json"])?;
        let value = done.json()?;
        ensure!(value.get("version").is_some(), "{command}: {}", done.description());
    }
    let listed = rig.run(["--output", "json", "list"])?.success()?.json()?;
    ensure!(listed.get("version").is_some());
    let lost = rig.run(["--output", "json", "status", "never-was"])?.code(7)?;
    let error: serde_json::Value = serde_json::from_str(lost.stderr.trim()).context("errors are JSON too")?;
    ensure!(error.get("errors").is_some_and(serde_json::Value::is_array), "{error}");
    Ok(())
}

#[test]
fn a_shell_and_a_forwarded_port_reach_the_machine() -> Result<()> {
    let rig = Rig::new()?;
    let script = "#!/bin/sh\necho ready\nwhile ! test -e go; do sleep 0.05; done\n";
    let task = rig.submit("reach", script, &[])?;
    rig.wait_running(&task)?;
    let shell = rig.run(["shell", "reach", "--", "sh", "-c", "echo $TPI_TASK_ID; pwd; exit 9"])?;
    let text = shell.stdout_text();
    ensure!(text.starts_with(task.as_str()) && text.contains("/work\n"), "{}", shell.description());
    ensure!(shell.status.code() == Some(9), "the command's own code: {}", shell.description());

    let served = std::net::TcpListener::bind("127.0.0.1:0")?;
    let remote = served.local_addr()?.port();
    let echo = std::thread::spawn(move || -> Result<()> {
        let (mut stream, _) = served.accept()?;
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut bytes)?;
        bytes.reverse();
        std::io::Write::write_all(&mut stream, &bytes)?;
        Ok(())
    });
    let local = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let forward = Running::spawn(rig.command(["forward", "reach", &format!("{local}:{remote}")]))?;
    let mut stream =
        eventually("the forwarded port", || std::net::TcpStream::connect(("127.0.0.1", local)).ok())?;
    std::io::Write::write_all(&mut stream, b"hello")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut back = String::new();
    std::io::Read::read_to_string(&mut stream, &mut back)?;
    ensure!(back == "olleh", "{back:?}");
    echo.join().map_err(|_| anyhow::anyhow!("the echo thread panicked"))??;
    forward.signal(Signal::INT)?;
    forward.wait()?;
    release(&rig, &task)?;
    rig.wait_finished(&task)?;
    Ok(())
}
