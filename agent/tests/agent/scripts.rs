//! What scripts do, and what is seen of it.

use std::collections::BTreeMap;

use anyhow::Result;
use tpi_proto::{
    id::SlotIndex,
    state::{Failure, Outcome, Phase},
};
use tpi_store::{
    log::Stream,
    record::{RECORD_VERSION, StopRequest},
};

use crate::harness::{Task, bytes, outcome, script, text, until};

#[tokio::test]
async fn output_and_status_of_a_script_are_kept() -> Result<()> {
    let task = Task::new(script("#!/bin/sh\necho one; echo two >&2; printf three\nexit 7\n")).await?;
    let (status, log) = task.run().await?;
    assert_eq!(outcome(&status), Outcome::Exited { code: 7 });
    assert_eq!(text(&log), "one\nthree");
    assert_eq!(bytes(&log, Stream::Stderr), b"two\n");
    assert_eq!(status.log_complete, Some(13));
    assert_eq!(status.log_stored, 13);
    let phases: Vec<_> = status.phases.iter().map(|p| p.phase).collect();
    assert_eq!(phases, Phase::ALL);
    Ok(())
}

#[tokio::test]
async fn a_scripts_own_death_by_signal_is_told() -> Result<()> {
    let task = Task::new(script("#!/bin/sh\nkill -SEGV $$\n")).await?;
    let (status, _) = task.run().await?;
    assert_eq!(outcome(&status), Outcome::Signalled { signal: 11 });
    Ok(())
}

#[tokio::test]
async fn the_environment_is_clean_and_has_what_was_promised() -> Result<()> {
    let mut wants = script("#!/bin/sh\nenv\npwd\n");
    wants.environment = BTreeMap::from([("SECRET".to_owned(), "s p a c e\nline".to_owned())]);
    let task = Task::new(wants).await?;
    let agent = task.start_with(&task.config("m1"), &[("LEAK", "1")])?;
    let status = task.finished(SlotIndex(0)).await?;
    let seen = text(&task.log(status.run()).await?);
    let deadline = task.deadline.as_second();
    for line in [
        "SECRET=s p a c e\nline",
        "TPI_TASK=true",
        &format!("TPI_TASK_ID={}", task.id),
        "TPI_SLOT=0",
        "TPI_SLOTS=1",
        "TPI_ATTEMPT=1",
        &format!("TPI_MACHINE_ID={}", agent.machine),
        &format!("TPI_DEADLINE={deadline}"),
        "LANG=C.UTF-8",
        &agent.root.join("work").display().to_string(),
    ] {
        assert!(seen.contains(line), "{line} is missing in {seen}");
    }
    assert!(!seen.contains("LEAK") && !seen.contains("TPI_SHELL") && !seen.contains("TPI_PEERS"), "{seen}");
    Ok(())
}

#[tokio::test]
async fn a_script_that_cannot_be_started_says_why() -> Result<()> {
    for (text, named) in [
        ("echo no shebang\n", "first line"),
        ("#!/no/such/interpreter\n", "/no/such/interpreter"),
        ("#!/usr/bin/env nosuchinterpreter\n", "nosuchinterpreter"),
    ] {
        let (status, _) = Task::new(script(text)).await?.run().await?;
        let Outcome::Failed { phase: Phase::Run, failure: Failure::Start, message } = outcome(&status) else {
            panic!("{status:?}");
        };
        assert!(message.contains(named), "{message}");
    }
    Ok(())
}

#[tokio::test]
async fn binary_output_arrives_as_it_is() -> Result<()> {
    let task = Task::new(script(
        "#!/bin/sh\ni=0; while [ $i -lt 256 ]; do printf \"\\\\$(printf %03o $i)\"; i=$((i+1)); done\n",
    ))
    .await?;
    let (status, log) = task.run().await?;
    assert_eq!(outcome(&status), Outcome::Exited { code: 0 });
    let wanted: Vec<u8> = (0..=255).collect();
    assert_eq!(bytes(&log, Stream::Stdout), wanted);
    Ok(())
}

#[tokio::test]
async fn a_script_that_closes_its_output_goes_on() -> Result<()> {
    let task = Task::new(script(
        "#!/bin/sh\necho before\nexec >&- 2>&-\nwhile [ ! -e go ]; do sleep 0.05; done\nexit 4\n",
    ))
    .await?;
    let agent = task.start("m1")?;
    let status = task.status(SlotIndex(0), |s| s.log_stored == 7).await?;
    assert!(!status.state.is_final());
    std::fs::write(agent.root.join("work/go"), "")?;
    assert_eq!(outcome(&task.finished(SlotIndex(0)).await?), Outcome::Exited { code: 4 });
    Ok(())
}

#[tokio::test]
async fn what_a_script_leaves_behind_is_ended_wherever_it_went() -> Result<()> {
    let task = Task::new(script(
        "#!/bin/sh\n(trap '' TERM HUP; sleep 1000) &\nsetsid sleep 1001 >/dev/null 2>&1 &\n\
         setsid env -i /bin/sleep 1002 >/dev/null 2>&1 &\nsleep 0.3; echo started\n",
    ))
    .await?;
    let mut agent = task.start("m1")?;
    let status = task.finished(SlotIndex(0)).await?;
    assert_eq!(outcome(&status), Outcome::Exited { code: 0 });
    agent.ended().await?;
    assert_eq!(agent.marked(), [0; 0]);
    // The one that cleared its environment can only be told by what it runs.
    let cleared = std::fs::read_dir("/proc")?
        .filter_map(|e| std::fs::read(e.ok()?.path().join("cmdline")).ok())
        .any(|c| c == b"/bin/sleep\x001002\0");
    assert!(!cleared);
    Ok(())
}

#[tokio::test]
async fn a_stop_gives_the_script_its_grace() -> Result<()> {
    let mut wants = script(
        "#!/bin/sh\ntrap 'echo saving; sleep 0.5; echo saved > result; echo bye; exit 0' TERM\n\
         echo ready\nwhile :; do sleep 0.05; done\n",
    );
    wants.grace = 60;
    let task = Task::new(wants).await?;
    let _agent = task.start("m1")?;
    task.status(SlotIndex(0), |s| s.log_stored == 6).await?;
    let request = StopRequest { version: RECORD_VERSION, at: jiff::Timestamp::now(), grace_millis: None };
    task.store.put_json(&task.keys.stop(), &request).await?;
    let status = task.finished(SlotIndex(0)).await?;
    assert_eq!(outcome(&status), Outcome::Stopped);
    assert_eq!(text(&task.log(status.run()).await?), "ready\nsaving\nbye\n");
    assert!(status.saved.is_some());
    Ok(())
}

#[tokio::test]
async fn a_stubborn_script_is_killed_with_its_children() -> Result<()> {
    let task = Task::new(script(
        "#!/bin/sh\ntrap '' TERM\n(trap '' TERM; while :; do sleep 0.05; done) &\n\
         setsid sh -c \"trap '' TERM; while :; do sleep 0.05; done\" &\necho ready\nwhile :; do sleep 0.05; done\n",
    ))
    .await?;
    let mut agent = task.start("m1")?;
    task.status(SlotIndex(0), |s| s.log_stored == 6).await?;
    let request =
        StopRequest { version: RECORD_VERSION, at: jiff::Timestamp::now(), grace_millis: Some(100) };
    task.store.put_json(&task.keys.stop(), &request).await?;
    assert_eq!(outcome(&task.finished(SlotIndex(0)).await?), Outcome::Stopped);
    agent.ended().await?;
    until("nothing of the machine is left", || agent.marked().is_empty()).await
}

#[tokio::test]
async fn much_output_needs_little_memory() -> Result<()> {
    let task = Task::new(script(
        "#!/bin/sh\nhead -c 157286400 /dev/zero | tr '\\0' 'x'\nwhile [ ! -e go ]; do sleep 0.05; done\n",
    ))
    .await?;
    let mut agent = task.start("m1")?;
    let status = task.status(SlotIndex(0), |s| s.log_stored == 157_286_400).await?;
    let peak = agent.peak_memory()?;
    std::fs::write(agent.root.join("work/go"), "")?;
    assert_eq!(outcome(&task.finished(SlotIndex(0)).await?), Outcome::Exited { code: 0 });
    agent.ended().await?;
    let mut at = 0;
    for record in task.log(status.run()).await? {
        assert_eq!(record.offset, at);
        assert!(record.data.iter().all(|b| *b == b'x'));
        at += record.data.len() as u64;
    }
    assert_eq!(at, 157_286_400);
    assert!(peak <= 80 << 20, "{peak} bytes");
    Ok(())
}

#[tokio::test]
async fn an_agent_that_listens_says_where_and_ends_as_quickly() -> Result<()> {
    let task = Task::new(script("#!/bin/sh\nwhile [ ! -e go ]; do sleep 0.05; done\n")).await?;
    let mut config = task.config("m1");
    config.listen = Some("127.0.0.1:0".parse()?);
    config.addresses = tpi_proto::machine::Addresses::Static { hosts: vec!["127.0.0.1".to_owned()] };
    let mut agent = task.start_with(&config, &[])?;
    let running = task
        .status(SlotIndex(0), |s| s.state == (tpi_proto::state::SlotState::Active { phase: Phase::Run }))
        .await?;
    let key = task.keys.identity(running.run());
    let (identity, _) =
        task.store.get_json::<tpi_store::record::Identity>(&key).await?.expect("published before the script");
    let address: std::net::SocketAddr = identity.addresses[0].parse()?;
    drop(tokio::net::TcpStream::connect(address).await?);
    std::fs::write(agent.root.join("work/go"), "")?;
    assert_eq!(outcome(&task.finished(SlotIndex(0)).await?), Outcome::Exited { code: 0 });
    assert!(agent.ended().await?.success());
    Ok(())
}
