//! What expressions become, and how values of one type become values of another.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    fmt::{self, Write as _},
    sync::Arc,
};

use super::number::Number;

/// A value. Sets are sorted and hold nothing twice. What a literal makes is a tuple or an object; lists, sets
/// and maps have elements of one type, and come from conversions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Number(Number),
    String(Arc<str>),
    Tuple(Arc<Vec<Value>>),
    List(Arc<Vec<Value>>),
    Set(Arc<Vec<Value>>),
    Object(Arc<BTreeMap<String, Value>>),
    Map(Arc<BTreeMap<String, Value>>),
}

/// A type, or a constraint that a value is converted to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Type {
    /// Whatever it is; for elements: one type that fits all.
    Any,
    Bool,
    Number,
    String,
    List(Box<Type>),
    Set(Box<Type>),
    Map(Box<Type>),
    Tuple(Vec<Type>),
    Object(BTreeMap<String, Member>),
}

/// An attribute of an object type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) of: Type,
    /// Whether it may be absent, and what it is then.
    pub(super) optional: Option<Value>,
}

impl Type {
    /// In the words of a type constraint, with its article.
    pub(super) fn in_words(&self) -> String {
        match self {
            Self::Any => "any value".to_owned(),
            Self::Bool => "a bool".to_owned(),
            Self::Number => "a number".to_owned(),
            Self::String => "a string".to_owned(),
            Self::List(of) => format!("a list of {}", of.plural()),
            Self::Set(of) => format!("a set of {}", of.plural()),
            Self::Map(of) => format!("a map of {}", of.plural()),
            Self::Tuple(_) => "a tuple".to_owned(),
            Self::Object(_) => "an object".to_owned(),
        }
    }

    fn plural(&self) -> &'static str {
        match self {
            Self::Any => "one type",
            Self::Bool => "bools",
            Self::Number => "numbers",
            Self::String => "strings",
            Self::List(_) => "lists",
            Self::Set(_) => "sets",
            Self::Map(_) => "maps",
            Self::Tuple(_) => "tuples",
            Self::Object(_) => "objects",
        }
    }

    fn is_primitive(&self) -> bool {
        match self {
            Self::Bool | Self::Number | Self::String => true,
            Self::Any | Self::List(_) | Self::Set(_) | Self::Map(_) | Self::Tuple(_) | Self::Object(_) => {
                false
            }
        }
    }

    /// One type that values of two types can both be converted to without loss.
    pub(super) fn unify(&self, other: &Self) -> Option<Self> {
        Some(match (self, other) {
            (Self::Any, of) | (of, Self::Any) => of.clone(),
            (a, b) if a == b => a.clone(),
            (Self::String, b) | (b, Self::String) if b.is_primitive() => Self::String,
            (Self::List(a), Self::List(b)) => Self::List(Box::new(a.unify(b)?)),
            (Self::Set(a), Self::Set(b)) => Self::Set(Box::new(a.unify(b)?)),
            (Self::Map(a), Self::Map(b)) => Self::Map(Box::new(a.unify(b)?)),
            (Self::Tuple(a), Self::Tuple(b)) if a.len() == b.len() => {
                Self::Tuple(a.iter().zip(b).map(|(a, b)| a.unify(b)).collect::<Option<_>>()?)
            }
            (Self::Tuple(a), Self::Tuple(b)) => Self::List(Box::new(Self::of_all(a.iter().chain(b))?)),
            (Self::Tuple(a), Self::List(b)) | (Self::List(b), Self::Tuple(a)) => {
                Self::List(Box::new(Self::of_all(a.iter())?.unify(b)?))
            }
            (Self::Tuple(a), Self::Set(b)) | (Self::Set(b), Self::Tuple(a)) => {
                Self::Set(Box::new(Self::of_all(a.iter())?.unify(b)?))
            }
            (Self::List(a), Self::Set(b)) | (Self::Set(b), Self::List(a)) => Self::Set(Box::new(a.unify(b)?)),
            (Self::Object(a), Self::Object(b)) if a.keys().eq(b.keys()) => Self::Object(
                a.iter()
                    .zip(b.values())
                    .map(|((name, a), b)| {
                        Some((name.clone(), Member { of: a.of.unify(&b.of)?, optional: None }))
                    })
                    .collect::<Option<_>>()?,
            ),
            (Self::Object(a), Self::Object(b)) => {
                Self::Map(Box::new(Self::of_all(a.values().chain(b.values()).map(|m| &m.of))?))
            }
            (Self::Object(a), Self::Map(b)) | (Self::Map(b), Self::Object(a)) => {
                Self::Map(Box::new(Self::of_all(a.values().map(|m| &m.of))?.unify(b)?))
            }
            _ => return None,
        })
    }

    /// One type for several.
    pub(super) fn of_all<'a>(types: impl Iterator<Item = &'a Self>) -> Option<Self> {
        let mut one = Self::Any;
        for of in types {
            one = one.unify(of)?;
        }
        Some(one)
    }
}

/// Why a value is not of a type; a fragment that follows "it".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mismatch(pub(super) String);

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Value {
    pub(super) fn string(text: impl AsRef<str>) -> Self {
        Self::String(Arc::from(text.as_ref()))
    }

    pub(super) fn number(n: usize) -> Self {
        Self::Number(Number::from(n))
    }

    pub(super) fn tuple(items: Vec<Self>) -> Self {
        Self::Tuple(Arc::new(items))
    }

    pub(super) fn list(items: Vec<Self>) -> Self {
        Self::List(Arc::new(items))
    }

    pub(super) fn set(mut items: Vec<Self>) -> Self {
        items.sort();
        items.dedup();
        Self::Set(Arc::new(items))
    }

    pub(super) fn object(items: BTreeMap<String, Self>) -> Self {
        Self::Object(Arc::new(items))
    }

    pub(super) fn map(items: BTreeMap<String, Self>) -> Self {
        Self::Map(Arc::new(items))
    }

    /// With an article.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a bool",
            Self::Number(_) => "a number",
            Self::String(_) => "a string",
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Set(_) => "a set",
            Self::Object(_) => "an object",
            Self::Map(_) => "a map",
        }
    }

    pub(super) fn type_of(&self) -> Type {
        let one = |items: &[Self]| {
            items.iter().map(Self::type_of).try_fold(Type::Any, |one, of| one.unify(&of)).unwrap_or(Type::Any)
        };
        match self {
            Self::Null => Type::Any,
            Self::Bool(_) => Type::Bool,
            Self::Number(_) => Type::Number,
            Self::String(_) => Type::String,
            Self::Tuple(items) => Type::Tuple(items.iter().map(Self::type_of).collect()),
            Self::List(items) => Type::List(Box::new(one(items))),
            Self::Set(items) => Type::Set(Box::new(one(items))),
            Self::Object(items) => Type::Object(
                items
                    .iter()
                    .map(|(name, value)| (name.clone(), Member { of: value.type_of(), optional: None }))
                    .collect(),
            ),
            Self::Map(items) => {
                let of = items.values().map(Self::type_of).try_fold(Type::Any, |one, of| one.unify(&of));
                Type::Map(Box::new(of.unwrap_or(Type::Any)))
            }
        }
    }

    /// Elements of a list, set or tuple.
    pub(super) fn items(&self) -> Option<&[Self]> {
        match self {
            Self::Tuple(items) | Self::List(items) | Self::Set(items) => Some(items),
            Self::Null
            | Self::Bool(_)
            | Self::Number(_)
            | Self::String(_)
            | Self::Object(_)
            | Self::Map(_) => None,
        }
    }

    /// Members of a map or object.
    pub(super) fn members(&self) -> Option<&BTreeMap<String, Self>> {
        match self {
            Self::Object(items) | Self::Map(items) => Some(items),
            Self::Null
            | Self::Bool(_)
            | Self::Number(_)
            | Self::String(_)
            | Self::Tuple(_)
            | Self::List(_)
            | Self::Set(_) => None,
        }
    }

    /// When it is a number.
    pub(super) fn as_number(&self) -> Option<&Number> {
        if let Self::Number(number) = self { Some(number) } else { None }
    }

    /// When it is a string.
    pub(super) fn as_text(&self) -> Option<&str> {
        if let Self::String(text) = self { Some(text) } else { None }
    }

    /// Levels of collections within each other, counted up to a limit.
    pub(super) fn depth(&self, limit: usize) -> usize {
        let Some(below) = limit.checked_sub(1) else { return 0 };
        let deepest = match self {
            Self::Null | Self::Bool(_) | Self::Number(_) | Self::String(_) => return 0,
            Self::Tuple(items) | Self::List(items) | Self::Set(items) => {
                items.iter().map(|item| item.depth(below)).max()
            }
            Self::Object(items) | Self::Map(items) => items.values().map(|item| item.depth(below)).max(),
        };
        deepest.unwrap_or_default() + 1
    }

    /// As a text, where the type has one.
    pub(super) fn to_text(&self) -> Option<Arc<str>> {
        match self {
            Self::String(text) => Some(Arc::clone(text)),
            Self::Number(n) => Some(Arc::from(n.to_string())),
            Self::Bool(b) => Some(Arc::from(if *b { "true" } else { "false" })),
            Self::Null | Self::Tuple(_) | Self::List(_) | Self::Set(_) | Self::Object(_) | Self::Map(_) => {
                None
            }
        }
    }

    /// As a value of another type. Null is of every type.
    pub(super) fn convert(&self, to: &Type) -> Result<Self, Mismatch> {
        let no = || Mismatch(format!("is {}, not {}", self.kind(), to.in_words()));
        if *self == Self::Null {
            return Ok(Self::Null);
        }
        Ok(match to {
            Type::Any => self.clone(),
            Type::Bool if matches!(self, Self::Bool(_)) => self.clone(),
            Type::Bool => match self.as_text().ok_or_else(no)? {
                "true" | "1" => Self::Bool(true),
                "false" | "0" => Self::Bool(false),
                _ => return Err(Mismatch("is a text that is neither true nor false".to_owned())),
            },
            Type::Number if matches!(self, Self::Number(_)) => self.clone(),
            Type::Number => {
                let number = self.as_text().ok_or_else(no)?.parse();
                Self::Number(number.map_err(|_| Mismatch("is a text that is not a number".to_owned()))?)
            }
            Type::String => Self::String(self.to_text().ok_or_else(no)?),
            Type::List(of) => Self::list(converted(self.items().ok_or_else(no)?, of)?),
            Type::Set(of) => Self::set(converted(self.items().ok_or_else(no)?, of)?),
            Type::Map(of) => {
                let members = self.members().ok_or_else(no)?;
                let values: Vec<Self> = members.values().cloned().collect();
                let values = converted(&values, of)?;
                Self::map(members.keys().cloned().zip(values).collect())
            }
            Type::Tuple(types) => {
                let items = self.items().ok_or_else(no)?;
                if items.len() != types.len() {
                    return Err(Mismatch(format!("has {} elements, not {}", items.len(), types.len())));
                }
                let items = items.iter().zip(types).map(|(item, of)| item.convert(of));
                Self::tuple(items.collect::<Result<_, _>>()?)
            }
            Type::Object(types) => {
                let members = self.members().ok_or_else(no)?;
                let mut made = BTreeMap::new();
                for (name, member) in types {
                    let value = match (members.get(name), &member.optional) {
                        (None | Some(Self::Null), Some(default)) => default.convert(&member.of)?,
                        (Some(value), _) => {
                            let inner = value.convert(&member.of);
                            inner.map_err(|Mismatch(why)| Mismatch(format!("has {name:?}, which {why}")))?
                        }
                        (None, None) => return Err(Mismatch(format!("lacks the attribute {name:?}"))),
                    };
                    drop(made.insert(name.clone(), value));
                }
                Self::object(made)
            }
        })
    }

    /// As JSON, the way Terraform writes it.
    pub(super) fn to_json(&self) -> String {
        let mut text = String::new();
        self.write_json(&mut text);
        text
    }

    fn write_json(&self, to: &mut String) {
        match self {
            Self::Null => to.push_str("null"),
            Self::Bool(b) => to.push_str(if *b { "true" } else { "false" }),
            Self::Number(n) => to.push_str(&n.to_string()),
            Self::String(text) => json_string(text, to),
            Self::Tuple(items) | Self::List(items) | Self::Set(items) => {
                to.push('[');
                for (n, item) in items.iter().enumerate() {
                    if n > 0 {
                        to.push(',');
                    }
                    item.write_json(to);
                }
                to.push(']');
            }
            Self::Object(items) | Self::Map(items) => {
                to.push('{');
                for (n, (name, item)) in items.iter().enumerate() {
                    if n > 0 {
                        to.push(',');
                    }
                    json_string(name, to);
                    to.push(':');
                    item.write_json(to);
                }
                to.push('}');
            }
        }
    }

    /// From JSON. Numbers are as exact as the library's: whole ones of 64 bits, and others as it writes them.
    pub(super) fn from_json(json: &serde_json::Value) -> Result<Self, super::number::NumberError> {
        Ok(match json {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::Bool(b) => Self::Bool(*b),
            serde_json::Value::Number(n) => Self::Number(n.to_string().parse()?),
            serde_json::Value::String(text) => Self::string(text),
            serde_json::Value::Array(items) => {
                Self::tuple(items.iter().map(Self::from_json).collect::<Result<_, _>>()?)
            }
            serde_json::Value::Object(items) => Self::object(
                items
                    .iter()
                    .map(|(name, item)| Ok((name.clone(), Self::from_json(item)?)))
                    .collect::<Result<_, _>>()?,
            ),
        })
    }

    /// Whether two values are the same and of the same type, as `==` has it.
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            _ => self.cmp(other) == Ordering::Equal,
        }
    }
}

/// Each converted to one type.
fn converted(items: &[Value], to: &Type) -> Result<Vec<Value>, Mismatch> {
    let to = match to {
        Type::Any => {
            let mut one = Type::Any;
            for item in items {
                one = one.unify(&item.type_of()).ok_or_else(|| {
                    Mismatch("has elements of types that have nothing in common".to_owned())
                })?;
            }
            one
        }
        Type::Bool
        | Type::Number
        | Type::String
        | Type::List(_)
        | Type::Set(_)
        | Type::Map(_)
        | Type::Tuple(_)
        | Type::Object(_) => to.clone(),
    };
    items
        .iter()
        .enumerate()
        .map(|(n, item)| {
            item.convert(&to).map_err(|Mismatch(why)| Mismatch(format!("has element {n}, which {why}")))
        })
        .collect()
}

fn json_string(text: &str, to: &mut String) {
    to.push('"');
    for c in text.chars() {
        match c {
            '"' => to.push_str("\\\""),
            '\\' => to.push_str("\\\\"),
            '\n' => to.push_str("\\n"),
            '\r' => to.push_str("\\r"),
            '\t' => to.push_str("\\t"),
            '\u{8}' => to.push_str("\\b"),
            '\u{c}' => to.push_str("\\f"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
                // Writing to a `String` cannot fail.
                let _ = write!(to, "\\u{:04x}", u32::from(c));
            }
            c => to.push(c),
        }
    }
    to.push('"');
}
