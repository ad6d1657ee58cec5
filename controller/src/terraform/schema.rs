//! What can be written in an `iterative_task`, as data: the schema that Terraform is told, the defaults and the
//! rules for planning all come from these tables.
//!
//! Names, types, defaults and what forces a new task are those that published configurations rely on. Three things
//! differ from the earlier provider's, none of which a configuration or a state can tell:
//!
//! * `environment` and `storage.container_opts` are sensitive: they may hold secrets.
//! * `storage` is a list and not a set, because Terraform hides all of a set when a part of it is sensitive, and can
//!   point at a line inside a list only.
//! * Arguments with a default are *computed* as well, which is how a provider may say a default in a plan without being
//!   excused from Terraform's checks.

use std::collections::{BTreeMap, HashMap};

use tpi_proto::tfplugin5::{
    GetSchemaResponse, Schema, ServerCapabilities, StringKind,
    schema::{Attribute as WireAttribute, Block as WireBlock, NestedBlock, nested_block::NestingMode},
};

use Said::{Optional, Required};
use Type::{Bool, NumberByName, Text, TextByName, Texts};

use super::value::{Number, Object, Value};

/// The resource.
pub(super) const RESOURCE: &str = "iterative_task";
/// Version of the state's shape; that of the earlier provider is the same.
const STATE_VERSION: i64 = 0;

/// Type of an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Text,
    Number,
    Bool,
    Texts,
    TextByName,
    NumberByName,
}

impl Type {
    fn as_json(self) -> &'static str {
        match self {
            Self::Text => r#""string""#,
            Self::Number => r#""number""#,
            Self::Bool => r#""bool""#,
            Self::Texts => r#"["list","string"]"#,
            Self::TextByName => r#"["map","string"]"#,
            Self::NumberByName => r#"["map","number"]"#,
        }
    }

    /// A value in its own form: decimals travel as texts. `None` for a value of another type, which only a damaged
    /// state has.
    fn adopt(self, value: Value) -> Option<Value> {
        let number = |value| match value {
            Value::Text(text) => Some(Value::Number(Number::Decimal(text))),
            value @ (Value::Number(_) | Value::Null | Value::Unknown) => Some(value),
            Value::Bool(_) | Value::List(_) | Value::Map(_) => None,
        };
        let text = |value| matches!(value, Value::Text(_) | Value::Null | Value::Unknown).then_some(value);
        match (self, value) {
            (_, value @ (Value::Null | Value::Unknown)) => Some(value),
            (Self::Text, value) => text(value),
            (Self::Number, value) => number(value),
            (Self::Bool, value) => matches!(value, Value::Bool(_)).then_some(value),
            (Self::Texts, Value::List(items)) => {
                items.into_iter().map(text).collect::<Option<_>>().map(Value::List)
            }
            (Self::TextByName, Value::Map(entries)) => {
                entries.into_iter().map(|(k, v)| Some((k, text(v)?))).collect::<Option<_>>().map(Value::Map)
            }
            (Self::NumberByName, Value::Map(entries)) => {
                entries.into_iter().map(|(k, v)| Some((k, number(v)?))).collect::<Option<_>>().map(Value::Map)
            }
            (Self::Texts | Self::TextByName | Self::NumberByName, _) => None,
        }
    }
}

/// Who says the value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Said {
    /// The user, always.
    Required,
    /// The user, or nobody.
    Optional,
    /// The user, or else this text.
    Text(&'static str),
    /// The user, or else this number.
    Number(i64),
    /// The provider.
    Computed,
}

/// An attribute.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attribute {
    pub(super) name: &'static str,
    ty: Type,
    pub(super) said: Said,
    /// Whether another value is another task.
    pub(super) replaces: bool,
    sensitive: bool,
    about: &'static str,
}

const fn argument(name: &'static str, ty: Type, said: Said, about: &'static str) -> Attribute {
    Attribute { name, ty, said, replaces: true, sensitive: false, about }
}

const fn computed(name: &'static str, ty: Type, about: &'static str) -> Attribute {
    Attribute { name, ty, said: Said::Computed, replaces: false, sensitive: false, about }
}

impl Attribute {
    const fn sensitive(mut self) -> Self {
        self.sensitive = true;
        self
    }

    const fn in_place(mut self) -> Self {
        self.replaces = false;
        self
    }

    /// What it is when the user says nothing.
    pub(super) fn default(&self) -> Value {
        match self.said {
            Said::Required | Said::Optional | Said::Computed => Value::Null,
            Said::Text(text) => Value::text(text),
            Said::Number(number) => Value::integer(number),
        }
    }

    fn wire(&self) -> WireAttribute {
        let (required, optional, computed) = match self.said {
            Said::Required => (true, false, false),
            Said::Optional => (false, true, false),
            Said::Text(_) | Said::Number(_) => (false, true, true),
            Said::Computed => (false, false, true),
        };
        WireAttribute {
            name: self.name.to_owned(),
            r#type: self.ty.as_json().into(),
            description: self.about.to_owned(),
            required,
            optional,
            computed,
            sensitive: self.sensitive,
            description_kind: StringKind::Markdown.into(),
            deprecated: false,
        }
    }
}

/// Of the resource itself.
pub(super) const ATTRIBUTES: [Attribute; 25] = [
    argument("cloud", Text, Required, "Where machines are: `local`, `aws`, `gcp`, `az` or `k8s`."),
    argument("script", Text, Required, "What to run; begins with a shebang line such as `#!/bin/bash`."),
    argument("name", Text, Optional, "Name of the task. The same name is the same task."),
    argument(
        "region",
        Text,
        Said::Text("us-west"),
        "Region: `us-west`, `us-east`, `eu-west`, `eu-north`, or as the cloud calls it.",
    ),
    argument(
        "machine",
        Text,
        Said::Text("m"),
        "Machine: `s`, `m`, `l`, `xl`, with `+t4`, `+k80` or `+v100` for GPUs, or as the cloud calls it.",
    ),
    argument("permission_set", Text, Said::Text(""), "Identity that the machines have in their cloud."),
    argument("disk_size", Type::Number, Said::Number(-1), "Disk in GB; the image's own size when negative."),
    argument(
        "spot",
        Type::Number,
        Said::Number(-1),
        "Negative: on demand. 0: interruptible at the market's price. More: interruptible, up to so many US dollars per hour.",
    ),
    argument(
        "image",
        Text,
        Said::Text("ubuntu"),
        "Machine image: `ubuntu`, `nvidia`, or as the cloud calls it.",
    ),
    argument(
        "parallelism",
        Type::Number,
        Said::Number(1),
        "Number of machines, each with a slot of its own (`TPI_SLOT`).",
    ),
    argument(
        "environment",
        TextByName,
        Optional,
        "Variables of the script. An empty value takes the caller's own, for a name that may hold `*`.",
    )
    .sensitive(),
    argument("tags", TextByName, Optional, "Tags of everything that is created."),
    argument(
        "timeout",
        Type::Number,
        Said::Number(86_400),
        "Seconds after which everything ends, whatever happens.",
    ),
    argument(
        "grace",
        Type::Number,
        Optional,
        "Seconds between SIGTERM and SIGKILL when the script is stopped; 30 when not set.",
    ),
    argument(
        "container",
        Text,
        Optional,
        "Container image to run the script in; not set: the machine itself.",
    ),
    argument(
        "ingress",
        Texts,
        Optional,
        "Who may try to reach the agents: `caller` (when not set), `closed`, or networks such as `203.0.113.0/24`.",
    ),
    argument(
        "subnets",
        Texts,
        Optional,
        "Subnets to start machines in; not set: those of the cloud's default network.",
    ),
    argument(
        "provision_timeout",
        Text,
        Optional,
        "How long to wait for a first machine, such as `30m`; not set: until the timeout.",
    ),
    computed("id", Text, "Identifier of the task."),
    computed("ssh_public_key", Text, "Always null: machines are reached with `tpi-controller shell`.")
        .sensitive(),
    computed("ssh_private_key", Text, "Always null: machines are reached with `tpi-controller shell`.")
        .sensitive(),
    computed("addresses", Texts, "Addresses of the machines that are alive."),
    computed("status", NumberByName, "How many slots are `running`, have `succeeded`, have `failed`."),
    computed("events", Texts, "What happened, for people."),
    computed("logs", Texts, "The end of what each machine's script printed, at most 64 KiB each."),
];

/// Of the block `storage`.
pub(super) const STORAGE: [Attribute; 6] = [
    argument(
        "workdir",
        Text,
        Said::Text(""),
        "Directory to send; the script runs in its copy. Empty: nothing is sent.",
    ),
    argument(
        "output",
        Text,
        Said::Text(""),
        "What to bring home, relative to `workdir`; `.` is all of it. Empty: nothing.",
    )
    .in_place(),
    argument(
        "exclude",
        Texts,
        Optional,
        "What neither to send nor to bring home: paths, patterns, or rules with `+ ` or `- `.",
    )
    .in_place(),
    argument("container", Text, Said::Text(""), "Bucket (and path) of your own."),
    argument("container_opts", TextByName, Optional, "Options of that bucket.").sensitive(),
    argument("gitignore", Bool, Optional, "Whether `.gitignore` files count as rules too."),
];

/// Of the block `timeouts`, all texts such as `15m`; how long each operation may take.
pub(super) const TIMEOUTS: [&str; 4] = ["create", "read", "update", "delete"];

fn timeout(name: &'static str) -> Attribute {
    Attribute { replaces: false, ..argument(name, Text, Optional, "A duration such as `15m`.") }
}

fn block(attributes: impl IntoIterator<Item = WireAttribute>, blocks: Vec<NestedBlock>) -> WireBlock {
    WireBlock {
        version: STATE_VERSION,
        attributes: attributes.into_iter().collect(),
        block_types: blocks,
        description: String::new(),
        description_kind: StringKind::Markdown.into(),
        deprecated: false,
    }
}

fn nested(name: &str, mode: NestingMode, block: WireBlock) -> NestedBlock {
    NestedBlock {
        type_name: name.to_owned(),
        block: Some(block),
        nesting: mode.into(),
        min_items: 0,
        max_items: 0,
    }
}

/// All that Terraform wants to know.
pub(super) fn schema() -> GetSchemaResponse {
    let blocks = vec![
        nested("storage", NestingMode::List, block(STORAGE.iter().map(Attribute::wire), Vec::new())),
        nested("timeouts", NestingMode::Single, block(TIMEOUTS.map(|name| timeout(name).wire()), Vec::new())),
    ];
    let mut resource = block(ATTRIBUTES.iter().map(Attribute::wire), blocks);
    resource.description =
        "A script that runs on machines of a cloud, with its files there and its results back.".to_owned();
    let whole = |block| Schema { version: STATE_VERSION, block: Some(block) };
    GetSchemaResponse {
        provider: Some(whole(block([], Vec::new()))),
        resource_schemas: HashMap::from([(RESOURCE.to_owned(), whole(resource))]),
        data_source_schemas: HashMap::new(),
        diagnostics: Vec::new(),
        provider_meta: None,
        server_capabilities: Some(ServerCapabilities {
            plan_destroy: false,
            get_provider_schema_optional: true,
        }),
    }
}

/// A value that is no `iterative_task`; names the part.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not of its type")]
pub(super) struct ShapeError(String);

/// Brings a value into the schema's shape: every attribute there, nothing else. `None` for null.
pub(super) fn conform(value: Value) -> Result<Option<Object>, ShapeError> {
    let wrong = |name: &str| ShapeError(name.to_owned());
    let mut given = match value {
        Value::Null => return Ok(None),
        Value::Map(given) => given,
        Value::Unknown | Value::Bool(_) | Value::Number(_) | Value::Text(_) | Value::List(_) => {
            return Err(wrong(RESOURCE));
        }
    };
    let take = |given: &mut Object, attributes: &[Attribute]| -> Result<Object, ShapeError> {
        attributes
            .iter()
            .map(|attribute| {
                let value = given.remove(attribute.name).unwrap_or(Value::Null);
                let value = attribute.ty.adopt(value).ok_or_else(|| wrong(attribute.name))?;
                Ok((attribute.name.to_owned(), value))
            })
            .collect()
    };
    let mut object = take(&mut given, &ATTRIBUTES)?;
    let storage = match given.remove("storage").unwrap_or(Value::Null) {
        Value::Null => Value::List(Vec::new()),
        Value::Unknown => Value::Unknown,
        Value::List(blocks) => Value::List(
            blocks
                .into_iter()
                .map(|block| match block {
                    Value::Map(mut block) => take(&mut block, &STORAGE).map(Value::Map),
                    Value::Unknown => Ok(Value::Unknown),
                    Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) | Value::List(_) => {
                        Err(wrong("storage"))
                    }
                })
                .collect::<Result<_, _>>()?,
        ),
        Value::Bool(_) | Value::Number(_) | Value::Text(_) | Value::Map(_) => return Err(wrong("storage")),
    };
    let timeouts = match given.remove("timeouts").unwrap_or(Value::Null) {
        Value::Map(mut block) => Value::Map(take(&mut block, &TIMEOUTS.map(timeout))?),
        value @ (Value::Null | Value::Unknown) => value,
        Value::Bool(_) | Value::Number(_) | Value::Text(_) | Value::List(_) => return Err(wrong("timeouts")),
    };
    object.extend([("storage".to_owned(), storage), ("timeouts".to_owned(), timeouts)]);
    Ok(Some(object))
}

/// One with nothing said: every attribute null, no block.
pub(super) fn empty() -> Object {
    let nulls = ATTRIBUTES.iter().map(|attribute| (attribute.name.to_owned(), Value::Null));
    let blocks = [("storage".to_owned(), Value::List(Vec::new())), ("timeouts".to_owned(), Value::Null)];
    nulls.chain(blocks).collect::<BTreeMap<_, _>>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::hcl::{self, Inputs};

    fn names(attributes: &[Attribute], is: impl Fn(Said) -> bool) -> Vec<&'static str> {
        attributes.iter().filter(|attribute| is(attribute.said)).map(|attribute| attribute.name).collect()
    }

    fn lines(names: &[&str], value: &str) -> String {
        names.iter().map(|name| format!("  {name} = {value}\n")).collect()
    }

    /// What Terraform takes, the program takes without Terraform.
    #[test]
    fn the_reader_of_main_tf_knows_every_argument() {
        let folder = tempfile::tempdir().expect("a folder");
        let read = |body: &str| {
            let head = "  cloud  = \"local\"\n  script = \"#!/bin/sh\"\n";
            let text = format!("resource \"{RESOURCE}\" \"x\" {{\n{head}{body}}}\n");
            std::fs::write(folder.path().join("main.tf"), text).expect("a file");
            hcl::read(&Inputs { folder: folder.path().to_owned(), ..Inputs::default() })
        };
        let given = names(&ATTRIBUTES, |said| !matches!(said, Said::Required | Said::Computed));
        let storage = lines(&names(&STORAGE, |_| true), "null");
        let timeouts = lines(&TIMEOUTS, "null");
        let body = format!("{}storage {{\n{storage}}}\ntimeouts {{\n{timeouts}}}\n", lines(&given, "null"));
        assert_eq!(read(&body).expect("a configuration").tasks.len(), 1);
        let computed = names(&ATTRIBUTES, |said| said == Said::Computed);
        let errors = read(&lines(&computed, "null")).expect_err("computed").0;
        assert_eq!(errors.len(), computed.len(), "{errors:?}");
        assert!(errors.iter().all(|error| error.cause.contains("filled in by Terraform")), "{errors:?}");
    }
}
