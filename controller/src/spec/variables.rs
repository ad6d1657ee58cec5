//! The script's environment: `NAME=value`, `NAME`, `GLOB*`, and what always travels.
//!
//! What a continuous-integration system sets always travels, as it does with the Go provider; unlike there,
//! a value that the user wrote wins over an imported one.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
};

use super::{Field, Findings};

/// Imported whenever the caller has them.
const ALWAYS: [&str; 6] = ["CI", "CI_*", "GITHUB_*", "BITBUCKET_*", "CML_*", "REPO_TOKEN"];
/// Set by the machine for every script.
const RESERVED: [&str; 10] = [
    "TPI_TASK",
    "TPI_TASK_ID",
    "TPI_SLOT",
    "TPI_SLOTS",
    "TPI_ATTEMPT",
    "TPI_MACHINE_ID",
    "TPI_DEADLINE",
    "TPI_PEERS",
    "TPI_REGION",
    "TPI_MACHINE",
];

const HINT: &str = "give NAME=value, NAME to take your own value, or a pattern such as WANDB_*";

/// Whether `*` in the pattern, and nothing else, stands for any text.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = rest.get(at + part.len()..).unwrap_or_default();
    }
    rest.ends_with(last)
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_control() || c == '\0' || c.is_whitespace())
}

pub(super) fn check(
    entries: &[String],
    caller: &BTreeMap<OsString, OsString>,
    found: &mut Findings,
) -> BTreeMap<String, String> {
    let mut imported = BTreeMap::new();
    for pattern in ALWAYS {
        import(pattern, caller, &mut imported, found);
    }
    let mut literal = BTreeMap::new();
    for entry in entries {
        let (name, value) = match entry.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (entry.as_str(), None),
        };
        // The value may be a secret: only the name is ever shown.
        if !is_name(name) {
            found.error(Field::Environment, Some(name), "is not the name of a variable", HINT);
        } else if RESERVED.contains(&name) {
            found.error(
                Field::Environment,
                Some(name),
                "is set by the machine itself",
                "choose another name for your own variable",
            );
        } else if let Some(value) = value {
            if name.contains('*') {
                found.error(Field::Environment, Some(name), "is a pattern, which cannot have a value", HINT);
            } else if value.contains('\0') {
                found.error(Field::Environment, Some(name), "has a NUL byte in its value", HINT);
            } else {
                let _replaced = literal.insert(name.to_owned(), value.to_owned());
            }
        } else if name.contains('*') {
            if import(name, caller, &mut imported, found) == 0 {
                found.warn(format!("environment {name:?} matches none of your variables"));
            }
        } else {
            match caller.get(OsStr::new(name)).map(|v| v.to_str()) {
                Some(Some(value)) => {
                    let _replaced = imported.insert(name.to_owned(), value.to_owned());
                }
                Some(None) => found.error(
                    Field::Environment,
                    Some(name),
                    "has a value that is not UTF-8",
                    "encode the value, for example with base64",
                ),
                None => found
                    .warn(format!("environment {name:?} is not set here, so the script will not have it")),
            }
        }
    }
    imported.append(&mut literal);
    imported
}

fn import(
    pattern: &str,
    caller: &BTreeMap<OsString, OsString>,
    into: &mut BTreeMap<String, String>,
    found: &mut Findings,
) -> usize {
    let mut count = 0;
    for (name, value) in caller {
        let Some(name) = name.to_str().filter(|n| matches(pattern, n)) else { continue };
        if RESERVED.contains(&name) {
            continue;
        }
        match value.to_str() {
            Some(value) => {
                let _replaced = into.insert(name.to_owned(), value.to_owned());
                count += 1;
            }
            None => found.warn(format!("environment {name:?} is left out: its value is not UTF-8")),
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        assert!(matches("CI_*", "CI_JOB"));
        assert!(matches("CI_*", "CI_"));
        assert!(!matches("CI_*", "CI"));
        assert!(matches("CI", "CI"));
        assert!(!matches("CI", "CIX"));
        assert!(matches("*_TOKEN", "A_TOKEN"));
        assert!(matches("A*B*C", "AxxByyC"));
        assert!(!matches("A*B*C", "AxxC"));
        assert!(!matches("A?", "AB"));
        assert!(matches("*", "anything"));
        assert!(!matches("AB*BA", "ABA"));
    }
}
