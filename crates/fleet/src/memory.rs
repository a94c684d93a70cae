//! The memory of a worker as a sum on paper, before anything runs.
//!
//! Owns the sum. May not know what is measured later; that it agrees is checked where both are at hand.

use serde::Serialize;
use trestle_model::config::{BoundaryForm, ModelConfig};
use trestle_protocol::spec::{Dtype, OptimizerKind, Retain, RunSpec, Schedule};

/// What a stage needs at most, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct StageMemory {
    /// The f32 master weights, and their copies in the precision of the computation if that is another.
    pub weights: u64,
    /// Older weights that kept graphs still read, with the schedule `async`.
    pub stale_weights: u64,
    /// The f32 sums of gradients, and one microbatch's own while they are added.
    pub gradients: u64,
    /// The optimizer's moments, f32.
    pub moments: u64,
    /// The boundary inputs of the microbatches in flight.
    pub kept_inputs: u64,
    /// What autograd holds for the backward.
    pub activations: u64,
}

impl StageMemory {
    /// Returns the sum.
    pub fn total(&self) -> u64 {
        let Self { weights, stale_weights, gradients, moments, kept_inputs, activations } = self;
        weights + stale_weights + gradients + moments + kept_inputs + activations
    }

    /// Adds up what a stage of a run needs.
    pub fn of(spec: &RunSpec, config: &ModelConfig, stage: usize) -> Self {
        let parameters = config.stage_parameters(stage);
        let compute = spec.pipeline.compute.bytes() as u64;
        let copies = match spec.pipeline.compute {
            Dtype::F32 => 0,
            Dtype::Bf16 => compute,
        };
        // With a flush, no microbatch of the next step is begun before all of this one are done.
        let in_flight = u64::from(match spec.pipeline.schedule {
            Schedule::Flush => spec.pipeline.in_flight_max.min(spec.pipeline.microbatches_per_step),
            Schedule::Async { .. } => spec.pipeline.in_flight_max,
        });
        // The last stage turns round at once; others may have forwarded all that is in flight.
        let last = stage + 1 == config.stages();
        let graphs = match spec.pipeline.retain {
            Retain::Graph if !last => in_flight,
            Retain::Graph | Retain::Input => 1,
        };
        let stale_versions = match (spec.pipeline.schedule, spec.pipeline.retain) {
            (Schedule::Async { staleness_max }, Retain::Graph) if !last => u64::from(staleness_max),
            (Schedule::Async { .. } | Schedule::Flush, Retain::Graph | Retain::Input) => 0,
        };
        let inputs = if stage == 0 { 0 } else { in_flight };
        Self {
            weights: parameters * (4 + copies),
            stale_weights: stale_versions * parameters * compute,
            gradients: parameters * (4 + compute),
            moments: moments(spec, config, stage),
            kept_inputs: inputs * spec.boundary_bytes() as u64,
            activations: graphs * spec.microbatch_tokens() * activation_bytes_per_token(spec, config, stage),
        }
    }
}

/// AdamW keeps two moments of each number; Muon one of each number in a hidden matrix, and AdamW's two of the rest.
fn moments(spec: &RunSpec, config: &ModelConfig, stage: usize) -> u64 {
    let parameters = config.stage_parameters(stage);
    match spec.optimizer.kind {
        OptimizerKind::AdamW => 8 * parameters,
        OptimizerKind::Muon => {
            let rest = outside_matrices(config, stage);
            8 * rest + 4 * (parameters - rest)
        }
    }
}

/// Counts a stage's numbers in embedding, head and norms.
fn outside_matrices(config: &ModelConfig, stage: usize) -> u64 {
    let (d, v) = (config.width as u64, config.vocabulary as u64);
    let first = stage == 0;
    let last = stage + 1 == config.stages();
    let encoder_norm = match config.boundary {
        BoundaryForm::Resbm if !last => d,
        BoundaryForm::None | BoundaryForm::Resbm | BoundaryForm::Fused => 0,
    };
    let embedding = if first { v * d } else { 0 };
    let head = if last { v * d + d } else { 0 };
    2 * d * config.stage_layers[stage] as u64 + encoder_norm + embedding + head
}

/// Adds up what the backward of one token needs: for each block the inputs and outputs of both norms (4d), queries, keys
/// and values (d + 2kv), the attention's output (d), and gate, up, its SiLU and their product (4F); for the head the
/// logits and their softmax in f32 (2V). Boundary layers are narrow beside that and left out.
pub(crate) fn activation_bytes_per_token(spec: &RunSpec, config: &ModelConfig, stage: usize) -> u64 {
    let (d, f) = (config.width as u64, config.ffn_width as u64);
    let kv = (config.kv_heads * config.head_dim()) as u64;
    let block = (6 * d + 2 * kv + 4 * f) * spec.pipeline.compute.bytes() as u64;
    let head = if stage + 1 == config.stages() { 8 * config.vocabulary as u64 } else { 0 };
    config.stage_layers[stage] as u64 * block + head
}
