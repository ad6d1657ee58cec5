//! What the store has already.

use std::collections::{HashMap, HashSet};

use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

use super::{
    SnapshotError, Space,
    index::{Index, PackContents},
    manifest::{Content, Kind, Manifest, object_hash, object_key},
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

/// Where contents are: keys of objects.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Pack by content.
    pub(super) small: HashMap<blake3::Hash, String>,
    /// Chunk object by chunk.
    pub(super) chunks: HashMap<blake3::Hash, String>,
    /// Bytes of the contents that went into an object, living or not; what is not here is not known.
    pub(super) sizes: HashMap<String, u64>,
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

/// Looks for what is needed. Everything that is found in the cache was looked at just now, because objects there
/// expire; the base of a machine is its own slot's, where nothing goes away that the newest manifest names.
pub(super) async fn find(
    store: &Store,
    space: &Space,
    base: Option<&Manifest>,
    index: &mut Index,
    small: &HashSet<blake3::Hash>,
    chunks: &HashSet<blake3::Hash>,
) -> Result<Known, SnapshotError> {
    let mut known = Known::default();
    if let Some(base) = base {
        add_base(base, space, small, chunks, &mut known);
    }
    match space {
        Space::Save { .. } => Ok(known),
        Space::Cache => {
            described(store, index, small, &mut known).await?;
            let missing: Vec<_> = chunks.iter().filter(|hash| !known.chunks.contains_key(*hash)).collect();
            for hash in missing {
                known.chunks.insert(*hash, object_key(space, hash));
            }
            let keys: HashSet<String> = known.small.values().chain(known.chunks.values()).cloned().collect();
            let there = existing(store, keys).await?;
            known.small.retain(|_, key| there.contains(key));
            known.chunks.retain(|_, key| there.contains(key));
            Ok(known)
        }
    }
}

fn add_base(
    base: &Manifest,
    space: &Space,
    small: &HashSet<blake3::Hash>,
    chunks: &HashSet<blake3::Hash>,
    known: &mut Known,
) {
    for entry in &base.entries {
        let Kind::File { hash, content, .. } = &entry.kind else { continue };
        match content {
            Content::Empty => {}
            Content::Pack(pack) => {
                let key = base.object(*pack);
                if small.contains(hash) && outlives(key, space) {
                    known.small.insert(*hash, key.to_owned());
                    if let Some(size) = base.size(*pack) {
                        known.sizes.insert(key.to_owned(), size);
                    }
                }
            }
            Content::Chunks(list) => {
                for (object, _) in list {
                    let key = base.object(*object);
                    if let Some(hash) = object_hash(key)
                        && chunks.contains(&hash)
                        && outlives(key, space)
                    {
                        known.chunks.insert(hash, key.to_owned());
                    }
                }
            }
        }
    }
}

/// Whether an object is there for as long as what is written to a space: not when it is another task's.
fn outlives(key: &str, space: &Space) -> bool {
    // Another slot's content goes away when that slot has no use for it.
    let own = match space {
        Space::Cache => false,
        Space::Save { task, run, .. } => key
            .strip_prefix(&TaskKeys::new(task).slot_packs(run.slot))
            .is_some_and(|rest| rest.starts_with('/')),
    };
    own || key.starts_with(&format!("{CACHE}/"))
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
                known.small.entry(hash).or_insert_with(|| object_key(&Space::Cache, &pack));
            }
        }
    }
    Ok(())
}

async fn existing(store: &Store, keys: HashSet<String>) -> Result<HashSet<String>, SnapshotError> {
    Ok(stream::iter(keys)
        .map(|key| async move { Ok::<_, StoreError>(store.head(&key).await?.map(|_| key)) })
        .buffer_unordered(LOOKS)
        .try_filter_map(|key| async move { Ok(key) })
        .try_collect()
        .await?)
}
