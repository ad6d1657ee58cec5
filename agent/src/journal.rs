//! What happened, for people: one small object per event. Best effort, never in the way.

use tokio::sync::mpsc;
use tpi_proto::fault::chain;
use tpi_proto::id::{MachineId, RunId};
use tpi_store::{
    Store,
    layout::TaskKeys,
    record::{Event, RECORD_VERSION},
};

use crate::clock::Clock;

/// Takes events. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    clock: Clock,
    run: RunId,
    machine: MachineId,
    queue: mpsc::Sender<Event>,
}

impl Journal {
    /// And the side that [`write`] works from.
    pub(crate) fn new(clock: Clock, run: RunId, machine: MachineId) -> (Self, mpsc::Receiver<Event>) {
        let (queue, events) = mpsc::channel(64);
        (Self { clock, run, machine, queue }, events)
    }

    /// Notes something: a lower-case fragment. Dropped when more happens than can be written.
    pub(crate) fn note(&self, message: String) {
        tracing::info!(run = %self.run, "{message}");
        let event = Event {
            version: RECORD_VERSION,
            at: self.clock.now(),
            run: Some(self.run),
            machine: Some(self.machine.clone()),
            message,
        };
        if self.queue.try_send(event).is_err() {
            tracing::warn!("an event was not recorded");
        }
    }
}

/// Writes events until there is nobody to note any.
pub(crate) async fn write(store: Store, keys: TaskKeys, run: RunId, mut events: mpsc::Receiver<Event>) {
    let mut last = 0;
    while let Some(event) = events.recv().await {
        // Two events may have the same time; their keys must differ.
        let nanos = u64::try_from(event.at.as_nanosecond()).unwrap_or_default().max(last + 1);
        last = nanos;
        if let Err(error) = store.put_json(&keys.event(nanos, &run.to_string()), &event).await {
            tracing::warn!(error = chain(&error), "recording an event");
        }
    }
}
