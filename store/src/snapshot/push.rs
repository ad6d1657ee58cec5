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
    known::{self, Known},
    manifest::{Content, Entry, Kind, Manifest, Time, object_hash, object_key},
    pack::{self, Built, Item},
    parallel::{blocking, each},
    scan::{Found, FoundKind, Stat, file_error, scan},
};
use crate::Store;

/// How often files that changed after they were hashed are hashed again.
const ROUNDS: usize = 5;

/// A scanned folder, and what of it has to be sent.
#[derive(Debug)]
pub struct Plan {
    root: PathBuf,
    taken: Timestamp,
    pub(super) files: Vec<PlannedFile>,
    others: Vec<Entry>,
    pub(super) known: Known,
    index: Index,
    pub(super) options: PushOptions,
    summary: PlanSummary,
    warnings: Vec<String>,
}

#[derive(Debug)]
pub(super) struct PlannedFile {
    path: PathBuf,
    /// `None`: it has vanished.
    pub(super) content: Option<Hashed>,
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
        let Some(base) = &self.options.base else { return false };
        let files = self.files.iter().filter_map(|file| Some((file, file.content.as_ref()?)));
        let count = files.clone().count() + self.others.len();
        count == base.entries.len()
            && self.others.iter().all(|entry| base.find(&entry.path) == Some(entry))
            && files.into_iter().all(|(file, content)| {
                base.find(&file.path).is_some_and(|entry| {
                    entry.mode == content.stat.mode
                        && entry.mtime == content.stat.mtime
                        && matches!(&entry.kind, Kind::File { size, hash, .. }
                            if *size == content.stat.size && *hash == content.hash)
                })
            })
    }

    fn save_index(&self) {
        let Some(path) = &self.options.index else { return };
        let files = self.files.iter().filter_map(|file| Some((file.path.as_path(), file.content.as_ref()?)));
        if let Err(error) = Index::save(path, &self.root, files, &self.index.packs) {
            // Only costs time.
            tracing::warn!(?path, %error, "the index of hashes was not saved");
        }
    }
}

impl Hashed {
    pub(super) fn is_small(&self) -> bool {
        self.chunks.is_empty()
    }

    /// From a manifest, for a file that looks like it did then.
    fn from_base(base: &Manifest, path: &Path, stat: &Stat, taken: Time) -> Option<Self> {
        let entry = base.find(path)?;
        let Kind::File { size, hash, content } = &entry.kind else { return None };
        if *size != stat.size || entry.mtime != stat.mtime || !is_settled(stat.mtime, taken) {
            return None;
        }
        let chunks = match content {
            Content::Empty | Content::Pack(_) => Vec::new(),
            Content::Chunks(chunks) => chunks
                .iter()
                .map(|(object, size)| Some((object_hash(base.object(*object))?, *size)))
                .collect::<Option<_>>()?,
        };
        // The inode and change time were not known then: not for the index.
        Some(Self { stat: *stat, hash: *hash, chunks, settled: false })
    }
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
    let (root, rules, path) = (root.to_owned(), options.rules.clone(), options.index.clone());
    let own = store.folder().map(Path::to_owned);
    let limits = options.space.limits();
    let (root, found, warnings, mut index) = blocking(move || {
        let root = std::fs::canonicalize(&root).map_err(file_error("reading the folder", &root))?;
        let (found, warnings) = scan(&root, &rules, own.as_deref())?;
        let index = path.map(|path| Index::load(&path, &root)).unwrap_or_default();
        Ok((root, found, warnings, index))
    })
    .await?;
    let (files, others) = hashed(&root, found, &index, options.base.as_deref(), limits, progress).await?;
    // Not needed any more, and as large as the folder has files.
    index.forget_files();
    let mut plan = Plan {
        root,
        taken,
        files,
        others,
        known: Known::default(),
        index,
        options,
        summary: PlanSummary::default(),
        warnings,
    };
    let mut small = HashSet::new();
    let mut chunks = HashSet::new();
    for content in plan.files.iter().filter_map(|file| file.content.as_ref()) {
        if content.is_small() {
            if content.stat.size > 0 {
                small.insert(content.hash);
            }
        } else {
            chunks.extend(content.chunks.iter().map(|(hash, _)| *hash));
        }
    }
    let base = plan.options.base.clone();
    plan.known =
        known::find(store, &plan.options.space, base.as_deref(), &mut plan.index, &small, &chunks).await?;
    plan.summary = summary(&plan);
    let plan = blocking(move || {
        plan.save_index();
        Ok(plan)
    })
    .await?;
    Ok(plan)
}

/// The files with their hashes, and everything else.
async fn hashed(
    root: &Path,
    found: Vec<Found>,
    index: &Index,
    base: Option<&Manifest>,
    limits: Limits,
    progress: &dyn Progress,
) -> Result<(Vec<PlannedFile>, Vec<Entry>), SnapshotError> {
    let taken = base.map(|base| time(base.taken));
    let mut files = Vec::new();
    let mut others = Vec::new();
    let mut unread = Vec::new();
    let mut bytes = 0;
    for Found { path, stat, kind } in found {
        let kind = match kind {
            FoundKind::Folder => Kind::Folder,
            FoundKind::Link(target) => Kind::Link { target },
            FoundKind::File => {
                let content =
                    index.find(&path, &stat).map(|known| Hashed { stat, ..known.clone() }).or_else(|| {
                        let (base, taken) = base.zip(taken)?;
                        Hashed::from_base(base, &path, &stat, taken)
                    });
                if content.is_none() {
                    unread.push((files.len(), root.join(&path)));
                    bytes += stat.size;
                }
                files.push(PlannedFile { path, content });
                continue;
            }
        };
        others.push(Entry { path, mode: stat.mode, mtime: stat.mtime, kind });
    }
    progress.total(bytes);
    let places: Vec<usize> = unread.iter().map(|(place, _)| *place).collect();
    let results = each(unread, limits.readers, progress, |(_, path), meter| {
        hash_file(path, meter).map_err(file_error("reading", path))
    })
    .await?;
    for (place, content) in places.into_iter().zip(results) {
        if let Some(file) = files.get_mut(place) {
            file.content = content;
        }
    }
    Ok((files, others))
}

fn summary(plan: &Plan) -> PlanSummary {
    let mut summary = PlanSummary::default();
    let mut counted = HashSet::new();
    for content in plan.files.iter().filter_map(|file| file.content.as_ref()) {
        summary.files += 1;
        summary.bytes += content.stat.size;
        let mut missing = false;
        let parts: Box<dyn Iterator<Item = (blake3::Hash, u64, bool)>> = if content.is_small() {
            let there = content.stat.size == 0 || plan.known.small.contains_key(&content.hash);
            Box::new(std::iter::once((content.hash, content.stat.size, there)))
        } else {
            let chunks = content.chunks.iter();
            Box::new(
                chunks.map(|(hash, size)| (*hash, u64::from(*size), plan.known.chunks.contains_key(hash))),
            )
        };
        for (hash, size, there) in parts {
            if !there {
                missing = true;
                if counted.insert((hash, content.is_small())) {
                    summary.send_bytes += size;
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
    compact::compact(&mut plan);
    for round in 0.. {
        let mut changed = send_small(store, &mut plan, progress).await?;
        changed.extend(send_chunks(store, &mut plan, progress).await?);
        if changed.is_empty() {
            break;
        }
        changed.sort_unstable();
        changed.dedup();
        let again: Vec<(usize, PathBuf)> =
            changed.iter().filter_map(|&at| Some((at, plan.root.join(&plan.files.get(at)?.path)))).collect();
        if let Some((_, path)) = again.first().filter(|_| round + 1 == ROUNDS) {
            let busy = std::io::Error::new(
                std::io::ErrorKind::ResourceBusy,
                "it changes faster than it can be read and sent",
            );
            return Err(file_error("reading", path)(busy));
        }
        let results = each(again, plan.options.space.limits().readers, &super::Quiet, |(at, path), meter| {
            Ok((*at, hash_file(path, meter).map_err(file_error("reading", path))?))
        })
        .await?;
        for (at, content) in results {
            if let Some(file) = plan.files.get_mut(at) {
                file.content = content;
            }
        }
    }
    blocking(move || {
        plan.save_index();
        manifest(plan)
    })
    .await
}

/// The small contents that are missing, in packs. Gives the files that have changed.
async fn send_small(
    store: &Store,
    plan: &mut Plan,
    progress: &dyn Progress,
) -> Result<Vec<usize>, SnapshotError> {
    let limits = plan.options.space.limits();
    let mut packs: Vec<Vec<Item>> = Vec::new();
    let mut room = 0;
    let mut planned = HashSet::new();
    for (at, file) in plan.files.iter().enumerate() {
        let Some(content) = file.content.as_ref().filter(|content| content.is_small()) else { continue };
        if content.stat.size == 0
            || plan.known.small.contains_key(&content.hash)
            || !planned.insert(content.hash)
        {
            continue;
        }
        let item = Item { file: at, path: file.path.clone(), hash: content.hash, size: content.stat.size };
        if item.packed() > room {
            packs.push(Vec::new());
            room = limits.pack.max(item.packed());
        }
        room -= item.packed();
        if let Some(pack) = packs.last_mut() {
            pack.push(item);
        }
    }
    let root = Arc::new(plan.root.clone());
    let space = plan.options.space.clone();
    let sent = stream::iter(packs)
        .map(|items| {
            let (root, space) = (Arc::clone(&root), &space);
            async move {
                let mut built = blocking(move || pack::build(&root, &items)).await?;
                let mut described = None;
                if !built.contents.is_empty() {
                    let bytes = std::mem::take(&mut built.bytes);
                    store.put(&object_key(space, &built.name), bytes).await?;
                    if matches!(space, Space::Cache) {
                        described = Some(known::describe(&built.contents).store(store, &built.name).await?);
                    }
                }
                Ok::<_, SnapshotError>((built, described))
            }
        })
        .buffer_unordered(limits.packs);
    let mut sent = std::pin::pin!(sent);
    let mut changed = Vec::new();
    while let Some(result) = sent.next().await {
        let (Built { name, contents, changed: more, .. }, described) = result?;
        let key = object_key(&plan.options.space, &name);
        plan.known.sizes.insert(key.clone(), contents.iter().map(|(_, size)| size).sum());
        for (hash, size) in contents {
            plan.known.small.insert(hash, key.clone());
            progress.advance(size);
        }
        if let Some(contents) = described {
            plan.index.packs.insert(name.to_hex().to_string(), contents);
        }
        changed.extend(more);
    }
    Ok(changed)
}

/// The chunks that are missing. Gives the files that have changed.
async fn send_chunks(
    store: &Store,
    plan: &mut Plan,
    progress: &dyn Progress,
) -> Result<Vec<usize>, SnapshotError> {
    let mut missing = Vec::new();
    let mut planned = HashSet::new();
    for (at, file) in plan.files.iter().enumerate() {
        let Some(content) = &file.content else { continue };
        let mut offset = 0;
        for (hash, size) in &content.chunks {
            if !plan.known.chunks.contains_key(hash) && planned.insert(*hash) {
                missing.push((at, plan.root.join(&file.path), offset, *size, *hash));
            }
            offset += u64::from(*size);
        }
    }
    let space = plan.options.space.clone();
    let mut sent = stream::iter(missing)
        .map(|(at, path, offset, size, hash)| {
            let space = &space;
            async move {
                let encoded = blocking(move || {
                    let reading = file_error("reading", &path);
                    let data = read_part(&path, offset, size as usize, &hash);
                    data.and_then(|data| data.map(encode_chunk).transpose()).map_err(reading)
                })
                .await?;
                let Some(encoded) = encoded else { return Ok((at, size, None)) };
                let key = object_key(space, &hash);
                store.put(&key, encoded).await?;
                Ok::<_, SnapshotError>((at, size, Some((hash, key))))
            }
        })
        .buffer_unordered(plan.options.space.limits().chunks);
    let mut changed = Vec::new();
    while let Some(result) = sent.next().await {
        match result? {
            (_, size, Some((hash, key))) => {
                plan.known.chunks.insert(hash, key);
                progress.advance(u64::from(size));
            }
            (at, _, None) => changed.push(at),
        }
    }
    Ok(changed)
}

fn manifest(plan: Plan) -> Result<Manifest, SnapshotError> {
    let mut objects: Vec<String> = Vec::new();
    let mut numbers: HashMap<String, u32> = HashMap::new();
    let mut number = |key: &String| {
        *numbers.entry(key.clone()).or_insert_with(|| {
            objects.push(key.clone());
            u32::try_from(objects.len() - 1).unwrap_or(u32::MAX)
        })
    };
    let mut entries = plan.others;
    let known = &plan.known;
    for file in plan.files {
        let Some(content) = file.content else { continue };
        // Every content was found or sent: what was not is in the list of changed files, which is empty now.
        let lost = || SnapshotError::Damaged {
            name: file.path.display().to_string(),
            cause: "its content was neither found nor sent".into(),
        };
        let placed = if content.stat.size == 0 {
            Content::Empty
        } else if content.is_small() {
            debug_assert!(content.stat.size <= LARGEST_SMALL);
            Content::Pack(number(known.small.get(&content.hash).ok_or_else(lost)?))
        } else {
            let chunks = content.chunks.iter().map(|(hash, size)| {
                Ok::<_, SnapshotError>((number(known.chunks.get(hash).ok_or_else(lost)?), *size))
            });
            Content::Chunks(chunks.collect::<Result<_, _>>()?)
        };
        entries.push(Entry {
            path: file.path,
            mode: content.stat.mode,
            mtime: content.stat.mtime,
            kind: Kind::File { size: content.stat.size, hash: content.hash, content: placed },
        });
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    let sizes = objects.iter().map(|key| known.sizes.get(key).copied().unwrap_or(0)).collect();
    Ok(Manifest { taken: plan.taken, objects, sizes, entries })
}
