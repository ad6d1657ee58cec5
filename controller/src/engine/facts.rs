//! Reading what is known of a task, and changing its record.

use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use tpi_proto::{
    fault::chain,
    id::TaskId,
    state::{STATUS_VERSION, SlotState, SlotStatus},
};
use tpi_store::{
    Store, StoreError, StoreErrorKind, Version,
    layout::TaskKeys,
    record::{RECORD_VERSION, StopRequest, TaskRecord},
};

use super::{EngineError, ErrorKind, Proof, ProofLine};
use crate::{
    cloud::{Cloud, CloudError, GroupState, Machine, MachineEnd, Observed},
    task::{self, Action, Done, Machines, TaskState},
};

/// Name and version of this program, for records.
pub(super) const WRITER: &str = concat!("tpi-controller ", env!("CARGO_PKG_VERSION"));

/// All that is known of a task at one time. Not one moment: the parts are read one after the other, and every
/// decision made from them is idempotent.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) record: Option<TaskRecord>,
    pub(super) slots: Vec<SlotStatus>,
    pub(super) stop_requested: bool,
    pub(super) observed: Observed,
    /// Why the cloud could not be asked; then nothing is known of machines.
    pub(super) blind: Option<String>,
    pub(super) now: Timestamp,
}

impl Facts {
    /// Reads everything. A part that cannot be read is an error, never an empty answer.
    pub(super) async fn read(store: &Store, cloud: &dyn Cloud, task: &TaskId) -> Result<Self, EngineError> {
        let mut facts = Self::in_store(store, task).await?;
        facts.ask(cloud, task).await?;
        Ok(facts)
    }

    /// The same for who looks only: what the store says is told even where the cloud cannot be asked. With the
    /// cloud's error.
    pub(super) async fn read_what_can_be(
        store: &Store,
        cloud: &dyn Cloud,
        task: &TaskId,
    ) -> Result<(Self, Option<CloudError>), EngineError> {
        let mut facts = Self::in_store(store, task).await?;
        let asked = cloud.observe(task).await;
        facts.now = Timestamp::now();
        match asked {
            Ok(observed) => {
                facts.observed = observed;
                Ok((facts, None))
            }
            Err(error) => {
                facts.blind = Some(chain(&error));
                Ok((facts, Some(error)))
            }
        }
    }

    /// Of a task that is being submitted: what the record says is all there is. A slot, a request to stop and a
    /// machine can be there only once machines were ordered.
    pub(super) fn before_machines(record: TaskRecord) -> Self {
        Self {
            record: Some(record),
            slots: Vec::new(),
            stop_requested: false,
            observed: Observed::absent(),
            blind: None,
            now: Timestamp::now(),
        }
    }

    /// With machines that have just been seen.
    pub(super) async fn read_beside(
        store: &Store,
        task: &TaskId,
        observed: Observed,
    ) -> Result<Self, EngineError> {
        let facts = Self::in_store(store, task).await?;
        Ok(Self { observed, now: Timestamp::now(), ..facts })
    }

    async fn ask(&mut self, cloud: &dyn Cloud, task: &TaskId) -> Result<(), EngineError> {
        self.observed = cloud.observe(task).await.map_err(EngineError::cloud(task))?;
        self.now = Timestamp::now();
        Ok(())
    }

    async fn in_store(store: &Store, task: &TaskId) -> Result<Self, EngineError> {
        let keys = TaskKeys::new(task);
        let stop = async {
            let found = store.get_json::<StopRequest>(&keys.stop()).await;
            found.map_err(EngineError::store(format!("reading whether {task} shall stop")))
        };
        // Slots before machines: a machine that is seen alive may have ended its slot since, never the reverse.
        let (record, slots, stop) =
            futures::future::try_join3(read_record(store, task), read_slots(store, task), stop).await?;
        let (record, stop_requested) = (record.map(|(record, _)| record), stop.is_some());
        Ok(Self {
            record,
            slots,
            stop_requested,
            observed: Observed::absent(),
            blind: None,
            now: Timestamp::now(),
        })
    }

    pub(super) fn machines(&self) -> Machines {
        if self.blind.is_some() {
            // As many as the slots speak of, and more may come.
            let working = self.slots.iter().filter(|slot| !slot.state.is_final()).count();
            let alive = u32::try_from(working).unwrap_or(u32::MAX);
            return Machines { group: true, alive, seen: true, ended: false };
        }
        Machines {
            group: matches!(self.observed.group, GroupState::Active { .. }),
            alive: u32::try_from(self.observed.alive().count()).unwrap_or(u32::MAX),
            seen: !self.observed.machines.is_empty(),
            ended: self.observed.group == GroupState::Ended,
        }
    }

    pub(super) fn state(&self) -> TaskState {
        task::derive(self.record.as_ref(), &self.slots, self.machines(), self.stop_requested, self.now)
    }

    pub(super) fn next(&self, done: Done) -> Action {
        task::next_action(
            self.record.as_ref(),
            &self.slots,
            self.machines(),
            self.stop_requested,
            done,
            self.now,
        )
    }

    pub(super) fn proof(&self) -> Proof {
        let proof = proof(&self.observed, &self.slots, self.now);
        match &self.blind {
            None => proof,
            Some(why) => Proof { nothing_left: false, unproved: Some(why.clone()), ..proof },
        }
    }

    /// Whether machines live although the deadline is over.
    pub(super) fn overdue(&self) -> bool {
        let late = self.record.as_ref().and_then(|r| r.deadline).is_some_and(|d| self.now >= d);
        late && self.machines().alive > 0
    }
}

/// What a machine's own slot says of its end, where the cloud is silent.
fn end_by_slot(slots: &[SlotStatus], machine: &Machine) -> Option<MachineEnd> {
    // Slots name their newest machine only: of earlier ones nothing is said.
    let slot = slots.iter().find(|slot| slot.machine == machine.id)?;
    match &slot.state {
        // It went after its work was done.
        SlotState::Finished { .. } => Some(MachineEnd::Released),
        SlotState::Interrupted | SlotState::Active { .. } | SlotState::Stopping { .. } => {
            Some(MachineEnd::Lost)
        }
    }
}

pub(super) fn proof(observed: &Observed, slots: &[SlotStatus], now: Timestamp) -> Proof {
    let machines: Vec<ProofLine> = observed
        .machines
        .iter()
        .map(|m| {
            let seconds = m.ended.unwrap_or(now).duration_since(m.launched).as_secs_f64().max(0.0);
            ProofLine {
                machine: m.id.clone(),
                launched: m.launched,
                ended: m.ended,
                end: m.end.or_else(|| m.ended.and_then(|_| end_by_slot(slots, m))),
                seconds,
                usd: m.usd_per_hour.map(|rate| rate * seconds / 3600.0),
            }
        })
        .collect();
    Proof {
        unproved: None,
        nothing_left: observed.alive().next().is_none()
            && !matches!(observed.group, GroupState::Active { .. }),
        checked: now,
        seconds: machines.iter().map(|m| m.seconds).sum(),
        usd: machines.iter().map(|m| m.usd).sum(),
        machines,
    }
}

/// Whether a record could not be read because its whole bucket is not there: then there is none.
pub(super) fn is_no_bucket(error: &EngineError) -> bool {
    let source = error.source.as_ref().and_then(|source| source.downcast_ref::<StoreError>());
    source.is_some_and(|source| source.kind == StoreErrorKind::Unsupported)
}

/// Refuses the record of a newer program.
pub(super) async fn read_record(
    store: &Store,
    task: &TaskId,
) -> Result<Option<(TaskRecord, Version)>, EngineError> {
    let found = store
        .get_json::<TaskRecord>(&TaskKeys::new(task).record())
        .await
        .map_err(EngineError::store(format!("reading the record of {task}")))?;
    if let Some((record, _)) = &found
        && record.version > RECORD_VERSION
    {
        return Err(EngineError::new(
            ErrorKind::User,
            format!(
                "the record of {task} has version {}, newer than this program's {RECORD_VERSION}",
                record.version
            ),
        )
        .of(task)
        .hint(format!("it was written by {}: use that version or a newer one", record.writer)));
    }
    Ok(found)
}

pub(super) async fn read_slots(store: &Store, task: &TaskId) -> Result<Vec<SlotStatus>, EngineError> {
    let keys: Vec<String> = store
        .list(&TaskKeys::new(task).slots(), None)
        .map_ok(|object| object.key)
        .try_collect()
        .await
        .map_err(EngineError::store(format!("listing the slots of {task}")))?;
    let mut slots: Vec<SlotStatus> = futures::stream::iter(keys)
        .map(|key| async move { store.get_json::<SlotStatus>(&key).await })
        .buffer_unordered(16)
        .try_filter_map(|found| async move { Ok(found.map(|(status, _)| status)) })
        .try_collect()
        .await
        .map_err(EngineError::store(format!("reading the slots of {task}")))?;
    if let Some(newer) = slots.iter().find(|s| s.version > STATUS_VERSION) {
        return Err(EngineError::new(
            ErrorKind::User,
            format!("slot {} of {task} has version {}, newer than this program's", newer.slot, newer.version),
        )
        .of(task)
        .hint("use a newer version of tpi-controller"));
    }
    slots.sort_by_key(|s| s.slot);
    Ok(slots)
}

/// What a change of a record comes to.
#[derive(Debug)]
pub(super) enum Change {
    /// Write it.
    Write,
    /// It is as it should be.
    Keep,
}

/// Changes the record by compare-and-swap, as often as somebody else is faster. `decide` sees the newest
/// record each time, and may refuse.
pub(super) async fn change_record(
    store: &Store,
    task: &TaskId,
    decide: impl FnMut(&mut TaskRecord) -> Result<Change, EngineError>,
) -> Result<Option<TaskRecord>, EngineError> {
    Ok(change_known(store, task, None, decide).await?.map(|(record, _)| record))
}

/// [`change_record`] of a record that is known already; it is read only when it is another one by now.
pub(super) async fn change_known(
    store: &Store,
    task: &TaskId,
    mut known: Option<(TaskRecord, Version)>,
    mut decide: impl FnMut(&mut TaskRecord) -> Result<Change, EngineError>,
) -> Result<Option<(TaskRecord, Version)>, EngineError> {
    let key = TaskKeys::new(task).record();
    loop {
        let found = match known.take() {
            Some(known) => Some(known),
            None => read_record(store, task).await?,
        };
        let Some((mut record, version)) = found else { return Ok(None) };
        match decide(&mut record)? {
            Change::Keep => return Ok(Some((record, version))),
            Change::Write => {}
        }
        WRITER.clone_into(&mut record.writer);
        match store.update_json(&key, &record, &version).await {
            Ok(version) => return Ok(Some((record, version))),
            Err(error) if error.kind == StoreErrorKind::Conflict => {}
            Err(error) => {
                return Err(EngineError::store(format!("writing the record of {task}"))(error));
            }
        }
    }
}
