//! Objects that are JSON documents.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use super::{Store, StoreError, StoreErrorKind, Version};

impl Store {
    /// JSON of [`Store::get_versioned`]; refuses content that does not parse as `Corrupt`, naming the key.
    ///
    /// # Errors
    /// `Corrupt` and what the backend meets.
    pub async fn get_json<T: DeserializeOwned>(&self, key: &str) -> Result<Option<(T, Version)>, StoreError> {
        let Some((content, version)) = self.get_versioned(key).await? else { return Ok(None) };
        let value = serde_json::from_slice(&content)
            .map_err(|e| StoreError::new(StoreErrorKind::Corrupt, "reading", key, e))?;
        Ok(Some((value, version)))
    }

    /// JSON of [`Store::put`].
    ///
    /// # Errors
    /// As there.
    pub async fn put_json<T: Serialize + Sync>(&self, key: &str, value: &T) -> Result<Version, StoreError> {
        self.put(key, text("writing", key, value)?).await
    }

    /// JSON of [`Store::create`].
    ///
    /// # Errors
    /// As there.
    pub async fn create_json<T: Serialize + Sync>(
        &self,
        key: &str,
        value: &T,
    ) -> Result<Version, StoreError> {
        self.create(key, text("creating", key, value)?).await
    }

    /// JSON of [`Store::update`].
    ///
    /// # Errors
    /// As there.
    pub async fn update_json<T: Serialize + Sync>(
        &self,
        key: &str,
        value: &T,
        over: &Version,
    ) -> Result<Version, StoreError> {
        self.update(key, text("updating", key, value)?, over).await
    }
}

fn text<T: Serialize>(operation: &'static str, key: &str, value: &T) -> Result<Bytes, StoreError> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|e| StoreError::new(StoreErrorKind::Other, operation, key, e))?;
    text.push(b'\n');
    Ok(text.into())
}
