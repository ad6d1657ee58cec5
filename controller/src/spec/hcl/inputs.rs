//! Values of variables from outside, in Terraform's order: `TF_VAR_name`, `terraform.tfvars`,
//! `terraform.tfvars.json`, `*.auto.tfvars` and `*.auto.tfvars.json` by name, then what the command line says in
//! its own order. What comes later wins.

use std::path::{Path, PathBuf};

use super::{
    Inputs, VariableArgument,
    eval::{Evaluator, Given, Scope, Source},
    fault::Fault,
    folder, heredoc,
    module::{self, Parsed},
    source::Span,
    value::Value,
};

pub(super) fn give(of: &mut Evaluator<'_>, inputs: &Inputs, names: &[String], warnings: &mut Vec<String>) {
    let declared: Vec<String> = of.variables.keys().cloned().collect();
    for name in declared {
        let variable = format!("TF_VAR_{name}");
        let Some(text) = inputs.environment.get(std::ffi::OsStr::new(&variable)) else { continue };
        match text.to_str() {
            Some(text) => text_given(of, &name, text, &variable),
            None => of.tell(outside(format!("{variable} is not text (not UTF-8)"))),
        }
    }
    let first = ["terraform.tfvars", "terraform.tfvars.json"].map(str::to_owned);
    let automatic =
        names.iter().filter(|name| name.ends_with(".auto.tfvars") || name.ends_with(".auto.tfvars.json"));
    for name in first.iter().filter(|name| names.contains(name)).chain(automatic) {
        file_given(of, &inputs.folder, Path::new(name), warnings);
    }
    for argument in &inputs.variables {
        match argument {
            VariableArgument::File(path) => file_given(of, &inputs.folder, path, warnings),
            VariableArgument::Value { name, value } => {
                if of.variables.contains_key(name) {
                    text_given(of, name, value, &format!("--var {name}"));
                } else {
                    let near = super::fault::nearest(name, of.variables.keys().map(String::as_str));
                    let hint = near.map(|near| format!("did you mean {near}?"));
                    let fault = outside(format!("--var {name}: no variable block declares {name:?}"));
                    of.tell(fault.hint_some(hint));
                }
            }
        }
    }
}

/// A mistake that is in no file.
fn outside(cause: String) -> Fault {
    let nowhere = Span { text: usize::MAX, start: 0, end: 0 };
    Fault { span: None, ..Fault::at(nowhere, cause).not_shown() }
}

/// A text stands for itself where the variable is one value, and is an expression where it is several.
fn text_given(of: &mut Evaluator<'_>, name: &str, text: &str, from: &str) {
    let Some(variable) = of.variables.get(name) else { return };
    let (literal, sensitive) = (variable.literal, variable.sensitive);
    if text.len() > folder::FILE_MAX {
        return of.tell(outside(format!("{from} is too long")));
    }
    if sensitive {
        of.hide(&Value::string(text));
    }
    let value = if literal {
        Some(Value::string(text))
    } else {
        let parsed = heredoc::parsed(text, hcl_edit::parser::parse_expr);
        let at = of.texts.add(PathBuf::from(from), text.to_owned());
        let span = Span { text: at, start: 0, end: text.len() };
        match parsed {
            Ok(expr) => {
                let source = Source { text: at, expr: &expr, span };
                let value = of.with_scope(Scope::Values, |own| own.source(source));
                of.told(value)
            }
            Err(error) => {
                let start = error.location().offset();
                let fault = Fault::at(Span { text: at, start, end: start }, error.message().to_owned());
                of.tell(fault.not_shown());
                None
            }
        }
    };
    if let Some(value) = value {
        set(of, name, Given { value, from: from.to_owned(), span: None });
    }
}

fn set(of: &mut Evaluator<'_>, name: &str, given: Given) {
    let sensitive = of.variables.get(name).is_some_and(|variable| variable.sensitive);
    if sensitive {
        of.hide(&given.value);
    }
    if let Some(variable) = of.variables.get_mut(name) {
        variable.given = Some(given);
    }
}

fn file_given(of: &mut Evaluator<'_>, folder: &Path, path: &Path, warnings: &mut Vec<String>) {
    let text = match folder::read(&folder.join(path)) {
        Ok(text) => text,
        Err(cause) => return of.tell(outside(format!("{}: {cause}", path.display()))),
    };
    let from = path.display().to_string();
    if path.extension().is_some_and(|extension| extension == "json") {
        return json_given(of, path, text, &from, warnings);
    }
    let Some(parsed) = module::parse(of, path.to_owned(), text) else { return };
    let parsed: &Parsed = &parsed;
    let values = module::values(of, parsed);
    warn(of, values.keys().copied(), &from, warnings);
    for (name, (span, value)) in values {
        set(of, name, Given { value, from: from.clone(), span: Some(span) });
    }
}

fn json_given(of: &mut Evaluator<'_>, path: &Path, text: String, from: &str, warnings: &mut Vec<String>) {
    let parsed = serde_json::from_str::<serde_json::Value>(&text);
    let whole = of.texts.add(path.to_owned(), text);
    let mut fail =
        |cause: String| of.tell(Fault::at(Span { text: whole, start: 0, end: 0 }, cause).not_shown());
    let members = match parsed {
        Ok(serde_json::Value::Object(members)) => members,
        Ok(_) => return fail("is not a JSON object with a member for each variable".to_owned()),
        Err(error) => return fail(format!("is not JSON: {error}")),
    };
    warn(of, members.keys().map(String::as_str), from, warnings);
    for (name, json) in &members {
        match Value::from_json(json) {
            Ok(value) => set(of, name, Given { value, from: from.to_owned(), span: None }),
            Err(error) => of.tell(outside(format!("{from}: {name}: {error}"))),
        }
    }
}

fn warn<'n>(
    of: &Evaluator<'_>,
    names: impl Iterator<Item = &'n str>,
    from: &str,
    warnings: &mut Vec<String>,
) {
    for name in module::undeclared(of, names) {
        warnings.push(format!("{from} has a value for {name:?}, which no variable block declares"));
    }
}
