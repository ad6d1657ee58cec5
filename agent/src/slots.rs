//! Taking a slot, and holding it.
//!
//! The slot's object in the store is both the lease and the status. One task, the [`Holder`], writes it, always
//! over the version that it wrote last: when that fails because of another version, another machine holds the
//! slot, and this one is fenced. A store that cannot be reached proves nothing: the holder keeps trying.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tpi_proto::{
    fault::chain,
    id::{Attempt, RunId, SlotIndex},
    machine::{MachineConfig, Timings},
    state::{Failure, Losses, Outcome, Phase, PhaseTiming, SlotState, SlotStatus},
};
use tpi_store::{Store, StoreError, StoreErrorKind, Version, layout::TaskKeys, record::StopRequest};

use crate::{
    clock::Clock,
    config::Paths,
    logs::recover::recover,
    losses::{self, Verdict},
    supervisor::{Concern, Event},
};

/// What claiming came to.
#[derive(Debug)]
pub(crate) enum Claimed {
    /// A slot is held.
    Held {
        /// As it was written.
        status: Box<SlotStatus>,
        /// Of that.
        version: Version,
    },
    /// A slot has lost too many machines: it has an outcome now, and no other machine.
    GivenUp {
        /// As it was written.
        status: Box<SlotStatus>,
    },
    /// There is nothing left to do.
    AllFinished,
    /// All slots are held by machines that are alive.
    NoneFree,
}

/// Looks for a slot until there is one, all have finished, or `give_up` is reached.
///
/// # Errors
/// The last error, when the store could not be read until `give_up`.
pub(crate) async fn claim(
    store: &Store,
    keys: &TaskKeys,
    config: &MachineConfig,
    clock: &Clock,
    started: Timestamp,
    give_up: Instant,
) -> Result<Claimed, StoreError> {
    let mut seen = HashMap::new();
    let pause = Timings::of(config.timings.lease_renew.clamp(50, 2_000));
    loop {
        let round = look(store, keys, config, clock, started, &mut seen).await;
        match round {
            Ok(Some(claimed)) => return Ok(claimed),
            Ok(None) if Instant::now() >= give_up => return Ok(Claimed::NoneFree),
            Err(error) if Instant::now() >= give_up => return Err(error),
            Ok(None) => {}
            Err(error) => tracing::warn!(error = chain(&error), "looking for a slot"),
        }
        tokio::time::sleep(pause).await;
    }
}

/// One round over all slots.
async fn look(
    store: &Store,
    keys: &TaskKeys,
    config: &MachineConfig,
    clock: &Clock,
    started: Timestamp,
    seen: &mut HashMap<SlotIndex, (Version, Instant)>,
) -> Result<Option<Claimed>, StoreError> {
    let mut finished = 0;
    for slot in (0..config.slots).map(SlotIndex) {
        let key = keys.slot(slot);
        let Some((found, version)) = store.get_json::<SlotStatus>(&key).await? else {
            let status = fresh(config, slot, Attempt(1), started, None, Losses::default());
            match store.create_json(&key, &status).await {
                Ok(version) => return Ok(Some(Claimed::Held { status: Box::new(status), version })),
                Err(error) if error.kind == StoreErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            }
        };
        let free = match &found.state {
            SlotState::Finished { .. } => {
                finished += 1;
                false
            }
            SlotState::Interrupted => true,
            // An agent of this very boot held it and is gone: only one runs at a time on a machine.
            SlotState::Active { .. } | SlotState::Stopping { .. } if found.machine == config.machine => true,
            SlotState::Active { .. } | SlotState::Stopping { .. } => {
                let now = Instant::now();
                let entry = seen.entry(slot).or_insert_with(|| (version.clone(), now));
                if entry.0 != version {
                    *entry = (version.clone(), now);
                }
                now.duration_since(entry.1) >= found.lease.ttl()
            }
        };
        if !free {
            continue;
        }
        let attempt = Attempt(found.attempt.0.saturating_add(1));
        let (status, given_up) = match losses::judge(&found) {
            Verdict::TakeOver { losses } => {
                (fresh(config, slot, attempt, started, found.saved, losses), false)
            }
            Verdict::GiveUp { losses, message } => {
                if found.machine == config.machine {
                    // What it said last is here, and explains most.
                    let own = RunId { slot, attempt };
                    recover(store, &config.task, &Paths::new(config).spool(), own).await;
                }
                (gone_for_good(config, found, losses, message, clock.now()), true)
            }
        };
        match store.update_json(&key, &status, &version).await {
            Ok(_) if given_up => return Ok(Some(Claimed::GivenUp { status: Box::new(status) })),
            Ok(version) => return Ok(Some(Claimed::Held { status: Box::new(status), version })),
            // Another machine was quicker.
            Err(error) if error.kind == StoreErrorKind::Conflict => {}
            Err(error) => return Err(error),
        }
    }
    Ok((finished == config.slots).then_some(Claimed::AllFinished))
}

fn fresh(
    config: &MachineConfig,
    slot: SlotIndex,
    attempt: Attempt,
    started: Timestamp,
    saved: Option<u64>,
    losses: Losses,
) -> SlotStatus {
    let boot = PhaseTiming {
        phase: Phase::Boot,
        started,
        ended: None,
        budget_seconds: config.timings.boot_budget.div_ceil(1000),
    };
    SlotStatus {
        phases: vec![boot],
        saved,
        losses,
        ..SlotStatus::claimed(RunId { slot, attempt }, config.machine.clone(), config.timings.lease_ttl)
    }
}

/// The last attempt as its machine left it, but for its end. The machine that finds it gone puts its own name there:
/// the other one may only be very slow, and must see that the slot is not its own any more.
fn gone_for_good(
    config: &MachineConfig,
    found: SlotStatus,
    losses: Losses,
    message: String,
    now: Timestamp,
) -> SlotStatus {
    let phase = found.phases.last().map_or(Phase::Boot, |timing| timing.phase);
    let outcome = Outcome::Failed { phase, failure: Failure::AgentLost, message };
    SlotStatus {
        machine: config.machine.clone(),
        generation: found.generation + 1,
        state: SlotState::Finished { outcome, at: now },
        losses,
        ..found
    }
}

/// Asks whether the slot is still held, by renewing it. For writes that must not come from a fenced machine.
#[derive(Debug, Clone)]
pub(crate) struct Fence {
    requests: mpsc::Sender<oneshot::Sender<()>>,
}

impl Fence {
    /// Returns once the slot was renewed; false when it is not ours any more.
    pub(crate) async fn confirm(&self) -> bool {
        let (reply, answer) = oneshot::channel();
        self.requests.send(reply).await.is_ok() && answer.await.is_ok()
    }
}

/// Holds the slot: renews it, and writes every change of the status.
#[derive(Debug)]
pub(crate) struct Holder {
    store: Store,
    keys: TaskKeys,
    version: Version,
    renewals: u64,
    renew: Duration,
    /// What is to be written.
    desired: watch::Receiver<Arc<SlotStatus>>,
    /// Generation that is in the store.
    written: watch::Sender<u64>,
    confirmations: mpsc::Receiver<oneshot::Sender<()>>,
    events: mpsc::Sender<Event>,
    stop_seen: bool,
}

impl Holder {
    /// For a slot that was claimed as `version`.
    pub(crate) fn new(
        store: Store,
        keys: TaskKeys,
        version: Version,
        timings: &Timings,
        desired: watch::Receiver<Arc<SlotStatus>>,
        events: mpsc::Sender<Event>,
    ) -> (Self, Fence, watch::Receiver<u64>) {
        let (written, seen) = watch::channel(1);
        let (requests, confirmations) = mpsc::channel(4);
        let renew = Timings::of(timings.lease_renew);
        let holder = Self {
            store,
            keys,
            version,
            renewals: 0,
            renew,
            desired,
            written,
            confirmations,
            events,
            stop_seen: false,
        };
        (holder, Fence { requests }, seen)
    }

    /// Until the last status is written, the slot is lost, or nobody wants it held any more.
    pub(crate) async fn run(mut self) {
        let mut due = tokio::time::Instant::now();
        loop {
            let mut waiting = None;
            tokio::select! {
                changed = self.desired.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(due) => {}
                Some(reply) = self.confirmations.recv() => waiting = Some(reply),
            }
            due = tokio::time::Instant::now() + self.renew;
            match self.write().await {
                Written::Held => {}
                Written::Last => return,
                Written::Lost => {
                    // The supervisor is gone only when it needs no telling.
                    drop(self.events.send(Event::Superseded).await);
                    return;
                }
            }
            if let Some(reply) = waiting {
                // Whoever asked may have been given up.
                let _gone = reply.send(());
            }
            self.look_for_stop().await;
        }
    }

    /// Writes the newest status, however long that takes.
    async fn write(&mut self) -> Written {
        let mut pause = Duration::from_millis(100);
        let mut troubled = false;
        loop {
            let mut status = SlotStatus::clone(&self.desired.borrow_and_update());
            self.renewals += 1;
            status.lease.renewals = self.renewals;
            let key = self.keys.slot(status.slot);
            let error = match self.store.update_json(&key, &status, &self.version).await {
                Ok(version) => {
                    self.version = version;
                    self.written.send_replace(status.generation);
                    if troubled {
                        self.concern(None).await;
                    }
                    let last = status.state.is_final() || status.state == SlotState::Interrupted;
                    return if last { Written::Last } else { Written::Held };
                }
                Err(error) => error,
            };
            if matches!(error.kind, StoreErrorKind::Conflict | StoreErrorKind::NotFound) {
                // Perhaps an earlier write of our own whose answer was lost.
                match self.store.get_json::<SlotStatus>(&key).await {
                    Ok(Some((found, version)))
                        if found.machine == status.machine && found.attempt == status.attempt =>
                    {
                        self.version = version;
                        continue;
                    }
                    Ok(_) => return Written::Lost,
                    Err(error) => tracing::warn!(error = chain(&error), "reading the slot back"),
                }
            }
            tracing::warn!(error = chain(&error), "renewing the slot");
            if !troubled {
                troubled = true;
                let text = format!("the status cannot be written to the store: {}", chain(&error));
                self.concern(Some(text)).await;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(self.renew);
        }
    }

    async fn look_for_stop(&mut self) {
        if self.stop_seen {
            return;
        }
        match self.store.get_json::<StopRequest>(&self.keys.stop()).await {
            Ok(Some((request, _))) => {
                self.stop_seen = true;
                let grace = request.grace_millis.map(Duration::from_millis);
                drop(self.events.send(Event::StopFound { grace }).await);
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(error = chain(&error), "looking for a request to stop"),
        }
    }

    async fn concern(&self, text: Option<String>) {
        // The supervisor is gone only when nobody is to be told any more.
        drop(self.events.send(Event::Concern { concern: Concern::Store, text }).await);
    }
}

enum Written {
    Held,
    Last,
    Lost,
}
