//! Amend: what can be changed of a task that is there, because only who brings results home looks at it.

use tpi_store::record::Intent;

use super::{
    EngineError, ErrorKind, Located,
    facts::{self, Change},
};

/// Sets what is brought home and what is left out of it.
pub(super) async fn amend(
    task: &Located,
    output: Option<&str>,
    exclude: &[String],
) -> Result<(), EngineError> {
    let record = facts::change_record(&task.store, &task.id, |record| {
        if record.intent == Intent::Destroy {
            return Err(EngineError::new(
                ErrorKind::BeingDestroyed,
                format!("the task {task} is being destroyed"),
            )
            .of(&task.id)
            .hint(format!("let `tpi-controller destroy {task}` finish")));
        }
        let storage = &mut record.spec.storage;
        if storage.output.as_deref() == output && storage.exclude == exclude {
            return Ok(Change::Keep);
        }
        storage.output = output.map(str::to_owned);
        storage.exclude = exclude.to_vec();
        Ok(Change::Write)
    })
    .await?;
    match record {
        Some(_) => Ok(()),
        None => {
            Err(EngineError::new(ErrorKind::NotFound, format!("the record of {task} is lost")).of(&task.id))
        }
    }
}
