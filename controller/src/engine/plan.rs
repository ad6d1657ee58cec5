//! What submitting would do, without doing any of it.

use jiff::Timestamp;
use tpi_store::record::Intent;

use super::{
    Engine, EngineError, Observer, PlanReport, REPORT_VERSION, Sending, facts, preflight,
    submit::{self, Submission},
};
use crate::spec::Checked;

/// Writes nothing but the hashes of files, on this computer, so that they need not be read again.
pub(super) async fn plan(
    engine: &Engine,
    checked: &Checked,
    observer: &dyn Observer,
) -> Result<PlanReport, EngineError> {
    let task = &checked.id;
    let place = submit::place(engine, checked).await?;
    let mut work = Submission::new(engine, &place, checked, observer);
    let found = match facts::read_record(&place.store, task).await {
        Ok(found) => found.map(|(record, _)| record.intent),
        // The cloud's own store is made by the first submit; until then there is nothing in it.
        Err(error) if facts::is_no_bucket(&error) => {
            work.without_store();
            None
        }
        Err(error) => return Err(error),
    };
    let (agent_sha256, agent_bytes) = work.read_agent().await?;
    let want = work.group(Timestamp::now(), agent_sha256)?;
    let (planned, scanned) = futures::future::join(place.cloud.plan(&want), work.scan()).await;
    let planned = planned.map_err(EngineError::planning(task))?;
    let scanned = scanned?;
    let summary = scanned.summary();
    preflight::fits(checked, &planned, summary.bytes)?;
    let mut warnings = checked.warnings.clone();
    warnings.extend(scanned.warnings().iter().cloned());
    warnings.extend(preflight::doubts(&planned, summary.bytes));
    match found {
        None | Some(Intent::Submit) => {}
        Some(Intent::Run) => warnings.push(format!(
            "the task {task} is there already: submitting it makes nothing new, and attaches to it"
        )),
        Some(Intent::Destroy) => {
            warnings.push(format!(
                "the task {task} is being destroyed: let `tpi-controller destroy {task}` finish first"
            ));
        }
    }
    Ok(PlanReport {
        version: REPORT_VERSION,
        id: task.clone(),
        name: checked.spec.name.clone(),
        cloud: checked.spec.cloud,
        store: place.url,
        buys: checked.spec.spot,
        ends_by: want.deadline,
        timeout_seconds: checked.spec.timeout_seconds,
        provision_timeout_seconds: checked.spec.provision_timeout_seconds,
        sends: Sending { workdir: checked.spec.storage.workdir.clone(), files: summary, agent_bytes },
        plan: planned,
        warnings,
    })
}
