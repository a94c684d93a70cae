//! The coordinator's state on disk: one SQLite file, so that an operator can look into it.
//!
//! Owns the tables and their durability: the state, which only the core can read, and the ledger, which is for people.
//! Knows nothing of what the bytes mean.
//!
//! ```text
//! state   name, value                                        one row: what the core goes on from
//! ledger  peer, stage, trained, duplicate, lost, redone      microbatches; a row for each peer and stage
//! ```

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};
use trestle_protocol::accounts::{Account, Sums};
use trestle_protocol::ids::{PeerId, StageId};

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

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS ledger (
        peer TEXT NOT NULL, stage INTEGER NOT NULL,
        trained INTEGER NOT NULL, duplicate INTEGER NOT NULL, lost INTEGER NOT NULL, redone INTEGER NOT NULL,
        PRIMARY KEY (stage, peer)
    ) WITHOUT ROWID;
";

/// How long a reader waits for a writer of the same file, and the other way round.
const BUSY_WAIT: std::time::Duration = std::time::Duration::from_secs(5);

impl State {
    /// Opens the file, making it if it is missing.
    pub fn open(path: &Path) -> Result<Self, StateFileError> {
        let error = |source| StateFileError { doing: "open", path: path.to_path_buf(), source };
        let connection = Connection::open(path).map_err(error)?;
        connection.busy_timeout(BUSY_WAIT).map_err(error)?;
        // A commit is on disk when it returns: what a message asserts must survive a power cut.
        connection.pragma_update(None, "journal_mode", "WAL").map_err(error)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(error)?;
        connection.execute_batch(TABLES).map_err(error)?;
        Ok(Self { path: path.to_path_buf(), connection })
    }

    /// Opens the file of a run that may be running, to look into it.
    pub fn look(path: &Path) -> Result<Self, StateFileError> {
        let error = |source| StateFileError { doing: "open", path: path.to_path_buf(), source };
        // Not strictly for reading: the first reader after a kill has to take in the log of the last writer.
        let connection =
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(error)?;
        connection.busy_timeout(BUSY_WAIT).map_err(error)?;
        Ok(Self { path: path.to_path_buf(), connection })
    }

    /// Reads what was stored last.
    pub fn load(&self) -> Result<Option<Vec<u8>>, StateFileError> {
        self.connection
            .query_row("SELECT value FROM state WHERE name = ?1", [COORDINATOR], |row| row.get(0))
            .optional()
            .map_err(|source| StateFileError { doing: "read", path: self.path.clone(), source })
    }

    /// Stores state and ledger, durably and both together, in place of what was there.
    pub fn store(&mut self, state: &[u8], accounts: &[Account]) -> Result<(), StateFileError> {
        let path = self.path.clone();
        self.write(state, accounts).map_err(|source| StateFileError { doing: "write", path, source })
    }

    fn write(&mut self, state: &[u8], accounts: &[Account]) -> rusqlite::Result<()> {
        let both = self.connection.transaction()?;
        both.execute(
            "INSERT OR REPLACE INTO state (name, value) VALUES (?1, ?2)",
            params![COORDINATOR, state],
        )?;
        both.execute("DELETE FROM ledger", [])?;
        {
            let mut row = both.prepare_cached("INSERT INTO ledger VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
            for Account { peer, stage, sums } in accounts {
                let Sums { trained, duplicate, lost, redone } = *sums;
                let [trained, duplicate, lost, redone] =
                    [trained, duplicate, lost, redone].map(u64::cast_signed);
                row.execute(params![peer.to_hex(), stage.0, trained, duplicate, lost, redone])?;
            }
        }
        both.commit()
    }

    /// Reads the ledger as it was stored last, by stage and peer.
    pub fn ledger(&self) -> Result<Vec<Account>, StateFileError> {
        let read = || {
            let columns =
                "SELECT peer, stage, trained, duplicate, lost, redone FROM ledger ORDER BY stage, peer";
            self.connection.prepare(columns)?.query_map([], account)?.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|source| StateFileError { doing: "read", path: self.path.clone(), source })
    }

    /// Forgets what was stored: the run begins anew.
    pub fn clear(&self) -> Result<(), StateFileError> {
        self.connection
            .execute_batch("BEGIN; DELETE FROM state; DELETE FROM ledger; COMMIT")
            .map_err(|source| StateFileError { doing: "clear", path: self.path.clone(), source })
    }
}

fn account(row: &Row<'_>) -> rusqlite::Result<Account> {
    let hex: String = row.get(0)?;
    let unfit = |error| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error);
    let peer: PeerId =
        serde_json::from_value(serde_json::Value::String(hex)).map_err(|error| unfit(Box::new(error)))?;
    let sum = |column| row.get(column).map(i64::cast_unsigned);
    let sums = Sums { trained: sum(2)?, duplicate: sum(3)?, lost: sum(4)?, redone: sum(5)? };
    Ok(Account { peer, stage: StageId(row.get(1)?), sums })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(id: u8, stage: u16, trained: u64) -> Account {
        let sums = Sums { trained, duplicate: 1, lost: 2, redone: 3 };
        Account { peer: PeerId([id; 32]), stage: StageId(stage), sums }
    }

    #[test]
    fn state_and_ledger_are_replaced_together_and_can_be_looked_into_while_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.sqlite");
        let mut writer = State::open(&path).unwrap();
        writer.store(b"one", &[some(1, 0, 5), some(2, 0, 6)]).unwrap();
        let reader = State::look(&path).unwrap();
        assert_eq!(reader.ledger().unwrap(), [some(1, 0, 5), some(2, 0, 6)]);
        writer.store(b"two", &[some(3, 1, 7), some(1, 0, 9)]).unwrap();
        assert_eq!(reader.ledger().unwrap(), [some(1, 0, 9), some(3, 1, 7)], "by stage and peer");
        // Half of a store is none of it: the second row of a peer and stage is refused.
        assert!(writer.store(b"three", &[some(1, 0, 1), some(1, 0, 1)]).is_err());
        assert_eq!(reader.load().unwrap().as_deref(), Some(&b"two"[..]));
        assert_eq!(reader.ledger().unwrap().len(), 2);
        assert!(State::look(&folder.path().join("none.sqlite")).is_err(), "looking makes no file");
    }

    #[test]
    fn what_is_stored_survives_a_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.sqlite");
        assert_eq!(State::open(&path).unwrap().load().unwrap(), None);
        State::open(&path).unwrap().store(b"one", &[]).unwrap();
        State::open(&path).unwrap().store(b"two", &[]).unwrap();
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
