//! What can go wrong before a node runs, or under it.

use std::io;

use trestle_net::{BindError, DialError};
use trestle_protocol::durable::StateError;

use crate::directory::DirectoryError;
use crate::state::StateFileError;

/// Why a node could not start, or had to stop without an outcome.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The run's directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The socket cannot be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The coordinator cannot be reached, or refuses.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The coordinator's state file cannot be used.
    #[error(transparent)]
    StateFile(#[from] StateFileError),
    /// The coordinator's state does not belong to the run.
    #[error(transparent)]
    State(#[from] StateError),
    /// There is a state already, and it was not asked to be continued.
    #[error("directory {} holds a run that was begun before", .0.display())]
    Begun(std::path::PathBuf),
    /// There is no state to continue.
    #[error("directory {} holds no run that could be continued", .0.display())]
    NothingToResume(std::path::PathBuf),
    /// The event log cannot be written.
    #[error("cannot write the event log: {0}")]
    EventLog(io::Error),
    /// The compute thread cannot be started.
    #[error("cannot start the compute thread: {0}")]
    Thread(io::Error),
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] trestle_model::device::DeviceError),
}

impl NodeError {
    /// Says what to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            NodeError::Directory(error) => error.hint().to_owned(),
            NodeError::Bind(error) => error.hint().to_owned(),
            NodeError::Dial(error) => error.hint(),
            NodeError::StateFile(error) => error.hint().to_owned(),
            NodeError::State(StateError::OtherRun { .. }) => {
                "continue with the run file, data and overrides it was begun with, or name another `--dir`"
                    .to_owned()
            }
            NodeError::State(StateError::Unreadable { .. }) => {
                "restore the state file from a backup, or begin anew in another `--dir`".to_owned()
            }
            NodeError::Begun(_) => "continue it with `--resume`, or begin anew in another `--dir`".to_owned(),
            NodeError::NothingToResume(_) => {
                "leave `--resume` out, or name the directory of the run with `--dir`".to_owned()
            }
            NodeError::EventLog(_) => "free some space on the disk".to_owned(),
            NodeError::Thread(_) => "raise the limit on threads (`ulimit -u`)".to_owned(),
            NodeError::Device(error) => return error.hint(),
        })
    }
}
