//! Entries of a folder, in little memory: a work directory may have a hundred thousand files, and the memory is the
//! script's.
//!
//! Names lie one after the other in one piece of memory, everything else in rows of a fixed size. That is about 90
//! bytes and the name for a file, where one value of its own for each of path, hash and place took many times that.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::{content::Hashed, manifest::Time, scan::Stat};

/// Its `seen`: nothing is known but size and modification time.
const UNKNOWN: u64 = 0;
/// Its `seen`: it may have been changed since without looking different.
const UNSETTLED: u64 = 1;

/// An entry, looked at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Entry<'a> {
    pub(super) path: &'a Path,
    pub(super) mode: u32,
    pub(super) mtime: Time,
    pub(super) kind: Kind<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind<'a> {
    Folder,
    Link { target: &'a Path },
    File { size: u64, hash: blake3::Hash, content: Content<'a> },
}

/// Where a file's bytes are. Numbers are positions in [`super::objects::Objects`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Content<'a> {
    Empty,
    Pack(u32),
    /// Object and bytes of each chunk, in order.
    Chunks(&'a [(u32, u32)]),
    /// In the folder only; while it is being sent.
    Nowhere,
}

/// Entries by path, so that a folder comes before what is in it, once they are [`Tree::sort`]ed.
#[derive(Clone, Default)]
pub(super) struct Tree {
    names: Vec<u8>,
    rows: Vec<Row>,
    chunks: Vec<(u32, u32)>,
}

#[derive(Clone, Copy)]
struct Row {
    /// Where its path begins; a link's target follows.
    name: usize,
    seconds: i64,
    size: u64,
    /// What else tells a changed file: inode and change time in one number.
    seen: u64,
    hash: [u8; 32],
    nanos: u32,
    /// Bytes of the path.
    length: u16,
    mode: u16,
    place: Place,
}

#[derive(Clone, Copy)]
enum Place {
    Folder,
    /// Bytes of the target.
    Link(u16),
    Empty,
    Pack(u32),
    Chunks {
        first: u32,
        count: u32,
    },
    Nowhere,
    /// Vanished after it was found.
    Gone,
}

/// A name or a list that is too long for a tree; far beyond what a file system holds.
#[derive(Debug, thiserror::Error)]
#[error("it is too large to be described")]
pub(super) struct TooLarge;

impl From<TooLarge> for std::io::Error {
    fn from(error: TooLarge) -> Self {
        Self::other(error)
    }
}

/// What [`Stat`] tells beyond size and modification time, in one number.
pub(super) fn seen(stat: &Stat) -> u64 {
    let mut bytes = [0; 20];
    bytes[..8].copy_from_slice(&stat.ctime.0.to_le_bytes());
    bytes[8..12].copy_from_slice(&stat.ctime.1.to_le_bytes());
    bytes[12..].copy_from_slice(&stat.inode.to_le_bytes());
    let hash = blake3::hash(&bytes);
    let mut number = [0; 8];
    number.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(number).max(UNSETTLED + 1)
}

impl Tree {
    /// An empty one with room for as much and a little more.
    pub(super) fn as_large(&self) -> Self {
        let more = |count: usize| count + count / 16 + 16;
        Self {
            names: Vec::with_capacity(more(self.names.len())),
            rows: Vec::with_capacity(more(self.rows.len())),
            chunks: Vec::with_capacity(self.chunks.len()),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    fn add(&mut self, path: &Path, target: &Path, row: Row) -> Result<(), TooLarge> {
        let (path, target) = (path.as_os_str().as_bytes(), target.as_os_str().as_bytes());
        let row =
            Row { name: self.names.len(), length: u16::try_from(path.len()).map_err(|_| TooLarge)?, ..row };
        if u32::try_from(self.rows.len()).is_err() {
            return Err(TooLarge);
        }
        self.names.extend_from_slice(path);
        self.names.extend_from_slice(target);
        self.rows.push(row);
        Ok(())
    }

    fn row(mode: u32, mtime: Time, place: Place) -> Row {
        Row {
            name: 0,
            seconds: mtime.0,
            size: 0,
            seen: UNKNOWN,
            hash: [0; 32],
            nanos: mtime.1,
            length: 0,
            // Permission bits only.
            mode: u16::try_from(mode & 0o7777).unwrap_or(0),
            place,
        }
    }

    pub(super) fn add_folder(&mut self, path: &Path, mode: u32, mtime: Time) -> Result<(), TooLarge> {
        self.add(path, Path::new(""), Self::row(mode, mtime, Place::Folder))
    }

    pub(super) fn add_link(
        &mut self,
        path: &Path,
        target: &Path,
        mode: u32,
        mtime: Time,
    ) -> Result<(), TooLarge> {
        let length = u16::try_from(target.as_os_str().len()).map_err(|_| TooLarge)?;
        self.add(path, target, Self::row(mode, mtime, Place::Link(length)))
    }

    /// A file as it looks; its content is to be told.
    pub(super) fn add_seen(&mut self, path: &Path, stat: &Stat) -> Result<(), TooLarge> {
        let row = Self::row(stat.mode, stat.mtime, Place::Nowhere);
        self.add(path, Path::new(""), Row { size: stat.size, seen: seen(stat), ..row })
    }

    /// A file that a manifest tells of.
    pub(super) fn add_file(
        &mut self,
        path: &Path,
        mode: u32,
        mtime: Time,
        size: u64,
        hash: &blake3::Hash,
        content: Content<'_>,
    ) -> Result<(), TooLarge> {
        let place = self.placed(content)?;
        let row = Row { size, hash: *hash.as_bytes(), ..Self::row(mode, mtime, place) };
        self.add(path, Path::new(""), row)
    }

    fn placed(&mut self, content: Content<'_>) -> Result<Place, TooLarge> {
        Ok(match content {
            Content::Empty => Place::Empty,
            Content::Pack(pack) => Place::Pack(pack),
            Content::Chunks(chunks) => {
                let first = u32::try_from(self.chunks.len()).map_err(|_| TooLarge)?;
                let count = u32::try_from(chunks.len()).map_err(|_| TooLarge)?;
                self.chunks.extend_from_slice(chunks);
                Place::Chunks { first, count }
            }
            Content::Nowhere => Place::Nowhere,
        })
    }

    /// By path.
    pub(super) fn sort(&mut self) {
        let names = &self.names;
        let path = |row: &Row| bytes_path(names, row.name, row.length);
        if !self.rows.is_sorted_by(|a, b| path(a) <= path(b)) {
            self.rows.sort_unstable_by(|a, b| path(a).cmp(path(b)));
        }
    }

    pub(super) fn get(&self, at: usize) -> Option<Entry<'_>> {
        self.rows.get(at).map(|row| self.view(row))
    }

    fn view(&self, row: &Row) -> Entry<'_> {
        let hash = blake3::Hash::from_bytes(row.hash);
        let file = |content| Kind::File { size: row.size, hash, content };
        let kind = match row.place {
            Place::Folder => Kind::Folder,
            Place::Link(length) => {
                Kind::Link { target: bytes_path(&self.names, row.name + usize::from(row.length), length) }
            }
            Place::Empty => file(Content::Empty),
            Place::Pack(pack) => file(Content::Pack(pack)),
            Place::Chunks { first, count } => {
                let list = self.chunks.get(first as usize..).and_then(|rest| rest.get(..count as usize));
                file(Content::Chunks(list.unwrap_or_default()))
            }
            Place::Nowhere | Place::Gone => file(Content::Nowhere),
        };
        Entry {
            path: bytes_path(&self.names, row.name, row.length),
            mode: u32::from(row.mode),
            mtime: Time(row.seconds, row.nanos),
            kind,
        }
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = Entry<'_>> + Clone {
        self.rows.iter().map(|row| self.view(row))
    }

    pub(super) fn path(&self, at: usize) -> &Path {
        self.rows.get(at).map_or(Path::new(""), |row| bytes_path(&self.names, row.name, row.length))
    }

    pub(super) fn position(&self, path: &Path) -> Option<usize> {
        self.rows.binary_search_by(|row| bytes_path(&self.names, row.name, row.length).cmp(path)).ok()
    }

    /// What tells a changed file beyond size and time; `None` when that is not known.
    pub(super) fn seen(&self, at: usize) -> Option<u64> {
        self.rows.get(at).map(|row| row.seen).filter(|seen| *seen != UNKNOWN)
    }

    /// For files that the index may remember.
    pub(super) fn settled(&self, at: usize) -> Option<u64> {
        self.seen(at).filter(|seen| *seen != UNSETTLED)
    }

    pub(super) fn is_gone(&self, at: usize) -> bool {
        self.rows.get(at).is_some_and(|row| matches!(row.place, Place::Gone))
    }

    /// A file is what was known of it by no more than size and time.
    pub(super) fn forget_seen(&mut self, at: usize) {
        if let Some(row) = self.rows.get_mut(at) {
            row.seen = UNKNOWN;
        }
    }

    /// What a file holds.
    pub(super) fn set_content(
        &mut self,
        at: usize,
        hash: &blake3::Hash,
        content: Content<'_>,
    ) -> Result<(), TooLarge> {
        let place = self.placed(content)?;
        if let Some(row) = self.rows.get_mut(at) {
            row.hash = *hash.as_bytes();
            row.place = place;
        }
        Ok(())
    }

    /// What a file was when it was read; `None`: it has vanished.
    pub(super) fn set_read(&mut self, at: usize, hashed: Option<&Hashed>) {
        let Some(row) = self.rows.get_mut(at) else { return };
        let Some(hashed) = hashed else {
            row.place = Place::Gone;
            return;
        };
        row.mode = u16::try_from(hashed.stat.mode).unwrap_or(0);
        (row.seconds, row.nanos) = (hashed.stat.mtime.0, hashed.stat.mtime.1);
        row.size = hashed.stat.size;
        row.seen = if hashed.settled { seen(&hashed.stat) } else { UNSETTLED };
    }

    /// Takes vanished files out, and the room that nothing needs.
    pub(super) fn finish(&mut self) {
        self.rows.retain(|row| !matches!(row.place, Place::Gone));
        self.rows.shrink_to_fit();
        self.names.shrink_to_fit();
    }

    /// Gives every object that a file names another number.
    pub(super) fn renumber(&mut self, mut number: impl FnMut(u32) -> u32) {
        // Lists of chunks that were replaced go.
        let mut chunks = Vec::new();
        for row in &mut self.rows {
            match &mut row.place {
                Place::Pack(pack) => *pack = number(*pack),
                Place::Chunks { first, count } => {
                    let list =
                        self.chunks.get(*first as usize..).and_then(|rest| rest.get(..*count as usize));
                    *first = u32::try_from(chunks.len()).unwrap_or(u32::MAX);
                    chunks.extend(
                        list.unwrap_or_default().iter().map(|(object, size)| (number(*object), *size)),
                    );
                }
                Place::Folder | Place::Link(_) | Place::Empty | Place::Nowhere | Place::Gone => {}
            }
        }
        chunks.shrink_to_fit();
        self.chunks = chunks;
    }
}

impl PartialEq for Tree {
    /// Whether the same is told of the same entries.
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

fn bytes_path(names: &[u8], at: usize, length: u16) -> &Path {
    let bytes = names.get(at..).and_then(|rest| rest.get(..usize::from(length)));
    Path::new(OsStr::from_bytes(bytes.unwrap_or_default()))
}

/// Whole path of an entry, for errors and for opening it.
pub(super) fn below(root: &Path, tree: &Tree, at: usize) -> PathBuf {
    root.join(tree.path(at))
}
