//! What there is below a prefix, and taking all of it away.

use futures::{
    FutureExt, StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use object_store::ObjectStore;

use super::{Backend, ObjectInfo, Store, StoreError, StoreErrorKind, folder, key};

/// Deletions at once in a folder.
const DELETIONS_AT_ONCE: usize = 16;

impl Store {
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

    /// All of these; absent is success.
    ///
    /// # Errors
    /// What the backend meets; some may be gone then.
    pub(crate) async fn delete_all(&self, keys: Vec<String>) -> Result<(), StoreError> {
        match &self.inner.backend {
            Backend::S3(s3) => {
                let paths: Result<Vec<_>, _> = keys.iter().map(|key| self.path("deleting", key)).collect();
                let mut deleted = s3.delete_stream(stream::iter(paths?.into_iter().map(Ok)).boxed());
                while let Some(result) = deleted.next().await {
                    match result {
                        Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                        Err(e) => {
                            let first = keys.first().map_or("", String::as_str);
                            return Err(StoreError::of("deleting", first, e));
                        }
                    }
                }
                Ok(())
            }
            Backend::Memory(_) | Backend::Folder(_) => {
                stream::iter(keys)
                    .map(|key| async move { self.delete(&key).await })
                    .buffer_unordered(DELETIONS_AT_ONCE)
                    .try_collect()
                    .await
            }
        }
    }

    /// Everything below a prefix; how many there were. Absent is success.
    ///
    /// # Errors
    /// What the backend meets; what was deleted until then is gone.
    pub async fn delete_prefix(&self, prefix: &str) -> Result<u64, StoreError> {
        // In lots, so that an error of the listing is not lost in the deletion's stream.
        let mut lots = self.list(prefix, None).try_chunks(1000);
        let mut count = 0;
        while let Some(lot) = lots.next().await {
            let lot = lot.map_err(|e| e.1)?;
            count += lot.len() as u64;
            self.delete_all(lot.into_iter().map(|info| info.key).collect()).await?;
        }
        Ok(count)
    }
}

/// Names that the file backend keeps for itself.
fn hidden(key: &str) -> bool {
    key.split('/').next() == Some(folder::PRIVATE)
}
