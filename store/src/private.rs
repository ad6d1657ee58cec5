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
    let dir = path.parent().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no parent"))?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
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
