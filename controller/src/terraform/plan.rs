//! What a configuration comes to beside what there is: pure, so that a plan made twice is the same.
//!
//! The planned value of an argument is what is configured, else its default; of what the provider computes, what it is
//! now. So a plan without a change is empty, whatever the task has done since.

use std::path::{Path, PathBuf};

use super::{
    config,
    schema::{ATTRIBUTES, Attribute, STORAGE, Said},
    value::{Object, Value},
};

/// A plan.
#[derive(Debug)]
pub(super) struct Plan {
    /// What will be there.
    pub(super) planned: Object,
    /// What makes it another task; empty for a new one.
    pub(super) replaces: Vec<Cause>,
}

/// An argument whose new value makes another task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// Of the resource itself, or a whole block.
    Own(&'static str),
    /// In the block `storage`.
    InStorage(&'static str),
}

/// What there is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prior<'a> {
    pub(super) object: &'a Object,
    /// Submitting was cut off, so applying has something to do.
    pub(super) unfinished: bool,
    /// What is null may have any value.
    pub(super) imported: bool,
}

/// Makes a plan. Paths are relative to `here`.
pub(super) fn plan(configured: &Object, prior: Option<Prior<'_>>, here: &Path) -> Plan {
    let mut planned: Object =
        ATTRIBUTES.iter().map(|a| (a.name.to_owned(), said(a, configured, prior))).collect();
    let storage = match configured.get("storage") {
        Some(Value::List(blocks)) => Value::List(blocks.iter().map(fill).collect()),
        Some(other) => other.clone(),
        None => Value::List(Vec::new()),
    };
    let timeouts = configured.get("timeouts").cloned().unwrap_or(Value::Null);
    planned.extend([("storage".to_owned(), storage), ("timeouts".to_owned(), timeouts)]);
    let replaces = prior.map(|prior| replaces(&planned, prior, here)).unwrap_or_default();
    if prior.is_some_and(|prior| prior.unfinished) {
        let _settled = planned.insert("status".to_owned(), Value::Unknown);
    }
    Plan { planned, replaces }
}

fn said(attribute: &Attribute, configured: &Object, prior: Option<Prior<'_>>) -> Value {
    let given = configured.get(attribute.name).filter(|value| **value != Value::Null);
    match attribute.said {
        Said::Required | Said::Optional | Said::Text(_) | Said::Number(_) => {
            given.cloned().unwrap_or_else(|| attribute.default())
        }
        Said::Computed => match prior {
            Some(prior) => prior.object.get(attribute.name).cloned().unwrap_or(Value::Null),
            None if attribute.name.starts_with("ssh_") => Value::Null,
            None => Value::Unknown,
        },
    }
}

fn fill(block: &Value) -> Value {
    let Value::Map(block) = block else { return block.clone() };
    let filled = STORAGE.iter().map(|attribute| {
        let given = block.get(attribute.name).filter(|value| **value != Value::Null);
        (attribute.name.to_owned(), given.cloned().unwrap_or_else(|| attribute.default()))
    });
    Value::Map(filled.collect())
}

fn replaces(planned: &Object, prior: Prior<'_>, here: &Path) -> Vec<Cause> {
    let differs = |attribute: &Attribute, one: Option<&Object>, other: Option<&Object>| {
        let now = one.and_then(|o| o.get(attribute.name)).unwrap_or(&Value::Null);
        let then = other.and_then(|o| o.get(attribute.name)).unwrap_or(&Value::Null);
        if prior.imported && *then == Value::Null {
            return false;
        }
        attribute.replaces && !same(attribute, now, then, here)
    };
    let own = ATTRIBUTES.iter().filter(|attribute| differs(attribute, Some(planned), Some(prior.object)));
    let mut found: Vec<Cause> = own.map(|attribute| Cause::Own(attribute.name)).collect();
    let unknown = planned.get("storage") == Some(&Value::Unknown);
    let (now, then) = (config::storage(planned), config::storage(prior.object));
    let inner: Vec<&Attribute> = STORAGE.iter().filter(|attribute| differs(attribute, now, then)).collect();
    match (now, then) {
        (Some(_), Some(_)) if !unknown => found.extend(inner.iter().map(|a| Cause::InStorage(a.name))),
        _ if unknown || !inner.is_empty() => found.push(Cause::Own("storage")),
        _ => {}
    }
    found
}

/// Whether two values mean the same: nothing said is the default, nothing in a list is no list, and a folder has more
/// than one name.
fn same(attribute: &Attribute, one: &Value, other: &Value, here: &Path) -> bool {
    let (one, other) = (plain(attribute, one), plain(attribute, other));
    if one == other {
        return !one.has_unknown();
    }
    match (attribute.name, one.as_text(), other.as_text()) {
        ("workdir", Some(one), Some(other)) if !one.is_empty() && !other.is_empty() => {
            real(here, one) == real(here, other)
        }
        _ => false,
    }
}

fn plain(attribute: &Attribute, value: &Value) -> Value {
    match value {
        Value::Null => attribute.default(),
        Value::List(items) if items.is_empty() => Value::Null,
        Value::Map(entries) if entries.is_empty() => Value::Null,
        Value::Bool(false) => Value::Null,
        value @ (Value::Unknown
        | Value::Bool(true)
        | Value::Number(_)
        | Value::Text(_)
        | Value::List(_)
        | Value::Map(_)) => value.clone(),
    }
}

fn real(here: &Path, path: &str) -> PathBuf {
    let full = here.join(path);
    full.canonicalize().unwrap_or(full)
}

/// Whether applying has to tell the store something about a task that stays.
pub(super) fn amends(planned: &Object, prior: &Object) -> bool {
    let in_place = STORAGE.iter().filter(|attribute| !attribute.replaces);
    let of = |object, attribute: &Attribute| {
        let block: Option<&Object> = config::storage(object);
        plain(attribute, block.and_then(|block| block.get(attribute.name)).unwrap_or(&Value::Null))
    };
    in_place.into_iter().any(|attribute| of(planned, attribute) != of(prior, attribute))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::terraform::schema;

    fn configured(pairs: &[(&str, Value)]) -> Object {
        let mut object = schema::empty();
        object.extend([
            ("cloud".to_owned(), Value::text("local")),
            ("script".to_owned(), Value::text("#!/bin/sh")),
        ]);
        object.extend(pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        object
    }

    fn storage(pairs: &[(&str, &str)]) -> Value {
        let block: BTreeMap<_, _> = pairs.iter().map(|(k, v)| ((*k).to_owned(), Value::text(*v))).collect();
        Value::List(vec![Value::Map(block)])
    }

    fn applied(of: &Object) -> Object {
        let mut object = plan(of, None, Path::new("/")).planned;
        for name in ["id", "addresses", "status", "events", "logs"] {
            assert_eq!(object.insert(name.to_owned(), Value::Null), Some(Value::Unknown), "{name}");
        }
        object
    }

    fn again(of: &Object, prior: &Object) -> Plan {
        let prior = Prior { object: prior, unfinished: false, imported: false };
        plan(of, Some(prior), Path::new("/"))
    }

    #[test]
    fn a_second_plan_is_empty() {
        for config in
            [configured(&[]), configured(&[("storage", storage(&[("workdir", "."), ("output", "x")]))])]
        {
            let prior = applied(&config);
            let second = again(&config, &prior);
            assert_eq!(second.planned, prior);
            assert!(second.replaces.is_empty(), "{:?}", second.replaces);
        }
    }

    #[test]
    fn arguments_make_another_task_and_output_does_not() {
        let config = configured(&[("storage", storage(&[("workdir", "/a"), ("output", "x")]))]);
        let prior = applied(&config);
        let of = |pairs: &[(&str, Value)]| {
            let mut changed = config.clone();
            changed.extend(pairs.iter().map(|(k, v)| ((*k).to_owned(), v.clone())));
            again(&changed, &prior)
        };
        assert_eq!(of(&[("machine", Value::text("l"))]).replaces, [Cause::Own("machine")]);
        assert_eq!(of(&[("script", Value::Unknown)]).replaces, [Cause::Own("script")]);
        assert_eq!(
            of(&[("storage", storage(&[("workdir", "/b"), ("output", "x")]))]).replaces,
            [Cause::InStorage("workdir")]
        );
        assert_eq!(of(&[("storage", Value::List(Vec::new()))]).replaces, [Cause::Own("storage")]);
        assert_eq!(of(&[("region", Value::text("us-west"))]).replaces, []);
        assert_eq!(of(&[("environment", Value::Map(BTreeMap::new()))]).replaces, []);
        let output = of(&[("storage", storage(&[("workdir", "/a"), ("output", "y")]))]);
        assert!(output.replaces.is_empty() && amends(&output.planned, &prior));
        assert!(!amends(&prior, &prior));
    }

    #[test]
    fn an_unfinished_task_has_something_to_apply() {
        let config = configured(&[]);
        let prior = applied(&config);
        let prior = Prior { object: &prior, unfinished: true, imported: false };
        let second = plan(&config, Some(prior), Path::new("/"));
        assert_eq!(second.planned.get("status"), Some(&Value::Unknown));
        assert!(second.replaces.is_empty());
    }

    #[test]
    fn what_an_import_does_not_know_replaces_nothing() {
        let config =
            configured(&[("environment", Value::Map(BTreeMap::from([("A".to_owned(), Value::text("b"))])))]);
        let object = applied(&configured(&[]));
        let prior = Prior { object: &object, unfinished: false, imported: true };
        assert!(plan(&config, Some(prior), Path::new("/")).replaces.is_empty());
    }
}
