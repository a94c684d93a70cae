//! Owns the errors of an outer step: what was refused, of which shard or contribution, and why.

use crate::outer::codec::CodecError;
use crate::outer::layout::SharesError;

/// Why an outer step cannot be prepared, staged or committed; what is committed stays as it was.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OuterError {
    /// The shares do not make a whole.
    #[error(transparent)]
    Shares(#[from] SharesError),
    /// A setting lies outside its range, or does not go with another.
    #[error("outer {field} is {value}, expected {expected}")]
    Setting {
        /// Name of the field.
        field: &'static str,
        /// What it holds, in words.
        value: String,
        /// What it may hold.
        expected: &'static str,
    },
    /// No snapshot was taken since the last commit or restore.
    #[error("outer step {committed} has not begun: it has no snapshot")]
    NotBegun {
        /// How many outer steps are committed.
        committed: u64,
    },
    /// Nothing is staged to be committed.
    #[error("outer step {outer} has nothing staged")]
    NotStaged {
        /// The outer step that has begun.
        outer: u64,
    },
    /// This replica's own numbers cannot be sent.
    #[error("the contribution to shard {shard} of outer step {outer} cannot be encoded: {reason}")]
    Contribution {
        /// The outer step.
        outer: u64,
        /// Which shard.
        shard: usize,
        /// Why not.
        reason: CodecError,
    },
    /// There are more results or fewer than shards.
    #[error("outer step {outer} has {got} results for {expected} shards")]
    ResultCount {
        /// The outer step.
        outer: u64,
        /// How many results there are.
        got: usize,
        /// How many shards.
        expected: usize,
    },
    /// A shard's result is not what a reducer returns.
    #[error("the result for shard {shard} of outer step {outer} is refused: {reason}")]
    Result {
        /// The outer step.
        outer: u64,
        /// Which shard.
        shard: usize,
        /// Why.
        reason: CodecError,
    },
}

impl OuterError {
    /// Returns advice for a person, where there is some.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            OuterError::Contribution { .. } => Some(
                "training diverged here; lower the inner learning rate, lengthen the warm-up, or set clip = 1.0",
            ),
            OuterError::Result { .. } => Some("ask the shard's other reducer, and distrust this one"),
            OuterError::Setting { .. } => Some("change it in the run file, the same for all peers"),
            OuterError::Shares(_)
            | OuterError::NotBegun { .. }
            | OuterError::NotStaged { .. }
            | OuterError::ResultCount { .. } => None,
        }
    }
}

/// Why a reducer returns no result for a shard.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ReduceError {
    /// One contribution is malformed; the others may be reduced without it.
    #[error("contribution {part} to shard {shard} is refused: {reason}")]
    Part {
        /// The shard.
        shard: usize,
        /// Which contribution, by its place in the list.
        part: usize,
        /// What is wrong with it.
        reason: CodecError,
    },
    /// Nobody contributed, nobody has any weight, or the weights do not fit u64 together.
    #[error(
        "{parts} contributions to shard {shard} have weights {weights:?}, expected a sum from 1 to 2^64 - 1"
    )]
    Weights {
        /// The shard.
        shard: usize,
        /// How many contributions there are.
        parts: usize,
        /// Their weights.
        weights: Vec<u64>,
    },
    /// There is no such shard.
    #[error("shard {shard} of {shards} does not exist")]
    Shard {
        /// The shard asked for.
        shard: usize,
        /// How many there are.
        shards: usize,
    },
    /// The shares do not make a whole.
    #[error(transparent)]
    Shares(#[from] SharesError),
}
