//! The machine's load: sampled once a second for the whole run.

use futures::stream::BoxStream;
use tpi_store::{StoreError, telemetry::Sample};

/// Makes streams. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reader {}

impl Reader {
    /// Samples from `sequence` on: older ones from the store, then those in memory, then live ones (no
    /// polling). Ends after the last sample of the run. Batches are never empty.
    #[must_use]
    pub fn stream(&self, sequence: u64) -> BoxStream<'static, Result<Vec<Sample>, StoreError>> {
        let _ = sequence;
        Box::pin(futures::stream::pending())
    }
}
