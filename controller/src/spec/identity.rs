//! Which task a request is: its name and its identifier.
//!
//! * A name that is a whole identifier is used as it is.
//! * In a continuous-integration run the identifier comes from the run *and* the name: two tasks of one run
//!   differ, and running the same job again finds the same task.
//! * Otherwise a name gives always the same identifier, and without a name every request is a new task,
//!   called after the work directory or the script.
//!
//! Identifiers hold at most 28 characters of a name, so two long names can give the same one. Names of up to
//! 63 characters are taken all the same, because published configurations have them: submit compares the
//! whole name with the one in the record, and refuses instead of mistaking one task for another.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::Path,
};

use tpi_proto::id::{TaskId, TaskIdError, normalize};

use super::{Field, Findings, ScriptSource};

/// Longest name, in characters.
pub(super) const NAME_MAX: usize = 63;

/// Variables that name one run of a continuous-integration system.
const RUNS: [(&str, &str); 3] =
    [("github", "GITHUB_RUN_ID"), ("gitlab", "CI_PIPELINE_ID"), ("bitbucket", "BITBUCKET_PIPELINE_UUID")];

pub(super) fn identify(
    name: Option<&str>,
    workdir: Option<&Path>,
    script: Option<&ScriptSource>,
    caller: &BTreeMap<OsString, OsString>,
    found: &mut Findings,
) -> Option<(TaskId, String)> {
    let name = name.filter(|n| !n.is_empty());
    match name.map(|n| (n, n.parse::<TaskId>())) {
        Some((text, Ok(id))) => return Some((id, text.to_owned())),
        Some((text, Err(TaskIdError::Check(_)))) => {
            found.error(
                Field::Name,
                Some(text),
                "looks like an identifier but its last part does not match the rest",
                "copy the whole identifier from `tpi-controller list`, or choose a name of another shape",
            );
            return None;
        }
        Some((text, Err(TaskIdError::Shape(_) | TaskIdError::EmptyName(_)))) => {
            let length = text.chars().count();
            if length > NAME_MAX {
                found.error(
                    Field::Name,
                    Some(text),
                    format!("has {length} characters, more than {NAME_MAX}"),
                    format!("choose a name of at most {NAME_MAX} characters"),
                );
                return None;
            }
        }
        None => {}
    }
    let text = name.map_or_else(|| generated(workdir, script), str::to_owned);
    let id = match (integration_run(caller), name) {
        (Some(run), _) => TaskId::seeded(&text, format!("{run}:{text}").as_bytes()),
        (None, Some(_)) => TaskId::deterministic(&text),
        (None, None) => TaskId::seeded(&text, &rand::random::<[u8; 16]>()),
    };
    match id {
        Ok(id) => Some((id, text)),
        Err(error) => {
            found.error(
                Field::Name,
                Some(&text),
                error.to_string(),
                "choose a name with at least one letter or digit",
            );
            None
        }
    }
}

/// The run of a continuous-integration system that the caller is part of.
pub(crate) fn integration_run(caller: &BTreeMap<OsString, OsString>) -> Option<String> {
    RUNS.iter().find_map(|(system, variable)| {
        let value = caller.get(OsStr::new(variable)).filter(|v| !v.is_empty())?;
        Some(format!("{system}:{}", value.to_string_lossy()))
    })
}

/// Whether there is one.
pub(super) fn is_run(caller: &BTreeMap<OsString, OsString>) -> bool {
    integration_run(caller).is_some()
}

/// The identifier that a name has here.
pub(super) fn of_name(name: &str, caller: &BTreeMap<OsString, OsString>) -> Option<TaskId> {
    identify(Some(name), None, None, caller, &mut Findings::default()).map(|(id, _)| id)
}

/// After the work directory, else after what runs.
fn generated(workdir: Option<&Path>, script: Option<&ScriptSource>) -> String {
    let of_script = || match script {
        Some(ScriptSource::File(path)) => path.file_stem().map(OsStr::to_owned),
        Some(ScriptSource::Command(words)) => {
            words.first().and_then(|w| Path::new(w).file_stem()).map(OsStr::to_owned)
        }
        Some(ScriptSource::Text(_)) | None => None,
    };
    workdir
        .and_then(Path::file_name)
        .map(OsStr::to_owned)
        .or_else(of_script)
        .map(|n| n.to_string_lossy().chars().take(NAME_MAX).collect::<String>())
        .filter(|n| !normalize(n).is_empty())
        .unwrap_or_else(|| "task".to_owned())
}
