//! Reads a Rust file as far as the rules need it: which lines are tests, and the code without its comments
//! and strings. Not a parser; a file that rustfmt has formatted is all it has to understand.

pub(crate) struct Source {
    /// Relative to the checkout, with `/`.
    pub(crate) name: String,
    /// As it is in the file.
    pub(crate) lines: Vec<String>,
    /// The same lines, with comments and the inside of strings and characters blanked.
    pub(crate) code: Vec<String>,
    /// The line (from 0) where a `#[cfg(test)] mod` begins: tests come last in a file.
    tests_from: usize,
}

/// A path that the code names: `["tokio", "spawn"]` for `tokio::spawn(…)` and for `use tokio::{spawn, x};`. A
/// macro keeps its `!`. A name that stands alone is a path of one part.
pub(crate) struct Named {
    /// From 0.
    pub(crate) line: usize,
    pub(crate) parts: Vec<String>,
    /// In a `use` item, so that even one part is the name of a crate or module.
    pub(crate) imported: bool,
}

impl Source {
    pub(crate) fn read(name: String, text: &str) -> Self {
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        let code: Vec<_> = blank(text).lines().map(str::to_owned).collect();
        let whole = name.ends_with("/tests.rs") || name.contains("/tests/") || name.starts_with("tests/");
        let tests_from = if whole {
            0
        } else {
            let starts = |at: &usize| {
                code[*at].trim() == "#[cfg(test)]"
                    && code[at + 1..]
                        .iter()
                        .find(|line| !line.trim().is_empty() && !line.trim().starts_with("#["))
                        .is_some_and(|line| line.contains("mod ") && line.trim_end().ends_with('{'))
            };
            (0..code.len()).find(starts).unwrap_or(code.len())
        };
        Self { name, lines, code, tests_from }
    }

    pub(crate) fn is_test(&self, line: usize) -> bool {
        line >= self.tests_from
    }
}

impl Source {
    /// Every path, in the order of the file.
    pub(crate) fn paths(&self) -> Vec<Named> {
        let mut reader = Reader { tokens: tokens(&self.code), at: 0, found: Vec::new() };
        while reader.at < reader.tokens.len() {
            if reader.text(0) == "use" {
                reader.at += 1;
                reader.tree(&[]);
            } else if is_name(reader.text(0)) {
                reader.path();
            } else {
                reader.at += 1;
            }
        }
        reader.found
    }
}

struct Reader<'a> {
    tokens: Vec<(usize, &'a str)>,
    at: usize,
    found: Vec<Named>,
}

impl Reader<'_> {
    fn text(&self, ahead: usize) -> &str {
        self.tokens.get(self.at + ahead).map_or("", |(_, text)| text)
    }

    /// `a::b::c` or `a::b!` in an expression or a type.
    fn path(&mut self) {
        let line = self.tokens[self.at].0;
        let mut parts = vec![self.text(0).to_owned()];
        self.at += 1;
        while self.text(0) == "::" && is_name(self.text(1)) {
            parts.push(self.text(1).to_owned());
            self.at += 2;
        }
        if self.text(0) == "!"
            && self.text(1) != "="
            && let Some(last) = parts.last_mut()
        {
            last.push('!');
        }
        self.found.push(Named { line, parts, imported: false });
    }

    /// What follows `use`, up to its `;`, or one entry of a list in braces.
    fn tree(&mut self, before: &[String]) {
        let line = self.tokens.get(self.at).map_or(0, |(line, _)| *line);
        let mut parts = before.to_vec();
        loop {
            match self.text(0) {
                "{" => {
                    self.at += 1;
                    while !matches!(self.text(0), "}" | "" | ";") {
                        self.tree(&parts);
                        if self.text(0) == "," {
                            self.at += 1;
                        }
                    }
                    self.at += 1;
                    return;
                }
                "as" => self.at += 2,
                "," | "}" | ";" | "" => break,
                name => {
                    if is_name(name) && name != "self" {
                        parts.push(name.to_owned());
                    }
                    self.at += 1;
                }
            }
        }
        self.found.push(Named { line, parts, imported: true });
    }
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Names and numbers, `::`, and every other character by itself; each with its line.
fn tokens(code: &[String]) -> Vec<(usize, &str)> {
    let mut tokens = Vec::new();
    for (number, line) in code.iter().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let part = |c: char| c.is_alphanumeric() || c == '_';
            let length = if part(first) {
                rest.find(|c| !part(c)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            tokens.push((number, &rest[..length]));
            rest = rest[length..].trim_start();
        }
    }
    tokens
}

/// The text with every character of comments and literals replaced by a space; lines stay where they are.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    let wipe = |out: &mut String, from: usize, to: usize| {
        out.extend(chars[from..to].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
    };
    while at < chars.len() {
        let end = literal(&chars, at);
        if end > at {
            wipe(&mut out, at, end);
            at = end;
        } else {
            out.push(chars[at]);
            at += 1;
        }
    }
    out
}

/// The end of the comment or literal that starts at `at`; `at` itself when none does.
fn literal(chars: &[char], at: usize) -> usize {
    let get = |index: usize| chars.get(index).copied().unwrap_or('\0');
    let named = at > 0 && (get(at - 1).is_alphanumeric() || get(at - 1) == '_');
    match get(at) {
        '/' if get(at + 1) == '/' => (at..chars.len()).find(|i| get(*i) == '\n').unwrap_or(chars.len()),
        '/' if get(at + 1) == '*' => block_comment(chars, at),
        '"' => string(chars, at),
        'b' | 'c' if !named && get(at + 1) == '"' => string(chars, at + 1),
        'r' if !named => raw_string(chars, at, at + 1),
        'b' | 'c' if !named && get(at + 1) == 'r' => raw_string(chars, at, at + 2),
        // A character, not a lifetime: 'x' or an escape.
        '\'' if get(at + 1) == '\\' => {
            (at + 3..chars.len()).find(|i| get(*i) == '\'').map_or(chars.len(), |i| i + 1)
        }
        '\'' if get(at + 2) == '\'' => at + 3,
        _ => at,
    }
}

fn block_comment(chars: &[char], at: usize) -> usize {
    let mut depth = 0;
    let mut i = at;
    while i < chars.len() {
        match (chars[i], chars.get(i + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                i += 2;
            }
            ('*', Some('/')) => {
                depth -= 1;
                i += 2;
                if depth == 0 {
                    return i;
                }
            }
            _ => i += 1,
        }
    }
    chars.len()
}

fn string(chars: &[char], quote: usize) -> usize {
    let mut i = quote + 1;
    while i < chars.len() {
        match chars[i] {
            '\\' => i += 2,
            '"' => return i + 1,
            _ => i += 1,
        }
    }
    chars.len()
}

fn raw_string(chars: &[char], at: usize, hashes_from: usize) -> usize {
    let hashes = chars[hashes_from.min(chars.len())..].iter().take_while(|c| **c == '#').count();
    let quote = hashes_from + hashes;
    if chars.get(quote) != Some(&'"') {
        return at;
    }
    let closes = |i: &usize| {
        chars[*i] == '"' && chars[i + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes
    };
    (quote + 1..chars.len()).find(closes).map_or(chars.len(), |i| i + 1 + hashes)
}
