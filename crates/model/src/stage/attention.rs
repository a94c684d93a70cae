//! Owns causal self-attention with grouped key and value heads (arXiv 2305.13245), through libtorch's fused kernel.
//!
//! Legend: b microbatch, s position, d hidden width, n query head, g key and value head, h coordinate within a head.

use tch::{TchError, Tensor};

use crate::config::ModelConfig;
use crate::layout::{DEVIATION, Layout, Slot};
use crate::parameter::Role;
use crate::stage::rope::Rope;

/// Which key and value heads serve a query head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grouping {
    /// As many key and value heads as query heads.
    Single,
    /// Several query heads share one.
    Shared,
}

/// The attention of one block.
#[derive(Debug)]
pub(crate) struct Attention {
    query: Slot,
    key: Slot,
    value: Slot,
    output: Slot,
    head_dim: i64,
    grouping: Grouping,
}

impl Attention {
    /// Declares the four projections of block `index`. The output projection starts smaller by `sqrt(2L)`, because it
    /// adds to the residual stream once in each of `L` blocks, as does the feed-forward network.
    pub(crate) fn declare(config: &ModelConfig, index: usize, layout: &mut Layout) -> Attention {
        let (d, kv) = (config.width, config.kv_heads * config.head_dim());
        let name = |part: &str| format!("blocks.{index}.attention.{part}.weight");
        let residual = DEVIATION / (2.0 * config.layers as f64).sqrt();
        Attention {
            query: layout.matrix(name("query"), d, d, Role::Hidden, DEVIATION),
            key: layout.matrix(name("key"), kv, d, Role::Hidden, DEVIATION),
            value: layout.matrix(name("value"), kv, d, Role::Hidden, DEVIATION),
            output: layout.matrix(name("output"), d, d, Role::Hidden, residual),
            head_dim: config.head_dim() as i64,
            grouping: if config.heads == config.kv_heads { Grouping::Single } else { Grouping::Shared },
        }
    }

    /// Maps `x_bsd` to `[b, s, d]`.
    pub(crate) fn forward(
        &self,
        weights: &[Tensor],
        rope: &Rope,
        x_bsd: &Tensor,
    ) -> Result<Tensor, TchError> {
        let (b, s, d) = x_bsd.size3()?;
        let heads = |slot: Slot| -> Result<Tensor, TchError> {
            x_bsd.f_linear(slot.of(weights), None::<&Tensor>)?.f_reshape([b, s, -1, self.head_dim])
        };
        let q_bnsh = rope.turn(&heads(self.query)?)?.f_transpose(1, 2)?;
        let k_bgsh = rope.turn(&heads(self.key)?)?.f_transpose(1, 2)?;
        let v_bgsh = heads(self.value)?.f_transpose(1, 2)?;
        let mixed_bnsh = Tensor::f_scaled_dot_product_attention(
            &q_bnsh,
            &k_bgsh,
            &v_bgsh,
            None::<&Tensor>,
            0.0,
            true,
            None,
            self.grouping == Grouping::Shared,
        )?;
        mixed_bnsh.f_transpose(1, 2)?.f_reshape([b, s, d])?.f_linear(self.output.of(weights), None::<&Tensor>)
    }
}
