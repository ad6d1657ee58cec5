//! What this computer remembers of a folder and of the shared packs, so that neither is read again.
//!
//! A file is taken for unchanged when size, times and inode are the same and the times were old enough, when it
//! was hashed, that a later change would show. The index is a cache: one that is missing, damaged, of another
//! version or of another folder is an empty one.

use std::{
    collections::HashMap,
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    manifest::Time,
    objects::Objects,
    tree::{Content, Kind, Tree},
};

const VERSION: u32 = 2;
/// Contents of shared packs that are remembered; more are asked of the store again.
const REMEMBERED_CONTENTS: usize = 1_000_000;
/// An index above this is not one of ours.
const LARGEST: usize = 1 << 30;

#[derive(Debug, Default)]
pub(super) struct Index {
    files: HashMap<PathBuf, File>,
    /// By the pack's hash: hash and size of what it holds.
    pub(super) packs: HashMap<String, PackContents>,
}

/// What a file was.
#[derive(Debug)]
pub(super) struct File {
    size: u64,
    mtime: Time,
    /// What else tells a changed one, in one number.
    seen: u64,
    pub(super) hash: blake3::Hash,
    /// Hash and bytes of each chunk; empty for small files.
    pub(super) chunks: Vec<(blake3::Hash, u32)>,
}

/// Hash (hexadecimal) and size of each content of a pack.
pub(super) type PackContents = Vec<(String, u64)>;

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    root: PathBuf,
    files: Vec<StoredFile>,
    packs: HashMap<String, PackContents>,
}

#[derive(Serialize, Deserialize)]
struct StoredFile {
    path: String,
    size: u64,
    mtime: Time,
    seen: u64,
    hash: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    chunks: Vec<(String, u32)>,
}

impl Index {
    pub(super) fn load(path: &Path, root: &Path) -> Self {
        Self::try_load(path, root).unwrap_or_else(|error| {
            tracing::debug!(?path, %error, "no index of hashes");
            Self::default()
        })
    }

    fn try_load(path: &Path, root: &Path) -> io::Result<Self> {
        let bytes = crate::segments::decompress(&fs::read(path)?, LARGEST).map_err(io::Error::other)?;
        let stored: Stored = serde_json::from_slice(&bytes)?;
        if stored.version != VERSION {
            return Err(io::Error::other("another version"));
        }
        let mut files = HashMap::new();
        if stored.root == root {
            for file in stored.files {
                let parse = |hash: &str| blake3::Hash::from_hex(hash).map_err(io::Error::other);
                let chunks = file.chunks.iter().map(|(hash, size)| Ok((parse(hash)?, *size)));
                let known = File {
                    size: file.size,
                    mtime: file.mtime,
                    seen: file.seen,
                    hash: parse(&file.hash)?,
                    chunks: chunks.collect::<io::Result<_>>()?,
                };
                files.insert(PathBuf::from(file.path), known);
            }
        }
        Ok(Self { files, packs: stored.packs })
    }

    /// What is known of a file that looks like this.
    pub(super) fn find(&self, path: &Path, size: u64, mtime: Time, seen: u64) -> Option<&File> {
        self.files.get(path).filter(|known| known.size == size && known.mtime == mtime && known.seen == seen)
    }

    pub(super) fn forget_files(&mut self) {
        self.files = HashMap::new();
    }

    /// Replaces what was known of the folder's files. Names that are not UTF-8 are not remembered.
    pub(super) fn save(
        path: &Path,
        root: &Path,
        tree: &Tree,
        objects: &Objects,
        packs: &HashMap<String, PackContents>,
    ) -> io::Result<()> {
        let chunk =
            |(object, size): &(u32, u32)| Some((objects.get(*object)?.hash.to_hex().to_string(), *size));
        let files = tree
            .iter()
            .enumerate()
            .filter_map(|(at, entry)| {
                let Kind::File { size, hash, content } = entry.kind else { return None };
                let chunks = match content {
                    Content::Chunks(chunks) => chunks.iter().map(chunk).collect::<Option<_>>()?,
                    Content::Empty | Content::Pack(_) | Content::Nowhere => Vec::new(),
                };
                Some(StoredFile {
                    path: entry.path.to_str()?.to_owned(),
                    size,
                    mtime: entry.mtime,
                    seen: tree.settled(at).filter(|_| !tree.is_gone(at))?,
                    hash: hash.to_hex().to_string(),
                    chunks,
                })
            })
            .collect();
        let mut remembered = 0;
        let packs = packs
            .iter()
            .take_while(|(_, contents)| {
                remembered += contents.len();
                remembered <= REMEMBERED_CONTENTS
            })
            .map(|(name, contents)| (name.clone(), contents.clone()))
            .collect();
        let stored = Stored { version: VERSION, root: root.to_owned(), files, packs };
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let temporary = path.with_extension(format!("{:016x}.tmp", rand::random::<u64>()));
        let write = || {
            let file = fs::OpenOptions::new().create_new(true).write(true).open(&temporary)?;
            let mut encoder = zstd::Encoder::new(io::BufWriter::new(file), 1)?;
            serde_json::to_writer(&mut encoder, &stored)?;
            encoder.finish()?.flush()?;
            fs::rename(&temporary, path)
        };
        write().inspect_err(|_| drop(fs::remove_file(&temporary)))
    }
}
