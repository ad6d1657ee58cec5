//! What is wrong with a configuration.

use std::fmt;

use serde::Serialize;

use super::source::{Position, Span};

/// One mistake, or something that this reader does not understand.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct HclError {
    /// Where; absent when it concerns no place in a file.
    pub position: Option<Position>,
    /// The resource it concerns, such as `iterative_task.train`.
    pub resource: Option<String>,
    /// The text that cannot be used, in one line.
    pub expression: Option<String>,
    /// Why, as a lower-case fragment.
    pub cause: String,
    /// What to do instead, as a lower-case fragment.
    pub hint: Option<String>,
}

impl fmt::Display for HclError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(position) = &self.position {
            write!(f, "{position}: ")?;
        }
        if let Some(resource) = &self.resource {
            write!(f, "{resource}: ")?;
        }
        if let Some(expression) = &self.expression {
            write!(f, "`{expression}` ")?;
        }
        f.write_str(&self.cause)
    }
}

impl std::error::Error for HclError {}

/// Every mistake that was found, in the order of files and lines. `Display` writes one line each, without hints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HclErrors(pub Vec<HclError>);

impl fmt::Display for HclErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, error) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for HclErrors {}

/// Why an expression has no value.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// Something it depends on has none, which has been told already.
    Told,
    /// This.
    Fault(Box<Fault>),
}

/// A mistake at a place.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub(super) span: Option<Span>,
    /// Whether the text at the place is shown.
    pub(super) shown: bool,
    pub(super) cause: String,
    pub(super) hint: Option<String>,
    /// Whether it depends on values, so that `try` and `can` look past it.
    pub(super) of_values: bool,
}

impl Fault {
    /// Wrong whatever values there are.
    pub(super) fn at(span: Span, cause: impl Into<String>) -> Self {
        Self { span: Some(span), shown: true, cause: cause.into(), hint: None, of_values: false }
    }

    /// Wrong with the values that there are.
    pub(super) fn of_values(span: Span, cause: impl Into<String>) -> Self {
        Self { of_values: true, ..Self::at(span, cause) }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(super) fn hint_some(mut self, hint: Option<String>) -> Self {
        self.hint = hint.or(self.hint);
        self
    }

    pub(super) fn not_shown_if(mut self, not: bool) -> Self {
        self.shown &= !not;
        self
    }

    /// Where the text at the place says nothing.
    pub(super) fn not_shown(mut self) -> Self {
        self.shown = false;
        self
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(Box::new(fault))
    }
}

/// The name that was meant, perhaps.
pub(super) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|known| (distance(name, known), known))
        .filter(|(distance, known)| *distance <= known.chars().count().div_ceil(3))
        .min()
        .map(|(_, known)| known)
}

/// Letters to change, add or leave out.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut before = i;
        let mut left = i + 1;
        for (y, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let above = *cell;
            left = (left + 1).min(above + 1).min(before + usize::from(x != *y));
            before = above;
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}
