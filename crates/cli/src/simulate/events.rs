//! The file of a simulated event log.
//!
//! Owns that it is new, and what is said where it cannot be written. May not know what is logged.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind};
use std::path::Path;

use crate::failure::Failure;

/// Makes the file.
///
/// # Errors
/// It exists already, or cannot be written.
pub(super) fn create(path: &Path) -> Result<BufWriter<File>, Failure> {
    let file = File::options().write(true).create_new(true).open(path).map_err(|error| {
        if error.kind() == ErrorKind::AlreadyExists {
            let error = format!("{} exists already, and a log is no place to write over", path.display());
            return Failure::misused(error).hint("name a new file, or remove that one first");
        }
        unwritable(path, &error)
    })?;
    Ok(BufWriter::new(file))
}

/// Says that it cannot be written.
pub(super) fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("cannot write the event log {}: {error}", path.display()))
        .hint("name a file in a folder that exists, may be written to, and has room")
}
