//! Owns what a trainable tensor is called, where it belongs, and how it starts. It may not know how it is used or updated.

use tch::Tensor;

/// What a parameter does in the model; the optimizer chooses its rule by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The table of token embeddings.
    Embedding,
    /// The projection to the vocabulary.
    Head,
    /// The gain of an RMS norm.
    Norm,
    /// A matrix inside a transformer block.
    Hidden,
    /// A matrix of a boundary's encoder or decoder.
    Boundary,
}

/// How a parameter's numbers start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Initial {
    /// All ones.
    Ones,
    /// Independent normal numbers of mean zero and this standard deviation.
    Normal(f64),
}

/// What is known of a parameter before it is made.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterSpec {
    /// Name, unique in the whole model and the same for every partition.
    pub name: String,
    /// Sizes; a matrix is `[out, in]`.
    pub shape: Vec<i64>,
    /// The stage that holds it.
    pub stage: usize,
    /// What it does.
    pub role: Role,
    /// How it starts.
    pub initial: Initial,
}

impl ParameterSpec {
    /// Returns how many numbers it holds.
    pub fn numel(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product()
    }
}

/// A trainable tensor in single precision, the one that optimizer and checkpoint see.
#[derive(Debug)]
pub struct Parameter {
    /// Name, unique in the whole model and the same for every partition.
    pub name: String,
    /// The numbers, f32, on the engine's device; never part of an autograd graph itself.
    pub value: Tensor,
    /// The stage that holds it.
    pub stage: usize,
    /// What it does.
    pub role: Role,
}
