//! Keys of the store: the durable contract, version 1. Nothing else in the workspace builds a key.
//!
//! ```text
//! tasks/{id}/record.json                        what was asked, and how far it got; conditional writes
//! tasks/{id}/environment                        values of the script's variables; private, gone at destroy
//! tasks/{id}/agent/{sha256}                     the agent that this task boots
//! tasks/{id}/input.jsonl.zst                    manifest of the workspace
//! tasks/{id}/slots/{index}.json                 who runs a rank, and how it ended
//! tasks/{id}/machines/{index}-{attempt}/identity.json   certificate, addresses, port
//! tasks/{id}/clients/{fingerprint}.pem          who may attach
//! tasks/{id}/logs/{index}/{attempt}/{first-offset}.zst
//! tasks/{id}/telemetry/{index}/{attempt}/{first-sequence}.zst
//! tasks/{id}/events/{time}-{index}-{attempt}.json
//! tasks/{id}/saved/{index}/{generation}.jsonl.zst   manifests of the work directory; the newest wins
//! tasks/{id}/stop.json                          a request to stop, for agents that cannot be reached
//! tasks/{id}/packs/{index}/{attempt}-{save}/{hash}   content written by machines; a folder is one push's own
//! cache/{hash}                                  content written by controllers, for all tasks
//! cache-index/{hash}                            what a pack in the cache holds, so that it is found again
//! ```
//!
//! Numbers in keys have twenty digits, so that listing gives them in order.

use tpi_proto::{
    cert::Fingerprint,
    id::{Attempt, RunId, SlotIndex, TaskId},
};

/// Prefix of all tasks.
pub const TASKS: &str = "tasks";
/// Prefix of the shared content.
pub const CACHE: &str = "cache";
/// Prefix of the descriptions of shared packs.
pub const CACHE_INDEX: &str = "cache-index";

/// Twenty digits.
#[must_use]
pub fn number(value: u64) -> String {
    format!("{value:020}")
}

/// Builds the keys of one task.
#[derive(Debug, Clone)]
pub struct TaskKeys {
    root: String,
}

impl TaskKeys {
    /// For a task.
    #[must_use]
    pub fn new(task: &TaskId) -> Self {
        Self { root: format!("{TASKS}/{task}") }
    }

    /// Prefix of everything of the task, without a trailing slash.
    #[must_use]
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The record.
    #[must_use]
    pub fn record(&self) -> String {
        format!("{}/record.json", self.root)
    }

    /// Values of the script's variables.
    #[must_use]
    pub fn environment(&self) -> String {
        format!("{}/environment", self.root)
    }

    /// An agent binary.
    #[must_use]
    pub fn agent(&self, sha256: &str) -> String {
        format!("{}/agent/{sha256}", self.root)
    }

    /// Manifest of the workspace.
    #[must_use]
    pub fn input(&self) -> String {
        format!("{}/input.jsonl.zst", self.root)
    }

    /// A request to stop.
    #[must_use]
    pub fn stop(&self) -> String {
        format!("{}/stop.json", self.root)
    }

    /// Prefix of the slots.
    #[must_use]
    pub fn slots(&self) -> String {
        format!("{}/slots", self.root)
    }

    /// One slot.
    #[must_use]
    pub fn slot(&self, slot: SlotIndex) -> String {
        format!("{}/slots/{slot}.json", self.root)
    }

    /// Who serves a run, and where.
    #[must_use]
    pub fn identity(&self, run: RunId) -> String {
        format!("{}/machines/{run}/identity.json", self.root)
    }

    /// Prefix of the certificates of clients.
    #[must_use]
    pub fn clients(&self) -> String {
        format!("{}/clients", self.root)
    }

    /// One client's certificate.
    #[must_use]
    pub fn client(&self, fingerprint: &Fingerprint) -> String {
        format!("{}/clients/{fingerprint}.pem", self.root)
    }

    /// Prefix of a run's log segments.
    #[must_use]
    pub fn logs(&self, slot: SlotIndex, attempt: Attempt) -> String {
        format!("{}/logs/{slot}/{attempt}", self.root)
    }

    /// One log segment.
    #[must_use]
    pub fn log_segment(&self, slot: SlotIndex, attempt: Attempt, first_offset: u64) -> String {
        format!("{}/{}.zst", self.logs(slot, attempt), number(first_offset))
    }

    /// Prefix of a run's telemetry segments.
    #[must_use]
    pub fn telemetry(&self, slot: SlotIndex, attempt: Attempt) -> String {
        format!("{}/telemetry/{slot}/{attempt}", self.root)
    }

    /// One telemetry segment.
    #[must_use]
    pub fn telemetry_segment(&self, slot: SlotIndex, attempt: Attempt, first_sequence: u64) -> String {
        format!("{}/{}.zst", self.telemetry(slot, attempt), number(first_sequence))
    }

    /// Prefix of the events.
    #[must_use]
    pub fn events(&self) -> String {
        format!("{}/events", self.root)
    }

    /// One event; `time` is Unix nanoseconds.
    #[must_use]
    pub fn event(&self, time: u64, run: &str) -> String {
        format!("{}/events/{}-{run}.json", self.root, number(time))
    }

    /// Prefix of everything that machines saved.
    #[must_use]
    pub fn all_saved(&self) -> String {
        format!("{}/saved", self.root)
    }

    /// Prefix of a slot's saved manifests.
    #[must_use]
    pub fn saved(&self, slot: SlotIndex) -> String {
        format!("{}/saved/{slot}", self.root)
    }

    /// One saved manifest.
    #[must_use]
    pub fn saved_generation(&self, slot: SlotIndex, generation: u64) -> String {
        format!("{}/{}.jsonl.zst", self.saved(slot), number(generation))
    }

    /// Number of a saved manifest, from its key.
    #[must_use]
    pub fn generation(key: &str) -> Option<u64> {
        key.rsplit('/').next()?.strip_suffix(".jsonl.zst")?.parse().ok()
    }

    /// Prefix of the content written by the task's machines.
    #[must_use]
    pub fn packs(&self) -> String {
        format!("{}/packs", self.root)
    }

    /// Prefix of the content that a slot's machines wrote.
    #[must_use]
    pub fn slot_packs(&self, slot: SlotIndex) -> String {
        format!("{}/packs/{slot}", self.root)
    }

    /// Prefix of the content that one push of a run writes.
    #[must_use]
    pub fn save_packs(&self, run: RunId, save: u64) -> String {
        format!("{}/{}-{save}", self.slot_packs(run.slot), run.attempt)
    }
}
