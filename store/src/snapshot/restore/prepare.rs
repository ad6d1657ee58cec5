//! What to do about each path, before any file is written.

use std::{
    ffi::OsString,
    io::{self, Read},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FileType, Stat};

use super::placed;
use crate::snapshot::{
    Existing, OutsideLinks, RestoreOptions, RestoreReport, SnapshotError,
    beneath::Beneath,
    manifest::{FILE_MODE, FOLDER_MODE, Time},
    scan::points_outside,
    tree::{Entry, Kind, Tree},
};

/// A file or link that is to be made.
#[derive(Debug)]
pub(super) struct Target {
    /// Position of the entry.
    pub(super) entry: u32,
    /// Where, if not at the entry's own path.
    pub(super) path: Option<PathBuf>,
    /// Whether what is there then may be replaced.
    pub(super) replace: bool,
}

/// A folder whose mode, and time when given, are set at the end.
#[derive(Debug)]
pub(super) struct FolderTask {
    pub(super) path: PathBuf,
    pub(super) mode: u32,
    pub(super) mtime: Option<Time>,
}

#[derive(Debug, Default)]
pub(super) struct Prepared {
    pub(super) folders: Vec<FolderTask>,
    pub(super) files: Vec<Target>,
    pub(super) links: Vec<Target>,
    /// Bytes that will be written.
    pub(super) needed: u64,
    pub(super) report: RestoreReport,
}

fn kind_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Whether two entries have the same content, times and modes aside.
pub(super) fn equal(a: &Kind<'_>, b: &Kind<'_>) -> bool {
    match (a, b) {
        (Kind::Folder, Kind::Folder) => true,
        (Kind::Link { target: a }, Kind::Link { target: b }) => a == b,
        (Kind::File { size: a, hash: x, .. }, Kind::File { size: b, hash: y, .. }) => a == b && x == y,
        (Kind::Folder | Kind::Link { .. } | Kind::File { .. }, _) => false,
    }
}

/// Whether what is at a path has the content that an entry tells. Reads files.
pub(super) fn same_content(beneath: &mut Beneath, path: &Path, kind: &Kind<'_>) -> io::Result<bool> {
    let Some(stat) = beneath.stat(path)? else { return Ok(false) };
    match kind {
        Kind::Folder => Ok(kind_of(&stat) == FileType::Directory),
        Kind::Link { target } => {
            Ok(kind_of(&stat) == FileType::Symlink && beneath.read_link(path)? == *target)
        }
        Kind::File { size, hash, .. } => {
            if kind_of(&stat) != FileType::RegularFile || u64::try_from(stat.st_size) != Ok(*size) {
                return Ok(false);
            }
            let mut file = match beneath.open_file(path) {
                // Not ours to read, so not known to be the same.
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Ok(false),
                other => other?,
            };
            let mut hasher = blake3::Hasher::new();
            let mut buffer = vec![0; 128 << 10];
            loop {
                match file.read(&mut buffer)? {
                    0 => return Ok(hasher.count() == *size && hasher.finalize() == *hash),
                    count => hasher.update(&buffer[..count]),
                };
            }
        }
    }
}

/// Makes the folders and decides about everything else.
pub(super) fn prepare(
    beneath: &mut Beneath,
    tree: &Tree,
    entries: &[u32],
    options: &RestoreOptions,
) -> Result<Prepared, SnapshotError> {
    let target = |at, entry: &Entry<'_>, (path, replace): (PathBuf, bool)| {
        let path = (path != entry.path).then_some(path);
        Target { entry: at, path, replace }
    };
    let mut prepared = Prepared::default();
    for &at in entries {
        let Some(entry) = tree.get(at as usize) else { continue };
        let path = placed(entry.path, &prepared.report.kept);
        match entry.kind {
            Kind::Folder => prepare_folder(beneath, &entry, path, options, &mut prepared)?,
            Kind::Link { target }
                if options.outside_links == OutsideLinks::Skip && points_outside(entry.path, target) =>
            {
                prepared.report.skipped_links.push(entry.path.to_owned());
            }
            Kind::Link { .. } => {
                if let Some(place) = decide(beneath, &entry, path, options, &mut prepared.report)? {
                    prepared.links.push(target(at, &entry, place));
                }
            }
            Kind::File { size, .. } => {
                if let Some(place) = decide(beneath, &entry, path, options, &mut prepared.report)? {
                    prepared.files.push(target(at, &entry, place));
                    prepared.needed = prepared.needed.saturating_add(size);
                }
            }
        }
    }
    Ok(prepared)
}

fn prepare_folder(
    beneath: &mut Beneath,
    entry: &Entry<'_>,
    mut path: PathBuf,
    options: &RestoreOptions,
    prepared: &mut Prepared,
) -> Result<(), SnapshotError> {
    let looking = |beneath: &mut Beneath, path: &Path| {
        beneath.stat(path).map_err(|e| beneath.error("looking at", path, e))
    };
    let mut there = looking(beneath, &path)?;
    if let Some(stat) = &there
        && kind_of(stat) != FileType::Directory
    {
        if kind_of(stat) == FileType::Symlink {
            let cause = "a link is where a folder has to be".into();
            return Err(SnapshotError::Unsafe { path: entry.path.to_owned(), cause });
        }
        match options.existing {
            Existing::Replace => {
                beneath.remove_file(&path).map_err(|e| beneath.error("replacing", &path, e))?;
                there = None;
            }
            Existing::KeepBoth => {
                path = beside(beneath, &path, &entry.kind)?.0;
                there = looking(beneath, &path)?;
                prepared.report.kept.push((entry.path.to_owned(), path.clone()));
            }
        }
    }
    let new = FolderTask { path: path.clone(), mode: entry.mode, mtime: Some(entry.mtime) };
    let Some(stat) = there else {
        beneath.make_folder(&path).map_err(|e| beneath.error("making the folder", &path, e))?;
        prepared.folders.push(new);
        return Ok(());
    };
    let now = stat.st_mode & FOLDER_MODE;
    if now & 0o700 != 0o700 {
        beneath
            .set_folder(&path, now | 0o700, None)
            .map_err(|e| beneath.error("opening the folder", &path, e))?;
    }
    match options.existing {
        Existing::Replace => prepared.folders.push(new),
        // It is the user's; as it was.
        Existing::KeepBoth if now & 0o700 != 0o700 => {
            prepared.folders.push(FolderTask { path, mode: now, mtime: None });
        }
        Existing::KeepBoth => {}
    }
    Ok(())
}

/// Where to write a file or link, and whether over what is there; `None` when there is nothing to do.
fn decide(
    beneath: &mut Beneath,
    entry: &Entry<'_>,
    path: PathBuf,
    options: &RestoreOptions,
    report: &mut RestoreReport,
) -> Result<Option<(PathBuf, bool)>, SnapshotError> {
    let replace = options.existing == Existing::Replace;
    let failed = |beneath: &Beneath, e: io::Error| beneath.error("looking at", &path, e);
    let Some(stat) = beneath.stat(&path).map_err(|e| failed(beneath, e))? else {
        return Ok(Some((path, replace)));
    };
    let mut same = |kind: &Kind<'_>| same_content(beneath, &path, kind).map_err(|e| failed(beneath, e));
    if same(&entry.kind)? {
        report.unchanged += u64::from(matches!(entry.kind, Kind::File { .. }));
        if replace && matches!(entry.kind, Kind::File { .. }) && !looks_right(&stat, entry) {
            beneath.set_file(&path, entry.mode, entry.mtime).map_err(|e| failed(beneath, e))?;
        }
        return Ok(None);
    }
    match options.existing {
        Existing::Replace if kind_of(&stat) == FileType::Directory => {
            let cause = "a folder is where a file or link has to be".into();
            Err(SnapshotError::Unsafe { path: entry.path.to_owned(), cause })
        }
        Existing::Replace => Ok(Some((path, true))),
        Existing::KeepBoth => {
            let base = options.base.as_ref().and_then(|base| base.find(entry.path));
            if let Some(base) = base {
                if equal(&base.kind, &entry.kind) {
                    // Changed here, not there: nothing new to bring, and the user's own is no result to count.
                    report.changed_here.push(path);
                    return Ok(None);
                }
                if !matches!(base.kind, Kind::Folder) && same(&base.kind)? {
                    // Changed there, not here.
                    return Ok(Some((path, true)));
                }
            }
            let (place, there) = beside(beneath, &path, &entry.kind)?;
            report.kept.push((entry.path.to_owned(), place.clone()));
            if there {
                report.unchanged += u64::from(matches!(entry.kind, Kind::File { .. }));
                return Ok(None);
            }
            Ok(Some((place, false)))
        }
    }
}

#[expect(clippy::unnecessary_cast, reason = "the types of these fields differ between systems")]
fn looks_right(stat: &Stat, entry: &Entry<'_>) -> bool {
    let mtime = Time(stat.st_mtime as i64, u32::try_from(stat.st_mtime_nsec as i64).unwrap_or(0));
    stat.st_mode & FILE_MODE == entry.mode && mtime == entry.mtime
}

/// A free name beside a path, or one that has the content already (then `true`).
fn beside(beneath: &mut Beneath, path: &Path, kind: &Kind<'_>) -> Result<(PathBuf, bool), SnapshotError> {
    let hash = match kind {
        Kind::File { hash, .. } => *hash,
        Kind::Link { target } => blake3::hash(target.as_os_str().as_bytes()),
        Kind::Folder => blake3::hash(path.as_os_str().as_bytes()),
    };
    let hash = hash.to_hex();
    for number in 1.. {
        let short = &hash[..8];
        let suffix = if number == 1 { format!(".tpi-{short}") } else { format!(".tpi-{short}-{number}") };
        let mut name = path.file_name().map_or(&b""[..], OsStrExt::as_bytes).to_owned();
        name.truncate(255 - suffix.len());
        name.extend_from_slice(suffix.as_bytes());
        let candidate = path.with_file_name(OsString::from_vec(name));
        let failed = |beneath: &Beneath, e: io::Error| beneath.error("looking at", &candidate, e);
        if beneath.stat(&candidate).map_err(|e| failed(beneath, e))?.is_none() {
            return Ok((candidate, false));
        }
        if same_content(beneath, &candidate, kind).map_err(|e| failed(beneath, e))? {
            return Ok((candidate, true));
        }
    }
    // The loop has no other end.
    Err(SnapshotError::Unsafe { path: path.to_owned(), cause: "no name is free beside it".into() })
}
