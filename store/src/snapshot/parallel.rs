//! Work on many files at once, on threads that may block.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinSet;

use super::{Progress, SnapshotError};

/// Bytes that were handled, and whether anybody still wants them.
#[derive(Debug, Default)]
pub(super) struct Meter {
    bytes: AtomicU64,
    cancelled: AtomicBool,
}

impl Meter {
    pub(super) fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// An error once nobody waits any more.
    pub(super) fn check(&self) -> io::Result<()> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "given up"));
        }
        Ok(())
    }
}

/// Ends the workers soon after their work is no longer waited for: threads cannot be aborted.
struct CancelOnDrop(Arc<Meter>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancelled.store(true, Ordering::Relaxed);
    }
}

pub(super) fn joined<T>(result: Result<T, tokio::task::JoinError>) -> Result<T, SnapshotError> {
    result.map_err(|e| SnapshotError::File {
        operation: "working on",
        path: "a thread".into(),
        source: io::Error::other(e),
    })
}

/// Runs blocking work on its own thread.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
) -> Result<T, SnapshotError> {
    joined(tokio::task::spawn_blocking(work).await)?
}

/// The results of `work` on each item, on at most so many threads, in the order of the items; the first error
/// ends it.
pub(super) async fn each<T, R>(
    items: Vec<T>,
    threads: usize,
    progress: &dyn Progress,
    work: impl Fn(&T, &Meter) -> Result<R, SnapshotError> + Send + Sync + 'static,
) -> Result<Vec<R>, SnapshotError>
where
    T: Send + Sync + 'static,
    R: Send + 'static,
{
    let meter = Arc::new(Meter::default());
    let cancel = CancelOnDrop(Arc::clone(&meter));
    let count = items.len();
    let shared = Arc::new((items, AtomicUsize::new(0), work));
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(count).min(threads);
    let mut running = JoinSet::new();
    for _ in 0..workers {
        let (shared, meter) = (Arc::clone(&shared), Arc::clone(&meter));
        running.spawn_blocking(move || {
            let (items, next, work) = &*shared;
            let mut results = Vec::new();
            while let Some(item) = {
                let at = next.fetch_add(1, Ordering::Relaxed);
                items.get(at).map(|item| (at, item))
            } {
                if meter.check().is_err() {
                    break;
                }
                results.push((item.0, work(item.1, &meter)?));
            }
            Ok::<_, SnapshotError>(results)
        });
    }
    let mut results: Vec<Option<R>> = (0..count).map(|_| None).collect();
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            joined_worker = running.join_next() => {
                let Some(worker) = joined_worker else { break };
                for (at, result) in joined(worker)?? {
                    results[at] = Some(result);
                }
            }
            _ = tick.tick() => {}
        }
        progress.advance(meter.bytes.swap(0, Ordering::Relaxed));
    }
    progress.advance(meter.bytes.swap(0, Ordering::Relaxed));
    drop(cancel);
    Ok(results.into_iter().flatten().collect())
}
