//! The blocks of a folder's files.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use hcl_edit::{
    Span as _,
    structure::{Attribute, Block, BlockLabel, Body, Structure},
};

use super::{
    eval::{Evaluator, Local, Progress, Scope, Source, Validation, Variable},
    fault::{Failure, Fault, nearest},
    heredoc,
    source::Span,
    types,
    value::{Type, Value},
};

/// A file that could be parsed.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) text: usize,
    pub(super) body: Body,
}

/// A `resource "iterative_task"`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resource<'a> {
    pub(super) text: usize,
    pub(super) label: &'a str,
    pub(super) block: &'a Block,
    /// Type and labels.
    pub(super) header: Span,
}

/// What is of no use without Terraform, and does no harm.
const OTHERS: [&str; 9] =
    ["data", "output", "provider", "terraform", "moved", "import", "removed", "check", "ephemeral"];
const BLOCKS: [&str; 4] = ["resource", "variable", "locals", "module"];

/// Parses a text; `None` once it has been told why it cannot be.
pub(super) fn parse(of: &mut Evaluator<'_>, name: PathBuf, text: String) -> Option<Parsed> {
    let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
    let parsed = heredoc::parsed(&text, hcl_edit::parser::parse_body);
    let length = text.len();
    let text = of.texts.add(name, text);
    match parsed {
        Ok(body) => Some(Parsed { text, body }),
        Err(error) => {
            let start = error.location().offset().min(length);
            let fault = Fault::at(Span { text, start, end: start }, error.message().to_owned());
            of.tell(fault.not_shown());
            None
        }
    }
}

pub(super) fn span_of(text: usize, range: Option<std::ops::Range<usize>>) -> Span {
    let range = range.unwrap_or_default();
    Span { text, start: range.start, end: range.end }
}

pub(super) fn source_of(text: usize, attribute: &Attribute) -> Source<'_> {
    Source { text, expr: &attribute.value, span: span_of(text, attribute.span()) }
}

/// From the type of a block to its last label.
pub(super) fn header_of(text: usize, block: &Block) -> Span {
    let start = block.ident.span().unwrap_or_default();
    let end = block.labels.last().and_then(|label| match label {
        BlockLabel::Ident(name) => name.span(),
        BlockLabel::String(name) => name.span(),
    });
    Span { text, start: start.start, end: end.unwrap_or(start).end }
}

/// Takes note of everything that is declared; gives the tasks.
pub(super) fn declare<'a>(
    of: &mut Evaluator<'a>,
    files: &'a [Parsed],
    warnings: &mut Vec<String>,
) -> Vec<Resource<'a>> {
    let mut tasks: Vec<Resource<'a>> = Vec::new();
    for Parsed { text, body } in files {
        let text = *text;
        for structure in body {
            let block = match structure {
                Structure::Attribute(attribute) => {
                    of.tell(
                        Fault::at(span_of(text, attribute.key.span()), "stands outside of any block")
                            .hint("put it into locals { }, or into the resource it belongs to"),
                    );
                    continue;
                }
                Structure::Block(block) => block,
            };
            let header = header_of(text, block);
            let labels: Vec<&str> = block.labels.iter().map(BlockLabel::as_str).collect();
            match (block.ident.value().as_str(), labels.as_slice()) {
                ("resource", ["iterative_task", label]) => {
                    if tasks.iter().any(|task| task.label == *label) {
                        of.tell(Fault::at(header, "is declared twice"));
                    }
                    tasks.push(Resource { text, label, block, header });
                }
                ("resource", [kind, _]) => of.resources.push((*kind).to_owned()),
                ("variable", [name]) => variable(of, text, block, name, header),
                ("locals", []) => locals(of, text, block),
                ("module", [name]) => warnings.push(format!(
                    "module {name:?} is not read: tasks that it declares are not seen (Terraform sees them)"
                )),
                (known, _) if BLOCKS.contains(&known) => {
                    of.tell(Fault::at(header, "has not the labels that such a block has"));
                }
                (known, _) if OTHERS.contains(&known) => {}
                (unknown, _) => {
                    let near = nearest(unknown, BLOCKS.into_iter().chain(OTHERS));
                    let fault = Fault::at(header, "is not a block of a configuration");
                    of.tell(fault.hint_some(near.map(|near| format!("did you mean {near}?"))));
                }
            }
        }
    }
    tasks
}

fn locals<'a>(of: &mut Evaluator<'a>, text: usize, block: &'a Block) {
    for structure in &block.body {
        match structure {
            Structure::Attribute(attribute) => {
                let name = attribute.key.value().to_string();
                let source = source_of(text, attribute);
                let local = Local { source, progress: Progress::Untouched };
                if of.locals.insert(name, local).is_some() {
                    of.tell(Fault::at(span_of(text, attribute.key.span()), "is declared twice as a local"));
                }
            }
            Structure::Block(inner) => {
                of.tell(Fault::at(header_of(text, inner), "is a block, and locals have none"));
            }
        }
    }
}

fn variable<'a>(of: &mut Evaluator<'a>, text: usize, block: &'a Block, name: &str, header: Span) {
    let mut made = Variable {
        span: header,
        of: Type::Any,
        literal: true,
        nullable: true,
        sensitive: false,
        default: None,
        validations: Vec::new(),
        given: None,
        progress: Progress::Untouched,
    };
    for structure in &block.body {
        match structure {
            Structure::Attribute(attribute) => {
                let source = source_of(text, attribute);
                match attribute.key.value().as_str() {
                    "type" => match types::constraint(of, source) {
                        Ok(constraint) => {
                            made.literal = matches!(constraint, Type::String | Type::Number | Type::Bool);
                            made.of = constraint;
                        }
                        Err(Failure::Fault(fault)) => of.tell(*fault),
                        Err(Failure::Told) => {}
                    },
                    "default" => made.default = Some(source),
                    "nullable" => made.nullable = flag(of, source).unwrap_or(true),
                    "sensitive" => made.sensitive = flag(of, source).unwrap_or(true),
                    "description" | "ephemeral" | "deprecated" => {}
                    other => {
                        let known = ["type", "default", "nullable", "sensitive", "description"];
                        unknown(
                            of,
                            span_of(text, attribute.key.span()),
                            other,
                            "a variable",
                            known.into_iter(),
                        );
                    }
                }
            }
            Structure::Block(inner) if inner.ident.value().as_str() == "validation" => {
                made.validations.extend(condition(of, text, inner));
            }
            Structure::Block(inner) => {
                of.tell(Fault::at(header_of(text, inner), "is not a block of a variable"));
            }
        }
    }
    if of.variables.insert(name.to_owned(), made).is_some() {
        of.tell(Fault::at(header, "is declared twice"));
    }
}

/// `condition` and `error_message`.
pub(super) fn condition<'a>(of: &mut Evaluator<'_>, text: usize, block: &'a Block) -> Option<Validation<'a>> {
    let one = |name: &str| block.body.get_attribute(name).map(|attribute| source_of(text, attribute));
    match (one("condition"), one("error_message")) {
        (Some(condition), Some(message)) => Some(Validation { condition, message }),
        _ => {
            of.tell(Fault::at(header_of(text, block), "lacks condition or error_message"));
            None
        }
    }
}

/// True or false, written as such.
fn flag(of: &mut Evaluator<'_>, source: Source<'_>) -> Option<bool> {
    let value = of.with_scope(Scope::Values, |own| own.source(source));
    match of.told(value)?.convert(&Type::Bool) {
        Ok(Value::Bool(b)) => Some(b),
        Ok(_) | Err(_) => {
            of.tell(Fault::at(source.span, "is neither true nor false"));
            None
        }
    }
}

/// Tells that there is no such argument.
pub(super) fn unknown<'n>(
    of: &mut Evaluator<'_>,
    span: Span,
    name: &str,
    what: &str,
    known: impl Iterator<Item = &'n str>,
) {
    let near = nearest(name, known).map(|near| format!("did you mean {near}?"));
    of.tell(Fault::at(span, format!("is not an argument of {what}")).hint_some(near));
}

/// Values of variables by name; undeclared ones are told by whoever gives them.
pub(super) fn undeclared<'n>(of: &Evaluator<'_>, names: impl Iterator<Item = &'n str>) -> BTreeSet<String> {
    names.filter(|name| !of.variables.contains_key(*name)).map(str::to_owned).collect()
}

/// What a file of values says, in the order of names.
pub(super) fn values<'a>(of: &mut Evaluator<'_>, file: &'a Parsed) -> BTreeMap<&'a str, (Span, Value)> {
    let mut made = BTreeMap::new();
    for structure in &file.body {
        match structure {
            Structure::Attribute(attribute) => {
                let source = source_of(file.text, attribute);
                let value = of.with_scope(Scope::Values, |own| own.source(source));
                if let Some(value) = of.told(value) {
                    drop(made.insert(attribute.key.value().as_str(), (source.span, value)));
                }
            }
            Structure::Block(block) => {
                of.tell(
                    Fault::at(header_of(file.text, block), "is a block, and files of values have none")
                        .hint("write name = value"),
                );
            }
        }
    }
    made
}
