//! The files of a configuration.

use std::{fs, io, path::Path};

/// Bytes of one file.
pub(super) const FILE_MAX: usize = 1024 * 1024;
/// Files of one folder.
pub(super) const FILES_MAX: usize = 256;

/// Names in a folder that matter, in order; hidden files and those that editors leave behind do not.
pub(super) fn names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        let left_behind = name.starts_with('.') || name.ends_with('~') || name.starts_with('#');
        if !left_behind
            && [".tf", ".tf.json", ".tfvars", ".tfvars.json"].iter().any(|end| name.ends_with(end))
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// A text, or why there is none.
pub(super) fn read(path: &Path) -> Result<String, String> {
    let failed = |error: &io::Error| {
        if error.kind() == io::ErrorKind::NotFound {
            "there is no such file".to_owned()
        } else {
            format!("cannot be read: {error}")
        }
    };
    let about = fs::metadata(path).map_err(|error| failed(&error))?;
    if !about.is_file() {
        return Err("is not a file".to_owned());
    }
    if about.len() > u64::try_from(FILE_MAX).unwrap_or(u64::MAX) {
        return Err(format!("has {} bytes, more than {FILE_MAX}", about.len()));
    }
    let bytes = fs::read(path).map_err(|error| failed(&error))?;
    if bytes.len() > FILE_MAX {
        return Err(format!("has more than {FILE_MAX} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "is not text (not UTF-8)".to_owned())
}
