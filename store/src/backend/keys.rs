//! Keys of requests to a bucket that come from elsewhere than the environment and the instance.

use std::sync::Arc;

use async_trait::async_trait;
use object_store::{CredentialProvider, aws::AwsCredential};

/// What a request is signed with.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessKey {
    /// Its public part.
    pub id: String,
    /// Its secret part.
    pub secret: String,
    /// Of keys that expire.
    pub token: Option<String>,
}

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Who has keys that are valid now. Asked before every request, so it keeps what it has until that is about to
/// expire.
#[async_trait]
pub trait KeySource: std::fmt::Debug + Send + Sync {
    /// A key that is valid for the next minute at least.
    ///
    /// # Errors
    /// When there is none; told as `Unauthenticated`.
    async fn access_key(&self) -> Result<AccessKey, Box<dyn std::error::Error + Send + Sync>>;
}

/// As the client of buckets takes them.
#[derive(Debug)]
pub(super) struct Provider(pub(super) Arc<dyn KeySource>);

#[async_trait]
impl CredentialProvider for Provider {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let key = self.0.access_key().await.map_err(|source| object_store::Error::Unauthenticated {
            path: "the bucket".to_owned(),
            source,
        })?;
        Ok(Arc::new(AwsCredential { key_id: key.id, secret_key: key.secret, token: key.token }))
    }
}
