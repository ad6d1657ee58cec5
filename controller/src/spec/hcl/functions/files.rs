//! Functions of files and paths. Paths are relative to the folder of the configuration.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest as _, Sha256};

use super::{
    Args, Around,
    Body::{Pure, Reading},
    Done, Entry, TEXT_MAX, Value, Wrong, text,
};

pub(super) const TABLE: &[Entry] = &[
    (
        "abspath",
        1,
        1,
        Reading(|a, around| {
            let path = cleaned(&around.folder.join(&*a.text(0)?));
            Ok(Done::Value(Value::string(path.to_string_lossy())))
        }),
    ),
    (
        "basename",
        1,
        1,
        Pure(|a| {
            let path = a.text(0)?;
            let name = Path::new(&*path).components().next_back();
            Ok(Value::string(match name {
                None => ".".into(),
                Some(name) => name.as_os_str().to_string_lossy(),
            }))
        }),
    ),
    (
        "dirname",
        1,
        1,
        Pure(|a| {
            let path = a.text(0)?;
            // A path with a slash at its end is within what comes before it.
            let parent =
                if path.ends_with('/') { Some(Path::new(&*path)) } else { Path::new(&*path).parent() };
            let cleaned = cleaned(parent.unwrap_or(Path::new(&*path)));
            text(cleaned.to_string_lossy().into_owned())
        }),
    ),
    ("file", 1, 1, Reading(|a, around| Ok(Done::Value(Value::string(read_text(a, around)?))))),
    (
        "filebase64",
        1,
        1,
        Reading(|a, around| Ok(Done::Value(Value::string(STANDARD.encode(read(a, around)?))))),
    ),
    (
        "filesha256",
        1,
        1,
        Reading(|a, around| Ok(Done::Value(Value::string(hex::encode(Sha256::digest(read(a, around)?)))))),
    ),
    ("fileexists", 1, 1, Reading(exists)),
    (
        "pathexpand",
        1,
        1,
        Reading(|a, around| Ok(Done::Value(Value::string(expanded(&a.text(0)?, around).to_string_lossy())))),
    ),
    (
        "templatefile",
        2,
        2,
        Reading(|a, around| {
            let variables = a.members(1)?.clone();
            Ok(Done::Template { name: PathBuf::from(&*a.text(0)?), text: read_text(a, around)?, variables })
        }),
    ),
];

/// Without `.`, `..` and doubled slashes, whatever is there.
fn cleaned(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => match clean.components().next_back() {
                Some(Component::Normal(_)) => drop(clean.pop()),
                Some(Component::RootDir | Component::Prefix(_)) => {}
                Some(Component::CurDir | Component::ParentDir) | None => clean.push(".."),
            },
            Component::Normal(_) | Component::RootDir | Component::Prefix(_) => clean.push(part),
        }
    }
    if clean.as_os_str().is_empty() { PathBuf::from(".") } else { clean }
}

fn expanded(path: &str, around: Around<'_>) -> PathBuf {
    match (path.strip_prefix('~'), around.home) {
        (Some(""), Some(home)) => home.to_owned(),
        (Some(rest), Some(home)) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ => PathBuf::from(path),
    }
}

fn read(a: Args<'_>, around: Around<'_>) -> Result<Vec<u8>, Wrong> {
    let path = around.folder.join(expanded(&a.text(0)?, around));
    let failed = |error: &io::Error| {
        if error.kind() == io::ErrorKind::NotFound {
            Wrong::of(0, "names a file that is not there")
                .hint("paths are relative to the folder of the configuration")
        } else {
            Wrong::of(0, format!("names a file that cannot be read: {error}"))
        }
    };
    let about = fs::metadata(&path).map_err(|error| failed(&error))?;
    if !about.is_file() {
        return Err(Wrong::of(0, "names something that is not a file"));
    }
    if about.len() > u64::try_from(TEXT_MAX).unwrap_or(u64::MAX) {
        return Err(Wrong::of(0, "names a file that is too large"));
    }
    fs::read(&path).map_err(|error| failed(&error))
}

fn read_text(a: Args<'_>, around: Around<'_>) -> Result<String, Wrong> {
    String::from_utf8(read(a, around)?)
        .map_err(|_| Wrong::of(0, "names a file that is no text (not UTF-8)").hint("use filebase64"))
}

fn exists(a: Args<'_>, around: Around<'_>) -> Result<Done, Wrong> {
    match fs::metadata(around.folder.join(expanded(&a.text(0)?, around))) {
        Ok(about) if about.is_file() => Ok(Done::Value(Value::Bool(true))),
        Ok(_) => Err(Wrong::of(0, "names something that is not a file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Done::Value(Value::Bool(false))),
        Err(error) => Err(Wrong::of(0, format!("names a file that cannot be looked at: {error}"))),
    }
}
