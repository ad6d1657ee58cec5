//! `cargo xtask tidy`: the rules of the layout that the compiler cannot see. Each message names its repair.
//!
//! Rust files are read as code — comments and strings are blanked first, see [`code`] — and looked at for the
//! paths they name, in `use` lines and elsewhere. What [`rules`] lists is the layout of the design: who may
//! name which library, and what a name may not be.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people: it prints")]

mod code;
mod rules;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Something that breaks a rule.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    /// Relative to the checkout, with `/`.
    file: String,
    /// From 1; 0 for the file as a whole.
    line: usize,
    what: String,
    fix: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, what, fix } = self;
        if *line == 0 {
            write!(f, "{file}: {what}: {fix}")
        } else {
            write!(f, "{file}:{line}: {what}: {fix}")
        }
    }
}

pub(crate) fn run(root: &Path) -> Result<()> {
    let findings = check(root)?;
    for finding in &findings {
        eprintln!("{finding}");
    }
    if !findings.is_empty() {
        bail!("tidy: {} findings; each names its repair", findings.len());
    }
    println!("tidy: nothing found");
    Ok(())
}

pub(crate) fn check(root: &Path) -> Result<Vec<Finding>> {
    let mut files = Vec::new();
    collect(root, Path::new(""), &mut files)?;
    let mut findings = Vec::new();
    let machine = rules::Machine::here(root);
    let mut sources = Vec::new();
    for path in &files {
        let name = path.to_string_lossy().replace('\\', "/");
        rules::name(&name, &mut findings);
        let bytes = std::fs::read(root.join(path)).with_context(|| format!("reading {name}"))?;
        let Ok(text) = String::from_utf8(bytes) else { continue };
        machine.check(&name, &text, &mut findings);
        if name.ends_with("Cargo.toml") {
            rules::manifest(&name, &text, &mut findings);
        }
        if name.ends_with(".rs") && !name.contains("/gen/") {
            sources.push(code::Source::read(name, &text));
        }
    }
    for source in &sources {
        rules::length(source, &mut findings);
        rules::paths(source, &mut findings);
    }
    rules::hooks(&sources, &mut findings);
    rules::banned_crates(root, &mut findings)?;
    findings.sort();
    Ok(findings)
}

/// Every file of the checkout that a person wrote, as far as that shows: no `target`, no hidden folder but
/// those of CI and cargo, nothing of version control.
fn collect(root: &Path, below: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(root.join(below))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = below.join(&name);
        let kind = entry.file_type()?;
        if kind.is_dir() {
            let hidden = name.starts_with('.') && ![".ci", ".cargo", ".github"].contains(&name.as_str());
            if !hidden && !["target", "shared", "node_modules", "__pycache__"].contains(&name.as_str()) {
                collect(root, &path, into)?;
            }
        } else if kind.is_file() {
            into.push(path);
        }
    }
    Ok(())
}
