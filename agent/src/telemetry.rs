//! The machine's load: sampled once a second for the whole run, on a thread of its own.
//!
//! A probe that fails or hangs costs samples, never the task.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream::BoxStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tpi_proto::fault::chain;
use tpi_proto::id::{RunId, TaskId};
use tpi_store::{
    Store, StoreError,
    layout::TaskKeys,
    telemetry::{Sample, encode_segment, read_stored},
};

use crate::clock::Clock;

mod gpu;
mod host;

/// Time between two samples.
const PERIOD: Duration = Duration::from_secs(1);
/// Samples kept in memory, stored or not: an hour.
const RING: usize = 3_600;
/// Samples in one segment, at most a minute's.
const SEGMENT: usize = 60;
/// Most samples in one batch.
const BATCH: usize = 600;

#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    /// Sequence number that comes next.
    next: u64,
    complete: bool,
}

#[derive(Debug)]
struct Shared {
    ring: Mutex<VecDeque<Sample>>,
    progress: watch::Sender<Progress>,
}

impl Shared {
    fn ring(&self) -> MutexGuard<'_, VecDeque<Sample>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, make: impl FnOnce(u64) -> Sample) {
        let next = self.progress.borrow().next;
        {
            let mut ring = self.ring();
            if ring.len() == RING {
                ring.pop_front();
            }
            ring.push_back(make(next));
        }
        self.progress.send_modify(|p| p.next = next + 1);
    }

    /// Samples from a number on, as far as they are in memory; and the oldest number that is.
    fn from(&self, sequence: u64, most: usize) -> (u64, Vec<Sample>) {
        let ring = self.ring();
        let oldest = ring.front().map_or(0, |s| s.sequence);
        let skip = usize::try_from(sequence.saturating_sub(oldest)).unwrap_or(usize::MAX);
        (oldest, ring.iter().skip(skip).take(most).cloned().collect())
    }
}

/// Makes streams. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reader {
    shared: Arc<Shared>,
    store: Store,
    task: TaskId,
    run: RunId,
}

impl Reader {
    /// Samples from `sequence` on: older ones from the store, then those in memory, then live ones (no
    /// polling). Ends after the last sample of the run. Batches are never empty.
    #[must_use]
    pub fn stream(&self, sequence: u64) -> BoxStream<'static, Result<Vec<Sample>, StoreError>> {
        let cursor = Cursor {
            reader: self.clone(),
            progress: self.shared.progress.subscribe(),
            next: sequence,
            stored: None,
            failed: false,
        };
        futures::stream::unfold(cursor, |mut cursor| async move {
            let item = cursor.next().await?;
            cursor.failed = item.is_err();
            Some((item, cursor))
        })
        .boxed()
    }
}

struct Cursor {
    reader: Reader,
    progress: watch::Receiver<Progress>,
    next: u64,
    stored: Option<BoxStream<'static, Result<Sample, StoreError>>>,
    failed: bool,
}

impl Cursor {
    async fn next(&mut self) -> Option<Result<Vec<Sample>, StoreError>> {
        loop {
            if self.failed {
                return None;
            }
            let seen = *self.progress.borrow_and_update();
            if self.next >= seen.next {
                if seen.complete || self.progress.changed().await.is_err() {
                    return None;
                }
                continue;
            }
            let (oldest, mut samples) = self.reader.shared.from(self.next, BATCH);
            if self.next < oldest {
                let Reader { store, task, run, .. } = &self.reader;
                let next = self.next;
                let stored = self.stored.get_or_insert_with(|| read_stored(store, task, *run, next));
                samples = match stored.next().await {
                    Some(Ok(sample)) if sample.sequence >= self.next => vec![sample],
                    Some(Ok(_)) => continue,
                    Some(Err(error)) => return Some(Err(error)),
                    // They never reached the store: go on with what there is.
                    None => {
                        self.next = oldest;
                        continue;
                    }
                };
            }
            if let Some(last) = samples.last() {
                self.next = last.sequence + 1;
                return Some(Ok(samples));
            }
        }
    }
}

/// Samples the machine.
#[derive(Debug)]
pub(crate) struct Sampler {
    shared: Arc<Shared>,
    store: Store,
    task: TaskId,
    run: RunId,
    clock: Clock,
    disk: PathBuf,
    /// Oldest samples that are not in the store.
    flush: Duration,
}

impl Sampler {
    /// For the disk that `disk` is on.
    pub(crate) fn new(
        store: Store,
        task: TaskId,
        run: RunId,
        clock: Clock,
        disk: PathBuf,
        flush: Duration,
    ) -> (Self, Reader) {
        let shared = Arc::new(Shared { ring: Mutex::default(), progress: watch::Sender::default() });
        let reader = Reader { shared: Arc::clone(&shared), store: store.clone(), task: task.clone(), run };
        (Self { shared, store, task, run, clock, disk, flush }, reader)
    }

    /// Samples until told to stop, then stores what is left and ends.
    pub(crate) async fn run(self, stop: CancellationToken) {
        // Beside each other: a store that hangs costs no samples.
        tokio::join!(self.sample(stop), self.keep());
    }

    async fn sample(&self, stop: CancellationToken) {
        let mut probe = Some(host::Probe::new(self.disk.clone()));
        let gpus = gpu::Watcher::start();
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = stop.cancelled() => break,
            }
            let Some(mut host) = probe.take() else { continue };
            let looked = tokio::task::spawn_blocking(move || {
                let load = host.look();
                (host, load)
            });
            // A probe that hangs blocks its thread, not this task: samples stop, the rest goes on.
            let load = tokio::select! {
                looked = looked => match looked {
                    Ok((host, load)) => {
                        probe = Some(host);
                        load
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the machine's load cannot be read any more");
                        continue;
                    }
                },
                () = stop.cancelled() => break,
            };
            let time_unix_nanos = self.clock.now_nanos();
            let cards = gpus.latest();
            self.shared.push(|sequence| load.into_sample(sequence, time_unix_nanos, cards));
        }
        self.shared.progress.send_modify(|p| p.complete = true);
    }

    async fn keep(&self) {
        let mut progress = self.shared.progress.subscribe();
        let mut stored = 0;
        // Segments hold half a minute as a rule: telemetry is looked at live, or afterwards.
        let flush = self.flush.max(PERIOD) * 6;
        loop {
            let enough = progress.wait_for(|p| p.complete || p.next - stored >= SEGMENT as u64);
            // Either is a reason to go on.
            drop(tokio::time::timeout(flush, enough).await);
            let complete = progress.borrow().complete;
            let kept = self.store_from(&mut stored).await;
            if complete {
                return;
            }
            if !kept {
                tokio::time::sleep(PERIOD * 5).await;
            }
        }
    }

    /// Stores what is not stored yet. What fails is tried again next time, as long as the ring has it.
    async fn store_from(&self, stored: &mut u64) -> bool {
        loop {
            let (oldest, samples) = self.shared.from(*stored, SEGMENT);
            *stored = (*stored).max(oldest);
            let (Some(first), Some(last)) = (samples.first(), samples.last()) else { return true };
            let key =
                TaskKeys::new(&self.task).telemetry_segment(self.run.slot, self.run.attempt, first.sequence);
            let segment = match encode_segment(&samples) {
                Ok(segment) => segment,
                Err(error) => {
                    tracing::warn!(%error, "making a telemetry segment");
                    return false;
                }
            };
            if let Err(error) = self.store.put(&key, segment).await {
                tracing::warn!(error = chain(&error), "storing telemetry");
                return false;
            }
            *stored = last.sequence + 1;
        }
    }
}
