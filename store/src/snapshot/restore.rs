//! Restoring and verifying.
//!
//! ```text
//! select -> folders, and what to do about each path (looks only, makes folders) -> room? -> files -> links -> modes and times of folders
//! ```
//!
//! Files are made in a staging folder and moved to their place whole; links come after all files, so that no
//! file is written through one; folders get their modes last, so that read-only ones can be filled. Run again
//! after an interruption, it finds what is there already by its hash.

mod prepare;

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Seek, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};

use super::{
    Limits, PACK_LIMIT, Progress, RestoreOptions, RestoreReport, SnapshotError,
    beneath::{Beneath, Staging},
    content::decode_chunk,
    manifest::{Manifest, Time},
    objects::object_hash,
    pack,
    parallel::{blocking, each},
    scan::file_error,
    tree::{Content, Entry, Kind, Tree},
};
use crate::{Store, StoreError, StoreErrorKind};
use prepare::{FolderTask, Prepared, Target, prepare, same_content};

/// Numbers of the entries that the options let through, with the folders they lie in.
fn selected(manifest: &Manifest, options: &RestoreOptions) -> Vec<u32> {
    let wanted = |entry: &Entry<'_>| {
        options.only.as_ref().is_none_or(|only| {
            only.as_os_str().is_empty() || only == Path::new(".") || entry.path.starts_with(only)
        }) && !options.rules.excludes(entry.path, matches!(entry.kind, Kind::Folder))
    };
    let tree = &manifest.tree;
    let mut keep = vec![false; tree.len()];
    for (at, entry) in tree.iter().enumerate() {
        if !wanted(&entry) {
            continue;
        }
        keep[at] = true;
        for parent in entry.path.ancestors().skip(1) {
            match tree.position(parent) {
                Some(folder) if !keep[folder] => keep[folder] = true,
                Some(_) | None => break,
            }
        }
    }
    (0u32..).zip(keep).filter_map(|(at, keep)| keep.then_some(at)).collect()
}

/// What all writers share.
struct Site {
    tree: Arc<Tree>,
    beneath: Beneath,
    staging: Arc<Staging>,
}

impl Site {
    /// An entry that was selected.
    fn entry(&self, at: u32) -> Entry<'_> {
        self.tree.get(at as usize).unwrap_or(Entry {
            path: Path::new(""),
            mode: 0,
            mtime: Time(0, 0),
            kind: Kind::Folder,
        })
    }

    fn place<'a>(&'a self, target: &'a Target) -> &'a Path {
        target.path.as_deref().unwrap_or_else(|| self.entry(target.entry).path)
    }

    fn error(&self, entry: &Entry<'_>, source: io::Error) -> SnapshotError {
        let full = matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        match entry.kind {
            Kind::File { size, .. } if full => SnapshotError::NoSpace {
                path: self.beneath.root.clone(),
                needed: size,
                free: self.beneath.free().unwrap_or(0),
            },
            Kind::File { .. } | Kind::Folder | Kind::Link { .. } => {
                self.beneath.error("writing", entry.path, source)
            }
        }
    }

    /// A whole file from memory.
    fn write(&self, beneath: &mut Beneath, target: &Target, data: &[u8]) -> Result<(), SnapshotError> {
        let entry = self.entry(target.entry);
        let work = || {
            let mut staged = self.staging.file()?;
            staged.file.write_all(data)?;
            staged.place(beneath, self.place(target), entry.mode, entry.mtime, target.replace)
        };
        let mut work = work;
        work().map_err(|e| self.error(&entry, e))
    }
}

/// Fetches, checks every hash, and writes below `root`, which is made when absent. Each file appears whole or not at all.
///
/// # Errors
/// `Unsafe` for anything that would be written elsewhere or is not what it says, `Damaged` for content, `NoSpace`
/// before anything is written when there is not enough room, and what the store or the folder meets. What was
/// written until then stays; running it again goes on.
pub async fn restore(
    store: &Store,
    manifest: &Manifest,
    root: &Path,
    options: &RestoreOptions,
    progress: &dyn Progress,
) -> Result<RestoreReport, SnapshotError> {
    let (entries, tree) = (selected(manifest, options), Arc::clone(&manifest.tree));
    let (path, preparing) = (root.to_owned(), options.clone());
    let (site, prepared) = blocking(move || {
        let mut beneath = Beneath::open(&path).map_err(file_error("opening the folder", &path))?;
        let prepared = prepare(&mut beneath, &tree, &entries, &preparing);
        let prepared = prepared.and_then(|prepared| {
            let free = beneath.free().map_err(file_error("looking at the room in", &path))?;
            if prepared.needed > free {
                finish_folders(&mut beneath, &prepared.folders)?;
                return Err(SnapshotError::NoSpace { path: path.clone(), needed: prepared.needed, free });
            }
            Ok(prepared)
        })?;
        let staging = Staging::new(&beneath).map_err(file_error("making a folder in", &path))?;
        Ok((Arc::new(Site { tree, beneath, staging }), prepared))
    })
    .await?;
    progress.total(prepared.needed);
    let Prepared { folders, files, links, mut report, .. } = prepared;
    let limits = options.existing.limits();
    let written = write_files(store, manifest, &site, files, &mut report, limits, progress).await;
    let result = blocking(move || {
        let mut beneath = site.beneath.clone();
        let linked = written.and_then(|()| {
            for link in &links {
                let entry = site.entry(link.entry);
                let Kind::Link { target } = entry.kind else { continue };
                site.staging
                    .link(&mut beneath, target, entry.mtime, site.place(link), link.replace)
                    .map_err(|e| site.error(&entry, e))?;
            }
            Ok(())
        });
        let finished = finish_folders(&mut beneath, &folders);
        linked.and(finished)
    })
    .await;
    result.map(|()| report)
}

/// Deepest first, so that closing a folder closes nothing that is still to be set.
fn finish_folders(beneath: &mut Beneath, folders: &[FolderTask]) -> Result<(), SnapshotError> {
    let mut result = Ok(());
    for folder in folders.iter().rev() {
        if let Err(e) = beneath.set_folder(&folder.path, folder.mode, folder.mtime) {
            result = result.and(Err(beneath.error("setting the mode of", &folder.path, e)));
        }
    }
    result
}

async fn write_files(
    store: &Store,
    manifest: &Manifest,
    site: &Arc<Site>,
    files: Vec<Target>,
    report: &mut RestoreReport,
    limits: Limits,
    progress: &dyn Progress,
) -> Result<(), SnapshotError> {
    let mut empty = Vec::new();
    let mut packs: HashMap<u32, Vec<Target>> = HashMap::new();
    let mut large: HashMap<blake3::Hash, Vec<Target>> = HashMap::new();
    for target in files {
        let Kind::File { hash, content, .. } = site.entry(target.entry).kind else { continue };
        match content {
            Content::Empty => empty.push(target),
            Content::Pack(pack) => packs.entry(pack).or_default().push(target),
            Content::Chunks(_) => large.entry(hash).or_default().push(target),
            // No manifest that was checked has such.
            Content::Nowhere => {}
        }
    }
    let shared = Arc::clone(site);
    report.written += blocking(move || {
        let mut beneath = shared.beneath.clone();
        for target in &empty {
            shared.write(&mut beneath, target, &[])?;
        }
        Ok(empty.len() as u64)
    })
    .await?;
    let mut unpacked = stream::iter(packs)
        .map(|(pack, targets)| {
            let (site, key) = (Arc::clone(site), manifest.objects.key(pack));
            async move {
                let pack = fetch_pack(store, &site, &key).await?;
                blocking(move || write_pack(&site, &key, pack, &targets)).await
            }
        })
        .buffer_unordered(limits.packs);
    while let Some((files, bytes)) = unpacked.try_next().await? {
        report.written += files;
        report.bytes += bytes;
        progress.advance(bytes);
    }
    for targets in large.into_values() {
        write_large(store, manifest, site, targets, report, limits, progress).await?;
    }
    Ok(())
}

/// A pack as a file that goes away by itself: in memory, packs would take more than everything else.
async fn fetch_pack(store: &Store, site: &Arc<Site>, key: &str) -> Result<File, SnapshotError> {
    let damaged = |cause: String| SnapshotError::Damaged { name: key.to_owned(), cause };
    let name = object_hash(key).ok_or_else(|| damaged("it is not named by a hash".into()))?;
    let mut pieces = store.get_stream(key).await.map_err(|e| missing(key, e))?;
    let writing = |site: &Site, e| site.beneath.error("keeping a pack below", Path::new(""), e);
    let shared = Arc::clone(site);
    let mut state = blocking(move || {
        let file = shared.staging.file().and_then(|staged| staged.file.try_clone());
        Ok((file.map_err(|e| writing(&shared, e))?, blake3::Hasher::new()))
    })
    .await?;
    let mut length = 0;
    while let Some(piece) = pieces.try_next().await? {
        length += piece.len();
        if length > PACK_LIMIT {
            return Err(damaged(format!("it is larger than the {PACK_LIMIT} bytes it may have")));
        }
        let (mut file, mut hasher) = state;
        let shared = Arc::clone(site);
        state = blocking(move || {
            hasher.update(&piece);
            file.write_all(&piece).map_err(|e| writing(&shared, e))?;
            Ok((file, hasher))
        })
        .await?;
    }
    let (mut file, hasher) = state;
    if hasher.finalize() != name {
        return Err(damaged("its bytes do not match its name".into()));
    }
    file.rewind().map_err(|e| writing(site, e))?;
    Ok(file)
}

/// An object of at most so many bytes.
async fn fetch(store: &Store, key: &str, limit: usize) -> Result<Bytes, SnapshotError> {
    let mut pieces = store.get_stream(key).await.map_err(|e| missing(key, e))?;
    let mut bytes = BytesMut::with_capacity(limit);
    while let Some(piece) = pieces.try_next().await? {
        if bytes.len() + piece.len() > limit {
            let cause = format!("it is larger than the {limit} bytes it may have");
            return Err(SnapshotError::Damaged { name: key.to_owned(), cause });
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.freeze())
}

fn missing(key: &str, error: StoreError) -> SnapshotError {
    if error.kind == StoreErrorKind::NotFound {
        let cause = "the store does not have it (any more)".into();
        return SnapshotError::Damaged { name: key.to_owned(), cause };
    }
    error.into()
}

/// Files and bytes written.
fn write_pack(site: &Site, key: &str, pack: File, targets: &[Target]) -> Result<(u64, u64), SnapshotError> {
    let damaged = |cause: &str| SnapshotError::Damaged { name: key.to_owned(), cause: cause.into() };
    let mut wanted = HashMap::new();
    let mut places: HashMap<blake3::Hash, Vec<&Target>> = HashMap::new();
    for target in targets {
        let Kind::File { size, hash, .. } = site.entry(target.entry).kind else { continue };
        if wanted.insert(hash, size).is_some_and(|other| other != size) {
            return Err(damaged("one content has two sizes"));
        }
        places.entry(hash).or_default().push(target);
    }
    let mut beneath = site.beneath.clone();
    let (mut files, mut written) = (0, 0);
    pack::unpack(key, pack, &wanted, |hash, data| {
        for target in places.get(hash).into_iter().flatten() {
            site.write(&mut beneath, target, data)?;
            files += 1;
            written += data.len() as u64;
        }
        Ok(())
    })?;
    Ok((files, written))
}

/// One content in chunks, to all its places.
async fn write_large(
    store: &Store,
    manifest: &Manifest,
    site: &Arc<Site>,
    targets: Vec<Target>,
    report: &mut RestoreReport,
    limits: Limits,
    progress: &dyn Progress,
) -> Result<(), SnapshotError> {
    let Some(first) = targets.first().map(|target| target.entry) else { return Ok(()) };
    let Kind::File { size, hash, content: Content::Chunks(chunks) } = site.entry(first).kind else {
        return Ok(());
    };
    // Copied: a closure over references would keep the whole future from being `Send`.
    let mut data = stream::iter(chunks.to_vec())
        .map(|(object, length)| {
            let (key, length) = (manifest.objects.key(object), length as usize);
            async move {
                let stored = fetch(store, &key, length).await?;
                blocking(move || {
                    object_hash(&key).and_then(|hash| decode_chunk(stored, length, &hash)).ok_or_else(|| {
                        let cause = "its bytes do not match its name".to_owned();
                        SnapshotError::Damaged { name: key, cause }
                    })
                })
                .await
            }
        })
        .buffered(limits.chunks);
    let shared = Arc::clone(site);
    let staged = blocking(move || shared.staging.file().map_err(|e| shared.error(&shared.entry(first), e)));
    let mut state = (staged.await?, blake3::Hasher::new());
    while let Some(chunk) = data.try_next().await? {
        let length = chunk.len() as u64;
        let shared = Arc::clone(site);
        let (mut staged, mut hasher) = state;
        state = blocking(move || {
            hasher.update(&chunk);
            staged.file.write_all(&chunk).map_err(|e| shared.error(&shared.entry(first), e))?;
            Ok((staged, hasher))
        })
        .await?;
        report.bytes += length;
        progress.advance(length);
    }
    let (staged, hasher) = state;
    if hasher.finalize() != hash {
        let name = site.entry(first).path.display().to_string();
        return Err(SnapshotError::Damaged { name, cause: "its chunks do not make up its content".into() });
    }
    let shared = Arc::clone(site);
    let count = targets.len() as u64;
    blocking(move || {
        let mut beneath = shared.beneath.clone();
        let mut staged = Some(staged);
        for (at, target) in targets.iter().enumerate() {
            let entry = shared.entry(target.entry);
            let last = at + 1 == targets.len();
            let mut place = || {
                let file = if last {
                    staged.take()
                } else if let Some(whole) = &mut staged {
                    let mut copy = shared.staging.file()?;
                    whole.file.rewind()?;
                    io::copy(&mut whole.file, &mut copy.file)?;
                    Some(copy)
                } else {
                    None
                };
                let Some(file) = file else { return Ok(()) };
                file.place(&mut beneath, shared.place(target), entry.mode, entry.mtime, target.replace)
            };
            place().map_err(|e| shared.error(&entry, e))?;
        }
        Ok(())
    })
    .await?;
    report.written += count;
    report.bytes += size * (count - 1);
    progress.advance(size * (count - 1));
    Ok(())
}

/// Reads the restored files again and compares their hashes: the check before anything is deleted from the store (I6). Lists what differs.
/// Everything is on the disk when it returns, not only in memory.
///
/// # Errors
/// What cannot be read.
pub async fn verify(
    manifest: &Manifest,
    root: &Path,
    options: &RestoreOptions,
    report: &RestoreReport,
) -> Result<Vec<PathBuf>, SnapshotError> {
    let (entries, tree) = (selected(manifest, options), Arc::clone(&manifest.tree));
    let path = root.to_owned();
    let beneath = blocking(move || {
        let beneath = Beneath::open(&path).map_err(file_error("opening the folder", &path))?;
        beneath.sync().map_err(file_error("syncing", &path))?;
        Ok(beneath)
    })
    .await?;
    let (report, base) = (report.clone(), options.base.clone());
    let differing = each(entries, Limits::AMPLE.readers, &super::Quiet, move |at, _| {
        let Some(entry) = tree.get(*at as usize) else { return Ok(None) };
        if report.skipped_links.iter().any(|link| link == entry.path) {
            return Ok(None);
        }
        let mut beneath = beneath.clone();
        let path = placed(entry.path, &report.kept);
        let mut same = |kind: &Kind<'_>| {
            same_content(&mut beneath, &path, kind).map_err(|e| beneath.error("reading", &path, e))
        };
        if same(&entry.kind)? {
            return Ok(None);
        }
        // A local file that was left alone because there was nothing new to bring.
        let known = base.as_ref().and_then(|base| base.find(entry.path));
        let nothing_new = known.is_some_and(|known| prepare::equal(&known.kind, &entry.kind));
        let mut beneath = beneath.clone();
        let there = beneath.stat(&path).map_err(|e| beneath.error("looking at", &path, e))?.is_some();
        Ok((!(nothing_new && there)).then(|| entry.path.to_owned()))
    })
    .await?;
    Ok(differing.into_iter().flatten().collect())
}

/// Where a path of the manifest went.
fn placed(path: &Path, kept: &[(PathBuf, PathBuf)]) -> PathBuf {
    kept.iter()
        .rev()
        .find_map(|(from, to)| {
            let rest = path.strip_prefix(from).ok()?;
            Some(if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) })
        })
        .unwrap_or_else(|| path.to_owned())
}
