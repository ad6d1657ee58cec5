//! Destroy: intent, stop, last saves, results home and verified, machines removed, proof, store emptied.
//!
//! Nothing that the user asked to keep is deleted before it is home and verified. What is done next is decided
//! from what is in the store and in the cloud, so a destroy that was cut off is finished by another one.

use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use tpi_proto::{
    machine::Timings,
    state::{Phase, SlotState, SlotStatus},
};
use tpi_store::{
    StoreErrorKind,
    layout::TaskKeys,
    record::{Intent, TaskRecord},
};

use super::{
    DestroyOptions, DestroyReport, Engine, EngineError, ErrorKind, Located, Observer, Progress, PullReport,
    REPORT_VERSION, Step, StopOptions,
    facts::{self, Change, Facts, proof},
    hook::{Moment, reached},
    pull, stop,
};
use crate::{
    cloud::{Cloud, Observed},
    task::{Action, Done},
};

/// Longest time for a cloud to show that nothing is left.
const PROOF_PATIENCE: Duration = Duration::from_secs(60);
/// Longest time for machines to be seen claiming the slots they were started for.
const SETTLE: Duration = Duration::from_secs(1);

struct Destruction<'a> {
    engine: &'a Engine,
    task: &'a Located,
    options: &'a DestroyOptions,
    observer: &'a dyn Observer,
    cloud: &'a dyn Cloud,
    keys: TaskKeys,
    warnings: Vec<String>,
}

pub(super) async fn destroy(
    engine: &Engine,
    task: &Located,
    options: &DestroyOptions,
    observer: &dyn Observer,
) -> Result<DestroyReport, EngineError> {
    let cloud = engine.cloud(task.cloud)?;
    let work = Destruction {
        engine,
        task,
        options,
        observer,
        cloud: cloud.as_ref(),
        keys: TaskKeys::new(&task.id),
        warnings: Vec::new(),
    };
    work.run().await
}

impl Destruction<'_> {
    fn begin(&self, step: Step) {
        self.observer.progress(Progress::Step { step });
        reached(Moment::Before, step);
    }

    async fn run(mut self) -> Result<DestroyReport, EngineError> {
        let task = self.task;
        let mut done = Done::default();
        let mut results = None;
        let mut seen: Option<Observed> = None;
        // Why machines ended, where the cloud does not say.
        let mut slots = Vec::new();
        let mut objects_deleted = 0;
        let created = self.intent().await?;
        if created.is_none() {
            self.warnings.push("the task's record is lost: only machines can be removed".to_owned());
        }
        let mut waiting = Waiting::new();
        // What the step before has just learned is not asked for again; whose record it is, is.
        let (mut same, mut looked): (Option<Facts>, Option<Observed>) = (None, None);
        loop {
            let facts = match (same.take(), looked.take()) {
                (Some(facts), _) => facts,
                (None, Some(observed)) => Facts::read_beside(&task.store, &task.id, observed).await?,
                (None, None) => {
                    let read = Facts::read_what_can_be(&task.store, self.cloud, &task.id).await?;
                    match read {
                        (facts, None) => facts,
                        (_, Some(error)) => return Err(EngineError::unproved(&task.id)(error)),
                    }
                }
            };
            if !facts.slots.is_empty() {
                slots.clone_from(&facts.slots);
            }
            // A record that was made since belongs to a new task of the same name: not ours to destroy.
            let record = facts.record.as_ref().filter(|r| Some(r.created) == created);
            if created.is_some() && record.is_none() {
                self.warnings.push("another program has destroyed the task meanwhile".to_owned());
                break;
            }
            match facts.next(done) {
                Action::StopSlots => {
                    self.begin(Step::Stop);
                    let (_asked, _left) =
                        stop::ask(self.engine, task, &facts.slots, StopOptions::default(), self.observer)
                            .await?;
                    done.stop_asked = true;
                    reached(Moment::After, Step::Stop);
                }
                Action::AwaitSaves => {
                    if waiting.begun.is_none() {
                        self.begin(Step::Saves);
                    }
                    let unwanted = !self.wants_results(record) && script_is_over(&facts.slots);
                    done.patience_over = unwanted || waiting.is_over(&facts, self.observer);
                    if unwanted {
                        reached(Moment::After, Step::Saves);
                    } else if done.patience_over {
                        self.warnings.push(
                            "a machine did not end in time: its newest saved results are used".to_owned(),
                        );
                        reached(Moment::After, Step::Saves);
                    } else {
                        tokio::time::sleep(stop::POLL).await;
                    }
                }
                Action::SecureResults => {
                    if waiting.begun.is_some() && !done.patience_over {
                        reached(Moment::After, Step::Saves);
                    }
                    results = self.results(record, &facts.slots).await?;
                    done.results = true;
                    looked = Some(facts.observed);
                }
                Action::RemoveMachines => {
                    self.begin(Step::Remove);
                    let gone = self.cloud.destroy(&task.id).await.map_err(EngineError::unproved(&task.id))?;
                    done.removed = true;
                    seen = Some(gone.clone());
                    same = Some(Facts { observed: gone, ..facts });
                    reached(Moment::After, Step::Remove);
                }
                Action::Prove => {
                    let proved = self.prove(seen).await?;
                    done.proved = true;
                    looked = Some(proved.clone());
                    seen = Some(proved);
                }
                Action::EraseStore => {
                    objects_deleted = self.erase().await?;
                    break;
                }
                Action::Rest if created.is_none() => {
                    let gone = self.cloud.destroy(&task.id).await.map_err(EngineError::unproved(&task.id))?;
                    seen = Some(self.prove(Some(gone)).await?);
                    objects_deleted = self.leftovers().await?;
                    break;
                }
                action @ (Action::StoreEnvironment
                | Action::StoreWorkspace
                | Action::StoreAgent
                | Action::PublishClient
                | Action::StartClock
                | Action::EnsureMachines
                | Action::GiveUp
                | Action::Wait
                | Action::Rest) => {
                    return Err(EngineError::new(
                        ErrorKind::Internal,
                        format!("{action:?} came up while {task} was being destroyed"),
                    )
                    .of(&task.id)
                    .hint(format!("run `tpi-controller destroy {task}` again")));
                }
            }
        }
        let observed = match seen {
            Some(observed) => observed,
            None => self.cloud.observe(&task.id).await.map_err(EngineError::unproved(&task.id))?,
        };
        let proof = proof(&observed, &slots, Timestamp::now());
        self.forget();
        Ok(DestroyReport {
            version: REPORT_VERSION,
            id: task.id.clone(),
            results,
            proof,
            objects_deleted,
            warnings: self.warnings,
        })
    }

    /// When the record was created, which tells it from that of a later task; `None` when there is none.
    async fn intent(&self) -> Result<Option<Timestamp>, EngineError> {
        self.begin(Step::Intent);
        let record = facts::change_record(&self.task.store, &self.task.id, |record| match record.intent {
            Intent::Destroy => Ok(Change::Keep),
            Intent::Submit | Intent::Run => {
                record.intent = Intent::Destroy;
                Ok(Change::Write)
            }
        })
        .await?;
        reached(Moment::After, Step::Intent);
        Ok(record.map(|r| r.created))
    }

    /// Whether anything is to be brought home.
    fn wants_results(&self, record: Option<&TaskRecord>) -> bool {
        self.options.to.is_some() || record.is_some_and(|record| record.spec.storage.output.is_some())
    }

    async fn results(
        &mut self,
        record: Option<&TaskRecord>,
        slots: &[SlotStatus],
    ) -> Result<Option<PullReport>, EngineError> {
        let Some(record) = record else { return Ok(None) };
        reached(Moment::Before, Step::Results);
        let to = self.options.to.as_deref();
        let pulled = if !self.wants_results(Some(record)) {
            Ok(None)
        } else {
            pull::bring_home(self.engine, self.task, record, slots, to, self.observer).await.map(Some)
        };
        reached(Moment::During, Step::Results);
        let pulled = match pulled {
            Ok(pulled) => pulled,
            Err(error) if self.options.discard => {
                self.warnings.push(format!("results are given up: {error}"));
                None
            }
            Err(error) => {
                // Another program may have brought them home and erased the rest.
                if facts::read_record(&self.task.store, &self.task.id).await?.is_none() {
                    return Ok(None);
                }
                return Err(error.of(&self.task.id).hint(format!(
                    "to give the results up: `tpi-controller destroy --discard {}`",
                    self.task
                )));
            }
        };
        if let Some(pulled) = &pulled {
            self.warnings.extend(pulled.warnings.iter().cloned());
        }
        reached(Moment::After, Step::Results);
        Ok(pulled)
    }

    /// Asks the cloud until it shows nothing any more; clouds take a while to agree with themselves.
    async fn prove(&self, removed: Option<Observed>) -> Result<Observed, EngineError> {
        self.begin(Step::Proof);
        let task = &self.task.id;
        let begun = Instant::now();
        loop {
            let looked = futures::future::try_join(self.cloud.observe(task), self.cloud.list()).await;
            let (observed, listed) = looked.map_err(EngineError::unproved(task))?;
            let listed = listed.contains(task);
            if observed.is_gone() && !listed {
                reached(Moment::After, Step::Proof);
                // What the cloud has forgotten meanwhile is still in the answer to destroy.
                return Ok(match removed {
                    Some(removed) if observed.machines.is_empty() => removed,
                    Some(_) | None => observed,
                });
            }
            if begun.elapsed() > PROOF_PATIENCE {
                let left: Vec<String> = observed.alive().map(|m| m.id.to_string()).collect();
                return Err(EngineError::new(
                    ErrorKind::LeftBehind,
                    if left.is_empty() {
                        format!("{} still lists {task}", self.task.cloud)
                    } else {
                        format!("machines of {task} are still alive: {}", left.join(", "))
                    },
                )
                .of(task)
                .hint(format!("run `tpi-controller destroy {task}` again")));
            }
            tokio::time::sleep(stop::POLL).await;
        }
    }

    /// Everything but the record, then the record: as long as anything is left, the task can be found.
    async fn erase(&self) -> Result<u64, EngineError> {
        self.begin(Step::Erase);
        let store = &self.task.store;
        let record = self.keys.record();
        let erasing = || format!("deleting what {} has in the store", self.task);
        let root = format!("{}/", self.keys.root());
        let deleted = store
            .list(&root, None)
            .try_filter(|object| std::future::ready(object.key != record))
            .map(|object| async {
                match object {
                    Ok(object) => store.delete(&object.key).await.map(|()| 1u64),
                    Err(error) => Err(error),
                }
            })
            .buffer_unordered(16)
            .try_fold(0u64, |sum, one| std::future::ready(Ok(sum + one)))
            .await
            .map_err(EngineError::store(erasing()))?;
        reached(Moment::During, Step::Erase);
        store.delete(&record).await.map_err(EngineError::store(erasing()))?;
        reached(Moment::After, Step::Erase);
        Ok(deleted + 1)
    }

    /// Without a record nobody knows what the user wanted to keep.
    async fn leftovers(&mut self) -> Result<u64, EngineError> {
        let store = &self.task.store;
        let looking = || format!("looking for what {} has in the store", self.task);
        if self.options.discard {
            return store.delete_prefix(self.keys.root()).await.map_err(EngineError::store(looking()));
        }
        let root = format!("{}/", self.keys.root());
        let mut objects = store.list(&root, None);
        match objects.next().await {
            None => {}
            Some(Ok(_)) => self.warnings.push(format!(
                "objects of the task are still in {} below {root}: `tpi-controller destroy --discard {}` deletes them",
                store.url(),
                self.task
            )),
            Some(Err(error)) if error.kind == StoreErrorKind::NotFound => {}
            Some(Err(error)) => return Err(EngineError::store(looking())(error)),
        }
        Ok(0)
    }

    /// What this computer remembers of the task; losing it harms nobody, so it never fails a destroy.
    fn forget(&self) {
        let home = &self.engine.settings().home;
        if let Err(error) = home.forget(&self.task.id) {
            tracing::warn!(%error, "cannot forget a task");
        }
        drop(std::fs::remove_dir_all(home.pulled_dir().join(self.task.id.as_str())));
    }
}

/// Whether every slot has ended or is at its last save: the scripts had the time they were given to end.
fn script_is_over(slots: &[SlotStatus]) -> bool {
    let over = |slot: &SlotStatus| {
        let saves = slot.phases.iter().any(|timing| match timing.phase {
            Phase::Save | Phase::Release => true,
            Phase::Boot | Phase::Prepare | Phase::Restore | Phase::Run => false,
        });
        slot.state.is_final() || saves
    };
    !slots.is_empty() && slots.iter().all(over)
}

/// Waiting for slots to end: as long as their machines show that they live, and never longer than they may
/// take by their own budgets.
struct Waiting {
    begun: Option<Instant>,
    /// When each slot's renewals were last seen to rise.
    renewed: std::collections::BTreeMap<u32, (u64, Instant)>,
}

impl Waiting {
    fn new() -> Self {
        Self { begun: None, renewed: std::collections::BTreeMap::new() }
    }

    fn is_over(&mut self, facts: &Facts, observer: &dyn Observer) -> bool {
        let now = Instant::now();
        let open: Vec<&SlotStatus> = facts.slots.iter().filter(|s| !s.state.is_final()).collect();
        let begun = match self.begun {
            Some(begun) => begun,
            None => {
                observer.progress(Progress::WaitingForSlots { slots: open.iter().map(|s| s.slot).collect() });
                *self.begun.insert(now)
            }
        };
        let grace = facts.record.as_ref().map_or(Duration::ZERO, |r| r.spec.grace());
        if now.duration_since(begun) > grace + Timings::of(Timings::default().save_budget) {
            return true;
        }
        let mut living = false;
        for slot in &open {
            let (renewals, at) = self.renewed.entry(slot.slot.0).or_insert((slot.lease.renewals, now));
            if *renewals != slot.lease.renewals {
                (*renewals, *at) = (slot.lease.renewals, now);
            }
            let held = match slot.state {
                SlotState::Active { .. } | SlotState::Stopping { .. } => true,
                // Another machine will take it over, find the request to stop and end it.
                SlotState::Interrupted => now.duration_since(begun) < 3 * slot.lease.ttl(),
                SlotState::Finished { .. } => false,
            };
            living |= held && now.duration_since(*at) <= 3 * slot.lease.ttl();
        }
        // Slots that no machine has claimed have nothing to save.
        !living && now.duration_since(begun) > SETTLE
    }
}
