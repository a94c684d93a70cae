//! The arithmetic of an outer step, as every driver carries it out on one replica's state.
//!
//! Owns the way from a task to its answer. Knows nothing of engines, time or links.

use crate::compute::Fault;
use trestle_model::outer::{Outer, OuterError, ReduceError};
use trestle_protocol::ids::{Digest, ReplicaId};
use trestle_protocol::sync::blob::Blob;
use trestle_protocol::sync::task::{Contribution, Counted, SyncDone, SyncTask};
use trestle_protocol::time::Span;

/// Carries out a task that needs no engine; gives its answer, and how many bytes it went over.
///
/// # Errors
/// What this replica itself has got wrong; what others have is part of the answer.
///
/// # Panics
/// If asked for a snapshot or an adoption, which need what computes.
pub fn carry_out(outer: &mut Outer, task: SyncTask) -> Result<(SyncDone, u64), Fault> {
    let (whole, took) = (4 * outer.layout().elements() as u64, Span(0));
    let fault = |error: OuterError| Fault(error.to_string());
    Ok(match task {
        SyncTask::Encode { outer: step, shares } => {
            let encoded = outer.encode(&shares).map_err(fault)?;
            let shards = encoded.into_iter().map(|bytes| Blob::new(bytes.into())).collect();
            (SyncDone::Encoded { outer: step, shares, shards, took }, whole)
        }
        SyncTask::Reduce { round, shares, shard, contributions } => {
            let bytes = contributions.iter().map(|part| part.bytes.len() as u64).sum();
            let result = reduce(outer, &shares, shard, &contributions)?;
            (SyncDone::Reduced { round, shard, result, took }, bytes)
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
                Err(error) => return Err(fault(error)),
            };
            (SyncDone::Staged { round, result, took }, whole)
        }
        SyncTask::Commit { outer: step } => {
            outer.commit().map_err(fault)?;
            (SyncDone::Committed { outer: step, took }, whole)
        }
        SyncTask::Restore { outer: step } => {
            outer.restore();
            (SyncDone::Restored { outer: step, took }, 0)
        }
        SyncTask::Snapshot { .. } | SyncTask::Adopt { .. } => {
            panic!("snapshots and adoptions need what computes")
        }
    })
}

type Reduced = Result<Blob, (ReplicaId, String)>;

fn reduce(
    outer: &Outer,
    shares: &[u32],
    shard: u16,
    contributions: &[Contribution],
) -> Result<Reduced, Fault> {
    let parts: Vec<(u64, &[u8])> = contributions.iter().map(|part| (part.weight, &part.bytes[..])).collect();
    match outer.reduce(shares, usize::from(shard), &parts) {
        Ok(bytes) => Ok(Ok(Blob::new(bytes.into()))),
        Err(ReduceError::Part { part, reason, .. }) => {
            Ok(Err((contributions[part].from, reason.to_string())))
        }
        Err(error @ (ReduceError::Weights { .. } | ReduceError::Shard { .. } | ReduceError::Shares(_))) => {
            Err(Fault(error.to_string()))
        }
    }
}

/// Writes into an answer how long it took.
pub fn timed(mut done: SyncDone, span: Span) -> SyncDone {
    match &mut done {
        SyncDone::Snapshotted { took, .. }
        | SyncDone::Encoded { took, .. }
        | SyncDone::Reduced { took, .. }
        | SyncDone::Staged { took, .. }
        | SyncDone::Committed { took, .. }
        | SyncDone::Restored { took, .. }
        | SyncDone::Adopted { took, .. } => *took = span,
    }
    done
}
