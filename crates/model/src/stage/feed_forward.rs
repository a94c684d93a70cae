//! Owns the gated feed-forward network (arXiv 2002.05202, SwiGLU): `down(SiLU(gate x) * up x)`, in two halves because a
//! fused boundary replaces the second.
//!
//! Legend: b microbatch, s position, d hidden width, f inner width.

use tch::{TchError, Tensor};

use crate::config::ModelConfig;
use crate::layout::{DEVIATION, Layout, Slot};
use crate::parameter::Role;

/// The first half: from the hidden state to the gated inner one.
#[derive(Debug)]
pub(crate) struct Gate {
    gate: Slot,
    up: Slot,
}

impl Gate {
    /// Declares the two matrices of block `index`.
    pub(crate) fn declare(config: &ModelConfig, index: usize, layout: &mut Layout) -> Gate {
        let (d, f) = (config.width, config.ffn_width);
        let name = |part: &str| format!("blocks.{index}.ffn.{part}.weight");
        Gate {
            gate: layout.matrix(name("gate"), f, d, Role::Hidden, DEVIATION),
            up: layout.matrix(name("up"), f, d, Role::Hidden, DEVIATION),
        }
    }

    /// Maps `x_bsd` to `[b, s, f]`.
    pub(crate) fn forward(&self, weights: &[Tensor], x_bsd: &Tensor) -> Result<Tensor, TchError> {
        let gate_bsf = x_bsd.f_linear(self.gate.of(weights), None::<&Tensor>)?.f_silu()?;
        gate_bsf.f_mul(&x_bsd.f_linear(self.up.of(weights), None::<&Tensor>)?)
    }
}

/// The second half: from the gated inner state back to the hidden one.
#[derive(Debug)]
pub(crate) struct Down(Slot);

impl Down {
    /// Declares the matrix of block `index`, smaller by `sqrt(2L)` as the output projection of the attention is.
    pub(crate) fn declare(config: &ModelConfig, index: usize, layout: &mut Layout) -> Down {
        let residual = DEVIATION / (2.0 * config.layers as f64).sqrt();
        let name = format!("blocks.{index}.ffn.down.weight");
        Down(layout.matrix(name, config.width, config.ffn_width, Role::Hidden, residual))
    }

    /// Maps `inner_bsf` to `[b, s, d]`.
    pub(crate) fn forward(&self, weights: &[Tensor], inner_bsf: &Tensor) -> Result<Tensor, TchError> {
        inner_bsf.f_linear(self.0.of(weights), None::<&Tensor>)
    }
}
