//! What the store has already.

use std::collections::{HashMap, HashSet};

use futures::{StreamExt, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{
    SnapshotError, Space,
    index::{Index, PackContents},
    manifest::Manifest,
    objects::object_key,
    tree::{Content, Entry, Kind},
};
use crate::{
    Store, StoreError, StoreErrorKind,
    layout::{CACHE, CACHE_INDEX, TaskKeys},
};

/// Requests at once that only look.
const LOOKS: usize = 32;
const VERSION: u32 = 1;

/// What a pack in the cache holds; stored after the pack, so a pack that is described is there.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Description {
    version: u32,
    contents: PackContents,
}

/// What the cache has of what was asked for.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Pack by content.
    pub(super) small: HashMap<blake3::Hash, blake3::Hash>,
    pub(super) chunks: HashSet<blake3::Hash>,
}

pub(super) fn describe(contents: &[(blake3::Hash, u64)]) -> Description {
    let contents = contents.iter().map(|(hash, size)| (hash.to_hex().to_string(), *size)).collect();
    Description { version: VERSION, contents }
}

impl Description {
    pub(super) async fn store(self, store: &Store, pack: &blake3::Hash) -> Result<PackContents, StoreError> {
        store.put_json(&format!("{CACHE_INDEX}/{}", pack.to_hex()), &self).await?;
        Ok(self.contents)
    }
}

/// Looks for what is needed in the cache. Everything that is found was looked at just now, because objects there
/// expire.
pub(super) async fn find(
    store: &Store,
    base: Option<&Manifest>,
    index: &mut Index,
    small: &HashSet<blake3::Hash>,
    chunks: Vec<blake3::Hash>,
) -> Result<Known, SnapshotError> {
    let mut known = Known::default();
    for entry in base.iter().flat_map(|base| base.tree.iter().map(move |entry| (base, entry))) {
        if let (base, Entry { kind: Kind::File { hash, content: Content::Pack(pack), .. }, .. }) = entry
            && small.contains(&hash)
            && let Some(object) = base.objects.get(pack)
            && base.objects.folder(object) == Some(CACHE)
        {
            known.small.insert(hash, object.hash);
        }
    }
    described(store, index, small, &mut known).await?;
    let wanted: HashSet<blake3::Hash> = known.small.values().copied().chain(chunks.iter().copied()).collect();
    let there = existing(store, wanted).await?;
    known.small.retain(|_, pack| there.contains(pack));
    known.chunks = chunks.into_iter().filter(|chunk| there.contains(chunk)).collect();
    Ok(known)
}

/// Whether an object is there for as long as what is written to a space: not when it is another slot's, which takes
/// away what it has no use for, and in the cache only as far as was looked.
pub(super) fn outlives(folder: &str, space: &Space) -> bool {
    match space {
        Space::Cache => false,
        Space::Save { task, run, .. } => {
            let own = folder.strip_prefix(&TaskKeys::new(task).slot_packs(run.slot));
            folder == CACHE || own.is_some_and(|rest| rest.starts_with('/'))
        }
    }
}

/// From the descriptions of the shared packs; those that the index has are not fetched.
async fn described(
    store: &Store,
    index: &mut Index,
    small: &HashSet<blake3::Hash>,
    known: &mut Known,
) -> Result<(), SnapshotError> {
    if small.iter().all(|hash| known.small.contains_key(hash)) {
        return Ok(());
    }
    let names: Vec<String> = store
        .list(CACHE_INDEX, None)
        .map_ok(|info| info.key.rsplit('/').next().unwrap_or_default().to_owned())
        .try_collect()
        .await?;
    let names: HashSet<String> =
        names.into_iter().filter(|name| blake3::Hash::from_hex(name).is_ok()).collect();
    index.packs.retain(|name, _| names.contains(name));
    let unknown: Vec<String> = names.into_iter().filter(|name| !index.packs.contains_key(name)).collect();
    let mut fetched = stream::iter(unknown)
        .map(|name| async move {
            let found = store.get_json::<Description>(&format!("{CACHE_INDEX}/{name}")).await;
            (name, found)
        })
        .buffer_unordered(LOOKS);
    while let Some((name, found)) = fetched.next().await {
        match found {
            Ok(Some((description, _))) if description.version == VERSION => {
                index.packs.insert(name, description.contents);
            }
            // Expired meanwhile, or of another version: its content is sent again.
            Ok(_) => {}
            Err(e) if e.kind == StoreErrorKind::Corrupt => {
                tracing::warn!(pack = name, error = %e, "description of a pack not readable");
            }
            Err(e) => return Err(e.into()),
        }
    }
    for (pack, contents) in &index.packs {
        let Ok(pack) = blake3::Hash::from_hex(pack) else { continue };
        for (hash, _) in contents {
            if let Ok(hash) = blake3::Hash::from_hex(hash)
                && small.contains(&hash)
            {
                known.small.entry(hash).or_insert(pack);
            }
        }
    }
    Ok(())
}

/// What is older is sent again, as if it were not there: the lifecycle of a bucket takes shared content away when it
/// is four times as old, so what a task is given stays for as long as the task may need it.
const FRESH: SignedDuration = SignedDuration::from_hours(15 * 24);

async fn existing(
    store: &Store,
    objects: HashSet<blake3::Hash>,
) -> Result<HashSet<blake3::Hash>, SnapshotError> {
    let oldest = Timestamp::now().checked_sub(FRESH).unwrap_or(Timestamp::MIN);
    Ok(stream::iter(objects)
        .map(|hash| async move {
            let key = object_key(&Space::Cache, &hash);
            let found = store.head(&key).await?;
            Ok::<_, StoreError>(found.filter(|object| object.modified >= oldest).map(|_| hash))
        })
        .buffer_unordered(LOOKS)
        .try_filter_map(|hash| async move { Ok(hash) })
        .try_collect()
        .await?)
}
