//! What the script prints: a spool on disk, readers that follow it, and segments in the store.

use futures::stream::BoxStream;
use tpi_store::{StoreError, log::Record};

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
    Spool(#[source] std::io::Error),
    /// Something in the spool is not what was written.
    #[error("reading the log's spool")]
    Damaged(#[from] tpi_store::log::LogFormatError),
    /// An older part that is only in the store by now.
    #[error("reading an older part of the log")]
    Store(#[from] StoreError),
    /// Nothing follows: the agent ended before the log was complete.
    #[error("the log ended at byte {0} without being complete")]
    Cut(u64),
}

/// Makes streams. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reader {}

impl Reader {
    /// The log from the byte `offset` on: what is there at once, then what comes (no polling). An offset
    /// beyond the end waits for it. Holds at most one batch in memory; slow readers hold up nobody.
    /// The stream ends after [`Batch::Complete`] or an error.
    #[must_use]
    pub fn stream(&self, offset: u64) -> BoxStream<'static, Result<Batch, ReadError>> {
        let _ = offset;
        Box::pin(futures::stream::pending())
    }
}
