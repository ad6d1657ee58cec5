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

mod errors;
mod folder;
mod key;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{
    FutureExt, StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use jiff::{SignedDuration, Timestamp};
use object_store::{
    Attribute, Attributes, BackoffConfig, ClientOptions, GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, PutOptions, PutPayload, RetryConfig, UpdateVersion, WriteMultipart,
    aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut},
    memory::InMemory,
    path::Path as ObjectPath,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::AsyncReadExt;
use url::Url;

use folder::{Content, Folder, Outcome, Over};

/// Larger objects go to S3 in parts of this size, so that one request is never long on a slow link.
const PART: usize = 8 << 20;
/// Parts of one object that travel at once.
const PARTS_AT_ONCE: usize = 3;
/// Deletions at once in a folder.
const DELETIONS_AT_ONCE: usize = 16;
/// Metadata that marks a conditional write.
const MARK: &str = "tpi-write";

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
                let s3 = s3(bucket, settings).map_err(|e| StoreError::of("opening", url.as_str(), e))?;
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
        result.map_err(|e| self.explain("reading", key, e))
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
            Err(e) => match self.explain("reading", key, e) {
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
        let found = self.objects().get(&path).await.map_err(|e| self.explain("reading", key, e))?;
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
            Err(e) => match self.explain("looking at", key, e) {
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
            Backend::S3(s3) if content.len() > PART + PART / 2 => put_parts(s3, &path, content).await,
            Backend::S3(s3) => s3.put(&path, content.into()).await.map(|result| result.e_tag),
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
            Backend::S3(s3) => {
                let mut file = tokio::fs::File::open(file).await.map_err(local)?;
                let size = file.metadata().await.map_err(local)?.len();
                if size <= PART as u64 {
                    let mut content = Vec::new();
                    file.read_to_end(&mut content).await.map_err(local)?;
                    return self.put(key, content.into()).await.map(|_| ());
                }
                let remote = |e| StoreError::of("writing", key, e);
                let upload = s3.put_multipart(&path).await.map_err(remote)?;
                let mut parts = WriteMultipart::new_with_chunk_size(upload, PART);
                loop {
                    let mut part = bytes::BytesMut::with_capacity(PART);
                    while part.len() < PART {
                        match file.read_buf(&mut part).await {
                            Ok(0) => break,
                            Ok(_) => {}
                            Err(e) => {
                                abort(parts).await;
                                return Err(local(e));
                            }
                        }
                    }
                    if part.is_empty() {
                        break;
                    }
                    parts.put(part.freeze());
                    if let Err(e) = parts.wait_for_capacity(PARTS_AT_ONCE).await {
                        abort(parts).await;
                        return Err(remote(e));
                    }
                }
                parts.finish().await.map(|_| ()).map_err(remote)
            }
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
            Backend::S3(s3) => put_marked(s3, &path, content, PutMode::Create).await,
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
            Backend::S3(s3) => put_marked(s3, &path, content, mode).await,
        };
        let tag = result.map_err(|e| {
            let e = StoreError::of("updating", key, e);
            // 409, or 404 when the object is gone.
            if matches!(e.kind, StoreErrorKind::AlreadyExists | StoreErrorKind::NotFound) {
                StoreError { kind: StoreErrorKind::Conflict, ..e }
            } else {
                e
            }
        })?;
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

    /// Everything below a prefix; how many there were. Absent is success.
    ///
    /// # Errors
    /// What the backend meets; what was deleted until then is gone.
    pub async fn delete_prefix(&self, prefix: &str) -> Result<u64, StoreError> {
        let listed = self.list(prefix, None);
        match &self.inner.backend {
            Backend::S3(s3) => {
                let mut count = 0;
                // In lots, so that an error of the listing is not lost in the deletion's stream.
                let mut lots = listed.try_chunks(1000);
                while let Some(lot) = lots.next().await {
                    let lot = lot.map_err(|e| e.1)?;
                    let mut paths = Vec::with_capacity(lot.len());
                    for info in &lot {
                        paths.push(Ok(self.path("deleting", &info.key)?));
                    }
                    let mut deleted = s3.delete_stream(stream::iter(paths).boxed());
                    while let Some(result) = deleted.next().await {
                        match result {
                            Ok(_) | Err(object_store::Error::NotFound { .. }) => count += 1,
                            Err(e) => return Err(StoreError::of("deleting", prefix, e)),
                        }
                    }
                }
                Ok(count)
            }
            Backend::Memory(_) | Backend::Folder(_) => {
                listed
                    .map_ok(|info| async move { self.delete(&info.key).await.map(|()| 1) })
                    .try_buffer_unordered(DELETIONS_AT_ONCE)
                    .try_fold(0, |sum, one| async move { Ok(sum + one) })
                    .await
            }
        }
    }

    /// Objects below a folder-like prefix, in order of their keys, after a key when given.
    ///
    /// A folder is read whole before the first object comes; S3 is read a thousand at a time.
    pub fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> BoxStream<'static, Result<ObjectInfo, StoreError>> {
        let paths = key::folder("listing", &self.inner.prefix, prefix).and_then(|folder| {
            let after = after.map(|key| self.path("listing", key)).transpose()?;
            Ok((folder, after))
        });
        let (folder, after) = match paths {
            Ok(paths) => paths,
            Err(e) => return stream::once(async move { Err(e) }).boxed(),
        };
        let found = match &after {
            Some(after) => self.objects().list_with_offset(folder.as_ref(), after),
            None => self.objects().list(folder.as_ref()),
        };
        let store = self.clone();
        let name = prefix.to_owned();
        let infos = found
            .map(move |meta| match meta {
                Ok(meta) => store.info(&meta),
                Err(e) => Err(store.explain("listing", &name, e)),
            })
            .try_filter(|info| futures::future::ready(!hidden(&info.key)));
        match &self.inner.backend {
            Backend::S3(_) => infos.boxed(),
            Backend::Memory(_) | Backend::Folder(_) => {
                let store = self.clone();
                let name = prefix.to_owned();
                async move {
                    let sorted = store.check_root("listing", &name).map(|()| infos);
                    let sorted = match sorted {
                        Ok(infos) => infos.try_collect::<Vec<_>>().await,
                        Err(e) => Err(e),
                    };
                    match sorted {
                        Ok(mut all) => {
                            all.sort_by(|a, b| a.key.cmp(&b.key));
                            stream::iter(all.into_iter().map(Ok)).boxed()
                        }
                        Err(e) => stream::iter([Err(e)]).boxed(),
                    }
                }
                .flatten_stream()
                .boxed()
            }
        }
    }

    fn check_root(&self, operation: &'static str, key: &str) -> Result<(), StoreError> {
        match &self.inner.backend {
            Backend::Folder(folder) => folder.check_root().map_err(|e| StoreError::of_io(operation, key, e)),
            Backend::Memory(_) | Backend::S3(_) => Ok(()),
        }
    }

    /// Names of the folders directly below a prefix, in order.
    ///
    /// # Errors
    /// What the backend meets.
    pub async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let folder = key::folder("listing", &self.inner.prefix, prefix)?;
        self.check_root("listing", prefix)?;
        let found = match self.objects().list_with_delimiter(folder.as_ref()).await {
            Ok(found) => found,
            Err(e) => match StoreError::of("listing", prefix, e) {
                e if e.kind == StoreErrorKind::NotFound => return Ok(Vec::new()),
                e => return Err(e),
            },
        };
        let mut names: Vec<String> = found
            .common_prefixes
            .iter()
            .filter_map(|path| path.filename().map(str::to_owned))
            .filter(|name| !(folder.is_none() && hidden(name)))
            .collect();
        names.sort();
        Ok(names)
    }

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
        self.put(key, json("writing", key, value)?).await
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
        self.create(key, json("creating", key, value)?).await
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
        self.update(key, json("updating", key, value)?, over).await
    }

    /// The store's clock minus this computer's, measured by writing and looking at a small object below
    /// `prefix`; what a machine corrects its own clock by. Right to about a second (S3 tells whole seconds).
    ///
    /// # Errors
    /// What the backend meets.
    pub async fn clock_offset(&self, prefix: &str) -> Result<SignedDuration, StoreError> {
        let key =
            format!("{}/clock-{}", prefix.trim_end_matches('/'), hex::encode(rand::random::<[u8; 8]>()));
        let before = Timestamp::now();
        let started = std::time::Instant::now();
        self.put(&key, Bytes::from_static(b"clock")).await?;
        let written = started.elapsed();
        let found = self.head(&key).await;
        self.delete(&key).await?;
        let info = found?.ok_or_else(|| {
            StoreError::new(StoreErrorKind::Other, "looking at", &key, "gone right after it was written")
        })?;
        let middle = before + SignedDuration::try_from(written / 2).unwrap_or_default();
        let mut offset = info.modified.duration_since(middle);
        if info.modified.subsec_nanosecond() == 0 {
            // Cut to whole seconds: the truth is half a second later in the mean.
            offset += SignedDuration::from_millis(500);
        }
        Ok(offset)
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

/// Names that the file backend keeps for itself.
fn hidden(key: &str) -> bool {
    key.split('/').next() == Some(folder::PRIVATE)
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

fn json<T: Serialize>(operation: &'static str, key: &str, value: &T) -> Result<Bytes, StoreError> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|e| StoreError::new(StoreErrorKind::Other, operation, key, e))?;
    text.push(b'\n');
    Ok(text.into())
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

fn s3(bucket: &str, settings: impl IntoIterator<Item = (String, String)>) -> object_store::Result<AmazonS3> {
    let options = ClientOptions::new()
        .with_connect_timeout(Duration::from_secs(5))
        .with_timeout(Duration::from_secs(60));
    // About half a minute in all; the caller knows better what to do about a longer outage.
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(5),
            base: 2.0,
        },
        max_retries: 6,
        retry_timeout: Duration::from_secs(30),
    };
    let mut builder = AmazonS3Builder::new();
    let mut endpoint = None;
    for (name, value) in settings {
        match name.as_str() {
            // Where a service has its own endpoint, it comes before that of all services.
            "AWS_ENDPOINT_URL_S3" => endpoint = Some(value),
            "AWS_ENDPOINT_URL" | "AWS_ENDPOINT" => endpoint = endpoint.or(Some(value)),
            _ => {
                if let Ok(setting) = name.to_ascii_lowercase().parse() {
                    builder = builder.with_config(setting, value);
                }
            }
        }
    }
    builder = builder
        .with_client_options(options)
        .with_bucket_name(bucket)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_retry(retry);
    if let Some(endpoint) = endpoint {
        builder = builder.with_allow_http(endpoint.starts_with("http://")).with_endpoint(endpoint);
    }
    builder.build()
}

async fn put_parts(s3: &AmazonS3, path: &ObjectPath, content: Bytes) -> object_store::Result<Option<String>> {
    let mut parts = WriteMultipart::new_with_chunk_size(s3.put_multipart(path).await?, PART);
    for start in (0..content.len()).step_by(PART) {
        parts.put(content.slice(start..content.len().min(start + PART)));
        if let Err(e) = parts.wait_for_capacity(PARTS_AT_ONCE).await {
            abort(parts).await;
            return Err(e);
        }
    }
    parts.finish().await.map(|result| result.e_tag)
}

async fn abort(parts: WriteMultipart) {
    if let Err(error) = parts.abort().await {
        tracing::debug!(%error, "unfinished upload not removed; the bucket's lifecycle does it");
    }
}

/// A conditional write that knows itself again when its first answer was lost.
async fn put_marked(
    s3: &AmazonS3,
    path: &ObjectPath,
    content: Bytes,
    mode: PutMode,
) -> object_store::Result<Option<String>> {
    let name = Attribute::Metadata(MARK.into());
    let mark = hex::encode(rand::random::<[u8; 16]>());
    let attributes = Attributes::from_iter([(name.clone(), mark.clone())]);
    let options = PutOptions { mode, attributes, ..PutOptions::default() };
    match s3.put_opts(path, PutPayload::from(content), options).await {
        Ok(result) => Ok(result.e_tag),
        Err(
            refusal @ (object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }),
        ) => {
            let found = s3.get_opts(path, GetOptions::new().with_head(true)).await;
            match found {
                Ok(found) if found.attributes.get(&name).is_some_and(|v| v.as_ref() == mark) => {
                    Ok(found.meta.e_tag)
                }
                Ok(_) | Err(object_store::Error::NotFound { .. }) => Err(refusal),
                // Not known who wrote what is there.
                Err(e) => Err(e),
            }
        }
        Err(e) => Err(e),
    }
}
