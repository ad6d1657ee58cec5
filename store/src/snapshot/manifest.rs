//! The manifest: its JSON, and every check that makes it safe to restore.

use std::{
    borrow::Cow,
    collections::HashSet,
    ffi::OsStr,
    fmt,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tpi_proto::id::{Attempt, SlotIndex, TaskId};

use super::{LARGEST_CHUNK, LARGEST_SMALL, STAGING, SnapshotError, Space};
use crate::layout::{CACHE, TASKS, TaskKeys};

/// Version of the shape. A reader refuses a newer one.
const VERSION: u32 = 1;
/// Permission bits of files that are kept; the ones that lend somebody's rights to others are not.
pub(super) const FILE_MODE: u32 = 0o777;
/// The same for folders, with the sticky bit.
pub(super) const FOLDER_MODE: u32 = 0o1777;

/// Manifest of a folder: every entry, and where its content lies. JSON in the store.
///
/// Only made by [`super::push`] or checked by [`Manifest::from_bytes`], so one that exists names only things inside.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// When the folder was read: files younger than that may have changed without looking different.
    pub(super) taken: Timestamp,
    /// Keys of packs and chunks.
    pub(super) objects: Vec<String>,
    /// Bytes of the contents that went into each object, living or not; 0 where that is not known.
    pub(super) sizes: Vec<u64>,
    /// By path, so that a folder comes before what is in it.
    pub(super) entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) path: PathBuf,
    pub(super) mode: u32,
    pub(super) mtime: Time,
    pub(super) kind: Kind,
}

/// Seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Time(pub(super) i64, pub(super) u32);

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    Folder,
    Link { target: PathBuf },
    File { size: u64, hash: blake3::Hash, content: Content },
}

/// Where a file's bytes are. Numbers are positions in [`Manifest::objects`].
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Content {
    Empty,
    Pack(u32),
    /// Object and bytes of each chunk, in order.
    Chunks(Vec<(u32, u32)>),
}

/// Key of a content object.
pub(super) fn object_key(space: &Space, hash: &blake3::Hash) -> String {
    match space {
        Space::Cache => format!("{CACHE}/{}", hash.to_hex()),
        Space::Save { task, run, save } => {
            format!("{}/{}", TaskKeys::new(task).save_packs(*run, *save), hash.to_hex())
        }
    }
}

/// The hash that a content object is named by; `None` when the key is not that of one.
pub(super) fn object_hash(key: &str) -> Option<blake3::Hash> {
    let (folder, name) = key.rsplit_once('/')?;
    let known = folder == CACHE
        || folder
            .strip_prefix(TASKS)
            .and_then(|rest| rest.strip_prefix('/'))
            .and_then(|rest| rest.split_once("/packs/"))
            .is_some_and(|(id, rest)| id.parse::<TaskId>().is_ok() && Save::parse(rest).is_some());
    let lower = name.len() == 64 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if known && lower { blake3::Hash::from_hex(name).ok() } else { None }
}

/// Which push wrote an object: the folder it lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Save {
    pub(super) slot: SlotIndex,
    pub(super) attempt: Attempt,
    pub(super) number: u64,
}

impl Save {
    /// From `{slot}/{attempt}-{save}`, as it is written and no other way.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (slot, rest) = text.split_once('/')?;
        let (attempt, number) = rest.split_once('-')?;
        let save = Self {
            slot: SlotIndex(slot.parse().ok()?),
            attempt: Attempt(attempt.parse().ok()?),
            number: number.parse().ok()?,
        };
        (save.to_string() == text).then_some(save)
    }
}

impl fmt::Display for Save {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}-{}", self.slot, self.attempt, self.number)
    }
}

impl Manifest {
    /// JSON.
    #[must_use]
    pub fn to_bytes(&self) -> bytes::Bytes {
        // Writing to memory, and every field has a JSON form.
        serde_json::to_vec(self).unwrap_or_default().into()
    }

    /// From JSON; every path and reference is checked here, so that a restored manifest can only name things inside.
    ///
    /// # Errors
    /// `Damaged` when it is no manifest of this version, `Unsafe` when an entry is not what it should be.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let damaged = |cause: String| SnapshotError::Damaged { name: "the manifest".into(), cause };
        let wire: Wire<'_> = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
        wire.check()
    }

    /// Whether two manifests describe the same files (times included).
    #[must_use]
    pub fn same_content(&self, other: &Self) -> bool {
        self.entries.len() == other.entries.len()
            && self.entries.iter().zip(&other.entries).all(|(a, b)| {
                a.path == b.path
                    && a.mode == b.mode
                    && a.mtime == b.mtime
                    && match (&a.kind, &b.kind) {
                        (Kind::Folder, Kind::Folder) => true,
                        (Kind::Link { target: a }, Kind::Link { target: b }) => a == b,
                        (
                            Kind::File { size: size_a, hash: hash_a, .. },
                            Kind::File { size: size_b, hash: hash_b, .. },
                        ) => size_a == size_b && hash_a == hash_b,
                        (Kind::Folder | Kind::Link { .. } | Kind::File { .. }, _) => false,
                    }
            })
    }

    /// Files and bytes.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        self.files().fold((0, 0), |(files, bytes), (_, size)| (files + 1, bytes + size))
    }

    /// Path and size of each file, by path.
    pub fn files(&self) -> impl Iterator<Item = (&Path, u64)> {
        self.entries.iter().filter_map(|entry| match &entry.kind {
            Kind::File { size, .. } => Some((entry.path.as_path(), *size)),
            Kind::Folder | Kind::Link { .. } => None,
        })
    }

    /// Content objects that it needs.
    #[must_use]
    pub fn objects(&self) -> Vec<String> {
        self.objects.clone()
    }

    pub(super) fn find(&self, path: &Path) -> Option<&Entry> {
        let at = self.entries.binary_search_by(|entry| entry.path.as_path().cmp(path)).ok()?;
        self.entries.get(at)
    }

    /// Bytes of the contents that went into an object, where that is known.
    pub(super) fn size(&self, index: u32) -> Option<u64> {
        self.sizes.get(index as usize).copied().filter(|size| *size > 0)
    }

    /// Key of an object; indices were checked when the manifest was made.
    pub(super) fn object(&self, index: u32) -> &str {
        self.objects.get(index as usize).map_or("", String::as_str)
    }
}

#[derive(Serialize, Deserialize)]
struct Wire<'a> {
    version: u32,
    taken: Timestamp,
    objects: Vec<Cow<'a, str>>,
    #[serde(default)]
    sizes: Vec<u64>,
    #[serde(borrow)]
    entries: Vec<WireEntry<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WireKind {
    Folder,
    Link,
    File,
}

/// Names that are not UTF-8 stand in the field that ends in `_base64`.
#[derive(Serialize, Deserialize)]
struct WireEntry<'a> {
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    path: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path_base64: Option<String>,
    #[serde(rename = "type")]
    kind: WireKind,
    mode: u32,
    mtime: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hash: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pack: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chunks: Option<Cow<'a, [(u32, u32)]>>,
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    target: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target_base64: Option<String>,
}

fn text(path: &Path) -> (Option<Cow<'_, str>>, Option<String>) {
    let bytes = path.as_os_str().as_bytes();
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.into()), None),
        Err(_) => (None, Some(BASE64.encode(bytes))),
    }
}

fn untext(text: Option<Cow<'_, str>>, base64: Option<String>) -> Result<PathBuf, String> {
    match (text, base64) {
        (Some(text), None) => Ok(PathBuf::from(text.into_owned())),
        (None, Some(base64)) => {
            let bytes = BASE64.decode(base64).map_err(|e| e.to_string())?;
            Ok(PathBuf::from(OsStr::from_bytes(&bytes)))
        }
        (Some(_), Some(_)) | (None, None) => Err("it needs exactly one name".into()),
    }
}

impl Serialize for Manifest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Wire {
            version: VERSION,
            taken: self.taken,
            objects: self.objects.iter().map(|key| Cow::Borrowed(key.as_str())).collect(),
            sizes: self.sizes.clone(),
            entries: self.entries.iter().map(wire_entry).collect(),
        }
        .serialize(serializer)
    }
}

fn wire_entry(entry: &Entry) -> WireEntry<'_> {
    let (path, path_base64) = text(&entry.path);
    let mut wire = WireEntry {
        path,
        path_base64,
        kind: WireKind::Folder,
        mode: entry.mode,
        mtime: entry.mtime,
        size: None,
        hash: None,
        pack: None,
        chunks: None,
        target: None,
        target_base64: None,
    };
    match &entry.kind {
        Kind::Folder => {}
        Kind::Link { target } => {
            wire.kind = WireKind::Link;
            (wire.target, wire.target_base64) = text(target);
        }
        Kind::File { size, hash, content } => {
            wire.kind = WireKind::File;
            wire.size = Some(*size);
            wire.hash = Some(hash.to_hex().to_string());
            match content {
                Content::Empty => {}
                Content::Pack(pack) => wire.pack = Some(*pack),
                Content::Chunks(chunks) => wire.chunks = Some(Cow::Borrowed(chunks)),
            }
        }
    }
    wire
}

impl<'de> Deserialize<'de> for Manifest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Wire::deserialize(deserializer)?.check().map_err(de::Error::custom)
    }
}

impl Wire<'_> {
    fn check(self) -> Result<Manifest, SnapshotError> {
        let damaged = |cause: String| SnapshotError::Damaged { name: "the manifest".into(), cause };
        if self.version != VERSION {
            let cause =
                format!("version {} is not known, {VERSION} is: it needs a newer program", self.version);
            return Err(damaged(cause));
        }
        let mut unique = HashSet::new();
        for key in &self.objects {
            if object_hash(key).is_none() || !unique.insert(key.as_ref()) {
                return Err(damaged(format!("{key:?} cannot be one of its objects")));
            }
        }
        let count = self.objects.len();
        let mut sizes = self.sizes;
        sizes.resize(count, 0);
        let mut entries = Vec::with_capacity(self.entries.len());
        for wire in self.entries {
            entries.push(wire.check(count)?);
        }
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        check_tree(&entries)?;
        check_roles(&entries, count).map_err(damaged)?;
        let objects = self.objects.into_iter().map(Cow::into_owned).collect();
        Ok(Manifest { taken: self.taken, objects, sizes, entries })
    }
}

fn refuse(path: &Path, cause: impl Into<String>) -> SnapshotError {
    SnapshotError::Unsafe { path: path.to_owned(), cause: cause.into() }
}

impl WireEntry<'_> {
    fn check(self, objects: usize) -> Result<Entry, SnapshotError> {
        let path = untext(self.path, self.path_base64).map_err(|e| refuse(Path::new(""), e))?;
        check_path(&path).map_err(|cause| refuse(&path, cause))?;
        let bad = |cause: &str| Err(refuse(&path, cause));
        if self.mtime.1 >= 1_000_000_000 {
            return bad("its time is not one");
        }
        let is_file = matches!(self.kind, WireKind::File);
        if !is_file
            && (self.size.is_some() || self.hash.is_some() || self.pack.is_some() || self.chunks.is_some())
        {
            return bad("something that is no file has content");
        }
        let mode = self.mode & if is_file { FILE_MODE } else { FOLDER_MODE };
        let kind = match self.kind {
            WireKind::Folder => Kind::Folder,
            WireKind::Link => {
                let target = untext(self.target, self.target_base64).map_err(|e| refuse(&path, e))?;
                let bytes = target.as_os_str().as_bytes();
                if bytes.is_empty() || bytes.len() > 4095 || bytes.contains(&0) {
                    return bad("its target is not a path");
                }
                Kind::Link { target }
            }
            WireKind::File => {
                let Some(size) = self.size else { return bad("it has no size") };
                let Some(hash) = self.hash.and_then(|hash| blake3::Hash::from_hex(hash).ok()) else {
                    return bad("it has no hash");
                };
                let inside = |index: u32| (index as usize) < objects;
                let content = match (self.pack, self.chunks) {
                    (None, None) if size == 0 && hash == blake3::hash(b"") => Content::Empty,
                    (Some(pack), None) if inside(pack) && size > 0 && size <= LARGEST_SMALL => {
                        Content::Pack(pack)
                    }
                    (None, Some(chunks)) => {
                        let sum = chunks.iter().try_fold(0u64, |sum, (object, bytes)| {
                            let fits = inside(*object) && *bytes > 0 && *bytes as usize <= LARGEST_CHUNK;
                            fits.then(|| sum.checked_add(u64::from(*bytes))).flatten()
                        });
                        if sum != Some(size) || size == 0 {
                            return bad("its chunks do not add up to its size");
                        }
                        Content::Chunks(chunks.into_owned())
                    }
                    (None | Some(_), None) | (Some(_), Some(_)) => {
                        return bad("its content is not where it can be");
                    }
                };
                Kind::File { size, hash, content }
            }
        };
        Ok(Entry { path, mode, mtime: self.mtime, kind })
    }
}

fn check_path(path: &Path) -> Result<(), &'static str> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() || bytes.len() > 4095 || bytes.contains(&0) {
        return Err("the name is empty, too long, or has a NUL");
    }
    if path.is_absolute() {
        return Err("the path is absolute");
    }
    if path.components().any(|part| !matches!(part, Component::Normal(_))) {
        return Err("the path has a part that is . or ..");
    }
    let normal: PathBuf = path.components().collect();
    if normal.as_os_str() != path.as_os_str() {
        return Err("the path has an empty part or one that is .");
    }
    if path.iter().any(|part| part.len() > 255) {
        return Err("a part of the path is longer than 255 bytes");
    }
    if path.iter().next().is_some_and(|first| first.as_bytes().starts_with(STAGING.as_bytes())) {
        return Err("the name is kept for unfinished files");
    }
    Ok(())
}

/// No path twice, and every parent listed, as a folder.
fn check_tree(entries: &[Entry]) -> Result<(), SnapshotError> {
    let mut folders: HashSet<&Path> = HashSet::new();
    let mut last: Option<&Path> = None;
    for entry in entries {
        if last == Some(entry.path.as_path()) {
            return Err(refuse(&entry.path, "the path is there twice"));
        }
        last = Some(&entry.path);
        match entry.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() && !folders.contains(parent) => {
                return Err(refuse(&entry.path, "what it lies in is not one of the folders"));
            }
            _ => {}
        }
        if matches!(entry.kind, Kind::Folder) {
            folders.insert(&entry.path);
        }
    }
    Ok(())
}

/// An object is a pack, or a chunk of one size.
fn check_roles(entries: &[Entry], objects: usize) -> Result<(), String> {
    let mut roles: Vec<Option<u32>> = vec![None; objects];
    let mut total = 0u64;
    let mut play = |index: u32, role: u32| match roles.get_mut(index as usize) {
        Some(slot) if slot.is_none_or(|played| played == role) => {
            *slot = Some(role);
            Ok(())
        }
        Some(_) | None => Err(format!("object {index} is used in two ways")),
    };
    for entry in entries {
        let Kind::File { size, content, .. } = &entry.kind else { continue };
        total = total.checked_add(*size).ok_or("it is larger than can be")?;
        match content {
            Content::Empty => {}
            // Chunks are not empty.
            Content::Pack(pack) => play(*pack, 0)?,
            Content::Chunks(chunks) => {
                for (object, bytes) in chunks {
                    play(*object, *bytes)?;
                }
            }
        }
    }
    Ok(())
}
