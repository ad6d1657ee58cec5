//! Errors of every layer: their exit codes and hints. Total, so that a new kind of error cannot be forgotten.

use tpi_store::{StoreError, StoreErrorKind};

use super::{CliError, Problem};
#[cfg(feature = "local")]
use crate::cloud::local::group::GroupError;
use crate::{
    cli::{PROGRAM, exit::Exit},
    engine::{EngineError, ErrorKind},
    home::HomeError,
    link::{CallError, ConnectError, FollowError, IdentityError, StreamError},
    spec::{Field, SpecErrors},
};

impl From<EngineError> for CliError {
    fn from(error: EngineError) -> Self {
        let exit = match error.kind {
            ErrorKind::User | ErrorKind::Ambiguous | ErrorKind::BeingDestroyed => Exit::Request,
            ErrorKind::CloudRefused => Exit::Cloud,
            ErrorKind::Unreachable => Exit::Unreachable,
            ErrorKind::LeftBehind => Exit::Leftovers,
            ErrorKind::NotFound => Exit::NotFound,
            ErrorKind::Unverified => Exit::LocalFiles,
            ErrorKind::Internal => Exit::Internal,
        };
        let mut report = Self::new(exit, Problem::of(&error));
        let removal = format!("`{PROGRAM} destroy");
        let told = error.hints.iter().any(|hint| hint.contains(&removal));
        let unhinted = error.hints.is_empty();
        for hint in error.hints {
            report = report.hint(hint);
        }
        match (error.kind, error.task) {
            (ErrorKind::LeftBehind, Some(task)) if !told => report.hint(format!(
                "something may be left behind; this removes it, or says what is left: {removal} {task}`"
            )),
            (ErrorKind::NotFound, _) if unhinted => {
                report.hint(format!("the tasks there are: `{PROGRAM} list`"))
            }
            (ErrorKind::Internal, _) => report.hint("this is a defect of tpi-controller; please report it"),
            (
                ErrorKind::User
                | ErrorKind::Ambiguous
                | ErrorKind::BeingDestroyed
                | ErrorKind::CloudRefused
                | ErrorKind::Unreachable
                | ErrorKind::LeftBehind
                | ErrorKind::NotFound
                | ErrorKind::Unverified,
                _,
            ) => report,
        }
    }
}

/// Every mistake becomes a problem with the flag that it is about.
impl From<SpecErrors> for CliError {
    fn from(errors: SpecErrors) -> Self {
        let problems = errors.0.into_iter().map(|error| {
            let flag = flag(error.field);
            let message = match error.value {
                Some(value) => format!("{flag} {value:?}: {}", error.cause),
                None => format!("{flag}: {}", error.cause),
            };
            let problem = Problem::text(message);
            if error.hint.is_empty() { problem } else { problem.hint(error.hint) }
        });
        Self::several(Exit::Request, problems.collect())
    }
}

/// A field as it is written on this command line.
fn flag(field: Field) -> &'static str {
    match field {
        Field::Name => "--name",
        Field::Cloud => "--cloud",
        Field::Region => "--region",
        Field::Machine => "--machine",
        Field::Image => "--image",
        Field::DiskSize => "--disk-size",
        Field::Spot => "--spot",
        Field::Parallelism => "--parallelism",
        Field::PermissionSet => "--permission-set",
        Field::Tags => "--tags",
        Field::Environment => "--environment",
        Field::Timeout => "--timeout",
        Field::Grace => "--grace",
        Field::Script => "--script",
        Field::Workdir => "--workdir",
        Field::Output => "--results",
        Field::Exclude => "--exclude",
        Field::Container => "--container",
        Field::Ingress => "--ingress",
        Field::StorageContainer => "--storage",
        Field::Subnets => "--subnet",
        Field::ProvisionTimeout => "--provision-timeout",
    }
}

impl From<HomeError> for CliError {
    fn from(error: HomeError) -> Self {
        Self::new(Exit::Request, Problem::of(&error)).hint("--state-dir chooses another directory")
    }
}

/// The store's, with `outer` told first.
fn store(outer: Problem, kind: StoreErrorKind) -> CliError {
    match kind {
        StoreErrorKind::NotFound => CliError::new(Exit::NotFound, outer)
            .hint(format!("it may have been destroyed meanwhile: `{PROGRAM} list`")),
        StoreErrorKind::AlreadyExists | StoreErrorKind::Conflict => CliError::new(Exit::Request, outer)
            .hint("somebody else changed it at the same time; run the command again"),
        StoreErrorKind::Unauthenticated => {
            CliError::new(Exit::Cloud, outer).hint("check the credentials of the cloud in the environment")
        }
        StoreErrorKind::PermissionDenied => {
            CliError::new(Exit::Cloud, outer).hint("the credentials do not allow this")
        }
        StoreErrorKind::NoSpace => {
            CliError::new(Exit::Request, outer).hint("make room on the disk, then run the command again")
        }
        StoreErrorKind::Corrupt => CliError::new(Exit::Request, outer)
            .hint("the object is damaged, or was written by a newer version of tpi-controller"),
        StoreErrorKind::Unsupported => {
            CliError::new(Exit::Request, outer).hint("stores are written file:///path or s3://bucket/prefix")
        }
        StoreErrorKind::Unavailable | StoreErrorKind::Other => {
            CliError::new(Exit::Unreachable, outer).hint("run the command again once the store answers")
        }
    }
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> Self {
        store(Problem::of(&error), error.kind)
    }
}

impl From<FollowError> for CliError {
    fn from(error: FollowError) -> Self {
        let problem = Problem::of(&error);
        match error {
            FollowError::Store { source, .. } => store(problem, source.kind),
        }
    }
}

impl From<IdentityError> for CliError {
    fn from(error: IdentityError) -> Self {
        let problem = Problem::of(&error);
        match error {
            IdentityError::File { .. } => Self::new(Exit::Request, problem),
            IdentityError::Certificate { .. } => Self::new(Exit::Request, problem)
                .hint("remove the directory `identity` in the state directory: another key is made"),
            IdentityError::Key(_) | IdentityError::Pair(_) => Self::new(Exit::Internal, problem),
        }
    }
}

impl From<ConnectError> for CliError {
    fn from(error: ConnectError) -> Self {
        let problem = Problem::of(&error);
        match error {
            ConnectError::Store(error) => error.into(),
            ConnectError::NoIdentity { .. } => Self::new(Exit::Unreachable, problem)
                .hint("the machine may still be booting, or it accepts no connections (--ingress none)"),
            ConnectError::Unreachable { .. } => Self::new(Exit::Unreachable, problem)
                .hint("the machine's network may be closed to this computer (--ingress); logs and status work without it"),
            ConnectError::Refused { .. } => Self::new(Exit::Unreachable, problem)
                .hint("wait some seconds and run the command again: agents look for new certificates now and then"),
            ConnectError::WrongCertificate { .. } => Self::new(Exit::Unreachable, problem)
                .hint("another machine may have taken the address over; run the command again"),
            ConnectError::VersionMismatch { .. } => Self::new(Exit::Unreachable, problem)
                .hint("use the version of tpi-controller that submitted the task"),
            ConnectError::Identity { .. } => Self::new(Exit::Unreachable, problem),
        }
    }
}

impl From<CallError> for CliError {
    fn from(error: CallError) -> Self {
        let problem = Problem::of(&error);
        match error {
            CallError::Broken(_) => {
                Self::new(Exit::Unreachable, problem).hint("run the command again: it connects anew")
            }
            CallError::Ending => Self::new(Exit::Unreachable, problem),
            CallError::Refused(_) => Self::new(Exit::Request, problem),
            CallError::Failed(_) => Self::new(Exit::Unreachable, problem),
        }
    }
}

impl From<StreamError> for CliError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Call(error) => error.into(),
            StreamError::Local { ref source, .. } if source.kind() == std::io::ErrorKind::BrokenPipe => {
                Self::BrokenPipe
            }
            StreamError::Local { .. } => Self::new(Exit::Request, Problem::of(&error)),
        }
    }
}

#[cfg(feature = "local")]
impl From<GroupError> for CliError {
    fn from(error: GroupError) -> Self {
        Self::new(Exit::Request, Problem::of(&error))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tpi_proto::id::TaskId;

    use super::*;
    use crate::spec::SpecError;

    #[test]
    fn a_defect_asks_to_be_reported_and_leftovers_name_the_command_that_removes_them() {
        let error = |kind| {
            let task = TaskId::deterministic("test").ok();
            let message = "removing machines".to_owned();
            let source = Some("timed out".into());
            CliError::from(EngineError { kind, message, task, hints: Vec::new(), source })
        };
        insta::assert_snapshot!(error(ErrorKind::LeftBehind).render(&|_, text| text.to_owned()), @r"
        error: removing machines
          caused by: timed out
        hint: something may be left behind; this removes it, or says what is left: `tpi-controller destroy tpi-test-3z4xlzwq-3u0vweb4`
        ");
        let kinds = [
            ErrorKind::User,
            ErrorKind::CloudRefused,
            ErrorKind::Unreachable,
            ErrorKind::LeftBehind,
            ErrorKind::NotFound,
            ErrorKind::Unverified,
            ErrorKind::Internal,
        ];
        let codes: BTreeSet<u8> = kinds.map(|kind| error(kind).exit().code()).into();
        assert_eq!(codes, BTreeSet::from([1, 3, 4, 6, 7, 8, 70]));
    }

    #[test]
    fn hints_can_be_copied() {
        let error = CliError::text(Exit::NotFound, "no").hint("run `tpi-controller list`");
        let error = error.with_program(PROGRAM, "tpi-controller --state-dir /x");
        assert!(error.hints_at("`tpi-controller --state-dir /x list`"));
    }

    #[test]
    fn mistakes_name_the_flag() {
        let errors = SpecErrors(vec![SpecError {
            field: Field::Output,
            value: Some("../x".to_owned()),
            cause: "lies outside the work directory".to_owned(),
            hint: "choose a path below it".to_owned(),
        }]);
        insta::assert_snapshot!(CliError::from(errors).render(&|_, text| text.to_owned()), @r#"
        error: --results "../x": lies outside the work directory
          hint: choose a path below it
        "#);
    }
}
