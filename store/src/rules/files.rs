//! `.tpiignore` and `.gitignore` files, as git reads its own: those of deeper folders come first, in a file the
//! last line that matches decides, and nothing below an ignored folder comes back. Like git, `.gitignore` has no
//! say about `.git` and what is in it: tools in the script need it whole.

use std::{path::Path, sync::Arc};

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::Rules;

/// The files that apply in a folder: its own and those above.
#[derive(Debug, Clone, Default)]
pub(crate) struct IgnoreFiles {
    /// From the root down.
    tpi: Vec<Arc<Gitignore>>,
    git: Vec<Arc<Gitignore>>,
}

impl IgnoreFiles {
    /// Files of the folders above the root, up to that of the repository.
    pub(crate) fn above(root: &Path, rules: &Rules, warnings: &mut Vec<String>) -> Self {
        let mut files = Self::default();
        if !rules.reads_gitignore() || root.join(".git").exists() {
            return files;
        }
        let Some(repository) = root.ancestors().skip(1).position(|folder| folder.join(".git").exists())
        else {
            return files;
        };
        let above: Vec<&Path> = root.ancestors().skip(1).take(repository + 1).collect();
        for folder in above.into_iter().rev() {
            files.git.extend(read(folder, ".gitignore", warnings));
        }
        files
    }

    /// With the files of one more folder.
    pub(crate) fn entering(&self, folder: &Path, rules: &Rules, warnings: &mut Vec<String>) -> Self {
        let mut files = self.clone();
        if rules.reads_ignore_files() {
            files.tpi.extend(read(folder, ".tpiignore", warnings));
        }
        if folder.ends_with(".git") {
            files.git.clear();
        } else if rules.reads_gitignore() {
            files.git.extend(read(folder, ".gitignore", warnings));
        }
        files
    }

    /// Whether an entry of the folder (its whole path) is ignored.
    pub(crate) fn ignores(&self, path: &Path, is_dir: bool) -> bool {
        self.tpi
            .iter()
            .rev()
            .chain(self.git.iter().rev().filter(|_| !path.ends_with(".git")))
            .map(|file| file.matched(path, is_dir))
            .find(|found| !found.is_none())
            .is_some_and(|found| found.is_ignore())
    }
}

fn read(folder: &Path, name: &str, warnings: &mut Vec<String>) -> Option<Arc<Gitignore>> {
    let path = folder.join(name);
    if !path.is_file() {
        return None;
    }
    let mut builder = GitignoreBuilder::new(folder);
    if let Some(error) = builder.add(&path) {
        warnings.push(format!("{}: {error}", path.display()));
    }
    match builder.build() {
        Ok(file) => Some(Arc::new(file)),
        Err(error) => {
            warnings.push(format!("{}: {error}", path.display()));
            None
        }
    }
}
