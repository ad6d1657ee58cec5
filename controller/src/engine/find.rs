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
use crate::{
    cloud::{GroupState, Regions},
    home::KnownTask,
    task::TaskState,
};

/// Where a task may be looked for.
#[derive(Debug, Clone)]
struct Place {
    cloud: CloudName,
    store: Store,
}

/// The clouds' own stores, or the one that is named; tasks elsewhere are found by what is noted here, and by what is
/// written on their machines. With what could not be asked.
async fn places(engine: &Engine) -> (Vec<Place>, Vec<EngineError>) {
    let (mut places, mut errors) = (Vec::new(), Vec::new());
    let clouds: Vec<_> = engine.settings().clouds.all().collect();
    let stores = clouds.iter().map(|cloud| engine.stores(cloud.as_ref(), &Regions::Usual));
    let stores = futures::future::join_all(stores).await;
    for (cloud, urls) in clouds.iter().zip(stores) {
        match urls {
            Ok(urls) => {
                for url in urls {
                    match engine.open(&url).await {
                        Ok(store) => places.push(Place { cloud: cloud.name(), store }),
                        Err(error) => errors.push(error),
                    }
                }
            }
            Err(error) => errors.push(error),
        }
    }
    (places, errors)
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
    // Those that are known here first: elsewhere is looked only where none of them is meant.
    let noted = known.values().filter(|known| known.id.name() == wanted);
    let noted = futures::future::join_all(noted.map(async |known| {
        let store = engine.open(&known.store).await?;
        recorded(&Place { cloud: known.cloud, store }, &known.id).await
    }));
    let noted: Vec<Located> = match engine.settings().store {
        // Unless another store is named now.
        Some(_) => Vec::new(),
        None => noted.await.into_iter().filter_map(Result::ok).flatten().collect(),
    };
    if !noted.is_empty() {
        return one_of(text, noted);
    }
    let mut candidates: BTreeSet<TaskId> = known.keys().cloned().collect();
    let (places, mut errors) = places(engine).await;
    for tasks in futures::future::join_all(places.iter().map(|place| stored(&place.store))).await {
        match tasks {
            Ok(tasks) => candidates.extend(tasks),
            Err(error) => errors.push(error),
        }
    }
    let clouds: BTreeSet<CloudName> = places.iter().map(|place| place.cloud).collect();
    for tasks in futures::future::join_all(clouds.into_iter().map(|cloud| listed(engine, cloud))).await {
        match tasks {
            Ok(tasks) => candidates.extend(tasks),
            Err(error) => errors.push(error),
        }
    }
    let mut found = Vec::new();
    for id in candidates.into_iter().filter(|id| id.name() == wanted) {
        match find_in(engine, &id, known.get(&id), Some(&places)).await {
            Ok(located) => found.extend(located),
            Err(error) => errors.push(error),
        }
    }
    // What cannot be asked does not hide what is found elsewhere; where nothing is found it may be there.
    if found.is_empty()
        && let Some(error) = errors.into_iter().next()
    {
        return Err(error);
    }
    one_of(text, found)
}

/// The one that is meant by a name.
fn one_of(text: &str, mut found: Vec<Located>) -> Result<Located, EngineError> {
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
    find_in(engine, id, known, None).await
}

/// [`find`] with the places that have been asked for already.
async fn find_in(
    engine: &Engine,
    id: &TaskId,
    known: Option<&KnownTask>,
    places_known: Option<&[Place]>,
) -> Result<Option<Located>, EngineError> {
    let mut options: Vec<Place> = Vec::new();
    let noted = match known {
        Some(known) => Some(Place { cloud: known.cloud, store: engine.open(&known.store).await? }),
        None => None,
    };
    // A store that is named now counts before the one that was noted when the task was submitted. Others are not
    // even looked for when the record is where it was noted.
    if engine.settings().store.is_none()
        && let Some(noted) = &noted
    {
        if let Some(located) = recorded(noted, id).await? {
            return Ok(Some(located));
        }
        options.push(noted.clone());
    }
    let (others, errors) = match places_known {
        Some(places) => (places.to_vec(), Vec::new()),
        None => places(engine).await,
    };
    for place in others.into_iter().chain(noted) {
        if options.iter().any(|p| p.store.url() == place.store.url() && p.cloud == place.cloud) {
            continue;
        }
        if let Some(located) = recorded(&place, id).await? {
            return Ok(Some(located));
        }
        options.push(place);
    }
    for place in &options {
        if !listed(engine, place.cloud).await?.contains(id) {
            continue;
        }
        // What is there of it says where its record is.
        if let Some(told) = told_by_things(engine, place.cloud, id).await? {
            return Ok(Some(told));
        }
        let (cloud, store) = (place.cloud, place.store.clone());
        return Ok(Some(Located { id: id.clone(), cloud, store, record: None }));
    }
    for place in options {
        if has_objects(&place.store, id).await? {
            let Place { cloud, store } = place;
            return Ok(Some(Located { id: id.clone(), cloud, store, record: None }));
        }
    }
    // Nowhere else; where it could not be looked for, it may be.
    errors.into_iter().next().map_or(Ok(None), Err)
}

async fn recorded(place: &Place, id: &TaskId) -> Result<Option<Located>, EngineError> {
    let found = facts::read_record(&place.store, id).await?;
    Ok(found.map(|(record, _)| Located {
        id: id.clone(),
        cloud: record.spec.cloud,
        store: place.store.clone(),
        record: Some(record),
    }))
}

/// The record in a store that is known only from what carries the task's mark.
async fn told_by_things(
    engine: &Engine,
    cloud: CloudName,
    id: &TaskId,
) -> Result<Option<Located>, EngineError> {
    let things = engine.cloud(cloud)?.survey(&Regions::Usual).await;
    let things =
        things.map_err(EngineError::of_cloud(format!("looking at what there is of {id} in {cloud}")))?;
    let urls: BTreeSet<url::Url> =
        things.into_iter().filter(|thing| thing.task == *id).filter_map(|thing| thing.store).collect();
    for url in urls {
        let place = Place { cloud, store: engine.open(&url).await? };
        match recorded(&place, id).await {
            Ok(Some(located)) => return Ok(Some(located)),
            Ok(None) => {}
            // Without it the machines can still be removed.
            Err(error) => tracing::warn!(store = %url, error = %chain(&error), "the record cannot be read"),
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
    let (facts, blind) = Facts::read_what_can_be(&task.store, cloud.as_ref(), &task.id).await?;
    let facts = match blind {
        None => give_up::where_in_vain(&task.store, cloud.as_ref(), &task.id, facts).await?,
        Some(_) => facts,
    };
    if facts.record.is_none() {
        if let Some(error) = blind {
            return Err(EngineError::unproved(&task.id)(error));
        }
        if facts.machines().gone() {
            return Err(not_found(task.id.as_str()));
        }
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
        group: facts.blind.is_none().then_some(facts.observed.group),
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
    let (places, errors) = places(engine).await;
    let clouds: BTreeSet<CloudName> = places.iter().map(|place| place.cloud).collect();
    let stored = futures::future::join_all(places.iter().map(|place| stored(&place.store)));
    let listed = futures::future::join_all(clouds.into_iter().map(|cloud| listed(engine, cloud)));
    let (stored, listed) = futures::future::join(stored, listed).await;
    for found in stored.into_iter().chain(listed).chain(errors.into_iter().map(Err)) {
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
    if let (false, Some(error)) = (asked, failure) {
        return Err(error);
    }
    let mut tasks = Vec::new();
    for id in ids {
        let entry = async {
            let found = find_in(engine, &id, known.get(&id), Some(&places)).await?;
            let Some(located) = found else { return Ok(None) };
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
