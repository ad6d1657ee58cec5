//! Bringing results home: the newest saved generation of every slot, verified.
//!
//! With one slot, results go into the work directory itself. With several, each slot's go into `slot-{rank}/`
//! in it, because they may have the same names. What was brought home last is remembered on this computer, so
//! that pulling again replaces what we wrote ourselves and keeps what the user has changed since.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use tpi_proto::{
    id::{SlotIndex, TaskId},
    state::SlotStatus,
};
use tpi_store::{
    Store,
    layout::TaskKeys,
    private::write_private,
    record::TaskRecord,
    snapshot::{self, Existing, Manifest, OutsideLinks, RestoreOptions},
};

use super::{
    Engine, EngineError, ErrorKind, Located, Observer, Progress, PullOptions, PullReport, PulledSlot,
    REPORT_VERSION, Step, Transfer, facts, progress::Relay, submit::rules,
};
use crate::home::Home;

pub(super) async fn pull(
    engine: &Engine,
    task: &Located,
    options: &PullOptions,
    observer: &dyn Observer,
) -> Result<PullReport, EngineError> {
    let Some((record, _)) = facts::read_record(&task.store, &task.id).await? else {
        return Err(
            EngineError::new(ErrorKind::NotFound, format!("the record of {task} is lost")).of(&task.id)
        );
    };
    let slots = facts::read_slots(&task.store, &task.id).await?;
    bring_home(engine, task, &record, &slots, options.to.as_deref(), observer).await
}

/// Newest saved manifest of a slot.
async fn newest(
    store: &Store,
    task: &TaskId,
    slot: SlotIndex,
) -> Result<Option<(u64, Manifest)>, EngineError> {
    let listing = || format!("listing what slot {slot} of {task} has saved");
    let newest = store
        .list(&TaskKeys::new(task).saved(slot), None)
        .try_fold(None, |_, object| async move { Ok(Some(object.key)) })
        .await
        .map_err(EngineError::store(listing()))?;
    let Some(key) = newest else { return Ok(None) };
    let generation = TaskKeys::generation(&key)
        .ok_or_else(|| EngineError::new(ErrorKind::Unverified, format!("{key} is not a saved generation")))?;
    let bytes = store.get(&key).await.map_err(EngineError::store(format!("reading {key}")))?;
    let manifest = Manifest::from_bytes(&bytes).map_err(EngineError::snapshot(format!("reading {key}")))?;
    Ok(Some((generation, manifest)))
}

/// Where results go. A work directory that is not on this computer is not made here: it belongs to another.
fn target(task: &Located, record: &TaskRecord, to: Option<&Path>) -> Result<PathBuf, EngineError> {
    if let Some(to) = to {
        return std::path::absolute(to)
            .map_err(|e| EngineError::new(ErrorKind::User, format!("finding {}", to.display())).because(e));
    }
    let elsewhere = |message: String| {
        EngineError::new(ErrorKind::Unverified, message)
            .of(&task.id)
            .hint("name a directory for the results with `--to DIR`")
    };
    let Some(workdir) = record.spec.storage.workdir.as_ref().map(PathBuf::from) else {
        return Err(elsewhere(format!("{task} has no work directory to bring results home to")));
    };
    if workdir.is_dir() {
        Ok(workdir)
    } else {
        Err(elsewhere(format!("the work directory {} of {task} is not on this computer", workdir.display())))
    }
}

pub(super) async fn bring_home(
    engine: &Engine,
    task: &Located,
    record: &TaskRecord,
    slots: &[SlotStatus],
    to: Option<&Path>,
    observer: &dyn Observer,
) -> Result<PullReport, EngineError> {
    let mut report = PullReport {
        version: REPORT_VERSION,
        id: task.id.clone(),
        to: None,
        slots: Vec::new(),
        warnings: Vec::new(),
    };
    let storage = &record.spec.storage;
    let output = match (&storage.output, to) {
        (Some(output), _) => output.clone(),
        // Asked for by naming a place: everything.
        (None, Some(_)) => ".".to_owned(),
        (None, None) => {
            report.warnings.push(format!("{task} names no output, so there is nothing to bring home"));
            return Ok(report);
        }
    };
    let keys = TaskKeys::new(&task.id);
    let wanted = u32::from(record.spec.parallelism.get());
    let mut saved = Vec::new();
    for index in (0..wanted).map(SlotIndex) {
        let claimed = slots.iter().find(|s| s.slot == index).and_then(|s| s.saved);
        match (newest(&task.store, &task.id, index).await?, claimed) {
            (Some((generation, _)), Some(claimed)) if generation < claimed => {
                return Err(EngineError::new(
                    ErrorKind::Unverified,
                    format!("slot {index} of {task} has saved generation {claimed}, and the store has only {generation}"),
                )
                .of(&task.id));
            }
            (Some((generation, manifest)), _) => saved.push((index, generation, manifest)),
            (None, Some(claimed)) => {
                return Err(EngineError::new(
                    ErrorKind::Unverified,
                    format!("slot {index} of {task} has saved generation {claimed}, and the store has none"),
                )
                .of(&task.id));
            }
            (None, None) => report.warnings.push(format!("slot {index} has saved nothing")),
        }
    }
    if saved.is_empty() {
        return Ok(report);
    }
    let root = target(task, record, to)?;
    report.to = Some(root.clone());
    observer.progress(Progress::Step { step: Step::Results });
    let only = (output != ".").then(|| PathBuf::from(&output));
    for (slot, generation, manifest) in saved {
        let (place, input) = if wanted == 1 {
            let input = read_input(&task.store, &keys).await?;
            (root.clone(), input)
        } else {
            (root.join(format!("slot-{slot}")), None)
        };
        let note = Note::path(&engine.settings().home, &task.id, slot);
        let base = Note::read(&note, &place).or(input).map(Arc::new);
        let options = RestoreOptions {
            only: only.clone(),
            rules: rules(&storage.exclude, storage.gitignore)?,
            existing: Existing::KeepBoth,
            outside_links: OutsideLinks::Skip,
            base,
        };
        let transfer = Transfer::Results { slot };
        let relay = Relay::new(observer, transfer);
        let restoring = || format!("bringing results of slot {slot} of {task} to {}", place.display());
        let home = |e| unverified(task, EngineError::snapshot(restoring())(e));
        let done = snapshot::restore(&task.store, &manifest, &place, &options, &relay).await.map_err(home)?;
        let wrong = snapshot::verify(&manifest, &place, &options, &done).await.map_err(home)?;
        if let Some(first) = wrong.first() {
            return Err(EngineError::new(
                ErrorKind::Unverified,
                format!(
                    "{} of the files brought home differ from what was saved, such as {first:?}",
                    wrong.len()
                ),
            )
            .of(&task.id)
            .hint("look whether another program writes to them, then run the same command again")
            .hint("or bring them to another place with `--to DIR`"));
        }
        observer.progress(Progress::TransferDone { transfer });
        observer.progress(Progress::Restored { slot, report: done.clone() });
        Note::write(&note, &place, &manifest);
        if let [(ours, theirs), ..] = done.kept.as_slice() {
            report.warnings.push(format!(
                "{} local files differ and were kept; what the task wrote is beside them, such as {} beside {}",
                done.kept.len(),
                theirs.display(),
                ours.display()
            ));
        }
        if !done.skipped_links.is_empty() {
            report.warnings.push(format!(
                "{} links that lead out of the work directory were left out",
                done.skipped_links.len()
            ));
        }
        report.slots.push(PulledSlot { slot, generation, to: place, report: done });
    }
    Ok(report)
}

async fn read_input(store: &Store, keys: &TaskKeys) -> Result<Option<Manifest>, EngineError> {
    let found =
        store.get_versioned(&keys.input()).await.map_err(EngineError::store("reading what was sent"))?;
    found
        .map(|(bytes, _)| Manifest::from_bytes(&bytes))
        .transpose()
        .map_err(EngineError::snapshot("reading what was sent"))
}

/// Whatever goes wrong on the way home, nothing is deleted because of it.
fn unverified(task: &Located, error: EngineError) -> EngineError {
    let kind = match error.kind {
        ErrorKind::Unreachable | ErrorKind::CloudRefused => error.kind,
        ErrorKind::User
        | ErrorKind::LeftBehind
        | ErrorKind::NotFound
        | ErrorKind::Ambiguous
        | ErrorKind::BeingDestroyed
        | ErrorKind::Unverified
        | ErrorKind::Internal => ErrorKind::Unverified,
    };
    EngineError { kind, ..error }
        .of(&task.id)
        .hint("nothing was deleted: run the same command again, or choose another place with `--to DIR`")
}

/// What was brought home last, and to where. Losing it costs a second copy of some files, nothing else.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    place: PathBuf,
    manifest: Manifest,
}

impl Note {
    fn path(home: &Home, task: &TaskId, slot: SlotIndex) -> PathBuf {
        home.pulled_dir().join(task.as_str()).join(format!("{slot}.json"))
    }

    fn read(path: &Path, place: &Path) -> Option<Manifest> {
        let note: Self = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        (note.place == place).then_some(note.manifest)
    }

    fn write(path: &Path, place: &Path, manifest: &Manifest) {
        let note = Self { place: place.to_path_buf(), manifest: manifest.clone() };
        let written = serde_json::to_vec(&note)
            .map_err(std::io::Error::from)
            .and_then(|bytes| write_private(path, &bytes));
        if let Err(error) = written {
            tracing::warn!(path = %path.display(), %error, "cannot note what was brought home");
        }
    }
}
