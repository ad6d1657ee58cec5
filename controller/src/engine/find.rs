//! Finding tasks: by identifier, by name, all of them; and what is known of one.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt as _;
use tpi_proto::{
    fault::chain,
    id::{TaskId, normalize},
    spec::CloudName,
};
use tpi_store::{Store, layout};

use super::{
    Engine, EngineError, ErrorKind, ListEntry, ListReport, Located, REPORT_VERSION, StatusReport,
    facts::{self, Facts},
    give_up,
};
use crate::{cloud::GroupState, home::KnownTask, task::TaskState};

/// Where a task may be looked for.
#[derive(Debug, Clone)]
struct Place {
    cloud: CloudName,
    store: Store,
}

fn open(url: &url::Url) -> Result<Store, EngineError> {
    Store::open(url).map_err(EngineError::store(format!("opening the store {url}")))
}

/// The default store of every cloud that has one; tasks of others are found by what is noted here.
fn places(engine: &Engine) -> Result<Vec<Place>, EngineError> {
    let stores = engine.settings().clouds.names().filter_map(|cloud| {
        let url = engine.store_url(cloud).ok().filter(|url| Engine::may_keep(cloud, url))?;
        Some((cloud, url))
    });
    stores.map(|(cloud, url)| Ok(Place { cloud, store: open(&url)? })).collect()
}

fn not_found(text: &str) -> EngineError {
    EngineError::new(ErrorKind::NotFound, format!("there is no task {text:?}"))
        .hint("`tpi-controller list` shows the tasks that can be found from here")
}

pub(super) async fn locate(engine: &Engine, text: &str) -> Result<Located, EngineError> {
    let home = &engine.settings().home;
    if let Ok(id) = text.parse::<TaskId>() {
        let known = home.recall(&id).map_err(EngineError::home)?;
        return match find(engine, &id, known.as_ref()).await? {
            Some(located) => Ok(located),
            None => Err(not_found(text)),
        };
    }
    let wanted = normalize(text);
    if wanted.is_empty() {
        return Err(not_found(text));
    }
    let known: BTreeMap<TaskId, KnownTask> =
        home.known().map_err(EngineError::home)?.into_iter().map(|k| (k.id.clone(), k)).collect();
    let mut candidates: BTreeSet<TaskId> = known.keys().cloned().collect();
    for place in places(engine)? {
        candidates.extend(stored(&place.store).await?);
        candidates.extend(listed(engine, place.cloud).await?);
    }
    let mut found = Vec::new();
    for id in candidates.into_iter().filter(|id| id.name() == wanted) {
        if let Some(located) = find(engine, &id, known.get(&id)).await? {
            found.push(located);
        }
    }
    // The whole name decides where identifiers hold only its beginning.
    let exact = |l: &Located| l.record.as_ref().is_some_and(|r| r.spec.name == text);
    if found.len() > 1 && found.iter().filter(|l| exact(l)).count() == 1 {
        found.retain(exact);
    }
    match found.len() {
        0 => Err(not_found(text)),
        1 => found.pop().ok_or_else(|| not_found(text)),
        count => {
            let ids = found.iter().map(|l| l.id.to_string()).collect::<Vec<_>>().join(", ");
            Err(EngineError::new(ErrorKind::Ambiguous, format!("{count} tasks are called {text:?}"))
                .hint(format!("name one by its identifier: {ids}")))
        }
    }
}

/// `None` when neither a record, nor machines, nor anything else in the store can be found.
async fn find(
    engine: &Engine,
    id: &TaskId,
    known: Option<&KnownTask>,
) -> Result<Option<Located>, EngineError> {
    let known = known.map(|k| Ok(Place { cloud: k.cloud, store: open(&k.store)? })).transpose()?;
    let places = places(engine)?;
    // A store that is named now counts before the one that was noted when the task was submitted.
    let ordered: Vec<Place> = match &engine.settings().store {
        Some(_) => places.into_iter().chain(known).collect(),
        None => known.into_iter().chain(places).collect(),
    };
    let mut options: Vec<Place> = Vec::new();
    for place in ordered {
        if options.iter().all(|p| p.store.url() != place.store.url() || p.cloud != place.cloud) {
            options.push(place);
        }
    }
    for place in &options {
        if let Some((record, _)) = facts::read_record(&place.store, id).await? {
            return Ok(Some(Located {
                id: id.clone(),
                cloud: record.spec.cloud,
                store: place.store.clone(),
                record: Some(record),
            }));
        }
    }
    for place in options {
        if listed(engine, place.cloud).await?.contains(id) || has_objects(&place.store, id).await? {
            return Ok(Some(Located {
                id: id.clone(),
                cloud: place.cloud,
                store: place.store,
                record: None,
            }));
        }
    }
    Ok(None)
}

async fn has_objects(store: &Store, id: &TaskId) -> Result<bool, EngineError> {
    let first = store.list(layout::TaskKeys::new(id).root(), None).next().await;
    match first {
        None => Ok(false),
        Some(Ok(_)) => Ok(true),
        Some(Err(error)) => Err(EngineError::store(format!("looking for {id} in {}", store.url()))(error)),
    }
}

async fn stored(store: &Store) -> Result<Vec<TaskId>, EngineError> {
    let names = store
        .list_folders(layout::TASKS)
        .await
        .map_err(EngineError::store(format!("listing the tasks in {}", store.url())))?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

async fn listed(engine: &Engine, cloud: CloudName) -> Result<Vec<TaskId>, EngineError> {
    engine.cloud(cloud)?.list().await.map_err(|error| {
        EngineError::new(ErrorKind::Unreachable, format!("listing the tasks in {cloud}"))
            .because(error)
            .hint("run the same command again in a while")
    })
}

pub(super) async fn status(engine: &Engine, task: &Located) -> Result<StatusReport, EngineError> {
    let cloud = engine.cloud(task.cloud)?;
    let facts = Facts::read(&task.store, cloud.as_ref(), &task.id).await?;
    let facts = give_up::where_in_vain(&task.store, cloud.as_ref(), &task.id, facts).await?;
    if facts.record.is_none() && facts.machines().gone() {
        return Err(not_found(task.id.as_str()));
    }
    let mut warnings = Vec::new();
    let overdue = facts.overdue();
    if overdue {
        warnings.push(format!(
            "the deadline is over and machines are alive: `tpi-controller destroy {}` removes them",
            task.id
        ));
    }
    if facts.record.is_none() {
        warnings.push(format!(
            "the task's record is lost: `tpi-controller destroy {}` removes its machines",
            task.id
        ));
    }
    // What could not be had once does not matter where everything is there by now.
    let wanted = match facts.observed.group {
        GroupState::Active { size } => size,
        GroupState::Absent | GroupState::Ended => 0,
    };
    let missing = facts.machines().alive < wanted;
    let shortages = if missing { facts.observed.shortages.clone() } else { Vec::new() };
    warnings.extend(shortages.iter().map(|shortage| format!("{shortage} (it is tried again)")));
    Ok(StatusReport {
        version: REPORT_VERSION,
        id: task.id.clone(),
        cloud: task.cloud,
        store: task.store.url().clone(),
        state: facts.state(),
        intent: facts.record.as_ref().map(|r| r.intent),
        created: facts.record.as_ref().map(|r| r.created),
        deadline: facts.record.as_ref().and_then(|r| r.deadline),
        spec: facts.record.as_ref().map(|r| r.spec.clone()),
        group: facts.observed.group,
        proof: facts.proof(),
        shortages,
        overdue,
        slots: facts.slots,
        warnings,
    })
}

pub(super) async fn list(engine: &Engine) -> Result<ListReport, EngineError> {
    let (mut warnings, mut hints) = (Vec::new(), Vec::new());
    let mut warn = |error: &EngineError| {
        warnings.push(chain(error));
        for hint in &error.hints {
            // Many tasks may not be readable for one reason.
            if !hints.contains(hint) {
                hints.push(hint.clone());
            }
        }
    };
    let known = engine.settings().home.known().map_err(EngineError::home)?;
    let mut ids: BTreeSet<TaskId> = known.iter().map(|k| k.id.clone()).collect();
    let known: BTreeMap<TaskId, KnownTask> = known.into_iter().map(|k| (k.id.clone(), k)).collect();
    let (mut asked, mut failure) = (false, None);
    for place in places(engine)? {
        for found in [stored(&place.store).await, listed(engine, place.cloud).await] {
            match found {
                Ok(found) => {
                    asked = true;
                    ids.extend(found);
                }
                Err(error) => {
                    warn(&error);
                    failure = Some(error);
                }
            }
        }
    }
    if let (false, Some(error)) = (asked, failure) {
        return Err(error);
    }
    let mut tasks = Vec::new();
    for id in ids {
        let entry = async {
            let Some(located) = find(engine, &id, known.get(&id)).await? else { return Ok(None) };
            let cloud = engine.cloud(located.cloud)?;
            let facts = Facts::read(&located.store, cloud.as_ref(), &id).await?;
            let state = facts.state();
            if state == TaskState::Destroyed {
                return Err(EngineError::new(
                    ErrorKind::NotFound,
                    format!("{id} has objects in {} and no record", located.store.url()),
                )
                .hint(format!("to delete them: `tpi-controller destroy --discard {id}`")));
            }
            let record = facts.record.as_ref();
            Ok(Some(ListEntry {
                id: id.clone(),
                name: record.map_or_else(|| id.name().to_owned(), |r| r.spec.name.clone()),
                cloud: located.cloud,
                store: located.store.url().clone(),
                state,
                created: record.map(|r| r.created),
                deadline: record.and_then(|r| r.deadline),
                machines: facts.machines().alive,
            }))
        };
        match entry.await {
            Ok(Some(entry)) => tasks.push(entry),
            Ok(None) => {}
            Err(error) if error.hints.is_empty() => {
                warn(&error.hint(format!("to look at it alone: `tpi-controller status {id}`")));
            }
            Err(error) => warn(&error),
        }
    }
    // Newest first; without a record (`None` is the smallest) last.
    tasks.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
    Ok(ListReport { version: REPORT_VERSION, tasks, warnings, hints })
}
