//! Why a command was not done: one line what, one line fix, a stable code and exit code.

use std::{fmt, io::Write, process::ExitCode};

use bearerd_admin::wire::Problem;

/// Why a command was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CliError {
    exit: Exit,
    /// Stable; the admin API's own codes pass through.
    code: String,
    what: String,
    fix: String,
    request_id: Option<String>,
}

/// The exit codes, as every client command's help lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Conflict = 4,
    Refused = 5,
    Unreachable = 6,
}

impl CliError {
    pub(crate) fn new(exit: Exit, code: &str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { exit, code: code.to_owned(), what: what.into(), fix: fix.into(), request_id: None }
    }

    pub(crate) fn usage(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "usage", what, fix)
    }

    /// What the admin API said.
    pub(crate) fn from_problem(problem: Problem) -> Self {
        let exit = match problem.status {
            400 | 413 | 415 | 422 => Exit::Usage,
            401 | 403 => Exit::Refused,
            404 => Exit::NotFound,
            409 | 412 => Exit::Conflict,
            _ => Exit::Failed,
        };
        Self {
            exit,
            code: problem.code,
            what: problem.detail,
            fix: problem.fix,
            request_id: Some(problem.request_id).filter(|id| !id.is_empty()),
        }
    }

    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.exit as u8)
    }

    #[cfg(test)]
    pub(crate) fn code_and_exit(&self) -> (&str, Exit) {
        (&self.code, self.exit)
    }

    /// Prints the error on standard error.
    pub(crate) fn print(&self) {
        // Nobody is left to tell where standard error is closed.
        let _ = writeln!(std::io::stderr(), "{self}");
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {} ({})", self.what.trim_end_matches('.'), self.code)?;
        if !self.fix.is_empty() {
            write!(f, "\n  fix: {}", self.fix)?;
        }
        match &self.request_id {
            Some(id) => write!(f, "\n  request id: {id}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for CliError {}
