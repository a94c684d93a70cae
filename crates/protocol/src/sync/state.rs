//! What replicas say to each other so that a newcomer gets the state of its stage.
//!
//! Owns the messages. Knows nothing of who asks whom, or of what the bytes mean.

use crate::ids::{Digest, OuterStep};
use crate::sync::blob::Manifest;
use alloc::vec::Vec;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A part of a stage's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum StatePart {
    /// The weights that the replicas agreed on, with the outer momentum: the same bytes at each of them.
    Agreed,
    /// The moments of one replica's own optimizer.
    Own,
}

/// A message about a stage's state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum StateSay {
    /// Newcomer to replica: offer the state after this outer step.
    Ask {
        /// The last that was committed.
        outer: OuterStep,
    },
    /// Replica to newcomer: bytes that can be fetched here until the next commit.
    Offer {
        /// After which outer step.
        outer: OuterStep,
        /// What it is.
        part: StatePart,
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
        /// Of which blob.
        blob: Digest,
        /// Which.
        chunk: u32,
        /// Its bytes; sent beside the header.
        #[serde(skip)]
        payload: Bytes,
    },
}
