//! What the script prints: a spool on disk, readers that follow it, and segments in the store.
//!
//! ```text
//!  script ─ pipes ─► pump ─► spool ─┬─► readers (live, from any offset)
//!                                   └─► uploader ─► segments in the store
//! ```
//!
//! One ordered sequence of bytes per run. A reader that asks for a part that is no longer in the spool gets it
//! from the store, at the same offsets.

use std::{fs::File, io, os::unix::fs::FileExt, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use tokio::sync::watch;
use tpi_proto::id::{RunId, TaskId};
use tpi_store::{
    Store, StoreError,
    log::{LogFormatError, Record, decode_frame},
};

use self::spool::{Place, Progress, Spool};

pub(crate) mod pump;
pub(crate) mod recover;
pub(crate) mod spool;
pub(crate) mod upload;

/// Bytes read from the spool at once.
const BATCH_BYTES: usize = 256 << 10;

/// What a reader is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Batch {
    /// The next records, in order, without a gap; never empty. At most about 256 KiB of data.
    Records(Vec<Record>),
    /// The log is complete and ends here. The last item.
    Complete(u64),
}

/// Why a log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The log on disk.
    #[error("reading the log's spool")]
    Spool(#[source] io::Error),
    /// Something in the spool is not what was written.
    #[error("reading the log's spool")]
    Damaged(#[from] LogFormatError),
    /// An older part that is only in the store by now.
    #[error("reading an older part of the log")]
    Store(#[from] StoreError),
    /// Nothing follows: the agent ended before the log was complete.
    #[error("the log ended at byte {0} without being complete")]
    Cut(u64),
}

/// Makes streams. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reader {
    spool: Spool,
    store: Store,
    task: TaskId,
    run: RunId,
}

impl Reader {
    pub(crate) fn new(spool: Spool, store: Store, task: TaskId, run: RunId) -> Self {
        Self { spool, store, task, run }
    }

    /// The log from the byte `offset` on: what is there at once, then what comes (no polling). An offset
    /// beyond the end waits for it. Holds at most one batch in memory; slow readers hold up nobody.
    /// The stream ends after [`Batch::Complete`] or an error.
    #[must_use]
    pub fn stream(&self, offset: u64) -> BoxStream<'static, Result<Batch, ReadError>> {
        let cursor = Cursor {
            reader: self.clone(),
            progress: self.spool.progress(),
            offset,
            place: None,
            stored: None,
            done: false,
        };
        futures::stream::unfold(cursor, |mut cursor| async move {
            if cursor.done {
                return None;
            }
            let item = cursor.next().await;
            cursor.done = !matches!(item, Ok(Batch::Records(_)));
            Some((item, cursor))
        })
        .boxed()
    }
}

struct Cursor {
    reader: Reader,
    progress: watch::Receiver<Progress>,
    /// Next byte to hand out.
    offset: u64,
    /// Where that is, when the last batch ended within a spool file.
    place: Option<(Arc<File>, u64)>,
    /// Open while an older part comes from the store, and the offset that it was opened at.
    stored: Option<(u64, BoxStream<'static, Result<Record, StoreError>>)>,
    done: bool,
}

impl Cursor {
    async fn next(&mut self) -> Result<Batch, ReadError> {
        loop {
            let seen = *self.progress.borrow_and_update();
            if self.offset >= seen.end {
                if seen.complete {
                    return Ok(Batch::Complete(seen.end));
                }
                if seen.closed || self.progress.changed().await.is_err() {
                    return Err(ReadError::Cut(seen.end));
                }
                continue;
            }
            let records = match self.reader.spool.locate(self.offset) {
                Place::File { file, position, len } => {
                    self.stored = None;
                    self.from_spool(file, position, len).await?
                }
                Place::Store { spool_from } => self.from_store(spool_from).await?,
                // Between dropping a file and finding the next nothing can be missing: look again.
                Place::End => Vec::new(),
            };
            if let Some(last) = records.last() {
                self.offset = last.offset + last.data.len() as u64;
                return Ok(Batch::Records(records));
            }
        }
    }

    async fn from_spool(
        &mut self,
        file: Arc<File>,
        position: u64,
        len: u64,
    ) -> Result<Vec<Record>, ReadError> {
        let position = match &self.place {
            Some((old, at)) if Arc::ptr_eq(old, &file) && *at >= position => *at,
            Some(_) | None => position,
        };
        let from = self.offset;
        let reading = Arc::clone(&file);
        let work = move || read_frames(&reading, position, len, BATCH_BYTES);
        let (records, end) = match tokio::task::spawn_blocking(work).await {
            Ok(read) => read?,
            Err(error) => return Err(ReadError::Spool(io::Error::other(error))),
        };
        self.place = Some((file, end));
        Ok(records.into_iter().filter_map(|r| cut(r, from)).collect())
    }

    async fn from_store(&mut self, spool_from: u64) -> Result<Vec<Record>, ReadError> {
        let Reader { store, task, run, .. } = &self.reader;
        let offset = self.offset;
        let (opened_at, stream) = self
            .stored
            .get_or_insert_with(|| (offset, tpi_store::log::read_stored(store, task, *run, offset)));
        match stream.next().await {
            Some(record) => Ok(cut(record?, offset).into_iter().collect()),
            // What was dropped from the spool is in the store: an end at once is a gap.
            None if *opened_at == offset && offset < spool_from => Err(ReadError::Cut(offset)),
            // More has been stored since.
            None => {
                self.stored = None;
                Ok(Vec::new())
            }
        }
    }
}

/// The part of a record from an offset on, if any.
fn cut(mut record: Record, from: u64) -> Option<Record> {
    let end = record.offset + record.data.len() as u64;
    if end <= from {
        return None;
    }
    if record.offset < from {
        let skip = usize::try_from(from - record.offset).ok()?;
        record.data = Bytes::split_off(&mut record.data, skip);
        record.offset = from;
    }
    Some(record)
}

/// Whole frames between two positions of a file, about `limit` bytes of them; and where the next one begins.
fn read_frames(file: &File, position: u64, len: u64, limit: usize) -> Result<(Vec<Record>, u64), ReadError> {
    let mut want = limit;
    loop {
        let size = usize::try_from(len.saturating_sub(position)).unwrap_or(want).min(want);
        let mut bytes = vec![0; size];
        file.read_exact_at(&mut bytes, position).map_err(ReadError::Spool)?;
        let mut records = Vec::new();
        let mut used = 0;
        while let Some((record, taken)) = decode_frame(bytes.get(used..).unwrap_or_default())? {
            used += taken;
            records.push(record);
        }
        // A single frame larger than the limit: read more of it.
        if records.is_empty() && size == want {
            want *= 2;
            continue;
        }
        return Ok((records, position + used as u64));
    }
}

#[cfg(test)]
mod tests;
