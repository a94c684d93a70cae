//! Everything that can be wrong with a run file, said so that its author can mend it.
//!
//! Owns the messages. May not know how a file is read or checked.

use std::fmt;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A line of the run file, counted from 1.
    Line {
        /// The file.
        file: PathBuf,
        /// The line.
        line: usize,
    },
    /// The run file says nothing of it.
    File(PathBuf),
    /// An option on the command line, as it was written.
    Option(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Line { file, line } => write!(f, "{}:{line}", file.display()),
            Origin::File(file) => file.display().fmt(f),
            Origin::Option(text) => write!(f, "`{text}`"),
        }
    }
}

/// Why a run file, with the options given beside it, describes no run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunFileError {
    /// The file cannot be read.
    #[error("cannot read run file {}: {reason}", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system said.
        reason: std::io::Error,
    },
    /// The file is no TOML.
    #[error("{origin}: not TOML: {message}")]
    Syntax {
        /// Where.
        origin: Origin,
        /// What the parser said.
        message: String,
    },
    /// There is no such field or section, or its value is of the wrong type.
    #[error("{origin}: {message}")]
    Shape {
        /// Where.
        origin: Origin,
        /// Which field, what it holds, and what is allowed.
        message: String,
    },
    /// A field that has no default is not there.
    #[error("{origin}: `{field}` is missing, expected {allowed}")]
    Missing {
        /// The file.
        origin: Origin,
        /// The field.
        field: &'static str,
        /// What it may hold.
        allowed: String,
    },
    /// A field holds what it may not.
    #[error("{origin}: `{field}` is {value}, expected {allowed}")]
    Value {
        /// Where.
        origin: Origin,
        /// The field.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        allowed: String,
        /// What to do.
        hint: String,
    },
    /// A `--set` is not a field and a value.
    #[error("`--set {text}` is not of the form key=value")]
    NotAnAssignment {
        /// What was written.
        text: String,
    },
}

impl RunFileError {
    /// Says what to do about it.
    pub(crate) fn hint(&self) -> String {
        match self {
            RunFileError::Unreadable { .. } => "give the path of a run file, such as runs/tiny.toml".into(),
            RunFileError::Syntax { .. } => {
                "a run file holds lines such as `width = 256` below headings such as `[model]`; text stands in \"quotes\"".into()
            }
            RunFileError::Shape { .. } => "docs/run-file.md lists every field with what it may hold".into(),
            RunFileError::Missing { field, .. } => match field.split_once('.') {
                Some((section, key)) => format!("add a line `{key} = ...` below the heading `[{section}]`"),
                None => format!("add a line `{field} = ...` at the top of the file"),
            },
            RunFileError::Value { hint, .. } => hint.clone(),
            RunFileError::NotAnAssignment { .. } => "for instance: --set boundary.width=32".into(),
        }
    }
}
