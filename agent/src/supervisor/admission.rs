//! Which requests of clients are let in, and how they are answered. No I/O, no waiting.

use std::time::Duration;

use tokio::sync::oneshot;

use super::state::{Input, Machine};

/// A request from the network.
#[derive(Debug)]
pub(crate) struct StopCall {
    /// Overrides the task's time between SIGTERM and SIGKILL.
    pub(crate) grace: Option<Duration>,
    /// Told the generation that records the request. Dropped: it came too late.
    pub(crate) reply: oneshot::Sender<u64>,
}

/// What becomes of a request.
#[derive(Debug)]
pub(crate) enum Admitted {
    /// The state machine is told, then the caller.
    Stop {
        /// For the state machine.
        input: Input,
        /// For the caller.
        reply: oneshot::Sender<u64>,
    },
    /// Nothing is left to stop; the caller was told by dropping the reply.
    TooLate,
}

/// Lets a request in, or not.
pub(crate) fn admit(machine: &Machine, call: StopCall) -> Admitted {
    if machine.can_stop() {
        Admitted::Stop { input: Input::Stop { grace: call.grace }, reply: call.reply }
    } else {
        Admitted::TooLate
    }
}
