//! Whether two requests of the same identifier are about the same task.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tpi_proto::spec::TaskSpec;

/// Whether two names are the same but for what an identifier never shows.
pub(super) fn same_name(one: &str, other: &str) -> bool {
    let words = |name: &str| {
        name.to_lowercase()
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|w| !w.is_empty())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    // An identifier given as the name names whatever task has it.
    one == other || words(one) == words(other) || other.parse::<tpi_proto::id::TaskId>().is_ok()
}

/// Names of the fields in which two requests differ, in alphabetical order, as [`spec::Field`](crate::spec::Field)
/// writes them. What the record keeps is compared, so no field can be forgotten here.
pub(super) fn differing_fields(one: &TaskSpec, other: &TaskSpec) -> Result<Vec<String>, serde_json::Error> {
    let fields = |spec: &TaskSpec| -> Result<BTreeMap<String, Value>, serde_json::Error> {
        let TaskSpec { storage, .. } = spec;
        let (whole, storage) = (serde_json::to_value(spec)?, serde_json::to_value(storage)?);
        let outer = whole.as_object().into_iter().flatten().map(|(name, value)| {
            // Users give durations; how they are counted is the record's affair.
            (name.strip_suffix("_seconds").unwrap_or(name).to_owned(), value.clone())
        });
        let inner = storage.as_object().into_iter().flatten().map(|(name, value)| {
            let name = if name == "container" { "storage_container" } else { name };
            (name.to_owned(), value.clone())
        });
        Ok(outer.filter(|(name, _)| name != "storage" && name != "name").chain(inner).collect())
    };
    let (one, other) = (fields(one)?, fields(other)?);
    let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    Ok(names.into_iter().filter(|name| one.get(*name) != other.get(*name)).cloned().collect())
}

#[cfg(test)]
mod tests {
    use tpi_proto::spec::StorageSpec;

    use super::*;

    #[test]
    fn requests_differ_by_the_names_that_users_know() {
        let spec: TaskSpec = serde_json::from_value(serde_json::json!({
            "name": "x", "cloud": "local", "region": "us-west", "machine": "m", "image": "ubuntu",
            "spot": {"kind": "on_demand"}, "parallelism": 1, "timeout_seconds": 3600, "grace_seconds": 5,
            "script": "#!/bin/sh\n", "storage": {}
        }))
        .expect("a specification");
        let storage =
            StorageSpec { container: Some("b".to_owned()), gitignore: true, ..spec.storage.clone() };
        let other = TaskSpec {
            name: "X".to_owned(),
            timeout_seconds: 1,
            grace_seconds: 1,
            container: Some("c".to_owned()),
            storage,
            ..spec.clone()
        };
        let differs = differing_fields(&spec, &other).expect("compares");
        assert_eq!(differs, ["container", "gitignore", "grace", "storage_container", "timeout"]);
        assert_eq!(differing_fields(&spec, &spec).expect("compares"), Vec::<String>::new());
    }

    #[test]
    fn names_that_only_look_different_are_the_same() {
        assert!(same_name("Hello, World!", "hello-world"));
        assert!(!same_name("a-very-long-name-that-is-cut-off-1", "a-very-long-name-that-is-cut-off-2"));
        assert!(same_name("x", "tpi-test-3z4xlzwq-3u0vweb4"));
    }
}
