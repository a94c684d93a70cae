//! The arithmetic of an outer step, as every driver carries it out on one replica's state.
//!
//! Owns the way from the core's task to the model's call and back, and who is at fault when a call is refused. Decides
//! nothing, and does not know how long anything takes.

use trestle_model::outer::{Outer, OuterError, ReduceError};
use trestle_protocol::ids::{Digest, ReplicaId};
use trestle_protocol::sync::blob::Blob;
use trestle_protocol::sync::task::{Contribution, Counted, SyncDone, SyncTask};

/// What this replica itself has got wrong.
#[derive(Debug, thiserror::Error)]
pub enum OuterFault {
    /// In its own state or contribution.
    #[error(transparent)]
    Outer(#[from] OuterError),
    /// In what it was told to reduce.
    #[error(transparent)]
    Reduce(#[from] ReduceError),
}

impl OuterFault {
    /// Returns advice for a person, where there is some.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            OuterFault::Outer(error) => error.hint(),
            OuterFault::Reduce(_) => None,
        }
    }
}

/// Carries out a task that needs no engine. The answer's time is left at 0, for the driver to fill in.
///
/// # Errors
/// What this replica itself has got wrong; what others have is part of the answer.
///
/// # Panics
/// If asked for a snapshot or an adoption, which need what computes.
pub fn carry_out(outer: &mut Outer, task: SyncTask) -> Result<SyncDone, OuterFault> {
    let took = Default::default();
    Ok(match task {
        SyncTask::Encode { outer: step, shares } => {
            let encoded = outer.encode(&shares)?;
            let shards = encoded.into_iter().map(|bytes| Blob::new(bytes.into())).collect();
            SyncDone::Encoded { outer: step, shares, shards, took }
        }
        SyncTask::Reduce { round, shares, shard, contributions } => {
            let result = reduce(outer, &shares, shard, &contributions)?;
            SyncDone::Reduced { round, shard, result, took }
        }
        SyncTask::Stage { round, shares, results, counted } => {
            if counted == Counted::Out {
                (0..results.len()).for_each(|shard| outer.leave_out(shard));
            }
            let results: Vec<&[u8]> = results.iter().map(|result| &result[..]).collect();
            let result = match outer.stage(&shares, &results) {
                Ok(digest) => Ok(Digest(digest)),
                Err(error @ OuterError::Result { shard, .. }) => {
                    Err((u16::try_from(shard).unwrap_or(u16::MAX), error.to_string()))
                }
                Err(error) => return Err(error.into()),
            };
            SyncDone::Staged { round, result, took }
        }
        SyncTask::Commit { outer: step } => {
            outer.commit()?;
            SyncDone::Committed { outer: step, took }
        }
        SyncTask::Restore { outer: step } => {
            outer.restore();
            SyncDone::Restored { outer: step, took }
        }
        SyncTask::Snapshot { .. } | SyncTask::Adopt { .. } => {
            panic!("the driver gives snapshots and adoptions to what computes")
        }
    })
}

type Reduced = Result<Blob, (ReplicaId, String)>;

fn reduce(
    outer: &Outer,
    shares: &[u32],
    shard: u16,
    contributions: &[Contribution],
) -> Result<Reduced, ReduceError> {
    let parts: Vec<(u64, &[u8])> = contributions.iter().map(|part| (part.weight, &part.bytes[..])).collect();
    match outer.reduce(shares, usize::from(shard), &parts) {
        Ok(bytes) => Ok(Ok(Blob::new(bytes.into()))),
        Err(ReduceError::Part { part, reason, .. }) => {
            Ok(Err((contributions[part].from, reason.to_string())))
        }
        Err(error @ (ReduceError::Weights { .. } | ReduceError::Shard { .. } | ReduceError::Shares(_))) => {
            Err(error)
        }
    }
}
