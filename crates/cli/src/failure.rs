//! How the program ends when it does not end well: an error, a blank line, a hint, and an exit code.
//!
//! Owns the words around errors. May not know what any command does.

use std::fmt;
use std::process::ExitCode;

use trestle_model::checkpoint::CheckpointError;
use trestle_node::error::NodeError;

use crate::run_file::error::RunFileError;

/// Whose fault it is, as scripts see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// What was asked for was understood, and did not work out.
    Failed,
    /// What was asked for makes no sense: arguments, run files, tickets.
    Misused,
}

/// Why the program ends early.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    error: String,
    hint: Option<String>,
}

impl Failure {
    /// Something did not work out.
    pub(crate) fn failed(error: impl fmt::Display) -> Self {
        Self { exit: Exit::Failed, error: error.to_string(), hint: None }
    }

    /// Something was asked for that makes no sense.
    pub(crate) fn misused(error: impl fmt::Display) -> Self {
        Self { exit: Exit::Misused, error: error.to_string(), hint: None }
    }

    /// Adds what to do about it.
    pub(crate) fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// Returns the code for the operating system.
    pub(crate) fn code(&self) -> ExitCode {
        match self.exit {
            Exit::Failed => ExitCode::from(1),
            Exit::Misused => ExitCode::from(2),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.error)?;
        match &self.hint {
            Some(hint) => write!(f, "\n\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl From<RunFileError> for Failure {
    fn from(error: RunFileError) -> Self {
        Self::misused(&error).hint(error.hint())
    }
}

impl From<NodeError> for Failure {
    fn from(error: NodeError) -> Self {
        let failure = match &error {
            NodeError::Begun(_) | NodeError::NothingToResume(_) => Self::misused(&error),
            NodeError::Directory(_)
            | NodeError::Bind(_)
            | NodeError::Dial(_)
            | NodeError::StateFile(_)
            | NodeError::State(_)
            | NodeError::EventLog(_)
            | NodeError::Thread(_)
            | NodeError::Device(_) => Self::failed(&error),
        };
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl From<CheckpointError> for Failure {
    fn from(error: CheckpointError) -> Self {
        let failure = Self::failed(&error);
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}
