//! One [`Store`] over memory, `file://` and S3.
//!
//! Conditional writes, on which slots and records rest:
//!
//! | backend | create-only | compare-and-swap | version |
//! |---|---|---|---|
//! | memory | native | native | counter |
//! | S3 | `If-None-Match: *` | `If-Match` | ETag |
//! | `file://` | hard link | exclusive `flock`, compare, rename | BLAKE3 of the content |
//!
//! On S3 a conditional write whose answer was lost is sent again and then meets itself. So each one carries a
//! random mark as metadata, and a refusal is believed only when the object there does not bear it.
//!
//! A version may come back when the same bytes are written again (not in memory), so what is swapped carries a
//! counter or the writer's name.

mod clock;
mod errors;
mod folder;
mod json;
mod key;
mod keys;
mod listing;
mod s3;
mod sign;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use jiff::Timestamp;
use object_store::{
    ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, UpdateVersion, aws::AmazonS3, memory::InMemory,
    path::Path as ObjectPath,
};
use url::Url;

pub use errors::{StoreError, StoreErrorKind};
use folder::{Content, Folder, Outcome, Over};
pub use keys::{AccessKey, KeySource};
pub use sign::{Unsigned, sign_aws_v4};

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

/// A bucket, a folder or a piece of memory. Cheap to clone; clones of a memory store share their objects.
///
/// Keys are relative, of ASCII letters, digits and `-_.+=@,:!`, in parts between single slashes, none of them
/// `.` or `..`; anything else is refused as `Unsupported`.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    url: Url,
    /// Put before every key; without slashes at its ends.
    prefix: String,
    backend: Backend,
}

#[derive(Debug)]
enum Backend {
    Memory(InMemory),
    Folder(Arc<Folder>),
    S3(AmazonS3),
}

impl Store {
    /// `memory://`, `file:///path`, `s3://bucket/prefix`. S3 takes region, endpoint and credentials from the
    /// environment (`AWS_*`) or the instance. A folder that does not exist is made.
    ///
    /// # Errors
    /// `Unsupported` when the URL is none of these; whatever making the folder met. S3 is not contacted.
    pub fn open(url: &Url) -> Result<Self, StoreError> {
        let settings = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, value)| name.starts_with("AWS_") && !value.is_empty());
        Self::open_with(url, settings)
    }

    /// [`Store::open`] with variables (`AWS_*`) that are not those of the process.
    ///
    /// # Errors
    /// As there.
    pub fn open_with(
        url: &Url,
        settings: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, StoreError> {
        Self::open_from(url, settings, None)
    }

    /// [`Store::open_with`] with keys from elsewhere: neither environment nor instance are asked for any.
    ///
    /// # Errors
    /// As there.
    pub fn open_with_keys(
        url: &Url,
        settings: impl IntoIterator<Item = (String, String)>,
        keys: Arc<dyn KeySource>,
    ) -> Result<Self, StoreError> {
        Self::open_from(url, settings, Some(keys))
    }

    fn open_from(
        url: &Url,
        settings: impl IntoIterator<Item = (String, String)>,
        keys: Option<Arc<dyn KeySource>>,
    ) -> Result<Self, StoreError> {
        let refuse =
            |cause: &str| StoreError::new(StoreErrorKind::Unsupported, "opening", url.as_str(), cause);
        match url.scheme() {
            "memory" => Ok(Self::memory()),
            "file" => {
                let path = url.to_file_path().map_err(|()| refuse("the URL has no local path"))?;
                let folder =
                    Folder::open(&path).map_err(|e| StoreError::of_io("opening", url.as_str(), e))?;
                Ok(Self::over(url.clone(), String::new(), Backend::Folder(Arc::new(folder))))
            }
            "s3" => {
                let bucket = url
                    .host_str()
                    .filter(|host| !host.is_empty())
                    .ok_or_else(|| refuse("the URL names no bucket"))?;
                let prefix = url.path().trim_matches('/').to_owned();
                if !prefix.is_empty() {
                    key::object("opening", "", &prefix)?;
                }
                let s3 = s3::open(bucket, settings, keys)
                    .map_err(|e| StoreError::of("opening", url.as_str(), e))?;
                Ok(Self::over(url.clone(), prefix, Backend::S3(s3)))
            }
            other => Err(refuse(&format!("{other:?} is none of memory, file and s3"))),
        }
    }

    /// A new, empty one.
    #[must_use]
    pub fn memory() -> Self {
        #[expect(clippy::expect_used, reason = "a constant")]
        let url = Url::parse("memory:///").expect("a valid URL");
        Self::over(url, String::new(), Backend::Memory(InMemory::new()))
    }

    fn over(url: Url, prefix: String, backend: Backend) -> Self {
        Self { inner: Arc::new(Inner { url, prefix, backend }) }
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.inner.url
    }

    /// The folder of a `file://` store: it must not be sent into itself.
    pub(crate) fn folder(&self) -> Option<&Path> {
        match &self.inner.backend {
            Backend::Folder(folder) => Some(&folder.root),
            Backend::Memory(_) | Backend::S3(_) => None,
        }
    }

    fn objects(&self) -> &dyn ObjectStore {
        match &self.inner.backend {
            Backend::Memory(memory) => memory,
            Backend::Folder(folder) => &folder.reader,
            Backend::S3(s3) => s3,
        }
    }

    fn path(&self, operation: &'static str, key: &str) -> Result<ObjectPath, StoreError> {
        key::object(operation, &self.inner.prefix, key)
    }

    /// An object that is missing because the whole folder has gone is not `NotFound`.
    fn explain(&self, operation: &'static str, key: &str, error: object_store::Error) -> StoreError {
        let error = StoreError::of(operation, key, error);
        match &self.inner.backend {
            Backend::Folder(folder) if error.kind == StoreErrorKind::NotFound => match folder.check_root() {
                Ok(()) => error,
                Err(gone) => StoreError::of_io(operation, key, gone),
            },
            Backend::Folder(_) | Backend::Memory(_) | Backend::S3(_) => error,
        }
    }

    /// S3 tells those who may not list the whole bucket that an object is forbidden when it is absent. Machines
    /// may list their own task, so they look there.
    async fn explain_absence(
        &self,
        operation: &'static str,
        key: &str,
        path: &ObjectPath,
        error: object_store::Error,
    ) -> StoreError {
        let error = self.explain(operation, key, error);
        match &self.inner.backend {
            Backend::S3(s3)
                if error.kind == StoreErrorKind::PermissionDenied && s3::is_absent(s3, path).await =>
            {
                StoreError { kind: StoreErrorKind::NotFound, ..error }
            }
            Backend::S3(_) | Backend::Memory(_) | Backend::Folder(_) => error,
        }
    }

    /// Whole object.
    ///
    /// # Errors
    /// `NotFound` and what the backend meets.
    pub async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        let path = self.path("reading", key)?;
        let result = match self.objects().get(&path).await {
            Ok(found) => found.bytes().await,
            Err(e) => Err(e),
        };
        match result {
            Ok(content) => Ok(content),
            Err(e) => Err(self.explain_absence("reading", key, &path, e).await),
        }
    }

    /// Whole object with its version; `None` when there is none.
    ///
    /// # Errors
    /// What the backend meets.
    pub async fn get_versioned(&self, key: &str) -> Result<Option<(Bytes, Version)>, StoreError> {
        let path = self.path("reading", key)?;
        let result = async {
            let found = self.objects().get(&path).await?;
            let tag = found.meta.e_tag.clone();
            Ok((found.bytes().await?, tag))
        };
        match result.await {
            Ok((content, tag)) => {
                let version = match &self.inner.backend {
                    Backend::Folder(_) => folder::version(&content),
                    Backend::Memory(_) | Backend::S3(_) => require_tag("reading", key, tag)?,
                };
                Ok(Some((content, Version(version))))
            }
            Err(e) => match self.explain_absence("reading", key, &path, e).await {
                e if e.kind == StoreErrorKind::NotFound => Ok(None),
                e => Err(e),
            },
        }
    }

    /// In pieces, for objects that should not be in memory at once.
    ///
    /// # Errors
    /// `NotFound` and what the backend meets, at once or in the stream.
    pub async fn get_stream(
        &self,
        key: &str,
    ) -> Result<BoxStream<'static, Result<Bytes, StoreError>>, StoreError> {
        let path = self.path("reading", key)?;
        let found = match self.objects().get(&path).await {
            Ok(found) => found,
            Err(e) => return Err(self.explain_absence("reading", key, &path, e).await),
        };
        let key = key.to_owned();
        Ok(found.into_stream().map_err(move |e| StoreError::of("reading", &key, e)).boxed())
    }

    /// `None` when there is none.
    ///
    /// # Errors
    /// What the backend meets.
    pub async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StoreError> {
        let path = self.path("looking at", key)?;
        match self.objects().head(&path).await {
            Ok(meta) => self.info(&meta).map(Some),
            Err(e) => match self.explain_absence("looking at", key, &path, e).await {
                e if e.kind == StoreErrorKind::NotFound => Ok(None),
                e => Err(e),
            },
        }
    }

    fn info(&self, meta: &ObjectMeta) -> Result<ObjectInfo, StoreError> {
        let location = meta.location.as_ref();
        let key = match self.inner.prefix.as_str() {
            "" => location,
            prefix => location.strip_prefix(prefix).and_then(|key| key.strip_prefix('/')).unwrap_or(location),
        };
        let nanos = i128::from(meta.last_modified.timestamp()) * 1_000_000_000
            + i128::from(meta.last_modified.timestamp_subsec_nanos());
        let modified = Timestamp::from_nanosecond(nanos)
            .map_err(|e| StoreError::new(StoreErrorKind::Corrupt, "reading the time of", key, e))?;
        Ok(ObjectInfo { key: key.to_owned(), size: meta.size, modified })
    }

    /// Overwrites.
    ///
    /// # Errors
    /// What the backend meets. After `Unavailable` the object may have been written all the same.
    pub async fn put(&self, key: &str, content: Bytes) -> Result<Version, StoreError> {
        let path = self.path("writing", key)?;
        let tag = match &self.inner.backend {
            Backend::Folder(folder) => {
                return match self.write(folder, "writing", key, path, Data::Bytes(content), None).await? {
                    Outcome::Written(version) => Ok(Version(version)),
                    Outcome::Exists | Outcome::Changed => Err(Self::impossible("writing", key)),
                };
            }
            Backend::Memory(memory) => memory.put(&path, content.into()).await.map(|result| result.e_tag),
            Backend::S3(s3) => s3::put(s3, &path, content).await,
        };
        let tag = tag.map_err(|e| StoreError::of("writing", key, e))?;
        require_tag("writing", key, tag).map(Version)
    }

    /// Overwrites from a file of any size (multipart where the backend has it), atomically: never half an object.
    ///
    /// # Errors
    /// What reading the file or the backend meets.
    pub async fn put_file(&self, key: &str, file: &Path) -> Result<(), StoreError> {
        let path = self.path("writing", key)?;
        let local = |e| StoreError::new(StoreErrorKind::Other, "reading the file for", key, e);
        match &self.inner.backend {
            Backend::Folder(folder) => {
                let data = Data::File(file.to_owned());
                self.write(folder, "writing", key, path, data, None).await.map(|_| ())
            }
            Backend::Memory(_) => {
                let content = tokio::fs::read(file).await.map_err(local)?;
                self.put(key, content.into()).await.map(|_| ())
            }
            Backend::S3(s3) => s3::put_file(s3, &path, key, file).await,
        }
    }

    /// Writes only when there is none: `AlreadyExists` otherwise.
    ///
    /// # Errors
    /// `AlreadyExists`, and what the backend meets. After `Unavailable` the object may have been written all the same.
    pub async fn create(&self, key: &str, content: Bytes) -> Result<Version, StoreError> {
        let path = self.path("creating", key)?;
        let result = match &self.inner.backend {
            Backend::Folder(folder) => {
                let data = Data::Bytes(content);
                return match self.write(folder, "creating", key, path, data, Some(None)).await? {
                    Outcome::Written(version) => Ok(Version(version)),
                    Outcome::Exists | Outcome::Changed => Err(StoreError {
                        kind: StoreErrorKind::AlreadyExists,
                        operation: "creating",
                        key: key.to_owned(),
                        source: None,
                    }),
                };
            }
            Backend::Memory(memory) => memory
                .put_opts(&path, content.into(), PutMode::Create.into())
                .await
                .map(|result| result.e_tag),
            Backend::S3(s3) => s3::put_marked(s3, &path, content, PutMode::Create).await,
        };
        let tag = result.map_err(|e| {
            let e = StoreError::of("creating", key, e);
            // Some servers answer "precondition failed".
            if e.kind == StoreErrorKind::Conflict {
                StoreError { kind: StoreErrorKind::AlreadyExists, ..e }
            } else {
                e
            }
        })?;
        require_tag("creating", key, tag).map(Version)
    }

    /// Writes only over that version: `Conflict` otherwise, also when the object is gone.
    ///
    /// # Errors
    /// `Conflict`, and what the backend meets. After `Unavailable` the object may have been written all the same.
    pub async fn update(&self, key: &str, content: Bytes, over: &Version) -> Result<Version, StoreError> {
        let path = self.path("updating", key)?;
        let mode = PutMode::Update(UpdateVersion { e_tag: Some(over.0.clone()), version: None });
        let result = match &self.inner.backend {
            Backend::Folder(folder) => {
                let data = Data::Bytes(content);
                let over = Some(Some(over.0.clone()));
                return match self.write(folder, "updating", key, path, data, over).await? {
                    Outcome::Written(version) => Ok(Version(version)),
                    Outcome::Exists | Outcome::Changed => Err(StoreError {
                        kind: StoreErrorKind::Conflict,
                        operation: "updating",
                        key: key.to_owned(),
                        source: None,
                    }),
                };
            }
            Backend::Memory(memory) => {
                memory.put_opts(&path, content.into(), mode.into()).await.map(|result| result.e_tag)
            }
            Backend::S3(s3) => s3::put_marked(s3, &path, content, mode).await,
        };
        let tag = match result {
            Ok(tag) => tag,
            Err(e) => {
                let e = self.explain_absence("updating", key, &path, e).await;
                // 409, or 404 when the object is gone.
                let conflict = matches!(e.kind, StoreErrorKind::AlreadyExists | StoreErrorKind::NotFound);
                return Err(if conflict { StoreError { kind: StoreErrorKind::Conflict, ..e } } else { e });
            }
        };
        require_tag("updating", key, tag).map(Version)
    }

    /// Absent is success.
    ///
    /// # Errors
    /// What the backend meets.
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let path = self.path("deleting", key)?;
        self.delete_path(key, path).await
    }

    async fn delete_path(&self, key: &str, path: ObjectPath) -> Result<(), StoreError> {
        match &self.inner.backend {
            Backend::Folder(folder) => {
                let folder = Arc::clone(folder);
                blocking("deleting", key, move || folder.delete(&path)).await
            }
            Backend::Memory(_) | Backend::S3(_) => match self.objects().delete(&path).await {
                Ok(()) => Ok(()),
                Err(e) => match StoreError::of("deleting", key, e) {
                    e if e.kind == StoreErrorKind::NotFound => Ok(()),
                    e => Err(e),
                },
            },
        }
    }

    async fn write(
        &self,
        folder: &Arc<Folder>,
        operation: &'static str,
        key: &str,
        path: ObjectPath,
        data: Data,
        over: Option<Option<String>>,
    ) -> Result<Outcome, StoreError> {
        let folder = Arc::clone(folder);
        blocking(operation, key, move || {
            let content = match &data {
                Data::Bytes(bytes) => Content::Bytes(bytes),
                Data::File(file) => Content::File(file),
            };
            let over = match &over {
                None => Over::Anything,
                Some(None) => Over::Nothing,
                Some(Some(version)) => Over::Version(version),
            };
            folder.write(&path, &content, &over)
        })
        .await
    }

    fn impossible(operation: &'static str, key: &str) -> StoreError {
        StoreError::new(StoreErrorKind::Other, operation, key, "an unconditional write was refused")
    }
}

enum Data {
    Bytes(Bytes),
    File(PathBuf),
}

fn require_tag(operation: &'static str, key: &str, tag: Option<String>) -> Result<String, StoreError> {
    tag.ok_or_else(|| {
        StoreError::new(
            StoreErrorKind::Unsupported,
            operation,
            key,
            "the store gives no ETag, without which nothing can be swapped",
        )
    })
}

async fn blocking<T: Send + 'static>(
    operation: &'static str,
    key: &str,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|e| StoreError::of_io(operation, key, e)),
        Err(e) => Err(StoreError::new(StoreErrorKind::Other, operation, key, e)),
    }
}
