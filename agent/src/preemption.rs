//! Looks for the cloud's notices that it takes the machine back, or may. Where and how is data of the machine's
//! configuration.

use std::time::Duration;

use tokio::sync::mpsc;
use tpi_proto::{
    fault::chain,
    machine::{NoticeEffect, PreemptionNotice},
};

use crate::{
    call::{CallError, Names, call},
    supervisor::Event,
};

/// Asks until there is a notice, then says so once.
pub(crate) async fn watch(notice: PreemptionNotice, names: Names, events: mpsc::Sender<Event>) {
    let event = match notice.effect {
        NoticeEffect::Interrupt => Event::Preempted,
        NoticeEffect::Save => Event::Forewarned,
    };
    let interval = Duration::from_millis(notice.interval_millis.max(100));
    loop {
        match call(&notice.call, &names, interval.max(Duration::from_secs(2))).await {
            Ok((200, body)) if notice.contains.as_ref().is_none_or(|text| body.contains(text.as_str())) => {
                // The supervisor is gone only when it needs no telling.
                drop(events.send(event).await);
                return;
            }
            Ok(_) => {}
            Err(error @ CallError::Invalid(_)) => {
                tracing::error!(error = chain(&error), "preemption notices cannot be looked for");
                return;
            }
            Err(error @ (CallError::Failed(_) | CallError::NoToken { .. } | CallError::Sign(_))) => {
                tracing::debug!(error = chain(&error), "looking for a preemption notice");
            }
        }
        tokio::time::sleep(interval).await;
    }
}
