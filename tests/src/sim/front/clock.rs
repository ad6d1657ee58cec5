//! The time by which schedules are carried out and credentials expire.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;

/// This computer's clock, put ahead by as much as a test says. It never goes back.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    ahead: Mutex<SignedDuration>,
    moved: Notify,
}

impl Clock {
    /// What time it is.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        Timestamp::now().saturating_add(self.ahead()).unwrap_or(Timestamp::MAX)
    }

    /// How far it is ahead of this computer's clock.
    #[must_use]
    pub fn ahead(&self) -> SignedDuration {
        *self.shared.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves it forward.
    pub fn advance(&self, by: SignedDuration) {
        {
            let mut ahead = self.shared.ahead.lock().unwrap_or_else(PoisonError::into_inner);
            *ahead = ahead.saturating_add(by.max(SignedDuration::ZERO));
        }
        self.shared.moved.notify_waiters();
    }

    /// Moves it to a time; to none that is over.
    pub fn advance_to(&self, time: Timestamp) {
        self.advance(time.duration_since(self.now()));
    }

    /// Waits until it is moved.
    pub(super) async fn moved(&self) {
        self.shared.moved.notified().await;
    }
}
