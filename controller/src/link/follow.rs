//! Following a task: ordered events of its slots, over whatever way there is.
//!
//! Every slot is followed by a task of its own ([`slot`]); all send into one bounded channel, so a reader that is
//! slow slows down the agents' streams and nothing piles up. The cursor of a slot is (attempt, offset), and it means
//! the same byte to the agent and to the store, so changing from one to the other in mid-stream is no special case.

mod backoff;
mod cut;
mod slot;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use jiff::Timestamp;
use tokio::{
    sync::{OnceCell, mpsc},
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;
use tpi_proto::{
    id::{Attempt, RunId, SlotIndex, TaskId},
    state::SlotStatus,
};
use tpi_store::{Store, StoreError, layout::TaskKeys, log::Record, telemetry::Sample};

use self::slot::{Halt, SlotFollower};
use super::{
    connect::{ConnectError, Connection, connect},
    identity::UserIdentity,
};

/// Events (batches of records) between the slots' tasks and the reader.
const IN_FLIGHT: usize = 32;

/// Where to begin, in each slot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Start {
    /// The first byte of the first attempt.
    #[default]
    Beginning,
    /// The first byte of the attempt that is newest when following begins (or of the first one to come).
    NewestAttempt,
    /// The first record of any attempt that is not older than this.
    Since(Timestamp),
    /// Where an earlier run ended; slots that are not named begin at the beginning.
    Cursors(Vec<Cursor>),
}

/// A place in a slot's logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// Slot.
    pub slot: SlotIndex,
    /// Attempt.
    pub attempt: Attempt,
    /// Next byte wanted.
    pub offset: u64,
}

/// What to follow and how.
#[derive(Debug, Clone)]
pub struct FollowOptions {
    /// Which slots.
    pub slots: Vec<SlotIndex>,
    /// Where to begin.
    pub start: Start,
    /// False: what there is now, then `End` (`logs` without `--follow`).
    pub follow: bool,
    /// Whether to send [`Event::Sample`].
    pub telemetry: bool,
    /// Whose connections are used; absent: only the store is read.
    pub identity: Option<UserIdentity>,
}

/// Why the store is followed rather than the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhyStore {
    /// Asked for so.
    NotWanted,
    /// The run is over.
    Ended,
    /// The agent cannot be dialled; the text says why, on one line.
    Unreachable(String),
    /// The connection broke; it is being dialled again.
    Broken(String),
}

/// Where a slot's events come from now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// No machine holds the slot yet (or again).
    Waiting,
    /// The agent itself.
    Live {
        /// `host:port`.
        address: String,
    },
    /// The store, which lags by some seconds.
    Store {
        /// Why.
        why: WhyStore,
    },
}

/// Something that happened in a slot. Log records of one slot come in order, without a gap and none twice.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The next log records; never empty.
    Log {
        /// Slot.
        slot: SlotIndex,
        /// Attempt.
        attempt: Attempt,
        /// In order.
        records: Vec<Record>,
    },
    /// A newer status of a slot; the first one comes early.
    Status(Box<SlotStatus>),
    /// A sample of a machine's load.
    Sample {
        /// Slot.
        slot: SlotIndex,
        /// Attempt.
        attempt: Attempt,
        /// The sample.
        sample: Sample,
    },
    /// Events of this slot come from elsewhere now.
    Source {
        /// Slot.
        slot: SlotIndex,
        /// From where.
        source: Source,
    },
    /// The machine of this attempt went away before its log was complete: what it printed from this byte on is lost.
    /// The next attempt follows.
    Lost {
        /// Slot.
        slot: SlotIndex,
        /// Attempt.
        attempt: Attempt,
        /// First byte that is not in the store.
        from: u64,
    },
    /// The log of this attempt was shown to its end.
    Complete {
        /// Slot.
        slot: SlotIndex,
        /// Attempt.
        attempt: Attempt,
        /// Its length.
        length: u64,
    },
    /// All wanted slots have ended and were shown to the end. The last event.
    End,
}

/// Why following cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The store refuses, is damaged, or cannot be reached at the start. (Later it is waited for.)
    #[error("following slot {slot}")]
    Store {
        /// Slot.
        slot: SlotIndex,
        /// Cause.
        #[source]
        source: StoreError,
    },
}

/// A stream of [`Event`]s; an error is the last item. Dropping it ends all work.
#[derive(Debug)]
pub struct Follow {
    events: mpsc::Receiver<Result<Event, FollowError>>,
    _work: AbortOnDropHandle<()>,
}

impl futures::Stream for Follow {
    type Item = Result<Event, FollowError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_recv(cx)
    }
}

/// Follows slots of a task. The certificate of `options.identity` is published to the task first. Must be called
/// within a runtime, whose tasks do the work.
#[must_use]
pub fn follow(store: &Store, task: &TaskId, options: FollowOptions) -> Follow {
    let (sender, events) = mpsc::channel(IN_FLIGHT);
    let shared = Arc::new(Shared {
        store: store.clone(),
        task: task.clone(),
        keys: TaskKeys::new(task),
        options,
        published: OnceCell::new(),
    });
    Follow { events, _work: AbortOnDropHandle::new(tokio::spawn(all(shared, sender))) }
}

async fn all(shared: Arc<Shared>, out: mpsc::Sender<Result<Event, FollowError>>) {
    let mut slots = JoinSet::new();
    for &slot in &shared.options.slots {
        let follower = SlotFollower::new(shared.clone(), slot, out.clone());
        slots.spawn(async move { (slot, follower.run().await) });
    }
    let last = loop {
        match slots.join_next().await {
            Some(Ok((_, Ok(())))) => {}
            Some(Ok((slot, Err(Halt::Failed(source))))) => break Err(FollowError::Store { slot, source }),
            // Nobody listens, or the runtime ends.
            Some(Ok((_, Err(Halt::Dropped))) | Err(_)) => return,
            None => break Ok(Event::End),
        }
    };
    slots.shutdown().await;
    // Nobody listening is as good.
    let (Ok(()) | Err(_)) = out.send(last).await;
}

/// What the slots' tasks have in common.
#[derive(Debug)]
struct Shared {
    store: Store,
    task: TaskId,
    keys: TaskKeys,
    options: FollowOptions,
    published: OnceCell<()>,
}

impl Shared {
    async fn connect(&self, run: RunId, identity: &UserIdentity) -> Result<Connection, ConnectError> {
        // Once for all slots; tried again after a failure.
        self.published.get_or_try_init(|| identity.publish(&self.store, &self.task)).await?;
        connect(&self.store, &self.task, run, identity).await
    }
}

#[cfg(test)]
mod tests;
