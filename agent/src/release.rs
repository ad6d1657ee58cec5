//! Giving the machine back: the one HTTP call that takes it out of its group, and the power switch.

use std::time::Duration;

use tokio::{process::Command, time::Instant};
use tpi_proto::{
    fault::chain,
    id::{MachineId, RunId, TaskId},
    machine::{HttpCall, Signing},
};

/// What placeholders stand for.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) task: TaskId,
    pub(crate) machine: MachineId,
    /// Absent when the machine never held a slot.
    pub(crate) run: Option<RunId>,
}

impl Names {
    fn fill(&self, template: &str) -> String {
        let (slot, attempt) = match self.run {
            Some(run) => (run.slot.to_string(), run.attempt.to_string()),
            None => Default::default(),
        };
        template
            .replace("{task}", self.task.as_str())
            .replace("{machine}", &self.machine.0)
            .replace("{slot}", &slot)
            .replace("{attempt}", &attempt)
    }
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// It cannot be made at all.
    #[error("{0}")]
    Invalid(String),
    /// Nobody answered.
    #[error("calling")]
    Failed(#[source] reqwest::Error),
}

/// Makes one call; the status and up to 64 KiB of the answer.
pub(crate) async fn call(
    call: &HttpCall,
    names: &Names,
    timeout: Duration,
) -> Result<(u16, String), CallError> {
    let Signing::None = call.signing;
    let method = call.method.parse().map_err(|_| CallError::Invalid(format!("method {:?}", call.method)))?;
    let client = reqwest::Client::builder()
        .timeout(timeout)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(CallError::Failed)?;
    let mut request = client.request(method, names.fill(&call.url)).body(names.fill(&call.body));
    for (name, value) in &call.headers {
        request = request.header(name, value);
    }
    let mut response = request.send().await.map_err(|error| {
        if error.is_builder() { CallError::Invalid(error.to_string()) } else { CallError::Failed(error) }
    })?;
    let status = response.status().as_u16();
    let mut body = Vec::new();
    while body.len() < 64 << 10 {
        match response.chunk().await.map_err(CallError::Failed)? {
            Some(chunk) => body.extend_from_slice(&chunk),
            None => break,
        }
    }
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

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
            Err(error @ CallError::Failed(_)) => {
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
