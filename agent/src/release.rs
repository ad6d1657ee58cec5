//! Giving the machine back: the one HTTP call that takes it out of its group, and the power switch.

use std::time::Duration;

use tokio::{process::Command, time::Instant};
use tpi_proto::{fault::chain, machine::HttpCall};

use crate::call::{CallError, Names, call};

/// Calls until it is answered with success, or the budget is used up. Returns whether it was.
pub(crate) async fn release(request: &HttpCall, names: &Names, budget: Duration) -> bool {
    let end = Instant::now() + budget;
    let mut pause = Duration::from_millis(200);
    loop {
        match call(request, names, Duration::from_secs(10)).await {
            Ok((status, _)) if (200..300).contains(&status) => return true,
            // Taken out already: by an earlier call whose answer was lost, or by the group itself.
            Ok((404 | 410, _)) => return true,
            Ok((status, body)) => {
                let body: String = body.chars().take(200).collect();
                tracing::warn!(status, body, "the group did not take the machine out");
            }
            Err(error @ CallError::Invalid(_)) => {
                tracing::error!(error = chain(&error), "the machine cannot be taken out of its group");
                return false;
            }
            Err(error @ (CallError::Failed(_) | CallError::NoToken { .. } | CallError::Sign(_))) => {
                tracing::warn!(error = chain(&error), "taking the machine out of its group");
            }
        }
        if Instant::now() + pause >= end {
            return false;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

/// Turns the machine off, by whatever means it has.
pub(crate) async fn power_off() {
    for (program, arguments) in [
        ("systemctl", &["poweroff"][..]),
        ("/usr/bin/systemctl", &["poweroff"]),
        ("/sbin/poweroff", &[]),
        ("/sbin/poweroff", &["-f"]),
    ] {
        match Command::new(program).args(arguments).status().await {
            Ok(status) if status.success() => return,
            Ok(status) => tracing::warn!(program, %status, "powering off"),
            Err(error) => tracing::warn!(program, %error, "powering off"),
        }
    }
}
