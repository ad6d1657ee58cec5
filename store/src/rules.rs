//! Which files of a folder travel.
//!
//! Rules are asked in order and the first that matches decides: the built-in ones, the user's, and where none
//! of them matches the `.tpiignore` files (and `.gitignore` files when asked) on the way. What no rule matches
//! travels. A rule that matches a folder decides for everything below it, unless an earlier rule matches there.
//!
//! | entry | matches |
//! |---|---|
//! | `data/raw` (no wildcard) | that path below the work directory, and all below it |
//! | `*.pyc` (wildcard, no slash) | that name at any depth |
//! | `out/*.log` (wildcard and slash) | from the work directory down; `*` stops at a slash, `**` does not |
//! | `build*/` | the same for folders only |
//! | `- PATTERN` | as above: leave out |
//! | `+ PATTERN` | as above: take along, whatever later rules and ignore files say |
//!
//! A `+` or `-` pattern without wildcard or slash matches at any depth, as its users know it.

mod files;

use std::{
    os::unix::ffi::OsStrExt,
    path::{Component, Path},
};

use globset::{GlobBuilder, GlobMatcher};

pub(crate) use files::IgnoreFiles;

/// Ordered rules; the first match wins. Built-in ones, then the user's, then `.tpiignore` (and `.gitignore` when asked) files.
#[derive(Debug, Clone)]
pub struct Rules {
    rules: Vec<Rule>,
    ignore_files: bool,
    gitignore: bool,
}

#[derive(Debug, Clone)]
struct Rule {
    include: bool,
    directories_only: bool,
    matcher: Matcher,
}

#[derive(Debug, Clone)]
enum Matcher {
    /// Exactly this path, as bytes.
    Path(Vec<u8>),
    /// A name at any depth.
    Name(GlobMatcher),
    /// From the root.
    Anchored(GlobMatcher),
}

/// A rule that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("exclude rule {rule:?}: {cause}")]
pub struct RuleError {
    /// As given.
    pub rule: String,
    /// Why.
    pub cause: String,
}

/// Position of the rule that decides about a path; [`Decision::NONE`] when none does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Decision(usize);

impl Decision {
    pub(crate) const NONE: Self = Self(usize::MAX);
}

const WILDCARDS: [char; 4] = ['*', '?', '[', '{'];

impl Rules {
    /// Built-in rules (`/main.tf`, `/terraform.tfstate*`, `/.terraform**`), then the user's.
    ///
    /// # Errors
    /// All rules that cannot be read, not only the first.
    pub fn new(exclude: &[String], gitignore: bool) -> Result<Self, Vec<RuleError>> {
        let built_in = ["- /main.tf", "- /terraform.tfstate*", "- /.terraform*"];
        let mut rules = Vec::new();
        let mut errors = Vec::new();
        for entry in built_in.into_iter().chain(exclude.iter().map(String::as_str)) {
            match Rule::parse(entry) {
                Ok(rule) => rules.push(rule),
                Err(cause) => errors.push(RuleError { rule: entry.to_owned(), cause }),
            }
        }
        if errors.is_empty() { Ok(Self { rules, ignore_files: true, gitignore }) } else { Err(errors) }
    }

    /// No rule at all, and no ignore file: everything travels.
    #[must_use]
    pub fn everything() -> Self {
        Self { rules: Vec::new(), ignore_files: false, gitignore: false }
    }

    /// Whether a path (relative, bytes as the system has them) is excluded by the ordered rules alone.
    #[must_use]
    pub fn excludes(&self, path: &Path, is_dir: bool) -> bool {
        let mut decision = Decision::NONE;
        for ancestor in path.ancestors() {
            if !ancestor.as_os_str().is_empty() {
                decision = decision.min(self.own_decision(ancestor, is_dir || ancestor != path));
            }
        }
        self.leaves_out(decision)
    }

    /// The first rule that matches this path itself; the first for a path is the least of its own and those of
    /// the folders it lies in.
    pub(crate) fn own_decision(&self, path: &Path, is_dir: bool) -> Decision {
        self.rules
            .iter()
            .position(|rule| (is_dir || !rule.directories_only) && rule.matcher.matches(path))
            .map_or(Decision::NONE, Decision)
    }

    pub(crate) fn leaves_out(&self, decision: Decision) -> bool {
        self.rules.get(decision.0).is_some_and(|rule| !rule.include)
    }

    pub(crate) fn takes_along(&self, decision: Decision) -> bool {
        self.rules.get(decision.0).is_some_and(|rule| rule.include)
    }

    /// Whether something below a folder that is left out by this decision may travel all the same.
    pub(crate) fn may_take_below(&self, decision: Decision) -> bool {
        self.rules.iter().take(decision.0).any(|rule| rule.include)
    }

    pub(crate) fn reads_ignore_files(&self) -> bool {
        self.ignore_files
    }

    pub(crate) fn reads_gitignore(&self) -> bool {
        self.gitignore
    }
}

impl Rule {
    fn parse(entry: &str) -> Result<Self, String> {
        let (include, raw, pattern) = if let Some(pattern) = entry.strip_prefix("+ ") {
            (true, true, pattern)
        } else if let Some(pattern) = entry.strip_prefix("- ") {
            (false, true, pattern)
        } else {
            (false, false, entry)
        };
        let pattern = pattern.trim();
        if pattern.is_empty() {
            return Err("it is empty".into());
        }
        if let Some(rest) = pattern.strip_prefix('!') {
            return Err(format!(
                "to take something along, write \"+ {rest}\" before the rule that leaves it out"
            ));
        }
        if pattern.contains('\0') {
            return Err("it has a NUL character".into());
        }
        let anchored = pattern.starts_with('/');
        let directories_only = pattern.ends_with('/');
        // Normalised as a path: no `./`, no double slashes.
        let mut parts = Vec::new();
        for component in Path::new(pattern).components() {
            match component {
                Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
                Component::RootDir | Component::CurDir => {}
                Component::ParentDir | Component::Prefix(_) => {
                    return Err("it leaves the work directory".into());
                }
            }
        }
        let path = parts.join("/");
        if path.is_empty() {
            return Err("it names the work directory itself".into());
        }
        let wild = path.contains(WILDCARDS);
        let glob = || {
            GlobBuilder::new(&path)
                .literal_separator(true)
                .backslash_escape(true)
                .build()
                .map(|glob| glob.compile_matcher())
                .map_err(|e| e.kind().to_string())
        };
        let any_depth = !anchored && parts.len() == 1 && (wild || raw);
        let matcher = if any_depth {
            Matcher::Name(glob()?)
        } else if wild {
            Matcher::Anchored(glob()?)
        } else {
            Matcher::Path(path.into_bytes())
        };
        // A plain entry `name/` means the folder, and so does `name`: there is only one thing of that path.
        let directories_only = directories_only && (wild || raw);
        Ok(Self { include, directories_only, matcher })
    }
}

impl Matcher {
    fn matches(&self, path: &Path) -> bool {
        match self {
            Self::Path(expected) => path.as_os_str().as_bytes() == expected,
            Self::Name(glob) => path.file_name().is_some_and(|name| glob.is_match(name)),
            Self::Anchored(glob) => glob.is_match(path),
        }
    }
}

#[cfg(test)]
mod tests;
