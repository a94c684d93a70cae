//! The arithmetic of an outer step with its size, from which virtual time follows.
//!
//! Owns how many bytes a task goes over. Knows nothing of engines, time or links.

use crate::compute::Fault;
use trestle_model::outer::Outer;
use trestle_protocol::sync::task::{SyncDone, SyncTask};
use trestle_settings::outer;

/// Carries out a task that needs no engine; gives its answer, and how many bytes it went over.
///
/// # Errors
/// What this replica itself has got wrong; what others have is part of the answer.
///
/// # Panics
/// If asked for a snapshot or an adoption, which need what computes.
pub fn carry_out(state: &mut Outer, task: SyncTask) -> Result<(SyncDone, u64), Fault> {
    let whole = 4 * state.layout().elements() as u64;
    let bytes = match &task {
        SyncTask::Reduce { contributions, .. } => {
            contributions.iter().map(|part| part.bytes.len() as u64).sum()
        }
        SyncTask::Restore { .. } => 0,
        SyncTask::Snapshot { .. }
        | SyncTask::Encode { .. }
        | SyncTask::Stage { .. }
        | SyncTask::Commit { .. }
        | SyncTask::Adopt { .. } => whole,
    };
    let done = outer::carry_out(state, task).map_err(|error| Fault(error.to_string()))?;
    Ok((done, bytes))
}
