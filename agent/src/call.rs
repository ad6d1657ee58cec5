//! Calls that are data: where to, with what, and how they prove who makes them.

use std::{collections::BTreeMap, time::Duration};

use tpi_proto::{
    id::{MachineId, RunId, TaskId},
    machine::{Credentials, HttpCall, MachineConfig, Signing, TokenCall},
};
use tpi_store::{StoreError, Unsigned, sign_aws_v4};

use crate::credentials;

/// Most of an answer that is read.
const ANSWER: usize = 64 << 10;
/// Longest token.
const TOKEN: usize = 4 << 10;

/// What placeholders stand for, and what requests are signed with.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) task: TaskId,
    pub(crate) machine: MachineId,
    /// Absent when the machine never held a slot.
    pub(crate) run: Option<RunId>,
    pub(crate) credentials: Credentials,
}

impl Names {
    pub(crate) fn new(config: &MachineConfig, run: Option<RunId>) -> Self {
        Self {
            task: config.task.clone(),
            machine: config.machine.clone(),
            run,
            credentials: config.credentials.clone(),
        }
    }

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
    /// The call that is to be made first was refused, or answered with what is no token.
    #[error("no token from {url:?}, which answered with status {status}")]
    NoToken {
        /// Who was asked.
        url: String,
        /// What it answered.
        status: u16,
    },
    /// No credentials to sign with.
    #[error(transparent)]
    Sign(StoreError),
}

/// Makes one call; the status and up to 64 KiB of the answer. All of it takes at most `timeout`.
pub(crate) async fn call(
    call: &HttpCall,
    names: &Names,
    timeout: Duration,
) -> Result<(u16, String), CallError> {
    let end = tokio::time::Instant::now() + timeout;
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(CallError::Failed)?;
    let left = || end.saturating_duration_since(tokio::time::Instant::now());
    let mut headers: Vec<(String, String)> = own(&call.headers);
    if let Some(token) = &call.token {
        headers.push((token.header.clone(), ask_token(&client, token, left()).await?));
    }
    let (url, body) = (names.fill(&call.url), names.fill(&call.body));
    match &call.signing {
        Signing::None => {}
        Signing::AwsV4 { service, region } => {
            let settings = credentials::settings(&names.credentials);
            let request = Unsigned { method: &call.method, url: &url, headers: &headers, body: &body };
            let signed = sign_aws_v4(settings, service, region, request).await.map_err(CallError::Sign)?;
            headers.extend(signed);
        }
    }
    let (status, body) = send(&client, &call.method, &url, &headers, body, left()).await?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

fn own(headers: &BTreeMap<String, String>) -> Vec<(String, String)> {
    headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
}

async fn ask_token(
    client: &reqwest::Client,
    token: &TokenCall,
    timeout: Duration,
) -> Result<String, CallError> {
    let (status, body) =
        send(client, &token.method, &token.url, &own(&token.headers), String::new(), timeout).await?;
    let refused = || CallError::NoToken { url: token.url.clone(), status };
    let text = String::from_utf8(body).map_err(|_| refused())?;
    let visible = text.bytes().all(|b| (0x21..0x7f).contains(&b));
    if status == 200 && !text.is_empty() && text.len() <= TOKEN && visible {
        Ok(text)
    } else {
        Err(refused())
    }
}

async fn send(
    client: &reqwest::Client,
    method: &str,
    url: &str,
    headers: &[(String, String)],
    body: String,
    timeout: Duration,
) -> Result<(u16, Vec<u8>), CallError> {
    let method = method.parse().map_err(|_| CallError::Invalid(format!("method {method:?}")))?;
    let mut request = client.request(method, url).timeout(timeout).body(body);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let mut response = request.send().await.map_err(|error| {
        if error.is_builder() { CallError::Invalid(error.to_string()) } else { CallError::Failed(error) }
    })?;
    let status = response.status().as_u16();
    let mut answer = Vec::new();
    while answer.len() < ANSWER {
        match response.chunk().await.map_err(CallError::Failed)? {
            Some(chunk) => answer.extend_from_slice(&chunk),
            None => break,
        }
    }
    Ok((status, answer))
}
