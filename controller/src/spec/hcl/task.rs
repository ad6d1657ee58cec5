//! `resource "iterative_task"`: its arguments, and the request that they make.

use std::{collections::BTreeMap, path::PathBuf};

use hcl_edit::{
    Span as _,
    structure::{Block, BlockLabel, Body, Structure},
};

use super::{
    eval::{Evaluator, Instance, Source},
    fault::{Failure, Fault, nearest},
    module::{self, Resource, header_of, source_of, span_of},
    source::{Position, Span},
    value::{Type, Value},
};
use crate::spec::{Field, Request, ScriptSource, duration};

/// Most instances of one resource.
const INSTANCES_MAX: usize = 1000;

const ARGUMENTS: [&str; 18] = [
    "cloud",
    "script",
    "name",
    "region",
    "machine",
    "image",
    "disk_size",
    "spot",
    "parallelism",
    "permission_set",
    "environment",
    "tags",
    "timeout",
    "directory",
    // Of this provider only.
    "container",
    "ingress",
    "subnets",
    "provision_timeout",
];
const GRACE: &str = "grace";
const META: [&str; 4] = ["count", "for_each", "depends_on", "provider"];
const BLOCKS: [&str; 3] = ["storage", "timeouts", "lifecycle"];
const STORAGE: [&str; 6] = ["workdir", "output", "exclude", "container", "container_opts", "gitignore"];
const TIMEOUTS: [&str; 4] = ["create", "read", "update", "delete"];
const LIFECYCLE: [&str; 4] =
    ["create_before_destroy", "prevent_destroy", "ignore_changes", "replace_triggered_by"];
/// What Terraform fills in.
const COMPUTED: [&str; 7] =
    ["id", "ssh_public_key", "ssh_private_key", "addresses", "status", "events", "logs"];

/// A task of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// As Terraform writes it: `iterative_task.train`, `iterative_task.train["a"]`, `iterative_task.train[0]`.
    pub address: String,
    /// Where the resource begins.
    pub position: Position,
    /// What is asked.
    pub request: Request,
    /// Where each argument is.
    pub positions: BTreeMap<Field, Position>,
    /// Whether `lifecycle` says that it may not be destroyed.
    pub prevent_destroy: bool,
}

/// Reads every instance.
pub(super) fn read(
    of: &mut Evaluator<'_>,
    resource: Resource<'_>,
    warnings: &mut Vec<String>,
) -> Vec<Declared> {
    let plain = format!("iterative_task.{}", resource.label);
    of.reading = Some(plain.clone());
    let instances = instances(of, resource);
    let mut made = Vec::new();
    for (key, instance) in instances.unwrap_or_default() {
        let address = format!("{plain}{key}");
        of.reading = Some(address.clone());
        of.instance = instance;
        let mut reading = Reading {
            text: resource.text,
            request: Request::default(),
            places: BTreeMap::new(),
            prevent_destroy: false,
        };
        reading.body(of, &resource.block.body, resource.header, &address, warnings);
        of.instance = Instance::default();
        made.push(Declared {
            address,
            position: of.texts.position(resource.header),
            request: reading.request,
            positions: reading
                .places
                .iter()
                .map(|(field, span)| (*field, of.texts.position(*span)))
                .collect(),
            prevent_destroy: reading.prevent_destroy,
        });
    }
    of.reading = None;
    made
}

/// Keys as in addresses, and what they stand for; `None` once it has been told why they are not known.
fn instances(of: &mut Evaluator<'_>, resource: Resource<'_>) -> Option<Vec<(String, Instance)>> {
    let body = &resource.block.body;
    let one = |name: &str| body.get_attribute(name).map(|attribute| source_of(resource.text, attribute));
    match (one("count"), one("for_each")) {
        (None, None) => Some(vec![(String::new(), Instance::default())]),
        (Some(_), Some(for_each)) => {
            of.tell(Fault::at(for_each.span, "stands beside count, and only one of them can"));
            None
        }
        (Some(source), None) => {
            let value = of.source(source);
            let count = match of.told(value)?.convert(&Type::Number) {
                Ok(Value::Number(n)) => n.to_usize(),
                Ok(_) | Err(_) => None,
            };
            match count {
                Some(count) if count <= INSTANCES_MAX => {
                    let made = |index| (format!("[{index}]"), Instance { count: Some(index), each: None });
                    Some((0..count).map(made).collect())
                }
                Some(_) => {
                    of.tell(Fault::at(source.span, format!("is more than {INSTANCES_MAX}")));
                    None
                }
                None => {
                    of.tell(Fault::at(source.span, "is not a whole number from 0"));
                    None
                }
            }
        }
        (None, Some(source)) => {
            let value = of.source(source);
            let value = of.told(value)?;
            let pairs: Option<Vec<(String, Value)>> = match &value {
                Value::Object(members) | Value::Map(members) => {
                    Some(members.iter().map(|(name, value)| (name.clone(), value.clone())).collect())
                }
                Value::Set(items) => {
                    items.iter().map(|item| Some((item.as_text()?.to_string(), item.clone()))).collect()
                }
                Value::Null
                | Value::Bool(_)
                | Value::Number(_)
                | Value::String(_)
                | Value::Tuple(_)
                | Value::List(_) => None,
            };
            let Some(pairs) = pairs.filter(|pairs| pairs.len() <= INSTANCES_MAX) else {
                let fault = Fault::at(
                    source.span,
                    format!("is {}, not a map or a set of at most {INSTANCES_MAX} strings", value.kind()),
                );
                of.tell(fault.hint_some(value.items().map(|_| "make it a set: toset(…)".to_owned())));
                return None;
            };
            let made = pairs.into_iter().map(|(key, value)| {
                let shown = Value::string(&key).to_json();
                (format!("[{shown}]"), Instance { each: Some((Value::string(&key), value)), count: None })
            });
            Some(made.collect())
        }
    }
}

/// One instance, while it is read.
struct Reading {
    text: usize,
    request: Request,
    places: BTreeMap<Field, Span>,
    prevent_destroy: bool,
}

impl Reading {
    fn body(
        &mut self,
        of: &mut Evaluator<'_>,
        body: &Body,
        header: Span,
        address: &str,
        warnings: &mut Vec<String>,
    ) {
        let mut given = Vec::new();
        let mut blocks: Vec<&Block> = Vec::new();
        let mut directory = None;
        for structure in body {
            match structure {
                Structure::Attribute(attribute) => {
                    let name = attribute.key.value().as_str();
                    given.push(name);
                    let source = source_of(self.text, attribute);
                    if name == "directory" {
                        directory = Some(source);
                    } else if !META.contains(&name) {
                        self.argument(of, name, span_of(self.text, attribute.key.span()), source);
                    }
                }
                Structure::Block(block) => blocks.push(block),
            }
        }
        for required in ["cloud", "script"] {
            if !given.contains(&required) {
                of.tell(Fault::at(header, format!("lacks {required:?}, which every task has to have")));
            }
        }
        let mut seen: Vec<&str> = Vec::new();
        for block in blocks {
            let name = block.ident.value().as_str();
            let at = header_of(self.text, block);
            if BLOCKS.contains(&name) && seen.contains(&name) {
                of.tell(Fault::at(at, "stands there twice, and only one can count"));
                continue;
            }
            seen.push(name);
            match name {
                "storage" => self.storage(of, block, at, warnings),
                "timeouts" => self.timeouts(of, block),
                "lifecycle" => self.lifecycle(of, block),
                "dynamic" => {
                    let what = block.labels.first().map_or("storage", BlockLabel::as_str);
                    let fault = Fault::at(at, "is a dynamic block, which is not supported here");
                    of.tell(fault.hint(format!("write the block itself: {what} {{ … }}")));
                }
                "connection" | "provisioner" => {
                    of.tell(Fault::at(at, "is not supported here: nobody logs in to the machines"));
                }
                other => {
                    let near = nearest(other, BLOCKS.into_iter().chain(ARGUMENTS));
                    let hint = near.map(|near| format!("did you mean {near}?"));
                    let hint = match other {
                        argument if ARGUMENTS.contains(&argument) => {
                            Some(format!("it is an argument: write {argument} = …"))
                        }
                        _ => hint,
                    };
                    of.tell(Fault::at(at, "is not a block of iterative_task").hint_some(hint));
                }
            }
        }
        if let Some(source) = directory {
            self.directory(of, source, seen.contains(&"storage"), address, warnings);
        }
    }

    /// The name that the first releases had for both directions.
    fn directory(
        &mut self,
        of: &mut Evaluator<'_>,
        source: Source<'_>,
        storage: bool,
        address: &str,
        warnings: &mut Vec<String>,
    ) {
        if storage {
            let fault = Fault::at(source.span, "stands beside storage, which replaces it");
            return of.tell(fault.hint("leave directory out"));
        }
        let Some(path) = self.text_of(of, Field::Workdir, source) else { return };
        if path.is_empty() {
            return;
        }
        let line = of.texts.position(source.span);
        let warning = format!(
            "{line}: {address}: directory is an old name; it counts as storage {{ workdir = {path:?}, output = \".\" }}"
        );
        warnings.push(warning);
        self.request.workdir = Some(PathBuf::from(path));
        self.request.output = Some(".".to_owned());
        let _before = self.places.insert(Field::Output, source.span);
    }

    fn argument(&mut self, of: &mut Evaluator<'_>, name: &str, key: Span, source: Source<'_>) {
        match name {
            "name" => self.request.name = self.text_of(of, Field::Name, source),
            "cloud" => {
                self.request.cloud = self.text_of(of, Field::Cloud, source);
                self.required(of, source, self.request.cloud.is_some());
            }
            "region" => self.request.region = self.text_of(of, Field::Region, source),
            "machine" => self.request.machine = self.text_of(of, Field::Machine, source),
            "image" => self.request.image = self.text_of(of, Field::Image, source),
            "permission_set" => self.request.permission_set = self.text_of(of, Field::PermissionSet, source),
            "container" => self.request.container = self.text_of(of, Field::Container, source),
            "script" => {
                self.request.script = self.text_of(of, Field::Script, source).map(ScriptSource::Text);
                self.required(of, source, self.request.script.is_some());
            }
            "disk_size" => self.request.disk_size = self.number_of(of, Field::DiskSize, source, true),
            "parallelism" => self.request.parallelism = self.number_of(of, Field::Parallelism, source, true),
            "timeout" => self.request.timeout = self.number_of(of, Field::Timeout, source, true),
            GRACE => self.request.grace = self.number_of(of, Field::Grace, source, true),
            "spot" => self.request.spot = self.number_of(of, Field::Spot, source, false),
            "environment" => {
                // An empty value stands for the caller's own.
                let pairs = self.pairs_of(of, Field::Environment, source);
                self.request.environment = pairs
                    .into_iter()
                    .map(|(name, value)| if value.is_empty() { name } else { format!("{name}={value}") })
                    .collect();
            }
            "tags" => {
                let pairs = self.pairs_of(of, Field::Tags, source);
                self.request.tags =
                    pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
            }
            "ingress" => {
                let from = self.texts_of(of, Field::Ingress, source);
                let closed = |from: String| if from == "none" { "closed".to_owned() } else { from };
                self.request.ingress = from.into_iter().map(closed).collect();
            }
            "subnets" => self.request.subnets = self.texts_of(of, Field::Subnets, source),
            "provision_timeout" => {
                self.request.provision_timeout = self.text_of(of, Field::ProvisionTimeout, source);
            }
            computed if COMPUTED.contains(&computed) => {
                of.tell(Fault::at(key, "is filled in by Terraform, and cannot be given"));
            }
            block if BLOCKS.contains(&block) => {
                let fault = Fault::at(key, "is a block, not an argument");
                of.tell(fault.hint(format!("write {block} {{ … }}, without the equals sign")));
            }
            inner if STORAGE.contains(&inner) => {
                let fault = Fault::at(key, "is not an argument of iterative_task itself");
                of.tell(fault.hint(format!("put it into storage {{ }}: storage {{ {inner} = … }}")));
            }
            other => {
                let known = ARGUMENTS.into_iter().chain([GRACE]).chain(META).chain(BLOCKS).chain(STORAGE);
                module::unknown(of, key, other, "iterative_task", known);
            }
        }
    }

    /// Null stands for an argument that is not given.
    fn required(&self, of: &mut Evaluator<'_>, source: Source<'_>, given: bool) {
        if !given && of.faults.iter().all(|(_, fault)| fault.span.is_none_or(|at| !within(at, source.span))) {
            // What is wrong with it otherwise has been told.
            let value = of.source(source);
            if matches!(value, Ok(Value::Null)) {
                of.tell(Fault::at(source.span, "is null, and every task has to have it"));
            }
        }
    }

    fn storage(&mut self, of: &mut Evaluator<'_>, block: &Block, header: Span, warnings: &mut Vec<String>) {
        let mut workdir = false;
        for structure in &block.body {
            let attribute = match structure {
                Structure::Attribute(attribute) => attribute,
                Structure::Block(inner) => {
                    of.tell(Fault::at(header_of(self.text, inner), "is not a block of storage"));
                    continue;
                }
            };
            let source = source_of(self.text, attribute);
            match attribute.key.value().as_str() {
                "workdir" => {
                    let path = self.text_of(of, Field::Workdir, source).filter(|path| !path.is_empty());
                    workdir = true;
                    self.request.workdir = path.map(PathBuf::from);
                }
                "output" => {
                    self.request.output =
                        self.text_of(of, Field::Output, source).filter(|path| !path.is_empty());
                }
                "exclude" => self.request.exclude = self.texts_of(of, Field::Exclude, source),
                "gitignore" => {
                    let value = self.value_of(of, source, &Type::Bool);
                    self.request.gitignore = value == Some(Value::Bool(true));
                }
                "container" => {
                    self.request.storage_container = self.text_of(of, Field::StorageContainer, source);
                }
                "container_opts" => {
                    let of_strings = Type::Map(Box::new(Type::String));
                    let options = self.value_of(of, source, &of_strings);
                    if options.as_ref().and_then(Value::members).is_some_and(|options| !options.is_empty()) {
                        // As the provider has it.
                        let place = of.texts.position(source.span);
                        warnings.push(format!(
                            "{place}: container_opts has no effect: the bucket's region and the credentials for it are taken from the environment, as by the cloud's own tools"
                        ));
                    }
                }
                other => {
                    let key = span_of(self.text, attribute.key.span());
                    module::unknown(of, key, other, "storage", STORAGE.into_iter());
                }
            }
        }
        if self.request.output.is_some() && self.request.workdir.is_none() && !workdir {
            let fault = Fault::at(header, "has an output and no workdir to bring it home to");
            of.tell(fault.hint("add workdir = \".\""));
            self.request.output = None;
        }
    }

    /// How long Terraform waits for its own requests: checked, and of no further use here.
    fn timeouts(&mut self, of: &mut Evaluator<'_>, block: &Block) {
        for structure in &block.body {
            match structure {
                Structure::Attribute(attribute) => {
                    let name = attribute.key.value().as_str();
                    let source = source_of(self.text, attribute);
                    if !TIMEOUTS.contains(&name) {
                        let key = span_of(self.text, attribute.key.span());
                        module::unknown(of, key, name, "timeouts", TIMEOUTS.into_iter());
                        continue;
                    }
                    let text = self.value_of(of, source, &Type::String).and_then(|value| value.to_text());
                    if let Some(text) = text
                        && duration::seconds(&text).is_err()
                    {
                        of.tell(Fault::at(source.span, "is not a duration").hint("write it as 30m or 1h30m"));
                    }
                }
                Structure::Block(inner) => {
                    of.tell(Fault::at(header_of(self.text, inner), "is not a block of timeouts"));
                }
            }
        }
    }

    fn lifecycle(&mut self, of: &mut Evaluator<'_>, block: &Block) {
        for structure in &block.body {
            match structure {
                Structure::Attribute(attribute) => {
                    let name = attribute.key.value().as_str();
                    let source = source_of(self.text, attribute);
                    if name == "prevent_destroy" {
                        let value = self.value_of(of, source, &Type::Bool);
                        self.prevent_destroy = value == Some(Value::Bool(true));
                    } else if !LIFECYCLE.contains(&name) {
                        let key = span_of(self.text, attribute.key.span());
                        module::unknown(of, key, name, "lifecycle", LIFECYCLE.into_iter());
                    }
                }
                Structure::Block(inner) if inner.ident.value().as_str() == "precondition" => {
                    let Some(precondition) = module::condition(of, self.text, inner) else { continue };
                    if of.holds(precondition.condition) == Some(false) {
                        let message = of.message(precondition.message);
                        of.tell(Fault::at(precondition.condition.span, format!("does not hold: {message}")));
                    }
                }
                Structure::Block(inner) => {
                    of.tell(Fault::at(header_of(self.text, inner), "is not supported here"));
                }
            }
        }
    }

    /// Of a type or null; `None` once it has been told why there is none.
    fn value_of(&self, of: &mut Evaluator<'_>, source: Source<'_>, wanted: &Type) -> Option<Value> {
        let value = of.source(source).and_then(|value| {
            value.convert(wanted).map_err(|why| {
                let place = of.prepared(source).map_or(source.span, |expr| expr.span);
                Failure::from(Fault::at(place, why.to_string()))
            })
        });
        of.told(value)
    }

    fn text_of(&mut self, of: &mut Evaluator<'_>, field: Field, source: Source<'_>) -> Option<String> {
        let _before = self.places.insert(field, source.span);
        self.value_of(of, source, &Type::String)?.to_text().map(|text| text.to_string())
    }

    fn number_of(
        &mut self,
        of: &mut Evaluator<'_>,
        field: Field,
        source: Source<'_>,
        whole: bool,
    ) -> Option<String> {
        let _before = self.places.insert(field, source.span);
        let value = self.value_of(of, source, &Type::Number)?;
        let number = value.as_number()?;
        if whole && !number.is_whole() {
            of.tell(Fault::at(source.span, "is not a whole number"));
            return None;
        }
        Some(number.to_string())
    }

    fn texts_of(&mut self, of: &mut Evaluator<'_>, field: Field, source: Source<'_>) -> Vec<String> {
        let _before = self.places.insert(field, source.span);
        let value = self.value_of(of, source, &Type::List(Box::new(Type::String)));
        let texts = value.as_ref().and_then(Value::items).unwrap_or_default().iter();
        texts.map(|text| text.to_text().unwrap_or_default().to_string()).collect()
    }

    fn pairs_of(
        &mut self,
        of: &mut Evaluator<'_>,
        field: Field,
        source: Source<'_>,
    ) -> Vec<(String, String)> {
        let _before = self.places.insert(field, source.span);
        let value = self.value_of(of, source, &Type::Map(Box::new(Type::String)));
        let mut pairs = Vec::new();
        for (name, value) in value.as_ref().and_then(Value::members).into_iter().flatten() {
            if name.contains('=') {
                of.tell(Fault::at(source.span, format!("has the key {name:?}, and keys cannot contain =")));
            } else {
                pairs.push((name.clone(), value.to_text().unwrap_or_default().to_string()));
            }
        }
        pairs
    }
}

fn within(inner: Span, outer: Span) -> bool {
    inner.text == outer.text && inner.start >= outer.start && inner.end <= outer.end
}
