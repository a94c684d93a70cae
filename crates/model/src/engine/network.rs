//! Owns the stages that one engine holds and joins them as the wire would. It may not know microbatches or training.
//!
//! Legend: b microbatch, s position, c boundary width, v vocabulary.

use std::ops::Range;

use tch::{Device, Kind, TchError, Tensor};

use crate::config::{Dtype, ModelConfig};
use crate::layout::Layout;
use crate::parameter::ParameterSpec;
use crate::stage::Stage;
use crate::stage::rope::Rope;

/// Consecutive stages; holds slots only, the tensors are handed in.
#[derive(Debug)]
pub(crate) struct Network {
    stages: Vec<Stage>,
    rope: Rope,
    wire: Kind,
    compute: Kind,
}

impl Network {
    /// Declares the stages `held`, and returns them with their parameters in the order of their slots.
    pub(crate) fn new(
        config: &ModelConfig,
        held: Range<usize>,
        compute: Dtype,
        device: Device,
    ) -> Result<(Network, Vec<ParameterSpec>), TchError> {
        let mut layout = Layout::default();
        let stages = held.map(|stage| Stage::declare(config, stage, &mut layout)).collect();
        let rope =
            Rope::new(config.sequence_len, config.head_dim(), config.rope_theta, compute.kind(), device)?;
        let network = Network { stages, rope, wire: config.wire.kind(), compute: compute.kind() };
        Ok((network, layout.specs().to_vec()))
    }

    /// Computes what leaves the last stage held: `z_bsc` before its cast to the wire, or `logits_bsv`.
    ///
    /// Between two stages held here the tensor takes the wire's format and comes back, and so does its gradient:
    /// one engine computes what two engines with a wire between them would, to the bit.
    pub(crate) fn forward(&self, weights: &[Tensor], input: &Tensor) -> Result<Tensor, TchError> {
        let positions = input.size().get(1).copied().unwrap_or(0);
        let rope = self.rope.first(positions)?;
        let mut x = input.shallow_clone();
        for (index, stage) in self.stages.iter().enumerate() {
            if index > 0 {
                x = x.f_to_kind(self.wire)?.f_to_kind(self.compute)?;
            }
            x = stage.forward(weights, &rope, &x)?;
        }
        Ok(x)
    }
}
