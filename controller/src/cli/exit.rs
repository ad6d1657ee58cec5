//! Exit codes: part of the interface, so a code never changes its meaning.

use std::fmt::Write as _;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It did what was asked; for an attached task: the script succeeded.
    Success,
    /// The request or the configuration is wrong.
    Request,
    /// The command line is wrong.
    Usage,
    /// The cloud refused: credentials, permissions, quota, capacity, no such machine.
    Cloud,
    /// The store or an agent cannot be reached.
    Unreachable,
    /// The task did not succeed.
    Task,
    /// Something may be left behind, or its absence cannot be proved.
    Leftovers,
    /// There is no such task.
    NotFound,
    /// Local files differ from what was to be written, or results could not be verified.
    LocalFiles,
    /// A defect of this program.
    Internal,
    /// Detached by Ctrl-C or SIGTERM; the task goes on.
    Detached,
    /// The script's (or the remote command's) own status, passed on.
    Passed(u8),
}

impl Exit {
    /// Number given to the operating system.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Request => 1,
            Self::Usage => 2,
            Self::Cloud => 3,
            Self::Unreachable => 4,
            Self::Task => 5,
            Self::Leftovers => 6,
            Self::NotFound => 7,
            Self::LocalFiles => 8,
            Self::Internal => 70,
            Self::Detached => 130,
            Self::Passed(code) => code,
        }
    }

    /// The code that stands for a process ended by a signal, as shells have it.
    #[must_use]
    pub fn from_signal(signal: i32) -> Self {
        Self::Passed(u8::try_from(128 + signal.clamp(0, 127)).unwrap_or(u8::MAX))
    }

    /// The code of a process; one that no operating system can report becomes 255.
    #[must_use]
    pub fn from_process(code: i32) -> Self {
        Self::Passed(u8::try_from(code).unwrap_or(u8::MAX))
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// The table as shown by `--help`.
pub const TABLE: [(Exit, &str); 11] = [
    (Exit::Success, "done; for an attached task: the script succeeded"),
    (Exit::Request, "the request or the configuration is wrong"),
    (Exit::Usage, "the command line is wrong"),
    (Exit::Cloud, "the cloud refused (credentials, permissions, quota, capacity, machine)"),
    (Exit::Unreachable, "the store or an agent cannot be reached"),
    (Exit::Task, "the task did not succeed"),
    (Exit::Leftovers, "something may be left behind, or its absence cannot be proved"),
    (Exit::NotFound, "no such task"),
    (Exit::LocalFiles, "local files differ and were kept, or results could not be verified"),
    (Exit::Internal, "a defect of this program"),
    (Exit::Detached, "detached by Ctrl-C or SIGTERM; the task goes on"),
];

/// Text of [`TABLE`] for the end of the help.
#[must_use]
pub fn table() -> String {
    let mut text = String::from("Exit codes:\n");
    for (exit, meaning) in TABLE {
        // Writing to a `String` cannot fail.
        let _ = writeln!(text, "  {:>3}  {meaning}", exit.code());
    }
    text.push_str("  With --exit-with-task-code the script's own code is passed on (128 + N for signal N).");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_signals_fit() {
        let mut codes: Vec<u8> = TABLE.iter().map(|(exit, _)| exit.code()).collect();
        codes.dedup();
        assert_eq!(codes.len(), TABLE.len());
        assert_eq!(Exit::from_signal(9).code(), 137);
        assert_eq!(Exit::from_signal(-1).code(), 128);
        assert_eq!(Exit::from_process(256).code(), 255);
        assert_eq!(Exit::from_process(3).code(), 3);
    }
}
