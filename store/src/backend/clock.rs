//! What time the store thinks it is.

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};

use super::{Store, StoreError, StoreErrorKind};

impl Store {
    /// The store's clock minus this computer's, measured by writing and looking at a small object below
    /// `prefix`; what a machine corrects its own clock by. Right to about a second (S3 tells whole seconds).
    ///
    /// # Errors
    /// What the backend meets.
    pub async fn clock_offset(&self, prefix: &str) -> Result<SignedDuration, StoreError> {
        let key =
            format!("{}/clock-{}", prefix.trim_end_matches('/'), hex::encode(rand::random::<[u8; 8]>()));
        let before = Timestamp::now();
        let started = std::time::Instant::now();
        self.put(&key, Bytes::from_static(b"clock")).await?;
        let written = started.elapsed();
        let found = self.head(&key).await;
        self.delete(&key).await?;
        let info = found?.ok_or_else(|| {
            StoreError::new(StoreErrorKind::Other, "looking at", &key, "gone right after it was written")
        })?;
        let middle = before + SignedDuration::try_from(written / 2).unwrap_or_default();
        let mut offset = info.modified.duration_since(middle);
        if info.modified.subsec_nanosecond() == 0 {
            // Cut to whole seconds: the truth is half a second later in the mean.
            offset += SignedDuration::from_millis(500);
        }
        Ok(offset)
    }
}
