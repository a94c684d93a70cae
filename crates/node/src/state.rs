//! The coordinator's state on disk: one SQLite file, so that an operator can look into it.
//!
//! Owns the table and its durability. Knows nothing of what the bytes mean.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, params};

/// The open state file.
pub struct State {
    path: PathBuf,
    connection: Connection,
}

/// Why the state file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} the coordinator's state in {}: {source}", .path.display())]
pub struct StateFileError {
    doing: &'static str,
    path: PathBuf,
    source: rusqlite::Error,
}

impl StateFileError {
    /// Says what to do about it.
    pub fn hint(&self) -> &'static str {
        "check free space and permissions; `trestle train` without `--resume` begins anew in another `--dir`"
    }
}

/// The key under which the coordinator's state is stored.
const COORDINATOR: &str = "coordinator";

impl State {
    /// Opens the file, making it if it is missing.
    pub fn open(path: &Path) -> Result<Self, StateFileError> {
        let error = |source| StateFileError { doing: "open", path: path.to_path_buf(), source };
        let connection = Connection::open(path).map_err(error)?;
        // A commit is on disk when it returns: what a message asserts must survive a power cut.
        connection.pragma_update(None, "journal_mode", "WAL").map_err(error)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(error)?;
        connection
            .execute(
                "CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
                [],
            )
            .map_err(error)?;
        Ok(Self { path: path.to_path_buf(), connection })
    }

    /// Reads what was stored last.
    pub fn load(&self) -> Result<Option<Vec<u8>>, StateFileError> {
        self.connection
            .query_row("SELECT value FROM state WHERE name = ?1", [COORDINATOR], |row| row.get(0))
            .optional()
            .map_err(|source| StateFileError { doing: "read", path: self.path.clone(), source })
    }

    /// Stores, durably, in place of what was there.
    pub fn store(&self, value: &[u8]) -> Result<(), StateFileError> {
        self.connection
            .execute(
                "INSERT OR REPLACE INTO state (name, value) VALUES (?1, ?2)",
                params![COORDINATOR, value],
            )
            .map(|_| ())
            .map_err(|source| StateFileError { doing: "write", path: self.path.clone(), source })
    }

    /// Forgets what was stored: the run begins anew.
    pub fn clear(&self) -> Result<(), StateFileError> {
        self.connection
            .execute("DELETE FROM state WHERE name = ?1", [COORDINATOR])
            .map(|_| ())
            .map_err(|source| StateFileError { doing: "clear", path: self.path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_survives_a_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.sqlite");
        assert_eq!(State::open(&path).unwrap().load().unwrap(), None);
        State::open(&path).unwrap().store(b"one").unwrap();
        State::open(&path).unwrap().store(b"two").unwrap();
        assert_eq!(State::open(&path).unwrap().load().unwrap().as_deref(), Some(&b"two"[..]));
        State::open(&path).unwrap().clear().unwrap();
        assert_eq!(State::open(&path).unwrap().load().unwrap(), None);
    }

    #[test]
    fn a_file_that_is_no_state_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.sqlite");
        std::fs::write(&path, vec![7_u8; 4096]).unwrap();
        let error = State::open(&path).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("state.sqlite"), "{error}");
    }
}
