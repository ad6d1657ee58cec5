//! One [`Store`] over memory, `file://` and S3.

use bytes::Bytes;
use futures::stream::BoxStream;
use jiff::{SignedDuration, Timestamp};
use serde::{Serialize, de::DeserializeOwned};
use url::Url;

/// What a caller can act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoreErrorKind {
    /// No such object.
    NotFound,
    /// A create-only write met an object.
    AlreadyExists,
    /// A compare-and-swap met another version.
    Conflict,
    /// The credentials are missing, expired or wrong.
    Unauthenticated,
    /// They do not allow this.
    PermissionDenied,
    /// The disk is full.
    NoSpace,
    /// The content is not what its name or version promises.
    Corrupt,
    /// The store cannot be reached or is overloaded; trying again may help.
    Unavailable,
    /// The URL is wrong, or the backend lacks something that is needed.
    Unsupported,
    /// Anything else.
    Other,
}

/// What was being done to what, and why it failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {key}")]
pub struct StoreError {
    /// What a caller can act on.
    pub kind: StoreErrorKind,
    /// `reading`, `writing`, `listing`, …
    pub operation: &'static str,
    /// Key or URL.
    pub key: String,
    /// Cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StoreError {
    /// Whether trying again may help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind, StoreErrorKind::Unavailable)
    }
}

/// Opaque version of an object, for compare-and-swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version(pub(crate) String);

/// What listing tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Key, relative to the store's root.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// By the store's clock.
    pub modified: Timestamp,
}

/// A bucket, a folder or a piece of memory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {}

impl Store {
    /// `memory://`, `file:///path`, `s3://bucket/prefix`. S3 takes region, endpoint and credentials from the
    /// environment (`AWS_*`) or the instance. A folder that does not exist is made.
    pub fn open(_url: &Url) -> Result<Self, StoreError> {
        unimplemented!()
    }
    /// A new, empty one.
    pub fn memory() -> Self {
        unimplemented!()
    }
    /// Where it is.
    pub fn url(&self) -> &Url {
        unimplemented!()
    }

    /// Whole object.
    pub async fn get(&self, _key: &str) -> Result<Bytes, StoreError> {
        unimplemented!()
    }
    /// Whole object with its version; `None` when there is none.
    pub async fn get_versioned(&self, _key: &str) -> Result<Option<(Bytes, Version)>, StoreError> {
        unimplemented!()
    }
    /// In pieces, for objects that should not be in memory at once.
    pub async fn get_stream(
        &self,
        _key: &str,
    ) -> Result<BoxStream<'static, Result<Bytes, StoreError>>, StoreError> {
        unimplemented!()
    }
    /// `None` when there is none.
    pub async fn head(&self, _key: &str) -> Result<Option<ObjectInfo>, StoreError> {
        unimplemented!()
    }
    /// Overwrites.
    pub async fn put(&self, _key: &str, _content: Bytes) -> Result<Version, StoreError> {
        unimplemented!()
    }
    /// Overwrites from a file of any size (multipart where the backend has it), atomically: never half an object.
    pub async fn put_file(&self, _key: &str, _file: &std::path::Path) -> Result<(), StoreError> {
        unimplemented!()
    }
    /// Writes only when there is none: `AlreadyExists` otherwise.
    pub async fn create(&self, _key: &str, _content: Bytes) -> Result<Version, StoreError> {
        unimplemented!()
    }
    /// Writes only over that version: `Conflict` otherwise, also when the object is gone.
    pub async fn update(&self, _key: &str, _content: Bytes, _over: &Version) -> Result<Version, StoreError> {
        unimplemented!()
    }
    /// Absent is success.
    pub async fn delete(&self, _key: &str) -> Result<(), StoreError> {
        unimplemented!()
    }
    /// Everything below a prefix; how many there were. Absent is success.
    pub async fn delete_prefix(&self, _prefix: &str) -> Result<u64, StoreError> {
        unimplemented!()
    }
    /// Objects below a folder-like prefix, in order of their keys, after a key when given.
    pub fn list(
        &self,
        _prefix: &str,
        _after: Option<&str>,
    ) -> BoxStream<'static, Result<ObjectInfo, StoreError>> {
        unimplemented!()
    }
    /// Names of the folders directly below a prefix.
    pub async fn list_folders(&self, _prefix: &str) -> Result<Vec<String>, StoreError> {
        unimplemented!()
    }

    /// JSON of [`Store::get_versioned`]; refuses content that does not parse as `Corrupt`, naming the key.
    pub async fn get_json<T: DeserializeOwned>(
        &self,
        _key: &str,
    ) -> Result<Option<(T, Version)>, StoreError> {
        unimplemented!()
    }
    /// JSON of [`Store::put`].
    pub async fn put_json<T: Serialize + Sync>(&self, _key: &str, _value: &T) -> Result<Version, StoreError> {
        unimplemented!()
    }
    /// JSON of [`Store::create`].
    pub async fn create_json<T: Serialize + Sync>(
        &self,
        _key: &str,
        _value: &T,
    ) -> Result<Version, StoreError> {
        unimplemented!()
    }
    /// JSON of [`Store::update`].
    pub async fn update_json<T: Serialize + Sync>(
        &self,
        _key: &str,
        _value: &T,
        _over: &Version,
    ) -> Result<Version, StoreError> {
        unimplemented!()
    }

    /// The store's clock minus this computer's, measured by writing and looking at a small object below
    /// `prefix`; what a machine corrects its own clock by.
    pub async fn clock_offset(&self, _prefix: &str) -> Result<SignedDuration, StoreError> {
        unimplemented!()
    }
}
