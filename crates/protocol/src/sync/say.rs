//! What replicas and the coordinator say to each other about an outer step.
//!
//! Owns the messages. Knows nothing of who decides what on hearing them.

use crate::ids::{Attempt, Digest, InnerStep, OuterStep, ReplicaId};
use crate::sync::blob::Manifest;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use core::fmt;
use serde::{Deserialize, Serialize};

/// Characters of a reason that are kept: enough for a sentence, too few to fill a log.
const REASON_CHARS_MAX: usize = 256;

/// Cuts a reason to a length at which many of them do no harm.
pub(crate) fn bounded(reason: &str) -> String {
    reason.chars().take(REASON_CHARS_MAX).collect()
}

/// One try at an outer step; a later try replaces an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Round {
    /// The outer step.
    pub outer: OuterStep,
    /// The try, counted from 1; 0 is before the first.
    pub attempt: Attempt,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "outer step {}, try {}", self.outer.0, self.attempt.0)
    }
}

/// Who does what in a round, for one stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// The round.
    pub round: Round,
    /// The bitmap of contributors, with the weight of each (microbatches that others receipted), in replica order.
    pub contributors: Vec<(ReplicaId, u64)>,
    /// How the parameters are cut: the share of each shard, in 1/65,536; they sum to 65,536.
    pub shares: Vec<u32>,
    /// Who reduces each shard: two replicas where there are three or more, else one.
    pub reducers: Vec<Vec<ReplicaId>>,
}

/// What an offered blob is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Part {
    /// A replica's pseudo-gradient of a shard, for its reducers.
    Contribution,
    /// The reduced shard, for all.
    Result,
}

/// A message about an outer step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Say {
    /// Replica to coordinator: it stands at the border, its snapshot is taken.
    Reached {
        /// The outer step.
        outer: OuterStep,
        /// Inner steps its weights have seen.
        step: InnerStep,
        /// The highest try it has heard of; a coordinator that starts again goes on behind it.
        heard: Attempt,
    },
    /// Coordinator to replica: the round begins.
    Begin(Begin),
    /// Replica to replica: bytes that can be fetched here.
    Offer {
        /// The round.
        round: Round,
        /// Which shard.
        shard: u16,
        /// What it is.
        part: Part,
        /// Its name and layout.
        manifest: Manifest,
    },
    /// Replica to replica: send these chunks of a blob that was offered.
    Want {
        /// The blob.
        blob: Digest,
        /// The chunks.
        chunks: Vec<u32>,
    },
    /// Replica to replica: a chunk.
    Chunk {
        /// Of which blob.
        blob: Digest,
        /// Which.
        chunk: u32,
        /// Its bytes; sent beside the header.
        #[serde(skip)]
        payload: Bytes,
    },
    /// Reducer to coordinator: a shard is reduced to this blob.
    Claim {
        /// The round.
        round: Round,
        /// Which shard.
        shard: u16,
        /// Name of the result.
        blob: Digest,
    },
    /// Reducer to coordinator: a contribution cannot be used.
    Flaw {
        /// The round.
        round: Round,
        /// Whose.
        contributor: ReplicaId,
        /// Why, in words.
        reason: String,
    },
    /// Replica to coordinator: it holds everything, and these would be its weights.
    Vote {
        /// The round.
        round: Round,
        /// Digest of the weights that the commit would make current.
        digest: Digest,
        /// Bytes a second at which it received from each replica.
        rates: Vec<(ReplicaId, u64)>,
    },
    /// Coordinator to replica: it is committed.
    Commit {
        /// The outer step.
        outer: OuterStep,
        /// Inner steps taken at its border.
        step: InnerStep,
        /// Training tokens of the whole run up to that border.
        tokens: u64,
        /// Digest of the stage's weights.
        digest: Digest,
    },
    /// Coordinator to replica: it is called off; everything stays as before it.
    Restore {
        /// The outer step.
        outer: OuterStep,
    },
    /// Coordinator to replica: are you there?
    Probe {
        /// The outer step.
        outer: OuterStep,
    },
    /// Replica to coordinator: yes.
    Alive {
        /// The outer step.
        outer: OuterStep,
    },
    /// Coordinator to replica: the others went on without you.
    Excluded {
        /// The outer step.
        outer: OuterStep,
    },
}
