//! What replicas say to each other so that a newcomer gets the state of its stage.
//!
//! Owns the messages. Knows nothing of who asks whom, or of what the bytes mean.

use crate::ids::{Digest, OuterStep};
use crate::sync::blob::Manifest;
use alloc::vec::Vec;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A part of what brings a newcomer to a stage's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum StatePart {
    /// The weights that the replicas agreed on, with the outer momentum: the same bytes at each of them.
    Agreed,
    /// The moments of one replica's own optimizer.
    Own,
    /// A shard of what was agreed on in an outer step that was committed meanwhile.
    Result(u16),
}

/// A message about a stage's state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum StateSay {
    /// Newcomer to replica: offer a state from which this outer step can be reached, and those that were committed since.
    Ask {
        /// The last that was committed.
        outer: OuterStep,
    },
    /// Newcomer to replica: the state after this outer step is held; offer what was agreed on since.
    Follow {
        /// The outer step.
        since: OuterStep,
    },
    /// Replica to newcomer: this outer step has been committed; its results follow.
    Passed {
        /// The outer step.
        outer: OuterStep,
        /// Digest of the weights that it led to.
        digest: Digest,
        /// The cut of the results, as in [`crate::sync::say::Begin::shares`].
        shares: Vec<u32>,
    },
    /// Replica to newcomer: bytes that can be fetched here.
    Offer {
        /// Of, or after, which outer step.
        outer: OuterStep,
        /// What it is.
        part: StatePart,
        /// Digest of the weights after that outer step.
        digest: Digest,
        /// Its name and layout.
        manifest: Manifest,
    },
    /// Newcomer to replica: send these chunks.
    Want {
        /// Of which blob.
        blob: Digest,
        /// Which.
        chunks: Vec<u32>,
    },
    /// Replica to newcomer: a chunk.
    Chunk {
        /// Of what.
        part: StatePart,
        /// Of which blob.
        blob: Digest,
        /// Which.
        chunk: u32,
        /// Its bytes; sent beside the header.
        #[serde(skip)]
        payload: Bytes,
    },
}
