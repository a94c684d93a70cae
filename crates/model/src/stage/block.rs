//! Owns one transformer block, pre-norm as in Llama, and the two ways in which a fused boundary changes it: its
//! attention may read another tensor than the one it adds to, and its output may be narrow.
//!
//! Legend: b microbatch, s position, d hidden width, f inner width, c boundary width.

use tch::{TchError, Tensor};

use crate::config::ModelConfig;
use crate::layout::Layout;
use crate::stage::attention::Attention;
use crate::stage::boundary::{FusedEncoder, keep};
use crate::stage::feed_forward::{Down, Gate};
use crate::stage::norm::Norm;
use crate::stage::rope::Rope;

/// What a block reads.
#[derive(Debug)]
pub(crate) struct Hidden {
    /// `[b, s, d]`, what the attention reads after its norm.
    pub(crate) source: Tensor,
    /// `[b, s, d]`, what the attention's output is added to.
    pub(crate) residual: Tensor,
}

impl Hidden {
    /// Makes the usual case, in which both are the same.
    pub(crate) fn plain(x_bsd: Tensor) -> Hidden {
        Hidden { source: x_bsd.shallow_clone(), residual: x_bsd }
    }
}

/// What a block produces.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Exit {
    /// The hidden state.
    Hidden,
    /// The narrow tensor of the fused boundary with this number.
    Boundary(usize),
}

#[derive(Debug)]
enum Output {
    Hidden(Down),
    Boundary(FusedEncoder),
}

/// One transformer block.
#[derive(Debug)]
pub(crate) struct Block {
    attention_norm: Norm,
    attention: Attention,
    ffn_norm: Norm,
    gate: Gate,
    output: Output,
}

impl Block {
    /// Declares block `index` of the model.
    pub(crate) fn declare(config: &ModelConfig, index: usize, exit: Exit, layout: &mut Layout) -> Block {
        let norm = |part: &str, layout: &mut Layout| {
            let name = format!("blocks.{index}.{part}_norm.weight");
            Norm::declare(name, config.width, config.norm_epsilon, layout)
        };
        Block {
            attention_norm: norm("attention", layout),
            attention: Attention::declare(config, index, layout),
            ffn_norm: norm("ffn", layout),
            gate: Gate::declare(config, index, layout),
            output: match exit {
                Exit::Hidden => Output::Hidden(Down::declare(config, index, layout)),
                Exit::Boundary(boundary) => Output::Boundary(FusedEncoder::declare(config, boundary, layout)),
            },
        }
    }

    /// Maps the hidden state to the next one `[b, s, d]`, or to `z_bsc` where a fused boundary follows.
    pub(crate) fn forward(&self, weights: &[Tensor], rope: &Rope, x: &Hidden) -> Result<Tensor, TchError> {
        let source_bsd = self.attention_norm.forward(weights, &x.source)?;
        let h_bsd = x.residual.f_add(&self.attention.forward(weights, rope, &source_bsd)?)?;
        let inner_bsf = self.gate.forward(weights, &self.ffn_norm.forward(weights, &h_bsd)?)?;
        match &self.output {
            Output::Hidden(down) => h_bsd.f_add(&down.forward(weights, &inner_bsf)?),
            Output::Boundary(encoder) => {
                keep(&h_bsd, encoder.boundary_width())?.f_add(&encoder.forward(weights, &inner_bsf)?)
            }
        }
    }
}
