//! Now, by the store's clock.
//!
//! A machine's own clock may be off by hours, and may jump while it is being set. Deadlines are absolute, so
//! everything here goes by the store's clock: measured once in a while, and carried on by the monotonic clock.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use tpi_store::{Store, StoreError};

/// Tells the time. Cheap to clone; all clones are corrected together.
#[derive(Debug, Clone)]
pub struct Clock {
    /// How much this computer's clock is put wrong, for tests.
    test_offset: SignedDuration,
    anchor: Arc<Mutex<(Instant, Timestamp)>>,
}

impl Clock {
    /// By this computer's clock, until [`Clock::correct`]ed.
    #[must_use]
    pub fn local(test_offset: SignedDuration) -> Self {
        let anchor = (Instant::now(), shifted(Timestamp::now(), test_offset));
        Self { test_offset, anchor: Arc::new(Mutex::new(anchor)) }
    }

    /// Asks the store how far this computer's clock is off, and goes by the store's from now on. Returns by how much
    /// the computer's clock differs.
    ///
    /// # Errors
    /// The store cannot be asked; the clock goes on as before.
    pub async fn correct(&self, store: &Store, prefix: &str) -> Result<SignedDuration, StoreError> {
        let offset = store.clock_offset(prefix).await?;
        let now = shifted(Timestamp::now(), offset);
        *self.anchor.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), now);
        Ok(offset.saturating_sub(self.test_offset))
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let (instant, at) = *self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = SignedDuration::try_from(instant.elapsed()).unwrap_or_default();
        shifted(at, passed)
    }

    /// Now, as Unix nanoseconds.
    #[must_use]
    pub fn now_nanos(&self) -> i64 {
        i64::try_from(self.now().as_nanosecond()).unwrap_or(i64::MAX)
    }

    /// Time until `at`; zero when it is over.
    #[must_use]
    pub fn until(&self, at: Timestamp) -> Duration {
        Duration::try_from(at.duration_since(self.now())).unwrap_or_default()
    }
}

fn shifted(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.checked_add(by).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_clock_is_wrong_until_corrected() {
        let clock = Clock::local(SignedDuration::from_hours(1));
        let off = clock.now().duration_since(Timestamp::now());
        assert!(off > SignedDuration::from_mins(59));
        assert_eq!(clock.until(Timestamp::now()), Duration::ZERO);
    }
}
