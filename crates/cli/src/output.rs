//! A report on stdout, in words or as JSON.
//!
//! Owns how it is written. May not know any report.

use std::fmt::Display;
use std::io::Write;

use serde::Serialize;

use crate::failure::Failure;

/// How a report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Words,
    /// One line of JSON.
    Json,
}

/// Prints a report. A reader that has seen enough, such as `head`, may close the pipe: that is no failure.
pub(crate) fn print<R: Display + Serialize>(report: &R, format: Format) -> Result<(), Failure> {
    let text = match format {
        Format::Words => report.to_string(),
        Format::Json => serde_json::to_string(report).map_err(Failure::failed)? + "\n",
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("cannot write to stdout: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
