//! Owns the RMS norm: `x / sqrt(mean(x²) + ε) · gain` (arXiv 1910.07467, equation 4).

use tch::{TchError, Tensor};

use crate::layout::{Layout, Slot};

/// An RMS norm over the last dimension.
#[derive(Debug)]
pub(crate) struct Norm {
    gain: Slot,
    width: i64,
    epsilon: f64,
}

impl Norm {
    /// Declares the gain.
    pub(crate) fn declare(name: String, width: usize, epsilon: f64, layout: &mut Layout) -> Norm {
        Norm { gain: layout.gain(name, width), width: width as i64, epsilon }
    }

    /// Normalises the last dimension; the shape stays.
    pub(crate) fn forward(&self, weights: &[Tensor], x: &Tensor) -> Result<Tensor, TchError> {
        x.f_rms_norm([self.width], Some(self.gain.of(weights)), self.epsilon)
    }
}
