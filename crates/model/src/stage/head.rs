//! Owns the end of the model: the final norm, the projection to the vocabulary, and the loss.
//!
//! Legend: b microbatch, s position, d hidden width, v vocabulary.

use tch::{Kind, Reduction, TchError, Tensor};

use crate::config::ModelConfig;
use crate::layout::{DEVIATION, Layout, Slot};
use crate::parameter::Role;
use crate::stage::norm::Norm;

/// The final norm and the untied head.
#[derive(Debug)]
pub(crate) struct Head {
    norm: Norm,
    weight: Slot,
}

impl Head {
    /// Declares both.
    pub(crate) fn declare(config: &ModelConfig, layout: &mut Layout) -> Head {
        Head {
            norm: Norm::declare("norm.weight".into(), config.width, config.norm_epsilon, layout),
            weight: layout.matrix(
                "head.weight".into(),
                config.vocabulary,
                config.width,
                Role::Head,
                DEVIATION,
            ),
        }
    }

    /// Maps `x_bsd` to `logits_bsv`, in the format of computation.
    pub(crate) fn logits(&self, weights: &[Tensor], x_bsd: &Tensor) -> Result<Tensor, TchError> {
        self.norm.forward(weights, x_bsd)?.f_linear(self.weight.of(weights), None::<&Tensor>)
    }
}

/// Returns the mean cross-entropy in nats of `logits_bsv` against `targets_bs`, computed in f32.
pub(crate) fn loss(logits_bsv: &Tensor, targets_bs: &Tensor) -> Result<Tensor, TchError> {
    let vocabulary = logits_bsv.size().last().copied().unwrap_or(0);
    let logits = logits_bsv.f_to_kind(Kind::Float)?.f_reshape([-1, vocabulary])?;
    let targets = targets_bs.f_reshape([-1])?;
    // -100 is libtorch's mark for a target to leave out; tokens are never negative.
    logits.f_cross_entropy_loss(&targets, None::<&Tensor>, Reduction::Mean, -100, 0.0)
}
