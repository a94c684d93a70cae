//! Owns what an engine tells of itself: its weights, gradients and memory. It may not change anything.

use std::collections::{BTreeMap, BTreeSet};

use tch::{TchError, Tensor};

use crate::engine::Engine;
use crate::engine::transfer::numbers;
use crate::error::ModelError;
use crate::input::MemoryReport;

impl Engine {
    /// Returns the f32 master weights by name, row major; for inspection and tests.
    ///
    /// # Errors
    /// libtorch's refusals.
    pub fn weights(&self) -> Result<BTreeMap<String, Vec<f32>>, ModelError> {
        let parameters = self.weights.parameters();
        Ok(parameters
            .iter()
            .map(|p| Ok((p.name.clone(), numbers(&p.value)?)))
            .collect::<Result<_, TchError>>()?)
    }

    /// Returns the shapes of the weights by name; a matrix is `[out, in]`.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let shape = |tensor: &Tensor| tensor.size().iter().map(|&size| size as usize).collect();
        self.weights.parameters().iter().map(|p| (p.name.clone(), shape(&p.value))).collect()
    }

    /// Returns the f32 sums of gradients since the last step by name, row major; for inspection and tests.
    ///
    /// # Errors
    /// libtorch's refusals.
    pub fn gradients(&self) -> Result<BTreeMap<String, Vec<f32>>, ModelError> {
        let named = self.weights.parameters().iter().zip(self.weights.sums());
        let present = named.filter_map(|(parameter, sum)| Some((parameter, sum.as_ref()?)));
        Ok(present.map(|(p, sum)| Ok((p.name.clone(), numbers(sum)?))).collect::<Result<_, TchError>>()?)
    }

    /// Returns what the engine holds in memory, as far as it is known.
    pub fn memory(&self) -> MemoryReport {
        let (weight_bytes, leaf_bytes, gradient_bytes) = self.weights.bytes();
        let stale: BTreeSet<u64> = self
            .graphs
            .values()
            .map(|graph| graph.generation)
            .filter(|&generation| generation != self.weights.generation())
            .collect();
        let leaves_of_a_generation = if leaf_bytes == 0 { weight_bytes } else { leaf_bytes };
        MemoryReport {
            weight_bytes,
            leaf_bytes,
            gradient_bytes,
            optimizer_bytes: self.optimizer.bytes(),
            graphs: self.graphs.len(),
            stale_bytes: stale.len() as u64 * leaves_of_a_generation,
        }
    }
}
