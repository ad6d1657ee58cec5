//! Tests of the reader: expressions against Terraform itself, configurations, mistakes, and arbitrary bytes.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use super::{
    Inputs, VariableArgument,
    eval::{Evaluator, Source},
    fault::Failure,
    heredoc, module,
    source::Span,
};

mod expressions;
mod fuzzed;
mod mistakes;
mod tasks;
mod variables;

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        fs::write(folder.path().join(name), text).expect("a file");
    }
    folder
}

fn inputs(folder: &Path) -> Inputs {
    Inputs { folder: folder.canonicalize().expect("a folder"), ..Inputs::default() }
}

fn environment(pairs: &[(&str, &str)]) -> BTreeMap<OsString, OsString> {
    pairs.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect()
}

fn var(name: &str, value: &str) -> VariableArgument {
    VariableArgument::Value { name: name.to_owned(), value: value.to_owned() }
}

#[test]
fn the_readme_names_every_function() {
    let readme = include_str!("../../../../README.md");
    let row = readme.lines().find(|line| line.starts_with("| functions |")).expect("a row");
    let told: Vec<&str> =
        row.trim_matches(['|', ' ', '`']).split(['`', ' ']).skip(3).filter(|w| !w.is_empty()).collect();
    let mut known: Vec<&str> = super::functions::names().collect();
    known.sort_unstable();
    assert_eq!(told, known);
}

/// The JSON of an expression beside other declarations, or what is wrong with it.
fn evaluated(folder: &Path, declarations: &str, expression: &str) -> Result<String, String> {
    super::on_large_stack(|| Ok(evaluated_here(folder, declarations, expression))).expect("a thread")
}

fn evaluated_here(folder: &Path, declarations: &str, expression: &str) -> Result<String, String> {
    let mut of = Evaluator::new(folder.to_owned(), None);
    let mut first = Evaluator::new(folder.to_owned(), None);
    let parsed = module::parse(&mut first, PathBuf::from("main.tf"), declarations.to_owned());
    let files: Vec<module::Parsed> = parsed.into_iter().collect();
    of.texts = std::mem::take(&mut first.texts);
    of.faults = std::mem::take(&mut first.faults);
    module::declare(&mut of, &files, &mut Vec::new());
    if let Some((_, fault)) = of.faults.first() {
        return Err(fault.cause.clone());
    }
    let expression = expression.trim_end();
    let parsed = heredoc::parsed(expression, hcl_edit::parser::parse_expr)
        .map_err(|error| error.message().to_owned())?;
    let text = of.texts.add(PathBuf::from("expression"), expression.to_owned());
    let source = Source { text, expr: &parsed, span: Span { text, start: 0, end: expression.len() } };
    match of.source(source) {
        Ok(value) => Ok(value.to_json()),
        Err(Failure::Fault(fault)) => Err(fault.cause),
        Err(Failure::Told) => {
            Err(of.faults.first().map(|(_, fault)| fault.cause.clone()).unwrap_or_default())
        }
    }
}
