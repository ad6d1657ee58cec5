//! The script, and the paths that travel.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use tpi_store::rules::Rules;

use super::{Field, Findings, ScriptSource};

/// A script is part of the record, which is read often.
const SCRIPT_MAX: u64 = 256 * 1024;

pub(super) fn script(
    source: Option<&ScriptSource>,
    current_dir: &Path,
    found: &mut Findings,
) -> Option<String> {
    match source {
        None => {
            found.error(
                Field::Script,
                None,
                "there is nothing to run",
                "give a file with `--script FILE`, or a command after `--`",
            );
            None
        }
        Some(ScriptSource::Command(words)) => command(words, found),
        Some(ScriptSource::Text(text)) => {
            let first = text.lines().next().unwrap_or_default().to_owned();
            shebang(text.clone(), &first, found)
        }
        Some(ScriptSource::File(path)) => {
            let shown = path.to_string_lossy().into_owned();
            let full = current_dir.join(path);
            match read_script(&full) {
                Ok(text) => shebang(text, &shown, found),
                Err((cause, hint)) => {
                    found.error(Field::Script, Some(&shown), cause, hint);
                    None
                }
            }
        }
    }
}

fn read_script(path: &Path) -> Result<String, (String, String)> {
    let why = |e: &io::Error| {
        if e.kind() == io::ErrorKind::NotFound {
            (
                "there is no such file".to_owned(),
                "check the path; it is relative to the current directory".to_owned(),
            )
        } else if e.kind() == io::ErrorKind::PermissionDenied {
            ("may not be read".to_owned(), format!("allow it: `chmod u+r {}`", path.display()))
        } else {
            (format!("cannot be read: {e}"), "check the file".to_owned())
        }
    };
    let about = fs::metadata(path).map_err(|e| why(&e))?;
    if !about.is_file() {
        return Err(("is not a file".to_owned(), "name the script itself".to_owned()));
    }
    if about.len() > SCRIPT_MAX {
        return Err((
            format!("has {} bytes, more than {SCRIPT_MAX}", about.len()),
            "put what is large into the work directory and let a small script start it".to_owned(),
        ));
    }
    let bytes = fs::read(path).map_err(|e| why(&e))?;
    String::from_utf8(bytes).map_err(|_| {
        (
            "is not UTF-8 text".to_owned(),
            "put programs into the work directory and let a script start them".to_owned(),
        )
    })
}

fn shebang(text: String, shown: &str, found: &mut Findings) -> Option<String> {
    let hint = "begin the script with a line such as #!/bin/sh or #!/usr/bin/env python3";
    let mut fail = |cause: &str, hint: &str| {
        found.error(Field::Script, Some(shown), cause, hint);
        None
    };
    if text.trim().is_empty() {
        return fail("is empty", hint);
    }
    if text.starts_with('\u{feff}') {
        return fail("begins with a byte-order mark, so its first line is not seen", "save it without one");
    }
    let Some(rest) = text.strip_prefix("#!") else {
        return fail("does not begin with a shebang", hint);
    };
    let line = rest.split('\n').next().unwrap_or_default();
    if line.ends_with('\r') {
        return fail(
            "has Windows line ends, so its interpreter would not be found",
            "convert it, for example with `sed -i 's/\\r$//' FILE`",
        );
    }
    if !line.trim_start().starts_with('/') {
        return fail("has a shebang without the full path of an interpreter", hint);
    }
    if text.contains('\0') {
        return fail("contains NUL bytes", "save it as text");
    }
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > SCRIPT_MAX {
        return fail("is too long", "put what is large into the work directory");
    }
    Some(text)
}

fn command(words: &[std::ffi::OsString], found: &mut Findings) -> Option<String> {
    let mut line = String::from("#!/bin/sh\nexec");
    if words.first().is_none_or(|w| w.is_empty()) {
        found.error(Field::Script, None, "there is no command", "give a command after `--`");
        return None;
    }
    for word in words {
        let Some(word) = word.to_str().filter(|w| !w.contains('\0')) else {
            let shown = word.to_string_lossy();
            found.error(
                Field::Script,
                Some(&shown),
                "is not UTF-8 text",
                "put the command into a file and give it with `--script`",
            );
            return None;
        };
        line.push(' ');
        line.push_str(&quoted(word));
    }
    line.push('\n');
    Some(line)
}

/// As one word of a POSIX shell.
fn quoted(word: &str) -> String {
    let plain =
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./:,+@%".contains(&b));
    if plain { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

pub(super) fn workdir(path: Option<&Path>, current_dir: &Path, found: &mut Findings) -> Option<PathBuf> {
    let path = path.filter(|p| !p.as_os_str().is_empty())?;
    let shown = path.to_string_lossy().into_owned();
    let full = current_dir.join(path);
    let mut fail = |cause: String, hint: &str| {
        found.error(Field::Workdir, Some(&shown), cause, hint);
        None
    };
    let real = match full.canonicalize() {
        Ok(real) => real,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return fail(
                "there is no such directory".to_owned(),
                "check the path; it is relative to the current directory",
            );
        }
        Err(e) => {
            return fail(format!("cannot be read: {e}"), "check the permissions of every folder above it");
        }
    };
    if !real.is_dir() {
        return fail("is not a directory".to_owned(), "name the directory that holds the files to send");
    }
    if let Err(e) = fs::read_dir(&real) {
        return fail(format!("cannot be read: {e}"), "check its permissions, for example with `ls -ld`");
    }
    if real.parent().is_none() {
        return fail("is the root of the file system".to_owned(), "name the directory of your project");
    }
    if real.to_str().is_none() {
        return fail(
            "has a path that is not UTF-8".to_owned(),
            "rename it (names inside it may be anything)",
        );
    }
    Some(real)
}

/// Without `.` and `..`; `None` when it leads out.
fn cleaned(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !clean.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(clean)
}

pub(super) fn output(
    text: Option<&str>,
    workdir: Option<&Path>,
    workdir_given: bool,
    found: &mut Findings,
) -> Option<String> {
    let text = text.filter(|t| !t.is_empty())?;
    let hint = "give a path below the work directory, such as results, or . for all of it";
    if !workdir_given {
        found.error(
            Field::Output,
            Some(text),
            "there is no work directory to bring it home to",
            "name one with `--workdir DIR`",
        );
        return None;
    }
    // A path into the work directory itself may be given in full.
    let path = Path::new(text);
    let relative = workdir.and_then(|w| path.strip_prefix(w).ok()).unwrap_or(path);
    if relative.is_absolute() {
        found.error(Field::Output, Some(text), "is an absolute path outside the work directory", hint);
        return None;
    }
    let Some(clean) = cleaned(relative) else {
        found.error(Field::Output, Some(text), "leads out of the work directory", hint);
        return None;
    };
    if let Some(workdir) = workdir {
        // The part of it that exists must not lead out through a link.
        let mut existing = workdir.join(&clean);
        while existing != workdir && fs::symlink_metadata(&existing).is_err() {
            if !existing.pop() {
                break;
            }
        }
        match existing.canonicalize() {
            Ok(real) if real.starts_with(workdir) => {}
            Ok(real) => {
                found.error(
                    Field::Output,
                    Some(text),
                    format!("leads out of the work directory through a link to {}", real.display()),
                    hint,
                );
                return None;
            }
            Err(e) => {
                found.error(Field::Output, Some(text), format!("cannot be read: {e}"), hint);
                return None;
            }
        }
    }
    if clean.as_os_str().is_empty() {
        return Some(".".to_owned());
    }
    clean.to_str().map(str::to_owned)
}

pub(super) fn exclude(rules: &[String], gitignore: bool, found: &mut Findings) -> Vec<String> {
    if let Err(errors) = Rules::new(rules, gitignore) {
        for error in errors {
            found.error(
                Field::Exclude,
                Some(&error.rule),
                error.cause,
                "give a path relative to the work directory, a pattern such as *.pyc, or a rule that begins with '+ ' or '- '",
            );
        }
    }
    rules.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted() {
        assert_eq!(quoted("train.py"), "train.py");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("*"), "'*'");
    }

    #[test]
    fn paths_are_cleaned_before_they_are_judged() {
        assert_eq!(cleaned(Path::new("a/../b/./c")), Some(PathBuf::from("b/c")));
        assert_eq!(cleaned(Path::new("a/..")), Some(PathBuf::new()));
        assert_eq!(cleaned(Path::new("a/../..")), None);
        assert_eq!(cleaned(Path::new("../x")), None);
        assert_eq!(cleaned(Path::new("/x")), None);
        assert_eq!(cleaned(Path::new("..x")), Some(PathBuf::from("..x")));
    }

    proptest::proptest! {
        #[test]
        fn quoting_survives_a_shell(word in "[^\0]{0,40}") {
            let out = std::process::Command::new("/bin/sh")
                .arg("-c")
                .arg(format!("printf %s {}", quoted(&word)))
                .output()
                .expect("a shell");
            proptest::prop_assert_eq!(out.stdout, word.as_bytes());
        }
    }
}
