//! Stop: a request in the store, which every agent finds, and a call to those that can be reached.

use std::time::Duration;

use jiff::Timestamp;
use tpi_proto::{
    id::SlotIndex,
    state::{SlotState, SlotStatus},
};
use tpi_store::{
    layout::TaskKeys,
    record::{Intent, RECORD_VERSION, StopRequest},
};

use super::{
    Engine, EngineError, ErrorKind, Located, Observer, Progress, REPORT_VERSION, StopOptions, StopReport,
    facts::Facts,
};
use crate::link::{self, UserIdentity};

/// How often the store is asked while waiting for slots to end.
pub(super) const POLL: Duration = Duration::from_millis(250);

pub(super) async fn stop(
    engine: &Engine,
    task: &Located,
    options: StopOptions,
    observer: &dyn Observer,
) -> Result<StopReport, EngineError> {
    let cloud = engine.cloud(task.cloud)?;
    let facts = Facts::read(&task.store, cloud.as_ref(), &task.id).await?;
    let Some(record) = &facts.record else {
        return Err(EngineError::new(ErrorKind::NotFound, format!("the record of {task} is lost"))
            .of(&task.id)
            .hint(format!("`tpi-controller destroy {task}` removes its machines")));
    };
    if record.intent == Intent::Submit {
        return Err(EngineError::new(ErrorKind::User, format!("{task} has not been started yet"))
            .of(&task.id)
            .hint(format!("`tpi-controller destroy {task}` removes it")));
    }
    let mut report = StopReport {
        version: REPORT_VERSION,
        id: task.id.clone(),
        asked: Vec::new(),
        left_to_store: Vec::new(),
        ended: facts.state().is_final(),
    };
    if report.ended {
        return Ok(report);
    }
    (report.asked, report.left_to_store) = ask(engine, task, &facts.slots, options, observer).await?;
    while options.wait && !report.ended {
        let facts = Facts::read(&task.store, cloud.as_ref(), &task.id).await?;
        report.ended = facts.state().is_final();
        if !report.ended {
            tokio::time::sleep(POLL).await;
        }
    }
    Ok(report)
}

/// The request is written first: it outlives every connection, and machines that come later find it too.
pub(super) async fn ask(
    engine: &Engine,
    task: &Located,
    slots: &[SlotStatus],
    options: StopOptions,
    observer: &dyn Observer,
) -> Result<(Vec<SlotIndex>, Vec<SlotIndex>), EngineError> {
    let request =
        StopRequest { version: RECORD_VERSION, at: Timestamp::now(), grace_millis: options.grace_millis };
    let _version = task
        .store
        .put_json(&TaskKeys::new(&task.id).stop(), &request)
        .await
        .map_err(EngineError::store(format!("asking {task} to stop")))?;
    let grace = options.grace_millis.map(Duration::from_millis);
    let calls = slots.iter().filter(|s| matches!(s.state, SlotState::Active { .. })).map(|slot| async move {
        let direct = match call(engine, task, slot, grace).await {
            Ok(()) => true,
            Err(cause) => {
                tracing::debug!(run = %slot.run(), cause, "an agent was not asked directly");
                false
            }
        };
        observer.progress(Progress::StopSent { run: slot.run(), direct });
        (slot.slot, direct)
    });
    let answers = futures::future::join_all(calls).await;
    let of = |wanted: bool| answers.iter().filter(|(_, d)| *d == wanted).map(|(slot, _)| *slot).collect();
    Ok((of(true), of(false)))
}

/// Best effort: whatever fails here, the request in the store remains.
async fn call(
    engine: &Engine,
    task: &Located,
    slot: &SlotStatus,
    grace: Option<Duration>,
) -> Result<(), String> {
    let identity = UserIdentity::load_or_create(engine.settings().home.root()).map_err(|e| e.to_string())?;
    identity.publish(&task.store, &task.id).await.map_err(|e| e.to_string())?;
    let connection =
        link::connect(&task.store, &task.id, slot.run(), &identity).await.map_err(|e| e.to_string())?;
    let _generation = connection.stop(grace).await.map_err(|e| e.to_string())?;
    Ok(())
}
