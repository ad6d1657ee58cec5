//! Brings the log to the store, in order, as immutable segments.

use std::{fs::File, os::unix::fs::FileExt, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tpi_proto::fault::chain;
use tpi_proto::id::{RunId, TaskId};
use tpi_store::{
    Store,
    layout::TaskKeys,
    log::{decode_frame, encode_segment},
};

use super::spool::{Place, Spool};
use crate::supervisor::{Concern, Event};

/// Bytes of log that make a segment worth writing at once.
const SEGMENT_BYTES: u64 = 4 << 20;
/// Distance from an entry of the spool's index to the frame that is looked for, and the frame itself.
const SLACK_BYTES: u64 = 1 << 20;
/// First and longest pause after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// What the uploader works with.
#[derive(Debug)]
pub(crate) struct Uploader {
    pub(crate) spool: Spool,
    pub(crate) store: Store,
    pub(crate) task: TaskId,
    pub(crate) run: RunId,
    /// Oldest bytes that are not in the store.
    pub(crate) flush: Duration,
    pub(crate) events: mpsc::Sender<Event>,
}

impl Uploader {
    /// Works until the log is complete and all of it is in the store, however long that takes; or until the log
    /// was cut.
    ///
    /// # Errors
    /// The spool cannot be read (the cause, as a lower-case fragment).
    pub(crate) async fn run(self) -> Result<(), String> {
        let mut progress = self.spool.progress();
        let keys = TaskKeys::new(&self.task);
        let mut stored = progress.borrow().stored;
        loop {
            // Something to store.
            let Ok(seen) = progress.wait_for(|p| p.end > stored || p.complete || p.closed).await.map(|p| *p)
            else {
                return Ok(());
            };
            if seen.end == stored {
                return Ok(());
            }
            self.worth_it(&mut progress, stored).await;
            let (segment, end) = self.segment(stored).await?;
            self.put(&keys.log_segment(self.run.slot, self.run.attempt, stored), segment).await;
            stored = end;
            self.spool.set_stored(stored);
        }
    }

    /// Waits until there is a segment's worth of log, or the oldest byte is old enough.
    async fn worth_it(&self, progress: &mut watch::Receiver<super::spool::Progress>, stored: u64) {
        let due = Instant::now() + self.flush;
        let enough = progress.wait_for(|p| p.end - stored >= SEGMENT_BYTES || p.complete || p.closed);
        // Either is a reason to go on; an error means that the log was cut, which `wait_for` has seen.
        drop(tokio::time::timeout_at(due, enough).await);
    }

    async fn segment(&self, from: u64) -> Result<(Bytes, u64), String> {
        let Place::File { file, position, len } = self.spool.locate(from) else {
            return Err(format!("byte {from} of the log is not in the spool"));
        };
        let work = move || frames(&file, position, len, from);
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(text)) => {
                let text = format!("the log's spool cannot be read: {text}");
                self.concern(Some(text.clone())).await;
                Err(text)
            }
            Err(error) => Err(error.to_string()),
        }
    }

    async fn put(&self, key: &str, segment: Bytes) {
        let mut pause = BACKOFF.0;
        let mut troubled = false;
        // The same bytes under the same key: trying again is harmless, whatever became of the last try.
        while let Err(error) = self.store.put(key, segment.clone()).await {
            if pause > BACKOFF.0 * 4 && !troubled {
                troubled = true;
                let text = format!("the log cannot be written to the store: {}", chain(&error));
                self.concern(Some(text)).await;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
        if troubled {
            self.concern(None).await;
        }
    }

    async fn concern(&self, text: Option<String>) {
        // The supervisor is gone only when nobody is to be told any more.
        drop(self.events.send(Event::Concern { concern: Concern::Log, text }).await);
    }
}

/// A segment of the frames that begin at a log offset, and the offset after it. About [`SEGMENT_BYTES`] at most.
fn frames(file: &Arc<File>, position: u64, len: u64, from: u64) -> Result<(Bytes, u64), String> {
    let size =
        usize::try_from((len - position).min(SEGMENT_BYTES + SLACK_BYTES)).map_err(|e| e.to_string())?;
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, position).map_err(|e| e.to_string())?;
    let (mut at, mut begin, mut end) = (0, None, from);
    while let Some((record, taken)) =
        decode_frame(bytes.get(at..).unwrap_or_default()).map_err(|e| e.to_string())?
    {
        if begin.is_none() && record.offset >= from {
            begin = Some(at);
        }
        at += taken;
        end = record.offset + record.data.len() as u64;
    }
    let Some(begin) = begin else {
        return Err(format!("byte {from} of the log is not where it was written"));
    };
    let content = bytes.get(begin..at).unwrap_or_default();
    Ok((encode_segment(content).map_err(|e| e.to_string())?, end))
}
