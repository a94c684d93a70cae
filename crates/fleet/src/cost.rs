//! What the work of one stage costs, from the run spec alone: operations, bytes, messages.
//!
//! Owns those sums, and how long they take on a device. Knows nothing of peers.

use crate::device::Device;
use crate::memory::{StageMemory, activation_bytes_per_token};
use serde::Serialize;
use trestle_model::config::ModelConfig;
use trestle_protocol::spec::sync::OuterRule;
use trestle_protocol::spec::{Dtype, OptimizerKind, Retain, RunSpec};
use trestle_settings::model::model_config;

/// Numbers that AdamW goes over for each parameter: it reads weight, gradient and two moments, and writes weight and moments.
const ADAMW_NUMBERS: f64 = 7.0;

/// Likewise Muon, which has one moment.
const MUON_NUMBERS: f64 = 5.0;

/// Steps of Muon's orthogonalisation (Newton and Schulz), each of three products.
const NEWTON_SCHULZ_STEPS: f64 = 5.0;

/// The work of one stage; operations and bytes are of one microbatch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageWork {
    /// Blocks.
    pub layers: u32,
    /// Parameters, boundaries included.
    pub parameters: u64,
    /// Operations of a forward.
    pub forward: f64,
    /// Operations of a backward, which are two forwards'.
    pub backward: f64,
    /// Operations of the forward that is done again before the backward.
    pub again: f64,
    /// Bytes that a forward goes over in the device's memory.
    pub pass_bytes: f64,
    /// Bytes of the message to the next stage, and of the gradient that comes back; 0 at the last.
    pub message: f64,
    /// Operations of an optimizer step.
    pub step: f64,
    /// Bytes that an optimizer step goes over.
    pub step_bytes: f64,
    /// What it needs of a device's memory.
    pub memory: StageMemory,
    compute: Dtype,
}

/// How long the work of a stage takes on a device, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spans {
    /// A forward.
    pub forward: f64,
    /// A backward, with the forward that is done again for it.
    pub backward: f64,
    /// An optimizer step.
    pub step: f64,
}

impl Spans {
    /// Returns the seconds of a microbatch.
    pub fn microbatch(&self) -> f64 {
        self.forward + self.backward
    }
}

/// Adds up the work of each stage of a run.
pub fn stages(spec: &RunSpec) -> Vec<StageWork> {
    let config = model_config(spec);
    (0..config.stages()).map(|stage| StageWork::of(spec, &config, stage)).collect()
}

/// Returns the operations of training one token, by which MFU is counted: 6 for each parameter, as published runs count them.
pub fn counted_operations(spec: &RunSpec) -> f64 {
    6.0 * model_config(spec).parameters() as f64
}

impl StageWork {
    /// Adds up the work of one stage of a run.
    pub fn of_stage(spec: &RunSpec, stage: usize) -> Self {
        Self::of(spec, &model_config(spec), stage)
    }

    fn of(spec: &RunSpec, config: &ModelConfig, stage: usize) -> Self {
        let tokens = spec.microbatch_tokens() as f64;
        let forward = config.stage_train_flops_per_token(stage) / 3.0 * tokens;
        let last = stage + 1 == config.stages();
        let again = match spec.pipeline.retain {
            // The last stage turns round at once, with what it has.
            Retain::Input if !last => forward,
            Retain::Input | Retain::Graph => 0.0,
        };
        let compute = spec.pipeline.compute;
        let parameters = config.stage_parameters(stage);
        // What is kept for a backward is written once and read once.
        let activations = 2.0 * tokens * activation_bytes_per_token(spec, config, stage) as f64;
        let (step, step_bytes) = optimizer(spec, config, stage);
        Self {
            layers: spec.pipeline.stage_layers[stage],
            parameters,
            forward,
            backward: 2.0 * forward,
            again,
            pass_bytes: parameters as f64 * compute.bytes() as f64 + activations,
            message: if last { 0.0 } else { spec.boundary_bytes() as f64 },
            step,
            step_bytes,
            memory: StageMemory::of(spec, config, stage),
            compute,
        }
    }

    /// Returns the bytes of what a newcomer fetches: weights, the outer momentum if there is one, and the moments, in f32.
    pub fn state_bytes(&self, spec: &RunSpec) -> f64 {
        let momentum = match spec.sync.rule {
            OuterRule::Nesterov => 4.0,
            OuterRule::Mean | OuterRule::Plain => 0.0,
        };
        (4.0 + momentum) * self.parameters as f64 + self.memory.moments as f64
    }

    /// Returns the same work with no forward done again.
    pub fn done_once(&self) -> Self {
        Self { again: 0.0, ..self.clone() }
    }

    /// Returns how long it takes on a device.
    pub fn on(&self, device: &Device) -> Spans {
        let blocks = f64::from(self.layers);
        let pass = |operations: f64, passes: f64| {
            device.seconds(self.compute, operations, passes * self.pass_bytes, passes * blocks)
        };
        let again = if self.again > 0.0 { pass(self.again, 1.0) } else { 0.0 };
        Spans {
            forward: pass(self.forward, 1.0),
            backward: again + pass(self.backward, 2.0),
            // Master weights and moments are f32, and so are Muon's products.
            step: device.seconds(Dtype::F32, self.step, self.step_bytes, 0.0),
        }
    }
}

fn optimizer(spec: &RunSpec, config: &ModelConfig, stage: usize) -> (f64, f64) {
    let parameters = config.stage_parameters(stage) as f64;
    let copies = match spec.pipeline.compute {
        Dtype::F32 => 0.0,
        Dtype::Bf16 => 2.0 * parameters,
    };
    match spec.optimizer.kind {
        OptimizerKind::AdamW => (0.0, 4.0 * ADAMW_NUMBERS * parameters + copies),
        OptimizerKind::Muon => {
            let (d, f) = (config.width as f64, config.ffn_width as f64);
            let kv = (config.kv_heads * config.head_dim()) as f64;
            let block = 2.0 * orthogonalise(d, d) + 2.0 * orthogonalise(d, kv) + 3.0 * orthogonalise(d, f);
            let products = config.stage_layers[stage] as f64 * block;
            (products, 4.0 * MUON_NUMBERS * parameters + copies)
        }
    }
}

/// Counts the operations of Muon's orthogonalisation of a matrix: by step, its square, that one's square, and their product with
/// the matrix.
fn orthogonalise(rows: f64, columns: f64) -> f64 {
    let (least, most) = (rows.min(columns), rows.max(columns));
    NEWTON_SCHULZ_STEPS * (2.0 * least * least * most * 2.0 + 2.0 * least * least * least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orthogonalising_is_five_steps_of_three_products() {
        // For 2 x 3: A = X X' is 2*2*2*3, A A is 2*2*2*2, and their sum times X is 2*2*2*3.
        assert_eq!(orthogonalise(2.0, 3.0), 5.0 * (24.0 + 16.0 + 24.0));
        assert_eq!(orthogonalise(3.0, 2.0), orthogonalise(2.0, 3.0));
    }
}
