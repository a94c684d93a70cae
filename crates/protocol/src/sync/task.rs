//! What a replica's driver computes for an outer step, and what it answers.
//!
//! Owns the two vocabularies. Knows nothing of how the arithmetic is done.

use crate::event::TaskKind;
use crate::ids::{Digest, OuterStep, ReplicaId};
use crate::sync::blob::Blob;
use crate::sync::say::Round;
use crate::time::Span;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;

/// A contribution with its weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contribution {
    /// Whose.
    pub from: ReplicaId,
    /// Microbatches behind it.
    pub weight: u64,
    /// Encoded by the codec of the run.
    pub bytes: Bytes,
}

/// Whether a replica's contribution is part of the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// It is.
    In,
    /// The round left it out: all of it stays owed, whatever is staged later, until it is encoded again.
    Out,
}

/// Something for the driver to compute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncTask {
    /// Copy the weights (or the mean gradient) as they are now; answered by `Snapshotted`. Compute stands still for it.
    Snapshot {
        /// For which outer step.
        outer: OuterStep,
        /// Microbatches in the sum, over which a mean gradient is taken; with 0 it is zero everywhere.
        microbatches: u32,
    },
    /// Encode this replica's contribution, shard by shard; answered by `Encoded`.
    Encode {
        /// For which outer step.
        outer: OuterStep,
        /// The cut, as in [`crate::sync::say::Begin::shares`].
        shares: Vec<u32>,
    },
    /// Reduce a shard; answered by `Reduced`.
    Reduce {
        /// The round.
        round: Round,
        /// The cut.
        shares: Vec<u32>,
        /// Which shard.
        shard: u16,
        /// Its contributions, in replica order.
        contributions: Vec<Contribution>,
    },
    /// Make the weights that a commit would make current, beside those that are; answered by `Staged`.
    Stage {
        /// The round.
        round: Round,
        /// The cut.
        shares: Vec<u32>,
        /// The reduced shards, in order.
        results: Vec<Bytes>,
        /// Whether this replica's contribution is in them; else all of it stays owed.
        counted: Counted,
    },
    /// Make what is staged current: committed weights, momentum and error feedback together; answered by `Committed`.
    Commit {
        /// Which outer step.
        outer: OuterStep,
    },
    /// Forget snapshot and staging; answered by `Restored`.
    Restore {
        /// Which outer step.
        outer: OuterStep,
    },
    /// Train on from the committed weights, with what was learnt since the snapshot; answered by `Adopted`. Compute stands
    /// still for it.
    Adopt {
        /// Which outer step.
        outer: OuterStep,
    },
}

/// What came of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncDone {
    /// The snapshot is taken.
    Snapshotted {
        /// For which outer step.
        outer: OuterStep,
        /// How long compute stood still.
        took: Span,
    },
    /// The contribution is encoded.
    Encoded {
        /// For which outer step.
        outer: OuterStep,
        /// The cut.
        shares: Vec<u32>,
        /// The encoded shards.
        shards: Vec<Blob>,
        /// How long it took.
        took: Span,
    },
    /// A shard is reduced, or a contribution was not what it should be.
    Reduced {
        /// The round.
        round: Round,
        /// Which shard.
        shard: u16,
        /// The result, or whose contribution is flawed and why.
        result: Result<Blob, (ReplicaId, String)>,
        /// How long it took.
        took: Span,
    },
    /// The weights are staged, or a result was not what it should be.
    Staged {
        /// The round.
        round: Round,
        /// Digest of the staged weights, or which shard is flawed and why.
        result: Result<Digest, (u16, String)>,
        /// How long it took.
        took: Span,
    },
    /// What was staged is current.
    Committed {
        /// Which outer step.
        outer: OuterStep,
        /// How long it took.
        took: Span,
    },
    /// Snapshot and staging are forgotten.
    Restored {
        /// Which outer step.
        outer: OuterStep,
        /// How long it took.
        took: Span,
    },
    /// The committed weights are in place.
    Adopted {
        /// Which outer step.
        outer: OuterStep,
        /// How long compute stood still.
        took: Span,
    },
}

impl SyncDone {
    /// Gives the answer with how long it took.
    pub fn timed(mut self, span: Span) -> Self {
        match &mut self {
            SyncDone::Snapshotted { took, .. }
            | SyncDone::Encoded { took, .. }
            | SyncDone::Reduced { took, .. }
            | SyncDone::Staged { took, .. }
            | SyncDone::Committed { took, .. }
            | SyncDone::Restored { took, .. }
            | SyncDone::Adopted { took, .. } => *took = span,
        }
        self
    }

    /// Returns which computation it was, and how long it took.
    pub fn task(&self) -> (TaskKind, Span) {
        match self {
            SyncDone::Snapshotted { took, .. } => (TaskKind::Snapshot, *took),
            SyncDone::Encoded { took, .. } => (TaskKind::Encode, *took),
            SyncDone::Reduced { took, .. } => (TaskKind::Reduce, *took),
            SyncDone::Staged { took, .. } => (TaskKind::Stage, *took),
            SyncDone::Committed { took, .. } => (TaskKind::Commit, *took),
            SyncDone::Restored { took, .. } => (TaskKind::Restore, *took),
            SyncDone::Adopted { took, .. } => (TaskKind::Adopt, *took),
        }
    }
}
