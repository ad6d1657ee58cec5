//! Saving the work directory while the script runs, and restoring it.
//!
//! A save is complete in itself: content first, then one manifest that commits the generation. Only changed files
//! are read and sent. Before the commit the slot is renewed, so a machine that was replaced cannot commit.
//!
//! Between saves, what old ones left behind is taken away ([`Collector`], whose safety rests on how it is done here:
//! the slot is claimed before the newest generation is looked for, commits are numbered one after the other, and a
//! push writes to a folder with a number above all that were committed).

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt;
use tokio::sync::{mpsc, oneshot};
use tpi_proto::{
    fault::chain,
    id::{RunId, SlotIndex, TaskId},
};
use tpi_store::{
    Store, StoreErrorKind,
    layout::TaskKeys,
    rules::Rules,
    snapshot::{
        Collector, Existing, Manifest, OutsideLinks, PushOptions, Quiet, RestoreOptions, RestoreReport,
        SnapshotError, Space, plan, push, restore,
    },
};

use crate::{
    slots::Fence,
    supervisor::{Concern, Event},
};

/// How long a save is kept after it was replaced, for those who are reading it.
pub(crate) const GRACE: Duration = Duration::from_secs(3600);
/// Shortest pause between two looks for saves that may go.
const COLLECT: Duration = Duration::from_secs(60);
/// Tries of a last save whose failure will hardly go away.
const TRIES: u32 = 3;
/// Longest pause between two saves of a folder that takes long to look through.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Why saving or restoring failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SaveError {
    /// The snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The manifest or its key.
    #[error(transparent)]
    Store(#[from] tpi_store::StoreError),
    /// Another machine holds the slot.
    #[error("another machine holds the slot")]
    Fenced,
}

impl SaveError {
    /// Whether it may go away: the network, credentials being renewed, a full disk being cleared.
    fn may_pass(&self) -> bool {
        match self {
            Self::Store(error) | Self::Snapshot(SnapshotError::Store(error)) => match error.kind {
                StoreErrorKind::Unavailable
                | StoreErrorKind::Unauthenticated
                | StoreErrorKind::NoSpace
                | StoreErrorKind::Conflict
                | StoreErrorKind::AlreadyExists
                | StoreErrorKind::NotFound
                | StoreErrorKind::Other => true,
                StoreErrorKind::PermissionDenied | StoreErrorKind::Corrupt | StoreErrorKind::Unsupported => {
                    false
                }
            },
            Self::Snapshot(SnapshotError::NoSpace { .. }) => true,
            Self::Snapshot(
                SnapshotError::File { .. } | SnapshotError::Unsafe { .. } | SnapshotError::Damaged { .. },
            )
            | Self::Fenced => false,
        }
    }
}

/// What was restored.
#[derive(Debug)]
pub(crate) struct Restored {
    /// Its manifest; absent when the task began with an empty folder.
    pub(crate) manifest: Option<Arc<Manifest>>,
    /// Newest generation there is of this slot.
    pub(crate) generation: Option<u64>,
    /// What it took.
    pub(crate) report: RestoreReport,
}

/// Fills an empty work directory with the newest save of the slot, or with what was submitted.
pub(crate) async fn restore_newest(
    store: &Store,
    task: &TaskId,
    slot: SlotIndex,
    work: &std::path::Path,
    input_stored: bool,
) -> Result<Restored, SaveError> {
    let keys = TaskKeys::new(task);
    let file = |operation, source| SnapshotError::File { operation, path: work.to_owned(), source };
    match tokio::fs::remove_dir_all(work).await {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(file("emptying", error).into()),
    }
    tokio::fs::create_dir_all(work).await.map_err(|e| file("making", e))?;
    let generations = generations(store, &keys, slot).await?;
    let newest = generations.last().copied();
    let key = match newest {
        Some(generation) => Some(keys.saved_generation(slot, generation)),
        None => input_stored.then(|| keys.input()),
    };
    let Some(key) = key else {
        return Ok(Restored { manifest: None, generation: None, report: RestoreReport::default() });
    };
    let manifest = Manifest::from_bytes(&store.get(&key).await?)?;
    let options = RestoreOptions {
        only: None,
        rules: Rules::everything(),
        existing: Existing::Replace,
        outside_links: OutsideLinks::Keep,
        base: None,
    };
    let report = restore(store, &manifest, work, &options, &Quiet).await?;
    Ok(Restored { manifest: Some(Arc::new(manifest)), generation: newest, report })
}

async fn generations(store: &Store, keys: &TaskKeys, slot: SlotIndex) -> Result<Vec<u64>, SaveError> {
    let mut found = Vec::new();
    let mut listing = store.list(&keys.saved(slot), None);
    while let Some(object) = listing.next().await {
        let key = object?.key;
        found.extend(TaskKeys::generation(&key));
    }
    found.sort_unstable();
    Ok(found)
}

/// What the saver is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// Save now, without waiting for the next turn.
    Now,
    /// Save for the last time; answered when that is done or hopeless. The saver ends.
    Last(oneshot::Sender<Result<(), String>>),
}

/// What to do about a work directory that still is what was sent.
#[derive(Debug, Clone, Copy)]
enum Unchanged {
    /// Nothing: it is in the store.
    Skip,
    /// Commit it as the first generation, so that every slot that ended in order has results to bring home.
    Commit,
}

/// Saves one work directory.
#[derive(Debug)]
pub(crate) struct Saver {
    pub(crate) store: Store,
    pub(crate) task: TaskId,
    pub(crate) run: RunId,
    pub(crate) work: PathBuf,
    pub(crate) base: Option<Arc<Manifest>>,
    pub(crate) generation: Option<u64>,
    pub(crate) interval: Duration,
    pub(crate) fence: Fence,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) collector: Collector,
}

impl Saver {
    /// Saves whenever something changed, until the last save or until nobody commands.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut troubled = false;
        let mut due = tokio::time::Instant::now() + self.interval;
        let mut collected = None;
        loop {
            let waiting = async {
                self.collect(&mut collected).await;
                tokio::time::sleep_until(due).await;
            };
            let command = tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => command,
                    None => return,
                },
                () = waiting => Command::Now,
            };
            match command {
                Command::Now => {
                    let began = Instant::now();
                    let result = self.save(Unchanged::Skip).await;
                    self.report(&mut troubled, &result).await;
                    // A folder that takes long to look through is looked at less often.
                    let pause = self.interval.max((began.elapsed() * 4).min(LONGEST_PAUSE));
                    due = tokio::time::Instant::now() + pause;
                }
                Command::Last(reply) => {
                    let result = self.save_last(&mut troubled).await;
                    // Given up meanwhile when nobody listens.
                    drop(reply.send(result.map_err(|e| chain(&e))));
                    return;
                }
            }
        }
    }

    async fn save_last(&mut self, troubled: &mut bool) -> Result<(), SaveError> {
        let mut pause = Duration::from_millis(200);
        let mut tries = 0;
        loop {
            let result = self.save(Unchanged::Commit).await;
            self.report(troubled, &result).await;
            let Err(error) = result else { return Ok(()) };
            tries += 1;
            if tries >= TRIES && !error.may_pass() {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(10));
        }
    }

    async fn report(&self, troubled: &mut bool, result: &Result<(), SaveError>) {
        let text = match result {
            Ok(()) => None,
            Err(error) => Some(format!("the work directory could not be saved: {}", chain(error))),
        };
        if text.is_some() || *troubled {
            *troubled = text.is_some();
            // The supervisor is gone only when nobody is to be told any more.
            drop(self.events.send(Event::Concern { concern: Concern::Save, text }).await);
        }
    }

    /// One save, if anything changed since the last.
    async fn save(&mut self, unchanged: Unchanged) -> Result<(), SaveError> {
        let options = PushOptions {
            rules: Rules::everything(),
            space: Space::Save { task: self.task.clone(), run: self.run, save: self.next_generation() },
            // The base remembers what this process has seen of the files.
            index: None,
            base: self.base.clone(),
        };
        let plan = plan(&self.store, &self.work, options, &Quiet).await?;
        let wanted = match unchanged {
            Unchanged::Skip => false,
            Unchanged::Commit => self.generation.is_none(),
        };
        if !wanted && plan.is_base() {
            return Ok(());
        }
        let sent = async {
            let manifest = push(&self.store, plan, &Quiet).await?;
            Ok((self.commit(&manifest).await?, manifest))
        };
        let (generation, manifest) = match sent.await {
            Ok(sent) => sent,
            Err(error) => {
                self.collector.failed();
                return Err(error);
            }
        };
        self.collector.committed(generation, &manifest);
        self.generation = Some(generation);
        self.base = Some(Arc::new(manifest));
        drop(self.events.send(Event::Saved { generation }).await);
        Ok(())
    }

    fn next_generation(&self) -> u64 {
        self.generation.map_or(1, |g| g + 1)
    }

    async fn commit(&self, manifest: &Manifest) -> Result<u64, SaveError> {
        let keys = TaskKeys::new(&self.task);
        let content = manifest.to_bytes();
        let mut generation = self.next_generation();
        loop {
            if !self.fence.confirm().await {
                return Err(SaveError::Fenced);
            }
            let key = keys.saved_generation(self.run.slot, generation);
            match self.store.create(&key, content.clone()).await {
                Ok(_) => return Ok(generation),
                // An earlier try of ours whose answer was lost: the slot was confirmed, so nobody else writes here.
                Err(error) if error.kind == StoreErrorKind::AlreadyExists => {
                    if self.store.get(&key).await? == content {
                        return Ok(generation);
                    }
                    generation += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes away saves that nobody will need any more, once in a while. Failing is harmless: it is tried again.
    async fn collect(&mut self, last: &mut Option<Instant>) {
        if !self.collector.is_due() || last.is_some_and(|last| last.elapsed() < COLLECT) {
            return;
        }
        match self.collector.collect().await {
            Ok(collected) => tracing::debug!(?collected, "old saves"),
            Err(error) => tracing::warn!(error = chain(&error), "taking old saves away"),
        }
        *last = Some(Instant::now());
    }
}
