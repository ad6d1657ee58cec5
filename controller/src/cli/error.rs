//! What goes wrong, as people and programs are told: what was being done to what, the cause, and what to do
//! next. `mapping` is the one place that gives the errors of every layer their exit codes and hints.

use std::{error::Error, fmt::Write as _, io};

use anstyle::{AnsiColor, Style};
use serde::Serialize;
use tpi_proto::fault;

use super::{exit::Exit, ui::Envelope};

mod mapping;

/// The end of a command that did not succeed.
#[derive(Debug)]
pub enum CliError {
    /// Whoever reads our stdout has gone: nothing more to do, and nobody to tell.
    BrokenPipe,
    /// Something to report.
    Report(Box<Report>),
}

/// An exit code, one or more problems, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    #[serde(skip)]
    exit: Exit,
    errors: Vec<Problem>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hints: Vec<String>,
}

/// One problem, with the chain of its causes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    message: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    causes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Problem {
    /// From an error and its sources.
    #[must_use]
    pub fn of(error: &dyn Error) -> Self {
        Self { message: error.to_string(), causes: fault::causes(error), hint: None }
    }

    /// From a text.
    #[must_use]
    pub fn text(message: impl Into<String>) -> Self {
        Self { message: message.into(), causes: Vec::new(), hint: None }
    }

    /// Message and causes in one line, for warnings.
    #[must_use]
    pub fn one_line(&self) -> String {
        std::iter::once(&self.message).chain(&self.causes).map(String::as_str).collect::<Vec<_>>().join(": ")
    }

    /// With what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// A text in which commands in backquotes call the program as it was called this time.
#[must_use]
pub fn as_called(text: &str, program: &str, called: &str) -> String {
    text.replace(&format!("`{program} "), &format!("`{called} "))
}

impl CliError {
    /// One problem.
    #[must_use]
    pub fn new(exit: Exit, problem: Problem) -> Self {
        Self::several(exit, vec![problem])
    }

    /// Several problems, found at once.
    #[must_use]
    pub fn several(exit: Exit, errors: Vec<Problem>) -> Self {
        Self::Report(Box::new(Report { exit, errors, hints: Vec::new() }))
    }

    /// A text.
    #[must_use]
    pub fn text(exit: Exit, message: impl Into<String>) -> Self {
        Self::new(exit, Problem::text(message))
    }

    /// A defect of this program.
    #[must_use]
    pub fn internal(doing: &str, error: &dyn Error) -> Self {
        let mut problem = Problem::of(error);
        problem.causes.insert(0, std::mem::replace(&mut problem.message, doing.to_owned()));
        Self::new(Exit::Internal, problem).hint("this is a defect of tpi-controller; please report it")
    }

    /// A file of the user's that cannot be read or written.
    #[must_use]
    pub fn file(doing: &str, path: &std::path::Path, error: &io::Error) -> Self {
        let problem = Problem {
            message: format!("{doing} {}", path.display()),
            causes: vec![error.to_string()],
            hint: None,
        };
        Self::new(Exit::Request, problem)
    }

    /// With one more cause, of the last problem.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<String>) -> Self {
        if let Self::Report(report) = &mut self
            && let Some(problem) = report.errors.last_mut()
        {
            problem.causes.push(cause.into());
        }
        self
    }

    /// With one more thing to do next; said once only.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Self::Report(report) = &mut self {
            let hint = hint.into();
            if !report.hints.contains(&hint) {
                report.hints.push(hint);
            }
        }
        self
    }

    /// With the program in hints called as it was called this time: a hint is there to be copied.
    #[must_use]
    pub fn with_program(mut self, program: &str, called: &str) -> Self {
        if let Self::Report(report) = &mut self
            && program != called
        {
            let problems = report.errors.iter_mut().filter_map(|problem| problem.hint.as_mut());
            for hint in report.hints.iter_mut().chain(problems) {
                *hint = as_called(hint, program, called);
            }
        }
        self
    }

    /// Whether one of the hints says so much.
    #[must_use]
    pub fn hints_at(&self, text: &str) -> bool {
        match self {
            Self::BrokenPipe => false,
            Self::Report(report) => report.hints.iter().any(|hint| hint.contains(text)),
        }
    }

    /// How the program ends.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            // As with `head`: whoever closed the pipe has had enough, which is no failure.
            Self::BrokenPipe => Exit::Success,
            Self::Report(report) => report.exit,
        }
    }

    /// For people.
    #[must_use]
    pub fn render(&self, paint: &dyn Fn(Style, &str) -> String) -> String {
        let Self::Report(report) = self else { return String::new() };
        let bold = |color: AnsiColor| color.on_default().bold();
        let error = paint(bold(AnsiColor::Red), "error:");
        let cause = paint(bold(AnsiColor::Red), "caused by:");
        let hint = paint(bold(AnsiColor::Cyan), "hint:");
        let mut text = String::new();
        // Writing to a `String` cannot fail.
        for problem in &report.errors {
            let _ = writeln!(text, "{error} {}", problem.message);
            for line in &problem.causes {
                let _ = writeln!(text, "  {cause} {line}");
            }
            if let Some(line) = &problem.hint {
                let _ = writeln!(text, "  {hint} {line}");
            }
        }
        for line in &report.hints {
            let _ = writeln!(text, "{hint} {line}");
        }
        text
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Envelope<'static, JsonReport> {
        let report = match self {
            Self::BrokenPipe => Report { exit: Exit::Success, errors: Vec::new(), hints: Vec::new() },
            Self::Report(report) => (**report).clone(),
        };
        Envelope::new("error", JsonReport { exit_code: report.exit.code(), report })
    }
}

/// The JSON shape of an error.
#[derive(Debug, Serialize)]
pub struct JsonReport {
    exit_code: u8,
    #[serde(flatten)]
    report: Report,
}

/// Failures of our own stdout and stderr; files of the user's are named with [`CliError::file`].
impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::BrokenPipe;
        }
        let mut problem = Problem::text("writing output");
        problem.causes.push(error.to_string());
        Self::new(Exit::Request, problem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("reading tasks/x/record.json")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("no route to host")]
    struct Inner;

    fn plain(error: &CliError) -> String {
        error.render(&|_, text| text.to_owned())
    }

    #[test]
    fn an_error_has_causes_and_hints() {
        let error = CliError::new(Exit::Unreachable, Problem::of(&Outer(Inner)))
            .hint("machines may be running: tpi-controller destroy x")
            .hint("machines may be running: tpi-controller destroy x");
        insta::assert_snapshot!(plain(&error), @r"
        error: reading tasks/x/record.json
          caused by: no route to host
        hint: machines may be running: tpi-controller destroy x
        ");
        insta::assert_json_snapshot!(error.json(), @r#"
        {
          "version": 1,
          "kind": "error",
          "exit_code": 4,
          "errors": [
            {
              "message": "reading tasks/x/record.json",
              "causes": [
                "no route to host"
              ]
            }
          ],
          "hints": [
            "machines may be running: tpi-controller destroy x"
          ]
        }
        "#);
    }

    #[test]
    fn all_problems_are_shown_at_once() {
        let error = CliError::several(
            Exit::Request,
            vec![
                Problem::text("timeout: 0 seconds").hint("leave it out for a day"),
                Problem::text("no script"),
            ],
        );
        insta::assert_snapshot!(plain(&error), @r"
        error: timeout: 0 seconds
          hint: leave it out for a day
        error: no script
        ");
    }

    #[test]
    fn a_reader_that_has_gone_is_no_failure() {
        let error = CliError::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(error.exit(), Exit::Success);
        assert_eq!(plain(&error), "");
    }
}
