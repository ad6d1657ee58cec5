//! Which keys there may be.

use object_store::path::Path;

use super::{StoreError, StoreErrorKind, folder};

/// Keys are relative, of non-empty parts that are neither `.` nor `..`, in the characters that every backend
/// and every file system takes as they are. `#` is not one of them: the file backend of `object_store` hides it.
fn refusal(key: &str) -> Option<&'static str> {
    if key.len() > 1000 {
        return Some("longer than 1000 bytes");
    }
    if !key.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-_.+=@,:!".contains(&b)) {
        return Some("a character that keys may not have");
    }
    if key.split('/').any(str::is_empty) {
        return Some("an empty part");
    }
    if key.split('/').any(|part| part == "." || part == "..") {
        return Some("a part that is . or ..");
    }
    if key.split('/').next() == Some(folder::PRIVATE) {
        return Some("a part that the store keeps for itself");
    }
    None
}

/// The backend's path of a key below the store's prefix.
pub(super) fn object(operation: &'static str, prefix: &str, key: &str) -> Result<Path, StoreError> {
    let error = |cause: String| StoreError {
        kind: StoreErrorKind::Unsupported,
        operation,
        key: key.to_owned(),
        source: Some(cause.into()),
    };
    if let Some(cause) = refusal(key) {
        return Err(error(format!("the key has {cause}")));
    }
    let whole = if prefix.is_empty() { key.to_owned() } else { format!("{prefix}/{key}") };
    Path::parse(&whole).map_err(|e| error(e.to_string()))
}

/// The backend's path of a folder below the store's prefix; the empty one is the whole store, and one slash at
/// the end is taken off. `None` is the root of the backend.
pub(super) fn folder(
    operation: &'static str,
    prefix: &str,
    folder: &str,
) -> Result<Option<Path>, StoreError> {
    let folder = folder.strip_suffix('/').unwrap_or(folder);
    match (prefix, folder) {
        ("", "") => Ok(None),
        (prefix, "") => Ok(Some(Path::from(prefix))),
        (prefix, folder) => object(operation, prefix, folder).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_keys_are_refused() {
        for key in [
            "",
            "/a",
            "a/",
            "a//b",
            "../a",
            "a/../b",
            "a/.",
            "a b",
            "a\\b",
            "a%2fb",
            "ä",
            ".tpi-store/x",
            "a#1",
        ] {
            let error = object("reading", "p", key).expect_err(key);
            assert_eq!(error.kind, StoreErrorKind::Unsupported, "{key}");
        }
        for key in ["a", "a.b/c-d_e", "tasks/x/..a", "tasks/x/a..", "cache-index/0"] {
            assert_eq!(object("reading", "p", key).expect(key).as_ref(), format!("p/{key}"));
        }
    }
}
