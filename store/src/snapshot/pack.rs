//! Packs: `.tar.zst` archives of whole small files, named by the BLAKE3 of their bytes.
//!
//! An entry is named `{hash}-{file name}`, with the hash of its content and as much of the name of the first
//! file with that content as can stand there, so that a person finds things with `tar --zstd -tf`.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::Write,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use async_compression::tokio::bufread::ZstdDecoder;
use bytes::Bytes;
use futures::StreamExt;
use tokio::io::AsyncReadExt;

use super::{
    LARGEST_SMALL, PACK_LIMIT, SnapshotError,
    content::read_part,
    scan::file_error,
    tree::{Tree, below},
};

/// Bytes of a pack that are read at once.
const READ: usize = 256 << 10;

/// A content that is to be packed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item {
    /// Position in the plan.
    pub(super) file: u32,
    pub(super) hash: blake3::Hash,
    pub(super) size: u64,
}

impl Item {
    /// Bytes it takes in an archive.
    pub(super) fn packed(&self) -> u64 {
        512 + self.size.next_multiple_of(512)
    }
}

#[derive(Debug)]
pub(super) struct Built {
    pub(super) bytes: Bytes,
    pub(super) name: blake3::Hash,
    pub(super) contents: Vec<(blake3::Hash, u64)>,
    /// Files (positions in the plan) that are not any more what they were when they were hashed.
    pub(super) changed: Vec<u32>,
}

/// Reads files into a pack. Blocks. The same files give the same bytes.
pub(super) fn build(root: &Path, tree: &Tree, items: &[Item]) -> Result<Built, SnapshotError> {
    let packing = || file_error("packing", root);
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).map_err(packing())?;
    let mut contents = Vec::with_capacity(items.len());
    let mut changed = Vec::new();
    for item in items {
        let path = below(root, tree, item.file as usize);
        // At most LARGEST_SMALL.
        let size = usize::try_from(item.size).unwrap_or(usize::MAX);
        let Some(data) = read_part(&path, 0, size, &item.hash).map_err(file_error("reading", &path))? else {
            changed.push(item.file);
            continue;
        };
        let mut header = tokio_tar::Header::new_ustar();
        header.set_path(entry_name(item, &path)).map_err(packing())?;
        header.set_entry_type(tokio_tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(item.size);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        let padding = [0; 512];
        let padding = &padding[..data.len().next_multiple_of(512) - data.len()];
        for part in [header.as_bytes(), data.as_slice(), padding] {
            encoder.write_all(part).map_err(packing())?;
        }
        contents.push((item.hash, item.size));
    }
    encoder.write_all(&[0; 1024]).map_err(packing())?;
    let bytes = Bytes::from(encoder.finish().map_err(packing())?);
    Ok(Built { name: blake3::hash(&bytes), bytes, contents, changed })
}

/// At most 99 bytes, which every tar reads without extensions.
fn entry_name(item: &Item, path: &Path) -> String {
    let mut name = item.hash.to_hex().to_string();
    name.push('-');
    let file = path.file_name().map_or(&b""[..], OsStrExt::as_bytes);
    for &byte in file.iter().take(34) {
        let plain = byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        name.push(if plain { char::from(byte) } else { '_' });
    }
    name
}

fn named(name: &[u8]) -> Option<blake3::Hash> {
    let hash = name.get(..64)?;
    if name.get(64) != Some(&b'-') || name.contains(&b'/') {
        return None;
    }
    blake3::Hash::from_hex(hash).ok()
}

/// Reads a pack, whose own hash was checked, from the file's position, checks everything in it, and hands over the contents that are wanted (hash and size). Blocks;
/// has to run on a thread of the runtime that may block.
///
/// # Errors
/// `Damaged` when a content is not what its name promises or one is missing; `Unsafe` when the
/// archive holds anything but plain files with names of ours, or more than a pack can.
pub(super) fn unpack(
    key: &str,
    pack: File,
    wanted: &HashMap<blake3::Hash, u64>,
    mut found: impl FnMut(&blake3::Hash, &[u8]) -> Result<(), SnapshotError>,
) -> Result<(), SnapshotError> {
    let damaged = |cause: String| SnapshotError::Damaged { name: key.to_owned(), cause };
    let pack = tokio::io::BufReader::with_capacity(READ, tokio::fs::File::from_std(pack));
    let content = ZstdDecoder::new(pack).take(PACK_LIMIT as u64 + 1);
    let mut archive = tokio_tar::Archive::new(content);
    let mut seen = HashSet::new();
    let mut left = PACK_LIMIT as u64;
    let work = async {
        // Raw: extension headers, which change the meaning of other entries, stay visible and are refused.
        let mut entries = archive.entries_raw().map_err(|e| damaged(e.to_string()))?;
        while let Some(entry) = entries.next().await {
            let mut entry = entry.map_err(|e| damaged(e.to_string()))?;
            let header = entry.header();
            let entry_name = header.path_bytes().into_owned();
            let refuse = |cause: &str| SnapshotError::Unsafe {
                path: PathBuf::from(String::from_utf8_lossy(&entry_name).into_owned()),
                cause: format!("{cause}, in {key}"),
            };
            if header.entry_type() != tokio_tar::EntryType::Regular {
                return Err(refuse("it is no plain file"));
            }
            let hash = named(&entry_name).ok_or_else(|| refuse("its name does not begin with a hash"))?;
            let size = header.raw_entry_size().map_err(|e| damaged(e.to_string()))?;
            if !seen.insert(hash) {
                return Err(refuse("it is there twice"));
            }
            left = left
                .checked_sub(size.saturating_add(512))
                .filter(|_| size <= LARGEST_SMALL)
                .ok_or_else(|| refuse("it is larger than anything packed"))?;
            let Some(expected) = wanted.get(&hash) else { continue };
            if size != *expected {
                return Err(refuse(&format!("it has {size} bytes where {expected} are promised")));
            }
            let mut data = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
            entry.read_to_end(&mut data).await.map_err(|e| damaged(e.to_string()))?;
            if data.len() as u64 != size || blake3::hash(&data) != hash {
                return Err(damaged(format!("the content {} does not match its hash", hash.to_hex())));
            }
            found(&hash, &data)?;
        }
        Ok(())
    };
    tokio::runtime::Handle::current().block_on(work)?;
    match wanted.keys().find(|hash| !seen.contains(*hash)) {
        Some(missing) => Err(damaged(format!("it lacks the content {}", missing.to_hex()))),
        None => Ok(()),
    }
}
