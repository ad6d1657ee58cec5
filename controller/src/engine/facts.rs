//! Reading what is known of a task, and changing its record.

use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use tpi_proto::{
    id::TaskId,
    state::{STATUS_VERSION, SlotStatus},
};
use tpi_store::{
    Store, StoreErrorKind, Version,
    layout::TaskKeys,
    record::{Intent, RECORD_VERSION, StopRequest, TaskRecord},
};

use super::{EngineError, ErrorKind, Proof, ProofLine};
use crate::{
    cloud::{Cloud, GroupState, Observed},
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
    pub(super) now: Timestamp,
}

impl Facts {
    /// Reads everything. A part that cannot be read is an error, never an empty answer.
    pub(super) async fn read(store: &Store, cloud: &dyn Cloud, task: &TaskId) -> Result<Self, EngineError> {
        let mut facts = Self::in_store(store, task).await?;
        facts.ask(cloud, task).await?;
        Ok(facts)
    }

    /// The same for who submits: a cloud is asked only once machines may have been ordered. A real one takes its
    /// time, and what is done before that does not depend on its answer.
    pub(super) async fn read_to_submit(
        store: &Store,
        cloud: &dyn Cloud,
        task: &TaskId,
    ) -> Result<Self, EngineError> {
        let mut facts = Self::in_store(store, task).await?;
        if facts.record.as_ref().is_none_or(|record| record.intent != Intent::Submit) {
            facts.ask(cloud, task).await?;
        }
        Ok(facts)
    }

    async fn ask(&mut self, cloud: &dyn Cloud, task: &TaskId) -> Result<(), EngineError> {
        self.observed = cloud.observe(task).await.map_err(EngineError::cloud(task))?;
        self.now = Timestamp::now();
        Ok(())
    }

    async fn in_store(store: &Store, task: &TaskId) -> Result<Self, EngineError> {
        let record = read_record(store, task).await?.map(|(record, _)| record);
        // Slots before machines: a machine that is seen alive may have ended its slot since, never the reverse.
        let slots = read_slots(store, task).await?;
        let keys = TaskKeys::new(task);
        let stop_requested = store
            .get_json::<StopRequest>(&keys.stop())
            .await
            .map_err(EngineError::store(format!("reading whether {task} shall stop")))?
            .is_some();
        Ok(Self { record, slots, stop_requested, observed: Observed::absent(), now: Timestamp::now() })
    }

    pub(super) fn machines(&self) -> Machines {
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
        proof(&self.observed, self.now)
    }

    /// Whether machines live although the deadline is over.
    pub(super) fn overdue(&self) -> bool {
        let late = self.record.as_ref().and_then(|r| r.deadline).is_some_and(|d| self.now >= d);
        late && self.machines().alive > 0
    }
}

pub(super) fn proof(observed: &Observed, now: Timestamp) -> Proof {
    let machines: Vec<ProofLine> = observed
        .machines
        .iter()
        .map(|m| {
            let seconds = m.ended.unwrap_or(now).duration_since(m.launched).as_secs_f64().max(0.0);
            ProofLine {
                machine: m.id.clone(),
                launched: m.launched,
                ended: m.ended,
                end: m.end,
                seconds,
                usd: m.usd_per_hour.map(|rate| rate * seconds / 3600.0),
            }
        })
        .collect();
    Proof {
        nothing_left: observed.alive().next().is_none()
            && !matches!(observed.group, GroupState::Active { .. }),
        checked: now,
        seconds: machines.iter().map(|m| m.seconds).sum(),
        usd: machines.iter().map(|m| m.usd).sum(),
        machines,
    }
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
    mut decide: impl FnMut(&mut TaskRecord) -> Result<Change, EngineError>,
) -> Result<Option<TaskRecord>, EngineError> {
    let key = TaskKeys::new(task).record();
    loop {
        let Some((mut record, version)) = read_record(store, task).await? else { return Ok(None) };
        match decide(&mut record)? {
            Change::Keep => return Ok(Some(record)),
            Change::Write => {}
        }
        WRITER.clone_into(&mut record.writer);
        match store.update_json(&key, &record, &version).await {
            Ok(_version) => return Ok(Some(record)),
            Err(error) if error.kind == StoreErrorKind::Conflict => {}
            Err(error) => {
                return Err(EngineError::store(format!("writing the record of {task}"))(error));
            }
        }
    }
}
