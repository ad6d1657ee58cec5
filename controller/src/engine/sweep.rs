//! Sweep: what nobody wants any more, found by the mark that everything carries, without any note of ours.
//!
//! A task is wanted as long as its record is there and its deadline is not over. Whether the record is there is looked
//! up where the thing itself says, then in every store that is known here; a store that cannot be read leaves the
//! answer open, and nothing is removed on a guess. What runs past its deadline is removed whoever wants it; what a
//! task has in its store is not, as long as there is a record.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use tpi_proto::{fault::chain, id::TaskId, spec::CloudName};
use tpi_store::{
    Store, StoreErrorKind,
    layout::{self, TaskKeys},
};
use url::Url;

use super::{Engine, EngineError, REPORT_VERSION, RecordState, SweepReport, SweptThing, Verdict, facts};
use crate::cloud::{Cloud, Leftover, Regions, ResourceKind};

/// How to sweep.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SweepOptions {
    /// Which clouds; none: all that this build carries.
    pub clouds: Vec<CloudName>,
    /// Where.
    pub regions: Regions,
    /// Leave alone what is younger, or of unknown age.
    pub older_than: Option<Duration>,
    /// Only what belongs to this task: an identifier, or a name.
    pub task: Option<String>,
    /// Remove what nobody wants; else it is only told.
    pub remove: bool,
    /// Delete saved results of tasks whose record is lost, too.
    pub discard: bool,
}

/// What is known of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Record {
    There { deadline: Option<Timestamp> },
    Absent,
    Unknown,
}

fn judge(record: Record, kind: ResourceKind, deadline: Option<Timestamp>, now: Timestamp) -> Verdict {
    let over = |deadline: Option<Timestamp>| deadline.is_some_and(|deadline| deadline <= now);
    match record {
        Record::Absent => Verdict::Orphaned,
        // A record is what says whose objects they are.
        Record::There { .. } if kind == ResourceKind::Objects => Verdict::Wanted,
        // A later task of the same name has the same marks: its own deadline counts.
        Record::There { deadline } if over(deadline) => Verdict::Overdue,
        Record::There { .. } => Verdict::Wanted,
        Record::Unknown if kind != ResourceKind::Objects && over(deadline) => Verdict::Overdue,
        Record::Unknown => Verdict::Unknown,
    }
}

/// Everything of one cloud.
struct Swept<'a> {
    engine: &'a Engine,
    options: &'a SweepOptions,
    cloud: &'a dyn Cloud,
    /// Stores that are known here, with the tasks in them; `None` for what could not be listed.
    stores: Vec<(Store, Option<BTreeSet<TaskId>>)>,
    warnings: Vec<String>,
}

pub(super) async fn sweep(engine: &Engine, options: &SweepOptions) -> Result<SweepReport, EngineError> {
    let mut things = Vec::new();
    let (mut warnings, mut asked, mut failure) = (Vec::new(), false, None);
    let clouds: Vec<_> = engine.settings().clouds.all().collect();
    for cloud in clouds {
        if !options.clouds.is_empty() && !options.clouds.contains(&cloud.name()) {
            continue;
        }
        let mut swept =
            Swept { engine, options, cloud: cloud.as_ref(), stores: Vec::new(), warnings: Vec::new() };
        match swept.run().await {
            Ok(found) => {
                asked = true;
                things.extend(found);
            }
            Err(error) => {
                warnings.push(chain(&error));
                failure = Some(error);
            }
        }
        warnings.extend(swept.warnings);
    }
    if let (false, Some(error)) = (asked, failure) {
        return Err(error);
    }
    let count = |is: &dyn Fn(&SweptThing) -> bool| {
        u32::try_from(things.iter().filter(|thing| is(thing)).count()).unwrap_or(u32::MAX)
    };
    let removed = count(&|thing| thing.removed);
    let left = count(&|thing| thing.verdict.is_unwanted() && !thing.removed);
    Ok(SweepReport { version: REPORT_VERSION, things, removed, left, warnings })
}

impl Swept<'_> {
    async fn run(&mut self) -> Result<Vec<SweptThing>, EngineError> {
        let name = self.cloud.name();
        let looking = || format!("looking for what is left in {name}");
        let regions = &self.options.regions;
        let found = self.cloud.survey(regions).await.map_err(EngineError::of_cloud(looking()))?;
        self.stores().await?;
        let mut all: Vec<Leftover> = found.into_iter().filter(|thing| self.is_meant(&thing.task)).collect();
        all.extend(self.objects().await);

        let now = Timestamp::now();
        let mut by_task: BTreeMap<TaskId, Vec<Leftover>> = BTreeMap::new();
        for thing in all {
            by_task.entry(thing.task.clone()).or_default().push(thing);
        }
        let mut swept = Vec::new();
        for (task, things) in by_task {
            let record = self.record(&task, &things).await;
            let too_young = self.is_too_young(&things, now);
            for thing in things {
                let mut verdict = judge(record, thing.kind, thing.deadline, now);
                let orphan = verdict == Verdict::Orphaned && thing.kind == ResourceKind::Objects;
                if orphan && self.keeps(&thing).await {
                    verdict = Verdict::Results;
                }
                let verdict = if too_young && verdict.is_unwanted() { Verdict::Young } else { verdict };
                swept.push(SweptThing {
                    cloud: name,
                    age_seconds: thing.created.map(|at| now.duration_since(at).as_secs_f64().max(0.0)),
                    overdue: thing.deadline.is_some_and(|deadline| deadline <= now),
                    record: match record {
                        Record::There { .. } => RecordState::Present,
                        Record::Absent => RecordState::Absent,
                        Record::Unknown => RecordState::Unknown,
                    },
                    thing,
                    verdict,
                    removed: false,
                });
            }
        }
        if self.options.remove {
            self.remove(&mut swept).await;
        }
        Ok(swept)
    }

    fn is_meant(&self, task: &TaskId) -> bool {
        let wanted = self.options.task.as_deref();
        wanted.is_none_or(|text| task.as_str() == text || task.name() == tpi_proto::id::normalize(text))
    }

    /// A task is as young as its youngest thing.
    fn is_too_young(&self, things: &[Leftover], now: Timestamp) -> bool {
        let Some(least) = self.options.older_than else { return false };
        let least = SignedDuration::try_from(least).unwrap_or(SignedDuration::MAX);
        let youngest = things.iter().filter_map(|thing| thing.created).max();
        youngest.is_none_or(|created| now.duration_since(created) < least)
    }

    /// Opens every store that may have records of this cloud, and lists the tasks in it.
    async fn stores(&mut self) -> Result<(), EngineError> {
        let name = self.cloud.name();
        let mut urls: BTreeSet<Url> = BTreeSet::new();
        // Roles are of no region: their records may be elsewhere than where machines are looked for.
        let everywhere = [self.options.regions.clone(), Regions::Usual];
        let asked = if self.options.regions == Regions::Usual { &everywhere[..1] } else { &everywhere[..] };
        for regions in asked {
            match self.engine.stores(self.cloud, regions).await {
                Ok(own) => urls.extend(own),
                Err(error) => self.warnings.push(chain(&error)),
            }
        }
        let noted = self.engine.settings().home.known().map_err(EngineError::home)?;
        urls.extend(noted.into_iter().filter(|known| known.cloud == name).map(|known| known.store));
        for url in urls {
            let store = self.engine.open(&url).await?;
            let listed = match store.list_folders(layout::TASKS).await {
                Ok(names) => Some(names.iter().filter_map(|name| name.parse().ok()).collect()),
                // A bucket that is gone has no records.
                Err(error) if error.kind == StoreErrorKind::Unsupported => Some(BTreeSet::new()),
                Err(error) => {
                    self.warnings.push(format!("listing the tasks in {url}: {}", chain(&error)));
                    None
                }
            };
            self.stores.push((store, listed));
        }
        Ok(())
    }

    /// What lies in stores without a record.
    async fn objects(&mut self) -> Vec<Leftover> {
        let mut found = Vec::new();
        let mut warnings = Vec::new();
        for (store, tasks) in &self.stores {
            for task in tasks.iter().flatten().filter(|task| self.is_meant(task)) {
                match facts::read_record(store, task).await {
                    Ok(Some(_)) => continue,
                    Ok(None) => {}
                    Err(error) => {
                        warnings.push(chain(&error));
                        continue;
                    }
                }
                let root = TaskKeys::new(task).root().to_owned();
                match store.list(&root, None).next().await {
                    None => {}
                    Some(Ok(first)) => found.push(Leftover {
                        kind: ResourceKind::Objects,
                        id: format!("{}/{root}/", store.url().as_str().trim_end_matches('/')),
                        region: None,
                        task: task.clone(),
                        created: Some(first.modified),
                        deadline: None,
                        store: Some(store.url().clone()),
                        usd_per_hour: None,
                    }),
                    Some(Err(error)) => warnings.push(chain(&error)),
                }
            }
        }
        self.warnings.extend(warnings);
        found
    }

    /// Whether there are results in it, which only who gives them up may delete.
    async fn keeps(&self, objects: &Leftover) -> bool {
        if self.options.discard {
            return false;
        }
        let store = self.stores.iter().find(|(store, _)| Some(store.url()) == objects.store.as_ref());
        let Some((store, _)) = store else { return true };
        // What cannot be looked at may be results.
        store.list(&TaskKeys::new(&objects.task).all_saved(), None).next().await.is_some()
    }

    async fn record(&mut self, task: &TaskId, things: &[Leftover]) -> Record {
        let told: BTreeSet<&Url> = things
            .iter()
            .filter(|thing| thing.kind != ResourceKind::Objects)
            .filter_map(|thing| thing.store.as_ref())
            .collect();
        let mut open = false;
        for url in &told {
            let looked = match self.engine.open(url).await {
                Ok(store) => look(&store, task).await,
                Err(error) => Err(error),
            };
            match looked {
                Ok(Some(record)) => return record,
                Ok(None) => {}
                Err(error) => {
                    open = true;
                    self.warnings.push(chain(&error));
                }
            }
        }
        for (store, tasks) in &self.stores {
            match tasks {
                Some(tasks) if !tasks.contains(task) => {}
                Some(_) => match look(store, task).await {
                    Ok(Some(record)) => return record,
                    Ok(None) => {}
                    Err(_) => open = true,
                },
                // It was told when it was listed. Who says where the record is, is believed.
                None => open |= told.is_empty(),
            }
        }
        if open { Record::Unknown } else { Record::Absent }
    }

    async fn remove(&mut self, swept: &mut [SweptThing]) {
        let doomed = |thing: &&SweptThing| match thing.verdict {
            Verdict::Orphaned | Verdict::Overdue => true,
            Verdict::Wanted | Verdict::Unknown | Verdict::Young | Verdict::Results => false,
        };
        let tasks: BTreeSet<TaskId> =
            swept.iter().filter(doomed).map(|thing| thing.thing.task.clone()).collect();
        let mut gone: BTreeSet<String> = BTreeSet::new();
        for task in &tasks {
            let of_task: Vec<Leftover> = swept
                .iter()
                .filter(doomed)
                .filter(|thing| thing.thing.task == *task)
                .map(|thing| thing.thing.clone())
                .collect();
            let (objects, rest): (Vec<Leftover>, Vec<Leftover>) =
                of_task.into_iter().partition(|thing| thing.kind == ResourceKind::Objects);
            if !rest.is_empty()
                && let Err(error) = self.cloud.remove(&rest).await
            {
                self.warnings.push(chain(&error));
                continue;
            }
            for thing in objects {
                let store = self.stores.iter().find(|(store, _)| Some(store.url()) == thing.store.as_ref());
                let Some((store, _)) = store else { continue };
                match store.delete_prefix(TaskKeys::new(task).root()).await {
                    Ok(_count) => drop(gone.insert(thing.id)),
                    Err(error) => self.warnings.push(chain(&error)),
                }
            }
        }
        // What is removed is what is not there any more.
        let left: Option<Vec<Leftover>> = match self.cloud.survey(&self.options.regions).await {
            Ok(left) => Some(left),
            Err(error) => {
                self.warnings.push(chain(&error));
                None
            }
        };
        for thing in swept.iter_mut().filter(|thing| doomed(&&**thing)) {
            let same = |other: &Leftover| {
                (other.kind, &other.id, &other.region)
                    == (thing.thing.kind, &thing.thing.id, &thing.thing.region)
            };
            thing.removed = match thing.thing.kind {
                ResourceKind::Objects => gone.contains(&thing.thing.id),
                ResourceKind::Machine
                | ResourceKind::Volume
                | ResourceKind::ScalingGroup
                | ResourceKind::Schedule
                | ResourceKind::LaunchTemplate
                | ResourceKind::SecurityGroup
                | ResourceKind::Role
                | ResourceKind::InstanceProfile
                | ResourceKind::Policy => left.as_ref().is_some_and(|left| !left.iter().any(same)),
            };
        }
    }
}

async fn look(store: &Store, task: &TaskId) -> Result<Option<Record>, EngineError> {
    match facts::read_record(store, task).await {
        Ok(found) => Ok(found.map(|(record, _)| Record::There { deadline: record.deadline })),
        Err(error) if facts::is_no_bucket(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_can_want_is_unwanted() {
        let at = |second| Timestamp::from_second(second).ok();
        let now = at(100).expect("in range");
        let (before, after) = (at(99), at(101));
        let machine = ResourceKind::Machine;
        for (record, kind, deadline, expected) in [
            (Record::Absent, machine, after, Verdict::Orphaned),
            (Record::Absent, ResourceKind::Objects, None, Verdict::Orphaned),
            (Record::There { deadline: after }, machine, after, Verdict::Wanted),
            // Of an earlier task of the same name.
            (Record::There { deadline: after }, machine, before, Verdict::Wanted),
            // It is being submitted.
            (Record::There { deadline: None }, machine, before, Verdict::Wanted),
            (Record::There { deadline: before }, machine, before, Verdict::Overdue),
            (Record::There { deadline: before }, ResourceKind::Objects, None, Verdict::Wanted),
            (Record::Unknown, machine, after, Verdict::Unknown),
            (Record::Unknown, machine, None, Verdict::Unknown),
            (Record::Unknown, machine, before, Verdict::Overdue),
            (Record::Unknown, ResourceKind::Objects, before, Verdict::Unknown),
        ] {
            assert_eq!(judge(record, kind, deadline, now), expected, "{record:?} {kind} {deadline:?}");
        }
    }
}
