//! Texts that were read, and places in them.

use std::{fmt, path::PathBuf};

use serde::Serialize;

/// Part of a text: bytes `start..end` of the text with this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) text: usize,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// A place as people find it. Lines and columns are counted from 1, columns in characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Position {
    /// Relative to the folder where it is below it; or what else the text was read from.
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// Longest expression that is shown, in characters.
const SHOWN_MAX: usize = 60;

/// Every text of one reading.
#[derive(Debug, Default)]
pub(super) struct Texts(Vec<(PathBuf, String)>);

impl Texts {
    pub(super) fn add(&mut self, name: PathBuf, text: String) -> usize {
        self.0.push((name, text));
        self.0.len() - 1
    }

    pub(super) fn slice(&self, span: Span) -> &str {
        self.0.get(span.text).and_then(|(_, text)| text.get(span.start..span.end)).unwrap_or_default()
    }

    pub(super) fn position(&self, span: Span) -> Position {
        let Some((file, text)) = self.0.get(span.text) else {
            return Position { file: PathBuf::new(), line: 1, column: 1 };
        };
        let before = text.get(..span.start).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Position { file: file.clone(), line, column }
    }

    /// The expression itself, in one line and not too long.
    pub(super) fn shown(&self, span: Span) -> String {
        let words: Vec<&str> = self.slice(span).split_whitespace().collect();
        let line = words.join(" ");
        if line.chars().count() <= SHOWN_MAX {
            return line;
        }
        let mut cut: String = line.chars().take(SHOWN_MAX).collect();
        cut.push('…');
        cut
    }
}
