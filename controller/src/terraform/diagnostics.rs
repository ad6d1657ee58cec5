//! Errors and warnings as Terraform shows them: a summary, a detail, and the attribute whose line it prints.

use tpi_proto::{
    fault,
    tfplugin5::{
        AttributePath, Diagnostic,
        attribute_path::{Step, step::Selector},
        diagnostic::Severity,
    },
};

use crate::{
    engine::{EngineError, ErrorKind},
    spec::{Field, SpecError},
};

/// Words of the command line, and what to write in a `main.tf` or in the environment instead.
const WORDS: [(&str, &str); 9] = [
    ("`--storage BUCKET/PATH`", "`storage { container = \"BUCKET/PATH\" }`"),
    ("`--store s3://BUCKET/PATH`", "TPI_STORE=s3://BUCKET/PATH"),
    ("`--store`", "the variable TPI_STORE"),
    ("`--state-dir DIR`", "the variable TPI_STATE_DIR"),
    ("`--agent FILE` or TPI_AGENT", "the variable TPI_AGENT"),
    ("`--script FILE`, or a command after `--`", "`script`"),
    ("`--workdir DIR`", "`workdir`"),
    ("`--exclude`", "`exclude`"),
    ("`--name`", "`name`"),
];

fn as_written_here(text: &str) -> String {
    WORDS.iter().fold(text.to_owned(), |text, (flag, word)| text.replace(flag, word))
}

/// A path to an attribute of the resource; empty for the whole.
pub(super) type Path = Vec<Selector>;

/// To an attribute.
pub(super) fn at(name: &str) -> Path {
    vec![Selector::AttributeName(name.to_owned())]
}

/// To an attribute of the first block of a kind.
pub(super) fn in_block(block: &str, name: &str) -> Path {
    let first = Selector::ElementKeyInt(0);
    vec![Selector::AttributeName(block.to_owned()), first, Selector::AttributeName(name.to_owned())]
}

pub(super) fn path(selectors: Path) -> Option<AttributePath> {
    let steps: Vec<Step> = selectors.into_iter().map(|selector| Step { selector: Some(selector) }).collect();
    (!steps.is_empty()).then_some(AttributePath { steps })
}

fn diagnostic(severity: Severity, summary: &str, detail: &str, attribute: Path) -> Diagnostic {
    Diagnostic {
        severity: severity.into(),
        summary: as_written_here(summary),
        detail: as_written_here(detail),
        attribute: path(attribute),
    }
}

/// Something that ends the operation.
pub(super) fn error(summary: impl AsRef<str>, detail: impl AsRef<str>, attribute: Path) -> Diagnostic {
    diagnostic(Severity::Error, summary.as_ref(), detail.as_ref(), attribute)
}

/// Something that the user should know.
pub(super) fn warning(summary: impl AsRef<str>, detail: impl AsRef<str>) -> Diagnostic {
    diagnostic(Severity::Warning, summary.as_ref(), detail.as_ref(), Vec::new())
}

/// Causes and hints in lines of their own.
fn detail<'a>(causes: impl IntoIterator<Item = String>, hints: impl IntoIterator<Item = &'a str>) -> String {
    let causes = causes.into_iter().map(|cause| format!("caused by: {cause}"));
    let hints = hints.into_iter().map(|hint| format!("hint: {hint}"));
    causes.chain(hints).collect::<Vec<_>>().join("\n")
}

/// From the engine; `next` is what to do besides.
pub(super) fn of_engine(failed: &EngineError, next: &[&str]) -> Diagnostic {
    let own = failed.hints.iter().map(String::as_str);
    let report = match failed.kind {
        ErrorKind::Internal => Some("this is a defect of the provider; please report it"),
        ErrorKind::User
        | ErrorKind::CloudRefused
        | ErrorKind::Unreachable
        | ErrorKind::LeftBehind
        | ErrorKind::NotFound
        | ErrorKind::Ambiguous
        | ErrorKind::BeingDestroyed
        | ErrorKind::Unverified => None,
    };
    let hints = own.chain(next.iter().copied()).chain(report);
    error(&failed.message, detail(fault::causes(failed), hints), Vec::new())
}

/// From the check of a request: one for each mistake, at the attribute it is about.
pub(super) fn of_spec(mistake: &SpecError) -> Diagnostic {
    let name = name(mistake.field);
    let summary = match &mistake.value {
        Some(value) => format!("{name} {value:?}: {}", mistake.cause),
        None => format!("{name}: {}", mistake.cause),
    };
    let hint = if mistake.field == Field::Environment {
        "give a value, an empty one to take your own, or a pattern such as WANDB_* with an empty one"
    } else {
        mistake.hint.as_str()
    };
    let mut place = place(mistake.field);
    if let (Field::Environment, Some(key)) = (mistake.field, &mistake.value) {
        place.push(Selector::ElementKeyString(key.clone()));
    }
    error(summary, detail([], [hint].into_iter().filter(|hint| !hint.is_empty())), place)
}

/// As users write it.
fn name(field: Field) -> String {
    match in_storage(field) {
        Some(inner) => format!("storage.{inner}"),
        None => field.as_str().to_owned(),
    }
}

fn place(field: Field) -> Path {
    in_storage(field).map_or_else(|| at(field.as_str()), |inner| in_block("storage", inner))
}

fn in_storage(field: Field) -> Option<&'static str> {
    match field {
        Field::Workdir => Some("workdir"),
        Field::Output => Some("output"),
        Field::Exclude => Some("exclude"),
        Field::StorageContainer => Some("container"),
        Field::Name
        | Field::Cloud
        | Field::Region
        | Field::Machine
        | Field::Image
        | Field::DiskSize
        | Field::Spot
        | Field::Parallelism
        | Field::PermissionSet
        | Field::Tags
        | Field::Environment
        | Field::Timeout
        | Field::Grace
        | Field::Script
        | Field::Container
        | Field::Ingress
        | Field::Subnets
        | Field::ProvisionTimeout => None,
    }
}
