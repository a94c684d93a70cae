//! Owns rotary positions (arXiv 2104.09864) in the rotate-half convention of the Llama checkpoints in common use:
//! coordinate `i` of a head turns together with coordinate `i + h/2`, by the angle `s · θ^(-2i/h)`.
//!
//! Legend: b microbatch, s position, n head, h coordinate within a head.

use tch::{Device, Kind, TchError, Tensor};

/// The cosines and sines of all positions, made once for an engine.
#[derive(Debug)]
pub(crate) struct Rope {
    cos_s1h: Tensor,
    /// The first half carries the minus sign of the rotation, so that a roll by half a head does the rest.
    sin_s1h: Tensor,
    half: i64,
}

impl Rope {
    /// Computes the table for `positions` in f64, and stores it in the format of computation.
    pub(crate) fn new(
        positions: usize,
        head_dim: usize,
        theta: f64,
        kind: Kind,
        device: Device,
    ) -> Result<Rope, TchError> {
        let half = head_dim / 2;
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in 0..positions {
            for coordinate in 0..head_dim {
                let exponent = -2.0 * (coordinate % half) as f64 / head_dim as f64;
                let angle = position as f64 * theta.powf(exponent);
                let sign = if coordinate < half { -1.0 } else { 1.0 };
                cos.push(angle.cos() as f32);
                sin.push((sign * angle.sin()) as f32);
            }
        }
        let table = |numbers: &[f32]| -> Result<Tensor, TchError> {
            let table = Tensor::f_from_slice(numbers)?;
            table.f_reshape([positions as i64, 1, head_dim as i64])?.f_to_device(device)?.f_to_kind(kind)
        };
        Ok(Rope { cos_s1h: table(&cos)?, sin_s1h: table(&sin)?, half: half as i64 })
    }

    /// Returns the table of the first `positions` positions.
    pub(crate) fn first(&self, positions: i64) -> Result<Rope, TchError> {
        Ok(Rope {
            cos_s1h: self.cos_s1h.f_narrow(0, 0, positions)?,
            sin_s1h: self.sin_s1h.f_narrow(0, 0, positions)?,
            half: self.half,
        })
    }

    /// Turns `x_bsnh` by its positions.
    pub(crate) fn turn(&self, x_bsnh: &Tensor) -> Result<Tensor, TchError> {
        let swapped_bsnh = x_bsnh.f_roll([self.half], [-1])?;
        x_bsnh.f_mul(&self.cos_s1h)?.f_addcmul(&swapped_bsnh, &self.sin_s1h)
    }
}
