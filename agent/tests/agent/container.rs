//! The same in a container, where an engine can be reached.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result};
use bollard::{API_DEFAULT_VERSION, Docker, query_parameters::ListContainersOptionsBuilder};
use tpi_proto::{
    id::{Attempt, SlotIndex},
    state::{Failure, Outcome, Phase},
};
use tpi_store::{
    log::Stream,
    record::{RECORD_VERSION, StopRequest},
};

use crate::harness::{ENGINE, Task, Wants, bytes, outcome, script, text};

/// What `cargo xtask test` puts into the engine: a static busybox under each of its names.
const IMAGE: &str = "tpi-test:busybox";

fn contained(text: &str) -> Option<Wants> {
    if std::env::var_os(ENGINE).is_none() {
        #[expect(clippy::print_stderr, reason = "a skipped test says so")]
        {
            eprintln!("SKIPPED: {ENGINE} names no container engine (`cargo xtask test` starts one)");
        }
        return None;
    }
    let mut wants = script(text);
    wants.container = Some(IMAGE.to_owned());
    Some(wants)
}

/// Names of the task's containers that the engine still has.
async fn left(task: &Task) -> Result<Vec<String>> {
    let docker = Docker::connect_with_unix(&std::env::var(ENGINE)?, 60, API_DEFAULT_VERSION)?;
    let docker = docker.negotiate_version().await?;
    let filters = HashMap::from([("label", vec![format!("tpi.task={}", task.id)])]);
    let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    let there = docker.list_containers(Some(options)).await?;
    Ok(there.into_iter().filter_map(|container| container.id).collect())
}

#[tokio::test]
async fn a_container_sees_what_a_process_sees() -> Result<()> {
    let Some(mut wants) =
        contained("#!/bin/sh\npwd\nenv\necho err >&2\necho made > made\nseq 1 20000\nexit 9\n")
    else {
        return Ok(());
    };
    wants.environment = BTreeMap::from([("SECRET".to_owned(), "a b".to_owned())]);
    let task = Task::new(wants).await?;
    let (status, log) = task.run().await?;
    assert_eq!(outcome(&status), Outcome::Exited { code: 9 });
    let seen = text(&log);
    let work = task.dir.path().join("m1/work");
    for line in [&*work.display().to_string(), "SECRET=a b", "TPI_SLOT=0", "PATH=/bin", "19999\n20000\n"] {
        assert!(seen.contains(line), "{line} is missing in {seen}");
    }
    assert_eq!(bytes(&log, Stream::Stderr), b"err\n");
    assert_eq!(std::fs::read(work.join("made"))?, b"made\n");
    assert!(status.saved.is_some());
    assert_eq!(left(&task).await?, Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn a_contained_script_has_its_grace_and_is_killed_after() -> Result<()> {
    for (body, wanted, end) in [
        ("trap 'echo bye; exit 0' TERM", "ready\nbye\n", Some(60_000)),
        ("trap '' TERM; (trap '' TERM; setsid sleep 1000) &", "ready\n", Some(200)),
    ] {
        let text_of = format!("#!/bin/sh\n{body}\necho ready\nwhile :; do sleep 0.1; done\n");
        let Some(wants) = contained(&text_of) else { return Ok(()) };
        let task = Task::new(wants).await?;
        let mut agent = task.start("m1")?;
        task.status(SlotIndex(0), |s| s.log_stored == 6).await.with_context(|| agent.log())?;
        let request = StopRequest { version: RECORD_VERSION, at: jiff::Timestamp::now(), grace_millis: end };
        task.store.put_json(&task.keys.stop(), &request).await?;
        let status = task.finished(SlotIndex(0)).await?;
        assert_eq!(outcome(&status), Outcome::Stopped);
        assert_eq!(text(&task.log(status.run()).await?), wanted);
        agent.ended().await?;
        assert_eq!(left(&task).await?, Vec::<String>::new());
    }
    Ok(())
}

#[tokio::test]
async fn a_contained_death_by_signal_is_told() -> Result<()> {
    let Some(wants) = contained("#!/bin/sh\nkill -KILL $$\n") else { return Ok(()) };
    let (status, _) = Task::new(wants).await?.run().await?;
    assert_eq!(outcome(&status), Outcome::Signalled { signal: 9 });
    Ok(())
}

#[tokio::test]
async fn a_missing_image_or_interpreter_is_named() -> Result<()> {
    let Some(wants) = contained("#!/usr/bin/python3\n") else { return Ok(()) };
    let (status, _) = Task::new(wants).await?.run().await?;
    let Outcome::Failed { phase: Phase::Run, failure: Failure::Start, message } = outcome(&status) else {
        panic!("{status:?}");
    };
    assert!(message.contains("/usr/bin/python3") && message.contains(IMAGE), "{message}");

    let mut wants = script("#!/bin/sh\n");
    wants.container = Some("localhost:1/no/such/image".to_owned());
    let (status, _) = Task::new(wants).await?.run().await?;
    let Outcome::Failed { phase: Phase::Prepare, failure: Failure::Start, message } = outcome(&status) else {
        panic!("{status:?}");
    };
    assert!(message.contains("localhost:1/no/such/image"), "{message}");
    Ok(())
}

#[tokio::test]
async fn the_container_of_a_killed_agent_does_not_run_beside_the_next() -> Result<()> {
    let text_of = "#!/bin/sh\necho $TPI_ATTEMPT\n[ $TPI_ATTEMPT = 2 ] || sleep 1000\n";
    let Some(wants) = contained(text_of) else { return Ok(()) };
    let task = Task::new(wants).await?;
    let mut first = task.start("m1")?;
    task.status(SlotIndex(0), |s| s.log_stored == 2).await?;
    first.signal(rustix::process::Signal::KILL)?;
    first.ended().await?;
    let mut second = task.start("m1")?;
    let status = task.finished(SlotIndex(0)).await?;
    assert_eq!((status.attempt, outcome(&status)), (Attempt(2), Outcome::Exited { code: 0 }));
    second.ended().await?;
    assert_eq!(left(&task).await?, Vec::<String>::new());
    Ok(())
}
