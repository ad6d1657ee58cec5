//! Following: every byte once, whatever breaks.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use futures::StreamExt as _;
use tpi_controller::link::{Cursor, Event, Follow, Source, Start, WhyStore, follow};
use tpi_proto::{
    id::{Attempt, RunId, SlotIndex},
    state::SlotState,
};
use tpi_store::log::Stream;

use crate::{
    proxy::Proxy,
    rig::{PATIENCE, Rig, run},
};

/// Numbers, one a line, without an end until a file appears.
const COUNTS: &str = "#!/bin/bash
i=0
while [ ! -e \"$RIG/stop\" ]; do seq $i $((i+1999)); i=$((i+2000)); sleep 0.01; done
echo done >&2
";

/// What following gave.
#[derive(Default)]
struct Seen {
    logs: BTreeMap<RunId, Vec<u8>>,
    stderr: Vec<u8>,
    complete: BTreeMap<RunId, u64>,
    lost: BTreeMap<RunId, u64>,
    sources: Vec<Source>,
    samples: Vec<u64>,
    finals: usize,
}

impl Seen {
    /// Checks that each record begins where the one before ended.
    fn take(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Log { slot, attempt, records } => {
                ensure!(!records.is_empty());
                for record in records {
                    let log = self.logs.entry(RunId { slot, attempt }).or_default();
                    ensure!(
                        record.offset == log.len() as u64,
                        "a record at {} follows byte {}",
                        record.offset,
                        log.len()
                    );
                    log.extend_from_slice(&record.data);
                    if record.stream == Stream::Stderr {
                        self.stderr.extend_from_slice(&record.data);
                    }
                }
            }
            Event::Status(status) => self.finals += usize::from(status.state.is_final()),
            Event::Sample { sample, .. } => self.samples.push(sample.sequence),
            Event::Source { source, .. } => self.sources.push(source),
            Event::Lost { slot, attempt, from } => {
                self.lost.insert(RunId { slot, attempt }, from);
            }
            Event::Complete { slot, attempt, length } => {
                self.complete.insert(RunId { slot, attempt }, length);
            }
            Event::End => {}
        }
        Ok(())
    }

    fn is_live(&self) -> bool {
        self.sources.iter().any(|source| matches!(source, Source::Live { .. }))
    }
}

async fn next(events: &mut Follow) -> Result<Event> {
    let event = tokio::time::timeout(PATIENCE, events.next()).await.context("no event in time")?;
    Ok(event.context("ended without `End`")??)
}

async fn to_the_end(events: &mut Follow, seen: &mut Seen) -> Result<()> {
    loop {
        let event = next(events).await?;
        if event == Event::End {
            break;
        }
        seen.take(event)?;
    }
    ensure!(events.next().await.is_none(), "something after `End`");
    Ok(())
}

/// The lines of [`COUNTS`], all of them.
fn check_counts(log: &[u8]) -> Result<()> {
    let text = std::str::from_utf8(log)?.strip_suffix("done\n").context("the last line")?;
    for (wanted, line) in text.lines().enumerate() {
        ensure!(line == wanted.to_string(), "line {wanted} is {line:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn reconnecting_at_random_loses_nothing_and_shows_nothing_twice() -> Result<()> {
    let cuts = std::env::var("TPI_TEST_RECONNECTS").ok().and_then(|n| n.parse().ok()).unwrap_or(100);
    let rig = Rig::new(COUNTS, 1).await?;
    let mut agent = rig.start("m", true)?;
    let mut identity = rig.identity(run(0, 1)).await?;
    let proxy = Proxy::start(identity.addresses[0].parse()?, cuts, 200_000).await?;
    identity.addresses = vec![proxy.address.to_string()];
    rig.rewrite_identity(&identity).await?;

    let mut seen = Seen::default();
    let mut events = follow(&rig.store, &rig.task, rig.options());
    while proxy.cuts() < cuts {
        seen.take(next(&mut events).await?)?;
    }
    std::fs::write(rig.path("stop"), "")?;
    to_the_end(&mut events, &mut seen).await.with_context(|| agent.log())?;
    agent.ended().await?;
    let log = &seen.logs[&run(0, 1)];
    check_counts(log)?;
    assert_eq!(seen.complete[&run(0, 1)], log.len() as u64);
    assert_eq!(seen.stderr, b"done\n");
    assert!(seen.is_live() && seen.lost.is_empty() && seen.finals == 1);
    eprintln!("{cuts} reconnects, {} bytes, none lost, none twice", log.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_is_followed_by_its_successor() -> Result<()> {
    let rig = Rig::new(COUNTS, 1).await?;
    let mut first = rig.start("m1", true)?;
    let mut seen = Seen::default();
    let mut events = follow(&rig.store, &rig.task, rig.options());
    while !seen.is_live() || seen.logs.is_empty() {
        seen.take(next(&mut events).await?)?;
    }
    first.kill()?;
    let mut second = rig.start("m2", true)?;
    while !seen.logs.contains_key(&run(0, 2)) {
        seen.take(next(&mut events).await?)?;
    }
    std::fs::write(rig.path("stop"), "")?;
    to_the_end(&mut events, &mut seen).await.with_context(|| second.log())?;
    second.ended().await?;
    // What was shown before the kill is more than what reached the store, or as much.
    assert_eq!(seen.lost[&run(0, 1)], seen.logs[&run(0, 1)].len() as u64);
    check_counts(&seen.logs[&run(0, 2)])?;
    assert_eq!(seen.complete[&run(0, 2)], seen.logs[&run(0, 2)].len() as u64);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_network_is_followed_through_the_store() -> Result<()> {
    let rig = Rig::new(COUNTS, 1).await?;
    let mut agent = rig.start("m", false)?;
    let mut seen = Seen::default();
    let mut events = follow(&rig.store, &rig.task, rig.options());
    while seen.logs.is_empty() {
        seen.take(next(&mut events).await?)?;
    }
    std::fs::write(rig.path("stop"), "")?;
    to_the_end(&mut events, &mut seen).await.with_context(|| agent.log())?;
    agent.ended().await?;
    check_counts(&seen.logs[&run(0, 1)])?;
    assert!(!seen.is_live());
    let unreachable = |source: &Source| matches!(source, Source::Store { why: WhyStore::Unreachable(_) });
    assert!(seen.sources.iter().any(unreachable), "{:?}", seen.sources);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_are_followed_at_once_and_ended_tasks_from_anywhere() -> Result<()> {
    let script =
        "#!/bin/bash\nfor i in 1 2 3; do echo slot $TPI_SLOT line $i; sleep 0.2; done\nexit $TPI_SLOT\n";
    let rig = Rig::new(script, 3).await?;
    let mut agents = Vec::new();
    for machine in ["a", "b", "c"] {
        agents.push(rig.start(machine, true)?);
    }
    let mut options = rig.options();
    options.telemetry = true;
    let mut seen = Seen::default();
    let mut events = follow(&rig.store, &rig.task, options);
    to_the_end(&mut events, &mut seen).await?;
    for slot in 0..3 {
        let wanted = format!("slot {slot} line 1\nslot {slot} line 2\nslot {slot} line 3\n");
        assert_eq!(String::from_utf8_lossy(&seen.logs[&run(slot, 1)]), wanted);
    }
    assert_eq!(seen.finals, 3);
    assert!(!seen.samples.is_empty());
    for agent in &mut agents {
        agent.ended().await?;
    }

    // Afterwards, from a byte in the middle, without anybody to connect to.
    let mut options = rig.options();
    options.slots = vec![SlotIndex(1)];
    options.start = Start::Cursors(vec![Cursor { slot: SlotIndex(1), attempt: Attempt(1), offset: 7 }]);
    let mut events = follow(&rig.store, &rig.task, options);
    let mut text = Vec::new();
    loop {
        match next(&mut events).await? {
            Event::End => break,
            Event::Log { slot, records, .. } => {
                assert_eq!(slot, SlotIndex(1));
                for record in records {
                    assert_eq!(record.offset, 7 + text.len() as u64);
                    text.extend_from_slice(&record.data);
                }
            }
            Event::Source { source, .. } => assert_eq!(source, Source::Store { why: WhyStore::Ended }),
            Event::Status(status) => assert!(matches!(status.state, SlotState::Finished { .. })),
            Event::Complete { length, .. } => assert_eq!(length, 7 + text.len() as u64),
            other @ (Event::Sample { .. } | Event::Lost { .. }) => bail!("unexpected {other:?}"),
        }
    }
    assert_eq!(String::from_utf8_lossy(&text), "line 1\nslot 1 line 2\nslot 1 line 3\n");

    // Only what is not older than a time.
    let mut options = rig.options();
    options.slots = vec![SlotIndex(2)];
    options.start = Start::Since(jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1));
    let mut events = follow(&rig.store, &rig.task, options);
    loop {
        let event = next(&mut events).await?;
        if event == Event::End {
            break;
        }
        ensure!(!matches!(event, Event::Log { .. }), "a record of the past");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_following_what_there_is_now_is_shown() -> Result<()> {
    let script = "#!/bin/bash\necho now; while [ ! -e \"$RIG/stop\" ]; do sleep 0.05; done\n";
    let rig = Rig::new(script, 1).await?;
    let mut options = rig.options();
    options.follow = false;
    // Nothing yet.
    let mut events = follow(&rig.store, &rig.task, options.clone());
    to_the_end(&mut events, &mut Seen::default()).await?;

    let mut agent = rig.start("m", true)?;
    rig.status(0, |status| status.log_stored >= 4).await?;
    for identity in [Some(rig.user.clone()), None] {
        options.identity = identity;
        let mut seen = Seen::default();
        let mut events = follow(&rig.store, &rig.task, options.clone());
        tokio::time::timeout(Duration::from_secs(30), to_the_end(&mut events, &mut seen)).await??;
        assert_eq!(seen.logs[&run(0, 1)], b"now\n");
    }
    std::fs::write(rig.path("stop"), "")?;
    agent.ended().await
}
