//! The script as a file, and whether it can be run at all.

use std::{
    ffi::OsStr,
    fs::{self, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// Writes the script where only this machine's user can run it.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn write(dir: &Path, script: &str) -> io::Result<PathBuf> {
    fs::create_dir_all(dir)?;
    let path = dir.join("script");
    let half = dir.join("script.new");
    let mut file = fs::File::create(&half)?;
    file.write_all(script.as_bytes())?;
    file.set_permissions(Permissions::from_mode(0o700))?;
    drop(file);
    fs::rename(&half, &path)?;
    Ok(path)
}

/// A script's first line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shebang<'a> {
    /// Path of the interpreter.
    pub(crate) program: &'a str,
    /// All that follows it.
    pub(crate) argument: Option<&'a str>,
}

/// Reads a script's first line; why it names no interpreter, otherwise.
pub(crate) fn shebang(script: &str) -> Result<Shebang<'_>, String> {
    let first = script.split('\n').next().unwrap_or_default();
    let Some(line) = first.strip_prefix("#!") else {
        return Err("the script has no first line that names its interpreter, such as #!/bin/sh".to_owned());
    };
    let line = line.trim_matches([' ', '\t']);
    let (program, argument) = match line.split_once([' ', '\t']) {
        Some((program, argument)) => (program, Some(argument.trim_matches([' ', '\t']))),
        None => (line, None),
    };
    if program.is_empty() {
        return Err("the script's first line names no interpreter".to_owned());
    }
    if line.ends_with('\r') {
        return Err(format!(
            "the script's lines end as on Windows, so its interpreter is looked for as {line:?}"
        ));
    }
    Ok(Shebang { program, argument: argument.filter(|a| !a.is_empty()) })
}

/// Why a script cannot be run on this machine, as far as its first line tells.
pub(crate) fn check(script: &str, path: Option<&str>) -> Result<(), String> {
    let Shebang { program: interpreter, argument } = shebang(script)?;
    match fs::metadata(interpreter) {
        Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => {}
        Ok(_) => return Err(format!("the script's interpreter {interpreter} is not executable")),
        Err(error) => return Err(format!("the script's interpreter {interpreter}: {error}")),
    }
    let through_env = Path::new(interpreter).file_name() == Some(OsStr::new("env"));
    if through_env && let Some(program) = argument {
        let plain = !program.contains(['-', '=', ' ', '\t', '/']);
        let found = path.is_some_and(|p| std::env::split_paths(p).any(|d| d.join(program).is_file()));
        if plain && !found {
            return Err(format!("the script's interpreter {program} is not on this machine's PATH"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(check("#!/bin/sh\necho", None), Ok(()));
        assert_eq!(check("#! /bin/sh -e\n", None), Ok(()));
        let of = |script| check(script, Some("/usr/bin:/bin")).expect_err("cannot run");
        assert!(of("echo hi\n").contains("no first line"));
        assert!(of("").contains("no first line"));
        assert!(of("#!\n").contains("names no interpreter"));
        assert!(of("#!/no/such/python\n").contains("/no/such/python"));
        assert!(of("#!/usr/bin/env nosuchpython3\n").contains("nosuchpython3"));
        assert!(of("#!/bin/sh\r\necho").contains("Windows"));
        assert!(of("#!/etc\n").contains("not executable"));
    }
}
