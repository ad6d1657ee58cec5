//! Keys for object data: from the same chain that the control plane uses, so that whoever may rent machines may
//! also read and write the store, however they signed in.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_sdk_ec2::config::{Credentials, ProvideCredentials as _, SharedCredentialsProvider};
use tokio::sync::Mutex;
use tpi_store::{AccessKey, KeySource};

/// Keys are replaced this long before they expire; a request may take a while.
const MARGIN: Duration = Duration::from_secs(120);
/// What does not say when it expires is looked up again after so long.
const UNKNOWN_LIFE: Duration = Duration::from_secs(15 * 60);

/// The chain, with the keys that it gave last.
#[derive(Debug)]
pub(super) struct Chain {
    provider: Option<SharedCredentialsProvider>,
    held: Mutex<Option<Held>>,
}

#[derive(Debug)]
struct Held {
    keys: Credentials,
    until: SystemTime,
}

#[derive(Debug, thiserror::Error)]
#[error("no credentials of AWS are configured")]
struct NoChain;

impl Chain {
    pub(super) fn new(provider: Option<SharedCredentialsProvider>) -> Self {
        Self { provider, held: Mutex::default() }
    }
}

#[async_trait]
impl KeySource for Chain {
    async fn access_key(&self) -> Result<AccessKey, Box<dyn std::error::Error + Send + Sync>> {
        // Held while the chain is asked: a process or a browser is started once, not once per request.
        let mut held = self.held.lock().await;
        let now = SystemTime::now();
        let keys = match &*held {
            Some(held) if now < held.until => held.keys.clone(),
            Some(_) | None => {
                let keys = self.provider.as_ref().ok_or(NoChain)?.provide_credentials().await?;
                let until = match keys.expiry() {
                    Some(expiry) => expiry.checked_sub(MARGIN).unwrap_or(now),
                    None => now + UNKNOWN_LIFE,
                };
                *held = Some(Held { keys: keys.clone(), until });
                keys
            }
        };
        Ok(AccessKey {
            id: keys.access_key_id().to_owned(),
            secret: keys.secret_access_key().to_owned(),
            token: keys.session_token().map(str::to_owned),
        })
    }
}
