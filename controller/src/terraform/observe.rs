//! What Terraform's state says of a task: counts, addresses, events, and the end of each log.

use std::fmt::Write as _;

use futures::{StreamExt as _, TryStreamExt as _};
use tpi_proto::{
    id::TaskId,
    state::{SlotState, SlotStatus},
};
use tpi_store::{
    Store, StoreError,
    layout::TaskKeys,
    log,
    record::{Event, Identity, Intent},
};

use super::value::{Object, Value};
use crate::{
    cloud::GroupState,
    engine::{Engine, EngineError, Located, StatusReport},
    task::{TaskOutcome, TaskState},
};

/// Most of each log that is kept in a state, in bytes: states are read and written whole, all the time.
const LOG_LIMIT: u64 = 64 * 1024;
/// Most events that are kept in a state.
const EVENTS_LIMIT: usize = 64;

/// What was seen.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) report: StatusReport,
    /// The attributes that are computed.
    pub(super) computed: Object,
    /// Whether submitting was cut off.
    pub(super) unfinished: bool,
}

/// Looks at everything.
pub(super) async fn observe(engine: &Engine, task: &Located) -> Result<Seen, EngineError> {
    let report = engine.status(task).await?;
    let keys = TaskKeys::new(&task.id);
    let mut computed = Object::new();
    let counts = counts(&report);
    let status = counts.map(|(name, count)| (name.to_owned(), Value::integer(count)));
    drop(computed.insert("status".to_owned(), Value::Map(status.into())));
    let addresses = addresses(&task.store, &keys, &report).await;
    drop(computed.insert("addresses".to_owned(), Value::texts(addresses)));
    drop(computed.insert("events".to_owned(), Value::texts(events(&task.store, &keys).await)));
    let logs = report.slots.iter().map(|slot| tail(&task.store, &task.id, slot));
    let logs = futures::future::join_all(logs).await;
    drop(computed.insert("logs".to_owned(), Value::texts(logs)));
    let unfinished = match report.intent {
        Some(Intent::Submit) => true,
        Some(Intent::Run) => report.group == Some(GroupState::Absent) && !report.state.is_final(),
        Some(Intent::Destroy) | None => false,
    };
    let [running, succeeded, failed] = counts.map(|(_, count)| count);
    tracing::info!(id = %task.id, running, succeeded, failed, "the task was looked at");
    Ok(Seen { report, computed, unfinished })
}

/// Slots by how they do. A machine that has not taken a slot yet counts as running, as it does for who pays it.
fn counts(report: &StatusReport) -> [(&'static str, i64); 3] {
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let outcome = |slot: &&SlotStatus, wanted: bool| match &slot.state {
        SlotState::Finished { outcome, .. } => outcome.is_success() == wanted,
        SlotState::Active { .. } | SlotState::Stopping { .. } | SlotState::Interrupted => false,
    };
    let over = |machine| report.slots.iter().any(|slot| slot.state.is_final() && slot.machine == machine);
    let alive = report.proof.machines.iter().filter(|m| m.ended.is_none());
    let never = match &report.state {
        TaskState::Finished {
            outcome: TaskOutcome::TimedOut { unfinished } | TaskOutcome::Stopped { unfinished },
        } => i64::from(*unfinished),
        // Nothing ever ran.
        TaskState::Finished { outcome: TaskOutcome::Unprovisioned { .. } } => {
            report.spec.as_ref().map_or(0, |spec| i64::from(spec.parallelism.get()))
        }
        TaskState::Finished { outcome: TaskOutcome::Succeeded | TaskOutcome::Failed { .. } }
        | TaskState::Declared
        | TaskState::Provisioning
        | TaskState::Running
        | TaskState::Stopping { .. }
        | TaskState::Destroyed
        | TaskState::Orphaned => 0,
    };
    [
        ("running", count(alive.filter(|m| !over(m.machine.clone())).count())),
        ("succeeded", count(report.slots.iter().filter(|slot| outcome(slot, true)).count())),
        ("failed", count(report.slots.iter().filter(|slot| outcome(slot, false)).count()) + never),
    ]
}

/// Hosts of the machines that work on a slot, as they say themselves.
async fn addresses(store: &Store, keys: &TaskKeys, report: &StatusReport) -> Vec<String> {
    let mut hosts = Vec::new();
    for slot in report
        .slots
        .iter()
        .filter(|slot| matches!(slot.state, SlotState::Active { .. } | SlotState::Stopping { .. }))
    {
        match store.get_json::<Identity>(&keys.identity(slot.run())).await {
            Ok(Some((identity, _))) => {
                let host = identity
                    .addresses
                    .first()
                    .and_then(|a| a.rsplit_once(':'))
                    .map(|(host, _)| host.to_owned());
                hosts.extend(host);
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "an address is not known"),
        }
    }
    hosts
}

/// The newest ones, oldest first.
async fn events(store: &Store, keys: &TaskKeys) -> Vec<String> {
    let read = async {
        let mut names: Vec<String> =
            store.list(&keys.events(), None).map_ok(|object| object.key).try_collect().await?;
        names.sort();
        let newest = names.split_off(names.len().saturating_sub(EVENTS_LIMIT));
        let mut events = Vec::new();
        for name in newest {
            events.extend(store.get_json::<Event>(&name).await?.map(|(event, _)| event));
        }
        Ok::<_, StoreError>(events)
    };
    match read.await {
        Ok(events) => events.iter().map(shown).collect(),
        Err(error) => {
            tracing::warn!(%error, "events are not known");
            Vec::new()
        }
    }
}

fn shown(event: &Event) -> String {
    let code = event.run.map_or_else(|| "task".to_owned(), |run| format!("machine {run}"));
    format!("{}: {code}\n{}", event.at.strftime("%Y-%m-%d %H:%M:%S"), event.message)
}

/// The end of what a slot's newest machine has printed, with a line before it when there is more.
async fn tail(store: &Store, task: &TaskId, slot: &SlotStatus) -> String {
    let from = slot.log_stored.saturating_sub(LOG_LIMIT);
    let mut records = log::read_stored(store, task, slot.run(), from);
    let mut bytes: Vec<u8> = Vec::new();
    let mut cut = from > 0;
    while let Some(record) = records.next().await {
        match record {
            Ok(record) => bytes.extend_from_slice(&record.data),
            Err(error) => {
                tracing::warn!(%error, run = %slot.run(), "a log cannot be read to its end");
                break;
            }
        }
        // It may have grown since its length was read.
        if let Some(more) =
            bytes.len().checked_sub(usize::try_from(LOG_LIMIT).unwrap_or(usize::MAX)).filter(|n| *n > 0)
        {
            drop(bytes.drain(..more));
            cut = true;
        }
    }
    let text = String::from_utf8_lossy(&bytes);
    let mut shown = String::new();
    let earlier = slot.attempt.0 > 1;
    // Writing to a `String` cannot fail.
    if cut || earlier {
        let what = if cut { "the end of the log" } else { "the log of the newest machine" };
        let _ = writeln!(shown, "[{what}; all of it: tpi-controller logs {task} --slot {}]", slot.slot);
    }
    // A line that was cut is no line.
    shown.push_str(if cut { text.split_once('\n').map_or(&*text, |(_, rest)| rest) } else { &text });
    shown
}
