//! Which files of a folder travel.

/// Ordered rules; the first match wins. Built-in ones, then the user's, then `.tpiignore` (and `.gitignore` when asked) files.
#[derive(Debug, Clone)]
pub struct Rules {}

/// A rule that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("exclude rule {rule:?}: {cause}")]
pub struct RuleError {
    /// As given.
    pub rule: String,
    /// Why.
    pub cause: String,
}

impl Rules {
    /// Built-in rules (`/main.tf`, `/terraform.tfstate*`, `/.terraform**`), then the user's.
    ///
    /// # Errors
    /// All rules that cannot be read, not only the first.
    pub fn new(_exclude: &[String], _gitignore: bool) -> Result<Self, Vec<RuleError>> {
        unimplemented!()
    }
    /// No rule at all: everything travels.
    pub fn everything() -> Self {
        unimplemented!()
    }
    /// Whether a path (relative, bytes as the system has them) is excluded by the ordered rules alone.
    pub fn excludes(&self, _path: &std::path::Path, _is_dir: bool) -> bool {
        unimplemented!()
    }
}
