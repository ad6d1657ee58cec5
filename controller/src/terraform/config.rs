//! From a configuration to a request, and from a record back to a configuration.

use std::{collections::BTreeSet, path::PathBuf};

use tpi_proto::spec::{Ingress, Spot, TaskSpec};

use super::{
    schema::{self, STORAGE},
    value::{Number, Object, Value},
};
use crate::spec::{Field, Request, ScriptSource};

/// A request, and the fields of which nothing can be said yet.
#[derive(Debug)]
pub(super) struct Requested {
    pub(super) request: Request,
    pub(super) unknown: BTreeSet<Field>,
}

/// What an unknown script is taken for.
const SOME_SCRIPT: &str = "#!/bin/sh\n";

struct Reader<'a> {
    object: &'a Object,
    unknown: BTreeSet<Field>,
}

impl Reader<'_> {
    fn value(&mut self, name: &str, field: Field) -> Option<&Value> {
        let value = self.object.get(name)?;
        if value.has_unknown() {
            let _new = self.unknown.insert(field);
        }
        match value {
            Value::Null | Value::Unknown => None,
            value @ (Value::Bool(_) | Value::Number(_) | Value::Text(_) | Value::List(_) | Value::Map(_)) => {
                Some(value)
            }
        }
    }

    fn text(&mut self, name: &str, field: Field) -> Option<String> {
        self.value(name, field).and_then(Value::as_text).map(str::to_owned)
    }

    fn number(&mut self, name: &str, field: Field) -> Option<String> {
        match self.value(name, field) {
            Some(Value::Number(number)) => Some(number.to_string()),
            _ => None,
        }
    }

    fn texts(&mut self, name: &str, field: Field) -> Vec<String> {
        let items = self.value(name, field).and_then(Value::as_list).unwrap_or_default();
        items.iter().filter_map(Value::as_text).map(str::to_owned).collect()
    }

    fn pairs(&mut self, name: &str, field: Field) -> Vec<(String, String)> {
        let entries = self.value(name, field).and_then(Value::as_map).into_iter().flatten();
        let known = entries.filter(|(_, value)| !value.has_unknown());
        known.map(|(key, value)| (key.clone(), value.as_text().unwrap_or_default().to_owned())).collect()
    }
}

/// The block `storage`: the only one, or none.
pub(super) fn storage(object: &Object) -> Option<&Object> {
    object.get("storage").and_then(Value::as_list).and_then(<[Value]>::first).and_then(Value::as_map)
}

/// Never fails: what is wrong is found by the check of the request.
pub(super) fn request(object: &Object) -> Requested {
    let mut of = Reader { object, unknown: BTreeSet::new() };
    let script = of.text("script", Field::Script);
    let mut request = Request {
        name: of.text("name", Field::Name).filter(|name| !name.is_empty()),
        cloud: of.text("cloud", Field::Cloud),
        region: of.text("region", Field::Region),
        machine: of.text("machine", Field::Machine),
        image: of.text("image", Field::Image),
        disk_size: of.number("disk_size", Field::DiskSize),
        spot: of.number("spot", Field::Spot),
        parallelism: of.number("parallelism", Field::Parallelism),
        permission_set: of.text("permission_set", Field::PermissionSet),
        tags: of.pairs("tags", Field::Tags).into_iter().map(|(k, v)| format!("{k}={v}")).collect(),
        // An empty value stands for the caller's own.
        environment: of
            .pairs("environment", Field::Environment)
            .into_iter()
            .map(|(name, value)| if value.is_empty() { name } else { format!("{name}={value}") })
            .collect(),
        timeout: of.number("timeout", Field::Timeout),
        grace: of.number("grace", Field::Grace),
        container: of.text("container", Field::Container),
        ingress: of
            .texts("ingress", Field::Ingress)
            .into_iter()
            .map(|from| if from == "none" { "closed".to_owned() } else { from })
            .collect(),
        subnets: of.texts("subnets", Field::Subnets),
        // Files of old have waited for capacity until their timeout.
        provision_timeout: of
            .text("provision_timeout", Field::ProvisionTimeout)
            .or_else(|| Some("none".to_owned())),
        ..Request::default()
    };
    let mut unknown = std::mem::take(&mut of.unknown);
    let files = [Field::Workdir, Field::Output, Field::Exclude, Field::StorageContainer];
    if object.get("storage") == Some(&Value::Unknown) {
        unknown.extend(files);
    } else if let Some(block) = storage(object) {
        let mut of = Reader { object: block, unknown: BTreeSet::new() };
        request.workdir = of.text("workdir", Field::Workdir).filter(|dir| !dir.is_empty()).map(PathBuf::from);
        request.output = of.text("output", Field::Output);
        request.exclude = of.texts("exclude", Field::Exclude);
        request.storage_container = of.text("container", Field::StorageContainer);
        request.gitignore = block.get("gitignore") == Some(&Value::Bool(true));
        unknown.append(&mut of.unknown);
    } else if object.get("storage").is_some_and(Value::has_unknown) {
        unknown.extend(files);
    }
    let script = if unknown.contains(&Field::Script) { Some(SOME_SCRIPT.to_owned()) } else { script };
    request.script = script.map(ScriptSource::Text);
    if unknown.contains(&Field::Cloud) {
        // What is right in a place cannot be told before the place is known.
        unknown.extend([
            Field::Region,
            Field::Machine,
            Field::Image,
            Field::Spot,
            Field::Parallelism,
            Field::PermissionSet,
            Field::StorageContainer,
        ]);
    }
    if unknown.contains(&Field::Workdir) {
        let _new = unknown.insert(Field::Output);
    }
    if unknown.contains(&Field::Timeout) {
        let _new = unknown.insert(Field::Grace);
    }
    Requested { request, unknown }
}

fn price(spot: Spot) -> Value {
    match spot {
        Spot::OnDemand => Value::integer(-1),
        Spot::MarketPrice => Value::integer(0),
        Spot::MaxPrice { usd_per_hour } => Value::Number(Number::Float(usd_per_hour)),
    }
}

/// Arguments as a record has them, for a task that is imported. Names of variables are known there and values are not
/// read from where they are kept, so `environment` stays null.
pub(super) fn arguments(spec: &TaskSpec, name: Option<&str>) -> Object {
    let whole = |number: u64| Value::integer(i64::try_from(number).unwrap_or(i64::MAX));
    let optional = |text: &Option<String>| Value::text(text.clone().unwrap_or_default());
    let mut object = schema::empty();
    let mut block: Object = STORAGE.iter().map(|a| (a.name.to_owned(), a.default())).collect();
    let mut set = |name: &str, value: Value| drop(object.insert(name.to_owned(), value));
    set("name", name.map_or(Value::Null, Value::text));
    set("cloud", Value::text(spec.cloud.as_str()));
    set("region", Value::text(&spec.region));
    set("machine", Value::text(&spec.machine));
    set("image", Value::text(&spec.image));
    set("script", Value::text(&spec.script));
    set("disk_size", spec.disk_size.map_or(Value::integer(-1), |size| whole(size.into())));
    set("spot", price(spec.spot));
    set("parallelism", whole(spec.parallelism.get().into()));
    set("permission_set", optional(&spec.permission_set));
    set("timeout", whole(spec.timeout_seconds));
    set("container", spec.container.clone().map_or(Value::Null, Value::Text));
    if !spec.tags.is_empty() {
        set("tags", Value::Map(spec.tags.iter().map(|(k, v)| (k.clone(), Value::text(v))).collect()));
    }
    match &spec.ingress {
        Ingress::Caller => {}
        Ingress::Closed => set("ingress", Value::texts(["closed".to_owned()])),
        Ingress::Networks { cidrs } => set("ingress", Value::texts(cidrs.clone())),
    }
    if !spec.subnets.is_empty() {
        set("subnets", Value::texts(spec.subnets.clone()));
    }
    if let Some(seconds) = spec.provision_timeout_seconds {
        set("provision_timeout", Value::text(format!("{seconds}s")));
    }
    let storage = &spec.storage;
    let mut keep = |name: &str, value: Value| drop(block.insert(name.to_owned(), value));
    keep("workdir", optional(&storage.workdir));
    keep("output", optional(&storage.output));
    keep("container", optional(&storage.container));
    if !storage.exclude.is_empty() {
        keep("exclude", Value::texts(storage.exclude.clone()));
    }
    if storage.gitignore {
        keep("gitignore", Value::Bool(true));
    }
    if storage.workdir.is_some() || storage.container.is_some() {
        set("storage", Value::List(vec![Value::Map(block)]));
    }
    object
}
