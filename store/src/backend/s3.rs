//! Writing to a bucket: in parts when large, and so that a conditional write knows itself again.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt as _;
use object_store::{
    Attribute, Attributes, BackoffConfig, ClientOptions, GetOptions, ObjectStore, ObjectStoreExt, PutMode,
    PutOptions, PutPayload, RetryConfig, WriteMultipart,
    aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut},
    path::Path as ObjectPath,
};
use tokio::io::AsyncReadExt;

use super::{
    StoreError, StoreErrorKind,
    keys::{KeySource, Provider},
};

/// Larger objects go to S3 in parts of this size, so that one request is never long on a slow link.
const PART: usize = 8 << 20;
/// Parts of one object that travel at once.
const PARTS_AT_ONCE: usize = 3;
/// Metadata that marks a conditional write.
const MARK: &str = "tpi-write";

/// A client of that bucket; nothing is sent yet.
pub(super) fn open(
    bucket: &str,
    settings: impl IntoIterator<Item = (String, String)>,
    keys: Option<Arc<dyn KeySource>>,
) -> object_store::Result<AmazonS3> {
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
    if let Some(keys) = keys {
        builder = builder.with_credentials(Arc::new(Provider(keys)));
    }
    builder.build()
}

/// Whether a listing of its folder shows that an object is not there; `false` when that may not be listed.
pub(super) async fn is_absent(s3: &AmazonS3, path: &ObjectPath) -> bool {
    let key = path.as_ref();
    let Some((folder, _)) = key.rsplit_once('/') else { return false };
    // Keys are ASCII. What comes after all but its last letter begins with it or comes after it.
    let before = key.get(..key.len().saturating_sub(1)).unwrap_or_default();
    let (Ok(folder), Ok(before)) = (ObjectPath::parse(folder), ObjectPath::parse(before)) else {
        return false;
    };
    let mut found = s3.list_with_offset(Some(&folder), &before);
    loop {
        match found.next().await {
            None => return true,
            Some(Ok(object)) if object.location < *path => {}
            Some(Ok(object)) => return object.location != *path,
            Some(Err(_)) => return false,
        }
    }
}

/// The whole object, in parts when it is large; its ETag.
pub(super) async fn put(
    s3: &AmazonS3,
    path: &ObjectPath,
    content: Bytes,
) -> object_store::Result<Option<String>> {
    if content.len() > PART + PART / 2 {
        return put_parts(s3, path, content).await;
    }
    s3.put(path, content.into()).await.map(|result| result.e_tag)
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

/// [`Store::put_file`](super::Store::put_file) in a bucket; `key` is what errors name.
pub(super) async fn put_file(
    s3: &AmazonS3,
    path: &ObjectPath,
    key: &str,
    file: &Path,
) -> Result<(), StoreError> {
    let local = |e| StoreError::new(StoreErrorKind::Other, "reading the file for", key, e);
    let remote = |e| StoreError::of("writing", key, e);
    let mut file = tokio::fs::File::open(file).await.map_err(local)?;
    let size = file.metadata().await.map_err(local)?.len();
    if size <= PART as u64 {
        let mut content = Vec::new();
        file.read_to_end(&mut content).await.map_err(local)?;
        return put(s3, path, content.into()).await.map(|_| ()).map_err(remote);
    }
    let upload = s3.put_multipart(path).await.map_err(remote)?;
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

async fn abort(parts: WriteMultipart) {
    if let Err(error) = parts.abort().await {
        tracing::debug!(%error, "unfinished upload not removed; the bucket's lifecycle does it");
    }
}

/// A conditional write that knows itself again when its first answer was lost.
pub(super) async fn put_marked(
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
