//! Machines, clocks and stores that fail.

use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;
use tpi_proto::{
    id::{Attempt, SlotIndex},
    state::{Failure, Outcome, Phase, SlotState},
};
use tpi_store::layout::number;

use crate::harness::{Task, outcome, script, text, until};

const COUNT: &str = "#!/bin/sh\n[ -e n ] || echo 0 > n\necho attempt $TPI_ATTEMPT begins at $(cat n)\n\
    while [ $(cat n) -lt 40 ]; do echo $(($(cat n)+1)) > n.new && mv n.new n; sleep 0.05; done\n\
    [ $TPI_ATTEMPT -gt 1 ] || sleep 1000\n";

#[tokio::test]
async fn a_successor_continues_from_what_was_saved() -> Result<()> {
    let mut task = Task::new(script(COUNT)).await?;
    task.lease_ttl = 3_000;
    let mut first = task.start("m1")?;
    task.status(SlotIndex(0), |s| s.saved >= Some(2)).await?;
    first.signal(Signal::KILL)?;
    first.ended().await?;
    let _second = task.start("m2")?;
    let status = task.finished(SlotIndex(0)).await?;
    assert_eq!((status.attempt, outcome(&status)), (Attempt(2), Outcome::Exited { code: 0 }));
    let log = text(&task.log(status.run()).await?);
    assert!(log.starts_with("attempt 2 begins at ") && !log.ends_with(" at 0\n"), "{log}");
    Ok(())
}

#[tokio::test]
async fn an_agent_started_again_on_its_machine_goes_on_at_once() -> Result<()> {
    // A lease this long is never waited for.
    let mut task = Task::new(script(COUNT)).await?;
    task.lease_ttl = 3_600_000;
    let mut first = task.start("m1")?;
    task.status(SlotIndex(0), |s| s.saved >= Some(2)).await?;
    first.signal(Signal::KILL)?;
    first.ended().await?;
    let again = task.start("m1")?;
    let status = task.finished(SlotIndex(0)).await?;
    assert_eq!((status.attempt, outcome(&status)), (Attempt(2), Outcome::Exited { code: 0 }));
    // The first script did not live on beside the second.
    assert!(
        status.warnings.iter().any(|w| w.contains("earlier agent")),
        "{:?} {}",
        status.warnings,
        again.log()
    );
    Ok(())
}

#[tokio::test]
async fn the_log_of_a_killed_agent_is_completed_by_the_next_on_its_machine() -> Result<()> {
    let task = Task::new(script(
        "#!/bin/sh\n[ $TPI_ATTEMPT = 1 ] || exit 0\nseq 1 20000\necho last >&2\ntouch printed\nsleep 1000\n",
    ))
    .await?;
    let mut config = task.config("m1");
    // Nothing is brought to the store before the agent is killed.
    config.timings.log_flush = 3_600_000;
    let mut first = task.start_with(&config, &[])?;
    let run = task
        .status(SlotIndex(0), |s| matches!(s.state, SlotState::Active { phase: Phase::Run }))
        .await?
        .run();
    let spool = first.root.join("spool").join(run.to_string()).join(format!("{}.log", number(0)));
    until("all of it is in the spool", || std::fs::read(&spool).is_ok_and(|b| b.ends_with(b"last\n")))
        .await?;
    first.signal(Signal::KILL)?;
    first.ended().await?;
    let mut again = task.start("m1")?;
    task.finished(SlotIndex(0)).await?;
    again.ended().await?;
    let wanted: String = (1..=20_000).map(|n| format!("{n}\n")).collect();
    assert_eq!(text(&task.log(run).await?), wanted);
    Ok(())
}

#[tokio::test]
async fn an_agent_that_dies_every_time_is_not_replaced_for_ever_and_its_last_words_are_kept() -> Result<()> {
    let mut task = Task::new(script("#!/bin/sh\necho attempt $TPI_ATTEMPT\nsleep 1000\n")).await?;
    task.lease_ttl = 3_600_000;
    let mut config = task.config("m1");
    // Nothing is brought to the store before the agent is killed.
    config.timings.log_flush = 3_600_000;
    let spooled = format!("{}.log", number(0));
    let mut last = None;
    for attempt in 1..=3 {
        let mut agent = task.start_with(&config, &[])?;
        let run = task
            .status(SlotIndex(0), |s| {
                s.attempt == Attempt(attempt) && s.state == SlotState::Active { phase: Phase::Run }
            })
            .await?
            .run();
        let spool = agent.root.join("spool").join(run.to_string()).join(&spooled);
        until("the script printed", || std::fs::read(&spool).is_ok_and(|b| b.ends_with(b"\n"))).await?;
        agent.signal(Signal::KILL)?;
        agent.ended().await?;
        last = Some(run);
    }
    let mut fourth = task.start("m1")?;
    assert_eq!(fourth.ended().await?.code(), Some(0), "{}", fourth.log());
    assert!(fourth.marked().is_empty());
    let status = task.finished(SlotIndex(0)).await?;
    let Outcome::Failed { phase: Phase::Run, failure: Failure::AgentLost, message } = outcome(&status) else {
        panic!("{status:?}");
    };
    assert_eq!(message, "3 in a row were gone without a word before anything new was saved");
    assert_eq!(Some(status.run()), last);
    assert_eq!(text(&task.log(status.run()).await?), "attempt 3\n");
    Ok(())
}

#[tokio::test]
async fn a_machine_going_down_leaves_the_slot_to_the_next() -> Result<()> {
    let task = Task::new(script(
        "#!/bin/sh\n[ $TPI_ATTEMPT = 1 ] || { cat kept; exit 0; }\n\
         trap 'echo precious > kept; exit 1' TERM\necho ready\nwhile :; do sleep 0.05; done\n",
    ))
    .await?;
    let mut first = task.start("m1")?;
    task.status(SlotIndex(0), |s| s.log_stored == 6).await?;
    first.signal(Signal::TERM)?;
    assert_eq!(first.ended().await?.code(), Some(75));
    task.status(SlotIndex(0), |s| s.state == SlotState::Interrupted).await?;
    let _second = task.start("m2")?;
    let status = task.finished(SlotIndex(0)).await?;
    assert_eq!((status.attempt, outcome(&status)), (Attempt(2), Outcome::Exited { code: 0 }));
    assert_eq!(text(&task.log(status.run()).await?), "precious\n");
    Ok(())
}

#[tokio::test]
async fn a_superseded_agent_kills_its_script_and_writes_nothing() -> Result<()> {
    let mut task = Task::new(script("#!/bin/sh\necho $TPI_ATTEMPT\nwhile :; do sleep 0.05; done\n")).await?;
    task.lease_ttl = 2_000;
    let mut first = task.start("m1")?;
    task.status(SlotIndex(0), |s| s.log_stored == 2).await?;
    // It is not dead, only very slow.
    first.signal(Signal::STOP)?;
    let mut second = task.start("m2")?;
    task.status(SlotIndex(0), |s| s.attempt == Attempt(2) && s.log_stored == 2).await?;
    assert!(!first.marked().is_empty());
    first.signal(Signal::CONT)?;
    assert_eq!(first.ended().await?.code(), Some(75), "{}", first.log());
    assert!(first.marked().is_empty());
    let status = task.status(SlotIndex(0), |_| true).await?;
    assert_eq!(status.attempt, Attempt(2));
    assert!(second.child.try_wait()?.is_none());
    Ok(())
}

#[tokio::test]
async fn a_store_that_is_away_for_a_while_costs_nothing() -> Result<()> {
    let task = Task::new(script(
        "#!/bin/sh\necho ready\nwhile [ ! -e away ]; do sleep 0.05; done\nseq 1 1000\n\
         touch printed\nwhile [ ! -e back ]; do sleep 0.05; done\necho end\n",
    ))
    .await?;
    let agent = task.start("m1")?;
    task.status(SlotIndex(0), |s| s.log_stored == 6).await?;
    let (here, away) = (task.dir.path().join("store"), task.dir.path().join("elsewhere"));
    std::fs::rename(&here, &away)?;
    // Not a folder: it cannot be made again either.
    std::fs::write(&here, "")?;
    std::fs::write(agent.root.join("work/away"), "")?;
    until("the script printed", || agent.root.join("work/printed").exists()).await?;
    until("the agent noticed", || agent.log().contains("cannot be written to the store")).await?;
    std::fs::remove_file(&here)?;
    std::fs::rename(&away, &here)?;
    std::fs::write(agent.root.join("work/back"), "")?;
    let status = task.finished(SlotIndex(0)).await?;
    assert_eq!((status.attempt, outcome(&status)), (Attempt(1), Outcome::Exited { code: 0 }));
    let numbers: String = (1..=1000).map(|n| format!("{n}\n")).collect();
    assert_eq!(text(&task.log(status.run()).await?), format!("ready\n{numbers}end\n"));
    Ok(())
}

#[tokio::test]
async fn the_deadline_ends_the_script_and_keeps_its_results() -> Result<()> {
    let mut wants = script(
        "#!/bin/sh\ntrap 'echo kept > result; exit 0' TERM\necho ready\nwhile :; do sleep 0.05; done\n",
    );
    wants.timeout = 20;
    let task = Task::new(wants).await?;
    let mut agent = task.start("m1")?;
    let status = task.finished(SlotIndex(0)).await?;
    assert_eq!(outcome(&status), Outcome::TimedOut { phase: Phase::Run });
    assert!(status.saved.is_some());
    agent.ended().await?;
    assert!(jiff::Timestamp::now() < task.deadline.checked_add(jiff::SignedDuration::from_secs(10))?);
    Ok(())
}

#[tokio::test]
async fn a_clock_that_is_off_by_an_hour_does_not_move_the_deadline() -> Result<()> {
    for offset in ["3600", "-3600"] {
        let task = Task::new(script("#!/bin/sh\necho fine\n")).await?;
        let _agent = task.start_with(&task.config("m1"), &[("__TPI_TEST_CLOCK_OFFSET", offset)])?;
        let status = task.finished(SlotIndex(0)).await?;
        assert_eq!(outcome(&status), Outcome::Exited { code: 0 });
        let log = task.log(status.run()).await?;
        let now = i64::try_from(jiff::Timestamp::now().as_nanosecond())?;
        let age = now - log.first().map_or(0, |r| r.time_unix_nanos);
        assert!(u64::try_from(age.abs())? < u64::try_from(Duration::from_secs(120).as_nanos())?, "{age}");
    }
    Ok(())
}

#[tokio::test]
async fn machines_share_the_slots_and_a_machine_too_many_leaves() -> Result<()> {
    let mut wants =
        script("#!/bin/sh\necho $TPI_SLOT of $TPI_SLOTS\nwhile [ ! -e go ]; do sleep 0.05; done\n");
    wants.slots = 2;
    let task = Task::new(wants).await?;
    let mut config = task.config("m1");
    // They do not listen, so nobody learns their addresses.
    config.timings.prepare_budget = 1_000;
    let first = task.start_with(&config, &[])?;
    task.status(SlotIndex(0), |_| true).await?;
    let second = task.start_with(
        &tpi_proto::machine::MachineConfig {
            root: task.dir.path().join("m2"),
            machine: task.config("m2").machine,
            ..config.clone()
        },
        &[],
    )?;
    task.status(SlotIndex(1), |_| true).await?;
    let mut third = task.config("m3");
    third.timings.boot_budget = 500;
    let mut third = task.start_with(&third, &[])?;
    assert_eq!(third.ended().await?.code(), Some(0), "{}", third.log());
    for (agent, slot) in [(&first, SlotIndex(0)), (&second, SlotIndex(1))] {
        until("the workspace is there", || agent.root.join("work").exists()).await?;
        task.status(slot, |s| s.log_stored > 0).await?;
        std::fs::write(agent.root.join("work/go"), "")?;
        let status = task.finished(slot).await?;
        assert_eq!(text(&task.log(status.run()).await?), format!("{slot} of 2\n"));
    }
    Ok(())
}

#[tokio::test]
async fn an_agent_that_dies_in_any_phase_is_continued_by_another() -> Result<()> {
    for phase in Phase::ALL {
        let mut task = Task::new(script("#!/bin/sh\necho $TPI_ATTEMPT >> tries\ncat tries\n")).await?;
        task.lease_ttl = 1_000;
        let mut first = task.start_with(&task.config("m1"), &[("__TPI_TEST_STOP_AT", phase.as_str())])?;
        assert!(!first.ended().await?.success(), "{phase:?}");
        let mut second = task.start("m2")?;
        let status = task.finished(SlotIndex(0)).await?;
        assert_eq!(outcome(&status), Outcome::Exited { code: 0 }, "{phase:?}");
        // Once the end is in the store nothing is done again.
        let attempt = if phase == Phase::Release { 1 } else { 2 };
        assert_eq!(status.attempt, Attempt(attempt), "{phase:?}");
        assert_eq!(text(&task.log(status.run()).await?), format!("{attempt}\n"), "{phase:?}");
        assert_eq!(second.ended().await?.code(), Some(0), "{phase:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_full_disk_slows_the_script_and_loses_nothing() -> Result<()> {
    let task = Task::new(script("#!/bin/sh\nseq 1 3000000\n")).await?;
    let mut config = task.config("m1");
    config.timings.log_flush = 50;
    let spool = config.root.join("spool");
    std::fs::create_dir_all(&spool)?;
    // Room for less than the script prints; the mount ends with the test's own mount namespace.
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=5m", "tmpfs"])
        .arg(&spool)
        .output()?;
    if !mounted.status.success() {
        eprintln!("SKIPPED: no small disk: {}", String::from_utf8_lossy(&mounted.stderr));
        return Ok(());
    }
    let _unmount = Unmount(spool);
    let mut agent = task.start_with(&config, &[])?;
    let status = task.finished(SlotIndex(0)).await?;
    assert_eq!(outcome(&status), Outcome::Exited { code: 0 });
    agent.ended().await?;
    assert!(agent.log().contains("cannot be written to the machine's disk"), "{}", agent.log());
    let wanted: String = (1..=3_000_000).map(|n| format!("{n}\n")).collect();
    assert!(text(&task.log(status.run()).await?) == wanted);
    Ok(())
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[tokio::test]
async fn a_preemption_notice_saves_and_leaves_and_the_end_releases() -> Result<()> {
    let group = crate::harness::Group::start().await?;
    let task = Task::new(script(
        "#!/bin/sh\n[ $TPI_ATTEMPT = 1 ] || { cat kept; exit 0; }\n\
         trap 'echo precious > kept; exit 1' TERM\necho ready\nwhile :; do sleep 0.05; done\n",
    ))
    .await?;
    let mut config = task.config("m1");
    config.preemption = vec![group.notice()];
    config.release = Some(group.release());
    let mut first = task.start_with(&config, &[])?;
    task.status(SlotIndex(0), |s| s.log_stored == 6).await?;
    group.preempt();
    assert_eq!(first.ended().await?.code(), Some(75), "{}", first.log());
    assert_eq!(group.released(), Vec::<String>::new());
    let mut next = task.config("m2");
    next.release = Some(group.release());
    let mut second = task.start_with(&next, &[])?;
    let status = task.finished(SlotIndex(0)).await?;
    assert_eq!(outcome(&status), Outcome::Exited { code: 0 });
    assert_eq!(text(&task.log(status.run()).await?), "precious\n");
    assert_eq!(second.ended().await?.code(), Some(0));
    assert_eq!(group.released(), [format!("POST /release/{}/0/2", next.machine)]);
    Ok(())
}

#[tokio::test]
async fn results_that_cannot_be_saved_do_not_pass_for_success() -> Result<()> {
    // Nobody can make a file of this in the store, whoever runs the test: its folder is a file.
    let task = Task::new(script("#!/bin/sh\necho made > made\nexit 0\n")).await?;
    let saved = task.dir.path().join("store").join(task.keys.saved(SlotIndex(0)));
    std::fs::create_dir_all(saved.parent().expect("below the task"))?;
    std::fs::write(&saved, "in the way")?;
    let mut config = task.config("m1");
    config.timings.save_budget = 2_000;
    let mut agent = task.start_with(&config, &[])?;
    let status = task.finished(SlotIndex(0)).await?;
    let Outcome::Failed { message, .. } = outcome(&status) else { panic!("{status:?}") };
    assert!(!message.is_empty());
    agent.ended().await?;
    Ok(())
}

#[tokio::test]
async fn a_machine_of_a_task_that_is_gone_gives_itself_back() -> Result<()> {
    let group = crate::harness::Group::start().await?;
    let task = Task::new(script("#!/bin/sh\n")).await?;
    task.store.delete(&task.keys.record()).await?;
    let mut config = task.config("m1");
    config.release = Some(group.release());
    let mut agent = task.start_with(&config, &[])?;
    assert_eq!(agent.ended().await?.code(), Some(0), "{}", agent.log());
    assert_eq!(group.released(), [format!("POST /release/{}//", config.machine)]);
    Ok(())
}
