//! The manifest: how it is written, and every check that makes it safe to restore.
//!
//! One zstd frame of lines, each of them JSON: `zstd -dc FILE | jq` shows it. The first line tells the version, when
//! the folder was read, and the objects (number of the folder, hash, bytes of the contents that went in); each of
//! the others is one entry. Lines, because neither writer nor reader then holds more than one in memory.

use std::{
    borrow::Cow,
    collections::HashSet,
    ffi::OsStr,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use super::{
    LARGEST_CHUNK, LARGEST_SMALL, STAGING, SnapshotError,
    objects::{self, Object, Objects},
    tree::{Content, Entry, Kind, TooLarge, Tree},
};

/// Version of the shape. A reader refuses a newer one.
const VERSION: u32 = 1;
/// Permission bits of files that are kept; the ones that lend somebody's rights to others are not.
pub(super) const FILE_MODE: u32 = 0o777;
/// The same for folders, with the sticky bit.
pub(super) const FOLDER_MODE: u32 = 0o1777;
/// A longer line is none of ours: that many chunks make 40 TB.
const LONGEST_LINE: u64 = 256 << 20;
/// More is not a manifest of ours.
const LARGEST: u64 = 16 << 30;

/// Manifest of a folder: every entry, and where its content lies. Cheap to clone.
///
/// Only made by [`super::push`] or checked by [`Manifest::from_bytes`], so one that exists names only things inside.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// When the folder was read: files younger than that may have changed without looking different.
    pub(super) taken: Timestamp,
    /// Packs and chunks.
    pub(super) objects: Arc<Objects>,
    pub(super) tree: Arc<Tree>,
}

/// Seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Time(pub(super) i64, pub(super) u32);

impl Manifest {
    /// As it is stored.
    #[must_use]
    pub fn to_bytes(&self) -> bytes::Bytes {
        // Writing to memory, and every field has a JSON form.
        self.write().unwrap_or_default().into()
    }

    fn write(&self) -> io::Result<Vec<u8>> {
        let mut lines = io::BufWriter::with_capacity(64 << 10, zstd::Encoder::new(Vec::new(), 3)?);
        let objects = self.objects.list.iter();
        let header = Header {
            version: VERSION,
            taken: self.taken,
            folders: self.objects.folders.iter().map(|folder| Cow::Borrowed(folder.as_str())).collect(),
            objects: objects
                .map(|object| WireObject(object.folder.unwrap_or(u32::MAX), Hex(object.hash), object.size))
                .collect(),
        };
        serde_json::to_writer(&mut lines, &header)?;
        for entry in self.tree.iter() {
            lines.write_all(b"\n")?;
            serde_json::to_writer(&mut lines, &wire_entry(&entry))?;
        }
        lines.write_all(b"\n")?;
        lines.into_inner().map_err(io::IntoInnerError::into_error)?.finish()
    }

    /// From what [`Manifest::to_bytes`] gave; every path and reference is checked here, so that a restored manifest
    /// can only name things inside.
    ///
    /// # Errors
    /// `Damaged` when it is no manifest of this version, `Unsafe` when an entry is not what it should be.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let mut lines = Lines::new(bytes).map_err(damaged)?;
        let (taken, objects) = header(&mut lines)?;
        let mut tree = Tree::default();
        while let Some(line) = lines.next().map_err(damaged)? {
            let wire: WireEntry<'_> = serde_json::from_slice(line).map_err(damaged)?;
            wire.check(objects.list.len(), &mut tree)?;
        }
        tree.sort();
        check_tree(&tree)?;
        check_roles(&tree, objects.list.len()).map_err(damaged)?;
        tree.finish();
        Ok(Self { taken, objects: Arc::new(objects), tree: Arc::new(tree) })
    }

    /// The objects only, which costs little memory.
    pub(super) fn objects_of(bytes: &[u8]) -> Result<Objects, SnapshotError> {
        let mut lines = Lines::new(bytes).map_err(damaged)?;
        Ok(header(&mut lines)?.1)
    }

    /// Whether two manifests describe the same files (times included).
    #[must_use]
    pub fn same_content(&self, other: &Self) -> bool {
        same(&self.tree, &other.tree)
    }

    /// Files and bytes.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        self.files().fold((0, 0), |(files, bytes), (_, size)| (files + 1, bytes + size))
    }

    /// Path and size of each file, by path.
    pub fn files(&self) -> impl Iterator<Item = (&Path, u64)> {
        self.tree.iter().filter_map(|entry| match entry.kind {
            Kind::File { size, .. } => Some((entry.path, size)),
            Kind::Folder | Kind::Link { .. } => None,
        })
    }

    /// Content objects that it needs.
    #[must_use]
    pub fn objects(&self) -> Vec<String> {
        self.objects.keys().collect()
    }

    pub(super) fn find(&self, path: &Path) -> Option<Entry<'_>> {
        self.tree.get(self.tree.position(path)?)
    }
}

/// Whether two trees have the same files, wherever their contents are.
pub(super) fn same(a: &Tree, b: &Tree) -> bool {
    a.len() == b.len()
        && a.iter().zip(b.iter()).all(|(a, b)| {
            a.path == b.path
                && a.mode == b.mode
                && a.mtime == b.mtime
                && match (a.kind, b.kind) {
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

/// In a file of JSON: the bytes, as base64.
impl Serialize for Manifest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = self.write().map_err(ser::Error::custom)?;
        serializer.serialize_str(&BASE64.encode(bytes))
    }
}

impl<'de> Deserialize<'de> for Manifest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text: Cow<'_, str> = Cow::deserialize(deserializer)?;
        let bytes = BASE64.decode(text.as_bytes()).map_err(de::Error::custom)?;
        Self::from_bytes(&bytes).map_err(de::Error::custom)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn damaged(cause: impl ToString) -> SnapshotError {
    SnapshotError::Damaged { name: "the manifest".into(), cause: cause.to_string() }
}

/// Reads one line at a time.
struct Lines<'a> {
    from: BufReader<io::Take<zstd::Decoder<'a, &'a [u8]>>>,
    line: Vec<u8>,
}

impl<'a> Lines<'a> {
    fn new(bytes: &'a [u8]) -> io::Result<Self> {
        let decoder = zstd::Decoder::with_buffer(bytes)?;
        Ok(Self { from: BufReader::with_capacity(64 << 10, decoder.take(LARGEST)), line: Vec::new() })
    }

    fn next(&mut self) -> io::Result<Option<&[u8]>> {
        self.line.clear();
        let count = (&mut self.from).take(LONGEST_LINE).read_until(b'\n', &mut self.line)?;
        if count == 0 {
            return Ok(None);
        }
        if self.line.pop() != Some(b'\n') {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has a line without an end"));
        }
        Ok(Some(&self.line))
    }
}

#[derive(Serialize, Deserialize)]
struct Header<'a> {
    version: u32,
    taken: Timestamp,
    #[serde(borrow)]
    folders: Vec<Cow<'a, str>>,
    objects: Vec<WireObject>,
}

/// Number of the folder, hash, bytes of the contents that went into it (0: not known).
#[derive(Serialize, Deserialize)]
struct WireObject(u32, Hex, u64);

struct Hex(blake3::Hash);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_hex())
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text: Cow<'_, str> = Cow::deserialize(deserializer)?;
        objects::hash(&text).map(Self).ok_or_else(|| de::Error::custom("it is not the hash of an object"))
    }
}

fn header(lines: &mut Lines<'_>) -> Result<(Timestamp, Objects), SnapshotError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let line = lines.next().map_err(damaged)?.ok_or_else(|| damaged("it is empty"))?;
    let Versioned { version } = serde_json::from_slice(line).map_err(damaged)?;
    if version != VERSION {
        let cause = format!("version {version} is not known, {VERSION} is: it needs a newer program");
        return Err(damaged(cause));
    }
    let header: Header<'_> = serde_json::from_slice(line).map_err(damaged)?;
    let mut unique = HashSet::new();
    for folder in &header.folders {
        if !objects::is_folder(folder) || !unique.insert(folder.as_ref()) {
            return Err(damaged(format!("{folder:?} cannot be a folder of its objects")));
        }
    }
    let mut unique = HashSet::new();
    let mut list = Vec::with_capacity(header.objects.len());
    for WireObject(folder, Hex(hash), size) in header.objects {
        if folder as usize >= header.folders.len() || !unique.insert((folder, hash)) {
            return Err(damaged(format!("{} cannot be one of its objects", hash.to_hex())));
        }
        list.push(Object { folder: Some(folder), hash, size });
    }
    let folders = header.folders.into_iter().map(Cow::into_owned).collect();
    Ok((header.taken, Objects { folders, list }))
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
    hash: Option<Cow<'a, str>>,
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

fn wire_entry<'a>(entry: &Entry<'a>) -> WireEntry<'a> {
    let (path, path_base64) = text(entry.path);
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
    match entry.kind {
        Kind::Folder => {}
        Kind::Link { target } => {
            wire.kind = WireKind::Link;
            (wire.target, wire.target_base64) = text(target);
        }
        Kind::File { size, hash, content } => {
            wire.kind = WireKind::File;
            wire.size = Some(size);
            wire.hash = Some(hash.to_hex().to_string().into());
            match content {
                // What is nowhere is refused when it is read; a push leaves none.
                Content::Empty | Content::Nowhere => {}
                Content::Pack(pack) => wire.pack = Some(pack),
                Content::Chunks(chunks) => wire.chunks = Some(Cow::Borrowed(chunks)),
            }
        }
    }
    wire
}

fn refuse(path: &Path, cause: impl Into<String>) -> SnapshotError {
    SnapshotError::Unsafe { path: path.to_owned(), cause: cause.into() }
}

impl WireEntry<'_> {
    fn check(self, objects: usize, tree: &mut Tree) -> Result<(), SnapshotError> {
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
        let too_large = |e: TooLarge| refuse(&path, e.to_string());
        match self.kind {
            WireKind::Folder => tree.add_folder(&path, mode, self.mtime).map_err(too_large),
            WireKind::Link => {
                let target = untext(self.target, self.target_base64).map_err(|e| refuse(&path, e))?;
                let bytes = target.as_os_str().as_bytes();
                if bytes.is_empty() || bytes.len() > 4095 || bytes.contains(&0) {
                    return bad("its target is not a path");
                }
                tree.add_link(&path, &target, mode, self.mtime).map_err(too_large)
            }
            WireKind::File => {
                let Some(size) = self.size else { return bad("it has no size") };
                let Some(hash) = self.hash.and_then(|hash| blake3::Hash::from_hex(hash.as_bytes()).ok())
                else {
                    return bad("it has no hash");
                };
                let inside = |index: u32| (index as usize) < objects;
                let content = match (self.pack, &self.chunks) {
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
                        Content::Chunks(chunks)
                    }
                    (None | Some(_), None) | (Some(_), Some(_)) => {
                        return bad("its content is not where it can be");
                    }
                };
                tree.add_file(&path, mode, self.mtime, size, &hash, content).map_err(too_large)
            }
        }
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
fn check_tree(tree: &Tree) -> Result<(), SnapshotError> {
    let mut folders: HashSet<&Path> = HashSet::new();
    let mut last: Option<&Path> = None;
    for entry in tree.iter() {
        if last == Some(entry.path) {
            return Err(refuse(entry.path, "the path is there twice"));
        }
        last = Some(entry.path);
        match entry.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() && !folders.contains(parent) => {
                return Err(refuse(entry.path, "what it lies in is not one of the folders"));
            }
            _ => {}
        }
        if matches!(entry.kind, Kind::Folder) {
            folders.insert(entry.path);
        }
    }
    Ok(())
}

/// An object is a pack, or a chunk of one size.
fn check_roles(tree: &Tree, objects: usize) -> Result<(), String> {
    let mut roles: Vec<Option<u32>> = vec![None; objects];
    let mut total = 0u64;
    let mut play = |index: u32, role: u32| match roles.get_mut(index as usize) {
        Some(slot) if slot.is_none_or(|played| played == role) => {
            *slot = Some(role);
            Ok(())
        }
        Some(_) | None => Err(format!("object {index} is used in two ways")),
    };
    for entry in tree.iter() {
        let Kind::File { size, content, .. } = entry.kind else { continue };
        total = total.checked_add(size).ok_or("it is larger than can be")?;
        match content {
            Content::Empty | Content::Nowhere => {}
            // Chunks are not empty.
            Content::Pack(pack) => play(pack, 0)?,
            Content::Chunks(chunks) => {
                for (object, bytes) in chunks {
                    play(*object, *bytes)?;
                }
            }
        }
    }
    Ok(())
}
