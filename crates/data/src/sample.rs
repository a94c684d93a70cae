//! The names of samples and the batch they come in.
//!
//! Owns ids and splits. May not know where the tokens lie or in which order they are drawn.

use core::fmt;

use serde::{Deserialize, Serialize};

/// Says whether a sample is learnt from or only measured on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// Learnt from.
    Train,
    /// Measured on, never learnt from: the windows at the end of the corpus.
    HeldOut,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Split::Train => "training",
            Split::HeldOut => "held-out",
        })
    }
}

/// Names a sample within its split: counted from 0 in the order of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SampleId(pub u64);

impl fmt::Display for SampleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Holds the token ids of one microbatch, row major, both of shape `[size, sequence_len]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Microbatch {
    /// What the model reads.
    pub inputs: Vec<u32>,
    /// What it should say: `targets[r][i]` follows `inputs[r][i]` in the text.
    pub targets: Vec<u32>,
}
