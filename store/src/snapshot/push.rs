//! Planning and sending.
//!
//! ```text
//! scan -> hash (index and base spare most of it) -> look what the store has          plan: writes nothing
//! packs and chunks, a few at once -> descriptions of packs -> manifest (by the caller)   push
//!        ^ files that changed since they were hashed are hashed again and go round once more
//! ```
//!
//! A push that dies leaves content that nothing names yet: whole objects under their own hashes. The next one
//! finds those that are described and sends the others again.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{StreamExt, stream};
use jiff::Timestamp;

use super::{
    LARGEST_SMALL, Limits, PlanSummary, Progress, PushOptions, SnapshotError, Space, compact,
    content::{Hashed, encode_chunk, hash_file, is_settled, read_part},
    index::Index,
    known,
    manifest::{Manifest, Time, same},
    objects::{Objects, Table, folder, object_key},
    pack::{self, Built, Item},
    parallel::{blocking, each},
    scan::{file_error, scan},
    tree::{Content, Kind, TooLarge, Tree, below},
};
use crate::Store;

/// How often files that changed after they were hashed are hashed again.
const ROUNDS: usize = 5;
/// Files that are hashed before their hashes are put away.
const LOT: usize = 2048;

/// A scanned folder, and what of it has to be sent.
#[derive(Debug)]
pub struct Plan {
    root: PathBuf,
    taken: Timestamp,
    /// What is not in the store is [`Content::Nowhere`], or in chunks without a folder.
    tree: Arc<Tree>,
    table: Table,
    /// Packs of contents that were looked for or sent.
    small: HashMap<blake3::Hash, u32>,
    index: Index,
    options: PushOptions,
    summary: PlanSummary,
    warnings: Vec<String>,
}

impl Plan {
    /// In numbers.
    #[must_use]
    pub fn summary(&self) -> PlanSummary {
        self.summary
    }

    /// Things left out that the user should know of: sockets, devices; links out of the folder are kept and named
    /// here. Unreadable entries are errors instead.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether the folder is (modes and times included) what the base says: there is nothing to push.
    #[must_use]
    pub fn is_base(&self) -> bool {
        self.options.base.as_ref().is_some_and(|base| same(&base.tree, &self.tree))
    }

    fn save_index(&self) {
        let Some(path) = &self.options.index else { return };
        if let Err(error) = Index::save(path, &self.root, &self.tree, &self.table.objects, &self.index.packs)
        {
            // Only costs time.
            tracing::warn!(?path, %error, "the index of hashes was not saved");
        }
    }

    /// Notes what was read of a file; `None`: it has vanished.
    fn set_read(&mut self, at: usize, hashed: Option<&Hashed>) -> Result<(), TooLarge> {
        let tree = Arc::make_mut(&mut self.tree);
        tree.set_read(at, hashed);
        match hashed {
            Some(hashed) => {
                set_hash(tree, &mut self.table, at, hashed.stat.size, &hashed.hash, &hashed.chunks)
            }
            None => Ok(()),
        }
    }

    /// Says of small files where their contents are, as far as that is known.
    fn locate(&mut self) {
        let tree = Arc::make_mut(&mut self.tree);
        for at in 0..tree.len() {
            if let Some(Kind::File { hash, content: Content::Nowhere, .. }) =
                tree.get(at).map(|entry| entry.kind)
                && !tree.is_gone(at)
                && let Some(pack) = self.small.get(&hash)
                && tree.set_content(at, &hash, Content::Pack(*pack)).is_err()
            {
                debug_assert!(false, "a pack takes no room");
            }
        }
    }

    /// Small files whose contents are to be sent: number, size and hash.
    fn missing(&self) -> impl Iterator<Item = (u32, u64, blake3::Hash)> {
        (0u32..).zip(self.tree.iter()).filter_map(|(at, entry)| match entry.kind {
            Kind::File { size, hash, content: Content::Nowhere } if !self.tree.is_gone(at as usize) => {
                Some((at, size, hash))
            }
            Kind::File { .. } | Kind::Folder | Kind::Link { .. } => None,
        })
    }

    /// Chunks that are to be sent, each once: number of the file, offset, bytes and number of the chunk.
    fn missing_chunks(&self) -> Vec<(u32, u64, u32, u32)> {
        let mut missing = Vec::new();
        let mut planned = HashSet::new();
        for (at, entry) in (0u32..).zip(self.tree.iter()) {
            let Kind::File { content: Content::Chunks(chunks), .. } = entry.kind else { continue };
            let mut offset = 0;
            for (object, size) in chunks {
                if !self.table.is_placed(*object) && planned.insert(*object) {
                    missing.push((at, offset, *size, *object));
                }
                offset += u64::from(*size);
            }
        }
        missing
    }
}

/// A content that is nowhere yet, except for its chunks that are known.
fn set_hash(
    tree: &mut Tree,
    table: &mut Table,
    at: usize,
    size: u64,
    hash: &blake3::Hash,
    chunks: &[(blake3::Hash, u32)],
) -> Result<(), TooLarge> {
    if size == 0 {
        return tree.set_content(at, hash, Content::Empty);
    }
    if chunks.is_empty() {
        return tree.set_content(at, hash, Content::Nowhere);
    }
    let numbered: Vec<_> =
        chunks.iter().map(|(hash, size)| (table.number(hash, u64::from(*size)), *size)).collect();
    tree.set_content(at, hash, Content::Chunks(&numbered))
}

fn time(timestamp: Timestamp) -> Time {
    Time(timestamp.as_second(), u32::try_from(timestamp.subsec_nanosecond()).unwrap_or(0))
}

/// Scans and hashes; writes nothing to the store.
///
/// # Errors
/// What cannot be read, by name; what the store meets.
pub async fn plan(
    store: &Store,
    root: &Path,
    options: PushOptions,
    progress: &dyn Progress,
) -> Result<Plan, SnapshotError> {
    let taken = Timestamp::now();
    let root = root.to_owned();
    let own = store.folder().map(Path::to_owned);
    let (mut plan, unread) = blocking(move || {
        let root = std::fs::canonicalize(&root).map_err(file_error("reading the folder", &root))?;
        // About as large as last time: a tree that has to grow takes twice its room for a while.
        let tree = options.base.as_ref().map_or_else(Tree::default, |base| base.tree.as_large());
        let (tree, warnings) = scan(&root, &options.rules, own.as_deref(), tree)?;
        let index = options.index.as_ref().map(|path| Index::load(path, &root)).unwrap_or_default();
        let mut plan = Plan {
            root,
            taken,
            tree: Arc::new(tree),
            table: Table::default(),
            small: HashMap::new(),
            index,
            options,
            summary: PlanSummary::default(),
            warnings,
        };
        let unread = recognise(&mut plan).map_err(|e| file_error("reading", &plan.root)(e.into()))?;
        // Not needed any more, and as large as the folder has files.
        plan.index.forget_files();
        Ok((plan, unread))
    })
    .await?;
    let size = |at: &u32| match plan.tree.get(*at as usize).map(|entry| entry.kind) {
        Some(Kind::File { size, .. }) => size,
        Some(Kind::Folder | Kind::Link { .. }) | None => 0,
    };
    progress.total(unread.iter().map(size).sum());
    let limits = plan.options.space.limits();
    read(&mut plan, &unread, limits, progress).await?;
    locate(store, &mut plan).await?;
    blocking(move || {
        plan.summary = summary(&plan);
        plan.save_index();
        Ok(plan)
    })
    .await
}

/// Tells the contents of files that look as they did; gives the others.
fn recognise(plan: &mut Plan) -> Result<Vec<u32>, TooLarge> {
    let Plan { tree, table, index, options, .. } = plan;
    let tree = Arc::make_mut(tree);
    let base = options.base.as_deref();
    let settled_by = base.map(|base| time(base.taken));
    // What the base's objects are here, where they can be named.
    let mut numbers: Vec<Option<u32>> = vec![None; base.map_or(0, |base| base.objects.list.len())];
    let mut number = |objects: &Objects, table: &mut Table, object: u32| {
        let slot = numbers.get_mut(object as usize)?;
        if slot.is_none() {
            let known = objects.get(object)?;
            let number = table.number(&known.hash, known.size);
            if let Some(folder) =
                objects.folder(known).filter(|folder| known::outlives(folder, &options.space))
            {
                table.place(number, folder);
            }
            *slot = Some(number);
        }
        *slot
    };
    let mut unread = Vec::new();
    let mut before = 0;
    for at in 0..tree.len() {
        let Some(entry) = tree.get(at) else { continue };
        let Kind::File { size, .. } = entry.kind else { continue };
        let (path, mtime, seen) = (entry.path, entry.mtime, tree.seen(at).unwrap_or(0));
        if let Some(known) = index.find(path, size, mtime, seen) {
            set_hash(tree, table, at, size, &known.hash, &known.chunks)?;
            continue;
        }
        let known = base.and_then(|base| {
            while base.tree.get(before).is_some_and(|entry| entry.path < path) {
                before += 1;
            }
            let known = base.tree.get(before).filter(|known| known.path == path)?;
            let Kind::File { size: known_size, hash, content } = known.kind else { return None };
            let same = known_size == size
                && known.mtime == mtime
                && match base.tree.seen(before) {
                    Some(known) => known == seen,
                    // From the store, which does not tell inodes and change times: not for the index.
                    None => settled_by.is_some_and(|taken| is_settled(mtime, taken)),
                };
            same.then_some((base, hash, content))
        });
        let Some((base, hash, content)) = known else {
            unread.push(u32::try_from(at).map_err(|_| TooLarge)?);
            continue;
        };
        if base.tree.seen(before).is_none() {
            tree.forget_seen(at);
        }
        match content {
            Content::Empty => tree.set_content(at, &hash, Content::Empty)?,
            Content::Pack(pack) => {
                let placed = number(&base.objects, table, pack).filter(|pack| table.is_placed(*pack));
                tree.set_content(at, &hash, placed.map_or(Content::Nowhere, Content::Pack))?;
            }
            Content::Chunks(chunks) => {
                let chunks: Option<Vec<_>> = chunks
                    .iter()
                    .map(|(object, size)| Some((number(&base.objects, table, *object)?, *size)))
                    .collect();
                tree.set_content(at, &hash, Content::Chunks(&chunks.unwrap_or_default()))?;
            }
            Content::Nowhere => unread.push(u32::try_from(at).map_err(|_| TooLarge)?),
        }
    }
    Ok(unread)
}

/// Reads and hashes files.
async fn read(
    plan: &mut Plan,
    files: &[u32],
    limits: Limits,
    progress: &dyn Progress,
) -> Result<(), SnapshotError> {
    for lot in files.chunks(LOT) {
        let (root, tree) = (plan.root.clone(), Arc::clone(&plan.tree));
        let results = each(lot.to_vec(), limits.readers, progress, move |at, meter| {
            let path = below(&root, &tree, *at as usize);
            hash_file(&path, meter).map_err(file_error("reading", &path))
        })
        .await?;
        for (at, hashed) in lot.iter().zip(results) {
            let set = plan.set_read(*at as usize, hashed.as_ref());
            set.map_err(|e| file_error("reading", &plan.root)(e.into()))?;
        }
    }
    Ok(())
}

/// Finds what the store has of the contents that are not known to be there.
async fn locate(store: &Store, plan: &mut Plan) -> Result<(), SnapshotError> {
    let small: HashSet<blake3::Hash> = plan.missing().map(|(_, _, hash)| hash).collect();
    match plan.options.space {
        Space::Save { .. } => {
            let Some(base) = plan.options.base.clone() else { return Ok(()) };
            let usable = |object: u32| {
                let object = base.objects.get(object)?;
                let folder = base.objects.folder(object)?;
                known::outlives(folder, &plan.options.space).then_some((object, folder))
            };
            for entry in base.tree.iter() {
                if let Kind::File { hash, content: Content::Pack(pack), .. } = entry.kind
                    && small.contains(&hash)
                    && let Some((object, folder)) = usable(pack)
                {
                    let number = plan.table.number(&object.hash, object.size);
                    plan.table.place(number, folder);
                    plan.small.insert(hash, number);
                }
            }
            let wanted: HashMap<blake3::Hash, u32> = plan
                .missing_chunks()
                .into_iter()
                .filter_map(|(.., object)| Some((plan.table.objects.get(object)?.hash, object)))
                .collect();
            for object in 0..base.objects.list.len() {
                if let Some((object, folder)) = u32::try_from(object).ok().and_then(usable)
                    && let Some(number) = wanted.get(&object.hash)
                {
                    plan.table.place(*number, folder);
                }
            }
        }
        Space::Cache => {
            let chunks: Vec<(blake3::Hash, u32)> = plan
                .missing_chunks()
                .into_iter()
                .filter_map(|(.., object)| Some((plan.table.objects.get(object)?.hash, object)))
                .collect();
            let hashes = chunks.iter().map(|(hash, _)| *hash).collect();
            let base = plan.options.base.clone();
            let known = known::find(store, base.as_deref(), &mut plan.index, &small, hashes).await?;
            let folder = folder(&Space::Cache);
            for (hash, number) in chunks {
                if known.chunks.contains(&hash) {
                    plan.table.place(number, &folder);
                }
            }
            for (content, pack) in known.small {
                let number = plan.table.number(&pack, 0);
                plan.table.place(number, &folder);
                plan.small.insert(content, number);
            }
        }
    }
    plan.locate();
    Ok(())
}

fn summary(plan: &Plan) -> PlanSummary {
    let mut summary = PlanSummary::default();
    let mut counted = HashSet::new();
    let mut chunks = HashSet::new();
    for at in 0..plan.tree.len() {
        let Some(Kind::File { size, hash, content }) = plan.tree.get(at).map(|entry| entry.kind) else {
            continue;
        };
        if plan.tree.is_gone(at) {
            continue;
        }
        summary.files += 1;
        summary.bytes += size;
        let mut missing = false;
        match content {
            Content::Empty | Content::Pack(_) => {}
            Content::Nowhere => {
                missing = true;
                if counted.insert(hash) {
                    summary.send_bytes += size;
                }
            }
            Content::Chunks(list) => {
                for (object, size) in list.iter().filter(|(object, _)| !plan.table.is_placed(*object)) {
                    missing = true;
                    if chunks.insert(*object) {
                        summary.send_bytes += u64::from(*size);
                    }
                }
            }
        }
        summary.changed += u64::from(missing);
    }
    summary
}

/// Sends what is missing and returns the manifest, which the caller stores under its key. A file that changes while it is read is
/// read again, then taken as it was at one moment or named in an error; one that vanishes is left out.
///
/// # Errors
/// What cannot be read, by name; what the store meets.
pub async fn push(store: &Store, mut plan: Plan, progress: &dyn Progress) -> Result<Manifest, SnapshotError> {
    progress.total(plan.summary.send_bytes);
    if !plan.is_base() {
        renew_worn(&mut plan);
    }
    for round in 0.. {
        let mut changed = send_small(store, &mut plan, progress).await?;
        changed.extend(send_chunks(store, &mut plan, progress).await?);
        if changed.is_empty() {
            break;
        }
        changed.sort_unstable();
        changed.dedup();
        if let Some(at) = changed.first().filter(|_| round + 1 == ROUNDS) {
            let busy = std::io::Error::new(
                std::io::ErrorKind::ResourceBusy,
                "it changes faster than it can be read and sent",
            );
            return Err(file_error("reading", &below(&plan.root, &plan.tree, *at as usize))(busy));
        }
        let limits = plan.options.space.limits();
        read(&mut plan, &changed, limits, &super::Quiet).await?;
    }
    blocking(move || {
        plan.save_index();
        manifest(plan)
    })
    .await
}

/// Forgets where some contents are, so that they are sent again.
fn renew_worn(plan: &mut Plan) {
    let worn = compact::worn(&plan.options.space, &plan.tree, &plan.table.objects);
    if worn.is_empty() {
        return;
    }
    tracing::debug!(packs = worn.len(), "packing what is left of old packs anew");
    plan.small.retain(|_, pack| !worn.contains(pack));
    let tree = Arc::make_mut(&mut plan.tree);
    for at in 0..tree.len() {
        if let Some(Kind::File { hash, content: Content::Pack(pack), .. }) =
            tree.get(at).map(|entry| entry.kind)
            && worn.contains(&pack)
            && tree.set_content(at, &hash, Content::Nowhere).is_err()
        {
            debug_assert!(false, "being nowhere takes no room");
        }
    }
}

/// The small contents that are missing, in packs. Gives the files that have changed.
async fn send_small(
    store: &Store,
    plan: &mut Plan,
    progress: &dyn Progress,
) -> Result<Vec<u32>, SnapshotError> {
    let limits = plan.options.space.limits();
    let mut packs: Vec<Vec<Item>> = Vec::new();
    let mut room = 0;
    let mut planned = HashSet::new();
    plan.locate();
    for (file, size, hash) in plan.missing() {
        if !planned.insert(hash) {
            continue;
        }
        debug_assert!(size <= LARGEST_SMALL);
        let item = Item { file, hash, size };
        if item.packed() > room {
            packs.push(Vec::new());
            room = limits.pack.max(item.packed());
        }
        room -= item.packed();
        if let Some(pack) = packs.last_mut() {
            pack.push(item);
        }
    }
    drop(planned);
    let root = Arc::new(plan.root.clone());
    let (tree, space) = (Arc::clone(&plan.tree), plan.options.space.clone());
    let mut changed = Vec::new();
    {
        let sent = stream::iter(packs)
            .map(|items| {
                let (root, tree, space) = (Arc::clone(&root), Arc::clone(&tree), &space);
                async move {
                    let mut built = blocking(move || pack::build(&root, &tree, &items)).await?;
                    let mut described = None;
                    if !built.contents.is_empty() {
                        let bytes = std::mem::take(&mut built.bytes);
                        store.put(&object_key(space, &built.name), bytes).await?;
                        if matches!(space, Space::Cache) {
                            described =
                                Some(known::describe(&built.contents).store(store, &built.name).await?);
                        }
                    }
                    Ok::<_, SnapshotError>((built, described))
                }
            })
            .buffer_unordered(limits.packs);
        let mut sent = std::pin::pin!(sent);
        let folder = folder(&space);
        while let Some(result) = sent.next().await {
            let (Built { name, contents, changed: more, .. }, described) = result?;
            changed.extend(more);
            if contents.is_empty() {
                continue;
            }
            let number = plan.table.number(&name, contents.iter().map(|(_, size)| size).sum());
            plan.table.place(number, &folder);
            for (hash, size) in contents {
                plan.small.insert(hash, number);
                progress.advance(size);
            }
            if let Some(contents) = described {
                plan.index.packs.insert(name.to_hex().to_string(), contents);
            }
        }
    }
    // Nobody else has it now, so it is not copied to be changed.
    drop(tree);
    plan.locate();
    Ok(changed)
}

/// The chunks that are missing. Gives the files that have changed.
async fn send_chunks(
    store: &Store,
    plan: &mut Plan,
    progress: &dyn Progress,
) -> Result<Vec<u32>, SnapshotError> {
    let missing: Vec<_> = plan
        .missing_chunks()
        .into_iter()
        .filter_map(|(at, offset, size, object)| {
            Some((at, offset, size, object, plan.table.objects.get(object)?.hash))
        })
        .collect();
    let space = plan.options.space.clone();
    let (root, tree) = (Arc::new(plan.root.clone()), Arc::clone(&plan.tree));
    let mut sent = stream::iter(missing)
        .map(|(at, offset, size, object, hash)| {
            let (root, tree, space) = (Arc::clone(&root), Arc::clone(&tree), &space);
            async move {
                let encoded = blocking(move || {
                    let path = below(&root, &tree, at as usize);
                    let reading = file_error("reading", &path);
                    let data = read_part(&path, offset, size as usize, &hash);
                    data.and_then(|data| data.map(encode_chunk).transpose()).map_err(reading)
                })
                .await?;
                let Some(encoded) = encoded else { return Ok((at, size, None)) };
                store.put(&object_key(space, &hash), encoded).await?;
                Ok::<_, SnapshotError>((at, size, Some(object)))
            }
        })
        .buffer_unordered(plan.options.space.limits().chunks);
    let folder = folder(&space);
    let mut changed = Vec::new();
    while let Some(result) = sent.next().await {
        match result? {
            (_, size, Some(object)) => {
                plan.table.place(object, &folder);
                progress.advance(u64::from(size));
            }
            (at, _, None) => changed.push(at),
        }
    }
    Ok(changed)
}

fn manifest(plan: Plan) -> Result<Manifest, SnapshotError> {
    let Plan { taken, mut tree, table, small, options, .. } = plan;
    drop((small, options));
    let finished = Arc::make_mut(&mut tree);
    finished.finish();
    for entry in finished.iter() {
        let Kind::File { content, .. } = entry.kind else { continue };
        let found = match content {
            Content::Empty => true,
            Content::Pack(pack) => table.is_placed(pack),
            Content::Chunks(chunks) => chunks.iter().all(|(object, _)| table.is_placed(*object)),
            Content::Nowhere => false,
        };
        // What was not is in the list of changed files, which is empty now.
        if !found {
            return Err(SnapshotError::Damaged {
                name: entry.path.display().to_string(),
                cause: "its content was neither found nor sent".into(),
            });
        }
    }
    // Only what is named by something, in that order.
    let mut objects = Objects::default();
    let mut numbers: HashMap<u32, u32> = HashMap::new();
    finished.renumber(|number| {
        *numbers.entry(number).or_insert_with(|| {
            if let Some(object) = table.objects.get(number) {
                let folder = table.objects.folder(object).map(|folder| objects.enter(folder));
                objects.list.push(super::objects::Object { folder, ..*object });
            }
            u32::try_from(objects.list.len() - 1).unwrap_or(u32::MAX)
        })
    });
    Ok(Manifest { taken, objects: Arc::new(objects), tree })
}
