//! The functions of Terraform's language that give the same result each time.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    number::{Number, NumberError},
    value::{Mismatch, Type, Value},
};

mod collections;
mod encoding;
mod files;
mod format;
mod numbers;
mod texts;

/// Longest text that a function makes, in bytes.
const TEXT_MAX: usize = 4 * 1024 * 1024;
/// Most elements that a function makes out of few.
const ELEMENTS_MAX: usize = 100_000;

/// What a function knows beside its arguments.
#[derive(Debug, Clone, Copy)]
pub(super) struct Around<'a> {
    /// What paths are relative to.
    pub(super) folder: &'a Path,
    pub(super) home: Option<&'a Path>,
}

/// What a function has come to.
#[derive(Debug)]
pub(super) enum Done {
    Value(Value),
    /// To be kept out of messages.
    Secret(Value),
    /// To be evaluated with these variables only.
    Template {
        name: PathBuf,
        text: String,
        variables: BTreeMap<String, Value>,
    },
}

/// Why a function has no result.
#[derive(Debug)]
pub(super) struct Wrong {
    /// Counted from 0; absent when no single one is at fault.
    pub(super) argument: Option<usize>,
    pub(super) cause: String,
    pub(super) hint: Option<String>,
}

impl Wrong {
    fn new(cause: impl Into<String>) -> Self {
        Self { argument: None, cause: cause.into(), hint: None }
    }

    fn of(argument: usize, cause: impl Into<String>) -> Self {
        Self { argument: Some(argument), cause: cause.into(), hint: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<NumberError> for Wrong {
    fn from(error: NumberError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<Mismatch> for Wrong {
    fn from(mismatch: Mismatch) -> Self {
        Self::new(mismatch.to_string())
    }
}

type Outcome = Result<Value, Wrong>;

#[derive(Debug, Clone, Copy)]
enum Body {
    Pure(fn(Args<'_>) -> Outcome),
    Reading(fn(Args<'_>, Around<'_>) -> Result<Done, Wrong>),
}

/// Name, fewest and most arguments, and what it does.
type Entry = (&'static str, usize, usize, Body);

const ANY: usize = usize::MAX;

/// A function that is not called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unknown {
    /// Terraform has it; why it is not here.
    NotHere(&'static str),
    NoSuch,
}

/// Terraform's functions that are not here, and why.
const NOT_HERE: [(&str, &[&str]); 4] = [
    ("which gives another result each time", &["timestamp", "plantimestamp", "uuid", "bcrypt", "rsadecrypt"]),
    (
        "which is not supported here (jsonencode is)",
        &["yamlencode", "yamldecode", "csvdecode", "textencodebase64", "textdecodebase64", "base64gzip"],
    ),
    ("and regular expressions are not supported here", &["regex", "regexall"]),
    (
        "which is not supported here",
        &[
            "base64sha512",
            "cidrhost",
            "cidrnetmask",
            "cidrsubnet",
            "cidrsubnets",
            "defaults",
            "ephemeralasnull",
            "filebase64sha256",
            "filebase64sha512",
            "filemd5",
            "fileset",
            "filesha1",
            "filesha512",
            "formatdate",
            "issensitive",
            "log",
            "matchkeys",
            "md5",
            "sha1",
            "templatestring",
            "timeadd",
            "timecmp",
            "type",
            "uuidv5",
            "list",
            "map",
        ],
    ),
];

fn table() -> impl Iterator<Item = &'static Entry> {
    [texts::TABLE, numbers::TABLE, collections::TABLE, encoding::TABLE, files::TABLE].into_iter().flatten()
}

/// Every name there is.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    table().map(|(name, ..)| *name).chain(["try", "can"])
}

/// A function by its name.
pub(super) fn find(
    name: &str,
) -> Result<impl Fn(&[Value], Around<'_>) -> Result<Done, Wrong> + use<>, Unknown> {
    let Some((name, least, most, body)) = table().find(|(known, ..)| *known == name).copied() else {
        let not_here = NOT_HERE.iter().find(|(_, names)| names.contains(&name));
        return Err(not_here.map_or(Unknown::NoSuch, |(why, _)| Unknown::NotHere(why)));
    };
    Ok(move |args: &[Value], around: Around<'_>| {
        if args.len() < least || args.len() > most {
            let wants = match (least, most) {
                (a, b) if a == b => a.to_string(),
                (a, ANY) => format!("{a} or more"),
                (a, b) => format!("{a} to {b}"),
            };
            return Err(Wrong::new(format!("calls {name} with {} arguments; it takes {wants}", args.len())));
        }
        match body {
            Body::Pure(function) => function(Args(args)).map(Done::Value),
            Body::Reading(function) => function(Args(args), around),
        }
    })
}

/// Arguments of a call whose number is right.
#[derive(Debug, Clone, Copy)]
struct Args<'a>(&'a [Value]);

impl<'a> Args<'a> {
    fn len(self) -> usize {
        self.0.len()
    }

    /// Null where there are fewer.
    fn get(self, n: usize) -> &'a Value {
        const NULL: &Value = &Value::Null;
        self.0.get(n).unwrap_or(NULL)
    }

    fn of_type(self, n: usize, of: &Type) -> Outcome {
        let value = self.get(n);
        if *value == Value::Null {
            return Err(Wrong::of(n, format!("is null, not {}", of.in_words())));
        }
        value.convert(of).map_err(|why| Wrong::of(n, why.to_string()))
    }

    fn text(self, n: usize) -> Result<Arc<str>, Wrong> {
        self.of_type(n, &Type::String)?.to_text().ok_or_else(|| Wrong::of(n, "is no text"))
    }

    fn truth(self, n: usize) -> Result<bool, Wrong> {
        Ok(self.of_type(n, &Type::Bool)? == Value::Bool(true))
    }

    fn number(self, n: usize) -> Result<Number, Wrong> {
        let value = self.of_type(n, &Type::Number)?;
        value.as_number().cloned().ok_or_else(|| Wrong::of(n, "is not a number"))
    }

    fn whole(self, n: usize) -> Result<i64, Wrong> {
        self.number(n)?.to_i64().ok_or_else(|| Wrong::of(n, "is not a whole number of a usual size"))
    }

    fn index(self, n: usize) -> Result<usize, Wrong> {
        usize::try_from(self.whole(n)?).map_err(|_| Wrong::of(n, "is negative"))
    }

    /// Of a list, set or tuple.
    fn items(self, n: usize) -> Result<&'a [Value], Wrong> {
        let value = self.get(n);
        value.items().ok_or_else(|| Wrong::of(n, format!("is {}, not a list", value.kind())))
    }

    /// Of a map or object.
    fn members(self, n: usize) -> Result<&'a BTreeMap<String, Value>, Wrong> {
        let value = self.get(n);
        value.members().ok_or_else(|| Wrong::of(n, format!("is {}, not a map", value.kind())))
    }

    /// Elements as texts; null is none.
    fn texts(self, n: usize) -> Result<Vec<Arc<str>>, Wrong> {
        self.items(n)?
            .iter()
            .enumerate()
            .map(|(i, item)| {
                let cause =
                    || Wrong::of(n, format!("has element {i}, which is {}, not a string", item.kind()));
                item.to_text().ok_or_else(cause)
            })
            .collect()
    }
}

/// A text that is not too long.
fn text(text: String) -> Outcome {
    if text.len() > TEXT_MAX {
        Err(Wrong::new("makes a text that is too long"))
    } else {
        Ok(Value::string(text))
    }
}

/// Refuses a text before it is made.
fn at_most(bytes: Option<usize>) -> Result<(), Wrong> {
    match bytes {
        Some(bytes) if bytes <= TEXT_MAX => Ok(()),
        Some(_) | None => Err(Wrong::new("makes a text that is too long")),
    }
}
