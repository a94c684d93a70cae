//! Owns what stands on both sides of a cut: the encoders of the sending stage and the decoders of the receiving one
//! (Residual Bottleneck Models, arXiv 2604.11947), beside an identity path of the first `c` coordinates.
//!
//! How they start. First layers are drawn like every other matrix. The last layers of the `resbm` pair are drawn with
//! `0.02 / m`: what they add is then about a fiftieth of the identity path whatever `m` is, so that the model starts as
//! truncation and padding, while the first layers, whose gradient comes through the last ones, learn from the first step
//! on (behind zeros they would not). The fused encoder's last layer is a residual projection and drawn as such. The fused
//! decoder is drawn with `1 / sqrt(c)`, which keeps the scale of what crossed: at 0.02 a narrow boundary would shrink
//! the first hidden states below the epsilon of the norm that reads them.
//!
//! Legend: b microbatch, s position, d hidden width, c boundary width, m encoder width, f inner width.

use tch::{TchError, Tensor};

use crate::config::ModelConfig;
use crate::layout::{DEVIATION, Layout, Slot};
use crate::parameter::Role;
use crate::stage::norm::Norm;

/// Returns the first `width` coordinates: `P x`, from `[b, s, d]` to `[b, s, c]`.
pub(crate) fn keep(x_bsd: &Tensor, width: i64) -> Result<Tensor, TchError> {
    x_bsd.f_narrow(-1, 0, width)
}

/// Pads with zeros up to `width` coordinates: `Pᵀ z`, from `[b, s, c]` to `[b, s, d]`.
pub(crate) fn pad(z_bsc: &Tensor, width: i64) -> Result<Tensor, TchError> {
    let narrow = z_bsc.size().last().copied().unwrap_or(0);
    z_bsc.f_constant_pad_nd([0, width - narrow])
}

/// Two matrices with SiLU between, no biases.
#[derive(Debug)]
struct Pair {
    first: Slot,
    last: Slot,
}

impl Pair {
    fn forward(&self, weights: &[Tensor], x: &Tensor) -> Result<Tensor, TchError> {
        let inner_bsm = x.f_linear(self.first.of(weights), None::<&Tensor>)?.f_silu()?;
        inner_bsm.f_linear(self.last.of(weights), None::<&Tensor>)
    }
}

/// The learnt part of what a `resbm` boundary sends: `E(norm(x))`.
#[derive(Debug)]
pub(crate) struct Encoder {
    norm: Norm,
    pair: Pair,
}

impl Encoder {
    /// Declares the encoder of boundary `index`.
    pub(crate) fn declare(config: &ModelConfig, index: usize, layout: &mut Layout) -> Encoder {
        let (d, k, m) = (config.width, config.boundary_width, config.encoder_width);
        let name = |part: &str| format!("boundaries.{index}.encoder.{part}.weight");
        Encoder {
            norm: Norm::declare(name("norm"), d, config.norm_epsilon, layout),
            pair: Pair {
                first: layout.matrix(name("first"), m, d, Role::Boundary, DEVIATION),
                last: layout.matrix(name("last"), k, m, Role::Boundary, DEVIATION / m as f64),
            },
        }
    }

    /// Maps `x_bsd` to `[b, s, c]`.
    pub(crate) fn forward(&self, weights: &[Tensor], x_bsd: &Tensor) -> Result<Tensor, TchError> {
        self.pair.forward(weights, &self.norm.forward(weights, x_bsd)?)
    }
}

/// The learnt part of what a `resbm` boundary receives: `D(z)`.
#[derive(Debug)]
pub(crate) struct Decoder(Pair);

impl Decoder {
    /// Declares the decoder of boundary `index`.
    pub(crate) fn declare(config: &ModelConfig, index: usize, layout: &mut Layout) -> Decoder {
        let (d, k, m) = (config.width, config.boundary_width, config.encoder_width);
        let name = |part: &str| format!("boundaries.{index}.decoder.{part}.weight");
        Decoder(Pair {
            first: layout.matrix(name("first"), m, k, Role::Boundary, DEVIATION),
            last: layout.matrix(name("last"), d, m, Role::Boundary, DEVIATION / m as f64),
        })
    }

    /// Maps `z_bsc` to `[b, s, d]`.
    pub(crate) fn forward(&self, weights: &[Tensor], z_bsc: &Tensor) -> Result<Tensor, TchError> {
        self.0.forward(weights, z_bsc)
    }
}

/// What replaces the down projection before a fused boundary: `W4 SiLU(W3 inner)`.
#[derive(Debug)]
pub(crate) struct FusedEncoder {
    pair: Pair,
    boundary_width: i64,
}

impl FusedEncoder {
    /// Declares the encoder of boundary `index`.
    pub(crate) fn declare(config: &ModelConfig, index: usize, layout: &mut Layout) -> FusedEncoder {
        let (f, k, m) = (config.ffn_width, config.boundary_width, config.encoder_width);
        let name = |part: &str| format!("boundaries.{index}.encoder.{part}.weight");
        let residual = DEVIATION / (2.0 * config.layers as f64).sqrt();
        FusedEncoder {
            pair: Pair {
                first: layout.matrix(name("first"), m, f, Role::Boundary, DEVIATION),
                last: layout.matrix(name("last"), k, m, Role::Boundary, residual),
            },
            boundary_width: k as i64,
        }
    }

    /// Returns the number of coordinates that cross.
    pub(crate) fn boundary_width(&self) -> i64 {
        self.boundary_width
    }

    /// Maps `inner_bsf` to `[b, s, c]`.
    pub(crate) fn forward(&self, weights: &[Tensor], inner_bsf: &Tensor) -> Result<Tensor, TchError> {
        self.pair.forward(weights, inner_bsf)
    }
}

/// What the attention after a fused boundary reads: `ReLU(D z)`.
#[derive(Debug)]
pub(crate) struct FusedDecoder(Slot);

impl FusedDecoder {
    /// Declares the decoder of boundary `index`.
    pub(crate) fn declare(config: &ModelConfig, index: usize, layout: &mut Layout) -> FusedDecoder {
        let (d, k) = (config.width, config.boundary_width);
        let deviation = 1.0 / (k as f64).sqrt();
        let name = format!("boundaries.{index}.decoder.weight");
        FusedDecoder(layout.matrix(name, d, k, Role::Boundary, deviation))
    }

    /// Maps `z_bsc` to `[b, s, d]`.
    pub(crate) fn forward(&self, weights: &[Tensor], z_bsc: &Tensor) -> Result<Tensor, TchError> {
        z_bsc.f_linear(self.0.of(weights), None::<&Tensor>)?.f_relu()
    }
}
