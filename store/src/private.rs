//! Files that only their owner may read: keys, and what a program remembers between its runs.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

/// Writes a file (0600) whole or not at all, over what is there, making its directory (0700) when absent.
///
/// It is created with its final mode, so that at no moment anybody else can read it.
///
/// # Errors
/// The file system's; nothing is left behind then.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory(path)?)?;
    replace_private(path, content)
}

/// As [`write_private`] in a directory that is there: never makes it again after somebody has removed it.
///
/// # Errors
/// The file system's; `NotFound` without the directory.
pub fn replace_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = directory(path)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}-{:08x}", std::process::id(), rand::random::<u32>()));
    let temporary = dir.join(name);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    drop(file);
    let renamed = written.and_then(|()| fs::rename(&temporary, path));
    if renamed.is_err() {
        drop(fs::remove_file(&temporary));
    }
    renamed
}

fn directory(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no parent"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn only_the_owner_may_read_it_and_nothing_else_is_left() {
        let root = tempfile::tempdir().expect("a directory");
        let (dir, path) = (root.path().join("a/b"), root.path().join("a/b/file"));
        let absent = replace_private(&path, b"1").expect_err("no directory");
        assert_eq!(absent.kind(), io::ErrorKind::NotFound);
        assert!(!dir.exists());
        write_private(&path, b"1").expect("writes");
        replace_private(&path, b"2").expect("replaces");
        assert_eq!(fs::read(&path).expect("reads"), b"2");
        for (path, mode) in [(&path, 0o600), (&dir, 0o700)] {
            let found = fs::metadata(path).expect("is there").permissions().mode();
            assert_eq!(found & 0o777, mode, "{}", path.display());
        }
        // What cannot take the place of a folder leaves nothing beside it.
        fs::create_dir(dir.join("taken")).expect("makes");
        assert!(write_private(&dir.join("taken"), b"3").is_err());
        assert_eq!(fs::read_dir(&dir).expect("lists").count(), 2);
    }
}
