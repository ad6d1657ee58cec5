//! Walking a folder.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use super::{
    STAGING, SnapshotError,
    manifest::{FILE_MODE, FOLDER_MODE, Time},
    tree::{TooLarge, Tree},
};
use crate::rules::{Decision, IgnoreFiles, Rules};

/// What tells a file that was changed from one that was not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) mode: u32,
    pub(super) size: u64,
    pub(super) mtime: Time,
    pub(super) ctime: Time,
    pub(super) inode: u64,
}

impl Stat {
    pub(super) fn of(meta: &fs::Metadata) -> Self {
        let nanos = |value: i64| u32::try_from(value).unwrap_or(0);
        Self {
            mode: meta.mode() & if meta.is_dir() { FOLDER_MODE } else { FILE_MODE },
            size: meta.len(),
            mtime: Time(meta.mtime(), nanos(meta.mtime_nsec())),
            ctime: Time(meta.ctime(), nanos(meta.ctime_nsec())),
            inode: meta.ino(),
        }
    }
}

pub(super) fn file_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::File { operation, path, source }
}

/// Whether a link's target may lie outside: absolute, or more `..` than folders it lies in. A `..` after a name
/// counts as outside, because that name may be a link itself.
pub(super) fn points_outside(link: &Path, target: &Path) -> bool {
    let mut depth = link.components().count().saturating_sub(1);
    let mut named = false;
    for component in target.components() {
        match component {
            Component::Prefix(_) | Component::RootDir => return true,
            Component::CurDir => {}
            Component::ParentDir if named || depth == 0 => return true,
            Component::ParentDir => depth -= 1,
            Component::Normal(_) => named = true,
        }
    }
    false
}

struct Pending {
    path: PathBuf,
    decision: Decision,
    ignored: bool,
    files: IgnoreFiles,
}

/// Everything below a folder that the rules let travel, by path, but the store; added to an empty tree. What vanishes while it is looked
/// at was not there.
pub(super) fn scan(
    root: &Path,
    rules: &Rules,
    store: Option<&Path>,
    mut found: Tree,
) -> Result<(Tree, Vec<String>), SnapshotError> {
    let root = &fs::canonicalize(root).map_err(file_error("reading the folder", root))?;
    let mut warnings = Vec::new();
    // Folders that were left out but may hold something that was not.
    let mut passed = Vec::new();
    let files = IgnoreFiles::above(root, rules, &mut warnings);
    let mut pending = vec![Pending { path: PathBuf::new(), decision: Decision::NONE, ignored: false, files }];
    while let Some(folder) = pending.pop() {
        let whole = root.join(&folder.path);
        let list = match fs::read_dir(&whole) {
            Ok(list) => list,
            Err(e) if e.kind() == io::ErrorKind::NotFound && !folder.path.as_os_str().is_empty() => continue,
            Err(e) => return Err(file_error("reading the folder", &whole)(e)),
        };
        let files = folder.files.entering(&whole, rules, &mut warnings);
        for entry in list {
            let entry = entry.map_err(file_error("reading the folder", &whole))?;
            let path = folder.path.join(entry.file_name());
            if folder.path.as_os_str().is_empty()
                && entry.file_name().as_encoded_bytes().starts_with(STAGING.as_bytes())
            {
                continue;
            }
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(file_error("looking at", &entry.path())(e)),
            };
            let is_dir = meta.is_dir();
            if is_dir && store == Some(entry.path().as_path()) {
                warnings.push(format!("{} is the store itself and does not travel", path.display()));
                continue;
            }
            let decision = folder.decision.min(rules.own_decision(&path, is_dir));
            let ignored = folder.ignored || files.ignores(&entry.path(), is_dir);
            let out = rules.leaves_out(decision) || (ignored && !rules.takes_along(decision));
            let stat = Stat::of(&meta);
            if is_dir {
                // An ignored folder is entered only for rules that take something along.
                if !out || rules.may_take_below(decision) {
                    pending.push(Pending { path: path.clone(), decision, ignored, files: files.clone() });
                    if out {
                        passed.push((path, stat));
                    } else {
                        let added = found.add_folder(&path, stat.mode, stat.mtime);
                        added.map_err(|e| file_error("looking at", &entry.path())(e.into()))?;
                    }
                }
                continue;
            }
            if out {
                continue;
            }
            let added = if meta.is_symlink() {
                let target = match fs::read_link(entry.path()) {
                    Ok(target) => target,
                    Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => {
                        continue;
                    }
                    Err(e) => return Err(file_error("reading the link", &entry.path())(e)),
                };
                if points_outside(&path, &target) {
                    warnings.push(format!(
                        "{} links to {}, which does not travel",
                        path.display(),
                        target.display()
                    ));
                }
                found.add_link(&path, &target, stat.mode, stat.mtime)
            } else if meta.is_file() {
                found.add_seen(&path, &stat)
            } else {
                warnings.push(format!("{} is no file, folder or link and does not travel", path.display()));
                continue;
            };
            added.map_err(|e| file_error("looking at", &entry.path())(e.into()))?;
        }
    }
    add_parents(&mut found, passed).map_err(|e| file_error("looking at", root)(e.into()))?;
    found.sort();
    Ok((found, warnings))
}

/// Left-out folders that something lies in which travels.
fn add_parents(found: &mut Tree, passed: Vec<(PathBuf, Stat)>) -> Result<(), TooLarge> {
    if passed.is_empty() {
        return Ok(());
    }
    let mut needed = std::collections::HashSet::new();
    for entry in found.iter() {
        for parent in entry.path.ancestors().skip(1) {
            if !needed.insert(parent.to_owned()) {
                break;
            }
        }
    }
    for (folder, stat) in passed {
        if needed.contains(&folder) {
            found.add_folder(&folder, stat.mode, stat.mtime)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_may_lead_out() {
        for (link, target, outside) in [
            ("a", "b", false),
            ("a", "./b", false),
            ("a", "..", true),
            ("a", "/etc", true),
            ("a/b", "../c", false),
            ("a/b", "../../c", true),
            ("a/b/c", "../../d/e", false),
            ("a/b", "x/../y", true),
            ("a", "b/../../c", true),
        ] {
            assert_eq!(points_outside(Path::new(link), Path::new(target)), outside, "{link} -> {target}");
        }
    }
}
