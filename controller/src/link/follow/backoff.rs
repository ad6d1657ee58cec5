//! Waiting between tries.

use std::time::Duration;

/// Doubles up to a limit; each wait is shortened at random, so that many clients do not ask in step.
#[derive(Debug, Clone)]
pub(super) struct Backoff {
    first: Duration,
    next: Duration,
    limit: Duration,
}

impl Backoff {
    pub(super) fn new(first: Duration, limit: Duration) -> Self {
        Self { first, next: first, limit }
    }

    /// After a success.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }

    pub(super) async fn wait(&mut self) {
        let part = rand::random_range(0.6..=1.0);
        let wait = self.next.mul_f64(part);
        self.next = (self.next * 2).min(self.limit);
        tokio::time::sleep(wait).await;
    }
}
